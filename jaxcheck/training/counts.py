"""Counts of elements that do not wrap around, whatever the size of a model.

Integers are 32 bits wide unless x64 is on, and models have more elements than that.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxcheck.training.placement import Join

_MOST = 2**31 - 1
# The floating count is right to some units in the last place, far less than this.
_SURE = 2**31 - 2**21


class Count(NamedTuple):
    """Numbers of elements.

    Attributes:
        rough: floating, right to its rounding for any number.
        exact: int32; 2³¹ − 1 stands for about that and more.
    """

    rough: jax.Array
    exact: jax.Array

    @classmethod
    def of(cls, counts: jax.Array, dtype: Any) -> Count:
        """From sums of what ``countable`` gives."""
        if jnp.issubdtype(counts.dtype, jnp.integer):
            return cls(counts.astype(dtype), counts)
        return _saturated(counts, jnp.minimum(counts, _SURE).astype(jnp.int32))

    def joined(self, join: Join) -> Count:
        """Of several rows together."""
        return _saturated(join.add(self.rough), join.add(self.exact))


def countable(flags: jax.Array, dtype: Any) -> jax.Array:
    """Flags as numbers whose sum does not wrap around."""
    return flags.astype(jnp.int32 if flags.size <= _MOST else dtype)


def count(flags: jax.Array, axes: tuple[int, ...], dtype: Any) -> Count:
    """How many of ``flags`` are set, along ``axes`` (in rising order)."""
    if flags.size <= _MOST:
        exact = jnp.sum(flags, axis=axes, dtype=jnp.int32)
        return Count(exact.astype(dtype), exact)
    # One axis alone is shorter than that.
    exact = jnp.sum(flags, axis=axes[-1:], dtype=jnp.int32)
    return _saturated(
        jnp.sum(exact.astype(dtype), axis=axes[:-1]),
        jnp.sum(exact, axis=axes[:-1], dtype=jnp.int32),
    )


def _saturated(rough: jax.Array, exact: jax.Array) -> Count:
    return Count(rough, jnp.where(rough < _SURE, exact, _MOST))
