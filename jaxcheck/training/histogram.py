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


def log2_histogram(value: jax.Array, axes: tuple[int, ...]) -> jax.Array:
    """Count the finite elements that are not zero in each bin along ``axes``.

    Args:
        value: a real array in float32 or float64.
        axes: the axes to count along, in rising order.

    Returns:
        int32, with the bins in the last axis.
    """
    bins = jnp.clip(exponent(value) - _LOWEST, 0, BINS - 1)
    bins = jnp.where(jnp.isfinite(value) & (value != 0), bins, BINS)
    # Comparisons work everywhere; a CPU, which makes no vectors of them, is forty times
    # faster with a scatter. Explicit shardings forbid that, and its counts may wrap.
    if is_split_explicitly(bins) or bins.size >= 2**31:
        return _by_comparing(bins, axes)
    return jax.lax.platform_dependent(
        bins,
        cpu=lambda bins: _by_scattering(bins, axes),
        default=lambda bins: _by_comparing(bins, axes),
    )


def _by_comparing(bins: jax.Array, axes: tuple[int, ...]) -> jax.Array:
    every = jnp.arange(BINS, dtype=jnp.int32).reshape((1,) * bins.ndim + (BINS,))
    return count(bins[..., None] == every, axes, jnp.float32).exact


def _by_scattering(bins: jax.Array, axes: tuple[int, ...]) -> jax.Array:
    kept = [k for k in range(bins.ndim) if k not in axes]
    rows = tuple(jax.lax.broadcasted_iota(jnp.int32, bins.shape, k) for k in kept)
    counts = jnp.zeros((*(bins.shape[k] for k in kept), BINS), jnp.int32)
    return counts.at[(*rows, bins)].add(1, mode="drop")
