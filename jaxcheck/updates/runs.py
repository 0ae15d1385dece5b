"""Run a transformation over a sequence of gradients, and whatever it is held against.

The parameters move by the transformation's own updates, and both see the same ones: an
error of one step is not carried into the next but by the state.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxcheck.errors import InvalidInputError
from jaxcheck.jaxprs import compat
from jaxcheck.trees import by_path, is_inexact
from jaxcheck.updates.fields import Field, fields_of
from jaxcheck.updates.sampling import Sample, pick

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
    """

    moments: list[Moment]
    params: list[Any]


def problem_in_float64(problem: Problem) -> Problem:
    """The same problem with every floating array in float64."""
    with compat.x64(True):
        return problem._replace(
            params=jax.tree.map(_wide, problem.params),
            gradients=Widened(problem.gradients),
            extra=[jax.tree.map(_wide, dict(e)) for e in problem.extra],
            x64=True,
        )


class Widened(Sequence[Any]):
    """Gradients in float64, of which there is never more than one."""

    def __init__(self, given: Sequence[Any]) -> None:
        self._given = given

    def __len__(self) -> int:
        return len(self._given)

    def __getitem__(self, step: Any) -> Any:
        if isinstance(step, slice):
            return Widened(self._given[step])
        with compat.x64(True):
            return jax.tree.map(_wide, self._given[step])


def _wide(value: Any) -> Any:
    """In float64 or complex128, where it is: on the host or on the device."""
    if callable(value) or not is_inexact(getattr(value, "dtype", np.int32)):
        return value
    complex_ = jnp.issubdtype(value.dtype, jnp.complexfloating)
    return value.astype(np.complex128 if complex_ else np.float64)


def run_transformation(tx: Any, problem: Problem) -> Run:
    """Run an optax transformation, jitted.

    Raises:
        InvalidInputError: if it needs an argument that it is not given.
    """
    # of large leaves some elements are copied, and the state before is not looked at
    update = jitted(tx, problem, donate=bool(problem.sample))
    with compat.x64(problem.x64):
        params = jax.tree.map(jnp.asarray, problem.params)
        state = tx.init(params)
        updates: Any = None
        moments: list[Moment] = []
        seen: list[Any] = []
        for gradient, extra in zip(problem.gradients, problem.extra, strict=True):
            if moments:
                params = _moved(params, updates)
            seen.append(problem.taken(params))
            try:
                updates, state = update(gradient, state, params, **extra)
            except TypeError as error:
                raise _missing(error) from error
            moments.append(_moment(seen[-1], updates, state, problem))
    return Run(moments, seen)


def jitted(
    tx: Any, problem: Problem, *, donate: bool = False
) -> Callable[..., tuple[Any, Any]]:
    """Its update, with what is given and is no array held fixed.

    Args:
        tx: a transformation.
        problem: what it is given.
        donate: whether the memory of the state that it is given may be used again.
    """
    return jax.jit(
        tx.update,
        static_argnames=_functions(problem.extra),
        donate_argnums=(1,) if donate else (),
    )


def run_reference(reference: Reference, run: Run, problem: Problem) -> list[Moment]:
    """Run what a transformation is held against on the same parameters.

    Raises:
        InvalidInputError: if it returns something else than updates and a state.
    """
    state: Any = None
    moments: list[Moment] = []
    with compat.x64(True):
        for step, params in enumerate(run.params):
            gradients = jax.tree.map(_wide, problem.taken(problem.gradients[step]))
            extra = problem.extra[step]
            returned = reference(
                gradients, jax.tree.map(_wide, params), state, step, **extra
            )
            updates, state = _pair(returned)
            _require_like(updates, params)
            moments.append(_moment(params, updates, state, problem))
    return moments


def _moment(params: Any, updates: Any, state: Any, problem: Problem) -> Moment:
    shapes, sample = problem.shapes, problem.sample

    def taken(path: str | None, value: Any) -> Array:
        return pick(value, path, shapes.get(path or "", ()), sample)

    given, named = (
        {path: np.asarray(value) for path, value in by_path(tree).items()}
        for tree in (params, updates)
    )
    fields = [
        field._replace(leaves={k: taken(k, x) for k, x in field.leaves.items()})
        for field in fields_of(state, shapes.keys())
    ]
    return Moment(
        given,
        {path: taken(path, x) for path, x in named.items()},
        fields,
        {path: int(np.count_nonzero(~np.isfinite(x))) for path, x in named.items()},
    )


@jax.jit
def _moved(params: Any, updates: Any) -> Any:
    """As ``optax.apply_updates`` does it."""
    return jax.tree.map(lambda p, u: jnp.asarray(p + u, p.dtype), params, updates)


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
