"""The float64 reading agrees with the same function written in float64.

Values are compared with custom rules inlined, gradients with rules kept; a wrong rule
must stay exactly as wrong as it is. Every program is read as it was traced with 64-bit
types off; its dtypes, also as it was traced with them on.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend import core as jex_core

from jaxcheck.jaxprs.interpret import evaluate
from jaxcheck.jaxprs.lift import lift
from tests.programs import PROGRAMS

# A loop over values that vary over a mesh axis has no float64 reading (docs/design.md);
# tests/test_check_sharded.py shows what a check does then.
NOT_LIFTED = {"shard_map_ppermute_in_scan"}
LIFTED = [program for program in PROGRAMS if program.name not in NOT_LIFTED]
BY_NAME = {program.name: program for program in LIFTED}
EVERY = pytest.mark.parametrize("name", list(BY_NAME))
RULES = pytest.mark.parametrize("rules", ["inline", "keep"])
# Code is generated without optimizing it: it runs once.
QUICK = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}


def dtype_of(x):
    return x.dtype if hasattr(x, "dtype") else np.result_type(x)


def is_float(x):
    return jnp.issubdtype(dtype_of(x), jnp.inexact)


def widened(x):
    """``x`` in float64 or complex128, if it is a floating array."""
    if not is_float(x):
        return x
    wide = np.complex128 if jnp.iscomplexobj(x) else np.float64
    return np.asarray(x).astype(wide)


def primary(out):
    """The loss, of a loss with or without further outputs."""
    return out[0] if isinstance(out, tuple | list) else out


@functools.cache
def built(name):
    with jax.enable_x64(False):
        return BY_NAME[name].build()


@functools.cache
def traced(name, x64):
    fun, inputs = built(name)
    with jax.enable_x64(x64):
        return jax.make_jaxpr(fun)(*inputs)


@functools.cache
def lifted(name, x64, rules):
    program = traced(name, x64)
    with jax.enable_x64(True):
        return lift(program, rules=rules, native=False, native_x64=x64)


def computed(fun, inputs, how, *, plainly):
    """Outputs (if ``plainly``), and the loss and gradients under differentiation."""
    moving = [k for k, x in enumerate(inputs) if is_float(x)]
    every = tuple(range(len(moving)))

    def outputs(moved):
        full = list(inputs)
        for k, x in zip(moving, moved, strict=True):
            full[k] = x
        return fun(*full)

    def loss(*moved):
        return primary(outputs(moved))

    def run(*moved):
        out = outputs(moved) if plainly else None
        if how == "forward":
            return out, loss(*moved), jax.jacfwd(loss, every)(*moved)
        if how == "backward":
            return out, *jax.value_and_grad(loss, every)(*moved)
        return out, None, None

    at = [inputs[k] for k in moving]
    return jax.tree.map(np.asarray, jax.jit(run, compiler_options=QUICK)(*at))


def computed_by(name, rules, how):
    """What the reading of a program traced with 64-bit types off computes."""
    reading = lifted(name, False, rules)
    inputs = [widened(x) for x in built(name)[1]]
    with jax.enable_x64(True):
        return computed(
            lambda *xs: evaluate(reading, xs), inputs, how, plainly=how is None
        )


@functools.cache
def reference(name):
    """Value, value under differentiation and gradients, in float64 or natively."""
    program = BY_NAME[name]
    fun, inputs = built(name)
    wide = program.reference == "float64"
    # random draws of another dtype are other draws: the native run is the traced one
    with jax.enable_x64(wide):
        inputs = [widened(x) if wide else x for x in inputs]
        out, during, grads = computed(fun, inputs, program.gradient, plainly=True)
    return primary(out), jax.tree.leaves(out)[1:], during, grads


def assert_close(got, wanted, rtol):
    __tracebackhide__ = True
    scale = max(float(np.max(np.abs(wanted), initial=0.0)), 1e-3)
    error = np.max(np.abs(np.asarray(got) - np.asarray(wanted)), initial=0.0) / scale
    # never `error > rtol`: NaN must fail
    assert error <= rtol, f"relative error {error:.1e}, allowed {rtol:.1e}"


@EVERY
def test_value_agrees_with_the_function_in_float64(name):
    program = BY_NAME[name]
    wanted, others, _, _ = reference(name)
    (got, *rest), _, _ = computed_by(name, "inline", None)

    assert got.dtype == np.float64
    assert_close(got, wanted, program.rtol)
    assert len(rest) == len(others)
    for mine, native in zip(rest, others, strict=True):
        if is_float(native):
            assert_close(mine, native, max(program.rtol, 1e-6))
        else:  # masks, indices, drawn integers
            assert mine.dtype == native.dtype
            np.testing.assert_array_equal(mine, native)


@pytest.mark.parametrize("name", [p.name for p in LIFTED if p.gradient != "none"])
def test_gradient_with_rules_kept_agrees_with_float64(name):
    program = BY_NAME[name]
    value, _, wanted, wanted_grads = reference(name)
    _, got, grads = computed_by(name, "keep", program.gradient)

    assert_close(got, wanted, program.rtol)
    assert bool(abs(wanted - value) > 1e-3) == program.value_differs
    for mine, theirs in zip(grads, wanted_grads, strict=True):
        assert_close(mine, theirs, program.rtol)


# -- dtypes


def nested(value):
    """Every jaxpr among the parameters of an equation."""
    if isinstance(value, jex_core.ClosedJaxpr | jex_core.Jaxpr):
        yield value.jaxpr if hasattr(value, "jaxpr") else value
    elif isinstance(value, tuple | list):
        for item in value:
            yield from nested(item)


def narrow_values(jaxpr, as_traced):
    """Primitives that make a floating value of less than 64 bits, where none may.

    Allowed are the operands and results of equations that run as they were traced.
    """
    users = {}
    for eqn in jaxpr.eqns:
        for v in eqn.invars:
            if not isinstance(v, jex_core.Literal):
                users.setdefault(v, []).append(eqn)
    for eqn in jaxpr.eqns:
        name = eqn.primitive.name
        if name in as_traced:
            continue
        for value in eqn.params.values():
            for inner in nested(value):
                yield from narrow_values(inner, as_traced)
        for out in eqn.outvars:
            dtype = getattr(out.aval, "dtype", np.dtype(int))
            if not jnp.issubdtype(dtype, jnp.inexact) or dtype in ("f8", "c16"):
                continue
            feeds = users.get(out, [])
            if (
                name == "convert_element_type"
                and feeds
                and all(user.primitive.name in as_traced for user in feeds)
            ):
                continue
            yield f"{name} -> {dtype}"


# A program traced with 64-bit types on mostly has the same reading: a third of them.
@RULES
@pytest.mark.parametrize(
    ("name", "x64"),
    [(name, False) for name in BY_NAME] + [(name, True) for name in [*BY_NAME][::3]],
)
def test_every_float_is_float64(name, x64, rules):
    program = BY_NAME[name]

    reading = lifted(name, x64, rules)

    jaxpr = reading.jaxpr if hasattr(reading, "jaxpr") else reading
    assert list(narrow_values(jaxpr, program.as_traced)) == []
    for v in [*jaxpr.invars, *jaxpr.outvars]:
        assert not is_float(v.aval) or v.aval.dtype in ("f8", "c16")


# -- single properties


def trace(fun, *inputs):
    return jax.make_jaxpr(fun)(*inputs)


def read(program, rules, *, native=False):
    with jax.enable_x64(True):
        return lift(program, rules=rules, native=native, native_x64=False)


def primitives(program):
    jaxpr = program.jaxpr if hasattr(program, "jaxpr") else program
    for eqn in jaxpr.eqns:
        yield eqn.primitive.name
        for value in eqn.params.values():
            for inner in nested(value):
                yield from primitives(inner)


@jax.custom_jvp
def _doubled(x):
    return 2 * x


_doubled.defjvps(lambda t, out, x: 7 * t)


def test_inlined_rules_do_not_speak():
    program = trace(lambda x: _doubled(x) * x, jnp.float32(3))

    with jax.enable_x64(True):
        inlined, kept = read(program, "inline"), read(program, "keep")
        slope = {
            name: float(jax.grad(lambda x, p=p: evaluate(p, [x])[0])(3.0))
            for name, p in (("inline", inlined), ("keep", kept))
        }

    assert slope["inline"] == 12.0  # d(2x²)/dx
    assert slope["keep"] == 27.0  # 7x + 2x
    assert "custom_jvp_call" not in set(primitives(inlined))
    assert "custom_jvp_call" in set(primitives(kept))


def test_the_native_reading_keeps_dtypes():
    program = trace(lambda x: jnp.sum(x.astype(jnp.bfloat16) ** 2), jnp.ones(3))

    reading = read(program, "inline", native=True)

    jaxpr = reading.jaxpr if hasattr(reading, "jaxpr") else reading
    assert jaxpr.invars[0].aval.dtype == jnp.float32
    assert jaxpr.outvars[0].aval.dtype == jnp.bfloat16


def test_native_reading_equals_the_program_bit_for_bit():
    x = np.random.default_rng(0).normal(size=7).astype(np.float32)

    def fun(x):
        return jnp.sum(jnp.tanh(x.astype(jnp.bfloat16)).astype(jnp.float32) * x)

    program = trace(fun, x)
    with jax.enable_x64(True):
        (got,) = evaluate(read(program, "inline", native=True), [x])

    assert got == fun(x)


def test_debug_print_is_silent(capsys):
    def fun(x):
        jax.debug.print("heard {}", x)
        return x * 2

    program = read(trace(fun, jnp.float32(1)), "inline")
    with jax.enable_x64(True):
        evaluate(program, [np.float64(1)])
    jax.effects_barrier()

    assert capsys.readouterr().out == ""


def test_reduce_precision_is_dropped():
    program = trace(lambda x: jax.lax.reduce_precision(x, 8, 7), jnp.float32(1))

    assert "reduce_precision" not in set(primitives(read(program, "inline")))


def test_dropout_mask_is_that_of_the_native_run_although_x64_draws_another():
    def mask(key):
        return jax.random.bernoulli(key, 0.5, (1000,))

    key = jax.random.key(11)
    native = np.asarray(mask(key))
    with jax.enable_x64(True):
        (got,) = evaluate(read(trace_off(mask, key), "inline"), [key])
        other = np.asarray(mask(key))

    np.testing.assert_array_equal(got, native)
    assert not np.array_equal(other, native), "the trap this guards against is gone"


def trace_off(fun, *inputs):
    with jax.enable_x64(False):
        return jax.make_jaxpr(fun)(*inputs)


def test_captured_constants_are_raised():
    table = np.linspace(0, 1, 5, dtype=np.float32)
    program = trace(lambda x: jnp.sum(table * x), jnp.ones(5))

    with jax.enable_x64(True):
        x = np.full(5, 1 / 3)
        (got,) = evaluate(read(program, "inline"), [x])

    np.testing.assert_allclose(got, np.sum(table.astype(float) * x), rtol=1e-15)


@pytest.mark.parametrize("rules", ["inline", "keep"])
def test_x64_is_left_as_found(rules):
    before = jax.config.jax_enable_x64
    read(trace(lambda x: _doubled(x) * 2, jnp.float32(1)), rules)
    assert jax.config.jax_enable_x64 == before


def test_second_derivatives_of_kept_rules_agree():
    @jax.custom_jvp
    def f(x):
        return jnp.sin(x)

    f.defjvps(lambda t, out, x: 2 * jnp.cos(x) * t)
    program = trace(lambda x: f(x) * x, jnp.float32(0.5))

    with jax.enable_x64(True):
        kept = read(program, "keep")
        got = jax.grad(jax.grad(lambda x: evaluate(kept, [x])[0]))(0.5)
        wanted = jax.grad(jax.grad(lambda x: f(x) * x))(0.5)

    np.testing.assert_allclose(got, wanted, rtol=1e-12)
