"""Are updates those of the rule, over a sequence of gradients? And how it is said."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxcheck.reports.values import Finding
from jaxcheck.updates.comparing import Mismatch
from jaxcheck.updates.fields import Field
from jaxcheck.updates.noise import WithNoise
from jaxcheck.updates.noise_text import finding as noise_finding
from jaxcheck.updates.nonfinite import Unsound
from jaxcheck.updates.runs import Problem, Run, run_transformation
from jaxcheck.updates.stages import Blame
from jaxcheck.updates.verify import Held, Verification


class Judged(NamedTuple):
    """What was found.

    Attributes:
        held: the run in float64.
        native: the run in the dtypes of the parameters; None if there was no need.
        mismatch: what is off first, in either.
        matches: the variant of the rule that matches.
        blame: the stage of a chain that is to blame.
        findings: how it is said; empty if nothing is wrong.
    """

    held: Held
    native: Held | None
    mismatch: Mismatch | None
    matches: str | None
    blame: Blame | None
    findings: list[Finding]

    @property
    def stage(self) -> str | None:
        """The stage that is to blame, or whose field is off."""
        if self.blame is not None:
            return self.blame.stage
        return None if self.mismatch is None else _stage(self.mismatch.field)


def judged(verification: Verification, *, sound: bool = True) -> Judged:
    """Hold updates against their rule in float64 and, if they agree, natively.

    Args:
        verification: of both.
        sound: whether updates have to be finite where the gradient is. Where gradients
            are made not to be, the rule says what has to be finite.
    """
    problem = verification.native
    held = verification.in_float64()
    findings = list(not_finite(held.run, problem)) if sound else []
    mismatch = held.comparison.first
    if mismatch is not None:
        matches = verification.matching(held)
        blame = None if matches is not None else verification.blamed(held)
        findings.append(_wrong(mismatch, matches, blame, held.tolerance))
        return Judged(held, None, mismatch, matches, blame, findings)
    if problem.x64 or findings:
        return Judged(held, None, None, None, None, findings)
    native = verification.natively()
    findings += not_finite(native.run, problem) if sound else []
    mismatch = native.comparison.first
    if mismatch is not None and verification.rounding_explains(native):
        mismatch = None
    if mismatch is not None:
        findings.append(_rounded(mismatch, native))
    return Judged(held, native, mismatch, None, None, findings)


def judged_unsound(verification: Verification, unsound: Unsound) -> Judged:
    """The same where some gradients are not finite, and the rule survives that."""
    found = judged(verification, sound=False)
    leaf = list(verification.native.shapes)[unsound.leaf] or "the leaf"
    steps = ", ".join(map(str, unsound.steps))
    where = f"where an element of the gradient of {leaf} is {_either(unsound.kinds)}"
    told = f"{where} in steps {steps}, which the rule survives: "
    return found._replace(findings=_preceded(found.findings, told))


def judged_noisy(verification: WithNoise) -> Judged:
    """The same for a rule with noise: its mean, and the law of the noise."""
    found = judged(verification)
    for heard, native in (
        (verification.heard, False),
        (verification.heard_natively, True),
    ):
        failed = [] if heard is None else verification.failures(heard)
        if not failed:
            continue
        known = found.matches
        if not (native or found.mismatch):
            known = verification.repeated(failed) or verification.matching(found.held)
            found = found._replace(matches=known)
        told = noise_finding(failed, known, native)
        return found._replace(findings=[*found.findings, told])
    return found


def _either(kinds: tuple[str, ...]) -> str:
    return " or ".join(kinds)


def _preceded(findings: list[Finding], told: str) -> list[Finding]:
    return [dataclasses.replace(f, message=told + f.message) for f in findings]


def not_finite(run: Run, problem: Problem) -> list[Finding]:
    """The first update that is NaN or infinite although its gradient is finite."""
    for step, (moment, gradient) in enumerate(
        zip(run.moments, problem.gradients, strict=True)
    ):
        if not any(moment.not_finite.values()):
            continue
        if not all(np.isfinite(x).all() for x in jax.tree.leaves(gradient)):
            continue
        for leaf, bad in moment.not_finite.items():
            if bad:
                size = math.prod(problem.shapes[leaf])
                message = (
                    f"in step {step}, {bad:,} of {size:,} elements of the update of "
                    f"{leaf or 'the leaf'} are NaN or infinite; its gradient is finite."
                )
                return [Finding(kind="nan_update", leaf=leaf, message=message)]
    return []


def from_rest(tx: Any, problem: Problem) -> list[Finding]:
    """Whether it survives that the first gradients are zero, in the dtypes it has."""
    zeros = jax.tree.map(np.zeros_like, problem.gradients[0])
    gradients = [zeros, *problem.gradients[:1]]
    resting = problem._replace(gradients=gradients, extra=[problem.extra[0]] * 2)
    found = not_finite(run_transformation(tx, resting), resting)
    return _preceded(found, "where the first gradient is all zeros: ")


def _wrong(
    mismatch: Mismatch, matches: str | None, blame: Blame | None, tolerance: float
) -> Finding:
    message = f"{_told(mismatch)}; {tolerance:.0e} would be rounding."
    if matches is not None:
        message += f" It matches the rule {matches}."
    if blame is not None:
        message += f" {blame.text[0].upper()}{blame.text[1:]}"
    return Finding(kind="wrong_update", leaf=mismatch.leaf, message=message)


def _rounded(mismatch: Mismatch, native: Held) -> Finding:
    message = (
        f"in float64 the two agree; in the parameters' own dtypes {_told(mismatch)}, "
        f"more than the {native.tolerance:.0e} that rounding explains."
    )
    return Finding(kind="precision_loss", leaf=mismatch.leaf, message=message)


def _stage(field: Field | None) -> str | None:
    return None if field is None else f"{field.stage} {field.kind}".strip()


def _told(mismatch: Mismatch) -> str:
    index = ", ".join(map(str, mismatch.at))
    place = f"{mismatch.leaf or ''}[{index}]" if index else mismatch.leaf or "the leaf"
    what = "the update"
    if mismatch.field is not None:
        what = f"{mismatch.field.name} of the state of {_stage(mismatch.field)}"
    return (
        f"in step {mismatch.step}, {what} at {place} is {mismatch.got:.6g}, the rule "
        f"gives {mismatch.wanted:.6g} (relative error {mismatch.error:.1e})"
    )
