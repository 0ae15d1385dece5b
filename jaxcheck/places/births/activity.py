"""What depends on what in a program, as far as derivatives go."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxcheck.jaxprs import compat
from jaxcheck.jaxprs.compat import Program
from jaxcheck.trees import is_inexact


def depends(program: Program, first: int) -> list[bool]:
    """For each output, whether it depends on an input from ``first`` on."""
    jaxpr, _ = compat.opened(program)
    reached = set(jaxpr.invars[first:])
    for eqn in jaxpr.eqns:
        if any(not compat.is_literal(v) and v in reached for v in eqn.invars):
            reached.update(eqn.outvars)
    return [not compat.is_literal(v) and v in reached for v in jaxpr.outvars]


def active_variables(program: Program, wanted: Sequence[bool]) -> set[Any]:
    """The variables through which a wanted input can act on an output."""
    jaxpr, _ = compat.opened(program)
    active = {v for v, w in zip(jaxpr.invars, wanted, strict=True) if w and _inexact(v)}
    for eqn in jaxpr.eqns:
        if eqn.primitive.name == "stop_gradient":
            continue
        if any(not compat.is_literal(v) and v in active for v in eqn.invars):
            active.update(v for v in eqn.outvars if _inexact(v))
    return active


def scan_activity(body: Program, n: int, m: int, moved: Sequence[bool]) -> list[bool]:
    """Which inputs of a scan's body are active, once the carry has gone round."""
    wanted = list(moved)
    outvars = compat.opened(body)[0].outvars[:m]
    while True:
        active = active_variables(body, wanted)
        carry = [
            w or (not compat.is_literal(v) and v in active)
            for w, v in zip(wanted[n : n + m], outvars, strict=True)
        ]
        if carry == wanted[n : n + m]:
            return wanted
        wanted[n : n + m] = carry


def _inexact(var: Any) -> bool:
    return is_inexact(getattr(var.aval, "dtype", np.dtype(bool)))
