"""What a planted fault is and where it is expected to be found; what a model is.

A line of source that calls the function with the fault carries the comment
``# rule: MARK``, and a case names its place by the mark. Cases are built only when they
are asked for, from a random generator seeded with their own name. Nothing in this
package imports jaxcheck.
"""

from __future__ import annotations

import dataclasses
import functools
import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from tests.catalogue.cases import Loss, Program, generator

Make = Callable[[np.random.Generator, bool], Program]


class Expected(NamedTuple):
    """One place that must be named.

    Attributes:
        rule: the function with a derivative rule of its own; None if the fault is in
            what a primitive of JAX was told.
        file: the source file that calls it.
        line: the line there that calls it.
        primitive: the primitive, where there is no rule to name.
        iterations: of the loops around it, those where it is wrong; empty if it is
            wrong wherever it is called.
    """

    rule: str | None
    file: str
    line: int
    primitive: str | None = None
    iterations: tuple[tuple[int, ...], ...] = ()


@dataclasses.dataclass(frozen=True, slots=True)
class Fault:
    """A loss with one or more wrong rules in it; none if it is a correct twin."""

    name: str
    loss_fn: Loss
    params: Any
    args: tuple[Any, ...]
    culprits: tuple[Expected, ...]


class Model(NamedTuple):
    """A correct program."""

    name: str
    loss_fn: Loss
    params: Any
    args: tuple[Any, ...]


class Culprit(NamedTuple):
    """An expected place, by the mark of its line instead of file and number."""

    rule: str | None
    mark: str
    primitive: str | None
    iterations: tuple[tuple[int, ...], ...]

    def expected(self) -> Expected:
        """The place in today's source."""
        file, line = marked_lines()[self.mark]
        return Expected(self.rule, file, line, self.primitive, self.iterations)


def culprit(
    rule: str | None,
    mark: str,
    *iterations: tuple[int, ...],
    primitive: str | None = None,
) -> Culprit:
    """The function called ``rule`` where the comment ``# rule: mark`` stands."""
    return Culprit(rule, mark, primitive, iterations)


@functools.cache
def marked_lines() -> dict[str, tuple[str, int]]:
    """File and line of every ``# rule:`` comment of this package, by its mark."""
    places: dict[str, tuple[str, int]] = {}
    for file in sorted(pathlib.Path(__file__).parent.glob("*.py")):
        if file.name == pathlib.Path(__file__).name:
            continue
        for number, text in enumerate(file.read_text("utf-8").splitlines(), start=1):
            _, found, mark = text.partition("  # rule: ")
            if found:
                assert mark not in places, f"{mark!r} marks two lines"
                places[mark] = (str(file), number)
    return places


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class FaultCase:
    """A fault that is not built yet.

    Attributes:
        name: identifies the case and seeds its numbers.
        make: ``make(rng, faulty)`` builds the program, or its correct twin, from the
            same numbers; nothing but the rule may depend on ``faulty``.
        culprits: the places to be named.
    """

    name: str
    make: Make
    culprits: tuple[Culprit, ...]

    def __call__(self, *, faulty: bool = True) -> Fault:
        """Build the fault or its correct twin; the same numbers every time."""
        loss_fn, params, args = self.make(generator(self.name), faulty)
        culprits = tuple(c.expected() for c in self.culprits) if faulty else ()
        return Fault(self.name, loss_fn, params, args, culprits)


class FaultList(list[FaultCase]):
    """Faults in order of entry; ``add`` is a decorator for their builders."""

    def add(self, *culprits: Culprit) -> Callable[[Make], Make]:
        """Enter the decorated builder under its own name."""

        def enter(make: Make) -> Make:
            self.append(FaultCase(name=make.__name__, make=make, culprits=culprits))
            return make

        return enter


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ModelCase:
    """A model that is not built yet; its name seeds its numbers."""

    name: str
    make: Callable[[np.random.Generator], Program]

    def __call__(self) -> Model:
        """Build the model; the same numbers every time."""
        return Model(self.name, *self.make(generator(self.name)))


class ModelList(list[ModelCase]):
    """Models in order of entry; ``add`` is a decorator for their builders."""

    def add(self, make: Callable[[np.random.Generator], Program]) -> Any:
        """Enter the decorated builder under its own name."""
        self.append(ModelCase(name=make.__name__, make=make))
        return make
