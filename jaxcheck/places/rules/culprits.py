"""From a wrong gradient to the equations that make it wrong.

Account for the error, open what stands out, and see whether the gradient is right
without it. An equation is named only if it contributes to the error of this gradient
*and* disagrees with its own function by itself.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from jaxcheck.gradients.comparison import Lane
from jaxcheck.gradients.measure import Meter
from jaxcheck.gradients.options import Options
from jaxcheck.gradients.verify import LeafResult
from jaxcheck.jaxprs.sites import nested_site
from jaxcheck.jaxprs.window import window
from jaxcheck.places.rules.defects import Account, Defect, account
from jaxcheck.places.rules.instrument import Chain, Site, sites_of
from jaxcheck.places.rules.opened import Opened, opened
from jaxcheck.places.rules.removal import Removal, without
from jaxcheck.places.rules.suspects import (
    Fault,
    everything_else,
    fault_of,
    first_suspects,
)
from jaxcheck.reports.numbers import counted, significant
from jaxcheck.reports.values import EquationSite, Verdict

# Wrong leaves that are moved, each as a whole and at its worst coordinate; more would
# tell nothing new and cost memory.
_LEAVES = 3
_BYTES = 2**30
# Equations of JAX's own that are instrumented at a time.
_TOGETHER = 300
# Faults that are opened and named.
_NAMED = 8


class Located(NamedTuple):
    """What was found.

    Attributes:
        culprits: the equations to blame, most certain first.
        note: why there are none, or what else there must be; None if all is said.
    """

    culprits: tuple[EquationSite, ...]
    note: str | None = None


class _Suspicion(NamedTuple):
    """A fault, and where it contributes to the error; the largest part first."""

    fault: Fault
    parts: list[tuple[Chain, Defect]]


def culprits(
    meter: Meter,
    wrong: Mapping[int, LeafResult],
    options: Options,
    advance: Callable[[int], None] = lambda n: None,
) -> Located:
    """Find the equations that make the gradient wrong.

    Args:
        meter: the point and the gradient under test.
        wrong: what was decided for the leaves to be explained, by number; without any
            the whole gradient is gone through.
        options: of the check.
        advance: told how many steps of the search have been done.
    """
    lanes = _lanes(meter, wrong)
    program = meter.programs.traced.program
    try:
        wanted = first_suspects(transparent=meter.transparent)
        books, parts = _guilty(meter, lanes, sites_of(program, wanted))
        advance(1)
    except Exception as error:
        return Located((), f"the program could not be gone through: {_spell(error)}.")
    if _is_open(books):
        for sites in _chunks(sites_of(program, everything_else)):
            _, more = _guilty(meter, lanes, sites)
            parts += more
            advance(1)
    if not parts:
        return Located((), _unexplained(books))
    suspicions = _by_fault(parts)
    found = [
        _opened(meter, suspicion, options, advance) for suspicion in suspicions[:_NAMED]
    ]
    guilty = [
        (suspicion, opening)
        for suspicion, opening in zip(suspicions, found, strict=False)
        if opening is None or opening.report.verdict is not Verdict.CORRECT
    ]
    if not guilty:
        return Located((), _unexplained(books))
    removal = without(meter, lanes, [suspicion.fault for suspicion, _ in guilty])
    advance(1)
    inputs = [f"params{leaf.path}" for leaf in meter.programs.leaves]
    named = [
        site
        for suspicion, opening in guilty
        for site in _named(suspicion, opening, removal, len(guilty), inputs)
    ]
    return Located(tuple(named))


# -- along what


def _lanes(meter: Meter, wrong: Mapping[int, LeafResult]) -> list[Lane]:
    if not wrong:
        return [meter.everything(0), meter.everything(1)]
    lanes: list[Lane] = []
    for k, result in list(wrong.items())[:_LEAVES]:
        lanes.append(meter.whole(k, 0))
        lanes += _worst_coordinate(result)
    room = _BYTES // (32 * int(meter.programs.offsets[-1]) + 1)
    return lanes[: max(1, room)]


def _worst_coordinate(result: LeafResult) -> list[Lane]:
    comparison = result.coordinates or result.outcome.comparison
    with np.errstate(all="ignore"):
        off = comparison.residual / np.abs(comparison.displacement)
    singles = [
        (not np.isfinite(off[k]), off[k], lane)
        for k, lane in enumerate(comparison.lanes)
        if lane.probe is None
    ]
    return [max(singles)[2]._replace(relative=False)] if singles else []


# -- who


def _guilty(
    meter: Meter, lanes: Sequence[Lane], sites: Mapping[Chain, Site]
) -> tuple[Account, list[tuple[Chain, Defect]]]:
    books = account(meter, lanes, sites)
    parts = zip(sites, books.defects, strict=True)
    return books, [(chain, defect) for chain, defect in parts if defect.certain.any()]


def _is_open(books: Account) -> bool:
    """Whether something is wrong that no suspect explains."""
    with np.errstate(invalid="ignore"):
        return bool(np.any(np.abs(books.rest) > books.rest_tolerance))


def _chunks(sites: Mapping[Chain, Site]) -> Iterator[dict[Chain, Site]]:
    items = list(sites.items())
    for start in range(0, len(items), _TOGETHER):
        yield dict(items[start : start + _TOGETHER])


def _by_fault(parts: Sequence[tuple[Chain, Defect]]) -> list[_Suspicion]:
    groups: dict[Fault, list[tuple[Chain, Defect]]] = {}
    for chain, defect in parts:
        groups.setdefault(fault_of(defect.site.equation), []).append((chain, defect))
    for group in groups.values():
        group.sort(key=lambda part: -_weight(part[1]))
    suspicions = [_Suspicion(fault, group) for fault, group in groups.items()]
    return sorted(suspicions, key=lambda s: -sum(_weight(d) for _, d in s.parts))


def _weight(defect: Defect) -> float:
    return float(np.max(np.abs(np.where(defect.certain, defect.error, 0.0))))


def _opened(
    meter: Meter,
    suspicion: _Suspicion,
    options: Options,
    advance: Callable[[int], None],
) -> Opened | None:
    chain, defect = suspicion.parts[0]
    weights = np.abs(np.where(defect.certain, defect.error, 0.0)).max(axis=-1)
    worst = np.unravel_index(int(np.argmax(weights)), weights.shape)
    try:
        found = opened(meter, chain, defect.site, [int(i) for i in worst], options)
    except Exception:  # it needs its surroundings: a mesh, an effect
        found = None
    advance(1)
    return found


# -- what is said of it


def _named(
    suspicion: _Suspicion,
    opening: Opened | None,
    removal: Removal | None,
    together: int,
    inputs: Sequence[str],
) -> Iterator[EquationSite]:
    """One site for each line that uses the faulty rule."""
    lines: dict[tuple[str | None, int | None], list[Defect]] = {}
    for _, defect in suspicion.parts:
        site = nested_site(defect.site.path)
        lines.setdefault((site.file, site.line), []).append(defect)
    for defects in lines.values():
        first = defects[0]
        iterations = first.iterations()
        details = [opening.detail] if opening and opening.detail else []
        if iterations[0]:
            total = int(np.prod(first.error.shape[:-1]))
            details.append(f"wrong in {len(iterations)} of {total} iterations")
        if len(defects) > 1:
            details.append(
                f"at {counted(len(defects), 'place')} of the program, or more"
            )
        if removal is not None:
            rules = "this rule" if together == 1 else f"these {together} rules"
            state = "correct" if removal.cures else "still wrong"
            left = significant(removal.relative_error, 1)
            details.append(
                f"without {rules} the gradient is {state} (relative error {left})"
            )
        site = nested_site(first.site.path, iterations[0])
        yield dataclasses.replace(
            site,
            fault=_fault(site),
            equation=_window(first.site, inputs),
            relative_error=_relative_error(first, opening),
            cures=None if removal is None else removal.cures,
            details=tuple(details),
        )


def _fault(site: EquationSite) -> str:
    kind = site.primitive.removesuffix("_call")
    if site.rule:
        return f"the rule of {kind} `{site.rule}` disagrees with its own function"
    if kind == "stop_gradient":
        return "stop_gradient cuts the gradient off"
    return f"the derivative of {kind} disagrees with its values"


def _window(site: Site, inputs: Sequence[str]) -> str:
    outermost = len(site.path) == 1
    return window(site.program, site.equation, inputs if outermost else ())


def _relative_error(defect: Defect, opening: Opened | None) -> float:
    wrong = [] if opening is None else opening.report.leaves
    errors = [
        leaf.relative_error
        for leaf in wrong
        if leaf.verdict is Verdict.WRONG and leaf.relative_error is not None
    ]
    return max(errors, default=defect.share)


def _unexplained(books: Account) -> str | None:
    if not books.certain.any():
        return None
    return (
        "no equation was found whose derivative is wrong by itself; the rules and the "
        "differences of the whole program disagree."
    )


def _spell(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
