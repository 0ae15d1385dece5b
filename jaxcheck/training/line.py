r"""A loss along a line through its parameters, and what a gradient says of it.

What is differenced is the residual :math:`r(k) = f(x_k) - f(x) - g \cdot (x_k - x)`,
with the displacement that rounding has left of k steps, so parameters in bfloat16 are
as good as others. With

.. math:: e(k) = \frac{r(k) - r(-k)}{2k}, \qquad
   \text{bar}(k) = \tfrac23 |e(2k) - e(k)| + 2\,\frac{\text{noise}}{k} + \epsilon W,

the error bar of ``jaxcheck.check`` with :math:`\epsilon W = \epsilon \sum |g_i a_i|`
for the rounding of the gradient itself, and what kinks may be, a gradient agrees at one
step if :math:`|e(k)|` is within its bar. It is contradicted if it agrees at no step of
a ladder, by the same error at all of them. Where the error is large beside the noise,
finer steps count, in full precision: two kinks close to the point, one on each side,
may leave the curve of the loss as it is and look like an error of the gradient.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxcheck.training.directions import Leaf
from jaxcheck.training.placement import while_loop

# Steps of the first comparison, and of the ladder, each twice the last. Finer ones are
# put before it in full precision, and asked where noise leaves them something to say.
# In few digits a step below one says little but noise.
_FIRST = (1.0, 2.0)
_LADDER = (0.5, 1.0, 2.0, 4.0)
_FINER = (0.125, 0.25)
_COARSE_LADDER = (1.0, 2.0, 4.0)
# What a kink may be, of that which shows.
_HIDDEN = 1.25
# The deviation of 2S(k) − S(2k), with S(k) = (f(k) + f(−k) − 2 f(0)) / k, in units of
# the noise of f over k: 2, 2 and ½, ½ of the four outer values, and 3 of that between.
_KINK_NOISE = (2 * 2**2 + 2 * 0.5**2 + 3**2) ** 0.5
# Of the same error at several steps, the largest may differ from the smallest by this.
_STABLE = 0.2


class Comparison(NamedTuple):
    """A gradient and a loss over one step of a line.

    Attributes:
        parts: what the gradient predicts, by leaf.
        numerical: half the difference of both sides.
        error: half the difference of what is left of them, the prediction subtracted.
        bar: how large the error may be.
        is_finite: whether all values of the loss are.
    """

    parts: jax.Array
    numerical: jax.Array
    error: jax.Array
    bar: jax.Array
    is_finite: jax.Array

    @property
    def agrees(self) -> jax.Array:
        """Whether the error is within its bar."""
        return jnp.abs(self.error) <= self.bar

    @property
    def is_doubtful(self) -> jax.Array:
        """Whether a gradient that is finite had better be looked at more closely."""
        finite = self.is_finite & jnp.all(jnp.isfinite(self.parts))
        return finite & ~self.agrees


class Changes(NamedTuple):
    """At points of a line: of the loss, and what the gradient predicts of it.

    Attributes:
        loss: f(x_k) − f(x).
        parts: what is predicted, by leaf.
        sizes: the sum of the sizes of all terms of that.
    """

    loss: jax.Array
    parts: jax.Array
    sizes: jax.Array

    @property
    def residuals(self) -> jax.Array:
        """f(x_k) − f(x) − g·(x_k − x)."""
        return self.loss - jnp.sum(self.parts, axis=1)

    def between(self, start: int, stop: int) -> Changes:
        """Those of some of the points."""
        return Changes(*(x[start:stop] for x in self))

    def beside(self, further: Changes) -> Changes:
        """At one step to both sides, and one further, as ``_both`` orders them."""
        pairs = zip(self, further, strict=True)
        return Changes(
            *(jnp.concatenate([a[:1], b[:1], a[1:], b[1:]]) for a, b in pairs)
        )


class Vicinity(NamedTuple):
    """A loss about a point, and the gradient there.

    Attributes:
        loss: of the values of the leaves.
        leaves: the leaves that are moved, and their gradients.
        here: the loss at the point.
        eps: of the coarsest of parameters, gradients and computation.
        computed: of the coarsest dtype in which the loss is computed.
    """

    loss: Callable[[Sequence[jax.Array]], jax.Array]
    leaves: Sequence[Leaf]
    here: jax.Array
    eps: float
    computed: float

    @property
    def is_coarse(self) -> bool:
        """Whether the loss is computed in less digits than it is summed in."""
        return self.computed > float(jnp.finfo(self.here.dtype).eps)

    @property
    def looks(self) -> tuple[tuple[float, ...], ...]:
        """The points of a first look, of a second one, and of all that look closer.

        Where noise has to be measured, that is done at once, and there is no second.
        """
        closer = (*_both(self._ladder), *self._close)
        if self.is_coarse:
            return (*_both(_FIRST), *self._close), closer
        return _both(_FIRST[:1]), _both(_FIRST[1:]), closer

    def at(
        self, steps: Sequence[jax.Array], numbers: jax.Array, count: jax.Array
    ) -> Changes:
        """What numbers of steps change, the first ``count`` of them; 0 for others."""

        def further(state: tuple[jax.Array, Changes]) -> tuple[jax.Array, Changes]:
            k, changes = state
            new = self._changed(steps, numbers[k])
            pairs = zip(changes, new, strict=True)
            return k + 1, Changes(*(rows.at[k].set(row) for rows, row in pairs))

        start = (jnp.zeros((), jnp.int32), self.no_changes(len(numbers)))
        return while_loop(lambda state: state[0] < count, further, start)[1]

    def no_changes(self, points: int) -> Changes:
        """Zeros, in the shapes of so many points."""
        none = functools.partial(jnp.zeros, dtype=self.here.dtype)
        return Changes(none(points), none((points, len(self.leaves))), none(points))

    def first(self, changes: Changes) -> Comparison:
        """Of the first look. An error within noise and rounding is settled by that.

        It needs no second step to say what of it is truncation or a kink.
        """
        if self.is_coarse:
            apart = len(_both(_FIRST))
            both = changes.between(0, apart)
            return self._compared(both, self._noise(changes, apart))
        near = changes.between(0, 2)
        bar = 2 * self._known_noise + self.eps * near.sizes[0]
        return Comparison(
            parts=(near.parts[0] - near.parts[1]) / 2,
            numerical=_odd(near.loss, _FIRST[:1])[0],
            error=_odd(near.residuals, _FIRST[:1])[0],
            bar=bar,
            is_finite=jnp.isfinite(self.here) & jnp.all(jnp.isfinite(near.loss)),
        )

    def second(self, first: Comparison, near: Changes, far: Changes) -> Comparison:
        """Of the second look, where a first did not settle it, here or elsewhere."""
        both = near.between(0, 2).beside(far.between(0, 2))
        second = self._compared(both, self._known_noise)
        return second._replace(bar=jnp.where(first.agrees, first.bar, second.bar))

    def _compared(self, changes: Changes, noise: jax.Array) -> Comparison:
        """Of what both steps change."""
        rounding = self.eps * changes.sizes[0]
        bars = _bars(
            self._curved(changes), _FIRST, noise, rounding, asked=True, kink_noise=0.0
        )
        return Comparison(
            parts=(changes.parts[0] - changes.parts[len(_FIRST)]) / 2,
            numerical=_odd(changes.loss, _FIRST)[0],
            error=_odd(changes.residuals, _FIRST)[0],
            bar=bars[0],
            is_finite=jnp.isfinite(self.here) & jnp.all(jnp.isfinite(changes.loss)),
        )

    def contradicts(self, changes: Changes) -> jax.Array:
        """Whether all steps of a closer look say that the gradient is wrong, alike."""
        steps = self._ladder
        apart = len(_both(steps))
        ladder, noise = changes.between(0, apart), self._noise(changes, apart)
        rounding = self.eps * ladder.sizes[steps.index(1.0)]
        error = _odd(ladder.residuals, steps)[:-1]
        at = jnp.asarray(steps[:-1], error.dtype)
        # A finer step is asked where its noise is no more than half of the error.
        first = error[len(_FINER) if self.is_exact else 0]
        asked = (at > _FINER[-1]) | (2 * noise / at <= jnp.abs(first) / 2)
        bars = _bars(self._curved(ladder), steps, noise, rounding, asked)
        error = jnp.where(asked, error, first)
        stable = jnp.ptp(error) <= _STABLE * jnp.max(jnp.abs(error))
        return jnp.all((jnp.abs(error) > bars) | ~asked) & stable

    @property
    def is_exact(self) -> bool:
        """Whether nothing is coarser than the dtype of all sums."""
        return self.eps <= float(jnp.finfo(self.here.dtype).eps)

    @property
    def _ladder(self) -> tuple[float, ...]:
        return (*_FINER, *_LADDER) if self.is_exact else _COARSE_LADDER

    def _changed(self, steps: Sequence[jax.Array], number: jax.Array) -> Changes:
        moves = zip(self.leaves, steps, strict=True)
        moved = [leaf.moved(by, number) for leaf, by in moves]
        there, parts, sizes = zip(*moved, strict=True)
        loss = self.loss(there).astype(self.here.dtype) - self.here
        return Changes(loss, jnp.stack(parts), jnp.sum(jnp.stack(sizes)))

    @property
    def _known_noise(self) -> jax.Array:
        """The rounding of a loss value that is summed in the dtype of all sums."""
        return float(jnp.finfo(self.here.dtype).eps) * jnp.abs(self.here)

    def _noise(self, changes: Changes, at: int) -> jax.Array:
        """The noise of one loss value, from the points ``_close``, from ``at`` on.

        Rounding of the loss itself is known. So is that of a computation in the same
        digits, about as much; in fewer digits it depends on how many terms are averaged
        and is measured alone.
        """
        close = changes.between(at, at + len(self._close))
        return jnp.maximum(self._known_noise, _scatter(self._curved(close)))

    @property
    def _close(self) -> tuple[float, ...]:
        """Points between which a loss without noise would be a parabola.

        Parameters that are cast to fewer digits move only every so often, so points
        must be further apart there.
        """
        spacing = 2.0**-2 if self.is_coarse else 2.0**-6
        return tuple(k * spacing for k in (-4, -3, -2, -1, 1, 2, 3, 4))

    def _curved(self, changes: Changes) -> jax.Array:
        """What error bars are read off: changes of the loss, or residuals.

        The gradient had better not be read for that, lest a wild one widen its own bar.
        Where parameters are stored in few digits, though, steps are not equal, and what
        is linear in them has to be taken out first.
        """
        stored = (jnp.finfo(leaf.value.dtype).dtype for leaf in self.leaves)
        exact = all(dtype == self.here.dtype for dtype in stored)
        return changes.loss if exact else changes.residuals


def _both(steps: Sequence[float]) -> tuple[float, ...]:
    return (*steps, *(-k for k in steps))


def _odd(values: jax.Array, steps: Sequence[float]) -> jax.Array:
    """Half the difference of both sides, per step."""
    plus, minus = jnp.split(values, 2)
    return (plus - minus) / (2 * jnp.asarray(steps, values.dtype))


def _bars(
    changes: jax.Array,
    steps: Sequence[float],
    noise: jax.Array,
    rounding: jax.Array,
    asked: jax.Array | bool,
    kink_noise: float = _KINK_NOISE,
) -> jax.Array:
    """The bar at each step but the last, of which it takes the truncation.

    Let S(k) be the difference of the slopes on both sides of the point. It grows with k
    where the loss is curved, and stays where it has a kink: 2S(k) − S(2k) is the kink
    alone. Any slope between those on both sides is right there; kinks that are apart
    may hide part of one another, so all of it is allowed and a quarter more, not half,
    and the largest that any step shows that is ``asked``. It is computed from five
    values of the loss; the deviation that noise gives it is subtracted, for noise has
    its own part of the bar.
    """
    at = jnp.asarray(steps, changes.dtype)
    plus, minus = jnp.split(changes, 2)
    slopes = (plus + minus) / at
    deviation = kink_noise * noise / at[:-1]
    kinks = jnp.maximum(jnp.abs(2 * slopes[:-1] - slopes[1:]) - deviation, 0.0)
    truncation = 2 / 3 * jnp.abs(jnp.diff(_odd(changes, steps)))
    kink = _HIDDEN * jnp.max(jnp.where(asked, kinks, 0.0))
    return truncation + 2 * noise / at[:-1] + rounding + kink


def _scatter(changes: jax.Array) -> jax.Array:
    """The noise of one value: third differences have 20 times its variance."""
    before, after = jnp.split(changes, 2)
    row = jnp.concatenate([before, jnp.zeros_like(before[:1]), after])
    return jnp.sqrt(jnp.mean(jnp.square(jnp.diff(row, n=3))) / 20)
