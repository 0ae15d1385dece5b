"""Where a function is moved: all of its coordinates, or along chosen tangents.

A chart writes the primals as a function of real arrays, one a leaf, so that one check
of a scalar loss serves for everything: reverse mode over all coordinates, forward mode
(which wants few of them), tangents that the user restricts, and bounded domains.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxcheck.derivatives.functions import probe_like
from jaxcheck.errors import InvalidInputError
from jaxcheck.gradients.arrays import from_real_view, real_view
from jaxcheck.gradients.comparison import directional_bound
from jaxcheck.gradients.report import LeafReport
from jaxcheck.reports.values import Verdict
from jaxcheck.trees import Leaf, Partition

Array = Any


@dataclasses.dataclass(frozen=True, kw_only=True)
class Chart:
    """Arrays to move, and the primals that they stand for.

    Attributes:
        values: the arrays at the point, one a differentiable leaf.
        primals: the differentiable leaves from such arrays.
        translate: a report about such an array as one about its leaf.
        whole: whether the arrays are the leaves themselves, for a plan to choose from.
    """

    values: tuple[Array, ...]
    primals: Callable[..., tuple[Array, ...]]
    translate: Callable[[LeafReport, Leaf], LeafReport]
    whole: bool = False


def identity(parts: Partition) -> Chart:
    """The leaves themselves."""
    return Chart(
        values=parts.moved,
        primals=lambda *arrays: arrays,
        translate=lambda report, leaf: report,
        whole=True,
    )


def real(parts: Partition) -> Chart:
    """The leaves themselves, complex ones by their real and imaginary parts."""
    leaves = parts.differentiable

    def primals(*arrays: Array) -> tuple[Array, ...]:
        pairs = zip(arrays, leaves, strict=True)
        return tuple(from_real_view(x, leaf.complex) for x, leaf in pairs)

    def translate(report: LeafReport, leaf: Leaf) -> LeafReport:
        if not leaf.complex:
            return report
        worst = report.worst
        if worst is not None:
            part = ("real", "imag")[worst.index[-1]]
            worst = dataclasses.replace(worst, index=worst.index[:-1], part=part)
        return dataclasses.replace(
            report,
            shape=leaf.shape,
            dtype=leaf.dtype,
            size=leaf.size,
            checked=leaf.size,
            worst=worst,
            examples=(),
        )

    values = tuple(real_view(jnp.asarray(x)) for x in parts.moved)
    return Chart(values=values, primals=primals, translate=translate)


def tangents(
    parts: Partition,
    count: int,
    seed: Sequence[int],
    *,
    bounds: Any = None,
    reach: float = 0.0,
    project: Callable[..., Any] | None = None,
) -> Chart:
    """Random tangents of each leaf: the point plus a combination of them.

    Args:
        parts: the primals.
        count: tangents a leaf.
        seed: what they are drawn with.
        bounds: (lower, upper), or None; see ``jaxcheck.check_derivatives``.
        reach: how far along a tangent the differences go, to stay within the bounds.
        project: maps a tuple like the primals to admissible tangents, or None.
    """
    leaves = parts.differentiable
    scaled = [_tangents(parts, k, count, seed, project) for k in range(len(leaves))]
    if bounds is not None:
        limits = zip(*(_limits(parts, bounds, side) for side in (0, 1)), strict=True)
        scaled = [
            _inside(np.asarray(x), u, low, high, reach)
            for x, u, (low, high) in zip(parts.moved, scaled, limits, strict=True)
        ]
    stacks = [
        jnp.asarray(u, leaf.dtype) for u, leaf in zip(scaled, leaves, strict=True)
    ]

    def primals(*arrays: Array) -> tuple[Array, ...]:
        triples = zip(parts.moved, arrays, stacks, strict=True)
        return tuple(
            jnp.asarray(x) + jnp.tensordot(t.astype(u.dtype), u, 1)
            for x, t, u in triples
        )

    whole = project is None and bounds is None

    def translate(report: LeafReport, leaf: Leaf) -> LeafReport:
        return _along_tangents(report, leaf, bounded=whole)

    values = tuple(jnp.zeros(count, real_view(u).dtype) for u in stacks)
    return Chart(values=values, primals=primals, translate=translate)


def _tangents(
    parts: Partition,
    k: int,
    count: int,
    seed: Sequence[int],
    project: Callable[..., Any] | None,
) -> np.ndarray[Any, Any]:
    """``count`` tangents of leaf ``k``, each as large as the leaf's values."""
    leaf = parts.differentiable[k]
    point = np.asarray(parts.moved[k]).astype(_wide(leaf))
    size = math.sqrt(float(np.mean(np.abs(point) ** 2))) or 1.0
    found: list[Any] = []
    for number in range(count):
        tangent = np.asarray(probe_like(leaf, seed, 11 + number)).astype(_wide(leaf))
        if project is not None:
            tangent = _projected(parts, k, tangent, project)
        norm = math.sqrt(float(np.mean(np.abs(tangent) ** 2)))
        found.append(tangent * (size / norm if norm > 0 else 0.0))
    return np.stack(found)


def _projected(
    parts: Partition, k: int, tangent: Any, project: Callable[..., Any]
) -> np.ndarray[Any, Any]:
    """The tangent that moves leaf ``k`` alone, as the user admits it."""
    others = [
        np.zeros(leaf.shape, _wide(leaf)) if j != k else tangent
        for j, leaf in enumerate(parts.differentiable)
    ]
    # 64-bit types as they are outside: the user's function is user code
    moved = [jnp.asarray(x, leaf.dtype) for x, leaf in _with(others, parts)]
    got = project(*parts.rebuild(moved))
    wanted = jax.tree_util.tree_structure(parts.rebuild(moved))
    got = got if isinstance(got, tuple) else (got,)
    if jax.tree_util.tree_structure(got) != wanted:
        raise InvalidInputError(
            "`check_derivatives(project_tangent=...)` must return tangents like the "
            f"primals, {wanted}; it returned {jax.tree_util.tree_structure(got)}."
        )
    leaves = jax.tree_util.tree_leaves(got, is_leaf=lambda x: x is None)
    chosen = [
        x for x, leaf in zip(leaves, parts.leaves, strict=True) if leaf.differentiable
    ]
    return np.asarray(chosen[k]).astype(_wide(parts.differentiable[k]))


def _with(values: Sequence[Any], parts: Partition) -> Any:
    return zip(values, parts.differentiable, strict=True)


def _wide(leaf: Leaf) -> Any:
    return np.complex128 if leaf.complex else np.float64


def _limits(parts: Partition, bounds: Any, side: int) -> list[Any]:
    """One end of the domain for each leaf; None where it is open."""
    if not (isinstance(bounds, tuple | list) and len(bounds) == 2):  # pyright: ignore[reportUnknownArgumentType]
        raise InvalidInputError(
            "`check_derivatives(bounds=...)` must be a pair (lower, upper); got "
            f"{type(bounds).__name__}. Each is a number, None, or a pytree like the "
            "primals."
        )
    given = bounds[side]
    if given is None or (np.ndim(given) == 0 and not isinstance(given, dict)):
        return [given for _ in parts.differentiable]
    leaves = jax.tree_util.tree_leaves(tuple(given), is_leaf=lambda x: x is None)
    if len(leaves) != len(parts.leaves):
        raise InvalidInputError(
            f"`check_derivatives(bounds=...)` has {len(leaves)} leaves at one end; the "
            f"primals have {len(parts.leaves)}."
        )
    pairs = zip(leaves, parts.leaves, strict=True)
    return [x for x, leaf in pairs if leaf.differentiable]


def _inside(point: Any, stack: Any, low: Any, high: Any, reach: float) -> Any:
    """Tangents short enough that the farthest step stays within the bounds."""
    point = point.astype(np.float64)
    room = np.full(point.shape, np.inf)
    if low is not None:
        room = np.minimum(room, point - low)
    if high is not None:
        room = np.minimum(room, high - point)
    if not np.all(room >= 0):
        raise InvalidInputError(
            "`check_derivatives(bounds=...)` must hold the primals; "
            f"{int(np.sum(~(room >= 0)))} coordinates lie outside."
        )
    most = 0.9 * room / reach
    return np.clip(stack, -most, most)


def _along_tangents(report: LeafReport, leaf: Leaf, *, bounded: bool) -> LeafReport:
    bound, confidence = (None, None)
    if bounded and report.bound is not None and report.verdict is Verdict.CORRECT:
        bound, confidence = directional_bound(report.bound, report.size)
    return dataclasses.replace(
        report,
        shape=leaf.shape,
        dtype=leaf.dtype,
        size=leaf.size,
        checked=leaf.size,
        method="directional",
        worst=None,
        examples=(),
        failing=None,
        bound=bound,
        confidence=confidence,
    )
