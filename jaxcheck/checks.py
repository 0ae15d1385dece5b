"""The questions themselves: trace, verify, and write the report."""

from __future__ import annotations

import dataclasses
import functools
import math
import numbers
import operator
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np

from jaxcheck.errors import InvalidInputError
from jaxcheck.gradients.comparison import Comparison, Lane
from jaxcheck.gradients.findings import (
    detached_findings,
    device_name,
    leaf_findings,
    nondeterminism,
    package_versions,
    program_findings,
)
from jaxcheck.gradients.judge import Tolerances
from jaxcheck.gradients.measure import Meter
from jaxcheck.gradients.plan import MODES, Mode, make_plan
from jaxcheck.gradients.program import NativeResult, Programs, ReadingResult
from jaxcheck.gradients.report import Coordinate, GradientReport, LeafReport
from jaxcheck.gradients.verify import LeafResult, Verification
from jaxcheck.jaxprs.trace import TracedLoss, trace_loss
from jaxcheck.reports.progress import progress_for
from jaxcheck.reports.values import Finding, Verdict
from jaxcheck.trees import Leaf, partition, require_differentiable

Precision = Literal["float64", "native"]
StopGradient = Literal["frozen", "transparent"]


def check(
    loss_fn: Callable[..., Any],
    params: Any,
    *args: Any,
    has_aux: bool = False,
    mode: Mode = "auto",
    samples: int | None = None,
    directions: int | None = None,
    precision: Precision = "float64",
    stop_gradient: StopGradient = "frozen",
    rtol: float = 1e-6,
    atol: float = 0.0,
    budget: int | None = None,
    key: Any = None,
    locate: bool = True,
    progress: bool | Callable[[int, int], None] | None = None,
) -> GradientReport:
    r"""Check that ``jax.grad(loss_fn)`` is the derivative of ``loss_fn``.

    The loss is traced once in its own dtypes and evaluated with every floating value in
    float64. Central differences :math:`D` of that reading, each with an error bar, are
    compared with what its rules of autodiff predict, :math:`g \cdot u`:

    .. math:: |D - g \cdot u| \le \text{bar} + \text{rounding} +
              \texttt{rtol}\,|D| + \texttt{atol}\,|u|.

    What disagrees is measured again over a ladder of steps before it is called wrong.
    The gradient in the program's own precision is compared with the float64 one and
    reported as ``precision``: that is rounding, not a wrong rule.

    A CORRECT verdict says that the gradient is the derivative of this loss, at this
    point, to the bound that the report states. It does not say that the loss is the one
    that was meant, and nothing about other points.

    Args:
        loss_fn: ``loss_fn(params, *args)`` returns a real floating scalar, or ``(loss,
            aux)`` with ``has_aux``. It must be traceable by ``jax.jit``.
        params: any pytree with at least one floating or complex leaf; integer, bool,
            key and None leaves are carried along and reported as not checked.
        *args: further arguments, any pytrees; not differentiated.
        has_aux: whether ``loss_fn`` returns ``(loss, aux)``.
        mode: ``"exhaustive"`` compares every coordinate, ``"sampled"`` some of every
            leaf, ``"directional"`` random directions of every leaf, ``"auto"`` every
            coordinate while that takes at most ``budget`` (or 10,000) evaluations,
            else directions.
        samples: coordinates a leaf in mode ``"sampled"`` (20).
        directions: probes a leaf in mode ``"directional"`` (4); ``"auto"`` starts with
            2 and adds some where the bound is not tight.
        precision: ``"float64"``, or ``"native"`` to take the differences in the
            program's own dtypes, with a step and an error bar to fit.
        stop_gradient: ``"frozen"``: what ``stop_gradient`` returned at the point is a
            constant of the loss, as autodiff has it. ``"transparent"``: it is looked
            through, so that a path it cuts off counts as WRONG.
        rtol: relative tolerance for each comparison.
        atol: absolute tolerance, in units of the gradient.
        budget: number of loss evaluations for the first pass. What fails may cost more.
        key: a ``jax.random`` key for probes and samples; the default is
            ``jax.random.key(0)``.
        locate: whether to look for the equation behind a wrong gradient.
        progress: None shows progress of long checks on a terminal, True always, False
            never; or a function of (done, total).

    Returns:
        The report. Nothing is raised for a wrong gradient; see
        ``report.raise_if_failed()``.

    Raises:
        InvalidInputError: an argument cannot be used. What ``loss_fn`` itself raises is
            passed on untouched.

    Example:
        >>> import jax.numpy as jnp
        >>> report = check(lambda w: jnp.sum(jnp.tanh(w)), jnp.ones(3))
        >>> report.verdict
        <Verdict.CORRECT: 'correct'>
        >>> report.leaves[0].checked
        3

    References:
        The numerical contract, with the measurements behind it, is in
        ``docs/numerics.md``.
    """
    started = time.perf_counter()
    _require_options(mode, precision, stop_gradient, rtol, atol)
    _require_counts(samples=samples, directions=directions, budget=budget)
    if not callable(loss_fn):
        raise InvalidInputError(
            f"`check(loss_fn=...)` must be a function; got {type(loss_fn).__name__}."
        )
    del (
        locate
    )  # a culprit is named by jaxcheck.locate, which is not part of this version
    seed = _require_key(key)
    parts = partition(params)
    require_differentiable(parts, "params")
    plan = make_plan(
        parts.differentiable,
        mode=mode,
        samples=samples,
        directions=directions,
        budget=budget,
        seed=seed,
    )
    traced = trace_loss(loss_fn, parts, args, has_aux=has_aux)
    options = {
        "has_aux": has_aux,
        "mode": mode,
        "samples": samples,
        "directions": directions,
        "precision": precision,
        "stop_gradient": stop_gradient,
        "rtol": rtol,
        "atol": atol,
        "budget": budget,
    }
    writer = _Writer(
        traced=traced,
        mode=mode,
        precision=precision,
        call=_spell_call(loss_fn, args, options),
        seed=tuple(seed),
        started=started,
    )
    programs = Programs(
        traced,
        precision=precision,
        lanes=max(plan.evaluations, 1),
        coordinates=plan.method != "directional",
    )
    native = programs.native()
    _require_finite(native, parts.differentiable)
    if (finding := nondeterminism(traced, native)) is not None:
        return writer.unjudged(finding, programs, native, "the loss is not a function")
    programs, unread = _readable(programs)
    reading = programs.read(native)
    if not (math.isfinite(native.loss) and math.isfinite(reading.loss)):
        finding = Finding(
            kind="nan_loss",
            message=(
                f"the loss is {native.loss} ({reading.loss} in float64): it has no "
                "derivative that could be compared."
            ),
        )
        return writer.unjudged(finding, programs, native, "the loss is not finite")
    with progress_for(progress, plan.evaluations, "checking gradients") as advance:
        meter = Meter(
            programs,
            reading,
            seed=seed,
            transparent=stop_gradient == "transparent",
            advance=advance,
        )
        verification = Verification(
            meter,
            native,
            reading,
            plan,
            Tolerances(
                eps=programs.eps,
                rounding=programs.gradient_eps,
                rtol=rtol,
                atol=atol,
            ),
            seed=seed,
            budget=budget,
        )
        results = verification.run()
        detached = detached_findings(meter, [r.outcome for r in results])
    return writer.judged(
        verification, results, native, reading, [*detached, *unread]
    )


def _readable(programs: Programs) -> tuple[Programs, list[Finding]]:
    """The programs, in the loss's own dtypes where there is no float64 reading."""
    try:
        _ = programs.inlined
    except Exception as error:
        message = (
            f"the loss has no float64 reading ({type(error).__name__}): differences were "
            "taken in its own dtypes, with a step and error bars to fit."
        )
        finding = Finding(kind="lowered_precision", message=message)
        return programs.natively(), [finding]
    return programs, []


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Writer:
    """Writes reports of one call."""

    traced: TracedLoss
    mode: Mode
    precision: Precision
    call: str
    seed: tuple[int, ...]
    started: float

    def unjudged(
        self, finding: Finding, programs: Programs, native: NativeResult, reason: str
    ) -> GradientReport:
        """The report of a loss whose derivatives cannot be judged at all."""
        leaves = {
            leaf.path: _leaf_report(
                leaf, Verdict.INCONCLUSIVE, "none", 0, reason=reason
            )
            for leaf in self.traced.params.differentiable
        }
        return self._report(leaves, [finding], programs, native, None)

    def judged(
        self,
        verification: Verification,
        results: Sequence[LeafResult],
        native: NativeResult,
        reading: ReadingResult,
        others: Sequence[Finding],
    ) -> GradientReport:
        """The report of a complete comparison."""
        programs = verification.meter.programs
        findings: list[Finding] = []
        leaves: dict[str, LeafReport] = {}
        for k, (leaf, result) in enumerate(zip(programs.leaves, results, strict=True)):
            findings += result.outcome.findings
            findings += leaf_findings(programs, native, reading, k, result.outcome)
            report = _judged_leaf(verification, reading, k, leaf, result)
            leaves[leaf.path] = report
            if report.verdict is Verdict.WRONG and not result.outcome.findings:
                findings.append(_wrong_derivative(report))
        findings += [*others, *program_findings(programs, native, reading)]
        difference = _relative_difference([r.outcome.comparison for r in results])
        return self._report(leaves, findings, programs, native, difference)

    def _report(
        self,
        judged: dict[str, LeafReport],
        findings: Sequence[Finding],
        programs: Programs,
        native: NativeResult,
        difference: float | None,
    ) -> GradientReport:
        leaves = tuple(
            judged[leaf.path] if leaf.differentiable else _not_checked(leaf)
            for leaf in self.traced.params.leaves
        )
        return GradientReport(
            verdict=_overall(leaves),
            leaves=leaves,
            findings=tuple(findings),
            loss=native.loss,
            relative_difference=difference,
            grade=_grade(difference),
            evaluations=programs.evaluations,
            seconds=time.perf_counter() - self.started,
            mode=self.mode,
            precision=self.precision,
            call=self.call,
            dtypes=tuple(sorted({leaf.dtype for leaf in programs.leaves})),
            key_data=self.seed,
            versions=package_versions(),
            device=device_name(),
        )


def _judged_leaf(
    verification: Verification,
    reading: ReadingResult,
    k: int,
    leaf: Leaf,
    result: LeafResult,
) -> LeafReport:
    outcome, programs = result.outcome, verification.meter.programs
    comparison = outcome.comparison
    error, bar = comparison.relative_error()
    bound, confidence = None, None
    if outcome.negligible:
        error, bar = None, None
    elif outcome.verdict is Verdict.CORRECT:
        bound, confidence = comparison.bound(verification.gradient_norm(k))
    singles = result.coordinates or comparison
    offset = int(programs.offsets[k])
    whole = comparison.method == "directional"
    failing = _failing(verification, result, singles)
    return _leaf_report(
        leaf,
        outcome.verdict,
        comparison.method,
        leaf.size
        if whole
        else len({(x.lo - offset) // leaf.parts for x in comparison.lanes}),
        relative_error=error,
        error_bar=bar,
        bound=bound,
        confidence=confidence,
        worst=_worst(singles, leaf, offset, outcome.wrong),
        failing=failing,
        precision=_precision(reading, k),
        reason=outcome.reason,
    )


def _wrong_derivative(report: LeafReport) -> Finding:
    name, worst = report.path or "the leaf", report.worst
    message = f"the gradient of {name} is not the derivative of the loss"
    if worst is not None:
        ratio = worst.autodiff / worst.numerical if worst.numerical else math.inf
        message += f"; where it is worst it is {ratio:.6g} times the derivative"
    return Finding(kind="wrong_derivative", leaf=report.path, message=f"{message}.")


def _failing(
    verification: Verification, result: LeafResult, singles: Comparison
) -> int | None:
    """How many coordinates disagree, where each has been compared."""
    if result.outcome.verdict is not Verdict.WRONG or singles.method != "exhaustive":
        return None
    t = verification.judge.tolerances
    return len(singles.disagreeing(t.rounding, t.rtol, t.atol))


def _precision(reading: ReadingResult, k: int) -> float | None:
    """Relative error of the native gradient, by what was summed where that cancels."""
    scale = max(float(reading.norms[k]), 1e-3 * float(reading.size_norms[k]))
    error = float(reading.native_errors[k])
    if not math.isfinite(error):
        return None
    return error / scale if scale > 0 else 0.0


def _worst(
    comparison: Comparison, leaf: Leaf, offset: int, wrong: Sequence[Lane]
) -> Coordinate | None:
    """The coordinate that disagrees most; one whose fault is certain comes first."""
    singles = [k for k, lane in enumerate(comparison.lanes) if lane.probe is None]
    certain = [k for k in singles if comparison.lanes[k] in wrong]
    candidates = certain or singles
    if not candidates:
        return None
    residual = comparison.residual / np.abs(comparison.displacement)
    residual = np.where(np.isfinite(residual), residual, np.inf)
    k = max(candidates, key=lambda k: residual[k])
    span = float(comparison.displacement[k])
    position, part = divmod(comparison.lanes[k].lo - offset, leaf.parts)
    index = tuple(int(i) for i in np.unravel_index(position, leaf.shape))
    return Coordinate(
        index=index,
        part=("real", "imag")[part] if leaf.complex else None,
        autodiff=float(comparison.autodiff[k]) / span,
        numerical=float(comparison.numerical[k]) / span,
        error_bar=abs(float(comparison.bar[k]) / span),
    )


def _relative_difference(comparisons: Sequence[Comparison]) -> float | None:
    """|a - n| / (|a| + |n|) over everything that was compared."""
    autodiff = np.concatenate([c.autodiff / c.displacement for c in comparisons])
    numerical = np.concatenate([c.numerical / c.displacement for c in comparisons])
    if not len(autodiff):
        return None
    with np.errstate(all="ignore"):
        total = float(np.linalg.norm(autodiff) + np.linalg.norm(numerical))
        difference = float(np.linalg.norm(autodiff - numerical))
    return 0.0 if total == 0.0 else difference / total


def _grade(difference: float | None) -> str | None:
    """The classical bands."""
    if difference is None:
        return None
    for limit, name in (
        (1e-7, "below 1e-7"),
        (1e-4, "below 1e-4"),
        (1e-2, "below 1e-2"),
    ):
        if difference < limit:
            return name
    return "above 1e-2"


def _overall(leaves: Sequence[LeafReport]) -> Verdict:
    verdicts = {leaf.verdict for leaf in leaves}
    for verdict in (Verdict.WRONG, Verdict.INCONCLUSIVE, Verdict.CORRECT):
        if verdict in verdicts:
            return verdict
    return Verdict.NOT_CHECKED


def _leaf_report(
    leaf: Leaf, verdict: Verdict, method: str, checked: int, **more: Any
) -> LeafReport:
    return LeafReport(
        path=leaf.path,
        shape=leaf.shape,
        dtype=leaf.dtype,
        size=leaf.size,
        checked=checked,
        method=method,
        verdict=verdict,
        **more,
    )


def _not_checked(leaf: Leaf) -> LeafReport:
    return _leaf_report(leaf, Verdict.NOT_CHECKED, "none", 0, reason=leaf.reason)


# -- what came in


def _require_options(
    mode: str, precision: str, stop_gradient: str, rtol: float, atol: float
) -> None:
    for name, value, allowed in (
        ("mode", mode, MODES),
        ("precision", precision, get_args(Precision)),
        ("stop_gradient", stop_gradient, get_args(StopGradient)),
    ):
        if value not in allowed:
            wanted = ", ".join(repr(x) for x in allowed)
            raise InvalidInputError(
                f"`check({name}={value!r})` is not known; use one of {wanted}."
            )
    for name, number in (("rtol", rtol), ("atol", atol)):
        real = isinstance(number, numbers.Real | np.generic)
        if not (real and 0 <= number < math.inf):
            raise InvalidInputError(
                f"`check({name}={number!r})` must be a non-negative finite number."
            )


def _require_counts(**counts: int | None) -> None:
    for name, count in counts.items():
        if count is None:
            continue
        try:
            number = operator.index(count)
        except TypeError:
            number = 0
        if number < 1 or isinstance(count, bool):
            raise InvalidInputError(
                f"`check({name}={count!r})` must be a positive integer, or None."
            )


def _require_key(key: Any) -> list[int]:
    """The words of a random key, typed or old, of any implementation."""
    if key is None:
        return [0, 0]  # what jax.random.key(0) holds
    dtype = getattr(key, "dtype", None)
    if dtype is not None and jnp.issubdtype(dtype, jax.dtypes.prng_key):
        if key.shape == ():
            return [int(x) for x in np.asarray(jax.random.key_data(key))]
    elif dtype == np.uint32 and np.ndim(key) == 1:
        return [int(x) for x in np.asarray(key)]
    got = type(key).__name__ + (
        "" if dtype is None else f" of {dtype}{list(key.shape)}"
    )
    raise InvalidInputError(
        f"`check(key=...)` must be one random key, e.g. jax.random.key(0); got {got}."
    )


def _require_finite(native: NativeResult, leaves: Sequence[Leaf]) -> None:
    for leaf, bad in zip(leaves, native.bad_params, strict=True):
        if bad:
            raise InvalidInputError(
                f"`check(params=...)` must be finite; {bad} of {leaf.size} elements of "
                f"{leaf.path or 'the leaf'} are NaN or infinite. Check earlier "
                "parameters, before they diverged."
            )


def _spell_call(
    loss_fn: Callable[..., Any], args: Sequence[Any], options: Mapping[str, Any]
) -> str:
    """The call as a person would write it, options at their defaults left out."""
    while isinstance(loss_fn, functools.partial):
        loss_fn = loss_fn.func
    name = getattr(loss_fn, "__name__", "")
    words = [name if name.isidentifier() else "loss_fn", "params"]
    words += ["*args"] if args else []
    defaults: Mapping[str, Any] = check.__kwdefaults__ or {}
    words += [f"{k}={v!r}" for k, v in options.items() if v != defaults[k]]
    return f"jaxcheck.check({', '.join(words)})"
