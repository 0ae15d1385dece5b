"""What monitors have kept, put together over a whole run, on the host.

A monitor's state holds the last steps only, so that it can be carried by a scan. A
history reads it after each chunk of steps and keeps all of them.
"""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxcheck.errors import InvalidInputError
from jaxcheck.reports.progress import ProgressOption
from jaxcheck.training.history_numbers import (
    as_dict,
    octaves,
    read_json,
    rows_of,
    tag,
    write_csv,
)
from jaxcheck.training.leaves import Stacked, entries_of
from jaxcheck.training.live import Live, live_for
from jaxcheck.training.monitor import QUANTITIES
from jaxcheck.training.seen import Seen, seen_of
from jaxcheck.training.statistics import GradientStatistics

Array = Any
Path = str | os.PathLike[str]


class _Part(NamedTuple):
    """Some steps, with their norms and losses."""

    steps: Array
    norms: Array
    losses: Array

    def before(self, step: int) -> _Part:
        """Those before ``step``."""
        return _Part(*(x[: np.searchsorted(self.steps, step)] for x in self))


class History:
    """The norms and losses of a run, read from its monitor chunk by chunk.

    Call ``add`` at least once in as many steps as the monitor's ``window``; what was
    overwritten in between is missing, and ``missing`` counts it. After going back to a
    checkpoint, the steps behind it are replaced.

    Example:
        >>> import jax, jax.numpy as jnp, jaxcheck, optax
        >>> tx = jaxcheck.monitor(optax.sgd(0.1))
        >>> params = {"w": jnp.ones(3)}
        >>> def step(carry, _):
        ...     params, state = carry
        ...     loss, grads = jax.value_and_grad(lambda p: jnp.sum(p["w"] ** 2))(params)
        ...     updates, state = tx.update(grads, state, params, value=loss)
        ...     return (optax.apply_updates(params, updates), state), None
        >>> history = jaxcheck.History(params)
        >>> carry = params, tx.init(params)
        >>> for _ in range(3):
        ...     carry, _ = jax.lax.scan(step, carry, length=50)
        ...     history.add(carry[1])
        >>> len(history.steps), history.names, history.missing
        (150, ("['w']",), 0)

    Attributes:
        names: of the rows, as ``jaxcheck.leaf_names`` gives them.
        steps: ``[n]``, numbers of the steps that are kept, rising.
        norms: ``[n, 3, R]``, of gradient, update and parameters; the last of R rows is
            of everything. -1 where nothing was measured, NaN where elements were not
            finite.
        losses: ``[n]``; infinity for a loss that was NaN, NaN where there was none.
        snapshots: statistics by the step that they were added for.
    """

    def __init__(self, params: Any, *, stacked: Stacked = ()) -> None:
        """Begin a history.

        Args:
            params: the parameters, or a tree with their structure, shapes and dtypes.
            stacked: as it was given to ``monitor``.

        Raises:
            InvalidInputError: ``params`` has no floating leaf, or ``stacked`` does not
                fit it.
        """
        entries = entries_of("History(params=...)", params, stacked)
        self._begin([name for entry in entries for name in entry.names])
        self._params = jax.tree.map(_shape_of, params)
        self._stacked: Stacked = stacked

    def _begin(self, names: Sequence[str]) -> None:
        self.names: tuple[str, ...] = tuple(names)
        nothing = np.zeros((0, len(QUANTITIES), len(names) + 1))
        self._parts = [_Part(np.zeros(0, int), nothing, np.zeros(0))]
        self.snapshots: dict[int, GradientStatistics] = {}
        self._last: tuple[Seen, Any] | None = None
        self._live: Live | None = None

    @property
    def steps(self) -> Array:
        """Numbers of the steps that are kept, rising."""
        return self._whole().steps

    @property
    def norms(self) -> Array:
        """The norms of these steps."""
        return self._whole().norms

    @property
    def losses(self) -> Array:
        """The losses of these steps."""
        return self._whole().losses

    def _whole(self) -> _Part:
        """All that is kept; joined when somebody looks, and not with each chunk."""
        if len(self._parts) > 1:
            self._parts = [_Part(*map(np.concatenate, zip(*self._parts, strict=True)))]
        return self._parts[0]

    @property
    def missing(self) -> int:
        """How many steps up to the last one are not kept."""
        last = self._parts[-1].steps
        kept = sum(len(part.steps) for part in self._parts)
        return int(last[-1]) + 1 - kept if len(last) else 0

    def add(self, opt_state: Any, statistics: GradientStatistics | None = None) -> None:
        """Take what a monitor has kept since the last time.

        Waits for the computation of ``opt_state``, and copies a few arrays.

        Args:
            opt_state: a pytree that holds the state of one monitor.
            statistics: of a gradient, to be kept with the last step: its histogram and
                all else that ``jaxcheck.gradient_statistics`` measures.

        Raises:
            InvalidInputError: there is no monitor, or it is not of these parameters.
        """
        if self._params is None:
            raise InvalidInputError(
                "`History.add` needs a history that was begun with `params`; this one "
                "was read from a file."
            )
        seen = seen_of("History.add", opt_state, self._params, self._stacked)
        done = int(seen.state.step)
        first = int(seen.steps[0]) if len(seen.steps) else 0
        if done <= int(max(self.snapshots, default=-1)):
            self.snapshots = {k: x for k, x in self.snapshots.items() if k < first}
        # the window overlaps; and a run that has gone back takes its steps again
        while len(self._parts) > 1 and self._parts[-1].steps[0] >= first:
            self._parts.pop()
        self._parts[-1] = self._parts[-1].before(first)
        if len(seen.steps):
            self._parts.append(_Part(seen.steps, seen.norms, seen.losses))
        # of what surrounds the monitor the kinds are kept, not the arrays
        self._last = seen, jax.tree.map(lambda _: 0, opt_state)
        if statistics is not None:
            self._keep(done - 1, statistics)
        if self._live is not None and not self._live.ended:
            self._live.show(done, self._line(seen))

    def _keep(self, step: int, statistics: GradientStatistics) -> None:
        rows = np.shape(statistics.leaves.norm)
        if rows != (len(self.names),):
            raise InvalidInputError(
                "`History.add(statistics=...)` must be those of one gradient of "
                f"`params`, with the same `stacked`: {len(self.names)} rows; they have "
                f"the shape {rows}."
            )
        self.snapshots[step] = jax.tree.map(np.asarray, statistics)

    def seen(self) -> Seen:
        """What rules of health are asked about: the last state, and all steps.

        Raises:
            InvalidInputError: nothing was added yet.
        """
        seen, _ = self._require_last()
        return dataclasses.replace(
            seen, steps=self.steps, norms=self.norms, losses=self.losses
        )

    def surroundings(self) -> Any:
        """The pytree that held the last state, with numbers in place of arrays."""
        return self._require_last()[1]

    def _require_last(self) -> tuple[Seen, Any]:
        if self._last is None:
            raise InvalidInputError(
                "`History` holds no state of a monitor: call `history.add(opt_state)` "
                "after some steps. One that was read from a file has numbers only."
            )
        return self._last

    # ---- what people look at

    def __str__(self) -> str:
        return self.summary()

    def __repr__(self) -> str:
        last = f", last {self.steps[-1]}" if len(self.steps) else ""
        return f"<History: {len(self.steps):,} steps{last}>"

    def summary(self, top: int = 5) -> str:
        """The run in a few lines, with the leaves that stand out most.

        Args:
            top: how many leaves are listed.
        """
        from jaxcheck.training.history_text import as_text

        return as_text(self, top)

    def live(self, total: int, *, progress: ProgressOption = None) -> Live:
        """Show a line that each ``add`` brings up to date.

        Args:
            total: steps that are expected.
            progress: None shows the line on a terminal, True always (on a file once in
                ten seconds at most), False never; or a function of (done, total).

        Returns:
            A context manager, to be entered around the loop.

        Example:
            >>> import jax.numpy as jnp, jaxcheck, optax
            >>> params = jnp.ones(3)
            >>> tx, history = jaxcheck.monitor(optax.sgd(0.1)), jaxcheck.History(params)
            >>> state = tx.init(params)
            >>> with history.live(2, progress=print):
            ...     for _ in range(2):
            ...         _, state = tx.update(jnp.ones(3), state, params)
            ...         history.add(state)
            1 2
            2 2
        """
        self._live = live_for(progress, total)
        return self._live

    def _line(self, seen: Seen) -> str:
        from jaxcheck.training.history_text import as_line

        return as_line(self, seen)

    # ---- numbers for elsewhere

    def rows(self, since: int = 0) -> Iterator[tuple[int, dict[str, float]]]:
        """The numbers of each step under names that trackers take.

        A name is ``loss``, ``gradient``, ``update`` or ``parameter`` (the norms of
        everything), ``update_ratio``, or ``gradient/layer_0/w`` for a leaf. What was
        not measured is left out; what was not finite is NaN.

        Args:
            since: the first step that is wanted.

        Yields:
            The number of the step, and a flat dict: ``wandb.log(values, step=step)``.

        Example:
            >>> for step, values in history.rows(since=100):  # doctest: +SKIP
            ...     wandb.log(values, step=step)
        """
        yield from rows_of(self, since)

    def histograms(self, step: int) -> dict[str, tuple[Array, Array]]:
        """The gradient of a step in octaves of its magnitude, leaf by leaf.

        Args:
            step: one of ``snapshots``.

        Returns:
            Counts and edges of log2 |g| by ``gradient/layer_0/w``, as
            ``wandb.Histogram(np_histogram=...)`` takes them. Zeros are in none; what is
            beyond the outer edges is in the outermost bins.

        Raises:
            InvalidInputError: no statistics were added for that step.
        """
        if step not in self.snapshots:
            known = ", ".join(map(str, self.snapshots)) or "none"
            raise InvalidInputError(
                f"`History.histograms(step={step})` must be a step that statistics "
                f"were added for: {known}."
            )
        counts = self.snapshots[step].leaves.histogram
        return {
            f"gradient/{tag(name)}": (row, octaves())
            for name, row in zip(self.names, counts, strict=True)
        }

    def to_dict(self) -> dict[str, Any]:
        """Everything but snapshots as plain JSON-able data.

        What is not finite becomes a string, what was not measured None.
        """
        return as_dict(self)

    def to_json(self, path: Path) -> None:
        """Write ``to_dict`` to a file."""
        text = json.dumps(self.to_dict(), allow_nan=False)
        pathlib.Path(path).write_text(text + "\n", "utf-8")

    def to_csv(self, path: Path) -> None:
        """Write a row for each step, with a column for each name of ``rows``.

        A cell is empty where nothing was measured.
        """
        write_csv(self, path)

    @classmethod
    def from_json(cls, path: Path) -> History:
        """Read a file that ``to_json`` wrote: its numbers, for plots and tables.

        Raises:
            InvalidInputError: it is no such file.
        """
        held = read_json(path)
        history = cls.__new__(cls)
        history._begin(held.names)
        history._params = None
        history._parts = [_Part(held.steps, held.norms, held.losses)]
        return history

    def to_tensorboard(self, target: Any, since: int = 0) -> None:
        """Write norms and losses, and histograms of snapshots, for TensorBoard.

        Histograms are of log2 |g|, where the differences are.

        Args:
            target: a directory, written with tensorboardX (the extra ``tensorboard``),
                or a ``SummaryWriter`` of tensorboardX or torch, which stays open.
            since: the first step that is wanted.
        """
        from jaxcheck.training.tensorboard import write

        write(self, target, since)

    def plot(self, path: Path | None = None, report: Any = None) -> Any:
        """Draw the run: norms by leaf and step, depth, update ratios, loss.

        Needs matplotlib, the extra ``plot``. ``jaxcheck.plots`` has each by itself.

        Args:
            path: a file to write, e.g. ``"run.png"``.
            report: ``jaxcheck.diagnose(history)``; its findings are marked.

        Returns:
            The ``matplotlib.figure.Figure``.
        """
        from jaxcheck.training.plots import overview

        figure = overview(self, report)
        if path is not None:
            figure.savefig(path)
        return figure


def _shape_of(value: Any) -> Any:
    if not hasattr(value, "dtype"):
        return value
    return jax.ShapeDtypeStruct(np.shape(value), value.dtype)
