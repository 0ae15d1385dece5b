"""Networks of the libraries that people build them with."""

from __future__ import annotations

import equinox as eqx
import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from tests.programs.table import normal, program, weighted

# Constants such as 1e-5 or sqrt(2/pi) are rounded to float32 when a network is traced.
ROUNDED = 1e-6


class _Network(nn.Module):
    @nn.compact
    def __call__(self, x, train=True):
        x = nn.Dense(8)(x)
        x = nn.LayerNorm()(x)
        x = x + nn.MultiHeadDotProductAttention(num_heads=2, qkv_features=8)(x)
        x = nn.BatchNorm(use_running_average=not train)(x)
        x = nn.RNN(nn.OptimizedLSTMCell(4, param_dtype=x.dtype))(x)
        return nn.Dense(3)(nn.gelu(x))


@program(rtol=ROUNDED)
def _flax_attention_lstm_batchnorm(rng):
    x = normal(rng, 2, 5, 4)
    variables = _Network().init(jax.random.key(0), x)

    def loss(variables, x):
        out, state = _Network().apply(variables, x, mutable=["batch_stats"])
        return weighted(out), state

    return loss, (variables, x)


class _Convolutional(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Conv(4, (3, 3))(x))
        x = nn.max_pool(x, (2, 2), strides=(2, 2))
        x = nn.GroupNorm(num_groups=2)(x)
        x = nn.avg_pool(x, (2, 2))
        return nn.Dense(3)(x.reshape(x.shape[0], -1))


@program(rtol=ROUNDED)
def _flax_convolutional(rng):
    x = normal(rng, 2, 6, 6, 1)
    variables = _Convolutional().init(jax.random.key(0), x)
    return lambda v, x: weighted(_Convolutional().apply(v, x)), (variables, x)


class _HardCoded(nn.Module):
    dtype: object

    @nn.compact
    def __call__(self, x):
        wide = x.dtype
        x = nn.Dense(8, dtype=self.dtype)(x)
        x = nn.RNN(nn.GRUCell(4, dtype=self.dtype, param_dtype=wide))(x)
        return nn.Dense(3, dtype=self.dtype)(nn.tanh(x))


@program(rtol=ROUNDED)
def _flax_bfloat16(rng):
    x = normal(rng, 2, 5, 4)
    variables = _HardCoded(jnp.bfloat16).init(jax.random.key(0), x)

    def loss(variables, x):
        dtype = jnp.bfloat16 if x.dtype == jnp.float32 else None
        return weighted(_HardCoded(dtype).apply(variables, x).astype(x.dtype))

    return loss, (variables, x)


@program(rtol=ROUNDED)
def _nnx(rng):
    class Network(nnx.Module):
        def __init__(self, rngs):
            self.first = nnx.Linear(4, 8, rngs=rngs)
            self.norm = nnx.BatchNorm(8, rngs=rngs)
            self.last = nnx.Linear(8, 3, rngs=rngs)

        def __call__(self, x):
            return self.last(nnx.relu(self.norm(self.first(x))))

    graph, state = nnx.split(Network(nnx.Rngs(0)))
    pure = nnx.to_pure_dict(state)

    def loss(pure, x):
        state_now = jax.tree.map(lambda x: x, state)
        nnx.replace_by_pure_dict(state_now, pure)
        return weighted(nnx.merge(graph, state_now)(x))

    return loss, (pure, normal(rng, 5, 4))


@program(rtol=ROUNDED)
def _equinox(rng):
    network = eqx.nn.MLP(4, 3, 8, 2, activation=jax.nn.softplus, key=jax.random.key(0))
    cell = eqx.nn.LSTMCell(3, 5, key=jax.random.key(1))
    arrays, static = eqx.partition((network, cell), eqx.is_array)

    def loss(arrays, xs):
        network, cell = eqx.combine(arrays, static)
        start = (jnp.zeros(5, xs.dtype), jnp.zeros(5, xs.dtype))
        step = lambda c, x: (cell(network(x), c), None)  # noqa: E731
        (h, _), _ = jax.lax.scan(step, start, xs)
        return weighted(h)

    return loss, (arrays, normal(rng, 4, 4))


@program(rtol=ROUNDED)
def _haiku(rng):
    def forward(x):
        x = hk.nets.MLP([8, 6])(x)
        core = hk.GRU(4)
        out, _ = hk.dynamic_unroll(
            core, x[:, None], core.initial_state(1).astype(x.dtype)
        )
        return hk.LayerNorm(-1, True, True)(out)

    network = hk.without_apply_rng(hk.transform(forward))
    x = normal(rng, 5, 4)
    params = network.init(jax.random.PRNGKey(0), x)
    params = jax.tree.map(np.asarray, params)
    return lambda params, x: weighted(network.apply(params, x)), (params, x)
