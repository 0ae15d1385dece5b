r"""A gradient checked now and then while it trains, by array code inside ``jit``.

The loss is moved along one direction in which every leaf has a share (``directions``),
and the change is held against what the gradient predicts. What is differenced is the
residual :math:`r(k) = f(x_k) - f(x) - g \cdot (x_k - x)`, with the displacement that
rounding has left of k steps, so parameters in bfloat16 are as good as others. With

.. math:: e(k) = \frac{r(k) - r(-k)}{2k}, \qquad
   \text{bar}(k) = \tfrac23 |e(2k) - e(k)| + 2\,\frac{\text{noise}}{k} + \epsilon W,

the error bar of ``jaxcheck.check`` with :math:`\epsilon W = \epsilon \sum |g_i a_i|`
for the rounding of the gradient itself, the gradient agrees if :math:`|e(1)|` is within
its bar. That costs five evaluations. Otherwise, and only then, a ladder of steps is
gone up in up to four directions, and noise is measured. Two of them must show an error;
kinks may hide it in the others. Where the error is large beside the noise, finer steps
count, in full precision: two kinks close to the point, one on each side, may leave the
curve of the loss as it is and look like an error of the gradient. Of 1.2 million right
gradients of networks of ReLUs, one was called wrong; eight with two directions of two
and without finer steps, which found less, too.

This module says that a gradient is wrong and when; where, ``jaxcheck.check`` says.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxcheck.errors import InvalidInputError
from jaxcheck.gradients.options import require_function
from jaxcheck.jaxprs import compat
from jaxcheck.jaxprs.precision import coarsest_eps
from jaxcheck.jaxprs.trace import loss_of
from jaxcheck.training.directions import Leaf, displacements, rounded
from jaxcheck.training.leaves import Entry, aligned, entries_of, matched
from jaxcheck.training.placement import split_over
from jaxcheck.training.sizes import accumulator, size_of
from jaxcheck.trees import by_path

# Steps of the first comparison, and of the ladder, each twice the last. Finer ones are
# put before it in full precision, and asked where noise leaves them something to say.
_FIRST = (1.0, 2.0)
_LADDER = (0.5, 1.0, 2.0, 4.0)
_FINER = (0.125, 0.25)
# What a kink may be, of that which shows.
_HIDDEN = 1.25
# Directions in which a gradient must be wrong to be called so, of how many.
_AGAINST = 2
_DIRECTIONS = 4
# Of the same error at several steps, the largest may differ from the smallest by this.
_STABLE = 0.25


class Audit(NamedTuple):
    """What an audit found: scalars. Neither wrong nor inconclusive is in agreement.

    Attributes:
        wrong: whether the gradient contradicts the loss.
        inconclusive: whether nothing can be said: the error bar is too wide, the loss
            is not finite, or it has a kink or a jump there.
        autodiff: the change of the loss over one step that the gradient predicts.
        numerical: the change that half the difference of both sides shows.
        error_bar: how far apart they may be.
    """

    wrong: jax.Array
    inconclusive: jax.Array
    autodiff: jax.Array
    numerical: jax.Array
    error_bar: jax.Array


class AuditState(NamedTuple):
    """What the audits of a training run found, to be carried through its loop.

    ``AuditState.init()`` is the first one, ``state.add(audit, step)`` the next.

    Attributes:
        audits: how many there were, int32.
        wrong: how many found the gradient wrong.
        inconclusive: how many found nothing.
        first_wrong_step: the step of the first wrong one, −1 if there is none.
        first_wrong: that audit.
        worst_ratio: the largest difference of those in agreement, in error bars.
    """

    audits: jax.Array
    wrong: jax.Array
    inconclusive: jax.Array
    first_wrong_step: jax.Array
    first_wrong: Audit
    worst_ratio: jax.Array

    @classmethod
    def init(cls) -> AuditState:
        """Before the first audit."""
        none = functools.partial(jnp.zeros, (), jnp.int32)
        number = functools.partial(jnp.zeros, (), jnp.float32)
        flag = functools.partial(jnp.zeros, (), bool)
        return cls(
            audits=none(),
            wrong=none(),
            inconclusive=none(),
            first_wrong_step=jnp.full((), -1, jnp.int32),
            first_wrong=Audit(flag(), flag(), number(), number(), number()),
            worst_ratio=number(),
        )

    def add(self, audit: Audit, step: jax.Array | int) -> AuditState:
        """After one more audit, at ``step``; structure and dtypes stay as they are."""
        first = audit.wrong & (self.first_wrong_step < 0)
        latch = functools.partial(_where, first)
        apart = jnp.abs(audit.autodiff - audit.numerical) / audit.error_bar
        agrees = ~(audit.wrong | audit.inconclusive)
        ratio = jnp.where(agrees, apart, 0.0).astype(jnp.float32)
        return AuditState(
            audits=self.audits + 1,
            wrong=self.wrong + audit.wrong,
            inconclusive=self.inconclusive + audit.inconclusive,
            first_wrong_step=latch(step, self.first_wrong_step),
            first_wrong=jax.tree.map(latch, audit, self.first_wrong),
            worst_ratio=jnp.maximum(self.worst_ratio, ratio),
        )


def _where(condition: jax.Array, new: Any, old: jax.Array) -> jax.Array:
    return jnp.where(condition, jnp.asarray(new).astype(old.dtype), old)


def audit(
    loss_fn: Callable[..., Any],
    params: Any,
    *args: Any,
    grads: Any,
    key: jax.Array,
    has_aux: bool = False,
    axis_name: str | Sequence[str] = (),
) -> Audit:
    r"""Hold a gradient against the loss itself, inside a jitted training loop.

    One random direction, in which every leaf has a share: the change of the loss on
    both sides of ``params``, in the program's own precision, against what ``grads``
    predicts. It agrees if the two differ by no more than the error bar, which has the
    truncation of the difference, the rounding of the loss and of the gradient, and
    kinks. It is wrong only if three to five steps say so in two directions of four.

    It costs five evaluations of the loss, about as much as two train steps; 13 where
    the loss is computed in fewer digits than float32, because noise is measured there.
    What does not agree at once is looked at with up to 80 more.

    What it does not establish: that a gradient in agreement is right to better than
    ``error_bar / |autodiff|``, or in a coordinate that contributes little.
    ``jaxcheck.check`` answers that, and where a gradient is wrong.

    Args:
        loss_fn: ``loss_fn(params, *args)``, a real scalar that depends on its arguments
            alone: hand the dropout key of the train step in. On several devices, the
            loss whose gradient ``grads`` is meant to be: averaged over devices, if the
            gradient is.
        params: a pytree of arrays. What has no gradient is held fixed.
        *args: what else the loss needs.
        grads: the gradient at ``params``, with its paths and shapes.
        key: a random key; another one each time. The same on all devices.
        has_aux: whether ``loss_fn`` returns ``(loss, aux)``.
        axis_name: mesh axes of the surrounding ``shard_map`` or ``pmap`` that leaves
            are split over, as in ``gradient_statistics``.

    Returns:
        Scalars; collect them with ``AuditState``.

    Raises:
        InvalidInputError: an argument cannot be used.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from jaxcheck import audit
        >>> loss_fn = lambda params, x: jnp.mean(jnp.tanh(x @ params) ** 2)
        >>> params, x = jnp.ones(3), jax.random.normal(jax.random.key(0), (64, 3))
        >>> grads = jax.grad(loss_fn)(params, x)
        >>> found = audit(loss_fn, params, x, grads=grads, key=jax.random.key(1))
        >>> bool(found.wrong), bool(found.inconclusive)
        (False, False)
        >>> twice = jax.tree.map(lambda g: 2 * g, grads)
        >>> found = audit(loss_fn, params, x, grads=twice, key=jax.random.key(1))
        >>> bool(found.wrong)
        True
    """
    require_function("audit", "loss_fn", loss_fn)
    entries = entries_of("audit(grads=...)", grads)
    at = aligned("audit(params=...)", entries, params)
    slopes = aligned("audit(grads=...)", entries, grads)
    axes = (axis_name,) if isinstance(axis_name, str) else tuple(axis_name)
    leaves = [
        _leaf(entry, value, grad, axes)
        for entry, value, grad in zip(entries, at, slopes, strict=True)
    ]

    def loss(moved: Sequence[jax.Array]) -> jax.Array:
        out = loss_fn(_replaced(entries, params, moved), *args)
        return loss_of(out, has_aux=has_aux, caller="audit")

    values = [leaf.value for leaf in leaves]
    dtypes = [x.dtype for leaf in leaves for x in (leaf.value, leaf.grad)]
    dtype = accumulator(*dtypes)
    computed = coarsest_eps(compat.make_program(loss, (values,)))
    computed = max(computed, float(jnp.finfo(dtype).eps))
    eps = max(computed, *(float(jnp.finfo(d).eps) for d in dtypes))
    if not hasattr(key, "dtype"):
        raise InvalidInputError(
            "`audit(key=...)` must be a jax.random key, such as jax.random.key(0); got "
            f"{key!r}."
        )
    words = jax.random.bits(key, (_DIRECTIONS, 2), jnp.uint32)
    here = loss(values).astype(dtype)

    def along(number: jax.Array | int) -> _Line:
        steps = displacements(leaves, words[number], here, eps, dtype)
        return _Line(loss, leaves, steps, here, eps, computed)

    return _judged(along)


class _Line(NamedTuple):
    """A loss along a direction.

    Attributes:
        loss: of the values of the leaves.
        leaves: the leaves that are moved, and their gradients.
        steps: by how much each is moved.
        here: the loss at the point.
        eps: of the coarsest of parameters, gradients and computation.
        computed: of the coarsest dtype in which the loss is computed.
    """

    loss: Callable[[Sequence[jax.Array]], jax.Array]
    leaves: Sequence[Leaf]
    steps: Sequence[jax.Array]
    here: jax.Array
    eps: float
    computed: float

    @property
    def is_coarse(self) -> bool:
        """Whether the loss is computed in less digits than it is summed in."""
        return self.computed > float(jnp.finfo(self.here.dtype).eps)

    @property
    def is_exact(self) -> bool:
        """Whether nothing is coarser than the dtype of all sums."""
        return self.eps <= float(jnp.finfo(self.here.dtype).eps)

    def at(self, numbers: Sequence[float]) -> _Changes:
        """What each number of steps changes."""
        return _Changes(*jax.lax.map(self._at, jnp.asarray(numbers, self.here.dtype)))

    def _at(self, number: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        moved: list[jax.Array] = []
        parts: list[jax.Array] = []
        sizes: list[jax.Array] = []
        for leaf, steps in self._moves:
            there = rounded(leaf.value + number * steps, leaf.value.dtype)
            terms = jnp.real(leaf.grad * (there - leaf.value.astype(there.dtype)))
            parts.append(leaf.sum(terms))
            sizes.append(leaf.sum(jnp.abs(terms)))
            moved.append(there.astype(leaf.value.dtype))
        loss = self.loss(moved).astype(self.here.dtype) - self.here
        return loss, jnp.stack(parts), sum(sizes, jnp.zeros_like(self.here))

    @property
    def known_noise(self) -> jax.Array:
        """The rounding of a loss value that is summed in the dtype of all sums."""
        return float(jnp.finfo(self.here.dtype).eps) * jnp.abs(self.here)

    def noise(self, close: _Changes) -> jax.Array:
        """The noise of one loss value, from points ``_close`` to each other.

        Rounding of the loss itself is known. So is that of a computation in the same
        digits, about as much; in fewer digits it depends on how many terms are averaged
        and is measured alone.
        """
        return jnp.maximum(self.known_noise, _noise(self.curved(close)))

    def curved(self, changes: _Changes) -> jax.Array:
        """What error bars are read off: changes of the loss, or residuals.

        The gradient had better not be read for that, lest a wild one widen its own bar.
        Where parameters are stored in few digits, though, steps are not equal, and what
        is linear in them has to be taken out first.
        """
        exact = all(leaf.value.dtype == steps.dtype for leaf, steps in self._moves)
        return changes.loss if exact else changes.residuals

    @property
    def _moves(self) -> Iterator[tuple[Leaf, jax.Array]]:
        return zip(self.leaves, self.steps, strict=True)


class _Changes(NamedTuple):
    """Of the loss, and what the gradient predicts of them by leaf and in total size."""

    loss: jax.Array
    parts: jax.Array
    sizes: jax.Array

    @property
    def residuals(self) -> jax.Array:
        """f(x_k) − f(x) − g·(x_k − x)."""
        return self.loss - jnp.sum(self.parts, axis=1)

    def split(self, at: int) -> tuple[_Changes, _Changes]:
        """Those before and from ``at`` on."""
        return _Changes(*(x[:at] for x in self)), _Changes(*(x[at:] for x in self))


def _judged(along: Callable[[Any], _Line]) -> Audit:
    line = along(0)
    numbers = _both(_FIRST)
    first, close = line.at((*numbers, *(_close(line) if line.is_coarse else ()))).split(
        len(numbers)
    )
    noise = line.noise(close) if line.is_coarse else line.known_noise
    bar = _bars(line.curved(first), _FIRST, noise, line.eps * first.sizes[0])[0]
    parts = (first.parts[0] - first.parts[len(_FIRST)]) / 2
    predicted, typical = jnp.sum(parts), size_of(parts, (0,)).norm
    known = jnp.isfinite(line.here) & jnp.all(jnp.isfinite(first.loss))
    finite = jnp.all(jnp.isfinite(parts))
    agrees = jnp.abs(_odd(first.residuals, _FIRST)[0]) <= bar

    def may_be_wrong(state: tuple[jax.Array, jax.Array]) -> jax.Array:
        number, against = state
        missing = _AGAINST - against
        return (missing > 0) & (missing <= _DIRECTIONS - number)

    def ask_again(state: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        number, against = state
        return number + 1, against + _is_contradicted(along(number))

    disputed = known & finite & ~agrees
    number = jnp.where(disputed, 0, _DIRECTIONS).astype(jnp.int32)
    # Both are of the devices that the loss is of, inside `shard_map`.
    start = (number, 0 * number)
    _, against = jax.lax.while_loop(may_be_wrong, ask_again, start)
    # A gradient that is not finite, of a loss that is: no step makes that right.
    wrong = (against == _AGAINST) | (known & ~finite)
    return Audit(
        wrong=wrong,
        # A bar as wide as half of what leaves contribute would let a zero pass.
        inconclusive=~wrong & ~(agrees & (bar <= typical / 2)),
        autodiff=predicted,
        numerical=_odd(first.loss, _FIRST)[0],
        error_bar=bar,
    )


def _is_contradicted(line: _Line) -> jax.Array:
    """Whether all steps say that the gradient is wrong, by the same amount."""
    finer = _FINER if line.is_exact else ()
    steps = (*finer, *_LADDER)
    numbers = _both(steps)
    ladder, close = line.at((*numbers, *_close(line))).split(len(numbers))
    rounding = line.eps * ladder.sizes[steps.index(1.0)]
    noise = line.noise(close)
    error = _odd(ladder.residuals, steps)[:-1]
    at = jnp.asarray(steps[:-1], error.dtype)
    # A finer step is asked where its noise is no more than a third of the error.
    first = error[len(finer)]
    asked = (at >= _LADDER[0]) | (2 * noise / at <= jnp.abs(first) / 3)
    bars = _bars(line.curved(ladder), steps, noise, rounding, asked)
    error = jnp.where(asked, error, first)
    stable = jnp.ptp(error) <= _STABLE * jnp.max(jnp.abs(error))
    return jnp.all((jnp.abs(error) > bars) | ~asked) & stable


def _close(line: _Line) -> tuple[float, ...]:
    """Points between which a loss without noise would be a parabola.

    Parameters that are cast to fewer digits move only every so often, so points must be
    further apart there.
    """
    spacing = 2.0**-2 if line.is_coarse else 2.0**-6
    return tuple(k * spacing for k in (-4, -3, -2, -1, 1, 2, 3, 4))


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
    asked: jax.Array | bool = True,
) -> jax.Array:
    """The bar at each step but the last, of which it takes the truncation.

    Let S(k) be the difference of the slopes on both sides of the point. It grows with k
    where the loss is curved, and stays where it has a kink: 2S(k) − S(2k) is the kink
    alone. Any slope between those on both sides is right there; kinks that are apart
    may hide part of one another, so all of it is allowed and a quarter more, not half,
    and the largest that any step shows that is ``asked``.
    """
    at = jnp.asarray(steps, changes.dtype)
    plus, minus = jnp.split(changes, 2)
    slopes = (plus + minus) / at
    kinks = jnp.abs(2 * slopes[:-1] - slopes[1:])
    truncation = 2 / 3 * jnp.abs(jnp.diff(_odd(changes, steps)))
    kink = _HIDDEN * jnp.max(jnp.where(asked, kinks, 0.0))
    return truncation + 2 * noise / at[:-1] + rounding + kink


def _noise(changes: jax.Array) -> jax.Array:
    """The noise of one loss value: third differences have 20 times its variance."""
    before, after = jnp.split(changes, 2)
    row = jnp.concatenate([before, jnp.zeros_like(before[:1]), after])
    return jnp.sqrt(jnp.mean(jnp.square(jnp.diff(row, n=3))) / 20)


# ---- leaves


def _leaf(entry: Entry, value: Any, grad: Any, axes: tuple[str, ...]) -> Leaf:
    value, grad = jnp.asarray(value), jnp.asarray(grad)
    return Leaf(entry.token, value, grad, split_over(axes, value, grad))


def _replaced(entries: Sequence[Entry], params: Any, moved: Sequence[jax.Array]) -> Any:
    paths = matched([entry.path for entry in entries], by_path(params))
    found = dict(zip(paths, moved, strict=True))
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: found.get(jax.tree_util.keystr(path), leaf), params
    )
