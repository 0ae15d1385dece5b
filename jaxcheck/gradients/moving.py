"""The loss at moved points, as programs of a batch of lanes.

There are two ways to write such a program, and a check compiles one of them:

- *dense*: every lane has its own copy of the parameters, moved along a probe or at a
  single coordinate. Where only one lane at a time fits, leaves that stay are not gone
  through.
- *one-hot*: every lane moves a single coordinate, and only what changes is computed
  (``jaxcheck.jaxprs.onehot``). The leaves are in groups: in a call for one group no
  other leaf moves, and what depends only on others is computed once for all lanes.
  What moves along a probe is moved on the host, one point a call.

All of this is traced.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxcheck.gradients import displacement
from jaxcheck.gradients.arrays import from_real_view
from jaxcheck.gradients.point import Point
from jaxcheck.jaxprs.onehot import OneHot, Whole
from jaxcheck.trees import widen

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

    def step_of(k: int) -> Array:
        return jax.lax.cond(
            unit,
            lambda: jnp.ones_like(widen(views[k])),
            lambda: point.steps(k, views[k], scale, words, relative),
        )

    if len(step) == 1:
        moved, sums = _moved_alone(point, views, grads, sizes, step_of, (lo, hi, step))
        return [x.reshape(1) for x in (_loss(point, transparent, views, moved), *sums)]
    steps = [step_of(k) for k in range(count)]

    def lane(*lane: Array) -> tuple[Array, ...]:
        moved = displacement.moved(views, steps, lane, jnp)
        sums = jax.lax.cond(
            unit,
            lambda: (jnp.zeros(()),) * 3,  # the host knows them
            lambda: displacement.sums(grads, sizes, views, moved, jnp),
        )
        return (_loss(point, transparent, views, moved), *sums)

    return list(batch(lane)(lo, hi, step))


def _moved_alone(
    point: Point,
    views: Sequence[Array],
    grads: Sequence[Array],
    sizes: Sequence[Array],
    step_of: Callable[[int], Array],
    lanes: tuple[Array, Array, Array],
) -> tuple[list[Array], Array]:
    """The views in the only lane that there is, and the sums of what has moved."""
    lo, hi, step = (x[0] for x in lanes)
    ends = pairwise(map(int, point.offsets))
    out: list[Array] = []
    total = jnp.zeros(3)
    for k, (view, (first, end)) in enumerate(zip(views, ends, strict=True)):

        def move(k: int = k, view: Array = view, first: int = first) -> Any:
            own = step_of(k)
            moved = displacement.moved_leaf(view, own, first, (lo, hi, step), jnp)
            sums = displacement.sums([grads[k]], [sizes[k]], [view], [moved], jnp)
            return moved, jnp.stack(sums)

        def stay(view: Array = view) -> Any:
            return view, jnp.zeros(3)

        moved, sums = jax.lax.cond((lo < end) & (hi > first), move, stay)
        out.append(moved)
        total += sums
    return out, total


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
