"""Where equations come from."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcheck.jaxprs.interpret import equations
from jaxcheck.jaxprs.sites import site_of


def sites(fun, *inputs):
    return [site_of(eqn) for eqn in equations(jax.make_jaxpr(fun)(*inputs))]


def two_lines(x):
    y = jnp.sin(x)
    return jnp.cos(y)


def test_file_and_line():
    first, second = sites(two_lines, 1.0)
    start = two_lines.__code__.co_firstlineno
    assert (first.primitive, first.line) == ("sin", start + 1)
    assert (second.primitive, second.line) == ("cos", start + 2)
    assert first.file == second.file == __file__
    assert first.rule is None


def test_lines_inside_loops_and_jit():
    def fun(x):
        return jax.jit(
            lambda x: jax.lax.scan(lambda c, _: (two_lines(c), None), x, None, 2)
        )(x)[0]

    lines = {s.primitive: s.line for s in sites(fun, 1.0)}
    start = two_lines.__code__.co_firstlineno
    assert (lines["sin"], lines["cos"]) == (start + 1, start + 2)


def test_named_scopes():
    def fun(x):
        with jax.named_scope("encoder"), jax.named_scope("first"):
            return jnp.sin(x)

    (site,) = sites(fun, 1.0)
    assert site.scope == "encoder/first"


def test_no_scope_is_none():
    assert sites(two_lines, 1.0)[0].scope is None


def test_modules_of_flax():
    model = nn.Sequential([nn.Dense(2), nn.Dense(3)])
    x = np.ones((1, 2), np.float32)
    variables = model.init(jax.random.key(0), x)
    dots = [s for s in sites(model.apply, variables, x) if s.primitive == "dot_general"]
    assert [s.scope.split("/")[-1] for s in dots] == ["layers_0", "layers_1"]


def _rules():
    @jax.custom_jvp
    def my_square(x):
        return x**2

    my_square.defjvps(lambda t, out, x: 2 * x * t)

    @jax.custom_vjp
    def my_cube(x):
        return x**3

    my_cube.defvjp(lambda x: (x**3, x), lambda x, ct: (3 * x**2 * ct,))
    return [("custom_jvp_call", my_square), ("custom_vjp_call", my_cube)]


@pytest.mark.parametrize(("primitive", "function"), _rules(), ids=["jvp", "vjp"])
def test_rules_are_named(primitive, function):
    every = sites(lambda x: function(x), 1.0)  # noqa: PLW0108
    (site,) = [s for s in every if s.primitive == primitive]
    assert site.rule == function.__name__
    assert site.file == __file__


# ---- rules


@jax.custom_vjp
def tangled(x):
    return jnp.tanh(x)


def tangled_forward(x):
    return jnp.tanh(x), x


def tangled_backward(x, cotangent):
    return (cotangent * x,)


tangled.defvjp(tangled_forward, tangled_backward)


@pytest.mark.parametrize("wrap", [lambda f: f, jax.vmap], ids=["plain", "vmap"])
def test_the_rule_of_a_custom_vjp_has_a_place_of_its_own(wrap):
    def fun(x):
        return wrap(tangled)(x)

    (site,) = [s for s in sites(fun, np.ones(3)) if s.rule]
    assert (site.rule, site.derivative) == ("tangled", "tangled_backward")
    assert site.line == fun.__code__.co_firstlineno + 1
    assert site.derivative_file == __file__
    assert site.derivative_line == tangled_backward.__code__.co_firstlineno


def test_a_rule_that_jax_makes_up_has_no_place():
    square = jax.custom_jvp(lambda x: x**2)
    square.defjvps(lambda tangent, out, x: 2 * x * tangent)
    (site,) = [s for s in sites(square, 1.0) if s.rule]
    assert (site.derivative, site.derivative_file) == (None, None)


def test_a_line_of_a_framework_stands_for_the_line_that_called_it():
    model = nn.Dense(2)
    x = np.ones((1, 2), np.float32)
    variables = model.init(jax.random.key(0), x)

    def fun(variables):
        return model.apply(variables, x)

    lines = {s.line for s in sites(fun, variables) if s.primitive == "dot_general"}
    assert lines == {fun.__code__.co_firstlineno + 1}
