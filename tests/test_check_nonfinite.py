"""NaN and infinity, in the loss or in any gradient, are never CORRECT."""

from __future__ import annotations

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxcheck
from jaxcheck import Verdict
from tests.catalogue.planting import edited

POSITIONS = {"first": 0.0, "middle": 0.5, "last": 1.0}
BAD = {"nan": np.nan, "inf": np.inf, "-inf": -np.inf}


def leaf(size, dtype=np.float32):
    return np.linspace(0.2, 1.2, size).astype(dtype)


def at(position, size):
    return min(int(POSITIONS[position] * size), size - 1)


def kinds(report):
    return {finding.kind for finding in report.findings}


def assert_not_finite(report, path):
    """The leaf is not CORRECT, and a finding names it; the others are untouched."""
    assert report.verdict in (Verdict.WRONG, Verdict.INCONCLUSIVE), str(report)
    assert not report.passed
    findings = [f for f in report.findings if f.kind == "nan_gradient"]
    assert path in {finding.leaf for finding in findings}, str(report)
    for each in report.leaves:
        wanted = each.path != path
        assert (each.verdict is Verdict.CORRECT) is wanted, str(report)
    report.to_json()
    assert repr(report)


@pytest.mark.parametrize(
    ("bad", "size", "position"),
    [
        ("nan", 1, "first"),
        ("nan", 100, "last"),
        ("nan", 4096, "last"),
        ("nan", 5000, "middle"),
        ("nan", 100_000, "first"),
        ("inf", 100, "middle"),
        ("-inf", 5000, "first"),
    ],
)
def test_one_bad_element_of_a_gradient(bad, size, position):
    """A rule gives one NaN among thousands of right numbers."""
    k = at(position, size)
    hurt = edited(lambda x, cotangent: cotangent.at[k].set(BAD[bad]))
    params = {"b": np.float32([0.5, 0.7]), "w": leaf(size)}
    loss = lambda p: jnp.mean(jnp.sin(hurt(p["w"]))) + jnp.sum(p["b"] ** 2)  # noqa: E731
    report = jaxcheck.check(loss, params)
    assert_not_finite(report, "['w']")
    (worst,) = (each.worst for each in report.leaves if each.path == "['w']")
    assert worst.index == (k,), str(report)
    assert not np.isfinite(worst.autodiff)


@pytest.mark.parametrize(
    ("size", "mode"),
    [(1, "sampled"), (1, "directional"), (100, "exhaustive"), (2000, "directional")],
)
def test_a_gradient_of_nothing_but_nan(size, mode):
    hurt = edited(lambda x, cotangent: cotangent * jnp.nan)
    params = {"b": leaf(3), "w": leaf(size)}
    loss = lambda p: jnp.mean(jnp.sin(hurt(p["w"]))) + jnp.sum(p["b"] ** 2)  # noqa: E731
    assert_not_finite(jaxcheck.check(loss, params, mode=mode), "['w']")


@pytest.mark.parametrize("mode", ["exhaustive", "sampled", "directional"])
def test_sampling_does_not_have_to_hit_it(mode):
    hurt = edited(lambda x, cotangent: cotangent.at[1234].set(jnp.nan))
    loss = lambda p: jnp.mean(jnp.sin(hurt(p)))  # noqa: E731
    options = {"samples": 1} if mode == "sampled" else {}
    report = jaxcheck.check(loss, leaf(2_000), mode=mode, **options)
    assert_not_finite(report, "")


@pytest.mark.parametrize("precision", ["float64", "native"])
def test_nan_in_native_differences(precision):
    hurt = edited(lambda x, cotangent: cotangent.at[7].set(jnp.nan))
    loss = lambda p: jnp.mean(jnp.sin(hurt(p)))  # noqa: E731
    assert_not_finite(jaxcheck.check(loss, leaf(20), precision=precision), "")


def test_nan_of_a_complex_leaf():
    hurt = edited(lambda x, cotangent: cotangent.at[2].set(jnp.nan * 1j))
    z = (leaf(5) + 1j * leaf(5)).astype(np.complex64)
    report = jaxcheck.check(lambda p: jnp.sum(jnp.abs(hurt(p)) ** 2), z)
    assert_not_finite(report, "")


def test_the_classical_nan_of_where():
    """Sqrt on the branch that is not taken: NaN by 0 times infinity."""
    loss = lambda p: jnp.sum(jnp.where(p > 0, jnp.sqrt(p), p))  # noqa: E731
    params = jnp.asarray([0.5, -0.3, 0.8])
    report = jaxcheck.check(loss, params)
    assert_not_finite(report, "")
    assert report.verdict is Verdict.WRONG
    assert report.leaves[0].worst.index == (1,)


def test_the_norm_of_zeros():
    """At a kink where autodiff says NaN, NaN is not a subgradient."""
    report = jaxcheck.check(jnp.linalg.norm, jnp.zeros(3))
    assert not report.passed, str(report)


@pytest.mark.parametrize(
    ("size", "position"), [(1, "first"), (100, "last"), (5000, "middle")]
)
def test_overflow_that_only_the_native_gradient_has(size, position):
    """One cotangent is beyond 65504, the end of float16; in float64 it is ordinary."""
    weights = np.full(size, 1.0 / size, np.float32)
    weights[at(position, size)] = 2.0**20
    loss = lambda p, w: jnp.sum(jnp.sin(p).astype(jnp.float32) * w)  # noqa: E731
    report = jaxcheck.check(loss, leaf(size, np.float16), weights)
    assert np.isfinite(report.loss)
    assert not report.passed, str(report)
    assert "nan_gradient" in kinds(report), str(report)


@pytest.mark.parametrize("size", [1, 5000])
def test_half_precision_overflow_in_the_backward_pass(size):
    """A loss scaled up in float16, scaled down in float32: training diverges."""

    def loss(p):
        h = jnp.sin(p) * jnp.float16(2.0**-10)
        return jnp.sum(h.astype(jnp.float32)) * 2.0**40 / size

    report = jaxcheck.check(loss, leaf(size, np.float16))
    assert not report.passed, str(report)
    assert "nan_gradient" in kinds(report), str(report)


LOSSES = {
    "nan": lambda p: jnp.sum(jnp.log(-p)),
    "inf": lambda p: jnp.sum(1 / (p - p)),
    "minus inf": lambda p: jnp.sum(jnp.log(p - p)),
    "nan from the data": lambda p: jnp.sum(p) * jnp.nan,
    "inf minus inf": lambda p: jnp.sum(p * 1e30) * 1e30 - jnp.sum(p * 1e30) * 1e30,
    "native overflow": lambda p: jnp.sum(p * 1e30) ** 2 * 1e-60,
}


@pytest.mark.parametrize(
    ("name", "size", "mode"),
    [
        *((name, 1, "exhaustive") for name in LOSSES),
        ("nan", 5000, "sampled"),
        ("native overflow", 5000, "directional"),
        ("nan from the data", 5000, "directional"),
    ],
)
def test_a_loss_that_is_not_finite(name, size, mode):
    report = jaxcheck.check(LOSSES[name], leaf(size), mode=mode)
    assert report.verdict is Verdict.INCONCLUSIVE, str(report)
    assert "nan_loss" in kinds(report), str(report)
    assert not np.isfinite(report.loss)
    json.loads(report.to_json(), parse_constant=pytest.fail)  # no bare NaN or Infinity
    assert report.relative_difference is None
    assert report.grade is None


def test_a_nan_that_max_would_lose():
    """The NaN is in the loss's data; ``jnp.max`` loses it on some backends."""
    x = np.ones(5000, np.float32)
    x[4097] = np.nan
    report = jaxcheck.check(lambda p, x: jnp.sum(p * x), np.float32(0.5), x)
    assert report.verdict is Verdict.INCONCLUSIVE, str(report)


def test_infinite_only_beside_the_point():
    """The loss is finite here and not a step away: no derivative to compare with."""
    loss = lambda p: jnp.sum(jnp.where(p == 0, 0.0, jnp.inf))  # noqa: E731
    report = jaxcheck.check(loss, jnp.zeros(3))
    assert report.verdict is Verdict.INCONCLUSIVE, str(report)


def test_at_the_edge_of_the_domain():
    """Sqrt at 0 has an infinite slope, and no loss below."""
    report = jaxcheck.check(lambda p: jnp.sum(jnp.sqrt(p)), jnp.asarray([0.0, 1.0]))
    assert not report.passed, str(report)
    assert "nan_gradient" in kinds(report)


def test_numbers_that_are_finite_but_large():
    """1e38 is near the end of float32 and far from the end of float64: no alarm."""
    loss = lambda p: jnp.sum(p * 1e-38) ** 2  # noqa: E731
    report = jaxcheck.check(loss, jnp.asarray([1e38, 2e38, 3e37]))
    assert report.verdict is Verdict.CORRECT, str(report)


def test_masked_infinities_are_no_alarm():
    """Attention's -inf mask, done right."""

    def loss(p):
        scores = p[:, None] * p[None, :]
        mask = jnp.tril(jnp.ones((4, 4), bool))
        weights = jax.nn.softmax(jnp.where(mask, scores, -jnp.inf), axis=-1)
        return jnp.sum(weights @ jnp.sin(p))

    report = jaxcheck.check(loss, leaf(4))
    assert report.verdict is Verdict.CORRECT, str(report)
