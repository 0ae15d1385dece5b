"""The report of a diagnosis of training: the values only."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

from jaxcheck.errors import CheckFailedError, HealthError
from jaxcheck.reports.values import Report, Verdict


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class HealthFinding:
    """One thing that is wrong with training.

    Attributes:
        rule: name of the rule that found it, e.g. ``"exploding"``.
        message: a sentence with the numbers.
        leaf: path of the leaf, or of the layer of a stacked one, that shows it first or
            most; None for everything together.
        others: paths of the others that show it.
        step: the first step that shows it, from 0; None if that is not known.
        value: the number that decided.
        threshold: what it was held against.
        causes: what it usually comes from, the likeliest first.
        remedies: what to try, in this order.
    """

    rule: str
    message: str
    leaf: str | None = None
    others: tuple[str, ...] = ()
    step: int | None = None
    value: float | None = None
    threshold: float | None = None
    causes: tuple[str, ...] = ()
    remedies: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, repr=False, eq=False)
class HealthReport(Report):
    """The answer to "is training healthy?".

    Attributes:
        verdict: WRONG if a rule found something; CORRECT if none did; NOT_CHECKED
            before the first step.
        findings: what was found, in the order of the rules.
        rules: names of the rules that were asked.
        not_judged: what could not be judged, and why, a sentence each.
        steps: how many steps the monitor has seen.
        rows: how many leaves and layers it watches.
        gradient_norm: of everything, in the last step; NaN if elements of it were not
            finite, None before the first step.
        usual_norm: the usual one; None before there is one.
        update_ratio: ‖u‖/‖p‖ of the last update that was not zero; None without one.
    """

    error_class: ClassVar[type[CheckFailedError]] = HealthError

    verdict: Verdict
    findings: tuple[HealthFinding, ...] = ()
    rules: tuple[str, ...] = ()
    not_judged: tuple[str, ...] = ()
    steps: int = 0
    rows: int = 0
    gradient_norm: float | None = None
    usual_norm: float | None = None
    update_ratio: float | None = None

    def __str__(self) -> str:
        from jaxcheck.training.health_text import as_text

        return as_text(self)

    def __repr__(self) -> str:
        from jaxcheck.training.health_text import as_line

        return as_line(self)
