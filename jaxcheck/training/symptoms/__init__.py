"""The rules of health: what is asked of what a monitor has seen.

A rule is a function of ``Seen`` that yields findings; the ones here are values with
thresholds, so that ``dataclasses.replace`` gives stricter ones, and a user's own
function may stand among them. By default thresholds are free of scale: what is usual
for a model is learned from the model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from jaxcheck.training.health import HealthFinding
from jaxcheck.training.seen import Seen
from jaxcheck.training.symptoms.broken import NonFinite
from jaxcheck.training.symptoms.depth import DepthProfile, Vanishing
from jaxcheck.training.symptoms.large import (
    AlwaysClipped,
    Exploding,
    Spike,
    UpdateRatio,
)
from jaxcheck.training.symptoms.losses import Loss
from jaxcheck.training.symptoms.still import LostUpdates, NeverUpdated, ZeroGradient

Rule = Callable[[Seen], Iterable[HealthFinding]]

__all__ = [
    "HEALTH_RULES",
    "AlwaysClipped",
    "DepthProfile",
    "Exploding",
    "Loss",
    "LostUpdates",
    "NeverUpdated",
    "NonFinite",
    "Rule",
    "Spike",
    "UpdateRatio",
    "Vanishing",
    "ZeroGradient",
    "name_of",
]

HEALTH_RULES: tuple[Rule, ...] = (
    NonFinite(),
    Exploding(),
    Spike(),
    Vanishing(),
    DepthProfile(),
    ZeroGradient(),
    NeverUpdated(),
    UpdateRatio(),
    LostUpdates(),
    AlwaysClipped(),
    Loss(),
)


def name_of(rule: Rule) -> str:
    """What a rule is called in a report."""
    return str(
        getattr(rule, "name", None) or getattr(rule, "__name__", type(rule).__name__)
    )
