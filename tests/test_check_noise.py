"""One leaf's noise is not another's."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxcheck
from jaxcheck import Verdict


def squared(factor):
    @jax.custom_vjp
    def square(x):
        return x**2

    square.defvjp(lambda x: (x**2, x), lambda x, g: (factor * 2 * x * g,))
    return square


def loss_of(factor):
    """A leaf in a sum that cancels to the last digits, beside one under a rule."""
    square = squared(factor)

    def loss(params, large):  # the compiler would see through (x + large) - large
        summed = jnp.sum(params["noisy"] ** 2) + large
        noisy = jnp.sqrt(summed**2 + 1.0) - large
        return noisy + jnp.mean(square(params["ruled"]))

    return loss


PARAMS = {
    "noisy": np.linspace(0.5, 1.5, 4).astype(np.float32),
    "ruled": np.linspace(-1.0, 1.0, 6).astype(np.float32) + 0.1,
}


@pytest.mark.parametrize("mode", ["exhaustive", "directional"])
@pytest.mark.parametrize("factor", [1.0, 1.001, 2.0])
def test_a_leaf_beside_a_noisy_one_is_decided(mode, factor):
    report = jaxcheck.check(loss_of(factor), PARAMS, 1e13, mode=mode, locate=False)
    noisy, ruled = report.leaves
    assert noisy.path == "['noisy']"
    assert noisy.verdict is Verdict.INCONCLUSIVE, str(report)
    expected = Verdict.CORRECT if factor == 1.0 else Verdict.WRONG
    assert ruled.verdict is expected, str(report)
