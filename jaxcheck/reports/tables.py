"""Lines of text: a headline, tables and paragraphs, in color only on a terminal.

A report is a sequence of blocks; each block lays itself out in lines for a given
width. Layout is done here and not by ``rich`` because a name must never be cut or
folded in its middle, and because a row carries notes that span its columns; ``rich``
measures the characters and brings the color to the terminal. Without a terminal the
text has no escape codes and does not depend on the environment.

Knows nothing of what it draws. ``rich`` is imported when something is drawn.
"""

from __future__ import annotations

import dataclasses
import re
import sys
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from typing import IO, TYPE_CHECKING, Literal, NamedTuple, Protocol

if TYPE_CHECKING:
    from rich.console import Console

WIDTH = 100  # columns of a plain text, and the most that is used of a terminal
LEAST_WIDTH = 60  # a narrower terminal has to wrap lines itself
INDENT = 2  # of tables
HANGING = 4  # of what belongs to the line above it
GAP = 2  # between columns

Tone = Literal["good", "bad", "unsure", "quiet", "strong"]

STYLES: dict[Tone, str] = {
    "good": "green",
    "bad": "bold red",
    "unsure": "yellow",
    "quiet": "dim",
    "strong": "bold",
}

# For streams that cannot write the signs that reports use (ASCII, cp1252, ...).
ASCII_SIGNS = str.maketrans({"±": "+-", "≤": "<=", "·": "-", "…": "..."})

# Spaces at which a line is not broken: in "2 ± 1", "5 %", "3 s" and "[1, 2]".
GLUE = re.compile(r" (?=±|%|m?s\b)|(?<=[±≤]) |(?<=\d,) (?=[\d, ]+[\])])")
# The keys that a path or a dotted name is made of: [0], ['name'], .name, name.
KEYS = re.compile(r"\[(?:'[^']*'|\"[^\"]*\"|[^\]]*)\]|\.?[^.\[]+|[.\[]")


class Span(NamedTuple):
    """A piece of text in one tone."""

    text: str
    tone: Tone | None = None


Line = tuple[Span, ...]


class Block(Protocol):
    """Something that can lay itself out."""

    def lines(self, width: int) -> Iterator[Line]:
        """Yield the lines of this block, at most ``width`` columns each if possible."""
        ...


@dataclasses.dataclass(frozen=True, slots=True)
class Headline:
    """One line with a right-aligned remark, or two lines where one is too short."""

    left: Span
    right: Span

    def lines(self, width: int) -> Iterator[Line]:
        """One line if there is room for both, else the remark goes below."""
        gap = width - columns_of(self.left.text) - columns_of(self.right.text)
        if gap >= GAP:
            yield (self.left, Span(" " * gap), self.right)
            return
        for text in wrapped(self.left.text, width, hanging=HANGING):
            yield (Span(text, self.left.tone),)
        for text in wrapped(self.right.text, width - INDENT):
            yield (Span(" " * INDENT), Span(text, self.right.tone))


@dataclasses.dataclass(frozen=True, slots=True)
class Paragraph:
    """A label and a text that flows, with further lines below it.

    Attributes:
        label: what the text is about; the text follows it on the same line.
        text: words, broken between words only.
        details: lines that belong to the paragraph, indented; they flow as well.
    """

    label: Span
    text: str = ""
    details: tuple[Span, ...] = ()

    def lines(self, width: int) -> Iterator[Line]:
        """The label with the text, then the details."""
        whole = f"{self.label.text} {self.text}".strip()
        first, *rest = wrapped(whole, width, hanging=HANGING) or [""]
        # A label longer than the line loses its tone on the lines that follow.
        cut = min(len(self.label.text), len(first))
        yield (Span(first[:cut], self.label.tone), Span(first[cut:]))
        for text in rest:
            yield (Span(text),)
        for detail in self.details:
            yield from indented(detail, width)


@dataclasses.dataclass(frozen=True, slots=True)
class Blank:
    """An empty line."""

    def lines(self, width: int) -> Iterator[Line]:
        """Nothing, once."""
        del width
        yield ()


class Row(NamedTuple):
    """One cell a column; ``notes`` follow below the row and span all columns."""

    cells: tuple[Span, ...]
    notes: tuple[Span, ...] = ()


@dataclasses.dataclass(frozen=True, slots=True)
class Table:
    """Aligned columns. The first one holds names and gives way to the others.

    A name that does not fit is neither cut nor folded: it gets a line of its own.
    """

    titles: tuple[str, ...]
    rows: tuple[Row, ...]
    remark: Span | None = None

    def lines(self, width: int) -> Iterator[Line]:
        """The titles, the rows with their notes, and the remark."""
        widths = self.column_widths(width)
        yield aligned([Span(title, "quiet") for title in self.titles], widths)
        for row in self.rows:
            name, *others = row.cells
            if columns_of(name.text) > widths[0]:
                for part in broken_name(name.text, width - INDENT):
                    yield (Span(" " * INDENT), Span(part, name.tone))
                name = Span("")
            yield aligned((name, *others), widths)
            for note in row.notes:
                yield from indented(note, width, INDENT + HANGING)
        if self.remark is not None:
            yield from indented(self.remark, width, INDENT)

    def column_widths(self, width: int) -> list[int]:
        """The widest cell of each column; of the first, what is left of ``width``."""
        names, *others = zip(
            self.titles,
            *(tuple(cell.text for cell in row.cells) for row in self.rows),
            strict=True,
        )
        rest = [max(map(columns_of, texts)) for texts in others]
        room = width - INDENT - sum(rest) - GAP * len(rest)
        # Names that get a line of their own do not widen the column.
        lengths = [columns_of(name) for name in names]
        return [max(n for n in lengths if n <= max(room, lengths[0])), *rest]


def aligned(cells: Sequence[Span], widths: Sequence[int]) -> Line:
    """One line of a table."""
    line: list[Span] = []
    gap = INDENT
    for cell, width in zip(cells, widths, strict=True):
        line += [Span(" " * gap), cell]
        gap = width - columns_of(cell.text) + GAP
    return tuple(line)


def columns_of(text: str) -> int:
    """How many terminal columns ``text`` takes (a Chinese character takes two)."""
    from rich.cells import cell_len

    return cell_len(text)


def wrapped(text: str, width: int, hanging: int = 0) -> list[str]:
    """Break ``text`` between words, keeping numbers with their units and error bars.

    A word that is longer than the line, such as a file's place, stays whole.
    """
    lines = textwrap.wrap(
        GLUE.sub("\N{NO-BREAK SPACE}", text),
        width=width,
        subsequent_indent=" " * hanging,
        break_long_words=False,
        break_on_hyphens=False,
    )
    return [line.replace("\N{NO-BREAK SPACE}", " ") for line in lines]


def indented(span: Span, width: int, indent: int = HANGING) -> Iterator[Line]:
    """Lines of flowing text to the right of ``indent``."""
    for text in wrapped(span.text, width - indent):
        yield (Span(" " * indent), Span(text, span.tone))


def broken_name(name: str, width: int) -> list[str]:
    """Break a name that is wider than a line between its keys, and nowhere else."""
    lines = [""]
    for key in KEYS.findall(name):
        if lines[-1].strip() and columns_of(lines[-1] + key) > width:
            lines.append(" " * GAP)
        lines[-1] += key
    return lines


def shortened(text: str, width: int) -> str:
    """Put ``text`` on one line, with an ellipsis where it is longer than ``width``."""
    text = " ".join(text.split())
    return text if len(text) <= width else f"{text[: width - 1].rstrip()}…"


def laid_out(blocks: Iterable[Block], width: int) -> Iterator[Line]:
    """The lines of all blocks, one after the other."""
    for block in blocks:
        yield from block.lines(width)


def plain_text(blocks: Iterable[Block], width: int = WIDTH) -> str:
    """Draw ``blocks`` without color; the same text wherever it is drawn."""
    lines = ("".join(span.text for span in line) for line in laid_out(blocks, width))
    return "\n".join(line.rstrip() for line in lines)


def print_blocks(blocks: Iterable[Block], file: IO[str] | None = None) -> None:
    """Print ``blocks``: in color on a terminal, as ``plain_text`` anywhere else.

    ``NO_COLOR`` and ``FORCE_COLOR`` are respected. Signs that ``file`` cannot encode
    are written in ASCII.

    Args:
        blocks: what to draw.
        file: where to; None is standard output.
    """
    from rich.console import Console
    from rich.theme import Theme

    console = Console(
        file=file or sys.stdout,
        theme=Theme({**STYLES}),
        # A notebook shows what is printed, unless it is printed to a file.
        force_jupyter=None if file is None else False,
    )
    width = WIDTH
    if console.is_terminal:
        width = max(LEAST_WIDTH, min(console.width, WIDTH))
    print_lines(laid_out(blocks, width), console)


def print_lines(lines: Iterable[Line], console: Console) -> None:
    """Hand lines over to ``rich``, which must change nothing but the color."""
    from rich.text import Text

    for line in lines:
        text = Text()
        for span in line:
            text.append(encodable(span.text, console.encoding), span.tone)
        text.rstrip()
        console.print(text, soft_wrap=True, highlight=False)


def encodable(text: str, encoding: str) -> str:
    """``text`` with signs that ``encoding`` can write."""
    try:
        text.encode(encoding)
    except UnicodeEncodeError:
        ascii_text = text.translate(ASCII_SIGNS)
        return ascii_text.encode(encoding, "backslashreplace").decode(encoding)
    return text
