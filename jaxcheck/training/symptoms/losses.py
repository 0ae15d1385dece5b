"""What a loss does that training is to lower."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np

from jaxcheck.reports.numbers import counted, significant
from jaxcheck.training.health import HealthFinding
from jaxcheck.training.level import DEVIATIONS
from jaxcheck.training.seen import FEWEST, Seen

Array = Any


@dataclasses.dataclass(frozen=True)
class Loss:
    """A loss that is not finite, does not move, lies above where it began, or jumps.

    Of one that is not finite nothing else is said.

    Attributes:
        moved: share of its first value within which a loss has not moved.
        risen: share of its first value by which one has risen: by the median of the
            last 20 steps.
        jumps: how many times the median of the 20 steps before is a jump, if it leads
            to half of the first value or more, and is as unusual as a spike.
    """

    moved: float = 1e-3
    risen: float = 0.5
    jumps: float = 4.5
    name: str = "loss"

    def __call__(self, seen: Seen) -> Iterator[HealthFinding]:
        """One finding, and one more for jumps."""
        known = np.flatnonzero(~np.isnan(seen.losses))
        losses, steps = seen.losses[known], seen.steps[known]
        if np.isinf(losses).any():
            yield HealthFinding(
                rule="nonfinite_loss",
                message="the loss is NaN or infinite.",
                step=int(steps[np.argmax(np.isinf(losses))]),
            )
            return
        # a ring may hold fewer than were seen
        if len(losses) <= FEWEST or steps[-1] + 1 < 2 * FEWEST:
            return
        first = float(seen.state.first_loss)
        spread = float(max(losses.max(), first) - min(losses.min(), first))
        last = float(np.median(losses[-FEWEST:]))
        if spread < self.moved * abs(first):
            yield HealthFinding(
                rule="flat_loss",
                message=(
                    f"the loss has moved by {significant(spread, 1)} in all, from "
                    f"{significant(first, 3)}, in {int(steps[-1]) + 1} steps."
                ),
                step=0,
                value=spread,
                threshold=self.moved * abs(first),
                causes=("gradients that vanish", "a learning rate that is too low"),
                remedies=("a higher learning rate", "look at `vanishing`"),
            )
        elif last - first > self.risen * abs(first):
            yield HealthFinding(
                rule="rising_loss",
                message=(
                    f"the loss began at {significant(first, 3)} and is at "
                    f"{significant(last, 3)}, by the median of the last {FEWEST} steps."
                ),
                step=int(steps[-FEWEST]),
                value=last,
                threshold=first + self.risen * abs(first),
                causes=(
                    "a learning rate that is too high",
                    "a gradient of the wrong sign",
                    "a target that moves, as in GANs and Q-learning",
                ),
                remedies=(
                    "a lower learning rate, with warm-up",
                    "jaxcheck.check_train_step says whether the step descends",
                    "if it is meant to rise, give `update` no `value`",
                ),
            )
        yield from self._jumps(losses, steps, first)

    def _jumps(
        self, losses: Array, steps: Array, first: float
    ) -> Iterator[HealthFinding]:
        if losses.min() <= 0:  # times the usual says nothing
            return
        before = np.lib.stride_tricks.sliding_window_view(losses[:-1], FEWEST)
        now, logs = losses[FEWEST:], np.log(before)
        usual = np.median(logs, axis=1)
        # 1.4826 times the median deviation is the standard deviation of a normal one.
        spread = 1.4826 * np.median(np.abs(logs - usual[:, None]), axis=1)
        above = np.log(now) - usual
        jumps = np.flatnonzero(
            (above > np.log(self.jumps))
            & (above > DEVIATIONS * spread)
            & (now > abs(first) / 2)
        )
        if not jumps.size:
            return
        largest = float(np.exp(above[jumps].max()))
        yield HealthFinding(
            rule="jumping_loss",
            message=(
                f"the loss jumps in {counted(len(jumps), 'step')}, to "
                f"{significant(largest, 2)} times that of the {FEWEST} steps before at "
                "most."
            ),
            step=int(steps[FEWEST + jumps[0]]),
            value=largest,
            threshold=self.jumps,
            causes=("a learning rate near the edge", "an unusual batch"),
            remedies=(
                "a lower learning rate, with warm-up",
                "clip by the global norm, near the usual norm",
                "look at that step's batch",
            ),
        )
