"""What a monitor has seen, on the host and with names."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxcheck.errors import InvalidInputError
from jaxcheck.training.leaves import Stacked, entries_of, fitting, nearest
from jaxcheck.training.level import WARM
from jaxcheck.training.monitor import PARAMETER, UPDATE
from jaxcheck.training.state import MonitorState
from jaxcheck.trees import by_path

Array = Any

# Measurements without which nothing is said of what is usual.
FEWEST = WARM


# Of a state without that of the optimizer inside.
_STRUCTURE = jax.tree.structure(
    MonitorState._make([(), *range(1, len(MonitorState._fields))])
)


@dataclasses.dataclass(frozen=True)
class Seen:
    """The state of a monitor as NumPy arrays; what rules of health are asked about.

    R rows of a state are those of ``names``, and a last one for everything.

    Attributes:
        names: of the rows but the last, as ``jaxcheck.leaf_names`` gives them.
        sizes: elements of each of these rows.
        dtypes: of their parameters.
        dimensions: number of axes of one row's array.
        state: the state, its ``inner`` left out.
        steps: numbers of the steps that are kept, rising.
        norms: ``[len(steps), 3, R]``, of gradient, update and parameters; -1 where
            nothing was measured, NaN where elements were not finite.
        losses: ``[len(steps)]``, NaN where there is none, infinity for a NaN.
    """

    names: tuple[str, ...]
    sizes: Array
    dtypes: tuple[str, ...]
    dimensions: Array
    state: MonitorState
    steps: Array
    norms: Array
    losses: Array

    def matching(self, caller: str, patterns: str | Sequence[str]) -> list[int]:
        """Numbers of the rows whose leaf has a path that fits.

        Raises:
            InvalidInputError: a pattern fits none.
        """
        found: set[int] = set()
        for pattern in (patterns,) if isinstance(patterns, str) else patterns:
            rows = fitting(pattern, self.names)
            if not rows:
                raise InvalidInputError(
                    f"`{caller}(ignore=...)` names {pattern!r}, but no leaf lies "
                    f"there; {nearest(pattern, self.names)}."
                )
            found.update(rows)
        return sorted(found)

    def without(self, rows: Sequence[int]) -> Seen:
        """The same without some rows; the last one, of everything, is as it was."""
        keep = np.array([k for k in range(len(self.names) + 1) if k not in set(rows)])
        named = keep[:-1]
        by_row = ("counts", "numbers", "recent")
        kept = {name: getattr(self.state, name)[..., keep] for name in by_row}
        return Seen(
            names=tuple(self.names[k] for k in named),
            sizes=self.sizes[named],
            dtypes=tuple(self.dtypes[k] for k in named),
            dimensions=self.dimensions[named],
            state=self.state._replace(**kept),
            steps=self.steps,
            norms=self.norms[..., keep],
            losses=self.losses,
        )

    def naming(self, rows: Array) -> dict[str, Any]:
        """The fields of a finding that name leaves; the first of ``rows`` leads."""
        names = [self.names[k] for k in rows]
        return {"leaf": names[0] if names else None, "others": tuple(names[1:])}

    def usual(self, quantity: int) -> Array:
        """The usual norms ``[R]``, NaN where nothing healthy was seen."""
        level = self.state.level
        known = level.seen[quantity] > 0
        with np.errstate(over="ignore"):
            return np.where(known, np.exp(level.mean[quantity]), np.nan)

    def usual_rms(self, quantity: int) -> Array:
        """The usual root mean squares of the rows that have names, ``[R - 1]``."""
        return self.usual(quantity)[:-1] / np.sqrt(self.sizes)

    def update_ratios(self) -> Array:
        """The medians ``[R - 1]`` of ‖u‖/‖p‖ over the steps that are kept.

        NaN with fewer than 20 steps in which both were measured, finite, and not zero.
        """
        update, param = self.norms[:, UPDATE, :-1], self.norms[:, PARAMETER, :-1]
        known = (update > 0) & (param > 0)
        ratio = np.where(known, update / np.where(known, param, 1), np.nan)
        median = np.full(len(self.names), np.nan)
        enough = known.sum(axis=0) >= FEWEST
        median[enough] = np.nanmedian(ratio[:, enough], axis=0)
        return median


def seen_of(caller: str, opt_state: Any, params: Any, stacked: Stacked) -> Seen:
    """Read the monitor in ``opt_state``.

    Args:
        caller: whose arguments they are, for messages.
        opt_state: a pytree with the state of one monitor.
        params: what it watches.
        stacked: as it was given to it.

    Raises:
        InvalidInputError: there is none, or several, or it is not of ``params``.
    """
    state = _monitor_in(caller, opt_state)
    entries = entries_of(f"{caller}(params=...)", params, stacked)
    leaves = by_path(params)
    rows = sum(entry.rows for entry in entries)
    if rows != state.norm.shape[-1] - 1:
        raise InvalidInputError(
            f"`{caller}(params=...)` must be what the monitor watches, with the same "
            f"`stacked`: it has {rows} leaves and layers, the monitor "
            f"{state.norm.shape[-1] - 1}."
        )
    host: MonitorState = jax.tree.map(np.asarray, state)
    count, window = int(host.step), len(host.recent)
    steps = np.arange(max(0, count - window), count)

    def each(values: Any) -> list[Any]:
        return [x for e, x in zip(entries, values, strict=True) for _ in range(e.rows)]

    return Seen(
        names=tuple(itertools.chain.from_iterable(e.names for e in entries)),
        sizes=np.array(each([e.size // e.rows for e in entries])),
        dtypes=tuple(each([_dtype_of(leaves[e.path]) for e in entries])),
        dimensions=np.array(each([len(e.reduced) for e in entries])),
        state=host,
        steps=steps,
        norms=host.recent[steps % window],
        losses=host.losses[steps % window],
    )


def _dtype_of(leaf: Any) -> str:
    return str(leaf.dtype if hasattr(leaf, "dtype") else jnp.asarray(leaf).dtype)


def _monitor_in(caller: str, opt_state: Any) -> MonitorState:
    monitors = monitors_in(opt_state)
    if len(monitors) != 1:
        raise InvalidInputError(
            f"`{caller}(opt_state=...)` must hold the state of one jaxcheck.monitor; "
            f"it holds {len(monitors)}. "
            + (
                "Give that of one of them, with its part of `params`."
                if monitors
                else "Wrap the optimizer: jaxcheck.monitor(tx)."
            )
        )
    state = monitors[0]
    if np.ndim(state.step) != 0:
        raise InvalidInputError(
            f"`{caller}(opt_state=...)` must be the state of one run; it is of "
            f"{np.shape(state.step)}. Give one member: "
            "jax.tree.map(lambda x: x[0], opt_state)."
        )
    return state


def monitors_in(tree: Any) -> list[MonitorState]:
    """The states of monitors in a pytree, without those of the optimizers inside."""
    found = [x for x in jax.tree.leaves(tree, is_leaf=_is_monitor) if _is_monitor(x)]
    # flax.nnx has variables in place of arrays, each with the array as its one leaf
    arrays = (jax.tree.leaves(state._replace(inner=())) for state in found)
    return [jax.tree.unflatten(_STRUCTURE, leaves) for leaves in arrays]


def _is_monitor(value: Any) -> bool:
    return isinstance(value, MonitorState)
