"""How much of a program's work depends on each of its inputs, estimated.

Work is counted in multiplications and additions of products, and in elements of
everything else; a loop whose length is not known counts once.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from jaxcheck.jaxprs import compat, interpret
from jaxcheck.jaxprs.compat import Equation, Program

FloatArray = np.ndarray[Any, np.dtype[np.float64]]
BoolArray = np.ndarray[Any, np.dtype[np.bool_]]


def work_behind_inputs(program: Program) -> tuple[FloatArray, BoolArray]:
    """Work of each equation, and whether it depends on each input.

    Args:
        program: a jaxpr; equations inside an equation are counted with it.

    Returns:
        Two arrays, [equations] and [equations, inputs].
    """
    jaxpr, _ = compat.opened(program)
    inputs = np.eye(len(jaxpr.invars), dtype=bool)
    behind: dict[Any, BoolArray] = dict(zip(jaxpr.invars, inputs, strict=True))
    reached = np.zeros((len(jaxpr.eqns), len(jaxpr.invars)), bool)
    for k, eqn in enumerate(jaxpr.eqns):
        for v in eqn.invars:
            if not compat.is_literal(v) and v in behind:
                reached[k] |= behind[v]
        behind.update((v, reached[k]) for v in eqn.outvars)
    work = np.array([_work(eqn) for eqn in jaxpr.eqns], np.float64)
    return work, reached


def _work(eqn: Equation) -> float:
    inner = [
        sum(map(_work, compat.opened(program)[0].eqns))
        for program in interpret.nested_programs(eqn)
    ]
    if inner:
        return sum(inner) * eqn.params.get("length", 1)
    made = float(sum(math.prod(getattr(v.aval, "shape", ())) for v in eqn.outvars))
    if eqn.primitive.name == "dot_general":
        (axes, _), _ = eqn.params["dimension_numbers"]
        return made * math.prod(eqn.invars[0].aval.shape[a] for a in axes)
    if eqn.primitive.name == "conv_general_dilated":
        kernel = eqn.invars[1].aval.shape
        return (
            made
            * math.prod(kernel)
            / kernel[eqn.params["dimension_numbers"].rhs_spec[0]]
        )
    return made
