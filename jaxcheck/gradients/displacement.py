"""Parameters moved along a probe, and what their gradient predicts of that.

Written once for arrays of JAX, traced, and of NumPy, on the host.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxcheck.trees import widen

Array = Any


def moved(
    views: Sequence[Array],
    steps: Sequence[Array],
    lane: tuple[Array, Array, Array],
    xp: Any,
) -> list[Array]:
    """``views`` with the coordinates ``lo <= i < hi`` moved by ``step * steps``.

    Args:
        views: real views of the parameters.
        steps: of every coordinate, one array a leaf.
        lane: lo, hi and step.
        xp: ``jax.numpy`` or ``numpy``.
    """
    firsts = itertools.accumulate((math.prod(view.shape) for view in views), initial=0)
    return [
        moved_leaf(view, own, first, lane, xp)
        for view, own, first in zip(views, steps, firsts, strict=False)
    ]


def moved_leaf(
    view: Array, own: Array, first: int, lane: tuple[Array, Array, Array], xp: Any
) -> Array:
    """One of the views moved; its coordinates are numbered from ``first``."""
    lo, hi, step = lane
    end = first + math.prod(view.shape)
    dtype = np.int32 if end < np.iinfo(np.int32).max else np.int64
    # a lane may reach beyond this leaf, and beyond what its numbers can hold
    lo, hi = (xp.clip(x, first, end).astype(dtype) for x in (lo, hi))
    index = xp.arange(first, end, dtype=dtype).reshape(view.shape)
    inside = (index >= lo) & (index < hi)
    shift = xp.where(inside, step * own, 0.0)
    return view + shift.astype(view.dtype)


def sums(
    grads: Sequence[Array],
    sizes: Sequence[Array],
    views: Sequence[Array],
    ends: Sequence[Array],
    xp: Any,
) -> tuple[Array, Array, Array]:
    """Predicted change from ``views`` to ``ends``, its size, and the displacement."""
    totals = [xp.zeros(()), xp.zeros(()), xp.zeros(())]
    for grad, size, view, end in zip(grads, sizes, views, ends, strict=True):
        actual = widen(end) - widen(view)
        # a NaN gradient must not reach the sums of lanes that leave it alone
        used = actual != 0
        change = xp.where(used, grad * actual, 0.0)
        weight = xp.where(used, size * xp.abs(actual), 0.0)
        terms = (change, weight, actual)
        totals = [total + xp.sum(t) for total, t in zip(totals, terms, strict=True)]
    return totals[0], totals[1], totals[2]
