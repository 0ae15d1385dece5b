"""The arguments of ``check_update``, read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxcheck.errors import InvalidInputError
from jaxcheck.gradients.options import require_count
from jaxcheck.trees import require_finite
from jaxcheck.updates.carried import Carried, OfFloating, carried
from jaxcheck.updates.rules import BY_NAME, Rule
from jaxcheck.updates.rules.rule import Noisy
from jaxcheck.updates.runs import Problem, is_transformation
from jaxcheck.updates.sequences import hard_gradients
from jaxcheck.updates.torch_optimizers import is_torch_optimizer, torch_reference
from jaxcheck.updates.verify import fitted

_SHAPES = {"bias": (6,), "kernel": (8, 6), "scale": ()}
# Enough numbers for the law of noise, and two leaves of one shape.
_NOISY_SHAPES = {"bias": (64,), "kernel": (64, 32), "output": (64, 32), "scale": ()}
# In the gradient of a rule that is given that of each.
_EXAMPLES = 6


class Asked(NamedTuple):
    """What is asked.

    Attributes:
        tx: the transformation, as one of floating leaves.
        problem: what it is run on, floating leaves alone.
        others: leaves that are not floating.
    """

    tx: Any
    problem: Problem
    others: Carried


def asked(
    tx: Any,
    params: Any,
    steps: int,
    gradients: Sequence[Any] | None,
    extra_args: Mapping[str, Sequence[Any]] | None,
    seed: Sequence[int],
    rule: Any,
) -> Asked:
    """Read the arguments of ``check_update``.

    Raises:
        InvalidInputError: one cannot be used.
    """
    if not is_transformation(tx):
        raise InvalidInputError(
            "`check_update(tx=...)` must have functions `init` and `update`, like an "
            f"optax.GradientTransformation; got {type(tx).__name__}."
        )
    require_count("check_update", "steps", steps)
    noisy = (
        rule.form if isinstance(rule, Rule) and isinstance(rule.form, Noisy) else None
    )
    if params is None:
        params = _default(_SHAPES if noisy is None else _NOISY_SHAPES)
    params = jax.tree.map(jnp.asarray, params)
    examples = noisy is not None and noisy.per_example
    others = carried(params)
    floating = others.rest(params)
    leaves = jax.tree.leaves(floating)
    if not leaves or not all(x.size for x in leaves):
        kinds = [f"{x.dtype}{list(x.shape)}" for x in jax.tree.leaves(params)]
        raise InvalidInputError(
            "`check_update(params=...)` must be a pytree of non-empty floating or "
            f"complex arrays; got {kinds}."
        )
    require_finite("check_update", "params", floating)
    if gradients is None:
        given = hard_gradients(floating, steps, seed, _EXAMPLES if examples else None)
    else:
        _require_gradients(gradients, params, examples)
        given = [others.rest(gradient) for gradient in gradients]
    extra = [
        {name: _of_step(name, values, k, len(given)) for name, values in items}
        for items in [list((extra_args or {}).items())]
        for k in range(len(given))
    ]
    wide = any(x.dtype in (jnp.float64, jnp.complex128) for x in leaves)
    if others.leaves:
        tx = OfFloating(tx, others, "tx")
    return Asked(tx, Problem(floating, given, extra, x64=wide), others)


def _of_step(name: str, values: Sequence[Any], step: int, steps: int) -> Any:
    if callable(values):
        return values
    if len(values) < steps:
        raise InvalidInputError(
            f"`check_update(extra_args={{{name!r}: ...}})` must have a value for each "
            f"of the {steps} steps; got {len(values)}."
        )
    return values[step]


def _default(shapes: Mapping[str, tuple[int, ...]]) -> Any:
    rng = np.random.default_rng(0)
    return {
        name: jnp.asarray(rng.normal(size=shape), jnp.float32)
        for name, shape in shapes.items()
    }


def _require_gradients(gradients: Sequence[Any], params: Any, examples: bool) -> None:
    wanted = [jnp.shape(x) for x in jax.tree.leaves(params)]
    for step, gradient in enumerate(gradients):
        shapes = [jnp.shape(x) for x in jax.tree.leaves(gradient)]
        got = [shape[1:] for shape in shapes] if examples else shapes
        if jax.tree.structure(gradient) != jax.tree.structure(params) or got != wanted:
            more = ", after a first axis of examples," if examples else ""
            raise InvalidInputError(
                f"`check_update(gradients=...)` must have the structure and{more} the "
                f"shapes of `params` in every step: {wanted}; step {step} has {shapes}."
            )


def rule_of(rule: Any, given: Asked, samples: int | None, seed: Any) -> Any:
    """What the transformation is held against: a rule, another one or a function."""
    if isinstance(rule, str):
        if rule not in BY_NAME:
            raise InvalidInputError(
                f"`check_update(rule={rule!r})` is not known; use one of "
                f"{', '.join(sorted(BY_NAME))}."
            )
        return fitted(BY_NAME[rule], given.tx, given.problem, samples, seed)
    if is_torch_optimizer(rule):
        return torch_reference(rule)
    if is_transformation(rule) and given.others.leaves:
        return OfFloating(rule, given.others, "rule")
    if isinstance(rule, Rule) or is_transformation(rule) or callable(rule):
        return rule
    raise InvalidInputError(
        "`check_update(rule=...)` must be a rule, its name, a transformation or a "
        f"function; got {type(rule).__name__}."
    )


def text_of(rule: Any) -> str:
    """It, in a report."""
    if isinstance(rule, Rule):
        return repr(rule)
    return getattr(rule, "__name__", type(rule).__name__)
