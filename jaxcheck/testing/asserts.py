"""Asserts for test suites: each asks one question of ``jaxcheck.checks`` and raises.

An assert takes the arguments of its check and deliberately adds nothing of its own:
what counts as wrong is decided there. Under pytest a failure shows the line of the test
and then the report, without jaxcheck's own frames.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax

from jaxcheck.checks import check, check_derivatives
from jaxcheck.derivatives.functions import Direction
from jaxcheck.derivatives.opinions import Opinion
from jaxcheck.errors import GradientError, HealthError, UpdateError
from jaxcheck.gradients.options import Mode, Precision, Progress, StopGradient
from jaxcheck.training.diagnosis import diagnose
from jaxcheck.training.leaves import Stacked
from jaxcheck.training.symptoms import HEALTH_RULES
from jaxcheck.training.symptoms import Rule as HealthRule
from jaxcheck.updates.train_step import check_train_step
from jaxcheck.updates.update import check_update


def assert_gradients_correct(
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
    key: jax.Array | None = None,
    locate: bool = True,
    progress: Progress = None,
) -> None:
    """Assert that the gradient of ``loss_fn`` with respect to ``params`` is right.

    Passes only if :func:`jaxcheck.check` answers ``CORRECT``: a gradient that could not
    be confirmed fails as well. It establishes nothing about the gradient at other
    parameters or on other data.

    Args:
        loss_fn: ``loss_fn(params, *args)`` returns a real scalar, or a pair of it and
            anything else with ``has_aux=True``. It may be jitted.
        params: any pytree with at least one floating or complex leaf. Concrete values,
            not tracers.
        *args: what else ``loss_fn`` takes.
        has_aux: whether ``loss_fn`` returns ``(loss, aux)``.
        mode: which scalars are compared; see :func:`jaxcheck.check`.
        samples: coordinates per leaf in ``"sampled"`` mode.
        directions: probes per leaf in ``"directional"`` mode.
        precision: ``"float64"`` evaluates the program in float64; ``"native"``
            differences it in its own dtypes.
        stop_gradient: ``"frozen"`` takes it as part of the program; ``"transparent"``
            looks through it.
        rtol: relative tolerance beyond the error bar.
        atol: absolute tolerance beyond the error bar.
        budget: the number of loss evaluations that may be spent.
        expect_zero: where no gradient is expected; see :func:`jaxcheck.check`.
        key: random key of the probes.
        locate: whether to look for the equations behind a wrong gradient.
        progress: None shows a bar on a terminal if it takes long; True and False force
            it; a function is called with ``(done, total)``.

    Raises:
        GradientError: if the gradient is wrong or could not be confirmed. The text is
            the report; ``error.report`` is the report as a value.
        InvalidInputError: if an argument cannot be used.

    Example:
        >>> import jax.numpy as jnp
        >>> assert_gradients_correct(lambda w, x: jnp.sum(jnp.tanh(w * x)), 0.5, 2.0)
    """
    __tracebackhide__ = True
    report = check(
        loss_fn,
        params,
        *args,
        has_aux=has_aux,
        mode=mode,
        samples=samples,
        directions=directions,
        precision=precision,
        stop_gradient=stop_gradient,
        rtol=rtol,
        atol=atol,
        budget=budget,
        expect_zero=expect_zero,
        key=key,
        locate=locate,
        progress=progress,
    )
    if not report.passed:
        # `report.raise_if_failed()` would leave its own frame in pytest's output.
        raise GradientError(report)


def assert_derivatives_correct(
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
    key: jax.Array | None = None,
    progress: Progress = None,
) -> None:
    """Assert that every derivative of ``fn`` at ``primals`` is right.

    Passes only if :func:`jaxcheck.check_derivatives` answers ``CORRECT``; the arguments
    are the same, and described there.

    Raises:
        GradientError: if a derivative is wrong or could not be confirmed. The text is
            the report; ``error.report`` is the report as a value.
        InvalidInputError: if an argument cannot be used.

    Example:
        >>> import jax.numpy as jnp
        >>> assert_derivatives_correct(lambda x, y: jnp.outer(x, y), (jnp.ones(2),) * 2)
    """
    __tracebackhide__ = True
    report = check_derivatives(
        fn,
        primals,
        modes=modes,
        order=order,
        has_aux=has_aux,
        bounds=bounds,
        project_tangent=project_tangent,
        second_opinion=second_opinion,
        mode=mode,
        samples=samples,
        directions=directions,
        precision=precision,
        stop_gradient=stop_gradient,
        rtol=rtol,
        atol=atol,
        budget=budget,
        key=key,
        progress=progress,
    )
    if not report.passed:
        raise GradientError(report)


def assert_update_correct(
    tx: Any,
    params: Any = None,
    *,
    rule: Any = None,
    steps: int = 8,
    gradients: Sequence[Any] | None = None,
    extra_args: Mapping[str, Sequence[Any]] | None = None,
    samples: int | None = 4_096,
    rtol: float = 1e-9,
    key: jax.Array | None = None,
) -> None:
    """Assert that an optimizer's updates and state are those of its stated rule.

    Passes only if :func:`jaxcheck.check_update` answers ``CORRECT``; the arguments are
    the same, and described there.

    Raises:
        UpdateError: if they are not. The text is the report; ``error.report`` is the
            report as a value.
        InvalidInputError: if an argument cannot be used.

    Example:
        >>> import jaxcheck, optax
        >>> assert_update_correct(optax.adam(1e-3), rule=jaxcheck.rules.adam(1e-3))
    """
    __tracebackhide__ = True
    report = check_update(
        tx,
        params,
        rule=rule,
        steps=steps,
        gradients=gradients,
        extra_args=extra_args,
        samples=samples,
        rtol=rtol,
        key=key,
    )
    if not report.passed:
        raise UpdateError(report)


def assert_train_step_correct(
    train_step: Callable[..., Any],
    state: Any,
    batches: Iterable[Any],
    *,
    loss_fn: Callable[..., Any],
    tx: Any,
    params_of: Callable[[Any], Any] | None = None,
    opt_state_of: Callable[[Any], Any] | None = None,
    has_aux: bool = False,
    steps: int = 4,
    rtol: float = 1e-6,
) -> None:
    """Assert that a train step applies the stated update of its gradient, once.

    Passes only if :func:`jaxcheck.check_train_step` answers ``CORRECT``; the arguments
    are the same, and described there.

    Raises:
        UpdateError: if it does something else. The text is the report;
            ``error.report`` is the report as a value.
        InvalidInputError: if an argument cannot be used.

    Example:
        >>> import jax, jax.numpy as jnp, optax
        >>> tx = optax.sgd(0.1)
        >>> loss = lambda w, x: jnp.sum((w - x) ** 2)
        >>> def step(state, x):
        ...     w, opt_state = state
        ...     updates, opt_state = tx.update(jax.grad(loss)(w, x), opt_state)
        ...     return w + updates, opt_state
        >>> w = jnp.zeros(2)
        >>> assert_train_step_correct(
        ...     step, (w, tx.init(w)), [jnp.ones(2)], loss_fn=loss, tx=tx)
    """
    __tracebackhide__ = True
    report = check_train_step(
        train_step,
        state,
        batches,
        loss_fn=loss_fn,
        tx=tx,
        params_of=params_of,
        opt_state_of=opt_state_of,
        has_aux=has_aux,
        steps=steps,
        rtol=rtol,
    )
    if not report.passed:
        raise UpdateError(report)


def assert_training_healthy(
    opt_state: Any,
    params: Any = None,
    *,
    stacked: Stacked = (),
    ignore: str | Sequence[str] = (),
    rules: Sequence[HealthRule] = HEALTH_RULES,
) -> None:
    """Assert that a monitor has seen nothing wrong with training.

    Passes only if :func:`jaxcheck.diagnose` answers ``CORRECT``; the arguments are the
    same, and described there.

    Raises:
        HealthError: if something is wrong, or no step was seen. The text is the
            report; ``error.report`` is the report as a value.
        InvalidInputError: if an argument cannot be used.

    Example:
        >>> import jax.numpy as jnp, jaxcheck, optax
        >>> params = jnp.ones(3)
        >>> tx = jaxcheck.monitor(optax.sgd(0.1))
        >>> _, state = tx.update(jnp.ones(3), tx.init(params), params)
        >>> assert_training_healthy(state, params)
    """
    __tracebackhide__ = True
    report = diagnose(opt_state, params, stacked=stacked, ignore=ignore, rules=rules)
    if not report.passed:
        raise HealthError(report)
