"""A flow report as people read it: each leaf, and below it the lines it flows through.

Only says what the report holds; decides nothing.
"""

from __future__ import annotations

import dataclasses
import math
import pathlib
from collections import Counter
from collections.abc import Iterator
from typing import IO, NamedTuple

from jaxcheck.gradients.text import FOLDED_ABOVE, labelled, loss_call, name_of
from jaxcheck.places.flow.report import FlowLeaf, FlowReport, FlowUse, SourceLine
from jaxcheck.reports.numbers import count, counted, duration, significant
from jaxcheck.reports.tables import (
    GAP,
    HANGING,
    INDENT,
    Blank,
    Block,
    Headline,
    Line,
    Span,
    Tone,
    columns_of,
    indented,
    plain_text,
    print_blocks,
    shortened,
)

# Less than a tenth of a percent, in size as well as in share, is not listed.
_NOTABLE = 1e-3
_LEAST_SOURCE = 12  # columns below which a line of source code says nothing


def as_text(report: FlowReport) -> str:
    """The whole report in plain text, at most 100 columns wide where words allow it."""
    return plain_text(blocks(report))


def print_report(report: FlowReport, file: IO[str] | None = None) -> None:
    """Print the whole report, in color if ``file`` (standard output) is a terminal."""
    print_blocks(blocks(report), file)


def as_line(report: FlowReport) -> str:
    """The report in one line, for ``repr``."""
    uses = sum(len(leaf.uses) for leaf in report.leaves)
    leaves = counted(len(report.leaves), "leaf", "leaves")
    return f"<FlowReport: {leaves}, {counted(uses, 'use')}>"


def blocks(report: FlowReport) -> Iterator[Block]:
    """The report, part by part."""
    number = len(report.leaves)
    leaves = "the only leaf" if number == 1 else f"{count(number)} leaves"
    head = f"jaxcheck: where the gradient of {leaves} comes from"
    dtypes = " and ".join(report.dtypes)
    precision = report.precision.replace("native", "native precision")
    context = f"{loss_call(report.call)} · {dtypes}, in {precision} · {report.device}"
    yield Headline(Span(head, "strong"), Span(context, "quiet"))
    yield Blank()
    shown, folded = _shown(report)
    yield LeafFlows(tuple(shown), folded)
    yield Blank()
    yield labelled("Reproduce:", report.call)
    yield labelled("Cost:", duration(report.seconds))


def _shown(report: FlowReport) -> tuple[list[FlowLeaf], int]:
    """The leaves to list, and how many are left out."""
    leaves = list(report.leaves)
    if len(leaves) <= FOLDED_ABOVE:
        return leaves, 0
    several = [leaf for leaf in leaves if len(leaf.uses) != 1 or leaf.zero]
    return several, len(leaves) - len(several)


class _Cells(NamedTuple):
    """One use as columns."""

    share: str
    norm: str
    equation: str
    place: str
    source: str


_TITLES = _Cells("share", "norm", "used by", "at", "")


@dataclasses.dataclass(frozen=True, slots=True)
class LeafFlows:
    """Leaves with their uses, columns aligned over all of them.

    Attributes:
        leaves: those to list.
        folded: how many are left out, used in one place each.
    """

    leaves: tuple[FlowLeaf, ...]
    folded: int = 0

    def lines(self, width: int) -> Iterator[Line]:
        """A line for the leaf, one for each use, and one for what carries nothing."""
        rows = {id(leaf): _rows(leaf) for leaf in self.leaves}
        every = [_TITLES, *(cells for some in rows.values() for cells in some)]
        widths = [max(map(columns_of, texts)) for texts in zip(*every, strict=True)]
        yield _aligned(_TITLES, widths, width, "quiet")
        names = max((columns_of(name_of(leaf.path)) for leaf in self.leaves), default=0)
        for leaf in self.leaves:
            name = name_of(leaf.path)
            gap = " " * (min(names, width // 3) - columns_of(name) + GAP)
            shape = f"{gap}{leaf.shape}  {_gradient(leaf)}"
            yield (Span(" " * INDENT), Span(name, "strong"), Span(shape))
            for cells in rows[id(leaf)]:
                yield _aligned(cells, widths, width)
            yield from _remarks(leaf, width)
        if self.folded:
            more = counted(self.folded, "more leaf", "more leaves")
            remark = f"… and {more} with a single use"
            yield from indented(Span(remark, "quiet"), width, INDENT)


def _gradient(leaf: FlowLeaf) -> str:
    if not leaf.uses:
        return "not used: the loss does not depend on it"
    cancels = leaf.zero and not all(use.zero for use in leaf.uses)
    remark = " (its contributions cancel)" if cancels else ""
    return f"gradient norm {significant(leaf.norm, 2)}{remark}"


def _rows(leaf: FlowLeaf) -> list[_Cells]:
    shown = [use for use in leaf.uses if _is_notable(use, leaf)]
    lines = Counter((use.site.file, use.site.line) for use in shown)
    return [
        _Cells(
            share="" if use.share is None else percentage(use.share),
            norm=significant(use.norm, 2),
            equation=_equation(use),
            place=place_of(use, column=lines[use.site.file, use.site.line] > 1),
            source=_source(use),
        )
        for use in shown
    ]


def _equation(use: FlowUse) -> str:
    name = use.site.rule or use.site.primitive
    return name if use.count == 1 else f"{name} ×{use.count}"


def _is_notable(use: FlowUse, leaf: FlowLeaf) -> bool:
    if use.zero:
        return False
    # "not below" and not "above": NaN is worth showing
    return leaf.zero or not use.norm < _NOTABLE * leaf.norm


def percentage(share: float) -> str:
    """A share in percent, with one decimal unless it is tiny."""
    if math.isnan(share):
        return "NaN"
    if 0 < abs(share) < _NOTABLE:
        return f"{100 * share:.0e} %"
    return f"{100 * share:.1f} %"


def _aligned(
    cells: _Cells, widths: list[int], width: int, tone: Tone | None = None
) -> Line:
    share, norm, equation, place = (
        cells.share.rjust(widths[0]),
        cells.norm.rjust(widths[1]),
        *(
            text + " " * (size - columns_of(text))
            for text, size in zip(cells[2:4], widths[2:4], strict=True)
        ),
    )
    gap = " " * GAP
    text = gap.join([share, norm, equation, place])
    room = width - HANGING - columns_of(text) - GAP
    source = shortened(cells.source, room) if room >= _LEAST_SOURCE else ""
    return (Span(" " * HANGING), Span(text, tone), Span(gap), Span(source, "quiet"))


def _remarks(leaf: FlowLeaf, width: int) -> Iterator[Line]:
    """What stands below the uses of a leaf: what carries little or nothing."""
    small = [u for u in leaf.uses if not u.zero and not _is_notable(u, leaf)]
    if small:
        more = counted(len(small), "use")
        total = percentage(sum(use.share or 0.0 for use in small))
        remark = f"… and {more} with {total} together"
        yield from indented(Span(remark, "quiet"), width)
    zero = [use for use in leaf.uses if use.zero]
    if zero:
        listing = ", ".join(map(_cut, zero[:4]))
        more = f" and {counted(len(zero) - 4, 'more use')}" if len(zero) > 4 else ""
        yield from indented(Span(f"nothing through {listing}{more}", "quiet"), width)


def _cut(use: FlowUse) -> str:
    site = use.stopped
    if site is None:
        return described(use)
    place = "" if site.file is None else f" at {_basename(site.file)}:{site.line}"
    return f"{described(use)} (cut off by {site.primitive}{place})"


def described(use: FlowUse) -> str:
    """A use in a sentence: ``dot_general at dqn.py:31``."""
    name = use.site.rule or use.site.primitive
    return name if use.site.file is None else f"{name} at {place_of(use)}"


def place_of(use: FlowUse, *, column: bool = False) -> str:
    """Where a use is: ``dqn.py:31``, with the column where it takes that to tell."""
    site = use.site
    if site.file is None:
        return site.scope or "unknown"
    line = _telling(use)
    column_text = f":{line.column}" if column and line is not None else ""
    scope = f" in {site.scope}" if site.scope else ""
    return f"{_basename(site.file)}:{site.line}{column_text}{scope}"


def _telling(use: FlowUse) -> SourceLine | None:
    place = (use.site.file, use.site.line)
    return next((c for c in use.calls if (c.file, c.line) == place), None)


def _source(use: FlowUse) -> str:
    line = _telling(use)
    return "" if line is None else line.text


def _basename(file: str) -> str:
    return pathlib.PurePath(file).name
