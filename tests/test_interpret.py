"""Walking a jaxpr changes nothing by itself."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcheck.jaxprs import compat, interpret
from jaxcheck.jaxprs.sites import site_of
from tests.programs import PROGRAMS

BY_NAME = {program.name: program for program in PROGRAMS}
# Effects and foreign calls are traced again as other objects.
SKIPPED = {n for n in BY_NAME if "callback" in n or "debug" in n or "pallas" in n}


def opened(program):
    return program.jaxpr if hasattr(program, "jaxpr") else program


def names(program):
    # a conversion to the dtype that a value has is dropped when it is bound again
    return [
        eqn.primitive.name
        for eqn in opened(program).eqns
        if eqn.primitive.name != "convert_element_type"
    ]


@pytest.mark.parametrize("name", sorted(set(BY_NAME) - SKIPPED)[::3])
def test_evaluating_is_the_program_itself(name):
    fun, inputs = BY_NAME[name].build()
    program = jax.make_jaxpr(fun)(*inputs)

    again = jax.make_jaxpr(lambda *xs: interpret.evaluate(program, xs))(*inputs)

    assert names(again) == names(program)
    for old, new in zip(opened(program).outvars, opened(again).outvars, strict=True):
        assert (old.aval.shape, old.aval.dtype) == (new.aval.shape, new.aval.dtype)


@pytest.mark.parametrize(
    "name", ["scan_forward", "fft", "cond", "custom_vjp", "gather"]
)
def test_values_are_bit_for_bit_those_of_the_function(name):
    fun, inputs = BY_NAME[name].build()
    program = jax.make_jaxpr(fun)(*inputs)

    (got,) = jax.jit(lambda *xs: interpret.evaluate(program, xs))(*inputs)

    assert got == jax.jit(fun)(*inputs)


def test_rule_sees_every_equation_once_in_order():
    program = jax.make_jaxpr(lambda x: jnp.cos(jnp.sin(x)) * x)(1.0)
    seen = []

    def rule(eqn, operands):
        seen.append(eqn.primitive.name)
        return [sum(operands)]

    (out,) = interpret.interpret(program, [3], rule, lambda c: c)

    assert seen == ["sin", "cos", "mul"]
    assert out == 6


def test_constants_and_literals_pass_through_the_hook():
    table = np.arange(3.0, dtype=np.float32)
    program = jax.make_jaxpr(lambda x: jnp.sum(x * table) * 2.0)(jnp.ones(3))
    seen = []

    def constant(value):
        seen.append(np.asarray(value).tolist())
        return value

    interpret.interpret(program, [jnp.ones(3)], compat.bind, constant)

    assert sorted(map(str, seen)) == sorted(["[0.0, 1.0, 2.0]", "2.0"])


def test_constants_can_be_replaced():
    table = np.arange(3.0, dtype=np.float32)
    program = jax.make_jaxpr(lambda x: x * table)(jnp.ones(3))
    (out,) = interpret.evaluate(program, [jnp.ones(3)], [table + 1])
    np.testing.assert_array_equal(out, [1, 2, 3])


def test_a_literal_keeps_its_dtype_under_x64():
    program = jax.make_jaxpr(lambda k: k + 1)(np.int32(1))
    with jax.enable_x64(True):
        (out,) = interpret.evaluate(program, [np.int32(1)])
    assert out.dtype == np.int32


def test_source_lines_survive():
    def fun(x):
        return jnp.sin(x)

    program = jax.make_jaxpr(fun)(1.0)
    again = jax.make_jaxpr(lambda x: interpret.evaluate(program, [x]))(1.0)
    assert site_of(opened(again).eqns[0]) == site_of(opened(program).eqns[0])


def _deep(x):
    def body(c, _):
        return jax.lax.cond(c > 0, jnp.sin, jax.jit(jnp.cos), c), None

    return jax.lax.scan(body, x, None, length=2)[0]


def test_equations_reach_every_nested_program():
    program = jax.make_jaxpr(_deep)(1.0)
    found = [eqn.primitive.name for eqn in interpret.equations(program)]
    assert {"scan", "cond", "sin", "cos"} <= set(found)
    assert found.index("scan") < found.index("cond") < found.index("sin")


def test_map_programs_keeps_the_structure():
    program = jax.make_jaxpr(_deep)(1.0)
    (scan,) = opened(program).eqns
    seen = []

    def note(inner):
        seen.append(inner)
        return inner

    same = interpret.map_programs((1, (scan.params["jaxpr"], "x")), note)

    assert same == (1, (scan.params["jaxpr"], "x"))
    assert seen == [scan.params["jaxpr"]]
    assert interpret.map_programs((1, "x"), note) == (1, "x")
    assert len(seen) == 1


def test_live_equations_drop_what_nothing_needs():
    def fun(x, y):
        jnp.sin(y)
        return jnp.cos(x)

    program = jax.make_jaxpr(fun)(1.0, 2.0)

    assert [e.primitive.name for e in interpret.live_equations(program)] == ["cos"]
    assert interpret.used_inputs(program) == [True, False]


def test_effects_are_alive():
    def fun(x, y):
        jax.debug.callback(lambda y: None, y)
        return x

    program = jax.make_jaxpr(fun)(1.0, 2.0)
    assert len(interpret.live_equations(program)) == 1


def test_an_input_that_is_an_output_is_used():
    assert interpret.used_inputs(jax.make_jaxpr(lambda x, y: y)(1.0, 2.0)) == [
        False,
        True,
    ]
