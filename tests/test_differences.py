"""Central differences, steps and noise, on numbers that are known exactly."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxcheck.gradients.differences import (
    FIRST_STEPS,
    NOISE_POINTS,
    first_estimate,
    measured_noise,
    noise_spacings,
    step_of,
)

EPS = float(np.finfo(np.float64).eps)
STEP = 2.0**-17


def estimated(fun, x, *, step=STEP, noise=None):
    at = float(fun(np.float64(x)))
    values = np.array([[fun(np.float64(x + s * step)) for s in FIRST_STEPS]])
    own = EPS * abs(at) if noise is None else noise
    estimate = first_estimate(values, at, own, EPS)
    return tuple(
        float(getattr(estimate, n)[0]) for n in ("derivative", "bar", "curvature")
    )


@pytest.mark.parametrize(
    ("fun", "slope"),
    [
        (np.sin, np.cos),
        (np.exp, np.exp),
        (np.log, lambda x: 1 / x),
        (lambda x: x**5, lambda x: 5 * x**4),
        (lambda x: 1e6 + np.sin(x), np.cos),
    ],
)
@pytest.mark.parametrize("x", [0.3, 1.0, 2.7])
def test_derivative_lies_inside_its_bar(fun, slope, x):
    derivative, bar, _ = estimated(fun, x)
    assert abs(derivative / STEP - slope(x)) <= bar / STEP


def test_bar_is_two_thirds_of_the_pair_plus_twice_the_noise():
    derivative, bar, curvature = estimated(lambda x: x**3, 0.0, step=1.0, noise=0.0)
    # D(1) = 1, D(2) = 4, and the values themselves are uncertain by eps
    assert derivative == 1.0
    assert bar == pytest.approx(2.0 + 2 * EPS * 8, rel=1e-12)
    assert curvature == 0.0


def test_noise_enters_the_bar():
    quiet = estimated(np.sin, 1.0, noise=0.0)[1]
    loud = estimated(np.sin, 1.0, noise=1e-3)[1]
    assert loud >= 2e-3
    assert quiet < 1e-10


def test_values_larger_than_at_the_point_count_with_their_own_rounding():
    _, bar, _ = estimated(lambda x: 1e10 * x, 0.0, step=1.0, noise=0.0)
    assert bar >= 2 * EPS * 1e10


def test_curvature_is_the_second_difference():
    assert estimated(np.abs, 0.0, step=0.5)[2] == 1.0
    assert estimated(lambda x: x**2, 3.0, step=0.5)[2] == 0.5


def test_several_lanes_are_independent():
    first = np.array([[1.0, -1, 2, -2], [3.0, -3, 6, -6]])
    both = first_estimate(first, 0.0, 0.0, EPS)
    alone = [first_estimate(row[None], 0.0, 0.0, EPS) for row in first]
    np.testing.assert_array_equal(both.derivative, [1.0, 3.0])
    np.testing.assert_array_equal(both.bar, [float(a.bar[0]) for a in alone])


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("where", range(4))
def test_what_is_not_finite_gives_no_finite_claim(bad, where):
    values = np.array([[1.0, -1.0, 2.0, -2.0]])
    values[0, where] = bad
    estimate = first_estimate(values, 0.0, 0.0, EPS)
    claims = estimate.derivative[0], estimate.bar[0]
    assert not all(np.isfinite(c) for c in claims)


def test_no_lane_at_all():
    assert len(first_estimate(np.zeros((0, 4)), 0.0, 0.0, EPS).derivative) == 0


@given(power=st.integers(-300, 300), x=st.floats(-2, 2))
def test_scaling_the_loss_scales_everything(power, x):
    factor = 2.0**power
    plain = estimated(np.sin, x)
    scaled = estimated(lambda x: factor * np.sin(x), x)
    assert scaled == tuple(factor * part for part in plain)


@given(power=st.integers(-100, 100), x=st.floats(0.25, 2))
def test_units_of_the_parameter_do_not_matter(power, x):
    unit = 2.0**power
    plain = estimated(np.sin, x)
    assert plain == estimated(lambda y: np.sin(y / unit), x * unit, step=STEP * unit)


# -- steps


@given(rms=st.floats(1e-290, 1e290))
def test_step_is_a_power_of_two_near_the_cube_root_of_eps(rms):
    step = step_of(rms, EPS)
    assert math.frexp(step)[0] == 0.5
    assert EPS ** (1 / 3) * rms / 2 <= step * (1 + 1e-12)
    assert step <= EPS ** (1 / 3) * rms * (1 + 1e-12)


@pytest.mark.parametrize("rms", [0.0, float("nan"), float("inf")])
def test_step_without_a_scale_is_that_of_one(rms):
    assert step_of(rms, EPS) == step_of(1.0, EPS)


def test_step_grows_with_eps():
    assert step_of(1.0, 2.0**-23) == 2.0**-8
    assert step_of(1.0, 2.0**-52) == 2.0**-18


# -- noise


@pytest.mark.parametrize("level", [1e-15, 1e-9, 1e-3, 1.0])
def test_noise_level_is_found(level):
    found = []
    for seed in range(200):
        rng = np.random.default_rng(seed)
        values = 3 + 0.1 * np.arange(NOISE_POINTS) * level
        found.append(measured_noise(values + level * rng.normal(size=NOISE_POINTS)))
    offset_rounding = 5e-16
    assert np.median(found) == pytest.approx(level, rel=0.25, abs=offset_rounding)


@pytest.mark.parametrize("fun", [np.sin, np.exp, lambda x: 7 + x, lambda x: x**2])
def test_smooth_functions_have_only_rounding(fun):
    x = 1.0 + EPS ** (1 / 3) * noise_spacings(EPS)[0] * np.arange(NOISE_POINTS)
    assert measured_noise(fun(x)) <= 4 * EPS * float(np.max(np.abs(fun(x))))


def test_a_constant_has_no_noise():
    assert measured_noise(np.full(NOISE_POINTS, 0.1)) == 0.0


@given(power=st.integers(-300, 300))
def test_noise_scales(power):
    values = np.random.default_rng(0).normal(size=NOISE_POINTS)
    factor = 2.0**power
    assert measured_noise(factor * values) == pytest.approx(
        factor * measured_noise(values), rel=1e-12, abs=0
    )
