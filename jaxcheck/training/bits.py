"""Floating-point numbers by their bits: exact powers of two, and sameness.

Float formats of IEEE 754 keep the sign in the first bit, then the exponent, then the
digits, so what a logarithm would round is a shift here.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp


def bits_of(value: jax.Array) -> jax.Array:
    """The bits of real floats, as unsigned integers of their width."""
    unsigned = jnp.dtype(f"uint{jnp.finfo(value.dtype).bits}")
    return jax.lax.bitcast_convert_type(value, unsigned)


def exponent(value: jax.Array) -> jax.Array:
    """⌊log₂|x|⌋ of finite floats in int32; of zero and denormals, less than of others.

    Example:
        >>> exponent(jnp.array([1.0, -3.0, 0.75])).tolist()
        [0, 1, -1]
    """
    info = jnp.finfo(value.dtype)
    biased = bits_of(jnp.abs(value)) >> info.nmant
    return biased.astype(jnp.int32) - (info.maxexp - 1)


def power_of_two(value: jax.Array) -> jax.Array:
    """The power of two at or below positive floats that are not denormal.

    Example:
        >>> power_of_two(jnp.array([1.0, 3.0, 0.75])).tolist()
        [1.0, 2.0, 0.5]
    """
    digits = jnp.finfo(value.dtype).nmant
    bits = bits_of(value) >> digits << digits
    return jax.lax.bitcast_convert_type(bits, value.dtype)


def same(left: jax.Array, right: jax.Array) -> jax.Array:
    """Whether floats of one dtype are the same number, −0 and 0 being one.

    Floats compared as such need not have been rounded to their dtype: XLA may keep more
    precision than it was told to (``xla_allow_excess_precision``).
    """
    left, right = bits_of(left), bits_of(right)
    # Shifting the sign out leaves nothing of a zero.
    return (left == right) | (((left | right) << 1) == 0)
