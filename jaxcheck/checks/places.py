"""Where is it wrong?"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from typing import Any

from jaxcheck.checks.asking import ask
from jaxcheck.gradients.examine import Examined, examine
from jaxcheck.gradients.options import Options, Progress, StopGradient
from jaxcheck.gradients.report import GradientReport
from jaxcheck.places.culprits import Located, culprits
from jaxcheck.reports.progress import progress_for
from jaxcheck.reports.values import EquationSite


def locate(
    loss_fn: Callable[..., Any],
    params: Any,
    *args: Any,
    has_aux: bool = False,
    stop_gradient: StopGradient = "frozen",
    rtol: float = 1e-6,
    key: Any = None,
    progress: Progress = None,
) -> tuple[EquationSite, ...]:
    r"""Find the equations that make ``jax.grad(loss_fn)`` wrong.

    The parameters are moved along a direction :math:`u`. With the tangents :math:`t`
    that every value of the program then has, and the cotangents :math:`c` that really
    pass in its backward pass, each equation has a *defect*, the change of
    :math:`\sum \langle c, t \rangle` from its outputs to its operands. It is zero where
    the rule is the derivative, and all defects add up to the error of the gradient:

    .. math:: \sum_e d_e = g \cdot u - D .

    So an equation is named only if it contributes to the error of this gradient; and
    only if, checked by itself on what it works on there, its rule disagrees with
    differences of its own function. Its rule is then replaced by plain autodiff to see
    whether the whole gradient becomes right (``cures``).

    Looks into jit, scan (with the iteration), cond, remat, custom rules and shard_map;
    not into while loops, through which no gradient passes backward. What cannot be gone
    through at all (a loss with forward-mode derivatives only) is said by
    ``jaxcheck.check``, in ``report.not_located``.

    Args:
        loss_fn: ``loss_fn(params, *args)`` returns a real floating scalar, or ``(loss,
            aux)`` with ``has_aux``.
        params: any pytree with at least one floating or complex leaf.
        *args: further arguments, not differentiated.
        has_aux: whether ``loss_fn`` returns ``(loss, aux)``.
        stop_gradient: ``"transparent"`` counts what stop_gradient cuts off as wrong.
        rtol: relative tolerance for each comparison.
        key: a ``jax.random`` key for probes; the default is ``jax.random.key(0)``.
        progress: as for :func:`jaxcheck.check`.

    Returns:
        The equations, most certain first, those that contribute most before others;
        empty if the gradient is right.

    Raises:
        InvalidInputError: an argument cannot be used.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> @jax.custom_vjp
        ... def cube(x):
        ...     return x**3
        >>> cube.defvjp(lambda x: (x**3, x), lambda x, g: (2 * x**2 * g,))
        >>> (site,) = locate(lambda w: jnp.sum(cube(w)), jnp.arange(1.0, 4.0))
        >>> site.rule, site.cures
        ('cube', True)
    """
    started = time.perf_counter()
    given: dict[str, Any] = {"stop_gradient": stop_gradient, "rtol": rtol}
    traced, plan, options, call = ask(
        locate,
        loss_fn,
        params,
        args,
        has_aux=has_aux,
        key=key,
        progress=progress,
        given=given,
    )
    examined = examine(traced, plan, options, call=call, started=started)
    return _located(examined, options).culprits


def with_culprits(
    examined: Examined, options: Options, started: float
) -> GradientReport:
    """The report with the equations to blame.

    Args:
        examined: a gradient that is wrong.
        options: of the check.
        started: when the check began, by ``time.perf_counter``.
    """
    found = _located(examined, options)
    return dataclasses.replace(
        examined.report,
        culprits=found.culprits,
        not_located=found.note,
        seconds=time.perf_counter() - started,
    )


def _located(examined: Examined, options: Options) -> Located:
    verification = examined.verification
    if verification is None:
        return Located((), "there was no derivative to compare.")
    steps = 3  # account, open, remove; more where there is more to open
    with progress_for(options.progress, steps, "locating") as advance:
        return culprits(verification.meter, examined.results, options, advance)
