"""The report of a derivative check: what was asked of a function, question by question.

The values only; how they are drawn is in ``jaxcheck.derivatives.text``.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

from jaxcheck.errors import CheckFailedError, GradientError
from jaxcheck.gradients.report import LeafReport
from jaxcheck.reports.values import Finding, Report, Verdict


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class DerivativeCheck:
    """One question about a function, and its answer.

    Attributes:
        question: ``"fwd"`` or ``"rev"`` for a derivative against differences, at higher
            orders ``"fwd over rev"`` and so on, outermost first; or an identity:
            ``"adjoint"``, ``"batched"``, ``"batched forward"``, ``"zeros"``,
            ``"compiled"``, ``"types"``; or ``"second opinion"``.
        order: order of the derivative.
        output: path of the output leaf, or None for all of them together.
        verdict: the answer.
        relative_error: of the derivative, over all input leaves; None if not measured.
        leaves: one report for each input leaf, for a comparison with differences.
        reason: why it is not CORRECT, or was not checked.
    """

    question: str
    order: int = 1
    output: str | None = None
    verdict: Verdict
    relative_error: float | None = None
    leaves: tuple[LeafReport, ...] = ()
    reason: str | None = None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, repr=False, eq=False)
class DerivativeReport(Report):
    """The answer to "are the derivatives of this function right?".

    Attributes:
        verdict: WRONG if an answer is, else INCONCLUSIVE if one is, else CORRECT;
            NOT_CHECKED if there was nothing that could be checked.
        checks: the questions, in the order in which they were asked.
        leaves: for each leaf of the primals the worst report of all questions.
        findings: what else a reader should know.
        evaluations: number of evaluations spent.
        seconds: wall time of the whole check.
        precision: ``"float64"`` or ``"native"``.
        call: the call to reproduce this report, as text.
        dtypes: the floating dtypes of the primals.
        key_data: the words of the random key, to reproduce the probes.
        versions: pairs (package, version).
        device: where it ran.
    """

    error_class: ClassVar[type[CheckFailedError]] = GradientError

    verdict: Verdict
    checks: tuple[DerivativeCheck, ...]
    leaves: tuple[LeafReport, ...]
    findings: tuple[Finding, ...] = ()
    evaluations: int = 0
    seconds: float = 0.0
    precision: str = "float64"
    call: str = "jaxcheck.check_derivatives(fn, primals)"
    dtypes: tuple[str, ...] = ()
    key_data: tuple[int, ...] = ()
    versions: tuple[tuple[str, str], ...] = ()
    device: str = "cpu"

    def __str__(self) -> str:
        from jaxcheck.derivatives.text import as_text

        return as_text(self)

    def __repr__(self) -> str:
        from jaxcheck.derivatives.text import as_line

        return as_line(self)
