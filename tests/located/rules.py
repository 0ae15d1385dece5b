"""How a function gets a hand-written reverse rule, and functions that get one."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax


def ruled(fn, backward):
    """``fn`` with the reverse rule ``backward((primals, output), cotangent)``."""
    function = jax.custom_vjp(fn)

    def forward(*primals):
        output = fn(*primals)
        return output, (primals, output)

    function.defvjp(forward, backward)
    return function


def standardize(x):
    """Zero mean and unit variance along the last axis."""
    centered = x - jnp.mean(x, -1, keepdims=True)
    return centered * lax.rsqrt(jnp.mean(centered**2, -1, keepdims=True) + 1e-5)


def standardize_backward(x, y, ct, *, mean=True, variance=True):
    """The pullback of ``standardize``, with or without its two corrections."""
    inner = ct
    if mean:
        inner = inner - jnp.mean(ct, -1, keepdims=True)
    if variance:
        inner = inner - y * jnp.mean(ct * y, -1, keepdims=True)
    return inner * lax.rsqrt(jnp.var(x, -1, keepdims=True) + 1e-5)


def attention(q, k, v):
    """Causal scaled dot-product attention of one head, (length, width) each."""
    return causal_weights(q, k) @ v


def causal_weights(q, k):
    """How much each position attends to each one before it and to itself."""
    scores = q @ k.T / q.shape[-1] ** 0.5
    return jax.nn.softmax(jnp.where(jnp.tri(q.shape[0], dtype=bool), scores, -1e9))


def softmax_backward(weights, ct, axis=-1):
    """The pullback of softmax, whose output is ``weights``."""
    return weights * (ct - jnp.sum(weights * ct, axis, keepdims=True))
