"""Networks that are trained while their gradients are audited, and broken gradients."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxcheck

SIZES = (16, 32, 32, 5)


def network(seed=0, dtype=jnp.float32):
    """Three dense layers."""
    keys = jax.random.split(jax.random.key(seed), len(SIZES) - 1)
    return [
        {
            "b": jnp.zeros(out, dtype),
            "w": (jax.random.normal(key, (into, out)) / np.sqrt(into)).astype(dtype),
        }
        for key, into, out in zip(keys, SIZES[:-1], SIZES[1:], strict=True)
    ]


def logits(params, x, act, keep=lambda h, k: h):
    for k, layer in enumerate(params):
        x = x @ layer["w"] + layer["b"]
        x = keep(act(x), k) if k < len(params) - 1 else x
    return x


def cross_entropy(z, labels):
    return optax.softmax_cross_entropy_with_integer_labels(z, labels).mean()


def smooth(params, x, labels, _):
    return cross_entropy(logits(params, x, jnp.tanh), labels)


def kinked(params, x, labels, _):
    return cross_entropy(logits(params, x, jax.nn.relu), labels)


def dropout(params, x, labels, key):
    def keep(h, k):
        mask = jax.random.bernoulli(jax.random.fold_in(key, k), 0.7, h.shape)
        return jnp.where(mask, h / 0.7, 0.0)

    return cross_entropy(logits(params, x, jax.nn.relu, keep), labels)


def in_bfloat16(params, x, labels, _):
    low = jax.tree.map(lambda p: p.astype(jnp.bfloat16), params)
    z = logits(low, x.astype(jnp.bfloat16), jax.nn.gelu)
    return cross_entropy(z.astype(jnp.float32), labels)


class Kind(NamedTuple):
    """How a network is trained.

    Attributes:
        loss_fn: of its parameters, a batch and a key.
        dtype: of its parameters.
        examples: in a batch.
        by_heart: steps in which one batch has been learned before audits begin, which
            are on this batch then; 0 for new batches.
    """

    loss_fn: Callable[..., Any]
    dtype: Any = jnp.float32
    examples: int = 32
    by_heart: int = 0


KINDS = {
    "tanh": Kind(smooth),
    "ReLU": Kind(kinked),
    "ReLU, dropout": Kind(dropout),
    "ReLU, batch 256": Kind(kinked, examples=256),
    "ReLU, by heart": Kind(kinked, by_heart=400),
    "bfloat16, computed": Kind(in_bfloat16),
    "bfloat16, stored": Kind(smooth, jnp.bfloat16),
}


def batch(key, size):
    """Inputs, and labels that depend on them."""
    one, two = jax.random.split(key)
    x = jax.random.normal(one, (size, SIZES[0]))
    teacher = jax.random.normal(jax.random.key(99), (SIZES[0], SIZES[-1]))
    return x, jnp.argmax(x @ teacher + jax.random.normal(two, (size, SIZES[-1])), -1)


# ---- gradients that are broken


def scaled(layer, name, factor):
    def broken(grads):
        changed = {**grads[layer], name: factor * grads[layer][name]}
        return [changed if k == layer else g for k, g in enumerate(grads)]

    return broken


def with_kernel(layer, change):
    """What ``change`` makes of one kernel; the others stay."""

    def broken(grads):
        changed = {**grads[layer], "w": change(grads[layer]["w"])}
        return [changed if k == layer else g for k, g in enumerate(grads)]

    return broken


def _bit_flipped(w):
    """The highest bit of the exponent of one number."""
    one = w[3, 7].astype(jnp.float32)
    bits = jax.lax.bitcast_convert_type(one, jnp.uint32) ^ jnp.uint32(1 << 30)
    flipped = jax.lax.bitcast_convert_type(bits, jnp.float32)
    return w.at[3, 7].set(flipped.astype(w.dtype))


FAULTS = {
    "none": lambda grads: grads,
    "times four": lambda grads: jax.tree.map(lambda g: 4 * g, grads),
    "sign of a leaf": scaled(1, "w", -1.0),
    "leaf of zeros": scaled(2, "w", 0.0),
    "nan": with_kernel(0, lambda w: w.at[3, 7].set(jnp.nan)),
    "bit": with_kernel(0, _bit_flipped),
    "1% first": scaled(0, "w", 1.01),
    "1% second": scaled(1, "w", 1.01),
    "1% third": scaled(2, "w", 1.01),
    "1% bias": scaled(1, "b", 1.01),
    "rows left out": with_kernel(1, lambda w: w.at[:8].set(0.0)),
    "transposed": with_kernel(1, lambda w: w.T),
}


def trained(kind, steps, *, fault="none", every=1, seed=0):
    """The state of the audits of a training run, and which found a fault."""
    params, number = network(seed, kind.dtype), list(FAULTS).index(fault)
    return _trained(kind, steps, params, number, every, seed)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _trained(kind, steps, params, fault, every, seed):
    tx = optax.adam(1e-3)

    def args_of(t):
        t = 0 if kind.by_heart else t
        keys = jax.random.split(jax.random.fold_in(jax.random.key(seed), t))
        return *batch(keys[0], kind.examples), keys[1]

    def learn(carry, _):
        params, opt_state = carry
        grads = jax.grad(kind.loss_fn)(params, *args_of(0))
        updates, opt_state = tx.update(grads, opt_state, params)
        return (optax.apply_updates(params, updates), opt_state), None

    def step(carry, t):
        params, opt_state, state = carry
        args = args_of(t)
        right = jax.grad(kind.loss_fn)(params, *args)
        grads = jax.lax.switch(fault, list(FAULTS.values()), right)

        def audited():
            key = jax.random.fold_in(jax.random.key(seed + 1000), t)
            found = jaxcheck.audit(kind.loss_fn, params, *args, grads=grads, key=key)
            return state.add(found, t)

        after = jax.lax.cond(t % every == 0, audited, lambda: state)
        # What was learned by heart stays learned.
        grads = right if kind.by_heart else grads
        updates, opt_state = tx.update(grads, opt_state, params)
        params = optax.apply_updates(params, updates)
        return (params, opt_state, after), after.wrong - state.wrong

    start, _ = jax.lax.scan(learn, (params, tx.init(params)), length=kind.by_heart)
    start = (*start, jaxcheck.AuditState.init())
    (_, _, state), wrong = jax.lax.scan(step, start, jnp.arange(steps))
    return state, wrong
