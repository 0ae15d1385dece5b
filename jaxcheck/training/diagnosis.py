"""Is training healthy? What a monitor has seen, held against rules."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Any

from jaxcheck.errors import InvalidInputError
from jaxcheck.reports.values import Verdict
from jaxcheck.training.health import HealthReport
from jaxcheck.training.history import History
from jaxcheck.training.leaves import Stacked
from jaxcheck.training.seen import FEWEST, Seen, seen_of
from jaxcheck.training.surroundings import blinded
from jaxcheck.training.symptoms import HEALTH_RULES, Rule, name_of


def diagnose(
    opt_state: Any,
    params: Any = None,
    *,
    stacked: Stacked = (),
    ignore: str | Sequence[str] = (),
    rules: Sequence[Rule] = HEALTH_RULES,
) -> HealthReport:
    r"""Say whether training is healthy, from the state of a ``jaxcheck.monitor``.

    Called on the host, whenever it is convenient: the state knows the first step and
    the leaf of what happened long before. Each rule yields findings with the number
    that decided, its threshold, the step, likely causes and what to try. Thresholds are
    free of scale where they can be: a spike is one beside the usual norm of this model.

    It establishes nothing about steps that the monitor did not see, and judges sizes,
    not whether gradients are right.

    Args:
        opt_state: a pytree that holds the state of one monitor: the state of the
            optimizer, a ``TrainState``, ...; or a ``jaxcheck.History``, which knows
            all steps, and its parameters.
        params: the parameters, or a tree with their structure, shapes and dtypes; None
            with a history.
        stacked: as it was given to ``monitor``.
        ignore: leaves that are not judged, e.g. because they are frozen: patterns of
            their paths as for ``stacked``.
        rules: what is asked; by default ``jaxcheck.HEALTH_RULES``. A rule is a function
            of ``jaxcheck.training.seen.Seen`` that yields ``HealthFinding``.

    Returns:
        The report: CORRECT if no rule found anything.

    Raises:
        InvalidInputError: an argument cannot be used.

    Example:
        >>> import jax.numpy as jnp, jaxcheck, optax
        >>> params = {"b": jnp.zeros(2), "w": jnp.ones(3)}
        >>> tx = jaxcheck.monitor(optax.sgd(0.1))
        >>> grads = {"b": jnp.ones(2), "w": jnp.array([1.0, jnp.nan, 1.0])}
        >>> _, state = tx.update(grads, tx.init(params), params)
        >>> finding = jaxcheck.diagnose(state, params).findings[0]
        >>> finding.rule, finding.leaf, finding.step
        ('nonfinite_gradient', "['w']", 0)
    """
    if isinstance(opt_state, History):
        _require_known_by_history(params, stacked)
        seen, opt_state = opt_state.seen(), opt_state.surroundings()
    else:
        seen = seen_of("diagnose", opt_state, params, stacked)
    steps, ignored = int(seen.state.step), seen.matching("diagnose", ignore)
    judged = seen.without(ignored)
    findings = ()
    if steps:
        asked = itertools.chain.from_iterable(rule(judged) for rule in rules)
        findings = (*asked, *blinded(opt_state, judged))
    verdict = Verdict.WRONG if findings else Verdict.CORRECT
    return HealthReport(
        verdict=verdict if steps else Verdict.NOT_CHECKED,
        findings=findings,
        rules=(*map(name_of, rules), "placement"),
        not_judged=tuple(_not_judged(judged, [seen.names[k] for k in ignored])),
        steps=steps,
        rows=len(seen.names),
        gradient_norm=math.nan
        if seen.state.nonfinite[0, -1]
        else _known(seen.state.norm[0, -1]),
        usual_norm=_known(seen.usual(0)[-1]),
        update_ratio=_known(seen.state.update_ratio[-1]),
    )


def _require_known_by_history(params: Any, stacked: Stacked) -> None:
    if params is not None or stacked:
        raise InvalidInputError(
            "`diagnose(opt_state=...)` is a History, which has its own `params` and "
            "`stacked`; leave them out."
        )


def _known(value: Any) -> float | None:
    return float(value) if value >= 0 else None


def _not_judged(seen: Seen, ignored: Sequence[str]) -> Iterator[str]:
    gradient, update, param = seen.state.measured.tolist()
    if ignored:
        yield f"{', '.join(ignored)}, as was asked for."
    if gradient < FEWEST:
        yield f"what is usual, which {FEWEST} steps tell; there were {gradient}."
    if gradient and not update:
        yield "updates: the monitor stands in a chain and wraps no optimizer."
    if gradient and not param:
        yield "parameters, which `update` was not given."
    if seen.state.clipped < 0:
        yield "clipping, of which the monitor does not know."
