"""Statistics of a gradient, its parameters and its updates, as arrays.

Pure array code for inside ``jit``, ``scan``, ``vmap``, ``pmap`` and ``shard_map``. It
judges nothing, and leaves names out: see ``leaves``.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxcheck.training.leaves import Entry, Stacked, aligned, entries_of
from jaxcheck.training.lost import Lost, lost_of
from jaxcheck.training.moments import Moments, moments_of, over
from jaxcheck.training.placement import ROWS, Join, concatenated, rows_of
from jaxcheck.training.sizes import Size, accumulator, as_real, size_of


class Statistics(NamedTuple):
    """Numbers of rows: of leaves and layers, of stacks, or of everything together.

    Every number is of the finite elements, and 0 where there are none. What needs the
    parameters or the updates is None where they were not given.

    Attributes:
        norm: √Σ|g|².
        rms: √(Σ|g|²/n).
        max_abs: max |g|.
        mean: Σg/n.
        std: √(Σ(g − mean)²/n).
        zero_share: how many of the n elements are exactly zero, over n.
        nonfinite: how many elements are NaN or infinite, int32; it stops at 2³¹ − 1.
        histogram: how many elements are in each octave, int32 with 64 bins in the last
            axis; ``jaxcheck.histogram_edges()`` are their edges. Zeros are in none.
        param_norm: ‖p‖₂.
        param_nonfinite: as ``nonfinite``, of the parameters.
        update_norm: ‖u‖₂.
        update_nonfinite: as ``nonfinite``, of the updates.
        update_ratio: ‖u‖₂/‖p‖₂; 0 where ‖p‖₂ is 0.
        lost_share: of the elements with an update that is not zero, the share whose
            parameter does not move: p + u, rounded to the dtype of p, is p.
    """

    norm: jax.Array
    rms: jax.Array
    max_abs: jax.Array
    mean: jax.Array
    std: jax.Array
    zero_share: jax.Array
    nonfinite: jax.Array
    histogram: jax.Array
    param_norm: jax.Array | None
    param_nonfinite: jax.Array | None
    update_norm: jax.Array | None
    update_nonfinite: jax.Array | None
    update_ratio: jax.Array | None
    lost_share: jax.Array | None


class GradientStatistics(NamedTuple):
    """What ``gradient_statistics`` returns.

    Attributes:
        leaves: arrays ``[L]``, a row for each leaf and for each layer of a stacked one.
        stacks: arrays ``[S]``, a row for each stacked leaf, all of its layers together.
        total: scalars, everything together.
    """

    leaves: Statistics
    stacks: Statistics
    total: Statistics


def gradient_statistics(
    grads: Any,
    params: Any = None,
    updates: Any = None,
    *,
    stacked: Stacked = (),
    axis_name: str | Sequence[str] = (),
) -> GradientStatistics:
    r"""Measure a gradient, leaf by leaf and as a whole, inside a jitted training loop.

    Over the n finite elements of a leaf:

    .. math:: \text{norm} = \sqrt{\textstyle\sum |g_i|^2}, \quad
        \text{rms} = \text{norm} / \sqrt n, \quad
        \text{std}^2 = \tfrac1n \textstyle\sum (g_i - \text{mean})^2,

    and so on, see ``jaxcheck.training.statistics.Statistics``. A NaN or an infinity is
    counted and otherwise left out, so that the other elements can still be seen.
    Elements are scaled by a power of two before they are squared: a norm overflows only
    if it is itself too large for its dtype. Of complex leaves the moduli are measured.

    Sums and results are in float64 if any leaf has 64-bit numbers, else in float32, be
    x64 on or off. Leaves are those of ``grads`` that are floating or complex and not
    empty; all others (None, integers, ``float0``, keys) are passed over. Those of
    ``params`` and ``updates`` are found by their paths.

    Inside ``shard_map`` and ``pmap`` the statistics are those of what a device holds,
    unless ``axis_name`` is given. Arrays that are sharded otherwise are seen as wholes.
    On backends that flush denormal numbers to zero, these are zeros.

    Args:
        grads: a pytree of arrays or tracers.
        params: the parameters before the update: a pytree with the paths and shapes of
            ``grads``. What has no gradient is left aside.
        updates: what is added to ``params``, likewise. A leaf that has none counts as
            one with an update of zeros.
        stacked: which leaves hold all layers of a network, as scanned ones do: a
            pattern of their paths or several, or a dict from patterns to the axis of
            the layers (0 otherwise). A pattern is the path of a leaf or a subtree,
            ``*`` being any text: ``"['params']['blocks']"``, ``"*['layers']"``.
        axis_name: mesh axes of the surrounding ``shard_map`` or ``pmap`` that leaves
            are split over. Where JAX tracks what varies between devices
            (``check_vma=True``), a leaf that does not is counted once; elsewhere every
            leaf is taken to be split.

    Returns:
        Arrays with a row for each leaf or layer, for each stacked leaf, and for
        everything. ``jaxcheck.leaf_names`` and ``jaxcheck.stack_names`` name the rows.

    Raises:
        InvalidInputError: an argument cannot be used.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from jaxcheck import gradient_statistics, leaf_names
        >>> grads = {"w": jnp.array([3.0, 4.0, jnp.nan]), "b": jnp.zeros(2)}
        >>> stats = jax.jit(gradient_statistics)(grads)
        >>> leaf_names(grads)
        ("['b']", "['w']")
        >>> stats.leaves.norm.tolist(), stats.leaves.nonfinite.tolist()
        ([0.0, 5.0], [0, 1])
        >>> float(stats.total.zero_share)
        0.5

    References:
        T. F. Chan, G. H. Golub and R. J. LeVeque, "Algorithms for computing the sample
        variance: analysis and recommendations", The American Statistician 37 (1983).
    """
    entries = entries_of("gradient_statistics(grads=...)", grads, stacked)
    arrays = aligned("gradient_statistics(grads=...)", entries, grads)
    at = by = None
    if params is not None:
        at = aligned("gradient_statistics(params=...)", entries, params)
    if updates is not None:
        name = "gradient_statistics(updates=...)"
        by = aligned(name, entries, updates, partly=True)
    axes = (axis_name,) if isinstance(axis_name, str) else tuple(axis_name)
    return _measured(entries, axes, arrays, at, by)


class _Rows(NamedTuple):
    """Everything that is summed; what was not given is None."""

    gradient: Moments
    params: Size | None
    updates: Size | None
    lost: Lost | None

    def joined(self, join: Join) -> _Rows:
        """Of several rows together."""
        gradient, params, updates, lost = self
        return _Rows(
            gradient=gradient.joined(join),
            params=None if params is None else params.joined(join),
            updates=None if updates is None else updates.joined(join),
            lost=None if lost is None else lost.joined(join),
        )


@functools.partial(jax.jit, static_argnums=(0, 1))
def _measured(
    entries: tuple[Entry, ...],
    axes: tuple[str, ...],
    grads: list[Any],
    params: list[Any] | None,
    updates: list[Any] | None,
) -> GradientStatistics:
    dtype = accumulator(*(x.dtype for x in jax.tree.leaves((grads, params, updates))))
    absent = [None] * len(entries)
    if updates is not None:
        pairs = zip(updates, grads, strict=True)
        updates = [jnp.zeros_like(g) if u is None else u for u, g in pairs]
    leaves = zip(entries, grads, params or absent, updates or absent, strict=True)
    every = concatenated([_leaf(e, axes, dtype, g, p, u) for e, g, p, u in leaves])
    return GradientStatistics(
        leaves=_statistics(every),
        stacks=_statistics(_stacks(entries, every)),
        total=_statistics(every.joined(ROWS)),
    )


def _leaf(
    entry: Entry,
    axes: tuple[str, ...],
    dtype: Any,
    grad: jax.Array,
    param: jax.Array | None,
    update: jax.Array | None,
) -> _Rows:
    """The rows of one leaf, with what other devices have of them."""
    rows = functools.partial(rows_of, entry, axes)

    def size(array: jax.Array | None) -> Size | None:
        if array is None:
            return None
        return rows(size_of(as_real(array, dtype), entry.axis), array)

    lost = None
    if param is not None and update is not None:
        lost = rows(lost_of(param, update, entry.axis, dtype), param, update)
    return _Rows(
        gradient=rows(moments_of(as_real(grad, dtype), entry.axis), grad),
        params=size(param),
        updates=size(update),
        lost=lost,
    )


def _stacks(entries: Sequence[Entry], every: _Rows) -> _Rows:
    """A row for each stacked leaf."""
    ends = list(itertools.accumulate(entry.rows for entry in entries))
    stacks = [
        jax.tree.map(lambda x, a=end - entry.rows, b=end: x[a:b], every).joined(ROWS)
        for entry, end in zip(entries, ends, strict=True)
        if entry.axis is not None
    ]
    if not stacks:
        return jax.tree.map(lambda x: x[:0], every)
    return jax.tree.map(lambda *rows: jnp.stack(rows), *stacks)


def _statistics(rows: _Rows) -> Statistics:
    gradient, params, updates, lost = rows
    size, finite = gradient.size, gradient.finite
    ratio = None
    if params is not None and updates is not None:
        ratio = _update_ratio(params, updates)
    return Statistics(
        norm=size.norm,
        rms=size.unit * jnp.sqrt(over(size.squares, finite)),
        max_abs=size.max_abs,
        mean=size.unit * over(gradient.total, finite),
        std=size.unit * jnp.sqrt(over(gradient.deviations, finite)),
        zero_share=over(gradient.zeros, finite),
        nonfinite=size.nonfinite.exact,
        histogram=gradient.histogram.exact,
        param_norm=None if params is None else params.norm,
        param_nonfinite=None if params is None else params.nonfinite.exact,
        update_norm=None if updates is None else updates.norm,
        update_nonfinite=None if updates is None else updates.nonfinite.exact,
        update_ratio=ratio,
        lost_share=None if lost is None else over(lost.lost, lost.moving),
    )


def _update_ratio(params: Size, updates: Size) -> jax.Array:
    """‖u‖/‖p‖, right also where a norm overflows; 0 where that of p is 0."""
    return jnp.sqrt(over(updates.squares, params.squares)) * (
        updates.unit / params.unit
    )
