"""What is known about a wrong gradient, and how much a right prediction of it is worth.

A prediction must hold at every known coordinate, to the tolerance t of that coordinate,
and it must not be luck: where autodiff and the derivative are d apart, a prediction
falls within t of the derivative by chance with probability 2t/d, so a right one earns
log2(d / 2t) bits. A pattern with p free numbers has used up its p best coordinates, one
that was chosen among m pays log2(m), and what remains must reach ``BITS``. Coordinates
that say the same count once.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]
Factors = Mapping[str, Sequence[float]]
Axes = tuple[int, ...]

# A prediction may be off by the error bar, by this share of the derivative, and by this
# share of the largest one, which is also what counts as zero.
RTOL = 1e-6
FLOOR = 1e-12
# Luck shows a pattern in less than one leaf of 2^BITS; one coordinate earns no more
# than MOST_BITS.
BITS = 10.0
MOST_BITS = 20.0
# Orders and subsets of axes are tried for leaves of up to this many axes.
_AXES = 6


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """What is known of one leaf, scaled so that the largest known value is about one.

    A complex leaf is a real one with a last axis (real, imaginary).

    Attributes:
        shape: shape of the leaf.
        whole: autodiff's gradient of the whole leaf.
        index: positions of the known coordinates, one array an axis of ``whole``.
        autodiff: the gradient there.
        numerical: the derivatives there.
        tolerance: by how much a prediction of them may be off.
        bits: what a right prediction of each is worth; zero where autodiff may be
            right.
        theta: the parameters there.
        unit: what the derivatives were divided by.
        theta_unit: what the parameters were divided by.
        factors: numbers that have a name in this program.
    """

    shape: tuple[int, ...]
    whole: Array
    index: tuple[Array, ...]
    autodiff: Array
    numerical: Array
    tolerance: Array
    bits: Array
    theta: Array
    unit: float
    theta_unit: float
    factors: Factors

    @property
    def difference(self) -> Array:
        """Autodiff minus numerical."""
        return self.autodiff - self.numerical

    @property
    def axes(self) -> Axes:
        """The axes along which something can be moved; none if they are too many."""
        axes = tuple(a for a, n in enumerate(self.shape) if n > 1)
        return axes if len(axes) <= _AXES else ()

    def left(self, predicted: Array) -> float | None:
        """Share of the difference that a prediction leaves; None if it fails."""
        left = np.abs(self.numerical - predicted)
        holds = np.all(left <= self.tolerance)
        return norm(left) / norm(self.difference) if holds else None

    def convinces(self, free: int = 0, choices: float = 1) -> bool:
        """Whether a prediction that holds is more than luck."""
        bits = np.sort(self.bits[_distinct(self)])[::-1]
        return bool(np.sum(bits[free:]) - math.log2(choices) >= BITS)

    def moved(self, index: Sequence[Array], cost: float) -> float | None:
        """``left``, if each derivative is what autodiff has at position ``index``.

        A value that n elements share is easily met: it earns log2(size / n) bits.

        Args:
            index: positions in autodiff, one array an axis.
            cost: log2 of the number of moves that were considered.
        """
        left = self.left(self.whole[tuple(index)])
        if left is None:
            return None
        values = np.sort(self.whole, axis=None)
        low = np.searchsorted(values, self.numerical - self.tolerance)
        high = np.searchsorted(values, self.numerical + self.tolerance, "right")
        worth = np.log2(values.size / np.maximum(high - low, 1))
        bits = np.where(high - low > 1, np.minimum(self.bits, worth), self.bits)
        return left if np.sum(bits) - cost >= BITS else None


def collect(
    autodiff: Any, theta: Any, at: Any, numerical: Any, bar: Any, factors: Factors
) -> Evidence | None:
    """The evidence; None if there is no disagreement to explain."""
    dtype = np.result_type(np.asarray(autodiff), np.asarray(numerical), np.float64)
    whole, theta = np.asarray(autodiff, dtype), np.asarray(theta, dtype)
    at, first = np.unique(np.asarray(at, np.int64), return_index=True)
    known, bars = np.asarray(numerical, dtype)[first], np.abs(np.asarray(bar))[first]
    usable = np.isfinite(known) & np.isfinite(bars)
    at, known, bars = at[usable], known[usable], bars[usable]
    if not at.size or not np.all(np.isfinite(whole)):
        return None
    here, theta = whole.ravel()[at], theta.ravel()[at]
    unit, theta_unit = _power_of_two(here, known), _power_of_two(theta)
    here, known = here / unit, known / unit
    largest = max(np.max(np.abs(here)), np.max(np.abs(known)))
    tolerance = bars / unit + RTOL * np.abs(known) + FLOOR * largest
    shape, parts = whole.shape, 2 if np.iscomplexobj(whole) else 1
    if parts == 2:
        at = (2 * at[:, None] + np.arange(2)).ravel()
    tolerance, here, known = np.repeat(tolerance, parts), real(here), real(known)
    whole = real(np.ascontiguousarray(whole / unit))
    whole = whole.reshape((*shape, 2) if parts == 2 else shape)
    bits = np.log2(np.abs(here - known) / (2 * tolerance))
    if not np.any(bits > 0):
        return None
    return Evidence(
        shape=shape,
        whole=whole,
        index=np.unravel_index(at, whole.shape) if whole.ndim else (),
        autodiff=here,
        numerical=known,
        tolerance=tolerance,
        bits=np.clip(bits, 0.0, MOST_BITS),
        theta=real(theta / theta_unit),
        unit=unit,
        theta_unit=theta_unit,
        factors=factors,
    )


def real(values: Array) -> Array:
    """Complex numbers as two real ones."""
    return values.view(np.float64)


def _power_of_two(*values: Array) -> float:
    """A power of two of the size of the largest value; one if there is none."""
    largest = max(float(np.max(np.abs(real(v)))) for v in values)
    if not 0 < largest < math.inf:
        return 1.0
    return math.ldexp(1.0, min(1022, max(-1021, math.frexp(largest)[1])))


def norm(values: Array) -> float:
    """2-norm of values that are of the size of one."""
    return float(np.sqrt(np.sum(values**2)))


def _distinct(e: Evidence) -> Array:
    """Coordinates of which no two have the same autodiff and the same numerical."""
    most: list[int] = []
    for values in (e.numerical, e.autodiff):
        kept: list[int] = []
        for k in map(int, np.argsort(values)):
            if not kept or values[k] - values[kept[-1]] > 2 * e.tolerance[k]:
                kept.append(k)
        most = max(most, kept, key=len)
    return np.array(most)


# -- zeros


@dataclasses.dataclass(frozen=True, slots=True)
class Fit:
    """The numbers c with |y - c x| ≤ tolerance wherever x is not zero."""

    low: float
    best: float
    high: float

    def digits(self, most: int) -> int:
        """How many digits of ``best`` are certain, at least one."""
        width = (self.high - self.low) / 2
        certain = math.log10(abs(self.best) / width) if width else most
        return max(1, min(most, round(certain)))


def fitted(x: Array, y: Array, tolerance: Array) -> Fit | None:
    """Fit y = c x: all the c that serve, and the one of least squares."""
    moves = np.abs(x) > 1e-150  # a smaller x cannot be divided by
    if not np.any(moves):
        return None
    x, y, tolerance = x[moves], y[moves], tolerance[moves]
    center, half = y / x, tolerance / np.abs(x)
    low, high = float(np.max(center - half)), float(np.min(center + half))
    if not low <= high:
        return None
    weights = (x / tolerance) ** 2
    best = float(np.sum(weights * center) / np.sum(weights))
    margin = (high - low) / 100  # for rounding: at the very end it may not serve
    return Fit(low, min(max(best, low + margin), high - margin), high)
