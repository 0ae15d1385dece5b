"""Norms of all leaves in one pass over each.

An array is read once, for the squares of its finite elements at two scales, and for how
many others there are. Squares of small elements vanish at one scale and those of large
ones overflow at the other, never the other way round.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxcheck.training.counts import Count, countable
from jaxcheck.training.leaves import Entry
from jaxcheck.training.placement import ROWS, across, replicated, split_over
from jaxcheck.training.sizes import as_real
from jaxcheck.training.sums import summed

# Powers of two that elements are multiplied by. A sum at the first is used unless it
# overflows; then there are elements whose squares do not vanish at the second.
_SCALES = {32: (2.0**46, 2.0**-80), 64: (2.0**300, 2.0**-540)}


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
    pairs = zip(entries, arrays, strict=True)
    rows = [_once(entry, array, axes, dtype) for entry, array in pairs]
    sums: _Sums = jax.tree.map(lambda *parts: jnp.concatenate(parts), *rows)
    most, least = _SCALES[jnp.finfo(dtype).bits]
    norm = jnp.where(
        jnp.isfinite(sums.small),
        jnp.sqrt(sums.small) / most,
        jnp.sqrt(sums.large) / least,
    )
    largest = jnp.max(norm)
    fits = (largest > 0) & jnp.isfinite(largest)
    ratio = norm / jnp.where(fits, largest, 1)
    total = jnp.where(fits, largest * jnp.sqrt(jnp.sum(jnp.square(ratio))), largest)
    bad = sums.nonfinite
    return Norms(jnp.append(norm, total), jnp.append(bad.exact, bad.joined(ROWS).exact))


class _Sums(NamedTuple):
    """Of rows.

    Attributes:
        small: squares at the first scale.
        large: squares at the second.
        nonfinite: how many elements are NaN or infinite.
    """

    small: jax.Array
    large: jax.Array
    nonfinite: Count


def _once(entry: Entry, array: Any, axes: tuple[str, ...], dtype: Any) -> _Sums:
    value = as_real(array, dtype)
    finite = jnp.isfinite(value)
    kept = jnp.where(finite, value, 0)
    squares = [jnp.square(kept * scale) for scale in _SCALES[jnp.finfo(dtype).bits]]
    small, large, bad = summed([*squares, countable(~finite, dtype)], entry.axis)
    sums = _Sums(small, large, Count.of(bad, dtype))
    if split := split_over(axes, array):
        join = across(split)
        sums = _Sums(join.add(small), join.add(large), sums.nonfinite.joined(join))
    return jax.tree.map(lambda x: _rows(entry, replicated(x)), sums)


def _rows(entry: Entry, value: jax.Array) -> jax.Array:
    return value if entry.axis is not None else value[None]
