"""What the ladder of steps says about losses of known shape."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxcheck.gradients.ladder import Shape, climb, exponents, steps

EPS = float(np.finfo(np.float64).eps)
STEP = 2.0**-17


def climbed(fun, x=0.0, *, step=STEP, noise=None):
    """Climb ``fun`` at ``x``; what comes back is per unit of x."""
    with np.errstate(all="ignore"):
        at = float(fun(np.float64(x)))
        values = np.array(
            [fun(np.float64(x + s * step)) for s in steps(EPS)], np.float64
        )
    own = EPS * abs(at) if noise is None else noise
    return climb(values, at, own, EPS)


def assert_inside(rungs, truth, step=STEP):
    __tracebackhide__ = True
    error = abs(rungs.derivative / step - truth)
    assert error <= rungs.bar / step, f"error {error:.2e}, bar {rungs.bar / step:.2e}"


SMOOTH = {
    "exp": (np.exp, 0.3, math.exp(0.3)),
    "sin": (np.sin, 1.0, math.cos(1.0)),
    "cube_at_0": (lambda x: x**3, 0.0, 0.0),
    "square_at_0": (lambda x: x**2, 0.0, 0.0),
    "linear": (lambda x: 3 * x, 0.5, 3.0),
    "constant": (lambda x: 4.0 + 0 * x, 0.5, 0.0),
    "zero": (lambda x: 0 * x, 0.5, 0.0),
    "huge_offset": (lambda x: 1e12 + np.sin(x), 0.5, math.cos(0.5)),
    "negative_offset": (lambda x: np.sin(x) - 1e6, 0.5, math.cos(0.5)),
    "steep": (lambda x: np.exp(200 * x), 0.01, 200 * math.exp(2)),
    "fast_oscillation": (lambda x: np.sin(1e4 * x), 0.0, 1e4),
    "odd_x_abs_x": (lambda x: x * np.abs(x), 0.0, 0.0),
    "power_1_5": (lambda x: np.abs(x) ** 1.5, 0.0, 0.0),
    "tiny": (lambda x: 1e-200 * np.sin(x), 0.5, 1e-200 * math.cos(0.5)),
    "large": (lambda x: 1e200 * np.sin(x), 0.5, 1e200 * math.cos(0.5)),
    "cancelling": (lambda x: (1e8 + x) - 1e8, 0.5, 1.0),
}


@pytest.mark.parametrize("name", SMOOTH)
def test_smooth(name):
    fun, x, truth = SMOOTH[name]
    # the cancelling sum's noise is that of its terms
    noise = EPS * 1e8 if name == "cancelling" else None

    rungs = climbed(fun, x, noise=noise)

    assert rungs.shape is Shape.SMOOTH
    assert rungs.stable
    assert_inside(rungs, truth)


@pytest.mark.parametrize("name", ["exp", "sin", "linear", "steep"])
def test_smooth_bars_are_tight(name):
    fun, x, truth = SMOOTH[name]
    rungs = climbed(fun, x)
    assert rungs.bar / STEP <= 1e-8 * abs(truth)


@pytest.mark.parametrize(
    ("fun", "left", "right"),
    [
        (np.abs, -1.0, 1.0),
        (lambda x: np.maximum(x, 0), 0.0, 1.0),
        (lambda x: np.maximum(x, 0.1 * x), 0.1, 1.0),
        (lambda x: np.abs(x) + np.exp(x), 0.0, 2.0),
        (lambda x: np.minimum(x, 3 * x) + x**2, 3.0, 1.0),
    ],
    ids=["abs", "relu", "leaky_relu", "abs_plus_exp", "min"],
)
def test_kink_at_the_point(fun, left, right):
    rungs = climbed(fun)

    assert rungs.shape is Shape.KINK
    assert rungs.left / STEP == pytest.approx(left, rel=1e-2, abs=1e-2)
    assert rungs.right / STEP == pytest.approx(right, rel=1e-2, abs=1e-2)


@pytest.mark.parametrize("exponent", [-18, -12, -6, -2, 0, 3, 8])
@pytest.mark.parametrize("curvature", [0.0, 1.0])
def test_kink_at_a_distance_is_no_kink(exponent, curvature):
    distance = 2.0**exponent * STEP

    rungs = climbed(lambda x: np.abs(x - distance) + curvature * x**2)

    assert rungs.shape is Shape.SMOOTH
    assert rungs.stable
    assert_inside(rungs, -1.0)


@pytest.mark.parametrize("height", [1e-3, 1.0, 1e3])
def test_jump(height):
    rungs = climbed(lambda x: x + height * (x >= 0))

    assert rungs.shape is Shape.JUMP
    assert rungs.jump == pytest.approx(height, rel=1e-3)


def test_jump_whose_second_difference_vanishes_is_not_stable():
    # sign(0) = 0 lies in the middle: S cannot see this jump, the differences must
    rungs = climbed(lambda x: np.sign(x) + x)
    assert not rungs.stable or rungs.shape is Shape.JUMP


@pytest.mark.parametrize("exponent", [-8, 0, 6])
def test_jump_at_a_distance(exponent):
    distance = 2.0**exponent * STEP

    rungs = climbed(lambda x: 2 * x + (x >= distance))

    assert rungs.shape is Shape.SMOOTH
    assert rungs.stable
    assert_inside(rungs, 2.0)


def test_square_root_at_zero_is_the_edge_of_the_domain():
    assert climbed(np.sqrt).shape is Shape.EDGE
    assert not climbed(np.sqrt).stable


def test_one_sided_domain_is_no_kink_and_never_stable():
    rungs = climbed(lambda x: np.where(x >= 0, x**2, np.nan))
    assert rungs.shape is Shape.EDGE
    assert not rungs.stable
    assert not rungs.bar < np.inf


@pytest.mark.parametrize("exponent", [-6, 0, 4])
def test_edge_at_a_distance_leaves_the_small_steps(exponent):
    x = 2.0**exponent * STEP

    rungs = climbed(np.log, x)

    assert rungs.shape is Shape.SMOOTH
    assert_inside(rungs, 1 / x)


def test_nan_everywhere():
    rungs = climbed(lambda x: x * np.nan)
    assert rungs.shape is Shape.EDGE
    assert not rungs.stable


@pytest.mark.parametrize("level", [1e-12, 1e-9, 1e-6, 1e-3])
@pytest.mark.parametrize("seed", range(5))
def test_noise_widens_the_bar(level, seed):
    rng = np.random.default_rng(seed)

    rungs = climbed(lambda x: np.sin(x) + level * rng.uniform(-1, 1), 0.5, noise=level)

    assert_inside(rungs, math.cos(0.5))


def test_a_loss_of_nothing_but_noise_claims_nothing():
    rng = np.random.default_rng(0)
    rungs = climbed(lambda x: 1 + rng.uniform(-1e-3, 1e-3), noise=1e-3)
    assert rungs.bar >= abs(rungs.derivative) / 2
    assert_inside(rungs, 0.0)


@given(
    power=st.integers(-200, 200),
    x=st.floats(-2, 2),
    kind=st.sampled_from([np.sin, np.exp, np.abs, lambda x: x + (x >= 0)]),
)
def test_scaling_the_loss_scales_everything(power, x, kind):
    factor = 2.0**power
    plain = climbed(kind, x)
    scaled = climbed(lambda x: factor * kind(x), x)

    assert scaled.shape is plain.shape
    assert scaled.stable == plain.stable
    assert scaled.exponent == plain.exponent
    assert scaled.derivative == factor * plain.derivative
    assert scaled.bar == factor * plain.bar
    assert scaled.jump == factor * plain.jump


@given(x=st.floats(-2, 2), sign=st.sampled_from([np.sin, np.exp, np.tanh, np.arctan]))
def test_negating_the_loss_negates_the_derivative(x, sign):
    plain, negated = climbed(sign, x), climbed(lambda x: -sign(x), x)
    assert negated.derivative == -plain.derivative
    assert negated.bar == plain.bar


@given(power=st.integers(-6, 6), x=st.floats(0.25, 2))
def test_another_unit_step_gives_the_same_derivative(power, x):
    step = STEP * 2.0**power
    rungs = climbed(np.sin, x, step=step)
    assert rungs.shape is Shape.SMOOTH
    assert rungs.stable
    assert_inside(rungs, math.cos(x), step)


@given(power=st.integers(-100, 100), x=st.floats(0.25, 2))
def test_units_of_the_parameter_do_not_matter(power, x):
    unit = 2.0**power
    plain = climbed(np.sin, x)
    other = climbed(lambda y: np.sin(y / unit), x * unit, step=STEP * unit)
    assert other == plain


@pytest.mark.parametrize("bits", [52, 23, 10])
def test_the_ladder_spans_what_it_says(bits):
    eps = 2.0**-bits
    rungs, signed = exponents(eps), steps(eps)

    assert list(rungs) == list(range(rungs[0], rungs[-1] + 1))
    assert signed[0::2] == tuple(2.0**k for k in rungs)
    assert signed[1::2] == tuple(-(2.0**k) for k in rungs)
    # no step is lost in rounding, and none leaves the neighborhood of the point
    own = eps ** (1 / 3)
    assert 8 * eps <= own * 2.0 ** rungs[0] < 16 * eps
    assert own * 2.0 ** rungs[-1] <= max(2.0**-7, 2 * own)
    assert len(rungs) >= 5


def test_a_ladder_too_short_for_its_precision_claims_nothing():
    # bfloat16: between too large a step and one lost in rounding is next to nothing
    eps = 2.0**-7
    values = np.array([0.01 * s for s in steps(eps)])
    rungs = climb(values, 0.0, eps, eps)
    assert len(exponents(eps)) < 5
    assert rungs.shape is Shape.UNRESOLVED
    assert not rungs.stable
    assert rungs.bar == math.inf


def test_a_stable_rung_has_four_smaller_witnesses():
    # beyond the lowest few rungs the loss is not finite
    lowest = exponents(EPS)[0]
    for count in range(5, 9):
        reach = 2.0 ** (lowest + count - 1) * STEP
        rungs = climbed(lambda x, r=reach: np.where(np.abs(x) <= r, np.sin(x), np.nan))
        assert rungs.stable == (
            rungs.exponent - lowest >= 4 and math.isfinite(rungs.bar)
        )
