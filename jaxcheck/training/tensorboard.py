"""A history in TensorBoard, by a writer that others keep up: tensorboardX, or torch's.

A histogram is written by its counts, as the device has taken them: no element of a
gradient leaves it.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxcheck.errors import InvalidInputError

if TYPE_CHECKING:
    from jaxcheck.training.history import History


def write(history: History, target: Any, since: int) -> None:
    """Write what is kept of steps from ``since`` on; see ``History.to_tensorboard``."""
    if isinstance(target, str | os.PathLike):
        with _opened(os.fspath(target)) as writer:  # pyright: ignore[reportUnknownArgumentType]
            _written(history, writer, since)
        return
    if not callable(getattr(target, "add_histogram_raw", None)):
        raise InvalidInputError(
            "`History.to_tensorboard(target=...)` must be a directory, or a writer "
            f"with add_scalar and add_histogram_raw; got {type(target).__name__}."
        )
    _written(history, target, since)


def _opened(directory: str) -> Any:
    try:
        from tensorboardX import SummaryWriter
    except ImportError as error:
        raise ImportError(
            "History.to_tensorboard needs tensorboardX: "
            "pip install 'jaxcheck[tensorboard]'; or give it a SummaryWriter."
        ) from error
    return SummaryWriter(directory)


def _written(history: History, writer: Any, since: int) -> None:
    for step, values in history.rows(since):
        for name, value in values.items():
            writer.add_scalar(name, value, step)
    for step in history.snapshots:
        if step < since:
            continue
        for name, (counts, edges) in history.histograms(step).items():
            _histogram(writer, f"log2 {name}", counts, edges, step)


def _histogram(writer: Any, name: str, counts: Any, edges: Any, step: int) -> None:
    """Of log2 |g|; sums are those of the middles of the bins."""
    filled = np.flatnonzero(counts)
    if not len(filled):
        return  # zeros and what is not finite are in no bin
    middles = (edges[:-1] + edges[1:]) / 2
    first, last = filled[0], filled[-1] + 1
    writer.add_histogram_raw(
        name,
        min=float(edges[first]),
        max=float(edges[last]),
        num=int(counts.sum()),
        sum=float((counts * middles).sum()),
        sum_squares=float((counts * middles**2).sum()),
        bucket_limits=edges[first + 1 : last + 1].tolist(),
        bucket_counts=counts[first:last].tolist(),
        global_step=step,
    )
