"""What hardly moves or does not: and why."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxcheck.reports.numbers import counted, significant
from jaxcheck.training.health import HealthFinding
from jaxcheck.training.monitor import GRADIENT, PARAMETER, UPDATE
from jaxcheck.training.seen import FEWEST, Seen

Array = Any


@dataclasses.dataclass(frozen=True)
class Vanishing:
    """Weights whose gradient is tiny beside those of the others, and that hardly move.

    Biases and scales are left aside: theirs may be zero in theory. So are weights that
    an optimizer moves all the same, as Adam does.

    Attributes:
        below: root mean square over that of the median row.
        moving: update ratio of a row that does move.
        under: a norm that is too small whatever the others are, 1e-6 in classical
            practice; None for none.
    """

    below: float = 1e-4
    moving: float = 1e-6
    under: float | None = None
    name: str = "vanishing"

    def __call__(self, seen: Seen) -> Iterator[HealthFinding]:
        """One finding, the smallest row first."""
        usual = seen.usual(GRADIENT)[:-1]
        weights = (seen.dimensions >= 2) & (seen.state.level.seen[GRADIENT, :-1] > 0)
        if seen.state.step < FEWEST or not weights.any():
            return
        rms = usual / np.sqrt(seen.sizes)
        relative = rms / np.median(rms[weights])
        ratio = seen.state.update_ratio[:-1]
        small = weights & (relative < self.below) & (ratio < self.moving)
        if self.under is not None:
            small |= weights & (usual < self.under)
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
            causes=(
                "activations that saturate, layer after layer",
                "an initialization that is too small",
            ),
            remedies=(
                "ReLU, GELU or ELU in place of sigmoid or tanh",
                "He or Xavier initialization",
                "normalization and residual connections",
                "an optimizer that divides by its moments, such as Adam",
            ),
        )


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
