"""One evaluation program a check, however many leaves; the next check compiles none."""

from __future__ import annotations

import contextlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxcheck
from jaxcheck import Verdict
from tests.catalogue.planting import edited

# JAX's own event for one call of the backend compiler.
EVENT = "/jax/core/compile/backend_compile_duration"


@contextlib.contextmanager
def compilations():
    """Counts what XLA compiles in the block: the list grows by one per program."""
    seen = []

    def listen(event, duration, **_):
        if event == EVENT:
            seen.append(duration)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        yield seen
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)


def model(leaves, salt):
    """Parameters of that many leaves; ``salt`` makes each test's program its own."""
    sizes = [1 + k % 3 for k in range(leaves)]
    params = [jnp.full(n, 0.2 + 0.03 * k) for k, n in enumerate(sizes)]

    def loss(params):
        return sum(jnp.sum(jnp.sin(salt * p) ** 2) for p in params)

    return loss, params


def count(leaves, salt, **options):
    loss, params = model(leaves, salt)
    jax.block_until_ready(params)
    with compilations() as seen:
        report = jaxcheck.check(loss, params, **options)
    assert report.verdict is Verdict.CORRECT, str(report)
    return len(seen)


def test_the_counter_counts():
    with compilations() as seen:
        jax.jit(lambda x: jnp.sin(x) * 1.2345)(jnp.ones(7)).block_until_ready()
    assert len(seen) >= 1


@pytest.fixture
def warmed_up():
    """Small programs that JAX itself compiles once per process (keys, copies)."""
    for mode in ("exhaustive", "directional", "sampled"):
        count(1, 0.31, mode=mode)


@pytest.mark.parametrize("mode", ["exhaustive", "directional", "sampled", "auto"])
def test_no_program_a_leaf(warmed_up, mode):
    few = count(2, 0.7, mode=mode)
    many = count(15, 0.7, mode=mode)
    assert few == many
    # the native gradient, the reading's, and the evaluation; the loss by itself,
    # natively and read, which only the compiler can make another
    assert few <= 5


def test_no_program_a_shape(warmed_up):
    """Sizes that are no multiple of the batch do not compile a last, shorter one."""
    sizes = (1, 63, 65)
    found = []
    for n in sizes:
        with compilations() as seen:
            jaxcheck.check(
                lambda p: jnp.sum(jnp.cos(1.1 * p)),
                np.linspace(0, 1, n, dtype=np.float32),
                mode="exhaustive",
            )
        found.append(len(seen))
    assert len(set(found)) == 1


@pytest.mark.parametrize("wrong", [False, True])
def test_a_second_check_compiles_nothing(warmed_up, wrong):
    def check(scale):
        rule = edited(lambda x, cotangent: (2 if wrong else 1) * cotangent)
        # a new closure each time, as in a training loop
        loss = lambda p, s: jnp.sum(jnp.sin(0.9 * rule(p)) * s)  # noqa: E731
        return jaxcheck.check(loss, {"a": jnp.ones(3), "b": jnp.ones(2)}["a"], scale)

    scale = jnp.float32(1.5)
    first = check(scale)
    with compilations() as seen:
        second = check(scale)
    assert first.verdict is second.verdict
    assert not seen


def test_other_values_of_the_same_program_compile_nothing(warmed_up):
    loss = lambda p, x: jnp.sum(jnp.tanh(x @ p))  # noqa: E731
    values = [jax.random.normal(jax.random.key(k), (4, 3)) for k in range(3)]
    jaxcheck.check(loss, jnp.ones(3), values[0])
    with compilations() as seen:
        for k in (1, 2):
            report = jaxcheck.check(
                loss, k * jnp.ones(3), values[k], key=jax.random.key(k)
            )
            assert report.passed
    # multiplying k * ones above may compile; the check's own programs may not
    assert len(seen) <= 2


def test_escalation_compiles_no_further_program(warmed_up):
    rule = edited(lambda x, cotangent: 2 * cotangent)
    for loss, most in (
        (lambda p: jnp.sum(jnp.sin(0.6 * rule(p))), 3),
        (lambda p: jnp.sum(jnp.abs(p)) * 0.6, 4),  # a kink: where is the switch?
    ):
        params = jnp.asarray([0.0, 0.5, 1.0])
        with compilations() as seen:
            jaxcheck.check(loss, params, locate=False)
        assert len(seen) <= most


def test_the_loss_is_called_to_trace_it_and_no_more():
    calls = []

    def loss(p):
        calls.append(1)
        return jnp.sum(jnp.sin(p))

    report = jaxcheck.check(loss, jnp.linspace(0, 1, 300), mode="exhaustive")
    assert report.evaluations > 1000
    assert len(calls) <= 3  # twice, to see that it is a function
