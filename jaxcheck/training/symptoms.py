"""The rules of health: what is asked of what a monitor has seen.

A rule is a function of ``Seen`` that yields findings; the ones here are values with
thresholds, so that ``dataclasses.replace`` gives stricter ones, and a user's own
function may stand among them. By default thresholds are free of scale: what is usual
for a model is learned from the model.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxcheck.reports.numbers import counted, significant
from jaxcheck.training.health import HealthFinding
from jaxcheck.training.monitor import QUANTITIES
from jaxcheck.training.seen import Seen

Array = Any
Rule = Callable[[Seen], Iterable[HealthFinding]]

_GRADIENT, _UPDATE, _PARAMETER = range(3)
# Measurements without which nothing is said of what is usual.
FEWEST = 20


def _shown(seen: Seen, rows: Array) -> dict[str, Any]:
    """The leaf of a finding and the others, from row numbers; the first leads."""
    names = [seen.names[k] for k in rows if k < len(seen.names)]
    return {"leaf": names[0] if names else None, "others": tuple(names[1:])}


@dataclasses.dataclass(frozen=True)
class NonFinite:
    """NaN or infinity in a gradient, in updates where it has none, in parameters."""

    name: str = "nonfinite"

    def __call__(self, seen: Seen) -> Iterator[HealthFinding]:
        """One finding for each of the three stories."""
        state = seen.state
        gradient, update, param = state.first_bad[:, -1]
        if gradient >= 0:
            rows = self._first(seen, _GRADIENT)
            times = counted(int(state.bad_steps[_GRADIENT, -1]), "step")
            message = (
                f"the gradient has NaN or infinity, first in step {gradient}, in "
                f"{times} so far; there in {len(rows)} of {len(seen.names)} rows first."
            )
            yield self._finding(
                "nonfinite_gradient",
                message,
                int(gradient),
                _shown(seen, rows),
                (
                    "a logarithm, root or quotient at its edge",
                    "overflow in low precision",
                ),
                ("jaxcheck.locate at that step's parameters and batch names the line",),
            )
        poisoned = (state.first_bad[_UPDATE] >= 0) & (
            (state.first_bad[_GRADIENT] < 0)
            | (state.first_bad[_UPDATE] < state.first_bad[_GRADIENT])
            | (state.bad_steps[_UPDATE] > state.bad_steps[_GRADIENT])
        )
        if poisoned[-1]:
            rows = np.flatnonzero(poisoned[:-1])
            rows = rows[np.argsort(state.first_bad[_UPDATE, rows], kind="stable")]
            clean = state.bad_steps[_UPDATE, -1] - state.bad_steps[_GRADIENT, -1]
            message = (
                f"updates have NaN or infinity, first in step {update}, of which "
                f"{counted(int(clean), 'step')} had a gradient without: the state of "
                "the optimizer is poisoned, and one clean gradient does not cure it."
            )
            yield self._finding(
                "poisoned_optimizer",
                message,
                int(update),
                _shown(seen, rows),
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
            rows = self._first(seen, _PARAMETER)
            yield self._finding(
                "nonfinite_parameter",
                message,
                int(param),
                _shown(seen, rows),
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
        for quantity in (_GRADIENT, _UPDATE):
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
                **_shown(seen, rows[:1]),
                step=step,
                value=largest,
                threshold=6.0,
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
        for quantity in (_GRADIENT, _PARAMETER):
            first = level.first_grown[quantity]
            if first[-1] >= 0:
                rows = np.flatnonzero(first[:-1] >= 0)
                rows = rows[np.argsort(first[rows], kind="stable")]
                growth = math.exp(
                    float(level.mean[quantity, -1] - level.start[quantity, -1])
                )
                yield self._finding(
                    f"the norm of the {QUANTITIES[quantity]} stays at more than 100 "
                    f"times what it was in the first 20 steps; it is usually "
                    f"{growth:.0f} times that now.",
                    rows,
                    int(first[-1]),
                    growth,
                    100.0,
                    seen,
                )
        norms = seen.norms[:, _GRADIENT, -1]
        if self.above is not None and (norms > self.above).any():
            at = int(np.flatnonzero(norms > self.above)[0])
            yield self._finding(
                f"the norm of the gradient is {significant(float(norms[at]), 2)}.",
                np.argsort(-seen.norms[at, _GRADIENT, :-1])[:1],
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
            **_shown(seen, rows),
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
        usual = seen.usual(_GRADIENT)[:-1]
        weights = (seen.dimensions >= 2) & (seen.state.level.seen[_GRADIENT, :-1] > 0)
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
            **_shown(seen, rows),
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
        run, count = state.zero_run[_GRADIENT, :-1], int(state.measured[_GRADIENT])
        dead = run >= self.steps
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
                **_shown(seen, rows),
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
        count = int(state.measured[_UPDATE])
        if count < self.steps:
            return
        still = (state.zero_run[_UPDATE, :-1] == count) & (
            state.zero_run[_GRADIENT, :-1] < state.measured[_GRADIENT]
        )
        if not still.any():
            return
        yield HealthFinding(
            rule=self.name,
            message=(
                f"its updates were exactly zero in all {counted(count, 'step')} that "
                "were measured; its gradient was not."
            ),
            **_shown(seen, np.flatnonzero(still)),
            step=0,
            value=float(count),
            threshold=float(self.steps),
            causes=("it is masked or frozen", "a label of optax.partition that is off"),
            remedies=("if that is meant, diagnose(ignore=...)",),
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
        update, param = seen.norms[:, _UPDATE, :-1], seen.norms[:, _PARAMETER, :-1]
        known = (update > 0) & (param > 0)
        if known.any(axis=1).sum() < FEWEST:
            return
        ratio = np.where(known, update / np.where(known, param, 1), np.nan)
        enough = (known.sum(axis=0) >= FEWEST) & (seen.dimensions >= 2)
        median = np.full(len(seen.names), np.nan)
        median[enough] = np.nanmedian(ratio[:, enough], axis=0)
        rows = np.flatnonzero(median > self.above)
        if not rows.size:
            return
        rows = rows[np.argsort(-median[rows])]
        yield HealthFinding(
            rule=self.name,
            message=(
                f"it moves by {significant(float(median[rows[0]]), 2)} of its size in "
                "a step, by the median of the last steps; about 1e-3 is usual."
            ),
            **_shown(seen, rows),
            step=int(seen.steps[0]),
            value=float(median[rows[0]]),
            threshold=self.above,
            causes=("a learning rate that is too high",),
            remedies=("a lower learning rate, with warm-up",),
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
            **_shown(seen, rows),
            value=float(share[rows[0]]),
            threshold=0.5,
            causes=("updates below half a unit in the last place of the parameters",),
            remedies=(
                "keep parameters in float32 and compute in low precision",
                "stochastic rounding",
            ),
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
        usual = float(seen.usual(_GRADIENT)[-1])
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
                rule="nonfinite_loss", message="the loss is infinite.", step=step
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


HEALTH_RULES: tuple[Rule, ...] = (
    NonFinite(),
    Exploding(),
    Spike(),
    Vanishing(),
    ZeroGradient(),
    NeverUpdated(),
    UpdateRatio(),
    LostUpdates(),
    AlwaysClipped(),
    Loss(),
)


def name_of(rule: Rule) -> str:
    """What a rule is called in a report."""
    return str(
        getattr(rule, "name", None) or getattr(rule, "__name__", type(rule).__name__)
    )
