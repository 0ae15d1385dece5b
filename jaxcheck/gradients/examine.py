"""One traced loss, examined: from the program to the report.

The way through this room: run natively, read in float64, measure, judge, write down.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from jaxcheck.errors import InvalidInputError
from jaxcheck.gradients.comparison import Tolerances
from jaxcheck.gradients.findings import detached_findings, nondeterminism
from jaxcheck.gradients.measure import Meter
from jaxcheck.gradients.options import Options
from jaxcheck.gradients.plan import Plan
from jaxcheck.gradients.program import NativeResult, Programs
from jaxcheck.gradients.report import GradientReport
from jaxcheck.gradients.verify import Verification
from jaxcheck.gradients.writing import ReportWriter
from jaxcheck.jaxprs.trace import TracedLoss
from jaxcheck.reports.progress import progress_for
from jaxcheck.reports.values import Finding
from jaxcheck.trees import Leaf


def examine(
    traced: TracedLoss, plan: Plan, options: Options, *, call: str, started: float
) -> GradientReport:
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
    programs = Programs(
        traced,
        precision=options.precision,
        lanes=max(plan.evaluations, 1),
        coordinates=plan.method != "directional",
    )
    native = programs.native()
    _require_finite(native, programs.leaves)
    if (finding := nondeterminism(traced, native)) is not None:
        return writer.unjudged(finding, programs, native, "the loss is not a function")
    programs, unread = _readable(programs)
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
    shown = progress_for(options.progress, plan.evaluations, "checking gradients")
    with shown as advance:
        meter = Meter(
            programs,
            reading,
            seed=options.seed,
            transparent=options.stop_gradient == "transparent",
            advance=advance,
        )
        verification = Verification(
            meter,
            native,
            reading,
            plan,
            Tolerances(
                eps=programs.eps,
                rounding=programs.gradient_eps,
                rtol=options.rtol,
                atol=options.atol,
            ),
            seed=options.seed,
            budget=options.budget,
        )
        results = verification.run()
        detached = detached_findings(meter, [r.outcome for r in results])
    return writer.judged(verification, results, native, reading, [*detached, *unread])


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
