"""What kind of wrong, in the report: recognized in small and in large leaves."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxcheck
from jaxcheck import Verdict

# the places are another question
check = functools.partial(jaxcheck.check, locate=False)


def layer(change):
    """A linear layer whose rule's weight gradient goes through ``change``."""

    @jax.custom_vjp
    def dense(w, x):
        return x @ w

    dense.defvjp(
        lambda w, x: (x @ w, (w, x)),
        lambda res, ct: (change(res[1].T @ ct, res[0]), ct @ res[0].T),
    )
    return lambda p, x: jnp.mean(jnp.tanh(dense(p["w"], x)) ** 2)


PATTERNS = {
    "2 times": lambda g, w: 2 * g,
    "-1 times": lambda g, w: -g,
    "batch size": lambda g, w: 32 * g,
    "transposed": lambda g, w: g.T,
    "rolled by 1 along axis 0": lambda g, w: jnp.roll(g, 1, 0),
    "row 3 is zero": lambda g, w: g.at[3].set(0),
    "detached": lambda g, w: 0 * g,
    "1.00e-04 times the parameters": lambda g, w: g + 1e-4 * w,
    "1.00e-03 everywhere": lambda g, w: g + 1e-3,
    "along axis 0": lambda g, w: jnp.broadcast_to(g.sum(0), g.shape),
}


@pytest.mark.parametrize("size", [6, 40])
@pytest.mark.parametrize("text", PATTERNS)
def test_pattern_is_recognized(text, size):
    rng = np.random.default_rng(size)
    w = (rng.normal(size=(size, size)) / np.sqrt(size)).astype(np.float32)
    x = rng.normal(size=(32, size)).astype(np.float32)
    mode = "exhaustive" if size == 6 else "directional"
    report = check(layer(PATTERNS[text]), {"w": w}, x, mode=mode)
    assert report.verdict is Verdict.WRONG
    assert text in report.leaves[0].pattern
    (finding,) = report.findings
    assert finding.kind == ("detached" if text == "detached" else "wrong_derivative")


def test_no_pattern_is_claimed_for_one_wrong_coordinate():
    rng = np.random.default_rng(0)
    w, x = rng.normal(size=(40, 40)) / 6, rng.normal(size=(32, 40))
    loss = layer(lambda g, w: g.at[2, 3].multiply(1.5))
    report = check(loss, {"w": w}, x, mode="directional")
    assert report.verdict is Verdict.WRONG
    assert report.leaves[0].pattern is None
    assert report.leaves[0].worst.index == (2, 3)


def test_a_missing_conjugate_is_recognized():
    @jax.custom_vjp
    def exponential(z):
        return jnp.exp(z)

    exponential.defvjp(
        lambda z: (jnp.exp(z), z), lambda z, ct: (jnp.conj(ct * jnp.exp(z)),)
    )
    z = np.array([0.3 + 0.4j, -1.1 + 0.2j, 0.7 - 0.9j, 0.1 + 1j], np.complex64)
    report = check(
        lambda z: jnp.sum(jnp.real(exponential(z)) + 2 * jnp.imag(exponential(z))), z
    )
    assert report.leaves[0].pattern == "conjugated"
