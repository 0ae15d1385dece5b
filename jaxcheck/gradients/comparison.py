"""Autodiff against differences for one leaf: numbers, tolerances, agreement.

All numbers are changes of the loss per step of the leaf, so that leaves of any scale
can be treated alike; ``displacement`` turns them into derivatives.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any, NamedTuple

import numpy as np

from jaxcheck.gradients.probes import CONFIDENCE, bound_factor

FloatArray = np.ndarray[Any, np.dtype[np.float64]]
IntArray = np.ndarray[Any, np.dtype[np.int64]]

# A leaf is resolved if its error bars amount to less than this share of its gradient:
# a factor of 1.001 would have been seen.
_RESOLUTION = 5e-4
# Differences in a lower precision cannot do that: this many times eps^(2/3), the error
# of a difference, but never more than one part in twenty.
_RESOLUTION_UNITS = 200.0
_COARSEST = 5e-2
# Rounding of a sum of products, in units of eps times the sum of absolute values.
_ROUNDING = 8.0
# Mean square of a probe's coordinate, ±U[0.5, 1.5].
_MEAN_SQUARE = 13.0 / 12.0
# A gradient this much smaller than what was summed is zero up to cancellation.
_CANCELLED = 1e-3


def resolution_of(eps: float) -> float:
    """The share of a gradient that error bars may leave open."""
    return min(_COARSEST, max(_RESOLUTION, _RESOLUTION_UNITS * eps ** (2.0 / 3.0)))


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Tolerances:
    """What may differ: see ``jaxcheck.check``.

    Attributes:
        eps: unit roundoff of one value of the loss.
        rounding: unit roundoff of the gradient under test.
        rtol: relative tolerance.
        atol: absolute tolerance.
    """

    eps: float
    rounding: float
    rtol: float
    atol: float


class Lane(NamedTuple):
    """One comparison: which coordinates move, and along what.

    A tuple, because a check of every coordinate makes one for each of them.

    Attributes:
        lo: first real coordinate, numbered over all leaves.
        hi: one past the last.
        probe: number of the probe, or None for a step along the coordinates.
        relative: whether each coordinate moves in proportion to its own value.
    """

    lo: int
    hi: int
    probe: int | None = None
    relative: bool = False


@dataclasses.dataclass(slots=True, kw_only=True)
class Comparison:
    """Everything that was compared for one leaf, by one method.

    Attributes:
        method: ``"exhaustive"``, ``"sampled"`` or ``"directional"``.
        lanes: what was moved, one entry a comparison.
        autodiff: predicted changes.
        numerical: central differences.
        bar: error bars of ``numerical``.
        size: what was summed to predict the changes, in absolute values.
        curvature: |f(x+h) - 2 f(x) + f(x-h)|, to find kinks by.
        displacement: how far a single coordinate moved (ones for directions).
        expected: for a probe of a whole leaf, the size that its gradient lets one
            expect of the change: the change itself can be small by chance. Else zero.
        step: step of the differences, in the leaf's own steps.
        settled: comparisons whose disagreement has been explained.
    """

    method: str
    lanes: list[Lane]
    autodiff: FloatArray
    numerical: FloatArray
    bar: FloatArray
    size: FloatArray
    curvature: FloatArray
    displacement: FloatArray
    expected: FloatArray
    step: float = 1.0
    settled: Any = None

    def __post_init__(self) -> None:
        if self.settled is None:
            self.settled = np.zeros(len(self.lanes), bool)

    def __len__(self) -> int:
        return len(self.lanes)

    @property
    def residual(self) -> FloatArray:
        """|autodiff - numerical|."""
        with np.errstate(invalid="ignore"):
            return np.abs(self.autodiff - self.numerical)

    def allowance(self, eps: float) -> FloatArray:
        """Rounding that autodiff's own sum may carry."""
        size = np.where(np.isfinite(self.size), self.size, 0.0)
        return _ROUNDING * eps * size

    def tolerance(self, tolerances: Tolerances) -> FloatArray:
        """What a residual may amount to without being a disagreement."""
        return (
            self.bar
            + self.allowance(tolerances.rounding)
            + tolerances.rtol * np.maximum(np.abs(self.numerical), self.expected)
            + tolerances.atol * np.abs(self.displacement)
        )

    def disagreeing(self, tolerances: Tolerances) -> IntArray:
        """Positions that disagree and are not settled, the worst first."""
        with np.errstate(all="ignore"):
            ratio = self.residual / self.tolerance(tolerances)
        # what is not finite sorts first: it is never an agreement
        ratio = np.where(self.residual == 0, 0.0, ratio)
        ratio = np.where(np.isfinite(ratio), ratio, np.inf)
        bad = ~(ratio <= 1.0) & ~self.settled
        order = np.argsort(-ratio, kind="stable")
        return order[bad[order]].astype(np.int64)

    def scale(self) -> float:
        """Norm to measure errors by; not zero where a sum cancelled to zero."""
        norms = [_norm(self.autodiff), _norm(self.numerical)]
        return max(*norms, _CANCELLED * _norm(self.size))

    def relative_error(self) -> tuple[float, float]:
        """Relative error of the leaf's gradient, and its uncertainty."""
        scale = self.scale()
        error, bar = _norm(self.residual), _norm(self.bar)
        if scale == 0.0:
            return (0.0 if error == 0.0 else float("inf")), 0.0
        return error / scale, bar / scale

    def resolution(self) -> float:
        """Share of what was summed that the error bars leave open."""
        norms = [_norm(self.autodiff), _norm(self.numerical), _norm(self.size)]
        scale = max(norms)
        return _norm(self.bar) / scale if scale > 0 else float("inf")

    def largest(self) -> float:
        """Upper bound of both gradients: norm over coordinates, or mean over probes."""
        upper = np.maximum(np.abs(self.autodiff), np.abs(self.numerical)) + self.bar
        norm = _norm(upper)
        probes = _MEAN_SQUARE * len(self)
        return norm / math.sqrt(probes) if self.method == "directional" else norm

    def is_zero(self, eps: float) -> bool:
        """Whether both gradients are zero, autodiff's up to its own rounding."""
        rounding = 100 * self.allowance(eps)
        return bool(
            np.all(np.abs(self.autodiff) <= rounding)
            and np.all(np.abs(self.numerical) <= self.bar + rounding)
        )

    def bound(self, gradient_norm: float) -> tuple[float | None, float | None]:
        """Upper bound of the relative error of the whole leaf, and its confidence.

        Args:
            gradient_norm: norm of the leaf's gradient per step.
        """
        if self.method == "sampled" or not len(self):
            return None, None
        worst = self.residual + self.bar
        if self.method == "exhaustive":
            scale = self.scale()
            return (_norm(worst) / scale if scale > 0 else 0.0), 1.0
        own = _norm(self.numerical) / math.sqrt(_MEAN_SQUARE * len(self))
        scale = max(float(gradient_norm), own, _CANCELLED * _norm(self.size))
        if scale == 0.0:
            return 0.0, CONFIDENCE
        return bound_factor(len(self)) * float(np.max(worst)) / scale, CONFIDENCE

    def detectable(self, tolerances: Tolerances, gradient_norm: float) -> float | None:
        """The smallest relative error that cannot hide, but once in a thousand.

        An error e hides from all probes with a probability of at most the product of
        √2 τ/|e|, where τ is what a probe's residual may amount to; see
        ``jaxcheck.gradients.probes``. It cannot hide from a comparison of every
        coordinate at all.

        Args:
            tolerances: what may differ.
            gradient_norm: norm of the leaf's gradient per step.
        """
        scale = max(float(gradient_norm), self.scale())
        if self.method == "sampled" or not len(self) or not scale > 0:
            return None
        # twice the bar: the difference may be off by it, to the side of the error
        open_to = self.tolerance(tolerances) + self.bar
        if self.method == "exhaustive":
            return _norm(open_to) / scale
        mean = float(np.exp(np.mean(np.log(np.maximum(open_to, 1e-300)))))
        return bound_factor(len(self)) * mean / scale

    def extended(self, other: Comparison) -> Comparison:
        """Both comparisons together."""
        both = {
            name: np.concatenate([getattr(self, name), getattr(other, name)])
            for name in _COLUMNS
        }
        lanes = [*self.lanes, *other.lanes]
        return dataclasses.replace(self, lanes=lanes, **both)

    def part(self, where: Any) -> Comparison:
        """Some of the comparisons: ``where`` indexes an array, as a copy."""
        positions = np.arange(len(self))[where]
        columns = {name: getattr(self, name)[positions] for name in _COLUMNS}
        lanes = [self.lanes[int(k)] for k in positions]
        return dataclasses.replace(self, lanes=lanes, **columns)


_COLUMNS = tuple(
    f.name
    for f in dataclasses.fields(Comparison)
    if f.name not in ("method", "lanes", "step")
)


def expected_change(gradient_norm: float) -> float:
    """Root mean square of the change along a probe, for a gradient of that norm."""
    finite = math.isfinite(gradient_norm)
    return math.sqrt(_MEAN_SQUARE) * gradient_norm if finite else 0.0


def directional_bound(bound: float, count: int) -> tuple[float, float]:
    """From ``count`` exact derivatives along random tangents to the whole gradient.

    Args:
        bound: relative error of the vector of those derivatives, at most.
        count: how many there are.

    Returns:
        Upper bound of the relative error of the gradient, and its confidence.
    """
    largest = bound * math.sqrt(_MEAN_SQUARE * count)  # in norms of the gradient
    return bound_factor(count) * largest, CONFIDENCE


def _norm(values: FloatArray) -> float:
    """2-norm that neither overflows nor underflows before it must; NaN if any is."""
    largest = float(np.max(np.abs(values), initial=0.0))
    if largest == 0.0 or not math.isfinite(largest):
        return largest
    return float(np.sqrt(np.sum(np.square(values / largest)))) * largest
