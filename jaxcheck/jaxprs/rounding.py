"""How far apart two right evaluations of a program may be.

Stochastic arithmetic: every equation's floating result is moved at random by as much as
its own rounding may move it, and what comes out is compared with what came out before.
So a cancellation, a chain of a thousand layers or a comparison that may fall either way
widens what is tolerated, and nobody has to know the condition of the program.

References:
    J. Vignes, "A stochastic arithmetic for reliable scientific computation",
    Mathematics and Computers in Simulation 35, 1993.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from jaxcheck.jaxprs import compat, stepwise
from jaxcheck.jaxprs.compat import Equation, Program
from jaxcheck.trees import is_inexact

FloatArray = np.ndarray[Any, np.dtype[np.float64]]

# Runs with random rounding.
RUNS = 3
# How many times what they differ by is beyond rounding: the compiler may sum in another
# order, fuse a product with a sum, and use other approximations of exp and tanh.
BEYOND = 64.0
# Results that are exact, as far as floats go.
# fmt: off
EXACT = frozenset((
    "abs", "argmax", "argmin", "broadcast_in_dim", "ceil", "clamp", "complex",
    "concatenate", "conj", "copy", "copy_p", "cummax", "cummin", "dynamic_slice",
    "dynamic_update_slice", "expand_dims", "floor", "gather", "imag", "max", "min",
    "name", "neg", "optimization_barrier", "pad", "real", "reduce_max", "reduce_min",
    "reshape", "rev", "round", "scatter", "select_n", "sign", "slice", "sort", "split",
    "squeeze", "stop_gradient", "transpose",
))
# fmt: on


def terms_of(eqn: Equation) -> int | None:
    """How many terms an equation sums for one element; None if it does not sum."""
    name, shapes = eqn.primitive.name, [v.aval.shape for v in eqn.invars]
    if name == "dot_general":
        ((axes, _), _) = eqn.params["dimension_numbers"]
        return math.prod(shapes[0][axis] for axis in axes)
    if name == "conv_general_dilated":
        out_features = eqn.params["dimension_numbers"].rhs_spec[0]
        return math.prod(shapes[1]) // max(1, shapes[1][out_features])
    if name in ("cumsum", "cumlogsumexp", "cumprod"):
        return shapes[0][eqn.params["axis"]]
    if name in ("scatter-add", "scatter_add"):
        return math.prod(shapes[2])
    if name in ("reduce_sum", "reduce_prod", "reduce_window_sum", "add_any"):
        return max(
            2, math.prod(shapes[0]) // max(1, math.prod(eqn.outvars[0].aval.shape))
        )
    return None


def rounded(
    rng: np.random.Generator,
) -> Callable[[Equation, list[Any], list[Any]], list[Any]]:
    """For ``stepwise.one_by_one``: move each result by its own rounding."""

    def after(eqn: Equation, values: list[Any], outs: list[Any]) -> list[Any]:
        if eqn.primitive.name in EXACT:
            return outs
        terms = terms_of(eqn)
        if terms is None:
            return [_moved(rng, x, x) for x in outs]
        # a sum may be off by a roundoff of each partial sum, whatever it comes to
        sizes = compat.bind(eqn, [_size(v) for v in values])
        return [_moved(rng, x, s, terms) for x, s in zip(outs, sizes, strict=True)]

    return after


def _size(value: Any) -> Any:
    return jnp.abs(value).astype(value.dtype) if is_inexact(value.dtype) else value


def _wide(value: Any) -> Any:
    if not is_inexact(value.dtype):
        return value
    kind = np.complex128 if jnp.iscomplexobj(value) else np.float64
    return np.asarray(value).astype(kind)


def _moved(rng: np.random.Generator, value: Any, size: Any, terms: int = 1) -> Any:
    """``value`` moved by ``terms`` roundoffs of ``size``; a key or count as it is."""
    if not is_inexact(value.dtype):
        return value
    wide = _wide(value)
    unit = float(jnp.finfo(value.dtype).eps) * terms * np.abs(_wide(size))
    sign = rng.choice([-1.0, 1.0], np.shape(wide))
    with np.errstate(all="ignore"):
        return jnp.asarray((wide + sign * unit).astype(value.dtype))


def random_runs(program: Program, inputs: Sequence[Any]) -> list[list[Any]]:
    """Outputs of ``program`` with random rounding, as often as it takes."""
    return [
        stepwise.one_by_one(program, inputs, rounded(np.random.default_rng(seed)))
        for seed in range(RUNS)
    ]


def alike(compiled: Any, value: Any) -> bool:
    """Whether two arrays agree so well that their rounding needs no measuring."""
    return bool(np.all(beyond(compiled, value, ()) <= 1.0))


class Furthest(NamedTuple):
    """The element of an array that rounding explains least.

    Attributes:
        ratio: see ``beyond``.
        at: its index.
        compiled: what it is compiled.
        value: what it is equation by equation.
    """

    ratio: float
    at: tuple[int, ...] = ()
    compiled: Any = None
    value: Any = None


def furthest(compiled: Any, value: Any, others: Sequence[Any]) -> Furthest:
    """The element that is furthest ``beyond`` rounding; an empty array has none."""
    ratio = beyond(compiled, value, others)
    if not ratio.size:
        return Furthest(0.0)
    at = np.unravel_index(int(np.argmax(ratio)), ratio.shape)
    index = tuple(int(i) for i in at)
    pair = np.asarray(compiled)[index], np.asarray(value)[index]
    return Furthest(float(ratio[index]), index, *pair)


def beyond(compiled: Any, value: Any, others: Sequence[Any]) -> FloatArray:
    """By how much each element of ``compiled`` differs more than rounding explains.

    Args:
        compiled: what the compiler made of it.
        value: the same, equation by equation.
        others: the same with random rounding.

    Returns:
        The difference in units of what is tolerated, above 1 if it is beyond that;
        infinite if only one of them is finite.
    """
    a, b = _wide(compiled), _wide(value)
    with np.errstate(all="ignore"):
        spread = np.max([np.abs(_wide(x) - b) for x in others], axis=0, initial=0.0)
        # three signs may agree by chance in one element, not in most of them
        spread = np.fmax(spread, np.median(spread) if np.size(spread) else 0.0)
        tiny = float(jnp.finfo(value.dtype).tiny)
        allowed = float(jnp.finfo(value.dtype).eps) * np.abs(b) + spread + tiny
        ratio = np.abs(a - b) / (BEYOND * allowed)
    steady = np.isfinite(b) & np.all([np.isfinite(_wide(x)) for x in others], axis=0)
    ratio = np.where(np.isfinite(a) | ~steady, ratio, np.inf)
    return np.where(steady, ratio, 0.0)
