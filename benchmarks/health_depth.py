"""Deep networks whose gradient fades or grows over depth, and sound ones beside them.

What comes in is as large in every layer of theirs: where it fades too, as in linear
layers that are too small, all gradients are alike and there is no profile.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from benchmarks.health_runs import BATCH, Architecture, cross_entropy, labelled

Act = Callable[[Any], Any]


class Deep(NamedTuple):
    """A network with a fault, and its sound twin.

    Attributes:
        sick: whose gradient has a profile; its ``leaf`` is the lowest end.
        sound: the same without it.
        rate: a learning rate for gradient descent on the first.
    """

    sick: Architecture
    sound: Architecture
    rate: float


def _matrix(key: Any, *shape: int, gain: float = 1.0) -> Any:
    *window, into, _ = shape
    fan = into * (window[-1] ** 2 if window else 1)
    return gain * jax.random.normal(key, shape) * fan**-0.5


def dense(act: Act, gain: float, depth: int = 12, width: int = 24) -> Architecture:
    """Dense layers, one after the other."""

    def init(key: Any) -> Any:
        first, last, *keys = jax.random.split(key, depth + 2)
        return {
            "in": _matrix(first, 16, width),
            "layers": [
                {"b": jnp.zeros(width), "w": _matrix(k, width, width, gain=gain)}
                for k in keys
            ],
            "out": _matrix(last, width, 5),
        }

    def loss_fn(params: Any, batch: Any) -> Any:
        x, labels = batch
        x = x @ params["in"]
        for layer in params["layers"]:
            x = act(x @ layer["w"] + layer["b"])
        return cross_entropy(x @ params["out"], labels)

    batch = lambda key: labelled(key, (16,), 5)  # noqa: E731
    return Architecture(init, loss_fn, batch, "['layers'][0]['w']")


def scanned(act: Act, gain: float, depth: int = 16, width: int = 24) -> Architecture:
    """Dense layers in one leaf, in a scan; large gains grow towards the first layer."""

    def init(key: Any) -> Any:
        first, middle, last = jax.random.split(key, 3)
        matrix = jax.vmap(lambda k: _matrix(k, width, width, gain=gain))
        return {
            "in": _matrix(first, 16, width),
            "layers": {"w": matrix(jax.random.split(middle, depth))},
            "out": _matrix(last, width, 5),
        }

    def loss_fn(params: Any, batch: Any) -> Any:
        x, labels = batch
        x = x @ params["in"]
        x, _ = jax.lax.scan(
            lambda h, layer: (act(h @ layer["w"]), None), x, params["layers"]
        )
        return cross_entropy(x @ params["out"], labels)

    batch = lambda key: labelled(key, (16,), 5)  # noqa: E731
    leaf = f"['layers']['w'][{depth - 1}]"
    return Architecture(init, loss_fn, batch, leaf, "['layers']")


def convolutional(act: Act, gain: float, depth: int = 8) -> Architecture:
    """Convolutions, a mean over space, and a linear layer."""
    channels = 8

    def init(key: Any) -> Any:
        first, last, *keys = jax.random.split(key, depth + 2)
        return {
            "in": _matrix(first, 3, 3, 2, channels),
            "layers": [_matrix(k, 3, 3, channels, channels, gain=gain) for k in keys],
            "out": _matrix(last, channels, 4),
        }

    def loss_fn(params: Any, batch: Any) -> Any:
        x, labels = batch
        for kernel in (params["in"], *params["layers"]):
            x = jax.lax.conv_general_dilated(
                x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
            )
            x = act(x)
        return cross_entropy(x.mean(axis=(1, 2)) @ params["out"], labels)

    batch = lambda key: labelled(key, (6, 6, 2), 4)  # noqa: E731
    return Architecture(init, loss_fn, batch, "['layers'][0]")


def recurrent(act: Act, gain: float, *, residual: bool, depth: int = 8) -> Architecture:
    """Recurrent layers on top of each other, over ten steps."""
    width = 16

    def init(key: Any) -> Any:
        first, last, *keys = jax.random.split(key, 2 * depth + 2)
        return {
            "in": _matrix(first, 4, width),
            "layers": [
                {
                    "u": _matrix(k, width, width, gain=gain / 2),
                    "w": _matrix(j, width, width, gain=gain),
                }
                for j, k in zip(keys[::2], keys[1::2], strict=True)
            ],
            "out": _matrix(last, width, 3),
        }

    def loss_fn(params: Any, batch: Any) -> Any:
        x, labels = batch
        x = x.swapaxes(0, 1) @ params["in"]
        for layer in params["layers"]:

            def step(h: Any, x: Any, layer: Any = layer) -> Any:
                h = act(x @ layer["w"] + h @ layer["u"])
                return h, h

            _, new = jax.lax.scan(step, jnp.zeros((BATCH, width)), x)
            x = x + new if residual else new
        return cross_entropy(x[-1] @ params["out"], labels)

    batch = lambda key: labelled(key, (10, 4), 3)  # noqa: E731
    return Architecture(init, loss_fn, batch, "['layers'][0]")


DEEP: dict[str, Callable[[], Deep]] = {
    "12 dense layers, sigmoids": lambda: Deep(
        dense(jax.nn.sigmoid, 1.0), dense(jax.nn.relu, 2.0**0.5), 0.1
    ),
    "16 scanned layers, weights too large": lambda: Deep(
        scanned(jnp.tanh, 8.0), scanned(jnp.tanh, 1.0), 1e-5
    ),
    "8 convolutions, sigmoids": lambda: Deep(
        convolutional(jax.nn.sigmoid, 1.0), convolutional(jax.nn.relu, 2.0**0.5), 0.1
    ),
    "8 recurrent layers, sigmoids": lambda: Deep(
        recurrent(jax.nn.sigmoid, 1.0, residual=False),
        recurrent(jnp.tanh, 1.0, residual=True),
        0.1,
    ),
}
