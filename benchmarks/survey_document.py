"""The survey as Markdown: counts, what is not CORRECT, then everything."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from benchmarks.survey_remarks import REMARKS
from benchmarks.survey_rows import (
    CORRECT,
    NOT_DIFFERENTIABLE,
    SAME,
    SETTLED,
    VERDICTS,
    Row,
    bound_of,
    counts,
    title,
    title_of,
)


def document(
    rows: Sequence[Row],
    environment: Mapping[str, Any],
    command: str,
    other: Mapping[str, Any] | None = None,
) -> str:
    """The survey as Markdown, with what is otherwise in the results ``other``."""
    known = environment["versions"]
    versions = ", ".join(f"{k} {v}" for k, v in known.items())
    header, *lines = counts(rows)
    parts = [
        "# Survey of other people's gradients\n",
        f"Written by `{command}`; not to be edited.\n",
        f"{versions}; {environment['platform']}, float32 parameters, checked in "
        "float64.\n",
        "Every public function of the modules below is a loss: the weighted sum of its "
        "floating outputs at a generic point of its domain. A function with several "
        "ways to be called has several cases. Whatever is not correct was looked at by "
        "hand; the remark says what it was.\n",
        *markdown_table(header, lines),
        *([] if other is None else otherwise(rows, other)),
        "\n## Not correct\n",
        *not_correct(rows),
        "\n## Correct, with something to know\n",
        *with_findings(rows),
        "\n## Everything\n",
        "A number is the upper bound of the gradient's relative error.\n",
        *everything(rows),
    ]
    return "\n".join(parts) + "\n"


def otherwise(rows: Iterable[Row], other: Mapping[str, Any]) -> Iterator[str]:
    """The cases whose verdict differs in ``other``, and those that one has alone."""
    name = f"jax {other['environment']['versions']['jax']}"
    there = {title_of(row): row["verdict"] for row in other["rows"]}
    here = {title_of(row): row["verdict"] for row in rows}
    lines = [
        [f"`{case}`", there.get(case, "–"), here.get(case, "–")]
        for case in here | there
        if there.get(case) != here.get(case)
    ]
    yield f"\n## Otherwise than with {name}\n"
    yield from markdown_table(["function", name, "here"], lines)


def markdown_table(
    header: Sequence[str], lines: Iterable[Sequence[str]]
) -> Iterator[str]:
    yield "| " + " | ".join(header) + " |"
    yield "|" + "---|" * len(header)
    for line in lines:
        cells = (cell.replace("|", "\\|").replace("\n", " ") for cell in line)
        yield "| " + " | ".join(cells) + " |"


def remark(row: Row) -> str:
    """What was found by hand, for this case or for all cases of the function."""
    name = title_of(row)
    plain = title(row["module"], row["function"], "")
    found = REMARKS.get(name, REMARKS.get(plain, ""))
    if not found and row["reason"].startswith("NotImplementedError"):
        return "JAX has no rule for it and says so."
    return found


def not_correct(rows: Iterable[Row]) -> Iterator[str]:
    found = [row for row in rows if row["verdict"] not in SETTLED]
    found.sort(key=lambda row: VERDICTS.index(row["verdict"]))
    lines = [
        [f"`{title_of(row)}`", row["verdict"], row["reason"], remark(row) or "–"]
        for row in found
    ]
    yield from markdown_table(["function", "verdict", "reason", "remark"], lines)


def with_findings(rows: Iterable[Row]) -> Iterator[str]:
    lines = [
        [
            f"`{title_of(row)}`",
            ", ".join(row["findings"]),
            remark(row) or " ".join(row["messages"]),
        ]
        for row in rows
        if row["verdict"] == CORRECT and row.get("findings")
    ]
    yield from markdown_table(["function", "findings", "what"], lines)


def everything(rows: Iterable[Row]) -> Iterator[str]:
    """One paragraph for each module and verdict."""
    groups: dict[str, dict[str, list[str]]] = {}
    for row in rows:
        own = title("", row["function"], row["case"])[1:]
        text = f"`{own}`"
        if row["verdict"] == CORRECT:
            text += f" {bound_of(row)}"
        elif row["verdict"] in (SAME, NOT_DIFFERENTIABLE):
            text += f" ({row['reason']})"
        by_verdict = groups.setdefault(row["module"], {})
        by_verdict.setdefault(row["verdict"], []).append(text)
    for module, by_verdict in groups.items():
        yield f"\n### {module}\n"
        for verdict in VERDICTS:
            if verdict in by_verdict:
                listing = ", ".join(by_verdict[verdict])
                words = f"{verdict.capitalize()}: {listing}."
                yield textwrap.fill(words, 92, break_on_hyphens=False) + "\n"
