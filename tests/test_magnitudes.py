"""The size of what was summed, against sums written by hand."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcheck.jaxprs.magnitudes import run_with_magnitudes
from tests.programs import PROGRAMS

RNG = np.random.default_rng(0)
X = RNG.normal(size=(8, 5))
W = RNG.normal(size=(5, 3))


def sizes_of(fun, *inputs):
    with jax.enable_x64(True):
        program = jax.make_jaxpr(fun)(*inputs)
        count = len(program.out_avals)
        outputs, sizes = run_with_magnitudes(program, inputs, range(count))
        return [np.asarray(x) for x in outputs], [np.asarray(x) for x in sizes]


BY_HAND = {
    "matmul": (lambda x, w: x @ w, lambda x, w: abs(x) @ abs(w)),
    "sum": (lambda x, w: jnp.sum(x, 0), lambda x, w: abs(x).sum(0)),
    "transposed_matmul": (lambda x, w: (x @ w).T, lambda x, w: (abs(x) @ abs(w)).T),
    "negated": (lambda x, w: -jnp.sum(x, 0), lambda x, w: abs(x).sum(0)),
    "difference": (
        lambda x, w: x[0] - x[1],
        lambda x, w: abs(x[0]) + abs(x[1]),
    ),
    "sum_of_products": (
        lambda x, w: x @ w + (2 * x) @ w,
        lambda x, w: 3 * (abs(x) @ abs(w)),
    ),
    "sliced_sum": (lambda x, w: jnp.sum(x, 0)[1:3], lambda x, w: abs(x).sum(0)[1:3]),
    "reshaped": (
        lambda x, w: (x @ w).reshape(4, 6),
        lambda x, w: (abs(x) @ abs(w)).reshape(4, 6),
    ),
    "concatenated": (
        lambda x, w: jnp.concatenate([jnp.sum(x, 0), jnp.sum(x, 1)]),
        lambda x, w: np.concatenate([abs(x).sum(0), abs(x).sum(1)]),
    ),
    "segment_sum": (
        lambda x, w: jnp.zeros(3).at[jnp.array([0, 2, 2, 1, 0])].add(x[0]),
        lambda x, w: np.array(
            [abs(x[0, [0, 4]]).sum(), abs(x[0, 3]), abs(x[0, [1, 2]]).sum()]
        ),
    ),
    "unknown": (lambda x, w: jnp.sin(x) - 0 * x, lambda x, w: abs(np.sin(x))),
    "input": (lambda x, w: x, lambda x, w: abs(x)),
}


@pytest.mark.parametrize("name", BY_HAND)
def test_sizes_are_those_by_hand(name):
    fun, by_hand = BY_HAND[name]
    (out,), (size,) = sizes_of(fun, X, W)
    np.testing.assert_allclose(out, evaluated(fun), rtol=1e-14)
    np.testing.assert_allclose(size, by_hand(X, W), rtol=1e-12)


def evaluated(fun):
    with jax.enable_x64(True):
        return np.asarray(fun(jnp.asarray(X), jnp.asarray(W)))


def test_a_gradient_that_cancels_has_the_size_of_its_terms():
    batch = np.stack([np.ones(4), -np.ones(4)])

    def loss(w):
        return jnp.sum(batch @ w)

    (grad,), (size,) = sizes_of(jax.grad(loss), np.zeros(4))

    np.testing.assert_array_equal(grad, 0)
    np.testing.assert_array_equal(size, 2)


@pytest.mark.parametrize(
    "name",
    [p.name for p in PROGRAMS if p.gradient == "backward" and p.reference == "float64"][
        ::3
    ],
)
def test_sizes_are_never_below_the_gradient(name):
    fun, inputs = next(p for p in PROGRAMS if p.name == name).build()
    moving = tuple(
        k for k, x in enumerate(inputs) if jnp.issubdtype(x.dtype, jnp.floating)
    )
    if not moving:
        pytest.skip("only complex inputs")

    def loss(*xs):
        out = fun(*xs)
        return out[0] if isinstance(out, tuple) else out

    def gradient(*xs):
        return list(jax.grad(loss, moving)(*xs))

    program = jax.make_jaxpr(gradient)(*inputs)
    run = jax.jit(lambda *xs: run_with_magnitudes(program, xs, range(len(moving))))
    outputs, sizes = run(*inputs)

    for out, size in zip(outputs, sizes, strict=True):
        assert size.shape == out.shape
        assert np.all(np.asarray(size) >= np.abs(np.asarray(out)))


def test_complex_values_fall_back_to_their_size():
    z = X[0] + 1j * X[1]
    (out,), (size,) = sizes_of(lambda z: jnp.real(z * jnp.conj(z)) * 1.0, z)
    assert np.all(size >= abs(out))
