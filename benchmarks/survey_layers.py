"""How the survey builds and calls the layers of flax.

Each layer is initialized, its parameters are moved to a generic point (a bias of zero
is a special one), and it is differentiated in its parameters and its inputs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from benchmarks.survey_recipes import (
    Apply,
    Case,
    Draw,
    Recipes,
    alike,
    integers,
    of,
    real,
    reasons,
)

ABSTRACT = "has no computation of its own"


def generic(tree: Any, rng: np.random.Generator) -> Any:
    """``tree`` with every floating leaf moved a little."""

    def moved(leaf: Any) -> Any:
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            return leaf
        return leaf + jnp.asarray(0.1 * rng.normal(size=leaf.shape), leaf.dtype)

    return jax.tree.map(moved, tree)


def drawn(inputs: Any, rng: np.random.Generator) -> Any:
    return jax.tree.map(
        lambda draw: draw.sample(rng),
        inputs,
        is_leaf=lambda value: isinstance(value, Draw),
    )


# --- linen ----------------------------------------------------------------------------


def linen(
    make: Callable[[Any], nn.Module], *inputs: Any, label: str = "", **keywords: Any
) -> Case:
    """A linen layer ``make(layer_class)``, called on ``inputs``."""

    def build(layer_class: Any, rng: np.random.Generator) -> tuple[Any, Apply]:
        layer = make(layer_class)
        values = drawn(inputs, rng)
        keys = {name: jax.random.key(k) for k, name in enumerate(("params", "dropout"))}
        variables = dict(layer.init(keys, *values, **keywords))
        params = generic(variables.pop("params", {}), rng)

        def apply(moving: Any) -> Any:
            outputs, _ = layer.apply(
                {"params": moving["params"], **variables},
                *moving["inputs"],
                rngs={"dropout": keys["dropout"]},
                mutable=list(variables),
                **keywords,
            )
            return outputs

        return {"params": params, "inputs": values}, apply

    return Case(build, label)


def _fp8(name: str) -> Case:
    return linen(
        lambda layer: nn.Dense(3, dot_general_cls=layer), real(4, 16), label=name
    )


_sequence = real(2, 5, 3)
_image = real(2, 6, 5, 3)
_pool = of(real(2, 6, 5, 3), (2, 2))
_lstm_carry = (real(2, 4), real(2, 4))
_attention = (real(2, 5, 2, 4), real(2, 6, 2, 4), real(2, 6, 2, 4))
_cell = linen(lambda layer: layer(4), real(2, 4), real(2, 3))

LINEN: Recipes = {
    **reasons(ABSTRACT, "Module RNNCellBase"),
    **alike(_cell, "GRUCell MGUCell SimpleCell"),
    **alike(
        linen(lambda layer: layer(4), _lstm_carry, real(2, 3)),
        "LSTMCell OptimizedLSTMCell",
    ),
    **{
        name: _fp8("Dense")
        for name in (
            *("Fp8DirectDotGeneralOp", "Fp8DotGeneral", "Fp8DotGeneralOp"),
            "NANOOFp8DotGeneralOp",
        )
    },
    **alike(
        linen(lambda layer: layer(num_heads=2, deterministic=True), real(2, 5, 4)),
        "MultiHeadAttention MultiHeadDotProductAttention SelfAttention",
    ),
    "BatchNorm": (
        linen(lambda layer: layer(use_running_average=False), real(6, 4)),
        linen(
            lambda layer: layer(use_running_average=True), real(6, 4), label="inference"
        ),
    ),
    "Bidirectional": linen(
        lambda layer: layer(nn.RNN(nn.LSTMCell(4)), nn.RNN(nn.GRUCell(4))), _sequence
    ),
    "Conv": (
        linen(lambda layer: layer(4, (3, 3)), _image),
        linen(
            lambda layer: layer(
                6, (3, 3), strides=2, padding="CIRCULAR", feature_group_count=3
            ),
            _image,
            label="strided, grouped, circular",
        ),
        linen(
            lambda layer: layer(4, (3,), padding="CAUSAL", kernel_dilation=2),
            _sequence,
            label="causal, dilated",
        ),
    ),
    "ConvLSTMCell": linen(
        lambda layer: layer(4, (3, 3)),
        (real(2, 5, 5, 4), real(2, 5, 5, 4)),
        real(2, 5, 5, 3),
    ),
    "ConvLocal": linen(lambda layer: layer(4, (3, 3)), _image),
    "ConvTranspose": (
        linen(lambda layer: layer(4, (3, 3), strides=(2, 2)), _image),
        linen(
            lambda layer: layer(4, (3, 3), strides=(2, 2), padding="CIRCULAR"),
            _image,
            label="circular",
        ),
    ),
    "Dense": linen(lambda layer: layer(4), real(2, 3)),
    "DenseGeneral": linen(
        lambda layer: layer((2, 4), axis=(-2, -1), batch_dims=(0,)), real(2, 5, 3)
    ),
    "Dropout": linen(lambda layer: layer(0.4, deterministic=False), real(4, 5)),
    "Einsum": linen(lambda layer: layer((5, 3, 4), "abc,bcd->abd"), _sequence),
    "Embed": linen(lambda layer: layer(7, 4), integers(7, 5)),
    "Fp8Einsum": linen(
        lambda layer: layer(),
        real(4, 16),
        real(16, 3),
        method=lambda layer, x, kernel: layer("ab,bc->ac", x, kernel),
    ),
    "GroupNorm": linen(lambda layer: layer(num_groups=2), real(2, 5, 4)),
    "InstanceNorm": linen(lambda layer: layer(), real(2, 5, 4)),
    "LayerNorm": linen(lambda layer: layer(), real(2, 5, 4)),
    "PReLU": linen(lambda layer: layer(), real(4, 5)),
    "RMSNorm": linen(lambda layer: layer(), real(2, 5, 4)),
    "RNN": linen(lambda layer: layer(nn.LSTMCell(4)), _sequence),
    "Sequential": linen(
        lambda layer: layer([nn.Dense(4), nn.tanh, nn.Dense(3)]), real(2, 3)
    ),
    "SpectralNorm": linen(
        lambda layer: layer(nn.Dense(4)), real(2, 3), update_stats=True
    ),
    "WeightNorm": linen(lambda layer: layer(nn.Dense(4)), real(2, 3)),
    "avg_pool": _pool,
    "max_pool": _pool,
    "pool": of(real(2, 6, 5, 3), 0.0, jax.lax.add, (2, 2), (1, 1), "SAME"),
    "dot_product_attention": of(*_attention),
    "dot_product_attention_weights": of(*_attention[:2]),
}
# The functions of flax.linen that are layers too; the others wrap modules.
LINEN_FUNCTIONS = (
    "avg_pool max_pool pool dot_product_attention dot_product_attention_weights"
)


# --- nnx ------------------------------------------------------------------------------


def of_nnx(make: Callable[[Any, nnx.Rngs], Any], *inputs: Any, label: str = "") -> Case:
    """An nnx layer ``make(layer_class, rngs)``, called on ``inputs``."""

    def build(layer_class: Any, rng: np.random.Generator) -> tuple[Any, Apply]:
        layer = make(layer_class, nnx.Rngs(0))
        values = drawn(inputs, rng)
        graph, params, rest = nnx.split(layer, nnx.Param, ...)

        def apply(moving: Any) -> Any:
            # copied: a layer moves its own random state as it is called
            merged = nnx.merge(graph, moving["params"], rest, copy=True)
            return merged(*moving["inputs"])

        return {"params": generic(params, rng), "inputs": values}, apply

    return Case(build, label)


def _lstm(rngs: nnx.Rngs) -> Any:
    return nnx.RNN(nnx.LSTMCell(3, 4, rngs=rngs), rngs=rngs)


_nnx_norm = of_nnx(lambda layer, rngs: layer(4, rngs=rngs), real(2, 5, 4))

NNX: Recipes = {
    **reasons(ABSTRACT, "Module RNNCellBase Dict List"),
    **alike(_nnx_norm, "BatchNorm InstanceNorm LayerNorm RMSNorm"),
    **alike(
        of_nnx(lambda layer, rngs: layer(3, 4, rngs=rngs), real(2, 4), real(2, 3)),
        "GRUCell SimpleCell",
    ),
    **alike(
        of_nnx(lambda layer, rngs: layer(3, 4, rngs=rngs), _lstm_carry, real(2, 3)),
        "LSTMCell OptimizedLSTMCell",
    ),
    "Bidirectional": of_nnx(
        lambda layer, rngs: layer(_lstm(rngs), _lstm(rngs), rngs=rngs), _sequence
    ),
    "Conv": (
        of_nnx(lambda layer, rngs: layer(3, 4, (3, 3), rngs=rngs), _image),
        of_nnx(
            lambda layer, rngs: layer(3, 4, (3,), padding="CAUSAL", rngs=rngs),
            _sequence,
            label="causal",
        ),
    ),
    "ConvTranspose": of_nnx(
        lambda layer, rngs: layer(3, 4, (3, 3), strides=(2, 2), rngs=rngs), _image
    ),
    "Dropout": of_nnx(
        lambda layer, rngs: layer(0.4, deterministic=False, rngs=rngs), real(4, 5)
    ),
    "Einsum": of_nnx(
        lambda layer, rngs: layer("abc,bcd->abd", (5, 3, 4), (5, 4), rngs=rngs),
        _sequence,
    ),
    "Embed": of_nnx(lambda layer, rngs: layer(7, 4, rngs=rngs), integers(7, 5)),
    "GroupNorm": of_nnx(
        lambda layer, rngs: layer(4, num_groups=2, rngs=rngs), real(2, 5, 4)
    ),
    "Linear": of_nnx(lambda layer, rngs: layer(3, 4, rngs=rngs), real(2, 3)),
    "LinearGeneral": of_nnx(
        lambda layer, rngs: layer((5, 3), (2, 4), axis=(-2, -1), rngs=rngs),
        real(2, 5, 3),
    ),
    "LoRA": of_nnx(lambda layer, rngs: layer(3, 2, 4, rngs=rngs), real(2, 3)),
    "LoRALinear": of_nnx(
        lambda layer, rngs: layer(3, 4, lora_rank=2, rngs=rngs), real(2, 3)
    ),
    "MultiHeadAttention": of_nnx(
        lambda layer, rngs: layer(2, 4, decode=False, rngs=rngs), real(2, 5, 4)
    ),
    "PReLU": of_nnx(lambda layer, rngs: layer(), real(4, 5)),
    "RNN": of_nnx(
        lambda layer, rngs: layer(nnx.GRUCell(3, 4, rngs=rngs), rngs=rngs), _sequence
    ),
    "Sequential": of_nnx(
        lambda layer, rngs: layer(
            nnx.Linear(3, 4, rngs=rngs), nnx.tanh, nnx.Linear(4, 3, rngs=rngs)
        ),
        real(2, 3),
    ),
    "SpectralNorm": of_nnx(
        lambda layer, rngs: layer(nnx.Linear(3, 4, rngs=rngs), rngs=rngs), real(2, 3)
    ),
    "WeightNorm": of_nnx(
        lambda layer, rngs: layer(nnx.Linear(3, 4, rngs=rngs), rngs=rngs), real(2, 3)
    ),
    "avg_pool": _pool,
    "max_pool": _pool,
    "min_pool": _pool,
    "pool": LINEN["pool"],
    "dot_product_attention": of(*_attention),
}
NNX_FUNCTIONS = "avg_pool max_pool min_pool pool dot_product_attention"
