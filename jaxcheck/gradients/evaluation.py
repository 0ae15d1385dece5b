"""The loss at moved points: one program, batched over lanes.

A lane moves the coordinates ``lo <= i < hi`` along a probe, by ``step`` times the
leaf's own step, or a single coordinate by ``step`` itself. There are two ways to write
that as a program, and a check compiles one of them:

- *dense*: every lane has its own copy of the parameters. It does all lanes alike.
- *one-hot*: the lanes of a call move single coordinates, and only what changes is
  computed for each (``jaxcheck.jaxprs.onehot``): four times faster for a perceptron.
  A lane of another kind moves the point of a whole call instead, or, if the loss has
  stop_gradient sites, runs in a dense program beside this one.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxcheck.gradients.arrays import from_real_view, widen
from jaxcheck.gradients.point import Point
from jaxcheck.jaxprs import compat
from jaxcheck.jaxprs.compiled import Compiled, remembered
from jaxcheck.jaxprs.memory import aval_bytes, peak_bytes
from jaxcheck.jaxprs.onehot import OneHot, Whole

Array = Any
FloatArray = np.ndarray[Any, np.dtype[np.float64]]
IntArray = np.ndarray[Any, np.dtype[np.int64]]
Advance = Callable[[int], None]

# Below this, lanes fit into a CPU's cache (measured: 256 lanes of a 9,000-parameter MLP
# run twice as fast as 1,024); an accelerator wants more work at a time.
_CPU_BATCH_BYTES = 32 * 2**20
_ACCELERATOR_BATCH_BYTES = 2**30
_LEAST_LANES = 64
_CPU_LANES = 256
_ACCELERATOR_LANES = 4096
# Calls that are dispatched before the first of them is waited for.
_IN_FLIGHT = 8


@dataclasses.dataclass(frozen=True, kw_only=True)
class Lanes:
    """What to evaluate: arrays of one length, one entry a lane.

    Attributes:
        lo: first real coordinate that moves.
        hi: one past the last.
        step: signed multiple of the leaf's step; for a single coordinate that moves
            by itself, the displacement.
    """

    lo: IntArray
    hi: IntArray
    step: FloatArray

    def __len__(self) -> int:
        return len(self.lo)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Values:
    """What came of lanes.

    Attributes:
        loss: the loss at the moved point.
        predicted: the change that the reading's gradient predicts.
        size: the same sum over the sizes of what was summed.
        moved: the sum of the coordinates' actual displacements.
    """

    loss: FloatArray
    predicted: FloatArray
    size: FloatArray
    moved: FloatArray


class Evaluator:
    """Evaluates the loss of a point in lanes.

    Attributes:
        batch: lanes of one call.
    """

    def __init__(self, point: Point, *, lanes: int, coordinates: bool) -> None:
        """Choose the way; see the module's docstring.

        Args:
            point: the loss and its inputs.
            lanes: how many will be evaluated at least.
            coordinates: whether most of them will move a single coordinate.
        """
        self._point = point
        # a slab of an array with an explicit sharding has no sharding of its own
        avals = compat.input_avals(point.traced.program)
        explicit = any(compat.struct(aval).sharding is not None for aval in avals)
        self._one_hot = coordinates and not explicit
        self.batch = self._batch_size(lanes)

    def run(
        self, lanes: Lanes, fixed: Sequence[Array], *, unit: bool, advance: Advance
    ) -> Values:
        """Evaluate ``lanes``; ``fixed`` are the inputs that all of them share."""
        if not self._one_hot:
            return self._batched(lanes, (np.bool_(unit), *fixed), advance)
        if unit:
            return self._batched(lanes, (*_STILL, *fixed), advance)
        if self._point.sites:
            # a moved call is a new base, and stop_gradient would hold what it is there
            return self._alongside.run(lanes, fixed, unit=False, advance=advance)
        nothing = Lanes(lo=lanes.lo[:1], hi=lanes.lo[:1], step=np.zeros(1))
        done = [
            self._batched(nothing, (lo, hi, step, *fixed), advance)
            for lo, hi, step in zip(lanes.lo, lanes.hi, lanes.step, strict=True)
        ]
        columns = {
            f.name: np.concatenate([getattr(v, f.name) for v in done])
            for f in dataclasses.fields(Values)
        }
        return Values(**columns)

    @functools.cached_property
    def _alongside(self) -> Evaluator:
        return Evaluator(self._point, lanes=_LEAST_LANES, coordinates=False)

    def _batched(
        self, lanes: Lanes, fixed: Sequence[Array], advance: Advance
    ) -> Values:
        pending: list[tuple[int, list[Array]]] = []
        parts: list[list[FloatArray]] = []

        def collect() -> None:
            for done, out in pending:
                parts.append([np.asarray(x)[:done] for x in out])
                advance(done)
            pending.clear()

        for start in range(0, len(lanes), self.batch):
            chunk = slice(start, start + self.batch)
            columns = (lanes.lo[chunk], lanes.hi[chunk], lanes.step[chunk])
            padded = [_pad(x, self.batch) for x in columns]
            pending.append((len(columns[0]), self._program(*padded, *fixed)))
            # a few calls stay in flight, so that the device does not wait for the host
            if len(pending) >= _IN_FLIGHT:
                collect()
        collect()
        joined = [np.concatenate(c) for c in zip(*parts, strict=True)] if parts else []
        loss, predicted, size, moved = joined or [np.zeros(0)] * 4
        return Values(loss=loss, predicted=predicted, size=size, moved=moved)

    # -- the program

    def _batch_size(self, lanes: int) -> int:
        """Lanes of one call, from the bytes that one lane takes."""
        inlined = self._point.inlined
        jaxpr, _ = compat.opened(inlined)
        one = peak_bytes(inlined)
        if not self._one_hot:  # every lane has parameters of its own
            moving = jaxpr.invars
            one += 2 * sum(aval_bytes(v.aval) for v in moving)
        on_cpu = jax.default_backend() == "cpu"
        allowed = _CPU_BATCH_BYTES if on_cpu else _ACCELERATOR_BATCH_BYTES
        most = _CPU_LANES if on_cpu else _ACCELERATOR_LANES
        # in steps, so that a check of another mode finds the program compiled
        wanted = min(most, _LEAST_LANES * math.ceil(lanes / _LEAST_LANES))
        return int(min(max(1, allowed // max(one, 1)), wanted))

    @functools.cached_property
    def _program(self) -> Compiled:
        key = ("evaluation", self._one_hot, self.batch, self._point.identity)
        return remembered(key, self._compiled)

    def _compiled(self) -> Compiled:
        point = self._point
        lane, whole = np.zeros(self.batch), np.zeros(self.batch, np.int64)
        floats = [jax.ShapeDtypeStruct(view, np.float64) for view in point.views]
        first = _STILL if self._one_hot else (np.False_,)
        inputs = [
            *(whole, whole, lane),
            *first,
            np.zeros(len(point.leaves)),
            np.zeros(len(point.sites), bool),
            np.zeros(2, np.uint32),
            np.False_,
            *floats,
            *floats,
            *point.inputs,
        ]
        run = self._coordinates if self._one_hot else self._dense
        try:
            return Compiled(functools.partial(run, jax.vmap), inputs, x64=True)
        except (NotImplementedError, TypeError, ValueError):
            # no batching rule (an ordered callback, a foreign kernel): lane by lane
            return Compiled(functools.partial(run, _one_by_one), inputs, x64=True)

    def _dense(
        self,
        batch: Callable[..., Any],
        lo: Array,
        hi: Array,
        step: Array,
        unit: Array,
        scale: Array,
        transparent: Array,
        words: Array,
        relative: Array,
        *rest: Array,
    ) -> list[Array]:
        point = self._point
        grads, sizes, views = self._split(rest)
        steps = [
            jax.lax.cond(
                unit,
                lambda view=view: jnp.ones_like(widen(view)),
                functools.partial(point.steps, k, view, scale, words, relative),
            )
            for k, view in enumerate(views)
        ]
        base = point.arguments(views)

        def lane(lo: Array, hi: Array, step: Array) -> tuple[Array, ...]:
            moved = self._moved(views, steps, lo, hi, step)
            sums = jax.lax.cond(
                unit,
                lambda: (jnp.zeros(()),) * 3,  # the host knows them
                lambda: _sums(grads, sizes, views, moved),
            )
            out = point.perturbation(base, point.arguments(moved), transparent)
            return (widen(out[0]), *sums)

        return list(batch(lane)(lo, hi, step))

    def _coordinates(
        self,
        batch: Callable[..., Any],
        lo: Array,
        hi: Array,
        step: Array,
        all_lo: Array,
        all_hi: Array,
        all_step: Array,
        scale: Array,
        transparent: Array,
        words: Array,
        relative: Array,
        *rest: Array,
    ) -> list[Array]:
        del hi  # a lane is one coordinate
        point = self._point
        grads, sizes, start = self._split(rest)

        def shifted() -> list[Array]:
            steps = [
                point.steps(k, view, scale, words, relative)
                for k, view in enumerate(start)
            ]
            return self._moved(start, steps, all_lo, all_hi, all_step)

        views = jax.lax.cond(all_step == 0, lambda: list(start), shifted)
        sums = _sums(grads, sizes, start, views)
        lasts = np.array([view[-1] if view else 1 for view in point.views])
        program = point.inlined

        def lane(lo: Array, step: Array) -> Array:
            leaf = jnp.searchsorted(point.offsets[1:], lo, side="right")
            inner = lo - jnp.asarray(point.offsets)[leaf]
            moves = point.perturbation.moves(transparent)
            one = OneHot(inner % jnp.asarray(lasts)[leaf], moves)
            moved = [
                one.moved(view, inner, leaf == k, step) for k, view in enumerate(views)
            ]
            pairs = zip(moved, point.leaves, strict=True)
            args = [_complex(one, x) if leaf.complex else x for x, leaf in pairs]
            return widen(one.run(program, args)[0])

        loss = batch(lane)(lo, step)
        return [loss, *(jnp.broadcast_to(s, loss.shape) for s in sums)]

    def _split(
        self, rest: Sequence[Array]
    ) -> tuple[Sequence[Array], Sequence[Array], list[Array]]:
        count = len(self._point.leaves)
        grads, sizes, inputs = rest[:count], rest[count : 2 * count], rest[2 * count :]
        return grads, sizes, self._point.views_of(inputs)

    def _moved(
        self,
        views: Sequence[Array],
        steps: Sequence[Array],
        lo: Array,
        hi: Array,
        step: Array,
    ) -> list[Array]:
        """The parameters with ``lo <= i < hi`` moved by ``step`` times their steps."""
        offsets = self._point.offsets
        small = offsets[-1] < np.iinfo(np.int32).max
        dtype = jnp.int32 if small else jnp.int64
        lo, hi = lo.astype(dtype), hi.astype(dtype)
        moved: list[Array] = []
        for k, view in enumerate(views):
            index = jax.lax.iota(dtype, math.prod(view.shape)).reshape(view.shape)
            index = index + offsets[k].astype(dtype)
            inside = (index >= lo) & (index < hi)
            shift = jnp.where(inside, step * steps[k], 0.0)
            moved.append(view + shift.astype(view.dtype))
        return moved


# lo, hi and step of a call whose point does not move
_STILL = (np.int64(0), np.int64(0), np.float64(0.0))


def _complex(one: OneHot, view: Any) -> Whole:
    moved = from_real_view(one.whole(view), is_complex=True)
    return Whole(from_real_view(view.base, is_complex=True), moved)


def _sums(
    grads: Sequence[Array],
    sizes: Sequence[Array],
    views: Sequence[Array],
    moved: Sequence[Array],
) -> tuple[Array, Array, Array]:
    """Predicted change, its size, and displacement, over all leaves."""
    totals = [jnp.zeros(()), jnp.zeros(()), jnp.zeros(())]
    for grad, size, view, end in zip(grads, sizes, views, moved, strict=True):
        actual = widen(end) - widen(view)
        # a NaN gradient must not reach the sums of lanes that leave it alone
        used = actual != 0
        change = jnp.where(used, grad * actual, 0.0)
        weight = jnp.where(used, size * jnp.abs(actual), 0.0)
        terms = (change, weight, actual)
        totals = [total + jnp.sum(t) for total, t in zip(totals, terms, strict=True)]
    return totals[0], totals[1], totals[2]


def _one_by_one(fun: Callable[..., Any]) -> Callable[..., Any]:
    return lambda *xs: jax.lax.map(lambda x: fun(*x), xs)


def _pad(values: Any, length: int) -> Any:
    """Repeat the last lane: the last batch must not be another program."""
    return np.concatenate([values, np.repeat(values[-1:], length - len(values))])
