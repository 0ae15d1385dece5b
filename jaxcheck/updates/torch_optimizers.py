"""Optimizers of torch as what a transformation is held against.

torch is imported only where its user has done so. The parameters of each step are
written into tensors of the optimizer's own; an update is what it makes of them, so that
it is exact up to the last places of the parameters.
"""

from __future__ import annotations

import contextlib
import inspect
import sys
from collections.abc import Callable, Generator, Mapping
from typing import Any

import jax
import numpy as np

from jaxcheck.errors import InvalidInputError
from jaxcheck.updates.runs import Reference

# Which of torch's implementations runs, and on what device, is no part of the rule.
_IMPLEMENTATION = ("capturable", "differentiable", "foreach", "fused")


def is_torch_optimizer(value: Any) -> bool:
    """Whether ``value`` is an instance of ``torch.optim.Optimizer``."""
    torch: Any = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.optim.Optimizer)


def torch_reference(
    optimizer: Any, before_step: Callable[[Any, int], None] | None = None
) -> Reference:
    """A fresh optimizer of the same class and settings, in float64 and on the CPU.

    Args:
        optimizer: of torch; its settings are those that its parameter group has now.
        before_step: called with the fresh optimizer and the number of the step, from 0,
            when the gradients are there: what a scheduler or a clipping does.

    Raises:
        InvalidInputError: by this function or by what it returns, if the optimizer
            cannot be run so.
    """
    torch: Any = sys.modules["torch"]
    name = f"torch.optim.{type(optimizer).__name__}"
    settings = _settings(optimizer, name)

    def reference(
        gradients: Any, params: Any, state: Any, step: int, **_: Any
    ) -> tuple[Any, Any]:
        leaves, treedef = jax.tree.flatten(params)
        with _in_float64(torch):
            if step == 0:
                tensors = [torch.nn.Parameter(_tensor(torch, p)) for p in leaves]
                with _told_of(name):
                    state = tensors, type(optimizer)(tensors, **settings)
            tensors, own = state
            pairs = zip(tensors, leaves, jax.tree.leaves(gradients), strict=True)
            for tensor, param, gradient in pairs:
                tensor.data = _tensor(torch, param)
                tensor.grad = _tensor(torch, gradient)
            if before_step is not None:
                before_step(own, step)
            with _told_of(name):
                own.step(*_closure(torch, own, name))
        updates = [t.detach().numpy() - p for t, p in zip(tensors, leaves, strict=True)]
        return jax.tree.unflatten(treedef, updates), state

    reference.__name__ = name
    return reference


def _settings(optimizer: Any, name: str) -> Mapping[str, Any]:
    """What the constructor has to be given, from the parameter groups."""
    taken = [
        argument.name
        for argument in inspect.signature(type(optimizer)).parameters.values()
        if argument.kind not in (argument.VAR_POSITIONAL, argument.VAR_KEYWORD)
        and argument.name not in ("params", *_IMPLEMENTATION)
    ]
    first, *others = optimizer.param_groups
    unknown = [key for key in taken if key not in first]
    if unknown:
        raise InvalidInputError(
            f"`check_update(rule={name}(...))` must have its settings in its parameter "
            f"groups; it has no {', '.join(unknown)} there. Pass a function instead."
        )
    differ = [key for key in taken if any(g[key] != first[key] for g in others)]
    if differ:
        raise InvalidInputError(
            f"`check_update(rule={name}(...))` must have the same settings in all of "
            f"its parameter groups; they differ in {', '.join(differ)}. Check each "
            "group by itself."
        )
    return {key: first[key] for key in taken}


def _closure(torch: Any, own: Any, name: str) -> tuple[Any, ...]:
    """What ``step`` has to be given: a loss, if it insists on one, that is asked once.

    The gradients are known for the parameters of the step, and nowhere else.
    """
    closure = inspect.signature(type(own).step).parameters.get("closure")
    if closure is None or closure.default is not closure.empty:
        return ()
    asked = False

    def loss() -> Any:
        nonlocal asked
        if asked:
            raise InvalidInputError(
                f"`check_update(rule={name}(...))` must ask for one gradient a step; "
                "it asks for more. Set max_iter=1 and no line search."
            )
        asked = True
        return torch.zeros(())

    return (loss,)


def _tensor(torch: Any, value: Any) -> Any:
    return torch.from_numpy(np.array(value))


@contextlib.contextmanager
def _in_float64(torch: Any) -> Generator[None]:
    """Else torch keeps counts, and products of momenta, in float32."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@contextlib.contextmanager
def _told_of(name: str) -> Generator[None]:
    """What torch refuses, as an error of the argument that it came with."""
    try:
        yield
    except (AssertionError, RuntimeError, TypeError, ValueError) as error:
        if isinstance(error, InvalidInputError):
            raise
        raise InvalidInputError(
            f"`check_update(rule={name}(...))` cannot be run: {error}"
        ) from error
