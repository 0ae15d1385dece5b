"""Run a transformation over a sequence of gradients, and whatever it is held against.

The parameters move by the transformation's own updates, and both see the same ones: an
error of one step is not carried into the next but by the state.
"""

from __future__ import annotations

import re
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import FunctionType, MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxcheck.errors import InvalidInputError
from jaxcheck.jaxprs import compat
from jaxcheck.trees import by_path, on_host, widen
from jaxcheck.updates.fields import Field, fields_of
from jaxcheck.updates.sampling import (
    Coordinates,
    Sample,
    coordinates,
    gathered,
    pick,
)

Array = Any
# ``(gradients, params, state, step, **extra) -> (updates, state)``
Reference = Callable[..., tuple[Any, Any]]


class Moment(NamedTuple):
    """What one step did, to the elements that are taken.

    Attributes:
        params: what they are added to, by the path of the leaf, on the host.
        updates: likewise.
        fields: of the state after it.
        not_finite: how many elements of each update are NaN or infinite, of all.
    """

    params: dict[str, Array]
    updates: dict[str, Array]
    fields: list[Field]
    not_finite: dict[str, int]


class Problem(NamedTuple):
    """What a transformation is run on.

    Attributes:
        params: a pytree.
        gradients: one for each step.
        extra: what else the transformation is given in each step.
        x64: whether 64-bit types are on.
        sample: which elements are compared.
        cancelled: size of what cancels in each update.
    """

    params: Any
    gradients: Sequence[Any]
    extra: Sequence[Mapping[str, Any]]
    x64: bool
    sample: Sample = MappingProxyType({})
    cancelled: float = 0.0

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Of the leaves, by their paths."""
        return {path: np.shape(x) for path, x in by_path(self.params).items()}

    @property
    def narrow(self) -> Sequence[Any]:
        """The gradients as they were given, before they are widened."""
        given = self.gradients
        return given.given if isinstance(given, Widened) else given

    def taken(self, tree: Any) -> Any:
        """The elements of a tree like the parameters that are compared."""
        leaves = by_path(tree).items()
        picked = [pick(x, path, np.shape(x), self.sample) for path, x in leaves]
        return jax.tree.unflatten(jax.tree.structure(tree), picked)


class Run(NamedTuple):
    """A transformation over all steps.

    Attributes:
        moments: what each step did.
        params: what each step was given, on the host; the elements that are taken.
        program: of the first step; None if no transformation ran.
    """

    moments: list[Moment]
    params: list[Any]
    program: Any = None


def problem_in_float64(problem: Problem) -> Problem:
    """The same problem with every floating array in float64."""
    with compat.x64(True):
        return problem._replace(
            params=jax.tree.map(widen, problem.params),
            gradients=Widened(problem.gradients),
            extra=[jax.tree.map(widen, dict(e)) for e in problem.extra],
            x64=True,
        )


class Widened(Sequence[Any]):
    """Gradients in float64, of which there is never more than one."""

    def __init__(self, given: Sequence[Any]) -> None:
        self.given = given

    def __len__(self) -> int:
        return len(self.given)

    def __getitem__(self, step: Any) -> Any:
        if isinstance(step, slice):
            return Widened(self.given[step])
        with compat.x64(True):
            return jax.tree.map(widen, self.given[step])


def run_transformation(tx: Any, problem: Problem) -> Run:
    """Run an optax transformation, jitted.

    Raises:
        InvalidInputError: if it needs an argument that it is not given.
    """
    run, finite = _ran(tx, problem, count=not problem.sample)
    # NaN and infinity stay in parameters, so that a look at the last ones is enough
    return run if finite else _ran(tx, problem, count=True)[0]


def _ran(tx: Any, problem: Problem, *, count: bool) -> tuple[Run, bool]:
    """The run, and whether it is complete: all counted, or nothing to be counted."""
    double = isinstance(problem.gradients, Widened)
    step = _jitted_step(
        tx.update,
        double=double,
        count=count,
        # of large leaves some elements are copied, and what was before is not looked at
        donate=bool(problem.sample),
        static=tuple(_functions(problem.extra)),
    )
    shapes = problem.shapes
    at = coordinates(problem.sample, shapes)
    with compat.x64(problem.x64):
        params = jax.tree.map(jnp.array, problem.params)  # copies, to be donated
        state = tx.init(params)
        program: Any = None
        moments: list[Moment] = []
        for gradient, extra in zip(problem.narrow, problem.extra, strict=True):
            given = gradient, state, params, at
            try:
                program = program or step.trace(*given, **extra).jaxpr
                did = step(*given, **extra)
            except TypeError as error:
                raise _missing(error) from error
            params, state = did.params, did.state
            # a copy, where the next step may use the memory of what this one returned
            taken = [
                np.array(on_host(x)) if problem.sample else on_host(x)
                for x in did.taken
            ]
            fields = fields_of(state, shapes.keys())
            moments.append(_moment(taken, fields, did.not_finite, shapes))
        finite = count or bool(_all_finite(params))
    treedef = jax.tree.structure(problem.params)
    seen = [jax.tree.unflatten(treedef, moment.params.values()) for moment in moments]
    return Run(moments, seen, program), finite


@jax.jit
def _all_finite(tree: Any) -> Array:
    return jnp.all(jnp.array([jnp.isfinite(x).all() for x in jax.tree.leaves(tree)]))


class _Step(NamedTuple):
    """What one step gives.

    Attributes:
        taken: of the parameters before it, the updates and the fields of the state.
        state: after it.
        params: the next ones, as ``optax.apply_updates`` makes them.
        not_finite: how many elements of each update are NaN or infinite, if they were
            counted; else 0.
    """

    taken: list[Array]
    state: Any
    params: Any
    not_finite: list[Any]


# Compiled steps of an update function that is alive.
_STEPS: weakref.WeakKeyDictionary[Any, dict[Any, Any]] = weakref.WeakKeyDictionary()


def _jitted_step(update: Callable[..., tuple[Any, Any]], **settings: Any) -> Any:
    """:func:`_step` of a transformation, compiled once for as long as it is there."""
    if not isinstance(update, FunctionType):
        return _compiled(lambda: update, **settings)
    known = _STEPS.setdefault(update, {})
    key = tuple(settings.items())
    if key not in known:
        known[key] = _compiled(weakref.ref(update), **settings)
    return known[key]


def _compiled(
    update: Callable[[], Any],
    *,
    double: bool,
    count: bool,
    donate: bool,
    static: tuple[str, ...],
) -> Any:
    def step(
        gradient: Any, state: Any, params: Any, at: Coordinates, **extra: Any
    ) -> _Step:
        if double:
            gradient = jax.tree.map(widen, gradient)
        updates, state = update()(gradient, state, params, **extra)
        return _step(updates, state, params, at, count=count)

    return jax.jit(
        step, static_argnames=static, donate_argnums=(1, 2) if donate else ()
    )


def _step(
    updates: Any, state: Any, params: Any, at: Coordinates, *, count: bool
) -> _Step:
    """The addition of updates, and what is looked at.

    Args:
        updates: of the transformation.
        state: after them.
        params: before them.
        at: the elements that are taken.
        count: whether what is not finite is counted.
    """
    shapes = {path: jnp.shape(x) for path, x in by_path(params).items()}
    seen = [
        *by_path(params).items(),
        *by_path(updates).items(),
        *_pairs(fields_of(state, shapes.keys())),
    ]
    return _Step(
        gathered(seen, at, shapes),
        state,
        jax.tree.map(lambda p, u: jnp.asarray(p + u, p.dtype), params, updates),
        [jnp.sum(~jnp.isfinite(u)) if count else 0 for u in jax.tree.leaves(updates)],
    )


def _pairs(fields: Sequence[Field]) -> list[tuple[str | None, Array]]:
    return [leaf for field in fields for leaf in field.leaves.items()]


def jitted(tx: Any, problem: Problem) -> Callable[..., tuple[Any, Any]]:
    """Its update, with what is given and is no array held fixed.

    Args:
        tx: a transformation.
        problem: what it is given.
    """
    return jax.jit(tx.update, static_argnames=_functions(problem.extra))


def run_reference(reference: Reference, run: Run, problem: Problem) -> list[Moment]:
    """Run what a transformation is held against on the same parameters.

    Raises:
        InvalidInputError: if it returns something else than updates and a state.
    """
    state: Any = None
    moments: list[Moment] = []
    with compat.x64(True):
        for step, params in enumerate(run.params):
            gradients = jax.tree.map(widen, problem.taken(problem.narrow[step]))
            extra = problem.extra[step]
            returned = reference(
                gradients, jax.tree.map(widen, params), state, step, **extra
            )
            updates, state = _pair(returned)
            _require_like(updates, params)
            fields = fields_of(state, problem.shapes.keys())
            seen = [
                *jax.tree.leaves(params),
                *jax.tree.leaves(updates),
                *(x for _, x in _pairs(fields)),
            ]
            moments.append(_moment(map(on_host, seen), fields, (), problem.shapes))
    return moments


def _moment(
    taken: Iterable[Array],
    fields: Sequence[Field],
    not_finite: Iterable[Any],
    shapes: Mapping[str, tuple[int, ...]],
) -> Moment:
    """What was taken, by its names.

    Args:
        taken: of the parameters, the updates and the fields of the state.
        fields: of the state, whose names they have.
        not_finite: how many elements of each update are.
        shapes: of the parameters.
    """
    rest = iter(taken)
    return Moment(
        {path: next(rest) for path in shapes},
        {path: next(rest) for path in shapes},
        [
            field._replace(leaves={path: next(rest) for path in field.leaves})
            for field in fields
        ],
        dict(zip(shapes, map(int, not_finite), strict=False)),
    )


def _functions(extra: Sequence[Mapping[str, Any]]) -> list[str]:
    """Names of what is given and is no array."""
    return sorted({name for e in extra for name, value in e.items() if callable(value)})


def _missing(error: TypeError) -> Exception:
    found = re.search(r"missing .*argument: '(\w+)'", str(error))
    if found is None:
        return error
    name = found[1]
    return InvalidInputError(
        f"`check_update(tx=...)` needs `{name}` in each update, and was not given it. "
        f"Pass it for every step: extra_args={{{name!r}: [...]}}."
    )


def _pair(returned: Any) -> tuple[Any, Any]:
    if isinstance(returned, tuple) and len(returned) == 2:  # pyright: ignore[reportUnknownArgumentType]
        return returned  # pyright: ignore[reportUnknownVariableType]
    raise InvalidInputError(
        "`check_update(rule=...)` must return (updates, state); it returned "
        f"{type(returned).__name__}."
    )


def _require_like(updates: Any, params: Any) -> None:
    got, wanted = jax.tree.structure(updates), jax.tree.structure(params)
    if got != wanted:
        raise InvalidInputError(
            f"`check_update(rule=...)` must return updates like `params`, {wanted}; "
            f"it returned {got}."
        )


def as_reference(tx: Any) -> Reference:
    """Another transformation, to hold one against."""
    update: Any = None

    def reference(
        gradients: Any, params: Any, state: Any, step: int, **extra: Any
    ) -> tuple[Any, Any]:
        nonlocal update
        if step == 0:
            state = tx.init(params)
            update = jax.jit(tx.update, static_argnames=_functions([extra]))
        return update(gradients, state, params, **extra)

    return reference


def reference_of(rule: Any) -> Reference:
    """What a transformation is held against, as a function."""
    reference: Any = rule if callable(rule) else as_reference(rule)
    return reference


def is_transformation(value: Any) -> bool:
    """Whether it has the two functions of an optax transformation."""
    return callable(getattr(value, "init", None)) and callable(
        getattr(value, "update", None)
    )
