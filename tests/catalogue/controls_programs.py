"""Correct gradients of programs: control flow, stop_gradient, randomness, libraries."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from .cases import ControlList, Program
from .planting import integers, normal, uniform, with_jvp, with_vjp

CONTROLS = ControlList()


@CONTROLS.add(finding="detached")
def stop_gradient_of_a_factor(rng: np.random.Generator) -> Program:
    """``sg(x) * x``: as written, its derivative is x and not 2 x."""

    def loss(params: Any) -> Any:
        return jnp.sum(lax.stop_gradient(params["x"]) * params["x"]) * params["y"]

    return Program(loss, {"x": normal(rng, 4), "y": jnp.float32(1.5)})


@CONTROLS.add()
def straight_through_rounding(rng: np.random.Generator) -> Program:
    """``x + sg(round(x) - x)``."""

    def loss(params: Any) -> Any:
        x = 3 * params["x"]
        rounded = x + lax.stop_gradient(jnp.round(x) - x)
        return jnp.sum(rounded**2 * params["y"])

    # A third of a step away from every half, where rounding would jump.
    x = (rng.integers(-3, 4, 5) + rng.uniform(-0.3, 0.3, 5)).astype(np.float32) / 3
    return Program(loss, {"x": jnp.asarray(x), "y": normal(rng, 5)})


@CONTROLS.add(finding="detached")
def target_of_q_learning(rng: np.random.Generator) -> Program:
    """The bootstrapped target is held fixed, as it must be."""

    def loss(params: Any, states: Any, rewards: Any) -> Any:
        values = jnp.tanh(states @ params["w"])
        target = rewards + 0.9 * lax.stop_gradient(values[1:].max(-1))
        return jnp.mean((values[:-1, 0] - target) ** 2)

    return Program(loss, {"w": normal(rng, 3, 2)}, (normal(rng, 5, 3), normal(rng, 4)))


def dropout_program(rng: np.random.Generator, key: Any) -> Program:
    """A network with dropout, whose key is an argument."""

    def loss(params: Any, x: Any, key: Any) -> Any:
        hidden = jnp.tanh(x @ params["w"])
        keep = jax.random.bernoulli(key, 0.6, hidden.shape)
        noise = 0.1 * jax.random.normal(jax.random.fold_in(key, 1), hidden.shape)
        return jnp.mean((jnp.where(keep, hidden / 0.6, 0) + noise) @ params["v"])

    params = {"w": normal(rng, 3, 4), "v": normal(rng, 4)}
    return Program(loss, params, (normal(rng, 5, 3), key))


@CONTROLS.add()
def dropout_with_a_typed_key(rng: np.random.Generator) -> Program:
    """jax.random.key."""
    return dropout_program(rng, jax.random.key(7))


@CONTROLS.add()
def dropout_with_an_old_key(rng: np.random.Generator) -> Program:
    """jax.random.PRNGKey: an array of uint32."""
    return dropout_program(rng, jax.random.PRNGKey(7))


@CONTROLS.add()
def reparametrized_samples(rng: np.random.Generator) -> Program:
    """Normal, Gumbel and gamma samples differentiated by their parameters."""

    def loss(params: Any, key: Any) -> Any:
        keys = jax.random.split(key, 2)
        normal_ = params["mean"] + jnp.exp(params["log_std"]) * jax.random.normal(
            keys[0], (3,), jnp.float32
        )
        gumbel = jax.random.gumbel(keys[1], (3,), jnp.float32)
        soft = jax.nn.softmax((params["logits"] + gumbel) / 0.5)
        return jnp.sum(jnp.sin(normal_) * soft)

    params = {name: 0.5 * normal(rng, 3) for name in ("mean", "log_std", "logits")}
    return Program(loss, params, (jax.random.key(1),))


def recurrent(cell: Callable[..., Any], gates: int) -> Any:
    """A recurrent net of width three over five steps, in a scan."""

    def make(rng: np.random.Generator) -> Program:
        def loss(params: Any, xs: Any) -> Any:
            def step(carry: Any, x: Any) -> Any:
                return cell(params, carry, x)

            start = jnp.zeros(3, jnp.float32)
            _, hidden = lax.scan(step, (start, start), xs)
            return jnp.mean(hidden**2)

        params = {
            "in": normal(rng, 2, 3 * gates),
            "loop": 0.5 * normal(rng, 3, 3 * gates),
            "bias": normal(rng, 3 * gates),
        }
        return Program(loss, params, (normal(rng, 5, 2),))

    return make


@CONTROLS.add()
def recurrent_net(rng: np.random.Generator) -> Program:
    """Tanh over the steps of a sequence."""

    def cell(params: Any, carry: Any, x: Any) -> Any:
        h = jnp.tanh(x @ params["in"] + carry[0] @ params["loop"] + params["bias"])
        return (h, carry[1]), h

    return recurrent(cell, 1)(rng)


@CONTROLS.add()
def lstm(rng: np.random.Generator) -> Program:
    """Long short-term memory with a forget bias of one."""

    def cell(params: Any, carry: Any, x: Any) -> Any:
        h, c = carry
        gates = x @ params["in"] + h @ params["loop"] + params["bias"]
        i, f, g, o = jnp.split(gates, 4)
        c = jax.nn.sigmoid(f + 1) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
        h = jax.nn.sigmoid(o) * jnp.tanh(c)
        return (h, c), h

    return recurrent(cell, 4)(rng)


@CONTROLS.add()
def gru(rng: np.random.Generator) -> Program:
    """A gated recurrent unit."""

    def cell(params: Any, carry: Any, x: Any) -> Any:
        h, unused = carry
        from_x = jnp.split(x @ params["in"] + params["bias"], 3)
        from_h = jnp.split(h @ params["loop"], 3)
        reset = jax.nn.sigmoid(from_x[0] + from_h[0])
        update = jax.nn.sigmoid(from_x[1] + from_h[1])
        new = jnp.tanh(from_x[2] + reset * from_h[2])
        h = (1 - update) * new + update * h
        return (h, unused), h

    return recurrent(cell, 3)(rng)


def transformed(wrap: Callable[[Callable[..., Any]], Any]) -> Any:
    """A small model whose activation goes through ``wrap``."""

    def make(rng: np.random.Generator) -> Program:
        activation = wrap(lambda x: jnp.tanh(x) * jnp.cos(x))

        def loss(params: Any, x: Any) -> Any:
            return jnp.mean(activation(x @ params["w"]) @ params["v"])

        params = {"w": normal(rng, 3, 4), "v": normal(rng, 4)}
        return Program(loss, params, (normal(rng, 5, 3),))

    return make


SAVE_DOTS = jax.checkpoint_policies.dots_with_no_batch_dims_saveable

TRANSFORMED: dict[str, Callable[[Callable[..., Any]], Any]] = {
    "fori_loop": lambda fn: lambda x: lax.fori_loop(0, 3, lambda _, x: fn(x), x),
    "cond": lambda fn: lambda x: lax.cond(x[0, 0] < 1e3, fn, jnp.sin, x),
    "switch": lambda fn: lambda x: lax.switch(1, [jnp.sin, fn, jnp.exp], x),
    "remat": jax.checkpoint,
    "remat_with_a_policy": lambda fn: jax.checkpoint(fn, policy=SAVE_DOTS),
    "nested_jit": lambda fn: jax.jit(jax.jit(fn)),
    "vmap_of_scan": lambda fn: jax.vmap(
        lambda row: lax.scan(lambda c, x: (c + fn(x), c), 0.0, row)[1]
    ),
    "map": lambda fn: lambda x: lax.map(fn, x, batch_size=2),
    "reversed_scan": lambda fn: (
        lambda x: lax.scan(
            lambda c, row: (fn(row + c), c), x[0], x, reverse=True, unroll=2
        )[1]
    ),
    "jacobian_inside": lambda fn: jax.vmap(jax.vmap(jax.jacfwd(fn))),
    "custom_jvp_that_is_right": lambda _: with_jvp(
        jnp.tanh, lambda primals, dots: (1 - jnp.tanh(primals[0]) ** 2) * dots[0]
    ),
    "custom_vjp_that_is_right": lambda _: with_vjp(
        jnp.tanh, lambda _, out, ct: ((1 - out * out) * ct,)
    ),
}

for _name, _wrap in TRANSFORMED.items():
    CONTROLS.add(f"through_{_name}")(transformed(_wrap))


@CONTROLS.add()
def jitted_loss(rng: np.random.Generator) -> Program:
    """The loss is jitted as a whole."""
    program = transformed(jax.jit)(rng)
    return program._replace(loss_fn=jax.jit(program.loss_fn))


@CONTROLS.add()
def gradient_penalty(rng: np.random.Generator) -> Program:
    """A loss that contains jax.grad: its gradient is of second order."""

    def loss(params: Any, x: Any) -> Any:
        def critic(x: Any) -> Any:
            return jnp.tanh(x @ params["w"]) @ params["v"]

        slopes = jax.vmap(jax.grad(critic))(x)
        return jnp.mean((jnp.sqrt(jnp.sum(slopes**2, -1)) - 1) ** 2)

    params = {"w": normal(rng, 3, 4), "v": normal(rng, 4)}
    return Program(loss, params, (normal(rng, 5, 3),))


@CONTROLS.add()
def inner_training_step(rng: np.random.Generator) -> Program:
    """Meta-learning: the loss after a step of gradient descent."""

    def inner(w: Any, x: Any, y: Any) -> Any:
        return jnp.mean((jnp.tanh(x @ w) - y) ** 2)

    def loss(params: Any, x: Any, y: Any) -> Any:
        w = params["w"] - jnp.exp(params["log_rate"]) * jax.grad(inner)(
            params["w"], x, y
        )
        return inner(w, x, y)

    params = {"w": normal(rng, 3), "log_rate": jnp.float32(-1)}
    return Program(loss, params, (normal(rng, 5, 3), normal(rng, 5)))


@CONTROLS.add()
def implicit_root(rng: np.random.Generator) -> Program:
    """lax.custom_root: x³ + x = a, by twelve Newton steps."""

    def root(a: Any) -> Any:
        def solve(f: Any, x: Any) -> Any:
            return lax.fori_loop(0, 12, lambda _, x: x - f(x) / (3 * x**2 + 1), x)

        def tangent_solve(g: Any, y: Any) -> Any:
            return y / g(jnp.ones_like(y))

        return lax.custom_root(
            lambda x: x**3 + x - a, jnp.ones_like(a), solve, tangent_solve
        )

    params = {"a": uniform(rng, 0.5, 3.0, 4), "b": normal(rng, 4)}
    return Program(lambda p: jnp.sum(root(p["a"]) * p["b"]), params)


@CONTROLS.add()
def implicit_linear_solve(rng: np.random.Generator) -> Program:
    """lax.custom_linear_solve with a transpose of its own."""

    def loss(params: Any) -> Any:
        matrix = 4 * jnp.eye(3, dtype=params["a"].dtype) + params["a"]
        x = lax.custom_linear_solve(
            lambda x: matrix @ x,
            params["b"],
            lambda _, b: jnp.linalg.inv(matrix) @ b,
            lambda _, b: jnp.linalg.inv(matrix).T @ b,
        )
        return jnp.sum(x**3)

    return Program(loss, {"a": 0.5 * normal(rng, 3, 3), "b": normal(rng, 3)})


@CONTROLS.add()
def fixed_point_of_a_while_loop(rng: np.random.Generator) -> Program:
    """A while loop to convergence, with its implicit derivative in a custom_vjp."""

    def iterate(a: Any) -> Any:
        def proceed(state: Any) -> Any:
            i, x, last = state
            return (i < 60) & jnp.any(jnp.abs(x - last) > 0)

        def step(state: Any) -> Any:
            i, x, _ = state
            return i + 1, 0.5 * (x + a / x), x

        return lax.while_loop(proceed, step, (0, a, jnp.zeros_like(a)))[1]

    root = with_vjp(iterate, lambda _, out, ct: (0.5 * ct / out,))
    params = {"a": uniform(rng, 0.5, 3.0, 4), "b": normal(rng, 4)}
    return Program(lambda p: jnp.sum(root(p["a"]) * p["b"]), params)


class Weights(NamedTuple):
    """A NamedTuple of parameters."""

    kernel: Any
    extras: list[Any]


@CONTROLS.add()
def leaves_of_every_kind(rng: np.random.Generator) -> Program:
    """Integer, boolean, key, None, scalar, empty and Python-number leaves."""

    def loss(params: Any, x: Any) -> Any:
        noise = jax.random.normal(params["key"], (4,), jnp.float32)
        mask = jnp.where(params["mask"], 1.0, 0.5)
        kernel = params["weights"].kernel
        hidden = (x @ kernel)[:, params["columns"]] * mask + 0.1 * noise
        return jnp.mean(jnp.tanh(hidden)) * params["scale"] + params["shift"] ** 2

    params = {
        "weights": Weights(normal(rng, 3, 4), [jnp.zeros((0, 3), jnp.float32), None]),
        "columns": jnp.asarray(np.asarray([3, 1, 0, 2], np.int32)),
        "mask": jnp.asarray(np.asarray([True, False, True, True])),
        "key": jax.random.key(3),
        "old_key": jax.random.PRNGKey(3),
        "scale": 0.7,
        "step": 12,
        "shift": jnp.float32(0.3),
        "nothing": None,
    }
    return Program(loss, params, (normal(rng, 5, 3),))


@CONTROLS.add()
def numpy_leaves_and_nested_arguments(rng: np.random.Generator) -> Program:
    """NumPy parameters, a tuple of arrays and a dict among the arguments."""

    def loss(params: Any, batch: Any, options: Any) -> Any:
        x, y = batch["inputs"]
        error = x @ params[0]["w"] + params[1] - y
        return jnp.mean(error**2) * options["weight"]

    params = [{"w": rng.standard_normal(3).astype(np.float32)}, np.float32(0.2)]
    inputs = rng.standard_normal((5, 3)), rng.standard_normal(5)
    batch = {"inputs": tuple(each.astype(np.float32) for each in inputs)}
    return Program(loss, params, (batch, {"weight": 0.5}))


@CONTROLS.add()
def single_array_parameters(rng: np.random.Generator) -> Program:
    """The parameters are one array, without a tree around it."""
    return Program(lambda x: jnp.sum(jnp.sin(x)), normal(rng, 5))


@CONTROLS.add(settled=False)
def numpy_callback_with_a_rule(rng: np.random.Generator) -> Program:
    """pure_callback inside a custom_jvp: NumPy computes, a rule differentiates."""

    def on_host(fn: Any, x: Any) -> Any:
        shape = jax.ShapeDtypeStruct(x.shape, x.dtype)
        return jax.pure_callback(
            lambda x: fn(np.asarray(x)), shape, x, vmap_method="broadcast_all"
        )

    sine = with_jvp(
        lambda x: on_host(np.sin, x),
        lambda primals, dots: on_host(np.cos, primals[0]) * dots[0],
    )
    params = {"x": normal(rng, 4), "y": normal(rng, 4)}
    return Program(lambda p: jnp.sum(sine(p["x"]) * p["y"]), params)


@CONTROLS.add(settled=False)
def pallas_kernel_with_a_rule(rng: np.random.Generator) -> Program:
    """A Pallas kernel, interpreted, inside a custom_vjp."""
    from jax.experimental import pallas

    def kernel(x_ref: Any, out_ref: Any) -> None:
        out_ref[...] = jnp.tanh(x_ref[...])

    def call(x: Any) -> Any:
        shape = jax.ShapeDtypeStruct(x.shape, x.dtype)
        return pallas.pallas_call(kernel, out_shape=shape, interpret=True)(x)

    tanh = with_vjp(call, lambda _, out, ct: ((1 - out * out) * ct,))
    params = {"x": normal(rng, 8), "y": normal(rng, 8)}
    return Program(lambda p: jnp.sum(tanh(p["x"]) * p["y"]), params)


@CONTROLS.add()
def shard_map_on_one_device(rng: np.random.Generator) -> Program:
    """A mean over a mesh of one device, with a collective."""
    spec = jax.sharding.PartitionSpec
    devices = np.asarray(jax.devices()[:1])
    mesh = jax.sharding.Mesh(devices, ("data",))

    def local(w: Any, x: Any) -> Any:
        return lax.pmean(jnp.mean(jnp.tanh(x @ w)), "data")

    mean = jax.shard_map(
        local, mesh=mesh, in_specs=(spec(), spec("data")), out_specs=spec()
    )
    params = {"w": normal(rng, 3, 2), "b": normal(rng, 2)}
    return Program(lambda p, x: mean(p["w"] * p["b"], x), params, (normal(rng, 4, 3),))


@CONTROLS.add()
def haiku_style_parameters(rng: np.random.Generator) -> Program:
    """Nested dicts whose keys contain slashes and tildes."""
    params = {
        "mlp/~/linear_0": {"w": normal(rng, 3, 4), "b": normal(rng, 4)},
        "mlp/~/linear_1": {"w": normal(rng, 4, 2), "b": normal(rng, 2)},
    }

    def loss(params: Any, x: Any) -> Any:
        for layer in params.values():
            x = jnp.tanh(x @ layer["w"] + layer["b"])
        return jnp.mean(x)

    return Program(loss, params, (normal(rng, 5, 3),))


@CONTROLS.add(finding="precision_loss")
def linen_model_in_bfloat16(rng: np.random.Generator) -> Program:
    """Dense, dropout, attention and LSTM of flax linen, all in bfloat16."""
    from flax import linen

    class Model(linen.Module):
        @linen.compact
        def __call__(self, x: Any) -> Any:
            x = linen.Dense(4, dtype=jnp.bfloat16)(x)
            x = linen.Dropout(0.3, deterministic=False)(jnp.tanh(x))
            x = x + linen.MultiHeadDotProductAttention(2, dtype=jnp.bfloat16)(x, x)
            x = linen.RNN(linen.OptimizedLSTMCell(3, dtype=jnp.bfloat16))(x)
            return x.astype(jnp.float32)

    model = Model()
    x = normal(rng, 2, 5, 3)
    key = jax.random.key(0)
    variables = jax.jit(model.init)({"params": key, "dropout": key}, x)

    def loss(variables: Any, x: Any, key: Any) -> Any:
        return jnp.mean(model.apply(variables, x, rngs={"dropout": key}) ** 2)

    return Program(loss, variables, (x, key))


@CONTROLS.add()
def nnx_model(rng: np.random.Generator) -> Program:
    """A network of flax nnx, split into its graph and its state."""
    from flax import nnx

    class Model(nnx.Module):
        def __init__(self, rngs: nnx.Rngs) -> None:
            self.hidden = nnx.Linear(3, 4, rngs=rngs)
            self.out = nnx.Linear(4, 1, rngs=rngs)

        def __call__(self, x: Any) -> Any:
            return self.out(nnx.gelu(self.hidden(x)))

    graph, state = nnx.split(Model(nnx.Rngs(0)))

    def loss(state: Any, x: Any) -> Any:
        return jnp.mean(nnx.merge(graph, state)(x) ** 2)

    return Program(loss, state, (normal(rng, 5, 3),))


@CONTROLS.add()
def equinox_model(rng: np.random.Generator) -> Program:
    """An equinox module as it is: its activation functions are leaves of the tree."""
    equinox = pytest.importorskip("equinox")
    model = equinox.nn.MLP(3, 2, 4, 2, activation=jnp.tanh, key=jax.random.key(0))

    def loss(model: Any, x: Any) -> Any:
        return jnp.mean(jax.vmap(model)(x) ** 2)

    return Program(loss, model, (normal(rng, 5, 3),))


@CONTROLS.add()
def haiku_model(rng: np.random.Generator) -> Program:
    """A transformed haiku network."""
    haiku = pytest.importorskip("haiku")

    def network(x: Any) -> Any:
        return haiku.nets.MLP([4, 2], activation=jnp.tanh)(x)

    model = haiku.without_apply_rng(haiku.transform(network))
    x = normal(rng, 5, 3)
    params = model.init(jax.random.key(0), x)
    return Program(lambda p, x: jnp.mean(model.apply(p, x) ** 2), params, (x,))


@CONTROLS.add()
def mixture_of_experts(rng: np.random.Generator) -> Program:
    """Tokens routed to the best of three experts: one expert gets none."""

    def loss(params: Any, x: Any) -> Any:
        gates = jax.nn.softmax(x @ params["router"])
        best = jnp.argmax(gates, -1)
        weight = jnp.take_along_axis(gates, best[:, None], 1)
        return jnp.mean(weight * jnp.einsum("td,tdh->th", x, params["experts"][best]))

    router = normal(rng, 3, 3).at[:, 2].set(0).at[0, 2].set(-3)
    x = jnp.abs(normal(rng, 4, 3)) + 0.2
    return Program(loss, {"router": router, "experts": normal(rng, 3, 3, 2)}, (x,))


@CONTROLS.add()
def contrastive_loss(rng: np.random.Generator) -> Program:
    """Normalized embeddings, a temperature and a symmetric cross-entropy."""

    def unit(x: Any) -> Any:
        return x / jnp.linalg.norm(x, axis=-1, keepdims=True)

    def loss(params: Any, x: Any, y: Any) -> Any:
        left, right = unit(x @ params["left"]), unit(y @ params["right"])
        logits = jnp.exp(params["temperature"]) * left @ right.T
        rows, columns = jax.nn.log_softmax(logits), jax.nn.log_softmax(logits, 0)
        return -jnp.mean(jnp.diag(rows) + jnp.diag(columns))

    params = {
        "left": normal(rng, 3, 4),
        "right": normal(rng, 3, 4),
        "temperature": jnp.float32(2.0),
    }
    return Program(loss, params, (normal(rng, 4, 3), normal(rng, 4, 3)))


@CONTROLS.add()
def rotary_attention_with_a_mask(rng: np.random.Generator) -> Program:
    """Causal attention with -inf in its mask and rotary positions."""

    def rotate(x: Any) -> Any:
        angle = jnp.arange(x.shape[0], dtype=jnp.float32)[:, None]
        a, b = jnp.split(x, 2, axis=-1)
        cos, sin = jnp.cos(angle), jnp.sin(angle)
        return jnp.concatenate([a * cos - b * sin, a * sin + b * cos], -1)

    def loss(params: Any, tokens: Any) -> Any:
        x = params["table"][tokens]
        query, key = rotate(x @ params["query"]), rotate(x @ params["key"])
        causal = np.tril(np.ones((4, 4), bool))
        scores = jnp.where(causal, query @ key.T / 2.0, -jnp.inf)
        return jnp.mean((jax.nn.softmax(scores) @ x) ** 2)

    params = {
        "table": normal(rng, 6, 4),
        "query": normal(rng, 4, 4),
        "key": normal(rng, 4, 4),
    }
    return Program(loss, params, (integers(rng, 6, (4,)),))
