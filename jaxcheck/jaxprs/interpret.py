"""Walk a jaxpr equation by equation, with a rule that decides what each one does.

This is all there is to re-running a program: read the operands, ask the rule, write the
results. What the rule does with nested jaxprs is its own affair. Beware that a rule
which does not reproduce an equation's meaning changes the program silently; every rule
here is tested by evaluating real programs both ways.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from jaxcheck.jaxprs import compat
from jaxcheck.jaxprs.compat import Equation, Program

Rule = Callable[[Equation, list[Any]], Sequence[Any]]
Constant = Callable[[Any], Any]


def literal_value(atom: Any) -> Any:
    """A literal as an array of its own dtype (never a Python scalar).

    Under x64 a bare Python integer would become int64 and mix with the program's int32
    index arithmetic.
    """
    return np.asarray(atom.val, dtype=atom.aval.dtype)


def interpret(
    program: Program,
    args: Sequence[Any],
    rule: Rule,
    constant: Constant,
    consts: Sequence[Any] | None = None,
) -> list[Any]:
    """Run ``program`` on ``args``, each equation through ``rule``.

    Args:
        program: a jaxpr, open or closed.
        args: one value for each input, tracers allowed.
        rule: ``(equation, operands) -> outputs``.
        constant: applied to the program's constants and literals when they are read.
        consts: values to use in place of the program's own constants.

    Returns:
        The values of the program's outputs.
    """
    jaxpr, own_consts = compat.opened(program)
    consts = own_consts if consts is None else consts
    env: dict[Any, Any] = {}

    def read(atom: Any) -> Any:
        if compat.is_literal(atom):
            return constant(literal_value(atom))
        return env[atom]

    env.update(zip(jaxpr.constvars, map(constant, consts), strict=True))
    env.update(zip(jaxpr.invars, args, strict=True))
    for eqn in jaxpr.eqns:
        with compat.context(eqn):
            outputs = rule(eqn, [read(v) for v in eqn.invars])
        env.update(zip(eqn.outvars, outputs, strict=True))
    return [read(v) for v in jaxpr.outvars]


def evaluate(
    program: Program, args: Sequence[Any], consts: Sequence[Any] | None = None
) -> list[Any]:
    """Run ``program`` as it is; ``consts`` replace its own constants if given."""
    return interpret(program, args, compat.bind, lambda c: c, consts)


def nested_programs(eqn: Equation) -> Iterator[Program]:
    """Every jaxpr among an equation's parameters, at any depth of tuples."""
    for value in eqn.params.values():
        yield from _programs_in(value)


def _programs_in(value: Any) -> Iterator[Program]:
    if compat.is_program(value):
        yield value
    elif isinstance(value, tuple | list):
        for item in value:  # pyright: ignore[reportUnknownVariableType]
            yield from _programs_in(item)


def map_programs(value: Any, fun: Callable[[Program], Program]) -> Any:
    """Replace every jaxpr inside a parameter by ``fun`` of it, structure kept."""
    if compat.is_program(value):
        return fun(value)
    if isinstance(value, tuple) and any(True for _ in _programs_in(value)):
        items = [map_programs(item, fun) for item in value]
        return type(value)(*items) if hasattr(value, "_fields") else tuple(items)
    return value


def equations(program: Program) -> Iterator[Equation]:
    """Every equation of a program, nested jaxprs included, in program order."""
    jaxpr, _ = compat.opened(program)
    for eqn in jaxpr.eqns:
        yield eqn
        for inner in nested_programs(eqn):
            yield from equations(inner)


def live_equations(program: Program) -> list[Equation]:
    """Top-level equations that the outputs need, or that have effects, in order."""
    jaxpr, _ = compat.opened(program)
    needed = {v for v in jaxpr.outvars if not compat.is_literal(v)}
    kept: list[Equation] = []
    for eqn in reversed(jaxpr.eqns):
        if eqn.effects or any(v in needed for v in eqn.outvars):
            needed.update(v for v in eqn.invars if not compat.is_literal(v))
            kept.append(eqn)
    return kept[::-1]


def used_inputs(program: Program) -> list[bool]:
    """For each input, whether an output may depend on it."""
    jaxpr, _ = compat.opened(program)
    used = {v for v in jaxpr.outvars if not compat.is_literal(v)}
    for eqn in live_equations(program):
        used.update(v for v in eqn.invars if not compat.is_literal(v))
    return [v in used for v in jaxpr.invars]
