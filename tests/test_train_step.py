"""``check_train_step``: what a step does instead is named; right steps pass."""

from __future__ import annotations

import functools
import itertools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxcheck import InvalidInputError, Verdict, check_train_step
from jaxcheck.updates.faults import FAULTS, SCHEDULES

RATE, DECAY = 0.01, 0.1
TRANSFORMATIONS = {
    "adamw": optax.adamw(RATE, weight_decay=DECAY),
    "momentum": optax.sgd(RATE, momentum=0.9),
    "adafactor": optax.adafactor(RATE),
}


def parameters():
    keys = jax.random.split(jax.random.key(0), 2)
    return {
        "in": {"b": jnp.full(8, 0.1), "w": jax.random.normal(keys[0], (5, 8)) / 2},
        "out": {"b": jnp.full(3, -0.1), "w": jax.random.normal(keys[1], (8, 3)) / 2},
    }


def loss_fn(params, batch):
    x, y = batch
    hidden = jnp.tanh(x @ params["in"]["w"] + params["in"]["b"])
    out = hidden @ params["out"]["w"] + params["out"]["b"]
    return jnp.mean(jnp.sum((out - y) ** 2, axis=-1))


def batches(count=4, size=16):
    keys = jax.random.split(jax.random.key(1), count)
    return [
        (jax.random.normal(k, (size, 5)), jax.random.normal(k, (size, 3))) for k in keys
    ]


gradient = jax.grad(loss_fn)
by_leaf = jax.tree.map


def times(tree, factor):
    return by_leaf(lambda x: factor * x, tree)


def made(tx, *, grads=gradient, apply=optax.apply_updates, carry=lambda old, new: new):
    """A train step of (params, opt_state); every part can be another one."""

    @jax.jit
    def step(state, batch):
        params, opt_state = state
        g = grads(params, batch)
        updates, new = tx.update(g, opt_state, params)
        return apply(params, updates), carry(opt_state, new)

    return step


def part(batch, which, count):
    size = len(batch[0]) // count
    window = slice(which * size, (which + 1) * size)
    return tuple(x[window] for x in batch)


def accumulated(params, batch, count, reduce):
    parts = [gradient(params, part(batch, k, count)) for k in range(count)]
    return reduce(functools.reduce(lambda a, b: by_leaf(jnp.add, a, b), parts), count)


def clipped(params, batch, limit=0.05):
    g = gradient(params, batch)
    return times(g, jnp.minimum(1.0, limit / optax.tree.norm(g)))


def rounded(tree):
    return by_leaf(lambda x: x.astype(jnp.bfloat16).astype(x.dtype), tree)


def init_inside(tx):
    @jax.jit
    def step(state, batch):
        params, _ = state
        updates, new = tx.update(gradient(params, batch), tx.init(params), params)
        return optax.apply_updates(params, updates), new

    return step


def updated_twice(tx):
    @jax.jit
    def step(state, batch):
        params, opt_state = state
        g = gradient(params, batch)
        _, opt_state = tx.update(g, opt_state, params)
        updates, opt_state = tx.update(g, opt_state, params)
        return optax.apply_updates(params, updates), opt_state

    return step


def two_steps(tx):
    step = made(tx)
    return lambda state, batch: step(step(state, batch), batch)


FAULTY = {
    "not_applied": lambda tx: made(tx, apply=lambda p, u: p),
    "params_replaced_by_updates": lambda tx: made(tx, apply=lambda p, u: u),
    "applied_twice": lambda tx: made(
        tx, apply=lambda p, u: optax.apply_updates(p, times(u, 2.0))
    ),
    "wrong_sign": lambda tx: made(
        tx, apply=lambda p, u: optax.apply_updates(p, times(u, -1.0))
    ),
    "learning_rate_squared": lambda tx: made(
        tx, apply=lambda p, u: optax.apply_updates(p, times(u, RATE))
    ),
    "learning_rate_missing": lambda tx: made(
        tx, apply=lambda p, u: optax.apply_updates(p, times(u, 1 / RATE))
    ),
    "updates_scaled": lambda tx: made(
        tx, apply=lambda p, u: optax.apply_updates(p, times(u, 0.7))
    ),
    "params_cast_to_bfloat16": lambda tx: made(
        tx, apply=lambda p, u: rounded(optax.apply_updates(p, u))
    ),
    "opt_state_not_carried": lambda tx: made(tx, carry=lambda old, new: old),
    "init_inside_the_step": init_inside,
    "updated_twice": updated_twice,
    "two_steps": two_steps,
    "sum_for_mean": lambda tx: made(tx, grads=lambda p, b: times(gradient(p, b), 16)),
    "mean_twice": lambda tx: made(tx, grads=lambda p, b: times(gradient(p, b), 1 / 16)),
    "gradient_wrong_sign": lambda tx: made(
        tx, grads=lambda p, b: times(gradient(p, b), -1.0)
    ),
    "sum_over_parts": lambda tx: made(
        tx,
        grads=lambda p, b: accumulated(p, b, 2, lambda total, count: total),
    ),
    "mean_over_parts_twice": lambda tx: made(
        tx, grads=lambda p, b: times(gradient(p, b), 1 / 8)
    ),
    "gradient_scaled": lambda tx: made(
        tx, grads=lambda p, b: times(gradient(p, b), 0.37)
    ),
    "part_left_out": lambda tx: made(tx, grads=without_the_last_quarter),
    "leaf_cut_off": lambda tx: made(
        tx, grads=lambda p, b: of_one_leaf(p, b, jnp.zeros_like)
    ),
    "gradient_of_leaves_scaled": lambda tx: made(
        tx, grads=lambda p, b: of_one_leaf(p, b, lambda g: 3.0 * g)
    ),
    "gradient_tampered": lambda tx: made(
        tx, grads=lambda p, b: of_one_leaf(p, b, lambda g: g.at[2, 1].mul(1.01))
    ),
    "decay_in_the_gradient": lambda tx: made(
        tx, grads=lambda p, b: by_leaf(lambda g, w: g + 0.3 * w, gradient(p, b), p)
    ),
    "parts_clipped": lambda tx: made(
        tx,
        grads=lambda p, b: times(
            by_leaf(jnp.add, clipped(p, part(b, 0, 2)), clipped(p, part(b, 1, 2))), 0.5
        ),
    ),
    "gradient_normalized": lambda tx: made(
        tx,
        grads=lambda p, b: times(gradient(p, b), 9 / optax.tree.norm(gradient(p, b))),
    ),
    "updates_clipped": lambda tx: made(
        tx, apply=lambda p, u: optax.apply_updates(p, within(u, 1e-3))
    ),
    "gradient_of_a_part": lambda tx: made(
        tx, grads=lambda p, b: gradient(p, part(b, 1, 2))
    ),
    "gradient_clipped": lambda tx: made(tx, grads=clipped),
    "gradient_cast_to_bfloat16": lambda tx: made(
        tx, grads=lambda p, b: rounded(gradient(p, b))
    ),
    "gradient_signs": lambda tx: made(
        tx, grads=lambda p, b: by_leaf(jnp.sign, gradient(p, b))
    ),
    "params_and_gradients_swapped": lambda tx: (
        lambda state, batch: swapped(tx, state, batch)
    ),
    "nothing_done": lambda tx: lambda state, batch: state,
    "leaf_not_updated": lambda tx: made(
        tx,
        apply=lambda p, u: optax.apply_updates(p, u) | {"out": p["out"]},
    ),
}


def without_the_last_quarter(params, batch):
    size = 3 * len(batch[0]) // 4
    return gradient(params, tuple(x[:size] for x in batch))


def of_one_leaf(params, batch, change):
    g = gradient(params, batch)
    return g | {"out": g["out"] | {"w": change(g["out"]["w"])}}


def of_norm(tree, norm):
    return times(tree, norm / optax.tree.norm(tree))


def within(tree, limit):
    return times(tree, jnp.minimum(1.0, limit / optax.tree.norm(tree)))


def swapped(tx, state, batch):
    params, opt_state = state
    updates, opt_state = tx.update(params, opt_state, gradient(params, batch))
    return optax.apply_updates(params, updates), opt_state


def run(step, tx, size=16):
    params = parameters()
    state = (params, tx.init(params))
    return check_train_step(step, state, batches(size=size), loss_fn=loss_fn, tx=tx)


# Adafactor sees squares of its gradient, and no sign but that of its update.
SAME_THING = {("gradient_wrong_sign", "adafactor"): "wrong_sign"}
PAIRS = list(itertools.product(FAULTY, TRANSFORMATIONS))


@pytest.mark.parametrize(
    ("fault", "optimizer"),
    [
        pytest.param(*pair, marks=[pytest.mark.slow] if k % 9 else [])
        for k, pair in enumerate(PAIRS)
    ],
)
def test_a_fault_is_named(fault, optimizer):
    tx = TRANSFORMATIONS[optimizer]
    report = run(FAULTY[fault](tx), tx)
    assert report.verdict is Verdict.WRONG
    assert report.fault == SAME_THING.get((fault, optimizer), fault), str(report)


@pytest.mark.parametrize("optimizer", TRANSFORMATIONS)
def test_a_right_step_is_correct(optimizer):
    tx = TRANSFORMATIONS[optimizer]
    report = run(made(tx), tx)
    assert report.verdict is Verdict.CORRECT, str(report)
    assert report.precision == "float64"
    assert report.relative_error < 1e-9


def test_every_fault_is_in_the_documentation():
    text = (pathlib.Path(__file__).parents[1] / "docs" / "updates.md").read_text()
    known = {fault.name for fault in (*FAULTS, *SCHEDULES)}
    for name in {*FAULTY, *MEMORIES, *COUNTED, *known}:
        assert f"`{name}`" in text, name


# ---- what needs more than the optimizer's state


MEMORIES = {
    "stale_gradient": lambda plain: (
        lambda p, s, b, old, last: plain(p, s, gradient(old, b), p)
    ),
    "batch_before": lambda plain: (
        lambda p, s, b, old, last: plain(p, s, gradient(p, last), p)
    ),
    "stale_params": lambda plain: (
        lambda p, s, b, old, last: plain(p, s, gradient(p, b), old)
    ),
}
COUNTED = {
    "updates_scaled_by_step": lambda g, u, total, n: (g, times(u, 0.5**n)),
    "gradient_of_all_steps": lambda g, u, total, n: (total, u),
}


@pytest.mark.parametrize("fault", MEMORIES)
def test_a_fault_that_remembers_is_named(fault):
    tx = TRANSFORMATIONS["adamw"]
    params = parameters()

    def step(state, batch):
        params, opt_state, before = state
        updates_of = MEMORIES[fault](plain)
        new = updates_of(params, opt_state, batch, *before)
        return (*new, (params, batch))

    def plain(params, opt_state, g, base):
        updates, opt_state = tx.update(g, opt_state, params)
        return optax.apply_updates(base, updates), opt_state

    state = (params, tx.init(params), (params, batches()[0]))
    report = check_train_step(step, state, batches(), loss_fn=loss_fn, tx=tx)
    assert report.fault == fault, str(report)


@pytest.mark.parametrize("optimizer", TRANSFORMATIONS)
@pytest.mark.parametrize("fault", COUNTED)
def test_a_fault_that_grows_with_the_steps_is_named(fault, optimizer):
    tx = TRANSFORMATIONS[optimizer]
    params = parameters()

    def step(state, batch):
        params, opt_state, total, n = state
        g = gradient(params, batch)
        total = by_leaf(jnp.add, total, g)
        used, _ = COUNTED[fault](g, g, total, n)
        updates, opt_state = tx.update(used, opt_state, params)
        _, updates = COUNTED[fault](g, updates, total, n)
        return optax.apply_updates(params, updates), opt_state, total, n + 1

    state = (params, tx.init(params), times(params, 0.0), 0)
    report = check_train_step(step, state, batches(), loss_fn=loss_fn, tx=tx)
    assert report.fault == fault, str(report)


@pytest.mark.parametrize("optimizer", TRANSFORMATIONS)
def test_a_state_of_the_step_before_is_named(optimizer):
    tx = TRANSFORMATIONS[optimizer]
    params = parameters()

    def step(state, batch):
        params, opt_state, before = state
        updates, new = tx.update(gradient(params, batch), before, params)
        return optax.apply_updates(params, updates), new, opt_state

    state = (params, tx.init(params), tx.init(params))
    report = check_train_step(step, state, batches(), loss_fn=loss_fn, tx=tx)
    assert report.fault == "stale_opt_state", str(report)


@pytest.mark.slow
def test_the_text_says_which_gradient_and_where():
    tx = TRANSFORMATIONS["adamw"]
    report = run(FAULTY["gradient_tampered"](tx), tx)
    assert "['out']['w']: in the first step in 1 of 75 elements" in told(report)
    report = run(FAULTY["leaf_cut_off"](tx), tx)
    assert "no gradient reached ['out']['w']" in told(report)
    report = run(FAULTY["decay_in_the_gradient"](tx), tx)
    assert "0.3 × the parameters were added to the gradient" in told(report)
    report = run(FAULTY["parts_clipped"](tx), tx)
    assert "2 parts of the batch were clipped at a norm of 0.05" in told(report)


def told(report):
    return " ".join(str(report).split())


@pytest.mark.parametrize("shift", [1, -1])
def test_a_schedule_that_is_read_at_another_count_is_named(shift):
    schedule = optax.linear_schedule(0.01, 0.001, 8)
    tx = optax.adam(schedule)
    inner = optax.scale_by_adam()

    def step(state, batch):
        params, (moments, count) = state
        updates, moments = inner.update(gradient(params, batch), moments, params)
        rate = schedule(jnp.maximum(count.count + shift, 0))
        count = count._replace(count=count.count + 1)
        return optax.apply_updates(params, times(updates, -rate)), (moments, count)

    report = run(step, tx)
    assert report.fault == ("schedule_ahead" if shift > 0 else "schedule_behind")


@pytest.mark.parametrize(
    ("decay", "fault"),
    [
        (0.0, "decay_missing"),
        (2.0, "decay_doubled"),
        (-1.0, "decay_wrong_sign"),
        (1 / RATE, "decay_scaled"),
    ],
)
def test_weight_decay_is_told_from_the_update(decay, fault):
    tx = TRANSFORMATIONS["adamw"]

    def apply(params, updates):
        more = by_leaf(lambda p: (1 - decay) * RATE * DECAY * p, params)
        return by_leaf(lambda p, u, m: p + u + m, params, updates, more)

    report = run(made(tx, apply=apply), tx)
    assert report.fault == fault, str(report)


def test_a_frozen_leaf_that_decays_is_named():
    labels = {"in": {"b": "train", "w": "train"}, "out": {"b": "rest", "w": "rest"}}
    parts = {"train": optax.adam(RATE), "rest": optax.set_to_zero()}
    tx = optax.multi_transform(parts, labels)
    right = run(made(tx), tx)
    assert right.passed, str(right)

    def apply(params, updates):
        params = optax.apply_updates(params, updates)
        return params | {"out": times(params["out"], 0.99)}

    report = run(made(tx, apply=apply), tx)
    assert report.fault == "frozen_leaf_moved", str(report)
    assert report.leaf in ("['out']['b']", "['out']['w']")


def test_updates_that_are_lost_to_rounding_are_found():
    tx = optax.sgd(1e-3)

    def quadratic(w, x):
        return jnp.mean((w - x).astype(jnp.float32) ** 2)

    w = jnp.full(64, 100.0, jnp.bfloat16)

    def step(state, x):
        w, opt_state = state
        updates, opt_state = tx.update(jax.grad(quadratic)(w, x), opt_state, w)
        return optax.apply_updates(w, updates), opt_state

    x = jnp.zeros(64, jnp.bfloat16)
    report = check_train_step(step, (w, tx.init(w)), [x], loss_fn=quadratic, tx=tx)
    assert report.verdict is Verdict.WRONG
    assert report.fault == "lost_to_rounding"
    assert "64 of 64 elements" in str(report)


def test_a_step_that_draws_from_the_host_is_found():
    rng = np.random.default_rng(0)
    tx = TRANSFORMATIONS["momentum"]
    right = made(tx)

    def step(state, batch):
        noisy = (batch[0] + rng.normal(size=batch[0].shape), batch[1])
        return right(state, noisy)

    report = run(step, tx)
    assert report.verdict is Verdict.WRONG
    assert "nondeterministic" in {f.kind for f in report.findings}


# ---- states


def test_states_are_read_by_their_names():
    tx = TRANSFORMATIONS["adamw"]
    right = made(tx)

    def step(state, batch):
        params, opt_state = right((state["params"], state["opt_state"]), batch)
        return {"params": params, "opt_state": opt_state, "n": state["n"] + 1}, 0.0

    params = parameters()
    state = {"params": params, "opt_state": tx.init(params), "n": 0}
    report = check_train_step(step, state, batches(), loss_fn=loss_fn, tx=tx)
    assert report.passed, str(report)


def test_a_flax_train_state_is_read():
    train_state = pytest.importorskip("flax.training.train_state")
    tx = TRANSFORMATIONS["adamw"]
    state = train_state.TrainState.create(
        apply_fn=lambda *_: None, params=parameters(), tx=tx
    )

    @functools.partial(jax.jit, donate_argnums=0)
    def step(state, batch):
        loss, g = jax.value_and_grad(loss_fn)(state.params, batch)
        return state.apply_gradients(grads=g), loss

    report = check_train_step(step, state, batches(), loss_fn=loss_fn, tx=tx)
    assert report.passed, str(report)


def test_a_state_of_ones_own_is_read_by_functions():
    tx = TRANSFORMATIONS["momentum"]
    right = made(tx)

    def step(state, batch):
        params, opt_state = right((state[2], state[0]), batch)
        return opt_state, None, params

    params = parameters()
    report = check_train_step(
        step,
        (tx.init(params), None, params),
        batches(),
        loss_fn=loss_fn,
        tx=tx,
        params_of=lambda state: state[2],
        opt_state_of=lambda state: state[0],
    )
    assert report.passed, str(report)


@pytest.mark.slow
def test_accumulated_gradients_are_those_of_the_whole_batch():
    tx = TRANSFORMATIONS["adamw"]

    def mean(total, count):
        return times(total, 1 / count)

    right = made(tx, grads=lambda p, b: accumulated(p, b, 4, mean))
    assert run(right, tx).passed


# ---- several devices


def shares(params, batch, reduce, *, check_vma):
    mesh = jax.make_mesh((4,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    spec = jax.sharding.PartitionSpec

    @functools.partial(
        jax.shard_map,
        mesh=mesh,
        in_specs=(spec(), spec("data")),
        out_specs=spec(),
        check_vma=check_vma,
    )
    def run(params, batch):
        return reduce(params, batch)

    return run(params, batch)


def pmean_of_gradient(params, batch):
    return jax.lax.pmean(jax.grad(loss_fn)(params, batch), "data")


def gradient_of_pmean(params, batch):
    return jax.grad(lambda p: jax.lax.pmean(loss_fn(p, batch), "data"))(params)


def psum_of_gradient(params, batch):
    return jax.lax.psum(jax.grad(loss_fn)(params, batch), "data")


# What optax's users meet: the recipe, how shard_map types values, and what comes out.
SHARED = [
    (gradient, True, "device_count", "4 × the stated one: the device count"),
    (gradient, False, "gradient_of_a_part", "a device's share"),
    (pmean_of_gradient, True, "device_count", "4 × the stated one: the device count"),
    (pmean_of_gradient, False, None, ""),
    (gradient_of_pmean, True, None, ""),
    (gradient_of_pmean, False, "gradient_of_a_part", "a device's share"),
    (psum_of_gradient, True, "device_count", "16 × the stated one"),
    (psum_of_gradient, False, "device_count", "4 × the stated one: the device count"),
]


@pytest.mark.skipif(jax.device_count() < 4, reason="needs four devices")
@pytest.mark.parametrize(("reduce", "check_vma", "fault", "text"), SHARED)
def test_what_shard_map_makes_of_a_gradient(reduce, check_vma, fault, text):
    tx = TRANSFORMATIONS["adamw"]

    def grads(params, batch):
        return shares(params, batch, reduce, check_vma=check_vma)

    report = run(made(tx, grads=grads), tx, size=24)
    assert report.fault == fault, str(report)
    assert text in str(report).replace("\n", " ")


# ---- what is asked


def test_bad_input():
    tx = TRANSFORMATIONS["adamw"]
    params = parameters()
    with pytest.raises(InvalidInputError, match="another optimizer"):
        check_train_step(
            made(tx),
            (params, optax.sgd(0.1).init(params)),
            batches(),
            loss_fn=loss_fn,
            tx=tx,
        )
