"""Which stage of a chain is to blame.

``optax.chain`` keeps the functions of its stages; they are read from there. Where what
a chain is held against has as many stages, each is held against its own, on what the
stages before it really gave. Else stages are left out, one at a time: one without which
the rest is right is one too many.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxcheck.jaxprs import compat
from jaxcheck.trees import by_path
from jaxcheck.updates.comparing import Comparison
from jaxcheck.updates.rules.rule import Rule
from jaxcheck.updates.runs import (
    Moment,
    Problem,
    Reference,
    Run,
    is_transformation,
    jitted,
    reference_of,
    run_reference,
    run_transformation,
)

# Of two runs: what is off.
Compare = Callable[[Sequence[Moment], Sequence[Moment]], Comparison]


class Stage(NamedTuple):
    """One stage of a chain.

    Attributes:
        name: its place and what made it, e.g. ``"[1] scale_by_adam"``.
        tx: the transformation.
    """

    name: str
    tx: Any


class Blame(NamedTuple):
    """A stage, and what is said of it."""

    stage: str
    text: str


def stages_of(tx: Any) -> list[Stage]:
    """The stages of ``tx``, if it is an ``optax.chain``; else none.

    Example:
        >>> import optax
        >>> [stage.name for stage in stages_of(optax.adamw(1e-3))]
        ['[0] scale_by_adam', '[1] add_decayed_weights', '[2] scale']
    """
    inits, updates = (
        _closure(fn).get(name)
        for fn, name in ((tx.init, "init_fns"), (tx.update, "update_fns"))
    )
    if not isinstance(inits, tuple) or not isinstance(updates, tuple):
        return []
    optax: Any = sys.modules["optax"]
    return [
        Stage(
            f"[{k}] {made_by(pair[1])[0]}", optax.GradientTransformationExtraArgs(*pair)
        )
        for k, pair in enumerate(zip(inits, updates, strict=True))
    ]


def _closure(fn: Any) -> dict[str, Any]:
    return dict(inspect.getclosurevars(fn).nonlocals) if inspect.isfunction(fn) else {}


def made_by(update: Any) -> tuple[str, dict[str, Any]]:
    """The function that returned the transformation, and what it was given.

    Example:
        >>> import optax
        >>> made_by(optax.clip_by_global_norm(2.0).update)
        ('clip_by_global_norm', {'max_norm': 2.0})
    """
    known = _closure(update)
    inner = known.get("tx")
    name: str = getattr(update, "__qualname__", type(update).__name__)
    if name.startswith("with_extra_args_support.") and inner is not None:
        return made_by(inner.update)
    return name.split(".", 1)[0], known


def blamed(
    tx: Any, rule: Any, run: Run, problem: Problem, compare: Compare
) -> Blame | None:
    """The stage that is to blame, if one can be found.

    Args:
        tx: a transformation that is not what it should be.
        rule: what it is held against.
        run: of the transformation on ``problem``.
        problem: in float64.
        compare: of two runs, what is off.
    """
    stages = stages_of(tx)
    if len(stages) < 2:
        return None
    parts = _parts_of(rule)
    if len(parts) == len(stages) and not problem.sample:
        return _first_that_differs(stages, parts, run, problem, compare)
    return _one_too_many(stages, rule, problem, compare)


def _parts_of(rule: Any) -> list[Any]:
    if isinstance(rule, Rule):
        return list(rule.settings["rules"]) if rule.name == "chain" else []
    return [stage.tx for stage in stages_of(rule)] if is_transformation(rule) else []


def _first_that_differs(
    stages: Sequence[Stage],
    parts: Sequence[Any],
    run: Run,
    problem: Problem,
    compare: Compare,
) -> Blame | None:
    given = problem.gradients
    for stage, part in zip(stages, parts, strict=True):
        seen = problem._replace(gradients=given)
        out = _alone(stage.tx, run, seen)
        moments = [
            _moment(params, u) for params, u in zip(run.params, out, strict=True)
        ]
        wanted = [
            moment._replace(fields=[])
            for moment in run_reference(reference_of(part), run, seen)
        ]
        if compare(moments, wanted).updates is not None:
            text = f"the first stage that differs is {stage.name}."
            return Blame(stage.name, text)
        given = out
    return None


def _alone(tx: Any, run: Run, problem: Problem) -> list[Any]:
    """What one stage makes of the gradients of ``problem``."""
    update = jitted(tx, problem)
    with compat.x64(problem.x64):
        state = tx.init(jax.tree.map(jnp.asarray, problem.params))
        out: list[Any] = []
        for gradient, params, extra in zip(
            problem.gradients, run.params, problem.extra, strict=True
        ):
            updates, state = update(gradient, state, params, **extra)
            out.append(jax.tree.map(np.asarray, updates))
    return out


def _moment(params: Any, updates: Any) -> Moment:
    given, named = (
        {path: np.asarray(x) for path, x in by_path(tree).items()}
        for tree in (params, updates)
    )
    return Moment(given, named, [], {})


def _one_too_many(
    stages: Sequence[Stage], rule: Any, problem: Problem, compare: Compare
) -> Blame | None:
    optax: Any = sys.modules["optax"]
    reference: Reference = reference_of(rule)
    for k, stage in enumerate(stages):
        rest = optax.chain(*(s.tx for i, s in enumerate(stages) if i != k))
        run = run_transformation(rest, problem)
        if compare(run.moments, run_reference(reference, run, problem)).first is None:
            return Blame(stage.name, f"without stage {stage.name} it matches the rule.")
    return None
