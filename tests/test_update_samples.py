"""Large leaves: some of their elements are compared, and what that may miss."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxcheck import InvalidInputError, check_update, rules
from jaxcheck.updates.rules.rule import acts_elementwise
from jaxcheck.updates.sampling import sample_of
from jaxcheck.updates.sequences import hard_gradients

RATE, ROWS, COLUMNS = 0.01, 300, 40
SIZE = ROWS * COLUMNS
PARAMS = {"b": jnp.linspace(-1.0, 1.0, 50), "w": jnp.ones((ROWS, COLUMNS)) / 3}
RULE = rules.adam(RATE)


def check(tx, rule=RULE, samples=256):
    return check_update(tx, PARAMS, rule=rule, samples=samples)


def spoiled(index, value):
    """Adam, with one element of its updates made something else."""
    inner = optax.adam(RATE)

    def update(grads, state, params=None):
        updates, state = inner.update(grads, state, params)
        wrong = updates["w"].at[index].set(value(updates["w"][index]))
        return updates | {"w": wrong}, state

    return optax.GradientTransformation(inner.init, update)


def test_some_elements_of_a_large_leaf_are_compared():
    report = check(optax.adam(RATE))
    assert report.passed, str(report)
    assert report.elements == SIZE + 50
    assert report.elements_compared == 256 + 50
    assert "11,744 of 12,050 elements" in str(report)


@pytest.mark.parametrize("index", [(0, 0), (0, 5), (ROWS - 1, COLUMNS - 1)])
def test_the_ends_of_a_leaf_are_compared_and_named_by_their_index(index):
    report = check(spoiled(index, lambda u: 1.01 * u))
    assert not report.passed
    assert f"['w'][{index[0]}, {index[1]}]" in str(report)


def test_all_elements_are_compared_if_asked():
    index = (ROWS // 2, 7)
    tx = spoiled(index, lambda u: 1.01 * u)
    report = check(tx, samples=None)
    assert report.elements_compared == report.elements
    assert f"['w'][{index[0]}, {index[1]}]" in str(report)


def test_whether_updates_are_finite_is_asked_of_all_elements():
    report = check(spoiled((ROWS // 2, 7), lambda u: jnp.nan * u))
    assert "nan_update" in {finding.kind for finding in report.findings}
    assert "1 of 12,000 elements" in str(report)


@pytest.mark.parametrize(
    ("tx", "rule"),
    [
        (optax.lamb(RATE), rules.lamb(RATE)),
        (optax.adam(RATE), optax.adam(RATE)),
        (
            optax.adamw(RATE, mask=lambda p: jax.tree.map(lambda x: x.ndim > 1, p)),
            rules.adamw(RATE, mask=lambda p: jax.tree.map(lambda x: x.ndim > 1, p)),
        ),
    ],
    ids=["a leaf as a whole", "another transformation", "a mask that sees shapes"],
)
def test_what_may_look_at_whole_leaves_is_compared_whole(tx, rule):
    report = check(tx, rule)
    assert report.passed, str(report)
    assert report.elements_compared == report.elements


def test_a_mask_that_is_a_tree_chooses_leaves_of_the_sample():
    mask = {"b": False, "w": True}
    tx = optax.adamw(RATE, weight_decay=0.1, mask=mask)
    assert check(tx, rules.adamw(RATE, weight_decay=0.1, mask=mask)).passed
    other = check(tx, rules.adamw(RATE, weight_decay=0.1))
    assert other.leaf == "['b']"


def test_a_variant_is_named_from_the_sample():
    report = check(optax.adam(RATE, b2=0.99))
    assert report.matches == "with b2=0.99"
    assert check(optax.adam(RATE), "adam").rule == f"adam(learning_rate={RATE})"


def test_samples_must_be_a_count():
    with pytest.raises(InvalidInputError, match="samples"):
        check(optax.adam(RATE), samples=0)


# ---- what the sample stands on

MORE = {
    "add_noise": {"eta": 0.1, "gamma": 0.5},
    "clip": {"max_delta": 0.5},
    "ema": {"decay": 0.9},
    "trace": {"decay": 0.9},
    "scale": {"step_size": 0.5},
    "clip_by_block_rms": {"threshold": 0.1},
    "adaptive_grad_clip": {"clipping": 0.1},
}
NEEDS_MORE = (
    *("apply_if_finite", "clip_by_global_norm", "differentially_private_aggregate"),
    *("dpsgd", "lookahead", "mechanize"),
    "multi_steps",
)
LOOKS_AT_THE_LOSS = ("momo", "momo_adam", "polyak_sgd", "sophia")
ALONE = sorted(set(rules.BY_NAME) - {*NEEDS_MORE, *LOOKS_AT_THE_LOSS})


def made(name):
    make = rules.BY_NAME[name]
    if name in MORE:
        return make(**MORE[name])
    try:
        return make(learning_rate=0.1)
    except TypeError:
        return make()


@pytest.mark.parametrize("name", ALONE)
def test_a_rule_that_is_called_elementwise_says_the_same_of_some_elements(name):
    rule = made(name)
    params = {"b": np.linspace(0.1, 2.0, 20), "w": np.linspace(-1, 1, 48).reshape(6, 8)}
    sample = {"b": np.array([0, 5, 19]), "w": np.array([3, 7, 40])}

    def some(tree):
        return {k: np.ravel(x)[sample[k]] for k, x in tree.items()}

    states, same = [None, None], True
    for step, gradient in enumerate(hard_gradients(params, 4, (1,))):
        whole, states[0] = rule(gradient, params, states[0], step)
        alone, states[1] = rule(some(gradient), some(params), states[1], step)
        picked = some(whole)
        same &= all(np.array_equal(picked[k], alone[k], equal_nan=True) for k in alone)
    assert same or not acts_elementwise(rule.form)


def test_some_rules_are_elementwise_and_others_are_not():
    alone = {name for name in ALONE if acts_elementwise(made(name).form)}
    assert {"adam", "adamw", "sgd", "lion", "rmsprop", "adagrad"} <= alone
    assert not alone & {"lamb", "lars", "adafactor", "muon", "sm3", "novograd", "dog"}


def test_a_sample_is_in_order_without_repetition_and_has_both_ends():
    taken = sample_of({"w": np.ones(1000)}, 64, (0,))["['w']"]
    assert len(taken) == 64
    assert np.all(np.diff(taken) > 0)
    assert {0, 1, 998, 999} <= set(taken.tolist())


def test_gradients_of_large_leaves_are_hard_everywhere():
    params = {"w": np.ones((500, 400), np.float32)}
    steps = [g["w"] for g in hard_gradients(params, 5, (0,))]
    assert all(g.shape == (500, 400) and g.dtype == np.float32 for g in steps)
    for part in (steps[0][:100], steps[0][-100:]):
        size = np.abs(part[part != 0])
        assert size.min() < 1e-7
        assert size.max() > 1e3
        assert 0.05 < np.mean(part == 0) < 0.2
        assert 0.4 < np.mean(part > 0) < 0.5
    rows = {row.tobytes() for row in steps[0]}
    assert len(rows) == 500
