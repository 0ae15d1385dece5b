"""Is my gradient right, also later on in training?"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any, ClassVar

from jaxcheck.checks.gradient import check
from jaxcheck.errors import CheckFailedError, GradientError, InvalidInputError
from jaxcheck.gradients.options import Progress, require_function
from jaxcheck.gradients.report import GradientReport
from jaxcheck.reports.numbers import counted, duration
from jaxcheck.reports.progress import progress_for
from jaxcheck.reports.values import Report, Verdict
from jaxcheck.states import batches_of, next_batch, params_reader, stepped

_RANKING = (Verdict.WRONG, Verdict.INCONCLUSIVE, Verdict.CORRECT)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """The check of one moment of training.

    Attributes:
        step: number of training steps that had been taken.
        report: the check at the parameters that they reached.
    """

    step: int
    report: GradientReport


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, repr=False, eq=False)
class AlongReport(Report):
    """The answer to "is my gradient right along training?".

    Attributes:
        verdict: the worst of the stages.
        stages: one report for each moment.
        seconds: wall time, training included.
    """

    error_class: ClassVar[type[CheckFailedError]] = GradientError

    verdict: Verdict
    stages: tuple[Stage, ...]
    seconds: float = 0.0

    def __str__(self) -> str:
        parts = [f"After {counted(s.step, 'step')}: {s.report}" for s in self.stages]
        return "\n\n".join(["jaxcheck: " + self._headline(), *parts])

    def __repr__(self) -> str:
        return f"<AlongReport: {self._headline()}>"

    def _headline(self) -> str:
        stages = counted(len(self.stages), "stage")
        if self.passed:
            return f"the gradient is correct at all {stages} of training"
        bad = [s.step for s in self.stages if s.report.verdict is self.verdict]
        listing = ", ".join(map(str, bad))
        return (
            f"the gradient is {self.verdict.value} at step {listing}, of {stages}, "
            f"{duration(self.seconds)}"
        )


def check_along(
    train_step: Callable[..., Any],
    state: Any,
    batches: Iterable[Any],
    *,
    at: Sequence[int] = (0, 100, 500),
    loss_fn: Callable[..., Any],
    params_of: Callable[[Any], Any] | None = None,
    progress: Progress = None,
    **options: Any,
) -> AlongReport:
    """Check the gradient at the start of training, later, and at the end.

    Some errors appear only once the weights have grown, or once units have died: a
    check at the initialization does not see them. The training is the user's own; the
    parameters that it reaches are checked, each time with the batch that comes next.

    Args:
        train_step: ``train_step(state, batch)`` returns the new state, or a tuple that
            begins with it; or None, if it updates ``state`` in place (an nnx module).
        state: the state before training.
        batches: a list or tuple, which is gone through again and again, or an iterator.
        at: numbers of steps after which to check; 0 is before the first.
        loss_fn: ``loss_fn(params, batch)`` as for :func:`jaxcheck.check`.
        params_of: reads the parameters from a state; by default its attribute or key
            ``params`` or ``model``, or the first item of a tuple.
        progress: None shows progress of long runs on a terminal, True always, False
            never; or a function of (done, total) training steps.
        **options: further arguments of :func:`jaxcheck.check`.

    Returns:
        The report: ``report.stages`` holds one report for each moment.

    Raises:
        InvalidInputError: an argument cannot be used, or the batches run out.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> loss = lambda w, x: jnp.sum((w * x - 1.0) ** 2)
        >>> step = lambda w, x: w - 0.1 * jax.grad(loss)(w, x)
        >>> report = check_along(
        ...     step, jnp.zeros(2), [jnp.ones(2)], at=(0, 5), loss_fn=loss,
        ...     params_of=lambda w: w)
        >>> [(s.step, s.report.passed) for s in report.stages]
        [(0, True), (5, True)]
    """
    started = time.perf_counter()
    require_function("check_along", "train_step", train_step)
    require_function("check_along", "loss_fn", loss_fn)
    moments = _moments(at)
    accessor = params_of or params_reader("check_along", state)
    require_function("check_along", "params_of", accessor)
    stages: list[Stage] = []
    coming = batches_of("check_along", batches)
    with progress_for(progress, moments[-1], "training between checks") as advance:
        for step in range(moments[-1] + 1):
            batch = next_batch("check_along", coming, step, moments[-1] + 1)
            if step in moments:
                report = check(
                    loss_fn, accessor(state), batch, progress=False, **options
                )
                stages.append(Stage(step=step, report=report))
            if step < moments[-1]:
                state = stepped("check_along", train_step, state, batch)
                advance(1)
    verdicts = [stage.report.verdict for stage in stages]
    return AlongReport(
        verdict=min(verdicts, key=_RANKING.index),
        stages=tuple(stages),
        seconds=time.perf_counter() - started,
    )


def _moments(at: Any) -> tuple[int, ...]:
    moments = (at,) if isinstance(at, int) else tuple(at)
    if not moments or any(not isinstance(k, int) or k < 0 for k in moments):
        raise InvalidInputError(
            f"`check_along(at={at!r})` must be numbers of steps, none negative, e.g. "
            "(0, 100, 500)."
        )
    return tuple(sorted(set(moments)))
