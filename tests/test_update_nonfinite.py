"""Gradients with NaN and infinity: what survives them, and what only seems to."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxcheck import Verdict, check_update, rules
from jaxcheck.updates.nonfinite import spoiled, unsound
from jaxcheck.updates.runs import Problem
from tests.test_rules import TREE, extra_arguments, hard_gradients
from tests.test_rules_variants import OTHERS, TELLING, WRAPPERS
from tests.test_rules_variants import PARAMS as OTHER_PARAMS

PARAMS = {"b": jnp.ones(3), "w": jnp.linspace(-1.0, 1.0, 12).reshape(4, 3)}
ADAM = optax.adam(1e-2)
SKIPPING = rules.apply_if_finite(rules.adam(1e-2), 2)
ZEROING = rules.chain(rules.zero_nans(), rules.adam(1e-2))


class Skipping(NamedTuple):
    notfinite_count: Any
    total_notfinite: Any
    inner_state: Any


def skipping(
    most=2,
    *,
    kept=lambda before, after: before,
    skipped=lambda g, u: jnp.zeros_like(u),
    bad=lambda g: ~jnp.isfinite(g).all(),
    counted=lambda row, finite: jnp.where(finite, 0, row + 1),
    total=lambda count, finite, taken: jnp.where(finite, count, count + 1),
    gives_up=lambda row, most: row > most,
):
    """apply_if_finite of Adam, written once more; every part can be another one."""

    def init(params):
        zero = jnp.zeros((), jnp.int32)
        return Skipping(zero, zero, ADAM.init(params))

    def update(grads, state, params=None):
        finite = ~jnp.any(jnp.array([bad(g) for g in jax.tree.leaves(grads)]))
        row = counted(state.notfinite_count, finite)
        taken = finite | gives_up(row, most)
        updates, after = ADAM.update(grads, state.inner_state, params)
        inner = jax.tree.map(
            lambda a, b: jnp.where(taken, a, b), after, kept(state.inner_state, after)
        )
        updates = jax.tree.map(
            lambda g, u: jnp.where(taken, u, skipped(g, u)), grads, updates
        )
        count = total(state.total_notfinite, finite, taken)
        return updates, Skipping(row, count, inner)

    return optax.GradientTransformation(init, update)


# With the field that is off (None: the update), the step, and the variant if known.
# NaN is in steps 2 and 7 to 12, infinity in step 5.
SKIPPING_MUTANTS = {
    "the inner state moves on": (
        skipping(kept=lambda before, after: after),
        ("mu", 2, "with the inner state moved on in skipped steps"),
    ),
    "only the bad leaf is zeroed": (
        skipping(skipped=lambda g, u: jnp.where(jnp.isfinite(g).all(), u, 0.0)),
        (None, 2, None),
    ),
    "only the bad element is zeroed": (
        skipping(skipped=lambda g, u: jnp.where(jnp.isfinite(g), u, 0.0)),
        (None, 2, None),
    ),
    "the row never ends": (
        skipping(counted=lambda row, finite: row + ~finite),
        (
            "notfinite_count",
            3,
            "with the count of bad steps in a row never reset",
        ),
    ),
    "the row ends where a step is let through": (
        skipping(
            counted=lambda row, finite: jnp.where(
                finite, 0, jnp.where(row >= 3, 1, row + 1)
            )
        ),
        ("notfinite_count", 10, None),
    ),
    "infinity is let through": (
        skipping(bad=lambda g: jnp.isnan(g).any()),
        ("mu", 5, None),
    ),
    "NaN is let through": (
        skipping(bad=lambda g: jnp.isinf(g).any()),
        ("mu", 2, None),
    ),
    "gives up one step early": (
        skipping(gives_up=lambda row, most: row >= most),
        ("mu", 8, "with max_consecutive_errors=1"),
    ),
    "never gives up": (
        skipping(gives_up=lambda row, most: False),
        ("mu", 9, None),
    ),
    "the total leaves out what is let through": (
        skipping(total=lambda count, finite, taken: jnp.where(taken, count, count + 1)),
        ("total_notfinite", 9, None),
    ),
    "no step is skipped": (
        ADAM,
        ("mu", 2, "with no step skipped"),
    ),
}


@pytest.mark.parametrize("name", SKIPPING_MUTANTS)
def test_what_skips_bad_steps_wrongly_is_found(name):
    tx, (field, step, matches) = SKIPPING_MUTANTS[name]
    report = check_update(tx, PARAMS, rule=SKIPPING)
    assert report.verdict is Verdict.WRONG
    assert (report.state_field, report.first_wrong_step) == (field, step), str(report)
    assert report.leaf in (None, "['w']", "['b']")
    assert report.matches == matches
    told = "where an element of the gradient of ['w'] is NaN or infinity in steps 2, 5"
    assert told in report.findings[0].message


class Zeroing(NamedTuple):
    found_nan: Any


def zeroing(zeroed, found=lambda g: jnp.isnan(g).any()):
    def update(grads, state, params=None):
        return jax.tree.map(zeroed, grads), Zeroing(jax.tree.map(found, grads))

    init = functools.partial(jax.tree.map, lambda p: jnp.asarray(False))
    tx = optax.GradientTransformation(lambda p: Zeroing(init(p)), update)
    return optax.chain(tx, ADAM)


ZEROING_MUTANTS = {
    "all of the leaf is zeroed": (
        zeroing(lambda g: jnp.where(jnp.isnan(g).any(), 0.0, g)),
        "mu",
    ),
    "NaN becomes one": (zeroing(lambda g: jnp.where(jnp.isnan(g), 1.0, g)), "nu"),
    "NaN stays": (zeroing(lambda g: g), "mu"),
    "NaN is not told of": (
        zeroing(lambda g: jnp.nan_to_num(g, nan=0.0), lambda g: jnp.asarray(False)),
        "found_nan",
    ),
}


@pytest.mark.parametrize("name", ZEROING_MUTANTS)
def test_what_zeroes_nans_wrongly_is_found(name):
    tx, field = ZEROING_MUTANTS[name]
    report = check_update(tx, PARAMS, rule=ZEROING)
    assert report.verdict is Verdict.WRONG
    assert (report.state_field, report.first_wrong_step) == (field, 2), str(report)
    assert report.leaf == "['w']"


def test_zeros_for_a_whole_leaf_are_named():
    def update(grads, state, params=None):
        return jax.tree.map(lambda g: jnp.where(jnp.isnan(g).any(), 0.0, g), grads), ()

    tx = optax.GradientTransformation(lambda p: (), update)
    report = check_update(tx, PARAMS, rule=rules.zero_nans())
    assert (report.first_wrong_step, report.leaf) == (2, "['w']")
    assert report.matches == "with zeros in all of a leaf that has NaN"


LARGE = functools.partial(optax.skip_large_updates, max_squared_norm=1e9)
# With their rules, and what these survive.
RIGHT = {
    "skipping": (skipping(), SKIPPING, ("NaN", "infinity")),
    "apply_if_finite": (optax.apply_if_finite(ADAM, 2), SKIPPING, ("NaN", "infinity")),
    "apply_if_finite of sgd": (
        optax.apply_if_finite(optax.sgd(0.1), 5),
        rules.apply_if_finite(rules.sgd(0.1), 5),
        ("NaN", "infinity"),
    ),
    "zeroing": (zeroing(lambda g: jnp.where(jnp.isnan(g), 0, g)), ZEROING, ("NaN",)),
    "zero_nans": (optax.chain(optax.zero_nans(), ADAM), ZEROING, ("NaN",)),
    "zero_nans alone": (optax.zero_nans(), rules.zero_nans(), ("NaN",)),
    "clip": (
        optax.chain(optax.clip(1.0), ADAM),
        rules.chain(rules.clip(1.0), rules.adam(1e-2)),
        ("infinity",),
    ),
    "MultiSteps, not finite": (
        optax.MultiSteps(
            optax.sgd(0.1), 3, should_skip_update_fn=optax.skip_not_finite
        ),
        rules.multi_steps(rules.sgd(0.1), 3, skip_not_finite=True),
        ("NaN", "infinity"),
    ),
    "MultiSteps, large": (
        optax.MultiSteps(optax.sgd(0.1), 3, should_skip_update_fn=LARGE),
        rules.multi_steps(rules.sgd(0.1), 3, max_squared_norm=1e9),
        ("NaN", "infinity"),
    ),
    "another transformation": (skipping(), optax.apply_if_finite(ADAM, 2), ...),
    "a transformation that survives, a rule that does not": (
        optax.apply_if_finite(ADAM, 2),
        rules.adam(1e-2),
        (),
    ),
    "nothing survives": (ADAM, rules.adam(1e-2), ()),
}


@pytest.mark.parametrize(
    "dtype", [jnp.float32, jnp.float64], ids=["float32", "float64"]
)
@pytest.mark.parametrize("name", RIGHT)
def test_what_survives_as_its_rule_does_is_correct(name, dtype):
    tx, rule, survived = RIGHT[name]
    with jax.enable_x64(dtype == jnp.float64):
        params = jax.tree.map(lambda x: x.astype(dtype), PARAMS)
        report = check_update(tx, params, rule=rule)
    assert report.verdict is Verdict.CORRECT, str(report)
    assert report.survived == (("NaN", "infinity") if survived is ... else survived)
    if survived == ("NaN",):
        assert "with NaN in gradients too" in str(report)


def multi_steps(every=3, skip=optax.skip_not_finite):
    return optax.MultiSteps(optax.sgd(0.1), every, should_skip_update_fn=skip)


@pytest.mark.parametrize(
    ("tx", "settings", "matches"),
    [
        (multi_steps(), {"skipped_count": True}, "with skipped_count=False"),
        (multi_steps(), {"every": 2}, "with every=3"),
        # optax multiplies what has accumulated by zero, and NaN stays NaN
        (multi_steps(skip=None), {}, None),
    ],
    ids=["skipped steps count", "another number of steps", "nothing is skipped"],
)
def test_multi_steps_that_skips_otherwise_is_found(tx, settings, matches):
    rule = rules.multi_steps(rules.sgd(0.1), 3, skip_not_finite=True)
    report = check_update(tx, PARAMS, rule=rule.replace(**settings))
    assert report.verdict is Verdict.WRONG
    assert report.matches == matches


def test_of_all_rules_few_survive():
    # NaN in what a rule divides by or decomposes has to stay NaN, and come to an end
    survived = {}
    for name in set(rules.BY_NAME) - WRAPPERS - OTHERS:
        rule, params = (
            rules.BY_NAME[name](**TELLING[name]),
            OTHER_PARAMS.get(name, TREE),
        )
        extra = extra_arguments(name, params)
        gradients = hard_gradients(params)
        steps = [extra(step) for step in range(len(gradients))]
        found = unsound(rule, Problem(params, gradients, steps, x64=True))
        if found is not None:
            survived[name] = found.kinds
    alone = ("infinity",)
    assert survived == {"clip": alone, "rprop": alone, "sign_sgd": alone}


@pytest.mark.parametrize("rule", [SKIPPING, rules.zero_nans()], ids=str)
def test_every_variant_shows(rule):
    good, bad = np.ones(2), np.array([np.nan, 1.0])
    sequence = [good, bad, good, bad, np.array([np.inf, 1.0]), bad, bad, good]
    ran = {}
    for text, settings in {"plain": {}, **rule.variants}.items():
        one, state, done = rule.replace(**settings), None, []
        for step, gradient in enumerate(sequence):
            updates, state = one(gradient, np.zeros(2), state, step)
            done.append((updates.tolist(), str(state)))
        ran[text] = str(done)
    assert len(set(ran.values())) == 1 + len(rule.variants)


def test_a_count_that_begins_anew_where_a_step_is_let_through():
    # as https://github.com/google-deepmind/optax/pull/1746 wants it, unlike optax 0.2.8
    report = check_update(
        optax.apply_if_finite(ADAM, 2), PARAMS, rule=SKIPPING.replace(restarts=True)
    )
    assert report.state_field == "notfinite_count"
    assert report.first_wrong_step == 9
    assert report.matches == "with restarts=False"


def test_a_sequence_of_ones_own_may_have_nan():
    gradients = [jax.tree.map(lambda p, k=k: jnp.cos(p + k), PARAMS) for k in range(5)]
    gradients[2] = spoiled(gradients[2], np.nan)
    tx = optax.apply_if_finite(ADAM, 2)
    options = {"gradients": gradients}
    assert check_update(tx, PARAMS, rule=SKIPPING, **options).passed
    report = check_update(ADAM, PARAMS, rule=SKIPPING, **options)
    assert report.first_wrong_step == 2
    # momentum that has seen NaN has it for good, and the rule says so too
    sgd = check_update(optax.sgd(0.1), PARAMS, rule=rules.sgd(0.1), **options)
    assert sgd.verdict is Verdict.CORRECT, str(sgd)


@pytest.mark.parametrize(
    ("tx", "nan", "infinity"),
    [
        (optax.sgd(0.1), "that element, in that step alone", "that element, in that"),
        (ADAM, "that element, from then on", "that element, from then on"),
        (optax.lamb(0.1), "its leaf, from then on", "its leaf, from then on"),
        (
            optax.chain(optax.clip_by_global_norm(1.0), ADAM),
            "3 of 3 leaves, from then on",
            "that element, from then on",
        ),
        (optax.apply_if_finite(ADAM, 1), "skips the step", "skips the step"),
        (
            optax.chain(optax.zero_nans(), ADAM),
            "takes that element as zero",
            "that element, from then on",
        ),
        (optax.clip(1.0), "that element, in that step alone", "finite updates"),
    ],
    ids=["sgd", "adam", "lamb", "clipped", "skipping", "zeroing", "clip"],
)
def test_the_screen_says_what_a_bad_step_does(tx, nan, infinity):
    found = dict(check_update(tx).properties)
    assert nan in found["NaN in a gradient"]
    assert infinity in found["infinity in a gradient"]
