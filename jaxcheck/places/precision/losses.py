"""From an imprecise gradient to the equations that lose its digits.

Account for the error, put together what a user would change together, and see what is
left of the error without it. Nothing is named where the account does not add up.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Hashable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from jaxcheck.gradients.findings import precision_loss
from jaxcheck.gradients.program import NativeResult, Programs, ReadingResult
from jaxcheck.jaxprs.window import window
from jaxcheck.places.precision.shares import Account, Digits, FloatArray
from jaxcheck.places.precision.words import (
    SUMS,
    amplifier_of,
    is_backward,
    place_of,
    short,
    what,
)
from jaxcheck.places.rules.instrument import Chain, Site
from jaxcheck.reports.numbers import byte_size, count, significant
from jaxcheck.reports.values import EquationSite, Finding

# Leaves that are gone into: as many as a report shows findings of a kind.
_LEAVES = 4
# Places that are named, and what they must account for.
_NAMED = 3
_SHARE = 0.05
# The account must add up to the error to this.
_MISSED = 0.2
# Run equation by equation the error must be of the size that it has in training, up to
# this factor; and it is said if it is not much the same error.
_FACTOR = 4.0
_SAME = 0.8
# What the named lines may leave of the error in float64, to be named.
_CONFIRMED = 0.5
# A program with more equations that round takes minutes to compile with their errors.
_SITES = 40
_BYTES = 2**30


class _Part(NamedTuple):
    """Equations of one kind at one line; the one with the largest share first."""

    chains: list[Chain]
    share: float
    line: Hashable


def with_places(
    findings: Sequence[Finding],
    programs: Programs,
    native: NativeResult,
    reading: ReadingResult,
) -> tuple[Finding, ...]:
    """The findings of a report, those of imprecise leaves with their equations.

    Args:
        findings: all of them.
        programs: the compiled programs of the check.
        native: what training computes.
        reading: the float64 reading and its gradient.
    """
    leaves = range(len(programs.leaves))
    found = [precision_loss(programs, native, reading, k) for k in leaves]
    losses = {f: k for k, f in enumerate(found) if f is not None and f in findings}
    if not losses:
        return tuple(findings)
    try:
        placed = _all_placed(losses, Digits(programs, native, reading))
    except Exception as error:  # no derivative of the gradient: a loop, a kernel
        first = next(iter(losses))
        note = f"Which equations lose them cannot be said ({type(error).__name__})."
        placed = {first: _noted(first, note)}
    return tuple(placed.get(finding, finding) for finding in findings)


def _all_placed(
    losses: Mapping[Finding, int], digits: Digits
) -> dict[Finding, Finding]:
    """The first few of some findings, each with its equation or a note why not."""
    if (note := _too_large(digits)) is not None:
        first = next(iter(losses))
        return {first: _noted(first, note)}
    digits.start()
    few = list(losses.items())[:_LEAVES]
    return {finding: _placed(finding, digits, leaf) for finding, leaf in few}


def _too_large(digits: Digits) -> str | None:
    if (number := len(digits.sites)) > _SITES:
        return f"The {count(number)} equations that round were not gone through."
    if (needed := digits.bytes(_BYTES)) > _BYTES:
        return f"It would take {byte_size(needed)} to say which equations lose them."
    return None


def _noted(finding: Finding, note: str) -> Finding:
    return dataclasses.replace(finding, message=f"{finding.message} {note}")


def _placed(finding: Finding, digits: Digits, leaf: int) -> Finding:
    ratio, _ = digits.resemblance(leaf)
    # "not within": NaN is of no size, and does not add up
    if not 1 / _FACTOR <= ratio <= _FACTOR:
        return _noted(
            finding,
            "Which equations lose them cannot be said: run one by one, as the compiler "
            f"does not, they make an error {significant(ratio, 2)} times as large.",
        )
    account = digits.account(leaf)
    if not abs(account.total - 1) <= _MISSED:
        return _noted(
            finding,
            "Which equations lose them cannot be said: what they round, one by one, "
            f"adds up to {_percent(account.total)} of the error.",
        )
    parts = _parts(account, digits.sites)
    named = [part for part in parts if part.share >= _SHARE][:_NAMED]
    if not named:
        return _noted(
            finding,
            f"It is made by many equations; none of {count(len(parts))} accounts for "
            f"more than {_percent(_SHARE)} of it.",
        )
    story = _Story(digits, account, parts, leaf)
    # everything on their lines: what a user would raise
    if not story.left(story.at_lines(named)) <= _CONFIRMED:
        return _noted(
            finding,
            "Which equations lose them is not certain: those that account for "
            f"{_percent(sum(part.share for part in named))} of the error leave "
            f"{_percent(story.left(named))} of it in float64.",
        )
    return dataclasses.replace(finding, site=story.site(named))


def _parts(account: Account, sites: Mapping[Chain, Site]) -> list[_Part]:
    """The shares of equations of one kind and line, the largest first."""
    groups: dict[tuple[Hashable, str], list[Chain]] = {}
    for chain in account.shares:
        place = place_of(sites[chain])
        kind = "sum" if place.primitive in SUMS else place.primitive
        line = chain if place.file is None else (place.file, place.line)
        groups.setdefault((line, kind), []).append(chain)

    parts = [
        _Part(
            sorted(chains, key=account.share, reverse=True),
            sum(map(account.share, chains)),
            line,
        )
        for (line, _), chains in groups.items()
    ]
    return sorted(parts, key=lambda part: -part.share)


class _Story(NamedTuple):
    """What there is to say of one leaf."""

    digits: Digits
    account: Account
    parts: Sequence[_Part]
    leaf: int

    def at_lines(self, named: Sequence[_Part]) -> list[_Part]:
        """Everything on the lines of some parts."""
        lines = {part.line for part in named}
        return [part for part in self.parts if part.line in lines]

    def left(self, parts: Sequence[_Part]) -> float:
        """The share of the error that is left if they do not round."""
        without = [chain for part in parts for chain in part.chains]
        return self.digits.left(self.leaf, without)

    def site(self, named: Sequence[_Part]) -> EquationSite:
        """The first part, with what is to be said of all."""
        first, *others = named
        details = [f"it {self._weight([first])}"]
        for part in others:
            where = short(place_of(self._site(part)))
            details.append(f"{self._what(part)}{where} {self._weight([part])}")
        together = self.at_lines(named)
        if any(abs(part.share) >= _SHARE for part in together if part is not first):
            lines = len({part.line for part in named})
            line = "that line" if lines == 1 else f"those {lines} lines"
            details.append(f"everything on {line} {self._weight(together)}")
        ratio, cosine = self.digits.resemblance(self.leaf)
        if not (_SAME <= ratio <= 1 / _SAME and cosine >= _SAME):
            details.append(
                "the compiler fuses equations, and so rounds otherwise; run one by "
                "one, as they are accounted for here, they make an error "
                f"{significant(ratio, 2)} times as large"
            )
        site = self._site(first)
        return dataclasses.replace(
            place_of(site, _worst(self.account.shares[first.chains[0]])),
            fault=f"loses the digits: {self._what(first)}",
            equation=window(site.program, site.equation),
            details=tuple(details),
        )

    def _site(self, part: _Part) -> Site:
        return self.digits.sites[part.chains[0]]

    def _weight(self, parts: Sequence[_Part]) -> str:
        share = _percent(sum(part.share for part in parts))
        left = _percent(self.left(parts))
        return f"accounts for {share} of the error; in float64 it leaves {left}"

    def _what(self, part: _Part) -> str:
        notable = [c for c in part.chains if abs(self.account.share(c)) >= _SHARE]
        sites = self.digits.sites
        return what(
            self._site(part),
            backward=all(is_backward(sites[chain]) for chain in notable),
            amplifier=amplifier_of(part.chains[0], part.share, self.account, sites),
        )


def _worst(shares: FloatArray) -> tuple[int, ...]:
    """The iteration with the largest share."""
    return tuple(int(i) for i in np.unravel_index(np.argmax(shares), shares.shape))


def _percent(share: float) -> str:
    if not np.isfinite(share):
        return "NaN"
    return "less than 1 %" if 0 <= share < 0.01 else f"{100 * share:.0f} %"
