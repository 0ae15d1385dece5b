"""Two programs share a fingerprint exactly if they are the same program."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcheck.jaxprs.fingerprint import fingerprint, same_constants
from tests.programs import PROGRAMS

X = np.ones(4, np.float32)
BY_NAME = {program.name: program for program in PROGRAMS}


def trace(fun, *inputs):
    # a new function: JAX remembers traces by identity
    return jax.make_jaxpr(lambda *xs: fun(*xs))(*inputs)  # noqa: PLW0108


@pytest.mark.parametrize("name", BY_NAME)
def test_the_same_function_traced_twice_is_the_same_loosely(name):
    fun, inputs = BY_NAME[name].build()

    first, second = trace(fun, *inputs), trace(fun, *inputs)

    assert fingerprint(first, loose=True) == fingerprint(second, loose=True)
    assert same_constants(first, second)
    # the exact fingerprint: of one program the same, and usable as a key
    assert fingerprint(first) == fingerprint(first)
    assert hash(fingerprint(first)) == hash(fingerprint(first))


PLAIN = ("scan_forward", "fft", "cond", "convolution", "gather", "remat_plain", "while")


@pytest.mark.parametrize("name", PLAIN)
def test_the_same_function_traced_twice_is_the_same(name):
    fun, inputs = BY_NAME[name].build()
    assert fingerprint(trace(fun, *inputs)) == fingerprint(trace(fun, *inputs))


def _scan(x, **options):
    return jax.lax.scan(lambda c, y: (c * y, c), x[0], x, **options)


DIFFERENT = {
    "primitive": (jnp.sin, jnp.cos),
    "literal": (lambda x: x * 2.0, lambda x: x * 2.0000002),
    "sign_of_zero": (lambda x: x + 0.0, lambda x: x + (-0.0)),
    "operand_order": (lambda x: x - jnp.sin(x), lambda x: jnp.sin(x) - x),
    "operand": (lambda x: jnp.sin(x) * x, lambda x: jnp.sin(x) * jnp.sin(x)),
    "outputs": (lambda x: (jnp.sin(x), x), lambda x: (x, jnp.sin(x))),
    "parameter": (
        lambda x: jnp.sum(x.reshape(2, 2), 0),
        lambda x: jnp.sum(x.reshape(2, 2), 1),
    ),
    "dtype": (lambda x: x.astype(jnp.float16), lambda x: x.astype(jnp.bfloat16)),
    "length": (lambda x: x[:2], lambda x: x[:3]),
    "nested_literal": (
        jax.jit(lambda x: x * 2.0),
        jax.jit(lambda x: x * 3.0),
    ),
    "scan_direction": (_scan, functools.partial(_scan, reverse=True)),
    "scan_body": (
        lambda x: jax.lax.scan(lambda c, y: (c * y, c), x[0], x),
        lambda x: jax.lax.scan(lambda c, y: (c * y, y), x[0], x),
    ),
    "branch_order": (
        lambda x: jax.lax.cond(x[0] > 0, jnp.sin, jnp.cos, x),
        lambda x: jax.lax.cond(x[0] > 0, jnp.cos, jnp.sin, x),
    ),
    "remat": (jnp.sin, jax.checkpoint(jnp.sin)),
    "precision": (
        lambda x: jnp.dot(x, x),
        lambda x: jnp.dot(x, x, precision="highest"),
    ),
    "policy": (
        jax.checkpoint(jnp.sin, policy=jax.checkpoint_policies.dots_saveable),
        jax.checkpoint(jnp.sin, policy=jax.checkpoint_policies.everything_saveable),
    ),
    "static_order": (jnp.sort, lambda x: jnp.sort(x, descending=True)),
}


@pytest.mark.parametrize("name", DIFFERENT)
@pytest.mark.parametrize("loose", [False, True])
def test_different_programs_differ(name, loose):
    if name == "policy" and loose:
        pytest.skip("a policy is a function, which a loose fingerprint leaves out")
    one, other = (fingerprint(trace(f, X), loose=loose) for f in DIFFERENT[name])
    assert one != other


@pytest.mark.parametrize(
    "other",
    [np.ones(5, np.float32), np.ones((4, 1), np.float32), np.ones(4, np.float16)],
    ids=["length", "rank", "dtype"],
)
def test_inputs_are_part_of_it(other):
    assert fingerprint(trace(jnp.sin, X)) != fingerprint(trace(jnp.sin, other))


def test_constants_are_not_part_of_it_but_are_compared_apart():
    def with_table(table):
        return trace(lambda x: jnp.sum(x * table), X)

    table = np.arange(4, dtype=np.float32)
    one, other = with_table(table), with_table(table + 1)

    assert fingerprint(one) == fingerprint(other)
    assert same_constants(one, with_table(table.copy()))
    assert not same_constants(one, other)


def test_constants_that_are_nan_are_themselves():
    table = np.array([1, np.nan, 3, 4], np.float32)
    one = trace(lambda x: jnp.sum(x * table), X)
    other = trace(lambda x: jnp.sum(x * table.copy()), X)
    assert same_constants(one, other)


def test_callbacks_are_compared_by_identity_unless_loosely():
    def program(function):
        struct = jax.ShapeDtypeStruct(X.shape, X.dtype)
        return trace(lambda x: jax.pure_callback(function, struct, x), X)

    def one(x):
        return x

    def other(x):
        return 2 * x

    assert fingerprint(program(one)) != fingerprint(program(other))
    assert fingerprint(program(one), loose=True) == fingerprint(
        program(other), loose=True
    )


def test_names_of_variables_and_functions_do_not_matter():
    def one(a):
        b = jnp.sin(a)
        return b * a

    def other(x):
        return jnp.sin(x) * x

    assert fingerprint(trace(one, X)) == fingerprint(trace(other, X))
