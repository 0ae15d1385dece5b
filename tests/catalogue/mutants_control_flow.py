"""Wrong rules inside scan, while, cond, remat, jit, vmap, and implicit derivatives."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from .cases import MutantList, Pair
from .planting import edited, normal, pair, uniform, with_jvp, with_vjp

MUTANTS = MutantList()


def tanh_with(factor: float) -> Callable[[Any], Any]:
    """Tanh with a custom_vjp whose gradient is off by a factor."""
    return with_vjp(jnp.tanh, lambda _, out, ct: (factor * ct * (1 - out * out),))


def sine_with(factor: float) -> Callable[[Any], Any]:
    """Sine with a custom_jvp whose derivative is off by a factor."""
    return with_jvp(
        jnp.sin, lambda primals, dots: factor * jnp.cos(primals[0]) * dots[0]
    )


def behind(
    rng: np.random.Generator, *, wrap: Callable[..., Any], make: Callable[..., Any]
) -> Pair:
    """An activation with a rule, wrapped in a transformation, between two matrices."""

    def loss_with(factor: float) -> Any:
        activation = wrap(make(factor))

        def loss(params: Any, x: Any) -> Any:
            return jnp.mean(activation(x @ params["below"]) @ params["above"])

        return loss

    params = {"below": normal(rng, 3, 4), "above": normal(rng, 4)}
    return pair(loss_with, 0.5, 1.0, params, normal(rng, 5, 3))


def scanned(fn: Callable[..., Any]) -> Callable[..., Any]:
    """``fn`` applied row by row in a scan."""
    return lambda x: lax.scan(lambda carry, row: (carry, fn(row)), 0, x)[1]


def branched(fn: Callable[..., Any]) -> Callable[..., Any]:
    """``fn`` in the branch of a cond that is taken."""
    return lambda x: lax.cond(jnp.sum(x * x) > 0, fn, lambda x: x, x)


def switched(fn: Callable[..., Any]) -> Callable[..., Any]:
    """``fn`` as one of three branches of a switch."""
    return lambda x: lax.switch(x.shape[0] // 3, [jnp.cos, fn, jnp.exp], x)


def looped(fn: Callable[..., Any]) -> Callable[..., Any]:
    """``fn`` three times over in a fori_loop."""
    return lambda x: lax.fori_loop(0, 3, lambda _, x: fn(x), x)


WRAPPERS = {
    "scan": scanned,
    "cond": branched,
    "switch": switched,
    "fori_loop": looped,
    "remat": jax.checkpoint,
    "jit": jax.jit,
    "vmap": jax.vmap,
    "remat_of_scan": lambda fn: jax.checkpoint(scanned(fn)),
    "vmap_of_jit_of_remat": lambda fn: jax.vmap(jax.jit(jax.checkpoint(fn))),
}

for _name, _wrap in WRAPPERS.items():
    for _kind, _make in (("vjp", tanh_with), ("jvp", sine_with)):
        MUTANTS.add("['below']", name=f"{_kind}_rule_inside_{_name}")(
            partial(behind, wrap=_wrap, make=_make)
        )


def recurrent(
    rng: np.random.Generator, wrong: Callable[..., Any], steps: int = 6
) -> Pair:
    """A recurrent net; ``wrong(i, ct)`` edits the gradient of its input weights."""

    def loss_with(edit: Any) -> Any:
        @jax.custom_vjp
        def marked(w: Any, i: Any) -> Any:
            return w

        marked.defvjp(lambda w, i: (w, i), lambda i, ct: (edit(i, ct), None))

        def loss(params: Any, xs: Any) -> Any:
            def step(carry: Any, inputs: Any) -> Any:
                i, x = inputs
                hidden = jnp.tanh(x @ marked(params["in"], i) + carry @ params["loop"])
                return hidden, hidden

            steps = jnp.arange(xs.shape[0], dtype=jnp.int32)
            _, hidden = lax.scan(step, jnp.zeros(3, xs.dtype), (steps, xs))
            return jnp.mean(hidden @ params["out"])

        return loss

    params = {
        "in": normal(rng, 2, 3),
        "loop": 0.5 * normal(rng, 3, 3),
        "out": normal(rng, 3),
    }
    return pair(loss_with, wrong, lambda i, ct: ct, params, normal(rng, steps, 2))


@MUTANTS.add("['in']")
def wrong_in_one_iteration(rng: np.random.Generator) -> Pair:
    """The fourth of six iterations contributes nothing."""
    return recurrent(rng, lambda i, ct: jnp.where(i == 3, 0 * ct, ct))


@MUTANTS.add("['in']")
def wrong_in_the_last_iteration(rng: np.random.Generator) -> Pair:
    """The last iteration counts twice."""
    return recurrent(rng, lambda i, ct: jnp.where(i == 5, 2 * ct, ct))


@MUTANTS.add("['in']")
def truncated_through_time(rng: np.random.Generator) -> Pair:
    """Truncated backpropagation through time, undeclared."""
    return recurrent(rng, lambda i, ct: jnp.where(i < 3, 0 * ct, ct))


@MUTANTS.add("['in']")
def discounted_through_time(rng: np.random.Generator) -> Pair:
    """Each iteration's gradient discounted a little more."""
    return recurrent(rng, lambda i, ct: ct * 0.99 ** i.astype(ct.dtype))


@MUTANTS.add("['loop']")
def carry_of_the_wrong_step(rng: np.random.Generator) -> Pair:
    """The residual of a step is its new state where its old one was meant."""

    def loss_with(old: bool) -> Any:
        @jax.custom_vjp
        def mix(carry: Any, w: Any) -> Any:
            return jnp.tanh(carry * w)

        def fwd(carry: Any, w: Any) -> Any:
            out = mix(carry, w)
            return out, (carry if old else out, w, out)

        def bwd(residuals: Any, ct: Any) -> Any:
            carry, w, out = residuals
            inner = ct * (1 - out * out)
            return inner * w, inner * carry

        mix.defvjp(fwd, bwd)

        def loss(params: Any) -> Any:
            def step(carry: Any, _: Any) -> Any:
                return mix(carry, params["loop"]), None

            last, _ = lax.scan(step, params["start"], None, length=4)
            return jnp.sum(last * params["out"])

        return loss

    params = {name: uniform(rng, 0.5, 1.5, 3) for name in ("loop", "start", "out")}
    return pair(loss_with, False, True, params)


@MUTANTS.add("['a']")
def around_a_while_loop(rng: np.random.Generator) -> Pair:
    """Newton's square root by a while loop, with a wrong implicit derivative."""

    def loss_with(factor: float) -> Any:
        def newton(a: Any) -> Any:
            def step(state: Any) -> Any:
                i, x = state
                return i + 1, 0.5 * (x + a / x)

            return lax.while_loop(lambda state: state[0] < 8, step, (0, a))[1]

        root = with_vjp(newton, lambda _, out, ct: (factor * ct / out,))
        return lambda params: jnp.sum(root(params["a"]) * params["b"])

    params = {"a": uniform(rng, 0.5, 3.0, 4), "b": normal(rng, 4)}
    return pair(loss_with, 1.0, 0.5, params)


@MUTANTS.add("['a']")
def root_with_the_wrong_tangent(rng: np.random.Generator) -> Pair:
    """custom_root whose tangent solve multiplies where it divides."""

    def loss_with(divide: bool) -> Any:
        def tangent_solve(g: Any, y: Any) -> Any:
            slope = g(jnp.ones_like(y))
            return y / slope if divide else y * slope

        def root(a: Any) -> Any:
            def solve(f: Any, x: Any) -> Any:
                return lax.fori_loop(0, 12, lambda _, x: x - f(x) / (3 * x**2 + 1), x)

            return lax.custom_root(
                lambda x: x**3 + x - a, jnp.ones_like(a), solve, tangent_solve
            )

        return lambda params: jnp.sum(root(params["a"]) * params["b"])

    params = {"a": uniform(rng, 0.5, 3.0, 4), "b": normal(rng, 4)}
    return pair(loss_with, False, True, params)


@MUTANTS.add("['b']")
def linear_solve_with_the_wrong_transpose(rng: np.random.Generator) -> Pair:
    """custom_linear_solve told that a matrix is symmetric that is not."""
    matrix = 3 * jnp.eye(3, dtype=jnp.float32) + normal(rng, 3, 3)

    def loss_with(transpose: bool) -> Any:
        def solve(_: Any, b: Any) -> Any:
            return jnp.linalg.inv(matrix) @ b

        def transpose_solve(_: Any, b: Any) -> Any:
            inverse = jnp.linalg.inv(matrix)
            return (inverse.T if transpose else inverse) @ b

        def loss(params: Any) -> Any:
            x = lax.custom_linear_solve(
                lambda x: matrix @ x, params["b"], solve, transpose_solve
            )
            return jnp.sum(jnp.sin(x) * params["y"])

        return loss

    params = {"b": normal(rng, 3), "y": normal(rng, 3)}
    return pair(loss_with, False, True, params)


@MUTANTS.add("['x']")
def rule_within_a_rule(rng: np.random.Generator) -> Pair:
    """A right custom_jvp around a function whose custom_vjp is wrong."""

    def loss_with(factor: float) -> Any:
        tanh = tanh_with(factor)
        outer = jax.custom_jvp(lambda x: tanh(x) ** 2)

        @outer.defjvp
        def _(primals: Any, dots: Any) -> Any:
            (x,), (d_x,) = primals, dots
            value = jnp.tanh(x)
            # The slope comes from the faulty rule, as the author trusted it.
            slope = jax.vmap(jax.grad(tanh))(x)
            return value**2, 2 * value * slope * d_x

        return lambda params: jnp.sum(outer(params["x"]) * params["y"])

    return pair(loss_with, 1.001, 1.0, {"x": normal(rng, 4), "y": normal(rng, 4)})


@MUTANTS.add("['w']")
def mean_over_devices_missing(rng: np.random.Generator) -> Pair:
    """The gradients of four shards summed where the loss is their mean."""

    def loss_with(factor: float) -> Any:
        shared = edited(lambda _, ct: factor * ct)

        def loss(params: Any, shards: Any) -> Any:
            w = shared(params["w"])
            losses = jax.vmap(lambda x: jnp.mean((x @ w + params["b"]) ** 2))(shards)
            return jnp.mean(losses)

        return loss

    params = {"w": normal(rng, 3, 2), "b": normal(rng, 2)}
    return pair(loss_with, 4.0, 1.0, params, normal(rng, 4, 5, 3))


@MUTANTS.add("['x']")
def associative_scan_not_reversed(rng: np.random.Generator) -> Pair:
    """A hand-written backward of a parallel prefix sum that runs forward."""

    def loss_with(reverse: bool) -> Any:
        prefix = with_vjp(
            lambda x: lax.associative_scan(jnp.add, x),
            lambda _, out, ct: (lax.associative_scan(jnp.add, ct, reverse=reverse),),
        )
        return lambda params: jnp.sum(jnp.sin(prefix(params["x"])) * params["y"])

    return pair(loss_with, False, True, {"x": normal(rng, 5), "y": normal(rng, 5)})
