"""Cotangents on their way back, with their marks; None is a zero by structure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from jaxcheck.places.births.marks import Marked, is_nan, labels_of
from jaxcheck.trees import is_inexact

Cotangents = list[Marked | None]


def spread(marked: Sequence[Marked], at: Sequence[int], length: int) -> Cotangents:
    """``length`` cotangents, those that there are at their places."""
    every: Cotangents = [None] * length
    for i, value in zip(at, marked, strict=True):
        every[i] = value
    return every


def marks_of(cotangent: Marked | None) -> np.ndarray | None:
    """The marks of a cotangent, if there is one."""
    return None if cotangent is None else cotangent.marks


def zero_for(value: Marked) -> Marked | None:
    """The zero that a loop begins with where nothing comes back to ``value``."""
    if not is_inexact(value.value.dtype):
        return None
    return Marked(jnp.zeros_like(value.value))


def same_shapes(ins: Sequence[Marked], outs: Sequence[Any]) -> bool:
    """Whether operands and outputs all have one shape."""
    return len({np.shape(x) for x in (*(i.value for i in ins), *outs)}) == 1


class Own(NamedTuple):
    """Non-finite elements of an equation's own value: their marks, which are NaN."""

    marks: np.ndarray
    nan: np.ndarray


def own_value(outs: Sequence[Marked], mask: np.ndarray, *, local: bool) -> Own | None:
    """What the equation's own value has, as seen from the elements of ``mask``."""
    if all(x.marks is None for x in outs):
        return None
    if local:
        return (
            None if outs[0].marks is None else Own(outs[0].marks, is_nan(outs[0].value))
        )
    nan = [x for x in outs if x.marks is not None and is_nan(x.value).any()]
    label = labels_of(nan or outs)[0]
    return Own(np.full(mask.shape, label, np.int32), np.full(mask.shape, bool(nan)))


def idle_elements(
    came: Sequence[Marked], mask: np.ndarray, *, local: bool
) -> np.ndarray:
    """Where the cotangent that comes in is exactly zero."""
    if local:
        return np.asarray(came[0].value) == 0
    return np.full(mask.shape, all(not np.asarray(c.value).any() for c in came))
