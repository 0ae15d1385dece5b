"""Estimated live bytes, against counts by hand."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcheck.jaxprs.memory import aval_bytes, peak_bytes

N = 1000
X = np.ones(N, np.float32)
BYTES = 4 * N


def chain(x):
    for _ in range(10):
        x = jnp.sin(x)
    return x


def kept(x):
    values = [jnp.sin(x + k) for k in range(10)]
    return sum(values[::-1])


CASES = {
    "one": (jnp.sin, 1),
    "chain": (chain, 2),  # the operand of an equation lives until its result is there
    "unused_input": (lambda x: 1.0 * x[0] * 0, 0),
    "nothing": (lambda x: x, 0),
}


@pytest.mark.parametrize("name", CASES)
def test_peak_by_hand(name):
    fun, arrays = CASES[name]
    peak = peak_bytes(jax.make_jaxpr(fun)(X))
    assert arrays * BYTES <= peak <= arrays * BYTES + 64


def test_values_that_stay_are_counted_together():
    assert peak_bytes(jax.make_jaxpr(kept)(X)) >= 10 * BYTES


def test_large_intermediates_count():
    program = jax.make_jaxpr(lambda x: jnp.sum(jnp.outer(x, x)))(X)
    assert N * BYTES <= peak_bytes(program) <= 4 * N * BYTES


def test_nested_programs_count():
    def body(c, _):
        return jnp.sum(jnp.outer(c, c), axis=0), None

    def fun(x):
        return jax.jit(lambda x: jax.lax.scan(body, x, None, length=3)[0])(x)

    assert N * BYTES <= peak_bytes(jax.make_jaxpr(fun)(X)) <= 4 * N * BYTES


def test_longer_loops_hold_no_more_than_their_outputs():
    def loop(length):
        def fun(x):
            return jax.lax.scan(
                lambda c, _: (jnp.sin(c), None), x, None, length=length
            )[0]

        return peak_bytes(jax.make_jaxpr(fun)(X))

    assert loop(10) == loop(1000)


@pytest.mark.parametrize(
    ("value", "count"),
    [
        (np.ones((3, 5), np.float32), 60),
        (np.ones(3, np.complex64), 24),
        (np.ones(3, np.int8), 3),
        (np.float16(1), 2),
        (np.ones(0, np.float32), 0),
    ],
)
def test_bytes_of_one_value(value, count):
    assert aval_bytes(jax.typeof(jnp.asarray(value))) == count


def test_what_is_no_array_counts_nothing():
    assert aval_bytes(object()) == 0
