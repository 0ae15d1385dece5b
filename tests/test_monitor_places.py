"""A monitor in every place where people train: wrappers, transformations, devices.

Each must leave the updates bit for bit as they are, keep the structure and the dtypes
that its state has from ``init`` on, see the NaN of step 2 in the leaf that it is in,
and need one compilation.
"""

from __future__ import annotations

import functools
import warnings

import flax.linen as nn
import flax.serialization
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from flax.core import freeze
from flax.training.train_state import TrainState
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxcheck import MonitorState, leaf_names, monitor
from tests.test_check_compilations import compilations

RNG = np.random.default_rng(1)
needs_four_devices = pytest.mark.skipif(
    len(jax.devices()) < 4, reason="needs four devices"
)
STEPS, BAD = 5, 2
PARAMS = {
    "b": jnp.asarray(RNG.normal(size=4), jnp.float32),
    "w": jnp.asarray(RNG.normal(size=(8, 4)), jnp.float32),
}
NAMES = leaf_names(PARAMS)


def gradients(steps=STEPS, bad=BAD):
    """The gradient of ``w`` is bad in one step, in one element."""
    rng = np.random.default_rng(3)
    grads = {
        "b": rng.normal(size=(steps, 4)).astype(np.float32),
        "w": rng.normal(size=(steps, 8, 4)).astype(np.float32),
    }
    if bad is not None:
        grads["w"][bad, 5, 1] = np.nan
    return grads


def monitors(state):
    found = jax.tree.leaves(state, is_leaf=lambda x: isinstance(x, MonitorState))
    return [x for x in found if isinstance(x, MonitorState)]


def types(tree):
    return jax.tree.structure(tree), [(x.shape, x.dtype) for x in jax.tree.leaves(tree)]


def adam():
    """What a NaN does not outlive: parameters stay finite."""
    return optax.chain(optax.zero_nans(), optax.adam(1e-2))


def sgd():
    return optax.chain(optax.zero_nans(), optax.sgd(1e-2))


def labelled(make):
    return optax.partition({"b": make(), "w": make()}, {"b": "b", "w": "w"})


def hyper(make, **other):
    @optax.inject_hyperparams
    def made(learning_rate):
        return make(optax.chain(optax.zero_nans(), optax.adam(learning_rate)))

    return made(learning_rate=1e-2)


def schedule(count):
    return 1e-2 / (1.0 + count)


def same(tx):
    return tx


# By name, with `monitor` or without.
PLACES = {
    "around": lambda watch: watch(adam()),
    "around sgd": lambda watch: watch(sgd()),
    "first in a chain": lambda watch: optax.chain(
        *([monitor()] if watch is not same else []), adam()
    ),
    "with a schedule": lambda watch: watch(
        optax.chain(optax.zero_nans(), optax.adam(schedule))
    ),
    "MultiSteps inside": lambda watch: watch(
        optax.MultiSteps(sgd(), 2, should_skip_update_fn=optax.skip_not_finite)
    ),
    "MultiSteps outside": lambda watch: optax.MultiSteps(watch(sgd()), 2),
    "apply_if_finite inside": lambda watch: watch(optax.apply_if_finite(adam(), 5)),
    "apply_if_finite outside": lambda watch: optax.apply_if_finite(watch(adam()), 5),
    "inject_hyperparams inside": lambda watch: watch(hyper(same)),
    "inject_hyperparams outside": hyper,
    "partition inside": lambda watch: watch(labelled(adam)),
    "partition outside": lambda watch: labelled(lambda: watch(adam())),
    "masked inside": lambda watch: watch(optax.masked(adam(), {"b": False, "w": True})),
    "masked outside": lambda watch: optax.masked(
        watch(adam()), {"b": False, "w": True}
    ),
    "conditionally": lambda watch: optax.conditionally_mask(
        watch(adam()), lambda step, **_: step >= 0
    ),
    "another monitor": lambda watch: watch(watch(adam())),
    "lookahead-like ema": lambda watch: optax.chain(watch(adam()), optax.ema(0.9)),
}
# Where the bad step is hidden, and where steps are those of means over two.
FIRST_SEEN = {"apply_if_finite outside": -1, "MultiSteps outside": BAD // 2}


def scanned(tx, grads=None, x64=False):
    with jax.enable_x64(x64):
        traced = []

        @jax.jit
        def steps(carry, grads):
            traced.append(1)

            def step(carry, grad):
                params, state = carry
                updates, state = tx.update(grad, state, params)
                return (optax.apply_updates(params, updates), state), updates

            return jax.lax.scan(step, carry, grads)

        carry = PARAMS, tx.init(PARAMS)
        before = types(carry)
        carry, updates = steps(carry, gradients() if grads is None else grads)
        assert types(carry) == before
        carry, _ = steps(carry, gradients(bad=None))
        assert len(traced) == 1
        return carry[1], updates


@pytest.mark.parametrize("x64", [False, pytest.param(True, marks=pytest.mark.slow)])
@pytest.mark.parametrize("place", PLACES)
def test_updates_pass_and_the_state_is_carried(place, x64):
    make = PLACES[place]
    plain, wanted = scanned(make(same), x64=x64)
    state, updates = scanned(make(monitor), x64=x64)
    jax.tree.map(np.testing.assert_array_equal, updates, wanted)
    assert not monitors(plain)
    seen = FIRST_SEEN.get(place, BAD)
    rows = [tuple(monitor.first_bad[0].tolist()) for monitor in monitors(state)]
    # one for each group, where there are groups: of `b` alone, of `w` alone, of both
    assert set(rows) <= {(-1, -1), (seen, seen), (-1, seen, seen)}
    assert rows
    assert any(seen in row for row in rows)


def test_eager_steps_and_one_compilation():
    tx = monitor(adam())
    traced = []

    @jax.jit
    def update(grad, state, params):
        traced.append(1)
        return tx.update(grad, state, params)

    state = tx.init(PARAMS)
    eager = tx.init(PARAMS)
    for k in range(STEPS):
        grad = jax.tree.map(lambda g, k=k: jnp.asarray(g[k]), gradients())
        _, state = update(grad, state, PARAMS)
        _, eager = tx.update(grad, eager, PARAMS)
    assert len(traced) == 1
    for one, other in zip(jax.tree.leaves(state), jax.tree.leaves(eager), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-9)


def test_a_step_that_is_not_jitted_compiles_once():
    tx = monitor()
    grad = jax.tree.map(lambda g: jnp.asarray(g[0]), gradients())
    _, state = tx.update(grad, tx.init(PARAMS), PARAMS)
    with compilations() as seen:
        for _ in range(3):
            _, state = tx.update(grad, state, PARAMS)
    assert not seen
    assert state.step == 4


def test_donation():
    tx = monitor(adam())

    @functools.partial(jax.jit, donate_argnums=0)
    def step(carry, grad):
        params, state = carry
        updates, state = tx.update(grad, state, params)
        return optax.apply_updates(params, updates), state

    carry = jax.tree.map(jnp.copy, PARAMS), tx.init(PARAMS)
    for k in range(STEPS):
        carry = step(carry, jax.tree.map(lambda g, k=k: jnp.asarray(g[k]), gradients()))
    assert carry[1].first_bad[0].tolist() == [-1, BAD, BAD]


def test_vmap_over_an_ensemble():
    tx = monitor(adam())
    params = jax.tree.map(lambda p: jnp.stack([p, 2 * p, 3 * p]), PARAMS)
    state = jax.vmap(tx.init)(params)
    clean, bad = gradients(bad=None), gradients()
    for k in range(STEPS):
        grad = jax.tree.map(
            lambda a, b, k=k: jnp.stack([a[k], b[k], 2 * a[k]]), clean, bad
        )
        _, state = jax.jit(jax.vmap(tx.update))(grad, state, params)
    assert state.first_bad[:, 0].tolist() == [[-1] * 3, [-1, BAD, BAD], [-1] * 3]
    np.testing.assert_allclose(state.norm[2, 0], 2 * state.norm[0, 0], rtol=1e-6)


# ---- frameworks


def loss_fn(params, batch):
    return jnp.mean((batch @ params["w"] + params["b"]) ** 2)


def batches():
    x = RNG.normal(size=(STEPS, 6, 8)).astype(np.float32)
    x[BAD, 0, 0] = np.nan
    return x


def test_train_state_and_its_serialization():
    state = TrainState.create(apply_fn=None, params=PARAMS, tx=monitor(adam()))

    @jax.jit
    def step(state, batch):
        return state.apply_gradients(grads=jax.grad(loss_fn)(state.params, batch))

    for batch in batches():
        state = step(state, batch)
    # one NaN in the batch is in all of the gradient
    assert state.opt_state.first_bad[0].tolist() == [BAD] * 3
    data = flax.serialization.to_bytes(state)
    empty = TrainState.create(apply_fn=None, params=PARAMS, tx=state.tx)
    restored = flax.serialization.from_bytes(empty, data)
    assert types(jax.tree.map(jnp.asarray, restored.opt_state)) == types(
        state.opt_state
    )
    jax.tree.map(np.testing.assert_array_equal, restored.opt_state, state.opt_state)


def test_linen_with_frozen_dicts():
    model = nn.Dense(4)
    params = freeze(model.init(jax.random.key(0), jnp.ones((1, 8))))
    tx = monitor(adam())
    state = tx.init(params)
    for batch in batches():
        grads = jax.grad(lambda p, x=batch: jnp.mean(model.apply(p, x) ** 2))(params)
        updates, state = jax.jit(tx.update)(grads, state, params)
        params = optax.apply_updates(params, updates)
    assert state.first_bad[0].tolist() == [BAD] * 3


@pytest.mark.parametrize("split", [False, True])
def test_nnx_optimizer(split):
    model = nnx.Linear(8, 4, rngs=nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, monitor(adam()), wrt=nnx.Param)

    def loss(model, x):
        return jnp.mean(model(x) ** 2)

    if split:
        graph, carry = nnx.split((model, optimizer))

        def step(carry, x):
            model, optimizer = nnx.merge(graph, carry)
            optimizer.update(model, nnx.grad(loss)(model, x))
            return nnx.state((model, optimizer)), None

        carry, _ = jax.jit(lambda c, x: jax.lax.scan(step, c, x))(carry, batches())
        model, optimizer = nnx.merge(graph, carry)
    else:

        @nnx.jit
        def step(model, optimizer, x):
            optimizer.update(model, nnx.grad(loss)(model, x))

        for x in batches():
            step(model, optimizer, x)
    seen = nnx.as_pure(optimizer.opt_state)
    assert isinstance(seen, MonitorState)
    assert seen.first_bad[0].tolist() == [BAD] * 3
    assert int(seen.step) == STEPS


def test_equinox():
    eqx = pytest.importorskip("equinox")
    model = eqx.nn.MLP(8, 4, 16, 1, key=jax.random.key(0))
    tx = monitor(adam())
    state = tx.init(eqx.filter(model, eqx.is_inexact_array))

    @eqx.filter_jit
    def step(model, state, x):
        grads = eqx.filter_grad(lambda m: jnp.mean(jax.vmap(m)(x) ** 2))(model)
        updates, state = tx.update(grads, state, eqx.filter(model, eqx.is_array))
        return eqx.apply_updates(model, updates), state

    for x in batches():
        model, state = step(model, state, x)
    assert state.first_bad[0, -1] == BAD
    names = leaf_names(eqx.filter(model, eqx.is_inexact_array))
    assert names[0] == ".layers[0].weight"


def test_haiku():
    hk = pytest.importorskip("haiku")

    @hk.transform
    def forward(x):
        return hk.nets.MLP([5, 3])(x)

    model = hk.without_apply_rng(forward)
    params = model.init(jax.random.key(0), jnp.ones((1, 8)))
    tx = monitor(adam())
    state = tx.init(params)
    for x in batches():
        grads = jax.grad(lambda p, x=x: jnp.mean(model.apply(p, x) ** 2))(params)
        _, state = tx.update(grads, state, params)
    assert BAD in state.first_bad[0].tolist()


def test_orbax(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ocp = pytest.importorskip("orbax.checkpoint")
    state, _ = scanned(monitor(adam()))
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "state", state)
    with ocp.StandardCheckpointer() as checkpointer:
        empty = jax.tree.map(jnp.zeros_like, monitor(adam()).init(PARAMS))
        restored = checkpointer.restore(tmp_path / "state", empty)
    assert types(restored) == types(state)
    jax.tree.map(np.testing.assert_array_equal, restored, state)


# ---- devices

SPECS = {
    "replicated": {"b": P(), "w": P()},
    "rows": {"b": P("data"), "w": P("data")},
    "columns": {"b": P(), "w": P(None, "data")},
}


def state_after(tx, params, grads):
    def step(carry, grad):
        params, state = carry
        updates, state = tx.update(grad, state, params)
        return (optax.apply_updates(params, updates), state), None

    carry = params, tx.init(params)
    return jax.jit(lambda c, g: jax.lax.scan(step, c, g)[0][1])(carry, grads)


@needs_four_devices
@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
@pytest.mark.parametrize("split", SPECS)
def test_sharded_arrays_are_seen_as_wholes(split, kind):
    mesh = jax.make_mesh((4,), ("data",), axis_types=(kind,))
    spec = SPECS[split]

    def placed(tree, lead=()):
        return {
            k: jax.device_put(x, NamedSharding(mesh, P(*lead, *spec[k])))
            for k, x in tree.items()
        }

    with jax.set_mesh(mesh):
        state = state_after(
            monitor(adam()), placed(PARAMS), placed(gradients(), (None,))
        )
    assert state.first_bad[0].tolist() == [-1, BAD, BAD]
    wanted = state_after(monitor(adam()), PARAMS, gradients())
    for field in ("norm", "recent", "bad_steps", "update_ratio"):
        np.testing.assert_allclose(
            getattr(state, field), getattr(wanted, field), rtol=1e-5, err_msg=field
        )


@needs_four_devices
@pytest.mark.parametrize(
    ("split", "check_vma"),
    [("rows", True), ("columns", True), ("rows", False), ("replicated", True)],
)
def test_shard_map_with_the_axis_sees_whole_leaves(split, check_vma):
    mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,))
    tx = monitor(axis_name="data")
    spec = SPECS[split]

    @functools.partial(
        jax.shard_map,
        mesh=mesh,
        in_specs=(spec, jax.tree.map(lambda s: P(None, *s), spec)),
        out_specs=P(),
        check_vma=check_vma,
    )
    def run(params, grads):
        def step(state, grad):
            _, state = tx.update(grad, state, params)
            return state, None

        return jax.lax.scan(step, tx.init(params), grads)[0]

    state = jax.jit(run)(PARAMS, gradients())
    assert state.first_bad[0].tolist() == [-1, BAD, BAD]
    last = [np.linalg.norm(gradients()[k][-1]) for k in ("b", "w")]
    np.testing.assert_allclose(state.norm[0, :-1], last, rtol=1e-5)
    held = [np.linalg.norm(PARAMS[k]) for k in ("b", "w")]
    np.testing.assert_allclose(state.norm[2, :-1], held, rtol=1e-5)


@needs_four_devices
def test_pmap():
    tx = monitor(adam())
    params = jax.tree.map(lambda p: jnp.stack([p] * 4), PARAMS)
    state = jax.pmap(tx.init)(params)

    @functools.partial(jax.pmap, axis_name="data")
    def step(params, state, grad):
        updates, state = tx.update(jax.lax.pmean(grad, "data"), state, params)
        return optax.apply_updates(params, updates), state

    for k in range(STEPS):
        grad = jax.tree.map(lambda g, k=k: np.stack([g[k]] * 4), gradients())
        params, state = step(params, state, grad)
    one = jax.tree.map(lambda x: x[0], state)
    assert one.first_bad[0].tolist() == [-1, BAD, BAD]


@needs_four_devices
def test_data_parallel_steps_need_no_more_collectives():
    mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,))
    everywhere, split = NamedSharding(mesh, P()), NamedSharding(mesh, P("data"))
    x = jax.device_put(RNG.normal(size=(8, 8)).astype(np.float32), split)

    def compiled(tx):
        def step(params, state, x):
            grads = jax.grad(loss_fn)(params, x)
            updates, state = tx.update(grads, state, params)
            return optax.apply_updates(params, updates), state

        carry = jax.device_put((PARAMS, tx.init(PARAMS)), everywhere)
        return jax.jit(step, out_shardings=everywhere).lower(*carry, x).compile()

    def collectives(text):
        kinds = ("all-reduce(", "all-gather(", "all-to-all(", "collective-permute(")
        return sum(text.count(kind) for kind in kinds)

    plain = collectives(compiled(optax.adam(1e-3)).as_text())
    assert plain > 0
    assert collectives(compiled(monitor(optax.adam(1e-3))).as_text()) == plain
