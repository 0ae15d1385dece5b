"""A recurrent network in plain JAX that reads a handwritten digit row by row.

The eight pixel rows go through ``lax.scan``. ``params`` is a NamedTuple. The planted
bug is the classical one, inside the scan: the backward pass of tanh, written by hand,
without its ``1 -``. Only what the recurrence feeds is wrong; the readout stays right.

    python examples/digits_rnn_scan.py
    jaxcheck check examples/digits_rnn_scan.py:problem_wrong
"""

import sys
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from sklearn.datasets import load_digits

import jaxcheck


@jax.custom_vjp
def hand_written_tanh(x):
    return jnp.tanh(x)


def hand_written_tanh_fwd(x):
    y = jnp.tanh(x)
    return y, y


def hand_written_tanh_bwd(y, cotangent):
    return (y**2 * cotangent,)  # the bug: this should be (1 - y**2) * cotangent


hand_written_tanh.defvjp(hand_written_tanh_fwd, hand_written_tanh_bwd)


class Params(NamedTuple):
    input: jax.Array
    recurrent: jax.Array
    bias: jax.Array
    readout: jax.Array


def init_params(key, pixels=8, hidden=24, classes=10):
    k1, k2, k3 = jax.random.split(key, 3)
    return Params(
        input=jax.random.normal(k1, (pixels, hidden)) / pixels**0.5,
        recurrent=jax.random.normal(k2, (hidden, hidden)) / hidden**0.5,
        bias=jnp.zeros(hidden),
        readout=jax.random.normal(k3, (hidden, classes)) / hidden**0.5,
    )


def load_batch(size=16):
    digits = load_digits()
    images = (digits.images - digits.images.mean()) / digits.images.std()
    return jnp.asarray(images[:size], jnp.float32), jnp.asarray(digits.target[:size])


def problem(activation=jnp.tanh):
    """The loss function, its parameters, and a batch: what ``check`` takes."""

    def loss_fn(params, images, labels):
        def step(state, row):
            pre = row @ params.input + state @ params.recurrent + params.bias
            return activation(pre), None

        rows = images.swapaxes(0, 1)
        state, _ = jax.lax.scan(step, jnp.zeros((len(labels), len(params.bias))), rows)
        logits = state @ params.readout
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    return loss_fn, init_params(jax.random.key(0)), *load_batch()


def problem_wrong():
    """The same problem with the hand-written tanh."""
    return problem(hand_written_tanh)


def main():
    right = jaxcheck.check(*problem())
    print("As it should be", right, sep="\n\n", end="\n\n\n")

    wrong = jaxcheck.check(*problem_wrong())
    print("With the planted bug", wrong, sep="\n\n")

    as_it_should_be = right.passed and wrong.verdict is jaxcheck.Verdict.WRONG
    return 0 if as_it_should_be else 1


if __name__ == "__main__":
    sys.exit(main())
