"""A self-test as people read it: one row a fault."""

from __future__ import annotations

from collections.abc import Iterator

from jaxcheck.gradients.planting import PlantedFault, SelfTestReport
from jaxcheck.gradients.text import TONES, labelled, loss_call, name_of
from jaxcheck.reports.numbers import count, counted, duration, significant
from jaxcheck.reports.tables import (
    Blank,
    Block,
    Headline,
    Row,
    Span,
    Table,
    plain_text,
)
from jaxcheck.reports.values import Verdict


def as_text(report: SelfTestReport) -> str:
    """The whole report in plain text."""
    return plain_text(blocks(report))


def headline(report: SelfTestReport) -> str:
    """How many of the planted faults were caught."""
    planted = [f for f in report.faults if f.verdict is not Verdict.NOT_CHECKED]
    if not planted:
        return "inconclusive: no fault could be planted"
    caught = sum(f.verdict is Verdict.CORRECT for f in planted)
    if caught == len(planted):
        return f"every planted fault was caught, {count(caught)} of {count(caught)}"
    return f"{counted(len(planted) - caught, 'planted fault')} went unnoticed"


def blocks(report: SelfTestReport) -> Iterator[Block]:
    """The report, part by part."""
    head = Span(f"jaxcheck: {headline(report)}", TONES[report.verdict])
    yield Headline(head, Span(loss_call(report.call), "quiet"))
    planted = [f for f in report.faults if f.verdict is not Verdict.NOT_CHECKED]
    if planted:
        yield Blank()
        titles = ("leaf", "planted", "relative size", "noticed")
        yield Table(titles, tuple(_row(f) for f in planted))
    yield Blank()
    others = [f for f in report.faults if f.verdict is Verdict.NOT_CHECKED]
    if others:
        listing = "; ".join(f"{name_of(f.leaf)} {f.fault} ({f.reason})" for f in others)
        yield labelled("Not planted:", listing)
    yield labelled("Reproduce:", report.call)
    yield labelled("Cost:", duration(report.seconds))


def _row(fault: PlantedFault) -> Row:
    caught = fault.verdict is Verdict.CORRECT
    size = "" if fault.size is None else significant(fault.size, 2)
    return Row(
        (
            Span(name_of(fault.leaf)),
            Span(fault.fault),
            Span(size),
            Span("yes" if caught else "NO", TONES[fault.verdict]),
        )
    )
