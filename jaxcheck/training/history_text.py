"""A run as people read it: one line, or a few with the leaves that stand out."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxcheck.reports.numbers import counted, significant
from jaxcheck.reports.tables import (
    Blank,
    Block,
    Headline,
    Paragraph,
    Row,
    Span,
    Table,
    Tone,
    plain_text,
)
from jaxcheck.training.monitor import GRADIENT, PARAMETER, UPDATE

if TYPE_CHECKING:
    from jaxcheck.training.history import History
    from jaxcheck.training.seen import Seen

Array = Any

_TITLES = ("leaf", "gradient", "median", "largest", "update ratio", "")


def as_line(history: History, seen: Seen) -> str:
    """The last step and what has happened so far, for a line that moves."""
    parts = [_loss(seen.losses[-1])] if len(seen.losses) else []
    state = seen.state
    norm = math.nan if state.nonfinite[GRADIENT, -1] else state.norm[GRADIENT, -1]
    usual = seen.usual(GRADIENT)[-1]
    about = "" if math.isnan(usual) else f" (usually {significant(usual, 2)})"
    parts.append(f"gradient {significant(float(norm), 2)}{about}")
    if state.update_ratio[-1] >= 0:
        parts.append(f"update ratio {significant(float(state.update_ratio[-1]), 1)}")
    spikes = int(state.level.spikes[GRADIENT, -1])
    bad = int(state.bad_steps[:, -1].max())
    if spikes:
        parts.append(counted(spikes, "spike"))
    if bad:
        parts.append(f"{counted(bad, 'step')} with NaN or infinity")
    if history.missing:
        parts.append(f"{counted(history.missing, 'step')} not kept")
    return " · ".join(part for part in parts if part)


def _loss(value: float) -> str:
    if math.isnan(value):
        return ""
    return (
        f"loss {significant(float(value), 3)}" if math.isfinite(value) else "loss NaN"
    )


def as_text(history: History, top: int) -> str:
    """The whole run in plain text."""
    return plain_text(_blocks(history, top))


def _blocks(history: History, top: int) -> Iterator[Block]:
    steps = counted(len(history.steps), "step")
    left = f", {history.missing:,} not kept" if history.missing else ""
    rows = f"{len(history.names):,} leaves and layers"
    yield Headline(
        Span(f"jaxcheck: a history of {steps}{left}", "strong"), Span(rows, "quiet")
    )
    if not len(history.steps):
        return
    yield from _totals(history)
    order = _standing_out(history.norms)[: max(top, 0)]
    if len(order):
        rest = len(history.names) - len(order)
        remark = Span(f"and {rest:,} that stand out less", "quiet") if rest else None
        yield Blank()
        yield Table(_TITLES, tuple(_row(history, k) for k in order), remark)


def _totals(history: History) -> Iterator[Block]:
    known = ~np.isnan(history.losses)
    if known.any():
        losses, steps = history.losses[known], history.steps[known]
        least = int(np.argmin(losses))
        text = (
            f"{significant(float(losses[-1]), 3)}, from "
            f"{significant(float(losses[0]), 3)}; least "
            f"{significant(float(losses[least]), 3)} in step {steps[least]}."
        )
        yield Paragraph(Span("Loss:", "strong"), text)
    norm = history.norms[:, GRADIENT, -1]
    sound = np.flatnonzero(norm >= 0)
    if len(sound):
        largest = int(sound[np.argmax(norm[sound])])
        text = (
            f"{significant(float(norm[sound[-1]]), 2)}, median "
            f"{significant(float(np.median(norm[sound])), 2)}; largest "
            f"{significant(float(norm[largest]), 2)} in step {history.steps[largest]}."
        )
        yield Paragraph(Span("Gradient norm:", "strong"), text)
    bad = np.flatnonzero(np.isnan(norm))
    if len(bad):
        text = f"{counted(len(bad), 'step')}, first step {history.steps[bad[0]]}."
        yield Paragraph(Span("NaN or infinity in the gradient:", "bad"), text)


def _standing_out(norms: Array) -> Array:
    """Rows, those first that were not finite, then by how far they left their usual."""
    gradient = norms[:, GRADIENT, :-1]
    bad = np.isnan(gradient).sum(axis=0)
    with np.errstate(divide="ignore", invalid="ignore"):
        logs = np.where(gradient > 0, np.log(gradient), np.nan)
        zeros = (gradient == 0).sum(axis=0)
        off = np.array([_spread(column) for column in logs.T])
    return np.lexsort((-off, -zeros, -bad))


def _spread(logs: Array) -> float:
    """How far the farthest is from the median."""
    known = logs[~np.isnan(logs)]
    if not len(known):
        return 0.0
    return float(np.max(np.abs(known - np.median(known))))


def _row(history: History, k: int) -> Row:
    gradient = history.norms[:, GRADIENT, k]
    sound = np.flatnonzero(gradient >= 0)
    bad = np.flatnonzero(np.isnan(gradient))
    remark, tone = _remark(history, gradient, bad)
    if not len(sound):
        cells = ["NaN" if len(bad) else "–", "–", "–"]
    else:
        largest = int(sound[np.argmax(gradient[sound])])
        last = gradient[-1]
        cells = [
            "–" if last < 0 else significant(float(last), 2),
            significant(float(np.median(gradient[sound])), 2),
            f"{significant(float(gradient[largest]), 2)} in step "
            f"{history.steps[largest]}",
        ]
    spans = [Span(text) for text in (*cells, _ratio(history.norms, k))]
    name = Span(history.names[k] or "the leaf")
    return Row((name, *spans, Span(remark, tone)))


def _remark(history: History, gradient: Array, bad: Array) -> tuple[str, Tone | None]:
    if len(bad):
        return f"NaN in {counted(len(bad), 'step')} from {history.steps[bad[0]]}", "bad"
    zeros = np.flatnonzero(gradient == 0)
    if len(zeros):
        return f"zero in {counted(len(zeros), 'step')}", "unsure"
    return "", None


def _ratio(norms: Array, k: int) -> str:
    """Of the last update that was not zero."""
    update, param = norms[:, UPDATE, k], norms[:, PARAMETER, k]
    known = np.flatnonzero((update > 0) & (param > 0))
    if not len(known):
        return "–"
    return significant(float(update[known[-1]] / param[known[-1]]), 2)
