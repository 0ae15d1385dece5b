"""A training state, and the step that moves it: both are the user's own.

A state is whatever the step takes and returns: a flax ``TrainState``, a dict, a tuple,
modules that are changed in place, or anything else with two functions that read it.
"""

from __future__ import annotations

import copy
import itertools
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import jax

from jaxcheck.errors import InvalidInputError

Reader = Callable[[Any], Any]
# What people call the two, as an attribute or a key.
_PARAMS, _OPT_STATE = ("params", "model"), ("opt_state", "optimizer")


class Readers(NamedTuple):
    """How a state is read.

    Attributes:
        params: gives the parameters.
        opt_state: gives the optimizer's state.
    """

    params: Reader
    opt_state: Reader


def readers_of(
    caller: str, state: Any, params_of: Reader | None, opt_state_of: Reader | None
) -> Readers:
    """What reads ``state``; what the user gives comes first.

    Raises:
        InvalidInputError: if it has nothing of that name and none is given.
    """
    if is_nnx_optimizer(state) and hasattr(state, "model"):
        return Readers(
            params_of or (lambda state: state.model),
            opt_state_of or (lambda state: state),
        )
    params = params_of or params_reader(caller, state)
    return Readers(params, opt_state_of or _reader(caller, state, _OPT_STATE, 1))


def params_reader(caller: str, state: Any) -> Reader:
    """What reads the parameters of ``state``: by its name, or the first of a tuple.

    Raises:
        InvalidInputError: if it has none that can be found.
    """
    return _reader(caller, state, _PARAMS, 0)


def _reader(caller: str, state: Any, names: tuple[str, ...], position: int) -> Reader:
    for name in names:
        if hasattr(state, name):
            return lambda state: getattr(state, name)
        if isinstance(state, Mapping) and name in state:
            return lambda state: state[name]
    plain = isinstance(state, tuple | list) and not hasattr(state, "_fields")
    if plain and len(state) > position:  # pyright: ignore[reportUnknownArgumentType]
        return lambda state: state[position]
    first = names[0]
    raise InvalidInputError(
        f"`{caller}(state=...)` has no `{first}`: it is a {type(state).__name__}. Pass "
        f"{first}_of, a function that reads it from the state."
    )


def is_nnx_optimizer(value: Any) -> bool:
    """Whether it is an ``nnx.Optimizer``; flax is imported only if its user has."""
    nnx: Any = sys.modules.get("flax.nnx")
    return nnx is not None and isinstance(value, nnx.Optimizer)


def copied(state: Any) -> Any:
    """A state that a step may donate or change, for one that stays."""
    return jax.tree.map(_copy, state)


def _copy(value: Any) -> Any:
    # what is no array may have its arrays inside
    return copy.copy(value) if hasattr(value, "shape") else copy.deepcopy(value)


def stepped(caller: str, train_step: Callable[..., Any], state: Any, batch: Any) -> Any:
    """The state after a step: what it returns, or what it has changed in place.

    Raises:
        InvalidInputError: if it returns no state, and has changed none.
    """
    before, wanted = jax.tree.flatten(state)
    out = train_step(state, batch)
    if _is_like(out, state, wanted):
        return out
    if isinstance(out, tuple | list) and out:
        first: Any = out[0]  # pyright: ignore[reportUnknownVariableType]
        if _is_like(first, state, wanted):
            return first
    after = jax.tree.leaves(state)
    opaque = any(not hasattr(x, "shape") for x in after)
    changed = any(a is not b for a, b in zip(before, after, strict=True))
    # a module has other leaves now; an object that is no pytree does not show it
    if changed or (out is None and opaque):
        return state
    raise InvalidInputError(
        f"`{caller}(train_step=...)` must return a state like the one it was given, or "
        f"a tuple that begins with it; it returned {_described(out)} for {wanted}."
    )


def _is_like(value: Any, state: Any, treedef: Any) -> bool:
    # a leaf is like any other: an object of one's own like those of its class only
    same = type(value) is type(state) or (_is_number(value) and _is_number(state))
    nested = not jax.tree_util.treedef_is_leaf(treedef)
    return (nested or same) and jax.tree.structure(value) == treedef


def _is_number(value: Any) -> bool:
    return hasattr(value, "shape") or isinstance(value, int | float | complex)


def _described(value: Any) -> str:
    if isinstance(value, tuple | list):
        kinds = [type(x).__name__ for x in value]  # pyright: ignore[reportUnknownVariableType, reportUnknownArgumentType]
        return f"a {type(value).__name__} of {', '.join(kinds)}"  # pyright: ignore[reportUnknownArgumentType]
    return f"a {type(value).__name__}, {jax.tree.structure(value)},"


def batches_of(caller: str, batches: Any) -> Iterator[Any]:
    """The batches one by one; those of a list again and again.

    Raises:
        InvalidInputError: if it is empty, or is a batch itself.
    """
    if isinstance(batches, list | tuple):
        if not batches:
            raise InvalidInputError(
                f"`{caller}(batches=...)` must hold at least one batch; it is empty."
            )
        return itertools.cycle(batches)  # pyright: ignore[reportUnknownVariableType, reportUnknownArgumentType]
    if not isinstance(batches, Iterable) or hasattr(batches, "shape"):
        raise InvalidInputError(
            f"`{caller}(batches=...)` must be a list of batches or an iterator; got "
            f"{type(batches).__name__}. Wrap a single batch in a list."
        )
    return iter(batches)  # pyright: ignore[reportUnknownArgumentType, reportUnknownVariableType]


def next_batch(caller: str, coming: Iterator[Any], done: int, needed: int) -> Any:
    """The next of ``needed`` batches, of which ``done`` have been taken.

    Raises:
        InvalidInputError: if there is none.
    """
    try:
        return next(coming)
    except StopIteration:
        raise InvalidInputError(
            f"`{caller}(batches=...)` ran out after {done} batches; {needed} are "
            "needed. Pass a list, or an iterator that goes on."
        ) from None
