"""Norms of all leaves in one pass over each.

An array is read once: for the sum of the squares of its finite elements, and for how
many others there are. Only if a sum overflows, arrays are read again, with a scale that
is theirs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxcheck.training.counts import Count, countable
from jaxcheck.training.leaves import Entry
from jaxcheck.training.placement import ROWS, across, replicated, split_over
from jaxcheck.training.sizes import Size, as_real, size_of
from jaxcheck.training.sums import summed

# Powers of two that elements are multiplied by, so that squares of small ones do not
# vanish; those of large ones overflow all the sooner, and are then read again.
_SCALE = {32: 2.0**46, 64: 2.0**300}


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
    scale = _SCALE[jnp.finfo(dtype).bits]
    pairs = zip(entries, arrays, strict=True)
    rows = [_once(entry, array, axes, dtype, scale) for entry, array in pairs]
    sums = jnp.concatenate([squares for squares, _ in rows])
    bad: Count = jax.tree.map(
        lambda *counts: jnp.concatenate(counts), *(count for _, count in rows)
    )

    def bare(_: Any) -> jax.Array:
        largest = jnp.max(sums)
        unit = jnp.where(largest > 0, largest, 1)
        total = jnp.sqrt(largest) * jnp.sqrt(jnp.sum(sums / unit))
        return jnp.append(jnp.sqrt(sums), total) / scale

    def again(arrays: Sequence[Any]) -> jax.Array:
        pairs = zip(entries, arrays, strict=True)
        parts = [_size(entry, array, axes, dtype) for entry, array in pairs]
        sizes: Size = jax.tree.map(lambda *x: jnp.concatenate(x), *parts)
        return jnp.append(sizes.norm, sizes.joined(ROWS).norm)

    fits = jnp.all(jnp.isfinite(sums))
    norm = jax.lax.cond(fits, bare, again, list(arrays))
    return Norms(norm, jnp.append(bad.exact, bad.joined(ROWS).exact))


def _once(
    entry: Entry, array: Any, axes: tuple[str, ...], dtype: Any, scale: float
) -> tuple[jax.Array, Count]:
    value = as_real(array, dtype)
    finite = jnp.isfinite(value)
    square = jnp.square(jnp.where(finite, value, 0) * scale)
    squares, bad = summed([square, countable(~finite, dtype)], entry.axis)
    rows = squares, Count.of(bad, dtype)
    if split := split_over(axes, array):
        join = across(split)
        rows = join.add(squares), rows[1].joined(join)
    return jax.tree.map(lambda x: _rows(entry, replicated(x)), rows)


def _size(entry: Entry, array: Any, axes: tuple[str, ...], dtype: Any) -> Size:
    size = size_of(as_real(array, dtype), entry.reduced)
    if split := split_over(axes, array):
        size = size.joined(across(split))
    return jax.tree.map(lambda x: _rows(entry, replicated(x)), size)


def _rows(entry: Entry, value: jax.Array) -> jax.Array:
    return value if entry.axis is not None else value[None]
