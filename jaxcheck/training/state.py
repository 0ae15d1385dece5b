"""The state of a monitor: everything that it has seen, in a few arrays.

Each array that goes into a jitted step and comes out of it costs some microseconds,
which short steps feel: what there is of rows is stacked, and named by properties.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxcheck.training.level import Level
from jaxcheck.training.samples import Details


class Watched(NamedTuple):
    """What a monitor has seen, by name; see ``MonitorState``."""

    step: jax.Array
    measured: jax.Array
    norm: jax.Array
    nonfinite: jax.Array
    bad_steps: jax.Array
    first_bad: jax.Array
    zero_run: jax.Array
    level: Level
    update_ratio: jax.Array
    details: Details
    looked: jax.Array
    lost_looks: jax.Array
    clipped: jax.Array
    recent: jax.Array
    losses: jax.Array
    first_loss: jax.Array


class MonitorState(NamedTuple):
    """What a monitor has seen.

    Arrays of shape ``[3, R]`` are of the gradient, the update and the parameters before
    it, in this order; their R rows are those of ``jaxcheck.leaf_names(params)``, and a
    last one for everything together. Steps count from 0. Integers are int32, numbers
    float32, or float64 if a parameter has 64 bits.

    Read ``norm`` and the other properties. They are parts of ``counts``, ``numbers``
    and ``totals``, whose layout is no promise.

    Attributes:
        inner: state of the optimizer that is wrapped.
        step: how many updates there were.
        counts: integers with R columns.
        numbers: floats with R columns.
        totals: integers of all rows together.
        recent: ``[window, 3, R]``, the last norms: that of step t in row t % window.
            -1 where nothing was measured, NaN where elements were not finite.
        losses: ``[window]``, likewise the ``value`` that ``update`` was given; infinity
            for one that is NaN, NaN where there was none.
        first_loss: the first of them that was finite, NaN before.
    """

    inner: Any
    step: jax.Array
    counts: jax.Array
    numbers: jax.Array
    totals: jax.Array
    recent: jax.Array
    losses: jax.Array
    first_loss: jax.Array

    @classmethod
    def of(cls, inner: Any, watched: Watched) -> MonitorState:
        """The state that holds ``watched``."""
        level = watched.level
        threes = watched.nonfinite, watched.bad_steps, watched.first_bad
        threes += watched.zero_run, level.seen, level.spikes, level.first_spike
        threes += level.run, level.high, level.first_grown
        counts = jnp.concatenate([*threes, watched.lost_looks[None]])
        threes = watched.norm, level.mean, level.variance, level.start, level.largest
        ones = jnp.stack([watched.update_ratio, *watched.details])
        totals = [*watched.measured, watched.looked, watched.clipped]
        return cls(
            inner=inner,
            step=watched.step,
            counts=counts,
            numbers=jnp.concatenate([*threes, ones]),
            totals=jnp.stack(totals),
            recent=watched.recent,
            losses=watched.losses,
            first_loss=watched.first_loss,
        )

    @property
    def watched(self) -> Watched:
        """Everything but ``inner``, by name."""
        return Watched(*(getattr(self, name) for name in Watched._fields))

    @property
    def measured(self) -> jax.Array:
        """``[3]``, how often each was measured."""
        return self.totals[..., :3]

    @property
    def norm(self) -> jax.Array:
        """``[3, R]``, √Σ|x|² of the finite elements, last time; -1 before it."""
        return _three(self.numbers, 0)

    @property
    def nonfinite(self) -> jax.Array:
        """``[3, R]``, how many elements were NaN or infinite, last time."""
        return _three(self.counts, 0)

    @property
    def bad_steps(self) -> jax.Array:
        """``[3, R]``, measurements with such elements."""
        return _three(self.counts, 1)

    @property
    def first_bad(self) -> jax.Array:
        """``[3, R]``, step of the first of these, -1 if there was none."""
        return _three(self.counts, 2)

    @property
    def zero_run(self) -> jax.Array:
        """``[3, R]``, measurements in a row that found exact zeros alone."""
        return _three(self.counts, 3)

    @property
    def level(self) -> Level:
        """Usual sizes, spikes and growth, arrays ``[3, R]``."""
        return Level(
            mean=_three(self.numbers, 1),
            variance=_three(self.numbers, 2),
            seen=_three(self.counts, 4),
            start=_three(self.numbers, 3),
            spikes=_three(self.counts, 5),
            first_spike=_three(self.counts, 6),
            largest=_three(self.numbers, 4),
            run=_three(self.counts, 7),
            high=_three(self.counts, 8),
            first_grown=_three(self.counts, 9),
        )

    @property
    def update_ratio(self) -> jax.Array:
        """``[R]``, ‖u‖/‖p‖ of the last update that was not zero; -1 before."""
        return self.numbers[..., -4, :]

    @property
    def details(self) -> Details:
        """What samples of elements showed last, arrays ``[R]``."""
        return Details(*(self.numbers[..., k, :] for k in (-3, -2, -1)))

    @property
    def looked(self) -> jax.Array:
        """Step of the last look at single elements."""
        return self.totals[..., 3]

    @property
    def lost_looks(self) -> jax.Array:
        """``[R]``, looks in a row at which most updates were lost."""
        return self.counts[..., -1, :]

    @property
    def clipped(self) -> jax.Array:
        """Steps in which the optimizer clipped; -1 if it is not known to."""
        return self.totals[..., 4]


def _three(array: jax.Array, number: int) -> jax.Array:
    """Of gradient, update and parameters. A state of several runs has axes before."""
    return array[..., 3 * number : 3 * number + 3, :]
