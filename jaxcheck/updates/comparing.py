"""Updates and state of a transformation against those of a rule, element by element.

An element counts as off by its difference over the largest value that the rule has
given it so far: a moving average may cancel for a step, and small elements are no less
strict than large ones. A few units in the last place of the parameter that an update is
added to are no difference: an optimizer may compute it from the new parameters, and
there they are lost.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from jaxcheck.trees import wide_on_host
from jaxcheck.updates.fields import Field
from jaxcheck.updates.runs import Moment

Array = Any

# Units in the last place of a parameter by which its update may differ.
_ULPS = 8.0
# Values below this many of the smallest normal number may be flushed to zero.
_TINY = 64.0


class Mismatch(NamedTuple):
    """The first thing that is off.

    Attributes:
        step: number of the step, from 0.
        leaf: path of the leaf.
        field: of the state; None if it is the update.
        at: index of the element that is furthest off.
        got: what the transformation gives there.
        wanted: what the rule gives.
        error: relative to the largest value of that element so far.
    """

    step: int
    leaf: str | None
    field: Field | None
    at: tuple[int, ...]
    got: Any
    wanted: Any
    error: float


class Comparison(NamedTuple):
    """All steps.

    Attributes:
        updates: the first update that is off, the leaf that is furthest.
        state: the first field that is off.
        error: largest relative error of an update, of what is no mismatch too; beside
            what cancels in it, where that is larger.
        compared: names of the fields of the state that were compared.
        left: names of fields of the rule that the transformation's state has not.
    """

    updates: Mismatch | None
    state: Mismatch | None
    error: float
    compared: tuple[str, ...]
    left: tuple[str, ...]

    @property
    def first(self) -> Mismatch | None:
        """The first thing that is off; of one step the state, which comes before."""
        both = [m for m in (self.state, self.updates) if m is not None]
        return min(both, key=lambda m: m.step, default=None)


def compare(
    moments: Sequence[Moment],
    wanted: Sequence[Moment],
    rtol: float,
    tiny: float,
    cancelled: float = 0.0,
) -> Comparison:
    """Compare two runs on the same gradients.

    Args:
        moments: of the transformation.
        wanted: of the rule.
        rtol: relative error that is no mismatch.
        tiny: the smallest normal number of the dtype.
        cancelled: size of what cancels in each update, whose last places are lost.
    """
    pairs = list(zip(moments, wanted, strict=True))
    names, left = _common(moments[-1].fields, wanted[-1].fields)
    updates = _Series(rtol, tiny, cancelled)
    state = _Series(rtol, tiny)
    for step, (ours, rules) in enumerate(pairs):
        for leaf, value in ours.updates.items():
            theirs = rules.updates[leaf]
            floor = _ulps(ours.params[leaf], cancelled)
            updates.see((leaf, ""), step, leaf, None, value, theirs, floor)
        mine, theirs = _numbered(ours.fields), _numbered(rules.fields)
        for name in names:
            if name not in mine or name not in theirs:
                continue
            field = mine[name]
            for leaf, value in field.leaves.items():
                if leaf in theirs[name].leaves:
                    key = (str(leaf), str(name))
                    other = theirs[name].leaves[leaf]
                    state.see(key, step, leaf, field, value, other)
    return Comparison(
        updates.first(),
        state.first(),
        updates.largest,
        tuple(dict.fromkeys(name for name, _ in names)),
        left,
    )


def _ulps(params: Array, cancelled: float) -> Array:
    eps = float(jnp.finfo(params.dtype).eps)
    size = np.abs(wide_on_host(params))
    return _ULPS * eps * np.maximum(size, cancelled)


class _Series:
    """Comparisons of one kind, over the steps."""

    def __init__(self, rtol: float, tiny: float, cancelled: float = 0.0) -> None:
        self._rtol, self._tiny, self._cancelled = rtol, tiny, cancelled
        self._scales: dict[tuple[str, str], Array] = {}
        self._off: list[Mismatch] = []
        self.largest = 0.0

    def see(
        self,
        key: tuple[str, str],
        step: int,
        leaf: str | None,
        field: Field | None,
        value: Array,
        wanted: Array,
        floor: Array | float = 0.0,
    ) -> None:
        got, wanted = np.asarray(value), np.asarray(wanted)
        if got.shape != wanted.shape or not got.size:
            return
        with np.errstate(all="ignore"):
            got, wanted = wide_on_host(got), wide_on_host(wanted)
            size = np.where(np.isfinite(wanted), np.abs(wanted), 0.0)
            scale = np.maximum(self._scales.get(key, 0.0), size)
            self._scales[key] = scale
            difference = np.abs(got - wanted)
            same = (got == wanted) | (np.isnan(got) & np.isnan(wanted))
            negligible = difference <= np.fmax(_TINY * self._tiny, floor)
            error = np.where(same, 0.0, difference / scale)
            beside = np.where(
                same, 0.0, difference / np.maximum(scale, self._cancelled)
            )
        error, beside = (np.where(np.isnan(x), np.inf, x) for x in (error, beside))
        self.largest = max(self.largest, float(np.max(beside)))
        error = np.where(negligible, 0.0, error)
        worst = np.unravel_index(int(np.argmax(error)), error.shape)
        largest = float(error[worst])
        if largest > self._rtol:
            index = tuple(int(i) for i in worst)
            self._off.append(
                Mismatch(step, leaf, field, index, got[worst], wanted[worst], largest)
            )

    def first(self) -> Mismatch | None:
        if not self._off:
            return None
        step = min(m.step for m in self._off)
        return max((m for m in self._off if m.step == step), key=lambda m: m.error)


Numbered = tuple[str, int]


def _common(
    fields: Sequence[Field], wanted: Sequence[Field]
) -> tuple[list[Numbered], tuple[str, ...]]:
    """Fields that both have, by name and order, where they have equally many of it."""
    mine = Counter(_plain(field) for field in fields)
    theirs = Counter(_plain(field) for field in wanted)
    names = [
        (name, k) for name, n in theirs.items() if mine[name] == n for k in range(n)
    ]
    left = tuple(
        name
        for name, n in theirs.items()
        if mine[name] != n and not name.startswith("_")
    )
    return names, left


def _plain(field: Field) -> str:
    """Its name without the stage, which chains of rules write before it."""
    return field.name.rsplit(".", 1)[-1]


def _numbered(fields: Sequence[Field]) -> dict[Numbered, Field]:
    return dict(_pairs(fields))


def _pairs(fields: Sequence[Field]) -> Iterator[tuple[Numbered, Field]]:
    seen: Counter[str] = Counter()
    for field in fields:
        name = _plain(field)
        yield (name, seen[name]), field
        seen[name] += 1
