"""A convolutional network in flax linen, on handwritten digits.

``params`` are the variables that ``Module.init`` returns, as they are. The planted bug
is the classical one: the backward pass of tanh, written by hand, without its ``1 -``.

    python examples/digits_cnn_linen.py
    jaxcheck check examples/digits_cnn_linen.py:problem_wrong
"""

import sys
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
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


class DigitsCNN(nn.Module):
    activation: Callable[[jax.Array], jax.Array]

    @nn.compact
    def __call__(self, images):
        x = nn.Conv(features=8, kernel_size=(3, 3))(images)
        x = self.activation(x)
        x = nn.avg_pool(x, window_shape=(2, 2), strides=(2, 2))
        x = nn.Conv(features=16, kernel_size=(3, 3))(x)
        x = self.activation(x)
        x = x.reshape(x.shape[0], -1)
        return nn.Dense(features=10)(x)


def load_batch(size=8):
    digits = load_digits()
    images = (digits.images - digits.images.mean()) / digits.images.std()
    images = images[:size, :, :, None]
    return jnp.asarray(images, jnp.float32), jnp.asarray(digits.target[:size])


def problem(activation=jnp.tanh):
    """The loss function, its parameters, and a batch: what ``check`` takes."""
    model = DigitsCNN(activation)
    images, labels = load_batch()
    params = model.init(jax.random.key(0), images)

    def loss_fn(params, images, labels):
        logits = model.apply(params, images)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    return loss_fn, params, images, labels


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
