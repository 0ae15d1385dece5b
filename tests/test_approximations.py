"""Functions whose float32 program is an approximation are right; faults are not."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.scipy import special

import jaxcheck
from jaxcheck import Verdict

POINTS = {
    "erfcx": (special.erfcx, [5.1, 6.3, 7.7, 11.7]),
    "fresnel": (lambda x: sum(special.fresnel(x)), [-1.9, -1.25, -0.6, 0.05, 0.7, 2.0]),
    "hyp2f1": (
        lambda x: special.hyp2f1(1.3, 0.7, 2.1, x),
        [-0.7, -0.3, 0.2, 0.6, 0.75],
    ),
    "log_ndtr": (special.log_ndtr, [-8.56, 1.0, -25.3]),
}


@pytest.mark.parametrize(
    "mode", ["exhaustive", pytest.param("directional", marks=pytest.mark.slow)]
)
@pytest.mark.parametrize("name", POINTS)
def test_an_approximation_in_float32_is_correct(name, mode):
    function, points = POINTS[name]
    x = jnp.array(points, jnp.float32)
    report = jaxcheck.check(lambda x: jnp.sum(function(x)), x, mode=mode)
    assert report.verdict is Verdict.CORRECT, str(report)


@pytest.mark.slow
def test_it_is_said():
    function, points = POINTS["hyp2f1"]
    x = jnp.array(points, jnp.float32)
    report = jaxcheck.check(lambda x: jnp.sum(function(x)), x)
    (finding,) = [f for f in report.findings if f.kind == "precision_loss"]
    assert "approximates a function in float32" in finding.message


def scaled(factor):
    @jax.custom_jvp
    def sine(x):
        return jnp.sin(x)

    sine.defjvps(lambda t, out, x: factor(x.dtype) * jnp.cos(x) * t)
    return lambda x: jnp.sum(sine(x))


@pytest.mark.parametrize("mode", ["exhaustive", "directional"])
def test_a_fault_as_small_as_an_approximation_is_wrong(mode):
    x = np.linspace(0.1, 1.4, 9, dtype=np.float32)
    right = jaxcheck.check(scaled(lambda dtype: 1.0), x, mode=mode)
    wrong = jaxcheck.check(scaled(lambda dtype: 1.0 + 2e-5), x, mode=mode)
    assert right.verdict is Verdict.CORRECT, str(right)
    assert wrong.verdict is Verdict.WRONG, str(wrong)


def test_a_rule_that_is_wrong_in_float32_only_is_wrong():
    x = np.linspace(0.1, 1.4, 9, dtype=np.float32)
    loss = scaled(lambda dtype: 1.001 if dtype == jnp.float32 else 1.0)
    assert jaxcheck.check(loss, x).verdict is Verdict.WRONG


def test_a_sign_read_from_bits_lowers_nothing():
    # gamma asks jnp.signbit, which looks at the bits of the native value
    report = jaxcheck.check(
        lambda x: jnp.sum(special.gamma(x)), jnp.array([1.3, 2.1], jnp.float32)
    )
    assert report.passed
    assert not report.findings


def test_a_value_made_of_bits_is_lowered():
    def loss(x):
        bits = jax.lax.bitcast_convert_type(x, jnp.int32)
        return jnp.sum(jax.lax.bitcast_convert_type(bits, jnp.float32) * 2 + x)

    report = jaxcheck.check(loss, jnp.array([1.3, 2.1], jnp.float32))
    assert "lowered_precision" in {f.kind for f in report.findings}
    assert report.leaves[0].worst.error_bar > 1e-6


def test_a_gradient_that_cancels_to_zero_is_not_imprecise():
    def loss(p):
        logits = p["w"] + p["shift"]  # softmax does not see the shift
        return jnp.sum(jax.nn.softmax(logits) * jnp.arange(64.0))

    w = np.linspace(-3, 3, 64, dtype=np.float32)
    report = jaxcheck.check(loss, {"w": w, "shift": np.float32(0.3)})
    assert report.passed, str(report)
    assert "precision_loss" not in {f.kind for f in report.findings}


def test_failing_scalars_of_a_complex_leaf_are_counted_once():
    def loss(z):
        return jnp.sum(jnp.real(wrong(z)) + 2 * jnp.imag(wrong(z)))

    @jax.custom_jvp
    def wrong(z):
        return jnp.sin(z)

    wrong.defjvps(lambda t, out, z: -jnp.cos(z) * t)
    report = jaxcheck.check(loss, jnp.array([0.5 + 0.5j, 1.0 - 0.3j], jnp.complex64))
    assert report.leaves[0].failing == 2
    assert "2 of 2 checked coordinates disagree" in str(report)
