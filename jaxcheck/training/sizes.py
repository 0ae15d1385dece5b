"""How large arrays are: sums of squares and maxima.

``sum_squares`` and ``max_abs`` are one pass over an array and bare: NaN, infinity and
overflow show in the sum, underflow as a zero beside a positive maximum. ``size_of`` is
the rescue for these cases: of the finite elements, scaled so that their squares neither
overflow nor vanish. All of them take what ``as_real`` makes of an array.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxcheck.training.bits import power_of_two
from jaxcheck.training.counts import Count, count
from jaxcheck.training.placement import Join


def accumulator(*dtypes: Any) -> Any:
    """The dtype in which arrays of ``dtypes`` are summed: float32, or float64."""
    wide = any(jnp.finfo(dtype).bits == 64 for dtype in dtypes)
    return jnp.float64 if wide else jnp.float32


def as_real(array: jax.Array, dtype: Any) -> jax.Array:
    """An array to be summed in ``dtype``; of a complex one the moduli."""
    value = jnp.abs(array) if jnp.iscomplexobj(array) else array
    return value.astype(dtype)


def sum_squares(value: jax.Array, axes: tuple[int, ...]) -> jax.Array:
    """The bare Σx² along ``axes``."""
    return jnp.sum(jnp.square(value), axis=axes)


def max_abs(value: jax.Array, axes: tuple[int, ...]) -> jax.Array:
    """The bare max |x| along ``axes``; says nothing of NaN, which maxima may lose."""
    return jnp.max(jnp.abs(value), axis=axes)


class Size(NamedTuple):
    """How large the finite elements of rows are.

    Attributes:
        unit: a power of two near the largest |x|, the smallest one if that is zero.
        squares: Σ(x/unit)².
        max_abs: max |x|.
        nonfinite: how many elements are NaN or infinite, and in none of the others. A
            complex one whose modulus overflows is infinite.
    """

    unit: jax.Array
    squares: jax.Array
    max_abs: jax.Array
    nonfinite: Count

    @property
    def norm(self) -> jax.Array:
        """√Σx²; infinite only if the norm itself is no number of its dtype."""
        return self.unit * jnp.sqrt(self.squares)

    def joined(self, join: Join) -> Size:
        """Of several rows together."""
        unit = join.largest(self.unit)
        return Size(
            unit=unit,
            squares=join.add(self.squares * jnp.square(self.unit / unit)),
            max_abs=join.largest(self.max_abs),
            nonfinite=self.nonfinite.joined(join),
        )


def size_of(value: jax.Array, axes: tuple[int, ...]) -> Size:
    """How large the finite elements of ``value`` are along ``axes``."""
    finite = jnp.isfinite(value)
    value = jnp.where(finite, value, 0.0)
    largest = max_abs(value, axes)
    # Neither the unit nor its inverse is denormal, which a CPU would flush to zero.
    smallest = float(jnp.finfo(value.dtype).tiny)
    unit = power_of_two(jnp.clip(largest, smallest, 1.0 / smallest))
    return Size(
        unit=unit,
        squares=sum_squares(value * jnp.expand_dims(1.0 / unit, axes), axes),
        max_abs=largest,
        nonfinite=count(~finite, axes, value.dtype),
    )
