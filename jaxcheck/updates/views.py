"""What an optimizer sees of a model, and the model again.

A model may hold more than its optimizer moves: activation functions, counters, running
statistics, random keys. Equinox leaves None in their places, nnx takes out the
variables of one kind; a plain tree of arrays goes in as it is.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxcheck.errors import InvalidInputError
from jaxcheck.states import Readers, is_nnx_optimizer
from jaxcheck.trees import is_inexact


class View(NamedTuple):
    """A state as its optimizer sees it.

    Attributes:
        params: what the optimizer moves.
        opt_state: what it remembers, as ``tx.init(params)`` is built.
        rest: arrays of the model that it does not move.
    """

    params: Any
    opt_state: Any
    rest: Any


class Viewer(NamedTuple):
    """Takes the states of one training apart.

    Attributes:
        view: of a state.
        model: what the loss is given, of ``params`` and ``rest``.
    """

    view: Callable[[Any], View]
    model: Callable[[Any, Any], Any]


def viewer_of(caller: str, tx: Any, state: Any, readers: Readers) -> Viewer:
    """How states like ``state`` are seen by ``tx``.

    Raises:
        InvalidInputError: if the optimizer's state is none of ``tx``.
    """
    model, optimizer = readers.params(state), readers.opt_state(state)
    candidates = (
        [_of_nnx(readers, optimizer)]
        if is_nnx_optimizer(optimizer)
        else [*_whole(model, readers), _floating(model, readers)]
    )
    fresh: Any = None
    for viewer in candidates:
        view = viewer.view(state)
        if not jax.tree.leaves(view.params):
            continue
        fresh = jax.tree.structure(jax.eval_shape(tx.init, view.params))
        if fresh == jax.tree.structure(view.opt_state):
            return viewer
    if fresh is None:
        raise InvalidInputError(
            f"`{caller}(state=...)` must hold parameters that are floating or complex "
            f"arrays; found none in {jax.tree.structure(model)}."
        )
    raise InvalidInputError(
        f"`{caller}(state=...)` holds the state of another optimizer than `tx`: "
        f"{jax.tree.structure(optimizer)}; tx.init gives {fresh}."
    )


def _whole(model: Any, readers: Readers) -> list[Viewer]:
    """The model as it is, if all of it can be moved."""
    if not all(isinstance(x, float) or _floats(x) for x in jax.tree.leaves(model)):
        return []

    def view(state: Any) -> View:
        return View(readers.params(state), readers.opt_state(state), ())

    def whole(params: Any, rest: Any) -> Any:
        del rest
        return params

    return [Viewer(view, whole)]


def _floating(model: Any, readers: Readers) -> Viewer:
    """The floating arrays, and None in the place of all else."""
    leaves, treedef = jax.tree.flatten(model)
    moves = [_floats(x) for x in leaves]
    arrays = [hasattr(x, "dtype") for x in leaves]
    constants = [None if array else x for x, array in zip(leaves, arrays, strict=True)]

    def only(leaves: Sequence[Any], chosen: Sequence[bool]) -> list[Any]:
        return [x if keep else None for x, keep in zip(leaves, chosen, strict=True)]

    def view(state: Any) -> View:
        leaves = treedef.flatten_up_to(readers.params(state))
        stays = [array and not move for array, move in zip(arrays, moves, strict=True)]
        return View(
            jax.tree.unflatten(treedef, only(leaves, moves)),
            readers.opt_state(state),
            only(leaves, stays),
        )

    def whole(params: Any, rest: Any) -> Any:
        moved = treedef.flatten_up_to(params)
        return jax.tree.unflatten(
            treedef,
            [
                next((x for x in (p, r) if x is not None), constant)
                for p, r, constant in zip(moved, rest, constants, strict=True)
            ],
        )

    return Viewer(view, whole)


def _of_nnx(readers: Readers, optimizer: Any) -> Viewer:
    """The variables that an ``nnx.Optimizer`` moves, without their wrappers."""
    nnx: Any = sys.modules["flax.nnx"]

    def view(state: Any) -> View:
        model = readers.params(state)
        return View(
            nnx.as_pure(nnx.state(model, optimizer.wrt)),
            nnx.as_pure(readers.opt_state(state).opt_state),
            model,
        )

    def whole(params: Any, rest: Any) -> Any:
        # other variables than those of ``rest``, for a loss may change its model
        model = jax.tree.map(lambda x: x, rest)
        nnx.update(model, params)
        return model

    return Viewer(view, whole)


def _floats(value: Any) -> bool:
    return is_inexact(getattr(value, "dtype", np.int32))
