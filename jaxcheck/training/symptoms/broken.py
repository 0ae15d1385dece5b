"""What is not finite: a gradient, an optimizer, parameters."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np

from jaxcheck.reports.numbers import counted
from jaxcheck.training.health import HealthFinding
from jaxcheck.training.monitor import GRADIENT, PARAMETER, UPDATE
from jaxcheck.training.seen import Seen

Array = Any


@dataclasses.dataclass(frozen=True)
class NonFinite:
    """NaN or infinity in a gradient, in updates where it has none, in parameters."""

    name: str = "nonfinite"

    def __call__(self, seen: Seen) -> Iterator[HealthFinding]:
        """One finding for each of the three stories."""
        gradient, _, param = seen.state.first_bad[:, -1]
        if gradient >= 0:
            yield self._gradient(seen, int(gradient))
        yield from self._optimizer(seen)
        if param >= 0:
            yield self._parameter(seen, int(param))

    def _gradient(self, seen: Seen, step: int) -> HealthFinding:
        rows = self._first(seen, GRADIENT)
        times = counted(int(seen.state.bad_steps[GRADIENT, -1]), "step")
        return HealthFinding(
            rule="nonfinite_gradient",
            message=(
                f"the gradient has NaN or infinity, first in step {step}, in "
                f"{times} so far; there in {len(rows)} of {len(seen.names)} rows first."
            ),
            step=step,
            **seen.naming(rows),
            causes=(
                "a logarithm, root or quotient at its edge",
                "overflow in low precision",
            ),
            remedies=("report.replay(...) goes back to that step and names the line",),
        )

    def _optimizer(self, seen: Seen) -> Iterator[HealthFinding]:
        first, bad = seen.state.first_bad, seen.state.bad_steps
        poisoned = (first[UPDATE] >= 0) & (
            (first[GRADIENT] < 0)
            | (first[UPDATE] < first[GRADIENT])
            | (bad[UPDATE] > bad[GRADIENT])
        )
        if not poisoned[-1]:
            return
        step = int(first[UPDATE, -1])
        rows = np.flatnonzero(poisoned[:-1])
        rows = rows[np.argsort(first[UPDATE, rows], kind="stable")]
        clean = counted(int(bad[UPDATE, -1] - bad[GRADIENT, -1]), "step")
        yield HealthFinding(
            rule="poisoned_optimizer",
            message=(
                f"updates have NaN or infinity, first in step {step}, of which "
                f"{clean} had a gradient without: the state of the optimizer is "
                "poisoned, and one clean gradient does not cure it."
            ),
            step=step,
            **seen.naming(rows),
            causes=("one bad gradient that went into moving averages",),
            remedies=(
                "optax.apply_if_finite or zero_nans before the averages",
                "go on from a checkpoint before that step",
            ),
        )

    def _parameter(self, seen: Seen, step: int) -> HealthFinding:
        return HealthFinding(
            rule="nonfinite_parameter",
            message=(
                f"parameters have NaN or infinity since step {step}: nothing after "
                "that step is of use."
            ),
            step=step,
            **seen.naming(self._first(seen, PARAMETER)),
            causes=("the updates of the step before",),
            remedies=("go on from a checkpoint before that step",),
        )

    @staticmethod
    def _first(seen: Seen, quantity: int) -> Array:
        """The rows that were bad first."""
        first = seen.state.first_bad[quantity, :-1]
        return np.flatnonzero((first >= 0) & (first == first[first >= 0].min()))
