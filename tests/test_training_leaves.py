"""Rows of statistics: which leaves, which layers, which names, which other arrays."""

from __future__ import annotations

import re

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from jaxcheck import InvalidInputError, gradient_statistics, leaf_names, stack_names
from tests.programs.statistics import assert_row, by_hand

RNG = np.random.default_rng(1)


def normal(*shape):
    return RNG.standard_normal(shape).astype(np.float32)


def test_leaves_without_a_gradient_are_passed_over():
    grads = {
        "a": np.zeros(3, jax.dtypes.float0),
        "b": jnp.ones(2),
        "c": jnp.arange(3),
        "d": None,
        "e": jnp.zeros((0, 4)),
        "f": jax.random.key(0),
        "g": 3.0,
        "h": jnp.ones(2, bool),
        "i": 7,
        "j": "adam",
    }
    assert leaf_names(grads) == ("['b']", "['g']")
    np.testing.assert_allclose(
        gradient_statistics(grads).leaves.norm, [2**0.5, 3], rtol=1e-6
    )


def test_names_are_those_of_keystr_in_the_order_of_flattening():
    tree = {"z": [normal(2), (normal(3),)], "a": normal(1)}
    paths = [p for p, _ in jax.tree_util.tree_leaves_with_path(tree)]
    assert leaf_names(tree) == tuple(map(jax.tree_util.keystr, paths))
    assert leaf_names(jax.eval_shape(lambda: tree)) == leaf_names(tree)
    assert leaf_names(normal(2)) == ("",)


# ---- other trees


def test_a_missing_gradient_shifts_nothing():
    """Trees differ in what is None; a zip would pair a with b."""
    params = {k: np.full(3, float(n), np.float32) for n, k in enumerate("abcd", 1)}
    updates = {k: p / 2**n for n, (k, p) in enumerate(params.items())}
    grads = {"a": None, "b": normal(3), "c": np.zeros(3, np.int32), "d": normal(3)}
    stats = gradient_statistics(grads, params, updates)
    assert leaf_names(grads) == ("['b']", "['d']")
    np.testing.assert_allclose(stats.leaves.update_ratio, [2**-1, 2**-3], rtol=1e-6)
    np.testing.assert_allclose(stats.leaves.param_norm / 3**0.5, [2, 4], rtol=1e-6)


@pytest.mark.parametrize("absent", ["none", "left out", "masked"])
def test_a_leaf_without_an_update_has_one_of_zeros(absent):
    grads = {"a": normal(3), "b": normal(3)}
    nothing = {"none": {"a": None}, "left out": {}, "masked": {"a": optax.MaskedNode()}}
    updates = {"b": normal(3), **nothing[absent]}
    stats = gradient_statistics(grads, grads, updates)
    zeros = {"a": np.zeros(3, np.float32), "b": updates["b"]}
    for row, k in enumerate("ab"):
        assert_row(stats.leaves, by_hand([grads[k]], [grads[k]], [zeros[k]]), row=row)


def test_containers_may_differ_if_paths_do_not():
    grads = {"layer": [normal(2), normal(3)]}
    stats = gradient_statistics(grads, {"layer": tuple(grads["layer"])})
    np.testing.assert_array_equal(stats.leaves.param_norm, stats.leaves.norm)


def test_modules_of_equinox():
    mlp = eqx.nn.MLP(2, 1, 4, 1, key=jax.random.key(0))
    grads = eqx.filter_grad(lambda m: jnp.sum(m(jnp.ones(2))))(mlp)
    tx = optax.sgd(0.5)
    params = eqx.filter(mlp, eqx.is_inexact_array)
    updates, _ = tx.update(grads, tx.init(params), params)
    stats = gradient_statistics(grads, mlp, updates)
    assert leaf_names(grads)[0] == ".layers[0].weight"
    np.testing.assert_allclose(
        stats.leaves.update_norm, 0.5 * stats.leaves.norm, rtol=1e-6
    )


def test_modules_of_flax_nnx():
    net = nnx.Linear(3, 2, rngs=nnx.Rngs(0))
    grads = nnx.grad(lambda net: jnp.sum(net(jnp.ones(3)) ** 2))(net)
    params = nnx.state(net, nnx.Param)
    tx = optax.sgd(0.5)
    updates, _ = tx.update(grads, tx.init(params), params)
    stats = gradient_statistics(grads, params, updates)
    assert len(leaf_names(grads)) == 2
    np.testing.assert_allclose(
        stats.leaves.update_norm, 0.5 * stats.leaves.norm, rtol=1e-6
    )


# ---- stacked layers

STACK = {"blocks": {"b": normal(3, 4), "w": normal(3, 5, 4)}, "out": normal(4, 2)}


def test_layers_have_rows_and_their_stack_another():
    grads = jax.tree.map(np.copy, STACK)
    grads["blocks"]["w"][1, 2, 3] = np.nan
    params, updates = STACK, jax.tree.map(lambda p: p / 8, STACK)
    stats = gradient_statistics(grads, params, updates, stacked="['blocks']")
    b, w, out = (
        jax.tree.leaves(t) for t in zip(*map(leaves, trees(grads)), strict=True)
    )
    rows = [[x[k] for x in b] for k in range(3)] + [[x[k] for x in w] for k in range(3)]
    for row, arrays in enumerate([*rows, out]):
        assert_row(stats.leaves, by_hand(*([x] for x in arrays)), row=row)
    for row, arrays in enumerate([b, w]):
        assert_row(stats.stacks, by_hand(*([x] for x in arrays)), row=row)
    whole = gradient_statistics(grads, params, updates)
    assert_row(
        stats.total, {k: np.asarray(v) for k, v in whole.total._asdict().items()}
    )
    assert stats.leaves.nonfinite.tolist() == [0, 0, 0, 0, 1, 0, 0]
    assert stats.stacks.nonfinite.tolist() == [0, 1]


def trees(grads):
    return grads, STACK, jax.tree.map(lambda p: p / 8, STACK)


def leaves(tree):
    return jax.tree.leaves(tree)


def test_names_of_layers_select_them():
    names = leaf_names(STACK, stacked={"*['w']": 1, "['out']": 0})
    assert names == (
        "['blocks']['b']",
        *(f"['blocks']['w'][:, {k}]" for k in range(5)),
        *(f"['out'][{k}]" for k in range(4)),
    )
    norms = gradient_statistics(STACK, stacked={"*['w']": 1, "['out']": 0}).leaves.norm
    for name, norm in zip(names, norms, strict=True):
        selected = eval(f"tree{name}", {"tree": STACK})
        assert norm == pytest.approx(np.linalg.norm(selected), rel=1e-5), name


PATTERNS = [
    ("['blocks']", ["['blocks']['b']", "['blocks']['w']"]),
    ("['blocks']['w']", ["['blocks']['w']"]),
    ("*['w']", ["['blocks']['w']"]),
    ("*", ["['blocks']['b']", "['blocks']['w']", "['out']"]),
    (["['out']", "*['b']"], ["['blocks']['b']", "['out']"]),
    ((), []),
    ({"['out']": -1}, ["['out']"]),
]


@pytest.mark.parametrize(("stacked", "wanted"), PATTERNS)
def test_patterns(stacked, wanted):
    assert list(stack_names(STACK, stacked=stacked)) == wanted
    stats = gradient_statistics(STACK, stacked=stacked)
    assert stats.stacks.norm.shape == (len(wanted),)
    assert stats.leaves.norm.shape == (len(leaf_names(STACK, stacked=stacked)),)


def test_the_first_pattern_that_fits_decides():
    names = leaf_names(STACK, stacked={"*['w']": 2, "['blocks']": 0})
    assert names[:4] == (
        *(f"['blocks']['b'][{k}]" for k in range(3)),
        "['blocks']['w'][:, :, 0]",
    )


def test_a_pattern_ends_with_a_key():
    tree = {"net": normal(2), "network": normal(2)}
    assert stack_names(tree, stacked="['net']") == ("['net']",)
    with pytest.raises(InvalidInputError, match="no leaf lies there"):
        leaf_names(tree, stacked="['net")


# ---- what cannot be used

W = np.ones((2, 3), np.float32)
BAD = [
    (({},), {}, "`gradient_statistics(grads=...)` must hold .* got an empty pytree."),
    ((None,), {}, "`gradient_statistics(grads=...)` must hold .* got an empty pytree."),
    (
        ({"n": np.arange(3, dtype=np.int32), "e": np.ones((0, 2), np.float32)},),
        {},
        "`gradient_statistics(grads=...)` must hold .*"
        r"got ['e']: float32[0, 2], ['n']: int32[3].",
    ),
    (
        ({"w": W}, {"v": W}),
        {},
        "`gradient_statistics(params=...)` must have the paths of `grads`; it has no "
        "floating or complex array at ['w']; the nearest are ['v'].",
    ),
    (({"w": W}, {"w": None}), {}, "`gradient_statistics(params=...)` .* none at all."),
    (
        ({"w": W}, {"w": W.astype(int)}),
        {},
        "`gradient_statistics(params=...)` .* ['w']",
    ),
    (
        ({"w": W}, {"w": W.T}),
        {},
        "`gradient_statistics(params=...)` must have the shapes of `grads`; at ['w'] "
        "it is [3, 2], wanted [2, 3].",
    ),
    (({"w": W}, None, {"v": W}), {}, "`gradient_statistics(updates=...)` .* ['w']"),
    (
        ({"w": W, "v": W}, None, {"w": W[0]}),
        {},
        "`gradient_statistics(updates=...)` .* ['w'] it is [3], wanted [2, 3].",
    ),
    ((W, {"w": W}), {}, "`gradient_statistics(params=...)` .* at the root; .* ['w']."),
    (
        ({"w": W},),
        {"stacked": "['v']"},
        "`gradient_statistics(stacked=...)` names \"['v']\", but no leaf lies there; "
        "the nearest are ['w'].",
    ),
    (
        ({"w": W, "s": np.float32(1)},),
        {"stacked": "*"},
        "`gradient_statistics(stacked=...)` must select leaves with an axis 0; ['s'], "
        "selected by '*', has 0 axes.",
    ),
    (({"w": W},), {"stacked": {"*": 2}}, ".* an axis 2; ['w'], .* has 2 axes."),
]


@pytest.mark.parametrize(("args", "options", "message"), BAD)
def test_bad_input_is_named(args, options, message):
    pattern = re.escape(message).replace(r"\.\*", ".*")
    with pytest.raises(InvalidInputError, match=f"^{pattern}"):
        gradient_statistics(*args, **options)


def test_names_refuse_what_statistics_refuse():
    with pytest.raises(InvalidInputError, match=r"`leaf_names\(tree=...\)` must hold"):
        leaf_names({})
    with pytest.raises(InvalidInputError, match=r"`stack_names\(stacked=...\)` names"):
        stack_names({"w": W}, stacked="['v']")
