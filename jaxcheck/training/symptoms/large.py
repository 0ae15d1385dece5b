"""What is too large: in single steps, and for good."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from jaxcheck.reports.numbers import counted, significant
from jaxcheck.training.health import HealthFinding
from jaxcheck.training.level import DEVIATIONS, GROWTH, WARM
from jaxcheck.training.monitor import GRADIENT, PARAMETER, QUANTITIES, UPDATE
from jaxcheck.training.seen import FEWEST, Seen

Array = Any


@dataclasses.dataclass(frozen=True)
class Spike:
    """The whole gradient or update was far above its usual size in single steps.

    Attributes:
        most: how many spikes are let pass.
    """

    most: int = 0
    name: str = "spike"

    def __call__(self, seen: Seen) -> Iterator[HealthFinding]:
        """One finding each for gradient and update."""
        level = seen.state.level
        for quantity in (GRADIENT, UPDATE):
            number = int(level.spikes[quantity, -1])
            if number <= self.most:
                continue
            step = int(level.first_spike[quantity, -1])
            rows = np.flatnonzero(level.first_spike[quantity, :-1] == step)
            rows = rows[np.argsort(-level.largest[quantity, rows])]
            largest = float(level.largest[quantity, -1])
            yield HealthFinding(
                rule=self.name,
                message=(
                    f"the norm of the {QUANTITIES[quantity]} was far above its usual "
                    f"size in {counted(number, 'step')}, by {largest:.0f} deviations "
                    "of its logarithm at most."
                ),
                **seen.naming(rows[:1]),
                step=step,
                value=largest,
                threshold=DEVIATIONS,
                causes=("an unusual batch", "a learning rate near the edge"),
                remedies=(
                    "clip by the global norm, near the usual norm",
                    "look at that step's batch",
                    "a lower learning rate or a longer warm-up",
                ),
            )


@dataclasses.dataclass(frozen=True)
class Exploding:
    """Norms that grow and stay large, or exceed a number.

    Attributes:
        above: a norm of the whole gradient that is too large whatever was usual, 1e3
            in classical practice; None for none.
    """

    above: float | None = None
    name: str = "exploding"

    def __call__(self, seen: Seen) -> Iterator[HealthFinding]:
        """One finding for the gradient, one for the parameters."""
        level = seen.state.level
        for quantity in (GRADIENT, PARAMETER):
            first = level.first_grown[quantity]
            if first[-1] >= 0:
                rows = np.flatnonzero(first[:-1] >= 0)
                rows = rows[np.argsort(first[rows], kind="stable")]
                growth = math.exp(
                    float(level.mean[quantity, -1] - level.start[quantity, -1])
                )
                yield self._finding(
                    f"the norm of the {QUANTITIES[quantity]} stays at more than "
                    f"{GROWTH:.0f} times what it was in the first {WARM} steps; it is "
                    f"usually {growth:.0f} times that now.",
                    rows,
                    int(first[-1]),
                    growth,
                    GROWTH,
                    seen,
                )
        norms = seen.norms[:, GRADIENT, -1]
        if self.above is not None and (norms > self.above).any():
            at = int(np.flatnonzero(norms > self.above)[0])
            yield self._finding(
                f"the norm of the gradient is {significant(float(norms[at]), 2)}.",
                np.argsort(-seen.norms[at, GRADIENT, :-1])[:1],
                int(seen.steps[at]),
                float(norms[at]),
                self.above,
                seen,
            )

    def _finding(
        self,
        message: str,
        rows: Array,
        step: int,
        value: float,
        most: float,
        seen: Seen,
    ) -> HealthFinding:
        return HealthFinding(
            rule=self.name,
            message=message,
            **seen.naming(rows),
            step=step,
            value=value,
            threshold=most,
            causes=(
                "a learning rate that is too high",
                "weights that multiply along depth or time",
            ),
            remedies=(
                "a lower learning rate, with warm-up",
                "clip by the global norm",
                "normalization, residual connections, a smaller initialization",
            ),
        )


@dataclasses.dataclass(frozen=True)
class UpdateRatio:
    """Weights that move by too much of their size in a step.

    Attributes:
        above: median of ‖u‖/‖p‖ over the steps that are kept.
    """

    above: float = 0.1
    name: str = "update_ratio"

    def __call__(self, seen: Seen) -> Iterator[HealthFinding]:
        """One finding, the largest first."""
        median = seen.update_ratios()
        rows = np.flatnonzero((seen.dimensions >= 2) & (median > self.above))
        if not rows.size:
            return
        rows = rows[np.argsort(-median[rows])]
        yield HealthFinding(
            rule=self.name,
            message=(
                f"it moves by {significant(float(median[rows[0]]), 2)} of its size in "
                "a step, by the median of the last steps; about 1e-3 is usual."
            ),
            **seen.naming(rows),
            step=int(seen.steps[0]),
            value=float(median[rows[0]]),
            threshold=self.above,
            causes=("a learning rate that is too high",),
            remedies=("a lower learning rate, with warm-up",),
        )


@dataclasses.dataclass(frozen=True)
class AlwaysClipped:
    """The gradient is clipped in nearly every step.

    Attributes:
        share: of steps.
    """

    share: float = 0.9
    name: str = "always_clipped"

    def __call__(self, seen: Seen) -> Iterator[HealthFinding]:
        """One finding."""
        steps, clipped = int(seen.state.step), int(seen.state.clipped)
        if steps < FEWEST or clipped <= self.share * steps:
            return
        usual = float(seen.usual(GRADIENT)[-1])
        yield HealthFinding(
            rule=self.name,
            message=(
                f"the gradient was clipped in {clipped:,} of {counted(steps, 'step')}; "
                f"its norm is usually {significant(usual, 2)}."
            ),
            step=0,
            value=clipped / steps,
            threshold=self.share,
            causes=("a norm to clip at that is far below the usual one",),
            remedies=("clip near the usual norm", "lower the learning rate instead"),
        )
