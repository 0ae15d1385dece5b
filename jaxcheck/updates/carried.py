"""Parameters that are not floating: carried along, and not checked.

A transformation over all leaves is made into one over the floating leaves alone, with
None in place of the others. It is given them as they are, with the gradients of dtype
float0 that ``jax.grad(..., allow_int=True)`` gives, and its updates of them are left.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import numpy as np

from jaxcheck.errors import InvalidInputError
from jaxcheck.trees import by_path, is_inexact


class Carried(NamedTuple):
    """What is not floating in a pytree.

    Attributes:
        tree: the pytree, with None in place of floating leaves.
    """

    tree: Any

    @property
    def leaves(self) -> dict[str, str]:
        """The dtypes of the leaves by their paths."""
        return {path: str(x.dtype) for path, x in by_path(self.tree).items()}

    def rest(self, tree: Any) -> Any:
        """Of a tree with all leaves the floating ones, None in place of others."""
        return self._each(lambda mine, x: None if mine is not None else x, tree)

    def joined(self, tree: Any) -> Any:
        """A tree of floating leaves with these, as they are."""
        return self._each(lambda mine, x: x if mine is None else mine, tree)

    def with_zeros(self, gradient: Any) -> Any:
        """A gradient of floating leaves with what these have."""

        def zero(mine: Any, x: Any) -> Any:
            return x if mine is None else np.zeros(mine.shape, jax.dtypes.float0)

        return self._each(zero, gradient)

    def _each(self, fn: Any, tree: Any) -> Any:
        return jax.tree.map(fn, self.tree, tree, is_leaf=lambda x: x is None)


def carried(params: Any) -> Carried:
    """What is not floating in ``params``.

    Example:
        >>> carried({"step": np.int32(3), "w": np.ones(2)}).leaves
        {"['step']": 'int32'}
    """
    return Carried(jax.tree.map(lambda x: None if is_inexact(x.dtype) else x, params))


class OfFloating:
    """A transformation as one of the floating leaves alone."""

    def __init__(self, tx: Any, others: Carried, name: str) -> None:
        """Prepare.

        Args:
            tx: the transformation.
            others: the other leaves.
            name: of the argument of ``check_update`` that it is.
        """
        self._tx, self._others, self._name = tx, others, name

    def init(self, params: Any) -> Any:
        """The state of all leaves."""
        try:
            return self._tx.init(self._others.joined(params))
        except (TypeError, ValueError) as error:
            raise self._refused(error) from error

    def update(self, gradient: Any, state: Any, params: Any, **extra: Any) -> Any:
        """The updates of the floating leaves, and the state of all."""
        others = self._others
        try:
            updates, state = self._tx.update(
                others.with_zeros(gradient), state, others.joined(params), **extra
            )
        except (TypeError, ValueError) as error:
            if "required" in str(error) and "argument" in str(error):
                raise  # it is not the leaves that it lacks
            raise self._refused(error) from error
        return others.rest(updates), state

    def _refused(self, error: Exception) -> InvalidInputError:
        leaves = (f"{path}: {dtype}" for path, dtype in self._others.leaves.items())
        return InvalidInputError(
            f"`check_update({self._name}=...)` must take parameters that are not "
            "floating, whose gradients are float0; it fails with "
            f"{', '.join(leaves)}: {error}. Mask them, e.g. with optax.masked or "
            "optax.partition, or leave them out of `params`."
        )
