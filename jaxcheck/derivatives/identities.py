"""What must hold between the derivatives of one function, without any difference.

Each is asked of the float64 reading, so that two sides that are equal by rule agree to
many digits; where there is no such reading, of the function itself, with a tolerance to
match. A side that cannot be computed (no forward mode for a ``custom_vjp``, no batching
rule) is not checked, and says why.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxcheck.derivatives.functions import FlatFunction, contracted, probe_like
from jaxcheck.derivatives.report import DerivativeCheck
from jaxcheck.gradients.arrays import real_view
from jaxcheck.jaxprs import compat, interpret
from jaxcheck.jaxprs.compiled import Compiled
from jaxcheck.jaxprs.lift import lift
from jaxcheck.jaxprs.perturb import narrowing_sites
from jaxcheck.reports.numbers import significant
from jaxcheck.reports.values import Verdict
from jaxcheck.trees import Leaf, wide_on_host, widen

Array = Any
Arrays = Sequence[Array]

# Two ways to the same number may differ by this many units of its roundoff (sums of
# thousands of terms in another order), but never by more than half of its digits.
_UNITS = 4096.0
# An op-by-op run of more equations than this takes minutes.
_MOST_EQUATIONS = 400
# How many cotangents and tangents are batched.
_BATCH = 3


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reading:
    """A flat function, ready to be differentiated in one precision.

    Attributes:
        function: ``(*arrays) -> list of arrays``.
        point: where.
        tangents: random tangents, a few for each input.
        cotangents: random cotangents, a few for each output.
        eps: unit roundoff of its results.
        x64: whether 64-bit types are on when it runs.
        program: the function as traced in its own dtypes.
    """

    function: Callable[..., list[Array]]
    point: tuple[Array, ...]
    tangents: tuple[tuple[Array, ...], ...]
    cotangents: tuple[tuple[Array, ...], ...]
    eps: float
    x64: bool
    program: Any


def read(flat: FlatFunction, seed: Sequence[int], *, native: bool = False) -> Reading:
    """The float64 reading of ``flat`` at its point, or its own if there is none.

    Args:
        flat: the function.
        seed: what the tangents and cotangents are drawn with.
        native: whether to leave it in its own dtypes in any case.
    """
    leaves = flat.inputs.differentiable
    moved = [jnp.asarray(x) for x in flat.inputs.moved]
    native_x64 = compat.x64_enabled()
    traced = jax.make_jaxpr(lambda *xs: list(flat.function(*xs)))(*moved)
    lifted, eps = _lifted(traced, native_x64, len(moved), native=native)
    program = traced if lifted is None else lifted

    def vectors(of: Sequence[Leaf], first: int) -> tuple[tuple[Array, ...], ...]:
        drawn = [[probe_like(x, seed, first + k) for x in of] for k in range(_BATCH)]
        if lifted is None:
            return tuple(map(tuple, drawn))
        with compat.x64(True):
            return tuple(tuple(widen(x) for x in row) for row in drawn)

    x64 = native_x64 if lifted is None else True
    with compat.x64(x64):
        point = tuple(moved if lifted is None else [widen(x) for x in moved])
    return Reading(
        function=lambda *xs: interpret.evaluate(program, xs),
        point=point,
        tangents=vectors(leaves, 31),
        cotangents=vectors(flat.outputs, 41),
        eps=eps,
        x64=x64,
        program=traced,
    )


def _lifted(
    traced: Any, native_x64: bool, count: int, *, native: bool
) -> tuple[Any, float]:
    jaxpr, _ = compat.opened(traced)
    dtypes = [v.aval.dtype for v in (*jaxpr.invars, *jaxpr.outvars)]
    own = None, max(float(jnp.finfo(dtype).eps) for dtype in dtypes)
    if native:
        return own
    try:
        with compat.x64(True):
            program = lift(traced, rules="keep", native=False, native_x64=native_x64)
            rounded = narrowing_sites(program, [True] * count)
    except Exception:  # no reading: the identities hold in the function's own dtypes
        return own
    eps = [float(jnp.finfo(dtype).eps) for dtype, _ in rounded]
    return program, max([float(np.finfo(np.float64).eps), *eps])


def adjoint(reading: Reading) -> DerivativeCheck:
    """<w, J v> = <J' w, v>: forward and reverse mode are the same linear map."""
    tangents, cotangents = reading.tangents[0], reading.cotangents[0]

    def sides(*point: Array) -> list[Array]:
        _, pushed = jax.jvp(reading.function, point, tangents)
        _, pull = jax.vjp(reading.function, *point)
        pulled = pull(list(cotangents))
        left = [_products(w, y) for w, y in zip(cotangents, pushed, strict=True)]
        right = [_products(v, g) for v, g in zip(tangents, pulled, strict=True)]
        return [
            jnp.stack([sum(jnp.sum(x) for x in left), sum(jnp.sum(x) for x in right)]),
            jnp.sqrt(sum(jnp.sum(x**2) for x in (*left, *right))),
        ]

    def compare(out: list[Any]) -> tuple[Any, Any, float]:
        (left, right), size = out
        return left, right, float(size)

    return _asked("adjoint", reading, sides, compare)


def batched(reading: Reading) -> DerivativeCheck:
    """The pullback mapped over cotangents by ``vmap`` is a loop over them.

    To be asked of the function in its own dtypes: rules for batching have no part in
    the float64 reading.
    """
    stacked = [_stacked(x, reading.x64) for x in zip(*reading.cotangents, strict=True)]

    def sides(*point: Array) -> list[Array]:
        _, pull = jax.vjp(reading.function, *point)
        together = jax.vmap(lambda *w: pull(list(w)))(*stacked)
        alone = [pull(list(row)) for row in reading.cotangents]
        loop = [jnp.stack(column) for column in zip(*alone, strict=True)]
        return [_flat(together), _flat(loop)]

    return _asked("batched", reading, sides, _two_vectors)


def batched_forward(reading: Reading) -> DerivativeCheck:
    """The pushforward mapped over tangents by ``vmap`` is a loop over them.

    To be asked of the function in its own dtypes, as ``batched``.
    """
    stacked = [_stacked(x, reading.x64) for x in zip(*reading.tangents, strict=True)]

    def sides(*point: Array) -> list[Array]:
        def pushed(*tangents: Array) -> list[Array]:
            return jax.jvp(reading.function, point, tangents)[1]

        together = jax.vmap(pushed)(*stacked)
        alone = [pushed(*row) for row in reading.tangents]
        loop = [jnp.stack(column) for column in zip(*alone, strict=True)]
        return [_flat(together), _flat(loop)]

    return _asked("batched forward", reading, sides, _two_vectors)


def zeros(reading: Reading) -> DerivativeCheck:
    """A zero cotangent gives a zero gradient, and zeros may be left out."""
    nothing = [_zeros_like(w, reading.x64) for w in reading.cotangents[0]]

    def sides(*point: Array) -> list[Array]:
        _, pull = jax.vjp(reading.function, *point)
        every = _flat(pull(nothing))
        rows: list[Array] = [every]
        wanted: list[Array] = [jnp.zeros_like(every)]
        for k, cotangent in enumerate(reading.cotangents[0]):
            alone = [cotangent if j == k else x for j, x in enumerate(nothing)]
            rows.append(_flat(pull(alone)))
            # the same with symbolic zeros: the other outputs are not used at all
            one = lambda *x, k=k: reading.function(*x)[k]  # noqa: E731
            wanted.append(_flat(jax.vjp(one, *point)[1](cotangent)))
        return [jnp.concatenate(rows), jnp.concatenate(wanted)]

    return _asked("zeros", reading, sides, _two_vectors)


def compiled(flat: FlatFunction) -> DerivativeCheck:
    """The compiled function and its gradient against a run operation by operation."""
    moved = [jnp.asarray(x) for x in flat.inputs.moved]

    def both(*point: Array) -> list[Array]:
        out = flat.function(*point)
        total = lambda *x: sum(contracted(y, y) for y in flat.function(*x)) / 2  # noqa: E731
        return [*out, *jax.grad(total, argnums=tuple(range(len(point))))(*point)]

    try:
        program = jax.make_jaxpr(both)(*moved)
    except Exception:  # no reverse mode: the function alone
        program = jax.make_jaxpr(lambda *x: list(flat.function(*x)))(*moved)
    jaxpr, consts = compat.opened(program)
    if len(jaxpr.eqns) > _MOST_EQUATIONS:
        return DerivativeCheck(
            question="compiled",
            verdict=Verdict.NOT_CHECKED,
            reason=f"{len(jaxpr.eqns)} equations would run one by one",
        )
    eagerly = interpret.evaluate(program, moved)
    run = jax.jit(lambda consts, xs: interpret.evaluate(jaxpr, xs, consts))
    together = run(list(consts), moved)
    first, second = (
        np.concatenate([_host(x) for x in side]) for side in (together, eagerly)
    )
    eps = max(float(jnp.finfo(x.dtype).eps) for x in (*moved, *eagerly))
    return _judged("compiled", first, second, 0.0, _tolerance(eps))


def types(flat: FlatFunction) -> DerivativeCheck:
    """Shapes, dtypes and weak types of outputs and gradients, jitted or not."""
    moved = [jnp.asarray(x) for x in flat.inputs.moved]
    eager = [jax.typeof(jnp.asarray(x)) for x in flat.function(*moved)]
    jitted = [jax.typeof(x) for x in jax.jit(flat.function)(*moved)]
    for leaf, a, b in zip(flat.outputs, eager, jitted, strict=True):
        if a.str_short() != b.str_short() or a.weak_type != b.weak_type:
            reason = f"output {leaf.path} is {a} op by op and {b} under jit"
            return DerivativeCheck(
                question="types", verdict=Verdict.WRONG, reason=reason
            )
    return DerivativeCheck(question="types", verdict=Verdict.CORRECT)


# -- comparing two sides


def _asked(
    question: str,
    reading: Reading,
    sides: Callable[..., list[Array]],
    compare: Callable[[list[Any]], tuple[Any, Any, float]],
) -> DerivativeCheck:
    try:
        # under jax.jit alone tangents would be constants, and folded for seconds
        run = Compiled(sides, reading.point, x64=reading.x64)
        out = [np.asarray(x) for x in run(*reading.point)]
    except Exception as error:  # no such mode, or no rule for batching
        return unavailable(question, error)
    left, right, size = compare(out)
    return _judged(question, left, right, size, _tolerance(reading.eps))


def _tolerance(eps: float) -> float:
    return min(_UNITS * eps, math.sqrt(eps))


def _two_vectors(out: list[Any]) -> tuple[Any, Any, float]:
    return out[0], out[1], 0.0


def _judged(
    question: str, left: Any, right: Any, size: float, rtol: float
) -> DerivativeCheck:
    """Equal up to rounding? ``size`` is what was summed, where that can cancel."""
    with np.errstate(all="ignore"):
        difference = float(np.linalg.norm(np.subtract(left, right)))
        scale = max(float(np.linalg.norm(left)), float(np.linalg.norm(right)), size)
    both_nan = np.isnan(left) & np.isnan(right)
    finite = np.all(np.isfinite(left)) and np.all(np.isfinite(right))
    error = 0.0 if difference == 0 else difference / scale if scale else float("inf")
    if not finite:
        same = bool(np.all(both_nan | np.equal(left, right)))
        return DerivativeCheck(
            question=question,
            verdict=Verdict.INCONCLUSIVE if same else Verdict.WRONG,
            reason="not finite on both sides" if same else "not finite on one side",
        )
    right_answer = error <= rtol
    return DerivativeCheck(
        question=question,
        verdict=Verdict.CORRECT if right_answer else Verdict.WRONG,
        relative_error=error,
        reason=None
        if right_answer
        else f"the two sides differ by {significant(error, 2)} of their size",
    )


def unavailable(question: str, error: Exception, order: int = 1) -> DerivativeCheck:
    """The check of what JAX refuses to compute."""
    first = str(error).strip().split("\n")[0].split(". ")[0]
    return DerivativeCheck(
        question=question,
        order=order,
        verdict=Verdict.NOT_CHECKED,
        reason=first or type(error).__name__,
    )


def _products(a: Array, b: Array) -> Array:
    # JAX transposes and does not conjugate: Re(w * J v) = Re(J' w * v)
    return jnp.real(a * b)


def _flat(arrays: Arrays) -> Array:
    return jnp.concatenate([jnp.ravel(real_view(x)) for x in arrays])


def _host(value: Array) -> Any:
    wide = wide_on_host(value).ravel()
    return wide.view(np.float64) if np.iscomplexobj(wide) else wide


def _stacked(rows: Arrays, x64: bool) -> Array:
    """``jnp.stack`` with 64-bit types as the reading has them."""
    with compat.x64(x64):
        return jnp.stack(list(rows))


def _zeros_like(like: Array, x64: bool) -> Array:
    """``jnp.zeros_like`` with 64-bit types as the reading has them."""
    with compat.x64(x64):
        return jnp.zeros_like(like)
