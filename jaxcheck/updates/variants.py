"""What a transformation does instead of its rule: the variants that are tried.

Each is said so that it completes "it matches the rule ...". The rule's own variants,
those that implementations are known for, come before what can be done to any rule, and
that before other values of its settings.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxcheck.updates.rules.rule import Rule
from jaxcheck.updates.runs import Reference

_DECAYS = (0.0, 0.5, 0.8, 0.85, 0.89, 0.9, 0.92, 0.95, 0.965, 0.98, 0.99, 0.995, 0.999)
_CLOSER = (0.9999, 0.99999)
_EPS = tuple(10.0**-k for k in range(17))
_FACTORS = (0.0, 1e-3, 0.01, 0.1, 0.5, 0.9, 1.1, 2.0, 10.0, 100.0, 1e3)
# Of the number of the step.
_EXPONENTS = (0.25, 0.3, 0.33, 0.5, 0.55, 0.6, 0.75, 1.0, 1.1, 2.0)
# Two numbers that are the same factor.
SAME = 1e-6
# Settings that are shares between 0 and 1.
_SHARES = ("b1", "b2", "b3", "beta", "decay", "decay_rate", "momentum", "rho")


class Variant(NamedTuple):
    """A rule that is not the one that was meant.

    Attributes:
        text: completes "it matches the rule ...".
        reference: the other rule.
        factor: what its updates are multiplied by.
    """

    text: str
    reference: Reference
    factor: float = 1.0


def variants(reference: Reference, factor: float | None) -> Iterator[Variant]:
    """Everything to be tried, the likeliest first.

    Args:
        reference: what was meant.
        factor: what its updates may have been multiplied by, see ``factor_of``.
    """
    named: list[tuple[str, Mapping[str, Any]]] = []
    if isinstance(reference, Rule):
        settings = reference.settings
        named = [
            (text, changed)
            for text, changed in reference.variants.items()
            if any(settings[name] is not value for name, value in changed.items())
        ]
        yield from (Variant(text, reference.replace(**s)) for text, s in named)
    yield Variant("one step late", _late(reference))
    if factor is not None:
        scaled = _scaled(reference, factor)
        yield Variant(_factor_text(factor, reference), scaled, factor)
    if isinstance(reference, Rule):
        yield from _of_count(reference)
        yield from _neighbors(reference)
        for (one, first), (other, second) in itertools.combinations(named, 2):
            if not first.keys() & second.keys():
                both = reference.replace(**first, **second)
                yield Variant(f"{one}, {other}", both)


def _factor_text(factor: float, reference: Reference) -> str:
    settings = reference.settings if isinstance(reference, Rule) else {}
    rate = settings.get("learning_rate")
    known = {-1.0: "with the opposite sign"}
    if isinstance(rate, int | float) and rate:
        known |= {
            float(rate): "with the learning rate applied twice",
            1.0 / rate: "without the learning rate",
            -1.0 / rate: "without the learning rate, and with the opposite sign",
        }
    for number, text in known.items():
        if abs(factor - number) <= SAME * abs(number):
            return text
    return f"multiplied by {factor:.6g}"


def _late(reference: Reference) -> Reference:
    """What the rule said in the step before; in the first step nothing."""

    def late(
        gradients: Any, params: Any, state: Any, step: int, **extra: Any
    ) -> tuple[Any, Any]:
        inner, before = state or (None, jax.tree.map(np.zeros_like, params))
        updates, inner = reference(gradients, params, inner, step, **extra)
        return before, (inner, updates)

    return late


def _of_count(rule: Rule) -> Iterator[Variant]:
    """Steps that are counted from elsewhere, in the rule or in its schedule."""
    rate = rule.settings.get("learning_rate")
    still: Mapping[str, Any] = {}
    if callable(rate):
        for shift, text in ((1, "one step ahead"), (-1, "one step behind")):
            for least in (0, -1):
                moved = rule.replace(learning_rate=_shifted(rate, shift, least))
                yield Variant(f"with the schedule {text}", moved)
        still = {"learning_rate": _shifted(rate, -1, 0)}
    ahead = _counted(rule.replace(**still), 1)
    yield Variant("with its steps counted from 2 instead of 1", ahead)


def _shifted(
    schedule: Callable[[int], Any], shift: int, least: int
) -> Callable[[int], Any]:
    return lambda count: schedule(max(count + shift, least))


def _counted(rule: Rule, shift: int) -> Reference:
    def counted(
        gradients: Any, params: Any, state: Any, step: int, **extra: Any
    ) -> tuple[Any, Any]:
        return rule(gradients, params, state, step + shift, **extra)

    return counted


def _neighbors(rule: Rule) -> Iterator[Variant]:
    """The same rule with another value of one setting."""
    for name, value in rule.settings.items():
        if name == "learning_rate":
            continue  # it is a factor, see ``factor_of``
        for other in _values(name, value):
            try:
                changed = rule.replace(**{name: other})
            except (ArithmeticError, TypeError, ValueError):
                continue  # it means nothing to this rule
            told = f"{other:.6g}" if isinstance(other, float) else repr(other)
            yield Variant(f"with {name}={told}", changed)


def _values(name: str, value: Any) -> list[Any]:
    """Other values of a setting; none of what is no number."""
    tried: list[Any] = []
    if isinstance(value, bool):
        tried = [not value]
    elif isinstance(value, int):
        tried = [value - 1, value + 1, 2 * value]
    elif value is None and name in _SHARES:
        tried = list(_DECAYS[1:])
    elif isinstance(value, float) and name in _SHARES:
        tried = [*_DECAYS, *_CLOSER, 1.0 - value]
    elif isinstance(value, float) and ("eps" in name or "initial" in name):
        tried = [0.0, *_EPS]
    elif isinstance(value, float) and name == "gamma":
        tried = [*_EXPONENTS, *(value * factor for factor in _FACTORS)]
    elif isinstance(value, float):
        tried = [value * factor for factor in _FACTORS] if value else [1e-4, 1e-2, 0.1]
    return [x for x in dict.fromkeys(tried) if x != value]


def factor_of(updates: list[Any], wanted: list[Any]) -> float | None:
    """The one number that all wanted updates have to be multiplied by, if there is.

    Args:
        updates: arrays, one a leaf and step.
        wanted: as many of the rule.
    """
    got = np.concatenate([np.ravel(x) for x in updates])
    rule = np.concatenate([np.ravel(x) for x in wanted])
    if not (np.isfinite(got).all() and np.isfinite(rule).all() and rule.any()):
        return None
    with np.errstate(all="ignore"):
        ratio = got[rule != 0] / rule[rule != 0]
    factor = float(np.median(ratio.real))
    return factor if factor and np.isfinite(factor) else None


def _scaled(reference: Reference, factor: float) -> Reference:
    """The rule with its updates multiplied."""

    def multiplied(
        gradients: Any, params: Any, state: Any, step: int, **extra: Any
    ) -> tuple[Any, Any]:
        updates, state = reference(gradients, params, state, step, **extra)
        return jax.tree.map(lambda u: factor * u, updates), state

    return multiplied
