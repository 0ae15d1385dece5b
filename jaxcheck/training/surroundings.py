"""Where a monitor stands: what is around it may hide what it looks for."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import jax
from jax.tree_util import DictKey, GetAttrKey, SequenceKey

from jaxcheck.reports.numbers import significant
from jaxcheck.training.health import HealthFinding
from jaxcheck.training.seen import Seen
from jaxcheck.training.state import MonitorState

# Norms that are the same to this are clipped to it.
_SAME = 1e-5
# Steps at the largest norm, and their share of those that are kept.
_FEWEST, _SHARE = 5, 0.2
# Between norms of a leaf that are not the same.
_MOVES = 1.001


def blinded(opt_state: Any, seen: Seen) -> Iterator[HealthFinding]:
    """What hides things from the monitor in ``opt_state``."""
    around, before = _neighbors(opt_state)
    if "ApplyIfFiniteState" in around:
        yield _finding(
            "it stands inside optax.apply_if_finite, which does not call it in a step "
            "that is not finite."
        )
    if "ZeroNansState" in before:
        yield _finding(
            "it stands behind optax.zero_nans: there is no NaN in what it sees."
        )
    if clipped := _clipped(seen):
        yield clipped


def _clipped(seen: Seen) -> HealthFinding | None:
    """Whether norms of everything are at most one number, and those of leaves are not.

    Without clipping, the largest norm comes twice only if the whole gradient does.
    """
    known = seen.norms[seen.norms[:, 0, -1] > 0, 0]
    if len(known) < _FEWEST:
        return None
    total, rows = known[:, -1], known[:, :-1]
    at_most = total > total.max() * (1 - _SAME)
    steps = int(at_most.sum())
    held = rows[at_most]
    moves = (held.max(axis=0) > held.min(axis=0) * _MOVES).any()
    if steps < max(_FEWEST, _SHARE * len(known)) or not moves:
        return None
    return _at_most(float(total.max()), steps, len(known))


def _at_most(norm: float, clipped: int, steps: int) -> HealthFinding:
    return _finding(
        f"in {clipped} of the last {steps} steps the norm of the gradient was "
        f"{significant(norm, 3)} and never larger: it stands behind a clipping, where "
        "no spike is seen and one NaN is in every leaf."
    )


def _finding(message: str) -> HealthFinding:
    return HealthFinding(
        rule="placement",
        message=message,
        causes=("the place of the monitor in the chain",),
        remedies=("put it outermost: jaxcheck.monitor(optax.chain(...))",),
    )


def _neighbors(opt_state: Any) -> tuple[set[str], set[str]]:
    """The kinds of states that the monitor's is in, and of those before it."""
    leaves = jax.tree_util.tree_leaves_with_path(
        opt_state, is_leaf=lambda x: isinstance(x, MonitorState)
    )
    path = next(path for path, x in leaves if isinstance(x, MonitorState))
    around: set[str] = set()
    before: set[str] = set()
    node = opt_state
    for key in path:
        around.add(type(node).__name__)
        if isinstance(key, SequenceKey):
            before |= {type(other).__name__ for other in node[: key.idx]}
        node = _child(node, key)
    return around, before


def _child(node: Any, key: Any) -> Any:
    if isinstance(key, GetAttrKey):
        return getattr(node, key.name)
    if isinstance(key, SequenceKey):
        return node[key.idx]
    if isinstance(key, DictKey):
        return node[key.key]
    return node  # of a container of its own kind, whose neighbors are not known
