"""The questions themselves: trace, verify, and write the report."""

from __future__ import annotations

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
from jaxcheck.gradients.comparison import Tolerances
from jaxcheck.gradients.findings import (
    detached_findings,
    nondeterminism,
)
from jaxcheck.gradients.measure import Meter
from jaxcheck.gradients.plan import MODES, Mode, make_plan
from jaxcheck.gradients.program import NativeResult, Programs
from jaxcheck.gradients.report import GradientReport
from jaxcheck.gradients.verify import Verification
from jaxcheck.gradients.writing import ReportWriter
from jaxcheck.jaxprs.trace import trace_loss
from jaxcheck.reports.progress import progress_for
from jaxcheck.reports.values import Finding
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
    writer = ReportWriter(
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
    return writer.judged(verification, results, native, reading, [*detached, *unread])


def _readable(programs: Programs) -> tuple[Programs, list[Finding]]:
    """The programs, in the loss's own dtypes where there is no float64 reading."""
    try:
        _ = programs.inlined
    except Exception as error:
        message = (
            f"the loss has no float64 reading ({type(error).__name__}): differences "
            "were taken in its own dtypes, with a step and error bars to fit."
        )
        finding = Finding(kind="lowered_precision", message=message)
        return programs.natively(), [finding]
    return programs, []


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
