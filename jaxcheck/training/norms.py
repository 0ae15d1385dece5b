"""Norms of all leaves in one pass over each.

An array is read once: for the sum of the squares of its finite elements, and for how
many others there are. Only if a sum overflows, arrays are read again, at scales for
large elements.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxcheck.training.counts import Count, countable
from jaxcheck.training.leaves import Entry
from jaxcheck.training.placement import ROWS, Join, concatenated, rows_of
from jaxcheck.training.sizes import as_real
from jaxcheck.training.sums import summed

# Powers of two that elements are multiplied by. At the first, squares of small ones do
# not vanish. A norm whose square overflows there is taken at the next, where what
# vanishes is too small to count in 2**40 elements; the last holds any that many.
_SCALES = {32: (2.0**46, 2.0**-30, 2.0**-90), 64: (2.0**300, 2.0**-560)}


class Norms(NamedTuple):
    """Of rows, and in the last row of everything together.

    Attributes:
        norm: of the finite elements; infinite only if it is no number of its dtype.
        nonfinite: how many elements are NaN or infinite, int32.
    """

    norm: jax.Array
    nonfinite: jax.Array


def norms_of(
    entries: Sequence[Entry], arrays: Sequence[Any], axes: tuple[str, ...], dtype: Any
) -> Norms:
    """The norms of all rows and of everything.

    Args:
        entries: of the leaves.
        arrays: one for each entry.
        axes: mesh axes that leaves may be split over; see ``gradient_statistics``.
        dtype: float32 or float64, in which sums are taken.
    """
    scale, *coarser = _SCALES[jnp.finfo(dtype).bits]
    pairs = zip(entries, arrays, strict=True)
    sums, bad = concatenated(
        [_once(entry, array, axes, dtype, scale) for entry, array in pairs]
    )

    def bare(_: Any) -> jax.Array:
        return _with_total(jnp.sqrt(sums)) / scale

    def again(arrays: Sequence[Any]) -> jax.Array:
        norm = jnp.sqrt(sums) / scale
        pairs = zip(entries, arrays, strict=True)
        scaled = concatenated(
            [_again(entry, array, axes, dtype, coarser) for entry, array in pairs]
        )
        for unit, squares in zip(coarser, scaled.sums, strict=True):
            larger = jnp.sqrt(squares) / unit
            norm = jnp.where(jnp.isfinite(norm), norm, larger)
        return _with_total(norm)

    fits = jnp.all(jnp.isfinite(sums))
    norm = jax.lax.cond(fits, bare, again, list(arrays))
    return Norms(norm, jnp.append(bad.exact, bad.joined(ROWS).exact))


class _Squares(NamedTuple):
    """The squares of rows, and how many elements are not finite."""

    sums: jax.Array
    bad: Count

    def joined(self, join: Join) -> _Squares:
        return _Squares(join.add(self.sums), self.bad.joined(join))


class _Scaled(NamedTuple):
    """The squares of rows at other scales."""

    sums: tuple[jax.Array, ...]

    def joined(self, join: Join) -> _Scaled:
        return _Scaled(tuple(map(join.add, self.sums)))


def _once(
    entry: Entry, array: Any, axes: tuple[str, ...], dtype: Any, scale: float
) -> _Squares:
    value = as_real(array, dtype)
    finite = jnp.isfinite(value)
    square = jnp.square(jnp.where(finite, value, 0) * scale)
    squares, bad = summed([square, countable(~finite, dtype)], entry.axis)
    # Zero as it is. Who asks for the norm alone has both sums, in one pass, like this.
    squares = jnp.where(bad < value.size, squares, 0)
    return rows_of(entry, axes, _Squares(squares, Count.of(bad, dtype)), array)


def _again(
    entry: Entry,
    array: Any,
    axes: tuple[str, ...],
    dtype: Any,
    scales: Sequence[float],
) -> _Scaled:
    value = as_real(array, dtype)
    value = jnp.where(jnp.isfinite(value), value, 0)
    sums = summed([jnp.square(value * scale) for scale in scales], entry.axis)
    return rows_of(entry, axes, _Scaled(tuple(sums)), array)


def _with_total(norm: jax.Array) -> jax.Array:
    largest = jnp.max(norm)
    unit = jnp.where((largest > 0) & jnp.isfinite(largest), largest, 1)
    return jnp.append(norm, unit * jnp.sqrt(jnp.sum(jnp.square(norm / unit))))
