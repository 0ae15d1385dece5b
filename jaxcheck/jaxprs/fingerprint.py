"""A hashable value that two programs share exactly if they are the same program.

Used to find a program that was compiled before, and, with ``loose``, to tell a loss
function that traces differently each time. Constants are not part of it. What cannot be
compared by value (a callback's function, say) is compared by identity, so that two
programs are never taken for the same by mistake; a loose fingerprint leaves it out,
because a function traced twice makes such objects anew.
"""

from __future__ import annotations

import enum
from collections.abc import Hashable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxcheck.jaxprs import compat
from jaxcheck.jaxprs.compat import Equation, Program

# Functions behind custom rules: new objects at each trace, and never called by running
# a program, only by differentiating it.
_RULE_FUNCTIONS = ("jvp_jaxpr_fun", "fwd_jaxpr_thunk", "bwd", "out_trees")
_PLAIN = (bool, int, float, complex, str, bytes, type(None), type, np.dtype, enum.Enum)


def fingerprint(program: Program, *, loose: bool = False) -> Hashable:
    """Structure, shapes, dtypes, literals and parameters of ``program``."""
    jaxpr, consts = compat.opened(program)
    number: dict[Any, int] = {}

    def atom(a: Any) -> Hashable:
        if compat.is_literal(a):
            return ("literal", _value(np.asarray(a.val), loose), str(a.aval))
        return number[a]

    def define(v: Any) -> Hashable:
        number[v] = len(number)
        return str(v.aval)

    inputs = tuple(define(v) for v in [*jaxpr.constvars, *jaxpr.invars])
    body = tuple(
        (
            eqn.primitive.name,
            tuple(atom(a) for a in eqn.invars),
            _params(eqn, loose),
            tuple(define(v) for v in eqn.outvars),
        )
        for eqn in jaxpr.eqns
    )
    return len(consts), inputs, body, tuple(atom(a) for a in jaxpr.outvars)


def _params(eqn: Equation, loose: bool) -> Hashable:
    custom = eqn.primitive.name.startswith("custom_")
    return tuple(
        (key, _value(value, loose))
        for key, value in sorted(eqn.params.items())
        if not (custom and key in _RULE_FUNCTIONS)
    )


def _value(value: Any, loose: bool) -> Hashable:
    if compat.is_program(value):
        return fingerprint(value, loose=loose)
    if isinstance(value, np.ndarray):
        return (value.shape, str(value.dtype), value.tobytes())
    if isinstance(value, tuple | list):
        items: Any = value
        return tuple(_value(item, loose) for item in items)
    if isinstance(value, _PLAIN):
        return value
    if loose:
        return type(value).__name__
    return value if _has_value(value) else Same(value)


def _has_value(value: Any) -> bool:
    """Whether ``value`` can be hashed, and equality is about more than identity."""
    own_equality: Any = type(value).__eq__
    if own_equality is object.__eq__ or callable(value):
        return False
    try:
        hash(value)
    except TypeError:
        return False
    return True


class Same:
    """Equal to nothing but itself; keeps the object alive, so that its id is taken."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Same) and self.value is other.value

    def __hash__(self) -> int:
        return id(self.value)


def same_constants(first: Program, second: Program) -> bool:
    """Whether two traces captured the same constants, bit by bit."""
    return all(
        _same(a, b)
        for a, b in zip(compat.opened(first)[1], compat.opened(second)[1], strict=True)
    )


def _same(a: Any, b: Any) -> bool:
    if a is b:
        return True
    first, second = _bits(a), _bits(b)
    if first is None or second is None:
        return type(a) is type(b)
    same_kind = first.dtype == second.dtype and first.shape == second.shape
    return same_kind and first.tobytes() == second.tobytes()


def _bits(value: Any) -> Any:
    """A constant as a NumPy array; None if it is no array."""
    if isinstance(value, jax.Array) and jnp.issubdtype(
        value.dtype, jax.dtypes.prng_key
    ):
        value = jax.random.key_data(value)
    return np.asarray(value) if hasattr(value, "dtype") else None
