"""What defeats today's tools: wrong gradients that pass, right ones that fail.

``jax.test_util.check_grads`` scales its tolerance with the size of the array, torch's
fast mode misses single coordinates, ``chex.assert_numerical_grads`` replaces
``stop_gradient``: each case here is one that was seen to go through or to fail there.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxcheck
from jaxcheck import Verdict

# the places are another question
check = functools.partial(jaxcheck.check, locate=False)


def scaled_sine(change):
    """sin, with ``change`` applied to its derivative."""

    @jax.custom_jvp
    def sine(x):
        return jnp.sin(x)

    sine.defjvps(lambda t, out, x: change(jnp.cos(x)) * t)
    return lambda x: jnp.sum(sine(x))


def normal(size, seed=0):
    return np.random.default_rng(seed).normal(size=size).astype(np.float32)


def verdict(loss, *args, **options):
    return check(loss, *args, **options).verdict


# ---- wrong, and passed ---------------------------------------------------------------


@pytest.mark.parametrize(
    "size", [500, 100_000, pytest.param(1_000_000, marks=pytest.mark.slow)]
)
def test_a_jvp_wrong_by_two_at_any_size(size):
    report = check(scaled_sine(lambda d: 2 * d), normal(size))
    assert report.verdict is Verdict.WRONG
    assert report.leaves[0].pattern == "2 times the derivative"


@pytest.mark.parametrize("size", [2_000, 100_000])
def test_a_flipped_sign_at_any_size(size):
    report = check(scaled_sine(lambda d: -d), normal(size))
    assert report.verdict is Verdict.WRONG
    assert report.leaves[0].pattern == "-1 times the derivative: the sign is flipped"


@pytest.mark.slow
def test_one_zeroed_coordinate_of_a_million():
    @jax.custom_vjp
    def loss(x):
        return jnp.sum(jnp.sin(x))

    loss.defvjp(
        lambda x: (loss(x), x), lambda x, ct: (ct * jnp.cos(x).at[123_456].set(0),)
    )
    report = check(loss, normal(1_000_000))
    assert report.verdict is Verdict.WRONG
    assert report.leaves[0].worst.index == (123_456,)
    assert report.leaves[0].failing == 1


@pytest.mark.parametrize("sign", [1.0, -1.0])
@pytest.mark.parametrize("mode", ["exhaustive", "directional"])
def test_two_errors_of_equal_size(sign, mode):
    @jax.custom_vjp
    def loss(x):
        return jnp.sum(jnp.sin(x))

    def backward(x, ct):
        return (ct * jnp.cos(x).at[10].add(0.1).at[700].add(sign * 0.1),)

    loss.defvjp(lambda x: (loss(x), x), backward)
    assert verdict(loss, normal(1_000), mode=mode) is Verdict.WRONG


@pytest.mark.parametrize("mode", ["exhaustive", "directional"])
def test_a_rule_of_renormalization_without_its_projection(mode):
    """The forgotten term of x / max(1, |x|) vanishes for most random projections."""

    @jax.custom_vjp
    def renorm(x):
        return x / jnp.maximum(1.0, jnp.linalg.norm(x))

    renorm.defvjp(
        lambda x: (renorm(x), x),
        lambda x, ct: (ct / jnp.maximum(1.0, jnp.linalg.norm(x)),),
    )
    target = normal(1_000, seed=1)
    right = lambda x: x / jnp.maximum(1.0, jnp.linalg.norm(x))  # noqa: E731
    x = normal(1_000)
    assert verdict(lambda x: jnp.vdot(renorm(x), target), x, mode=mode) is Verdict.WRONG
    assert (
        verdict(lambda x: jnp.vdot(right(x), target), x, mode=mode) is Verdict.CORRECT
    )


def test_where_and_sqrt_give_nan():
    loss = lambda x: jnp.sum(jnp.where(x > 0, jnp.sqrt(x), 0.0))  # noqa: E731
    report = check(loss, np.float32([-1.0, 0.5, 2.0, -0.3]))
    assert report.verdict is Verdict.WRONG
    assert "nan_gradient" in {f.kind for f in report.findings}


# ---- right, and failed ---------------------------------------------------------------


def test_a_sum_of_squares_of_many_float32():
    for seed in range(3):
        assert (
            verdict(lambda x: jnp.sum(x**2), normal(100_000, seed)) is Verdict.CORRECT
        )


def test_a_sine_in_bfloat16():
    x = jnp.asarray(normal(50), jnp.bfloat16)
    assert verdict(lambda x: jnp.sum(jnp.sin(x)), x) is Verdict.CORRECT


@pytest.mark.parametrize("fn", [jax.nn.relu, jnp.abs, lambda x: jnp.maximum(x, 0)])
@pytest.mark.parametrize("mode", ["exhaustive", "directional"])
def test_ties_at_zero(fn, mode):
    x = np.float32([-1.0, 0.0, 2.0, 0.0])
    report = check(lambda x: jnp.sum(fn(x) * jnp.arange(1.0, 5.0)), x, mode=mode)
    assert report.verdict is Verdict.CORRECT, str(report)
    assert "kink" in {f.kind for f in report.findings}


def test_a_floor():
    x = np.float32([0.3, 1.7, -2.4])
    assert verdict(lambda x: jnp.sum(jnp.floor(x) * x), x) is Verdict.CORRECT


@pytest.mark.parametrize("mode", ["exhaustive", "directional"])
def test_a_straight_through_estimator(mode):
    def loss(x):
        rounded = x + jax.lax.stop_gradient(jnp.round(x) - x)
        return jnp.sum(rounded * jnp.sin(x))

    assert verdict(loss, normal(20), mode=mode) is Verdict.CORRECT


def test_a_value_times_itself_held_constant():
    loss = lambda x: jnp.sum(jax.lax.stop_gradient(x) * x)  # noqa: E731
    assert verdict(loss, normal(9)) is Verdict.CORRECT
    assert verdict(loss, normal(9), stop_gradient="transparent") is Verdict.WRONG


def test_a_logsumexp_of_thousands():
    x = np.float32([1000.0, 999.5, -1000.0, 998.0])
    assert verdict(jax.nn.logsumexp, x) is Verdict.CORRECT


@pytest.mark.parametrize("mode", ["exhaustive", "directional"])
def test_a_large_leaf_beside_a_small_one(mode):
    params = {"big": 3e5 * normal(20), "one": normal(20, seed=1)}

    def loss(p):
        return jnp.sum((p["big"] / 3e5) ** 2) + jnp.sum(jnp.sin(p["one"]))

    report = check(loss, params, mode=mode)
    assert report.verdict is Verdict.CORRECT, str(report)


def test_integers_in_the_auxiliary_output_and_in_the_arguments():
    def loss(p, labels, key):
        noise = jax.random.normal(key, p["w"].shape)
        value = jnp.sum((p["w"] + 0.1 * noise)[labels] ** 2)
        return value, {"count": labels.size, "labels": labels}

    args = np.array([0, 2, 2]), jax.random.key(3)
    assert verdict(loss, {"w": normal(4)}, *args, has_aux=True) is Verdict.CORRECT


def test_a_dictionary_of_parameters():
    assert verdict(lambda p: jnp.sum(p["a"] ** 2), {"a": normal(3)}) is Verdict.CORRECT
