"""What happened where NaN or infinity was born, in a sentence with the numbers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxcheck.jaxprs.compat import Equation
from jaxcheck.places.births.marks import Marked
from jaxcheck.places.births.primitives import RUNS, pointwise
from jaxcheck.reports.numbers import count, counted
from jaxcheck.trees import is_inexact, wide_on_host

_EIGEN = ("eigh", "eig", "svd")


def first(mask: np.ndarray) -> tuple[int, ...]:
    """The index of the first set element of ``mask``."""
    return tuple(int(i) for i in np.argwhere(mask)[0])


def number(value: Any) -> str:
    """One scalar with the digits of its own precision."""
    scalar = np.asarray(value)
    if np.issubdtype(scalar.dtype, np.complexfloating):
        return f"{complex(scalar):.6g}"
    if scalar.dtype == bool:
        return str(bool(scalar))
    return f"{float(scalar):.6g}"


def place(index: tuple[int, ...], total: int) -> str:
    """`` at [2, 0]``, and how many more there are."""
    where = f" at {list(index)}" if index else ""
    more = f" (and {counted(total - 1, 'more element')})" if total > 1 else ""
    return where + more


def of_value(
    eqn: Equation,
    ins: Sequence[Marked],
    outs: Sequence[Any],
    j: int,
    mask: np.ndarray,
) -> str:
    """How the value of an equation came to be non-finite."""
    index = first(mask)
    result = number(np.asarray(outs[j])[index])
    name = eqn.primitive.name
    where = place(index, int(mask.sum()))
    operands = at(eqn, ins, index, mask.shape)
    if operands:
        return f"`{name}` of {operands} is {result}{where}."
    shapes = " and ".join(extent(x.value) for x in ins if _floating(x.value))
    return (
        f"`{name}` gives {result}{where}; its operands: {shapes or 'none'}{shut(eqn)}."
    )


def of_derivative(
    eqn: Equation,
    ins: Sequence[Marked],
    outs: Sequence[Marked],
    cotangents: Sequence[Any],
    operand: int,
    result: Any,
    mask: np.ndarray,
) -> str:
    """How the cotangent of an equation's operand came to be non-finite."""
    index = first(mask)
    name = eqn.primitive.name
    became = number(np.asarray(result)[index])
    which = "its operand" if len(ins) == 1 else f"its operand {operand}"
    head = f"the derivative of `{name}` makes the cotangent of {which} {became}"
    head += place(index, int(mask.sum()))
    came = [c for c in cotangents if c is not None]
    # the cotangent of an operand that is broadcast is a sum over elements
    alone = np.shape(came[0]) == mask.shape
    if alone and (operands := at(eqn, ins, index, mask.shape)):
        value = number(np.asarray(outs[0].value)[index])
        coming = number(np.asarray(came[0])[index])
        return (
            f"{head}: `{name}` of {operands} is {value}, and the cotangent that came "
            f"in is {coming}."
        )
    if name in _EIGEN and (equal := _equal_spectrum(eqn, outs)):
        return f"{head}: {equal}, and it divides by their difference."
    shapes = " and ".join(extent(x.value) for x in ins if _floating(x.value))
    coming = " and ".join(extent(c) for c in came)
    return (
        f"{head}; operands: {shapes}; the cotangent that came in: {coming}{shut(eqn)}."
    )


def of_sum(result: Any, mask: np.ndarray) -> str:
    """How the sum of the cotangents of several uses came to be non-finite."""
    index = first(mask)
    return (
        "the cotangents that come from the uses of this value add up to "
        f"{number(np.asarray(result)[index])}{place(index, int(mask.sum()))}."
    )


def given(what: str, value: Any, mask: np.ndarray) -> str:
    """What is read is not finite to begin with."""
    result = number(np.asarray(value)[first(mask)])
    where = place(first(mask), int(mask.sum()))
    return f"{what} that is read here is {result}{where}; nothing computed it."


def first_reader(equations: Sequence[Equation], var: Any) -> int | None:
    """The number of the first equation that reads ``var``."""
    readers = (
        k for k, eqn in enumerate(equations) if any(v is var for v in eqn.invars)
    )
    return next(readers, None)


def at(
    eqn: Equation, ins: Sequence[Marked], index: tuple[int, ...], shape: tuple[int, ...]
) -> str:
    """The operands' elements at ``index``, if that is what the element is made of."""
    if not ins or not pointwise(eqn):
        return ""
    parts = [
        number(np.broadcast_to(np.asarray(x.value), shape)[index])
        for x in ins
        if not jnp.issubdtype(x.value.dtype, jax.dtypes.prng_key)
    ]
    if eqn.primitive.name == "integer_pow":
        parts.append(str(eqn.params["y"]))
    text = " and ".join(parts)
    new = eqn.params.get("new_dtype")
    return text if new is None else f"{text} to {new}"


def extent(value: Any) -> str:
    """The range of an array's finite elements: ``float32[3] from 0 to 2``."""
    array = np.asarray(value)
    kind = f"{array.dtype}[{','.join(map(str, array.shape))}]"
    wide = wide_on_host(array)
    if np.iscomplexobj(wide):
        wide = np.abs(wide)
    usual = wide[np.isfinite(wide)]
    odd = {"NaN": np.isnan(wide), "inf": wide == np.inf, "-inf": wide == -np.inf}
    texts = [f"{count(int(m.sum()))} {name}" for name, m in odd.items() if m.any()]
    text = f"{kind} with {' and '.join(texts)}" if texts else kind
    if not usual.size:
        return text
    low, high = number(usual.min()), number(usual.max())
    return f"{text}, all {low}" if low == high else f"{text} from {low} to {high}"


def shut(eqn: Equation) -> str:
    """That nothing is said of what an equation runs."""
    return "; what it runs was not opened" if eqn.primitive.name in RUNS else ""


def _floating(value: Any) -> bool:
    return is_inexact(getattr(value, "dtype", np.dtype(bool)))


def _equal_spectrum(eqn: Equation, outs: Sequence[Marked]) -> str:
    """Two eigenvalues or singular values that are the same, in words."""
    noun = "singular values" if eqn.primitive.name == "svd" else "eigenvalues"
    spectra = [x.value for x in outs if x.value.ndim == outs[0].value.ndim - 1]
    spectra = spectra or [x.value for x in outs if x.value.ndim == 1]
    for spectrum in spectra:
        rows = np.sort(np.asarray(spectrum).reshape(-1, spectrum.shape[-1]), axis=-1)
        same = np.argwhere(np.diff(rows, axis=-1) == 0)
        if same.size:
            row, column = same[0]
            return f"two of its {noun} are equal ({number(rows[row, column])})"
    return ""
