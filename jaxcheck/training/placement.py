"""Where arrays live: rows that are joined across layers, leaves or devices.

A reduction of this room ends in a named tuple of rows that says how two of its kind
become one. It needs a sum and a maximum for that, and no more.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol, TypeVar

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from jaxcheck.jaxprs import compat
from jaxcheck.jaxprs.compat import Program
from jaxcheck.jaxprs.interpret import equations
from jaxcheck.training.leaves import Entry


class Join(NamedTuple):
    """What makes one row out of several.

    Attributes:
        add: sums what the rows have.
        largest: their maximum. It never sees NaN, which maxima lose on some backends.
    """

    add: Callable[[jax.Array], jax.Array]
    largest: Callable[[jax.Array], jax.Array]


class Joinable(Protocol):
    """What a reduction ends in: a named tuple of arrays."""

    def joined(self, join: Join) -> Any:
        """Of several rows together."""
        ...


_Rows = TypeVar("_Rows", bound=Joinable)
_State = TypeVar("_State")

# Integers stay 32 bits wide with x64 too.
ROWS = Join(
    add=lambda x: jnp.sum(x, axis=0, dtype=x.dtype),
    largest=lambda x: jnp.max(x, axis=0),
)


def across(axes: tuple[str, ...]) -> Join:
    """Joins what the devices along mesh axes have, inside ``shard_map`` or ``pmap``."""
    return Join(
        add=lambda x: jax.lax.psum(x, axes), largest=lambda x: jax.lax.pmax(x, axes)
    )


def split_over(axes: tuple[str, ...], *arrays: jax.Array) -> tuple[str, ...]:
    """Those of ``axes`` that the arrays are split over.

    Where JAX tracks which values vary between devices, a value that is the same on all
    of them is not split. Where it does not (``pmap``, ``check_vma=False``), every value
    is taken to be.
    """

    def is_split(axis: str) -> bool:
        if axis not in compat.varying_axes(jax.lax.axis_index(axis)):  # not tracked
            return True
        return any(axis in compat.varying_axes(x) for x in arrays)

    return tuple(axis for axis in axes if is_split(axis))


def talking_axes(program: Program) -> tuple[str, ...]:
    """The axes in scope along which a program hands values from device to device.

    What decides whether it is run must be the same along them (``anywhere``): a device
    that runs it alone waits for the others forever.
    """
    named: set[str] = set()
    for eqn in equations(program):
        for axes in (eqn.params.get("axes"), eqn.params.get("axis_name")):
            several = axes if isinstance(axes, tuple | list) else (axes,)
            named.update(axis for axis in several if isinstance(axis, str))
    return tuple(sorted(filter(_is_in_scope, named)))


def _is_in_scope(axis: str) -> bool:
    """Whether a mesh axis is mapped over here, not only inside of what was traced."""
    try:
        jax.lax.axis_size(axis)
    except NameError:
        return False
    return True


def anywhere(flag: jax.Array, axes: tuple[str, ...]) -> jax.Array:
    """Whether ``flag`` is set on any device along ``axes``."""
    return jax.lax.pmax(flag.astype(jnp.int32), axes) > 0 if axes else flag


def while_loop(
    goes_on: Callable[[_State], Any], body: Callable[[_State], _State], start: _State
) -> _State:
    """``jax.lax.while_loop`` of what varies over devices as ``body`` makes it.

    A state of zeros is the same on all devices, and inside of ``shard_map`` JAX wants
    to know from the start that it will not be.
    """
    while True:
        axes: list[frozenset[str]] = []

        def noted(state: _State, axes: list[frozenset[str]] = axes) -> _State:
            after = body(state)
            axes.extend(map(compat.varying_axes, jax.tree.leaves(after)))
            return after

        jax.eval_shape(noted, start)
        leaves, treedef = jax.tree.flatten(start)
        if all(a <= compat.varying_axes(x) for a, x in zip(axes, leaves, strict=True)):
            return jax.lax.while_loop(goes_on, body, start)
        varied = map(compat.varied, leaves, axes)
        start = jax.tree.unflatten(treedef, list(varied))


def rows_of(
    entry: Entry, axes: tuple[str, ...], part: _Rows, *arrays: jax.Array
) -> _Rows:
    """The rows of a leaf, with what other devices have of them, free to be stacked.

    Args:
        entry: the leaf.
        axes: mesh axes that it may be split over.
        part: what this device has: a scalar, or a row for each layer.
        arrays: what that was computed from.
    """
    if split := split_over(axes, *arrays):
        part = part.joined(across(split))
    part = jax.tree.map(replicated, part)
    return part if entry.axis is not None else jax.tree.map(lambda x: x[None], part)


def concatenated(rows: Sequence[_Rows]) -> _Rows:
    """The rows of all leaves, one after the other."""
    return jax.tree.map(lambda *parts: jnp.concatenate(parts), *rows)


def is_split_explicitly(array: jax.Array) -> bool:
    """Whether an array is sharded over an axis of an ``AxisType.Explicit`` mesh."""
    return any(axes is not None for axes in jax.typeof(array).sharding.spec)


def replicated(array: jax.Array) -> jax.Array:
    """An array that may stand beside others, which explicit shardings forbid."""
    if not is_split_explicitly(array):
        return array
    mesh = jax.typeof(array).sharding.mesh
    return jax.sharding.reshard(array, NamedSharding(mesh, PartitionSpec()))
