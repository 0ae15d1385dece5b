"""Tracing a loss: what it is, and what is refused."""

from __future__ import annotations

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcheck.errors import InvalidInputError
from jaxcheck.jaxprs.interpret import evaluate
from jaxcheck.jaxprs.trace import loss_of, trace_loss
from jaxcheck.trees import partition

X = np.linspace(0.5, 1.5, 3, dtype=np.float32)


def traced(loss_fn, params, *args, has_aux=False):
    return trace_loss(loss_fn, partition(params), args, has_aux=has_aux)


def opened(program):
    return program.jaxpr if hasattr(program, "jaxpr") else program


def names(program):
    return [eqn.primitive.name for eqn in opened(program).eqns]


def test_program_computes_the_loss():
    params = {"w": X, "n": np.int32(2), "s": 3.0, "k": None}

    def loss(p, x, scale):
        assert p["k"] is None
        assert p["n"].dtype == np.int32
        return jnp.sum(jnp.sin(p["w"] * x)) * p["s"] * scale

    t = traced(loss, params, jnp.asarray(X), 2.0)
    (value,) = evaluate(t.program, t.inputs)

    assert value == pytest.approx(6 * np.sum(np.sin(X * X)), rel=1e-6)
    assert [np.shape(x) for x in t.inputs] == [(), (3,)]
    assert float(t.function(*t.inputs)) == pytest.approx(float(value), rel=1e-6)
    assert t.deterministic
    assert not t.x64


def test_inputs_are_the_differentiable_leaves_alone():
    params = [jnp.arange(2), jnp.ones(3), jax.random.key(0), 2.0]

    def loss(p, x):
        noise = jax.random.normal(p[2], (3,))
        return jnp.sum(p[1] * noise) * p[3] + jnp.sum(p[0]) + x[0]

    t = traced(loss, params, [jnp.float32(5)])

    assert [np.shape(x) for x in t.inputs] == [(3,), ()]
    assert len(opened(t.program).invars) == 2
    (value,) = evaluate(t.program, t.inputs)
    np.testing.assert_allclose(value, loss(params, [5.0]), rtol=1e-6)
    moved = (jnp.full(3, 2.0), 3.0)
    np.testing.assert_allclose(
        t.function(*moved), evaluate(t.program, moved)[0], rtol=1e-6
    )


def test_numpy_arguments_stay_concrete():
    def loss(w, x, labels, n):
        assert isinstance(x, np.ndarray)
        return jnp.sum(w) * sum(range(n)) * float(x[0]) * len(set(labels.tolist()))

    assert traced(loss, jnp.asarray(X), X, np.array([1, 2, 2]), 3).deterministic


def test_dtypes_are_the_program_s_own():
    t = traced(lambda w: jnp.sum(w.astype(jnp.bfloat16)), jnp.asarray(X))
    jaxpr = opened(t.program)
    assert jaxpr.invars[0].aval.dtype == np.float32
    assert jaxpr.outvars[0].aval.dtype == jnp.bfloat16


@pytest.mark.parametrize("x64", [False, True])
def test_x64_is_noted(x64):
    with jax.enable_x64(x64):
        assert traced(jnp.sum, X).x64 is x64


def test_what_only_the_auxiliary_output_needed_is_left_out():
    def loss(w):
        return jnp.sum(jnp.sin(w)), {"norm": jnp.cos(w)}

    t = traced(loss, jnp.asarray(X), has_aux=True)
    assert "cos" not in names(t.program)
    assert "sin" in names(t.program)


def test_exceptions_of_the_loss_pass_untouched():
    class OwnError(RuntimeError):
        pass

    def loss(w):
        raise OwnError("mine")

    with pytest.raises(OwnError) as caught:
        traced(loss, jnp.asarray(X))
    assert caught.value.args == ("mine",)


# -- is it a function?


def _random(w):
    return jnp.sum(w) * np.random.default_rng().uniform()


def _global_random(w):
    noise = jnp.asarray(np.random.default_rng().normal(size=3).astype(np.float32))
    return jnp.sum(w * noise)


def _counting():
    counter = itertools.count()
    return lambda w: jnp.sum(w) * float(next(counter))


def _growing():
    seen = []

    def loss(w):
        seen.append(0)
        return sum(jnp.sum(jnp.sin(w)) for _ in seen)

    return loss


@pytest.mark.parametrize(
    "loss",
    [_random, _global_random, _counting(), _growing()],
    ids=["literal", "constant", "counter", "structure"],
)
def test_impure_losses_are_noticed(loss):
    assert not traced(loss, jnp.asarray(X)).deterministic


def _callback(w):
    return jax.pure_callback(
        lambda w: np.float32(np.sum(w)), jax.ShapeDtypeStruct((), np.float32), w
    )


def _rule(w):
    @jax.custom_vjp
    def f(w):
        return jnp.sum(w)

    f.defvjp(lambda w: (jnp.sum(w), None), lambda _, ct: (ct * jnp.ones(3),))
    return f(w)


@pytest.mark.parametrize(
    "loss",
    [
        _callback,
        _rule,
        lambda w: jnp.sum(w * np.array([1, np.nan, 2], np.float32)),
        lambda w: jnp.sum(jax.random.normal(jax.random.key(0), (3,)) * w),
        lambda w: jnp.sum(jax.checkpoint(jnp.sin)(w)),
        jax.jit(jnp.sum),
    ],
    ids=["callback", "rule", "nan_constant", "key", "remat", "jit"],
)
def test_pure_losses_are_not_accused(loss):
    assert traced(loss, jnp.asarray(X)).deterministic


# -- what a loss may return


@pytest.mark.parametrize(
    ("out", "message"),
    [
        (jnp.ones(3), r"returned float32\[3\]. Reduce it"),
        (jnp.ones((2, 1)), r"returned float32\[2,1\]. Reduce it"),
        (jnp.int32(3), r"floating scalar; it returned int32\[\]"),
        (True, "floating scalar; it returned True"),
        (jnp.complex64(1j), r"real scalar; it returned complex64\[\]"),
        ((jnp.float32(1), {}), r"returned \(float32\[\], dict\).*has_aux=True"),
        (None, "returned None"),
        ({"loss": 1.0}, "returned dict"),
        ("1.0", "returned str"),
    ],
)
def test_what_is_no_loss_is_refused(out, message):
    with pytest.raises(InvalidInputError, match=message):
        loss_of(out, has_aux=False)


@pytest.mark.parametrize("out", [1.0, jnp.float32(1), (1.0, 2, 3), jnp.ones(2)])
def test_with_aux_a_pair_is_wanted(out):
    with pytest.raises(InvalidInputError, match=r"must return \(loss, aux\)"):
        loss_of(out, has_aux=True)


@pytest.mark.parametrize(
    "out", [1.5, np.float32(1.5), jnp.bfloat16(1.5), np.float16(1.5)]
)
def test_scalars_are_losses(out):
    assert float(loss_of(out, has_aux=False)) == 1.5
    assert float(loss_of((out, "anything"), has_aux=True)) == 1.5
