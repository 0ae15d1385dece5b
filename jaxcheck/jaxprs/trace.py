"""Trace a loss function once, in its own dtypes, and refuse what is no loss."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxcheck.errors import InvalidInputError
from jaxcheck.jaxprs import compat, interpret
from jaxcheck.jaxprs.compat import Program
from jaxcheck.jaxprs.fingerprint import fingerprint, same_constants
from jaxcheck.jaxprs.lift import raised
from jaxcheck.trees import Partition


@dataclasses.dataclass(frozen=True, kw_only=True)
class TracedLoss:
    """A scalar loss as a program of its parameters and arrays.

    Attributes:
        program: ``(differentiable leaves...) -> (loss,)`` in the loss's own dtypes.
        function: the same as a function; everything else is closed over.
        params: the parameters, taken apart.
        inputs: values for all inputs of ``program``.
        x64: whether 64-bit types were on.
        deterministic: whether tracing twice gave the same program and constants.
        forward: whether its gradient is to be taken in forward mode.
        lengths: numbers that a wrong factor may stand for, by name: lengths of axes of
            the arguments, the number of devices.
    """

    program: Program
    function: Callable[..., Any]
    params: Partition
    inputs: tuple[Any, ...]
    x64: bool
    deterministic: bool
    forward: bool = False
    lengths: Mapping[str, tuple[float, ...]] = dataclasses.field(
        default_factory=dict[str, tuple[float, ...]]
    )


def trace_loss(
    loss_fn: Callable[..., Any],
    params: Partition,
    args: Sequence[Any],
    *,
    has_aux: bool,
    forward: bool = False,
) -> TracedLoss:
    """Trace ``loss_fn(params, *args)``, twice, to see that it is a function.

    Args:
        loss_fn: returns a real scalar, or ``(loss, aux)`` with ``has_aux``.
        params: the parameters, partitioned.
        args: further arguments.
        has_aux: whether ``loss_fn`` returns a pair.
        forward: whether its gradient is to be taken in forward mode.

    Raises:
        InvalidInputError: ``loss_fn`` does not return a real floating scalar.
    """
    inputs = params.moved

    def function(*moved: Any) -> Any:
        # the rest is closed over, as it is when a gradient is taken without jit: a rule
        # may close over it in turn
        out = loss_fn(params.rebuild(moved), *args)
        return loss_of(out, has_aux=has_aux)

    def once() -> Program:
        # a new function each time: JAX remembers what it has traced by identity
        def fresh(*moved: Any) -> Any:
            return function(*moved)

        return _without_dead_code(jax.make_jaxpr(fresh)(*inputs))

    first, second = once(), once()
    same = fingerprint(first, loose=True) == fingerprint(second, loose=True)
    same = same and same_constants(first, second)
    return TracedLoss(
        program=first,
        function=function,
        params=params,
        inputs=inputs,
        x64=compat.x64_enabled(),
        deterministic=same,
        forward=forward,
        lengths=_lengths(args),
    )


def _lengths(args: Sequence[Any]) -> dict[str, tuple[float, ...]]:
    """Lengths of the axes of array arguments, the leading ones apart."""
    shapes = [np.shape(x) for x in jax.tree_util.tree_leaves(args) if _is_array(x)]
    leading = {float(shape[0]) for shape in shapes if shape and shape[0] > 2}
    others = {float(n) for shape in shapes for n in shape[1:] if n > 2}
    named = {
        "batch size": tuple(sorted(leading)),
        "length of an axis of an argument": tuple(sorted(others - leading)),
        "number of devices": (float(jax.device_count()),),
    }
    return {name: sizes for name, sizes in named.items() if sizes and min(sizes) > 1}


def _is_array(value: Any) -> bool:
    return isinstance(value, np.ndarray | jax.Array)


def in_float64(traced: TracedLoss) -> TracedLoss:
    """The loss traced again, with 64-bit types and its parameters widened.

    Functions that choose coefficients and thresholds by dtype are other functions then.
    """
    with compat.x64(True):
        inputs = tuple(
            jnp.asarray(x).astype(raised(jnp.asarray(x).dtype)) for x in traced.inputs
        )
        program = _without_dead_code(jax.make_jaxpr(traced.function)(*inputs))
        moved = iter(inputs)
        leaves = tuple(
            dataclasses.replace(leaf, dtype=str(next(moved).dtype))
            if leaf.differentiable
            else leaf
            for leaf in traced.params.leaves
        )
    params = dataclasses.replace(traced.params, leaves=leaves, moved=inputs)
    return dataclasses.replace(
        traced, program=program, params=params, inputs=inputs, x64=True
    )


def loss_of(out: Any, *, has_aux: bool, caller: str = "check") -> Any:
    """The scalar in what a loss function returned, or a clear refusal."""
    got = _spell(out)
    if has_aux:
        if not (isinstance(out, tuple | list) and len(out) == 2):  # pyright: ignore[reportUnknownArgumentType]
            raise InvalidInputError(
                f"`{caller}(loss_fn=..., has_aux=True)` must return (loss, aux); it "
                f"returned {got}. Return a pair, or leave has_aux out."
            )
        out = out[0]  # pyright: ignore[reportUnknownVariableType]
        got = _spell(out)
    elif isinstance(out, tuple | list):
        raise InvalidInputError(
            f"`{caller}(loss_fn=...)` must return a real scalar; it returned {got}. If "
            "that is (loss, aux), pass has_aux=True; else return the loss alone."
        )
    if not (hasattr(out, "dtype") or isinstance(out, bool | int | float | complex)):
        raise InvalidInputError(
            f"`{caller}(loss_fn=...)` must return a real scalar; it returned {got}."
        )
    loss: Any = jnp.asarray(out)
    if loss.shape != ():
        raise InvalidInputError(
            f"`{caller}(loss_fn=...)` must return a real scalar; it returned {got}. "
            "Reduce it, e.g. with jnp.mean, or return (loss, aux) with has_aux=True."
        )
    if jnp.issubdtype(loss.dtype, jnp.complexfloating):
        raise InvalidInputError(
            f"`{caller}(loss_fn=...)` must return a real scalar; it returned {got}. "
            "Take jnp.real, or jnp.abs(z)**2, of a complex loss."
        )
    if not jnp.issubdtype(loss.dtype, jnp.floating):
        raise InvalidInputError(
            f"`{caller}(loss_fn=...)` must return a floating scalar; it returned {got}"
            ", which has no gradient. Compute the loss in a floating dtype."
        )
    return loss


def _spell(out: Any) -> str:
    """What a function returned, as dtypes and shapes: ``(float32[], dict)``."""
    if isinstance(out, tuple | list):
        items = ", ".join(_spell(item) for item in out)  # pyright: ignore[reportUnknownVariableType]
        return f"({items})"
    if hasattr(out, "dtype") and hasattr(out, "shape"):
        return f"{out.dtype}[{','.join(map(str, out.shape))}]"
    if isinstance(out, bool | int | float | complex) or out is None:
        return repr(out)
    return type(out).__name__


def _without_dead_code(program: Program) -> Program:
    """``program`` without equations that only an auxiliary output needed."""
    live = interpret.live_equations(program)
    jaxpr, _ = compat.opened(program)
    if len(live) == len(jaxpr.eqns):
        return program
    return compat.with_equations(program, live)
