"""From comparisons to verdicts: what disagrees is escalated, then classified.

A leaf is WRONG only if a difference exceeds its error bar, the difference is stable
over a ladder of steps, and neither autodiff's own noise nor another reading of
stop_gradient explains it. What cannot be decided is INCONCLUSIVE, with its cause.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxcheck.gradients.comparison import Comparison, Lane, resolution_of
from jaxcheck.gradients.ladder import Rungs, Shape
from jaxcheck.gradients.measure import Meter
from jaxcheck.gradients.probes import words_of
from jaxcheck.gradients.program import NativeResult
from jaxcheck.reports.values import Finding, Verdict

# A leaf whose gradient is this small beside the largest leaf's is not asked for digits.
_NEGLIGIBLE = 1e-6
# Comparisons escalated at a time, and at most, for one leaf.
_ROUND = 8
_MOST = 256
# Autodiff's own noise is measured from two jittered gradients; allow for this multiple.
_NOISE_FACTOR = 8.0
# A gradient that moves by more than this share crosses a switch: that is not rounding.
_NOISE_SHARE = 1e-2
# One-sided slopes that differ by more than this share of a gradient are looked at.
_BENT = 1e-2
# A coordinate this many powers of two away from its leaf's scale has its own ladder.
_FAR = 4
# Parameters are jittered by this many units of roundoff.
_JITTER = 4.0


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Tolerances:
    """What may differ: see ``jaxcheck.check``.

    Attributes:
        eps: unit roundoff of one value of the loss.
        rounding: unit roundoff of the gradient under test.
        rtol: relative tolerance.
        atol: absolute tolerance.
    """

    eps: float
    rounding: float
    rtol: float
    atol: float


@dataclasses.dataclass(slots=True, kw_only=True)
class LeafOutcome:
    """What was decided for one leaf.

    Attributes:
        verdict: the verdict.
        comparison: what it is based on.
        reason: why it is not CORRECT.
        findings: what was found on the way.
        wrong: lanes whose disagreement is certain, the worst first.
        negligible: whether the leaf is accepted for being too small to matter, although
            no digit of its gradient could be confirmed.
    """

    verdict: Verdict
    comparison: Comparison
    reason: str | None = None
    findings: list[Finding] = dataclasses.field(default_factory=list[Finding])
    wrong: list[Lane] = dataclasses.field(default_factory=list[Lane])
    negligible: bool = False


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class _Ruling:
    """What one escalated comparison turned out to be."""

    verdict: Verdict
    derivative: float
    bar: float
    kind: Any = None
    message: str = ""


class Judge:
    """Decides leaf by leaf.

    Attributes:
        meter: measures.
        native: the native gradients, to take the reading's noise with.
        tolerances: what may differ.
        gradient: norm of the largest leaf's gradient, per step.
    """

    def __init__(
        self,
        meter: Meter,
        native: NativeResult,
        tolerances: Tolerances,
        *,
        seed: Sequence[int],
        gradient: float,
    ) -> None:
        self.meter = meter
        self.native = native
        self.tolerances = tolerances
        self.gradient = gradient
        self._resolution = resolution_of(tolerances.eps)
        self._seed = seed
        self._jittered: list[Meter] | None = None

    def decide(self, leaf: int, comparison: Comparison) -> LeafOutcome:
        """The verdict for one leaf from its comparisons."""
        outcome = LeafOutcome(verdict=Verdict.CORRECT, comparison=comparison)
        path = self.meter.programs.leaves[leaf].path
        self._settle(outcome, path)
        if outcome.verdict is Verdict.CORRECT and not self._resolved(outcome):
            self._sharpen(outcome)
            self._settle(outcome, path)
        if outcome.verdict is Verdict.CORRECT and not self._resolved(outcome):
            self._unresolved(outcome, path)
        if outcome.verdict is Verdict.CORRECT:
            self._look_for_kinks(outcome, path)
        return outcome

    def _unresolved(self, outcome: LeafOutcome, path: str) -> None:
        """No digit of this gradient can be confirmed: is that worth a verdict?"""
        name = path or "the leaf"
        share = outcome.comparison.resolution()
        largest = outcome.comparison.largest()
        if largest <= _NEGLIGIBLE * self.gradient:
            message = (
                f"the gradient of {name} is at most {largest / self.gradient:.0e} of "
                "the largest leaf's, per relative change of the parameters: too small "
                "beside the round-off of the loss to be confirmed by itself."
            )
            outcome.negligible = True
            remedy = "If this leaf should learn, look for saturated units on its way."
            outcome.findings.append(
                Finding(kind="saturated", leaf=path, message=message, remedy=remedy)
            )
            return
        outcome.verdict = Verdict.INCONCLUSIVE
        outcome.reason = (
            f"noise: the loss resolves this gradient only to {share:.0e} of its size"
        )
        message = (
            f"one value of the loss is uncertain by {self.meter.noise:.1e} (its size "
            f"is {abs(self.meter.at_point):.1e}); differences resolve the gradient of "
            f"{name} only to {share:.0e} of its size."
        )
        remedy = (
            "Make the loss smaller (a mean instead of a sum, no large constant), or "
            "check a less noisy part of it."
        )
        outcome.findings.append(
            Finding(kind="noise", leaf=path, message=message, remedy=remedy)
        )

    # -- disagreements

    def _settle(self, outcome: LeafOutcome, path: str) -> None:
        """Escalate what disagrees, worst first, until it is decided or explained."""
        comparison = outcome.comparison
        examined = 0
        while True:
            bad = self._disagreeing(comparison)
            if not len(bad):
                return
            if examined >= _MOST:
                outcome.verdict = Verdict.INCONCLUSIVE
                outcome.reason = (
                    f"{len(bad)} comparisons disagree after {examined} were explained"
                )
                return
            chosen = [int(k) for k in bad[:_ROUND]]
            examined += len(chosen)
            rulings = self._rule(
                [comparison.lanes[k] for k in chosen], comparison, chosen
            )
            wrong = [
                comparison.lanes[k]
                for k, ruling in zip(chosen, rulings, strict=True)
                if ruling.verdict is Verdict.WRONG
            ]
            self._record(outcome, path, chosen, rulings)
            if wrong:
                outcome.verdict, outcome.wrong = Verdict.WRONG, wrong
                outcome.reason = None
                return
            if outcome.verdict is Verdict.INCONCLUSIVE:
                return

    def _look_for_kinks(self, outcome: LeafOutcome, path: str) -> None:
        """A kink where both numbers are the mean slope shows in the curvature alone."""
        comparison = outcome.comparison
        size = np.maximum(np.abs(comparison.numerical), comparison.size)
        bent = comparison.curvature > np.maximum(_BENT * size, 64 * self.meter.noise)
        chosen = [int(k) for k in np.flatnonzero(bent & ~comparison.settled)[:_ROUND]]
        if not chosen:
            return
        lanes = [comparison.lanes[k] for k in chosen]
        rulings = self._rule(lanes, comparison, chosen)
        on_kinks = [n for n, ruling in enumerate(rulings) if ruling.kind == "kink"]
        kept = [n for n in on_kinks if rulings[n].verdict is Verdict.CORRECT]
        self._record(
            outcome, path, [chosen[n] for n in kept], [rulings[n] for n in kept]
        )

    def _disagreeing(self, comparison: Comparison) -> Any:
        t = self.tolerances
        return comparison.disagreeing(t.rounding, t.rtol, t.atol)

    def _record(
        self, outcome: LeafOutcome, path: str, chosen: list[int], rulings: list[_Ruling]
    ) -> None:
        comparison = outcome.comparison
        for k, ruling in zip(chosen, rulings, strict=True):
            if np.isfinite(ruling.derivative):
                comparison.numerical[k] = ruling.derivative
                comparison.bar[k] = ruling.bar
            comparison.settled[k] = ruling.verdict is Verdict.CORRECT
        kinds = {f.kind for f in outcome.findings}
        for ruling in rulings:
            if ruling.kind is not None and ruling.kind not in kinds:
                kinds.add(ruling.kind)
                outcome.findings.append(
                    Finding(kind=ruling.kind, leaf=path, message=ruling.message)
                )
            if ruling.verdict is Verdict.INCONCLUSIVE:
                outcome.verdict = Verdict.INCONCLUSIVE
                outcome.reason = ruling.message

    def _rule(
        self, lanes: list[Lane], comparison: Comparison, positions: list[int]
    ) -> list[_Ruling]:
        climbed = self._climb(lanes)
        sizes = comparison.size[positions]
        rulings = [
            self._first_opinion(rungs, predicted, float(size))
            for (rungs, predicted), size in zip(climbed, sizes, strict=True)
        ]
        wrong = [k for k, r in enumerate(rulings) if r.verdict is Verdict.WRONG]
        if wrong:
            self._second_opinion(lanes, climbed, rulings, wrong)
        return rulings

    def _climb(self, lanes: list[Lane]) -> list[tuple[Rungs, float]]:
        """A ladder for each lane, in the leaf's steps.

        A single coordinate far from its leaf's scale climbs in steps of its own.
        """
        factors = [self._own_step(lane) for lane in lanes]
        climbed = self.meter.climb(
            [
                lane if factor == 1.0 else dataclasses.replace(lane, relative=True)
                for lane, factor in zip(lanes, factors, strict=True)
            ]
        )
        return [
            (
                dataclasses.replace(
                    rungs,
                    derivative=rungs.derivative / factor,
                    bar=rungs.bar / factor,
                    left=rungs.left / factor,
                    right=rungs.right / factor,
                ),
                predicted / factor,
            )
            for (rungs, predicted), factor in zip(climbed, factors, strict=True)
        ]

    def _own_step(self, lane: Lane) -> float:
        """A coordinate's own step in its leaf's steps, 1 if they are about the same."""
        if lane.probe is not None or lane.relative:
            return 1.0
        own = self.meter.own_step(lane)
        return 1.0 if 2.0**-_FAR < own < 2.0**_FAR else own

    def _allowed(self, derivative: float, bar: float, size: float) -> float:
        t = self.tolerances
        return bar + 8 * t.rounding * size + t.rtol * abs(derivative)

    def _first_opinion(self, rungs: Rungs, predicted: float, size: float) -> _Ruling:
        """Read one ladder against the predicted change."""
        derivative, bar = rungs.derivative, rungs.bar

        def ruling(verdict: Verdict, kind: Any = None, message: str = "") -> _Ruling:
            return _Ruling(
                verdict=verdict,
                derivative=derivative,
                bar=bar,
                kind=kind,
                message=message,
            )

        if rungs.shape is Shape.UNRESOLVED:
            return ruling(Verdict.INCONCLUSIVE, "noise", self._unsettled())
        if rungs.shape is Shape.EDGE:
            return ruling(
                Verdict.INCONCLUSIVE,
                "discontinuity",
                "edge of the domain: the loss is not finite on both sides of the point",
            )
        if rungs.shape is Shape.JUMP:
            return ruling(
                Verdict.INCONCLUSIVE,
                "discontinuity",
                f"discontinuity: the loss jumps by {rungs.jump:.1e} at this point; "
                "there is no derivative to compare",
            )
        difference = abs(derivative - predicted)
        agrees = np.isfinite(predicted) and difference <= self._allowed(
            derivative, bar, size
        )
        if rungs.shape is Shape.KINK:
            low, high = sorted((rungs.left, rungs.right))
            if agrees or low - bar <= predicted <= high + bar:
                # the derivative is the interval; its point next to autodiff counts
                derivative = float(np.clip(predicted, low, high))
                return ruling(
                    Verdict.CORRECT,
                    "kink",
                    "the point is on a kink of the loss; autodiff's value lies between "
                    "the one-sided slopes and is accepted as a subgradient",
                )
        if agrees:
            return ruling(Verdict.CORRECT)
        if not np.isfinite(predicted):
            stable = rungs.stable and np.isfinite(derivative)
            return ruling(
                Verdict.WRONG if stable else Verdict.INCONCLUSIVE,
                "nan_gradient",
                "autodiff gives a gradient that is not finite, although the loss is"
                if stable
                else "neither autodiff nor differences are finite here",
            )
        if not rungs.stable:
            return ruling(Verdict.INCONCLUSIVE, "noise", self._unsettled())
        return ruling(
            Verdict.WRONG,
            "kink" if rungs.shape is Shape.KINK else None,
            "the point is on a kink, and autodiff lies outside its one-sided slopes"
            if rungs.shape is Shape.KINK
            else "",
        )

    def _unsettled(self) -> str:
        return (
            "noise: the differences settle at no step; one value of the loss is "
            f"uncertain by {self.meter.noise:.1e}"
        )

    def _second_opinion(
        self,
        lanes: list[Lane],
        climbed: list[tuple[Rungs, float]],
        rulings: list[_Ruling],
        wrong: list[int],
    ) -> None:
        """Before WRONG is said: autodiff's own noise, and the transparent reading."""
        noise = self._autodiff_noise([lanes[k] for k in wrong])
        for k, own in zip(wrong, noise, strict=True):
            rungs, predicted = climbed[k]
            difference = abs(rungs.derivative - predicted)
            small = own <= _NOISE_SHARE * max(abs(rungs.derivative), abs(predicted))
            if small and 0 < difference <= rungs.bar + _NOISE_FACTOR * own:
                rulings[k] = _Ruling(
                    verdict=Verdict.CORRECT,
                    derivative=rungs.derivative,
                    bar=max(rungs.bar, difference),
                    kind="noise",
                    message=(
                        "autodiff's own rounding explains the difference: its gradient "
                        f"changes by {own:.1e} (per step) when the parameters move by "
                        f"{_JITTER:.0f} units of roundoff"
                    ),
                )
        if not self.meter.programs.sites or self.meter.transparent:
            return
        left = [k for k in wrong if rulings[k].verdict is not Verdict.CORRECT]
        if not left:
            return
        # a gradient that agrees with the loss as a whole is right, wherever a
        # library's stop_gradient stands
        through = self.meter.transparently().climb([lanes[k] for k in left])
        for k, (rungs, predicted) in zip(left, through, strict=True):
            again = self._first_opinion(rungs, predicted, 0.0)
            if again.verdict is Verdict.CORRECT and again.kind is None:
                rulings[k] = again

    def _autodiff_noise(self, lanes: list[Lane]) -> list[float]:
        """How much the predicted changes move with a few units of roundoff."""
        if self._jittered is None:
            programs = self.meter.programs
            self._jittered = [
                self.meter.with_reading(
                    programs.read(
                        self.native,
                        jitter=_JITTER,
                        words=words_of(self._seed, 1_000_003 + k),
                    )
                )
                for k in range(2)
            ]
        here = self.meter.predictions(lanes)
        there = [meter.predictions(lanes) for meter in self._jittered]
        with np.errstate(invalid="ignore"):
            moved = np.max(np.abs(np.array(there) - here), axis=0)
        return [float(x) if np.isfinite(x) else 0.0 for x in moved]

    # -- resolution

    def _resolved(self, outcome: LeafOutcome) -> bool:
        comparison = outcome.comparison
        if not len(comparison) or comparison.resolution() <= self._resolution:
            return True
        if not comparison.is_zero(self.tolerances.rounding):
            return False
        # zero: the bar must be small beside what the loss is, or would become, if the
        # parameters changed by their own size
        cube = self.tolerances.eps ** (1.0 / 3.0)
        bar = float(np.sqrt(np.mean(comparison.bar**2))) / cube
        bent = float(np.max(comparison.curvature)) / cube**2
        return bar <= self._resolution * max(abs(self.meter.at_point), bent)

    def _sharpen(self, outcome: LeafOutcome) -> None:
        """Measure again, with other steps, what is not resolved."""
        comparison = outcome.comparison
        if comparison.method != "directional":
            self._in_own_steps(comparison)
            if self._resolved(outcome):
                return
        worst = np.argsort(-comparison.bar, kind="stable")[:_ROUND]
        climbed = self.meter.climb([comparison.lanes[int(k)] for k in worst])
        exponents = [r.exponent for r, _ in climbed if np.isfinite(r.bar)]
        scales = [2.0 ** float(np.median(exponents).round())] if exponents else []
        # a leaf of tiny values may be an offset of something of scale one
        scales.append(self.meter.unit_step(comparison.lanes[0]))
        for scale in scales:
            again = self.meter.compare(comparison.method, comparison.lanes, scale)
            if float(np.sum(again.bar**2)) < float(np.sum(outcome.comparison.bar**2)):
                again.settled = comparison.settled
                outcome.comparison = again

    def _in_own_steps(self, comparison: Comparison) -> None:
        """Coordinates far from their leaf's scale, each with its own step."""
        far = [
            (k, factor)
            for k, lane in enumerate(comparison.lanes)
            if (factor := self._own_step(lane)) != 1.0
        ]
        if not far:
            return
        lanes = [comparison.lanes[k] for k, _ in far]
        relative = [dataclasses.replace(lane, relative=True) for lane in lanes]
        again = self.meter.compare(comparison.method, relative)
        for n, (k, factor) in enumerate(far):
            if again.bar[n] / factor < comparison.bar[k]:
                comparison.numerical[k] = again.numerical[n] / factor
                comparison.bar[k] = again.bar[n] / factor
