"""The error bars are true: derivatives known to 30 digits lie inside them.

More than two thousand derivatives of twenty-five functions, by mpmath with 50
digits, against what `check` measures: both the bars of the first pass and those of the
ladder, which chooses among its rungs and must not be flattered by that choice.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest

import jaxcheck
from jaxcheck import Verdict
from jaxcheck.gradients.measure import Meter

POINTS = 100
# Points of one leaf: the rounding of their sum is part of every error bar.
LEAF = 50
COVERAGE = 0.999
MEDIAN_RATIO = 20.0
MEDIAN_RELATIVE = 1e-11


class Case(NamedTuple):
    """A function, the same in mpmath, and the interval its points are drawn from."""

    fun: object
    exact: object
    low: float
    high: float


mp = mpmath
CASES = {
    "exp": Case(jnp.exp, mp.exp, -3, 3),
    "sin": Case(jnp.sin, mp.sin, -6, 6),
    "sin_10x": Case(lambda x: jnp.sin(10 * x), lambda x: mp.sin(10 * x), -2, 2),
    "tanh": Case(jnp.tanh, mp.tanh, -3, 3),
    "tanh_saturated": Case(jnp.tanh, mp.tanh, 5, 11),
    "log": Case(jnp.log, mp.log, 0.1, 10),
    "sqrt": Case(jnp.sqrt, mp.sqrt, 0.1, 10),
    "runge": Case(lambda x: 1 / (1 + 25 * x**2), lambda x: 1 / (1 + 25 * x**2), -1, 1),
    "softplus": Case(
        lambda x: jnp.logaddexp(x, 0), lambda x: mp.log(1 + mp.exp(x)), -8, 8
    ),
    "fifth_power": Case(lambda x: x**5, lambda x: x**5, -2, 2),
    "gaussian": Case(lambda x: jnp.exp(-(x**2)), lambda x: mp.exp(-(x**2)), -3, 3),
    "offset": Case(lambda x: 1e6 + jnp.sin(x), lambda x: 10**6 + mp.sin(x), -3, 3),
    "x_log_x": Case(lambda x: x * jnp.log(x), lambda x: x * mp.log(x), 0.05, 5),
    "lgamma": Case(jax.lax.lgamma, mp.loggamma, 0.2, 6),
    "digamma": Case(jax.lax.digamma, mp.digamma, 0.5, 6),
    "erf": Case(jax.lax.erf, mp.erf, -2, 2),
    "arctan": Case(jnp.arctan, mp.atan, -4, 4),
    "logistic": Case(jax.nn.sigmoid, lambda x: 1 / (1 + mp.exp(-x)), -6, 6),
    "expm1": Case(jnp.expm1, mp.expm1, -0.25, 0.25),
    "reciprocal_near_0": Case(lambda x: 1 / x, lambda x: 1 / x, 0.015625, 0.25),
    "tan_near_pole": Case(jnp.tan, mp.tan, 1.375, 1.5625),
    "sqrt_near_0": Case(jnp.sqrt, mp.sqrt, 0.0009765625, 0.03125),
    "log1p_near_pole": Case(jnp.log1p, mp.log1p, -0.9921875, -0.5),
    "small_numbers": Case(
        lambda x: jnp.sin(x * 2**20), lambda x: mp.sin(x * 2**20), 2**-21, 2**-19
    ),
    "large_numbers": Case(
        lambda x: jnp.sin(x / 2**20), lambda x: mp.sin(x / 2**20), 2**19, 2**21
    ),
}


class Measured(NamedTuple):
    """Errors and bars of one function's derivatives, and the derivatives."""

    truth: np.ndarray
    error: np.ndarray
    bar: np.ndarray


def points_of(name):
    case = CASES[name]
    rng = np.random.default_rng(sorted(CASES).index(name))
    return rng.uniform(case.low, case.high, POINTS).astype(np.float32)


@functools.cache
def truth_of(name):
    with mpmath.workdps(50):
        return [mp.diff(CASES[name].exact, mp.mpf(float(x))) for x in points_of(name)]


def measured(name, some, derivative, bar):
    truth = truth_of(name)[some]
    with mpmath.workdps(50):
        error = [
            float(abs(mp.mpf(float(d)) - t))
            for d, t in zip(derivative, truth, strict=True)
        ]
    return Measured(np.array([float(t) for t in truth]), np.array(error), np.array(bar))


@functools.cache
def both_measurements(name):
    """The first pass and the ladder of checks of all points, many in one leaf."""
    halves = [
        measure(name, slice(start, start + LEAF)) for start in range(0, POINTS, LEAF)
    ]
    reports, *measurements = zip(*halves, strict=True)
    joined = [
        Measured(*(np.concatenate(column) for column in zip(*parts, strict=True)))
        for parts in measurements
    ]
    return reports, *joined


def measure(name, some):
    seen = []
    plain = Meter.compare

    def compare(self, method, lanes, scale=1.0):
        comparison = plain(self, method, lanes, scale)
        seen.append((self, method, comparison))
        return comparison

    patch = pytest.MonkeyPatch()
    with patch.context() as patched:
        patched.setattr(Meter, "compare", compare)
        fun = CASES[name].fun
        report = jaxcheck.check(
            lambda x: jnp.sum(fun(x)), points_of(name)[some], mode="exhaustive"
        )
    meter, _, first = next(s for s in seen if s[1] == "exhaustive")
    assert len(first) == LEAF
    span = np.abs(first.displacement)
    # as long as the comparison may be edited while judging, a fresh one is read
    fresh = plain(meter, "exhaustive", first.lanes)
    climbed = meter.climb(first.lanes)
    step = float(meter.scales[0])
    first_pass = measured(
        name, some, fresh.numerical / fresh.displacement, fresh.bar / span
    )
    ladder = measured(
        name,
        some,
        [rungs.derivative / step for rungs, _ in climbed],
        [rungs.bar / step for rungs, _ in climbed],
    )
    return report, first_pass, ladder


def together(which):
    parts = [both_measurements(name)[which] for name in CASES]
    return Measured(*(np.concatenate(column) for column in zip(*parts, strict=True)))


def coverage(m):
    # an infinite or NaN bar claims nothing, so it neither covers nor misses
    claimed = np.isfinite(m.bar)
    return np.mean(m.error[claimed] <= m.bar[claimed]), np.mean(claimed)


@pytest.mark.parametrize("name", CASES)
def test_verdict_is_correct(name):
    for report in both_measurements(name)[0]:
        assert report.verdict is Verdict.CORRECT, str(report)


@pytest.mark.parametrize("which", [1, 2], ids=["first_pass", "ladder"])
def test_true_errors_lie_inside_the_bars(which):
    m = together(which)
    assert len(m.error) >= 2_000

    inside, claimed = coverage(m)

    worst = np.nanmax(m.error / m.bar)
    assert claimed >= 0.999
    assert inside >= COVERAGE, f"{inside:.5f} inside; worst error {worst:.2g} bars"


@pytest.mark.parametrize("which", [1, 2], ids=["first_pass", "ladder"])
def test_no_function_is_far_outside(which):
    for name in CASES:
        m = both_measurements(name)[which]
        worst = np.max(m.error / m.bar)
        assert worst <= 2.0, f"{name}: an error of {worst:.2g} bars"


@pytest.mark.parametrize("which", [1, 2], ids=["first_pass", "ladder"])
def test_bars_of_a_sum_are_not_needlessly_wide(which):
    m = together(which)
    # rounding of the sum is allowed for by its value; mostly it is smaller than that
    assert np.median(m.bar / np.maximum(m.error, 1e-300)) <= 2 * MEDIAN_RATIO


@functools.cache
def scalars():
    """One check for each of some points: its worst coordinate is its only one."""
    errors, bars, derivatives = [], [], []
    for name, case in CASES.items():
        for k in range(0, POINTS, 10):
            report = jaxcheck.check(case.fun, points_of(name)[k], mode="exhaustive")
            assert report.verdict is Verdict.CORRECT, str(report)
            worst = report.leaves[0].worst
            with mpmath.workdps(50):
                errors.append(float(abs(mp.mpf(worst.numerical) - truth_of(name)[k])))
            bars.append(worst.error_bar)
            derivatives.append(float(truth_of(name)[k]))
    return Measured(np.array(derivatives), np.array(errors), np.array(bars))


def test_scalar_parameters_lie_inside_their_bars():
    m = scalars()
    assert len(m.error) == 10 * len(CASES)
    assert np.all(m.error <= m.bar), f"{np.sum(~(m.error <= m.bar))} outside"


def test_bars_are_not_needlessly_wide():
    m = scalars()
    ratio = np.median(m.bar / np.maximum(m.error, 1e-300))
    relative = np.median(m.bar / np.abs(m.truth))
    assert ratio <= MEDIAN_RATIO or relative <= MEDIAN_RELATIVE, (ratio, relative)


def test_the_oracle_itself():
    with mpmath.workdps(50):
        for x, got in zip(points_of("sin_10x"), truth_of("sin_10x"), strict=True):
            exact = 10 * mp.cos(10 * mp.mpf(float(x)))
            assert abs(got - exact) < mp.mpf(10) ** -30
