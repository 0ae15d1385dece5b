"""Whose the non-finite elements of a value are.

Every place where NaN or infinity is born has a number, its *label*; every non-finite
element of a value is marked with the label of the birth it descends from. How marks go
through an equation is found out by experiment: the equation is evaluated again with
some of the non-finite elements of its operands replaced by ordinary numbers. So one
procedure serves every primitive, whole loops and calls, and derivatives.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxcheck.trees import is_inexact

Run = Callable[[list[Any]], Sequence[Any]]

# What stands for a non-finite element: inside the domain of every elementary function,
# except that 0.618 is below that of acosh and 1.618 beyond that of acos. Two, so that
# what fails by accident at one of them is not taken for a birth.
_STAND_INS = (0.6180339887, 1.6180339887)
_SMALL = 2**20  # bytes that are looked at on the host


class Marked(NamedTuple):
    """A value, and for each element the label of its birth; None: all is finite."""

    value: Any
    marks: np.ndarray | None = None


class Fate(NamedTuple):
    """What becomes of each output of an equation: masks and marks, None for nothing.

    Attributes:
        born: elements that are non-finite whatever the operands' non-finite ones are.
        turned: NaN that infinite operands make.
        passed: marks of the elements that only pass on what an operand has.
    """

    born: list[np.ndarray | None]
    turned: list[np.ndarray | None]
    passed: list[np.ndarray | None]

    @property
    def bears(self) -> bool:
        """Whether anything begins here."""
        return any(m is not None for m in (*self.born, *self.turned))


def nonfinite(value: Any) -> np.ndarray | None:
    """The mask of non-finite elements of ``value``, None where there are none."""
    if not is_inexact(getattr(value, "dtype", np.dtype(bool))):
        return None
    large = isinstance(value, jax.Array) and value.nbytes > _SMALL
    if large and bool(jnp.isfinite(value).all()):  # where it lives, without a copy
        return None
    bad = ~np.isfinite(np.asarray(value))
    return bad if bad.any() else None


def is_nan(value: Any) -> np.ndarray:
    """The mask of the NaN in ``value``."""
    if not is_inexact(value.dtype):
        return np.zeros(np.shape(value), bool)
    return np.isnan(np.asarray(value))


def labelled(mask: np.ndarray, label: int) -> np.ndarray:
    """Marks that say ``label`` where ``mask`` is set; one number if that is all."""
    if mask.all():
        return np.broadcast_to(np.int32(label), mask.shape)
    return np.where(mask, np.int32(label), np.int32(0))


def merged(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Marks of both; the smaller label, which is the older, where both have one."""
    both = (first > 0) & (second > 0)
    return np.where(both, np.minimum(first, second), np.maximum(first, second))


def labels_of(values: Sequence[Marked | None]) -> list[int]:
    """Every label that occurs, in order."""
    found: set[int] = set()
    for value in values:
        if value is not None and value.marks is not None:
            found.update(np.unique(value.marks).tolist())
    return sorted(found - {0})


def finite(value: Marked, keep: frozenset[int] = frozenset(), stand_in: int = 0) -> Any:
    """``value`` with its non-finite elements replaced, but for those of ``keep``."""
    if value.marks is None:
        return value.value
    replace = (value.marks > 0) & ~np.isin(value.marks, list(keep))
    return _replaced(value.value, replace, stand_in)


def _replaced(value: Any, mask: np.ndarray, stand_in: int = 0) -> Any:
    number = jnp.asarray(_STAND_INS[stand_in], value.dtype)
    return jnp.where(mask, number, value)


def settle(
    run: Run,
    ins: Sequence[Marked],
    outs: Sequence[Any],
    *,
    pointwise: bool = False,
    fragile: bool = False,
    carry: Run | None = None,
) -> Fate:
    """Find out what the non-finite elements of ``outs = run(ins)`` come from.

    Args:
        run: evaluates the equation.
        ins: its operands.
        outs: its outputs.
        pointwise: whether an output's element depends on the same element of each
            operand alone.
        fragile: whether stand-ins may be non-finite results by themselves (a matrix of
            equal numbers has no inverse); then only operands are blamed.
        carry: what the equation does to marks, if it does nothing but move elements.

    Returns:
        What is born, what turns and what is passed on.
    """
    bad = [nonfinite(out) for out in outs]
    nothing: list[np.ndarray | None] = [None] * len(bad)
    if not any(mask is not None for mask in bad):
        return Fate(nothing, nothing, nothing)
    labels = labels_of(ins)
    if not labels:
        return Fate(bad, nothing, nothing)
    if carry is not None:
        return _moved(carry, ins, bad)
    if pointwise:
        return _by_element(ins, outs, bad)
    return _by_experiment(run, ins, outs, labels, fragile=fragile)


def _some(mask: np.ndarray) -> np.ndarray | None:
    return mask if mask.any() else None


def _moved(carry: Run, ins: Sequence[Marked], bad: list[np.ndarray | None]) -> Fate:
    marks = [
        m if m is not None else np.zeros(np.shape(x), np.int32) if _real(x) else x
        for x, m in ins
    ]
    born: list[np.ndarray | None] = []
    passed: list[np.ndarray | None] = []
    for mask, out in zip(bad, carry(marks), strict=True):
        if mask is None:
            born.append(None)
            passed.append(None)
            continue
        came = np.where(mask, np.maximum(np.asarray(out), 0), 0)
        born.append(_some(mask & (came == 0)))
        passed.append(_some(came))
    return Fate(born, [None] * len(bad), passed)


def _real(value: Any) -> bool:
    return is_inexact(getattr(value, "dtype", np.dtype(bool)))


def _by_element(
    ins: Sequence[Marked], outs: Sequence[Any], bad: list[np.ndarray | None]
) -> Fate:
    fate = Fate([], [], [])
    for mask, out in zip(bad, outs, strict=True):
        if mask is None:
            for each in fate:
                each.append(None)
            continue
        lead = np.zeros(mask.shape, np.int32)
        nan = np.zeros(mask.shape, bool)
        for value, marks in ins:
            if marks is not None:
                lead = merged(lead, np.broadcast_to(marks, mask.shape))
                nan |= is_nan(value)
        turned = mask & is_nan(out) & (lead > 0) & ~nan
        fate.born.append(_some(mask & (lead == 0)))
        fate.turned.append(_some(turned))
        fate.passed.append(_some(np.where(mask & ~turned, lead, 0)))
    return fate


def _by_experiment(
    run: Run,
    ins: Sequence[Marked],
    outs: Sequence[Any],
    labels: list[int],
    *,
    fragile: bool,
) -> Fate:
    rest = [_mask(out) for out in outs]
    born = [np.zeros_like(mask) for mask in rest] if fragile else rest
    for stand_in in range(len(_STAND_INS)):
        if any(mask.any() for mask in born):
            again = run([finite(x, stand_in=stand_in) for x in ins])
            born = [m & _mask(out) for m, out in zip(born, again, strict=True)]
    turned = _turned(run, ins, outs, rest, born)
    rest = [m & ~b & ~t for m, b, t in zip(rest, born, turned, strict=True)]
    passed = _passed(run, ins, rest, labels)
    return Fate(*(list(map(_some, masks)) for masks in (born, turned, passed)))


def _mask(out: Any) -> np.ndarray:
    mask = nonfinite(out)
    return np.zeros(np.shape(out), bool) if mask is None else mask


def _turned(
    run: Run,
    ins: Sequence[Marked],
    outs: Sequence[Any],
    rest: list[np.ndarray],
    born: list[np.ndarray],
) -> list[np.ndarray]:
    """NaN in the outputs that the infinite elements alone make."""
    infinite = [x.marks is not None and (x.marks[~is_nan(x.value)] > 0) for x in ins]
    if not any(np.any(each) for each in infinite):
        return [np.zeros_like(mask) for mask in rest]
    if any(x.marks is not None and is_nan(x.value).any() for x in ins):
        outs = run([_without_nan(x) for x in ins])
    return [m & ~b & is_nan(o) for m, b, o in zip(rest, born, outs, strict=True)]


def _without_nan(value: Marked) -> Any:
    if value.marks is None:
        return value.value
    return _replaced(value.value, is_nan(value.value))


def _passed(
    run: Run, ins: Sequence[Marked], rest: list[np.ndarray], labels: list[int]
) -> list[np.ndarray]:
    """The first label, for each element, that makes it non-finite by itself."""
    passed = [np.zeros(mask.shape, np.int32) for mask in rest]
    for label in labels[:-1]:
        if not any(mask.any() for mask in rest):
            return passed
        alone = run([finite(x, frozenset((label,))) for x in ins])
        for k, out in enumerate(alone):
            mine = rest[k] & _mask(out)
            passed[k] = np.where(mine, np.int32(label), passed[k])
            rest[k] = rest[k] & ~mine
    last = np.int32(labels[-1])
    return [np.where(m, last, p) for m, p in zip(rest, passed, strict=True)]


def causes(
    run: Run, ins: Sequence[Marked], turned: Sequence[np.ndarray | None]
) -> frozenset[int]:
    """The labels without whose elements not all that turned would have turned."""
    labels = labels_of(ins)
    if len(labels) == 1:
        return frozenset(labels)
    found: set[int] = set()
    for label in labels:
        others = frozenset(labels) - {label}
        without = run([finite(x, others) for x in ins])
        pairs = zip(turned, without, strict=True)
        if any(m is not None and not is_nan(o)[m].all() for m, o in pairs):
            found.add(label)
    return frozenset(found or labels)
