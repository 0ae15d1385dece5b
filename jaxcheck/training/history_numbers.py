"""A run as numbers for elsewhere: flat dicts for trackers, JSON and back, CSV."""

from __future__ import annotations

import csv
import json
import math
import pathlib
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from jaxcheck.errors import InvalidInputError
from jaxcheck.training.histogram import histogram_edges
from jaxcheck.training.monitor import QUANTITIES, UNMEASURED

if TYPE_CHECKING:
    from jaxcheck.training.history import History, Path

Array = Any

_VERSION = 1


def rows_of(history: History, since: int) -> Iterator[tuple[int, dict[str, float]]]:
    """See ``History.rows``."""
    names = [tag(name) for name in history.names]
    whole = history.steps, history.norms, history.losses
    for step, norms, loss in zip(*whole, strict=True):
        if step < since:
            continue
        values: dict[str, float] = {}
        if not math.isnan(loss):
            values["loss"] = float(loss)
        for quantity, row in zip(QUANTITIES, norms.tolist(), strict=True):
            if row[-1] == UNMEASURED:
                continue
            values[quantity] = row[-1]
            for name, norm in zip(names, row[:-1], strict=True):
                values[f"{quantity}/{name}"] = norm
        if values.get("update", 0) > 0 and values.get("parameter", 0) > 0:
            values["update_ratio"] = values["update"] / values["parameter"]
        yield int(step), values


def write_csv(history: History, path: Path) -> None:
    """See ``History.to_csv``."""
    rows = list(history.rows())
    columns = dict.fromkeys(name for _, values in rows for name in values)
    with pathlib.Path(path).open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, ["step", *columns], lineterminator="\n")
        writer.writeheader()
        for step, values in rows:
            writer.writerow({"step": step, **values})


# ---- JSON


class Held(NamedTuple):
    """What a file holds: names of rows, and steps with their norms and losses."""

    names: tuple[str, ...]
    steps: Array
    norms: Array
    losses: Array


def as_dict(history: History) -> dict[str, Any]:
    """See ``History.to_dict``."""
    return {
        "version": _VERSION,
        "names": list(history.names),
        "missing": history.missing,
        "steps": history.steps.tolist(),
        "losses": [None if math.isnan(x) else _plain(x) for x in history.losses],
        "norms": {
            quantity: [
                [None if x == UNMEASURED else _plain(x) for x in row]
                for row in history.norms[:, k].tolist()
            ]
            for k, quantity in enumerate(QUANTITIES)
        },
    }


def read_json(path: Path) -> Held:
    """What ``History.to_json`` wrote.

    Raises:
        InvalidInputError: it is no such file.
    """
    try:
        held = json.loads(pathlib.Path(path).read_text("utf-8"))
        names, steps = tuple(held["names"]), np.array(held["steps"], int)
        norms = [_numbers(held["norms"][q], UNMEASURED) for q in QUANTITIES]
        shape = len(steps), len(QUANTITIES), len(names) + 1
        return Held(
            names,
            steps,
            np.stack(norms, axis=1).reshape(shape),
            _numbers(held["losses"], math.nan),
        )
    except (ValueError, KeyError, TypeError) as error:
        raise InvalidInputError(
            f"`History.from_json(path={str(path)!r})` must be a file that "
            f"`to_json` wrote: {type(error).__name__}, {error}."
        ) from error


def _plain(value: float) -> float | str:
    return float(value) if math.isfinite(value) else str(float(value))


def _numbers(values: Any, nothing: float) -> Array:
    """An array of what ``as_dict`` made lists of."""

    def number(value: Any) -> Any:
        if isinstance(value, list):
            return [number(x) for x in value]  # pyright: ignore[reportUnknownVariableType]
        return nothing if value is None else float(value)

    return np.array(number(values), float)


# ---- names and bins


def tag(name: str) -> str:
    """The name of a row as trackers write it.

    Example:
        >>> tag("['layers']['up'][1]"), tag(".kernel"), tag("")
        ('layers/up/1', 'kernel', 'params')
    """
    keys = re.findall(
        r"""\['([^']*)'\]|\["([^"]*)"\]|\[([^\]]*)\]|\.?([^.\[]+)""", name
    )
    return "/".join("".join(key).replace(":, ", "") for key in keys) or "params"


def octaves() -> Array:
    """Edges of the bins of a histogram as log2 |g|, the outer ones finite."""
    inner = np.log2(histogram_edges()[1:-1])
    return np.concatenate([[inner[0] - 1], inner, [inner[-1] + 1]])
