"""A derivative report as people read it: one row a question, the numbers below.

Only says what the report holds; decides nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import IO

from jaxcheck.derivatives.report import DerivativeCheck, DerivativeReport
from jaxcheck.gradients.text import (
    TONES,
    error_of,
    finding_paragraphs,
    key_argument,
    labelled,
    leaf_notes,
    loss_call,
    name_of,
)
from jaxcheck.reports.numbers import counted, duration, significant
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

NAMES = {
    "fwd": "forward (jvp)",
    "rev": "reverse (vjp)",
    "adjoint": "forward is the adjoint of reverse",
    "batched": "vmap of the pullback is a loop over it",
    "batched forward": "vmap of the pushforward is a loop over it",
    "zeros": "zero cotangents, symbolic or not",
    "compiled": "compiled as operation by operation",
    "types": "shapes and dtypes",
}


def as_text(report: DerivativeReport) -> str:
    """The whole report in plain text, at most 100 columns wide where words allow it."""
    return plain_text(blocks(report))


def print_report(report: DerivativeReport, file: IO[str] | None = None) -> None:
    """Print the whole report, in color if ``file`` (standard output) is a terminal."""
    print_blocks(blocks(report), file)


def as_line(report: DerivativeReport) -> str:
    """The report in one line, for ``repr``."""
    return f"<DerivativeReport: {headline(report)}>"


def blocks(report: DerivativeReport) -> Iterator[Block]:
    """The report, part by part."""
    head = Span(f"jaxcheck: {headline(report)}", TONES[report.verdict])
    yield Headline(head, Span(context(report), "quiet"))
    rows = [
        row(check)
        for check in report.checks
        if check.verdict is not Verdict.NOT_CHECKED
    ]
    if rows:
        yield Blank()
        yield Table(("derivative", "output", "relative error", "verdict"), tuple(rows))
    if report.findings:
        yield Blank()
        yield from finding_paragraphs(report.findings)
    yield Blank()
    if omitted := not_checked(report):
        yield labelled("Not checked:", omitted)
    yield labelled("Reproduce:", key_argument(report.call, report.key_data))
    evaluations = counted(report.evaluations, "evaluation")
    yield labelled("Cost:", f"{evaluations}, {duration(report.seconds)}")
    if report.versions and not report.passed:
        yield labelled("Versions:", ", ".join(" ".join(v) for v in report.versions))


def headline(report: DerivativeReport) -> str:
    """The verdict and the count, e.g. ``2 of 7 questions are answered wrong``."""
    asked = [c for c in report.checks if c.verdict is not Verdict.NOT_CHECKED]
    wrong = sum(c.verdict is Verdict.WRONG for c in asked)
    undecided = sum(c.verdict is Verdict.INCONCLUSIVE for c in asked)
    if not asked:
        return "not checked: no derivative could be computed"
    checks = counted(len(asked), "check")
    if report.verdict is Verdict.CORRECT:
        return f"the derivatives are correct, {checks} passed"
    if wrong:
        rest = f", {undecided} inconclusive" if undecided else ""
        return f"a derivative is wrong, {wrong} of {checks} failed{rest}"
    return f"inconclusive: {undecided} of {checks} could not be decided"


def context(report: DerivativeReport) -> str:
    """What was asked: the call, the dtypes, and where it ran."""
    dtypes = " and ".join(report.dtypes)
    return (
        f"{loss_call(report.call)} · {dtypes}, checked in {report.precision} · "
        f"{report.device}"
    )


def row(check: DerivativeCheck) -> Row:
    """One question, and below it what is wrong with which input."""
    name = " over ".join(part for part in check.question.split(" over "))
    cells = (
        Span(NAMES.get(name, name)),
        Span("" if check.output is None else output_name(check.output)),
        Span(error_text(check)),
        Span(check.verdict.value, TONES[check.verdict]),
    )
    return Row(cells, tuple(notes(check)))


def error_text(check: DerivativeCheck) -> str:
    """The error of the input that is worst, or of the identity."""
    if check.leaves:
        worst = max(check.leaves, key=lambda leaf: leaf.relative_error or 0.0)
        return error_of(worst)
    if check.relative_error is None:
        return ""
    return significant(check.relative_error, 2)


def notes(check: DerivativeCheck) -> Iterator[Span]:
    """What stands below the row of a question."""
    if check.verdict is Verdict.CORRECT:
        return
    for leaf in check.leaves:
        if leaf.verdict in (Verdict.WRONG, Verdict.INCONCLUSIVE):
            yield Span(f"by {name_of(leaf.path)}: {error_of(leaf)}", "strong")
            yield from leaf_notes(leaf)
    if check.reason and not check.leaves:
        yield Span(check.reason)


def not_checked(report: DerivativeReport) -> str:
    """What has no answer, and why."""
    groups: dict[str | None, list[str]] = {}
    for check in report.checks:
        if check.verdict is Verdict.NOT_CHECKED:
            of = "" if check.output is None else f" of {output_name(check.output)}"
            name = NAMES.get(check.question, check.question)
            groups.setdefault(check.reason, []).append(f"{name}{of}")
    for leaf in report.leaves:
        if leaf.verdict is Verdict.NOT_CHECKED:
            name = f"{name_of(leaf.path)} {leaf.dtype}"
            groups.setdefault(leaf.reason, []).append(name)
    return "; ".join(
        ", ".join(dict.fromkeys(names)) + (f" ({reason})" if reason else "")
        for reason, names in groups.items()
    )


def output_name(path: str) -> str:
    """The path of an output leaf, which is empty if there is only one."""
    return path or "the output"
