"""Kinks: at a tie the interval counts, near one the differences go below it."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxcheck
from jaxcheck import Verdict

MODES = pytest.mark.parametrize("mode", ["exhaustive", "directional"])


def kinks(report):
    return [f for f in report.findings if f.kind == "kink"]


@MODES
def test_relu_networks_at_generic_points_are_correct(mode):
    for seed in range(10):
        rng = np.random.default_rng(seed)
        params = [rng.normal(size=(8, 8)).astype(np.float32) for _ in range(3)]
        x = rng.normal(size=(4, 8)).astype(np.float32)

        def loss(params, x):
            for w in params:
                x = jax.nn.relu(x @ w)
            return jnp.mean(x)

        report = jaxcheck.check(loss, params, x, mode=mode)
        assert report.verdict is Verdict.CORRECT, str(report)


@pytest.mark.parametrize(
    ("fn", "slopes"),
    [
        (jax.nn.relu, "0 and 1"),
        (jnp.abs, "-1 and 1"),
        (lambda x: jnp.maximum(x, 2 * x), "1 and 2"),
        (lambda x: jnp.maximum(x, -3 * x), "-3 and 1"),
    ],
)
def test_an_exact_tie_is_a_kink_with_its_interval(fn, slopes):
    report = jaxcheck.check(fn, np.float32(0.0))
    assert report.verdict is Verdict.CORRECT, str(report)
    (finding,) = kinks(report)
    assert f"between the one-sided slopes {slopes}" in finding.message
    assert finding.site is not None


def test_a_value_outside_the_interval_is_wrong():
    wrong = jax.custom_jvp(jax.nn.relu)
    wrong.defjvps(lambda t, out, x: jnp.where(x == 0, 1.5, x > 0) * t)
    report = jaxcheck.check(wrong, np.float32(0.0))
    assert report.verdict is Verdict.WRONG
    assert "outside its one-sided slopes 0 and 1" in str(report)


@MODES
@pytest.mark.parametrize("distance", [1e-6, -1e-6, 3e-6])
def test_close_to_a_switch_is_correct_and_the_switch_is_named(mode, distance):
    def loss(w):
        shifted = w - 1.0
        return jnp.sum(jnp.maximum(shifted, 0.25 * shifted) * 3)  # the switch

    w = np.array([0.2, 1.0 + distance, 1.7, 2.4])
    with jax.enable_x64(True):
        report = jaxcheck.check(loss, w, mode=mode)
    assert report.verdict is Verdict.CORRECT, str(report)
    (finding,) = kinks(report)
    lines, first = inspect.getsourcelines(loss)
    where = first + next(k for k, line in enumerate(lines) if "# the switch" in line)
    assert finding.site.primitive == "max"
    assert (finding.site.file, finding.site.line) == (__file__, where)
    if mode == "exhaustive":
        stated = float(finding.message.split("moves by ")[1].split(" ")[0])
        assert stated == pytest.approx(abs(distance), rel=0.1)


def test_the_switch_that_is_named_lies_beyond_the_point():
    # abs is at its tie, and the loss does not notice: only the tolerance is a switch
    def loss(x):
        asymmetry = jnp.abs(x[0] - x[1])
        return jnp.where(asymmetry < 1e-7, jnp.sum(x**2), -jnp.inf)

    report = jaxcheck.check(loss, np.full(2, 0.7, np.float32))
    assert report.verdict is Verdict.CORRECT, str(report)
    (finding,) = kinks(report)
    assert finding.site.primitive == "lt"
    assert "lt switches when the leaf moves by 1.0e-07" in finding.message


@MODES
def test_a_wrong_rule_beside_a_switch_is_still_wrong(mode):
    wrong = jax.custom_jvp(jax.nn.relu)
    wrong.defjvps(lambda t, out, x: jnp.where(x > 0, 1.001, 0.0) * t)
    w = np.array([0.2, 1.0 + 1e-6, 1.7, 2.4])
    with jax.enable_x64(True):
        report = jaxcheck.check(lambda w: jnp.sum(wrong(w - 1.0)), w, mode=mode)
    assert report.verdict is Verdict.WRONG


def test_far_from_every_switch_nothing_is_said():
    w = np.array([0.2, 0.9, 1.7], np.float32)
    report = jaxcheck.check(lambda w: jnp.sum(jax.nn.relu(w - 1.0)), w)
    assert report.passed
    assert not report.findings


def test_a_step_function_has_nothing_to_compare():
    flat = jaxcheck.check(lambda x: jnp.floor(x) * x, np.float32(1.5))
    assert flat.verdict is Verdict.CORRECT
    jump = jaxcheck.check(lambda x: jnp.floor(x) * x, np.float32(2.0))
    assert jump.verdict is Verdict.INCONCLUSIVE
    assert "discontinuity" in {f.kind for f in jump.findings}


@MODES
@pytest.mark.parametrize("distance", [1e-5, 1e-6, -1e-7])
def test_a_relu_layer_with_one_unit_close_to_its_switch(mode, distance):
    rng = np.random.default_rng(0)
    w, x = rng.normal(size=(8, 8)), rng.normal(size=(1, 8))
    b = -(x @ w)[0] + rng.normal(size=8)
    b[3] = -(x @ w)[0, 3] + distance

    def loss(p, x):
        return jnp.sum(jax.nn.relu(x @ p["w"] + p["b"]) * jnp.arange(1.0, 9.0))

    with jax.enable_x64(True):
        report = jaxcheck.check(loss, {"w": w, "b": b}, x, mode=mode)
    assert report.verdict is Verdict.CORRECT, str(report)
    sites = {(f.site.primitive, f.site.file) for f in kinks(report)}
    assert sites == {("max", __file__)}
