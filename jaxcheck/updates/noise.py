"""The noise of a transformation against that of its rule.

Noise of one and the same key does not depend on the gradient. So it can be taken off:
what a transformation does less what it does, with the same state, at a zero gradient
and zero parameters is compared with the rule's mean as any update is. And it can be
looked at alone, at zero gradients: each update, less what the rule makes of the noise
so far, over what it makes of one standard deviation, has to be a standard normal draw.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxcheck.errors import InvalidInputError
from jaxcheck.trees import wide_on_host
from jaxcheck.updates.normality import (
    SAME,
    Draws,
    Tested,
    failed,
    independence,
    law,
)
from jaxcheck.updates.response import Response
from jaxcheck.updates.rules.rule import Noisy, Rule, acts_elementwise, of_all_leaves
from jaxcheck.updates.runs import Problem, Run, problem_in_float64, run_transformation
from jaxcheck.updates.sampling import Sample
from jaxcheck.updates.variants import Variant
from jaxcheck.updates.verify import Held, Verification

Array = Any

# Probability of calling right noise wrong: of all tests, at both precisions, together.
FALSE_ALARM = 1e-6
# That of not naming the variant that is right.
_MISSED = 1e-2
# What is said of noise that is used again, by the test that shows it.
REPEATED = {
    "between steps": "with the noise of steps {} the same",
    "between leaves": "with the same noise in {}",
    "between elements": "with the same noise along {}",
}
# Draws that are wanted. The standard deviation of all is known to 1% with these.
_DRAWS = 2**17
_STEPS = (64, 4096)
# Elements at either end of a leaf that are looked at.
_ENDS = 4096
_AFFINE = 1e-6
# Steps without which nothing can be said of their independence.
_FEWEST = 8


class Heard(NamedTuple):
    """The noise at one precision.

    Attributes:
        draws: by the path of the leaf, in standard deviations of the rule.
        tests: of them; where they are not independent, of that alone.
        asked: how many tests there were.
        size: of the largest update that is noise alone.
    """

    draws: Draws
    tests: list[Tested]
    asked: int
    size: float


class WithNoise(Verification):
    """Holds a transformation against a rule with noise."""

    def __init__(self, tx: Any, rule: Rule, problem: Problem, rtol: float) -> None:
        """Prepare; for the arguments see ``Verification``.

        Raises:
            InvalidInputError: the noise of that rule cannot be looked at.
        """
        self._noisy, self._form = tx, _form_of(rule)
        if any(jnp.iscomplexobj(x) for x in jax.tree.leaves(problem.params)):
            raise InvalidInputError(
                "`check_update(params=...)` must be real for a rule with noise."
            )
        self._quiet = _quiet(problem, self._form)
        self._runs = 1 if problem.x64 else 2
        self.heard = self._listened(problem_in_float64(self._quiet))
        loud = problem._replace(cancelled=self.heard.size)
        super().__init__(Response(tx), rule, loud, rtol)

    @functools.cached_property
    def heard_natively(self) -> Heard | None:
        """The noise in the parameters' own dtypes; None if that is float64."""
        return None if self._quiet.x64 else self._listened(self._quiet)

    def failures(self, heard: Heard) -> list[Tested]:
        """The tests that show that the noise is not the rule's."""
        return failed(heard.tests, FALSE_ALARM, self._runs * heard.asked)

    def repeated(self, bad: Sequence[Tested]) -> str | None:
        """What is drawn once and used again, if that is what the failed tests show.

        What is left without the repetitions has to be as it should.
        """
        same = [t for t in bad if t.about in REPEATED and t.value >= SAME]
        if not same:
            return None
        draws = self.heard.draws
        if same[0].about == "between steps":
            once = {path: x[:1] for path, x in draws.items()}
        else:
            again = {test.again for test in same}
            once = {path: x for path, x in draws.items() if path not in again}
        tests = law(once) if once else []
        if not tests or failed(tests, _MISSED, len(tests)):
            return None
        return REPEATED[same[0].about].format(same[0].where)

    def matching(self, held: Held) -> str | None:
        """The variant whose mean and whose noise match."""
        same = (v.text for v in self.fitting(held) if self._sounds_like(v))
        return next(same, None)

    def _listened(self, problem: Problem) -> Heard:
        run = run_transformation(self._noisy, problem)
        if problem.x64:
            self._run = run
        draws = draws_of(self._form, run, self._quiet)
        heard = len(next(iter(draws.values()), ()))
        if heard < _FEWEST:
            raise InvalidInputError(
                "`check_update(rule=...)` must let noise through to the updates in "
                f"{_FEWEST} steps or more; it does in {heard}. Check with a learning "
                "rate that is not zero."
            )
        sizes = [np.max(np.abs(x)) for m in run.moments for x in m.updates.values()]
        tests, alone = self._tests(draws)
        count = len(tests)
        if failed(alone, FALSE_ALARM, self._runs * count):
            tests = alone
        return Heard(draws, tests, count, float(max(sizes)))

    def _tests(self, draws: Draws) -> tuple[list[Tested], list[Tested]]:
        """All, and those of independence alone."""
        front = _ENDS if self._quiet.sample else max(x.shape[1] for x in draws.values())
        alone = independence(draws, self._quiet.shapes, front)
        return alone + law(draws), alone

    def _sounds_like(self, variant: Variant) -> bool:
        if isinstance(variant.reference, Rule):
            form = _form_of(variant.reference)
            draws = draws_of(form, self._run, self._quiet)
            if not draws:
                return True  # neither has any noise
        elif variant.factor != 1.0:
            draws = {k: x / variant.factor for k, x in self.heard.draws.items()}
        else:
            return False  # of the step before, say: what its noise is, is not known
        tests, _ = self._tests(draws)
        return not failed(tests, _MISSED, len(tests))


def is_noisy(rule: Any, problem: Problem) -> bool:
    """Whether it is a rule with noise, and there is any."""
    if not (isinstance(rule, Rule) and isinstance(rule.form, Noisy)):
        return False
    return _deviation(rule.form, problem, 1) != 0.0


def _form_of(rule: Rule) -> Noisy:
    assert isinstance(rule.form, Noisy)  # its variants have noise too
    return rule.form


def _deviation(form: Noisy, problem: Problem, t: int) -> float:
    leaf = jax.tree.leaves(problem.gradients[0])[0]
    nothing = np.zeros((np.shape(leaf)[0], 1) if form.per_example else 1)
    return form.moments([nothing], t)[1]


def _quiet(problem: Problem, form: Noisy) -> Problem:
    """The problem with gradients of zero, and as many steps as are needed."""
    sizes = {path: math.prod(shape) for path, shape in problem.shapes.items()}
    sample: Sample = {}
    if acts_elementwise(form.then):
        sample = {
            path: np.r_[:_ENDS, size - _ENDS : size]
            for path, size in sizes.items()
            if size > 2 * _ENDS
        }
    taken = sum(min(size, 2 * _ENDS) for size in sizes.values())
    steps = min(max(-(-_DRAWS // taken), _STEPS[0]), _STEPS[1])
    zeros = jax.tree.map(np.zeros_like, problem.gradients[0])
    extra = [problem.extra[t % len(problem.extra)] for t in range(steps)]
    return problem._replace(gradients=[zeros] * steps, extra=extra, sample=sample)


def draws_of(form: Noisy, run: Run, problem: Problem) -> Draws:
    """What was drawn in each step, if the rule is right.

    Args:
        form: of the rule.
        run: of the transformation at gradients of zero.
        problem: what it ran on.

    Returns:
        Arrays with a row for each step; nothing where there is noise in none, neither
        of the rule nor of the transformation.

    Raises:
        InvalidInputError: what follows the noise is not affine.
    """
    tree = of_all_leaves(form.then, problem.params)
    state = tree.init([wide_on_host(x) for x in jax.tree.leaves(run.params[0])])
    drawn: list[list[Array]] = []
    for t, moment in enumerate(run.moments, 1):
        p = [wide_on_host(x) for x in jax.tree.leaves(run.params[t - 1])]
        extra, deviation = problem.extra[t - 1], _deviation(form, problem, t)
        zeros = [np.zeros_like(x) for x in p]
        still, one, two = (
            tree.update([x + k * deviation for x in zeros], p, state, t, **extra)[0]
            for k in range(3)
        )
        _require_affine(_minus(two, still), _minus(one, still))
        scale = _minus(one, still)
        if form.outside:
            scale = [x + deviation for x in zeros]
        rest = _minus([wide_on_host(x) for x in moment.updates.values()], still)
        if not any(x.any() for x in (*scale, *rest)):
            if state:
                break  # what a state has drawn in is not seen, as in a warm-up from 0
            continue
        with np.errstate(divide="ignore", invalid="ignore"):
            draw = [x / s for x, s in zip(rest, scale, strict=True)]
        drawn.append(draw)
        inside = zeros if form.outside else [deviation * x for x in draw]
        _, state = tree.update(inside, p, state, t, **extra)
    if not drawn:
        return {}
    leaves = zip(*drawn, strict=True)
    return {
        path: np.stack([x.ravel() for x in steps])
        for path, steps in zip(problem.shapes, leaves, strict=True)
    }


def _minus(one: Sequence[Array], other: Sequence[Array]) -> list[Array]:
    return [x - y for x, y in zip(one, other, strict=True)]


def _require_affine(double: Sequence[Array], single: Sequence[Array]) -> None:
    for two, one in zip(double, single, strict=True):
        if not np.allclose(two, 2 * one, rtol=_AFFINE, atol=0.0):
            raise InvalidInputError(
                "`check_update(rule=...)` must do to a gradient with noise what is "
                "affine, such as momentum and a learning rate; twice the noise gives "
                "another update. Check what follows the noise by itself."
            )
