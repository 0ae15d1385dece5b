"""The margins of switches: arrays that are zero where an equation switches.

Functions of (parameters, operands, outputs). A complex one (``abs``) may pass by zero:
its distance is the least that it can be.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
from jax import lax

from jaxcheck.jaxprs.compat import Equation
from jaxcheck.trees import is_inexact

Array = Any


def margins_of(eqn: Equation, values: list[Any], outputs: list[Any]) -> list[Any]:
    """The margins of one equation, from its operands and its outputs."""
    if not all(x.size for x in [*values, *outputs]):
        return []
    return MARGINS[eqn.primitive.name](eqn.params, values, outputs)


def _to_nonzero_integer(x: Array) -> Array:
    """Where rounding toward zero jumps."""
    near = lax.round(x)
    return x - jnp.where(near == 0, jnp.where(x < 0, -1, 1), near)


def _behind_leader(x: Array, axes: Sequence[int]) -> Array:
    """How far every element is behind the largest along ``axes``."""
    kept = [k for k in range(x.ndim) if k not in axes]
    rows = x.transpose(*kept, *axes).reshape(*(x.shape[k] for k in kept), -1)
    leader = jnp.argmax(rows, axis=-1, keepdims=True)
    return jnp.take_along_axis(rows, leader, axis=-1) - rows


def _behind_running(x: Array, axis: int, *, reverse: bool) -> Array:
    """How far every element is from the largest of those before it."""
    x = jnp.moveaxis(x, axis, -1)
    x = x[..., ::-1] if reverse else x
    places = lax.broadcasted_iota(jnp.int32, x.shape, x.ndim - 1)
    records = jnp.where(x == lax.cummax(x, x.ndim - 1), places, 0)
    leader = lax.cummax(records, x.ndim - 1)
    return x[..., 1:] - jnp.take_along_axis(x, leader, axis=-1)[..., :-1]


def _in_windows(x: Array, params: dict[str, Any]) -> Array:
    """How far every element of every window is behind the largest in it."""
    edges = zip(params["padding"], params["base_dilation"], strict=True)
    x = lax.pad(x, x.dtype.type(-jnp.inf), [(*edge, d - 1) for edge, d in edges])
    sizes, steps = params["window_dimensions"], params["window_strides"]
    for k, (size, step, gap) in enumerate(
        zip(sizes, steps, params["window_dilation"], strict=True)
    ):
        starts = jnp.arange(0, x.shape[2 * k] - gap * (size - 1), step)
        places = starts[:, None] + gap * jnp.arange(size)
        x = jnp.take(x, places, axis=2 * k)  # axes 2k: window, 2k + 1: place in it
    return _behind_leader(x, range(1, x.ndim, 2))


def _between_neighbors(params: dict[str, Any], keys: Sequence[Array]) -> list[Any]:
    """Gaps in sorted order; a later key counts where the earlier ones are equal."""
    gaps, equal = [], True
    for key in keys:
        rows = jnp.moveaxis(key, params["dimension"], -1)
        if is_inexact(key.dtype):
            gap = jnp.real(rows[..., 1:] - rows[..., :-1])
            gaps.append(jnp.where(equal, gap, jnp.nan))
        equal = equal & (rows[..., 1:] == rows[..., :-1])
    return gaps


def _at_the_top(params: dict[str, Any], x: Array, top: Array) -> list[Any]:
    """Gaps between the chosen, and of all others to the last one chosen."""
    axis = params.get("axis", -1)
    x, top = jnp.moveaxis(x, axis, -1), jnp.moveaxis(top, axis, -1)
    return [top[..., 1:] - top[..., :-1], x - top[..., -1:]]


MARGINS: dict[str, Callable[[dict[str, Any], list[Any], list[Any]], list[Any]]] = {
    **dict.fromkeys(("eq", "ne"), lambda p, x, y: [x[0] - x[1]]),
    **dict.fromkeys(
        ("max", "min", "lt", "le", "gt", "ge", "lt_to", "le_to"),
        lambda p, x, y: [jnp.real(x[0] - x[1])],
    ),
    **dict.fromkeys(("abs", "sign"), lambda p, x, y: x),
    **dict.fromkeys(("floor", "ceil"), lambda p, x, y: [x[0] - lax.round(x[0])]),
    "round": lambda p, x, y: [x[0] - lax.floor(x[0]) - 0.5],
    "rem": lambda p, x, y: [_to_nonzero_integer(x[0] / x[1])],
    "convert_element_type": lambda p, x, y: (
        x if p["new_dtype"].kind == "b" else [_to_nonzero_integer(x[0])]
    ),
    "clamp": lambda p, x, y: [x[1] - x[0], x[2] - x[1]],
    **dict.fromkeys(
        ("reduce_max", "argmax"), lambda p, x, y: [_behind_leader(x[0], p["axes"])]
    ),
    **dict.fromkeys(
        ("reduce_min", "argmin"), lambda p, x, y: [_behind_leader(-x[0], p["axes"])]
    ),
    "cummax": lambda p, x, y: [_behind_running(x[0], p["axis"], reverse=p["reverse"])],
    "cummin": lambda p, x, y: [_behind_running(-x[0], p["axis"], reverse=p["reverse"])],
    "reduce_window_max": lambda p, x, y: [_in_windows(x[0], p)],
    "reduce_window_min": lambda p, x, y: [_in_windows(-x[0], p)],
    "sort": lambda p, x, y: _between_neighbors(p, y[: p["num_keys"]]),
    "top_k": lambda p, x, y: _at_the_top(p, x[0], y[0]),
}
