"""Networks that cases share; the function with a rule goes in as an argument."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax

from tests.catalogue.cases import Program
from tests.catalogue.planting import integers, normal

from .rules import attention, standardize


def dense_params(rng, *sizes):
    """Weights and biases of dense layers from each size to the next."""
    return [
        {"w": normal(rng, m, n) / m**0.5, "b": 0.3 * normal(rng, n)}
        for m, n in itertools.pairwise(sizes)
    ]


def mlp(layers, x, activation):
    """Dense layers with ``activation`` between them."""
    for layer in layers[:-1]:
        x = activation(x @ layer["w"] + layer["b"])  # rule: mlp activation
    return x @ layers[-1]["w"] + layers[-1]["b"]


def mlp_regression(rng, activation):
    """The mean squared error of an MLP with two hidden layers."""

    def loss(layers, x, y):
        return jnp.mean((mlp(layers, x, activation) - y) ** 2)

    return Program(
        loss, dense_params(rng, 3, 5, 5, 2), (normal(rng, 4, 3), normal(rng, 4, 2))
    )


class Parts(NamedTuple):
    """The functions of a transformer that a case may replace."""

    embed: Callable[[Any, Any], Any] = lambda table, tokens: table[tokens]
    norm: Callable[[Any], Any] = standardize
    attend: Callable[[Any, Any, Any], Any] = attention
    activation: Callable[[Any], Any] = jax.nn.gelu


def transformer_params(rng, *, layers=3, width=4, vocabulary=7):
    """Parameters of ``transformer``; those of the blocks are stacked for the scan."""

    def stack(rows, columns):
        return normal(rng, layers, rows, columns) / rows**0.5

    return {
        "embed": normal(rng, vocabulary, width),
        "blocks": {
            "qkv": stack(width, 3 * width),
            "out": stack(width, width),
            "up": stack(width, 2 * width),
            "down": stack(2 * width, width),
        },
        "head": normal(rng, width, vocabulary),
    }


def transformer(params, tokens, parts):
    """Logits of the next token: rematerialized blocks, scanned over layers."""
    x = parts.embed(params["embed"], tokens)  # rule: transformer embedding

    @jax.checkpoint
    def block(x, layer):
        h = parts.norm(x)  # rule: transformer norm
        q, k, v = jnp.split(h @ layer["qkv"], 3, -1)
        x = x + parts.attend(q, k, v) @ layer["out"]  # rule: transformer attention
        h = parts.activation(x @ layer["up"])  # rule: transformer activation
        return x + h @ layer["down"], None

    x, _ = lax.scan(block, x, params["blocks"])
    return x @ params["head"]


def language_model(rng, parts):
    """The cross entropy of a transformer's next tokens, a batch of two by vmap."""

    def loss(params, tokens):
        logits = jax.vmap(lambda t: transformer(params, t[:-1], parts))(tokens)
        return optax.softmax_cross_entropy_with_integer_labels(
            logits, tokens[:, 1:]
        ).mean()

    return Program(loss, transformer_params(rng), (integers(rng, 7, (2, 6)),))


def recurrent(cell, gates):
    """``make(rng)`` of a recurrent net: ``cell(gates, state, step)``, six steps.

    ``state`` is (hidden, memory), and ``gates`` what a dense layer gives for it and for
    the input of the step.
    """

    def make(rng):
        def loss(params, xs):
            def step(state, inputs):
                x, number = inputs
                drive = x @ params["in"] + state[0] @ params["loop"] + params["bias"]
                state = cell(drive, state, number)  # rule: recurrent cell
                return state, state[0]

            start = (jnp.zeros(3, xs.dtype), jnp.zeros(3, xs.dtype))
            _, hidden = lax.scan(step, start, (xs, jnp.arange(len(xs))))
            return jnp.mean((hidden @ params["head"]) ** 2)

        params = {
            "in": normal(rng, 2, 3 * gates),
            "loop": 0.5 * normal(rng, 3, 3 * gates),
            "bias": normal(rng, 3 * gates),
            "head": normal(rng, 3, 2),
        }
        return Program(loss, params, (normal(rng, 6, 2),))

    return make
