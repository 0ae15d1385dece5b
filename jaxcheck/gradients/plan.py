"""What to compare, within the budget: every coordinate, some, or random directions."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from jaxcheck.errors import InvalidInputError
from jaxcheck.gradients.differences import FIRST_STEPS
from jaxcheck.gradients.options import Options
from jaxcheck.trees import Leaf

# "auto" compares every coordinate while that takes at most this many evaluations.
AUTO_BUDGET = 10_000
# The classical advice: twenty randomly chosen parameters.
DEFAULT_SAMPLES = 20
DEFAULT_DIRECTIONS = 4
# "auto" starts with fewer probes and adds some where the bound is not tight enough.
AUTO_DIRECTIONS = 2
PER_COMPARISON = len(FIRST_STEPS)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How each leaf is compared.

    Attributes:
        method: the same for all leaves in the first pass.
        coordinates: for each leaf the flat real coordinates to compare one by one
            (numbered within the leaf); empty for ``"directional"``.
        directions: probes a leaf; 0 unless ``"directional"``.
        most_directions: how many probes a leaf may be given in all.
    """

    method: Literal["exhaustive", "sampled", "directional"]
    coordinates: tuple[Any, ...]
    directions: int
    most_directions: int

    @property
    def evaluations(self) -> int:
        """Loss evaluations of the first pass."""
        compared = sum(len(c) for c in self.coordinates)
        return PER_COMPARISON * (compared + self.directions * len(self.coordinates))


def make_plan(leaves: Sequence[Leaf], options: Options) -> Plan:
    """Choose the comparisons of the first pass of ``leaves``, the differentiable ones.

    Raises:
        InvalidInputError: the budget does not suffice for the mode.
    """
    mode, budget = options.mode, options.budget
    sizes = [leaf.size * leaf.parts for leaf in leaves]
    if mode == "exhaustive" or (
        mode == "auto" and PER_COMPARISON * sum(sizes) <= (budget or AUTO_BUDGET)
    ):
        every = tuple(np.arange(n) for n in sizes)
        plan = Plan(
            method="exhaustive", coordinates=every, directions=0, most_directions=0
        )
    elif mode == "sampled":
        count = options.samples or DEFAULT_SAMPLES
        some = _sample(leaves, sizes, count, options.seed)
        plan = Plan(method="sampled", coordinates=some, directions=0, most_directions=0)
    else:
        plan = _directional(leaves, options)
    if budget is not None and plan.evaluations > budget:
        noun = "leaf" if len(leaves) == 1 else "leaves"
        raise InvalidInputError(
            f"`check(budget={budget})` is too small: mode={mode!r} needs at least "
            f"{plan.evaluations} loss evaluations for {sum(sizes)} coordinates in "
            f"{len(leaves)} {noun}. Raise the budget, or use "
            'mode="directional", which needs few evaluations a leaf.'
        )
    return plan


def _directional(leaves: Sequence[Leaf], options: Options) -> Plan:
    directions, budget = options.directions, options.budget
    fewest = AUTO_DIRECTIONS if options.mode == "auto" else DEFAULT_DIRECTIONS
    count = directions or fewest
    if directions is None and budget is not None:
        # fewer probes make a looser bound, not a wrong one
        count = max(1, min(count, budget // (PER_COMPARISON * len(leaves))))
    most = count if directions is not None else 2 * DEFAULT_DIRECTIONS
    return Plan(
        method="directional",
        coordinates=tuple(np.arange(0) for _ in leaves),
        directions=count,
        most_directions=most,
    )


def _sample(
    leaves: Sequence[Leaf], sizes: Sequence[int], samples: int, seed: Sequence[int]
) -> tuple[Any, ...]:
    """Different coordinates of every leaf, keyed on its path and on nothing else."""
    chosen: list[Any] = []
    for leaf, size in zip(leaves, sizes, strict=True):
        rng = np.random.default_rng([*seed, leaf.token])
        chosen.append(np.sort(rng.choice(size, min(samples, size), replace=False)))
    return tuple(chosen)
