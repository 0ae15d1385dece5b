"""Norms and counts are the same on the host and on the device."""

import jax.numpy as jnp
import numpy as np
import pytest

import jaxcheck
from jaxcheck import Verdict
from jaxcheck.gradients import tally


@pytest.fixture
def leaves():
    rng = np.random.default_rng(0)
    params = [
        jnp.asarray(rng.normal(size=(3, 5)), jnp.bfloat16),
        jnp.asarray(rng.normal(size=7) + 2j, jnp.complex64),
        np.float32(0.5),
        np.zeros((0, 2), np.float32),
    ]
    shapes = [(3, 5), (7, 2), (), (0, 2)]
    grads = [jnp.asarray(np.float32(rng.normal(size=s))) for s in shapes]
    sizes = [jnp.abs(g) + 1 for g in grads]
    native = [jnp.asarray(p) * 3 for p in params]
    return params, grads, sizes, native


def test_a_check_whose_gradients_stay_on_the_device(monkeypatch):
    """Parameters and gradients are counted in calls of different lengths."""
    monkeypatch.setattr(tally, "_MOST_ON_HOST", -1)
    loss = lambda p: jnp.sum(p["a"] ** 2) + jnp.sin(p["b"])  # noqa: E731
    report = jaxcheck.check(loss, {"a": np.ones(3, np.float32), "b": np.float32(1)})
    assert report.verdict is Verdict.CORRECT, str(report)


def test_measures_agree_wherever_they_are_taken(leaves, monkeypatch):
    here = tally.measures(*leaves)
    monkeypatch.setattr(tally, "_MOST_ON_HOST", -1)
    there = tally.measures(*leaves)
    np.testing.assert_allclose(here, there, rtol=1e-6)

    params, grads, _, native = leaves
    z = np.asarray(params[1])
    assert here[0, 1] == pytest.approx(np.sqrt(np.mean(np.abs(z) ** 2) / 2))
    assert here[1, 0] == pytest.approx(np.linalg.norm(grads[0]))
    # JAX's gradient of a complex leaf is df/dx - i df/dy
    error = np.conj(native[1]) - np.asarray(grads[1]) @ [1, 1j]
    assert here[3, 1] == pytest.approx(np.linalg.norm(error))
    assert here[:, 3].tolist() == [0, 0, 0, 0]


@pytest.mark.parametrize("most", [2**20, -1])
def test_norms_neither_overflow_nor_underflow(most, monkeypatch):
    monkeypatch.setattr(tally, "_MOST_ON_HOST", most)
    sizes = [1e300, 1e-300, 0.0]
    arrays = [np.array([3.0, 4.0]) * size for size in sizes]
    table = tally.measures(arrays, arrays, arrays, arrays)
    np.testing.assert_allclose(table[1], [5e300, 5e-300, 0.0])
    assert table[3].tolist() == [0, 0, 0]


@pytest.mark.parametrize("most", [2**20, -1])
@pytest.mark.parametrize("at", [0, 4095, 5000])
@pytest.mark.parametrize("dtype", [jnp.bfloat16, np.float32, np.complex64])
def test_bad_elements_are_counted_at_any_size(at, dtype, most, monkeypatch):
    monkeypatch.setattr(tally, "_MOST_ON_HOST", most)
    array = np.zeros(5001, dtype)
    array[at], array[7] = np.nan, np.inf
    counts = tally.bad_counts([np.ones(3, dtype), array])
    assert counts.tolist() == [0, 2]
