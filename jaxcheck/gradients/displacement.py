"""Parameters moved along a probe, and what their gradient predicts of that.

Written once for arrays of JAX, traced, and of NumPy, on the host.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxcheck.gradients.arrays import widen

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
    lo, hi, step = lane
    sizes = [math.prod(view.shape) for view in views]
    dtype = np.int32 if sum(sizes) < np.iinfo(np.int32).max else np.int64
    lo, hi = lo.astype(dtype), hi.astype(dtype)
    out: list[Array] = []
    first = 0
    for view, own, size in zip(views, steps, sizes, strict=True):
        index = xp.arange(first, first + size, dtype=dtype).reshape(view.shape)
        inside = (index >= lo) & (index < hi)
        shift = xp.where(inside, step * own, 0.0)
        out.append(view + shift.astype(view.dtype))
        first += size
    return out


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
