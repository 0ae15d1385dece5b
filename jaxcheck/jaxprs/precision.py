"""In how few digits a program computes, from its equations alone."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from jaxcheck.jaxprs.compat import Equation, Program
from jaxcheck.jaxprs.interpret import equations
from jaxcheck.trees import is_inexact

# What accelerators make of float32 operands of a product unless told otherwise.
_PRODUCTS = ("dot_general", "conv_general_dilated")
_SHORT = {"gpu": 2.0**-10, "tpu": 2.0**-7}


def coarsest_eps(program: Program) -> float:
    """The largest machine epsilon of any value that the program computes.

    A product of float32 matrices counts with the digits that the default backend keeps
    of its operands: TF32 on GPU, bfloat16 on TPU.
    """
    return max((_eps(eqn) for eqn in equations(program)), default=0.0)


def _eps(eqn: Equation) -> float:
    dtypes = [getattr(var.aval, "dtype", None) for var in eqn.outvars]
    known = [float(jnp.finfo(d).eps) for d in dtypes if d is not None and is_inexact(d)]
    eps = max(known, default=0.0)
    if eqn.primitive.name in _PRODUCTS and _is_by_default(eqn.params.get("precision")):
        return max(eps, _SHORT.get(jax.default_backend(), 0.0))
    return eps


def _is_by_default(precision: Any) -> bool:
    """Whether an equation leaves it to the backend how many digits it multiplies."""
    asked = precision if isinstance(precision, tuple) else (precision,)
    return all(p in (None, jax.lax.Precision.DEFAULT) for p in asked)
