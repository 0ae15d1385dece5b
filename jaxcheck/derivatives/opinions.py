"""A second opinion on a derivative: a complex step, or what the user trusts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from jaxcheck.derivatives.functions import FlatFunction, probe_like
from jaxcheck.derivatives.report import DerivativeCheck
from jaxcheck.jaxprs import compat
from jaxcheck.reports.numbers import significant
from jaxcheck.reports.values import Verdict

Opinion = Literal["complex_step"] | Callable[..., Any]

# So small that its square vanishes beside one; a power of two.
_STEP = 2.0**-200
_QUESTION = "second opinion"


def second_opinion(
    flat: FlatFunction, opinion: Opinion, seed: Sequence[int], rtol: float
) -> DerivativeCheck:
    """Compare autodiff along a random tangent with another derivative.

    Args:
        flat: the function.
        opinion: ``"complex_step"``, or ``(primals, tangents) -> output tangents``.
        seed: what the tangent is drawn with.
        rtol: relative tolerance.

    References:
        W. Squire, G. Trapp, "Using complex variables to estimate derivatives of real
        functions", SIAM Review 40(1), 1998.
    """
    leaves = flat.inputs.differentiable
    try:
        if callable(opinion):
            autodiff, other, eps = _users(flat, opinion, seed)
        elif any(leaf.complex for leaf in (*leaves, *flat.outputs)):
            raise TypeError("a complex step needs real inputs and real outputs")
        else:
            autodiff, other, eps = _complex_step(flat, seed)
    except Exception as error:
        reason = str(error).strip().split("\n")[0] or type(error).__name__
        return DerivativeCheck(
            question=_QUESTION, verdict=Verdict.NOT_CHECKED, reason=reason
        )
    scale = max(float(np.linalg.norm(other)), float(np.linalg.norm(autodiff)))
    difference = float(np.linalg.norm(autodiff - other))
    error = 0.0 if difference == 0 else difference / scale
    agrees = error <= rtol + 64 * eps  # NaN is no agreement
    return DerivativeCheck(
        question=_QUESTION,
        verdict=Verdict.CORRECT if agrees else Verdict.WRONG,
        relative_error=error,
        reason=None if agrees else f"they differ by {significant(error, 2)}",
    )


def _complex_step(flat: FlatFunction, seed: Sequence[int]) -> tuple[Any, Any, float]:
    """Im f(x + ih v) / h, and J v, both with 64-bit types."""
    with compat.x64(True):
        point = [jnp.asarray(np.asarray(x), jnp.float64) for x in flat.inputs.moved]
        tangents = [
            jnp.asarray(np.asarray(probe_like(leaf, seed, 51)), jnp.float64)
            for leaf in flat.inputs.differentiable
        ]
        autodiff = _pushed(flat, point, tangents)
        stepped = [
            jax.lax.complex(x, _STEP * v) for x, v in zip(point, tangents, strict=True)
        ]
        out = flat.function(*stepped)
        if not all(jnp.iscomplexobj(x) for x in out):
            raise TypeError("an output stays real when the inputs become complex")
        other = np.concatenate([np.ravel(np.imag(x)) for x in out]) / _STEP
    return autodiff, other, float(np.finfo(np.float64).eps)


def _users(
    flat: FlatFunction, opinion: Callable[..., Any], seed: Sequence[int]
) -> tuple[Any, Any, float]:
    leaves = flat.inputs.differentiable
    point = [jnp.asarray(x) for x in flat.inputs.moved]
    tangents = [probe_like(leaf, seed, 51) for leaf in leaves]
    autodiff = _pushed(flat, point, tangents)
    given = opinion(flat.inputs.rebuild(point), flat.inputs.rebuild(tangents))
    found = [x for x in jax.tree_util.tree_leaves(given) if _is_inexact(x)]
    other = np.concatenate([_host(x) for x in found])
    if other.shape != autodiff.shape:
        raise TypeError(
            f"the second opinion has {other.size} numbers, autodiff {autodiff.size}"
        )
    eps = max(float(jnp.finfo(leaf.dtype).eps) for leaf in leaves)
    return autodiff, other, eps


def _pushed(flat: FlatFunction, point: Sequence[Any], tangents: Sequence[Any]) -> Any:
    """J v, by reverse mode twice where there is no forward mode."""
    try:
        out = jax.jvp(flat.function, tuple(point), tuple(tangents))[1]
    except TypeError:
        values, pull = jax.vjp(flat.function, *point)
        zeros = jax.tree_util.tree_map(jnp.zeros_like, values)
        (out,) = jax.vjp(pull, zeros)[1](tuple(tangents))
    return np.concatenate([_host(x) for x in out])


def _host(value: Any) -> Any:
    array = np.asarray(value)
    wide = np.complex128 if np.iscomplexobj(array) else np.float64
    return array.astype(wide).ravel()


def _is_inexact(value: Any) -> bool:
    return bool(jnp.issubdtype(jnp.result_type(value), jnp.inexact))
