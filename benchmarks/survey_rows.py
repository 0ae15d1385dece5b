"""What the survey knows of one case of one function: a row, its verdict, its title."""

from __future__ import annotations

import collections
import textwrap
from collections.abc import Iterable, Iterator
from typing import Any

CORRECT, WRONG, INCONCLUSIVE = "correct", "wrong", "inconclusive"
NOT_DIFFERENTIABLE = "not differentiable"
NOT_CALLED = "not called"
# JAX itself raises when the gradient is asked for.
NO_GRADIENT = "grad raises"
CHECK_FAILED = "check failed"
SAME = "same function"
VERDICTS = (
    *(CORRECT, WRONG, INCONCLUSIVE, "not checked", CHECK_FAILED),
    *(NO_GRADIENT, NOT_CALLED, NOT_DIFFERENTIABLE, SAME),
)
SETTLED = (CORRECT, NOT_DIFFERENTIABLE, SAME)

Row = dict[str, Any]


def title(module: str, function: str, label: str) -> str:
    return f"{module}.{function}" + (f" [{label}]" if label else "")


def title_of(row: Row) -> str:
    return title(row["module"], row["function"], row["case"])


def in_short(error: Exception) -> str:
    """The first sentence of an error."""
    first = str(error).strip().partition("\n")[0]
    return f"{type(error).__name__}: {textwrap.shorten(first, 160, placeholder=' …')}"


def table_of(rows: Iterable[Row]) -> Iterator[list[str]]:
    """One line a case, grouped by module."""
    module = ""
    for row in rows:
        if row["module"] != module:
            module = row["module"]
            yield [module, "", "", "", ""]
        yield [
            "  " + title("", row["function"], row["case"])[1:],
            row["verdict"],
            bound_of(row),
            " ".join(row.get("findings", ())) or "–",
            "" if row["verdict"] == CORRECT else row["reason"][:100],
        ]


def bound_of(row: Row) -> str:
    bound = row.get("bound")
    return "–" if bound is None else f"{bound:.0e}"


def counts(rows: Iterable[Row]) -> list[list[str]]:
    """How many cases of each module have which verdict; the last line is the sum."""
    by_module: dict[str, collections.Counter[str]] = {}
    for row in rows:
        by_module.setdefault(row["module"], collections.Counter())[row["verdict"]] += 1
    everything = sum(by_module.values(), collections.Counter())
    used = [verdict for verdict in VERDICTS if everything[verdict]]
    lines = [["module", *used, "all"]]
    for module, count in [*by_module.items(), ("all", everything)]:
        lines.append(
            [module, *(str(count[verdict]) for verdict in used), str(count.total())]
        )
    return lines
