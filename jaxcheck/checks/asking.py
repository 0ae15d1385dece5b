"""What every question about a loss begins with: read the arguments, plan, trace."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from jaxcheck.checks.spelling import spelled
from jaxcheck.gradients.options import Options, Progress, read_options, require_function
from jaxcheck.gradients.plan import Plan, make_plan
from jaxcheck.jaxprs.trace import TracedLoss, trace_loss
from jaxcheck.trees import partition, require_differentiable


class Asked(NamedTuple):
    """A question that can be answered: a traced loss, and how to compare it."""

    traced: TracedLoss
    plan: Plan
    options: Options
    call: str


def ask(
    caller: Callable[..., Any],
    loss_fn: Callable[..., Any],
    params: Any,
    args: Sequence[Any],
    *,
    has_aux: bool,
    key: Any,
    progress: Progress,
    given: Mapping[str, Any],
) -> Asked:
    """Read the arguments of ``caller``, the public function, and trace the loss.

    Args:
        caller: for the messages, and for the call in the report.
        loss_fn: the loss, like all that follows as in :func:`jaxcheck.check`.
        params: the parameters.
        args: further arguments of the loss.
        has_aux: whether the loss returns a pair.
        key: a random key, or None.
        progress: how progress is shown.
        given: the other options, by name.

    Raises:
        InvalidInputError: an argument cannot be used.
    """
    options = read_options(caller.__name__, key=key, progress=progress, **given)
    require_function(caller.__name__, "loss_fn", loss_fn)
    parts = partition(params)
    require_differentiable(parts, "params")
    plan = make_plan(parts.differentiable, options)
    traced = trace_loss(loss_fn, parts, args, has_aux=has_aux)
    words = ["params", *(["*args"] if args else [])]
    call = spelled(caller, loss_fn, "loss_fn", words, {"has_aux": has_aux, **given})
    return Asked(traced, plan, options, call)
