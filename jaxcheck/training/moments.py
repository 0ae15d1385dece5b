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

from jaxcheck.training.counts import Count, count
from jaxcheck.training.histogram import log2_histogram
from jaxcheck.training.placement import Join
from jaxcheck.training.sizes import Size, size_of, sum_squares


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


def moments_of(value: jax.Array, axes: tuple[int, ...]) -> Moments:
    """Sum over ``axes`` of what ``sizes.as_real`` makes of an array."""
    size = size_of(value, axes)
    elements = math.prod(value.shape[k] for k in axes)
    finite = float(elements) - size.nonfinite.rough
    counted = jnp.isfinite(value)
    # Zeros and bins are of the unscaled value: a scaled one may underflow.
    bins = log2_histogram(value, axes)
    scaled = jnp.where(counted, value, 0.0) * jnp.expand_dims(1.0 / size.unit, axes)
    total = jnp.sum(scaled, axis=axes)
    mean = jnp.expand_dims(over(total, finite), axes)
    apart = jnp.where(counted, scaled - mean, 0.0)
    return Moments(
        size=size,
        finite=finite,
        total=total,
        deviations=sum_squares(apart, axes),
        zeros=count(value == 0, axes, value.dtype).rough,
        histogram=Count(bins.astype(value.dtype), bins),
    )


def over(sums: jax.Array, numbers: jax.Array) -> jax.Array:
    """A sum over a number of elements, 0 where there are none."""
    return jnp.where(numbers > 0, sums / jnp.where(numbers > 0, numbers, 1.0), 0.0)
