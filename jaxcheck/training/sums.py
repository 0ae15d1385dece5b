"""Sums of several things over an array, in one pass that holds none of them in memory.

One reduction of them all: XLA fuses what they are computed from into it, on CPU too,
where a reduction of one alone is a library's, which is handed a full array.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
import numpy as np

# So many elements, or whole axes, are summed one after the other; then their sums are:
# a long sum loses digits.
_TOGETHER = 256


def summed(terms: Sequence[jax.Array], keep: int | None = None) -> list[jax.Array]:
    """The sums of arrays of one shape, each in its dtype.

    Args:
        terms: two arrays or more.
        keep: an axis that is not summed over; None sums over all.
    """
    terms = list(terms)
    axes = [k for k in range(terms[0].ndim) if k != keep]
    while axes:
        shape = terms[0].shape
        together, count = [], 1
        while axes and count < _TOGETHER:
            together.append(axes.pop())
            count *= shape[together[-1]]
        zeros = [np.zeros((), term.dtype) for term in terms]
        terms = list(jax.lax.reduce(terms, zeros, _added, sorted(together)))
    return terms


def _added(left: Sequence[jax.Array], right: Sequence[jax.Array]) -> list[jax.Array]:
    return [a + b for a, b in zip(left, right, strict=True)]
