"""Leaves of a pytree: paths, what is differentiated, numbering."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax.flatten_util import ravel_pytree

from jaxcheck.errors import InvalidInputError
from jaxcheck.trees import describe, is_inexact, partition, require_differentiable


class Pair(NamedTuple):
    first: object
    second: object


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Layer:
    w: object
    b: object


def only(tree):
    (leaf,) = partition(tree).leaves
    return leaf


LEAVES = [
    (jnp.ones((2, 3)), (2, 3), "float32", 6, True),
    (np.ones(4), (4,), "float32", 4, True),  # JAX makes it float32 with x64 off
    (np.ones(4, np.float16), (4,), "float16", 4, True),
    (np.ones(4, ml_dtypes.bfloat16), (4,), "bfloat16", 4, True),
    (jnp.ones(4, jnp.bfloat16), (4,), "bfloat16", 4, True),
    (jnp.ones(3, jnp.complex64), (3,), "complex64", 3, True),
    (np.float32(1), (), "float32", 1, True),
    (1.5, (), "float32", 1, True),
    (1j, (), "complex64", 1, True),
    (jnp.zeros((0, 3)), (0, 3), "float32", 0, False),
    (np.arange(3), (3,), "int32", 3, False),
    (jnp.ones(3, bool), (3,), "bool", 3, False),
    (jax.random.key(0), (), "key<fry>", 1, False),
    (jax.random.PRNGKey(0), (2,), "uint32", 2, False),
    (True, (), "bool", 1, False),
    (7, (), "int", 1, False),
    (None, (), "None", 0, False),
    ("adam", (), "str", 0, False),
    (np.array(["a"]), (), "<U1", 0, False),
    (jnp.tanh, (), None, 0, False),
]


@pytest.mark.parametrize(("value", "shape", "dtype", "size", "differentiable"), LEAVES)
def test_every_kind_of_leaf_is_described(value, shape, dtype, size, differentiable):
    leaf = only([value])

    assert leaf.path == "[0]"
    assert leaf.shape == shape
    assert dtype is None or leaf.dtype == dtype
    assert leaf.size == size
    assert leaf.differentiable == differentiable
    assert (leaf.reason is None) == differentiable


@pytest.mark.parametrize("value", [np.ones(2), 1.5, np.float64(2)])
def test_doubles_are_doubles_with_x64(value):
    with jax.enable_x64(True):
        assert only(value).dtype == "float64"


def test_complex_leaves_have_two_parts():
    assert (only(jnp.ones(3, jnp.complex64)).parts, only(jnp.ones(3)).parts) == (2, 1)


TREES = [
    {"b": jnp.ones(2), "a": [jnp.ones(3), (jnp.ones(1), 2.0)]},
    Pair(jnp.ones(2), {"x": None, "y": jnp.ones(1)}),
    {"n": np.int32(1), "layer": Layer(jnp.ones((2, 2)), jnp.ones(2)), "flag": True},
    [],
    jnp.ones(3),
]


@pytest.mark.parametrize("tree", TREES)
def test_paths_are_those_of_keystr(tree):
    parts = partition(tree)
    pairs, _ = jax.tree_util.tree_flatten_with_path(tree, is_leaf=lambda x: x is None)
    assert [x.path for x in parts.leaves] == [jax.tree_util.keystr(p) for p, _ in pairs]


@pytest.mark.parametrize("tree", TREES)
def test_rebuilding_gives_the_tree_back(tree):
    parts = partition(tree)

    again = parts.rebuild(parts.moved)

    assert jax.tree.structure(again) == jax.tree.structure(tree)
    for a, b in zip(jax.tree.leaves(again), jax.tree.leaves(tree), strict=True):
        assert a is b


def test_what_moves_and_what_is_fixed():
    key, counts = jax.random.key(0), jnp.arange(2)
    w, scale, table = jnp.ones(2), 1.0, np.arange(2)

    parts = partition([w, counts, scale, table, None, key])

    assert [leaf.path for leaf in parts.differentiable] == ["[0]", "[2]"]
    assert parts.moved[0] is w
    assert parts.moved[1] is scale
    fixed = zip(parts.fixed, (counts, table, None, key), strict=True)
    assert all(mine is theirs for mine, theirs in fixed)


def test_rebuilding_with_other_values_keeps_what_is_fixed():
    parts = partition({"w": jnp.ones(2), "n": 3, "z": (None, 1.0)})
    assert parts.rebuild(["new", "last"]) == {"w": "new", "n": 3, "z": (None, "last")}


def test_coordinates_are_numbered_as_ravel_pytree_does():
    tree = {
        "b": np.arange(3.0),
        "a": {"z": np.arange(4.0).reshape(2, 2), "k": 3},
        "c": 9.0,
    }
    floats = {"b": tree["b"], "a": {"z": tree["a"]["z"]}, "c": tree["c"]}
    ours = np.concatenate([np.ravel(x) for x in partition(tree).moved])
    theirs, _ = ravel_pytree(floats)
    np.testing.assert_array_equal(ours, theirs)


@given(st.lists(st.text(min_size=1, max_size=5), min_size=1, unique=True))
def test_token_depends_on_the_path_alone(names):
    tree = {name: np.ones(1) for name in names}
    alone = {name: only({name: np.zeros((2, 3))}).token for name in names}
    for leaf, name in zip(partition(tree).leaves, sorted(names), strict=True):
        assert leaf.token == alone[name]
        assert 0 <= leaf.token < 2**32


def test_tokens_of_a_deep_network_differ():
    tree = {f"layer{k}": {"w": np.ones(1), "b": np.ones(1)} for k in range(500)}
    tokens = [leaf.token for leaf in partition(tree).leaves]
    assert len(set(tokens)) == 1000


@pytest.mark.parametrize(
    ("dtype", "answer"),
    [
        (np.float32, True),
        (jnp.bfloat16, True),
        (np.complex64, True),
        (jnp.float8_e4m3fn, True),
        (np.int32, False),
        (bool, False),
        (jax.dtypes.float0, False),
        (jax.random.key(0).dtype, False),
    ],
)
def test_is_inexact(dtype, answer):
    assert is_inexact(dtype) is answer


@pytest.mark.parametrize("tree", [{}, [], ()])
def test_empty_trees_are_refused(tree):
    with pytest.raises(InvalidInputError, match="`params` .* empty pytree"):
        require_differentiable(partition(tree), "params")


def test_trees_without_a_float_are_refused_and_listed():
    tree = {"n": np.arange(3), "k": None, "e": jnp.zeros(0)}
    with pytest.raises(InvalidInputError) as caught:
        require_differentiable(partition(tree), "params")
    assert "['n']: int32" in str(caught.value)
    assert "['k']: None" in str(caught.value)


def test_describe_needs_no_value_of_an_abstract_key():
    leaf = describe((), jax.random.key(1))
    assert leaf.path == ""
    assert leaf.reason == "a random key is not differentiable"
