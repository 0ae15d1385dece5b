"""What single elements show: zeros, headroom, and updates that are lost.

Counting is many times as dear as a sum of squares, so it is done on some elements of a
leaf, spread over it, and now and then.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxcheck.training.leaves import Entry
from jaxcheck.training.lost import Lost, lost_in
from jaxcheck.training.moments import over
from jaxcheck.training.placement import (
    ROWS,
    Join,
    concatenated,
    is_split_explicitly,
    rows_of,
)
from jaxcheck.training.sizes import as_real
from jaxcheck.training.sums import summed

# Elements of a row that are looked at, at least where there are more.
_TAKEN = 2048


class Details(NamedTuple):
    """Of rows, and in the last row of everything together.

    Attributes:
        zero_share: of the elements that were looked at, those whose gradient is
            exactly zero.
        max_abs: the largest of them.
        lost_share: of those with an update that is not zero, the share whose parameter
            does not move; -1 if there are none.
    """

    zero_share: jax.Array
    max_abs: jax.Array
    lost_share: jax.Array


def sample(entry: Entry, array: Any) -> Any:
    """Some elements of a leaf, at equal distances along its axes.

    All of them where it is sharded over an explicit mesh, which forbids that.
    """
    if is_split_explicitly(array):
        return array
    excess = max(1, entry.size // entry.rows // _TAKEN)
    strides = [1] * len(entry.shape)
    for k in entry.reduced:
        strides[k] = min(excess, entry.shape[k])
        excess = max(1, excess // strides[k])
    if math.prod(strides) == 1:
        return array
    return jax.lax.slice(array, [0] * len(strides), entry.shape, strides)


def details_of(
    entries: Sequence[Entry],
    axes: tuple[str, ...],
    dtype: Any,
    grads: Sequence[Any],
    params: Sequence[Any] | None,
    updates: Sequence[Any] | None,
) -> Details:
    """What is seen on samples of leaves."""
    absent = [None] * len(entries)
    leaves = zip(entries, grads, params or absent, updates or absent, strict=True)
    every = concatenated([_leaf(leaf, axes, dtype, *x) for leaf, *x in leaves])
    every = jax.tree.map(jnp.append, every, every.joined(ROWS))
    return Details(
        zero_share=over(every.zeros, every.elements),
        max_abs=every.largest,
        lost_share=jnp.where(
            every.lost.moving > 0, over(every.lost.lost, every.lost.moving), -1
        ),
    )


class _Seen(NamedTuple):
    zeros: jax.Array
    elements: jax.Array
    largest: jax.Array
    lost: Lost

    def joined(self, join: Join) -> _Seen:
        return _Seen(
            join.add(self.zeros),
            join.add(self.elements),
            join.largest(self.largest),
            self.lost.joined(join),
        )


def _leaf(
    entry: Entry, axes: tuple[str, ...], dtype: Any, grad: Any, param: Any, update: Any
) -> _Seen:
    value = as_real(grad, dtype)
    finite = jnp.isfinite(value)
    flags = [finite & (value == 0), finite]
    if param is not None and update is not None:
        flags += lost_in(param, update, dtype)
    zeros, elements, *counts, largest = summed(
        [x.astype(dtype) for x in flags],
        entry.axis,
        largest=[jnp.where(finite, jnp.abs(value), 0)],
    )
    lost = Lost(*counts) if counts else Lost(*[jnp.zeros_like(zeros)] * 2)
    seen = _Seen(zeros, elements, largest, lost)
    arrays = [x for x in (grad, param, update) if x is not None]
    return rows_of(entry, axes, seen, *arrays)
