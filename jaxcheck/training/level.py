"""What size is usual, and which sizes are not: running statistics of log-norms.

Norms are heavy-tailed and span decades, so it is their logarithms that have a mean and
a deviation. What is not finite, zero, or far above the usual is not taken into these:
one NaN or one spike must not widen the band that the next one is held against. What
stays far above it is the new usual after a while.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

# Share of a new value in the averages, once there are enough of them.
_RATE = 0.02
# Healthy values that are needed before one can be unusual.
WARM = 20
# Deviations that make a spike, and the least that counts as one: a factor of 4.5.
DEVIATIONS = 6.0
_LEAST = 0.25
# Spikes in a row that are a new usual, and large values in a row that are growth.
_SETTLED = 10
# Times the size after the warm-up that is growth.
GROWTH = 100.0


class Level(NamedTuple):
    """Statistics of the sizes of rows, of the shape of what they are made from.

    Attributes:
        mean: running mean of log-norms; ``exp`` of it is the usual norm.
        variance: their running variance.
        seen: how many healthy values these were made from, int32.
        start: the mean after the first 20.
        spikes: values that were 6 deviations and a factor of 4.5 above the mean, int32.
        first_spike: step of the first, -1 if there was none, int32.
        largest: deviations of the largest spike.
        run: how many spikes in a row there are now, int32.
        high: how many values in a row are 100 times ``start`` now, int32.
        first_grown: step of the first of 10 such values in a row, or -1, int32.
    """

    mean: jax.Array
    variance: jax.Array
    seen: jax.Array
    start: jax.Array
    spikes: jax.Array
    first_spike: jax.Array
    largest: jax.Array
    run: jax.Array
    high: jax.Array
    first_grown: jax.Array


def no_level(shape: tuple[int, ...], dtype: Any) -> Level:
    """Before anything was seen."""

    def real() -> jax.Array:
        return jnp.zeros(shape, dtype)

    def whole(value: int = 0) -> jax.Array:
        return jnp.full(shape, value, jnp.int32)

    return Level(
        mean=real(),
        variance=real(),
        seen=whole(),
        start=real(),
        spikes=whole(),
        first_spike=whole(-1),
        largest=real(),
        run=whole(),
        high=whole(),
        first_grown=whole(-1),
    )


def observed(level: Level, norm: jax.Array, sound: jax.Array, step: jax.Array) -> Level:
    """The statistics with one more value.

    Args:
        level: those before it.
        norm: the values.
        sound: which of them were measured, of arrays that were finite.
        step: the number of this step.
    """
    healthy = sound & (norm > 0)
    value = jnp.log(jnp.where(healthy, norm, 1))  # infinite if the norm overflows
    warm = level.seen >= WARM
    deviation = jnp.maximum(jnp.sqrt(level.variance), _LEAST)
    off = (value - level.mean) / deviation
    spike = healthy & ((warm & (off > DEVIATIONS)) | jnp.isinf(value))
    run = jnp.where(spike, level.run + 1, jnp.where(healthy, 0, level.run))
    settled = spike & (run >= _SETTLED) & jnp.isfinite(value)
    taken = healthy & ~spike
    seen = level.seen + taken
    share = jnp.maximum(1 / jnp.maximum(seen, 1), _RATE).astype(norm.dtype)
    difference = jnp.where(taken, value - level.mean, 0)
    mean = level.mean + share * difference
    spread = (1 - share) * (level.variance + share * difference**2)
    mean = jnp.where(settled, value, mean)
    start = jnp.where(taken & (seen == WARM), mean, level.start)
    is_high = healthy & warm & (value - level.start > math.log(GROWTH))
    high = jnp.where(is_high, level.high + 1, jnp.where(healthy, 0, level.high))
    return Level(
        mean=mean,
        variance=jnp.where(taken, spread, level.variance),
        seen=seen,
        start=start,
        spikes=level.spikes + spike,
        first_spike=first(level.first_spike, spike, step),
        largest=jnp.where(spike, jnp.maximum(level.largest, off), level.largest),
        run=jnp.where(settled, 0, run),
        high=high,
        first_grown=first(level.first_grown, high >= _SETTLED, step - (_SETTLED - 1)),
    )


def first(known: jax.Array, now: jax.Array, step: jax.Array) -> jax.Array:
    """The first step with an event: ``known``, or this one if it was -1."""
    return jnp.where((known < 0) & now, step, known)
