"""Plant faults in a right gradient, and see whether each of them is noticed.

The power of a check at this loss, at this point, shown and not only stated.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any, ClassVar

import jax.numpy as jnp
import numpy as np

from jaxcheck.errors import CheckFailedError, GradientError
from jaxcheck.gradients.judge import LeafOutcome
from jaxcheck.gradients.measure import Meter
from jaxcheck.gradients.program import ReadingResult
from jaxcheck.gradients.verify import Verification
from jaxcheck.jaxprs import compat
from jaxcheck.reports.values import Report, Verdict

Array = Any

# A planted factor differs from one by this many times what can be detected.
_MARGIN = 2.0


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class PlantedFault:
    """One fault, and what the check said to it.

    Attributes:
        fault: what was done to the gradient, in words.
        leaf: path of the leaf whose gradient was changed.
        size: relative size of the change.
        verdict: CORRECT if it was caught, WRONG if it was missed; NOT_CHECKED if it
            could not be planted.
        reason: why it could not be planted.
    """

    fault: str
    leaf: str
    size: float | None = None
    verdict: Verdict
    reason: str | None = None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, repr=False, eq=False)
class SelfTestReport(Report):
    """The answer to "would this check have noticed?".

    Attributes:
        verdict: CORRECT if every planted fault was caught, else WRONG; INCONCLUSIVE if
            the gradient itself is not right, or no fault could be planted.
        faults: the planted faults.
        call: the call to reproduce this report, as text.
        seconds: wall time.
    """

    error_class: ClassVar[type[CheckFailedError]] = GradientError

    verdict: Verdict
    faults: tuple[PlantedFault, ...]
    call: str = "jaxcheck.self_test(loss_fn, params)"
    seconds: float = 0.0

    def __str__(self) -> str:
        from jaxcheck.gradients.planting_text import as_text

        return as_text(self)

    def __repr__(self) -> str:
        from jaxcheck.gradients.planting_text import headline

        return f"<SelfTestReport: {headline(self)}>"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Fault:
    """A change of one leaf's gradient.

    Attributes:
        name: what it does.
        change: the wrong gradient from the right one.
    """

    name: str
    change: Callable[[Array], Array]


def plant(
    verification: Verification,
    outcomes: list[LeafOutcome],
    advance: Callable[[int], None] = lambda n: None,
) -> list[PlantedFault]:
    """Plant every fault in every leaf whose gradient is right.

    Args:
        verification: the check whose power is in question.
        outcomes: what it decided for the gradient as it is.
        advance: told of each planted fault.
    """
    found: list[PlantedFault] = []
    for leaf, outcome in enumerate(outcomes):
        for fault in _faults(verification, leaf, outcome):
            found.append(_planted(verification, leaf, outcome, fault))
            advance(1)
    return found


FAULTS_PER_LEAF = 4


def _faults(
    verification: Verification, leaf: int, outcome: LeafOutcome
) -> Iterator[Fault]:
    grads = verification.meter.reading.grads
    norm = verification.gradient_norm(leaf)
    power = outcome.comparison.detectable(verification.judge.tolerances, norm)
    factor = 1.0 + _MARGIN * (power if power is not None else 1e-3)
    yield Fault(name=f"scaled by {factor:.9g}", change=lambda g: factor * g)
    yield Fault(name="sign flipped", change=lambda g: -g)
    yield Fault(name="its largest coordinate zeroed", change=_without_largest)
    twin = next(
        (
            k
            for k, other in enumerate(grads)
            if k != leaf and other.shape == grads[leaf].shape
        ),
        None,
    )
    if twin is None:
        yield Fault(name="reversed", change=jnp.flip)
    else:
        path = verification.meter.programs.leaves[twin].path
        yield Fault(name=f"swapped with {path}", change=lambda g, k=twin: grads[k])


def _without_largest(grad: Array) -> Array:
    flat = jnp.ravel(grad)
    return flat.at[jnp.argmax(jnp.abs(flat))].set(0.0).reshape(grad.shape)


def _planted(
    verification: Verification, leaf: int, outcome: LeafOutcome, fault: Fault
) -> PlantedFault:
    path = verification.meter.programs.leaves[leaf].path
    if outcome.verdict is not Verdict.CORRECT or outcome.negligible:
        return PlantedFault(
            fault=fault.name,
            leaf=path,
            verdict=Verdict.NOT_CHECKED,
            reason="this leaf's own gradient was not confirmed",
        )
    changed, size = _changed(verification.meter, leaf, fault)
    if size == 0.0:
        return PlantedFault(
            fault=fault.name,
            leaf=path,
            verdict=Verdict.NOT_CHECKED,
            reason="it does not change this gradient",
        )
    said = verification.outcome(leaf, changed).verdict
    caught = said in (Verdict.WRONG, Verdict.INCONCLUSIVE)
    return PlantedFault(
        fault=fault.name,
        leaf=path,
        size=size,
        verdict=Verdict.CORRECT if caught else Verdict.WRONG,
    )


def _changed(meter: Meter, leaf: int, fault: Fault) -> tuple[Meter, float]:
    """A meter that holds the faulty gradient, and the relative size of the fault."""
    reading: ReadingResult = meter.reading
    with compat.x64(True):
        right = reading.grads[leaf]
        wrong = fault.change(right)
        change = float(jnp.linalg.norm(jnp.ravel(wrong - right)))
        norm = float(jnp.linalg.norm(jnp.ravel(right)))
        wrong_norm = float(jnp.linalg.norm(jnp.ravel(wrong)))
    grads = [*reading.grads]
    grads[leaf] = wrong
    norms = np.array(reading.norms)
    norms[leaf] = wrong_norm
    faulty = dataclasses.replace(reading, grads=grads, norms=norms)
    return meter.with_reading(faulty), change / norm if norm else 0.0
