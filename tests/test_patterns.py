"""What kind of wrong: every planted pattern is named, and nothing else ever is."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from jaxcheck.gradients.patterns import Pattern, explain

FACTORS = {"batch size": (32.0,), "device count": (4.0,), "dimension": (3.0, 7.0, 1.0)}


def normal(shape, seed=0, *, imaginary=False):
    rng = np.random.default_rng([seed, *shape])
    values = rng.normal(size=shape)
    return values + 1j * rng.normal(size=shape) if imaginary else values


def ask(autodiff, true, *, known=None, bar=1e-9, theta=None, factors=FACTORS, seed=0):
    """Explain ``autodiff``, with derivatives that lie anywhere inside their bars."""
    rng = np.random.default_rng(seed)
    size = true.size
    at = np.arange(size) if known is None else rng.choice(size, known, replace=False)
    bars = np.full(at.size, bar)
    noise = rng.uniform(-1.0, 1.0, at.size) * bars
    if np.iscomplexobj(true):
        noise = noise * np.exp(1j * rng.uniform(0.0, 6.3, at.size))
    return explain(
        autodiff=autodiff,
        theta=normal(true.shape, seed=99) if theta is None else theta,
        at=at,
        numerical=true.ravel()[at] + noise,
        bar=bars,
        factors=factors,
    )


def with_slice(index, change):
    def plant(true):
        wrong = true.copy()
        wrong[index] = change(wrong[index])
        return wrong

    return plant


def zero(index):
    return with_slice(index, np.zeros_like)


def along(axis, reduce):
    return lambda true: np.broadcast_to(
        reduce(true, axis=axis, keepdims=True), true.shape
    )


# ---------------------------------------------------------- planted, fully known


# shape of the leaf, what went wrong, name, parameters, text
PLANTED = {
    "detached": ((5,), lambda d: 0 * d, "detached", [], "autodiff is zero everywhere"),
    "doubled": ((4, 3), lambda d: 2 * d, "factor", [2.0], "2 times the derivative"),
    "halved": ((4, 3), lambda d: d / 2, "factor", [0.5], "1/2 of the derivative"),
    "flipped": (
        (9,),
        lambda d: -d,
        "factor",
        [-1.0],
        "-1 times the derivative: the sign",
    ),
    "batch": (
        (4, 3),
        lambda d: 32 * d,
        "factor",
        [32.0],
        "32 times the derivative: the batch size",
    ),
    "mean over batch": (
        (2, 3),
        lambda d: d / 32,
        "factor",
        [1 / 32],
        "1/32 of the derivative: one over the batch size",
    ),
    "devices": (
        (6,),
        lambda d: 4 * d,
        "factor",
        [4.0],
        "4 times the derivative: the device count",
    ),
    "any factor": (
        (5, 5),
        lambda d: -2.345678 * d,
        "factor",
        [-2.345678],
        "-2.34568 times the derivative",
    ),
    "any factor of two": (
        (2,),
        lambda d: 1.2345 * d,
        "factor",
        [1.2345],
        "1.2345 times",
    ),
    "transposed": ((5, 5), np.transpose, "transposed", [1, 0], "transposed"),
    "transposed, 3": (
        (3, 4, 3),
        lambda d: d.transpose(2, 1, 0),
        "transposed",
        [2, 1, 0],
        "transposed: axes in the order 2, 1, 0",
    ),
    "cycled": (
        (3, 3, 3),
        lambda d: d.transpose(1, 2, 0),
        "transposed",
        [1, 2, 0],
        "transposed: axes in the order 1, 2, 0",
    ),
    "beside one": (
        (1, 4, 4),
        lambda d: d.transpose(0, 2, 1),
        "transposed",
        [0, 2, 1],
        "transposed: axes in the order 0, 2, 1",
    ),
    "reshaped": (
        (3, 4),
        lambda d: d.T.reshape(3, 4),
        "transposed",
        [1, 0],
        "transposed, then reshaped",
    ),
    "reversed": (
        (3, 6),
        lambda d: d[:, ::-1],
        "reversed",
        [1],
        "reversed along axis 1",
    ),
    "kernel flipped": (
        (3, 5, 2),
        lambda d: d[::-1, ::-1],
        "reversed",
        [0, 1],
        "reversed along axes 0 and 1",
    ),
    "rolled": (
        (7, 3),
        lambda d: np.roll(d, 1, 0),
        "rolled",
        [0, 1],
        "rolled by 1 along axis 0",
    ),
    "rolled back": (
        (3, 8),
        lambda d: np.roll(d, -2, 1),
        "rolled",
        [1, -2],
        "rolled by -2 along axis 1",
    ),
    "permuted": (
        (6, 4),
        lambda d: d[[3, 0, 5, 1, 2, 4]],
        "permuted",
        [0],
        "permuted along axis 0",
    ),
    "swapped": (
        (200,),
        with_slice([17, 130], lambda pair: pair[::-1]),
        "permuted",
        [0],
        "permuted along axis 0: 17 and 130 swapped",
    ),
    "summed": ((5, 4), along(0, np.sum), "summed", [0, 1.0], "the sum along axis 0"),
    "averaged": (
        (5, 4),
        along(1, np.mean),
        "summed",
        [1, 1 / 4],
        "the mean along axis 1",
    ),
    "summed up": (
        (5, 4),
        along((0, 1), np.sum),
        "summed",
        [0, 1, 1.0],
        "the sum along axes 0 and 1",
    ),
    "element": ((9,), zero(3), "zero", [0, 3, 4], "element 3 is zero"),
    "row": ((5, 4), zero(3), "zero", [0, 3, 4], "row 3 is zero"),
    "column": ((5, 4), zero(np.s_[:, 0]), "zero", [1, 0, 1], "column 0 is zero"),
    "rows": ((9, 4), zero(np.s_[2:5]), "zero", [0, 2, 5], "rows 2 to 4 are zero"),
    "plane": ((3, 4, 5), zero(np.s_[:, 2]), "zero", [1, 2, 3], "[:, 2, :] is zero"),
    "block": (
        (6, 7),
        zero(np.s_[1:3, 4:7]),
        "zero",
        [0, 1, 3, 1, 4, 7],
        "[1 to 2, 4 to 6] is zero",
    ),
    "decayed": (
        (5, 6),
        lambda d: d + 1e-4 * normal((5, 6), seed=99),
        "weight_decay",
        [1e-4],
        "difference is 1.00e-04 times the parameters: an L2 term that autodiff has and "
        "the loss does not",
    ),
    "not decayed": (
        (50,),
        lambda d: d - 0.0123 * normal((50,), seed=99),
        "weight_decay",
        [-0.0123],
        "difference is -1.23e-02 times the parameters: an L2 term that the loss has "
        "and autodiff does not",
    ),
    "offset": (
        (5, 6),
        lambda d: d + 0.25,
        "constant",
        [0.25],
        "difference is 2.50e-01 everywhere: a constant term that autodiff has",
    ),
}


@pytest.mark.parametrize("bar", [0.0, 1e-9, 1e-7])
@pytest.mark.parametrize("case", PLANTED)
def test_a_planted_pattern_is_named_with_its_numbers(case, bar):
    shape, plant, name, numbers, text = PLANTED[case]
    true = normal(shape)
    pattern = ask(plant(true), true, bar=bar)
    assert pattern is not None
    assert pattern.name == name
    assert [v for _, v in pattern.parameters] == pytest.approx(numbers, rel=1e-3)
    assert pattern.text.startswith(text)
    # 1e-4 is the smallest of the planted differences
    assert pattern.residual <= 1e-12 + 1e5 * bar


@pytest.mark.parametrize("scale", [1e-300, 1e-150, 1e150, 1e300])
@pytest.mark.parametrize("case", PLANTED)
def test_patterns_do_not_depend_on_the_scale(case, scale):
    shape, plant, name, numbers, _ = PLANTED[case]
    true = normal(shape)
    theta = normal(shape, seed=99) * scale
    pattern = ask(plant(true) * scale, true * scale, bar=1e-9 * scale, theta=theta)
    assert pattern is not None
    assert pattern.name == name
    scaled = [n * scale for n in numbers] if name == "constant" else numbers
    assert [v for _, v in pattern.parameters] == pytest.approx(scaled, rel=1e-3)


# a zero that is none leaves a smaller block, two coordinates another factor
SPOILT = [
    case
    for case, (shape, _, name, _, _) in PLANTED.items()
    if name not in ("detached", "zero") and shape != (2,)
]


@pytest.mark.parametrize("case", SPOILT)
def test_all_but_one_coordinate_is_no_pattern(case):
    shape, plant, *_ = PLANTED[case]
    true = normal(shape)
    wrong = plant(true).copy()
    last = (-1,) * true.ndim
    wrong[last] = wrong[last] * 1.01 + 0.01
    assert ask(wrong, true) is None


def test_numbers_have_the_digits_that_were_promised():
    true, theta = normal((40, 30)), normal((40, 30), seed=99)
    factor = ask(2.7182818 * true, true, known=64).parameters
    assert factor == (("factor", pytest.approx(2.7182818, rel=1e-6)),)
    weight = ask(true + 3.14159e-3 * theta, true, known=64).parameters
    assert weight == (("weight", pytest.approx(3.14159e-3, rel=1e-3)),)


# -------------------------------------------------------- planted, partly known


LARGE = {
    "doubled": (lambda d: 2 * d, "factor", [2.0]),
    "any factor": (lambda d: 0.7654321 * d, "factor", [0.7654321]),
    "transposed": (np.transpose, "transposed", [1, 0]),
    "reversed": (lambda d: d[::-1], "reversed", [0]),
    "rolled": (lambda d: np.roll(d, 20, 1), "rolled", [1, 20]),
    "permuted": (
        lambda d: d[np.random.default_rng(5).permutation(60)],
        "permuted",
        [0],
    ),
    "rows": (zero(np.s_[10:40]), "zero", [0, 10, 40]),
    "block": (zero(np.s_[10:40, 20:50]), "zero", [0, 10, 40, 1, 20, 50]),
    "summed": (along(0, np.sum), "broadcast", [0]),
    "decayed": (
        lambda d: d + 0.1 * normal((60, 60), seed=99),
        "weight_decay",
        [0.1],
    ),
    "offset": (lambda d: d - 0.3, "constant", [-0.3]),
    "detached": (np.zeros_like, "detached", []),
}


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("known", "bar"), [(64, 1e-9), (64, 1e-4), (400, 1e-2)])
@pytest.mark.parametrize("case", LARGE)
def test_a_sample_of_the_coordinates_is_enough(case, known, bar, seed):
    plant, name, numbers = LARGE[case]
    true = normal((60, 60))
    pattern = ask(plant(true), true, known=known, bar=bar, seed=seed)
    assert pattern is not None
    assert pattern.name == name
    found = [v for _, v in pattern.parameters]
    # an estimate is as good as its bars
    assert found == pytest.approx(numbers, rel=max(1e-6, 5 * bar))


def test_a_sum_is_told_from_lines_that_are_known_entirely():
    true = normal((30, 40))
    at = np.arange(3 * 40)  # three rows of thirty
    rows = explain(
        autodiff=along(1, np.mean)(true),
        theta=true,
        at=at,
        numerical=true.ravel()[at],
        bar=np.full(at.size, 1e-9),
    )
    assert rows.parameters == (("axis", 1), ("weight", 1 / 40))
    columns = explain(
        autodiff=along(0, np.mean)(true),
        theta=true,
        at=at,
        numerical=true.ravel()[at],
        bar=np.full(at.size, 1e-9),
    )
    assert columns.name == "broadcast"
    assert columns.text == (
        "constant along axis 0, where the derivative is not: summed over the wrong "
        "axis?"
    )


def test_neither_the_sum_nor_the_mean_is_no_pattern():
    true = normal((5, 4))
    assert ask(along(0, np.max)(true), true) is None


def test_a_block_ends_where_zero_is_right():
    true = normal((10, 5))
    true[4:8] = 0.0  # rightly zero beside the row that is not
    pattern = ask(zero(np.s_[3])(true), true)
    assert pattern.text == "row 3 is zero"


def test_zeros_here_and_there_are_no_block():
    true = normal((40,))
    assert ask(zero([3, 17, 30])(true), true) is None
    wrong = zero(3)(true)
    wrong[20] *= 1.1
    assert ask(wrong, true) is None
    true[6:30] = 0.0  # rightly zero between two that are not
    assert ask(zero([5, 30])(true), true) is None


def test_a_sum_within_wide_bars_is_luck():
    assert ask(np.full(2, 0.01), np.array([0.3, -0.25]), bar=0.02) is None
    assert ask(np.full(2, 0.05), np.array([0.3, -0.25]), bar=1e-9).name == "summed"


def test_a_derivative_that_is_constant_too_is_not_summed():
    true = np.broadcast_to(normal((4,)), (5, 4))
    assert ask(5 * true, true).text == "5 times the derivative"


def test_slices_that_are_used_twice_are_no_permutation():
    autodiff = normal((6, 4))
    assert ask(autodiff, autodiff[[5, 5, 2, 3, 4, 0]]) is None
    assert ask(autodiff, autodiff[[3, 1, 2, 3, 4, 5]]) is None


def test_slices_that_come_from_unknown_places_are_not_called_swapped():
    true = normal((30,))
    at = np.arange(10)
    places = [20, 21, *range(2, 20), 0, 1, *range(22, 30)]
    pattern = explain(
        autodiff=true[places],
        theta=normal((30,), seed=99),
        at=at,
        numerical=true[at],
        bar=np.full(10, 1e-12),
    )
    assert pattern is not None
    assert pattern.text == "permuted along axis 0"


# ------------------------------------------------------------------ complex


COMPLEX = {
    "conjugated": (np.conj, "conjugated", [], "conjugated"),
    "doubled": (lambda d: 2 * d, "factor", [2.0], "2 times the derivative"),
    "any factor": (lambda d: 1.7 * d, "factor", [1.7], "1.7 times the derivative"),
    "transposed": (np.transpose, "transposed", [1, 0], "transposed"),
    "rolled": (
        lambda d: np.roll(d, 2, 1),
        "rolled",
        [1, 2],
        "rolled by 2 along axis 1",
    ),
    "reversed": (lambda d: d[::-1], "reversed", [0], "reversed along axis 0"),
    "permuted": (
        lambda d: d[[1, 0, 2, 3, 4]],
        "permuted",
        [0],
        "permuted along axis 0",
    ),
    "row": (zero(2), "zero", [0, 2, 3], "row 2 is zero"),
    "imaginary": (
        lambda d: d.real + 0j,
        "zero",
        [1],
        "in the imaginary part, [:, :] is zero",
    ),
    "summed": (along(0, np.sum), "summed", [0, 1.0], "the sum along axis 0"),
    "offset": (
        lambda d: d + 0.5,
        "constant",
        [0.5],
        "difference is 5.00e-01 everywhere",
    ),
    "detached": (
        lambda d: 0 * d,
        "detached",
        [],
        "autodiff is zero everywhere: detached",
    ),
}


@pytest.mark.parametrize("case", COMPLEX)
def test_complex_leaves(case):
    plant, name, numbers, text = COMPLEX[case]
    true = normal((5, 5), imaginary=True)
    pattern = ask(plant(true), true, theta=normal((5, 5), seed=7, imaginary=True))
    assert pattern is not None
    assert pattern.name == name
    assert [v for _, v in pattern.parameters] == pytest.approx(numbers)
    assert pattern.text.startswith(text)


def test_complex_weight_decay():
    true = normal((4, 3), imaginary=True)
    theta = normal((4, 3), seed=7, imaginary=True)
    pattern = ask(true + 1e-3 * theta, true, theta=theta)
    assert pattern.parameters == (("weight", pytest.approx(1e-3)),)


def test_a_complex_factor_is_no_pattern():
    true = normal((4, 4), imaginary=True)
    assert ask(1j * true, true) is None


# ------------------------------------------------------------------ scalars


@pytest.mark.parametrize(
    ("autodiff", "numerical", "text"),
    [
        (2.0, 1.0, "2 times the derivative"),
        (-0.5, -1.0, "1/2 of the derivative"),
        (3.0, -3.0, "-1 times the derivative: the sign is flipped"),
        (32.0, 1.0, "32 times the derivative: the batch size"),
        (1.0, 4.0, "1/4 of the derivative: one over the device count"),
        (0.0, 1.0, "autodiff is zero everywhere: detached"),
        (5.0, 1.0, None),
        (1.0, 0.0, None),
        (1.0, 1.0, None),
        (2.0 + 1e-4, 1.0, None),
    ],
)
@pytest.mark.parametrize("shape", [(), (1,), (1, 1)])
def test_a_scalar_leaf_shows_known_factors_and_zero(autodiff, numerical, text, shape):
    pattern = ask(np.full(shape, autodiff), np.full(shape, numerical))
    assert (pattern and pattern.text) == text


def test_a_bar_that_fits_many_factors_shows_none():
    assert ask(np.array(2.0), np.array(1.0), bar=1e-2) is None
    assert ask(np.array(2.0), np.array(1.0), bar=1e-6) is not None


def test_the_nearest_of_the_factors_that_fit():
    true = normal((30,))
    pattern = explain(
        autodiff=20.02 * true,
        theta=true,
        at=range(30),
        numerical=true,
        bar=np.full(30, 1e-2),
        factors={"width": (20.0,), "depth": (20.02,), "height": (20.04,)},
    )
    assert pattern.text == "20.02 times the derivative: the depth"


def test_a_long_list_of_factors_explains_any_scalar():
    factors = {"dimension": range(2, 1000)}
    assert ask(np.array(500.0), np.array(1.0), factors=factors) is None
    assert ask(500.0 * normal((2,)), normal((2,)), factors=factors) is not None


def test_factors_that_change_nothing_have_no_name():
    factors = {"axis": (-1.0, 0.0, 1.0, np.nan, np.inf)}
    pattern = ask(-normal((3,)), normal((3,)), factors=factors)
    assert pattern.text == "-1 times the derivative: the sign is flipped"


def test_one_factor_with_two_names():
    pattern = ask(
        np.array(8.0), np.array(1.0), factors={"width": (8, 8), "depth": (8,)}
    )
    assert pattern.text == "8 times the derivative: the width or the depth"


# ---------------------------------------------------------------- degenerate


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_autodiff_that_is_not_finite_has_no_pattern(value):
    true = normal((6,))
    wrong = np.append(2 * true[:-1], value)
    assert ask(wrong, true) is None
    given = {"theta": true, "at": range(5), "bar": np.zeros(5)}
    assert explain(autodiff=wrong, numerical=true[:-1], **given) is None


def test_derivatives_that_are_not_finite_are_left_out():
    true = normal((6,))
    numerical, bar = true.copy(), np.full(6, 1e-9)
    numerical[0], bar[1], bar[2] = np.nan, np.inf, np.nan
    given = {"theta": true, "at": range(6), "bar": bar}
    assert explain(autodiff=2 * true, numerical=numerical, **given).text == (
        "2 times the derivative"
    )
    assert explain(autodiff=true, numerical=np.full(6, np.nan), **given) is None


def test_nothing_known_is_no_pattern():
    assert ask(np.zeros(4), np.ones(4), known=0) is None


def test_agreement_is_no_pattern():
    true = normal((4, 4))
    symmetric = true + true.T
    for right in (true, symmetric, np.zeros((4, 4)), np.ones((4, 4))):
        assert ask(right, right) is None


def test_a_symmetric_gradient_is_not_transposed():
    symmetric = normal((4, 4)) + normal((4, 4)).T
    assert ask(2 * symmetric, symmetric).name == "factor"
    assert ask(symmetric * normal((4, 4), seed=3), symmetric) is None


def test_constant_gradients_say_what_one_number_says():
    ones = np.ones(50)
    assert ask(2 * ones, ones).text == "2 times the derivative"
    # 2.5 times, 1.5 too large, 1.5 times the parameters: who knows
    assert ask(2.5 * ones, ones, theta=ones) is None
    # a constant gradient of which the derivative is not
    assert ask(ones, normal((50,)), known=20).name == "broadcast"


def test_a_derivative_that_is_zero():
    zeros, theta = np.zeros(20), normal((20,), seed=99)
    assert ask(theta / 8, zeros).parameters == (("weight", pytest.approx(1 / 8)),)
    assert ask(normal((20,)), zeros) is None
    assert ask(np.ones(20), zeros) is None


def test_rounding_beside_a_zero_does_not_matter():
    true = np.append(normal((5,)), 0.0)
    assert ask(2 * true + 1e-17, true, bar=0.0).text == "2 times the derivative"


def test_a_weight_that_no_float_can_hold():
    true, theta = normal((9,)) * 1e-200, normal((9,), seed=99)
    assert ask(true + 1e-200 * theta, true, bar=0.0, theta=theta * 1e200) is None


def test_many_axes_take_no_time():
    true = normal((2,) * 12)
    assert ask(normal((2,) * 12, seed=1), true) is None
    assert ask(2 * true, true).text == "2 times the derivative"


def test_an_l2_term_of_equal_parameters_is_a_constant():
    true = normal((12,))
    pattern = ask(true + 0.01, true, theta=np.ones(12))
    assert pattern.text == (
        "difference is 1.00e-02 everywhere: a constant term or, as all parameters are "
        "equal, an L2 term that autodiff has and the loss does not"
    )
    assert "L2" not in ask(true + 0.01, true, theta=np.zeros(12)).text
    assert ask(true + 0.01, true, theta=np.full(12, np.nan)).name == "constant"


def test_gradients_of_few_values_are_not_taken_for_moved_ones():
    # what is 1 or 2 everywhere often fits a move of few elements by chance
    rng = np.random.default_rng(0)
    claimed = 0
    for _ in range(200):
        true, wrong = rng.integers(1, 3, (2, 3, 3)).astype(float)
        claimed += ask(wrong, true) is not None
    assert claimed == 0


def test_a_gradient_of_few_values_that_did_move_is_recognized():
    true = np.random.default_rng(1).integers(0, 2, (20, 20)).astype(float)
    assert ask(true.T, true).name == "transposed"


def test_simple_explanations_come_first():
    # reversing an odd sequence flips its sign
    odd = np.array([-2.0, -1.0, 0.0, 1.0, 2.0]) * np.pi
    assert ask(odd[::-1], odd).name == "factor"
    # rolling two elements reverses them
    pair = np.array([1.0, 3.0])
    assert ask(pair[::-1], pair).name == "reversed"


# ---------------------------------------------------------------- random errors


def unstructured(kind, true, rng):
    if kind == "all wrong":
        return rng.normal(size=true.shape)
    if kind == "relative":
        return true * (1 + 0.3 * rng.normal(size=true.shape))
    if kind == "small":
        return true + 1e-4 * rng.normal(size=true.shape)
    wrong = true.copy()  # one coordinate
    wrong.flat[rng.integers(true.size)] *= 1 + rng.normal()
    return wrong


@pytest.mark.parametrize("kind", ["all wrong", "relative", "small", "one"])
@pytest.mark.parametrize("bar", [0.0, 1e-9, 1e-5, 1e-3, 0.1, 1.0])
def test_random_errors_have_no_pattern(kind, bar):
    rng = np.random.default_rng([len(kind), int(1e9 * bar)])
    shapes = [(), (2,), (3,), (5,), (16,), (2, 2), (3, 3), (4, 7), (2, 3, 2), (64,)]
    trials = [(shape, None) for shape in shapes for _ in range(50)]
    trials += [((50, 50), known) for known in (64, 500, None)]
    for seed, (shape, known) in enumerate(trials):
        true = rng.normal(size=shape)
        wrong = unstructured(kind, true, rng)
        assert ask(wrong, true, known=known, bar=bar, seed=seed) is None


@pytest.mark.parametrize("known", [1, 2])
@pytest.mark.parametrize("bar", [1e-3, 1e-4])
def test_a_few_numbers_are_found_somewhere_in_a_long_leaf(bar, known):
    rng = np.random.default_rng(known)
    for seed in range(100):
        true, wrong = rng.normal(size=(2, 1000))
        assert ask(wrong, true, known=known, bar=bar, seed=seed) is None


def test_random_errors_of_complex_leaves_have_no_pattern():
    rng = np.random.default_rng(3)
    for shape in [(), (2,), (3, 3), (20,)] * 25:
        true, wrong = (rng.normal(size=(2, *shape, 2)) @ [1, 1j])[:]
        assert ask(np.asarray(wrong), np.asarray(true)) is None


# ------------------------------------------------------------------------ the value


def test_a_pattern_is_a_frozen_value():
    pattern = ask(2 * normal((4,)), normal((4,)), bar=0.0)
    assert pattern == Pattern(
        name="factor",
        parameters=(("factor", 2.0),),
        residual=pattern.residual,
        text="2 times the derivative",
    )
    with pytest.raises(dataclasses.FrozenInstanceError):
        pattern.name = "other"
    assert all(type(v) in (int, float) for _, v in pattern.parameters)


@pytest.mark.parametrize("case", PLANTED)
def test_numbers_are_plain_python_numbers(case):
    shape, plant, *_ = PLANTED[case]
    pattern = ask(plant(normal(shape)), normal(shape))
    assert type(pattern.residual) is float
    assert all(type(v) in (int, float) for _, v in pattern.parameters)


def test_a_coordinate_that_is_named_twice_counts_once():
    g = np.array([1.2345, 2.0])
    given = {"autodiff": g, "theta": g, "bar": np.full(2, 1e-9)}
    assert explain(at=[0, 0], numerical=[1.0, 1.0], **given) is None
    both = explain(at=[0, 1], numerical=[1.0, 2.0 / 1.2345], **given)
    assert both.text == "1.2345 times the derivative"
    true, at = normal((4, 3)), np.array([0, 0, 1, 3, 3, 4])
    pattern = explain(
        autodiff=along(1, np.sum)(true),
        theta=true,
        at=at,
        numerical=true.ravel()[at],
        bar=np.full(6, 1e-9),
    )
    assert pattern.name == "broadcast"
