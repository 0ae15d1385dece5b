"""Sums of several things over an array, in one pass that holds none of them in memory.

One reduction of them all: XLA fuses what they are computed from into it, on CPU too,
where a reduction of one alone is a library's, which is handed a full array. (And where
LLVM unrolls the loop that fills a small one, for half a second of compilation each.)
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxcheck.training.placement import is_split_explicitly

# So many elements are summed one after the other at least, and at most; then their sums
# are. A long sum loses digits, and a short one saves little.
_FEWEST, _MOST = 256, 4096


@functools.partial(jax.jit, static_argnames="keep")  # alike arrays are traced once
def summed(
    terms: Sequence[jax.Array],
    keep: int | None = None,
    *,
    largest: Sequence[jax.Array] = (),
) -> list[jax.Array]:
    """The sums of arrays of one shape, each in its dtype, right to about 1e-6.

    Args:
        terms: arrays, two or more with those of ``largest``.
        keep: an axis that is not summed over; None sums over all.
        largest: of which the maximum is taken instead; nothing negative or NaN.

    Returns:
        The sums, then the maxima.
    """
    return list(_reduced((*terms, *largest), keep, len(terms)))


@functools.partial(jax.custom_jvp, nondiff_argnums=(1, 2))
def _reduced(
    terms: Sequence[jax.Array], keep: int | None, sums: int
) -> tuple[jax.Array, ...]:
    """The sums of the first ``sums`` terms, and the maxima of the others."""
    terms, axes = list(terms), _axes(terms, keep)
    while axes:
        terms, together = _next_block(terms, axes)
        zeros = [np.zeros((), term.dtype) for term in terms]
        joined = functools.partial(_joined, sums)
        terms = list(jax.lax.reduce(terms, zeros, joined, sorted(together)))
    return tuple(terms)


def _next_block(
    terms: list[jax.Array], axes: list[int]
) -> tuple[list[jax.Array], list[int]]:
    """Take off the end of ``axes`` what is to be summed together.

    Returns:
        The terms, in which an axis that is too long is two, and the axes of the block.
    """
    together: list[int] = []
    count = 1
    while axes and count < _FEWEST:
        axis = axes.pop()
        length = terms[0].shape[axis]
        if count * length > _MOST and not is_split_explicitly(terms[0]):
            part = _part_of(length, count)
            axes.append(axis)
            terms = [_parted(term, axis, part) for term in terms]
            return terms, [axis + 1, *(k + 1 for k in together)]
        together.append(axis)
        count *= length
    return terms, together


def _part_of(length: int, count: int) -> int:
    """Into what parts to cut an axis of which ``count`` elements are summed at once.

    Those that divide it, with the largest power of two as their number: meshes have
    powers of two of devices, and an array that is split over them stays where it is.
    """
    usual = max(2, _FEWEST // count)
    fits = range(max(2, usual // 4), _MOST // count + 1)
    parts = [part for part in fits if length % part == 0]

    def rank(part: int) -> tuple[int, float]:
        number = length // part
        return -(number & -number), abs(math.log(part / usual))

    return min(parts, key=rank, default=usual)


def _parted(term: jax.Array, axis: int, part: int) -> jax.Array:
    """``term`` with ``axis`` cut into parts, filled up with zeros."""
    *before, length = term.shape[: axis + 1]
    after = term.shape[axis + 1 :]
    if missing := -length % part:
        widths = [(0, missing if k == axis else 0) for k in range(term.ndim)]
        term = jnp.pad(term, widths)
    return term.reshape(*before, -(-length // part), part, *after)


@_reduced.defjvp
def _(keep: int | None, sums: int, primals: Any, tangents: Any) -> Any:
    """JAX's own rule for reductions of several arrays fails if one has integers."""
    (terms,), (moves,) = primals, tangents
    axes = _axes(terms, keep)
    results = _reduced(terms, keep, sums)
    moved: list[Any] = []
    for k, (term, move, result) in enumerate(zip(terms, moves, results, strict=True)):
        if move.dtype == jax.dtypes.float0:
            moved.append(np.zeros(result.shape, jax.dtypes.float0))
        elif k < sums:
            moved.append(jnp.sum(move, axis=axes))
        else:
            share = (term == jnp.expand_dims(result, axes)).astype(term.dtype)
            number = jnp.sum(share, axis=axes)
            moved.append(jnp.sum(share * move, axis=axes) / number)
    return results, tuple(moved)


def _axes(terms: Sequence[jax.Array], keep: int | None) -> list[int]:
    return [k for k in range(terms[0].ndim) if k != keep]


def _joined(
    sums: int, left: Sequence[jax.Array], right: Sequence[jax.Array]
) -> list[jax.Array]:
    pairs = list(zip(left, right, strict=True))
    added = [a + b for a, b in pairs[:sums]]
    return added + [jnp.maximum(a, b) for a, b in pairs[sums:]]
