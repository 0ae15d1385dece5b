"""Norms of all leaves in one pass, and of what goes wrong in it the cause.

An array is read once: the sum of its squares. Only if a sum is not finite, arrays are
read again, for how many elements are not, and for the norm of the others.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxcheck.training.leaves import Entry
from jaxcheck.training.placement import ROWS, across, replicated, split_over
from jaxcheck.training.sizes import Size, as_real, size_of, sum_squares

# Powers of two that elements are multiplied by, so that squares of small ones do not
# vanish; squares of large ones overflow all the sooner, and are then read again.
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
    pairs = list(zip(entries, arrays, strict=True))
    sums = jnp.concatenate([_squares(e, x, axes, dtype, scale) for e, x in pairs])

    def bare(_: Any) -> Norms:
        largest = jnp.max(sums)
        unit = jnp.where(largest > 0, largest, 1)
        total = jnp.sqrt(largest) * jnp.sqrt(jnp.sum(sums / unit))
        norm = jnp.append(jnp.sqrt(sums), total) / scale
        # zeros, which vary over devices as the norms do
        return Norms(norm, (~jnp.isfinite(norm)).astype(jnp.int32))

    def again(arrays: Sequence[Any]) -> Norms:
        pairs = zip(entries, arrays, strict=True)
        parts = [_size(e, x, axes, dtype) for e, x in pairs]
        rows: Size = jax.tree.map(lambda *x: jnp.concatenate(x), *parts)
        total = rows.joined(ROWS)
        norm = jnp.append(rows.norm, total.norm)
        return Norms(norm, jnp.append(rows.nonfinite.exact, total.nonfinite.exact))

    return jax.lax.cond(jnp.all(jnp.isfinite(sums)), bare, again, list(arrays))


def _squares(
    entry: Entry, array: Any, axes: tuple[str, ...], dtype: Any, scale: float
) -> jax.Array:
    total = sum_squares(as_real(array, dtype) * scale, entry.reduced)
    if split := split_over(axes, array):
        total = jax.lax.psum(total, split)
    return _rows(entry, replicated(total))


def _size(entry: Entry, array: Any, axes: tuple[str, ...], dtype: Any) -> Size:
    size = size_of(as_real(array, dtype), entry.reduced)
    if split := split_over(axes, array):
        size = size.joined(across(split))
    size = jax.tree.map(replicated, size)
    return jax.tree.map(lambda x: _rows(entry, x), size)


def _rows(entry: Entry, value: jax.Array) -> jax.Array:
    return value if entry.axis is not None else value[None]
