"""The report of a check of updates: the values only."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

from jaxcheck.errors import CheckFailedError, UpdateError
from jaxcheck.reports.values import Finding, Report, Verdict


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, repr=False, eq=False)
class UpdateReport(Report):
    """The answer to "does the optimizer do what it says?".

    Attributes:
        verdict: WRONG if an update or a field of the state is not the rule's, or is NaN
            or infinite; CORRECT if none is.
        first_wrong_step: number of the first step that is off, from 0; None if none is.
        leaf: path of the leaf that is furthest off there.
        state_field: the field of the state that is off there, e.g. ``"mu"``.
        stage: the stage of the chain that is to blame, e.g. ``"[0] ScaleByAdamState"``.
        relative_error: of the updates, element by element, the largest; in float64.
        tolerance: what it may be; elements that are off by a few units in the last
            place of their parameter may be further off.
        native_error: the same in the dtypes of the parameters; None if not measured.
        native_tolerance: what rounding explains there, before it is measured.
        matches: the variant of the rule that does match, as a text that completes "it
            matches the rule ..."; None if none does, or nothing is wrong.
        properties: pairs of a property of the updates and what was found.
        findings: what else a reader should know.
        rule: the rule, as text; None if there was none.
        compared: names of the fields of the state that were compared.
        not_compared: names of fields of the rule that this state has not.
        survived: which of NaN and infinity the rule survives in a gradient, so that
            such gradients were among those of a further run.
        steps: how many were taken.
        elements: number of scalars in the parameters.
        elements_compared: how many of them were held against the rule.
        carried: leaves that are not floating and were not checked, with their dtypes.
        dtypes: the floating dtypes of the parameters, e.g. ``("float32",)``.
        key_data: the words of the random key, to reproduce the gradients.
        versions: pairs (package, version).
    """

    error_class: ClassVar[type[CheckFailedError]] = UpdateError

    verdict: Verdict
    first_wrong_step: int | None = None
    leaf: str | None = None
    state_field: str | None = None
    stage: str | None = None
    relative_error: float | None = None
    tolerance: float | None = None
    native_error: float | None = None
    native_tolerance: float | None = None
    matches: str | None = None
    properties: tuple[tuple[str, str], ...] = ()
    findings: tuple[Finding, ...] = ()
    rule: str | None = None
    compared: tuple[str, ...] = ()
    not_compared: tuple[str, ...] = ()
    survived: tuple[str, ...] = ()
    steps: int = 0
    elements: int = 0
    elements_compared: int = 0
    carried: tuple[str, ...] = ()
    dtypes: tuple[str, ...] = ()
    key_data: tuple[int, ...] = ()
    versions: tuple[tuple[str, str], ...] = ()

    def __str__(self) -> str:
        from jaxcheck.updates.text import as_text

        return as_text(self)

    def __repr__(self) -> str:
        from jaxcheck.updates.text import as_line

        return as_line(self)
