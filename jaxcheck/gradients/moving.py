"""The loss at moved points, as programs of a batch of lanes.

There are two ways to write such a program, and a check compiles one of them:

- *dense*: every lane has its own copy of the parameters, moved along a probe or at a
  single coordinate.
- *one-hot*: every lane moves a single coordinate, and only what changes is computed
  (``jaxcheck.jaxprs.onehot``). The leaves are in groups: in a call for one group no
  other leaf moves, and what depends only on others is computed once for all lanes.
  What moves along a probe is moved on the host, one point a call.

All of this is traced.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxcheck.gradients import displacement
from jaxcheck.gradients.arrays import from_real_view, widen
from jaxcheck.gradients.point import Point
from jaxcheck.jaxprs.onehot import OneHot, Whole

Array = Any
Batch = Callable[..., Any]  # vmap, or what does lane by lane


def dense(
    point: Point,
    batch: Batch,
    lo: Array,
    hi: Array,
    step: Array,
    unit: Array,
    transparent: Array,
    scale: Array,
    words: Array,
    relative: Array,
    *rest: Array,
) -> list[Array]:
    """Loss, predicted change, its size and displacement of every lane.

    Args:
        point: the loss and its inputs.
        batch: applies a function of one lane to all of them.
        lo: first coordinate that moves.
        hi: one past the last.
        step: how far.
        unit: whether ``step`` is the displacement itself; then the loss alone.
        transparent: flag of each stop_gradient site.
        scale: step of each leaf.
        words: of the probe.
        relative: whether each coordinate moves in proportion to its own value.
        rest: gradients, their sizes and parameters, one a leaf.
    """
    count = len(point.leaves)
    grads, sizes = rest[:count], rest[count : 2 * count]
    views = point.views_of(rest[2 * count :])
    steps = [
        jax.lax.cond(
            unit,
            lambda view=view: jnp.ones_like(widen(view)),
            functools.partial(point.steps, k, view, scale, words, relative),
        )
        for k, view in enumerate(views)
    ]

    def lane(*lane: Array) -> tuple[Array, ...]:
        moved = displacement.moved(views, steps, lane, jnp)
        sums = jax.lax.cond(
            unit,
            lambda: (jnp.zeros(()),) * 3,  # the host knows them
            lambda: displacement.sums(grads, sizes, views, moved, jnp),
        )
        return (_loss(point, transparent, views, moved), *sums)

    return list(batch(lane)(lo, hi, step))


def one_hot(
    point: Point,
    groups: Sequence[Sequence[int]],
    batch: Batch,
    lo: Array,
    step: Array,
    kind: Array,
    transparent: Array,
    *rest: Array,
) -> list[Array]:
    """The loss of every lane.

    Args:
        point: the loss and its inputs.
        groups: the leaves that move together.
        batch: applies a function of one lane to all of them.
        lo: the coordinate that moves.
        step: by how much.
        kind: 0 if all lanes are the point that is given, else the number of the group
            that all coordinates belong to, from 1.
        transparent: flag of each stop_gradient site.
        rest: parameters, and views of moved ones, one a leaf.
    """
    count = len(point.leaves)
    views, moved = point.views_of(rest[:count]), rest[count:]

    def given() -> Array:
        loss = _loss(point, transparent, views, moved)
        return jnp.broadcast_to(loss, step.shape)

    def one_of(group: Sequence[int]) -> Array:
        lane = functools.partial(_loss_of_one, point, transparent, views, group)
        return batch(lane)(lo, step)

    branches = [given, *(functools.partial(one_of, group) for group in groups)]
    return [jax.lax.switch(kind, branches)]


def _loss(
    point: Point, transparent: Array, views: Sequence[Array], moved: Sequence[Array]
) -> Array:
    base, there = point.arguments(views), point.arguments(moved)
    return widen(point.perturbation(base, there, transparent)[0])


def _loss_of_one(
    point: Point,
    transparent: Array,
    views: Sequence[Array],
    group: Sequence[int],
    lo: Array,
    step: Array,
) -> Array:
    """The loss with the coordinate ``lo`` moved, which belongs to ``group``."""
    leaf = jnp.searchsorted(point.offsets[1:], lo, side="right")
    inner = lo - jnp.asarray(point.offsets)[leaf]
    lasts = np.array([view[-1] if view else 1 for view in point.views])
    moves = point.perturbation.moves(transparent)
    one = OneHot(inner % jnp.asarray(lasts)[leaf], moves)
    args = point.arguments(views)
    for k in group:
        moved = one.moved(views[k], inner, leaf == k, step)
        if point.leaves[k].complex:
            moved = Whole(args[k], from_real_view(one.whole(moved), True))
        args[k] = moved
    return widen(one.run(point.inlined, args)[0])
