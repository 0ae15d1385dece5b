"""Watch a train step: what it is given, and what it makes of it.

The step is a black box. It may donate its buffers or change its state in place: it gets
copies, and what it was given stays.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxcheck.errors import InvalidInputError
from jaxcheck.states import copied, stepped
from jaxcheck.trees import on_host
from jaxcheck.updates.views import View, Viewer

_CALLER = "check_train_step"


class Seen(NamedTuple):
    """One step.

    Attributes:
        params: what the optimizer moves, before it.
        opt_state: before it.
        rest: arrays of the model that the optimizer does not move, before it.
        batch: what it was given.
        params_after: after it.
        opt_state_after: after it.
    """

    params: Any
    opt_state: Any
    rest: Any
    batch: Any
    params_after: Any
    opt_state_after: Any


class Watched(NamedTuple):
    """All steps.

    Attributes:
        seen: each of them.
        pure: whether the first step gave the same again.
    """

    seen: list[Seen]
    pure: bool


def watch(
    train_step: Callable[..., Any], state: Any, batches: Sequence[Any], viewer: Viewer
) -> Watched:
    """Run ``train_step`` over ``batches``.

    Raises:
        InvalidInputError: if it returns something that is no state.
    """

    def step(state: Any, batch: Any) -> tuple[Any, View]:
        after = stepped(_CALLER, train_step, copied(state), batch)
        return after, _view(viewer, after)

    seen: list[Seen] = []
    pure = True
    for t, batch in enumerate(batches):
        before = viewer.view(copied(state))
        moved, after = step(state, batch)
        if t == 0:
            _require_same_structure(before, after)
            pure = _same(after, step(state, batch)[1])
        seen.append(Seen(*before, batch, after.params, after.opt_state))
        state = moved
    return Watched(seen, pure)


def _view(viewer: Viewer, state: Any) -> View:
    try:
        return viewer.view(state)
    except (AttributeError, KeyError, IndexError, TypeError) as error:
        raise InvalidInputError(
            f"`{_CALLER}(train_step=...)` must return the new state, or a tuple that "
            f"begins with it; it returned a {type(state).__name__} in its place "
            f"({error})."
        ) from error


def _require_same_structure(before: View, after: View) -> None:
    for name in ("params", "opt_state"):
        wanted, got = (jax.tree.structure(getattr(v, name)) for v in (before, after))
        if wanted != got:
            raise InvalidInputError(
                f"`{_CALLER}(train_step=...)` must keep the structure of `{name}`, "
                f"{wanted}; it returned {got}."
            )


def _same(one: View, other: View) -> bool:
    a, b = (jax.tree.leaves((view.params, view.opt_state)) for view in (one, other))
    return all(
        np.array_equal(on_host(x), on_host(y), equal_nan=_float(x))
        for x, y in zip(a, b, strict=True)
    )


def _float(value: Any) -> bool:
    return np.issubdtype(getattr(value, "dtype", np.int32), np.inexact)
