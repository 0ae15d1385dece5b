"""One step in several forms: in parts, on several devices, without jit."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import optax
import pytest

from jaxcheck import check_train_step

PARTS = 4
INNER = optax.chain(optax.clip_by_global_norm(0.5), optax.adamw(0.01))
four_devices = pytest.mark.skipif(jax.device_count() < 4, reason="needs four devices")


def parameters():
    return {
        "b": jnp.full(3, 0.1),
        "w": jax.random.normal(jax.random.key(0), (8, 3)) / 2,
    }


def batches(size=16):
    keys = jax.random.split(jax.random.key(1), 3)
    return [
        (jax.random.normal(k, (size, 8)), jax.random.normal(k, (size, 3))) for k in keys
    ]


def loss_fn(params, batch):
    x, y = batch
    out = jnp.tanh(x @ params["w"] + params["b"])
    return jnp.mean(jnp.sum((out - y) ** 2, axis=-1))


def parts_of(batch):
    return jax.tree.map(lambda x: x.reshape(PARTS, -1, *x.shape[1:]), batch)


def check(step, state, **readers):
    options = {"loss_fn": loss_fn, "tx": INNER, "steps": 3}
    return check_train_step(step, state, batches(), **options, **readers)


# ---- in parts


def in_parts(tx):
    """A step that gives ``tx`` the gradients of the parts, one after the other."""

    @jax.jit
    def step(state, batch):
        def body(state, part):
            params, opt_state = state
            grads = jax.grad(loss_fn)(params, part)
            updates, opt_state = tx.update(grads, opt_state, params)
            return (optax.apply_updates(params, updates), opt_state), None

        return jax.lax.scan(body, state, parts_of(batch))

    return step


# float64, for MultiSteps adds up in float32 whatever it is given
WHOLE = functools.partial(optax.MultiSteps, every_k_schedule=PARTS)


def test_accumulation_is_the_big_batch():
    tx = WHOLE(INNER, accumulator_dtype=jnp.float64)
    with jax.enable_x64(True):
        params = jax.tree.map(lambda x: x.astype(jnp.float64), parameters())
        state = (params, tx.init(params))
        report = check(
            in_parts(tx), state, opt_state_of=lambda state: state[1].inner_opt_state
        )
    assert report.passed, str(report)


def test_clipping_before_the_accumulation_is_not():
    inner = optax.adamw(0.01)
    clip, multi = optax.clip_by_global_norm(0.5), WHOLE(inner, use_grad_mean=True)
    tx = optax.chain(clip, multi.gradient_transformation())
    params = parameters()
    # what a stage of clipping remembers is nothing: the state of the stated chain
    report = check(
        in_parts(tx),
        (params, tx.init(params)),
        opt_state_of=lambda state: (state[1][0], state[1][1].inner_opt_state),
    )
    assert report.fault == "parts_clipped", str(report)


def test_steps_of_the_parts_are_not():
    params = parameters()
    report = check(in_parts(INNER), (params, INNER.init(params)))
    assert not report.passed


# ---- on several devices, and without jit


def plain(state, batch):
    params, opt_state = state
    updates, opt_state = INNER.update(
        jax.grad(loss_fn)(params, batch), opt_state, params
    )
    return optax.apply_updates(params, updates), opt_state


def on_mesh(specs):
    """The plain step, with its state and its batch placed on a mesh."""
    kind = jax.sharding.AxisType.Auto
    mesh = jax.make_mesh((2, 2), ("data", "model"), axis_types=(kind, kind))
    spec = jax.sharding.PartitionSpec

    def placed(tree, choose):
        shardings = jax.tree.map(
            lambda x: jax.sharding.NamedSharding(mesh, choose(x, spec)), tree
        )
        return jax.device_put(tree, shardings)

    run = jax.jit(plain)

    def step(state, batch):
        return run(placed(state, specs), placed(batch, lambda x, spec: spec("data")))

    return step


def replicated(x, spec):
    return spec()


def split(x, spec):
    return spec("model") if x.ndim == 2 else spec()


@four_devices
@pytest.mark.parametrize("specs", [replicated, split], ids=["replicated", "split"])
def test_a_step_on_a_mesh_is_that_of_one_device(specs):
    params = parameters()
    report = check(on_mesh(specs), (params, INNER.init(params)))
    assert report.passed, str(report)


def test_without_jit_and_in_a_scan_of_one():
    def scanned(state, batch):
        return jax.lax.scan(
            lambda state, batch: (plain(state, batch), None),
            state,
            jax.tree.map(lambda x: x[None], batch),
        )

    params = parameters()
    state = (params, INNER.init(params))
    assert check(plain, state).passed
    assert check(scanned, state).passed
