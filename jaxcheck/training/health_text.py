"""A report of training as people read it. Only says what the report holds."""

from __future__ import annotations

from collections.abc import Iterator

from jaxcheck.gradients.text import TONES, labelled
from jaxcheck.reports.numbers import counted, significant
from jaxcheck.reports.tables import Blank, Block, Headline, Paragraph, Span, plain_text
from jaxcheck.reports.values import Verdict
from jaxcheck.training.health import HealthFinding, HealthReport

_NAMED = 3  # leaves that a finding lists


def as_text(report: HealthReport) -> str:
    """The whole report in plain text."""
    return plain_text(blocks(report))


def as_line(report: HealthReport) -> str:
    """The report in one line, for ``repr``."""
    return f"<HealthReport: {headline(report)}>"


def headline(report: HealthReport) -> str:
    """The verdict, e.g. ``training is not healthy: exploding, lost_updates``."""
    if report.verdict is Verdict.NOT_CHECKED:
        return "nothing was seen of training yet"
    if report.passed:
        return "nothing is wrong with training"
    named = dict.fromkeys(finding.rule for finding in report.findings)
    return f"training is not healthy: {', '.join(named)}"


def blocks(report: HealthReport) -> Iterator[Block]:
    """The report, part by part."""
    rows = f"{report.rows:,} leaves and layers"
    yield Headline(
        Span(f"jaxcheck: {headline(report)}", TONES[report.verdict]),
        Span(f"{counted(report.steps, 'step')} · {rows}", "quiet"),
    )
    for finding in report.findings:
        yield Blank()
        yield paragraph(finding)
    yield Blank()
    numbers = {
        "Gradient norm:": (report.gradient_norm, report.usual_norm),
        "Update ratio:": (report.update_ratio, None),
    }
    for label, (value, usual) in numbers.items():
        if value is not None:
            more = "" if usual is None else f" (usually {significant(usual, 2)})"
            yield labelled(label, f"{significant(value, 2)}{more}")
    for text in report.not_judged:
        yield labelled("Not judged:", text)
    yield labelled("Asked:", ", ".join(report.rules))


def paragraph(finding: HealthFinding) -> Paragraph:
    """What was found, where and when, why, and what to try."""
    place = ""
    if finding.leaf is not None:
        leaves = [finding.leaf or "the leaf", *finding.others]
        left = len(leaves) - _NAMED
        more = f" and {left} more" if left > 0 else ""
        place = f"in {', '.join(leaves[:_NAMED])}{more}"
    if finding.step is not None:
        place += f", from step {finding.step}" if place else f"from step {finding.step}"
    details = [Span(finding.message)]
    if finding.causes:
        details.append(Span(f"Usually: {'; '.join(finding.causes)}."))
    if finding.remedies:
        details.append(Span(f"Try: {'; '.join(finding.remedies)}."))
    return Paragraph(Span(finding.rule, "bad"), place, tuple(details))
