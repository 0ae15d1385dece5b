"""Updates that are lost to rounding: a parameter plus its update is the parameter."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxcheck.training.bits import same
from jaxcheck.training.counts import Count, countable
from jaxcheck.training.placement import Join
from jaxcheck.training.sums import summed


class Lost(NamedTuple):
    """Numbers of elements of rows.

    Attributes:
        moving: with a finite parameter and a finite update that is not zero.
        lost: those of them whose parameter stays where it is.
    """

    moving: jax.Array
    lost: jax.Array

    def joined(self, join: Join) -> Lost:
        """Of several rows together."""
        return Lost(join.add(self.moving), join.add(self.lost))


def lost_of(param: jax.Array, update: jax.Array, keep: int | None, dtype: Any) -> Lost:
    """Count along all axes but ``keep``."""
    flags = lost_in(param, update, dtype)
    counts = summed([countable(x, dtype) for x in flags], keep)
    return Lost(*(Count.of(x, dtype).rough for x in counts))


def lost_in(
    param: jax.Array, update: jax.Array, dtype: Any
) -> tuple[jax.Array, jax.Array]:
    """Which elements have an update, and of which ``optax.apply_updates`` loses it.

    The sum is taken in ``dtype`` (float32 or float64, no shorter than the arrays) and
    rounded to the dtype of the parameter. For shorter ones that is what one rounding of
    the exact sum gives: the wide dtype has twice their digits and two more.
    """
    finite = jnp.isfinite(update) & jnp.isfinite(param)
    moving = finite & (update != 0)
    stays = moving
    kind = jnp.iscomplexobj(param)
    for at, by in zip(_parts(param, kind), _parts(update, kind), strict=True):
        moved = (at.astype(dtype) + by.astype(dtype)).astype(at.dtype)
        stays = stays & same(at, moved)
    return moving, stays


def _parts(array: jax.Array, is_complex: bool) -> tuple[jax.Array, ...]:
    real = jnp.real(array)
    return (real, jnp.imag(array)) if is_complex else (real,)
