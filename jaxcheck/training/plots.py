"""Pictures of a run: norms by leaf and step, depth, octaves, update ratios, loss.

Each function draws into an ``Axes`` of matplotlib, its own by default, and returns it.
matplotlib, the extra ``plot``, is imported when something is drawn.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxcheck.errors import InvalidInputError
from jaxcheck.training.history import History
from jaxcheck.training.history_numbers import octaves, tag
from jaxcheck.training.leaves import fitting, nearest
from jaxcheck.training.monitor import GRADIENT, PARAMETER, QUANTITIES, UPDATE

if TYPE_CHECKING:
    from jaxcheck.training.health import HealthReport

Array = Any

_NAMED = 24  # rows whose names can be read
_LINES = 8  # lines that can be told apart


def norms(history: History, quantity: str = "gradient", ax: Any = None) -> Any:
    """The norm of each leaf and layer over the steps, as a heat map of log10.

    Steps that were not finite are red, those that were not measured empty.

    Args:
        history: a run.
        quantity: ``"gradient"``, ``"update"`` or ``"parameter"``.
        ax: where to draw.
    """
    ax = _axes(history, ax)
    values = history.norms[:, _number_of(quantity), :-1].T
    with np.errstate(divide="ignore", invalid="ignore"):
        shown = np.log10(np.where(values > 0, values, np.nan))
    edges = _edges(history.steps)
    drawn = ax.pcolormesh(edges, np.arange(len(values) + 1), shown, cmap="viridis")
    bad = np.where(np.isnan(values), 1.0, np.nan)
    ax.pcolormesh(
        edges, np.arange(len(values) + 1), bad, cmap="autumn", vmin=1.0, vmax=2.0
    )
    ax.figure.colorbar(drawn, ax=ax, label=f"log10 norm of the {quantity}")
    if len(history.names) <= _NAMED:
        ax.set_yticks(np.arange(len(values)) + 0.5, list(map(tag, history.names)))
    else:
        ax.set_ylabel("leaf or layer")
    ax.invert_yaxis()
    ax.set_xlabel("step")
    ax.set_title(f"Norm of the {quantity} by leaf")
    return ax


def depth(
    history: History,
    pattern: str = "",
    steps: Sequence[int] | None = None,
    ax: Any = None,
) -> Any:
    """The gradient's norm from the first leaf to the last, at some steps.

    Args:
        history: a run.
        pattern: which leaves, e.g. ``"['layers']['w']"`` for the layers of a stack; a
            path or a beginning of one, as for ``stacked``. Empty for all.
        steps: which; by default five spread over the run.
        ax: where to draw.
    """
    ax = _axes(history, ax)
    rows = _rows(history, pattern)
    chosen = _steps(history, steps)
    colors = _colors(len(chosen))
    for color, at in zip(colors, chosen, strict=True):
        line = history.norms[at, GRADIENT, rows]
        line = np.where(line > 0, line, np.nan)
        ax.plot(line, marker="o", ms=3, color=color, label=f"step {history.steps[at]}")
    ax.set_yscale("log")
    if len(rows) <= _NAMED:
        names = [tag(history.names[k]) for k in rows]
        ax.set_xticks(range(len(rows)), names, rotation=90)
    else:
        ax.set_xlabel("leaf or layer")
    ax.set_ylabel("norm of the gradient")
    ax.set_title("Gradient by depth")
    ax.legend(fontsize="small")
    return ax


def histograms(history: History, leaf: str | None = None, ax: Any = None) -> Any:
    """How magnitudes of the gradient are spread over octaves, over the steps.

    Args:
        history: a run with statistics: ``history.add(state, statistics)``.
        leaf: a name out of ``history.names``; None for everything.
        ax: where to draw.
    """
    if not history.snapshots:
        raise InvalidInputError(
            "`plots.histograms(history=...)` has no statistics: add them with "
            "history.add(state, jaxcheck.gradient_statistics(grads))."
        )
    ax = _axes(history, ax)
    steps = sorted(history.snapshots)
    if leaf is None:
        counts = [history.snapshots[k].total.histogram for k in steps]
    else:
        row = _name(history, leaf)
        counts = [history.snapshots[k].leaves.histogram[row] for k in steps]
    share = np.array(counts, float).T
    share /= np.maximum(share.sum(axis=0), 1)
    shown = np.where(share > 0, share, np.nan)
    drawn = ax.pcolormesh(_edges(np.array(steps)), octaves(), shown, cmap="magma_r")
    ax.figure.colorbar(drawn, ax=ax, label="share of elements")
    filled = np.flatnonzero(share.any(axis=1))
    if len(filled):
        ax.set_ylim(octaves()[filled[0]] - 1, octaves()[filled[-1] + 1] + 1)
    ax.set_xlabel("step")
    ax.set_ylabel("log2 |g|")
    ax.set_title(
        f"Magnitudes of the gradient{'' if leaf is None else ' of ' + tag(leaf)}"
    )
    return ax


def update_ratios(history: History, ax: Any = None) -> Any:
    """How large updates are beside the parameters, leaf by leaf.

    Around 1e-3 is usual; the band is from 1e-4 to 1e-2.

    Args:
        history: a run whose monitor wraps an optimizer.
        ax: where to draw.
    """
    ax = _axes(history, ax)
    update, param = history.norms[:, UPDATE], history.norms[:, PARAMETER]
    known = (update > 0) & (param > 0)
    ratio = np.where(known, update / np.where(known, param, 1.0), np.nan)
    ax.axhspan(1e-4, 1e-2, color="0.93")
    rows = len(history.names)
    for k in range(rows):
        named = rows <= _LINES
        ax.plot(
            history.steps,
            ratio[:, k],
            lw=0.8,
            color=None if named else "0.7",
            label=tag(history.names[k]) if named else None,
        )
    ax.plot(history.steps, ratio[:, -1], color="black", lw=1.5, label="everything")
    ax.set_yscale("log")
    ax.set_xlabel("step")
    ax.set_ylabel("norm of update / norm of parameter")
    ax.set_title("Update ratios")
    ax.legend(fontsize="small")
    return ax


def loss(history: History, report: HealthReport | None = None, ax: Any = None) -> Any:
    """The loss over the steps, with the events of a diagnosis marked.

    Args:
        history: a run whose ``tx.update`` was given ``value=loss``.
        report: ``jaxcheck.diagnose(history)``; its findings are marked at their steps.
        ax: where to draw.
    """
    ax = _axes(history, ax)
    losses = np.where(np.isfinite(history.losses), history.losses, np.nan)
    ax.plot(history.steps, losses, color="black", lw=1.0)
    positive = losses[~np.isnan(losses)]
    if len(positive) and positive.min() > 0 and positive.max() > 20 * positive.min():
        ax.set_yscale("log")
    if not len(positive):
        ax.text(0.5, 0.5, "no loss was given", transform=ax.transAxes, ha="center")
    at: dict[int, list[str]] = {}
    for finding in report.findings if report is not None else ():
        if finding.step is not None:
            at.setdefault(finding.step, []).append(finding.rule)
    for color, (step, rules) in zip(_colors(len(at)), sorted(at.items()), strict=True):
        ax.axvline(step, color=color, ls="--", label=f"{step}: {', '.join(rules)}")
    bad = history.steps[np.isnan(history.norms[:, GRADIENT, -1])]
    if len(bad):
        ax.plot(
            bad,
            np.zeros(len(bad)),
            "|",
            color="red",
            ms=12,
            transform=ax.get_xaxis_transform(),
            clip_on=False,
            label="gradient not finite",
        )
    if at or len(bad):
        ax.legend(fontsize="small")
    ax.set_xlabel("step")
    ax.set_ylabel("loss")
    ax.set_title("Loss")
    return ax


def overview(history: History, report: HealthReport | None = None) -> Any:
    """All of them in one figure.

    Args:
        history: a run.
        report: as for :func:`loss`.

    Returns:
        The ``matplotlib.figure.Figure``.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 8.5), layout="constrained")
    axes = figure.subplots(2, 2)
    loss(history, report, axes[0, 0])
    norms(history, ax=axes[0, 1])
    if history.snapshots:
        histograms(history, ax=axes[1, 0])
    else:
        depth(history, ax=axes[1, 0])
    update_ratios(history, axes[1, 1])
    return figure


def _axes(history: History, ax: Any) -> Any:
    if not len(history.steps):
        raise InvalidInputError(
            "`plots(history=...)` has no steps: call history.add(state) first."
        )
    if ax is not None:
        return ax
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError(
            "plots need matplotlib: pip install 'jaxcheck[plot]'"
        ) from error
    return Figure(figsize=(8, 5), layout="constrained").subplots()


def _number_of(quantity: str) -> int:
    if quantity not in QUANTITIES:
        raise InvalidInputError(
            f"`plots.norms(quantity={quantity!r})` must be one of "
            f"{', '.join(map(repr, QUANTITIES))}."
        )
    return QUANTITIES.index(quantity)


def _rows(history: History, pattern: str) -> list[int]:
    if not pattern:
        return list(range(len(history.names)))
    found = fitting(pattern, history.names)
    if not found:
        raise InvalidInputError(
            f"`plots.depth(pattern={pattern!r})` fits no leaf; "
            f"{nearest(pattern, history.names)}."
        )
    return found


def _name(history: History, leaf: str) -> int:
    if leaf not in history.names:
        raise InvalidInputError(
            f"`plots.histograms(leaf={leaf!r})` must be a name out of "
            f"`history.names`; {nearest(leaf, history.names)}."
        )
    return history.names.index(leaf)


def _steps(history: History, steps: Sequence[int] | None) -> list[int]:
    """Where the wanted steps are."""
    if steps is None:
        spread = np.linspace(0, len(history.steps) - 1, min(5, len(history.steps)))
        return [int(k) for k in np.round(spread)]
    where = {int(step): k for k, step in enumerate(history.steps)}
    unknown = [k for k in steps if k not in where]
    if unknown:
        raise InvalidInputError(
            f"`plots.depth(steps=...)` must be steps that are kept; {unknown[0]} is "
            f"none of {history.steps[0]} to {history.steps[-1]}."
        )
    return [where[k] for k in steps]


def _edges(steps: Array) -> Array:
    """Between steps, for what is drawn in cells."""
    middles = (steps[1:] + steps[:-1]) / 2
    return np.concatenate([[steps[0] - 0.5], middles, [steps[-1] + 0.5]])


def _colors(number: int) -> list[Any]:
    from matplotlib import colormaps

    return [colormaps["plasma"](x) for x in np.linspace(0, 0.85, max(number, 1))][
        :number
    ]
