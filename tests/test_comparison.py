"""The comparison of one leaf: arithmetic of tolerances, and the algebra of verdicts."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import jaxcheck
from jaxcheck.gradients.comparison import Comparison, Lane, Tolerances, resolution_of

EPS = float(np.finfo(np.float64).eps)


def comparison(autodiff, numerical, bar=0.0, size=0.0, method="exhaustive", **more):
    autodiff = np.array(autodiff, float)
    count = len(autodiff)
    full = {
        "numerical": numerical,
        "bar": bar,
        "size": size,
        "curvature": 0.0,
        "displacement": 1.0,
        "expected": 0.0,
        **more,
    }
    arrays = {
        k: np.broadcast_to(np.array(v, float), count).copy() for k, v in full.items()
    }
    lanes = [Lane(lo=k, hi=k + 1) for k in range(count)]
    return Comparison(method=method, lanes=lanes, autodiff=autodiff, **arrays)


def tolerances(rounding, rtol, atol):
    return Tolerances(eps=EPS, rounding=rounding, rtol=rtol, atol=atol)


def test_tolerance_is_the_sum_of_its_parts():
    c = comparison([0.0], [-3.0], bar=0.5, size=2.0, displacement=-0.25)
    wanted = 0.5 + 8 * EPS * 2.0 + 1e-2 * 3.0 + 1e-1 * 0.25
    assert c.tolerance(tolerances(EPS, 1e-2, 1e-1))[0] == pytest.approx(
        wanted, rel=1e-14
    )


def test_a_probe_whose_change_is_small_by_chance_has_the_tolerance_of_its_gradient():
    c = comparison([1.0e-3], [1.0e-3 + 1.9e-6], expected=2.0)
    assert len(c.disagreeing(tolerances(EPS, 1e-6, 0.0))) == 0
    assert len(c.disagreeing(tolerances(EPS, 0.9e-6, 0.0))) == 1


def test_a_norm_neither_underflows_nor_overflows():
    for size in (1e-200, 1e200):
        c = comparison([3 * size, 4 * size], [3 * size, 3.5 * size])
        assert c.relative_error()[0] == pytest.approx(0.1)


def test_disagreements_come_worst_first():
    c = comparison([1.0, 1.3, 1.0, 2.0, 1.1], [1.0] * 5, bar=0.05)
    assert c.disagreeing(tolerances(EPS, 0.0, 0.0)).tolist() == [3, 1, 4]


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("field", ["autodiff", "numerical", "bar"])
def test_what_is_not_finite_never_agrees(bad, field):
    c = comparison([1.0, 1.0, 1.5], [1.0, 1.0, 1.0], bar=0.01)
    if field == "bar" and bad != np.inf:
        getattr(c, field)[0] = np.nan
        c.autodiff[0] = 1.5
    else:
        getattr(c, field)[0] = bad
    if field == "bar" and bad == np.inf:
        return  # an infinite bar claims nothing: it is for the resolution to refuse
    assert c.disagreeing(tolerances(EPS, 1e-6, 0.0)).tolist()[0] == 0


def test_an_infinite_bar_is_not_resolved():
    c = comparison([1.0, 1.0], [1.0, 1.0], bar=[0.0, np.inf])
    assert not c.resolution() < 1


def test_both_nan_is_no_agreement():
    assert (
        len(comparison([np.nan], [np.nan]).disagreeing(tolerances(EPS, 1.0, 1.0))) == 1
    )


def test_nan_is_found_among_many():
    values = np.ones(5000)
    autodiff = values.copy()
    autodiff[4321] = np.nan
    assert comparison(autodiff, values).disagreeing(
        tolerances(EPS, 1e-6, 0)
    ).tolist() == [4321]


def test_resolution_that_is_asked_for_follows_the_precision():
    assert resolution_of(EPS) == 5e-4
    assert resolution_of(2.0**-23) == pytest.approx(200 * 2.0 ** (-46 / 3))
    assert resolution_of(2.0**-7) == 5e-2
    asked = [resolution_of(2.0**-bits) for bits in range(7, 53)]
    assert asked == sorted(asked, reverse=True)


def test_exact_agreement_needs_no_tolerance():
    assert (
        len(comparison([0.0, 2.0], [0.0, 2.0]).disagreeing(tolerances(0.0, 0.0, 0.0)))
        == 0
    )


def test_what_is_settled_is_not_asked_again():
    c = comparison([2.0, 3.0], [1.0, 1.0])
    c.settled[1] = True
    assert c.disagreeing(tolerances(EPS, 0.0, 0.0)).tolist() == [0]


def test_relative_error_is_that_of_the_vectors():
    c = comparison([3.0, 4.0], [3.0, 3.5], bar=[0.3, 0.4])
    error, bar = c.relative_error()
    assert error == pytest.approx(0.5 / 5)
    assert bar == pytest.approx(0.5 / 5)


def test_relative_error_of_nothing():
    assert comparison([0.0], [0.0]).relative_error() == (0.0, 0.0)


def test_a_cancelled_gradient_is_measured_by_what_was_summed():
    c = comparison([0.0], [1e-16], size=1.0)
    assert c.relative_error()[0] == pytest.approx(1e-13)


def test_exhaustive_bound_covers_error_and_bar():
    c = comparison([3.0, 4.0], [3.0, 3.5], bar=[0.0, 0.25])
    assert c.bound(5.0) == (pytest.approx(0.75 / 5), 1.0)


def test_sampled_coordinates_bound_nothing():
    assert comparison([1.0], [1.0], method="sampled").bound(1.0) == (None, None)


def test_directional_bound():
    c = comparison([1.0, 2.0], [1.1, 2.0], bar=[0.0, 0.2], method="directional")
    bound, confidence = c.bound(100.0)
    # (sqrt(2) t)^2 = 1 - confidence
    factor = math.sqrt(2) / math.sqrt(1 - confidence)
    assert confidence == 0.999
    assert bound == pytest.approx(factor * 0.2 / 100.0)


@pytest.mark.parametrize("size", [1, 2, 30])
def test_directional_bound_is_true(size):
    """Wrong gradients of known error: the bound lies below it in at most 1 of 1,000."""
    rng = np.random.default_rng(size)
    missed, trials = 0, 20_000
    gradient = np.ones(size)
    error = np.zeros(size)
    error[: min(size, 2)] = 1e-3
    truth = float(np.linalg.norm(error) / np.linalg.norm(gradient))
    for _ in range(trials):
        u = rng.choice([-1.0, 1.0], (2, size)) * rng.uniform(0.5, 1.5, (2, size))
        c = comparison(u @ (gradient + error), u @ gradient, method="directional")
        missed += c.bound(float(np.linalg.norm(gradient)))[0] < truth * 0.999
    assert missed <= trials * 1e-3 + 4 * math.sqrt(trials * 1e-3)


def test_extending_joins_everything():
    one = comparison([1.0], [2.0], bar=0.5)
    two = comparison([3.0, 4.0], [5.0, 6.0])
    two.settled[0] = True
    both = one.extended(two)
    assert len(both) == 3
    assert both.autodiff.tolist() == [1, 3, 4]
    assert both.numerical.tolist() == [2, 5, 6]
    assert both.settled.tolist() == [False, True, False]


def test_zero_up_to_rounding():
    assert comparison([1e-16], [1e-17], bar=1e-16, size=1.0).is_zero(EPS)
    assert not comparison([1e-3], [0.0], size=1.0).is_zero(EPS)
    assert not comparison([0.0], [1e-3], bar=1e-6, size=1.0).is_zero(EPS)


@given(
    # numbers whose squares, in any of the units, are neither subnormal nor zero
    st.lists(
        st.floats(-1e3, 1e3).map(lambda x: x if abs(x) > 1e-100 else 0.0),
        min_size=1,
        max_size=8,
    ),
    st.integers(-100, 100),
)
def test_agreement_does_not_depend_on_units(values, power):
    factor = 2.0**power
    values = np.array(values)
    one = comparison(values, values[::-1].copy(), bar=0.25, size=np.abs(values))
    other = comparison(
        factor * values,
        factor * values[::-1],
        bar=factor * 0.25,
        size=factor * np.abs(values),
    )
    found = [c.disagreeing(tolerances(EPS, 1e-6, 0.0)).tolist() for c in (one, other)]
    assert found[0] == found[1]
    assert one.relative_error() == pytest.approx(other.relative_error(), rel=1e-12)


# -- algebra of whole verdicts


@jax.custom_jvp
def _wrong(x):
    return jnp.sin(x)


_wrong.defjvps(lambda t, out, x: 1.001 * jnp.cos(x) * t)

W = np.linspace(0.5, 1.5, 4, dtype=np.float32)


def loss(p):
    return jnp.sum(_wrong(p["bad"])) + jnp.sum(
        jnp.exp(p["good"]) * jnp.sum(p["flat"] ** 2)
    )


def params():
    return {"bad": W, "good": W[:2] / 4, "flat": W[1:].reshape(3, 1)}


def verdicts(report):
    return {leaf.path: leaf.verdict.value for leaf in report.leaves}


WANTED = {"['bad']": "wrong", "['good']": "correct", "['flat']": "correct"}
MODES = pytest.mark.parametrize(
    "mode",
    [
        "directional",
        pytest.param("exhaustive", marks=pytest.mark.slow),
        pytest.param("sampled", marks=pytest.mark.slow),
    ],
)


@MODES
def test_jit_changes_no_verdict(mode):
    for function in (loss, jax.jit(loss), jax.jit(jax.checkpoint(loss))):
        assert verdicts(jaxcheck.check(function, params(), mode=mode)) == WANTED


@pytest.mark.slow
@MODES
def test_order_of_leaves_changes_no_verdict(mode):
    names = sorted(params())
    for order in ([0, 1, 2], [2, 0, 1], [1, 2, 0]):
        renamed = {f"{'abc'[k]}": params()[names[i]] for k, i in enumerate(order)}
        back = {names[i]: f"{'abc'[k]}" for k, i in enumerate(order)}
        report = jaxcheck.check(
            lambda p, back=back: loss({n: p[back[n]] for n in back}), renamed, mode=mode
        )
        found = verdicts(report)
        for name, new in back.items():
            assert found[f"['{new}']"] == WANTED[f"['{name}']"]


@pytest.mark.slow
@settings(max_examples=6)
@given(power=st.integers(-40, 40), sign=st.sampled_from([1.0, -1.0]))
def test_verdict_is_linear_in_the_loss(power, sign):
    factor = np.float32(sign * 2.0**power)
    # a traced factor, so that one program serves all of them
    report = jaxcheck.check(lambda p, c: c * loss(p), params(), jnp.float32(factor))
    assert verdicts(report) == WANTED
    (bad,) = (leaf for leaf in report.leaves if leaf.path == "['bad']")
    assert bad.relative_error == pytest.approx(1e-3, rel=1e-2)


@pytest.mark.slow
@settings(max_examples=5)
@given(offset=st.sampled_from([0.0, 1.0, -1.0, 1000.0, -4096.0]))
def test_a_constant_beside_the_loss_changes_no_verdict(offset):
    report = jaxcheck.check(lambda p, c: c + loss(p), params(), jnp.float32(offset))
    assert verdicts(report) == WANTED
