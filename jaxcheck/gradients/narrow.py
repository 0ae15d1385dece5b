"""From a failing leaf to its coordinates.

A failing range is halved, and both halves are probed twice; what disagrees is halved
again. With a few wrong coordinates that takes O(log n) rounds, each one batch. Every
coordinate that is named has been confirmed by its own difference.
"""

from __future__ import annotations

import numpy as np

from jaxcheck.gradients.comparison import Comparison, Lane, Tolerances
from jaxcheck.gradients.measure import Meter

# Leaves up to this many real coordinates are compared one by one.
_EXHAUSTIVE = 512
# Ranges that are followed in one round: the ones that disagree most.
_BEAM = 4
# Probes for one range; one alone misses a range when its errors nearly cancel.
_PROBES = (101, 102)


def failing_coordinates(meter: Meter, leaf: int, tolerances: Tolerances) -> Comparison:
    """Compare the coordinates of a failing leaf that are most likely wrong.

    Returns:
        A comparison of single coordinates: all of them for a small leaf, else those
        that bisection led to.
    """
    lo, hi = (int(x) for x in meter.programs.offsets[leaf : leaf + 2])
    size = hi - lo
    if size <= _EXHAUSTIVE:
        return meter.compare("exhaustive", [meter.single(leaf, i) for i in range(size)])
    ranges = [(lo, hi)]
    while any(b - a > 1 for a, b in ranges):
        halves = [half for a, b in ranges for half in _halve(a, b)]
        ranges = _worst(meter, halves, tolerances) or halves[:_BEAM]
    return meter.compare("sampled", [Lane(lo=a, hi=b) for a, b in ranges])


def _halve(lo: int, hi: int) -> list[tuple[int, int]]:
    if hi - lo == 1:
        return [(lo, hi)]
    middle = (lo + hi) // 2
    return [(lo, middle), (middle, hi)]


def _worst(
    meter: Meter, ranges: list[tuple[int, int]], tolerances: Tolerances
) -> list[tuple[int, int]]:
    """The ranges that disagree, at most ``_BEAM``, the worst first."""
    lanes = [Lane(lo=a, hi=b, probe=p) for p in _PROBES for a, b in ranges]
    comparison = meter.compare("directional", lanes)
    allowed = comparison.tolerance(tolerances)
    excess = np.where(
        comparison.residual > allowed, comparison.residual, 0.0
    )  # NaN compares false: a NaN residual is not followed
    largest = np.max(excess.reshape(len(_PROBES), -1), axis=0)
    order = [int(k) for k in np.argsort(-largest, kind="stable") if largest[k] > 0]
    return [ranges[k] for k in order[:_BEAM]]
