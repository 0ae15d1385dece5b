"""A program gives the same one equation at a time."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcheck.jaxprs import compat, interpret, stepwise


@jax.custom_vjp
def cube(x):
    return x**3


cube.defvjp(lambda x: (x**3, x), lambda x, g: (3 * x**2 * g,))


def scanned(x):
    def body(carry, row):
        return carry * 0.5 + jnp.sin(row), (carry, row[0])

    last, (carries, firsts) = jax.lax.scan(body, x[0], x, reverse=True)
    return last.sum() + (carries * jnp.arange(4.0)[:, None]).sum() + firsts[1]


def looped(x):
    step = lambda state: (state[0] + 1, jnp.cos(state[1]))  # noqa: E731
    return jax.lax.while_loop(lambda s: s[0] < 7, step, (0, x))[1].sum()


PROGRAMS = {
    "nested jit": lambda x: jax.jit(lambda y: jax.nn.relu(y) @ y.T)(x).sum(),
    "a rule": lambda x: cube(x).sum(),
    "a checkpoint": lambda x: jax.checkpoint(jnp.sin)(x).sum(),
    "scan": scanned,
    "while": looped,
    "a batched while": lambda x: jax.vmap(
        lambda y: jax.lax.while_loop(lambda s: s.sum() < 9, lambda s: s * 2, y)
    )(jnp.abs(x) + 0.1).sum(),
    "cond": lambda x: jax.lax.cond(x[0, 0] > 0, jnp.sin, jnp.cos, x).sum(),
    "switch out of range": lambda x: jax.lax.switch(7, [jnp.sin, jnp.cos], x).sum(),
    "an empty scan": lambda x: jax.lax.scan(lambda c, y: (c + y, c), x[0], x[:0])[
        0
    ].sum(),
    "softmax": lambda x: jax.nn.log_softmax(x).sum(),
}


@pytest.mark.parametrize("name", PROGRAMS)
@pytest.mark.parametrize("differentiated", [False, True])
def test_one_by_one_is_the_program(name, differentiated):
    fun = PROGRAMS[name]
    if differentiated:
        if "while" in name:
            pytest.skip("no gradient passes through while backward")
        fun = jax.grad(fun)
    x = jnp.asarray(np.random.default_rng(0).normal(size=(4, 3)), jnp.float32)
    program = compat.make_program(lambda x: [fun(x)], [x])
    seen = []

    def after(eqn, values, outs):
        seen.append(eqn.primitive.name)
        return outs

    got = stepwise.one_by_one(program, [x], after)
    np.testing.assert_allclose(got[0], fun(x), rtol=2e-6, atol=1e-6)
    opened = {"jit", "pjit", "custom_vjp_call", "checkpoint", "cond"}
    assert not opened & set(seen)
    assert "scan" not in seen

    flat = stepwise.flattened(program, [x])
    assert not (opened - {"cond"}) & {eqn.primitive.name for eqn in flat.eqns}
    got, wanted = (interpret.evaluate(p, [x])[0] for p in (flat, program))
    np.testing.assert_allclose(got, wanted, rtol=2e-6, atol=1e-6)


def test_a_long_loop_is_run_as_a_whole(monkeypatch):
    monkeypatch.setattr(stepwise, "MOST_STEPS", 3)
    x = jnp.ones((4, 3))
    for fun in (scanned, looped):
        program = compat.make_program(lambda x, fun=fun: [fun(x)], [x])
        (got,) = stepwise.one_by_one(program, [x])
        np.testing.assert_allclose(got, fun(x), rtol=1e-6)
