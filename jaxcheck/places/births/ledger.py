"""The births that a walk has come upon, by number."""

from __future__ import annotations

import dataclasses
from collections.abc import Hashable
from typing import Literal

from jaxcheck.jaxprs.compat import Equation
from jaxcheck.places.births.tape import Frame

Phase = Literal["forward", "backward"]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """Where NaN or infinity begins.

    Attributes:
        eqn: the equation.
        frame: the program that it is part of, as it was running.
        position: the equation's number there.
        phase: whether its value or its derivative is meant.
        value: what begins, ``"nan"`` or ``"inf"``.
        message: what happened, with numbers.
        output: the output of the equation that it is about.
        element: the element of that output; None if it cannot be told.
        idle: whether the cotangent that came in was exactly zero there.
        given: whether the equation only reads it: a constant, data, a parameter.
        parents: labels of the infinities that it was made from.
    """

    eqn: Equation
    frame: Frame
    position: int
    phase: Phase
    value: Literal["nan", "inf"]
    message: str
    output: int = 0
    element: tuple[int, ...] | None = None
    idle: bool = False
    given: bool = False
    parents: frozenset[int] = frozenset()


class Ledger:
    """Numbers origins in the order in which they are found, from 1."""

    def __init__(self) -> None:
        self.origins: list[Origin] = []
        self.labels: dict[Hashable, int] = {}

    def known(self, key: Hashable) -> int | None:
        """The label of an origin that was found before."""
        return self.labels.get(key)

    def bear(self, key: Hashable, origin: Origin) -> int:
        """The label of an origin, a new one or the one that it has."""
        if key not in self.labels:
            self.origins.append(origin)
            self.labels[key] = len(self.origins)
        return self.labels[key]

    def __getitem__(self, label: int) -> Origin:
        return self.origins[label - 1]

    def ancestry(self, labels: set[int]) -> set[int]:
        """``labels`` and everything that they were made from, but for what is given."""
        found = set(labels)
        waiting = list(labels)
        while waiting:
            for parent in self[waiting.pop()].parents:
                if parent not in found and not self[parent].given:
                    found.add(parent)
                    waiting.append(parent)
        return found
