"""A multi-layer perceptron in flax nnx, on handwritten digits.

``params`` is the module itself, and the loss takes it as any nnx loss does. The planted
bug is the classical one: the derivative of tanh, written by hand, without its ``1 -``.

    python examples/digits_mlp_nnx.py
    jaxcheck check examples/digits_mlp_nnx.py:problem_wrong
"""

import sys

import jax
import jax.numpy as jnp
import optax
from flax import nnx
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


class DigitsMLP(nnx.Module):
    def __init__(self, activation, *, rngs):
        self.hidden = nnx.Linear(64, 32, rngs=rngs)
        self.norm = nnx.LayerNorm(32, rngs=rngs)
        self.output = nnx.Linear(32, 10, rngs=rngs)
        self.activation = activation

    def __call__(self, images):
        return self.output(self.activation(self.norm(self.hidden(images))))


def loss_fn(model, images, labels):
    logits = model(images)
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


def load_batch(size=16):
    images, labels = load_digits(return_X_y=True)
    images = (images - images.mean()) / images.std()
    return jnp.asarray(images[:size], jnp.float32), jnp.asarray(labels[:size])


def problem(activation=jnp.tanh):
    """The loss function, the model, and a batch: what ``check`` takes."""
    return loss_fn, DigitsMLP(activation, rngs=nnx.Rngs(0)), *load_batch()


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
