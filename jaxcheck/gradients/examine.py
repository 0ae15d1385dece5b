"""One traced loss, examined: from the program to the report.

The way through this room: run natively, read in float64, measure, judge, write down.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

from jaxcheck.errors import InvalidInputError
from jaxcheck.gradients.comparison import Tolerances
from jaxcheck.gradients.findings import (
    detached_findings,
    nondeterminism,
    switch_findings,
)
from jaxcheck.gradients.measure import Meter
from jaxcheck.gradients.options import Options
from jaxcheck.gradients.plan import Plan
from jaxcheck.gradients.program import NativeResult, Programs, ReadingResult
from jaxcheck.gradients.report import GradientReport
from jaxcheck.gradients.verify import LeafResult, Verification
from jaxcheck.gradients.writing import ReportWriter
from jaxcheck.jaxprs.trace import TracedLoss, in_float64
from jaxcheck.reports.progress import progress_for
from jaxcheck.reports.values import Finding
from jaxcheck.trees import Leaf, lies_under

# Two tracings of one loss give the same value up to this, or they are two losses.
_SAME = 1e-4


@dataclasses.dataclass(frozen=True, kw_only=True)
class Examination:
    """A loss that has been run and read, ready to be measured.

    Attributes:
        programs: the compiled programs.
        native: what training computes.
        reading: the float64 reading and its gradient.
        unread: what could not be read in float64.
    """

    programs: Programs
    native: NativeResult
    reading: ReadingResult
    unread: tuple[Finding, ...]

    def verification(
        self,
        plan: Plan,
        options: Options,
        advance: Callable[[int], None] = lambda n: None,
    ) -> Verification:
        """The comparison of this gradient with differences."""
        meter = Meter(
            self.programs,
            self.reading,
            seed=options.seed,
            transparent=options.stop_gradient == "transparent",
            advance=advance,
        )
        return Verification(
            meter,
            self.native,
            plan,
            Tolerances(
                eps=self.programs.eps,
                rounding=self.programs.gradient_eps,
                rtol=options.rtol,
                atol=options.atol,
            ),
            seed=options.seed,
            budget=options.budget,
            traced_again=functools.partial(self._in_float64, plan, options),
        )

    def _in_float64(self, plan: Plan, options: Options) -> Verification | None:
        """The same comparison of the loss traced in float64, if it is the same loss."""
        traced = self.programs.traced
        dtypes = {leaf.dtype for leaf in self.programs.leaves}
        if self.programs.native_precision or dtypes <= {"float64", "complex128"}:
            return None
        try:
            wide = in_float64(traced)
            programs = Programs(wide, precision="float64", lanes=plan.evaluations)
            native = programs.native()
            reading = programs.read(native)
        except Exception:  # the loss insists on its dtypes: there is no such reading
            return None
        if not abs(reading.loss - self.reading.loss) <= _SAME * abs(self.reading.loss):
            return None
        again = Examination(
            programs=programs, native=native, reading=reading, unread=()
        )
        return again.verification(plan, options)


class Examined(NamedTuple):
    """A loss whose gradient has been judged.

    Attributes:
        report: the verdict.
        verification: how it came about; None if there was nothing to compare.
        results: what was decided for each leaf.
    """

    report: GradientReport
    verification: Verification | None = None
    results: Sequence[LeafResult] = ()


def begin(
    traced: TracedLoss, plan: Plan, options: Options, writer: ReportWriter
) -> Examination | GradientReport:
    """Run and read a loss; a report at once where there is nothing to compare.

    Raises:
        InvalidInputError: parameters are not finite.
    """
    programs = Programs(
        traced,
        precision=options.precision,
        lanes=max(plan.evaluations, 1),
        coordinates=plan.method != "directional",
    )
    programs, unread = _readable(programs)
    programs.start_gradients()
    native = programs.native()
    _require_finite(native, programs.leaves)
    if (finding := nondeterminism(traced, native)) is not None:
        return writer.unjudged(finding, programs, native, "the loss is not a function")
    programs.start_evaluation()
    reading = programs.read(native)
    if not (math.isfinite(native.loss) and math.isfinite(reading.loss)):
        finding = Finding(
            kind="nan_loss",
            message=(
                f"the loss is {native.loss} ({reading.loss} in float64): it has no "
                "derivative that could be compared."
            ),
        )
        return writer.unjudged(finding, programs, native, "the loss is not finite")
    return Examination(
        programs=programs, native=native, reading=reading, unread=tuple(unread)
    )


def examine(
    traced: TracedLoss, plan: Plan, options: Options, *, call: str, started: float
) -> Examined:
    """Compare the gradient of a traced loss with differences, and write the report.

    Args:
        traced: the loss.
        plan: what to compare first.
        options: how to compare.
        call: the user's call, as text.
        started: when it began, by ``time.perf_counter``.

    Raises:
        InvalidInputError: parameters are not finite.
    """
    writer = ReportWriter(traced=traced, options=options, call=call, started=started)
    begun = begin(traced, plan, options, writer)
    if isinstance(begun, GradientReport):
        return Examined(begun)
    shown = progress_for(options.progress, plan.evaluations, "checking gradients")
    with shown as advance:
        verification = begun.verification(plan, options, advance)
        results = verification.run()
        outcomes = [result.outcome for result in results]
        intended = [
            any(lies_under(leaf.path, root) for root in options.expect_zero)
            for leaf in begun.programs.leaves
        ]
        detached = detached_findings(verification.meter, outcomes, intended)
        switches = switch_findings(verification.meter, outcomes)
    others = [*detached, *switches, *begun.unread]
    report = writer.judged(verification, results, begun.native, begun.reading, others)
    return Examined(report, verification, results)


def _readable(programs: Programs) -> tuple[Programs, list[Finding]]:
    """The programs, in the loss's own dtypes where there is no float64 reading."""
    try:
        _ = programs.inlined
    except Exception as error:
        message = (
            f"the loss has no float64 reading ({type(error).__name__}): differences "
            "were taken in its own dtypes, with a step and error bars to fit."
        )
        finding = Finding(kind="lowered_precision", message=message)
        return programs.natively(), [finding]
    return programs, []


def _require_finite(native: NativeResult, leaves: Sequence[Leaf]) -> None:
    for leaf, bad in zip(leaves, native.bad_params, strict=True):
        if bad:
            raise InvalidInputError(
                f"`check(params=...)` must be finite; {bad} of {leaf.size} elements of "
                f"{leaf.path or 'the leaf'} are NaN or infinite. Check earlier "
                "parameters, before they diverged."
            )
