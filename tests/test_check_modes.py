"""Modes, samples, directions, budget, key and tolerances of ``check``."""

from __future__ import annotations

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxcheck
from jaxcheck import InvalidInputError, Verdict
from jaxcheck.gradients.differences import NOISE_POINTS
from tests.catalogue.planting import edited

MODES = ("exhaustive", "sampled", "directional", "auto")


def params(*sizes):
    return {
        f"leaf{k}": np.linspace(0.1 + 0.05 * k, 1.1, n, dtype=np.float32)
        for k, n in enumerate(sizes)
    }


def loss(p):
    leaves = jax.tree_util.tree_leaves(p)
    return sum(jnp.mean(jnp.sin(1.3 * x) + x**2) for x in leaves)


def scaled_rule(factor):
    return edited(lambda x, cotangent: factor * cotangent)


def scaled(factor):
    return lambda p: loss(jax.tree_util.tree_map(scaled_rule(factor), p))


def wrong_at(k, factor=2.0):
    def rule(x, cotangent):
        return cotangent.at[k].multiply(factor)

    return lambda p: loss({**p, "leaf0": edited(rule)(p["leaf0"])})


# ---- what is compared ----------------------------------------------------------------


def test_exhaustive_compares_every_coordinate():
    report = jaxcheck.check(loss, params(1, 70, 33), mode="exhaustive")
    assert [leaf.checked for leaf in report.leaves] == [1, 70, 33]
    assert {leaf.method for leaf in report.leaves} == {"exhaustive"}
    assert {leaf.confidence for leaf in report.leaves} == {1.0}
    assert report.mode == "exhaustive"
    assert report.evaluations >= 2 * (1 + 70 + 33)


@pytest.mark.parametrize("samples", [None, 1, 7, 1000])
def test_sampled_compares_some_of_every_leaf(samples):
    report = jaxcheck.check(loss, params(1, 70, 33), mode="sampled", samples=samples)
    wanted = 20 if samples is None else samples
    assert [leaf.checked for leaf in report.leaves] == [
        min(wanted, n) for n in (1, 70, 33)
    ]
    assert {leaf.method for leaf in report.leaves} == {"sampled"}


def test_directional_probes_all_of_every_leaf():
    report = jaxcheck.check(loss, params(1, 70, 33), mode="directional", directions=3)
    assert [leaf.checked for leaf in report.leaves] == [1, 70, 33]
    assert {leaf.method for leaf in report.leaves} == {"directional"}
    few = jaxcheck.check(loss, params(1, 70, 33), mode="directional", directions=1)
    assert few.evaluations < report.evaluations


def test_auto_is_exhaustive_while_that_is_cheap():
    small = jaxcheck.check(loss, params(40, 2))
    large = jaxcheck.check(loss, params(60_000, 2))
    assert {leaf.method for leaf in small.leaves} == {"exhaustive"}
    assert {leaf.method for leaf in large.leaves} == {"directional"}
    assert large.evaluations < 1_000
    assert small.mode == large.mode == "auto"


def test_auto_goes_by_the_budget():
    assert (
        jaxcheck.check(loss, params(40), budget=2_000).leaves[0].method == "exhaustive"
    )
    report = jaxcheck.check(loss, params(40), budget=90)
    assert report.leaves[0].method == "directional"


@pytest.mark.parametrize(
    ("size", "mode"),
    [
        (1, "auto"),
        (50, "exhaustive"),
        (50, "directional"),
        (3_000, "exhaustive"),
        (3_000, "auto"),
    ],
)
def test_one_wrong_coordinate_is_found_and_named(size, mode):
    k = size // 3
    report = jaxcheck.check(wrong_at(k), params(size, 5), mode=mode)
    first, second = report.leaves
    assert first.verdict is Verdict.WRONG, str(report)
    assert second.verdict is Verdict.CORRECT, str(report)
    assert first.worst.index == (k,), str(report)
    assert first.worst.autodiff == pytest.approx(2 * first.worst.numerical, rel=1e-4)
    assert first.relative_error > 1e-3
    assert report.verdict is Verdict.WRONG


def test_failing_coordinates_are_counted():
    hurt = edited(lambda x, cotangent: cotangent.at[3:8].multiply(1.1))
    broken = lambda p: loss({"leaf0": hurt(p["leaf0"])})  # noqa: E731
    report = jaxcheck.check(broken, params(20), mode="exhaustive")
    assert report.leaves[0].failing == 5
    assert "5 of 20" in str(report)


def test_every_leaf_is_probed_even_the_smallest():
    """A tiny leaf beside a huge one is as visible as any."""
    tiny = lambda p: jnp.sum(jnp.sin(p["big"])) + scaled_rule(1.01)(p["a"]) * 1e-6  # noqa: E731
    big = {"a": np.float32(1e-5), "big": np.linspace(1, 1e3, 5_000, dtype=np.float32)}
    report = jaxcheck.check(tiny, big, mode="directional")
    verdicts = {leaf.path: leaf.verdict for leaf in report.leaves}
    assert verdicts["['a']"] is not Verdict.CORRECT, str(report)
    assert verdicts["['big']"] is not Verdict.WRONG, str(report)


# ---- budget --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mode", "budget"),
    [
        *((mode, 60) for mode in MODES),
        ("exhaustive", 200),
        ("directional", 1_000),
    ],
)
def test_a_right_gradient_costs_no_more_than_the_budget(mode, budget):
    report = jaxcheck.check(
        loss,
        params(9, 3),
        mode=mode,
        budget=budget,
        samples=3 if budget < 200 else None,
    )
    assert report.verdict is Verdict.CORRECT, str(report)
    # the native run, twice, the reading, and the points that noise is measured at
    fixed = 2 + 1 + 2 * NOISE_POINTS
    assert report.evaluations <= budget + fixed


@pytest.mark.parametrize("mode", MODES)
def test_a_budget_that_is_too_small_says_what_would_do(mode):
    with pytest.raises(InvalidInputError) as caught:
        jaxcheck.check(loss, params(50, 50, 50), mode=mode, budget=3)
    words = str(caught.value).replace(",", "").split()
    needed = [int(word) for word in words if word.isdigit() and int(word) > 3]
    assert "budget=3" in str(caught.value)
    assert needed
    # the number that it asks for is enough
    jaxcheck.check(loss, params(50, 50, 50), mode=mode, budget=max(needed))


def test_evaluations_are_counted_honestly():
    """Every call of the loss that the machine makes, the padding of batches aside."""
    calls = itertools.count()

    @jax.custom_vjp
    def counted(x):
        def host(x):
            next(calls)
            return x

        out = jax.ShapeDtypeStruct(x.shape, x.dtype)
        return jax.pure_callback(host, out, x, vmap_method="sequential")

    counted.defvjp(lambda x: (counted(x), None), lambda _, ct: (ct,))
    report = jaxcheck.check(lambda p: counted(jnp.sum(p**2)), np.float32([0.5, 1.5]))
    made = next(calls)
    assert report.evaluations <= made
    # a padded batch for each of a handful of questions, and for each point of the noise
    assert made <= report.evaluations + (10 + 2 * NOISE_POINTS) * 64


# ---- key -----------------------------------------------------------------------------


def without_time(report):
    return {k: v for k, v in report.to_dict().items() if k != "seconds"}


@pytest.mark.parametrize("mode", ["sampled", "directional"])
def test_a_key_reproduces_the_report_typed_or_old(mode):
    first, second, old = (
        jaxcheck.check(loss, params(50, 3), mode=mode, key=kind(5))
        for kind in (jax.random.key, jax.random.key, jax.random.PRNGKey)
    )
    assert without_time(first) == without_time(second) == without_time(old)
    assert first.key_data == tuple(int(x) for x in jax.random.PRNGKey(5))


@pytest.mark.parametrize("mode", ["sampled", "directional"])
def test_another_key_gives_other_probes(mode):
    first, second = (
        jaxcheck.check(scaled(1.5), params(500), mode=mode, key=jax.random.key(k))
        for k in (1, 2)
    )
    assert first.key_data != second.key_data
    assert first.verdict is second.verdict is Verdict.WRONG
    assert first.leaves[0].relative_error != second.leaves[0].relative_error


def test_the_default_key_is_key_zero():
    report = jaxcheck.check(loss, params(5))
    assert report.key_data == (0, 0)
    assert "jax.random.key(0)" in str(report)


@pytest.mark.parametrize("impl", ["rbg", "unsafe_rbg"])
def test_keys_of_other_generators(impl):
    key = jax.random.key(3, impl=impl)
    report = jaxcheck.check(loss, params(50), mode="directional", key=key)
    assert report.verdict is Verdict.CORRECT
    assert report.key_data == tuple(int(x) for x in jax.random.key_data(key))


@pytest.mark.parametrize("mode", ["sampled", "directional"])
def test_another_leaf_does_not_change_the_probes_of_a_leaf(mode):
    def first_only(p):
        return jnp.mean(jnp.sin(scaled_rule(1.5)(p["leaf0"])))

    alone = jaxcheck.check(first_only, params(200), mode=mode)
    beside = jaxcheck.check(first_only, params(200, 7), mode=mode)
    # the worst coordinate and its numbers come from the same draws
    assert alone.leaves[0].relative_error == pytest.approx(
        beside.leaves[0].relative_error, rel=1e-6
    )
    assert alone.leaves[0].worst.index == beside.leaves[0].worst.index


# ---- tolerances ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "mode"), [(1, "directional"), (300, "exhaustive"), (300, "directional")]
)
def test_rtol_is_relative_to_the_derivative(mode, size):
    for error, rtol, right in (
        (1e-3, 1e-2, True),
        (1e-3, 1e-4, False),
        (1e-4, 1e-3, True),
        (1e-4, 1e-6, False),
    ):
        report = jaxcheck.check(
            scaled(1 + error), {"leaf0": params(size)["leaf0"]}, rtol=rtol, mode=mode
        )
        wanted = Verdict.CORRECT if right else Verdict.WRONG
        assert report.verdict is wanted, str(report)


@pytest.mark.parametrize("size", [1, 40])
def test_atol_is_in_units_of_the_gradient(size):
    """|D - g| = 0.01 in every coordinate, whatever the step was."""
    shifted = edited(lambda x, cotangent: cotangent + 0.01)
    shifted_loss = lambda p: jnp.sum(jnp.sin(shifted(p)))  # noqa: E731
    p = np.linspace(10.0, 11.0, size, dtype=np.float32)
    for atol, right in ((0.02, True), (0.005, False), (0.0, False)):
        report = jaxcheck.check(shifted_loss, p, atol=atol, mode="exhaustive")
        wanted = Verdict.CORRECT if right else Verdict.WRONG
        assert report.verdict is wanted, str(report)


def test_zero_tolerances_do_not_alarm():
    """The error bars alone decide then."""
    report = jaxcheck.check(loss, params(20), rtol=0.0, atol=0.0)
    assert report.verdict is Verdict.CORRECT, str(report)


def test_a_gradient_that_is_zero_by_mistake_is_wrong():
    report = jaxcheck.check(scaled(0.0), params(20, 1))
    assert [leaf.verdict for leaf in report.leaves] == [Verdict.WRONG] * 2
    assert all(
        leaf.relative_error == pytest.approx(1, rel=1e-3) for leaf in report.leaves
    )


def test_a_gradient_where_there_should_be_none_is_wrong():
    added = edited(lambda x, cotangent: cotangent + 1.0)
    report = jaxcheck.check(lambda p: jnp.sum(added(p) * 0 + 2.0), np.float32([1, 2]))
    assert report.verdict is Verdict.WRONG, str(report)


# ---- bounds --------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["exhaustive", "directional"])
def test_bound_and_confidence_are_sane(mode):
    report = jaxcheck.check(loss, params(1, 400), mode=mode)
    for leaf in report.leaves:
        assert leaf.relative_error <= leaf.bound < 1e-3
        assert leaf.error_bar <= leaf.bound
        if mode == "exhaustive":
            assert leaf.confidence == 1.0
        else:
            assert 0.9 <= leaf.confidence < 1.0
            assert f"{100 * leaf.confidence:g}" in str(report)


def test_the_bound_holds():
    """Within a generous rtol the leaf is CORRECT, and the bound admits the error."""
    for key in range(10):
        report = jaxcheck.check(
            scaled(1 + 1e-3),
            params(300),
            mode="directional",
            rtol=0.05,
            directions=4,
            key=jax.random.key(key),
        )
        assert report.verdict is Verdict.CORRECT, str(report)
        assert report.leaves[0].bound >= 1e-3 * 0.99


def test_more_directions_tighten_the_bound():
    few, many = (
        jaxcheck.check(loss, params(300), mode="directional", directions=k)
        for k in (2, 12)
    )
    assert many.leaves[0].bound < few.leaves[0].bound


# ---- progress ------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["exhaustive", "directional"])
def test_progress_counts_up_to_its_total(mode):
    calls = []
    jaxcheck.check(
        loss,
        params(300),
        mode=mode,
        progress=lambda done, total: calls.append((done, total)),
    )
    done, totals = zip(*calls, strict=True)
    assert list(done) == sorted(done)
    assert all(d <= t for d, t in calls)
    assert done[-1] == totals[-1]
