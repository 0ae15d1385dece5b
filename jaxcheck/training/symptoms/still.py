"""What hardly moves or does not: and why."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxcheck.reports.numbers import counted
from jaxcheck.training.health import HealthFinding
from jaxcheck.training.monitor import GRADIENT, PARAMETER, UPDATE
from jaxcheck.training.seen import FEWEST, Seen

Array = Any


@dataclasses.dataclass(frozen=True)
class ZeroGradient:
    """A gradient that is exactly zero, from the beginning or since some step.

    Attributes:
        steps: how many in a row it takes.
    """

    steps: int = FEWEST
    name: str = "zero_gradient"

    def __call__(self, seen: Seen) -> Iterator[HealthFinding]:
        """One finding for rows that never had one, one for each step of a death."""
        state = seen.state
        run, count = state.zero_run[GRADIENT, :-1], int(state.measured[GRADIENT])
        dead = run >= self.steps
        broken = int(state.first_bad[PARAMETER, -1])
        if broken >= 0:  # a ReLU of NaN passes nothing on
            dead &= count - run < broken
        for since in sorted(set((count - run[dead]).tolist())):
            rows = np.flatnonzero(dead & (count - run == since))
            never = since == 0
            yield HealthFinding(
                rule=self.name,
                message=(
                    "its gradient has been exactly zero in all "
                    f"{counted(count, 'step')}."
                    if never
                    else f"its gradient is exactly zero since step {since}."
                ),
                **seen.naming(rows),
                step=since,
                value=float(count - since),
                threshold=float(self.steps),
                causes=(
                    ("it is not used", "it stands behind a stop_gradient")
                    if never
                    else ("units of a ReLU that are all off", "saturation")
                ),
                remedies=(
                    ("jaxcheck.check says which path is cut",)
                    if never
                    else (
                        "a lower learning rate",
                        "LeakyReLU, ELU or GELU",
                        "a smaller or no negative bias",
                    )
                ),
            )


@dataclasses.dataclass(frozen=True)
class NeverUpdated:
    """Rows with a gradient whose updates are exactly zero, while others move.

    Attributes:
        steps: how many measurements it takes.
    """

    steps: int = FEWEST
    name: str = "never_updated"

    def __call__(self, seen: Seen) -> Iterator[HealthFinding]:
        """One finding."""
        state = seen.state
        count = int(state.measured[UPDATE])
        if count < self.steps:
            return
        still = (state.zero_run[UPDATE, :-1] == count) & (
            state.zero_run[GRADIENT, :-1] < state.measured[GRADIENT]
        )
        if not still.any():
            return
        yield HealthFinding(
            rule=self.name,
            message=(
                f"its updates were exactly zero in all {counted(count, 'step')} that "
                "were measured; its gradient was not."
            ),
            **seen.naming(np.flatnonzero(still)),
            step=0,
            value=float(count),
            threshold=float(self.steps),
            causes=("it is masked or frozen", "a label of optax.partition that is off"),
            remedies=("if that is meant, diagnose(ignore=...)",),
        )


@dataclasses.dataclass(frozen=True)
class LostUpdates:
    """Parameters of low precision that updates no longer move.

    Attributes:
        looks: looks in a row at which most updates were lost.
        coarsest: roundoff of the dtypes that are too fine to be asked.
    """

    looks: int = 3
    coarsest: float = 1e-5
    name: str = "lost_updates"

    def __call__(self, seen: Seen) -> Iterator[HealthFinding]:
        """One finding."""
        state = seen.state
        low = np.array([float(jnp.finfo(d).eps) > self.coarsest for d in seen.dtypes])
        lost = low & (state.lost_looks[:-1] >= self.looks)
        if not lost.any():
            return
        share = state.details.lost_share[:-1]
        rows = np.flatnonzero(lost)
        rows = rows[np.argsort(-share[rows], kind="stable")]
        yield HealthFinding(
            rule=self.name,
            message=(
                f"{share[rows[0]]:.0%} of its updates are lost to rounding: a "
                f"parameter in {seen.dtypes[rows[0]]} plus its update is the parameter."
            ),
            **seen.naming(rows),
            value=float(share[rows[0]]),
            threshold=0.5,
            causes=("updates below half a unit in the last place of the parameters",),
            remedies=(
                "keep parameters in float32 and compute in low precision",
                "stochastic rounding",
            ),
        )
