"""The networks that are checked: as JAX losses, with random parameters and data."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


class Problem(NamedTuple):
    """What ``jaxcheck.check`` takes."""

    loss_fn: Callable[..., jax.Array]
    params: Any
    inputs: np.ndarray
    labels: np.ndarray

    @property
    def size(self) -> int:
        """The number of scalar parameters."""
        return sum(leaf.size for leaf in jax.tree.leaves(self.params))


def cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    log_probabilities = jax.nn.log_softmax(logits)
    return -jnp.take_along_axis(log_probabilities, labels[..., None], axis=-1).mean()


def mlp(sizes: Sequence[int], batch: int, dtype: Any = np.float64) -> Problem:
    """A tanh network with softmax cross-entropy; ``sizes`` from inputs to classes."""
    rng = np.random.default_rng(0)
    params = [
        ((rng.normal(size=(m, n)) / math.sqrt(m)).astype(dtype), np.zeros(n, dtype))
        for m, n in itertools.pairwise(sizes)
    ]

    def loss_fn(params, inputs, labels):
        hidden = inputs
        for kernel, bias in params[:-1]:
            hidden = jnp.tanh(hidden @ kernel + bias)
        kernel, bias = params[-1]
        return cross_entropy(hidden @ kernel + bias, labels)

    inputs = rng.normal(size=(batch, sizes[0])).astype(dtype)
    labels = rng.integers(sizes[-1], size=batch).astype(np.int32)
    return Problem(loss_fn, params, inputs, labels)


def transformer(
    width: int,
    heads: int,
    depth: int,
    batch: int,
    length: int = 16,
    activation: Callable[[jax.Array], jax.Array] = jax.nn.gelu,
) -> Problem:
    """A causal pre-norm transformer in float32 over sequences of random vectors."""
    rng = np.random.default_rng(0)
    classes = 16

    def matrix(m: int, n: int) -> np.ndarray:
        return (rng.normal(size=(m, n)) / math.sqrt(m)).astype(np.float32)

    def block() -> dict[str, np.ndarray]:
        return {
            "attention_in": matrix(width, 3 * width),
            "attention_out": matrix(width, width),
            "feed_forward_in": matrix(width, 4 * width),
            "feed_forward_out": matrix(4 * width, width),
            "scale": np.ones((2, width), np.float32),
        }

    params = {"blocks": [block() for _ in range(depth)], "head": matrix(width, classes)}

    def normalize(x, scale):
        return x * jax.lax.rsqrt((x * x).mean(-1, keepdims=True) + 1e-6) * scale

    def attention(p, x):
        qkv = (x @ p["attention_in"]).reshape(*x.shape[:2], 3, heads, width // heads)
        q, k, v = jnp.moveaxis(qkv, 2, 0)
        attended = jax.nn.dot_product_attention(q, k, v, is_causal=True)
        return attended.reshape(x.shape) @ p["attention_out"]

    def loss_fn(params, inputs, labels):
        x = inputs
        for p in params["blocks"]:
            x = x + attention(p, normalize(x, p["scale"][0]))
            hidden = normalize(x, p["scale"][1]) @ p["feed_forward_in"]
            x = x + activation(hidden) @ p["feed_forward_out"]
        return cross_entropy(x @ params["head"], labels)

    inputs = rng.normal(size=(batch, length, width)).astype(np.float32)
    labels = rng.integers(classes, size=(batch, length)).astype(np.int32)
    return Problem(loss_fn, params, inputs, labels)
