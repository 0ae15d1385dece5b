"""What one program of the table is, and how a program is entered into it.

Each program is an ordinary function of arrays. It is traced on float32 inputs, and the
same Python function on the same numbers in float64 is its reference, so constants
written into a program are exact in float32 wherever a tight agreement is asked for.
Nothing here imports jaxcheck.
"""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

TIGHT = 1e-10


@dataclasses.dataclass(frozen=True, kw_only=True)
class Program:
    """A function, its inputs, and what its float64 reading must agree with.

    Attributes:
        name: identifies the program and seeds its inputs.
        make: ``make(rng)`` returns ``(function, inputs)``; the function returns a real
            scalar, or a pair of it and further outputs.
        gradient: how to differentiate: backward, forward, or not at all.
        reference: ``"float64"``: the same function on float64 inputs; ``"native"``: the
            traced program itself (where the function has no float64 form).
        rtol: relative agreement with the reference.
        as_traced: primitives that must run as they were traced.
        value_differs: the value under differentiation is not the function's value (a
            ``custom_vjp`` whose forward rule computes something else).
    """

    name: str
    make: Callable[[np.random.Generator], tuple[Callable[..., Any], tuple[Any, ...]]]
    gradient: Literal["backward", "forward", "none"] = "backward"
    reference: Literal["float64", "native"] = "float64"
    rtol: float = TIGHT
    as_traced: tuple[str, ...] = ()
    value_differs: bool = False

    def build(self) -> tuple[Callable[..., Any], list[Any]]:
        """A function of a flat list of arrays, and those arrays."""
        rng = np.random.default_rng(zlib.crc32(self.name.encode()))
        fun, inputs = self.make(rng)
        leaves, treedef = jax.tree_util.tree_flatten(inputs)

        def flat(*values: Any) -> Any:
            return fun(*jax.tree_util.tree_unflatten(treedef, values))

        return flat, leaves


PROGRAMS: list[Program] = []


def program(**options: Any) -> Callable[[Any], Any]:
    """Enter the decorated ``make(rng)`` under its own name."""

    def enter(make: Any) -> Any:
        name = make.__name__.strip("_")
        assert all(name != known.name for known in PROGRAMS), name
        PROGRAMS.append(Program(name=name, make=make, **options))
        return make

    return enter


def normal(rng: np.random.Generator, *shape: int) -> Any:
    """float32 numbers of either sign."""
    return np.asarray(rng.normal(size=shape), np.float32)


def positive(rng: np.random.Generator, *shape: int) -> Any:
    """float32 numbers between 0.5 and 1.5."""
    return np.asarray(rng.uniform(0.5, 1.5, size=shape), np.float32)


def weighted(out: Any) -> Any:
    """A scalar that gives every element of ``out`` a weight of its own."""
    weights = 1.0 + (np.arange(out.size) % 7).reshape(out.shape) / 8
    return jnp.sum(out * weights.astype(out.real.dtype)).real
