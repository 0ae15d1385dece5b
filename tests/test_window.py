"""An equation among its neighbors."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcheck.jaxprs import compat
from jaxcheck.jaxprs.window import window


@jax.custom_jvp
def twice(x):
    return 2 * x


twice.defjvps(lambda t, out, x: 2 * t)


def program_of(fun, *inputs):
    program = jax.make_jaxpr(fun)(*inputs)
    return program, compat.opened(program)[0].eqns


def fun(kernel, x):
    return jnp.sum(jnp.exp(jnp.cos(twice(jnp.sin(x @ kernel)))) + 1.0)


def test_the_equation_is_marked_between_its_neighbors():
    program, eqns = program_of(fun, jnp.ones((3, 2)), jnp.ones((4, 3)))
    names = [e.primitive.name for e in eqns]
    at = names.index("custom_jvp_call")
    lines = window(program, eqns[at]).splitlines()
    assert [line.startswith("> ") for line in lines] == [
        False,
        False,
        True,
        False,
        False,
    ]
    assert lines[2] == f"> %{at}:f32[4,2] = custom_jvp_call[twice] %{at - 1}"
    assert lines[0] == "  %0:f32[4,2] = dot_general x kernel"


@pytest.mark.parametrize(("at", "shown", "marked"), [(0, 3, 0), (-1, 3, 2)])
def test_at_the_ends_there_are_fewer(at, shown, marked):
    program, eqns = program_of(fun, jnp.ones((3, 2)), jnp.ones((4, 3)))
    lines = window(program, eqns[at]).splitlines()
    assert len(lines) == shown
    assert lines[marked].startswith("> ")


def test_names_of_inputs_can_be_given():
    program, eqns = program_of(lambda p: p["w"] * 2.0, {"w": np.float32(1)})
    assert window(program, eqns[0], ["params['w']"]) == (
        "> %0:f32[] = mul params['w'] 2.0"
    )


def test_keys_tokens_and_many_outputs_are_spelled():
    key = jax.random.key(0)
    program, eqns = program_of(jax.random.split, key)
    assert "key<fry>" in window(program, eqns[0])
    program, eqns = program_of(lambda x: jax.lax.top_k(x, 2), jnp.arange(4.0))
    assert window(program, eqns[0]).startswith("> %0:f32[2] %0.1:i32[2] = top_k x")
