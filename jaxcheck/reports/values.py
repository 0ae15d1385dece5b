"""What every report is made of: verdicts, findings, places, and how a report behaves.

Reports are frozen host-side values (str, int, float, bool, tuple, Enum): they can be
pickled, compared and written as JSON. This module deliberately knows nothing about how
a verdict was reached.
"""

from __future__ import annotations

import dataclasses
import enum
import json
import math
from typing import Any, ClassVar, Literal, NoReturn, get_args

from jaxcheck.errors import CheckFailedError


class Verdict(enum.Enum):
    """The answer to one question. NaN is never ``CORRECT``."""

    CORRECT = "correct"
    WRONG = "wrong"
    INCONCLUSIVE = "inconclusive"
    NOT_CHECKED = "not checked"


FindingKind = Literal[
    "wrong_derivative",
    "detached",
    "attached",
    "dead",
    "nan_gradient",
    "nan_loss",
    "kink",
    "discontinuity",
    "noise",
    "nondeterministic",
    "compiler",
    "precision_loss",
    "lowered_precision",
    "unused",
    "saturated",
    "wrong_update",
    "nan_update",
    "odd_update",
    "wrong_noise",
]

FINDING_KINDS: tuple[str, ...] = get_args(FindingKind)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class EquationSite:
    """Where one equation of a program came from.

    Attributes:
        primitive: name of the JAX primitive.
        fault: what is wrong with it, in a line; None if it is only a place.
        rule: name of the function with a custom rule that it calls, if any.
        file: source file of the user's line.
        line: line number in ``file``, counted from 1.
        scope: module scope (``jax.named_scope`` / flax module path).
        iteration: of each loop around it, outermost first, counted from 0.
        equation: the equation among its neighbors, marked, a line each.
        derivative: name of the function that is the custom rule.
        derivative_file: source file of that function.
        derivative_line: its first line there.
        relative_error: relative error of its local derivative, if measured.
        cures: whether the whole gradient becomes right without it, if tried.
        details: what else is known, with numbers, a sentence each.
    """

    primitive: str
    fault: str | None = None
    rule: str | None = None
    file: str | None = None
    line: int | None = None
    scope: str | None = None
    iteration: tuple[int, ...] = ()
    equation: str | None = None
    derivative: str | None = None
    derivative_file: str | None = None
    derivative_line: int | None = None
    relative_error: float | None = None
    cures: bool | None = None
    details: tuple[str, ...] = ()

    def __str__(self) -> str:
        place = "" if self.file is None else f" at {self.file}:{self.line}"
        scope = "" if not self.scope else f" in {self.scope}"
        loops = ", ".join(map(str, self.iteration))
        iteration = f", iteration {loops}" if loops else ""
        return f"{self.rule or self.primitive}{place}{scope}{iteration}"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """Something that a reader should know, beside or behind the verdict.

    Attributes:
        kind: one of ``FINDING_KINDS``.
        message: one or two sentences with the numbers.
        leaf: path of the leaf it is about, or None for the whole program.
        site: the equation it is about, if known.
        remedy: what to do about it, if something fits.
    """

    kind: FindingKind
    message: str
    leaf: str | None = None
    site: EquationSite | None = None
    remedy: str | None = None


class Record:
    """What a frozen dataclass of plain values can do: be compared, and become JSON."""

    __slots__ = ()

    def __bool__(self) -> NoReturn:
        raise TypeError(
            f"a {type(self).__name__} has no truth value; look at its attributes"
        )

    def __eq__(self, other: object) -> bool:
        # by content, NaN equal to NaN: a report of a NaN equals its own copy
        if type(self) is not type(other):
            return NotImplemented
        return plain(self) == plain(other)

    def __hash__(self) -> int:
        return hash(json.dumps(plain(self), sort_keys=True))

    def to_dict(self) -> dict[str, Any]:
        """The content as plain JSON-able data; NaN and infinities become strings."""
        return plain(self)

    def to_json(self, indent: int | None = 2) -> str:
        """``to_dict`` as a JSON text that strict parsers accept."""
        return json.dumps(self.to_dict(), indent=indent, allow_nan=False)


class Report(Record):
    """A record with a verdict; subclasses are frozen dataclasses."""

    __slots__ = ()
    error_class: ClassVar[type[CheckFailedError]] = CheckFailedError
    verdict: Verdict

    @property
    def passed(self) -> bool:
        """True only if the verdict is ``CORRECT``."""
        return self.verdict is Verdict.CORRECT

    def __bool__(self) -> NoReturn:
        raise TypeError(
            "a report has no truth value, because its verdict has more than two; "
            "use report.passed, or report.raise_if_failed()"
        )

    def raise_if_failed(self) -> None:
        """Raise ``error_class`` with this report unless the verdict is ``CORRECT``."""
        if not self.passed:
            raise self.error_class(self)

    def to_dict(self) -> dict[str, Any]:
        """This report as plain JSON-able data; NaN and infinities become strings."""
        return {"passed": self.passed, **plain(self)}


def plain(value: Any) -> Any:
    """Turn nested report values into dicts, lists, strings, numbers and None."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {
            f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)
        }
    if isinstance(value, enum.Enum):
        return value.value
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, tuple | list):
        return [plain(v) for v in value]  # pyright: ignore[reportUnknownVariableType]
    return value
