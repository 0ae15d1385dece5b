"""Is my gradient right?"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

from jaxcheck.checks.asking import ask
from jaxcheck.checks.places import located
from jaxcheck.gradients.examine import examine
from jaxcheck.gradients.options import (
    Mode,
    Precision,
    Progress,
    StopGradient,
)
from jaxcheck.gradients.report import GradientReport
from jaxcheck.places.flow.expectations import (
    held_against,
    read_expectation,
    require_known,
)
from jaxcheck.places.flow.flow import flow_of


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
    expect_zero: Sequence[str] = (),
    key: Any = None,
    locate: bool = True,
    progress: Progress = None,
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
        expect_zero: where no gradient is expected, so that any is WRONG: paths of
            leaves or subtrees (``"['target']"``), places that leaves are used through,
            as a line or a function (``"dqn.py:31"``, ``"dqn.py:bootstrap"``), or both
            (``"['q'] at dqn.py:31"``). See :func:`jaxcheck.gradient_flow`.
        key: a ``jax.random`` key for probes and samples; the default is
            ``jax.random.key(0)``.
        locate: whether to look for the equations behind a wrong gradient, as
            :func:`jaxcheck.locate` does.
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
    given: dict[str, Any] = {
        "mode": mode,
        "samples": samples,
        "directions": directions,
        "precision": precision,
        "stop_gradient": stop_gradient,
        "rtol": rtol,
        "atol": atol,
        "budget": budget,
        "expect_zero": expect_zero,
    }
    traced, plan, options, call = ask(
        check,
        loss_fn,
        params,
        args,
        has_aux=has_aux,
        key=key,
        progress=progress,
        given=given,
    )
    expectations = [read_expectation(text) for text in expect_zero]
    flows = flow_of(traced).leaves if expectations else ()
    require_known(expectations, traced.params.leaves, flows, traced.program)
    examined = examine(traced, plan, options, call=call, started=started)
    report = examined.report
    if locate:
        report = located(traced, examined, options, started)
    return held_against(report, flows, expectations)
