"""What is compared, within a budget."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxcheck.errors import InvalidInputError
from jaxcheck.gradients.options import Options
from jaxcheck.gradients.plan import make_plan
from jaxcheck.trees import partition


def leaves(**sizes):
    tree = {name: np.ones(size, np.float32) for name, size in sizes.items()}
    return partition(tree).differentiable


def plan(which, mode="auto", **options):
    return make_plan(which, Options(mode=mode, **options))


def test_exhaustive_is_every_real_coordinate():
    tree = {"a": jnp.ones((2, 3)), "z": jnp.ones(2, jnp.complex64)}
    found = plan(partition(tree).differentiable, "exhaustive")
    assert found.method == "exhaustive"
    np.testing.assert_array_equal(found.coordinates[0], range(6))
    np.testing.assert_array_equal(found.coordinates[1], range(4))
    assert found.evaluations == 4 * 10


@pytest.mark.parametrize(
    ("size", "budget", "method"),
    [
        (2_500, None, "exhaustive"),
        (2_501, None, "directional"),
        (2_501, 10_004, "exhaustive"),
        (100, 399, "directional"),
        (100, 400, "exhaustive"),
    ],
)
def test_auto_is_exhaustive_while_that_is_cheap(size, budget, method):
    assert plan(leaves(w=size), budget=budget).method == method


def test_sampling_covers_every_leaf_with_different_coordinates():
    found = plan(leaves(a=1000, b=3, c=500), "sampled", samples=10)
    assert [len(c) for c in found.coordinates] == [10, 3, 10]
    for chosen, size in zip(found.coordinates, (1000, 3, 500), strict=True):
        assert len(set(chosen.tolist())) == len(chosen)
        assert 0 <= min(chosen) <= max(chosen) < size


def test_default_number_of_samples():
    assert len(plan(leaves(a=1000), "sampled").coordinates[0]) == 20


def test_samples_are_keyed_on_the_path_and_the_seed():
    alone = plan(leaves(b=1000), "sampled").coordinates[0]
    among = plan(leaves(a=7, b=1000, c=9), "sampled").coordinates[1]
    other = plan(leaves(b=1000), "sampled", seed=(1,)).coordinates[0]
    np.testing.assert_array_equal(alone, among)
    assert not np.array_equal(alone, other)


def test_directions():
    found = plan(leaves(a=10**6, b=5), "directional")
    assert (found.method, found.directions) == ("directional", 4)
    assert [len(c) for c in found.coordinates] == [0, 0]
    assert found.evaluations == 4 * 4 * 2
    assert found.most_directions >= found.directions


def test_directions_that_were_asked_for_are_all_there_will_be():
    found = plan(leaves(a=10**6), "directional", directions=3)
    assert found.directions == found.most_directions == 3


def test_a_tight_budget_means_fewer_probes():
    assert plan(leaves(a=10**6, b=10**6), budget=16).directions == 2
    assert plan(leaves(a=10**6, b=10**6), budget=8).directions == 1


@pytest.mark.parametrize(
    ("mode", "options", "needed"),
    [
        ("exhaustive", {"budget": 399}, 400),
        ("sampled", {"budget": 79}, 80),
        ("directional", {"budget": 3}, 4),
        ("directional", {"budget": 15, "directions": 4}, 16),
    ],
)
def test_budget_too_small_says_what_is_needed(mode, options, needed):
    with pytest.raises(InvalidInputError, match=f"at least {needed} loss evaluations"):
        plan(leaves(w=100), mode, **options)


@given(
    sizes=st.lists(st.integers(1, 10_000), min_size=1, max_size=8),
    mode=st.sampled_from(["auto", "exhaustive", "sampled", "directional"]),
    budget=st.integers(1, 100_000),
)
def test_no_plan_exceeds_its_budget(sizes, mode, budget):
    which = leaves(**{f"leaf{k}": size for k, size in enumerate(sizes)})
    try:
        found = plan(which, mode, budget=budget)
    except InvalidInputError:
        return
    assert 0 < found.evaluations <= budget
