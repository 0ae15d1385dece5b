"""Explain the non-finite outputs of one evaluation: look inside it, or name it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from jaxcheck.places.births.marks import (
    Fate,
    Marked,
    Run,
    causes,
    is_nan,
    labelled,
    labels_of,
    merged,
    nonfinite,
    settle,
)
from jaxcheck.places.births.tape import Frame

Marks = list[np.ndarray | None]
Opened = Callable[[], Marks]
Bear = Callable[[int, np.ndarray, bool, frozenset[int]], np.ndarray]


class CannotOpenError(Exception):
    """An equation cannot be taken apart, or not be differentiated by itself."""

    def __init__(self, reason: str, frame: Frame, k: int) -> None:
        super().__init__(reason)
        self.frame = frame
        self.k = k


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """One evaluation whose non-finite outputs are to be explained.

    Attributes:
        run: evaluates it.
        ins: what it takes.
        outs: what it gave.
        bear: labels ``(output, mask, nan, parents)`` as born here.
        open: marks of the outputs by walking through what is nested, if something is.
        pointwise: see ``settle``.
        fragile: see ``settle``.
        carry: see ``settle``.
    """

    run: Run
    ins: Sequence[Marked]
    outs: Sequence[Any]
    bear: Bear
    open: Opened | None = None
    pointwise: bool = False
    fragile: bool = False
    carry: Run | None = None


def explain(node: Node) -> list[Marked]:
    """The outputs of ``node``, marked."""
    masks = [nonfinite(out) for out in node.outs]
    if all(mask is None for mask in masks):
        return [Marked(out) for out in node.outs]
    marks: Marks | None = None
    labels = labels_of(node.ins)
    if node.open is not None and (not labels or node.fragile):
        marks = _opened(node.open)
    if marks is None:
        fate = settle(
            node.run,
            node.ins,
            node.outs,
            pointwise=node.pointwise,
            fragile=node.fragile,
            carry=node.carry,
        )
        if fate.bears and labels and node.open is not None and not node.fragile:
            marks = _opened(node.open)
        if marks is None:
            marks = _borne(node, fate)
    return [
        Marked(out, _complete(node, j, out, mask, marks[j]))
        for j, (out, mask) in enumerate(zip(node.outs, masks, strict=True))
    ]


def _opened(opening: Opened) -> Marks | None:
    try:
        return opening()
    except CannotOpenError:
        return None


def _borne(node: Node, fate: Fate) -> Marks:
    marks = list(fate.passed)
    for j, (born, turned) in enumerate(zip(fate.born, fate.turned, strict=True)):
        if born is not None:
            marks[j] = _joined(marks[j], _by_kind(node, j, born, frozenset()))
        if turned is not None:
            only = [turned if i == j else None for i in range(len(marks))]
            parents = causes(node.run, node.ins, only)
            marks[j] = _joined(marks[j], _by_kind(node, j, turned, parents))
    return marks


def _joined(first: np.ndarray | None, second: np.ndarray) -> np.ndarray:
    return second if first is None else merged(first, second)


def _by_kind(
    node: Node, j: int, mask: np.ndarray, parents: frozenset[int]
) -> np.ndarray:
    nan = is_nan(node.outs[j])
    marks = np.zeros(mask.shape, np.int32)
    for kind, part in ((True, mask & nan), (False, mask & ~nan)):
        if part.any():
            marks = merged(marks, node.bear(j, part, kind, parents))
    return marks


def _complete(
    node: Node,
    j: int,
    out: Any,
    mask: np.ndarray | None,
    marks: np.ndarray | None,
) -> np.ndarray | None:
    """Marks for exactly the non-finite elements; what is left over is born here.

    A nested program that is opened may give a finite number where as a whole, compiled,
    it gave none.
    """
    if mask is None:
        return None
    if marks is None:
        marks = np.zeros(mask.shape, np.int32)
    left = mask & (marks == 0)
    if left.any():
        parents = frozenset(labels_of(node.ins))
        marks = merged(marks, _by_kind(node, j, left, parents))
    if not mask.all():
        marks = np.where(mask, marks, 0)
    first = marks.flat[0]
    return labelled(mask, int(first)) if (marks == first).all() else marks
