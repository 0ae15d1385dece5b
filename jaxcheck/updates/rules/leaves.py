"""Arithmetic of lists of leaves."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from jaxcheck.updates.rules.rule import Array


def dot(a: list[Array], b: list[Array]) -> Array:
    """The real part of the inner product."""
    total = sum(np.sum(np.conj(x) * y) for x, y in zip(a, b, strict=True))
    return np.float64(np.real(total))


def norm(a: list[Array]) -> Array:
    """The 2-norm of all coordinates together."""
    return np.sqrt(dot(a, a))


def each(fn: Callable[..., Array], *lists: list[Array]) -> list[Array]:
    """``fn`` of the first leaves, of the second ones, and so on."""
    return [fn(*leaves) for leaves in zip(*lists, strict=True)]


def all_finite(a: list[Array]) -> bool:
    """Whether no coordinate is NaN or infinite."""
    return all(bool(np.isfinite(x).all()) for x in a)
