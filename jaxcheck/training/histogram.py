"""A histogram of magnitudes over octaves, with the same bins for every array.

Edges are powers of two, so an element's bin is its floating-point exponent: no
logarithm is taken, and no bin depends on the data.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxcheck.training.bits import exponent
from jaxcheck.training.counts import count
from jaxcheck.training.placement import is_split_explicitly

# Twenty sigmoid layers leave 2⁻⁴⁰ of a gradient; float16 ends at 2¹⁶.
_LOWEST = -48
BINS = 64


def histogram_edges() -> np.ndarray[Any, Any]:
    """Edges of the bins of ``gradient_statistics``, in NumPy and float64.

    Bin k counts the elements with ``edges[k] <= |g| < edges[k + 1]``. The inner edges
    are the powers of two from 2⁻⁴⁷ to 2¹⁵; the first is 0 and the last infinite.

    Returns:
        65 numbers in rising order.

    Example:
        >>> edges = histogram_edges()
        >>> len(edges), [float(x) for x in edges[[0, 1, -2, -1]]] == [
        ...     0.0, 2.0**-47, 2.0**15, float("inf")]
        (65, True)
    """
    inner = np.ldexp(1.0, np.arange(_LOWEST + 1, _LOWEST + BINS))
    return np.concatenate([[0.0], inner, [np.inf]])


def log2_histogram(value: jax.Array, keep: int | None = None) -> jax.Array:
    """Count the finite elements that are not zero in each bin.

    Args:
        value: a real array in float32 or float64.
        keep: the axis of the rows; None makes one row of everything.

    Returns:
        int32, with the bins in the last axis.
    """
    bins = jnp.clip(exponent(value) - _LOWEST, 0, BINS - 1)
    bins = jnp.where(jnp.isfinite(value) & (value != 0), bins, BINS)
    # Comparisons work everywhere; a CPU, which makes no vectors of them, is forty times
    # faster with a scatter. Explicit shardings forbid that, and its counts may wrap.
    if is_split_explicitly(bins) or bins.size >= 2**31:
        return _by_comparing(bins, keep)
    return jax.lax.platform_dependent(
        bins,
        cpu=lambda bins: _by_scattering(bins, keep),
        default=lambda bins: _by_comparing(bins, keep),
    )


def _by_comparing(bins: jax.Array, keep: int | None) -> jax.Array:
    every = jnp.arange(BINS, dtype=jnp.int32).reshape((1,) * bins.ndim + (BINS,))
    axes = tuple(k for k in range(bins.ndim) if k != keep)
    return count(bins[..., None] == every, axes, jnp.float32).exact


def _by_scattering(bins: jax.Array, keep: int | None) -> jax.Array:
    if keep is None:
        return jnp.zeros(BINS, jnp.int32).at[bins].add(1, mode="drop")
    rows = jax.lax.broadcasted_iota(jnp.int32, bins.shape, keep)
    counts = jnp.zeros((bins.shape[keep], BINS), jnp.int32)
    return counts.at[rows, bins].add(1, mode="drop")
