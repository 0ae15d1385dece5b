"""Did the optimizer do what it says? The question for one transformation."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxcheck.errors import InvalidInputError
from jaxcheck.gradients.findings import package_versions
from jaxcheck.gradients.options import read_key, require_count
from jaxcheck.reports.values import Finding, Verdict
from jaxcheck.trees import is_inexact
from jaxcheck.updates.comparing import Mismatch
from jaxcheck.updates.fields import Field
from jaxcheck.updates.report import UpdateReport
from jaxcheck.updates.rules import BY_NAME, Rule
from jaxcheck.updates.runs import (
    Problem,
    Run,
    is_transformation,
    problem_in_float64,
    run_transformation,
)
from jaxcheck.updates.screen import Screen
from jaxcheck.updates.sequences import hard_gradients
from jaxcheck.updates.stages import Blame
from jaxcheck.updates.torch_optimizers import is_torch_optimizer, torch_reference
from jaxcheck.updates.verify import Held, Verification, fitted, sampled

# An optax transformation, or (gradients, params, state, step) -> (updates, state).
RuleLike = str | Rule | Callable[..., tuple[Any, Any]] | Any


def check_update(
    tx: Any,
    params: Any = None,
    *,
    rule: RuleLike | None = None,
    steps: int = 8,
    gradients: Sequence[Any] | None = None,
    extra_args: Mapping[str, Sequence[Any]] | None = None,
    samples: int | None = 16_384,
    rtol: float = 1e-9,
    key: Any = None,
) -> UpdateReport:
    r"""Check that an optimizer's updates and state are those of its stated rule.

    Both are run over the same gradients, which are hard on them: each coordinate has a
    scale of its own from 1e-8 to 1e4, signs change, some elements are zero, and so is
    one step. In float64 every element of every update :math:`u_t`, and of every field
    of the state that the rule knows too, must satisfy

    .. math:: |u_t - r_t| \le \text{rtol} \cdot \max_{s \le t} |r_s|,

    :math:`r` being the rule's; then the same is asked in the dtypes of ``params``, with
    a tolerance that rounding explains. Parameters are compared at no point: an error of
    a tenth of an update is lost in them. Where something is off, variants of the rule
    are tried until one matches.

    It establishes nothing about other settings of the optimizer, nor about what a
    train step makes of the updates.

    Args:
        tx: an ``optax.GradientTransformation``, or what has its two functions.
        params: a pytree of floating or complex arrays to run it on; by default a small
            tree with a matrix, a vector and a scalar in float32.
        rule: what it is held against: one of :mod:`jaxcheck.rules`, another
            transformation, a ``torch.optim`` optimizer (its class, and the settings of
            its parameter group), or a function ``(gradients, params, state, step) ->
            (updates, state)`` whose first state is None and whose steps count from 0.
            A name like ``"adamw"`` stands for that rule with its defaults and whatever
            learning rate ``tx`` turns out to have.
        steps: how many.
        gradients: the gradients to use, a pytree like ``params`` for each step.
        extra_args: what else ``tx.update`` needs, for each step: ``{"value": [...]}``.
        samples: most elements of a leaf that are compared, where the rule is one of
            ours that treats each element by itself: both ends of the leaf, and others
            at random; None for all. Whether updates are finite is asked of all.
        rtol: relative tolerance in float64.
        key: a ``jax.random`` key for the gradients; the default is
            ``jax.random.key(0)``.

    Returns:
        The report: verdict, first wrong step, leaf, field of the state, and the variant
        that does match.

    Raises:
        InvalidInputError: an argument cannot be used.

    Example:
        >>> import jaxcheck, optax
        >>> tx = optax.adamw(1e-3, b2=0.99)
        >>> jaxcheck.check_update(tx, rule=jaxcheck.rules.adamw(1e-3, b2=0.99)).passed
        True
        >>> jaxcheck.check_update(tx, rule=jaxcheck.rules.adamw(1e-3)).matches
        'with b2=0.99'
    """
    seed = read_key("check_update", key)
    if samples is not None:
        require_count("check_update", "samples", samples)
    problem = _problem(tx, params, steps, gradients, extra_args, seed)
    at_rest = _from_rest(tx, problem)
    if rule is None:
        return _screened(tx, problem, at_rest, seed)
    given = _rule_of(rule, tx, problem, samples, seed)
    problem = sampled(given, problem, samples, seed)
    verification = Verification(tx, given, problem, rtol)
    held = verification.in_float64()
    findings = list(_not_finite(held.run, problem))
    mismatch = held.comparison.first
    matches, blame, native = None, None, None
    if mismatch is not None:
        matches = verification.matching(held)
        blame = None if matches is not None else verification.blamed(held)
        findings.append(_wrong(mismatch, matches, blame, held.tolerance))
    elif not problem.x64 and not findings:
        native = verification.natively()
        findings += _not_finite(native.run, problem)
        mismatch = native.comparison.first
        if mismatch is not None and verification.rounding_explains(native):
            mismatch = None
        if mismatch is not None:
            findings.append(_rounded(mismatch, native))
    findings += at_rest
    field = None if mismatch is None else mismatch.field
    return UpdateReport(
        verdict=Verdict.WRONG if findings else Verdict.CORRECT,
        first_wrong_step=None if mismatch is None else mismatch.step,
        leaf=None if mismatch is None else mismatch.leaf,
        state_field=None if field is None else field.name,
        stage=_stage(field) if blame is None else blame.stage,
        relative_error=held.comparison.error,
        tolerance=held.tolerance,
        native_error=None if native is None else native.comparison.error,
        native_tolerance=None if native is None else native.tolerance,
        matches=matches,
        findings=tuple(findings),
        rule=_text_of(given),
        compared=held.comparison.compared,
        not_compared=held.comparison.left,
        **_circumstances(problem, seed),
    )


def _screened(
    tx: Any, problem: Problem, at_rest: Sequence[Finding], seed: Sequence[int]
) -> UpdateReport:
    wide = problem_in_float64(problem)
    screened = Screen(
        tx, wide.params, lambda step: dict(wide.extra[step % len(wide.extra)]), seed
    ).screen()
    findings = [*screened.findings, *at_rest]
    return UpdateReport(
        verdict=Verdict.WRONG if findings else Verdict.CORRECT,
        properties=tuple(screened.properties),
        findings=tuple(findings),
        **_circumstances(problem, seed),
    )


def _circumstances(problem: Problem, seed: Sequence[int]) -> dict[str, Any]:
    return {
        "steps": len(problem.gradients),
        "elements": sum(map(math.prod, problem.shapes.values())),
        "elements_compared": sum(
            len(problem.sample[path]) if path in problem.sample else math.prod(shape)
            for path, shape in problem.shapes.items()
        ),
        "dtypes": tuple(
            sorted({str(x.dtype) for x in jax.tree.leaves(problem.params)})
        ),
        "key_data": tuple(seed),
        "versions": package_versions(),
    }


# ---- what is asked


def _problem(
    tx: Any,
    params: Any,
    steps: int,
    gradients: Sequence[Any] | None,
    extra_args: Mapping[str, Sequence[Any]] | None,
    seed: Sequence[int],
) -> Problem:
    if not is_transformation(tx):
        raise InvalidInputError(
            "`check_update(tx=...)` must have functions `init` and `update`, like an "
            f"optax.GradientTransformation; got {type(tx).__name__}."
        )
    require_count("check_update", "steps", steps)
    params = _default() if params is None else jax.tree.map(jnp.asarray, params)
    leaves = jax.tree.leaves(params)
    if not leaves or not all(is_inexact(x.dtype) and x.size for x in leaves):
        raise InvalidInputError(
            "`check_update(params=...)` must be a pytree of non-empty floating or "
            f"complex arrays; got {[f'{x.dtype}{list(x.shape)}' for x in leaves]}."
        )
    given = hard_gradients(params, steps, seed) if gradients is None else gradients
    _require_gradients(given, params)
    extra = [
        {name: _of_step(name, values, k, len(given)) for name, values in items}
        for items in [list((extra_args or {}).items())]
        for k in range(len(given))
    ]
    wide = any(x.dtype in (jnp.float64, jnp.complex128) for x in leaves)
    return Problem(params, given, extra, x64=wide)


def _of_step(name: str, values: Sequence[Any], step: int, steps: int) -> Any:
    if callable(values):
        return values
    if len(values) < steps:
        raise InvalidInputError(
            f"`check_update(extra_args={{{name!r}: ...}})` must have a value for each "
            f"of the {steps} steps; got {len(values)}."
        )
    return values[step]


def _default() -> Any:
    rng = np.random.default_rng(0)
    shapes = {"bias": (6,), "kernel": (8, 6), "scale": ()}
    return {
        name: jnp.asarray(rng.normal(size=shape), jnp.float32)
        for name, shape in shapes.items()
    }


def _require_gradients(gradients: Sequence[Any], params: Any) -> None:
    wanted = [jnp.shape(x) for x in jax.tree.leaves(params)]
    for step, gradient in enumerate(gradients):
        got = [jnp.shape(x) for x in jax.tree.leaves(gradient)]
        if jax.tree.structure(gradient) != jax.tree.structure(params) or got != wanted:
            raise InvalidInputError(
                f"`check_update(gradients=...)` must have the structure and the shapes "
                f"of `params` in every step: {wanted}; step {step} has {got}."
            )


def _rule_of(
    rule: Any, tx: Any, problem: Problem, samples: int | None, seed: Any
) -> Any:
    if isinstance(rule, str):
        if rule not in BY_NAME:
            raise InvalidInputError(
                f"`check_update(rule={rule!r})` is not known; use one of "
                f"{', '.join(sorted(BY_NAME))}."
            )
        return fitted(BY_NAME[rule], tx, problem, samples, seed)
    if is_torch_optimizer(rule):
        return torch_reference(rule)
    if isinstance(rule, Rule) or is_transformation(rule) or callable(rule):
        return rule
    raise InvalidInputError(
        "`check_update(rule=...)` must be a rule, its name, a transformation or a "
        f"function; got {type(rule).__name__}."
    )


def _text_of(rule: Any) -> str:
    if isinstance(rule, Rule):
        return repr(rule)
    return getattr(rule, "__name__", type(rule).__name__)


# ---- what was found


def _not_finite(run: Run, problem: Problem) -> list[Finding]:
    """The first update that is NaN or infinite although its gradient is finite."""
    for step, (moment, gradient) in enumerate(
        zip(run.moments, problem.gradients, strict=True)
    ):
        if not all(np.isfinite(x).all() for x in jax.tree.leaves(gradient)):
            continue
        for leaf, bad in moment.not_finite.items():
            if bad:
                size = math.prod(problem.shapes[leaf])
                message = (
                    f"in step {step}, {bad:,} of {size:,} elements of the update of "
                    f"{leaf or 'the leaf'} are NaN or infinite; its gradient is finite."
                )
                return [Finding(kind="nan_update", leaf=leaf, message=message)]
    return []


def _from_rest(tx: Any, problem: Problem) -> list[Finding]:
    """Whether it survives that the first gradients are zero, in the dtypes it has."""
    zeros = jax.tree.map(np.zeros_like, problem.gradients[0])
    gradients = [zeros, *problem.gradients[:1]]
    resting = problem._replace(gradients=gradients, extra=[problem.extra[0]] * 2)
    found = _not_finite(run_transformation(tx, resting), resting)
    return [
        dataclasses.replace(
            finding, message=f"where the first gradient is all zeros: {finding.message}"
        )
        for finding in found
    ]


def _wrong(
    mismatch: Mismatch, matches: str | None, blame: Blame | None, tolerance: float
) -> Finding:
    message = f"{_told(mismatch)}; {tolerance:.0e} would be rounding."
    if matches is not None:
        message += f" It matches the rule {matches}."
    if blame is not None:
        message += f" {blame.text[0].upper()}{blame.text[1:]}"
    return Finding(kind="wrong_update", leaf=mismatch.leaf, message=message)


def _rounded(mismatch: Mismatch, native: Held) -> Finding:
    message = (
        f"in float64 the two agree; in the parameters' own dtypes {_told(mismatch)}, "
        f"more than the {native.tolerance:.0e} that rounding explains."
    )
    return Finding(kind="precision_loss", leaf=mismatch.leaf, message=message)


def _stage(field: Field | None) -> str | None:
    return None if field is None else f"{field.stage} {field.kind}".strip()


def _told(mismatch: Mismatch) -> str:
    index = ", ".join(map(str, mismatch.at))
    place = f"{mismatch.leaf or ''}[{index}]" if index else mismatch.leaf or "the leaf"
    what = "the update"
    if mismatch.field is not None:
        what = f"{mismatch.field.name} of the state of {_stage(mismatch.field)}"
    return (
        f"in step {mismatch.step}, {what} at {place} is {mismatch.got:.6g}, the rule "
        f"gives {mismatch.wanted:.6g} (relative error {mismatch.error:.1e})"
    )
