"""What a monitor keeps: events, norms, levels, and where it stands in a chain."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxcheck
from jaxcheck import MonitorState, leaf_names, monitor
from jaxcheck.training.monitor import UNMEASURED

RNG = np.random.default_rng(0)
PARAMS = {
    "a": {"b": jnp.zeros(5), "w": jnp.asarray(RNG.normal(size=(4, 5)), jnp.float32)},
    "z": jnp.asarray(RNG.normal(size=(3, 7)), jnp.float32),
}
NAMES = leaf_names(PARAMS)
GRADIENT, UPDATE, PARAMETER = range(3)


def gradients(steps, scale=1.0, seed=0):
    rng = np.random.default_rng(seed)
    return [
        jax.tree.map(
            lambda p: jnp.asarray(scale * rng.normal(size=p.shape), p.dtype), PARAMS
        )
        for _ in range(steps)
    ]


def stacked(trees):
    return jax.tree.map(lambda *x: jnp.stack(x), *trees)


def run(tx, grads, params=PARAMS):
    """All steps in one scan."""

    def step(carry, grad):
        params, state = carry
        updates, state = tx.update(grad, state, params)
        return (optax.apply_updates(params, updates), state), updates

    carry = params, tx.init(params)
    (params, state), updates = jax.jit(lambda c, g: jax.lax.scan(step, c, g))(
        carry, stacked(grads)
    )
    return params, state, updates


def spoiled(grad, value, leaf="z", at=0):
    return {**grad, leaf: jnp.ravel(grad[leaf]).at[at].set(value).reshape(3, 7)}


def row(name):
    return NAMES.index(name)


# ---- norms


def test_norms_are_those_of_the_last_step():
    _, state, updates = run(monitor(optax.adam(0.1)), grads := gradients(7))
    before, *_ = run(optax.adam(0.1), gradients(6))
    last = jax.tree.map(lambda u: u[-1], updates)
    for k, tree in enumerate((grads[-1], last, before)):
        leaves = [np.linalg.norm(np.asarray(x)) for x in jax.tree.leaves(tree)]
        wanted = [*leaves, np.linalg.norm(leaves)]
        np.testing.assert_allclose(state.norm[k], wanted, rtol=1e-6)
        np.testing.assert_allclose(state.recent[6, k], wanted, rtol=1e-6)
    assert (np.asarray(state.recent[7:]) == UNMEASURED).all()
    ratio = state.norm[UPDATE] / state.norm[PARAMETER]
    np.testing.assert_allclose(state.update_ratio, ratio, rtol=1e-6)
    assert state.step == 7
    assert state.measured.tolist() == [7, 7, 7]


@pytest.mark.parametrize("size", [1e30, 1e-30, 3e19, 1e-20])
def test_norms_of_extreme_gradients(size):
    _, state, _ = run(monitor(), gradients(1, size))
    leaves = jax.tree.leaves(gradients(1))
    wanted = [size * np.linalg.norm(np.float64(x)) for x in leaves]
    np.testing.assert_allclose(state.norm[GRADIENT, :-1], wanted, rtol=1e-5)
    np.testing.assert_allclose(
        state.norm[GRADIENT, -1], size * np.linalg.norm(np.divide(wanted, size)), 1e-5
    )
    assert not state.nonfinite.any()


def test_norms_of_float16():
    params = {"w": jnp.full(9, 1.0, jnp.float16)}
    tx = monitor()
    grads = {"w": jnp.full(9, 300.0, jnp.float16)}
    _, state = tx.update(grads, tx.init(params), params)
    assert state.norm[GRADIENT].tolist() == [900.0, 900.0]
    assert state.nonfinite[GRADIENT].tolist() == [0, 0]


@pytest.mark.parametrize("size", [1, 31, 4095, 4096, 70_001])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_counted_at_any_place(size, value):
    params = {"w": jnp.ones(size)}
    tx = monitor()
    update = jax.jit(tx.update)
    for at in {0, size // 2, size - 1}:
        _, state = update({"w": jnp.ones(size).at[at].set(value)}, tx.init(params))
        assert state.nonfinite[GRADIENT].tolist() == [1, 1]
        norm = np.sqrt(size - 1)
        np.testing.assert_allclose(state.norm[GRADIENT], [norm, norm], rtol=1e-6)


def test_stacked_layers_have_rows():
    params = {"blocks": jnp.ones((4, 3)), "out": jnp.ones(2)}
    tx = monitor(optax.sgd(1.0), stacked="['blocks']")
    grads = {"blocks": jnp.ones((4, 3)).at[2, 1].set(jnp.nan), "out": jnp.ones(2)}
    _, state = tx.update(grads, tx.init(params), params)
    assert state.first_bad[GRADIENT].tolist() == [-1, -1, 0, -1, -1, 0]
    assert state.nonfinite[GRADIENT].tolist() == [0, 0, 1, 0, 0, 1]


# ---- events


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_first_bad_step_and_leaf(value):
    grads = gradients(12)
    grads[5] = spoiled(grads[5], value)
    grads[8] = spoiled(grads[8], value, at=20)
    _, state, _ = run(monitor(optax.zero_nans()), grads)
    assert state.first_bad[GRADIENT, row("['z']")] == 5
    assert state.bad_steps[GRADIENT, row("['z']")] == 2
    assert state.first_bad[GRADIENT, row("['a']['w']")] == -1
    if np.isnan(value):
        assert (np.asarray(state.first_bad[UPDATE:]) == -1).all()


def test_three_stories():
    """A poisoned moment: updates are bad while gradients are not."""
    grads = gradients(12)
    grads[5] = spoiled(grads[5], np.nan)
    # parameters are held: what is NaN is the state of the optimizer
    tx = monitor(optax.chain(optax.scale_by_adam()))
    state = tx.init(PARAMS)
    for grad in grads:
        _, state = tx.update(grad, state, PARAMS)
    z = row("['z']")
    assert state.bad_steps[:, z].tolist() == [1, 7, 0]
    assert state.first_bad[:, z].tolist() == [5, 5, -1]
    _, state, _ = run(monitor(optax.sgd(0.1)), grads)
    assert state.first_bad[:, z].tolist() == [5, 5, 6]


@pytest.mark.parametrize("event", [3, 30, 60])
def test_one_bad_step_leaves_no_trace_in_the_statistics(event):
    grads = gradients(80)
    bad = [*grads[:event], spoiled(grads[0], np.nan), *grads[event:]]
    _, clean, _ = run(monitor(window=16), grads)
    _, seen, _ = run(monitor(window=16), bad)
    z = [row("['z']"), len(NAMES)]
    for name, one, other in zip(
        clean.level._fields, clean.level, seen.level, strict=True
    ):
        np.testing.assert_array_equal(
            np.asarray(one)[GRADIENT, z], np.asarray(other)[GRADIENT, z], name
        )
    np.testing.assert_array_equal(clean.norm[GRADIENT], seen.norm[GRADIENT])


def test_a_spike_is_seen_and_does_not_widen_the_band():
    grads = gradients(90)
    for step in (40, 70):
        grads[step] = jax.tree.map(lambda g: 30 * g, grads[step])
    _, state, _ = run(monitor(), grads)
    assert state.level.spikes[GRADIENT].tolist() == [2] * 4
    assert state.level.first_spike[GRADIENT].tolist() == [40] * 4
    steady = [g for k, g in enumerate(grads) if k not in (40, 70)]
    _, clean, _ = run(monitor(), steady)
    np.testing.assert_array_equal(state.level.mean[0], clean.level.mean[0])
    np.testing.assert_array_equal(state.level.variance[0], clean.level.variance[0])


def test_what_lasts_is_the_new_usual():
    grads = gradients(40) + gradients(60, 20.0, seed=1)
    _, state, _ = run(monitor(), grads)
    assert state.level.spikes[GRADIENT].tolist() == [10] * 4
    usual = np.exp(state.level.mean[GRADIENT, -1])
    norms = [float(optax.tree.norm(g)) for g in grads[45:]]
    np.testing.assert_allclose(usual, np.exp(np.mean(np.log(norms))), rtol=0.1)


def test_slow_growth_is_latched():
    grads = [
        jax.tree.map(lambda g, k=k: 1.1**k * g, grad)
        for k, grad in enumerate(gradients(100))
    ]
    _, state, _ = run(monitor(), grads)
    first = state.level.first_grown[GRADIENT]
    # 100 times the mean of the first twenty log-norms, that of step 9.5
    assert (abs(np.asarray(first) - (9.5 + np.log(100) / np.log(1.1))) < 6).all()
    assert not state.level.spikes.any()
    _, state, _ = run(monitor(), gradients(100))
    assert (np.asarray(state.level.first_grown) == -1).all()


def test_zeros_in_a_row():
    grads = gradients(20)
    grads[8:] = [{**g, "z": jnp.zeros((3, 7))} for g in grads[8:]]
    _, state, _ = run(monitor(optax.sgd(0.1)), grads)
    assert state.zero_run[GRADIENT].tolist() == [0, 0, 12, 0]
    assert state.zero_run[UPDATE].tolist() == [0, 0, 12, 0]


def test_lost_updates_of_bfloat16():
    params = jax.tree.map(lambda p: (1 + jnp.abs(p)).astype(jnp.bfloat16), PARAMS)
    grads = [jax.tree.map(jnp.ones_like, params)] * 25
    _, state, _ = run(monitor(optax.sgd(1e-4)), grads, params)
    assert state.details.lost_share.tolist() == [1.0] * 4
    assert state.lost_looks.tolist() == [3] * 4
    _, state, _ = run(monitor(optax.sgd(0.1)), grads, params)
    assert state.lost_looks.tolist() == [0] * 4


def test_zero_share_of_samples():
    params = {"w": jnp.ones((400, 50)), "v": jnp.ones(10)}
    grads = {"w": jnp.ones((400, 50)).at[:, ::2].set(0.0), "v": jnp.ones(10)}
    tx = monitor()
    _, state = tx.update(grads, tx.init(params), params)
    v, w, _ = np.asarray(state.details.zero_share)
    assert v == 0.0
    assert abs(w - 0.5) < 0.1
    assert state.details.lost_share.tolist() == [UNMEASURED] * 3


def test_clipped_steps_are_counted():
    tx = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(1e-3))
    _, state, _ = run(monitor(tx), gradients(5) + gradients(3, 1e-3))
    assert state.clipped == 5
    _, state, _ = run(monitor(optax.adam(1e-3)), gradients(2))
    assert state.clipped == -1


def test_losses_are_kept():
    tx = monitor(optax.sgd(0.1), window=4)
    state = tx.init(PARAMS)
    for k, grad in enumerate(gradients(6)):
        _, state = tx.update(grad, state, PARAMS, value=jnp.float32(k))
    assert state.losses.tolist() == [4.0, 5.0, 2.0, 3.0]


def test_every_and_details_thin_the_measurements():
    tx = monitor(optax.adam(0.1), every=4, window=16)
    grads = gradients(10)
    grads[6] = spoiled(grads[6], np.nan)
    _, state, _ = run(tx, grads)
    assert state.measured.tolist() == [10, 3, 3]
    assert state.first_bad[:, row("['z']")].tolist() == [6, 8, 8]
    was = np.asarray(state.recent[:10, UPDATE, -1]) != UNMEASURED
    assert was.tolist() == [k % 4 == 0 for k in range(10)]


# ---- leaves


def test_leaves_are_found_by_their_paths():
    """A gradient that is None shifts nothing."""
    grads = {"a": {"b": None, "w": jnp.ones((4, 5))}, "z": 2 * jnp.ones((3, 7))}
    tx = monitor()
    _, state = tx.update(grads, tx.init(PARAMS), PARAMS)
    wanted = [0.0, np.sqrt(20), 2 * np.sqrt(21)]
    np.testing.assert_allclose(state.norm[GRADIENT, :-1], wanted, rtol=1e-6)


def test_what_has_no_gradient_is_passed_over():
    params = {**PARAMS, "count": jnp.int32(3), "empty": jnp.zeros((0, 2)), "n": None}
    grads = {
        **gradients(1)[0],
        "count": np.zeros((), jax.dtypes.float0),
        "empty": jnp.zeros((0, 2)),
        "n": None,
    }
    tx = monitor()
    updates, state = tx.update(grads, tx.init(params), params)
    assert updates is grads
    assert state.norm.shape == (3, 4)


def test_complex_and_low_precision_leaves():
    params = {
        "b": jnp.ones(4, jnp.bfloat16),
        "c": jnp.ones(2, jnp.complex64),
        "h": jnp.ones(3, jnp.float16),
    }
    grads = {
        "b": 2 * params["b"],
        "c": params["c"] * (3 + 4j),
        "h": 1e-4 * params["h"],
    }
    tx = monitor()
    _, state = tx.update(grads, tx.init(params), params)
    wanted = [4.0, np.sqrt(50), np.sqrt(3) * 1e-4]
    np.testing.assert_allclose(state.norm[GRADIENT, :-1], wanted, rtol=1e-3)
    assert state.norm.dtype == jnp.float32


# ---- bad input


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"inner": 3}, r"`monitor\(inner=...\)` must be"),
        ({"every": 0}, r"`monitor\(every=0\)` must be a positive integer"),
        ({"window": 1.5}, r"`monitor\(window=1.5\)` must be a positive integer"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(jaxcheck.InvalidInputError, match=message):
        monitor(**arguments)


def test_bad_trees():
    tx = monitor(stacked="['y']")
    with pytest.raises(jaxcheck.InvalidInputError, match=r"no leaf lies there"):
        tx.init(PARAMS)
    tx = monitor()
    with pytest.raises(jaxcheck.InvalidInputError, match=r"init\(params=...\)` must"):
        tx.init({"n": 3})
    state = tx.init(PARAMS)
    with pytest.raises(jaxcheck.InvalidInputError, match="Give `params`"):
        tx.update({"z": PARAMS["z"]}, state)
    with pytest.raises(jaxcheck.InvalidInputError, match="must have the shapes of"):
        tx.update({**PARAMS, "z": jnp.ones(3)}, state, PARAMS)
    assert isinstance(state, MonitorState)
    with pytest.raises(jaxcheck.InvalidInputError, match=r"update\(state=.*got tuple"):
        tx.update(PARAMS, (), PARAMS)


@pytest.mark.parametrize(
    ("value", "got"),
    [
        ("low", "got str"),
        (np.ones(2, np.float32), r"got float32\[2\]"),
        (1j, r"got complex\d+\[\]"),
        ({"loss": 1.0}, "got dict"),
    ],
)
def test_a_loss_that_is_no_number(value, got):
    tx = monitor()
    with pytest.raises(jaxcheck.InvalidInputError, match=r"update\(value=.*" + got):
        tx.update(PARAMS, tx.init(PARAMS), PARAMS, value=value)


def test_a_loss_may_be_any_real_number():
    tx = monitor()
    state = tx.init(PARAMS)
    for value in (1, 2.5, np.float64(3), jnp.bfloat16(4), jnp.int32(5)):
        _, state = tx.update(PARAMS, state, PARAMS, value=value)
    assert state.losses[:5].tolist() == [1, 2.5, 3, 4, 5]


@pytest.mark.parametrize("differentiate", [jax.grad, jax.jacfwd])
@pytest.mark.parametrize("every", [1, 2])
def test_training_is_differentiated_through(differentiate, every):
    x = jax.random.normal(jax.random.key(0), (5, 4))
    params = {"w": jnp.full((4, 3), 0.1), "b": jnp.zeros(3)}

    def loss_fn(params):
        return jnp.mean((jnp.tanh(x @ params["w"] + params["b"]) - 1) ** 2)

    def loss_after(rate, wrap):
        tx = wrap(optax.adam(rate))

        def step(carry, _):
            params, state = carry
            loss, grads = jax.value_and_grad(loss_fn)(params)
            updates, state = tx.update(grads, state, params, value=loss)
            return (optax.apply_updates(params, updates), state), None

        (trained, _), _ = jax.lax.scan(step, (params, tx.init(params)), length=4)
        return loss_fn(trained)

    wanted = differentiate(loss_after)(0.1, optax.with_extra_args_support)
    got = differentiate(loss_after)(0.1, lambda tx: monitor(tx, every=every))
    np.testing.assert_allclose(got, wanted, rtol=1e-5)
    assert wanted < 0
