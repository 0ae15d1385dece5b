"""Faults in implicit layers: differential equations and fixed points."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax

from tests.catalogue.cases import Program
from tests.catalogue.planting import normal, uniform

from .cases import FaultList, culprit

FAULTS = FaultList()


# ---- differential equations


def midpoint(field, params, x, size):
    """One step of the explicit midpoint rule."""
    return x + size * field(params, x + size / 2 * field(params, x))


def neural_field(params, x):
    """A vector field."""
    return jnp.tanh(params["w"] @ x + params["b"])


def neural_ode(rng, adjoint_step):
    """A neural differential equation, its adjoint a while loop run backward.

    ``adjoint_step(params, before, after, ct)`` returns the cotangents of the
    parameters and of the state at one step.
    """
    steps, size = 6, 0.25

    @jax.custom_vjp
    def odeint(params, start):
        return solve(params, start)[-1]

    def solve(params, start):
        def advance(carry):
            n, path = carry
            new = midpoint(neural_field, params, path[n], size)
            return n + 1, path.at[n + 1].set(new)

        path = jnp.zeros((steps + 1, *start.shape), start.dtype).at[0].set(start)
        return lax.while_loop(lambda c: c[0] < steps, advance, (0, path))[1]

    def odeint_forward(params, start):
        path = solve(params, start)
        return path[-1], (params, path)

    def odeint_backward(saved, ct):
        params, path = saved

        def retreat(carry):
            n, ct, total = carry
            of_params, ct = adjoint_step(params, path[n], path[n + 1], ct, size)
            return n - 1, ct, jax.tree.map(jnp.add, total, of_params)

        zero = jax.tree.map(jnp.zeros_like, params)
        start = (steps - 1, ct, zero)
        _, ct, total = lax.while_loop(lambda c: c[0] >= 0, retreat, start)
        return total, ct

    odeint.defvjp(odeint_forward, odeint_backward)

    def loss(params, start, target):
        end = odeint(params["field"], start)  # rule: neural ODE
        return jnp.sum((params["scale"] * end - target) ** 2)

    field = {"w": normal(rng, 3, 3), "b": normal(rng, 3)}
    params = {"field": field, "scale": uniform(rng, 0.5, 1.5, 3)}
    return Program(loss, params, (normal(rng, 3), normal(rng, 3)))


def pull_midpoint(params, x, ct, size):
    """The pullback of one step of the midpoint rule from ``x``."""
    step = lambda params, x: midpoint(neural_field, params, x, size)  # noqa: E731
    return jax.vjp(step, params, x)[1](ct)


@FAULTS.add(culprit("odeint", "neural ODE"))
def neural_ode_adjoint_at_the_wrong_end(rng, faulty):
    """Each step is pulled back at the state after it, not before."""

    def adjoint_step(params, before, after, ct, size):
        return pull_midpoint(params, after if faulty else before, ct, size)

    return neural_ode(rng, adjoint_step)


@FAULTS.add(culprit("odeint", "neural ODE"))
def neural_ode_adjoint_by_another_method(rng, faulty):
    """The adjoint of Euler's steps for a path of midpoint steps."""

    def adjoint_step(params, before, after, ct, size):
        if not faulty:
            return pull_midpoint(params, before, ct, size)
        euler = lambda params, x: x + size * neural_field(params, x)  # noqa: E731
        return jax.vjp(euler, params, before)[1](ct)

    return neural_ode(rng, adjoint_step)


# ---- fixed points


def equilibrium(rng, solve_adjoint):
    """A deep equilibrium net: z = tanh(w z + x), iterated until it rests."""

    def body(w, x, z):
        return jnp.tanh(w @ z + x)

    @jax.custom_vjp
    def fixed_point(w, x):
        def unsettled(carry):
            old, new, count = carry
            return (jnp.max(jnp.abs(new - old)) > 1e-14) & (count < 200)

        def again(carry):
            _, z, count = carry
            return z, body(w, x, z), count + 1

        start = jnp.zeros_like(x)
        return lax.while_loop(unsettled, again, (start, body(w, x, start), 0))[1]

    def fixed_point_forward(w, x):
        z = fixed_point(w, x)
        return z, (w, x, z)

    def fixed_point_backward(saved, ct):
        w, _, z = saved
        slope = 1 - z * z
        u = solve_adjoint(slope[:, None] * w, ct) * slope
        return jnp.outer(u, z), u

    fixed_point.defvjp(fixed_point_forward, fixed_point_backward)

    def loss(params, x):
        z = fixed_point(params["w"], params["in"] @ x)  # rule: deep equilibrium
        return jnp.sum((params["out"] @ z) ** 2)

    params = {
        "w": 0.25 * normal(rng, 4, 4),
        "in": normal(rng, 4, 3),
        "out": normal(rng, 2, 4),
    }
    return Program(loss, params, (normal(rng, 3),))


@FAULTS.add(culprit("fixed_point", "deep equilibrium"))
def equilibrium_forgets_the_transpose(rng, faulty):
    def solve_adjoint(jacobian, ct):
        matrix = jnp.eye(len(ct), dtype=ct.dtype) - jacobian
        return jnp.linalg.solve(matrix if faulty else matrix.T, ct)

    return equilibrium(rng, solve_adjoint)


@FAULTS.add(culprit("fixed_point", "deep equilibrium"))
def equilibrium_cuts_the_neumann_series(rng, faulty):
    """Two terms of Σ Jᵏ where the series has to converge."""

    def solve_adjoint(jacobian, ct):
        terms = 2 if faulty else 60
        return lax.fori_loop(0, terms, lambda _, u: ct + jacobian.T @ u, ct)

    return equilibrium(rng, solve_adjoint)
