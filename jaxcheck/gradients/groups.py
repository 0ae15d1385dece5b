"""Which leaves move together, when single coordinates are moved one by one.

A lane does the work that any leaf of its group may need, and what depends only on
others is computed once for all lanes. A leaf of the last layer so spares its lanes all
layers before. But every group is one more body to compile: there are two at most.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxcheck.jaxprs.compat import Program
from jaxcheck.jaxprs.reach import work_behind_inputs

# Work (see jaxprs/reach.py) that must be saved to be worth compiling a second body:
# about a quarter of a second of it, estimated for a perceptron on two CPU cores.
LEAST_SAVED = 2e9


def groups_of(program: Program, lanes: Sequence[float]) -> list[tuple[int, ...]]:
    """The inputs of ``program`` in one group, or in two where that saves much.

    Args:
        program: the loss.
        lanes: how many lanes move each input.
    """
    work, reached = work_behind_inputs(program)
    # those that most depends on first: the second group is a tail of this order
    order = np.argsort(-(work @ reached), kind="stable")
    depends = reached[:, order]
    last = np.where(depends, np.arange(len(order)), -1).max(axis=1, initial=-1)
    # work of a lane whose group begins at k: equations that an input from k on reaches
    cost = np.array([work[last >= k].sum() for k in range(len(order))])
    behind = np.cumsum(np.asarray(lanes, np.float64)[order][::-1])[::-1]
    saved = behind * (cost[:1] - cost)
    cut = int(np.argmax(saved)) if len(saved) else 0
    parts: list[Any] = [order]
    if len(saved) and saved[cut] >= LEAST_SAVED:
        parts = [order[:cut], order[cut:]]
    return [tuple(sorted(map(int, part))) for part in parts]
