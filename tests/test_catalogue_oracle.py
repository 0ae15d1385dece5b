"""The catalogue itself is honest: shown with NumPy and jax.grad alone, not jaxcheck."""

from __future__ import annotations

import zlib
from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.catalogue import CONTROLS, MUTANTS, UNKNOWABLE


def name_of(case):
    """The test id of a case."""
    return case.name


def one_in_three(cases):
    """All cases; two in three are slow: the catalogue seldom changes."""
    return [
        pytest.param(case, id=case.name, marks=[pytest.mark.slow] if k % 3 else [])
        for k, case in enumerate(cases)
    ]


def value_and_gradients(loss_fn, params, args):
    """The loss and the gradient of every leaf, by path."""
    value, grads = jax.jit(jax.value_and_grad(loss_fn))(params, *args)
    flat, _ = jax.tree_util.tree_flatten_with_path(grads)
    return value, {jax.tree_util.keystr(path): wide(leaf) for path, leaf in flat}


def wide(leaf):
    """The leaf as float64 or complex128."""
    wanted = np.complex128 if jnp.iscomplexobj(leaf) else np.float64
    return np.asarray(leaf).astype(wanted)


def raised(leaf):
    """The leaf in float64 or complex128, if it is of a floating dtype."""
    inexact = jnp.issubdtype(jnp.result_type(leaf), jnp.inexact)
    return jnp.asarray(wide(leaf)) if inexact else leaf


def coordinates(differs):
    """The indices at which an array is True."""
    return [tuple(int(i) for i in index) for index in np.argwhere(differs)]


@pytest.mark.parametrize("mutant", one_in_three(MUTANTS))
def test_fault_lies_exactly_where_the_mutant_says(mutant):
    wrong, twin, params, args = mutant.build()
    value_of_wrong, of_wrong = value_and_gradients(wrong, params, args)
    value_of_twin, of_twin = value_and_gradients(twin, params, args)

    assert np.isfinite(value_of_twin)
    np.testing.assert_allclose(value_of_wrong, value_of_twin, rtol=1e-6)
    assert set(mutant.leaves) < set(of_twin), "some leaf must stay right"
    for path, right in of_twin.items():
        assert np.isfinite(right).all(), path
        # Written so that NaN and infinity differ from everything.
        difference = np.abs(of_wrong[path] - right)
        rounding = 1e-6 * np.abs(right).max()
        differs = ~(difference <= 5e-4 * np.abs(right) + rounding)
        if path not in mutant.leaves:
            assert not differs.any(), path
        elif mutant.index is None:
            assert differs.any(), path
        else:
            assert coordinates(differs) == [mutant.index]


@pytest.mark.parametrize("mutant", one_in_three([m for m in MUTANTS if m.smooth]))
def test_twin_agrees_with_a_central_difference(mutant):
    with jax.enable_x64(True):
        _, twin, params, args = mutant.build()
        params, args = jax.tree.map(raised, (params, args))
        _, grads = value_and_gradients(twin, params, args)
        rng = np.random.default_rng(zlib.crc32(mutant.name.encode()))
        loss = jax.jit(twin)
        flat, treedef = jax.tree_util.tree_flatten_with_path(params)
        for number, (path, leaf) in enumerate(flat):
            direction = np.asarray(rng.standard_normal(leaf.shape))
            if jnp.iscomplexobj(leaf):
                direction = direction + 1j * rng.standard_normal(leaf.shape)
            step = 1e-5
            values = []
            for sign in (1, -1):
                leaves = [each for _, each in flat]
                leaves[number] = leaf + sign * step * direction
                values.append(float(loss(treedef.unflatten(leaves), *args)))
            numerical = (values[0] - values[1]) / (2 * step)
            terms = np.real(grads[jax.tree_util.keystr(path)] * direction)
            scale = np.sqrt(np.sum(terms**2))
            assert abs(np.sum(terms) - numerical) <= 1e-5 * scale + 1e-8, path


@pytest.mark.parametrize("control", one_in_three(CONTROLS))
def test_control_has_a_finite_loss_and_gradient(control):
    loss_fn, params, args = control.build()
    differentiable, others = partition(params)

    def loss(differentiable):
        return loss_fn(
            jax.tree.map(either, differentiable, others, is_leaf=is_none), *args
        )

    value, grads = jax.jit(jax.value_and_grad(loss))(differentiable)

    assert jnp.shape(value) == ()
    assert jnp.issubdtype(jnp.result_type(value), jnp.floating)
    assert np.isfinite(value)
    assert jax.tree.leaves(grads), "a control has something to differentiate"
    for path, leaf in jax.tree_util.tree_leaves_with_path(grads):
        assert np.isfinite(wide(leaf)).all(), jax.tree_util.keystr(path)


def is_none(leaf):
    return leaf is None


def either(first, second):
    return second if first is None else first


def partition(params):
    """Floating leaves and the others, as two trees with None in the gaps."""

    def floats(leaf):
        numeric = isinstance(leaf, float | np.generic | np.ndarray | jax.Array)
        return numeric and jnp.issubdtype(jnp.result_type(leaf), jnp.inexact)

    return (
        jax.tree.map(lambda leaf: leaf if floats(leaf) else None, params),
        jax.tree.map(lambda leaf: None if floats(leaf) else leaf, params),
    )


@pytest.mark.parametrize("case", [*MUTANTS[::10], *CONTROLS[::10]], ids=name_of)
def test_case_has_the_same_numbers_every_time(case):
    first, second = (
        [
            leaf
            for leaf in jax.tree.leaves(case.build().params)
            if hasattr(leaf, "dtype")
        ]
        for _ in range(2)
    )
    assert first
    for one, other in zip(first, second, strict=True):
        np.testing.assert_array_equal(one, other)


def test_unknowable_programs_can_be_called():
    for case in UNKNOWABLE:
        loss_fn, params, args = case.build()
        assert jnp.shape(loss_fn(params, *args)) == (), case.name


def test_names_are_unique():
    counts = Counter(case.name for case in (*MUTANTS, *CONTROLS, *UNKNOWABLE))
    assert [name for name, count in counts.items() if count > 1] == []


def test_catalogue_is_large_enough():
    assert len(MUTANTS) >= 90
    assert len(CONTROLS) >= 70
