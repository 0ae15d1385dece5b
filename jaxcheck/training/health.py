"""The report of a diagnosis of training: the values only."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, ClassVar

from jaxcheck.errors import CheckFailedError, HealthError
from jaxcheck.gradients.options import Progress
from jaxcheck.reports.values import Report, Verdict

if TYPE_CHECKING:
    from jaxcheck.training.replay import ReplayReport


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class HealthFinding:
    """One thing that is wrong with training.

    Attributes:
        rule: name of the rule that found it, e.g. ``"exploding"``.
        message: a sentence with the numbers.
        leaf: path of the leaf, or of the layer of a stacked one, that shows it first or
            most; None for everything together.
        others: paths of the others that show it.
        step: the first step that shows it, from 0; None if that is not known.
        value: the number that decided.
        threshold: what it was held against.
        causes: what it usually comes from, the likeliest first.
        remedies: what to try, in this order.
    """

    rule: str
    message: str
    leaf: str | None = None
    others: tuple[str, ...] = ()
    step: int | None = None
    value: float | None = None
    threshold: float | None = None
    causes: tuple[str, ...] = ()
    remedies: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, repr=False, eq=False)
class HealthReport(Report):
    """The answer to "is training healthy?".

    Attributes:
        verdict: WRONG if a rule found something; CORRECT if none did; NOT_CHECKED
            before the first step.
        findings: what was found, in the order of the rules.
        rules: names of the rules that were asked.
        not_judged: what could not be judged, and why, a sentence each.
        steps: how many steps the monitor has seen.
        rows: how many leaves and layers it watches.
        gradient_norm: of everything, in the last step; NaN if elements of it were not
            finite, None before the first step.
        usual_norm: the usual one; None before there is one.
        update_ratio: ‖u‖/‖p‖ of the last update that was not zero; None without one.
    """

    error_class: ClassVar[type[CheckFailedError]] = HealthError

    verdict: Verdict
    findings: tuple[HealthFinding, ...] = ()
    rules: tuple[str, ...] = ()
    not_judged: tuple[str, ...] = ()
    steps: int = 0
    rows: int = 0
    gradient_norm: float | None = None
    usual_norm: float | None = None
    update_ratio: float | None = None

    def replay(
        self,
        loss_fn: Callable[..., Any],
        state: Any,
        batches: Iterable[Any],
        *,
        train_step: Callable[..., Any] | None = None,
        finding: HealthFinding | None = None,
        start: int | None = None,
        params_of: Callable[[Any], Any] | None = None,
        progress: Progress = None,
        **options: Any,
    ) -> ReplayReport:
        """Check the gradient where a finding was made: its leaf, step and batch.

        From a state that was kept or reloaded, training goes on to the step of the
        finding; there the gradient of its leaf is checked as by ``jaxcheck.check``, and
        if it is wrong, the equations that are to blame are named. Where NaN or infinity
        was found, all leaves are, and the line is named in which it is born.

        A finding that has no step is replayed at ``state`` itself.

        Args:
            loss_fn: ``loss_fn(params, batch)`` as for :func:`jaxcheck.check`.
            state: a training state at the step of the finding or before it.
            batches: those from that state on; a list or an iterator.
            train_step: ``train_step(state, batch)`` as for
                :func:`jaxcheck.check_along`; not needed if ``state`` is at the step.
            finding: one of ``findings``; by default the first that has a step.
            start: how many steps ``state`` has taken; by default what its monitor has
                counted.
            params_of: reads the parameters from a state; by default its attribute or
                key ``params`` or ``model``, or the first item of a tuple.
            progress: as for :func:`jaxcheck.check`.
            **options: further arguments of :func:`jaxcheck.check`.

        Returns:
            The report: ``check`` is that of the gradient there.

        Raises:
            InvalidInputError: an argument cannot be used, the state is past the
                finding, or the batches run out.

        Example:
            >>> import jax, jax.numpy as jnp, jaxcheck, optax
            >>> tx = jaxcheck.monitor(optax.sgd(0.1))
            >>> loss_fn = lambda w, x: jnp.sum(jnp.sqrt(w * x))
            >>> def train_step(state, x):
            ...     grads = jax.grad(loss_fn)(state[0], x)
            ...     updates, opt_state = tx.update(grads, state[1], state[0])
            ...     return optax.apply_updates(state[0], updates), opt_state
            >>> start = jnp.ones(2), tx.init(jnp.ones(2))
            >>> batches = [jnp.ones(2), jnp.array([1.0, 0.0])]
            >>> state = train_step(train_step(start, batches[0]), batches[1])
            >>> report = jaxcheck.diagnose(state[1], state[0])
            >>> again = report.replay(loss_fn, start, batches, train_step=train_step)
            >>> again.step, again.reproduced, again.check.culprits[0].primitive
            (1, True, 'sqrt')
        """
        from jaxcheck.training.replay import replay

        return replay(
            self,
            loss_fn,
            state,
            batches,
            train_step=train_step,
            finding=finding,
            start=start,
            params_of=params_of,
            progress=progress,
            options=options,
        )

    def __str__(self) -> str:
        from jaxcheck.training.health_text import as_text

        return as_text(self)

    def __repr__(self) -> str:
        from jaxcheck.training.health_text import as_line

        return as_line(self)
