"""How a hand-written rule is planted into a function, and the numbers cases start from.

The rules get everything a rule could want (primals, output, cotangent), so that a case
reads as its formula, right beside wrong.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .cases import Loss, Pair

VjpRule = Callable[[tuple[Any, ...], Any, Any], tuple[Any, ...]]
JvpRule = Callable[[tuple[Any, ...], tuple[Any, ...]], Any]


def positional(fn: Callable[..., Any]) -> Callable[..., Any]:
    """``fn`` without its options, which a custom rule would take for primals."""

    def plain(*primals: Any) -> Any:
        return fn(*primals)

    plain.__name__ = getattr(fn, "__name__", "plain")
    return plain


def with_vjp(fn: Callable[..., Any], rule: VjpRule) -> Callable[..., Any]:
    """``fn`` with the reverse rule ``rule(primals, output, cotangent)``."""
    ruled = jax.custom_vjp(positional(fn))

    def fwd(*primals: Any) -> tuple[Any, Any]:
        output = fn(*primals)
        return output, (primals, output)

    def bwd(residuals: Any, cotangent: Any) -> tuple[Any, ...]:
        primals, output = residuals
        return rule(primals, output, cotangent)

    ruled.defvjp(fwd, bwd)
    return ruled


def with_jvp(fn: Callable[..., Any], rule: JvpRule) -> Callable[..., Any]:
    """``fn`` with the forward rule ``rule(primals, tangents)``."""
    ruled = jax.custom_jvp(positional(fn))

    def jvp(primals: Any, tangents: Any) -> tuple[Any, Any]:
        return fn(*primals), rule(primals, tangents)

    ruled.defjvp(jvp)
    return ruled


def edited(edit: Callable[[Any, Any], Any]) -> Callable[[Any], Any]:
    """The identity, whose cotangent becomes ``edit(x, cotangent)``."""
    return with_vjp(
        lambda x: x, lambda primals, _, cotangent: (edit(primals[0], cotangent),)
    )


def pair(
    loss_with: Callable[[Any], Loss], wrong: Any, right: Any, params: Any, *args: Any
) -> Pair:
    """The loss built with the wrong rule, and the same loss with the right one."""
    return Pair(loss_with(wrong), loss_with(right), params, args)


def normal(rng: np.random.Generator, *shape: int, dtype: Any = np.float32) -> jax.Array:
    """Standard normal numbers."""
    return jnp.asarray(rng.standard_normal(shape).astype(dtype))


def complex_normal(rng: np.random.Generator, *shape: int) -> jax.Array:
    """Complex numbers with standard normal parts."""
    values = rng.standard_normal(shape) + 1j * rng.standard_normal(shape)
    return jnp.asarray(values.astype(np.complex64))


def uniform(
    rng: np.random.Generator, low: float, high: float, *shape: int
) -> jax.Array:
    """Uniform numbers between ``low`` and ``high``."""
    return jnp.asarray(rng.uniform(low, high, shape).astype(np.float32))


def signed(rng: np.random.Generator, *shape: int) -> np.ndarray:
    """Numbers of either sign and of size 0.5 to 1.5: none of them near zero."""
    signs = rng.choice([-1.0, 1.0], shape)
    return (signs * rng.uniform(0.5, 1.5, shape)).astype(np.float32)


def integers(rng: np.random.Generator, high: int, shape: Sequence[int]) -> jax.Array:
    """Integers from 0 below ``high``."""
    return jnp.asarray(rng.integers(0, high, shape).astype(np.int32))
