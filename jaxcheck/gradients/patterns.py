"""What kind of wrong: the one pattern that explains a wrong gradient, if one does.

A recognizer predicts the numerical derivatives D from autodiff's gradient g ("autodiff
is transposed" predicts D = gᵀ); what a right prediction is worth is in
``jaxcheck.gradients.evidence``.

Whether a gradient is wrong is decided elsewhere. Patterns are not combined: a gradient
that is transposed and doubled has none.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from jaxcheck.gradients.evidence import (
    BITS,
    FLOOR,
    MOST_BITS,
    RTOL,
    Array,
    Axes,
    Evidence,
    Factors,
    collect,
    fitted,
    norm,
)
from jaxcheck.reports.numbers import significant

Parameter = tuple[str, float | int]

# An unknown permutation is searched with up to this many comparisons (a second).
_COMPARISONS = 10**8


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Pattern:
    """What kind of wrong a gradient is.

    Attributes:
        name: ``"detached"``, ``"zero"``, ``"factor"``, ``"conjugated"``,
            ``"transposed"``, ``"reversed"``, ``"summed"``, ``"broadcast"``,
            ``"rolled"``, ``"weight_decay"``, ``"constant"`` or ``"permuted"``.
        parameters: its numbers by name; ``"axis"`` once for every axis concerned.
        residual: norm of what remains unexplained over the norm of what is explained.
        text: what a person reads.
    """

    name: str
    parameters: tuple[Parameter, ...] = ()
    residual: float
    text: str


def explain(
    *,
    autodiff: Any,
    theta: Any,
    at: Any,
    numerical: Any,
    bar: Any,
    factors: Factors | None = None,
) -> Pattern | None:
    """Name the pattern that explains how a leaf's gradient is wrong.

    The first that fits wins, in the order of ``Pattern.name``: what has no free number
    (a factor of 2, 1/2, -1 or one that has a name) before what has one, and a
    permutation last. A scalar leaf can show a factor without freedom, or zero.

    Args:
        autodiff: autodiff's gradient, in the leaf's shape, on the host. For a complex
            leaf d/dx + i d/dy, here and in ``numerical``.
        theta: the parameters, in the same shape.
        at: int[k], row-major positions of the numerical derivatives that are known.
        numerical: [k], the derivatives there; those that are not finite are left out.
        bar: [k], their error bars.
        factors: numbers that a factor may stand for, by name, e.g.
            ``{"batch size": (32.0,)}``.

    Returns:
        The pattern; None if nothing fits, if what fits could be luck, or if autodiff is
        not finite.

    Example:
        >>> g = np.array([[1.0, 2.0], [3.0, 4.0]])
        >>> found = explain(autodiff=g, theta=g, at=range(4), numerical=g.T.ravel(),
        ...                 bar=np.full(4, 1e-9))
        >>> found.text
        'transposed'
    """
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        evidence = collect(autodiff, theta, at, numerical, bar, factors or {})
        if evidence is None:
            return None
        found = (recognize(evidence) for recognize in _RECOGNIZERS)
        return next((pattern for pattern in found if pattern is not None), None)


def _detached(e: Evidence) -> Pattern | None:
    left = None if np.any(np.abs(e.whole) > FLOOR) else 0.0
    return _claim("detached", left, "autodiff is zero everywhere: detached")


def _zero(e: Evidence) -> Pattern | None:
    """Zero in one block (a row, say) where the derivative is not; right elsewhere."""
    zero, wrong = np.abs(e.whole) <= FLOOR, e.bits > 0
    block = [slice(int(np.min(i[wrong])), int(np.max(i[wrong])) + 1) for i in e.index]
    if not np.all(zero[tuple(block)]):
        return None
    for axis in reversed(range(len(e.shape))):
        wide = _widened(zero, block, axis)
        if np.mean(wrong[_inside(e, wide)]) > 0.5:
            block = wide
    inside = _inside(e, block)
    if np.mean(wrong[inside]) <= 0.5:
        return None
    left = e.left(np.where(inside, e.numerical, e.autodiff))
    text, parameters = _described(block, e)
    return _claim("zero", left, text, *parameters)


def _inside(e: Evidence, block: Sequence[slice]) -> Array:
    """Which known coordinates lie in a block."""
    inside = np.ones(e.autodiff.size, bool)
    for i, part in zip(e.index, block, strict=True):
        inside &= (i >= part.start) & (i < part.stop)
    return inside


def _widened(zero: Array, block: Sequence[slice], axis: int) -> list[slice]:
    """A block of zeros, extended along an axis as far as zeros go."""
    wide = list(block)
    wide[axis] = slice(None)
    others = tuple(a for a in range(zero.ndim) if a != axis)
    ends = np.flatnonzero(~np.all(zero[tuple(wide)], axis=others))
    low = np.max(ends[ends < block[axis].start], initial=-1) + 1
    high = np.min(ends[ends >= block[axis].stop], initial=zero.shape[axis])
    wide[axis] = slice(int(low), int(high))
    return wide


def _described(block: Sequence[slice], e: Evidence) -> tuple[str, list[Parameter]]:
    """What is zero, in words, and the axes along which it ends, with their ranges."""
    places, ends, parameters = [":"] * len(e.shape), list[int](), list[Parameter]()
    for a, (part, size) in enumerate(zip(block, e.shape, strict=False)):
        if part.stop - part.start < size:
            one = part.stop - part.start == 1
            places[a] = f"{part.start}" if one else f"{part.start} to {part.stop - 1}"
            ends.append(a)
            parameters += [("axis", a), ("start", part.start), ("stop", part.stop)]
    nouns = {1: ("element",), 2: ("row", "column")}.get(len(e.shape), ())
    if len(ends) == 1 and nouns:
        many = "to" in places[ends[0]]
        text = f"{nouns[ends[0]]}{'s' if many else ''} {places[ends[0]]}"
        text += " are zero" if many else " is zero"
    else:
        text = f"[{', '.join(places)}] is zero"
    part = block[-1]
    if len(block) > len(e.shape) and part.stop - part.start == 1:
        text = f"in the {('real', 'imaginary')[part.start]} part, {text}"
        parameters.append(("part", part.start))
    return text, parameters


# -- moved elements


def _conjugated(e: Evidence) -> Pattern | None:
    if e.whole.shape == e.shape or not e.convinces():
        return None
    left = e.left(np.where(e.index[-1] == 1, -e.autodiff, e.autodiff))
    return _claim("conjugated", left, "conjugated")


def _transposed(e: Evidence) -> Pattern | None:
    """The axes in another order, read in the shape of the leaf if that differs."""
    shape, cost = e.whole.shape, math.log2(math.factorial(len(e.axes)))
    for axes in itertools.permutations(e.axes):
        order = list(range(len(shape)))
        for a, b in zip(e.axes, axes, strict=True):
            order[a] = b
        if order == sorted(order):
            continue
        other = tuple(shape[a] for a in order)
        position = np.ravel_multi_index([e.index[a] for a in order], other)
        left = e.moved(np.unravel_index(position, shape), cost)
        if left is not None:
            order = order[: len(e.shape)]
            text = "transposed" if other == shape else "transposed, then reshaped"
            if len(order) > 2:
                text += f": axes in the order {', '.join(map(str, order))}"
            return _claim("transposed", left, text, *_named_axes(order))
    return None


def _reversed(e: Evidence) -> Pattern | None:
    for axes in _subsets(e.axes):
        index = [e.shape[a] - 1 - i if a in axes else i for a, i in enumerate(e.index)]
        left = e.moved(index, len(e.axes))
        if left is not None:
            text = f"reversed along {_words(axes)}"
            return _claim("reversed", left, text, *_named_axes(axes))
    return None


def _rolled(e: Evidence) -> Pattern | None:
    for a in e.axes:
        shift, index = _shift(e, a), list(e.index)
        index[a] = (index[a] + shift) % e.shape[a]
        left = e.moved(index, math.log2(sum(e.shape)))
        if left is not None:
            text = f"rolled by {shift} along {_words([a])}"
            return _claim("rolled", left, text, ("axis", a), ("shift", shift))
    return None


def _shift(e: Evidence, axis: int) -> int:
    """How far autodiff is rolled along an axis; zero if that cannot be told."""
    size, spent = e.shape[axis], 0
    shifts = np.arange(1, size)
    for k in map(int, np.argsort(-e.bits, kind="stable")):
        spent += shifts.size
        if not shifts.size or spent > _COMPARISONS:
            return 0
        shifts = shifts[_meets(e, k, axis, (e.index[axis][k] + shifts) % size)]
    return min((int(s) for s in [*shifts, *(shifts - size)]), key=abs, default=0)


def _permuted(e: Evidence) -> Pattern | None:
    for a in e.axes:
        source = _sources(e, a)
        if source is None:
            continue
        index, size = list(e.index), e.shape[a]
        index[a] = source[index[a]]
        moved = np.flatnonzero(source != np.arange(size))
        # which slices moved, and where to: known if they changed places
        closed = set(map(int, moved)) == set(map(int, source[moved]))
        orders = math.lgamma(size + 1) - math.lgamma(size - moved.size + 1)
        left = e.moved(index, orders / math.log(2.0) * (1 if closed else 2))
        if left is not None:
            swap = closed and moved.size == 2
            text = f"permuted along {_words([a])}"
            text += f": {moved[0]} and {moved[1]} swapped" if swap else ""
            return _claim("permuted", left, text, ("axis", a))
    return None


def _sources(e: Evidence, axis: int) -> Array | None:
    """Where autodiff has each slice of the derivative along an axis, if anywhere."""
    size = e.shape[axis]
    source, free = np.arange(size), np.ones(size, bool)
    moved = np.unique(e.index[axis][np.abs(e.difference) > e.tolerance])
    free[np.setdiff1d(e.index[axis], moved)] = False
    if e.autodiff.size * size > _COMPARISONS:
        return None
    for j in moved:
        found = np.flatnonzero(free)
        for k in map(int, np.flatnonzero(e.index[axis] == j)):
            found = found[_meets(e, k, axis, found)]
        if not found.size:
            return None
        source[j] = found[0]
        free[found[0]] = False
    return source


def _meets(e: Evidence, k: int, axis: int, places: Array) -> Array:
    """Whether autodiff has the k-th derivative at other places along an axis."""
    line: list[Any] = [i[k] for i in e.index]
    line[axis] = places
    return np.abs(e.whole[tuple(line)] - e.numerical[k]) <= e.tolerance[k]


# -- sums


def _summed(e: Evidence) -> Pattern | None:
    """Constant along axes where the derivative is not, and its sum or mean there.

    A sum is known where a line along the axes is known entirely; without such a line it
    stays open what the constant is.
    """
    unknown: Axes = ()
    for axes in _subsets([a for a in e.axes if _is_constant(e.whole, a)]):
        length = math.prod(e.shape[a] for a in axes)
        order, starts = _lines(e, axes)
        known, bar = e.numerical[order], e.tolerance[order]
        highest = np.maximum.reduceat(known - bar, starts)
        if np.all(highest <= np.minimum.reduceat(known + bar, starts)):
            continue  # the derivative may be constant as well
        full = np.diff(starts, append=order.size) == length
        if not np.any(full):
            unknown = axes
            continue
        line = e.autodiff[order][starts][full]
        for weight, what in ((1.0, "sum"), (1 / length, "mean")):
            gap = np.abs(line - weight * np.add.reduceat(known, starts)[full])
            most = weight * np.add.reduceat(bar, starts)[full] + RTOL * np.abs(line)
            bits = np.log2(np.abs(line) / (2 * most)).clip(0.0, MOST_BITS)
            if np.all(gap <= most) and np.sum(bits) - len(e.axes) - 1 >= BITS:
                text = f"the {what} along {_words(axes)}"
                numbers = (*_named_axes(axes), ("weight", weight))
                return _claim("summed", norm(gap) / norm(line), text, *numbers)
    text = (
        f"constant along {_words(unknown)}, where the derivative is not: summed over "
        "the wrong axis?"
    )
    return _claim("broadcast", 1.0 if unknown else None, text, *_named_axes(unknown))


def _is_constant(values: Array, axis: int) -> bool:
    first = np.take(values, [0], axis)
    return bool(np.all(np.abs(values - first) <= 1e-9 * np.abs(first)))


def _lines(e: Evidence, axes: Axes) -> tuple[Array, Array]:
    """An order of the known coordinates by lines along axes, and where each starts."""
    number = np.zeros(e.autodiff.size, np.int64)
    for a, size in enumerate(e.whole.shape):
        if a not in axes:
            number = number * size + e.index[a]
    order = np.argsort(number, kind="stable")
    return order, np.flatnonzero(np.diff(number[order], prepend=-1))


# -- numbers


def _known_factor(e: Evidence) -> Pattern | None:
    fit, named = fitted(e.autodiff, e.numerical, e.tolerance), _named(e.factors)
    if fit is None or not e.convinces(choices=len(named)):
        return None
    fitting = [c for c in named if fit.low <= 1 / c <= fit.high]
    if not fitting:
        return None
    factor = min(fitting, key=lambda c: abs(1 / c - fit.best))
    inverse = 1 / factor
    whole = inverse > 1 and math.isclose(inverse, round(inverse), rel_tol=1e-12)
    text = f"1/{round(inverse)} of" if whole else f"{factor:.6g} times"
    text = ": ".join([f"{text} the derivative", " or ".join(named[factor])])
    left = e.left(e.autodiff / factor)
    return _claim("factor", left, text.removesuffix(": "), ("factor", factor))


def _named(factors: Factors) -> dict[float, list[str]]:
    """What a factor may be, and the names it has."""
    named: dict[float, list[str]] = {2.0: [], 0.5: [], -1.0: ["the sign is flipped"]}
    for name, values in factors.items():
        for value in {float(v) for v in values} - {0.0, 1.0, -1.0}:
            if math.isfinite(value):
                named.setdefault(value, []).append(f"the {name}")
                named.setdefault(1 / value, []).append(f"one over the {name}")
    return named


def _other_factor(e: Evidence) -> Pattern | None:
    fit = fitted(e.autodiff, e.numerical, e.tolerance)
    if fit is None or fit.low <= 0 <= fit.high or not e.convinces(free=1):
        return None
    left, factor = e.left(e.autodiff * fit.best), 1 / fit.best
    text = f"{factor:.{fit.digits(6)}g} times the derivative"
    return _claim("factor", left, text, ("factor", factor))


def _weight_decay(e: Evidence) -> Pattern | None:
    fit = fitted(e.theta, e.difference, e.tolerance)
    if fit is None or _is_constant(e.theta, 0) or not e.convinces(free=1):
        return None
    weight = fit.best * (e.unit / e.theta_unit)
    if not 0 < abs(weight) < math.inf:
        return None
    text = (
        f"difference is {significant(weight, fit.digits(3))} times the parameters: an "
        f"L2 term that {_owner(weight)}, weight decay in the wrong place?"
    )
    left = e.left(e.autodiff - fit.best * e.theta)
    return _claim("weight_decay", left, text, ("weight", weight))


def _constant(e: Evidence) -> Pattern | None:
    ones = np.ones_like(e.autodiff)
    if e.whole.shape != e.shape:
        ones[1::2] = 0.0  # a real constant: nothing in the imaginary part
    fit = fitted(ones, e.difference, e.tolerance)
    if fit is None or not e.convinces(free=1):
        return None
    constant = fit.best * e.unit
    also = " or, as all parameters are equal, an L2 term" if e.theta[0] else ""
    text = (
        f"difference is {significant(constant, fit.digits(3))} everywhere: a constant "
        f"term{also if _is_constant(e.theta, 0) else ''} that {_owner(constant)}"
    )
    left = e.left(e.autodiff - fit.best * ones)
    return _claim("constant", left, text, ("constant", constant))


# the simplest first, see ``explain``
_RECOGNIZERS = (
    _detached,
    _zero,
    _known_factor,
    _conjugated,
    _transposed,
    _reversed,
    _summed,
    _rolled,
    _other_factor,
    _weight_decay,
    _constant,
    _permuted,
)


# -- claims


def _claim(
    name: str, left: float | None, text: str, *parameters: Parameter
) -> Pattern | None:
    if left is None:
        return None
    return Pattern(name=name, parameters=parameters, residual=left, text=text)


def _subsets(axes: Sequence[int]) -> Iterator[Axes]:
    """All sets of at least one axis, the small ones first."""
    for count in range(1, len(axes) + 1):
        yield from itertools.combinations(axes, count)


def _named_axes(axes: Sequence[int]) -> list[Parameter]:
    return [("axis", a) for a in axes]


def _words(axes: Sequence[int]) -> str:
    listed = " and ".join(map(str, axes))
    return f"axis {listed}" if len(axes) == 1 else f"axes {listed}"


def _owner(excess: float) -> str:
    if excess > 0:
        return "autodiff has and the loss does not"
    return "the loss has and autodiff does not"
