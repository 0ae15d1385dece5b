"""A watch on training that is an optax transformation: updates pass through untouched.

Its state is a few arrays with a row for each leaf, complete from ``init`` on. It judges
nothing and never leaves the device: ``diagnose`` reads it.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from jaxcheck.errors import InvalidInputError
from jaxcheck.gradients.options import require_count
from jaxcheck.training.clipping import clip_of
from jaxcheck.training.leaves import Entry, Stacked, aligned, entries_of
from jaxcheck.training.level import first, no_level, observed
from jaxcheck.training.norms import Norms, norms_of
from jaxcheck.training.samples import Details, details_of, sample
from jaxcheck.training.sizes import accumulator
from jaxcheck.training.state import MonitorState, Watched
from jaxcheck.updates.runs import is_transformation

if TYPE_CHECKING:
    import optax

QUANTITIES = ("gradient", "update", "parameter")
GRADIENT, UPDATE, PARAMETER = range(3)
# In a ring, where nothing was measured. What is not finite is NaN there.
UNMEASURED = -1.0
# Share of updates that are lost which is most of them.
_MOST = 0.5


# Of gradient, update and parameters, one for each entry.
_Arrays = tuple[list[Any], list[Any] | None, list[Any] | None]


class _Settings(NamedTuple):
    every: int
    details: int
    axes: tuple[str, ...]
    clip: Any


def monitor(
    inner: Any = None,
    *,
    every: int = 1,
    details: int = 10,
    window: int = 64,
    stacked: Stacked = (),
    axis_name: str | Sequence[str] = (),
) -> optax.GradientTransformationExtraArgs:
    r"""Watch gradients, updates and parameters from inside the jitted training loop.

    Wrapped around an optimizer, ``monitor(optax.adamw(1e-3))``, it sees the gradients
    that go in, the updates that come out, and the parameters. Without one it stands in
    an ``optax.chain`` and sees what passes there, and the parameters. Updates are those
    of the optimizer, bit for bit. Put it outermost: after clipping, a norm shows no
    spike, and one NaN is in every leaf.

    Of every leaf it keeps the norm of the finite elements, the first step with NaN or
    infinity, the usual size with its deviation (of log-norms, from which spikes and
    what is not finite are left out), spikes, growth, steps without any gradient or
    update, and the last ``window`` norms. ``jaxcheck.diagnose`` says what that means,
    and ``jaxcheck.leaf_names`` which row is which leaf.

    The state has its final structure, shapes and dtypes from ``init`` on, so that it
    can be carried by ``lax.scan``. Nothing is sent to the host. Leaves are found by
    their paths; a leaf without a gradient counts as one with a gradient of zeros. None,
    integer and empty leaves are passed over.

    It establishes nothing about whether gradients are right: see ``check`` and
    ``audit``.

    Args:
        inner: an ``optax.GradientTransformation``; None in a chain.
        every: steps between measurements of updates and parameters. Gradients are
            measured in every step.
        details: steps between looks at single elements, for zeros and lost updates.
        window: how many steps of norms and losses are kept.
        stacked: which leaves hold all layers of a network; a row is kept for each
            layer. See ``gradient_statistics``.
        axis_name: mesh axes of the surrounding ``shard_map`` or ``pmap`` that leaves
            are split over. See ``gradient_statistics``.

    Returns:
        A transformation whose state is a ``MonitorState``. What else is given to its
        ``update`` goes on to ``inner``; the loss, if given as ``value``, is kept too.

    Raises:
        InvalidInputError: an argument cannot be used.

    Example:
        >>> import jax, jax.numpy as jnp, jaxcheck, optax
        >>> params = {"b": jnp.zeros(2), "w": jnp.ones(3)}
        >>> tx = jaxcheck.monitor(optax.sgd(0.1))
        >>> def train_step(carry, batch):
        ...     params, state = carry
        ...     grads = {"b": jnp.ones(2), "w": batch * params["w"]}
        ...     updates, state = tx.update(grads, state, params)
        ...     return (optax.apply_updates(params, updates), state), None
        >>> batches = jnp.array([1.0, jnp.nan, 1.0])
        >>> (_, state), _ = jax.lax.scan(train_step, (params, tx.init(params)), batches)
        >>> dict(zip(jaxcheck.leaf_names(params), state.first_bad[0].tolist()))
        {"['b']": -1, "['w']": 1}
    """
    import optax

    if inner is not None and not is_transformation(inner):
        raise InvalidInputError(
            "`monitor(inner=...)` must be an optax.GradientTransformation or None; got "
            f"{type(inner).__name__}."
        )
    for name, value in {"every": every, "details": details, "window": window}.items():
        require_count("monitor", name, value)
    axes = (axis_name,) if isinstance(axis_name, str) else tuple(axis_name)
    settings = _Settings(every, details, axes, clip_of(inner))
    optimizer = None if inner is None else optax.with_extra_args_support(inner)
    watch = functools.partial(_after, settings)
    compiled = jax.jit(watch, static_argnums=0)  # for steps that are not jitted

    def init(params: Any) -> MonitorState:
        entries = entries_of("monitor(...).init(params=...)", params, stacked)
        state = optax.EmptyState() if optimizer is None else optimizer.init(params)
        return MonitorState.of(state, _unseen(entries, params, window, settings))

    def update(
        grads: Any, state: MonitorState, params: Any = None, **extra: Any
    ) -> tuple[Any, MonitorState]:
        _require_state(state)
        loss = _loss_of(extra)
        updates, inner_state = grads, state.inner
        if optimizer is not None:
            updates, inner_state = optimizer.update(grads, state.inner, params, **extra)
        entries = entries_of(
            "monitor(...).update(params=...)",
            grads if params is None else params,
            stacked,
        )
        _require_rows(entries, state.counts.shape[-1] - 1)
        arrays = (
            _arrays("grads", entries, grads),
            None if optimizer is None else _arrays("updates", entries, updates),
            None if params is None else _arrays("params", entries, params),
        )
        given = state._replace(inner=()), arrays, loss
        is_traced = any(isinstance(x, Tracer) for x in jax.tree.leaves(given))
        seen = (watch if is_traced else compiled)(entries, *given)
        return updates, seen._replace(inner=inner_state)

    update_fn: Any = update
    return optax.GradientTransformationExtraArgs(init, update_fn)


def _unseen(
    entries: Sequence[Entry], params: Any, window: int, settings: _Settings
) -> Watched:
    rows = sum(entry.rows for entry in entries) + 1
    arrays = aligned("monitor(...).init(params=...)", entries, params)
    dtype = accumulator(*(x.dtype for x in map(jnp.asarray, arrays)))

    def whole(value: int, *shape: int) -> jax.Array:
        return jnp.full(shape, value, jnp.int32)

    def real(value: float, *shape: int) -> jax.Array:
        return jnp.full(shape, value, dtype)

    return Watched(
        step=whole(0),
        measured=whole(0, 3),
        norm=real(UNMEASURED, 3, rows),
        nonfinite=whole(0, 3, rows),
        bad_steps=whole(0, 3, rows),
        first_bad=whole(-1, 3, rows),
        zero_run=whole(0, 3, rows),
        level=no_level((3, rows), dtype),
        update_ratio=real(UNMEASURED, rows),
        details=Details(*(real(UNMEASURED, rows) for _ in Details._fields)),
        looked=whole(-settings.details),
        lost_looks=whole(0, rows),
        clipped=whole(-1 if settings.clip is None else 0),
        recent=real(UNMEASURED, window, 3, rows),
        losses=real(jnp.nan, window),
        first_loss=real(jnp.nan),
    )


def _after(
    settings: _Settings,
    entries: Sequence[Entry],
    state: MonitorState,
    arrays: _Arrays,
    value: jax.Array | None,
) -> MonitorState:
    """The state after one more step.

    Args:
        settings: of the monitor.
        entries: of the leaves.
        state: before it, without that of the optimizer.
        arrays: what was given of them.
        value: the loss, or None.
    """
    seen = _seen(settings, entries, state.watched, arrays, value)
    return MonitorState.of(state.inner, seen)


def _seen(
    settings: _Settings,
    entries: Sequence[Entry],
    state: Watched,
    arrays: _Arrays,
    value: jax.Array | None,
) -> Watched:
    # What is seen of a step that is differentiated through has no derivative.
    arrays, value = jax.lax.stop_gradient((arrays, value))
    step, dtype = state.step, state.norm.dtype
    last = [Norms(state.norm[k], state.nonfinite[k]) for k in range(3)]
    due = step % settings.every == 0

    def measured(k: int, arrays: list[Any] | None) -> tuple[Norms, Any]:
        if arrays is None:
            return last[k], False
        if settings.every == 1 or k == GRADIENT:
            return norms_of(entries, arrays, settings.axes, dtype), True
        return jax.lax.cond(
            due,
            lambda arrays: norms_of(entries, arrays, settings.axes, dtype),
            lambda _: last[k],
            arrays,
        ), due

    found = [measured(k, x) for k, x in enumerate(arrays)]
    norms = jax.tree.map(lambda *rows: jnp.stack(rows), *(norms for norms, _ in found))
    now = jnp.stack([jnp.asarray(x) for _, x in found])
    seen = _counted(state, norms, now)
    seen = _looked(settings, entries, seen, arrays)
    loss = jnp.full((), jnp.nan, dtype)
    if value is not None:
        given = value.astype(dtype)
        loss = jnp.where(jnp.isnan(given), jnp.inf, given)
    return seen._replace(
        step=step + 1,
        clipped=state.clipped + _clips(settings.clip, norms.norm[GRADIENT, -1]),
        losses=state.losses.at[step % len(state.losses)].set(loss),
        first_loss=jnp.where(
            jnp.isnan(state.first_loss) & jnp.isfinite(loss), loss, state.first_loss
        ),
    )


def _arrays(name: str, entries: Sequence[Entry], tree: Any) -> list[Any]:
    """Of each entry, zeros where there is none."""
    argument = f"monitor(...).update({name}=...)"
    arrays = aligned(argument, entries, tree, partly=True, like="params")
    pairs = zip(entries, arrays, strict=True)
    return [jnp.zeros(e.shape) if x is None else jnp.asarray(x) for e, x in pairs]


def _require_state(state: Any) -> None:
    if not isinstance(state, MonitorState):
        raise InvalidInputError(
            "`monitor(...).update(state=...)` must be the state that its `init` or "
            f"`update` returned, a MonitorState; got {type(state).__name__}."
        )


def _loss_of(extra: dict[str, Any]) -> jax.Array | None:
    """The loss that ``update`` was given, a real scalar."""
    value = extra.get("value")
    if value is None:
        return None
    dtype = jax.dtypes.result_type(value) if _is_numeric(value) else None
    if dtype is None or jnp.shape(value) or jnp.issubdtype(dtype, np.complexfloating):
        got = type(value).__name__ if dtype is None else f"{dtype}{[*jnp.shape(value)]}"
        raise InvalidInputError(
            "`monitor(...).update(value=...)` must be the loss, a real scalar; got "
            f"{got}."
        )
    return jnp.asarray(value)


def _is_numeric(value: Any) -> bool:
    return isinstance(value, int | float | complex | np.generic) or hasattr(
        value, "dtype"
    )


def _require_rows(entries: Sequence[Entry], wanted: int) -> None:
    rows = sum(entry.rows for entry in entries)
    if rows != wanted:
        raise InvalidInputError(
            f"`monitor(...).update(state=...)` must be of the same leaves: it has "
            f"{wanted} rows, there are {rows} now. Give `params` to `update` if some "
            "leaves have no gradient."
        )


def _counted(state: Watched, norms: Norms, now: jax.Array) -> Watched:
    """What is known of rows, with the norms of one more step.

    Args:
        state: before it.
        norms: ``[3, R]``.
        now: ``[3]``, which of them were measured.
    """
    norm, nonfinite = norms
    now = now[:, None]
    bad = now & (nonfinite > 0)
    sound = now & (nonfinite == 0)
    zero = sound & (norm == 0)
    moves = sound & ~zero
    update, param = norm[UPDATE], norm[PARAMETER]
    is_ratio = moves[UPDATE] & moves[PARAMETER]
    ratio = update / jnp.where(is_ratio, param, 1)
    row = jnp.where(bad, jnp.nan, jnp.where(now, norm, UNMEASURED))
    step = state.step
    return state._replace(
        measured=state.measured + now[:, 0],
        norm=norm,
        nonfinite=nonfinite,
        bad_steps=state.bad_steps + bad,
        first_bad=first(state.first_bad, bad, step),
        zero_run=jnp.where(
            zero, state.zero_run + 1, jnp.where(sound, 0, state.zero_run)
        ),
        level=observed(state.level, norm, sound, step),
        update_ratio=jnp.where(is_ratio, ratio, state.update_ratio),
        recent=state.recent.at[step % len(state.recent)].set(row),
    )


def _looked(
    settings: _Settings,
    entries: Sequence[Entry],
    state: Watched,
    arrays: _Arrays,
) -> Watched:
    """With a look at single elements, if it is time for one.

    An update that is zero everywhere is waited out: between accumulated gradients
    there is nothing to see.
    """
    idle = state.recent[state.step % len(state.recent), UPDATE, -1] == 0
    due = (state.step - state.looked >= settings.details) & ~idle
    # slices are taken out here: a branch that reads whole parameters and updates keeps
    # both alive, and costs a copy even if it is not taken
    samples = [
        None if x is None else [sample(*pair) for pair in zip(entries, x, strict=True)]
        for x in (arrays[GRADIENT], arrays[PARAMETER], arrays[UPDATE])
    ]
    dtype = state.norm.dtype
    details = jax.lax.cond(
        due,
        lambda samples: details_of(entries, settings.axes, dtype, *samples),
        lambda _: state.details,
        samples,
    )
    told = due & (details.lost_share != UNMEASURED)
    lost = details.lost_share > _MOST
    return state._replace(
        looked=jnp.where(due, state.step, state.looked),
        details=details,
        lost_looks=jnp.where(
            told, jnp.where(lost, state.lost_looks + 1, 0), state.lost_looks
        ),
    )


def _clips(most: Any, norm: jax.Array) -> Any:
    return 0 if most is None else norm > most
