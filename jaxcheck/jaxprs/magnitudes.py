"""The size of what was summed to give a gradient.

A gradient that is truly zero is a sum of terms that cancel; its rounding error is to be
judged by the size of those terms, not by the zero. The last linear operation that makes
a gradient (the contraction over the batch, the sum over a broadcast) is evaluated once
more on absolute values. Where that operation is none of the known ones the gradient's
own absolute value is returned, which is never too large.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp

from jaxcheck.jaxprs import compat, interpret
from jaxcheck.jaxprs.compat import Equation, Program
from jaxcheck.trees import is_inexact

# Linear in their floating operands, with coefficients 0 and 1 only.
_MOVES = (
    "transpose",
    "reshape",
    "convert_element_type",
    "copy",
    "squeeze",
    "expand_dims",
    "rev",
    "broadcast_in_dim",
    "slice",
    "dynamic_slice",
    "concatenate",
    "pad",
    "reduce_sum",
    "scatter-add",
    "dynamic_update_slice",
    "gather",
    "select_n",
    "name",
)
_PRODUCTS = ("dot_general", "conv_general_dilated")
_SUMS = ("add_any", "add", "sub")


def run_with_magnitudes(
    program: Program, args: Sequence[Any], positions: Sequence[int]
) -> tuple[list[Any], list[Any]]:
    """Run ``program``; for chosen outputs return the size of what was summed too.

    Args:
        program: a jaxpr, calls inlined.
        args: its inputs.
        positions: which outputs (real arrays) to measure.

    Returns:
        The outputs, and for each position an array like the output, at least as large
        as its absolute value.
    """
    operands: dict[int, list[Any]] = {}

    def rule(eqn: Equation, values: list[Any]) -> list[Any]:
        operands[id(eqn)] = values
        return compat.bind(eqn, values)

    outputs = interpret.interpret(program, args, rule, lambda c: c)
    jaxpr, _ = compat.opened(program)
    producer = {v: eqn for eqn in jaxpr.eqns for v in eqn.outvars}
    walk = _Walk(producer, operands)
    sizes = [
        jnp.maximum(walk.size(jaxpr.outvars[k], outputs[k]), jnp.abs(outputs[k]))
        for k in positions
    ]
    return outputs, sizes


class _Walk:
    def __init__(self, producer: dict[Any, Any], operands: dict[int, Any]) -> None:
        self.producer = producer
        self.operands = operands
        self.known: dict[Any, Any] = {}

    def size(self, atom: Any, value: Any) -> Any:
        """Absolute sum behind ``atom``, whose value is ``value``."""
        if not is_inexact(value.dtype):
            return value
        if compat.is_literal(atom) or atom not in self.producer:
            return jnp.abs(value)
        if atom not in self.known:
            self.known[atom] = self._of(self.producer[atom], value)
        return self.known[atom]

    def _of(self, eqn: Equation, value: Any) -> Any:
        name, values = eqn.primitive.name, self.operands[id(eqn)]
        if any(jnp.iscomplexobj(v) for v in [*values, value]):
            return jnp.abs(value)
        if name == "neg":
            return self.size(eqn.invars[0], values[0])
        if name in _SUMS:
            first, second = map(self.size, eqn.invars, values)
            return first + second
        if name in _MOVES:
            return compat.bind(eqn, list(map(self.size, eqn.invars, values)))[0]
        if name in _PRODUCTS:
            return compat.bind(eqn, [jnp.abs(v) for v in values])[0]
        return jnp.abs(value)
