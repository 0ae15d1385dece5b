"""Sums of several things over an array, in one pass that holds none of them in memory.

One reduction of them all: XLA fuses what they are computed from into it, on CPU too,
where a reduction of one alone is a library's, which is handed a full array. (And where
LLVM unrolls the loop that fills a small one, for half a second of compilation each.)
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

# So many elements, or whole axes, are summed one after the other; then their sums are:
# a long sum loses digits.
_TOGETHER = 256


def summed(
    terms: Sequence[jax.Array],
    keep: int | None = None,
    *,
    largest: Sequence[jax.Array] = (),
) -> list[jax.Array]:
    """The sums of arrays of one shape, each in its dtype.

    Args:
        terms: arrays, two or more with those of ``largest``.
        keep: an axis that is not summed over; None sums over all.
        largest: of which the maximum is taken instead; nothing negative or NaN.

    Returns:
        The sums, then the maxima.
    """
    sums, terms = len(terms), [*terms, *largest]
    axes = [k for k in range(terms[0].ndim) if k != keep]
    while axes:
        shape = terms[0].shape
        together, count = [], 1
        while axes and count < _TOGETHER:
            together.append(axes.pop())
            count *= shape[together[-1]]
        zeros = [np.zeros((), term.dtype) for term in terms]
        joined = functools.partial(_joined, sums)
        terms = list(jax.lax.reduce(terms, zeros, joined, sorted(together)))
    return terms


def _joined(
    sums: int, left: Sequence[jax.Array], right: Sequence[jax.Array]
) -> list[jax.Array]:
    pairs = list(zip(left, right, strict=True))
    added = [a + b for a, b in pairs[:sums]]
    return added + [jnp.maximum(a, b) for a, b in pairs[sums:]]
