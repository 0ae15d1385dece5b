"""Gradients that are NaN or infinite although the loss, and the truth, are finite."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .cases import EVERY_COORDINATE, TOO_LARGE_FOR_EXHAUSTIVE, MutantList, Pair
from .planting import normal, pair, with_vjp

MUTANTS = MutantList()

NAN = {"finding": "nan_gradient"}


def planted(
    rng: np.random.Generator, *, size: int, value: float, where: int | None
) -> Pair:
    """Squares with one coordinate of the gradient, or all, replaced by ``value``."""
    mask = np.ones(size, bool) if where is None else np.arange(size) == where

    def loss_with(value: float | None) -> Any:
        def rule(primals: Any, _: Any, ct: Any) -> Any:
            right = 2 * primals[0] * ct
            return (right if value is None else jnp.where(mask, value, right),)

        square = with_vjp(jnp.square, rule)
        return lambda params: (
            jnp.mean(square(params["x"])) + jnp.sum(jnp.sin(params["bias"]))
        )

    return pair(
        loss_with, value, None, {"x": normal(rng, size), "bias": normal(rng, 3)}
    )


# Comparisons by jnp.max lose NaN from 4,096 elements on in some versions of jaxlib.
for _size in (1, 4_096, 5_000, 100_000):
    _modes = EVERY_COORDINATE if _size < 1_000 else TOO_LARGE_FOR_EXHAUSTIVE
    MUTANTS.add("['x']", name=f"nan_everywhere_size_{_size}", modes=_modes, **NAN)(
        partial(planted, size=_size, value=float("nan"), where=None)
    )
    if _size > 1:
        MUTANTS.add(
            "['x']",
            name=f"nan_in_one_coordinate_size_{_size}",
            index=(_size - 2,),
            modes=_modes,
            same_twin=True,
            **NAN,
        )(partial(planted, size=_size, value=float("nan"), where=_size - 2))

MUTANTS.add("['x']", name="nan_in_one_coordinate_size_40", index=(17,), **NAN)(
    partial(planted, size=40, value=float("nan"), where=17)
)
MUTANTS.add("['x']", name="infinite_everywhere")(
    partial(planted, size=5, value=float("inf"), where=None)
)
MUTANTS.add("['x']", name="infinite_in_one_coordinate", index=(3,))(
    partial(planted, size=40, value=-float("inf"), where=3)
)
MUTANTS.add(
    "['x']",
    name="infinite_in_one_coordinate_size_5000",
    index=(4_999,),
    modes=TOO_LARGE_FOR_EXHAUSTIVE,
)(partial(planted, size=5_000, value=float("inf"), where=4_999))


def guarded(x: Any, inside: Any, fn: Any, safe: float, *, twice: bool) -> Any:
    """``fn(x)`` where ``inside`` and 0 elsewhere; guarded once, or twice as it must."""
    return jnp.where(inside, fn(jnp.where(inside, x, safe) if twice else x), 0.0)


@MUTANTS.add("['x']", index=(1,), **NAN)
def where_around_a_root(rng: np.random.Generator) -> Pair:
    """The branch not taken is NaN, and 0 · NaN is NaN."""

    def loss_with(twice: bool) -> Any:
        def loss(params: Any) -> Any:
            x = params["x"]
            return jnp.sum(guarded(x, x > 0, jnp.sqrt, 1.0, twice=twice) * params["y"])

        return loss

    x = jnp.asarray(np.asarray([0.5, -1.0, 2.0], np.float32))
    return pair(loss_with, False, True, {"x": x, "y": normal(rng, 3)})


@MUTANTS.add("['x']", index=(2,), **NAN)
def where_around_an_overflow(rng: np.random.Generator) -> Pair:
    """A softplus of one's own: exp(1000) overflows in the branch not taken."""

    def loss_with(twice: bool) -> Any:
        def loss(params: Any) -> Any:
            x = params["x"]
            small = x < 50
            inner = jnp.where(small, x, 0.0) if twice else x
            softplus = jnp.where(small, jnp.log1p(jnp.exp(inner)), x)
            return jnp.sum(softplus * params["y"])

        return loss

    x = jnp.asarray(np.asarray([0.5, -1.0, 1000.0], np.float32))
    return pair(loss_with, False, True, {"x": x, "y": normal(rng, 3)})


@MUTANTS.add("['x']", index=(2,), **NAN)
def overflow_in_float32_only(rng: np.random.Generator) -> Pair:
    """As above at 100, where float64 is fine and training is not."""

    def loss_with(twice: bool) -> Any:
        def loss(params: Any) -> Any:
            x = params["x"]
            small = x < 50
            inner = jnp.where(small, x, 0.0) if twice else x
            softplus = jnp.where(small, jnp.log1p(jnp.exp(inner)), x)
            return jnp.sum(softplus * params["y"])

        return loss

    x = jnp.asarray(np.asarray([0.5, -1.0, 100.0], np.float32))
    return pair(loss_with, False, True, {"x": x, "y": normal(rng, 3)})


@MUTANTS.add("['scores']", **NAN)
def masked_softmax_row(rng: np.random.Generator) -> Pair:
    """A fully masked row is 0 / 0 in the branch not taken."""
    bias = np.asarray([[0, 0, -np.inf], [-np.inf, -np.inf, -np.inf]], np.float32)

    def loss_with(twice: bool) -> Any:
        def loss(params: Any) -> Any:
            weights = jnp.exp(params["scores"] + bias)
            total = weights.sum(1, keepdims=True)
            some = total > 0
            safe = jnp.where(some, total, 1.0) if twice else total
            attended = jnp.where(some, weights / safe, 0.0) @ params["values"]
            return jnp.sum(jnp.sin(attended))

        return loss

    params = {"scores": normal(rng, 2, 3), "values": normal(rng, 3, 2)}
    return pair(loss_with, False, True, params)


@MUTANTS.add("['x']", **NAN)
def norm_of_the_zero_vector(rng: np.random.Generator) -> Pair:
    """The gradient of a norm at zero, multiplied by zero afterwards."""

    def loss_with(twice: bool) -> Any:
        def loss(params: Any) -> Any:
            square = jnp.sum(params["x"] ** 2)
            positive = square > 0
            safe = jnp.where(positive, square, 1.0) if twice else square
            length = jnp.where(positive, jnp.sqrt(safe), 0.0)
            return jnp.sum(params["y"] ** 2) * (1 + length**3)

        return loss

    params = {"x": jnp.zeros(3, jnp.float32), "y": normal(rng, 3)}
    return pair(loss_with, False, True, params)


@MUTANTS.add("['b']", **NAN)
def nan_inside_one_scan_step(rng: np.random.Generator) -> Pair:
    """One of five steps returns NaN for one leaf."""

    def loss_with(value: float) -> Any:
        @jax.custom_vjp
        def marked(b: Any, i: Any) -> Any:
            return b

        marked.defvjp(
            lambda b, i: (b, i),
            lambda i, ct: (jnp.where(i == 2, value * ct, ct), None),
        )

        def loss(params: Any) -> Any:
            def step(carry: Any, i: Any) -> Any:
                return jnp.tanh(carry * params["a"] + marked(params["b"], i)), None

            last, _ = jax.lax.scan(
                step, jnp.zeros_like(params["a"]), jnp.arange(5, dtype=jnp.int32)
            )
            return jnp.sum(last)

        return loss

    params = {"a": normal(rng, 3), "b": normal(rng, 3)}
    return pair(loss_with, float("nan"), 1.0, params)
