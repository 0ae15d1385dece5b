"""Evaluate a program with one coordinate of its inputs moved, touching what changes.

Moving one weight of ``x @ w`` changes one column of the product, and that column only,
through every elementwise operation after it, until something mixes the columns. So a
value is carried as its unmoved base and a *slab*: the one position along one axis
where it may differ. Under vmap the bases are computed once for all lanes. Whatever has
no rule here is made whole and evaluated as usual: the result is the same up to
rounding, only the work differs.

Every input may be the one that moves; which one, is decided at run time. All slabs of
one lane stand at the same position (bounded by the size of their axis), so that they
can meet in one operation.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxcheck.jaxprs import compat, interpret
from jaxcheck.jaxprs.compat import Equation, Program
from jaxcheck.jaxprs.perturb import Moves

Array = Any

_UNARY = (
    *("abs", "acos", "acosh", "asin", "asinh", "atan", "atanh", "cbrt", "ceil", "copy"),
    *("convert_element_type", "cos", "cosh", "digamma", "erf", "erf_inv", "erfc"),
    *("exp", "exp2", "expm1", "floor", "integer_pow", "is_finite", "lgamma", "log"),
    *("log1p", "logistic", "neg", "not", "round", "rsqrt", "sign", "sin", "sinh"),
    *("sqrt", "square", "tan", "tanh"),
)
_OTHERS = (
    *("add", "add_any", "and", "atan2", "clamp", "div", "eq", "ge", "gt", "le", "lt"),
    *("max", "min", "mul", "ne", "or", "pow", "rem", "select_n", "sub"),
)
_ELEMENTWISE = frozenset((*_UNARY, *_OTHERS))


@dataclasses.dataclass(frozen=True)
class Slab:
    """``base``, except at one position along ``axis``, where it is ``new``.

    Attributes:
        base: the unmoved value.
        axis: the axis along which one position moves.
        new: the values there, shaped as ``base`` without ``axis``.
        spike: for the column of a moved matrix, which row moved and by how much.
    """

    base: Array
    axis: int
    new: Array
    spike: tuple[Array, Array] | None = None

    @property
    def size(self) -> int:
        """Length of the axis."""
        return int(self.base.shape[self.axis])


@dataclasses.dataclass(frozen=True)
class Whole:
    """A value that may have moved anywhere, beside what it was."""

    base: Array
    value: Array


class OneHot:
    """One lane: where the coordinate stands along the last axis of its input.

    Equations without a rule for slabs run on pairs (base, moved), as ``moves`` has it.
    """

    def __init__(self, position: Array, moves: Moves) -> None:
        self._position = position
        self._moves = moves

    def moved(self, view: Array, coordinate: Array, active: Array, step: Array) -> Any:
        """An input with one coordinate moved, if it is the active one.

        Args:
            view: the unmoved input.
            coordinate: which of its elements moves, row-major.
            active: whether this input is the one that moves.
            step: by how much.
        """
        shift = jnp.where(active, step, 0.0)
        if view.ndim == 0:
            return Whole(view, view + shift.astype(view.dtype))
        axis = view.ndim - 1
        old = self._at(view, axis)
        row = coordinate // view.shape[axis]
        rows = lax.iota(row.dtype, old.size).reshape(old.shape)
        new = old + jnp.where(rows == row, shift, 0.0).astype(view.dtype)
        spike = (row, shift.astype(view.dtype)) if old.ndim == 1 else None
        return Slab(view, axis, new, spike)

    def run(self, program: Program, args: Sequence[Any]) -> list[Array]:
        """Outputs of ``program``; ``args`` are plain arrays, slabs or wholes."""
        out = interpret.interpret(program, args, self._equation, lambda c: c)
        return [self.whole(value) for value in out]

    # -- slabs

    def _index(self, size: int) -> Array:
        return jnp.minimum(self._position, size - 1)

    def _at(self, value: Array, axis: int) -> Array:
        """The slab of a plain array at this lane's position."""
        index = self._index(value.shape[axis])
        return lax.dynamic_index_in_dim(value, index, axis, keepdims=False)

    def _put(self, base: Array, axis: int, new: Array) -> Array:
        """``base`` with the slab replaced."""
        # a select, which vectorizes where a scatter would not
        places = lax.broadcasted_iota(jnp.int32, base.shape, axis)
        here = places == self._index(base.shape[axis])
        return jnp.where(here, jnp.expand_dims(new, axis), base)

    def whole(self, value: Any) -> Array:
        """The array that a plain value, a slab or a whole stands for."""
        if isinstance(value, Slab):
            return self._put(value.base, value.axis, value.new)
        return value.value if isinstance(value, Whole) else value

    def _change(self, slab: Slab) -> Array:
        return slab.new - self._at(slab.base, slab.axis)

    # -- equations

    def _equation(self, eqn: Equation, values: list[Any]) -> Sequence[Any]:
        if not any(isinstance(v, Slab | Whole) for v in values):
            return compat.bind(eqn, values)
        rules: dict[str, Callable[[Equation, list[Any]], Any]] = {
            "dot_general": self._dot_general,
            "conv_general_dilated": self._convolution,
            "reduce_sum": self._reduce_sum,
            "broadcast_in_dim": self._broadcast,
            "reshape": self._reshape,
            "transpose": self._transpose,
            "stop_gradient": self._stop_gradient,
        }
        name = eqn.primitive.name
        if any(isinstance(v, Slab) for v in values):
            rule = self._elementwise if name in _ELEMENTWISE else rules.get(name)
            out = None if rule is None else rule(eqn, values)
            if out is not None:
                return [out]
        pairs = self._moves.equation(eqn, [(_base(v), self.whole(v)) for v in values])
        return [base if base is moved else Whole(base, moved) for base, moved in pairs]

    def _elementwise(self, eqn: Equation, values: list[Any]) -> Slab | None:
        if any(isinstance(v, Whole) for v in values):
            return None
        slabs = [v for v in values if isinstance(v, Slab)]
        axis, (out,) = slabs[0].axis, eqn.outvars
        # other axes may be one in one operand and longer in another (a layer's bias)
        if any((s.axis, s.size) != (axis, out.aval.shape[axis]) for s in slabs):
            return None
        new = [
            v.new
            if isinstance(v, Slab)
            else v
            if jnp.ndim(v) == 0
            else self._at(v, axis)
            for v in values
        ]
        base = compat.bind(eqn, [_base(v) for v in values])[0]
        return Slab(base, axis, compat.bind(eqn, new)[0])

    def _dot_general(self, eqn: Equation, values: list[Any]) -> Slab | Whole | None:
        """Matrix products with slabs on a free axis, on the contracted one, or both."""
        contracted, batch = eqn.params["dimension_numbers"]
        if any(batch) or any(len(axes) != 1 for axes in contracted):
            return None
        axes = [int(a[0]) for a in contracted]
        slabs = [isinstance(v, Slab) for v in values]
        summed = [
            s and v.axis == a for s, v, a in zip(slabs, values, axes, strict=True)
        ]
        free = [s and not c for s, c in zip(slabs, summed, strict=True)]
        if all(summed) or all(free):
            return None
        still = compat.bind(eqn, [_base(v) for v in values])[0]
        base = still
        if any(isinstance(v, Whole) for v in values):
            parts = [v.value if isinstance(v, Whole) else _base(v) for v in values]
            base = compat.bind(eqn, parts)[0]
        if any(summed):
            side = summed.index(True)
            other = values[1 - side]
            met = other.value if isinstance(other, Whole) else _base(other)
            row = self._at(met, axes[1 - side])
            change = self._change(values[side])
            left, right = (change, row) if side == 0 else (row, change)
            # written as a broadcast, which fuses where a batched product would not
            base = base + left.reshape(left.shape + (1,) * right.ndim) * right
        if not any(free):
            return Whole(still, base)
        side = free.index(True)
        axis = values[side].axis - (values[side].axis > axes[side])
        if side == 1:
            axis += jnp.ndim(_base(values[0])) - 1
        if values[side].spike is not None:
            new = self._at(base, axis) + self._spiked(values, side, axes)
        else:
            new = self._free_product(eqn, values, side, axes)
        if any(summed) or isinstance(values[1 - side], Whole):
            return Whole(still, self._put(base, axis, new))
        return Slab(base, axis, new)

    def _spiked(self, values: list[Any], side: int, axes: list[int]) -> Array:
        """What one moved element of a matrix adds to a product.

        It is a multiple of the row of the other operand that it meets.
        """
        row, change = values[side].spike
        other, axis = self.whole(values[1 - side]), axes[1 - side]
        met = lax.dynamic_index_in_dim(other, row, axis, keepdims=False)
        return (change * met).astype(other.dtype)

    def _free_product(
        self, eqn: Equation, values: list[Any], side: int, axes: list[int]
    ) -> Array:
        """The part of a product that a slab on a free axis makes."""
        slab = values[side]
        operands: list[Array] = [self.whole(v) for v in values]
        operands[side] = slab.new
        dims = list(axes)
        dims[side] -= slab.axis < axes[side]
        numbers = (((dims[0],), (dims[1],)), ((), ()))
        params = {**eqn.params, "dimension_numbers": numbers}
        return compat.bind(eqn, operands, params)[0]

    def _convolution(self, eqn: Equation, values: list[Any]) -> Slab | Whole | None:
        """A kernel with one output feature moved moves one feature of the result."""
        image, kernel = values
        params = eqn.params
        if isinstance(image, Slab) or not isinstance(kernel, Slab):
            return None
        numbers = params["dimension_numbers"]
        grouped = params["feature_group_count"] * params["batch_group_count"] != 1
        if grouped or kernel.axis != numbers.rhs_spec[0]:
            return None
        operand = self.whole(image)
        still = compat.bind(eqn, [_base(image), kernel.base])[0]
        one = jnp.expand_dims(kernel.new, kernel.axis)
        axis = int(numbers.out_spec[1])
        new = jnp.squeeze(compat.bind(eqn, [operand, one])[0], axis)
        if not isinstance(image, Whole):
            return Slab(still, axis, new)
        base = compat.bind(eqn, [operand, kernel.base])[0]
        return Whole(still, self._put(base, axis, new))

    def _stop_gradient(self, eqn: Equation, values: list[Any]) -> Slab:
        slab = values[0]
        flag = self._moves.is_transparent(eqn)
        old = self._at(slab.base, slab.axis)
        return Slab(slab.base, slab.axis, jnp.where(flag, slab.new, old))

    def _reduce_sum(self, eqn: Equation, values: list[Any]) -> Slab | Whole:
        slab, axes = values[0], eqn.params["axes"]
        base = compat.bind(eqn, [slab.base])[0]
        rest = tuple(a - (a > slab.axis) for a in axes if a != slab.axis)
        if slab.axis in axes:
            return Whole(base, base + jnp.sum(self._change(slab), axis=rest))
        axis = slab.axis - sum(a < slab.axis for a in axes)
        return Slab(base, axis, jnp.sum(slab.new, axis=rest))

    def _broadcast(self, eqn: Equation, values: list[Any]) -> Slab | None:
        slab, shape = values[0], eqn.params["shape"]
        dims = eqn.params["broadcast_dimensions"]
        axis = int(dims[slab.axis])
        if len(values) != 1 or shape[axis] != slab.size:
            return None
        kept = [d for k, d in enumerate(dims) if k != slab.axis]
        remapped = tuple(int(d) - (d > axis) for d in kept)
        smaller = tuple(shape[:axis]) + tuple(shape[axis + 1 :])
        base = compat.bind(eqn, [slab.base])[0]
        return Slab(base, axis, lax.broadcast_in_dim(slab.new, smaller, remapped))

    def _reshape(self, eqn: Equation, values: list[Any]) -> Slab | None:
        slab = values[0]
        base = compat.bind(eqn, [slab.base])[0]
        before = math.prod(slab.base.shape[: slab.axis])
        for axis, size in enumerate(base.shape):
            if size == slab.size and math.prod(base.shape[:axis]) == before:
                smaller = base.shape[:axis] + base.shape[axis + 1 :]
                return Slab(base, axis, slab.new.reshape(smaller))
        return None

    def _transpose(self, eqn: Equation, values: list[Any]) -> Slab:
        slab, order = values[0], eqn.params["permutation"]
        axis = list(order).index(slab.axis)
        smaller = [int(d) - (d > slab.axis) for d in order if d != slab.axis]
        base = compat.bind(eqn, [slab.base])[0]
        return Slab(base, axis, jax.lax.transpose(slab.new, smaller))


def _base(value: Any) -> Array:
    return value.base if isinstance(value, Slab | Whole) else value
