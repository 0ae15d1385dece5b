"""A report of updates as people read it. Only says what the report holds."""

from __future__ import annotations

from collections.abc import Iterator
from typing import IO

from jaxcheck.gradients.text import TONES, finding_paragraphs, labelled
from jaxcheck.reports.numbers import counted, significant
from jaxcheck.reports.tables import (
    Blank,
    Block,
    Headline,
    Row,
    Span,
    Table,
    plain_text,
    print_blocks,
)
from jaxcheck.reports.values import Verdict
from jaxcheck.updates.report import UpdateReport


def as_text(report: UpdateReport) -> str:
    """The whole report in plain text, at most 100 columns wide where words allow it."""
    return plain_text(blocks(report))


def print_report(report: UpdateReport, file: IO[str] | None = None) -> None:
    """Print the whole report, in color if ``file`` (standard output) is a terminal."""
    print_blocks(blocks(report), file)


def as_line(report: UpdateReport) -> str:
    """The report in one line, for ``repr``."""
    return f"<UpdateReport: {headline(report)}>"


def blocks(report: UpdateReport) -> Iterator[Block]:
    """The report, part by part."""
    head = Span(f"jaxcheck: {headline(report)}", TONES[report.verdict])
    yield Headline(head, Span(context(report), "quiet"))
    if report.properties:
        yield Blank()
        rows = [Row((Span(name), Span(text))) for name, text in report.properties]
        yield Table(("property", "found"), tuple(rows))
    if report.findings:
        yield Blank()
        yield from finding_paragraphs(report.findings)
    yield Blank()
    yield from closing(report)


def headline(report: UpdateReport) -> str:
    """The verdict, e.g. ``the updates are those of adam(learning_rate=0.001)``."""
    if report.rule is None:
        odd = counted(len(report.findings), "finding")
        passed = "nothing is odd about these updates; no rule was given"
        return passed if report.passed else f"these updates are odd: {odd}"
    if report.verdict is Verdict.CORRECT:
        return f"the updates are those of {report.rule}"
    if all(finding.kind == "nan_update" for finding in report.findings):
        return "the updates are not finite"
    return f"the updates are not those of {report.rule}"


def context(report: UpdateReport) -> str:
    """What was asked."""
    dtypes = ", ".join(report.dtypes)
    wide = set(report.dtypes) <= {"float64", "complex128"}
    checked = "" if wide else ", checked in float64"
    return f"{counted(report.steps, 'step')} · {dtypes}{checked}"


def closing(report: UpdateReport) -> Iterator[Block]:
    """Numbers and what was compared."""
    pairs = [
        ("Relative error:", report.relative_error, report.tolerance),
        ("In their own dtypes:", report.native_error, report.native_tolerance),
    ]
    for label, error, tolerance in pairs:
        if error is not None and tolerance is not None:
            numbers = significant(error, 2), significant(tolerance, 1)
            yield labelled(label, "{} at most (tolerance {})".format(*numbers))
    if report.rule is not None:
        told = ["updates"]
        if report.compared:
            told.append("of the state " + ", ".join(report.compared))
        if report.survived:
            told.append(f"with {' and '.join(report.survived)} in gradients too")
        yield labelled("Compared:", "; ".join(told))
    if report.rule is not None and report.elements_compared < report.elements:
        left = report.elements - report.elements_compared
        what = f"{left:,} of {report.elements:,} elements; the rule treats each alike"
        yield labelled("Not checked:", what)
    if report.not_compared:
        yield labelled("Not checked:", f"{', '.join(report.not_compared)} of the state")
    if report.carried:
        yield labelled("Not checked:", ", ".join(report.carried))
    versions = ", ".join(f"{name} {version}" for name, version in report.versions)
    yield labelled("Versions:", versions)
