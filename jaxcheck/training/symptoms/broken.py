"""What is not finite: a gradient, an optimizer, parameters, a loss."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np

from jaxcheck.reports.numbers import counted, significant
from jaxcheck.training.health import HealthFinding
from jaxcheck.training.monitor import GRADIENT, PARAMETER, UPDATE
from jaxcheck.training.seen import FEWEST, Seen

Array = Any


@dataclasses.dataclass(frozen=True)
class NonFinite:
    """NaN or infinity in a gradient, in updates where it has none, in parameters."""

    name: str = "nonfinite"

    def __call__(self, seen: Seen) -> Iterator[HealthFinding]:
        """One finding for each of the three stories."""
        state = seen.state
        gradient, update, param = state.first_bad[:, -1]
        if gradient >= 0:
            rows = self._first(seen, GRADIENT)
            times = counted(int(state.bad_steps[GRADIENT, -1]), "step")
            message = (
                f"the gradient has NaN or infinity, first in step {gradient}, in "
                f"{times} so far; there in {len(rows)} of {len(seen.names)} rows first."
            )
            yield self._finding(
                "nonfinite_gradient",
                message,
                int(gradient),
                seen.naming(rows),
                (
                    "a logarithm, root or quotient at its edge",
                    "overflow in low precision",
                ),
                ("jaxcheck.locate at that step's parameters and batch names the line",),
            )
        poisoned = (state.first_bad[UPDATE] >= 0) & (
            (state.first_bad[GRADIENT] < 0)
            | (state.first_bad[UPDATE] < state.first_bad[GRADIENT])
            | (state.bad_steps[UPDATE] > state.bad_steps[GRADIENT])
        )
        if poisoned[-1]:
            rows = np.flatnonzero(poisoned[:-1])
            rows = rows[np.argsort(state.first_bad[UPDATE, rows], kind="stable")]
            clean = state.bad_steps[UPDATE, -1] - state.bad_steps[GRADIENT, -1]
            message = (
                f"updates have NaN or infinity, first in step {update}, of which "
                f"{counted(int(clean), 'step')} had a gradient without: the state of "
                "the optimizer is poisoned, and one clean gradient does not cure it."
            )
            yield self._finding(
                "poisoned_optimizer",
                message,
                int(update),
                seen.naming(rows),
                ("one bad gradient that went into moving averages",),
                (
                    "optax.apply_if_finite or zero_nans before the averages",
                    "go on from a checkpoint before that step",
                ),
            )
        if param >= 0:
            message = (
                f"parameters have NaN or infinity since step {param}: nothing after "
                "that step is of use."
            )
            rows = self._first(seen, PARAMETER)
            yield self._finding(
                "nonfinite_parameter",
                message,
                int(param),
                seen.naming(rows),
                ("the updates of the step before",),
                ("go on from a checkpoint before that step",),
            )

    @staticmethod
    def _first(seen: Seen, quantity: int) -> Array:
        """The rows that were bad first."""
        first = seen.state.first_bad[quantity, :-1]
        return np.flatnonzero((first >= 0) & (first == first[first >= 0].min()))

    @staticmethod
    def _finding(
        rule: str,
        message: str,
        step: int,
        where: dict[str, Any],
        causes: tuple[str, ...],
        remedies: tuple[str, ...],
    ) -> HealthFinding:
        return HealthFinding(
            rule=rule,
            message=message,
            step=step,
            **where,
            causes=causes,
            remedies=remedies,
        )


@dataclasses.dataclass(frozen=True)
class Loss:
    """A loss that is not finite, or that has not moved since the first step.

    Attributes:
        moved: share of its first value within which it has not.
    """

    moved: float = 1e-3
    name: str = "loss"

    def __call__(self, seen: Seen) -> Iterator[HealthFinding]:
        """One finding."""
        known = np.flatnonzero(~np.isnan(seen.losses))
        losses = seen.losses[known]
        if np.isinf(losses).any():
            step = int(seen.steps[known[np.argmax(np.isinf(losses))]])
            yield HealthFinding(
                rule="nonfinite_loss", message="the loss is NaN or infinite.", step=step
            )
            return
        if len(losses) < 2 * FEWEST or seen.steps[0] > 0:
            return
        spread = float(losses.max() - losses.min())
        if spread < self.moved * abs(float(losses[0])):
            yield HealthFinding(
                rule="flat_loss",
                message=(
                    f"the loss has moved by {significant(spread, 1)} in all, from "
                    f"{significant(float(losses[0]), 3)}, in {len(losses)} steps."
                ),
                step=0,
                value=spread,
                threshold=self.moved * abs(float(losses[0])),
                causes=("gradients that vanish", "a learning rate that is too low"),
                remedies=("a higher learning rate", "look at `vanishing`"),
            )
