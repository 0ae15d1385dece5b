"""Are all derivatives of this function right?"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any, get_args

import jax.numpy as jnp
import numpy as np

from jaxcheck.checks.spelling import spelled
from jaxcheck.derivatives.functions import Direction, flat_function
from jaxcheck.derivatives.opinions import Opinion
from jaxcheck.derivatives.questions import Questions
from jaxcheck.derivatives.report import DerivativeReport
from jaxcheck.errors import InvalidInputError
from jaxcheck.gradients.options import (
    Mode,
    Precision,
    Progress,
    StopGradient,
    read_options,
    require_count,
    require_function,
)
from jaxcheck.trees import Partition, partition, require_differentiable


def check_derivatives(
    fn: Callable[..., Any],
    primals: Any,
    *,
    modes: Sequence[Direction] = ("fwd", "rev"),
    order: int = 1,
    has_aux: bool = False,
    bounds: Any = None,
    project_tangent: Callable[..., Any] | None = None,
    second_opinion: Opinion | None = None,
    mode: Mode = "auto",
    samples: int | None = None,
    directions: int | None = None,
    precision: Precision = "float64",
    stop_gradient: StopGradient = "frozen",
    rtol: float = 1e-6,
    atol: float = 0.0,
    budget: int | None = None,
    key: Any = None,
    progress: Progress = None,
) -> DerivativeReport:
    """Check the derivatives of any function: any pytrees in, any pytrees out.

    Every output leaf is contracted with cotangents (all of them if it holds at most
    four numbers, two random ones else), which makes a scalar loss; its derivatives in
    forward and in reverse mode are compared with central differences of the same
    program in float64, as :func:`jaxcheck.check` does it. Then come the identities
    that need no differences: forward mode is the adjoint of reverse mode, ``vmap`` of
    the pullback is a loop over it, zero cotangents give zero, compiled and op-by-op
    results agree, and so do shapes and dtypes. What JAX cannot compute (forward mode
    of a ``custom_vjp``, reverse mode of a ``while_loop``) is listed as not checked.

    Args:
        fn: ``fn(*primals)`` returns any pytree with a floating or complex leaf, or
            ``(output, aux)`` with ``has_aux``. Complex functions follow JAX's
            convention, holomorphic or not.
        primals: a tuple or list of the arguments, as for ``jax.jvp``; anything else is
            the only argument.
        modes: ``"fwd"``, ``"rev"`` or both.
        order: highest order of derivative. Order 2 checks the derivatives of the
            derivatives, in every combination of ``modes``.
        has_aux: whether ``fn`` returns ``(output, aux)``.
        bounds: ``(lower, upper)`` of the domain, each a number, None or a pytree like
            ``primals``; steps stay inside. Coordinates on a bound are not moved.
        project_tangent: maps random tangents (a tuple like ``primals``) to admissible
            ones, for points on a manifold: symmetric matrices, a simplex, rotations.
        second_opinion: ``"complex_step"`` for analytic functions, or a function
            ``(primals, tangents) -> tangents of the output`` to compare with.
        mode: which coordinates are compared in reverse mode; see
            :func:`jaxcheck.check`.
        samples: coordinates a leaf in mode ``"sampled"``.
        directions: probes, or tangents, a leaf (4).
        precision: ``"float64"``, or ``"native"`` for the function's own dtypes.
        stop_gradient: ``"frozen"`` or ``"transparent"``.
        rtol: relative tolerance.
        atol: absolute tolerance.
        budget: number of evaluations for the first pass of each comparison.
        key: a ``jax.random`` key for tangents and cotangents.
        progress: None shows progress of long checks on a terminal, True always, False
            never; or a function of (done, total).

    Returns:
        The report: ``report.checks`` holds one answer for each question.

    Raises:
        InvalidInputError: an argument cannot be used. What ``fn`` itself raises is
            passed on untouched.

    Example:
        >>> import jax.numpy as jnp
        >>> report = check_derivatives(jnp.sin, jnp.ones(3), order=2)
        >>> report.verdict
        <Verdict.CORRECT: 'correct'>
        >>> [check.question for check in report.checks[:3]]
        ['fwd', 'rev', 'fwd over fwd']
    """
    started = time.perf_counter()
    given: dict[str, Any] = {
        "mode": mode,
        "samples": samples,
        "directions": directions,
        "precision": precision,
        "stop_gradient": stop_gradient,
        "rtol": rtol,
        "atol": atol,
        "budget": budget,
    }
    caller = "check_derivatives"
    options = read_options(caller, key=key, progress=progress, **given)
    require_function(caller, "fn", fn)
    wanted = _require_modes(modes)
    require_count(caller, "order", order)
    _require_opinion(second_opinion)
    if project_tangent is not None:
        require_function(caller, "project_tangent", project_tangent)
    arguments: tuple[Any, ...] = (
        tuple(primals) if type(primals) in (tuple, list) else (primals,)
    )
    parts = partition(arguments)
    require_differentiable(parts, "primals")
    _require_finite(parts)
    flat = flat_function(fn, arguments, has_aux=has_aux)
    more = {
        "modes": wanted,
        "order": order,
        "has_aux": has_aux,
        "bounds": bounds,
        "project_tangent": project_tangent,
        "second_opinion": second_opinion,
    }
    return Questions(
        flat=flat,
        modes=wanted,
        order=order,
        options=options,
        bounds=bounds,
        project=project_tangent,
        opinion=second_opinion,
        started=started,
        call=spelled(check_derivatives, fn, "fn", ["primals"], {**more, **given}),
    ).ask()


def _require_finite(parts: Partition) -> None:
    for leaf, value in zip(parts.differentiable, parts.moved, strict=True):
        bad = int(np.sum(~np.asarray(jnp.isfinite(value))))
        if bad:
            raise InvalidInputError(
                f"`check_derivatives(primals=...)` must be finite; {bad} of "
                f"{leaf.size} elements of {leaf.path} are NaN or infinite."
            )


def _require_modes(modes: Any) -> tuple[Direction, ...]:
    given = (modes,) if isinstance(modes, str) else tuple(modes)
    allowed = get_args(Direction)
    if not given or any(m not in allowed for m in given):
        raise InvalidInputError(
            f"`check_derivatives(modes={modes!r})` is not known; use 'fwd', 'rev' or "
            "both, as a tuple."
        )
    return tuple(m for m in allowed if m in given)


def _require_opinion(opinion: Any) -> None:
    if opinion is None or opinion == "complex_step" or callable(opinion):
        return
    raise InvalidInputError(
        f"`check_derivatives(second_opinion={opinion!r})` is not known; use "
        "'complex_step', or a function (primals, tangents) -> tangents of the output."
    )
