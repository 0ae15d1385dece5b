"""Training runs of four architectures: healthy ones, and ones with a planted fault.

Everything happens inside one scan, so that runs of several seeds are one program.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

import jaxcheck

STEPS = 160
# The step of what happens in a step.
AT = 90
BATCH = 32


class Architecture(NamedTuple):
    """A network on data of its own.

    Attributes:
        init: the parameters of a key.
        loss_fn: of parameters and a batch.
        batch: a batch of a key.
        leaf: path of a matrix in which faults are planted.
        stacked: what is passed to ``monitor``.
    """

    init: Callable[[Any], Any]
    loss_fn: Callable[[Any, Any], Any]
    batch: Callable[[Any], Any]
    leaf: str
    stacked: str | tuple[()] = ()


def _dense(key: Any, into: int, out: int) -> Any:
    return jax.random.normal(key, (into, out)) * (2.0 / into) ** 0.5


def labelled(key: Any, shape: tuple[int, ...], classes: int) -> Any:
    """Inputs, and labels that a fixed random projection of them gives."""
    x = jax.random.normal(key, (BATCH, *shape))
    flat = x.reshape(BATCH, -1)
    teacher = jax.random.normal(jax.random.key(1234), (flat.shape[1], classes))
    return x, jnp.argmax(flat @ teacher, axis=-1)


def cross_entropy(logits: Any, labels: Any) -> Any:
    """The mean over a batch."""
    return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, labels))


def mlp() -> Architecture:
    """Two hidden layers of ReLUs."""

    def init(key: Any) -> Any:
        keys = jax.random.split(key, 3)
        sizes = ((16, 32), (32, 32), (32, 5))
        return {
            f"layer_{k}": {"b": jnp.zeros(n), "w": _dense(keys[k], m, n)}
            for k, (m, n) in enumerate(sizes)
        }

    def loss_fn(params: Any, batch: Any) -> Any:
        x, labels = batch
        for k in range(2):
            x = jax.nn.relu(x @ params[f"layer_{k}"]["w"] + params[f"layer_{k}"]["b"])
        return cross_entropy(
            x @ params["layer_2"]["w"] + params["layer_2"]["b"], labels
        )

    batch = lambda key: labelled(key, (16,), 5)  # noqa: E731
    return Architecture(init, loss_fn, batch, "['layer_1']['w']")


def convolutional() -> Architecture:
    """Two convolutions, a mean over space, and a linear layer."""

    def init(key: Any) -> Any:
        a, b, c = jax.random.split(key, 3)
        return {
            "first": jax.random.normal(a, (3, 3, 2, 8)) * (2 / 18) ** 0.5,
            "second": jax.random.normal(b, (3, 3, 8, 8)) * (2 / 72) ** 0.5,
            "out": {"b": jnp.zeros(4), "w": _dense(c, 8, 4)},
        }

    def loss_fn(params: Any, batch: Any) -> Any:
        x, labels = batch
        for name in ("first", "second"):
            x = jax.lax.conv_general_dilated(
                x,
                params[name],
                (1, 1),
                "SAME",
                dimension_numbers=("NHWC", "HWIO", "NHWC"),
            )
            x = jax.nn.relu(x)
        x = x.mean(axis=(1, 2))
        return cross_entropy(x @ params["out"]["w"] + params["out"]["b"], labels)

    batch = lambda key: labelled(key, (6, 6, 2), 4)  # noqa: E731
    return Architecture(init, loss_fn, batch, "['second']")


def recurrent() -> Architecture:
    """A gated recurrent unit over ten steps."""

    def init(key: Any) -> Any:
        a, b, c = jax.random.split(key, 3)
        return {
            "cell": {
                "b": jnp.zeros(48),
                "u": _dense(b, 16, 48) * 0.5,
                "w": _dense(a, 4, 48) * 0.5,
            },
            "out": _dense(c, 16, 3),
        }

    def loss_fn(params: Any, batch: Any) -> Any:
        x, labels = batch
        cell = params["cell"]

        def step(h: Any, x: Any) -> Any:
            a, b = x @ cell["w"] + cell["b"], h @ cell["u"]
            reset, update, new = jnp.split(a, 3, -1)
            reset_h, update_h, new_h = jnp.split(b, 3, -1)
            gate = jax.nn.sigmoid(update + update_h)
            candidate = jnp.tanh(new + jax.nn.sigmoid(reset + reset_h) * new_h)
            return gate * h + (1 - gate) * candidate, None

        h, _ = jax.lax.scan(step, jnp.zeros((BATCH, 16)), x.swapaxes(0, 1))
        return cross_entropy(h @ params["out"], labels)

    batch = lambda key: labelled(key, (10, 4), 3)  # noqa: E731
    return Architecture(init, loss_fn, batch, "['cell']['u']")


def transformer() -> Architecture:
    """Three layers in one scan, with layer normalization."""
    depth, width, heads = 3, 16, 2

    def init(key: Any) -> Any:
        keys = jax.random.split(key, 6)

        def stack(key: Any, m: int, n: int) -> Any:
            return jax.random.normal(key, (depth, m, n)) * m**-0.5

        return {
            "embed": jax.random.normal(keys[0], (11, width)) * 0.5,
            "layers": {
                "norm": jnp.ones((depth, 2, width)),
                "out": stack(keys[1], width, width),
                "qkv": stack(keys[2], width, 3 * width),
                "up": stack(keys[3], width, 2 * width),
                "down": stack(keys[4], 2 * width, width),
            },
            "head": jax.random.normal(keys[5], (width, 11)) * width**-0.5,
        }

    def normalized(x: Any, scale: Any) -> Any:
        mean, variance = x.mean(-1, keepdims=True), x.var(-1, keepdims=True)
        return (x - mean) * jax.lax.rsqrt(variance + 1e-5) * scale

    def loss_fn(params: Any, tokens: Any) -> Any:
        length = tokens.shape[1]
        mask = jnp.tril(jnp.ones((length, length), bool))

        def layer(h: Any, w: Any) -> Any:
            q, k, v = jnp.split(normalized(h, w["norm"][0]) @ w["qkv"], 3, -1)
            q, k, v = (x.reshape(BATCH, length, heads, -1) for x in (q, k, v))
            scores = jnp.einsum("bqhd,bkhd->bhqk", q, k) / (width / heads) ** 0.5
            weights = jax.nn.softmax(jnp.where(mask, scores, -1e9))
            mixed = jnp.einsum("bhqk,bkhd->bqhd", weights, v).reshape(h.shape)
            h = h + mixed @ w["out"]
            return h + jax.nn.gelu(normalized(h, w["norm"][1]) @ w["up"]) @ w[
                "down"
            ], None

        h, _ = jax.lax.scan(layer, params["embed"][tokens], params["layers"])
        return cross_entropy(h[:, :-1] @ params["head"], tokens[:, 1:])

    def batch(key: Any) -> Any:
        """Sequences that go on by a step of their own."""
        start, by = jax.random.split(key)
        first = jax.random.randint(start, (BATCH, 1), 0, 11)
        pace = jax.random.randint(by, (BATCH, 1), 1, 4)
        return (first + pace * jnp.arange(12)) % 11

    leaf = "['layers']['up'][1]"
    return Architecture(init, loss_fn, batch, leaf, "['layers']")


ARCHITECTURES: dict[str, Callable[[], Architecture]] = {
    "MLP": mlp,
    "convolutional": convolutional,
    "GRU": recurrent,
    "transformer": transformer,
}


# ---- runs


def at_leaf(path: str, change: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Change one leaf of a tree; of a stacked one the layer that ``path`` selects."""

    def changed(keys: Any, leaf: Any) -> Any:
        name = jax.tree_util.keystr(keys)
        if name == path:
            return change(leaf)
        if path.startswith(name) and path[len(name) :].strip("[]").isdigit():
            layer = int(path[len(name) :].strip("[]"))
            return leaf.at[layer].set(change(leaf[layer]))
        return leaf

    return lambda tree: jax.tree_util.tree_map_with_path(changed, tree)


@dataclasses.dataclass(frozen=True)
class Plan:
    """How a run goes.

    Attributes:
        optimizer: makes it.
        gradients: changes them, given the step and the leaf of the architecture.
        updates: changes those of the optimizer, given the leaf.
        carry: changes parameters and state of the optimizer after each step.
        cast: the dtype of the parameters.
        one_batch: whether every step sees the same batch.
    """

    optimizer: Callable[[], Any] = lambda: optax.adam(2e-3)
    gradients: Callable[[Any, str, Any], Any] = lambda step, leaf, grads: grads
    updates: Callable[[str, Any], Any] | None = None
    carry: Callable[[Any, str, Any], Any] = lambda step, leaf, carry: carry
    cast: Any = jnp.float32
    one_batch: bool = False


def run(architecture: Architecture, plan: Plan, seeds: int) -> tuple[Any, Any]:
    """Parameters and states after all steps, with a first axis of seeds."""
    leaf, optimizer, change = architecture.leaf, plan.optimizer(), plan.updates
    if change is not None:
        last = optax.stateless(lambda updates, _: change(leaf, updates))
        optimizer = optax.chain(optimizer, last)
    tx = jaxcheck.monitor(optimizer, stacked=architecture.stacked)

    def loss_fn(params: Any, batch: Any) -> Any:
        """Computed in float32, whatever parameters are stored in."""
        wide = jax.tree.map(lambda p: p.astype(jnp.float32), params)
        return architecture.loss_fn(wide, batch)

    def one(seed: Any) -> Any:
        key = jax.random.key(seed)
        params = architecture.init(key)
        params = jax.tree.map(lambda p: p.astype(plan.cast), params)

        def step(carry: Any, number: Any) -> Any:
            params, state = carry
            drawn = jax.random.fold_in(key, 0 if plan.one_batch else number)
            batch = architecture.batch(drawn)
            loss, grads = jax.value_and_grad(loss_fn)(params, batch)
            grads = plan.gradients(number, leaf, grads)
            updates, state = tx.update(grads, state, params, value=loss)
            carry = optax.apply_updates(params, updates), state
            return plan.carry(number, leaf, carry), None

        carry = params, tx.init(params)
        return jax.lax.scan(step, carry, jnp.arange(STEPS))[0]

    return jax.device_get(jax.jit(jax.vmap(one))(jnp.arange(seeds)))
