"""Is my gradient right? A small network on handwritten digits, checked twice.

The first network uses ``jnp.tanh``. The second uses a tanh with a hand-written
derivative that lost its ``1 -``, a slip that still lets the loss go down. The two
reports are printed one after the other.

    python examples/digits.py
    jaxcheck check examples/digits.py:problem
    jaxcheck check examples/digits.py:problem_wrong
"""

import sys

import jax
import jax.numpy as jnp
import optax
from sklearn.datasets import load_digits

import jaxcheck


@jax.custom_jvp
def hand_written_tanh(x):
    return jnp.tanh(x)


@hand_written_tanh.defjvp
def hand_written_tanh_jvp(primals, tangents):
    (x,), (dx,) = primals, tangents
    y = jnp.tanh(x)
    return y, y**2 * dx  # the bug: this should be (1 - y**2) * dx


def load_batch(size=16):
    images, labels = load_digits(return_X_y=True)
    images = (images - images.mean()) / images.std()
    return jnp.asarray(images[:size], jnp.float32), jnp.asarray(labels[:size])


def init_layer(key, inputs, outputs):
    kernel = jax.random.normal(key, (inputs, outputs)) / inputs**0.5
    return {"kernel": kernel, "bias": jnp.zeros(outputs)}


def init_params(key):
    k1, k2 = jax.random.split(key)
    return {"hidden": init_layer(k1, 64, 32), "output": init_layer(k2, 32, 10)}


def affine(layer, x):
    return x @ layer["kernel"] + layer["bias"]


def problem(activation=jnp.tanh):
    """The loss function, its parameters, and a batch: what ``check`` takes."""

    def loss_fn(params, images, labels):
        hidden = activation(affine(params["hidden"], images))
        logits = affine(params["output"], hidden)
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
