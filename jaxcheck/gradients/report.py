"""The report of a gradient check: what was compared, coordinate by coordinate.

The values only; how they are drawn is in ``jaxcheck.reports``.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar, Literal

from jaxcheck.errors import CheckFailedError, GradientError
from jaxcheck.reports.values import EquationSite, Finding, Report, Verdict


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Coordinate:
    """One scalar of a leaf and the two numbers that were compared there.

    Attributes:
        index: position in the leaf, row-major; ``()`` for a scalar leaf.
        part: ``"real"`` or ``"imag"`` for a complex leaf, None for a real one. The
            derivative is with respect to that part.
        autodiff: what the rules of autodiff give, in the precision of the check.
        numerical: the central difference.
        error_bar: half-width of the interval that ``numerical`` stands for.
    """

    index: tuple[int, ...]
    part: Literal["real", "imag"] | None = None
    autodiff: float
    numerical: float
    error_bar: float


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class LeafReport:
    """What was found for one leaf of the parameters.

    Attributes:
        path: where the leaf is, as ``jax.tree_util.keystr`` writes it.
        shape: shape of the leaf.
        dtype: dtype of the leaf as the program sees it, e.g. ``"float32"``.
        size: number of scalars.
        checked: how many of them were compared: one by one for ``exhaustive`` and
            ``sampled``, all of them through random directions for ``directional``.
        method: ``"exhaustive"``, ``"sampled"``, ``"directional"`` or ``"none"``.
        verdict: the verdict for this leaf.
        relative_error: norm of (autodiff - numerical) over the larger of their norms.
        error_bar: the uncertainty of ``relative_error`` that the differences carry.
        bound: upper bound of the relative error of the whole leaf's gradient.
        confidence: the probability with which ``bound`` holds (1.0 if every
            coordinate was compared).
        detectable: the smallest relative error of this leaf's gradient that the run
            would have noticed with a probability of 99.9 %.
        worst: the coordinate that disagrees most.
        examples: up to five coordinates of a wrong leaf, ``worst`` first.
        failing: how many of the compared coordinates disagree (None if unknown).
        pattern: what kind of wrong, if one explains it.
        precision: relative error of the native-precision gradient against the
            float64 reading of the same rules (None if not measured).
        reason: why the verdict is not CORRECT, or why the leaf was not checked.
    """

    path: str
    shape: tuple[int, ...]
    dtype: str
    size: int
    checked: int
    method: str
    verdict: Verdict
    relative_error: float | None = None
    error_bar: float | None = None
    bound: float | None = None
    confidence: float | None = None
    detectable: float | None = None
    worst: Coordinate | None = None
    examples: tuple[Coordinate, ...] = ()
    failing: int | None = None
    pattern: str | None = None
    precision: float | None = None
    reason: str | None = None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, repr=False, eq=False)
class GradientReport(Report):
    """The answer to "is my gradient right?".

    Attributes:
        verdict: WRONG if a leaf is, else INCONCLUSIVE if a leaf is, else CORRECT.
        leaves: one report a leaf, in the order of ``jax.tree_util.tree_flatten``.
        findings: what else a reader should know.
        culprits: equations that make the gradient wrong, most certain first.
        not_located: why none is named although one was looked for, or None.
        loss: the loss in the program's own precision.
        relative_difference: the classical ratio |a - n| / (|a| + |n|), in 2-norms,
            over everything that was compared; None if nothing was.
        grade: the classical band of ``relative_difference``: ``"below 1e-7"``,
            ``"below 1e-4"``, ``"below 1e-2"``, ``"above 1e-2"``; None as above.
        evaluations: number of loss evaluations spent.
        seconds: wall time of the whole check.
        mode: the mode that was asked for.
        precision: ``"float64"`` or ``"native"``.
        call: the call to reproduce this report, as text.
        dtypes: the floating dtypes of the parameters, e.g. ``("float32",)``.
        key_data: the words of the random key, to reproduce the probes.
        versions: pairs (package, version).
        device: where it ran, e.g. ``"cpu"``.
    """

    error_class: ClassVar[type[CheckFailedError]] = GradientError

    verdict: Verdict
    leaves: tuple[LeafReport, ...]
    findings: tuple[Finding, ...] = ()
    culprits: tuple[EquationSite, ...] = ()
    not_located: str | None = None
    loss: float = float("nan")
    relative_difference: float | None = None
    grade: str | None = None
    evaluations: int = 0
    seconds: float = 0.0
    mode: str = "auto"
    precision: str = "float64"
    call: str = "jaxcheck.check(loss_fn, params)"
    dtypes: tuple[str, ...] = ()
    key_data: tuple[int, ...] = ()
    versions: tuple[tuple[str, str], ...] = ()
    device: str = "cpu"

    def __str__(self) -> str:
        from jaxcheck.gradients.text import as_text

        return as_text(self)

    def __repr__(self) -> str:
        from jaxcheck.gradients.text import as_line

        return as_line(self)
