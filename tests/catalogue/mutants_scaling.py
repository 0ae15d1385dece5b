"""Faults of size and place: a factor, one coordinate, errors that hide from sums.

The functions are plain; what varies is how large the leaf is, how large the error is,
and where it sits.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import jax.numpy as jnp
import numpy as np

from .cases import EVERY_COORDINATE, TOO_LARGE_FOR_EXHAUSTIVE, MutantList, Pair
from .planting import edited, normal, pair, signed, with_jvp, with_vjp

MUTANTS = MutantList()


def modes(size: int) -> tuple[str, ...]:
    """The modes in which a leaf of that size can be checked in a second."""
    return EVERY_COORDINATE if size < 10_000 else TOO_LARGE_FOR_EXHAUSTIVE


def scaled(rng: np.random.Generator, *, size: int, factor: float) -> Pair:
    """Tanh with its derivative times a factor."""

    def loss_with(factor: float) -> Any:
        tanh = with_vjp(jnp.tanh, lambda _, out, ct: (factor * ct * (1 - out * out),))
        return lambda params, y: (
            jnp.sum(y * tanh(params["x"])) * params["scale"] + params["shift"]
        )

    shape = () if size == 1 else (size,)
    params = {"x": 0.5 * normal(rng, *shape), "scale": 0.7, "shift": jnp.float32(0.1)}
    return pair(loss_with, factor, 1.0, params, jnp.asarray(signed(rng, *shape)))


for _size in (1, 1_000, 100_000):
    for _factor in (1.001, 2.0, 0.5, -1.0, 0.0):
        MUTANTS.add(
            "['x']",
            name=f"times_{_factor}_size_{_size}",
            modes=modes(_size),
            same_twin=_factor != 2.0,
        )(partial(scaled, size=_size, factor=_factor))


def scaled_forward(rng: np.random.Generator, *, factor: float) -> Pair:
    """A custom_jvp whose tangent is off by a factor, behind a correct matrix."""

    def loss_with(factor: float) -> Any:
        sine = with_jvp(
            jnp.sin, lambda primals, dots: factor * jnp.cos(primals[0]) * dots[0]
        )
        return lambda params, x: jnp.mean(sine(x @ params["w"]) @ params["v"])

    params = {"w": normal(rng, 4, 5), "v": normal(rng, 5)}
    return pair(loss_with, factor, 1.0, params, normal(rng, 8, 4))


for _factor in (1.001, 2.0, -1.0, 0.0):
    MUTANTS.add(
        "['w']", name=f"forward_rule_times_{_factor}", same_twin=_factor != 2.0
    )(partial(scaled_forward, factor=_factor))


def square_with(factors: np.ndarray) -> Any:
    """A sum of squares whose gradient is multiplied coordinate by coordinate."""
    square = with_vjp(
        jnp.square, lambda primals, _, ct: (2 * factors * primals[0] * ct,)
    )
    return lambda params: (
        jnp.sum(square(params["x"])) + jnp.sum(jnp.sin(params["bias"]))
    )


def at(rng: np.random.Generator, size: int, changes: dict[int, float]) -> Pair:
    """Squares whose gradient is multiplied at the coordinates in ``changes``."""
    x = signed(rng, size)
    factors = np.ones(size, np.float32)
    for index, factor in changes.items():
        # Three times the usual: one part in a thousand of a single coordinate still
        # stands out among 10⁵ of them at the default rtol of 1e-6.
        x[index] = 3.0
        factors[index] = factor
    params = {"x": jnp.asarray(x), "bias": normal(rng, 3)}
    return pair(square_with, factors, np.ones_like(factors), params)


PLACES = {
    "first": lambda size: 0,
    "middle": lambda size: size // 2,
    "last": lambda n: n - 1,
}

for _size in (1_000, 100_000):
    for _place, _where in PLACES.items():
        for _label, _factor in (("1.001", 1.001), ("zeroed", 0.0), ("sign", -1.0)):
            MUTANTS.add(
                "['x']",
                name=f"one_coordinate_{_place}_{_label}_size_{_size}",
                index=(_where(_size),),
                modes=modes(_size),
                same_twin=(_place, _label) != ("middle", "sign"),
            )(partial(at, size=_size, changes={_where(_size): _factor}))

for _size in (1_000, 100_000):
    for _label, _second in (("equal", 2.0), ("opposite", 0.0)):
        MUTANTS.add(
            "['x']",
            name=f"two_{_label}_errors_size_{_size}",
            modes=modes(_size),
            same_twin=True,
        )(partial(at, size=_size, changes={10: 2.0, 700: _second}))


def edited_gradient(rng: np.random.Generator, edit: Any, *shape: int) -> Pair:
    """An affine model whose weight gradient passes through ``edit(w, gradient)``."""

    def loss_with(edit: Any) -> Any:
        identity = edited(edit)

        def loss(params: Any, x: Any, y: Any) -> Any:
            prediction = x @ identity(params["w"]) + params["b"]
            return jnp.mean((prediction - y) ** 2)

        return loss

    params = {"w": normal(rng, *shape), "b": normal(rng, shape[1])}
    args = normal(rng, 6, shape[0]), normal(rng, 6, shape[1])
    return pair(loss_with, edit, lambda _, ct: ct, params, *args)


@MUTANTS.add("['w']")
def errors_that_sum_to_zero(rng: np.random.Generator) -> Pair:
    """An error in every coordinate; a probe of ones sees none of it."""
    noise = rng.standard_normal((5, 4)).astype(np.float32)
    noise -= noise.mean()
    return edited_gradient(rng, lambda _, ct: ct + 0.1 * noise, 5, 4)


@MUTANTS.add("['w']", same_twin=True)
def error_orthogonal_to_gradient(rng: np.random.Generator) -> Pair:
    """An error that a comparison along the gradient cannot see."""

    def edit(w: Any, ct: Any) -> Any:
        return ct + 0.2 * (w - ct * jnp.vdot(w, ct) / jnp.vdot(ct, ct))

    return edited_gradient(rng, edit, 5, 4)


@MUTANTS.add("['w']", same_twin=True)
def one_row_dropped(rng: np.random.Generator) -> Pair:
    """The gradient of one row of a matrix is zero."""
    return edited_gradient(rng, lambda _, ct: ct.at[2].set(0), 5, 4)


@MUTANTS.add("['w']", same_twin=True)
def one_column_doubled(rng: np.random.Generator) -> Pair:
    """The gradient of one column of a matrix is twice what it should be."""
    return edited_gradient(rng, lambda _, ct: ct.at[:, 1].multiply(2), 5, 4)


@MUTANTS.add("['w']", same_twin=True)
def rows_reversed(rng: np.random.Generator) -> Pair:
    """The gradient comes back with its rows in reverse order: the same norm."""
    return edited_gradient(rng, lambda _, ct: ct[::-1], 5, 4)


@MUTANTS.add("['w']", same_twin=True)
def transposed(rng: np.random.Generator) -> Pair:
    """The gradient of a square matrix comes back transposed."""
    return edited_gradient(rng, lambda _, ct: ct.T, 4, 4)


@MUTANTS.add("['w']", same_twin=True)
def clipped_by_value(rng: np.random.Generator) -> Pair:
    """Gradient clipping inside the model, where no one remembers it."""
    return edited_gradient(rng, lambda _, ct: jnp.clip(ct, -0.1, 0.1), 5, 4)


@MUTANTS.add("['w']", same_twin=True)
def clipped_by_norm(rng: np.random.Generator) -> Pair:
    """Clipping by norm keeps the direction and loses the length."""

    def edit(_: Any, ct: Any) -> Any:
        return ct * jnp.minimum(1, 0.5 / jnp.linalg.norm(ct))

    return edited_gradient(rng, edit, 5, 4)


@MUTANTS.add("['w']", same_twin=True)
def only_the_sign(rng: np.random.Generator) -> Pair:
    """The rule returns the sign of the gradient."""
    return edited_gradient(rng, lambda _, ct: jnp.sign(ct), 5, 4)


@MUTANTS.add("['w']", same_twin=True)
def weight_decay_in_the_gradient_only(rng: np.random.Generator) -> Pair:
    """L2 regularization added to the gradient and not to the loss."""
    return edited_gradient(rng, lambda w, ct: ct + 0.01 * w, 5, 4)


@MUTANTS.add("['w']", same_twin=True)
def loss_scale_not_removed(rng: np.random.Generator) -> Pair:
    """The gradient still carries the factor of mixed-precision loss scaling."""
    return edited_gradient(rng, lambda _, ct: 1024 * ct, 5, 4)


@MUTANTS.add("['w']", same_twin=True)
def constant_added(rng: np.random.Generator) -> Pair:
    """An offset that does not depend on anything."""
    return edited_gradient(rng, lambda _, ct: ct + 1e-3, 5, 4)


@MUTANTS.add("['w']", same_twin=True)
def wrong_where_negative(rng: np.random.Generator) -> Pair:
    """Right for positive weights only."""
    return edited_gradient(rng, lambda w, ct: jnp.where(w < 0, -ct, ct), 5, 4)


@MUTANTS.add("['w']", same_twin=True)
def wrong_where_cotangent_is_negative(rng: np.random.Generator) -> Pair:
    """A rule that is not linear in its cotangent."""
    return edited_gradient(rng, lambda _, ct: jnp.where(ct < 0, 0.9 * ct, ct), 5, 4)


@MUTANTS.add("['x']", index=(5,))
def wrong_at_large_values(rng: np.random.Generator) -> Pair:
    """Right up to |x| = 3; one of twelve entries lies beyond."""

    def loss_with(factor: float) -> Any:
        def rule(primals: Any, out: Any, ct: Any) -> Any:
            (x,) = primals
            return (ct * out * jnp.where(jnp.abs(x) > 3, factor, 1.0),)

        sigmoid_like = with_vjp(jnp.exp, rule)
        return lambda params: (
            jnp.log(jnp.sum(sigmoid_like(params["x"]))) * params["scale"]
        )

    x = np.clip(rng.standard_normal(12), -2, 2).astype(np.float32)
    x[5] = 3.5
    return pair(loss_with, 0.9, 1.0, {"x": jnp.asarray(x), "scale": jnp.float32(2)})


@MUTANTS.add("['x']")
def wrong_near_zero(rng: np.random.Generator) -> Pair:
    """A series for small arguments that lost its first term."""

    def loss_with(first: float) -> Any:
        def rule(primals: Any, _: Any, ct: Any) -> Any:
            (x,) = primals
            small = jnp.abs(x) < 0.1
            return (ct * jnp.where(small, first - x * x / 2, jnp.cos(x)),)

        sine = with_vjp(jnp.sin, rule)
        return lambda params: jnp.sum(sine(params["x"])) * params["scale"]

    x = np.asarray([0.01, -0.02, 0.5, -1.0, 2.0], np.float32)
    return pair(loss_with, 0.0, 1.0, {"x": jnp.asarray(x), "scale": jnp.float32(2)})
