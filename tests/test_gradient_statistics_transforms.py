"""gradient_statistics under transformations of JAX and on several devices."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxcheck import gradient_statistics
from tests.programs.statistics import assert_row, by_hand

RNG = np.random.default_rng(2)
needs_four_devices = pytest.mark.skipif(
    len(jax.devices()) < 4, reason="needs four devices"
)


def normal(*shape):
    return RNG.standard_normal(shape).astype(np.float32)


def example():
    """A gradient with NaN and zero, parameters, and updates of which some are lost."""
    grads = {"b": normal(8), "stack": normal(4, 8, 12), "w": normal(8, 512)}
    grads["w"][3, 400], grads["w"][5, 7] = np.nan, 0.0
    params = {k: normal(*x.shape) for k, x in grads.items()}
    updates = {k: 1e-7 * normal(*x.shape) for k, x in grads.items()}
    return grads, params, updates


TREES = example()


def measure(grads, params, updates, **options):
    return gradient_statistics(grads, params, updates, stacked="['stack']", **options)


def assert_example(stats, trees=TREES, rtol=1e-5):
    """All rows are those worked out by hand from the whole arrays."""
    rows = (
        [[t["b"]] for t in trees],
        *([[t["stack"][k]] for t in trees] for k in range(4)),
    )
    for row, arrays in enumerate([*rows, [[t["w"]] for t in trees]]):
        assert_row(stats.leaves, by_hand(*arrays), row=row, rtol=rtol)
    assert_row(stats.stacks, by_hand(*([t["stack"]] for t in trees)), row=0, rtol=rtol)
    assert_row(stats.total, by_hand(*(t.values() for t in trees)), rtol=rtol)


def at(index, tree):
    return jax.tree.map(lambda x: x[index], tree)


# ---- on one device


def test_without_and_under_jit():
    assert_example(measure(*TREES))
    assert_example(jax.jit(measure)(*TREES))


def test_one_compilation_for_all_steps():
    traced = []

    @jax.jit
    def step(trees):
        traced.append(1)
        return measure(*trees)

    for factor in (1.0, 1e-30, 1e30, np.nan):
        step(jax.tree.map(lambda x, f=factor: (f * x).astype(x.dtype), TREES))
    assert len(traced) == 1


def test_statistics_are_carried_and_collected_by_scan():
    factors = jnp.array([1.0, 2.0, 0.5])

    def step(carry, factor):
        grads = jax.tree.map(lambda x: factor * x, TREES[0])
        stats = measure(grads, *TREES[1:])
        return stats, stats

    last, every = jax.jit(lambda: jax.lax.scan(step, measure(*TREES), factors))()
    for k, factor in enumerate(factors):
        grads = jax.tree.map(lambda x, f=factor: np.float32(f) * x, TREES[0])
        assert_example(at(k, every), (grads, *TREES[1:]))
    jax.tree.map(np.testing.assert_array_equal, last, at(2, every))


def test_vmap_over_an_ensemble():
    members = [example() for _ in range(3)]
    batched = jax.tree.map(lambda *x: np.stack(x), *members)
    stats = jax.jit(jax.vmap(measure))(*batched)
    for k, member in enumerate(members):
        assert_example(at(k, stats), member)


def test_in_a_branch():
    @jax.jit
    def now_and_then(step, trees):
        zeros = jax.tree.map(jnp.zeros_like, jax.eval_shape(measure, *trees))
        return jax.lax.cond(step % 2 == 0, lambda: measure(*trees), lambda: zeros)

    assert_example(now_and_then(4, TREES))
    assert float(now_and_then(5, TREES).total.norm) == 0.0


def test_in_a_train_step():
    x = normal(16, 8)
    tx = optax.adam(1e-2)

    def loss(params):
        return jnp.mean(jnp.tanh(x @ params["w"]) ** 2)

    @jax.jit
    def step(params, state):
        grads = jax.grad(loss)(params)
        updates, state = tx.update(grads, state, params)
        stats = gradient_statistics(grads, params, updates)
        return optax.apply_updates(params, updates), state, stats

    params = {"w": jnp.asarray(normal(8, 4))}
    state, before = tx.init(params), params
    for _ in range(3):
        before, (params, state, stats) = params, step(params, state)
    moved = np.linalg.norm(params["w"] - before["w"])
    ratio = moved / np.linalg.norm(before["w"])
    assert float(stats.total.update_ratio) == pytest.approx(ratio, rel=1e-4)
    assert float(stats.total.norm) == pytest.approx(
        np.linalg.norm(jax.grad(loss)(before)["w"]), rel=1e-5
    )


@pytest.mark.parametrize("x64", [False, True])
def test_strict_promotion_is_no_obstacle(x64):
    low = jax.tree.map(lambda x: x.astype(jnp.bfloat16), TREES[1])
    with (
        jax.enable_x64(x64),
        jax.numpy_dtype_promotion("strict"),
        jax.numpy_rank_promotion("raise"),
    ):
        stats = measure(TREES[0], low, TREES[2])
    assert_example(stats, (TREES[0], jax.tree.map(np.asarray, low), TREES[2]))


def test_both_histograms_are_the_same():
    """The one for accelerators and the one for processors."""
    from jaxcheck.training import histogram

    bins = jnp.asarray(RNG.integers(0, histogram.BINS + 1, (6, 5, 7)), jnp.int32)
    for keep in [None, 0, 1, 2]:
        np.testing.assert_array_equal(
            histogram._by_comparing(bins, keep), histogram._by_scattering(bins, keep)
        )


# ---- on four devices


def mesh_of(kind=AxisType.Auto):
    return jax.make_mesh((4,), ("data",), axis_types=(kind,))


SPLITS = {
    "replicated": {"b": P(), "stack": P(), "w": P()},
    "rows": {"b": P("data"), "stack": P(None, "data"), "w": P("data")},
    "columns": {"b": P(), "stack": P(None, None, "data"), "w": P(None, "data")},
    "layers": {"b": P(), "stack": P("data"), "w": P("data")},
}


def placed(mesh, specs):
    def place(tree):
        return {
            k: jax.device_put(x, NamedSharding(mesh, specs[k])) for k, x in tree.items()
        }

    return tuple(map(place, TREES))


@needs_four_devices
@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
@pytest.mark.parametrize("split", SPLITS)
def test_sharded_arrays_are_seen_as_wholes(split, kind):
    mesh = mesh_of(kind)
    with jax.set_mesh(mesh):
        trees = placed(mesh, SPLITS[split])
        stats = jax.jit(measure)(*trees)
    assert_example(stats)
    assert all(x.sharding.is_fully_replicated for x in jax.tree.leaves(stats))


@needs_four_devices
def test_an_explicit_mesh_that_is_not_set():
    assert_example(measure(*placed(mesh_of(AxisType.Explicit), SPLITS["layers"])))


@needs_four_devices
@pytest.mark.parametrize("check_vma", [False, True])
def test_shard_map_sees_what_a_device_holds(check_vma):
    local = jax.shard_map(
        lambda trees: jax.tree.map(lambda x: x[None], measure(*trees)),
        mesh=mesh_of(),
        in_specs=(({"b": P(), "stack": P(None, "data"), "w": P("data")},) * 3,),
        out_specs=P("data"),
        check_vma=check_vma,
    )
    stats = jax.jit(local)(TREES)
    for k in range(4):
        two = slice(2 * k, 2 * k + 2)
        part = [
            {"b": t["b"], "stack": t["stack"][:, two], "w": t["w"][two]} for t in TREES
        ]
        assert_example(at(k, stats), part)


@needs_four_devices
@pytest.mark.parametrize(
    ("split", "check_vma"),
    [("rows", True), ("columns", True), ("rows", False), ("replicated", True)],
)
def test_shard_map_with_the_axis_sees_whole_leaves(split, check_vma):
    """Tracked, what is on every device is counted once."""
    whole = jax.shard_map(
        lambda trees: measure(*trees, axis_name="data"),
        mesh=mesh_of(),
        in_specs=((SPLITS[split],) * 3,),
        out_specs=P(),
        check_vma=check_vma,
    )
    assert_example(jax.jit(whole)(TREES))


@needs_four_devices
def test_two_axes_of_a_mesh():
    mesh = jax.make_mesh((2, 2), ("x", "y"), axis_types=(AxisType.Auto,) * 2)
    specs = {"b": P("x"), "stack": P(None, "y", "x"), "w": P(None, ("x", "y"))}
    whole = jax.shard_map(
        lambda trees: measure(*trees, axis_name=("x", "y")),
        mesh=mesh,
        in_specs=((specs,) * 3,),
        out_specs=P(),
    )
    assert_example(jax.jit(whole)(TREES))


@needs_four_devices
def test_scan_inside_shard_map():
    @functools.partial(
        jax.shard_map,
        mesh=mesh_of(),
        in_specs=((SPLITS["rows"],) * 3,),
        out_specs=P(),
    )
    def run(trees):
        return jax.lax.scan(
            lambda carry, _: (carry, measure(*trees, axis_name="data")), 0, None, 2
        )[1]

    stats = jax.jit(run)(TREES)
    for k in range(2):
        assert_example(at(k, stats))


@needs_four_devices
def test_pmap():
    every = [example() for _ in range(4)]
    batched = jax.tree.map(lambda *x: np.stack(x), *every)
    alone = jax.pmap(measure)(*batched)
    for k, trees in enumerate(every):
        assert_example(at(k, alone), trees)
    joined = jax.pmap(functools.partial(measure, axis_name="data"), axis_name="data")(
        *batched
    )
    together = [
        {k: np.concatenate([t[n][k] for t in every], -1) for k in ("b", "stack", "w")}
        for n in range(3)
    ]
    for k in range(4):
        assert_example(at(k, joined), together)


@needs_four_devices
def test_replicated_gradients_need_no_collective():
    mesh = mesh_of()
    replicated = placed(mesh, SPLITS["replicated"])
    text = jax.jit(measure).lower(*replicated).compile().as_text()
    assert "all-reduce" not in text
    assert "all-gather" not in text
    rows = jax.jit(measure).lower(*placed(mesh, SPLITS["rows"])).compile().as_text()
    assert "all-reduce" in rows  # or the test above could not fail
