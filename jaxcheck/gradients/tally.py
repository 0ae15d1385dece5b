"""How large gradients are, and how much of them is not finite.

On the host while they are small: a norm takes microseconds there and a kernel of the
compiler's for each leaf elsewhere, which was half of what a first check had to compile.
Large ones, and those spread over processes, are measured where they live.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxcheck.gradients.arrays import (
    count_bad,
    native_view,
    norm,
    real_view,
    rms,
)
from jaxcheck.jaxprs.compiled import Compiled
from jaxcheck.trees import widen

Array = Any
FloatArray = np.ndarray[Any, np.dtype[np.float64]]
IntArray = np.ndarray[Any, np.dtype[np.int64]]

_MOST_ON_HOST = 2**20  # elements


def bad_counts(arrays: Sequence[Array]) -> IntArray:
    """Number of non-finite elements of each array, in any dtypes."""
    (counts,) = _run(_bad_counts, arrays)
    return np.asarray(counts, np.int64)


def measures(
    params: Sequence[Array],
    grads: Sequence[Array],
    sizes: Sequence[Array],
    native: Sequence[Array],
) -> FloatArray:
    """Measures of each leaf, [4, leaves].

    Args:
        params: the parameters.
        grads: gradients of the reading, as real views.
        sizes: of what was summed to give them.
        native: gradients as training has them.

    Returns:
        The root mean square of the parameters; the 2-norms of gradient, size, and
        difference between the two gradients.
    """
    (table,) = _run(_measures, [*params, *grads, *sizes, *native])
    return np.asarray(table, np.float64)


def _run(function: Callable[..., list[Array]], arrays: Sequence[Array]) -> list[Array]:
    here = all(getattr(x, "is_fully_addressable", True) for x in arrays)
    if here and sum(np.size(x) for x in arrays) <= _MOST_ON_HOST:
        with np.errstate(all="ignore"):
            return function(np, *map(np.asarray, arrays))
    return Compiled(functools.partial(function, jnp), arrays, x64=True)(*arrays)


def _bad_counts(xp: Any, *arrays: Array) -> list[Array]:
    return [xp.stack([count_bad(x, xp) for x in arrays])]


def _measures(xp: Any, *arrays: Array) -> list[Array]:
    count = len(arrays) // 4
    rows: list[list[Array]] = [[], [], [], []]
    for param, grad, size, own in zip(
        *(arrays[k * count : (k + 1) * count] for k in range(4)), strict=True
    ):
        rows[0].append(rms(real_view(widen(param), xp), xp))
        rows[1].append(norm(grad, xp))
        rows[2].append(norm(size, xp))
        rows[3].append(norm(widen(native_view(own, xp)) - grad, xp))
    return [xp.stack([xp.stack(row) for row in rows])]
