"""Gradients with NaN and infinity, for what promises to survive them.

What promises it is asked of the rule, not of its name: a rule whose updates and state
stay finite over a gradient that is not does survive it, and what is held against it has
to do as it does. To most optimizers one NaN is the end; nothing is asked of those.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import islice
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxcheck.trees import is_inexact
from jaxcheck.updates.runs import Problem, Reference, Run, run_reference

Array = Any

KINDS = {"NaN": np.nan, "infinity": np.inf}
# Bad steps in a row that are tried, for a rule that gives up at last.
_LONGEST_ROW = 16


class Unsound(NamedTuple):
    """A problem in which some gradients are not finite.

    Attributes:
        problem: the problem.
        kinds: what is in the gradients, of ``KINDS``.
        steps: which of them.
        leaf: number of the leaf that has it.
    """

    problem: Problem
    kinds: tuple[str, ...]
    steps: tuple[int, ...]
    leaf: int


def spoiled(gradient: Any, value: float, instead: float | None = None) -> Any:
    """``gradient`` with ``value`` in one element of its largest leaf, an end of it.

    Args:
        gradient: a pytree.
        value: NaN or infinity, which have another end each.
        instead: what is written there, if it is not ``value``.

    Example:
        >>> spoiled({"b": np.ones(1), "w": np.ones(3)}, np.nan)["w"]
        array([ 1.,  1., nan])
    """
    leaves, treedef = jax.tree.flatten(gradient)
    which = largest(gradient)
    leaf = np.array(leaves[which])
    leaf.flat[-1 if np.isnan(value) else 0] = value if instead is None else instead
    return jax.tree.unflatten(treedef, [*leaves[:which], leaf, *leaves[which + 1 :]])


def largest(gradient: Any) -> int:
    """Number of the largest leaf."""
    sizes = [np.size(x) for x in jax.tree.leaves(gradient)]
    return sizes.index(max(sizes))


def unsound(reference: Reference, problem: Problem) -> Unsound | None:
    """What is to be survived: bad steps alone, and in a row; None if nothing is.

    Args:
        reference: what a transformation is held against.
        problem: what it is held against it on.
    """
    if any(callable(value) for extra in problem.extra for value in extra.values()):
        return None  # those would have to be told
    kinds = tuple(kind for kind in KINDS if _survives(reference, problem, kind))
    if not kinds:
        return None
    row = ["", *kinds[:1] * _LONGEST_ROW]
    given = _finite(reference, _of(problem, row))
    patience = given.index(False) if False in given else len(given)
    pattern = [x for kind in kinds for x in ("", "", kind)]
    # as many again as it bears with: does it go on as the rule does?
    longer = patience if patience > _LONGEST_ROW else 2 * patience
    pattern += ["", *kinds[:1] * longer, "", ""]
    steps = tuple(t for t, kind in enumerate(pattern) if kind)
    where = largest(problem.gradients[0])
    return Unsound(_of(problem, pattern), kinds, steps, where)


def _survives(reference: Reference, problem: Problem, kind: str) -> bool:
    """Whether everything is finite in a bad step and the one after it."""
    return all(_finite(reference, _of(problem, [kind, ""])))


def _finite(reference: Reference, problem: Problem) -> list[bool]:
    """Whether updates and state are, step by step, the parameters held fixed."""
    params = problem.taken(jax.tree.map(np.asarray, problem.params))
    run = Run([], [params] * len(problem.gradients))
    seen: list[bool] = []

    def watched(*args: Any, **extra: Any) -> Any:
        returned = reference(*args, **extra)
        seen.append(all(map(_is_finite, jax.tree.leaves(returned))))
        return returned

    try:
        run_reference(watched, run, problem)
    except (ArithmeticError, ValueError):
        return [False]  # it cannot be evaluated there, and promises nothing
    return seen


def _is_finite(value: Any) -> bool:
    """Whether it is, of what may be a counter, a random key or a tensor of torch."""
    if isinstance(value, np.ndarray | np.generic | jax.Array) and is_inexact(
        value.dtype
    ):
        return bool(np.isfinite(np.asarray(value)).all())
    return not isinstance(value, float) or np.isfinite(value)


def _of(problem: Problem, pattern: Sequence[str]) -> Problem:
    """The problem with the gradients of ``pattern``: finite ones, and of kinds."""
    all_sound = (g for g in problem.gradients if _sound(g))
    sound = list(islice(all_sound, len(pattern))) or problem.gradients
    extra = problem.extra
    gradients = [
        spoiled(sound[t % len(sound)], KINDS[kind]) if kind else sound[t % len(sound)]
        for t, kind in enumerate(pattern)
    ]
    return problem._replace(
        gradients=gradients, extra=[extra[t % len(extra)] for t in range(len(pattern))]
    )


def _sound(gradient: Any) -> bool:
    """Whether it is finite, and not all zeros."""
    leaves = [np.asarray(x) for x in jax.tree.leaves(gradient)]
    return all(np.isfinite(x).all() for x in leaves) and any(x.any() for x in leaves)


def reaction(
    run: Callable[[Sequence[Any]], list[dict[str, Array]]],
    gradients: Sequence[Any],
    value: float,
) -> str:
    """What a transformation without a rule makes of one bad step.

    Args:
        run: gives the updates of each step by the path of the leaf, the parameters
            held fixed.
        gradients: finite ones; the second becomes the bad one.
        value: NaN or infinity.
    """
    first, second, *rest = gradients
    bad = spoiled(second, value)
    got = run([first, bad, *rest])
    if all(np.isfinite(u).all() for step in got for u in step.values()):
        after = got[:1] + got[2:]
        still = not any(u.any() for u in got[1].values())
        if still and _same(after, run([first, *rest])):
            return "skips the step"
        without = spoiled(second, value, 0.0)
        if _same(got, run([first, without, *rest])):
            return "takes that element as zero"
        return "finite updates"
    then = all(np.isfinite(u).all() for u in got[-1].values())
    how_long = "in that step alone" if then else "from then on"
    reach = {path: int(np.sum(~np.isfinite(u))) for path, u in got[1].items()}
    hit = [path for path, count in reach.items() if count]
    if not hit:
        return "not finite in later steps"
    if len(hit) > 1:
        return f"not finite in {len(hit)} of {len(reach)} leaves, {how_long}"
    where = "that element" if reach[hit[0]] == 1 else "its leaf"
    return f"not finite in {where}, {how_long}"


def _same(one: list[dict[str, Array]], other: list[dict[str, Array]]) -> bool:
    return all(
        np.allclose(a[path], b[path], rtol=1e-6, atol=0.0)
        for a, b in zip(one, other, strict=True)
        for path in a
    )
