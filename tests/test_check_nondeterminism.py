"""A loss that is not a function of its arguments is not judged, and it is said why."""

from __future__ import annotations

import itertools
import random
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxcheck
from jaxcheck import Verdict

W = jnp.linspace(0.2, 1.4, 40)


def kinds(report):
    return {finding.kind for finding in report.findings}


def numbers(dtype):
    """Another array at each call."""
    rng = np.random.default_rng(0)
    return lambda: (rng.standard_normal(40) * 10).astype(dtype)


def of_numpy(dtype):
    draw = numbers(dtype)
    return lambda p: jnp.sum(jnp.sin(p) * draw().astype(np.float32))


def of_jax(dtype):
    draw = numbers(np.float32)
    return lambda p: jnp.sum(jnp.sin(p) * jnp.asarray(draw(), dtype))


def of_complex_jax():
    loss = of_jax(jnp.complex64)
    return lambda p: jnp.real(loss(p) * (1 + 1j))


def numpy_mask():
    draw = numbers(np.float32)
    return lambda p: jnp.sum(jnp.where(draw() > 0, p**2, 0.0))


def global_numpy():
    return lambda p: jnp.sum(p**2) * np.random.rand()  # noqa: NPY002


def python_random():
    generator = random.Random(0)
    return lambda p: jnp.sum(p**2) * generator.random()


def counter():
    count = itertools.count(1)
    return lambda p: jnp.sum(p**2) * next(count)


def clock():
    return lambda p: jnp.sum(p**2) * (time.perf_counter_ns() % 1_000_003)


def key_of_a_counter():
    count = itertools.count()

    def loss(p):
        keep = jax.random.bernoulli(jax.random.key(next(count)), 0.5, p.shape)
        return jnp.sum(jnp.where(keep, p**2, 0.0))

    return loss


def key_split_in_the_closure():
    held = {"key": jax.random.key(0)}

    def loss(p):
        with jax.ensure_compile_time_eval():
            held["key"], key = jax.random.split(held["key"])
        keep = jax.random.bernoulli(key, 0.5, p.shape)
        return jnp.sum(jnp.where(keep, p**2, 0.0))

    return loss


def old_key_split_in_the_closure():
    held = {"key": jax.random.PRNGKey(0)}

    def loss(p):
        with jax.ensure_compile_time_eval():
            held["key"], key = jax.random.split(held["key"])
        return jnp.sum(p**2 * jax.random.normal(key, p.shape))

    return loss


def growing_list():
    seen = []

    def loss(p):
        seen.append(1)
        return sum(jnp.sum(p**2) for _ in seen)

    return loss


def permutation():
    rng = np.random.default_rng(0)
    return lambda p: jnp.sum(p[rng.permutation(40)] * jnp.arange(40.0))


def nested():
    draw = numbers(np.float32)

    def loss(p):
        step = lambda c, x: (c + jnp.sum(x * draw()), None)  # noqa: E731
        return jax.lax.scan(step, 0.0, jnp.stack([p, p**2]))[0]

    return loss


def nested_mask():
    draw = numbers(np.float32)

    def loss(p):
        keep = draw() > 0
        return jnp.sum(jax.checkpoint(lambda p: jnp.where(keep, p**2, 0.0))(p))

    return loss


MOVING = {
    "float32 of NumPy": lambda: of_numpy(np.float32),
    "int of NumPy": lambda: of_numpy(np.int32),
    "bool of NumPy": numpy_mask,
    "float32 of JAX": lambda: of_jax(jnp.float32),
    "bfloat16 of JAX": lambda: of_jax(jnp.bfloat16),
    "float16 of JAX": lambda: of_jax(jnp.float16),
    "complex of JAX": of_complex_jax,
    "NumPy's global generator": global_numpy,
    "Python's generator": python_random,
    "counter": counter,
    "clock": clock,
    "key of a counter": key_of_a_counter,
    "key split": key_split_in_the_closure,
    "old key split": old_key_split_in_the_closure,
    "growing list": growing_list,
    "permutation": permutation,
    "inside scan": nested,
    "mask inside checkpoint": nested_mask,
}


@pytest.fixture(autouse=True)
def _numpy_is_reset():
    state = np.random.get_state()  # noqa: NPY002
    yield
    np.random.set_state(state)  # noqa: NPY002


def assert_nondeterministic(report):
    assert report.verdict is Verdict.INCONCLUSIVE, str(report)
    assert "nondeterministic" in kinds(report), str(report)
    (finding,) = (f for f in report.findings if f.kind == "nondeterministic")
    assert finding.message
    assert finding.remedy
    assert not report.passed
    assert "nondeterministic" in str(report)


@pytest.mark.parametrize("make", MOVING.values(), ids=MOVING)
def test_what_moves_is_noticed(make):
    assert_nondeterministic(jaxcheck.check(make(), W))


def test_an_impure_callback():
    count = itertools.count(1)

    def loss(p):
        factor = jax.pure_callback(
            lambda: np.float32(next(count)), jax.ShapeDtypeStruct((), np.float32)
        )
        return jnp.sum(p**2) * factor

    assert_nondeterministic(jaxcheck.check(loss, W))


def test_an_impure_callback_of_the_parameters():
    """It has a rule, and it draws noise that is small."""
    rng = np.random.default_rng(0)

    @jax.custom_vjp
    def noisy(x):
        return jax.pure_callback(
            lambda x: np.asarray(x * (1 + 1e-3 * rng.standard_normal()), np.float32),
            jax.ShapeDtypeStruct(x.shape, np.float32),
            x,
            vmap_method="sequential",
        )

    noisy.defvjp(lambda x: (noisy(x), None), lambda _, ct: (ct,))
    assert_nondeterministic(jaxcheck.check(lambda p: jnp.sum(noisy(p)), W))


def test_an_impure_io_callback():
    count = itertools.count(1)

    def loss(p):
        factor = jax.experimental.io_callback(
            lambda: np.float32(next(count)),
            jax.ShapeDtypeStruct((), np.float32),
            ordered=True,
        )
        return jnp.sum(p**2) * factor

    assert_nondeterministic(jaxcheck.check(loss, W))


# ---- what does not move --------------------------------------------------------------


def test_dropout_with_a_key_is_a_function():
    def loss(p, key):
        keep = jax.random.bernoulli(key, 0.5, p.shape)
        return jnp.sum(jnp.where(keep, p**2, 0.0))

    assert jaxcheck.check(loss, W, jax.random.key(0)).passed


@pytest.mark.parametrize("make", [jax.random.key, jax.random.PRNGKey])
def test_a_key_held_in_the_closure_is_constant(make):
    key = make(3)
    assert jaxcheck.check(
        lambda p: jnp.sum(p**2 * jax.random.normal(key, p.shape)), W
    ).passed


def test_a_key_made_anew_but_equal_is_constant():
    def loss(p):
        with jax.ensure_compile_time_eval():
            key = jax.random.key(3)
        return jnp.sum(p**2 * jax.random.normal(key, p.shape))

    assert jaxcheck.check(loss, W).passed


def test_numpy_with_its_own_seed_is_a_function():
    def loss(p):
        return jnp.sum(p * np.random.default_rng(0).standard_normal(40))

    assert jaxcheck.check(loss, W).passed


def test_constants_with_nan_are_equal_to_themselves():
    data = np.full(40, np.nan, np.float32)
    loss = lambda p: jnp.sum(jnp.where(np.isnan(data), p**2, data * p))  # noqa: E731
    report = jaxcheck.check(loss, W)
    assert "nondeterministic" not in kinds(report), str(report)


def test_a_pure_callback_with_a_rule_is_a_function():
    @jax.custom_vjp
    def square(x):
        return jax.pure_callback(
            lambda x: np.asarray(np.square(x), np.float32),
            jax.ShapeDtypeStruct(x.shape, np.float32),
            x,
            vmap_method="broadcast_all",
        )

    square.defvjp(lambda x: (square(x), x), lambda x, ct: (2 * x * ct,))
    report = jaxcheck.check(lambda p: jnp.sum(square(p)), W)
    assert "nondeterministic" not in kinds(report)
    assert report.verdict is not Verdict.WRONG, str(report)


def test_a_jitted_loss_is_what_it_was_traced_to():
    """Randomness that jit froze into the program does not move any more."""
    draw = numbers(np.float32)
    loss = jax.jit(lambda p: jnp.sum(jnp.sin(p) * draw()))
    assert jaxcheck.check(loss, W).passed


def test_lists_of_functions_and_objects_in_the_trace_do_not_look_like_change():
    """Objects made anew at each trace (rules, callbacks, partials)."""

    def loss(p):
        @jax.custom_jvp
        def square(x):
            return x**2

        square.defjvp(lambda x, t: (x[0] ** 2, 2 * x[0] * t[0]))
        inner = jax.jit(lambda x: square(x) + 1)
        return jnp.sum(jax.checkpoint(inner)(p))

    assert jaxcheck.check(loss, W).passed
