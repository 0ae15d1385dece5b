"""Which stop_gradients hold nothing constant."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.lax import stop_gradient

from jaxcheck.jaxprs.interpret import equations
from jaxcheck.jaxprs.liveness import transparent_sites

X = np.array([0.5, -1.0, 2.0], np.float32)


def _matrix(x):
    return jnp.outer(x, x) + 2 * jnp.eye(3)


@jax.custom_jvp
def _jvp_rule(x):
    return stop_gradient(x) * x


_jvp_rule.defjvps(lambda t, out, x: t)


@jax.custom_vjp
def _vjp_rule(x):
    return jax.jit(lambda x: stop_gradient(x) * x)(x)


_vjp_rule.defvjp(lambda x: (x, None), lambda _, ct: (ct,))


def _own_solver(x, *, through):
    a = x**2 + 1
    fixed = stop_gradient(a)

    def solve(_, b):
        return b / fixed

    y = jax.lax.custom_linear_solve(lambda v: a * v, x, solve, symmetric=True)
    return y + jnp.sum(fixed) if through else y


# name: (function, sites in program order: does each hold nothing constant?)
CASES = {
    "plain": (lambda x: stop_gradient(x) * x, [False]),
    "in_jit": (jax.jit(lambda x: stop_gradient(x) * x), [False]),
    "in_scan": (
        lambda x: jax.lax.scan(lambda c, _: (stop_gradient(c) * x, None), x, None, 2)[
            0
        ],
        [False],
    ),
    "in_remat": (jax.checkpoint(lambda x: stop_gradient(x) * x), [False]),
    "in_jvp_rule": (_jvp_rule, [True]),
    "in_vjp_rule_in_jit": (_vjp_rule, [True]),
    "rule_beside_plain": (lambda x: _jvp_rule(x) + stop_gradient(x), [True, False]),
    "rule_in_scan": (
        lambda x: jax.lax.scan(lambda c, _: (_jvp_rule(c), None), x, None, 2)[0],
        [True],
    ),
    "own_solver": (lambda x: _own_solver(x, through=False), [True]),
    "own_solver_used_elsewhere": (lambda x: _own_solver(x, through=True), [False]),
    "unused": (lambda x: (stop_gradient(x), x)[1], [True]),
    "right_hand_side": (
        lambda x: jax.lax.custom_linear_solve(
            lambda v: 2.0 * v, stop_gradient(x), lambda mv, b: b / 2, symmetric=True
        ),
        [False],
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_transparent_sites(name):
    fun, wanted = CASES[name]
    program = jax.make_jaxpr(fun)(X)
    sites = [e for e in equations(program) if e.primitive.name == "stop_gradient"]

    found = transparent_sites(program)

    assert [id(eqn) in found for eqn in sites] == wanted


@pytest.mark.parametrize(
    "solve",
    [
        lambda x: jnp.linalg.solve(_matrix(x), x),
        jax.jit(lambda x: jnp.linalg.solve(_matrix(x), x)),
        lambda x: jax.vmap(lambda b: jnp.linalg.solve(_matrix(x), b))(jnp.eye(3)),
        lambda x: jax.scipy.linalg.solve(_matrix(x), x, assume_a="pos"),
        lambda x: jax.scipy.sparse.linalg.cg(lambda v: _matrix(x) @ v, x)[0],
    ],
    ids=["solve", "jit", "vmap", "cholesky", "cg"],
)
def test_solvers_of_the_library_hold_nothing_constant(solve):
    program = jax.make_jaxpr(solve)(X)
    sites = {id(e) for e in equations(program) if e.primitive.name == "stop_gradient"}
    assert transparent_sites(program) == sites
