"""Gradients that are hard on an optimizer.

A gradient that stays the same hides every decay rate, one of a single scale hides where
eps stands, one without zeros hides what happens at zero. So: each coordinate has a
scale of its own, from 1e-8 to 1e4, and keeps it, up to a factor of two, for eps to
matter in the small ones; signs change; some elements are exactly zero; one step is all
zeros, and one is large. A large leaf is filled with repetitions of one block of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxcheck.trees import is_inexact

_SMALLEST, _LARGEST = -8.0, 4.0
# float16 has no room for the squares of these.
_SMALLEST_HALF, _LARGEST_HALF = -2.0, 1.0
_ZEROS = 1 / 8
_BURST = 30.0
# Of the gradient of one example beside that of the next.
_APART = 100.0
# A prime, so that rows of a matrix do not repeat.
_BLOCK = 4_093


def hard_gradients(
    params: Any, steps: int, seed: Sequence[int], examples: int | None = None
) -> list[Any]:
    """A sequence of gradients for ``params``, in the dtypes of its leaves.

    Args:
        params: a pytree; leaves that are not floating or complex get zeros.
        steps: how many.
        seed: of the random numbers.
        examples: of how many examples there is a gradient, along a first axis; the
            norms of these differ. None for one gradient without that axis.

    Returns:
        A pytree like ``params`` for each step. The all-zero one is in the middle, the
        large one before it.
    """
    rng = np.random.default_rng(seed)
    leaves, treedef = jax.tree.flatten(params)
    if examples is not None:
        leaves = [
            jax.ShapeDtypeStruct((examples, *np.shape(x)), x.dtype) for x in leaves
        ]
    blocks = [_block(x) for x in leaves]
    scales = _scales(blocks, rng)
    out: list[Any] = []
    for t in range(steps):
        size = _size(t, steps)
        drawn = [
            _draw(x, size * scale, rng) for x, scale in zip(blocks, scales, strict=True)
        ]
        filled = [_filled(d, np.shape(x)) for d, x in zip(drawn, leaves, strict=True)]
        if examples is not None:
            filled = [_spread(x) for x in filled]
        out.append(jax.tree.unflatten(treedef, filled))
    return out


def _spread(gradients: Any) -> Any:
    """Gradients of examples of very different size: 1, 1e-2, 1e-4, ..."""
    sizes = _APART ** -np.arange(len(gradients), dtype=float)
    sizes = sizes.reshape(-1, *[1] * (gradients.ndim - 1))
    return (gradients * sizes).astype(gradients.dtype)


def _block(leaf: Any) -> Any:
    """What stands for ``leaf``: itself, or as much of it as is drawn."""
    if np.size(leaf) <= _BLOCK:
        return leaf
    return jax.ShapeDtypeStruct((_BLOCK,), leaf.dtype)


def _filled(block: Any, shape: tuple[int, ...]) -> Any:
    """Repetitions of ``block``, made on the device if they are many."""
    return block if block.shape == shape else _repeated(block, shape)


_repeated = jax.jit(jnp.resize, static_argnums=1)


def _size(t: int, steps: int) -> float:
    """Of the gradient of step ``t`` beside the others."""
    if steps >= 3 and t == steps // 2:
        return 0.0
    return _BURST if steps >= 5 and t == steps // 2 - 1 else 1.0


def _scales(leaves: Sequence[Any], rng: np.random.Generator) -> list[Any]:
    """The scale of each coordinate: all decades, shuffled over the tree."""
    half = any(_dtype(x) == jnp.float16 for x in leaves)
    ends = (_SMALLEST_HALF, _LARGEST_HALF) if half else (_SMALLEST, _LARGEST)
    sizes = [int(np.size(x)) for x in leaves]
    count = sum(sizes)
    exponents = np.linspace(*ends, count) if count > 1 else np.array([-4.0])
    parts = np.split(10.0 ** rng.permutation(exponents), np.cumsum(sizes)[:-1])
    return [part.reshape(np.shape(x)) for part, x in zip(parts, leaves, strict=True)]


def _dtype(leaf: Any) -> Any:
    return leaf.dtype if hasattr(leaf, "dtype") else jnp.asarray(leaf).dtype


def _draw(leaf: Any, scale: Any, rng: np.random.Generator) -> Any:
    dtype, shape = _dtype(leaf), np.shape(leaf)
    if not is_inexact(dtype):
        return np.zeros(shape, jax.dtypes.float0)

    def real() -> Any:
        sign = rng.choice((-1.0, 1.0), shape)
        value = sign * scale * 2.0 ** rng.uniform(-1, 1, shape)
        return np.where(rng.random(shape) < _ZEROS, 0.0, value)

    value = (
        real() + 1j * real() if jnp.issubdtype(dtype, jnp.complexfloating) else real()
    )
    return value.astype(dtype)
