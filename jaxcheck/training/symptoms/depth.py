"""Gradients that are lost on their way, and that grow on it."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterator
from typing import Any

import numpy as np

from jaxcheck.reports.numbers import significant
from jaxcheck.training.health import HealthFinding
from jaxcheck.training.level import WARM
from jaxcheck.training.monitor import GRADIENT
from jaxcheck.training.seen import FEWEST, Seen

Array = Any

_SHRINKS = (
    "activations that saturate, layer after layer",
    "an initialization that is too small",
)
_AGAINST_SHRINKING = (
    "ReLU, GELU or ELU in place of sigmoid or tanh",
    "He or Xavier initialization",
    "normalization and residual connections",
    "an optimizer that divides by its moments, such as Adam",
)
_GROWS = (
    "weights that multiply along depth",
    "an initialization that is too large",
)
_AGAINST_GROWTH = (
    "He or Xavier initialization",
    "normalization and residual connections",
    "an optimizer that divides by its moments, such as Adam",
)


@dataclasses.dataclass(frozen=True)
class Vanishing:
    """Weights whose gradient is tiny beside those of the others, and that hardly move.

    Biases and scales are left aside: theirs may be zero in theory. So are weights that
    an optimizer moves all the same, as Adam does. And a whole gradient that is tiny
    beside what it was, with updates that hardly move anything.

    Attributes:
        below: root mean square over that of the median row.
        faded: the whole gradient over that of the first 20 steps.
        moving: update ratio of what does move.
        under: a norm that is too small whatever the others are, 1e-6 in classical
            practice; None for none.
    """

    below: float = 1e-4
    faded: float = 1e-3
    moving: float = 1e-6
    under: float | None = None
    name: str = "vanishing"

    def __call__(self, seen: Seen) -> Iterator[HealthFinding]:
        """One finding of rows, the smallest first, and one of everything."""
        weights = (seen.dimensions >= 2) & (seen.state.level.seen[GRADIENT, :-1] > 0)
        if seen.state.step < FEWEST or not weights.any():
            return
        yield from self._whole(seen)
        rms = seen.usual_rms(GRADIENT)
        relative = rms / np.median(rms[weights])
        ratio = seen.state.update_ratio[:-1]
        small = weights & (relative < self.below) & (ratio < self.moving)
        if self.under is not None:
            small |= weights & (seen.usual(GRADIENT)[:-1] < self.under)
        if not small.any():
            return
        rows = np.flatnonzero(small)
        rows = rows[np.argsort(relative[rows])]
        least = float(relative[rows[0]])
        yield HealthFinding(
            rule=self.name,
            message=(
                f"its gradient is usually {significant(least, 1)} of that of the "
                "median row, by root mean square, and it hardly moves."
            ),
            **seen.naming(rows),
            step=int(seen.steps[0]),
            value=least,
            threshold=self.below,
            causes=_SHRINKS,
            remedies=_AGAINST_SHRINKING,
        )

    def _whole(self, seen: Seen) -> Iterator[HealthFinding]:
        level, ratio = seen.state.level, float(seen.state.update_ratio[-1])
        share = math.exp(float(level.mean[GRADIENT, -1] - level.start[GRADIENT, -1]))
        begun = level.seen[GRADIENT, -1] > WARM
        if not begun or share >= self.faded or not 0 <= ratio < self.moving:
            return
        yield HealthFinding(
            rule=self.name,
            message=(
                f"the whole gradient is usually {significant(share, 1)} of what it was "
                f"in the first {WARM} steps, and a step moves everything by "
                f"{significant(ratio, 1)} of its size."
            ),
            step=int(seen.steps[0]),
            value=share,
            threshold=self.faded,
            causes=(
                "a loss that saturates, as that of a generator does",
                "training that has come to its end",
            ),
            remedies=(
                "a loss with a gradient where it is wrong",
                "an optimizer that divides by its moments, such as Adam",
            ),
        )


@dataclasses.dataclass(frozen=True)
class DepthProfile:
    """Gradients that shrink or grow from layer to layer, and updates with them.

    Layers are matrices whose paths differ in one number. What is asked is whether the
    logarithms of the gradient, and of ‖u‖/‖p‖, are a line over that number: nothing is
    said of an optimizer that moves all layers alike, as Adam does.

    Attributes:
        factor: between the two ends of the line.
        layers: fewest that are a profile.
        straight: correlation of the logarithms with the number of the layer.
    """

    factor: float = 1e3
    layers: int = 5
    straight: float = 0.9
    name: str = "depth_profile"

    def __call__(self, seen: Seen) -> Iterator[HealthFinding]:
        """One finding, of the steepest profile; the lower ends of others are named."""
        if seen.state.step < FEWEST:
            return
        rms = seen.usual_rms(GRADIENT)
        ratios = seen.update_ratios()
        steep: list[tuple[float, Array]] = []
        for numbers, rows in _profiles(seen.names, seen.dimensions):
            falls = [self._fall(numbers, x[rows]) for x in (rms, ratios)]
            least = math.log(self.factor)
            if min(falls) > least or max(falls) < -least:
                steep.append((falls[0], rows if falls[0] > 0 else rows[::-1]))
        if not steep:
            return
        steep.sort(key=lambda profile: -abs(profile[0]))
        fall, rows = steep[0]
        low, high = rows[0], rows[-1]
        shrinks = fall > 0  # towards the first layer, as gradients flow
        share = math.exp(-abs(fall))
        each = share ** (1 / (len(rows) - 1))
        yield HealthFinding(
            rule=self.name,
            message=(
                f"from {seen.names[high]} to here the gradient falls to "
                f"{significant(share, 1)}, by root mean square, and with each layer to "
                f"{significant(each, 2)}; and so does what updates move."
            ),
            **seen.naming(np.array([low, *(rows[0] for _, rows in steep[1:])])),
            step=int(seen.steps[0]),
            value=share,
            threshold=1 / self.factor,
            causes=_SHRINKS if shrinks else _GROWS,
            remedies=_AGAINST_SHRINKING if shrinks else _AGAINST_GROWTH,
        )

    def _fall(self, numbers: Array, sizes: Array) -> float:
        """The logarithm of last over first on the line through them; 0 for no line."""
        known = sizes > 0
        if known.sum() < self.layers:
            return 0.0
        x, y = numbers[known], np.log(sizes[known])
        if np.ptp(y) == 0 or abs(np.corrcoef(x, y)[0, 1]) < self.straight:
            return 0.0
        return float(np.polyfit(x, y, 1)[0] * np.ptp(x))


def _profiles(
    names: tuple[str, ...], dimensions: Array
) -> Iterator[tuple[Array, Array]]:
    """Numbers and rows of matrices whose names differ in one number, in its order."""
    groups: dict[tuple[str, str], list[tuple[int, int]]] = {}
    for row in np.flatnonzero(dimensions >= 2):
        for number in re.finditer(r"\d+", names[row]):
            rest = names[row][: number.start()], names[row][number.end() :]
            groups.setdefault(rest, []).append((int(number[0]), int(row)))
    for found in groups.values():
        numbers, rows = np.array(sorted(found)).T
        yield numbers, rows
