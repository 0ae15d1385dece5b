"""``check_train_step``: states of flax and equinox, wrappers of optax, and pmap."""

from __future__ import annotations

import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from flax.training import train_state

from jaxcheck import InvalidInputError, check_train_step

ADAMW = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(0.01))


def batches(size=8, count=4):
    keys = jax.random.split(jax.random.key(1), count)
    return [
        (jax.random.normal(k, (size, 4)), jax.random.normal(k, (size, 3))) for k in keys
    ]


def mean_square(out, y):
    return jnp.mean(jnp.sum((out - y) ** 2, axis=-1))


def times(tree, factor):
    return jax.tree.map(lambda x: factor * x, tree)


# ---- flax nnx


class Net(nnx.Module):
    """What a model may hold beside its parameters: statistics, keys, functions."""

    def __init__(self, rngs):
        self.first = nnx.Linear(4, 5, rngs=rngs)
        self.norm = nnx.BatchNorm(5, rngs=rngs)
        self.dropout = nnx.Dropout(0.3, rngs=rngs)
        self.last = nnx.Linear(5, 3, rngs=rngs)
        self.activation = jnp.tanh

    def __call__(self, x):
        return self.last(self.activation(self.dropout(self.norm(self.first(x)))))


def nnx_loss(model, batch):
    x, y = batch
    return mean_square(model(x), y)


def nnx_step(*, factor=1.0, twice=False):
    @nnx.jit
    def step(state, batch):
        model, optimizer = state
        loss, grads = nnx.value_and_grad(nnx_loss)(model, batch)
        optimizer.update(model, times(grads, factor))
        if twice:
            optimizer.update(model, times(grads, factor))
        return loss

    return step


def nnx_state(tx=ADAMW):
    model = Net(nnx.Rngs(0))
    return model, nnx.Optimizer(model, tx, wrt=nnx.Param)


def arrays(model):
    return [
        np.asarray(x)
        for x in jax.tree.leaves(nnx.state(model, nnx.Param, nnx.BatchStat))
    ]


def test_an_nnx_optimizer_is_read_and_left_alone():
    state = nnx_state()
    before = arrays(state[0])
    report = check_train_step(nnx_step(), state, batches(), loss_fn=nnx_loss, tx=ADAMW)
    assert report.passed, str(report)
    after = arrays(state[0])
    assert all(np.array_equal(a, b) for a, b in zip(before, after, strict=True))


def test_faults_of_an_nnx_step_are_named():
    tx = optax.adamw(0.01)
    call = {"loss_fn": nnx_loss, "tx": tx}
    step = nnx_step(factor=8.0)
    report = check_train_step(step, nnx_state(tx), batches(), **call)
    assert report.fault == "sum_for_mean", str(report)
    step = nnx_step(twice=True)
    report = check_train_step(step, nnx_state(tx), batches(), **call)
    assert report.fault == "two_updates", str(report)


@pytest.mark.slow
def test_a_model_and_optimizer_in_one_is_read():
    model = Net(nnx.Rngs(0))
    state = nnx.ModelAndOptimizer(model, ADAMW)

    @nnx.jit
    def step(state, batch):
        state.update(nnx.grad(nnx_loss)(state.model, batch))

    report = check_train_step(step, state, batches(), loss_fn=nnx_loss, tx=ADAMW)
    assert report.passed, str(report)


# ---- equinox


def equinox_loss(model, batch):
    x, y = batch
    return mean_square(jax.vmap(model)(x), y)


@pytest.mark.parametrize(("sign", "fault"), [(1.0, None), (-1.0, "wrong_sign")])
def test_an_equinox_step_with_its_activation_as_a_leaf(sign, fault):
    model = eqx.nn.MLP(4, 3, 5, 2, activation=jax.nn.softplus, key=jax.random.key(0))
    tx = optax.adamw(0.01)

    @eqx.filter_jit
    def step(state, batch):
        model, opt_state = state
        grads = eqx.filter_grad(equinox_loss)(model, batch)
        params = eqx.filter(model, eqx.is_inexact_array)
        updates, opt_state = tx.update(grads, opt_state, params)
        return (eqx.apply_updates(model, times(updates, sign)), opt_state), None

    state = (model, tx.init(eqx.filter(model, eqx.is_inexact_array)))
    report = check_train_step(step, state, batches(), loss_fn=equinox_loss, tx=tx)
    assert report.fault == fault, str(report)
    assert report.passed is (fault is None)


# ---- plain trees


def parameters():
    keys = jax.random.split(jax.random.key(0), 2)
    return {"b": jnp.full(3, 0.1), "w": jax.random.normal(keys[0], (4, 3)) / 2}


def loss_fn(params, batch):
    x, y = batch
    return mean_square(jnp.tanh(x @ params["w"] + params["b"]), y)


def made(tx, *, more=lambda params, batch: {}):
    @jax.jit
    def step(state, batch):
        params, opt_state = state
        grads = jax.grad(loss_fn)(params, batch)
        extra = more(params, batch)
        updates, opt_state = tx.update(grads, opt_state, params, **extra)
        return optax.apply_updates(params, updates), opt_state

    return step


def run(step, tx, **options):
    params = parameters()
    state = (params, tx.init(params))
    return check_train_step(step, state, batches(), loss_fn=loss_fn, tx=tx, **options)


INNER = optax.adamw(0.01)
WRAPPED = {
    "MultiSteps": optax.MultiSteps(INNER, 2),
    "inject_hyperparams": optax.inject_hyperparams(optax.adamw)(learning_rate=0.01),
    "apply_if_finite": optax.apply_if_finite(INNER, 3),
    "masked": optax.masked(INNER, {"b": False, "w": True}),
    "ema": optax.chain(optax.ema(0.9), optax.sgd(0.1)),
    "schedule": optax.adam(optax.warmup_cosine_decay_schedule(0.0, 0.1, 2, 8)),
    "flatten": optax.flatten(INNER),
}


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[pytest.mark.slow] if k % 3 else [])
        for k, name in enumerate(WRAPPED)
    ],
)
def test_wrappers_are_what_they_are(name):
    tx = WRAPPED[name]
    report = run(made(tx), tx, steps=5)
    assert report.passed, str(report)


def test_a_transformation_that_needs_the_loss_is_given_it():
    tx = optax.polyak_sgd(max_learning_rate=100.0)

    def value(params, batch):
        return {"value": loss_fn(params, batch)}

    assert run(made(tx, more=value), tx).passed
    doubled = run(made(tx, more=lambda p, b: times(value(p, b), 2.0)), tx)
    assert not doubled.passed


@pytest.mark.slow
def test_a_line_search_is_given_the_loss_as_a_function():
    tx = optax.lbfgs(memory_size=3)

    def more(params, batch):
        value, grad = jax.value_and_grad(loss_fn)(params, batch)
        return {
            "value": value,
            "grad": grad,
            "value_fn": lambda params: loss_fn(params, batch),
        }

    assert run(made(tx, more=more), tx, rtol=1e-5).passed


@pytest.mark.slow
def test_a_train_state_with_more_than_parameters():
    class State(train_state.TrainState):
        count: jax.Array

    state = State.create(
        apply_fn=lambda *_: None, params=parameters(), tx=INNER, count=jnp.array(0)
    )

    @jax.jit
    def step(state, batch):
        grads = jax.grad(loss_fn)(state.params, batch)
        return state.apply_gradients(grads=grads, count=state.count + 1), {"n": 1}

    report = check_train_step(step, state, batches(), loss_fn=loss_fn, tx=INNER)
    assert report.passed, str(report)


# ---- pmap: what replicas of a step make of the gradient of their shares


def local(params, batch):
    return jax.grad(loss_fn)(params, batch)


def mean_of_gradients(params, batch):
    return jax.lax.pmean(local(params, batch), "data")


def gradient_of_mean(params, batch):
    mean = lambda p: jax.lax.pmean(loss_fn(p, batch), "data")  # noqa: E731
    return jax.grad(mean)(params)


@pytest.mark.skipif(jax.device_count() < 4, reason="needs four devices")
@pytest.mark.parametrize(
    ("grads", "fault"),
    [
        (local, "gradient_of_a_part"),
        (mean_of_gradients, None),
        (gradient_of_mean, "gradient_of_a_part"),
    ],
)
def test_what_pmap_makes_of_a_gradient(grads, fault):
    tx = optax.adamw(0.01)
    devices = jax.devices()[:4]

    @functools.partial(jax.pmap, axis_name="data", devices=devices)
    def replicas(params, opt_state, batch):
        updates, opt_state = tx.update(grads(params, batch), opt_state, params)
        return optax.apply_updates(params, updates), opt_state

    def step(state, batch):
        shares = jax.tree.map(lambda x: x.reshape(4, -1, *x.shape[1:]), batch)
        return replicas(*state, shares)

    def first(tree):
        return jax.tree.map(lambda x: x[0], tree)

    params = parameters()
    state = jax.tree.map(lambda x: jnp.stack([x] * 4), (params, tx.init(params)))
    report = check_train_step(
        step,
        state,
        batches(),
        loss_fn=loss_fn,
        tx=tx,
        params_of=lambda state: first(state[0]),
        opt_state_of=lambda state: first(state[1]),
    )
    assert report.fault == fault, str(report)


# ---- what is asked


@pytest.mark.parametrize(
    ("more", "match"),
    [
        ({"batches": jnp.ones((3, 4))}, "Wrap a single batch in a list"),
        ({"batches": []}, "at least one batch"),
        ({"batches": iter([1])}, "ran out after 1"),
        ({"state": {"w": 1.0}}, "params_of"),
        ({"state": (parameters(), ())}, "another optimizer"),
        ({"state": ({"n": 1}, ())}, "floating or complex"),
        ({"train_step": lambda state, batch: 3.0}, "a state like the one"),
        ({"train_step": lambda state, batch: state[0]}, "a state like the one"),
        ({"tx": 3}, "tx"),
    ],
)
def test_bad_input_is_refused_by_name(more, match):
    params = parameters()
    call = {
        "train_step": made(INNER),
        "state": (params, INNER.init(params)),
        "batches": batches(),
        "loss_fn": loss_fn,
        "tx": INNER,
    }
    call |= more
    positional = [call.pop(name) for name in ("train_step", "state", "batches")]
    with pytest.raises(InvalidInputError, match=match):
        check_train_step(*positional, **call)


def test_parameters_that_are_not_finite_are_refused():
    params = parameters() | {"b": jnp.array([1.0, jnp.nan, 2.0])}
    state = (params, INNER.init(params))
    with pytest.raises(InvalidInputError, match=r"1 of 3 elements of \['b'\]"):
        check_train_step(made(INNER), state, batches(), loss_fn=loss_fn, tx=INNER)
