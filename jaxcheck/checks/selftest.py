"""Would this check have noticed?"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from jaxcheck.checks.asking import ask
from jaxcheck.gradients.examine import begin
from jaxcheck.gradients.judge import LeafOutcome
from jaxcheck.gradients.options import (
    Mode,
    Precision,
    Progress,
    StopGradient,
)
from jaxcheck.gradients.planting import (
    FAULTS_PER_LEAF,
    PlantedFault,
    SelfTestReport,
    plant,
)
from jaxcheck.gradients.report import GradientReport
from jaxcheck.gradients.writing import ReportWriter
from jaxcheck.reports.progress import progress_for
from jaxcheck.reports.values import Verdict


def self_test(
    loss_fn: Callable[..., Any],
    params: Any,
    *args: Any,
    has_aux: bool = False,
    mode: Mode = "auto",
    samples: int | None = None,
    directions: int | None = None,
    precision: Precision = "float64",
    stop_gradient: StopGradient = "frozen",
    rtol: float = 1e-6,
    atol: float = 0.0,
    budget: int | None = None,
    key: Any = None,
    progress: Progress = None,
) -> SelfTestReport:
    """Plant faults in the gradient of ``loss_fn``, and show that each is caught.

    The gradient of each leaf is scaled by a factor that is twice as far from one as
    :func:`jaxcheck.check` says it can detect, flipped in sign, deprived of its largest
    coordinate, and swapped with that of another leaf of the same shape (or reversed);
    each time the leaf is judged again. A fault is caught if the verdict is no longer
    CORRECT.

    Args:
        loss_fn: as for :func:`jaxcheck.check`, like all other arguments.
        params: the parameters.
        *args: further arguments of ``loss_fn``.
        has_aux: whether ``loss_fn`` returns ``(loss, aux)``.
        mode: which scalars are compared.
        samples: coordinates a leaf in mode ``"sampled"``.
        directions: probes a leaf in mode ``"directional"``.
        precision: of the differences.
        stop_gradient: how its output is seen.
        rtol: relative tolerance.
        atol: absolute tolerance.
        budget: number of loss evaluations for the first pass.
        key: a ``jax.random`` key for probes and samples.
        progress: how progress is shown.

    Returns:
        The report: CORRECT if every planted fault was caught.

    Raises:
        InvalidInputError: an argument cannot be used.

    Example:
        >>> import jax.numpy as jnp
        >>> report = self_test(lambda w: jnp.sum(jnp.tanh(w)), jnp.arange(1.0, 4.0))
        >>> report.passed, len(report.faults)
        (True, 4)
    """
    started = time.perf_counter()
    given: dict[str, Any] = {
        "mode": mode,
        "samples": samples,
        "directions": directions,
        "precision": precision,
        "stop_gradient": stop_gradient,
        "rtol": rtol,
        "atol": atol,
        "budget": budget,
    }
    traced, plan, options, call = ask(
        self_test,
        loss_fn,
        params,
        args,
        has_aux=has_aux,
        key=key,
        progress=progress,
        given=given,
    )
    writer = ReportWriter(traced=traced, options=options, call=call, started=started)
    begun = begin(traced, plan, options, writer)
    if isinstance(begun, GradientReport):
        return SelfTestReport(
            verdict=Verdict.INCONCLUSIVE,
            faults=(),
            call=call,
            seconds=time.perf_counter() - started,
        )
    total = FAULTS_PER_LEAF * len(traced.params.differentiable)
    with progress_for(progress, total, "planting faults") as advance:
        verification = begun.verification(plan, options)
        outcomes = [result.outcome for result in verification.run()]
        faults = plant(verification, outcomes, advance)
    return SelfTestReport(
        verdict=_verdict(faults, outcomes),
        faults=tuple(faults),
        call=call,
        seconds=time.perf_counter() - started,
    )


def _verdict(faults: list[PlantedFault], outcomes: list[LeafOutcome]) -> Verdict:
    verdicts = {fault.verdict for fault in faults}
    if Verdict.WRONG in verdicts:
        return Verdict.WRONG
    right = all(outcome.verdict is Verdict.CORRECT for outcome in outcomes)
    return (
        Verdict.CORRECT
        if right and Verdict.CORRECT in verdicts
        else Verdict.INCONCLUSIVE
    )
