"""Array functions shared by the programs: real views, widening, safe norms.

All of them are jit-able and work where the arrays live.
"""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

Array = Any


def real_view(value: Array, xp: Any = jnp) -> Array:
    """A complex array as a real one with a last axis (real, imaginary)."""
    if jnp.iscomplexobj(value):
        return xp.stack([xp.real(value), xp.imag(value)], axis=-1)
    return value


def from_real_view(view: Array, is_complex: bool) -> Array:
    """The inverse of ``real_view``."""
    if is_complex:
        return jax.lax.complex(view[..., 0], view[..., 1])
    return view


def native_view(grad: Array, xp: Any = jnp) -> Array:
    """JAX's gradient of a complex leaf as derivatives by its real and imaginary part.

    For real f, ``jax.grad`` returns df/dx - i df/dy.
    """
    if jnp.iscomplexobj(grad):
        return xp.stack([xp.real(grad), -xp.imag(grad)], axis=-1)
    return grad


def count_bad(value: Array, xp: Any = jnp) -> Array:
    """Number of elements that are NaN or infinite."""
    # a sum of flags, never max: max loses NaN on some backends
    return xp.sum(~xp.isfinite(value), dtype=np.int32)


def norm(value: Array, xp: Any = jnp) -> Array:
    """2-norm that neither overflows nor underflows before it must."""
    largest = xp.max(xp.abs(value), initial=0.0)
    unit = xp.where((largest > 0) & xp.isfinite(largest), largest, 1.0)
    return xp.sqrt(xp.sum((value / unit) ** 2)) * unit


def rms(value: Array, xp: Any = jnp) -> Array:
    """Root mean square of all elements."""
    return norm(value, xp) / math.sqrt(max(1, math.prod(value.shape)))


def power_of_two(value: Array, xp: Any = jnp) -> Array:
    """The power of two at or below each positive value, exactly (exp2 rounds)."""
    _, exponent = xp.frexp(xp.where(value > 0, value, 1.0))
    return xp.ldexp(xp.ones(()), exponent - 1)
