"""The derivative of one equation, or of a loop's body, as a program of its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax

from jaxcheck.jaxprs import compat, interpret
from jaxcheck.jaxprs.compat import Equation, Program
from jaxcheck.places.births.activity import depends
from jaxcheck.places.births.cotangents import Cotangents
from jaxcheck.places.births.explain import CannotOpenError
from jaxcheck.places.births.marks import Marked, Run
from jaxcheck.places.births.tape import Frame
from jaxcheck.trees import is_inexact


class Pullback(NamedTuple):
    """The derivative of an equation or a program.

    Attributes:
        program: ``(operands..., cotangents...) -> cotangents of the operands``.
        run: evaluates it.
        live: the outputs whose cotangents it takes.
        moved: the operands whose cotangents it gives, structural zeros left out.
    """

    program: Program
    run: Run
    live: tuple[int, ...]
    moved: tuple[int, ...]


class Site(NamedTuple):
    """An equation of a running program, with what it takes, gave, and is sent back."""

    frame: Frame
    k: int
    ins: list[Marked]
    outs: list[Marked]
    cotangents: Cotangents

    @property
    def eqn(self) -> Equation:
        """The equation."""
        return self.frame.equations[self.k]


def derivative(
    site: Site,
    function: Callable[[list[Any]], list[Any]],
    ins: Sequence[Marked],
    moved: Sequence[bool],
    live: tuple[int, ...],
) -> tuple[Program, tuple[int, ...]]:
    """The derivative of a function as a program, and the operands it speaks of.

    Raises:
        CannotOpenError: JAX cannot differentiate it alone.
    """
    values = [x.value for x in ins]
    sent = [site.cotangents[j] for j in live]
    numbers = [
        j
        for j, (m, x) in enumerate(zip(moved, values, strict=True))
        if m and is_inexact(x.dtype)
    ]

    def pulled(*every: Any) -> list[Any]:
        operands = list(every[: len(values)])

        def moving(*some: Any) -> list[Any]:
            full = list(operands)
            for j, value in zip(numbers, some, strict=True):
                full[j] = value
            outs = function(full)
            return [outs[j] for j in live]

        _, pull = jax.vjp(moving, *(operands[j] for j in numbers))
        return list(pull(list(every[len(values) :])))

    every = [*values, *(c.value for c in sent if c is not None)]
    try:
        program = compat.make_program(pulled, every)
    except Exception as error:
        reason = f"{type(error).__name__}: {error}"
        raise CannotOpenError(reason, site.frame, site.k) from error
    back = depends(program, len(values))
    kept = [i for i, does in enumerate(back) if does]
    return _with_outputs(program, kept), tuple(numbers[i] for i in kept)


def _with_outputs(program: Program, kept: Sequence[int]) -> Program:
    def some(*values: Any) -> list[Any]:
        outs = interpret.evaluate(program, values)
        return [outs[i] for i in kept]

    jaxpr, _ = compat.opened(program)
    if len(kept) == len(jaxpr.outvars):
        return program
    return compat.make_program(some, [compat.struct(v.aval) for v in jaxpr.invars])
