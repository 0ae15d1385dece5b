"""``check_update``: arguments, state, chains, dtypes, and what is said."""

from __future__ import annotations

import functools
import gc
import weakref

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxcheck import (
    InvalidInputError,
    UpdateError,
    Verdict,
    assert_update_correct,
    check_update,
    rules,
)
from jaxcheck.updates.sequences import hard_gradients

PARAMS = {"b": jnp.ones(3), "w": jnp.linspace(-1.0, 1.0, 12).reshape(4, 3)}


def descent(gradients, params, state, step):
    """Momentum, as a user would write it."""
    state = state or jax.tree.map(jnp.zeros_like, gradients)
    state = jax.tree.map(lambda m, g: 0.9 * m + g, state, gradients)
    return jax.tree.map(lambda m: -0.1 * m, state), state


# ---- what it may be held against


@pytest.mark.parametrize(
    "rule",
    [
        rules.sgd(0.1, momentum=0.9),
        "sgd",
        optax.chain(optax.trace(0.9), optax.scale(-0.1)),
        descent,
    ],
    ids=["rule", "name", "transformation", "function"],
)
def test_momentum_agrees_with_every_kind_of_rule(rule):
    momentum = None if rule == "sgd" else 0.9
    report = check_update(optax.sgd(0.1, momentum=momentum), PARAMS, rule=rule)
    assert report.verdict is Verdict.CORRECT, str(report)
    assert report.relative_error < 1e-12


@pytest.mark.parametrize(
    "rule",
    [rules.sgd(0.1), optax.sgd(0.1), lambda g, p, s, t: (jax.tree.map(jnp.sin, g), s)],
    ids=["rule", "transformation", "function"],
)
def test_momentum_is_none_of_these(rule):
    report = check_update(optax.sgd(0.1, momentum=0.9), PARAMS, rule=rule)
    assert report.verdict is Verdict.WRONG
    assert report.first_wrong_step is not None


def test_a_name_stands_for_the_defaults_and_the_learning_rate_that_is_seen():
    schedule = optax.linear_schedule(1e-2, 1e-3, 6)
    report = check_update(optax.adamw(schedule), rule="adamw")
    assert report.verdict is Verdict.CORRECT, str(report)
    report = check_update(optax.adamw(3e-4), rule="adamw")
    assert report.rule == "adamw(learning_rate=0.0003)"
    report = check_update(optax.adamw(3e-4, b1=0.95), rule="adamw")
    assert report.matches == "with b1=0.95"


def test_a_name_does_not_hide_an_ascent():
    report = check_update(optax.adam(-1e-3), rule="adam")
    assert report.verdict is Verdict.WRONG
    assert report.matches == "with the opposite sign"


# ---- where it is wrong


def test_the_stage_and_the_field_of_a_chain_are_named():
    tx = optax.chain(
        optax.clip_by_global_norm(1e9), optax.scale_by_adam(b2=0.99), optax.scale(-1e-3)
    )
    report = check_update(tx, PARAMS, rule=rules.adam(1e-3))
    assert report.state_field == "nu"
    assert report.stage == "[1] ScaleByAdamState"
    assert report.first_wrong_step == 0
    assert report.leaf in ("['b']", "['w']")
    assert report.matches == "with b2=0.99"


def test_a_gradient_that_is_eight_times_too_large_shows_in_the_state_alone():
    tx = optax.chain(optax.scale(8.0), optax.adam(1e-3, eps=1e-30))
    report = check_update(tx, rule=rules.adam(1e-3, eps=1e-30))
    assert report.verdict is Verdict.WRONG
    assert report.state_field in ("mu", "nu")
    assert report.relative_error < 1e-12


@pytest.mark.parametrize(
    ("extra", "at", "named"),
    [
        (optax.clip(1e-3), 0, "[0] clip"),
        (optax.add_decayed_weights(0.1), 1, "[1] add_decayed_weights"),
        (optax.trace(0.5), 2, "[2] trace"),
    ],
)
def test_a_stage_that_is_one_too_many_is_named(extra, at, named):
    stages = [optax.scale_by_adam(), optax.scale(-1e-3)]
    stages.insert(at, extra)
    report = check_update(optax.chain(*stages), PARAMS, rule=rules.adam(1e-3))
    assert report.stage == named
    assert f"Without stage {named} it matches" in str(report).replace("\n    ", " ")


def spoiled(tx):
    """The same, but for one element of the matrix that is doubled."""

    def update(grads, state, params=None):
        updates, state = tx.update(grads, state, params)
        return updates | {"w": updates["w"].at[1, 1].mul(2.0)}, state

    return optax.GradientTransformation(tx.init, update)


@pytest.mark.parametrize("wrong", [0, 1, 2])
@pytest.mark.parametrize("kind", ["rules", "transformations"])
def test_the_first_stage_that_differs_is_named(wrong, kind):
    clip, adam = optax.clip_by_global_norm(1.0), optax.scale_by_adam()
    right = [clip, adam, optax.scale(-0.1)]
    rule = optax.chain(*right)
    if kind == "rules":
        parts = rules.clip_by_global_norm(1.0), rules.adam(-1.0), rules.scale(-0.1)
        rule = rules.chain(*parts)
    assert check_update(optax.chain(*right), PARAMS, rule=rule).passed
    stages = list(right)
    stages[wrong] = spoiled(stages[wrong])
    report = check_update(optax.chain(*stages), PARAMS, rule=rule)
    assert report.stage == f"[{wrong}] spoiled", str(report)


def test_no_stage_is_blamed_where_none_can_be_told():
    report = check_update(spoiled(optax.adam(0.1)), PARAMS, rule=rules.adam(0.1))
    assert not report.passed
    assert report.stage is None


def test_the_first_wrong_step_is_that_of_the_schedule():
    def schedule(count):
        return jnp.where(count < 3, 0.1, 0.05)

    report = check_update(optax.sgd(schedule), PARAMS, rule=rules.sgd(0.1))
    assert report.first_wrong_step == 3


def test_a_field_that_the_state_has_not_is_listed_as_not_checked():
    def init(params):
        return jax.tree.map(jnp.zeros_like, params)

    def update(gradients, state, params=None):
        state = jax.tree.map(lambda m, g: 0.9 * m + g, state, gradients)
        return jax.tree.map(lambda m: -0.1 * m, state), state

    tx = optax.GradientTransformation(init, update)
    report = check_update(tx, PARAMS, rule=rules.sgd(0.1, momentum=0.9))
    assert report.verdict is Verdict.CORRECT
    assert report.not_compared == ("trace",)
    assert "Not checked: trace" in str(report)


@pytest.mark.parametrize(
    ("tx", "rule", "text"),
    [
        (optax.contrib.muon(0.1, ns_steps=4), rules.muon(0.1), "with ns_steps=4"),
        (optax.nadam(0.1), rules.adam(0.1), "with nesterov=True"),
        (optax.sgd(0.1, 0.9), rules.sgd(0.1), "with momentum=0.9"),
    ],
    ids=["whole number", "switch", "none"],
)
def test_other_settings_are_named(tx, rule, text):
    assert check_update(tx, PARAMS, rule=rule).matches == text


# ---- dtypes


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64, jnp.bfloat16])
def test_adam_is_correct_in_every_dtype(dtype):
    with jax.enable_x64(dtype == jnp.float64):
        params = jax.tree.map(lambda x: x.astype(dtype), PARAMS)
        report = check_update(optax.adam(1e-2), params, rule=rules.adam(1e-2))
    assert report.verdict is Verdict.CORRECT, str(report)
    assert report.dtypes == (np.dtype(dtype).name,)


def test_hyperparameters_in_bfloat16_are_found():
    tx = optax.inject_hyperparams(optax.adam)(1e-2)
    params = jax.tree.map(lambda x: x.astype(jnp.bfloat16), PARAMS)
    report = check_update(tx, params, rule=rules.adam(1e-2))
    assert report.verdict is Verdict.WRONG, str(report)
    assert {f.kind for f in report.findings} <= {"nan_update", "precision_loss"}


def test_a_zero_gradient_in_float16_is_found():
    params = jax.tree.map(lambda x: x.astype(jnp.float16), PARAMS)
    report = check_update(optax.adam(1e-2), params, rule=rules.adam(1e-2))
    assert report.verdict is Verdict.WRONG
    assert "nan_update" in {f.kind for f in report.findings}


def test_x64_is_left_as_it_was():
    before = jax.config.jax_enable_x64
    check_update(optax.adam(1e-2), PARAMS, rule=rules.adam(1e-2), steps=3)
    check_update(optax.adam(1e-2), PARAMS)
    assert jax.config.jax_enable_x64 == before


# ---- further arguments


def test_a_transformation_that_needs_a_value_says_so():
    with pytest.raises(InvalidInputError, match=r"needs `value`.*extra_args"):
        check_update(optax.polyak_sgd(), PARAMS, rule=rules.polyak_sgd())


def test_values_are_passed_on():
    values = {"value": [1.0 / (k + 1) for k in range(8)]}
    options = {"rule": rules.polyak_sgd(), "extra_args": values}
    report = check_update(optax.polyak_sgd(), PARAMS, **options)
    assert report.verdict is Verdict.CORRECT, str(report)
    with pytest.raises(InvalidInputError, match="for each of the 8 steps; got 1"):
        check_update(optax.polyak_sgd(), PARAMS, extra_args={"value": [1.0]})


def test_gradients_may_be_given():
    gradients = [jax.tree.map(jnp.ones_like, PARAMS)] * 4
    wrong = optax.adam(1e-2, b1=0.5, b2=0.5)
    # a gradient that stays the same hides every decay rate but from the state
    report = check_update(wrong, PARAMS, rule=rules.adam(1e-2), gradients=gradients)
    assert report.verdict is Verdict.WRONG
    assert report.relative_error < 1e-6
    assert report.state_field in ("mu", "nu")


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"tx": 3}, r"tx=.*`init` and `update`.*got int"),
        ({"rule": "adamx"}, r"rule='adamx'.*use one of"),
        ({"rule": 3}, "rule=.*got int"),
        ({"steps": 0}, "steps=0"),
        ({"params": {}}, "params=.*non-empty"),
        ({"params": {"n": jnp.arange(3)}}, "params=.*int32"),
        ({"params": {"w": jnp.array([1.0, jnp.nan])}}, r"params=.*1 of 2 .*\['w'\]"),
        ({"gradients": [{"w": jnp.ones(2)}]}, "gradients=.*structure"),
        ({"rule": lambda g, p, s, t: g}, r"rule=.*return \(updates, state\)"),
        ({"rule": lambda g, p, s, t: (1.0, s)}, "rule=.*updates like `params`"),
        ({"key": 3}, "key="),
    ],
)
def test_bad_input(options, text):
    given = {"tx": optax.sgd(0.1), "params": PARAMS, "rule": rules.sgd(0.1)} | options
    with pytest.raises(InvalidInputError, match=text):
        check_update(given.pop("tx"), **given)


MIXED = {
    "w": jnp.ones((3, 2)),
    "step": jnp.arange(2),
    "key": jax.random.key(0),
    "on": jnp.array(True),
}
ONLY_W = {"w": True, "step": False, "key": False, "on": False}


@pytest.mark.parametrize("of", [rules.adam(1e-2), "adam", None, "transformation"])
def test_leaves_that_are_not_floating_are_carried_along(of):
    tx = optax.masked(optax.adam(1e-2), ONLY_W)
    rule = tx if of == "transformation" else of
    report = check_update(tx, MIXED, rule=rule)
    assert report.verdict is Verdict.CORRECT, str(report)
    assert report.carried == ("['key'] key<fry>", "['on'] bool", "['step'] int32")
    assert "Not checked: ['key'] key<fry>, ['on'] bool, ['step'] int32" in str(report)
    assert report.elements == 6
    wrong = check_update(tx, MIXED, rule=rules.adam(1e-2, b1=0.8))
    assert wrong.matches == "with b1=0.9"
    labels = {k: "moves" if v else "rests" for k, v in ONLY_W.items()}
    parts = {"moves": optax.adam(1e-2), "rests": optax.set_to_zero()}
    assert check_update(optax.partition(parts, labels), MIXED, rule=tx).passed


def test_gradients_may_be_given_for_leaves_that_are_not_floating():
    tx = optax.masked(optax.sgd(0.1), ONLY_W)
    loss = jax.grad(lambda p: jnp.sum(p["w"] ** 2), allow_int=True)
    given = {k: v for k, v in MIXED.items() if k != "key"}
    mask = {k: v for k, v in ONLY_W.items() if k != "key"}
    tx = optax.masked(optax.sgd(0.1), mask)
    report = check_update(tx, given, rule=rules.sgd(0.1), gradients=[loss(given)] * 3)
    assert report.verdict is Verdict.CORRECT, str(report)


@pytest.mark.parametrize("name", ["tx", "rule"])
def test_a_transformation_may_not_take_leaves_that_are_not_floating(name):
    adam = optax.adam(1e-2)
    masked = optax.masked(adam, ONLY_W)
    given = {"tx": masked, "rule": masked} | {name: adam}
    with pytest.raises(
        InvalidInputError, match=rf"{name}=.*\['step'\]: int32.*Mask them"
    ):
        check_update(given["tx"], MIXED, rule=given["rule"])


def test_the_assert_raises_with_the_report():
    assert_update_correct(optax.adam(1e-2), PARAMS, rule=rules.adam(1e-2))
    with pytest.raises(
        UpdateError, match="It matches the rule with eps=0.0001"
    ) as info:
        assert_update_correct(optax.adam(1e-2, eps=1e-4), PARAMS, rule=rules.adam(1e-2))
    assert info.value.report.verdict is Verdict.WRONG


# ---- without a rule


def properties(tx, **options):
    report = check_update(tx, **options)
    return report, dict(report.properties)


@pytest.mark.parametrize(
    ("tx", "wanted"),
    [
        (optax.sgd(0.1), {"twice the gradient": "twice the update"}),
        (optax.adam(1e-3), {"elements act on": "themselves alone"}),
        (optax.adam(1e-3), {"twice the gradient": "the same update"}),
        (optax.adamw(1e-3, weight_decay=0.1), {"at a zero gradient": "decays"}),
        (optax.lamb(1e-3), {"elements act on": "their leaf"}),
        (
            optax.chain(optax.clip_by_global_norm(1.0), optax.sgd(0.1)),
            {"elements act on": "all leaves"},
        ),
        (optax.contrib.muon(1e-3), {"leaves as vectors": "other updates"}),
        (optax.noisy_sgd(0.1, key=0), {"at a zero gradient": "random"}),
    ],
    ids=["sgd", "adam", "adam scale", "adamw", "lamb", "clip", "muon", "noisy"],
)
def test_the_screen_says_what_kind_of_optimizer_it_is(tx, wanted):
    report, found = properties(tx)
    assert report.verdict is Verdict.CORRECT, str(report)
    for name, text in wanted.items():
        assert found[name].startswith(text), found


@pytest.mark.parametrize(
    ("tx", "text"),
    [
        (optax.adadelta(), "it ascends"),
        (optax.yogi(1e-3), "which is no weight decay"),
        (optax.contrib.prodigy(), "at a zero gradient, in the first step"),
        (optax.contrib.dadapt_adamw(), "where the first gradient is all zeros"),
    ],
    ids=["adadelta", "yogi", "prodigy", "dadapt"],
)
def test_the_screen_finds_what_is_wrong_in_optax(tx, text):
    report = check_update(tx)
    assert report.verdict is Verdict.WRONG
    assert any(text in finding.message for finding in report.findings), str(report)


def late(tx):
    def init(params):
        return tx.init(params), jax.tree.map(jnp.zeros_like, params)

    def update(gradients, state, params=None):
        updates, inner = tx.update(gradients, state[0], params)
        return state[1], (inner, updates)

    return optax.GradientTransformation(init, update)


def growing():
    def update(gradients, state, params=None):
        return jax.tree.map(lambda g: -0.1 * g, gradients), jnp.append(state, 1.0)

    return optax.GradientTransformation(lambda params: jnp.zeros(1), update)


def counting():
    calls = []

    def update(gradients, state, params=None):
        calls.append(1)
        return jax.tree.map(lambda g: -0.1 * len(calls) * g, gradients), state

    return optax.GradientTransformation(optax.init_empty_state, update)


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (functools.partial(late, optax.sgd(0.1)), "one step late"),
        (growing, "cannot be carried by lax.scan"),
        (counting, "without jit the update is another one"),
    ],
    ids=["late", "growing", "impure"],
)
def test_the_screen_finds_what_is_odd(make, text):
    report = check_update(make())
    assert report.verdict is Verdict.WRONG
    assert any(text in finding.message for finding in report.findings), str(report)


# ---- the gradients


def test_the_gradients_are_hard():
    params = {"w": jnp.zeros((20, 10)), "b": jnp.zeros(10)}
    drawn = hard_gradients(params, 8, [0])
    values = np.stack([np.concatenate([g["w"].ravel(), g["b"]]) for g in drawn])
    sizes = np.abs(values[values != 0])
    assert sizes.min() < 1e-7
    assert sizes.max() > 1e3
    assert (values > 0).any(axis=0).mean() > 0.9
    assert (values < 0).any(axis=0).mean() > 0.9
    zero = (values == 0).all(axis=1)
    assert zero.tolist() == [k == 4 for k in range(8)]
    assert 0.05 < (values[~zero] == 0).mean() < 0.25
    again = hard_gradients(params, 8, [0])
    assert all(
        np.array_equal(a["w"], b["w"]) for a, b in zip(drawn, again, strict=True)
    )


def test_nothing_of_a_transformation_is_kept_when_it_is_gone():
    tx = optax.adam(0.1)
    alive = weakref.ref(tx.update)
    assert check_update(tx, rule=rules.adam(0.1)).passed
    del tx
    gc.collect()
    assert alive() is None
