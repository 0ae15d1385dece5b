"""Faults in losses: of autoencoders, of regressions, of classifiers."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import optax

from tests.catalogue.cases import Program
from tests.catalogue.planting import integers, normal

from .architectures import dense_params, mlp
from .cases import FaultList, culprit
from .rules import ruled

FAULTS = FaultList()


@FAULTS.add(culprit("kl_divergence", "divergence of the VAE"))
def vae_divergence_drops_a_term(rng, faulty):
    """∂KL/∂log σ² = (σ² − 1)/2; the rule forgets the −1."""

    def kl_divergence(mean, log_variance):
        return jnp.sum(jnp.exp(log_variance) + mean**2 - 1 - log_variance) / 2

    def kl_divergence_backward(saved, ct):
        (mean, log_variance), _ = saved
        variance = jnp.exp(log_variance)
        return ct * mean, ct * (variance if faulty else variance - 1) / 2

    divergence = ruled(kl_divergence, kl_divergence_backward)

    def loss(params, x, key):
        mean, log_variance = jnp.split(mlp(params["encoder"], x, jnp.tanh), 2, -1)
        noise = jax.random.normal(key, mean.shape, mean.dtype)
        z = mean + jnp.exp(log_variance / 2) * noise
        logits = mlp(params["decoder"], z, jnp.tanh)
        fit = optax.sigmoid_binary_cross_entropy(logits, jax.nn.sigmoid(x)).sum()
        return fit + divergence(mean, log_variance)  # rule: divergence of the VAE

    params = {
        "encoder": dense_params(rng, 4, 5, 4),
        "decoder": dense_params(rng, 2, 5, 4),
    }
    return Program(loss, params, (normal(rng, 3, 4), jax.random.key(5)))


@FAULTS.add(culprit("sample", "sample of the VAE"))
def vae_sample_forgets_the_half(rng, faulty):
    """σ = exp(log σ² / 2), differentiated as if the half were not there."""

    @jax.custom_jvp
    def sample(mean, log_variance, noise):
        return mean + jnp.exp(log_variance / 2) * noise

    @sample.defjvp
    def sample_jvp(primals, tangents):
        mean, log_variance, noise = primals
        t_mean, t_log, t_noise = tangents
        std = jnp.exp(log_variance / 2)
        half = 1.0 if faulty else 0.5
        tangent = t_mean + half * std * noise * t_log + std * t_noise
        return sample(mean, log_variance, noise), tangent

    def loss(params, x, noise):
        mean, log_variance = jnp.split(mlp(params["encoder"], x, jax.nn.silu), 2, -1)
        z = sample(mean, log_variance, noise)  # rule: sample of the VAE
        return jnp.mean((mlp(params["decoder"], z, jax.nn.silu) - x) ** 2)

    params = {
        "encoder": dense_params(rng, 4, 5, 4),
        "decoder": dense_params(rng, 2, 5, 4),
    }
    return Program(loss, params, (normal(rng, 3, 4), normal(rng, 3, 2)))


@FAULTS.add(culprit("mean_squared_error", "mean squared error"))
def squared_error_without_its_mean(rng, faulty):
    def mean_squared_error(prediction, target):
        return jnp.mean((prediction - target) ** 2)

    def mean_squared_error_backward(saved, ct):
        (prediction, target), _ = saved
        slope = 2 * (prediction - target) / (1 if faulty else prediction.size)
        return ct * slope, -ct * slope

    error = ruled(mean_squared_error, mean_squared_error_backward)

    def loss(layers, x, y):
        prediction = mlp(layers, x, jax.nn.selu)
        return error(prediction, y)  # rule: mean squared error

    params = dense_params(rng, 3, 5, 2)
    return Program(loss, params, (normal(rng, 4, 3), normal(rng, 4, 2)))


@FAULTS.add(culprit("cross_entropy", "cross entropy"))
def cross_entropy_gradient_is_only_the_softmax(rng, faulty):
    """The one-hot label is not subtracted."""

    def cross_entropy(logits, labels):
        chosen = jnp.take_along_axis(logits, labels[:, None], -1)[:, 0]
        return jnp.mean(jax.nn.logsumexp(logits, -1) - chosen)

    def cross_entropy_backward(saved, ct):
        (logits, labels), _ = saved
        slope = jax.nn.softmax(logits)
        if not faulty:
            slope = slope - jax.nn.one_hot(labels, logits.shape[-1], dtype=slope.dtype)
        return ct * slope / len(labels), None

    entropy = ruled(cross_entropy, cross_entropy_backward)

    def loss(layers, x, labels):
        return entropy(mlp(layers, x, jax.nn.relu), labels)  # rule: cross entropy

    params = dense_params(rng, 3, 6, 4)
    return Program(loss, params, (normal(rng, 5, 3), integers(rng, 4, (5,))))


@FAULTS.add(culprit("robust_loss", "robust loss"))
def robust_loss_wrong_for_outliers(rng, faulty):
    """Huber's loss with delta 1, its rule clipped at 3."""

    def robust_loss(error):
        size = jnp.abs(error)
        return jnp.where(size < 1, error**2 / 2, size - 0.5)

    def robust_loss_backward(saved, ct):
        (error,), _ = saved
        limit = 3.0 if faulty else 1.0
        return (ct * jnp.clip(error, -limit, limit),)

    robust = ruled(robust_loss, robust_loss_backward)

    def loss(layers, x, y):
        error = mlp(layers, x, jnp.tanh) - y
        return jnp.mean(robust(error))  # rule: robust loss

    y = normal(rng, 6, 2).at[2].multiply(5)
    return Program(loss, dense_params(rng, 3, 5, 2), (normal(rng, 6, 3), y))
