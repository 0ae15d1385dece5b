"""What a train step should do, and what it would do with one thing changed.

One step is taken apart: a gradient at some parameters and some batch, an update by the
transformation from some state, and adding it to some parameters. A fault is another
choice at one of these places.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxcheck.trees import by_path, wide_on_host
from jaxcheck.updates.views import Viewer
from jaxcheck.updates.watching import Seen

Array = Any

# Units in the last place of a parameter that a change of it may be off by.
_ROUNDOFFS = 2.0


class After(NamedTuple):
    """What a step leaves.

    Attributes:
        params: the new parameters.
        opt_state: the new state of the optimizer.
    """

    params: Any
    opt_state: Any


class Expected:
    """The stated step: ``tx.update(jax.grad(loss_fn))``, then ``apply_updates``.

    Everything is taken from what was seen of one step, but for what is given by name.
    """

    def __init__(
        self, loss_fn: Callable[..., Any], tx: Any, viewer: Viewer, *, has_aux: bool
    ) -> None:
        def loss(params: Any, rest: Any, batch: Any) -> Any:
            out = loss_fn(viewer.model(params, rest), batch)
            return out[0] if has_aux else out

        self._tx = tx
        self._loss = jax.jit(jax.value_and_grad(loss))
        self._value_fn = loss
        self._needs_value = False
        self._update = jax.jit(tx.update)
        self._update_with_value = jax.jit(self._with_value)

    def gradient(self, seen: Seen, *, params: Any = None, batch: Any = None) -> Any:
        """The gradient of the loss."""
        return self._loss(*_point(seen, params, batch))[1]

    def update(
        self, seen: Seen, gradient: Any, *, params: Any = None, opt_state: Any = None
    ) -> tuple[Any, Any]:
        """The updates, and the next state."""
        params = seen.params if params is None else params
        state = seen.opt_state if opt_state is None else opt_state
        if not self._needs_value:
            try:
                return self._update(gradient, state, params)
            except TypeError as error:
                if "'value'" not in str(error):
                    raise
            self._needs_value = True
        return self._update_with_value(gradient, state, params, seen.rest, seen.batch)

    def _with_value(
        self, gradient: Any, state: Any, params: Any, rest: Any, batch: Any
    ) -> tuple[Any, Any]:
        """For what looks at the loss too, as line searches and schedules may do."""

        def value_fn(params: Any) -> Any:
            return self._value_fn(params, rest, batch)

        value = value_fn(params)
        more = {"value": value, "grad": gradient, "value_fn": value_fn}
        return self._tx.update(gradient, state, params, **more)

    def init(self, params: Any) -> Any:
        """A fresh state."""
        return self._tx.init(params)

    def step(self, seen: Seen, *, params: Any = None, opt_state: Any = None) -> After:
        """What the step should leave."""
        params = seen.params if params is None else params
        gradient = self.gradient(seen, params=params)
        updates, state = self.update(seen, gradient, params=params, opt_state=opt_state)
        return After(added(params, updates), state)


def _point(seen: Seen, params: Any, batch: Any) -> tuple[Any, Any, Any]:
    return (
        seen.params if params is None else params,
        seen.rest,
        seen.batch if batch is None else batch,
    )


def added(params: Any, updates: Any) -> Any:
    """What ``optax.apply_updates`` gives."""
    return jax.tree.map(
        lambda p, u: jnp.asarray(p + u, jnp.asarray(p).dtype), params, updates
    )


def scaled(tree: Any, factor: Any) -> Any:
    """A gradient times a number, in its own dtypes."""
    return jax.tree.map(lambda x: (factor * x).astype(x.dtype), tree)


class Agreement(NamedTuple):
    """How far what a step left is from what it should have.

    Attributes:
        error: largest difference of a change of parameters, relative to the largest
            change in its leaf, by the path of the leaf.
        state_error: the same of the optimizer's state, by the path in it.
    """

    error: dict[str, float]
    state_error: dict[str, float]

    @property
    def worst(self) -> float:
        """The largest of all."""
        return max([*self.error.values(), *self.state_error.values()], default=0.0)


def agreement(before: Any, got: After, wanted: After) -> Agreement:
    """Compare changes of parameters, and states.

    Args:
        before: the parameters before the step.
        got: what it left.
        wanted: what it should have left.
    """
    start, ours, theirs = map(_named, (before, got.params, wanted.params))
    ulps = {path: _ulps(value) for path, value in by_path(before).items()}
    error = {
        path: _error(ours[path] - value, theirs[path] - value, ulps[path])
        for path, value in start.items()
    }
    mine, its = _named(got.opt_state), _named(wanted.opt_state)
    state_error = {path: _error(mine[path], its[path], 0.0) for path in its}
    return Agreement(error, state_error)


def _error(got: Array, wanted: Array, floor: Any) -> float:
    with np.errstate(all="ignore"):
        difference = np.abs(got - wanted)
        difference = np.where(difference <= floor, 0.0, difference)
        scale = max(float(np.max(np.abs(wanted), initial=0.0)), np.finfo(float).tiny)
        largest = float(np.max(difference, initial=0.0)) / scale
    return float("inf") if np.isnan(largest) else largest


def _ulps(params: Any) -> Array:
    """What is lost when an update is added to a parameter, and taken off again."""
    dtype = jnp.asarray(params).dtype
    return _ROUNDOFFS * float(jnp.finfo(dtype).eps) * np.abs(wide_on_host(params))


def _named(tree: Any) -> dict[str, Array]:
    return {path: wide_on_host(value) for path, value in by_path(tree).items()}
