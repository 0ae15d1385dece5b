"""The loss at moved points: lanes on the host, sent to one program in batches.

A lane moves the coordinates ``lo <= i < hi`` along a probe, by ``step`` times the
leaf's own step, or a single coordinate by ``step`` itself. The two ways to write the
program are in ``moving.py``.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import jax
import numpy as np

from jaxcheck.gradients import displacement, moving
from jaxcheck.gradients.groups import groups_of
from jaxcheck.gradients.point import Point
from jaxcheck.jaxprs import compat
from jaxcheck.jaxprs.compiled import Compiled, remembered
from jaxcheck.jaxprs.memory import aval_bytes, peak_bytes

Array = Any
FloatArray = np.ndarray[Any, np.dtype[np.float64]]
IntArray = np.ndarray[Any, np.dtype[np.int64]]
Advance = Callable[[int], None]
Call = tuple[IntArray, Sequence[Any]]  # which lanes, and the inputs of the program

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
class Shared:
    """What all lanes have in common.

    Attributes:
        transparent: flag of each stop_gradient site.
        scale: step of each leaf.
        words: of the probe.
        relative: whether each coordinate moves in proportion to its own value.
        unit: whether each lane moves one coordinate, by ``step`` itself.
        grads: what changes are predicted with, one a leaf.
        sizes: of what was summed to give them.
    """

    transparent: Array
    scale: FloatArray
    words: Array
    relative: bool
    unit: bool
    grads: Sequence[Array]
    sizes: Sequence[Array]


@dataclasses.dataclass(frozen=True)
class Values:
    """What came of lanes; of those that move one coordinate, the loss alone.

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
        """Choose the way the program is written.

        Args:
            point: the loss and its inputs.
            lanes: how many will be evaluated at least.
            coordinates: whether most of them will move a single coordinate.
        """
        self._point = point
        self._lanes = lanes
        # a slab of an array with an explicit sharding has no sharding of its own
        avals = compat.input_avals(point.traced.program)
        explicit = any(compat.struct(aval).sharding is not None for aval in avals)
        self._one_hot = coordinates and not explicit
        self.batch = self._batch_size(lanes)

    def run(self, lanes: Lanes, shared: Shared, advance: Advance) -> Values:
        """Evaluate ``lanes``; ``advance`` is told how many have been done."""
        if not self._one_hot:
            calls = self._densely(lanes, shared)
            return Values(*self._sent(calls, (4, len(lanes)), advance))
        sums = np.zeros((3, len(lanes)))
        if shared.unit:
            calls = self._singly(lanes, shared)
        else:
            calls = self._along_a_probe(lanes, shared, sums)
        (loss,) = self._sent(calls, (1, len(lanes)), advance)
        return Values(loss, *sums)

    def _sent(
        self, calls: Iterable[Call], shape: tuple[int, int], advance: Advance
    ) -> FloatArray:
        """Outputs of the program in each lane, [outputs, lanes]."""
        columns = np.zeros(shape)
        pending: list[tuple[IntArray, list[Array]]] = []

        def collect() -> None:
            for at, out in pending:
                columns[:, at] = [np.asarray(x)[: len(at)] for x in out]
                advance(len(at))
            pending.clear()

        for at, inputs in calls:
            pending.append((at, self._program(*inputs)))
            # a few calls stay in flight, so that the device does not wait for the host
            if len(pending) >= _IN_FLIGHT:
                collect()
        collect()
        return columns

    def _densely(self, lanes: Lanes, shared: Shared) -> Iterator[Call]:
        fixed = (
            *(np.bool_(shared.unit), shared.transparent, shared.scale, shared.words),
            *(np.bool_(shared.relative), *shared.grads, *shared.sizes),
            *self._point.inputs,
        )
        for at in self._batches(np.arange(len(lanes))):
            columns = (lanes.lo[at], lanes.hi[at], lanes.step[at])
            yield at, (*(_pad(x, self.batch) for x in columns), *fixed)

    def _singly(self, lanes: Lanes, shared: Shared) -> Iterator[Call]:
        """Every lane moves one coordinate; those of one group go together."""
        still = self._placed(self._views)
        fixed = (shared.transparent, *self._point.inputs, *still)
        leaf = np.searchsorted(self._point.offsets[1:], lanes.lo, side="right")
        for k, group in enumerate(self._groups, 1):
            for at in self._batches(np.flatnonzero(np.isin(leaf, group))):
                columns = (_pad(x[at], self.batch) for x in (lanes.lo, lanes.step))
                yield at, (*columns, np.int32(k), *fixed)

    def _along_a_probe(
        self, lanes: Lanes, shared: Shared, sums: FloatArray
    ) -> Iterator[Call]:
        """One point a call, moved on the host; fills in what changes it predicts."""
        point = self._point
        nowhere = (np.zeros(self.batch, np.int64), np.zeros(self.batch), np.int32(0))
        views, relative = self._views, np.bool_(shared.relative)
        grads, sizes = (
            [np.asarray(x) for x in arrays] for arrays in (shared.grads, shared.sizes)
        )
        steps = [
            point.steps(k, view, shared.scale, shared.words, relative, np)
            for k, view in enumerate(views)
        ]
        every = zip(lanes.lo, lanes.hi, lanes.step, strict=True)
        for k, lane in enumerate(every):
            with np.errstate(all="ignore"):
                moved = displacement.moved(views, steps, lane, np)
                sums[:, k] = displacement.sums(grads, sizes, views, moved, np)
            fixed = (shared.transparent, *point.inputs, *self._placed(moved))
            yield np.array([k]), (*nowhere, *fixed)

    def _batches(self, lanes: IntArray) -> Iterator[IntArray]:
        for start in range(0, len(lanes), self.batch):
            yield lanes[start : start + self.batch]

    @functools.cached_property
    def _views(self) -> list[Any]:
        """Real views of the parameters on the host, in the dtypes of the reading."""
        return self._point.views_of(self._point.inputs, np)

    def _placed(self, views: Sequence[Any]) -> list[Array]:
        """Views on the device, laid out as the parameters are."""
        out: list[Array] = []
        with compat.x64(True):
            for view, x in zip(views, self._point.inputs, strict=True):
                spread = isinstance(x, jax.Array) and len(x.sharding.device_set) > 1
                alike = spread and x.shape == view.shape
                out.append(jax.device_put(view, x.sharding if alike else None))
        return out

    # -- the program

    def _batch_size(self, lanes: int) -> int:
        """Lanes of one call, from the bytes that one lane takes."""
        inlined = self._point.inlined
        jaxpr, _ = compat.opened(inlined)
        one = peak_bytes(inlined)
        if not self._one_hot:  # every lane has parameters of its own
            one += 2 * sum(aval_bytes(v.aval) for v in jaxpr.invars)
        on_cpu = jax.default_backend() == "cpu"
        allowed = _CPU_BATCH_BYTES if on_cpu else _ACCELERATOR_BATCH_BYTES
        most = _CPU_LANES if on_cpu else _ACCELERATOR_LANES
        # in steps, so that a check of another mode finds the program compiled
        wanted = min(most, _LEAST_LANES * math.ceil(lanes / _LEAST_LANES))
        return int(min(max(1, allowed // max(one, 1)), wanted))

    @functools.cached_property
    def _groups(self) -> list[tuple[int, ...]]:
        """The leaves that move together in a call for single coordinates."""
        sizes = np.diff(self._point.offsets)
        share = self._lanes / max(int(self._point.offsets[-1]), 1)
        return groups_of(self._point.inlined, [float(n) * share for n in sizes])

    def start(self) -> None:
        """Trace the program, and compile it meanwhile."""
        self._program.start(*self._inputs)

    @functools.cached_property
    def _program(self) -> Compiled:
        groups = tuple(self._groups) if self._one_hot else ()
        written = (self._one_hot, groups, self.batch)
        key = ("evaluation", written, self._point.identity)
        return remembered(key, self._compiled)

    @functools.cached_property
    def _inputs(self) -> list[Any]:
        """Inputs of the program, or what they look like."""
        point = self._point
        lane, coordinate = np.zeros(self.batch), np.zeros(self.batch, np.int64)
        flags = np.zeros(len(point.sites), bool)
        floats = [jax.ShapeDtypeStruct(view, np.float64) for view in point.views]
        if self._one_hot:
            first = [coordinate, lane, np.int32(0), flags]
            return [*first, *point.inputs, *self._views]
        return [
            *(coordinate, coordinate, lane, np.False_, flags),
            *(np.zeros(len(point.leaves)), np.zeros(2, np.uint32), np.False_),
            *(*floats, *floats, *point.inputs),
        ]

    def _compiled(self) -> Compiled:
        write = functools.partial(moving.dense, self._point)
        if self._one_hot:
            write = functools.partial(moving.one_hot, self._point, self._groups)
        inputs = self._inputs
        try:
            return Compiled(functools.partial(write, jax.vmap), inputs, x64=True)
        except (NotImplementedError, TypeError, ValueError):
            # no batching rule (an ordered callback, a foreign kernel): lane by lane
            return Compiled(functools.partial(write, _one_by_one), inputs, x64=True)


def _one_by_one(fun: Callable[..., Any]) -> Callable[..., Any]:
    return lambda *xs: jax.lax.map(lambda x: fun(*x), xs)


def _pad(values: Any, length: int) -> Any:
    """Repeat the last lane: the last batch must not be another program."""
    return np.concatenate([values, np.repeat(values[-1:], length - len(values))])
