"""Faults in transformers: blocks rematerialized in a scan, a batch by vmap."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from jax import lax

from tests.catalogue.cases import Program
from tests.catalogue.planting import integers, normal

from .architectures import Parts, language_model, transformer, transformer_params
from .cases import FaultList, culprit
from .rules import (
    attention,
    causal_weights,
    ruled,
    softmax_backward,
    standardize,
    standardize_backward,
)

FAULTS = FaultList()


# ---- normalization


@FAULTS.add(culprit("standardize", "transformer norm"))
def layer_norm_without_the_mean_term(rng, faulty):
    def layer_norm_backward(saved, ct):
        (x,), y = saved
        return (standardize_backward(x, y, ct, mean=not faulty),)

    return language_model(rng, Parts(norm=ruled(standardize, layer_norm_backward)))


@FAULTS.add(culprit("standardize", "transformer norm"))
def layer_norm_without_the_variance_term(rng, faulty):
    def layer_norm_backward(saved, ct):
        (x,), y = saved
        return (standardize_backward(x, y, ct, variance=not faulty),)

    return language_model(rng, Parts(norm=ruled(standardize, layer_norm_backward)))


@FAULTS.add(culprit("rms_norm", "transformer norm"))
def rms_norm_sums_instead_of_averaging(rng, faulty):
    def rms_norm(x):
        return x * lax.rsqrt(jnp.mean(x * x, -1, keepdims=True) + 1e-6)

    def rms_norm_backward(saved, ct):
        (x,), y = saved
        reduce = jnp.sum if faulty else jnp.mean
        scale = lax.rsqrt(jnp.mean(x * x, -1, keepdims=True) + 1e-6)
        return (scale * (ct - y * reduce(ct * y, -1, keepdims=True)),)

    return language_model(rng, Parts(norm=ruled(rms_norm, rms_norm_backward)))


# ---- attention


def attention_backward(saved, ct, *, axis=-1, divisor=None, masked=True):
    """The pullback of causal attention; every argument but the first two is a fault."""
    (q, k, v), _ = saved
    weights = causal_weights(q, k)
    if not masked:
        weights = jax.nn.softmax(q @ k.T / q.shape[-1] ** 0.5)
    scores = softmax_backward(weights, ct @ v.T, axis)
    scores = scores / (q.shape[-1] ** 0.5 if divisor is None else divisor)
    return scores @ k, scores.T @ q, weights.T @ ct


@FAULTS.add(culprit("attention", "transformer attention"))
def attention_softmax_over_the_wrong_axis(rng, faulty):
    def backward(saved, ct):
        return attention_backward(saved, ct, axis=0 if faulty else -1)

    return language_model(rng, Parts(attend=ruled(attention, backward)))


@FAULTS.add(culprit("attention", "transformer attention"))
def attention_forgets_the_scale(rng, faulty):
    def backward(saved, ct):
        return attention_backward(saved, ct, divisor=1 if faulty else None)

    return language_model(rng, Parts(attend=ruled(attention, backward)))


@FAULTS.add(culprit("attention", "transformer attention"))
def attention_forgets_the_mask(rng, faulty):
    def backward(saved, ct):
        return attention_backward(saved, ct, masked=not faulty)

    return language_model(rng, Parts(attend=ruled(attention, backward)))


@FAULTS.add(culprit("attention", "transformer attention"))
def attention_swaps_keys_and_queries(rng, faulty):
    def backward(saved, ct):
        dq, dk, dv = attention_backward(saved, ct)
        return (dk, dq, dv) if faulty else (dq, dk, dv)

    return language_model(rng, Parts(attend=ruled(attention, backward)))


@FAULTS.add(culprit("flash_attention", "transformer attention"))
def flash_attention_forgets_delta(rng, faulty):
    """The rule scans over blocks of keys; it lost rowsum(dO ∘ O)."""

    def flash_attention(q, k, v):
        return attention(q, k, v)

    def flash_attention_backward(saved, ct):
        (q, k, v), out = saved
        scale = q.shape[-1] ** -0.5
        rows = jnp.arange(len(q))
        scores = jnp.where(rows[:, None] >= rows, q @ k.T * scale, -1e9)
        normalizer = jax.nn.logsumexp(scores, -1, keepdims=True)
        delta = jnp.sum(ct * out, -1, keepdims=True)

        def one_key(dq, key):
            k_j, v_j, j = key
            score = jnp.where(rows >= j, q @ k_j * scale, -1e9)[:, None]
            p = jnp.exp(score - normalizer)
            ds = p * (ct @ v_j[:, None] - (0 if faulty else delta)) * scale
            return dq + ds * k_j, ((ds * q).sum(0), (p * ct).sum(0))

        dq, (dk, dv) = lax.scan(one_key, jnp.zeros_like(q), (k, v, rows))
        return dq, dk, dv

    return language_model(
        rng, Parts(attend=ruled(flash_attention, flash_attention_backward))
    )


@FAULTS.add(culprit("rotate", "rotary embedding"))
def rotary_embedding_rotates_on(rng, faulty):
    """The transpose of a rotation is the rotation back."""

    def turned(x, sign):
        angle = sign * jnp.arange(len(x), dtype=x.dtype)[:, None]
        a, b = jnp.split(x, 2, -1)
        cos, sin = jnp.cos(angle), jnp.sin(angle)
        return jnp.concatenate([a * cos - b * sin, a * sin + b * cos], -1)

    def rotate(x):
        return turned(x, 1.0)

    def rotate_backward(saved, ct):
        return (turned(ct, 1.0 if faulty else -1.0),)

    rotary = ruled(rotate, rotate_backward)

    def attend(q, k, v):
        both = rotary(jnp.concatenate([q, k], -1))  # rule: rotary embedding
        return attention(*jnp.split(both, 2, -1), v)

    return language_model(rng, Parts(attend=attend))


# ---- embedding, activation, loss


@FAULTS.add(culprit("lookup", "transformer embedding"))
def embedding_keeps_only_the_last_of_equal_tokens(rng, faulty):
    """``set`` where ``add`` was meant: tokens that occur twice lose one gradient."""

    def lookup(table, tokens):
        return table[tokens]

    def lookup_backward(saved, ct):
        (table, tokens), _ = saved
        rows = jnp.zeros_like(table).at[tokens]
        return rows.set(ct) if faulty else rows.add(ct), None

    return language_model(rng, Parts(embed=ruled(lookup, lookup_backward)))


@FAULTS.add(
    culprit("attention", "transformer attention"),
    culprit("standardize", "transformer norm"),
)
def transformer_with_two_faults(rng, faulty):
    """The norm forgets a term, and the attention a factor."""

    def layer_norm_backward(saved, ct):
        (x,), y = saved
        return (standardize_backward(x, y, ct, mean=not faulty),)

    def backward(saved, ct):
        return attention_backward(saved, ct, divisor=1 if faulty else None)

    parts = Parts(
        norm=ruled(standardize, layer_norm_backward),
        attend=ruled(attention, backward),
    )
    return language_model(rng, parts)


@FAULTS.add(culprit("squared_relu", "transformer activation", (2,)))
def activation_wrong_in_the_last_layer(rng, faulty):
    """The rule takes large values for saturated, and only layer 2 has large ones."""
    bound = 8

    def squared_relu(x):
        return jnp.square(jnp.maximum(x, 0))

    def squared_relu_backward(saved, ct):
        (x,), _ = saved
        slope = 2 * jnp.maximum(x, 0)
        return (ct * (jnp.where(x > bound, 0, slope) if faulty else slope),)

    activation = ruled(squared_relu, squared_relu_backward)
    loss, params, args = language_model(rng, Parts(activation=activation))
    up = params["blocks"]["up"].at[2].multiply(10)
    down = params["blocks"]["down"].at[2].multiply(0.01)
    params["blocks"] |= {"up": up, "down": down}
    return Program(loss, params, args)


@FAULTS.add(culprit("smoothed_cross_entropy", "smoothed cross entropy"))
def label_smoothing_forgotten_in_the_rule(rng, faulty):
    """The loss smooths its labels and the rule does not."""
    smoothing = 0.1

    def smoothed_labels(logits, labels, amount):
        hard = jax.nn.one_hot(labels, logits.shape[-1], dtype=logits.dtype)
        return optax.smooth_labels(hard, amount)

    def smoothed_cross_entropy(logits, labels):
        targets = smoothed_labels(logits, labels, smoothing)
        return -jnp.mean(jnp.sum(targets * jax.nn.log_softmax(logits), -1))

    def smoothed_cross_entropy_backward(saved, ct):
        (logits, labels), _ = saved
        targets = smoothed_labels(logits, labels, 0.0 if faulty else smoothing)
        return ct * (jax.nn.softmax(logits) - targets) / len(labels), None

    entropy = ruled(smoothed_cross_entropy, smoothed_cross_entropy_backward)

    def loss(params, tokens):
        logits = transformer(params, tokens[:-1], Parts())
        return entropy(logits, tokens[1:])  # rule: smoothed cross entropy

    return Program(loss, transformer_params(rng), (integers(rng, 7, (6,)),))


# ---- flax


@FAULTS.add(culprit("quick_gelu", "linen block activation"))
def linen_block_in_nn_scan_and_nn_remat(rng, faulty):
    """The derivative of x σ(1.702 x) without the inner 1.702."""

    def quick_gelu(x):
        return x * jax.nn.sigmoid(1.702 * x)

    def quick_gelu_backward(saved, ct):
        (x,), y = saved
        s = jax.nn.sigmoid(1.702 * x)
        return (ct * (s + (1 if faulty else 1.702) * y * (1 - s)),)

    activation = ruled(quick_gelu, quick_gelu_backward)

    class Block(nn.Module):
        @nn.compact
        def __call__(self, x, _):
            h = nn.LayerNorm()(x)
            x = x + nn.MultiHeadDotProductAttention(num_heads=2)(h, h)
            h = nn.Dense(6)(nn.LayerNorm()(x))
            h = activation(h)  # rule: linen block activation
            return x + nn.Dense(4)(h), None

    class Encoder(nn.Module):
        @nn.compact
        def __call__(self, x):
            blocks = nn.scan(
                nn.remat(Block),
                variable_axes={"params": 0},
                split_rngs={"params": True},
                length=3,
            )
            return blocks()(x, None)[0]

    x = normal(rng, 2, 5, 4)
    variables = Encoder().init(jax.random.key(0), x)

    def loss(variables, x):
        return jnp.mean(jnp.sin(Encoder().apply(variables, x)))

    return Program(loss, variables, (x,))
