"""Faults in multilayer perceptrons: activations, layers, and identities."""

from __future__ import annotations

import equinox as eqx
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax import lax

from tests.catalogue.cases import Program
from tests.catalogue.planting import integers, normal, uniform

from .architectures import dense_params, mlp, mlp_regression
from .cases import FaultList, culprit
from .rules import ruled

FAULTS = FaultList()


# ---- activations


@FAULTS.add(culprit("softplus", "mlp activation"))
def mlp_softplus_twice_its_derivative(rng, faulty):
    def softplus(x):
        return jnp.logaddexp(x, 0)

    def softplus_backward(saved, ct):
        (x,), _ = saved
        return (ct * jax.nn.sigmoid(x) * (2 if faulty else 1),)

    return mlp_regression(rng, ruled(softplus, softplus_backward))


@FAULTS.add(culprit("smooth_step", "mlp activation"))
def mlp_a_thousandth_too_much(rng, faulty):
    @jax.custom_jvp
    def smooth_step(x):
        return jnp.arctan(x)

    @smooth_step.defjvp
    def smooth_step_jvp(primals, tangents):
        (x,), (t,) = primals, tangents
        return smooth_step(x), t * (1.001 if faulty else 1) / (1 + x * x)

    return mlp_regression(rng, smooth_step)


@FAULTS.add(culprit("swish", "mlp activation"))
def mlp_swish_with_the_sign_flipped(rng, faulty):
    def swish(x):
        return x * jax.nn.sigmoid(x)

    def swish_backward(saved, ct):
        (x,), y = saved
        s = jax.nn.sigmoid(x)
        slope = s + y * (1 - s)
        return (-ct * slope if faulty else ct * slope,)

    return mlp_regression(rng, ruled(swish, swish_backward))


@FAULTS.add(culprit("stretched", "stretched activation"))
def mlp_wrong_only_at_large_values(rng, faulty):
    """A rule that thinks of tanh as flat beyond 2, where it still moves."""

    def stretched(x):
        return jnp.tanh(x)

    def stretched_backward(saved, ct):
        (x,), y = saved
        slope = 1 - y * y
        return (ct * (jnp.where(jnp.abs(x) > 2, 0, slope) if faulty else slope),)

    activation = ruled(stretched, stretched_backward)

    def loss(layers, x, y):
        hidden = jax.nn.relu(x @ layers[0]["w"] + layers[0]["b"])
        hidden = activation(hidden @ layers[1]["w"])  # rule: stretched activation
        return jnp.mean((hidden - y) ** 2)

    x = normal(rng, 6, 3)
    return Program(loss, dense_params(rng, 3, 8, 3), (2 * x, normal(rng, 6, 3)))


@FAULTS.add(culprit("bumpy", "bumpy layer"), culprit("wavy", "wavy layer"))
def mlp_two_wrong_activations(rng, faulty):
    """Two rules of two kinds, each wrong by itself."""

    def bumpy(x):
        return jnp.exp(-x * x)

    def bumpy_backward(saved, ct):
        (x,), y = saved
        return (ct * y * x * (-1 if faulty else -2),)

    @jax.custom_jvp
    def wavy(x):
        return jnp.sin(x)

    @wavy.defjvp
    def wavy_jvp(primals, tangents):
        (x,), (t,) = primals, tangents
        return wavy(x), t * (1 - x * x / 2 if faulty else jnp.cos(x))

    bump = ruled(bumpy, bumpy_backward)

    def loss(layers, x, y):
        x = bump(x @ layers[0]["w"] + layers[0]["b"])  # rule: bumpy layer
        x = wavy(x @ layers[1]["w"] + layers[1]["b"])  # rule: wavy layer
        return jnp.mean((x - y) ** 2)

    params = dense_params(rng, 3, 5, 2)
    return Program(loss, params, (normal(rng, 4, 3), normal(rng, 4, 2)))


@FAULTS.add(culprit("hard_gate", "gate among right rules"))
def mlp_among_right_rules_of_libraries(rng, faulty):
    """relu, silu, logsumexp, softmax and norm have rules too, and theirs are right."""

    def hard_gate(x, gate):
        return x * jax.nn.sigmoid(gate)

    def hard_gate_backward(saved, ct):
        (x, gate), _ = saved
        s = jax.nn.sigmoid(gate)
        return ct * s, ct * x * (s if faulty else s * (1 - s))

    gated = ruled(hard_gate, hard_gate_backward)

    def loss(layers, x, labels):
        x = jax.nn.relu(x @ layers[0]["w"] + layers[0]["b"])
        x = gated(x, jax.nn.silu(x @ layers[1]["w"]))  # rule: gate among right rules
        x = x / (1 + jnp.linalg.norm(x, axis=-1, keepdims=True))
        logits = x @ layers[2]["w"] + layers[2]["b"]
        confidence = jax.nn.logsumexp(logits, -1) + jax.nn.softmax(logits)[:, 0]
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        return jnp.mean(losses + 0.1 * confidence)

    params = dense_params(rng, 3, 5, 5, 4)
    return Program(loss, params, (normal(rng, 4, 3), integers(rng, 4, (4,))))


@FAULTS.add(culprit("tanh", "tanh of the generator"))
def gan_tanh_without_its_one(rng, faulty):
    """The derivative of tanh lost its ``1 -`` in a generator."""

    def tanh(x):
        return jnp.tanh(x)

    def tanh_backward(saved, ct):
        _, y = saved
        return (ct * (y * y if faulty else 1 - y * y),)

    squash = ruled(tanh, tanh_backward)

    def loss(params, noise):
        fake = mlp(params["generator"], noise, jax.nn.relu)
        fake = squash(fake)  # rule: tanh of the generator
        logits = mlp(params["discriminator"], fake, jax.nn.leaky_relu)
        return optax.sigmoid_binary_cross_entropy(logits, jnp.ones_like(logits)).mean()

    params = {
        "generator": dense_params(rng, 2, 6, 4),
        "discriminator": dense_params(rng, 4, 6, 1),
    }
    return Program(loss, params, (normal(rng, 5, 2),))


# ---- frameworks call the rule


def wrong_erf_activation(faulty):
    """Erf whose rule forgets 2/√π."""

    def soft_sign(x):
        return lax.erf(x)

    def soft_sign_backward(saved, ct):
        (x,), _ = saved
        return (ct * jnp.exp(-x * x) * (1 if faulty else 2 / np.pi**0.5),)

    return ruled(soft_sign, soft_sign_backward)


@FAULTS.add(culprit("soft_sign", "equinox MLP"))
def equinox_mlp_forgets_a_constant(rng, faulty):
    activation = wrong_erf_activation(faulty)
    net = eqx.nn.MLP(3, 2, 6, 2, activation, key=jax.random.key(0))

    def loss(net, x, y):
        out = jax.vmap(net)(x)  # rule: equinox MLP
        return jnp.mean(optax.huber_loss(out, y))

    return Program(loss, net, (normal(rng, 4, 3), normal(rng, 4, 2)))


@FAULTS.add(culprit("soft_sign", "haiku MLP"))
def haiku_mlp_forgets_a_constant(rng, faulty):
    activation = wrong_erf_activation(faulty)

    def forward(x):
        net = hk.nets.MLP([6, 2], activation=activation)
        return net(x)  # rule: haiku MLP

    net = hk.without_apply_rng(hk.transform(forward))
    x = normal(rng, 4, 3)

    def loss(params, x, y):
        out = net.apply(params, x)
        return jnp.mean((out - y) ** 2)

    params = net.init(jax.random.key(0), x)
    return Program(loss, params, (x, normal(rng, 4, 2)))


@FAULTS.add(culprit("soft_sign", "nnx sequential"))
def nnx_sequential_forgets_a_constant(rng, faulty):
    rngs = nnx.Rngs(0)
    net = nnx.Sequential(
        nnx.Linear(3, 6, rngs=rngs),
        wrong_erf_activation(faulty),
        nnx.LayerNorm(6, rngs=rngs),
        nnx.Linear(6, 2, rngs=rngs),
    )

    def loss(net, x, y):
        out = net(x)  # rule: nnx sequential
        return jnp.mean((out - y) ** 2)

    return Program(loss, net, (normal(rng, 4, 3), normal(rng, 4, 2)))


# ---- layers


def dense_layer_fault(rng, backward, *, widths=(4, 4, 4)):
    """A hand-written dense layer between two of JAX's own."""

    def dense(x, w, b):
        return x @ w + b

    layer = ruled(dense, backward)

    def loss(layers, x, y):
        x = jnp.tanh(x @ layers[0]["w"] + layers[0]["b"])
        x = jnp.tanh(layer(x, layers[1]["w"], layers[1]["b"]))  # rule: dense layer
        return jnp.mean((x - y) ** 2)

    return Program(
        loss, dense_params(rng, *widths), (normal(rng, 5, 4), normal(rng, 5, 4))
    )


@FAULTS.add(culprit("dense", "dense layer"))
def dense_kernel_gradient_transposed(rng, faulty):
    def dense_backward(saved, ct):
        (x, w, _), _ = saved
        return ct @ w.T, (ct.T @ x if faulty else x.T @ ct), jnp.sum(ct, 0)

    return dense_layer_fault(rng, dense_backward)


@FAULTS.add(culprit("dense", "dense layer"))
def dense_bias_gets_nothing(rng, faulty):
    def dense_backward(saved, ct):
        (x, w, b), _ = saved
        return ct @ w.T, x.T @ ct, (jnp.zeros_like(b) if faulty else jnp.sum(ct, 0))

    return dense_layer_fault(rng, dense_backward)


@FAULTS.add(culprit("dense", "dense layer"))
def dense_input_gradient_forgets_the_transpose(rng, faulty):
    def dense_backward(saved, ct):
        (x, w, _), _ = saved
        return ct @ (w if faulty else w.T), x.T @ ct, jnp.sum(ct, 0)

    return dense_layer_fault(rng, dense_backward)


@FAULTS.add(culprit("unit_columns", "weight normalization"))
def weight_norm_without_the_projection(rng, faulty):
    """The length of a column treated as a constant."""

    def unit_columns(v):
        return v / jnp.sqrt(jnp.sum(v * v, 0, keepdims=True))

    def unit_columns_backward(saved, ct):
        (v,), u = saved
        inner = ct if faulty else ct - u * jnp.sum(u * ct, 0, keepdims=True)
        return (inner / jnp.linalg.norm(v, axis=0, keepdims=True),)

    normalized = ruled(unit_columns, unit_columns_backward)

    def loss(params, x, y):
        kernel = params["g"] * normalized(params["v"])  # rule: weight normalization
        return jnp.mean((jax.nn.elu(x @ kernel) - y) ** 2)

    params = {"v": normal(rng, 3, 4), "g": uniform(rng, 0.5, 1.5, 4)}
    return Program(loss, params, (normal(rng, 5, 3), normal(rng, 5, 4)))


# ---- identities with an opinion about cotangents


def opinionated_identity(rng, through, backward):
    """``through`` (an identity in value) between the two layers of an MLP."""
    identity = ruled(through, backward)

    def loss(layers, x, labels):
        x = jnp.tanh(x @ layers[0]["w"] + layers[0]["b"])
        x = identity(x)  # rule: opinionated identity
        logits = x @ layers[1]["w"] + layers[1]["b"]
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).sum()

    params = dense_params(rng, 3, 6, 4)
    return Program(loss, params, (normal(rng, 5, 3), integers(rng, 4, (5,))))


@FAULTS.add(culprit("clip_gradient", "opinionated identity"))
def gradient_clipping_inside_the_loss(rng, faulty):
    def clip_gradient(x):
        return x

    def clip_gradient_backward(saved, ct):
        return (jnp.clip(ct, -0.05, 0.05) if faulty else ct,)

    return opinionated_identity(rng, clip_gradient, clip_gradient_backward)


@FAULTS.add(culprit("reverse_gradient", "opinionated identity"))
def gradient_reversal(rng, faulty):
    """Domain-adversarial training reverses gradients on purpose."""

    def reverse_gradient(x):
        return x

    def reverse_gradient_backward(saved, ct):
        return (-0.3 * ct if faulty else ct,)

    return opinionated_identity(rng, reverse_gradient, reverse_gradient_backward)


@FAULTS.add(culprit("quantize", "opinionated identity"))
def quantization_straight_through(rng, faulty):
    """The derivative of rounding is zero; the rule says one."""

    def quantize(x):
        return jnp.round(4 * x) / 4

    def quantize_backward(saved, ct):
        return (ct if faulty else jnp.zeros_like(ct),)

    return opinionated_identity(rng, quantize, quantize_backward)
