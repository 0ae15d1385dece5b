"""A program that was seen before is not compiled again, and is never mistaken."""

from __future__ import annotations

import jax
import jax.monitoring
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcheck.jaxprs import compiled
from jaxcheck.jaxprs.compiled import Compiled, identity_of

X = np.linspace(0, 1, 4, dtype=np.float32)


@pytest.fixture
def compilations():
    """Counts compilations of this thread's programs."""
    count = [0]

    def listen(event, duration, **_):
        count[0] += event == "/jax/core/compile/backend_compile_duration"

    jax.monitoring.register_event_duration_secs_listener(listen)
    yield lambda: count[0]
    jax.monitoring.unregister_event_duration_listener(listen)


def make(factor):
    return Compiled(lambda x: [jnp.sum(jnp.sin(x) * factor)], [X], x64=False)


def test_same_program_is_compiled_once(compilations):
    first = make(2.0)(X)[0]
    before = compilations()
    second = make(2.0)(X)[0]
    assert compilations() == before
    assert float(first) == float(second)
    assert float(first) == pytest.approx(2 * float(np.sum(np.sin(X))), rel=1e-6)


def test_another_literal_is_another_program():
    assert float(make(2.0)(X)[0]) * 3 == pytest.approx(float(make(6.0)(X)[0]), rel=1e-6)


def test_constants_are_passed_not_remembered():
    def with_table(table):
        return Compiled(lambda x: [x * table], [X], x64=False)

    table = np.arange(4, dtype=np.float32)
    one, other = with_table(table), with_table(table + 1)
    np.testing.assert_array_equal(one(X)[0], X * table)
    np.testing.assert_array_equal(other(X)[0], X * (table + 1))
    np.testing.assert_array_equal(one(X)[0], X * table)


def test_callbacks_are_never_confused():
    struct = jax.ShapeDtypeStruct(X.shape, X.dtype)

    def make(factor):
        return Compiled(
            lambda x: [jax.pure_callback(lambda x: factor * np.asarray(x), struct, x)],
            [X],
            x64=False,
        )

    two, three = make(np.float32(2)), make(np.float32(3))
    np.testing.assert_array_equal(two(X)[0], 2 * X)
    np.testing.assert_array_equal(three(X)[0], 3 * X)


@pytest.mark.parametrize("x64", [False, True])
def test_x64_holds_inside_and_is_left_as_found(x64):
    before = jax.config.jax_enable_x64
    run = Compiled(lambda x: [jnp.asarray(x) / 3], [np.float64(1)], x64=x64)
    (out,) = run(np.float64(1))
    assert out.dtype == (np.float64 if x64 else np.float32)
    assert jax.config.jax_enable_x64 == before


def test_x64_is_part_of_the_key():
    def make(x64):
        return Compiled(lambda x: [x * 2], [X], x64=x64)

    assert make(False)(X)[0].dtype == make(True)(X)[0].dtype == np.float32


@pytest.mark.parametrize("x64", [False, True])
def test_a_head_start_compiles_what_the_call_runs(compilations, x64):
    run = Compiled(lambda x: [jnp.cos(x) / 7.5], [np.float64(1)], x64=x64)
    before = compilations()
    run.start(np.float64(1))
    run.start(np.float64(1))
    (out,) = run(np.float64(2))
    assert compilations() == before + 1
    assert out.dtype == (np.float64 if x64 else np.float32)
    assert float(out) == pytest.approx(np.cos(2) / 7.5, rel=1e-6)


def test_what_is_bound_to_a_device_has_no_head_start(compilations):
    device = jax.devices()[-1]
    x = jax.device_put(X, device)
    run = make(11.5)
    before = compilations()
    run.start(x)
    assert compilations() == before
    assert run(x)[0].devices() == {device}


def test_an_error_of_a_head_start_is_that_of_the_call():
    call = jax.ffi.ffi_call(
        "jaxcheck_has_no_such_target", jax.ShapeDtypeStruct((), X.dtype)
    )
    run = Compiled(lambda x: [call(jnp.sum(x))], [X], x64=False)
    run.start(X)
    for _ in range(2):
        with pytest.raises(jax.errors.JaxRuntimeError, match="no_such_target"):
            run(X)


def test_memory_is_bounded():
    for k in range(compiled._CAPACITY + 5):
        make(float(k) + 0.25)
    assert len(compiled._recent) <= compiled._CAPACITY


def test_what_was_used_lately_stays():
    first = make(0.125)
    for k in range(compiled._CAPACITY - 1):
        make(float(k) + 100.0)
        make(0.125)
    assert make(0.125)._run is first._run


def test_keys_and_abstract_inputs():
    struct = jax.ShapeDtypeStruct((3,), np.float32)
    run = Compiled(
        lambda key, x: [x + jax.random.uniform(key, (3,))],
        [jax.random.key(0), struct],
        x64=False,
    )
    key, x = jax.random.key(5), np.ones(3, np.float32)
    np.testing.assert_array_equal(run(key, x)[0], x + jax.random.uniform(key, (3,)))


def test_numpy_arguments_of_equal_content_are_the_same_program():
    def loss(w, x):
        return jnp.sum(w * x)

    def identity(x):
        program = jax.make_jaxpr(lambda w: loss(w, x))(jnp.ones(3))
        return identity_of(program)

    x = np.arange(3, dtype=np.int32)
    assert identity(x) == identity(x.copy())
    assert identity(x) != identity(x + 1)
