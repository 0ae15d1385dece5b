"""Some elements of large leaves, for rules that treat each element by itself.

Such a rule says of an element what it says of it among others, and the elements that
are taken stand for those that are not. The ends of a leaf are always among them: that
is where a kernel's last block is.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import jax
import numpy as np

from jaxcheck.trees import by_path, on_host

Array = Any
# Flat indices of the elements that are taken, by the path of the leaf; of a leaf that
# is not named, all are.
Sample = Mapping[str, Array]

# Of those taken, how many are at either end.
_AT_AN_END = 1 / 8


def sample_of(params: Any, most: int, seed: Any) -> Sample:
    """At most ``most`` elements of each leaf of ``params``, in order.

    Example:
        >>> {k: len(v) for k, v in sample_of({"b": np.ones(3), "w": np.ones(90)}, 32, 0)
        ...  .items()}
        {"['w']": 32}
    """
    rng = np.random.default_rng(seed)
    large = {path: np.size(x) for path, x in by_path(params).items()}
    return {path: _taken(n, most, rng) for path, n in large.items() if n > most}


def _taken(size: int, most: int, rng: np.random.Generator) -> Array:
    ends = max(1, int(most * _AT_AN_END))
    inside = rng.choice(size - 2 * ends, most - 2 * ends, replace=False) + ends
    return np.concatenate(
        [np.arange(ends), np.sort(inside), np.arange(size - ends, size)]
    )


def pick(
    value: Array, path: str | None, shape: tuple[int, ...], sample: Sample
) -> Array:
    """The elements of ``value`` that are taken, as a vector, on the host.

    Args:
        value: an array.
        path: of the parameter that it belongs to.
        shape: of that parameter; what has another one is left whole.
        sample: what is taken.
    """
    if path is None or path not in sample or np.shape(value) != shape:
        return on_host(value)
    if isinstance(value, jax.Array):  # and stays where it is, but for what is taken
        return np.asarray(_indexed(value, _along_axes(sample[path], shape)))
    return np.ravel(value)[sample[path]]


@jax.jit
def _indexed(value: Array, at: tuple[Array, ...]) -> Array:
    return value[at]


# What is taken as indices along each axis: a leaf may have more elements than int32
# counts.
Coordinates = Mapping[str, tuple[Array, ...]]


def coordinates(sample: Sample, shapes: Mapping[str, tuple[int, ...]]) -> Coordinates:
    """What ``sample`` takes of leaves of these shapes."""
    return {path: _along_axes(at, shapes[path]) for path, at in sample.items()}


def _along_axes(at: Array, shape: tuple[int, ...]) -> tuple[Array, ...]:
    return tuple(k.astype(np.uint32) for k in np.unravel_index(at, shape))


def gathered(
    pairs: Iterable[tuple[str | None, Array]],
    at: Coordinates,
    shapes: Mapping[str, tuple[int, ...]],
) -> list[Array]:
    """What :func:`pick` takes, of many and inside of jit.

    Args:
        pairs: arrays, beside the path of the parameter that each belongs to.
        at: what is taken.
        shapes: of the parameters.
    """

    def taken(path: str | None, value: Array) -> Array:
        if path is None or path not in at or value.shape != shapes[path]:
            return value
        return value[at[path]]

    return [taken(path, value) for path, value in pairs]
