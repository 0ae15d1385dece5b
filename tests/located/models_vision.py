"""Correct models of images: convolutions, residual blocks, mixers, transformers."""

from __future__ import annotations

import equinox as eqx
import haiku as hk
import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from flax import nnx

from tests.catalogue.cases import Program
from tests.catalogue.planting import integers, normal

from .cases import ModelList

MODELS = ModelList()


def classifier(rng, net, x, *, classes=4, **rngs):
    """The cross entropy of a linen classifier, with its mutable state thrown away."""
    keys = {"params": jax.random.key(0)} | rngs
    variables = net.init(keys, x)
    params = variables.pop("params")

    def loss(params, x, labels):
        logits, _ = net.apply(
            {"params": params, **variables}, x, mutable=["batch_stats"], rngs=rngs
        )
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        return losses.mean()

    return Program(loss, params, (x, integers(rng, classes, (len(x),))))


@MODELS.add
def mnist_cnn(rng):
    """The network of flax's MNIST example, in small."""

    class CNN(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = nn.relu(nn.Conv(3, (3, 3))(x))
            x = nn.avg_pool(x, (2, 2), strides=(2, 2))
            x = nn.relu(nn.Conv(4, (3, 3))(x))
            x = nn.avg_pool(x, (2, 2), strides=(2, 2))
            x = nn.relu(nn.Dense(6)(x.reshape(len(x), -1)))
            return nn.Dense(4)(x)

    return classifier(rng, CNN(), normal(rng, 3, 8, 8, 1))


@MODELS.add
def resnet_block_in_training(rng):
    """BatchNorm with the statistics of the batch, a projection on the skip."""

    class ResNetBlock(nn.Module):
        @nn.compact
        def __call__(self, x):
            y = nn.Conv(4, (3, 3), use_bias=False)(x)
            y = nn.relu(nn.BatchNorm(use_running_average=False)(y))
            y = nn.Conv(4, (3, 3), use_bias=False)(y)
            y = nn.BatchNorm(use_running_average=False)(y)
            x = nn.Conv(4, (1, 1), use_bias=False)(x)
            return nn.Dense(4)(nn.relu(x + y).mean((1, 2)))

    return classifier(rng, ResNetBlock(), normal(rng, 3, 4, 4, 2))


@MODELS.add
def wide_resnet_block_with_dropout(rng):
    """Normalization first, dropout between the convolutions."""

    class WideBlock(nn.Module):
        @nn.compact
        def __call__(self, x):
            y = nn.relu(nn.BatchNorm(use_running_average=False)(x))
            y = nn.Conv(4, (3, 3))(y)
            y = nn.Dropout(0.3, deterministic=False)(y)
            y = nn.relu(nn.BatchNorm(use_running_average=False)(y))
            y = nn.Conv(2, (3, 3))(y)
            return nn.Dense(4)((x + y).mean((1, 2)))

    x = normal(rng, 3, 4, 4, 2)
    return classifier(rng, WideBlock(), x, dropout=jax.random.key(3))


@MODELS.add
def max_pooling_and_group_norm(rng):
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = nn.GroupNorm(num_groups=2)(nn.Conv(4, (3, 3))(x))
            x = nn.max_pool(nn.leaky_relu(x), (2, 2), strides=(2, 2))
            return nn.Dense(4)(x.max((1, 2)))

    return classifier(rng, Net(), normal(rng, 3, 4, 4, 2))


@MODELS.add
def mlp_mixer(rng):
    """MLPs over patches and over channels in turn."""

    class Mixer(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = nn.Conv(4, (2, 2), strides=(2, 2))(x).reshape(len(x), -1, 4)
            y = nn.LayerNorm()(x).swapaxes(1, 2)
            y = nn.Dense(4)(nn.gelu(nn.Dense(5)(y))).swapaxes(1, 2)
            x = x + y
            x = x + nn.Dense(4)(nn.gelu(nn.Dense(5)(nn.LayerNorm()(x))))
            return nn.Dense(4)(x.mean(1))

    return classifier(rng, Mixer(), normal(rng, 3, 4, 4, 2))


@MODELS.add
def vision_transformer(rng):
    """A class token, learned positions, one block."""

    class ViT(nn.Module):
        @nn.compact
        def __call__(self, x):
            init = nn.initializers.normal(0.5)
            x = nn.Conv(4, (2, 2), strides=(2, 2))(x).reshape(len(x), -1, 4)
            token = self.param("token", init, (1, 1, 4))
            x = jnp.concatenate([jnp.tile(token, (len(x), 1, 1)), x], 1)
            x = x + self.param("positions", init, (1, x.shape[1], 4))
            h = nn.LayerNorm()(x)
            x = x + nn.MultiHeadDotProductAttention(num_heads=2)(h, h)
            x = x + nn.Dense(4)(nn.gelu(nn.Dense(6)(nn.LayerNorm()(x))))
            return nn.Dense(4)(x[:, 0])

    return classifier(rng, ViT(), normal(rng, 2, 4, 4, 2))


@MODELS.add
def nnx_cnn_with_batch_norm_and_dropout(rng):
    class CNN(nnx.Module):
        def __init__(self, rngs):
            self.conv = nnx.Conv(2, 3, (3, 3), rngs=rngs)
            self.norm = nnx.BatchNorm(3, rngs=rngs)
            self.drop = nnx.Dropout(0.3, deterministic=False)
            self.head = nnx.Linear(3, 4, rngs=rngs)

        def __call__(self, x, rngs):
            x = nnx.relu(self.norm(self.conv(x)))
            return self.head(self.drop(x.mean((1, 2)), rngs=rngs))

    def loss(net, x, labels, key):
        logits = net(x, nnx.Rngs(dropout=key))
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    args = (normal(rng, 3, 4, 4, 2), integers(rng, 4, (3,)), jax.random.key(2))
    return Program(loss, CNN(nnx.Rngs(0)), args)


@MODELS.add
def equinox_autoencoder(rng):
    """Convolutions down, transposed convolutions up."""

    class Autoencoder(eqx.Module):
        down: eqx.nn.Conv2d
        up: eqx.nn.ConvTranspose2d
        norm: eqx.nn.GroupNorm

        def __init__(self, key):
            keys = jax.random.split(key)
            self.down = eqx.nn.Conv2d(2, 4, 2, stride=2, key=keys[0])
            self.up = eqx.nn.ConvTranspose2d(4, 2, 2, stride=2, key=keys[1])
            self.norm = eqx.nn.GroupNorm(2, 4)

        def __call__(self, x):
            return self.up(jax.nn.silu(self.norm(self.down(x))))

    def loss(net, x):
        return jnp.mean((jax.vmap(net)(x) - x) ** 2)

    return Program(loss, Autoencoder(jax.random.key(0)), (normal(rng, 3, 2, 4, 4),))


@MODELS.add
def haiku_conv_net(rng):
    def forward(x):
        x = jax.nn.relu(hk.Conv2D(3, 3)(x))
        x = hk.MaxPool((2, 2, 1), (2, 2, 1), "SAME")(x)
        return hk.nets.MLP([5, 4])(hk.Flatten()(x))

    net = hk.without_apply_rng(hk.transform(forward))
    x = normal(rng, 3, 4, 4, 1)

    def loss(params, x, labels):
        logits = net.apply(params, x)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    return Program(loss, net.init(jax.random.key(0), x), (x, integers(rng, 4, (3,))))


@MODELS.add
def bfloat16_network(rng):
    """Computes in bfloat16, keeps its parameters and its loss in float32."""

    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = nn.gelu(nn.Dense(6, dtype=jnp.bfloat16)(x))
            x = nn.LayerNorm(dtype=jnp.bfloat16)(x)
            return nn.Dense(4, dtype=jnp.bfloat16)(x).astype(jnp.float32)

    return classifier(rng, Net(), normal(rng, 4, 3))


@MODELS.add
def float16_parameters(rng):
    """Everything in float16 but the loss."""

    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            half = {"dtype": jnp.float16, "param_dtype": jnp.float16}
            return nn.Dense(4, **half)(nn.tanh(nn.Dense(5, **half)(x)))

    net = Net()
    x = normal(rng, 4, 3)

    def loss(params, x, y):
        return jnp.mean((net.apply(params, x).astype(jnp.float32) - y) ** 2)

    return Program(loss, net.init(jax.random.key(0), x), (x, normal(rng, 4, 4)))
