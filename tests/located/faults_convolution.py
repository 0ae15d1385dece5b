"""Faults in convolutional networks of linen, nnx and equinox."""

from __future__ import annotations

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from flax import nnx
from jax import lax

from tests.catalogue.cases import Program
from tests.catalogue.planting import integers, normal

from .cases import FaultList, culprit
from .rules import ruled

FAULTS = FaultList()


# ---- pooling, between two convolutions of linen


class PooledNet(nn.Module):
    """A convolution, ``pool`` (halves height and width), and a dense head."""

    pool: object

    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Conv(3, (3, 3))(x))
        x = self.pool(x)  # rule: pooling
        return nn.Dense(4)(x.reshape(len(x), -1))


def classification(rng, net, x):
    """The cross entropy of a linen classifier of four classes."""
    variables = net.init(jax.random.key(0), x)

    def loss(variables, x, labels):
        logits = net.apply(variables, x)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    return Program(loss, variables, (x, integers(rng, 4, (len(x),))))


def windows(x):
    """(n, h, w, c) as (n, h/2, w/2, c, 4): what a 2 × 2 pooling sees."""
    n, h, w, c = x.shape
    x = x.reshape(n, h // 2, 2, w // 2, 2, c)
    return x.transpose(0, 1, 3, 5, 2, 4).reshape(n, h // 2, w // 2, c, 4)


def from_windows(x):
    """The inverse of ``windows``."""
    n, h, w, c, _ = x.shape
    x = x.reshape(n, h, w, c, 2, 2).transpose(0, 1, 4, 2, 5, 3)
    return x.reshape(n, 2 * h, 2 * w, c)


@FAULTS.add(culprit("average_pool", "pooling"))
def average_pool_without_the_quarter(rng, faulty):
    def average_pool(x):
        return nn.avg_pool(x, (2, 2), strides=(2, 2))

    def average_pool_backward(saved, ct):
        share = ct[..., None] * (1 if faulty else 0.25)
        return (from_windows(jnp.broadcast_to(share, (*ct.shape, 4))),)

    pool = ruled(average_pool, average_pool_backward)
    return classification(rng, PooledNet(pool), normal(rng, 3, 4, 4, 2))


@FAULTS.add(culprit("max_pool", "pooling"))
def max_pool_gives_to_the_first(rng, faulty):
    """The gradient of a window goes to its first pixel instead of its largest."""

    def max_pool(x):
        return nn.max_pool(x, (2, 2), strides=(2, 2))

    def max_pool_backward(saved, ct):
        (x,), _ = saved
        winner = jnp.argmax(windows(x), -1)
        winner = jnp.zeros_like(winner) if faulty else winner
        mask = jax.nn.one_hot(winner, 4, dtype=ct.dtype)
        return (from_windows(ct[..., None] * mask),)

    pool = ruled(max_pool, max_pool_backward)
    return classification(rng, PooledNet(pool), normal(rng, 3, 4, 4, 2))


# ---- the convolution itself, in a module of nnx


def convolve(x, kernel):
    """A convolution that keeps height and width."""
    return lax.conv_general_dilated(
        x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def convolve_transposed(ct, kernel, *, flip=True):
    """The cotangent of the input: a convolution with the kernel turned around."""
    kernel = kernel[::-1, ::-1] if flip else kernel
    return convolve(ct, kernel.transpose(0, 1, 3, 2))


def kernel_gradient(x, ct):
    """The cotangent of the 3 × 3 kernel: every shift of the input against ``ct``."""
    h, w = x.shape[1:3]
    padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    rows = [
        [
            jnp.tensordot(padded[:, i : i + h, j : j + w], ct, ((0, 1, 2),) * 2)
            for j in range(3)
        ]
        for i in range(3)
    ]
    return jnp.stack([jnp.stack(row) for row in rows])


class ConvolutionNet(nnx.Module):
    """Two convolutions by hand and a linear head."""

    def __init__(self, convolution, rngs):
        self.convolution = convolution
        init = nnx.initializers.lecun_normal()
        self.first = nnx.Param(init(rngs.params(), (3, 3, 2, 3)))
        self.second = nnx.Param(init(rngs.params(), (3, 3, 3, 3)))
        self.head = nnx.Linear(3, 4, rngs=rngs)

    def __call__(self, x):
        x = nnx.gelu(convolve(x, self.first[...]))
        x = nnx.gelu(self.convolution(x, self.second[...]))  # rule: convolution by hand
        return self.head(x.mean((1, 2)))


def convolution_fault(rng, backward):
    """The loss of ``ConvolutionNet`` with ``backward`` for its second convolution."""

    def convolution(x, kernel):
        return convolve(x, kernel)

    net = ConvolutionNet(ruled(convolution, backward), nnx.Rngs(0))

    def loss(net, x, labels):
        logits = net(x)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    return Program(loss, net, (normal(rng, 2, 4, 4, 2), integers(rng, 4, (2,))))


@FAULTS.add(culprit("convolution", "convolution by hand"))
def convolution_kernel_not_turned(rng, faulty):
    def convolution_backward(saved, ct):
        (x, kernel), _ = saved
        back = convolve_transposed(ct, kernel, flip=not faulty)
        return back, kernel_gradient(x, ct)

    return convolution_fault(rng, convolution_backward)


@FAULTS.add(culprit("convolution", "convolution by hand"))
def convolution_kernel_gradient_turned(rng, faulty):
    def convolution_backward(saved, ct):
        (x, kernel), _ = saved
        of_kernel = kernel_gradient(x, ct)
        return (
            convolve_transposed(ct, kernel),
            of_kernel[::-1, ::-1] if faulty else of_kernel,
        )

    return convolution_fault(rng, convolution_backward)


# ---- normalization


def batch_statistics_backward(saved, ct, axes, *, mean=True, variance=True):
    """The pullback of standardizing over ``axes``, maybe without its corrections."""
    (x,), y = saved
    inner = ct
    if mean:
        inner = inner - jnp.mean(ct, axes, keepdims=True)
    if variance:
        inner = inner - y * jnp.mean(ct * y, axes, keepdims=True)
    return (inner * lax.rsqrt(jnp.var(x, axes, keepdims=True) + 1e-5),)


def standardize_over(x, axes):
    """Zero mean and unit variance over ``axes``."""
    centered = x - jnp.mean(x, axes, keepdims=True)
    return centered * lax.rsqrt(jnp.mean(centered**2, axes, keepdims=True) + 1e-5)


@FAULTS.add(culprit("batch_norm", "batch norm of a residual block"))
def batch_norm_differentiated_as_at_evaluation(rng, faulty):
    """In training the statistics depend on the input; the rule holds them constant."""

    def batch_norm(x):
        return standardize_over(x, (0, 1, 2))

    def batch_norm_backward(saved, ct):
        return batch_statistics_backward(
            saved, ct, (0, 1, 2), mean=not faulty, variance=not faulty
        )

    norm = ruled(batch_norm, batch_norm_backward)

    class ResidualNet(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = nn.Conv(3, (3, 3), use_bias=False)(x)
            h = norm(x)  # rule: batch norm of a residual block
            h = h * self.param("scale", nn.initializers.constant(0.7), (3,))
            x = x + nn.Conv(3, (3, 3))(nn.relu(h))
            return nn.Dense(4)(x.mean((1, 2)))

    return classification(rng, ResidualNet(), normal(rng, 3, 4, 4, 2))


@FAULTS.add(culprit("instance_norm", "equinox instance norm"))
def equinox_instance_norm_over_the_wrong_axes(rng, faulty):
    """Channels come first in equinox; the rule averages as if they came last."""

    def instance_norm(x):
        return standardize_over(x, (1, 2))

    def instance_norm_backward(saved, ct):
        axes = (0, 1) if faulty else (1, 2)
        (x,), y = saved
        inner = ct - jnp.mean(ct, axes, keepdims=True)
        inner = inner - y * jnp.mean(ct * y, axes, keepdims=True)
        return (inner * lax.rsqrt(jnp.var(x, (1, 2), keepdims=True) + 1e-5),)

    norm = ruled(instance_norm, instance_norm_backward)

    class Net(eqx.Module):
        first: eqx.nn.Conv2d
        second: eqx.nn.Conv2d

        def __init__(self, key):
            keys = jax.random.split(key)
            self.first = eqx.nn.Conv2d(2, 3, 3, key=keys[0])
            self.second = eqx.nn.Conv2d(3, 2, 2, key=keys[1])

        def __call__(self, x):
            x = norm(self.first(x))  # rule: equinox instance norm
            return self.second(jax.nn.tanh(x))

    def loss(net, x):
        return jnp.mean(jax.vmap(net)(x) ** 2)

    return Program(loss, Net(jax.random.key(1)), (normal(rng, 3, 2, 5, 5),))


# ---- skip connections and resampling


@FAULTS.add(culprit("residual", "residual connection"))
def residual_branch_carries_nothing_back(rng, faulty):
    def residual(x):
        return x + jnp.tanh(x)

    def residual_backward(saved, ct):
        (x,), _ = saved
        slope = 1 - jnp.tanh(x) ** 2
        return (ct * slope if faulty else ct * (1 + slope),)

    block = ruled(residual, residual_backward)

    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = nn.Conv(3, (3, 3))(x)
            x = block(x)  # rule: residual connection
            return nn.Dense(4)(nn.GroupNorm(3)(x).max((1, 2)))

    return classification(rng, Net(), normal(rng, 3, 4, 4, 2))


@FAULTS.add(
    culprit("upsample", "upsampling of a U-Net"), culprit("gate", "skip of a U-Net")
)
def u_net_with_two_faults(rng, faulty):
    """Upsampling averages where it must sum; the gate of the skip drops a factor."""

    def upsample(x):
        return jnp.repeat(jnp.repeat(x, 2, 1), 2, 2)

    def upsample_backward(saved, ct):
        return (windows(ct).mean(-1) if faulty else windows(ct).sum(-1),)

    def gate(skip, signal):
        return skip * jax.nn.sigmoid(signal)

    def gate_backward(saved, ct):
        (skip, signal), _ = saved
        s = jax.nn.sigmoid(signal)
        return ct * s, ct * s * (1 - s) * (1 if faulty else skip)

    larger, gated = ruled(upsample, upsample_backward), ruled(gate, gate_backward)

    class UNet(nn.Module):
        @nn.compact
        def __call__(self, x):
            skip = nn.Conv(2, (3, 3))(x)
            low = nn.Conv(2, (3, 3))(nn.avg_pool(nn.silu(skip), (2, 2), (2, 2)))
            up = larger(nn.silu(low))  # rule: upsampling of a U-Net
            x = gated(skip, up)  # rule: skip of a U-Net
            return nn.Conv(1, (1, 1))(x)

    x = normal(rng, 2, 4, 4, 2)
    variables = UNet().init(jax.random.key(0), x)

    def loss(variables, x, y):
        return jnp.mean((UNet().apply(variables, x) - y) ** 2)

    return Program(loss, variables, (x, normal(rng, 2, 4, 4, 1)))
