"""How large arrays are: sums of squares and maxima, of the finite elements.

A first pass over an array finds the largest element, a second one takes the squares of
all in units of it, so that they neither overflow nor vanish. All take what ``as_real``
makes of an array.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxcheck.training.bits import power_of_two
from jaxcheck.training.counts import Count, countable
from jaxcheck.training.placement import Join
from jaxcheck.training.sums import summed


def accumulator(*dtypes: Any) -> Any:
    """The dtype in which arrays of ``dtypes`` are summed: float32, or float64."""
    wide = any(jnp.finfo(dtype).bits == 64 for dtype in dtypes)
    return jnp.float64 if wide else jnp.float32


def as_real(array: jax.Array, dtype: Any) -> jax.Array:
    """An array to be summed in ``dtype``; of a complex one the moduli."""
    value = jnp.abs(array) if jnp.iscomplexobj(array) else array
    return value.astype(dtype)


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


def size_of(value: jax.Array, keep: int | None = None) -> Size:
    """How large the finite elements of ``value`` are, along all axes but ``keep``."""
    finite = jnp.isfinite(value)
    bad, largest = summed(
        [countable(~finite, value.dtype)],
        keep,
        largest=[jnp.where(finite, jnp.abs(value), 0.0)],
    )
    unit = unit_of(largest)
    y, _ = scaled(value, unit, keep)
    squares, _ = summed([jnp.square(y), y], keep)
    return Size(unit, squares, largest, Count.of(bad, value.dtype))


def unit_of(largest: jax.Array) -> jax.Array:
    """A power of two near ``largest``; neither it nor its inverse is denormal.

    A CPU would flush that to zero.
    """
    smallest = float(jnp.finfo(largest.dtype).tiny)
    return power_of_two(jnp.clip(largest, smallest, 1.0 / smallest))


def scaled(
    value: jax.Array, unit: jax.Array, keep: int | None
) -> tuple[jax.Array, jax.Array]:
    """The finite elements of ``value`` in units of their row, and which these are.

    What one pass over an array computes of it would be written down for the next one,
    if the compiler saw that it is the same.
    """
    value, unit = jax.lax.optimization_barrier((value, unit))
    finite = jnp.isfinite(value)
    return jnp.where(finite, value, 0.0) * of_rows(1.0 / unit, value, keep), finite


def of_rows(row: jax.Array, value: jax.Array, keep: int | None) -> jax.Array:
    """A number for each row, in the shape in which it stands beside ``value``."""
    return jnp.expand_dims(row, [k for k in range(value.ndim) if k != keep])
