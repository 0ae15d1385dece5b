"""What is summed over the elements of a gradient, such that rows can be joined.

A row is of the finite elements alone. Sums are of y = x/unit, see ``sizes``. The mean
is subtracted before squares are taken, for the difference of two sums of squares has no
digits left where the mean is large; rows are joined as Chan, Golub and LeVeque do it.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxcheck.training.counts import Count, countable
from jaxcheck.training.histogram import log2_histogram
from jaxcheck.training.placement import Join
from jaxcheck.training.sizes import Size, of_rows, scaled, unit_of
from jaxcheck.training.sums import summed


class Moments(NamedTuple):
    """Of the finite elements of rows.

    Attributes:
        size: how large they are.
        finite: how many there are.
        total: Σy.
        deviations: Σ(y − mean y)².
        zeros: how many are zero.
        histogram: how many there are in each bin.
    """

    size: Size
    finite: jax.Array
    total: jax.Array
    deviations: jax.Array
    zeros: jax.Array
    histogram: Count

    def joined(self, join: Join) -> Moments:
        """Of several rows together."""
        size = self.size.joined(join)
        ratio = self.size.unit / size.unit
        finite, total = join.add(self.finite), join.add(self.total * ratio)
        apart = over(self.total, self.finite) * ratio - over(total, finite)
        between = self.finite * jnp.square(apart)
        return Moments(
            size=size,
            finite=finite,
            total=total,
            deviations=join.add(self.deviations * jnp.square(ratio) + between),
            zeros=join.add(self.zeros),
            histogram=self.histogram.joined(join),
        )


def moments_of(value: jax.Array, keep: int | None = None) -> Moments:
    """Of what ``sizes.as_real`` makes of an array, along all axes but ``keep``."""
    dtype, finite = value.dtype, jnp.isfinite(value)
    # Zeros and bins are of the unscaled value: a scaled one may underflow.
    bad, zeros, largest = summed(
        [countable(flags, dtype) for flags in (~finite, value == 0)],
        keep,
        largest=[jnp.where(finite, jnp.abs(value), 0.0)],
    )
    unit, nonfinite = unit_of(largest), Count.of(bad, dtype)
    y, _ = scaled(value, unit, keep)
    squares, total = summed([jnp.square(y), y], keep)
    elements = math.prod(n for k, n in enumerate(value.shape) if k != keep)
    number = float(elements) - nonfinite.rough
    y, finite = scaled(value, unit, keep)
    mean = of_rows(over(total, number), value, keep)
    apart = jnp.where(finite, y - mean, 0.0)
    deviations, rest = summed([jnp.square(apart), apart], keep)
    bins = log2_histogram(value, keep)
    return Moments(
        size=Size(unit, squares, largest, nonfinite),
        finite=number,
        total=total,
        # The mean is rounded; its error leaves a rest, and a little too much.
        deviations=jnp.maximum(deviations - over(jnp.square(rest), number), 0.0),
        zeros=Count.of(zeros, dtype).rough,
        histogram=Count(bins.astype(dtype), bins),
    )


def over(sums: jax.Array, numbers: jax.Array) -> jax.Array:
    """A sum over a number of elements, 0 where there are none."""
    return jnp.where(numbers > 0, sums / jnp.where(numbers > 0, numbers, 1.0), 0.0)
