"""The derivative under test, by autodiff: reverse mode as training does, or forward.

Both return a value and one gradient a leaf, so that whatever follows need not know how
a gradient came about.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

Array = Any

# Tangents that are pushed forward at a time.
_TOGETHER = 64


def value_and_gradient(
    fun: Callable[..., Array], *, forward: bool
) -> Callable[..., tuple[Array, tuple[Array, ...]]]:
    """``fun`` of several arrays with its gradient by all of them.

    Args:
        fun: returns a real scalar.
        forward: whether to push every unit tangent forward. The inputs are real then.
    """

    def run(*inputs: Array) -> tuple[Array, tuple[Array, ...]]:
        if not forward:
            return jax.value_and_grad(fun, tuple(range(len(inputs))))(*inputs)
        grads = [_pushed(fun, inputs, k) for k in range(len(inputs))]
        return fun(*inputs), tuple(grads)

    return run


def _pushed(fun: Callable[..., Array], inputs: tuple[Array, ...], k: int) -> Array:
    """The derivatives by all coordinates of input ``k``, one tangent at a time."""
    value = jnp.asarray(inputs[k])
    count = math.prod(value.shape)

    def along(i: Array) -> Array:
        unit = (jnp.arange(count) == i).astype(value.dtype).reshape(value.shape)
        alone = lambda x: fun(*inputs[:k], x, *inputs[k + 1 :])  # noqa: E731
        return jax.jvp(alone, (value,), (unit,))[1]

    try:
        found = jax.lax.map(along, jnp.arange(count), batch_size=min(count, _TOGETHER))
    except NotImplementedError:  # no batching rule: one after the other
        found = jax.lax.map(along, jnp.arange(count))
    return found.astype(value.dtype).reshape(value.shape)
