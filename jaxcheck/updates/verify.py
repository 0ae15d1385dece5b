"""Hold a transformation against a rule: in float64, and in its own dtypes.

In float64 the two may differ by rounding alone, 1e-9, or more where the transformation
computes in something narrower all the same. In its own dtypes they may differ by what
rounding becomes on its way, through the bias correction above all: 1 - b**t of a decay
b near one loses a few times 1/(1 - b) roundoffs.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxcheck.jaxprs import compat, interpret, rounding
from jaxcheck.trees import is_inexact
from jaxcheck.updates.comparing import Comparison, Mismatch, compare
from jaxcheck.updates.response import Response
from jaxcheck.updates.rules.rule import Noisy, Rule, acts_elementwise
from jaxcheck.updates.runs import (
    Moment,
    Problem,
    Reference,
    Run,
    problem_in_float64,
    reference_of,
    run_reference,
    run_transformation,
)
from jaxcheck.updates.sampling import pick, sample_of
from jaxcheck.updates.stages import Blame, blamed
from jaxcheck.updates.variants import SAME, Variant, factor_of, variants

# Roundoffs that a few dozen operations may amount to, and the most that is ever let
# pass in a dtype that resolves little.
_OPERATIONS = 32.0
_MOST = 0.25
# Roundoffs in what bias correction divides by (measured at b2 from 0.99 to 0.99999: up
# to 0.1; where several averages are added, 2).
_CORRECTION = 4.0


class Held(NamedTuple):
    """A transformation held against a rule at one precision.

    Attributes:
        run: of the transformation.
        wanted: what the rule gives.
        comparison: of the two.
        tolerance: what they may differ by.
    """

    run: Run
    wanted: list[Moment]
    comparison: Comparison
    tolerance: float


class Verification:
    """Runs a transformation and what it is held against, once at each precision."""

    def __init__(self, tx: Any, rule: Any, problem: Problem, rtol: float) -> None:
        """Prepare.

        Args:
            tx: the transformation.
            rule: a rule, a function like one, or another transformation.
            problem: what they are run on.
            rtol: relative tolerance in float64.
        """
        self._tx = tx
        self._rule = rule
        self._rtol = rtol
        self.native = problem
        self.wide = problem_in_float64(problem)

    def in_float64(self) -> Held:
        """In float64: are the formulas the same?"""

        def tolerance(eps: float) -> float:
            narrow = eps > np.finfo(np.float64).eps
            return max(self._rtol, 8 * eps if narrow else 0.0)

        return self._held(self.wide, tolerance)

    def natively(self) -> Held:
        """In the dtypes of the parameters: does rounding spoil them?"""
        lost = _OPERATIONS + _amplification(self._rule)

        def tolerance(eps: float) -> float:
            return max(self._rtol, min(_MOST, eps * lost))

        return self._held(self.native, tolerance)

    def _held(self, problem: Problem, allowed: Callable[[float], float]) -> Held:
        run = run_transformation(self._tx, problem)
        tolerance = allowed(_least_precision(run.program, problem))
        wanted = run_reference(reference_of(self._rule), run, problem)
        compared = self._compared(problem, run, wanted, tolerance)
        compared = compared._replace(
            updates=_placed(compared.updates, problem),
            state=_placed(compared.state, problem),
        )
        return Held(run, wanted, compared, tolerance)

    def rounding_explains(self, native: Held) -> bool:
        """Whether what is off in the parameters' own dtypes is what rounding does.

        The steps run equation by equation, with random rounding; an update that this
        moves far is one that rounding makes of it.
        """
        given = (value for extra in self.native.extra for value in extra.values())
        if native.comparison.updates is None or any(map(callable, given)):
            return False
        runs = _with_random_rounding(self._tx, self.native)
        run_shapes = self.native.shapes
        for step, (moment, wanted) in enumerate(
            zip(native.run.moments, native.wanted, strict=True)
        ):
            for leaf, update in moment.updates.items():
                rule = wanted.updates[leaf].astype(update.dtype)
                shape, sample = run_shapes[leaf], self.native.sample
                others = [pick(run[step][leaf], leaf, shape, sample) for run in runs]
                with np.errstate(invalid="ignore"):
                    difference = np.abs(update - wanted.updates[leaf])
                off = difference > native.tolerance * np.abs(wanted.updates[leaf])
                if np.any(off & (rounding.beyond(update, rule, others) > 1.0)):
                    return False
        return True

    def blamed(self, held: Held) -> Blame | None:
        """The stage of a chain that is to blame for what ``held`` shows."""

        def compared(one: Sequence[Moment], other: Sequence[Moment]) -> Comparison:
            return compare(one, other, held.tolerance, _tiny(self.wide))

        return blamed(self._tx, self._rule, held.run, self.wide, compared)

    def matching(self, held: Held) -> str | None:
        """The variant of the rule that matches what ``held`` shows not to."""
        return next((variant.text for variant in self.fitting(held)), None)

    def fitting(self, held: Held) -> Iterator[Variant]:
        """All that match, the likeliest first."""
        leaves = list(held.wanted[0].updates)
        pairs = zip(held.run.moments, held.wanted, strict=True)
        both = [(a.updates[k], b.updates[k]) for a, b in pairs for k in leaves]
        factor = factor_of([a for a, _ in both], [b for _, b in both])
        with np.errstate(all="ignore"):
            for variant in variants(reference_of(self._rule), factor):
                if self._matches(variant.reference, held):
                    yield variant

    def _matches(self, other: Reference, held: Held) -> bool:
        try:
            wanted = run_reference(other, held.run, self.wide)
        except (ArithmeticError, ValueError, TypeError):
            return False  # that setting means nothing to this rule
        return self._compared(self.wide, held.run, wanted, held.tolerance).first is None

    def _compared(
        self, problem: Problem, run: Run, wanted: list[Moment], tolerance: float
    ) -> Comparison:
        tiny = _tiny(problem)
        return compare(run.moments, wanted, tolerance, tiny, problem.cancelled)


def sampled(rule: Any, problem: Problem, most: int | None, seed: Any) -> Problem:
    """The problem with some elements compared, if the rule allows that.

    Args:
        rule: what a transformation is held against.
        problem: all of it.
        most: elements of a leaf; None for all.
        seed: of the choice.
    """
    if most is None or not (isinstance(rule, Rule) and acts_elementwise(rule.form)):
        return problem
    return problem._replace(sample=sample_of(problem.params, most, seed))


def fitted(
    factory: Callable[..., Rule],
    tx: Any,
    problem: Problem,
    most: int | None,
    seed: Any,
) -> Rule:
    """A rule with its defaults, and the learning rate that the updates show.

    Updates are proportional to the learning rate, that of each step by itself.
    """
    if "learning_rate" not in inspect.signature(factory).parameters:
        return factory()
    wide = problem_in_float64(problem)
    one = factory(learning_rate=1.0)
    if isinstance(one.form, Noisy):
        tx = Response(tx)
    wide = sampled(one, wide, most, seed)
    run = run_transformation(tx, wide)
    unit = run_reference(one, run, wide)
    rates: list[float] = []
    for moment, one in zip(run.moments, unit, strict=True):
        factor = factor_of(list(moment.updates.values()), list(one.updates.values()))
        rates.append(abs(factor) if factor is not None else math.nan)
    known = [rate for rate in rates if not math.isnan(rate)] or [1.0]
    same_state = compare(run.moments, unit, SAME, _tiny(wide)).state is None
    if not same_state or max(known) - min(known) <= SAME * max(known):
        return factory(learning_rate=float(f"{known[0]:.12g}"))
    # a step whose update is zero shows none
    table = [known[0] if math.isnan(rate) else rate for rate in rates]

    def schedule(count: int) -> float:
        """What the updates show, step by step."""
        return table[min(max(count, 0), len(table) - 1)]

    return factory(learning_rate=schedule)


def _with_random_rounding(tx: Any, problem: Problem) -> list[list[dict[str, Any]]]:
    """The updates of each step by the path of the leaf, of several runs."""

    def steps(params: Any, gradients: Any, extra: Any) -> Any:
        state = tx.init(params)
        out: list[Any] = []
        for gradient, more in zip(gradients, extra, strict=True):
            updates, state = tx.update(gradient, state, params, **more)
            params = jax.tree.map(lambda p, u: (p + u).astype(p.dtype), params, updates)
            out.append(updates)
        return out

    with compat.x64(problem.x64):
        inputs = jax.tree.map(
            jnp.asarray, (problem.params, list(problem.gradients), list(problem.extra))
        )
        program, shapes = jax.make_jaxpr(steps, return_shape=True)(*inputs)
        flat = rounding.random_runs(program, jax.tree.leaves(inputs))
        treedef = jax.tree.structure(shapes)
        runs = [jax.tree.unflatten(treedef, outputs) for outputs in flat]
    return [
        [
            dict(zip(problem.shapes, map(np.asarray, jax.tree.leaves(u)), strict=True))
            for u in run
        ]
        for run in runs
    ]


def _placed(mismatch: Mismatch | None, problem: Problem) -> Mismatch | None:
    """With the index that its element has in the whole leaf."""
    if mismatch is None or mismatch.leaf is None or mismatch.leaf not in problem.sample:
        return mismatch
    shape = problem.shapes[mismatch.leaf]
    if mismatch.field is not None and len(mismatch.at) != 1:
        return mismatch  # a field that was left whole
    flat = problem.sample[mismatch.leaf][mismatch.at[0]]
    return mismatch._replace(at=tuple(int(k) for k in np.unravel_index(flat, shape)))


def _least_precision(program: Any, problem: Problem) -> float:
    """Roundoff of the narrowest dtype that the updates are computed in."""
    dtypes = {
        var.aval.dtype
        for eqn in interpret.equations(program)
        for var in eqn.outvars
        if is_inexact(getattr(var.aval, "dtype", np.int32))
    }
    dtypes |= {x.dtype for x in jax.tree.leaves(problem.params) if is_inexact(x.dtype)}
    return max(float(jnp.finfo(dtype).eps) for dtype in dtypes)


def _amplification(rule: Any) -> float:
    """What bias correction makes of a roundoff, by the slowest decay."""
    settings = _numbers(rule) if isinstance(rule, Rule) else [0.999]
    shares = [x for x in settings if isinstance(x, float) and 0.5 <= x < 1.0]
    return max((_CORRECTION / (1.0 - x) for x in shares), default=1.0)


def _numbers(rule: Rule) -> list[Any]:
    """The settings of a rule, and of the rules that it is made of."""
    out: list[Any] = []
    for value in rule.settings.values():
        for one in value if isinstance(value, tuple) else (value,):
            out += _numbers(one) if isinstance(one, Rule) else [one]
    return out


def _tiny(problem: Problem) -> float:
    dtypes = [jnp.asarray(x).dtype for x in jax.tree.leaves(problem.params)]
    floats = [dtype for dtype in dtypes if is_inexact(dtype)]
    return max(float(jnp.finfo(dtype).tiny) for dtype in floats)
