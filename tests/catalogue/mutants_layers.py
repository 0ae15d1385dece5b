"""Wrong backward passes of neural-network layers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from .cases import MutantList, Pair
from .planting import edited, integers, normal, pair, with_jvp, with_vjp

MUTANTS = MutantList()


def before_head(
    rng: np.random.Generator, layer: Callable[..., Any], wrong: Any, right: Any
) -> Pair:
    """A dense layer, ``layer`` with a rule, and a head; only the dense layer suffers.

    The rules are functions of (x, output, cotangent).
    """

    def loss_with(rule: Any) -> Any:
        ruled = with_vjp(layer, lambda primals, out, ct: (rule(primals[0], out, ct),))

        def loss(params: Any, x: Any, y: Any) -> Any:
            hidden = ruled(x @ params["dense"])
            return jnp.mean((hidden @ params["head"] - y) ** 2)

        return loss

    params = {"dense": normal(rng, 3, 4), "head": normal(rng, 4, 2)}
    return pair(loss_with, wrong, right, params, normal(rng, 4, 3), normal(rng, 4, 2))


def softmax_rule(axis: int) -> Callable[..., Any]:
    """The reverse rule of softmax, summed over ``axis``."""
    return lambda x, s, ct: s * (ct - jnp.sum(s * ct, axis=axis, keepdims=True))


@MUTANTS.add("['dense']")
def softmax_over_the_wrong_axis(rng: np.random.Generator) -> Pair:
    """The backward of a row softmax summed over columns; shapes agree."""
    return before_head(rng, jax.nn.softmax, softmax_rule(0), softmax_rule(-1))


@MUTANTS.add("['dense']")
def softmax_diagonal_only(rng: np.random.Generator) -> Pair:
    """The Jacobian taken for diagonal, s (1 - s)."""
    return before_head(
        rng, jax.nn.softmax, lambda x, s, ct: s * (1 - s) * ct, softmax_rule(-1)
    )


@MUTANTS.add("['dense']")
def softmax_jvp_over_the_wrong_axis(rng: np.random.Generator) -> Pair:
    """The same fault in a forward rule."""

    def loss_with(axis: int) -> Any:
        def rule(primals: Any, dots: Any) -> Any:
            s = jax.nn.softmax(primals[0])
            return s * (dots[0] - jnp.sum(s * dots[0], axis=axis, keepdims=True))

        softmax = with_jvp(jax.nn.softmax, rule)

        def loss(params: Any, x: Any, y: Any) -> Any:
            return jnp.mean((softmax(x @ params["dense"]) @ params["head"] - y) ** 2)

        return loss

    params = {"dense": normal(rng, 3, 4), "head": normal(rng, 4, 2)}
    return pair(loss_with, 0, -1, params, normal(rng, 4, 3), normal(rng, 4, 2))


@MUTANTS.add("['dense']")
def log_softmax_keeps_the_logarithm(rng: np.random.Generator) -> Pair:
    """Log s used where s was meant."""
    return before_head(
        rng,
        jax.nn.log_softmax,
        lambda x, out, ct: ct - out * jnp.sum(ct, -1, keepdims=True),
        lambda x, out, ct: ct - jnp.exp(out) * jnp.sum(ct, -1, keepdims=True),
    )


@MUTANTS.add("['dense']")
def logsumexp_shifted_wrongly(rng: np.random.Generator) -> Pair:
    """The maximum subtracted in the numerator of the weights only."""

    def rule(shift: Callable[[Any], Any]) -> Any:
        def weights(x: Any, out: Any, ct: Any) -> Any:
            shifted = jnp.exp(x - jnp.max(x, -1, keepdims=True))
            total = jnp.sum(jnp.exp(x - shift(x)), -1, keepdims=True)
            return ct * shifted / total

        return weights

    return before_head(
        rng,
        lambda x: x * 0 + jax.nn.logsumexp(x, axis=-1, keepdims=True),
        lambda x, out, ct: rule(jnp.zeros_like)(x, out, jnp.sum(ct, -1, keepdims=True)),
        lambda x, out, ct: rule(lambda x: jnp.max(x, -1, keepdims=True))(
            x, out, jnp.sum(ct, -1, keepdims=True)
        ),
    )


def standardized(x: Any, axis: int) -> Any:
    """(x - mean) / std along ``axis``."""
    centered = x - jnp.mean(x, axis, keepdims=True)
    return centered * lax.rsqrt(jnp.mean(centered**2, axis, keepdims=True) + 1e-5)


def standardize_rule(axis: int, *, mean: bool, variance: bool) -> Callable[..., Any]:
    """The reverse rule of ``standardized``, with or without its two corrections."""

    def rule(x: Any, out: Any, ct: Any) -> Any:
        inner = ct
        if mean:
            inner = inner - jnp.mean(ct, axis, keepdims=True)
        if variance:
            inner = inner - out * jnp.mean(ct * out, axis, keepdims=True)
        return inner * lax.rsqrt(jnp.var(x, axis, keepdims=True) + 1e-5)

    return rule


def standardize_pair(rng: np.random.Generator, axis: int, **kept: bool) -> Pair:
    """A normalization whose rule keeps only the named corrections."""
    return before_head(
        rng,
        lambda x: standardized(x, axis),
        standardize_rule(axis, **kept),
        standardize_rule(axis, mean=True, variance=True),
    )


@MUTANTS.add("['dense']")
def layernorm_without_the_mean_term(rng: np.random.Generator) -> Pair:
    """The mean treated as a constant."""
    return standardize_pair(rng, -1, mean=False, variance=True)


@MUTANTS.add("['dense']")
def layernorm_without_the_variance_term(rng: np.random.Generator) -> Pair:
    """The variance of a layer treated as a constant."""
    return standardize_pair(rng, -1, mean=True, variance=False)


@MUTANTS.add("['dense']")
def batchnorm_variance_constant(rng: np.random.Generator) -> Pair:
    """The variance of a batch treated as a constant."""
    return standardize_pair(rng, 0, mean=True, variance=False)


@MUTANTS.add("['dense']")
def batchnorm_statistics_constant(rng: np.random.Generator) -> Pair:
    """Batch normalization differentiated as at evaluation time."""
    return standardize_pair(rng, 0, mean=False, variance=False)


@MUTANTS.add("['dense']")
def normalize_without_the_projection(rng: np.random.Generator) -> Pair:
    """X / |x| differentiated as if |x| were constant."""

    def right(x: Any, out: Any, ct: Any) -> Any:
        tangent = ct - out * jnp.sum(out * ct, -1, keepdims=True)
        return tangent / jnp.linalg.norm(x, axis=-1, keepdims=True)

    return before_head(
        rng,
        lambda x: x / jnp.sqrt(jnp.sum(x * x, -1, keepdims=True)),
        lambda x, out, ct: ct / jnp.linalg.norm(x, axis=-1, keepdims=True),
        right,
    )


@MUTANTS.add("['dense']")
def rmsnorm_divides_by_the_norm(rng: np.random.Generator) -> Pair:
    """The correction divided by |x|² where the mean square was meant."""

    def rule(average: Callable[..., Any]) -> Any:
        def backward(x: Any, out: Any, ct: Any) -> Any:
            rms = jnp.sqrt(jnp.mean(x * x, -1, keepdims=True))
            return (ct - out * average(out * ct, axis=-1, keepdims=True)) / rms

        return backward

    return before_head(
        rng,
        lambda x: x / jnp.sqrt(jnp.mean(x * x, -1, keepdims=True)),
        rule(jnp.sum),
        rule(jnp.mean),
    )


@MUTANTS.add("['dense']")
def residual_branch_dropped(rng: np.random.Generator) -> Pair:
    """The skip connection carries no gradient back."""
    return before_head(
        rng,
        lambda x: x + jnp.tanh(x),
        lambda x, out, ct: ct * (1 - jnp.tanh(x) ** 2),
        lambda x, out, ct: ct * (2 - jnp.tanh(x) ** 2),
    )


@MUTANTS.add("['dense']")
def gated_halves_swapped(rng: np.random.Generator) -> Pair:
    """A gated linear unit whose backward exchanges value and gate."""

    def gated(x: Any) -> Any:
        value, gate = jnp.split(x, 2, axis=-1)
        half = value * jax.nn.sigmoid(gate)
        return jnp.concatenate([half, half], -1)

    def halves(x: Any, ct: Any) -> tuple[Any, Any]:
        value, gate = jnp.split(x, 2, axis=-1)
        ct = sum(jnp.split(ct, 2, axis=-1))
        s = jax.nn.sigmoid(gate)
        return ct * s, ct * value * s * (1 - s)

    return before_head(
        rng,
        gated,
        lambda x, out, ct: jnp.concatenate(halves(x, ct)[::-1], -1),
        lambda x, out, ct: jnp.concatenate(halves(x, ct), -1),
    )


@MUTANTS.add("['dense']")
def rotary_rotated_twice(rng: np.random.Generator) -> Pair:
    """The backward of a rotation rotates on instead of back."""

    def rotate(x: Any, sign: float) -> Any:
        angle = sign * jnp.arange(x.shape[0], dtype=x.dtype)[:, None]
        a, b = jnp.split(x, 2, axis=-1)
        cos, sin = jnp.cos(angle), jnp.sin(angle)
        return jnp.concatenate([a * cos - b * sin, a * sin + b * cos], -1)

    return before_head(
        rng,
        lambda x: rotate(x, 1.0),
        lambda x, out, ct: rotate(ct, 1.0),
        lambda x, out, ct: rotate(ct, -1.0),
    )


@MUTANTS.add("['dense']")
def average_pool_without_the_factor(rng: np.random.Generator) -> Pair:
    """Each input of a window gets the whole gradient."""

    def spread(factor: float) -> Any:
        return lambda x, out, ct: jnp.repeat(
            factor * (ct[:, ::2] + ct[:, 1::2]), 2, axis=1
        )

    return before_head(
        rng,
        lambda x: jnp.repeat(x.reshape(x.shape[0], -1, 2).mean(-1), 2, axis=1),
        spread(1.0),
        spread(0.5),
    )


@MUTANTS.add("['dense']")
def max_pool_gives_to_the_first(rng: np.random.Generator) -> Pair:
    """The gradient of a window goes to its first entry, not to its largest."""

    def windows(x: Any) -> Any:
        return x.reshape(x.shape[0], -1, 2)

    def pool(x: Any) -> Any:
        return jnp.repeat(windows(x).max(-1), 2, axis=1)

    def scatter(winner: Callable[[Any], Any]) -> Any:
        def rule(x: Any, out: Any, ct: Any) -> Any:
            total = windows(ct).sum(-1, keepdims=True)
            mask = jax.nn.one_hot(winner(windows(x)), 2, dtype=x.dtype)
            return (total * mask).reshape(x.shape)

        return rule

    return before_head(
        rng,
        pool,
        scatter(lambda w: jnp.zeros(w.shape[:-1], int)),
        scatter(lambda w: jnp.argmax(w, -1)),
    )


@MUTANTS.add("['dense']")
def dropout_scale_missing_in_the_backward(rng: np.random.Generator) -> Pair:
    """1/keep applied forward only; the mask itself is right."""
    mask = jnp.asarray(rng.random((4, 4)) < 0.7)
    mask = mask.at[0].set(True)
    return before_head(
        rng,
        lambda x: jnp.where(mask, x / 0.7, 0),
        lambda x, out, ct: jnp.where(mask, ct, 0),
        lambda x, out, ct: jnp.where(mask, ct / 0.7, 0),
    )


@MUTANTS.add("['dense']")
def dropout_draws_again_in_the_backward(rng: np.random.Generator) -> Pair:
    """Another key, and so another mask, in the backward pass."""

    def loss_with(offset: int) -> Any:
        def masked(x: Any, key: Any) -> Any:
            return jnp.where(jax.random.bernoulli(key, 0.5, x.shape), 2 * x, 0)

        def rule(primals: Any, out: Any, ct: Any) -> Any:
            _, key = primals
            # Offset 0 leaves the key as it is; fold_in(key, 0) would not.
            key = jax.random.fold_in(key, offset) if offset else key
            return masked(ct, key), None

        dropout = with_vjp(masked, rule)

        def loss(params: Any, x: Any, key: Any) -> Any:
            hidden = dropout(x @ params["dense"], key)
            return jnp.sum((hidden @ params["head"]) ** 2)

        return loss

    params = {"dense": normal(rng, 3, 4), "head": normal(rng, 4, 2)}
    return pair(loss_with, 1, 0, params, normal(rng, 4, 3), jax.random.key(3))


def dense_rule(
    rng: np.random.Generator, wrong: Callable[..., Any], right: Callable[..., Any]
) -> Pair:
    """A hand-written dense layer between two correct ones; all shapes are square.

    The rules are functions of (x, w, b, cotangent).
    """

    def loss_with(rule: Any) -> Any:
        dense = with_vjp(
            lambda x, w, b: x @ w + b, lambda primals, _, ct: rule(*primals, ct)
        )

        def loss(params: Any, x: Any) -> Any:
            hidden = dense(x @ params["first"], params["w"], params["b"])
            return jnp.mean(jnp.sin(hidden))

        return loss

    params = {"first": normal(rng, 3, 3), "w": normal(rng, 3, 3), "b": normal(rng, 3)}
    return pair(loss_with, wrong, right, params, normal(rng, 3, 3))


def dense_right(x: Any, w: Any, b: Any, ct: Any) -> tuple[Any, Any, Any]:
    """The textbook backward of x w + b."""
    return ct @ w.T, x.T @ ct, ct.sum(0)


@MUTANTS.add("['first']")
def dense_weight_not_transposed(rng: np.random.Generator) -> Pair:
    """W where Wᵀ was meant: only what lies below suffers."""
    return dense_rule(
        rng, lambda x, w, b, ct: (ct @ w, x.T @ ct, ct.sum(0)), dense_right
    )


@MUTANTS.add("['w']")
def dense_input_not_transposed(rng: np.random.Generator) -> Pair:
    """X where xᵀ was meant, with as many examples as features."""
    return dense_rule(
        rng, lambda x, w, b, ct: (ct @ w.T, x @ ct, ct.sum(0)), dense_right
    )


@MUTANTS.add("['b']")
def dense_bias_summed_over_features(rng: np.random.Generator) -> Pair:
    """The bias gradient summed over the wrong axis of a square array."""
    return dense_rule(
        rng, lambda x, w, b, ct: (ct @ w.T, x.T @ ct, ct.sum(1)), dense_right
    )


@MUTANTS.add("['b']")
def dense_bias_averaged(rng: np.random.Generator) -> Pair:
    """The bias gradient averaged over the batch where it is a sum."""
    return dense_rule(
        rng, lambda x, w, b, ct: (ct @ w.T, x.T @ ct, ct.mean(0)), dense_right
    )


@MUTANTS.add("['b']")
def dense_bias_of_one_example(rng: np.random.Generator) -> Pair:
    """The bias gradient of the first example only."""
    return dense_rule(rng, lambda x, w, b, ct: (ct @ w.T, x.T @ ct, ct[0]), dense_right)


def loss_rule(
    rng: np.random.Generator, value: Callable[..., Any], wrong: Any, right: Any
) -> Pair:
    """A loss function with a hand-written gradient behind a linear model.

    The rules are functions of (logits, labels) and give the gradient of the loss.
    """

    def loss_with(rule: Any) -> Any:
        ruled = with_vjp(
            value,
            lambda primals, _, ct: (ct * rule(*primals), jnp.zeros(primals[1].shape)),
        )

        def loss(params: Any, x: Any, labels: Any) -> Any:
            logits = x @ params["w"] + params["b"]
            return ruled(logits, labels) + 0.1 * jnp.sum(params["prior"] ** 2)

        return loss

    params = {"w": normal(rng, 3, 4), "b": normal(rng, 4), "prior": normal(rng, 2)}
    labels = jax.nn.one_hot(integers(rng, 4, (6,)), 4, dtype=jnp.float32)
    return pair(loss_with, wrong, right, params, normal(rng, 6, 3), labels)


def cross_entropy(logits: Any, labels: Any) -> Any:
    """Mean over the batch of the cross-entropy."""
    return -jnp.mean(jnp.sum(labels * jax.nn.log_softmax(logits), -1))


def cross_entropy_gradient(logits: Any, labels: Any) -> Any:
    """The gradient of ``cross_entropy``."""
    return (jax.nn.softmax(logits) - labels) / logits.shape[0]


@MUTANTS.add("['b']", "['w']")
def cross_entropy_without_the_batch_mean(rng: np.random.Generator) -> Pair:
    """The gradient of the sum for that of the mean."""
    return loss_rule(
        rng,
        cross_entropy,
        lambda logits, labels: jax.nn.softmax(logits) - labels,
        cross_entropy_gradient,
    )


@MUTANTS.add("['b']", "['w']")
def cross_entropy_divides_by_the_classes(rng: np.random.Generator) -> Pair:
    """The mean taken over every number where it is over the batch."""
    return loss_rule(
        rng,
        cross_entropy,
        lambda logits, labels: (jax.nn.softmax(logits) - labels) / logits.size,
        cross_entropy_gradient,
    )


@MUTANTS.add("['b']", "['w']")
def cross_entropy_sign(rng: np.random.Generator) -> Pair:
    """Labels - softmax: training climbs."""
    return loss_rule(
        rng,
        cross_entropy,
        lambda logits, labels: -cross_entropy_gradient(logits, labels),
        cross_entropy_gradient,
    )


@MUTANTS.add("['b']", "['w']")
def label_smoothing_forward_only(rng: np.random.Generator) -> Pair:
    """Smoothed labels in the value, hard ones in the gradient."""

    def smooth(labels: Any) -> Any:
        return 0.9 * labels + 0.1 / labels.shape[-1]

    return loss_rule(
        rng,
        lambda logits, labels: cross_entropy(logits, smooth(labels)),
        cross_entropy_gradient,
        lambda logits, labels: cross_entropy_gradient(logits, smooth(labels)),
    )


@MUTANTS.add("['b']", "['w']")
def squared_error_without_the_two(rng: np.random.Generator) -> Pair:
    """The 2 of the square is missing."""
    return loss_rule(
        rng,
        lambda logits, labels: jnp.mean((logits - labels) ** 2),
        lambda logits, labels: (logits - labels) / logits.size,
        lambda logits, labels: 2 * (logits - labels) / logits.size,
    )


def attention(query: Any, key: Any, value: Any) -> Any:
    """Causal attention of one head."""
    scores = query @ key.T / jnp.sqrt(jnp.float32(key.shape[-1]))
    causal = jnp.tril(jnp.ones(scores.shape, bool))
    return jax.nn.softmax(jnp.where(causal, scores, -1e9)) @ value


def attention_rule(fault: str) -> Callable[..., Any]:
    """The reverse rule of ``attention`` with the named fault."""

    def rule(primals: Any, _: Any, ct: Any) -> Any:
        query, key, value = primals
        root = jnp.sqrt(jnp.float32(key.shape[-1]))
        scores = query @ key.T / root
        causal = jnp.tril(jnp.ones(scores.shape, bool))
        if fault == "mask":
            causal = jnp.ones_like(causal)
        weights = jax.nn.softmax(jnp.where(causal, scores, -1e9))
        d_weights = ct @ value.T
        d_scores = softmax_rule(0 if fault == "axis" else -1)(None, weights, d_weights)
        if fault != "scale":
            d_scores = d_scores / root
        d_key = d_scores @ query if fault == "transpose" else d_scores.T @ query
        return d_scores @ key, d_key, weights.T @ ct

    return rule


def attention_pair(rng: np.random.Generator, fault: str) -> Pair:
    """One attention head with projections of its own."""

    def loss_with(fault: str) -> Any:
        head = with_vjp(attention, attention_rule(fault))

        def loss(params: Any, x: Any) -> Any:
            query, key, value = (x @ params[name] for name in ("q", "k", "v"))
            return jnp.mean(jnp.tanh(head(query, key, value) @ params["out"]))

        return loss

    params = {name: normal(rng, 4, 4) for name in ("q", "k", "v", "out")}
    return pair(loss_with, fault, "", params, normal(rng, 4, 4))


@MUTANTS.add("['k']", "['q']")
def attention_without_the_root_of_d(rng: np.random.Generator) -> Pair:
    """1/√d forward only."""
    return attention_pair(rng, "scale")


@MUTANTS.add("['k']", "['q']")
def attention_softmax_over_the_queries(rng: np.random.Generator) -> Pair:
    """The softmax backward over the wrong axis."""
    return attention_pair(rng, "axis")


@MUTANTS.add("['k']", "['q']", "['v']")
def attention_mask_forward_only(rng: np.random.Generator) -> Pair:
    """The causal mask forgotten where the weights are recomputed."""
    return attention_pair(rng, "mask")


@MUTANTS.add("['k']")
def attention_scores_not_transposed(rng: np.random.Generator) -> Pair:
    """The keys' gradient with the scores the wrong way round."""
    return attention_pair(rng, "transpose")


@MUTANTS.add("['kernel']")
def convolution_kernel_flipped(rng: np.random.Generator) -> Pair:
    """Correlation forward, the kernel's gradient as of a convolution."""

    def correlate(x: Any, kernel: Any) -> Any:
        return jnp.correlate(x, kernel, mode="valid", precision="highest")

    def loss_with(flip: int) -> Any:
        def rule(primals: Any, _: Any, ct: Any) -> Any:
            x, kernel = primals
            return jnp.convolve(ct, kernel, precision="highest"), correlate(x, ct)[
                ::flip
            ]

        ruled = with_vjp(correlate, rule)

        def loss(params: Any, x: Any) -> Any:
            return jnp.sum(jnp.tanh(ruled(params["scale"] * x, params["kernel"])))

        return loss

    params = {"kernel": normal(rng, 3), "scale": normal(rng, 8)}
    return pair(loss_with, -1, 1, params, normal(rng, 8))


@MUTANTS.add("['scale']")
def convolution_input_gradient_not_flipped(rng: np.random.Generator) -> Pair:
    """The input's gradient correlated where it is convolved."""

    def loss_with(flip: int) -> Any:
        def correlate(x: Any, kernel: Any) -> Any:
            return jnp.correlate(x, kernel, mode="valid", precision="highest")

        def rule(primals: Any, _: Any, ct: Any) -> Any:
            x, kernel = primals
            d_x = jnp.convolve(ct, kernel[::flip], precision="highest")
            return d_x, correlate(x, ct)

        ruled = with_vjp(correlate, rule)

        def loss(params: Any, x: Any) -> Any:
            return jnp.sum(jnp.tanh(ruled(params["scale"] * x, params["kernel"])))

        return loss

    params = {"kernel": normal(rng, 3), "scale": normal(rng, 8)}
    return pair(loss_with, -1, 1, params, normal(rng, 8))


@MUTANTS.add("['tied']")
def tied_weight_used_once(rng: np.random.Generator) -> Pair:
    """Of the two uses of a tied embedding only the first gets a gradient."""

    def loss_with(second: float) -> Any:
        gate = edited(lambda _, ct: second * ct)

        def loss(params: Any, x: Any) -> Any:
            hidden = jnp.tanh(x @ params["tied"] * params["scale"])
            return jnp.mean((hidden @ gate(params["tied"]).T) ** 2)

        return loss

    params = {"tied": normal(rng, 3, 4), "scale": normal(rng, 4)}
    return pair(loss_with, 0.0, 1.0, params, normal(rng, 5, 3))


@MUTANTS.add("['forget']")
def forget_gate_through_the_new_state(rng: np.random.Generator) -> Pair:
    """The forget gate's gradient multiplied by the new cell where the old is meant."""

    def loss_with(old: bool) -> Any:
        def cell(forget: Any, candidate: Any, state: Any) -> Any:
            return forget * state + (1 - forget) * candidate

        def rule(primals: Any, out: Any, ct: Any) -> Any:
            forget, candidate, state = primals
            d_forget = ct * ((state if old else out) - candidate)
            return d_forget, ct * (1 - forget), ct * forget

        ruled = with_vjp(cell, rule)

        def loss(params: Any, x: Any) -> Any:
            forget = jax.nn.sigmoid(x @ params["forget"])
            candidate = jnp.tanh(x @ params["candidate"])
            return jnp.sum(jnp.sin(ruled(forget, candidate, params["state"])))

        return loss

    params = {
        "forget": normal(rng, 3, 4),
        "candidate": normal(rng, 3, 4),
        "state": normal(rng, 4),
    }
    return pair(loss_with, False, True, params, normal(rng, 3))


@MUTANTS.add("['mean']")
def divergence_the_other_way_round(rng: np.random.Generator) -> Pair:
    """The gradient of KL(p, q) with the variance of the wrong distribution."""

    def loss_with(own: bool) -> Any:
        def divergence(mean: Any, log_std: Any) -> Any:
            # KL(N(mean, exp(log_std)²), N(0, 2²)) up to its constant.
            return jnp.sum((mean**2 + jnp.exp(2 * log_std)) / 8 - log_std)

        def rule(primals: Any, _: Any, ct: Any) -> Any:
            mean, log_std = primals
            variance = 4.0 if own else jnp.exp(2 * log_std)
            return ct * mean / variance, ct * (jnp.exp(2 * log_std) / 4 - 1)

        ruled = with_vjp(divergence, rule)
        return lambda params: ruled(params["mean"], params["log_std"])

    params = {"mean": normal(rng, 4), "log_std": 0.3 * normal(rng, 4)}
    return pair(loss_with, False, True, params)
