"""From a failing leaf to its coordinates, in few directional derivatives."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxcheck
from jaxcheck import Verdict
from jaxcheck.gradients.measure import Meter

# the places are another question
check = functools.partial(jaxcheck.check, locate=False)


def wrong_at(index, factor=2.0):
    @jax.custom_vjp
    def f(w):
        return jnp.sum(jnp.sin(w))

    def backward(w, ct):
        return (ct * jnp.cos(w).at[index].multiply(factor),)

    f.defvjp(lambda w: (f(w), w), backward)
    return f


@pytest.fixture
def derivatives(monkeypatch):
    """Numbers of directional derivatives, one for each comparison that was made."""
    made = []
    compare = Meter.compare

    def counted(self, method, lanes, *more):
        made.append(len(lanes))
        return compare(self, method, lanes, *more)

    monkeypatch.setattr(Meter, "compare", counted)
    return made


@pytest.mark.parametrize(
    ("size", "wrong", "most"), [(1 << 16, 1, 150), (1 << 12, 12, 700)]
)
def test_every_wrong_coordinate_is_found(derivatives, size, wrong, most):
    rng = np.random.default_rng(size)
    index = rng.choice(size, wrong, replace=False)
    w = rng.normal(size=size).astype(np.float32)
    report = check(wrong_at(index), w, mode="directional")
    leaf = report.leaves[0]
    assert leaf.verdict is Verdict.WRONG
    assert leaf.failing == wrong
    assert {c.index[0] for c in leaf.examples} <= set(index.tolist())
    assert len(leaf.examples) >= min(wrong, 5)
    assert leaf.worst == leaf.examples[0]
    assert sum(derivatives) <= most
    assert f"{wrong} of {size:,} checked coordinates" in str(report)


def test_a_slight_fault_of_one_coordinate_is_found():
    rng = np.random.default_rng(0)
    w = rng.normal(size=10_000).astype(np.float32)
    report = check(wrong_at(np.array([1234]), 1.001), w, mode="directional")
    assert report.verdict is Verdict.WRONG
    assert report.leaves[0].worst.index == (1234,)


def test_two_equal_and_opposite_faults_are_found():
    w = np.full(4096, 0.5, np.float32)

    @jax.custom_vjp
    def f(w):
        return jnp.sum(jnp.sin(w))

    def backward(w, ct):
        return (ct * jnp.cos(w).at[7].add(0.1).at[4000].add(-0.1),)

    f.defvjp(lambda w: (f(w), w), backward)
    report = check(f, w, mode="directional")
    assert {c.index[0] for c in report.leaves[0].examples} >= {7, 4000}


def test_where_everything_is_wrong_examples_are_named_and_not_counted():
    w = np.linspace(-1, 1, 2_000).astype(np.float32)
    report = check(wrong_at(slice(None)), w, mode="directional")
    leaf = report.leaves[0]
    assert leaf.verdict is Verdict.WRONG
    assert leaf.failing is None
    assert leaf.worst.autodiff == pytest.approx(2 * leaf.worst.numerical, rel=1e-6)
    assert leaf.pattern == "2 times the derivative"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("size", "wrong", "most"), [(4_000_000, 1, 200), (1 << 16, 100, 6_000)]
)
def test_large_leaves(derivatives, size, wrong, most):
    rng = np.random.default_rng(1)
    index = rng.choice(size, wrong, replace=False)
    w = rng.normal(size=size).astype(np.float32)
    report = check(wrong_at(index), w, mode="directional")
    assert report.leaves[0].failing == wrong
    assert sum(derivatives) <= most


@pytest.mark.slow
def test_of_many_wrong_leaves_those_that_are_furthest_off_are_looked_into(derivatives):
    rng = np.random.default_rng(2)
    sizes = np.linspace(1.1, 2.0, 12)
    params = [rng.normal(size=(50, 50)).astype(np.float32) for _ in sizes]
    losses = [wrong_at(slice(None), factor) for factor in sizes]

    def loss(params):
        return sum(f(w.ravel()) for f, w in zip(losses, params, strict=True))

    report = check(loss, params, mode="directional")
    assert {leaf.verdict for leaf in report.leaves} == {Verdict.WRONG}
    known = [leaf.worst is not None for leaf in report.leaves]
    assert known == [False] * 4 + [True] * 8
    messages = [f.message for f in report.findings]
    assert "its coordinates were not compared" in messages[0]
    assert "2 times the derivative" in messages[-1]
    assert sum(derivatives) <= 8 * 50 + 4 * len(params)


def test_each_wrong_leaf_is_explained_where_all_coordinates_are_known():
    params = [np.linspace(0.1, 1, 5, dtype=np.float32)] * 10
    loss = wrong_at(slice(None))
    report = check(lambda params: sum(map(loss, params)), params)
    assert {leaf.pattern for leaf in report.leaves} == {"2 times the derivative"}
