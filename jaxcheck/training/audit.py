"""A gradient checked now and then while it trains, by array code inside ``jit``.

The loss is moved along one direction in which every leaf has a share (``directions``),
and the change is held against what the gradient predicts (``line``). Where both agree
that costs three evaluations, or five where kinks and curvature have to be told from an
error. Where there is doubt, and only there, a ladder of steps is gone up in eight
directions, and noise is measured. If three of them show an error, so must ten of 32;
kinks may hide it in the others. Kinks beside the point look like an error, too, but in
no more than a fifth of all directions: with the first eight alone, one of 75,000 right
gradients of a network with ReLUs was called wrong, in batches of 256. In few digits
noise is what counts, and not kinks: eight directions do.

This module says that a gradient is wrong and when; where, ``jaxcheck.check`` says.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp

from jaxcheck.errors import InvalidInputError
from jaxcheck.gradients.options import require_function
from jaxcheck.jaxprs import compat
from jaxcheck.jaxprs.precision import coarsest_eps
from jaxcheck.jaxprs.trace import loss_of
from jaxcheck.training.directions import Directions, Leaf, directions_of
from jaxcheck.training.leaves import Entry, aligned, entries_of, matched
from jaxcheck.training.line import Changes, Comparison, Vicinity
from jaxcheck.training.placement import (
    anywhere,
    split_over,
    talking_axes,
    while_loop,
)
from jaxcheck.training.sizes import accumulator, size_of

# Directions in which a gradient must be wrong to be called so, of how many: of the
# first few, and of all. A right one that kinks make look wrong does so in a fifth.
_FEW = 3, 8
_ALL = 10, 32

_Named = TypeVar("_Named", Changes, Comparison)


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
    kinks. It is wrong only if it does not, and two to five steps say so in three of
    eight directions, and in full precision in ten of 32.

    It costs three evaluations of the loss, about as much as a train step; five where
    kinks or curvature show; 13 where the loss is computed in fewer digits than float32,
    because noise is measured there. Where there is doubt it is looked at with 120 to
    160 more, and with 200 to 640 if it is wrong.

    A loss that talks between devices (``psum`` and others) is evaluated on all of them
    or on none: where one has doubts, all look closer. Call it on all devices, too.

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
    if not hasattr(key, "dtype"):
        raise InvalidInputError(
            "`audit(key=...)` must be a jax.random key, such as jax.random.key(0); got "
            f"{key!r}."
        )
    entries = entries_of("audit(grads=...)", grads)
    at = aligned("audit(params=...)", entries, params)
    slopes = aligned("audit(grads=...)", entries, grads)
    axes = (axis_name,) if isinstance(axis_name, str) else tuple(axis_name)
    leaves = [
        _leaf(entry, value, grad, axes)
        for entry, value, grad in zip(entries, at, slopes, strict=True)
    ]
    with_leaves = _replacing(entries, params)

    @jax.jit  # traced once
    def loss(moved: Sequence[jax.Array]) -> jax.Array:
        out = loss_fn(with_leaves(moved), *args)
        return loss_of(out, has_aux=has_aux, caller="audit")

    values = [leaf.value for leaf in leaves]
    dtypes = [x.dtype for leaf in leaves for x in (leaf.value, leaf.grad)]
    dtype = accumulator(*dtypes)
    program = compat.make_program(loss, (values,))
    talking = tuple(dict.fromkeys((*axes, *talking_axes(program))))
    computed = coarsest_eps(program)
    computed = max(computed, float(jnp.finfo(dtype).eps))
    eps = max(computed, *(float(jnp.finfo(d).eps) for d in dtypes))
    words = jax.random.bits(key, (_ALL[1], 2), jnp.uint32)
    here = loss(values).astype(dtype)
    directions = directions_of(leaves, words, axes, here, eps)
    vicinity = Vicinity(loss, leaves, here, eps, computed)
    needed = _ALL if vicinity.is_exact else _FEW
    search = _searched(vicinity, directions, needed, talking)
    return _verdict(search.found, search.against >= needed[0])


class _Search(NamedTuple):
    """What looks along directions have found.

    Attributes:
        number: of the look that is next, int32.
        near: what the points of the first one change.
        found: what the first ones say, which are of one direction.
        against: directions that contradict the gradient in a closer look, int32.
        goes_on: whether there is another look.
    """

    number: jax.Array
    near: Changes
    found: Comparison
    against: jax.Array
    goes_on: jax.Array


def _searched(
    vicinity: Vicinity,
    directions: Directions,
    needed: tuple[int, int],
    axes: tuple[str, ...],
) -> _Search:
    """Look along directions until it is clear, on devices that look together.

    All looks are rounds of one loop, so what they run is compiled once.

    Args:
        vicinity: of the point.
        directions: to look along.
        needed: how many must be against the gradient, of how many.
        axes: along which devices look together.
    """
    most = max(map(len, vicinity.looks))
    rows = [(*row, *[0.0] * (most - len(row))) for row in vicinity.looks]
    points = jnp.asarray(rows, vicinity.here.dtype)
    counts = jnp.asarray([len(row) for row in vicinity.looks], jnp.int32)
    closer = len(rows) - 1

    def look(search: _Search) -> _Search:
        kind = jnp.minimum(search.number, closer)
        direction = jnp.maximum(search.number - closer, 0)
        steps = directions.steps(direction)
        changes = vicinity.at(steps, points[kind], counts[kind])
        is_first, is_closer = search.number == 0, search.number >= closer
        first, found = vicinity.first(changes), search.found
        again = jnp.zeros((), bool)
        if not vicinity.is_coarse:
            second = vicinity.second(found, search.near, changes)
            found = _chosen(is_closer, found, second)
            again = anywhere(is_first & ~first.agrees, axes)
        found = _chosen(is_first, first, found)
        against = search.against + (is_closer & vicinity.contradicts(changes))
        number = jnp.where(is_first & ~again, closer, search.number + 1)
        looked = number - closer
        few, all_ = (n - against <= of - looked for n, of in (_FEW, needed))
        possible = ((looked > _FEW[1]) | few) & all_ & (against < needed[0])
        open_ = found.is_doubtful & possible
        return _Search(
            number=number,
            near=_chosen(is_first, changes, search.near),
            found=found,
            against=against,
            goes_on=again | anywhere(open_, axes),
        )

    near = vicinity.no_changes(most)
    found = jax.eval_shape(vicinity.first, near)
    start = _Search(
        number=jnp.zeros((), jnp.int32),
        near=near,
        found=jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), found),
        against=jnp.zeros((), jnp.int32),
        goes_on=jnp.ones((), bool),
    )
    return while_loop(lambda search: search.goes_on, look, start)


def _chosen(condition: jax.Array, new: _Named, old: _Named) -> _Named:
    return jax.tree.map(functools.partial(jnp.where, condition), new, old)


def _verdict(found: Comparison, contradicted: jax.Array) -> Audit:
    finite = jnp.all(jnp.isfinite(found.parts))
    # A gradient that is not finite, of a loss that is: no step makes that right.
    wrong = (found.is_doubtful & contradicted) | (found.is_finite & ~finite)
    typical = size_of(found.parts).norm
    return Audit(
        wrong=wrong,
        # A bar as wide as half of what leaves contribute would let a zero pass.
        inconclusive=~wrong & ~(found.agrees & (found.bar <= typical / 2)),
        autodiff=jnp.sum(found.parts),
        numerical=found.numerical,
        error_bar=found.bar,
    )


# ---- leaves


def _leaf(entry: Entry, value: Any, grad: Any, axes: tuple[str, ...]) -> Leaf:
    value, grad = jnp.asarray(value), jnp.asarray(grad)
    return Leaf(entry, value, grad, split_over(axes, value, grad))


def _replacing(
    entries: Sequence[Entry], params: Any
) -> Callable[[Sequence[jax.Array]], Any]:
    """``params`` as a function of the arrays of ``entries``."""
    found, treedef = jax.tree_util.tree_flatten_with_path(params)
    places = {jax.tree_util.keystr(path): k for k, (path, _) in enumerate(found)}
    paths = matched([entry.path for entry in entries], places)
    at = [places[path] for path in paths if path is not None]

    def replaced(arrays: Sequence[jax.Array]) -> Any:
        leaves = [leaf for _, leaf in found]
        for k, array in zip(at, arrays, strict=True):
            leaves[k] = array
        return jax.tree.unflatten(treedef, leaves)

    return replaced
