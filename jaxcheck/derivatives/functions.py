"""Functions of pytrees as flat functions of arrays, their derivatives as such again.

``check_derivatives`` asks about any function. Here it becomes a function from a list of
arrays (the differentiable leaves of its primals) to a list of arrays (the floating
leaves of its output); whatever else goes in is closed over, whatever else comes out is
set aside and named. A derivative of such a function is one again, which is how higher
orders are reached.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from jaxcheck.errors import InvalidInputError
from jaxcheck.gradients.arrays import real_view
from jaxcheck.gradients.probes import random_bits, words_of
from jaxcheck.trees import Leaf, Partition, describe, flatten_with_none, partition

Array = Any
Direction = Literal["fwd", "rev"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class FlatFunction:
    """A function of arrays, with the names of what goes in and out.

    Attributes:
        function: ``(*arrays) -> tuple of arrays``.
        inputs: the primals, taken apart.
        outputs: the floating leaves of the output.
        other_outputs: leaves of the output that have no derivative.
    """

    function: Callable[..., tuple[Array, ...]]
    inputs: Partition
    outputs: tuple[Leaf, ...]
    other_outputs: tuple[Leaf, ...] = ()


def flat_function(
    fn: Callable[..., Any], primals: Sequence[Any], *, has_aux: bool
) -> FlatFunction:
    """``fn`` as a function of the differentiable leaves of ``primals``.

    Raises:
        InvalidInputError: there is nothing to differentiate.
    """
    inputs = partition(tuple(primals))

    def whole(*moved: Array) -> Any:
        out = fn(*inputs.rebuild(moved))
        return _without_aux(out) if has_aux else out

    shapes = jax.eval_shape(whole, *inputs.moved)
    pairs, _ = flatten_with_none(shapes)
    leaves = [_output(path, value) for path, value in pairs]
    chosen = [k for k, leaf in enumerate(leaves) if leaf.differentiable]
    if not chosen:
        listing = ", ".join(f"{x.path or 'it'}: {x.dtype}" for x in leaves) or "nothing"
        raise InvalidInputError(
            "`check_derivatives(fn=...)` must return at least one floating or complex "
            f"array; it returned {listing}. Integers have no derivative; convert what "
            "should have one, e.g. with jnp.asarray(x, jnp.float32)."
        )

    def function(*moved: Array) -> tuple[Array, ...]:
        values = [v for _, v in flatten_with_none(whole(*moved))[0]]
        return tuple(jnp.asarray(values[k]) for k in chosen)

    return FlatFunction(
        function=function,
        inputs=inputs,
        outputs=tuple(leaves[k] for k in chosen),
        other_outputs=tuple(x for x in leaves if not x.differentiable),
    )


def _without_aux(out: Any) -> Any:
    if isinstance(out, tuple | list) and len(out) == 2:  # pyright: ignore[reportUnknownArgumentType]
        return out[0]  # pyright: ignore[reportUnknownVariableType]
    raise InvalidInputError(
        "`check_derivatives(fn=..., has_aux=True)` must return (output, aux); it "
        f"returned {type(out).__name__}. Return a pair, or leave has_aux out."
    )


def _output(path: Any, value: Any) -> Leaf:
    """Describe a leaf of ``jax.eval_shape``'s result."""
    if not isinstance(value, jax.ShapeDtypeStruct):
        return describe(path, value)
    empty = np.broadcast_to(np.zeros((), value.dtype), value.shape)
    if jnp.issubdtype(value.dtype, jax.dtypes.prng_key):
        return describe(path, jax.random.split(jax.random.key(0), value.shape))
    return describe(path, empty)


# -- random vectors


def probe_like(leaf: Leaf, seed: Sequence[int], number: int) -> Array:
    """A vector of ±U[0.5, 1.5] in the shape and dtype of ``leaf``."""
    shape = leaf.shape + ((2,) if leaf.complex else ())
    bits = np.asarray(random_bits(words_of(seed, number), leaf.token, shape))
    sign = np.where(bits >> 31 == 0, 1.0, -1.0)
    values = sign * (0.5 + (bits & 0x7FFFFFFF) / 2.0**31)
    if leaf.complex:
        return jnp.asarray(values[..., 0] + 1j * values[..., 1], leaf.dtype)
    return jnp.asarray(values, leaf.dtype)


def basis_like(leaf: Leaf) -> list[Array]:
    """Every unit vector of ``leaf``, for a complex one 1 and 1j at each place."""
    units = np.eye(leaf.size).reshape(leaf.size, *leaf.shape)
    if leaf.complex:
        units = np.concatenate([units, 1j * units])
    return [jnp.asarray(unit, leaf.dtype) for unit in units]


def contracted(cotangent: Array, output: Array) -> Array:
    """The real number <cotangent, output>, in float32 at least."""
    views = [real_view(jnp.asarray(x)) for x in (cotangent, output)]
    wide = jnp.promote_types(views[1].dtype, jnp.float32)
    return jnp.sum(views[0].astype(wide) * views[1].astype(wide))


# -- derivatives as functions


def derivative(
    flat: FlatFunction, direction: Direction, seed: Sequence[int]
) -> FlatFunction:
    """One derivative of ``flat`` along fixed random vectors, as a function again.

    ``"fwd"``: the tangents of the outputs for random tangents of the inputs.
    ``"rev"``: the gradients by the inputs for random cotangents of the outputs.
    """
    leaves = flat.inputs.differentiable
    if direction == "fwd":
        tangents = tuple(probe_like(leaf, seed, 3) for leaf in leaves)

        def pushed(*moved: Array) -> tuple[Array, ...]:
            moved = tuple(jnp.asarray(x) for x in moved)
            return jax.jvp(flat.function, moved, tangents)[1]

        return dataclasses.replace(flat, function=pushed, other_outputs=())
    cotangents = tuple(probe_like(leaf, seed, 5) for leaf in flat.outputs)

    def pulled(*moved: Array) -> tuple[Array, ...]:
        moved = tuple(jnp.asarray(x) for x in moved)
        return jax.vjp(flat.function, *moved)[1](cotangents)

    return dataclasses.replace(flat, function=pulled, outputs=leaves, other_outputs=())
