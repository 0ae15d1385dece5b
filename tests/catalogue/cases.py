"""What one case of the catalogue is, and how a case is entered into it.

A case is built only when it is asked for, from a random generator seeded with its own
name: importing the catalogue runs no JAX, and a new case re-rolls no other. Nothing in
the catalogue imports jaxcheck.
"""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

Loss = Callable[..., Any]

EVERY_COORDINATE = ("exhaustive", "directional")
# 10⁵ coordinates one by one take minutes and show nothing that 10³ do not.
TOO_LARGE_FOR_EXHAUSTIVE = ("directional",)


class Program(NamedTuple):
    """One call ``loss_fn(params, *args)``."""

    loss_fn: Loss
    params: Any
    args: tuple[Any, ...] = ()


class Pair(NamedTuple):
    """Two losses that are equal in value; the gradient of ``wrong`` has a fault."""

    wrong: Loss
    twin: Loss
    params: Any
    args: tuple[Any, ...] = ()


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Mutant:
    """A loss with one planted fault in its gradient, beside its correct twin.

    Attributes:
        name: identifies the case and seeds its numbers.
        make: builds the pair from a random generator.
        leaves: paths, as ``jax.tree_util.keystr`` writes them, of exactly the leaves
            whose gradient is wrong.
        index: the wrong coordinate, where there is only one in only one leaf.
        modes: modes of ``check`` in which the case is run.
        finding: kind of a finding that must be reported, if one is named.
        smooth: whether the twin is differentiable at the point (False at a kink, where
            its gradient is one of the subgradients).
        same_twin: whether an earlier case has this twin already (with other numbers),
            so that checking it once more would show nothing.
    """

    name: str
    make: Callable[[np.random.Generator], Pair]
    leaves: tuple[str, ...]
    index: tuple[int, ...] | None = None
    modes: tuple[str, ...] = EVERY_COORDINATE
    finding: str | None = None
    smooth: bool = True
    same_twin: bool = False

    def build(self) -> Pair:
        """Build the pair; the same numbers every time."""
        return self.make(generator(self.name))


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Control:
    """A correct gradient on which naive checkers cry wolf.

    Attributes:
        name: identifies the case and seeds its numbers.
        make: builds the program from a random generator.
        modes: modes of ``check`` in which the case is run.
        finding: kind of a finding that must be reported, if one is named.
        settled: False where part of the value runs in float32 whatever the checker
            does, so that "inconclusive" is an honest answer beside "correct".
    """

    name: str
    make: Callable[[np.random.Generator], Program]
    modes: tuple[str, ...] = EVERY_COORDINATE
    finding: str | None = None
    settled: bool = True

    def build(self) -> Program:
        """Build the program; the same numbers every time."""
        return self.make(generator(self.name))


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Unknowable:
    """A program whose gradient cannot be judged, rightly or wrongly.

    Attributes:
        name: identifies the case and seeds its numbers.
        make: builds the program from a random generator.
        finding: kind of a finding that must be reported, if one is named.
        resolvable: True where a step that is small enough does settle the question, so
            that "correct" is an honest answer beside "inconclusive".
    """

    name: str
    make: Callable[[np.random.Generator], Program]
    finding: str | None = None
    resolvable: bool = False

    def build(self) -> Program:
        """Build the program; the same numbers every time."""
        return self.make(generator(self.name))


def generator(name: str) -> np.random.Generator:
    """The random generator of the case called ``name``."""
    return np.random.default_rng(zlib.crc32(name.encode()))


class MutantList(list[Mutant]):
    """Mutants in order of entry; ``add`` is a decorator for their builders."""

    def add(
        self, *leaves: str, name: str | None = None, **facts: Any
    ) -> Callable[[Callable[..., Pair]], Callable[..., Pair]]:
        """Enter the decorated builder, under its own name unless ``name`` is given."""

        def enter(make: Callable[..., Pair]) -> Callable[..., Pair]:
            called = name or make.__name__
            self.append(Mutant(name=called, make=make, leaves=leaves, **facts))
            return make

        return enter


class ControlList(list[Control]):
    """Controls in order of entry; ``add`` is a decorator for their builders."""

    def add(
        self, name: str | None = None, **facts: Any
    ) -> Callable[[Callable[..., Program]], Callable[..., Program]]:
        """Enter the decorated builder, under its own name unless ``name`` is given."""

        def enter(make: Callable[..., Program]) -> Callable[..., Program]:
            self.append(Control(name=name or make.__name__, make=make, **facts))
            return make

        return enter


class UnknowableList(list[Unknowable]):
    """Unknowable programs in order of entry; ``add`` decorates their builders."""

    def add(
        self, **facts: Any
    ) -> Callable[[Callable[..., Program]], Callable[..., Program]]:
        """Enter the decorated builder under its own name."""

        def enter(make: Callable[..., Program]) -> Callable[..., Program]:
            self.append(Unknowable(name=make.__name__, make=make, **facts))
            return make

        return enter
