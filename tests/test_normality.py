"""The tests of noise: right noise passes at the stated rate, wrong noise fails."""

from __future__ import annotations

import math

import numpy as np
import pytest

from jaxcheck.updates.normality import failed, independence, law

SHAPES = {"b": (64,), "w": (16, 32), "x": (16, 32), "s": ()}
STEPS = 32


def draws(seed, shapes=SHAPES):
    rng = np.random.default_rng(seed)
    return {k: rng.normal(size=(STEPS, math.prod(v))) for k, v in shapes.items()}


def everything(numbers):
    return [*independence(numbers, SHAPES, 10**6), *law(numbers)]


def test_p_values_are_no_smaller_than_they_should_be():
    tests = [test for seed in range(40) for test in everything(draws(seed))]
    p = np.array([test.p for test in tests])
    assert len(p) > 3000
    for level in (0.5, 0.1, 0.01):
        # two standard deviations of a share, and some more
        room = 4 * math.sqrt(level * (1 - level) / len(p))
        assert np.mean(p <= level) <= level + room
    exact = [t.p for t in tests if t.about == "mean"]
    assert abs(np.mean(exact) - 0.5) < 0.02


def each(change):
    return lambda numbers: {k: change(x) for k, x in numbers.items()}


def with_leaf(path, value):
    return lambda numbers: numbers | {path: value(numbers)}


def with_an_outlier(x):
    x = x.copy()
    x[3, 0] = 8.0
    return x


def columns(x):
    """Each row of a 16 by 32 leaf the same."""
    return np.tile(x[:, :32], 16)


WRONG = {
    "shifted": (each(lambda x: x + 0.1), "mean"),
    "scaled by 1.05": (each(lambda x: 1.05 * x), "standard deviation"),
    "scaled by 0.95": (each(lambda x: 0.95 * x), "standard deviation"),
    "zero": (each(lambda x: 0.0 * x), "standard deviation"),
    "infinite": (each(lambda x: np.inf * x), "standard deviation"),
    "uniform": (
        each(
            lambda x: (
                math.sqrt(3)
                * np.array([math.erf(v) for v in x.ravel() / 2**0.5]).reshape(x.shape)
            )
        ),
        "distribution",
    ),
    "cut off at 3": (each(lambda x: np.clip(x, -3.0, 3.0)), "largest"),
    "one number that is large": (each(with_an_outlier), "largest"),
    "signs": (each(np.sign), "distribution"),
    "decaying": (
        each(lambda x: x * np.linspace(1.2, 0.8, STEPS)[:, None]),
        "standard deviation",
    ),
    "one leaf": (with_leaf("w", lambda n: 1.2 * n["w"]), "standard deviation"),
    "not redrawn": (each(lambda x: np.tile(x[:1], (STEPS, 1))), "between steps"),
    "every third redrawn": (each(lambda x: x[np.arange(STEPS) % 3]), "between steps"),
    "a moving average": (
        each(lambda x: (x + 0.3 * np.roll(x, 1, axis=0)) / math.sqrt(1.09)),
        "between steps",
    ),
    "one for two leaves": (with_leaf("x", lambda n: n["w"]), "between leaves"),
    "the opposite of another leaf": (
        with_leaf("x", lambda n: -n["w"]),
        "between leaves",
    ),
    "one for a row": (
        with_leaf("w", lambda n: np.repeat(n["w"][:, :16], 32, axis=1)),
        "between elements",
    ),
    "one for a column": (
        with_leaf("w", lambda n: columns(n["w"])),
        "between elements",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_noise_fails_the_test_that_is_about_it(name):
    change, about = WRONG[name]
    numbers = change(draws(1))
    tests = everything(numbers)
    worst = failed(tests, 1e-6, len(tests))
    # where it is not independent, the law fails too
    alone = [t for t in worst if t.about.startswith("between")]
    assert (alone or worst)[0].about == about
    assert bool(alone) == about.startswith("between")


def test_right_noise_fails_none():
    for seed in range(100, 150):
        tests = everything(draws(seed))
        assert not failed(tests, 1e-6, len(tests))
