"""Did the optimizer do what it says? The question for one transformation."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax

from jaxcheck.gradients.findings import package_versions
from jaxcheck.gradients.options import read_key, require_count
from jaxcheck.reports.values import Finding, Verdict
from jaxcheck.updates.inputs import Asked, asked, rule_of, text_of
from jaxcheck.updates.judging import (
    Judged,
    from_rest,
    judged,
    judged_noisy,
    judged_unsound,
)
from jaxcheck.updates.noise import WithNoise, is_noisy
from jaxcheck.updates.noise_text import rows
from jaxcheck.updates.nonfinite import unsound
from jaxcheck.updates.report import UpdateReport
from jaxcheck.updates.rules import Rule
from jaxcheck.updates.runs import Problem, problem_in_float64, reference_of
from jaxcheck.updates.screen import Screen
from jaxcheck.updates.torch_optimizers import is_torch_optimizer
from jaxcheck.updates.verify import Verification, sampled

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
    samples: int | None = 4_096,
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
    a tolerance that rounding explains. Where the rule survives NaN or infinity in a
    gradient, so must the transformation, and as the rule does. Parameters are compared
    at no point: an error of a tenth of an update is lost in them. Where something is
    off, variants of the rule are tried until one matches.

    Of a rule with noise, such as ``rules.noisy_sgd``, the mean is compared so, after
    the noise has been taken off, and the noise is tested against its law, at the cost
    of some more steps.

    It establishes nothing about other settings of the optimizer, nor about what a
    train step makes of the updates.

    Args:
        tx: an ``optax.GradientTransformation``, or what has its two functions.
        params: a pytree of floating or complex arrays to run it on; by default a small
            tree with a matrix, a vector and a scalar in float32. Other leaves are
            carried along if ``tx`` takes them, with a gradient of dtype float0.
        rule: what it is held against: one of :mod:`jaxcheck.rules`, another
            transformation, a ``torch.optim`` optimizer (its class, and the settings of
            its parameter group), or a function ``(gradients, params, state, step) ->
            (updates, state)`` whose first state is None and whose steps count from 0.
            A name like ``"adamw"`` stands for that rule with its defaults and whatever
            learning rate ``tx`` turns out to have.
        steps: how many.
        gradients: the gradients to use, a pytree like ``params`` for each step; for a
            rule that takes the gradient of each example, with a first axis of these.
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
    given = asked(tx, params, steps, gradients, extra_args, seed, rule)
    tx, problem = given.tx, given.problem
    if rule is None:
        return _screened(given, from_rest(tx, problem), seed)
    meant = rule_of(rule, given, samples, seed)
    problem = sampled(meant, problem, samples, seed)
    at_rest = from_rest(tx, problem)
    found, tried = _held(tx, meant, problem, rtol, torch=is_torch_optimizer(rule))
    findings = [*found.findings, *at_rest]
    held, native, mismatch = found.held, found.native, found.mismatch
    field = None if mismatch is None else mismatch.field
    return UpdateReport(
        verdict=Verdict.WRONG if findings else Verdict.CORRECT,
        first_wrong_step=None if mismatch is None else mismatch.step,
        leaf=None if mismatch is None else mismatch.leaf,
        state_field=None if field is None else field.name,
        stage=found.stage,
        relative_error=held.comparison.error,
        tolerance=held.tolerance,
        native_error=None if native is None else native.comparison.error,
        native_tolerance=None if native is None else native.tolerance,
        matches=found.matches,
        findings=tuple(findings),
        rule=text_of(meant),
        **tried,
        compared=held.comparison.compared,
        not_compared=held.comparison.left,
        **_circumstances(given._replace(problem=problem), seed),
    )


def _held(
    tx: Any, meant: Any, problem: Problem, rtol: float, *, torch: bool
) -> tuple[Judged, dict[str, Any]]:
    """What was found, and fields of the report that say what else was tried."""
    if is_noisy(meant, problem):
        noisy = WithNoise(tx, meant, problem, rtol)
        return judged_noisy(noisy), {"properties": tuple(rows(noisy.heard))}
    found = judged(Verification(tx, meant, problem, rtol))
    # what torch makes of a NaN is an accident, and no promise
    if found.findings or torch:
        return found, {}
    survived = unsound(reference_of(meant), problem)
    if survived is None:
        return found, {}
    verification = Verification(tx, meant, survived.problem, rtol)
    bad = judged_unsound(verification, survived)
    return bad if bad.findings else found, {"survived": survived.kinds}


def _screened(
    given: Asked, at_rest: Sequence[Finding], seed: Sequence[int]
) -> UpdateReport:
    wide = problem_in_float64(given.problem)
    screened = Screen(
        given.tx,
        wide.params,
        lambda step: dict(wide.extra[step % len(wide.extra)]),
        seed,
    ).screen()
    findings = [*screened.findings, *at_rest]
    return UpdateReport(
        verdict=Verdict.WRONG if findings else Verdict.CORRECT,
        properties=tuple(screened.properties),
        findings=tuple(findings),
        **_circumstances(given, seed),
    )


def _circumstances(given: Asked, seed: Sequence[int]) -> dict[str, Any]:
    problem = given.problem
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
        "carried": tuple(f"{k} {dtype}" for k, dtype in given.others.leaves.items()),
        "key_data": tuple(seed),
        "versions": package_versions(),
    }
