"""Why does nothing agree? Dropout whose seed moves from call to call.

A 3-D convolutional network tells volumes apart: eight scans of one handwritten digit,
stacked. Its dropout takes a new seed from a counter at every call, so that the loss is
no function of its arguments and has no derivative to compare. jaxcheck says that before
it judges any derivative. With the key as an argument, dropout stays on and the gradient
that training uses is checked.

    python examples/dropout_seed.py
    jaxcheck check examples/dropout_seed.py:problem
    jaxcheck check examples/dropout_seed.py:problem_wrong
"""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
from sklearn.datasets import load_digits

import jaxcheck

seeds = itertools.count()


def load_volumes(classes=4, each=2, depth=8):
    """Volumes [classes * each, depth, 8, 8, 1] and the digit that each is made of."""
    images, labels = load_digits(return_X_y=True)
    images = (images / 16).reshape(-1, 8, 8)
    volumes = [images[labels == c][: each * depth] for c in range(classes)]
    volumes = np.reshape(volumes, (classes * each, depth, 8, 8, 1))
    return jnp.asarray(volumes, jnp.float32), jnp.repeat(jnp.arange(classes), each)


def init_params(key, channels=4, classes=4):
    k1, k2 = jax.random.split(key)
    return {
        "conv": jax.random.normal(k1, (3, 3, 3, 1, channels)) / 27**0.5,
        "dense": jax.random.normal(k2, (channels * 8, classes)) / channels**0.5,
        "bias": jnp.zeros(classes),
    }


def dropout(key, x, keep=0.5):
    return jnp.where(jax.random.bernoulli(key, keep, x.shape), x / keep, 0.0)


def logits_of(params, volumes, key):
    layout = ("NDHWC", "DHWIO", "NDHWC")
    hidden = jax.lax.conv_general_dilated(
        volumes, params["conv"], (2, 2, 2), "SAME", dimension_numbers=layout
    )
    pooled = jnp.tanh(hidden).reshape(-1, 2, 2, 2, 2, 2, 2, hidden.shape[-1])
    features = pooled.mean(axis=(2, 4, 6)).reshape(len(volumes), -1)
    return dropout(key, features) @ params["dense"] + params["bias"]


def loss_fn(params, volumes, labels, key):
    logits = logits_of(params, volumes, key)
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


def loss_fn_wrong(params, volumes, labels):
    key = jax.random.key(next(seeds))  # the bug: every call has another seed
    return loss_fn(params, volumes, labels, key)


def problem():
    """The loss function, its parameters, a batch and the key of its dropout."""
    return loss_fn, init_params(jax.random.key(0)), *load_volumes(), jax.random.key(1)


def problem_wrong():
    """The same problem with a seed that moves."""
    return loss_fn_wrong, init_params(jax.random.key(0)), *load_volumes()


def main():
    wrong = jaxcheck.check(*problem_wrong())
    print("With the planted bug", wrong, sep="\n\n", end="\n\n\n")
    right = jaxcheck.check(*problem())
    print("Fixed: the key is an argument, dropout is on", right, sep="\n\n")

    assert wrong.verdict is jaxcheck.Verdict.INCONCLUSIVE
    assert [finding.kind for finding in wrong.findings] == ["nondeterministic"]
    assert right.passed


if __name__ == "__main__":
    main()
