"""Random directions: their law, what they are keyed on, what confidence they give."""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxcheck
from jaxcheck.gradients.measure import Meter
from jaxcheck.gradients.probes import (
    CONFIDENCE,
    bound_factor,
    probe,
    random_bits,
    words_of,
)

# Standard deviations of sampling error that are allowed for.
SIGMAS = 4.0


@functools.cache
def draws(size, count):
    """``count`` independent probes of ``size`` coordinates."""
    with jax.enable_x64(True):
        words = np.random.SeedSequence(20).generate_state(2 * count, np.uint32)
        many = jax.jit(jax.vmap(lambda w: probe(w, 7, (size,))))
        return np.asarray(many(words.reshape(count, 2)))


ERRORS = {
    "one": [1.0],
    "two_equal": [1.0, 1.0],
    "two_opposite": [1.0, -1.0],
    "two_unequal": [1.0, 0.5],
    "three": [1.0, 1.0, 1.0],
    "three_cancelling": [2.0, -1.0, -1.0],
    "ten": [1.0] * 10,
    "ten_alternating": [1.0, -1.0] * 5,
    "thousand": [1.0] * 1000,
    "geometric": [0.5**k for k in range(20)],
    "geometric_slow": [0.9**k for k in range(50)],
    "one_large_many_small": [1.0] + [1e-3] * 99,
}


def residuals(name):
    """|e·u| over many probes, for ``‖e‖ = 1``."""
    error = np.array(ERRORS[name])
    count = 20_000 if len(error) > 100 else 200_000
    return np.abs(draws(len(error), count) @ (error / np.linalg.norm(error)))


@pytest.mark.parametrize("name", ERRORS)
@pytest.mark.parametrize("t", [1e-3, 0.01, 0.05, 0.1, 0.3, 0.5])
def test_small_ball_inequality(name, t):
    r = residuals(name)
    allowed = math.sqrt(2) * t
    sampling = SIGMAS * math.sqrt(allowed / len(r))
    assert np.mean(r <= t) <= allowed + sampling


def test_the_inequality_is_nearly_met_by_two_equal_errors():
    # so the factor cannot be improved much, and the test above has teeth
    assert np.mean(residuals("two_equal") <= 0.01) >= 0.9 * math.sqrt(2) * 0.01 / 2


def test_a_single_error_is_never_missed():
    assert residuals("one").min() >= 0.5


@pytest.mark.parametrize("name", ERRORS)
@pytest.mark.parametrize("count", [1, 2, 4])
@pytest.mark.parametrize("confidence", [0.9, 0.99, 0.999])
def test_stated_confidence_is_true(name, count, confidence):
    r = residuals(name)
    trials = r[: len(r) // count * count].reshape(-1, count)

    bound = bound_factor(count, confidence) * trials.max(axis=1)

    missed = np.mean(bound < 1.0)
    sampling = SIGMAS * math.sqrt((1 - confidence) / len(trials))
    assert missed <= 1 - confidence + sampling


def test_bound_factor():
    assert CONFIDENCE == 0.999
    assert bound_factor(0) == math.inf
    assert bound_factor(1, 0.9) == pytest.approx(math.sqrt(2) * 10)
    assert bound_factor(2, 0.99) == pytest.approx(math.sqrt(2) * 10)
    factors = [bound_factor(k) for k in range(1, 20)]
    assert factors == sorted(factors, reverse=True)


# -- the law


def test_coordinates_are_signs_times_uniform():
    u = draws(10, 200_000)
    assert u.dtype == np.float64
    assert np.abs(u).min() >= 0.5
    assert np.abs(u).max() <= 1.5
    assert abs(np.mean(u)) <= 0.01
    assert np.mean(u**2) == pytest.approx(13 / 12, rel=0.01)
    counts = np.histogram(np.abs(u), bins=20, range=(0.5, 1.5))[0] / u.size
    np.testing.assert_allclose(counts, 1 / 20, rtol=0.02)


def test_coordinates_are_uncorrelated():
    u = draws(10, 200_000)
    correlation = np.corrcoef(u.T) - np.eye(10)
    assert np.abs(correlation).max() <= 0.02
    sizes = np.corrcoef(np.abs(u.T)) - np.eye(10)
    assert np.abs(sizes).max() <= 0.02


def test_probe_depends_on_words_and_token_alone():
    with jax.enable_x64(True):
        words = words_of([3], 0)
        one, again = probe(words, 5, (40, 2)), probe(words_of([3], 0), 5, (40, 2))
        flat = probe(words, 5, (80,))
        others = [
            probe(words, 6, (40, 2)),
            probe(words_of([4], 0), 5, (40, 2)),
            probe(words_of([3], 1), 5, (40, 2)),
        ]
    np.testing.assert_array_equal(one, again)
    np.testing.assert_array_equal(np.ravel(one), flat)
    for other in others:
        assert not np.any(np.asarray(one) == np.asarray(other))


def test_words_differ_for_every_seed_and_number():
    seeds = [[0, 0], [0, 1], [1, 0], [7, 9]]
    words = {tuple(words_of(seed, k).tolist()) for seed in seeds for k in range(50)}
    assert len(words) == 200
    assert words_of([0, 0], 3).dtype == np.uint32


@pytest.mark.parametrize("number", range(3))
def test_every_bit_of_a_probe_is_fair(number):
    bits = np.asarray(random_bits(words_of([0, 0], number), 12345, (100_000,)))
    ones = [np.mean(bits >> k & 1) for k in range(32)]
    assert bits.dtype == np.uint32
    np.testing.assert_allclose(ones, 0.5, atol=5 * 0.5 / math.sqrt(100_000))


@pytest.mark.parametrize("other", ["number", "token"])
def test_probes_of_a_check_are_uncorrelated(other):
    count = 100_000
    with jax.enable_x64(True):
        one = np.asarray(probe(words_of([0, 0], 0), 1, (count,)))
        moved = {"number": (1, 1), "token": (0, 2)}[other]
        two = np.asarray(probe(words_of([0, 0], moved[0]), moved[1], (count,)))
    assert abs(np.mean(one * two)) <= 5 * 13 / 12 / math.sqrt(count)


@pytest.mark.parametrize("x64", [False, True])
def test_probe_of_a_check_is_keyed_on_the_path(monkeypatch, x64):
    """Adding, removing or reordering other leaves re-rolls nothing."""
    seen = []
    plain = Meter.compare

    def compare(self, method, lanes, scale=1.0):
        comparison = plain(self, method, lanes, scale)
        if method == "directional":
            paths = [self.programs.leaves[self.leaf_of(x.lo)].path for x in lanes]
            numbers = [lane.probe for lane in lanes]
            seen.append(
                dict(
                    zip(
                        zip(paths, numbers, strict=True),
                        comparison.numerical,
                        strict=True,
                    )
                )
            )
        return comparison

    monkeypatch.setattr(Meter, "compare", compare)
    x = np.linspace(0.5, 1.5, 6, dtype=np.float32)
    trees = (
        {"b": x},
        {"a": x[:2], "b": x},
        {"b": x, "c": {"d": x[:3]}},
    )
    # linear: the difference is the probe's sum, exactly up to rounding
    with jax.enable_x64(x64):
        for tree in trees:
            jaxcheck.check(
                lambda p: jnp.sum(p["b"]) + 0 * sum(map(jnp.sum, jax.tree.leaves(p))),
                tree,
                mode="directional",
            )
    wanted = {k: v for k, v in seen[0].items() if k[0] == "['b']"}
    assert len(wanted) >= 2
    for other in seen[1:]:
        for place, number in wanted.items():
            if place in other:
                assert other[place] == pytest.approx(number, rel=1e-7)
    assert sum(any(place in o for place in wanted) for o in seen[1:]) >= 2
