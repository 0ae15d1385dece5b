r"""Cotangents of activations, measured on their way back through a jitted program.

A probe is an identity whose rule sends the cotangent on, and what is counted in it to
a *slot*: the statistics come back as the slot's gradient. That needs no callback and no
buffer the size of an activation, and wherever JAX adds gradients (a layer used twice, a
scan, a vmapped batch, devices) it adds statistics.

So what is counted must add. Squares are summed in three bands of magnitude, each with a
power of two of its own, as Blue did it for norms: unlike a scale read off the data,
constants make sums of different uses addable, and neither overflow nor vanish.

This module judges nothing, and deliberately measures no maximum: maxima do not add.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxcheck.errors import InvalidInputError
from jaxcheck.jaxprs import compat
from jaxcheck.training.moments import over
from jaxcheck.training.sizes import as_real
from jaxcheck.training.sums import summed
from jaxcheck.trees import partition

# Σ of squares of large, medium and small elements; zeros, non-finite ones, all.
_FIELDS = 6
_MOST = 2**31 - 1


class ProbeStatistics(NamedTuple):
    """What a probe has seen; arrays of the shape that the slots are stacked in.

    Attributes:
        norm: √Σ|c|² over the finite elements c of the cotangents.
        rms: √(Σ|c|²/n), n being the number of finite elements.
        zero_share: how many of the n elements are exactly zero, over n.
        nonfinite: how many elements are NaN or infinite, int32; it stops at 2³¹ − 1.
        size: how many elements there were, likewise. 0 says that no cotangent came.
    """

    norm: jax.Array
    rms: jax.Array
    zero_share: jax.Array
    nonfinite: jax.Array
    size: jax.Array


def probe_slot(*shape: int, dtype: Any = jnp.float32) -> jax.Array:
    """Make a slot for ``backward_probe``, or a stack of them.

    Args:
        *shape: of the stack: ``probe_slot()`` is one slot, ``probe_slot(12)`` has a row
            for each of twelve layers.
        dtype: float32, or float64 for cotangents beyond the range of float32.

    Returns:
        Zeros, ``[*shape, 6]``. What is in a slot is never read.

    Example:
        >>> from jaxcheck import probe_slot
        >>> probe_slot(12).shape
        (12, 6)
    """
    return jnp.zeros((*shape, _FIELDS), dtype)


def backward_probe(x: Any, slot: jax.Array) -> Any:
    r"""Return ``x``, and measure its cotangent as the gradient of ``slot``.

    With :math:`c` the cotangent of ``x``, ``jax.grad`` with respect to ``slot`` gives
    sums over the elements of :math:`c` (their squares, how many are zero, not finite,
    and there at all), which ``probe_statistics`` makes numbers of. That is no
    derivative: do not hand it to an optimizer, nor ``slot`` to ``jaxcheck.check`` as a
    parameter. Everything else, values and gradients, is as without the probe.

    Sums add. Where one slot is used several times (a shared layer, a scan, examples
    under ``vmap``, devices of a ``shard_map``), its statistics are those of all these
    cotangents together, as if they were one array. Scan over a stack of slots, one for
    each layer, to keep them apart. Where ``vmap`` returns a gradient per example, there
    are statistics per example.

    A NaN or an infinity is counted and otherwise left out. Counts of one use are exact,
    and their sum to the rounding of the slot's dtype (float32 counts to 2²⁴ exactly).
    For derivatives of higher order the statistics are constants. As of any function
    with a reverse rule, there is no forward-mode derivative.

    Args:
        x: an array or a pytree of arrays, of any floating or complex dtype; the leaves
            are measured together, and other leaves passed through. Tracers.
        slot: one slot made by ``probe_slot``, argument of the function that is
            differentiated.

    Returns:
        ``x``, bit for bit.

    Raises:
        InvalidInputError: ``x`` has no floating leaf, or ``slot`` is no slot.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from jaxcheck import backward_probe, probe_slot, probe_statistics
        >>> def loss_fn(params, slots, x):
        ...     def layer(h, at):
        ...         w, slot = at
        ...         return backward_probe(jnp.tanh(h @ w), slot), None
        ...     h, _ = jax.lax.scan(layer, x, (params, slots))
        ...     return jnp.mean(h**2)
        >>> params, x = jnp.stack([jnp.eye(3)] * 5), jnp.ones((4, 3))
        >>> grad = jax.jit(jax.grad(loss_fn, argnums=(0, 1)))
        >>> grads, seen = grad(params, probe_slot(5), x)
        >>> stats = probe_statistics(seen)  # of the cotangent of each layer's output
        >>> stats.norm.shape, stats.nonfinite.tolist(), stats.size.tolist()
        ((5,), [0, 0, 0, 0, 0], [12, 12, 12, 12, 12])

    References:
        J. L. Blue, "A portable Fortran program to find the Euclidean norm of a vector",
        ACM TOMS 4 (1978).
    """
    parts = partition(x)
    if not parts.moved:
        raise InvalidInputError(
            "`backward_probe(x=...)` must hold at least one non-empty floating or "
            f"complex array; it is {jax.tree.map(_kind, x)}, which has no cotangent."
        )
    _require_slot("backward_probe(slot=...)", slot)
    if jnp.shape(slot) != (_FIELDS,):
        raise InvalidInputError(
            f"`backward_probe(slot=...)` must be one slot, [{_FIELDS}]; it is a stack "
            f"of them, {list(jnp.shape(slot))}. Index it, or scan or vmap over it."
        )
    moved = tuple(jnp.asarray(value) for value in parts.moved)
    # Inside shard_map a gradient varies as its argument does. A slot that is the same
    # on all devices is made to vary, whose transpose sums what the devices count.
    varying = frozenset[str]().union(*(compat.varying_axes(value) for value in moved))
    slot = compat.varied(slot, varying)
    axes = tuple(sorted(compat.varying_axes(slot)))
    return parts.rebuild(_probed(moved, slot, axes, jnp.dtype(slot.dtype)))


def probe_statistics(slot_grads: jax.Array) -> ProbeStatistics:
    """Read what probes have seen, inside or outside of ``jit``.

    Args:
        slot_grads: the gradient of a slot or of a stack of slots, ``[..., 6]``. Sums of
            them, over steps or devices, are read the same way.

    Returns:
        Statistics of the shape of the stack. Norms are infinite with ``nonfinite`` 0
        only if they are themselves too large for their dtype.

    Raises:
        InvalidInputError: the shape is not that of a slot's gradient.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from jaxcheck import backward_probe, probe_slot, probe_statistics
        >>> loss_fn = lambda slot, x: jnp.sum(jax.nn.relu(backward_probe(x, slot)))
        >>> x = jnp.array([-1.0, 2.0, -3.0, 4.0])
        >>> stats = probe_statistics(jax.grad(loss_fn)(probe_slot(), x))
        >>> float(stats.zero_share), int(stats.size)
        (0.5, 4)
    """
    _require_slot("probe_statistics(slot_grads=...)", slot_grads)
    slot_grads = jnp.asarray(slot_grads)
    sums, zeros, nonfinite, size = jnp.split(slot_grads, (3, 4, 5), axis=-1)
    units = jnp.asarray(_units(slot_grads.dtype), slot_grads.dtype)
    unit = jnp.max(jnp.where(sums > 0, units, units[2]), axis=-1, keepdims=True)
    ratio = jnp.where(units <= unit, units / unit, 0.0)
    # The square of the ratio itself may vanish.
    squares = jnp.sum(sums * ratio * ratio, axis=-1, keepdims=True)
    finite = size - nonfinite
    result = ProbeStatistics(
        norm=unit * jnp.sqrt(squares),
        rms=unit * jnp.sqrt(over(squares, finite)),
        zero_share=over(zeros, finite),
        nonfinite=_whole(nonfinite),
        size=_whole(size),
    )
    return ProbeStatistics(*(field[..., 0] for field in result))


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _probed(
    moved: tuple[jax.Array, ...], slot: jax.Array, axes: tuple[str, ...], dtype: Any
) -> tuple[jax.Array, ...]:
    return moved


def _forward(
    moved: tuple[jax.Array, ...], slot: jax.Array, axes: tuple[str, ...], dtype: Any
) -> tuple[tuple[jax.Array, ...], None]:
    return moved, None


def _backward(
    axes: tuple[str, ...], dtype: Any, _: None, cotangents: tuple[jax.Array, ...]
) -> tuple[tuple[jax.Array, ...], jax.Array]:
    counted = [_counted(jax.lax.stop_gradient(c), dtype) for c in cotangents]
    seen = functools.reduce(jnp.add, counted)
    return cotangents, compat.varied(seen, frozenset(axes))


_probed.defvjp(_forward, _backward)


def _counted(cotangent: jax.Array, dtype: Any) -> jax.Array:
    """What one cotangent adds to a slot."""
    value = as_real(cotangent, dtype)
    finite = jnp.isfinite(value)
    size = jnp.where(finite, jnp.abs(value), 0.0)
    most, _, least = _units(dtype)
    large, small = size >= np.sqrt(most), size < np.sqrt(least)
    terms = [
        jnp.square(jnp.where(large, size / most, 0.0)),
        jnp.square(jnp.where(large | small, 0.0, size)),
        jnp.square(jnp.where(small, size / least, 0.0)),
        (value == 0).astype(jnp.int32),
        (~finite).astype(jnp.int32),
    ]
    sums = [total.astype(dtype) for total in summed(terms)]
    return jnp.stack([*sums, jnp.full_like(sums[0], cotangent.size)])


def _units(dtype: Any) -> tuple[float, float, float]:
    """A unit for each band of magnitudes: 2⁸⁴, 1 and 2⁻⁸⁴ for float32.

    The bands meet at their geometric means, 2⁴² and 2⁻⁴²: a third of the exponents is
    in each, so that squares of x/unit are within 2⁻⁸⁴ and 2⁸⁸, and 2⁴⁰ of them can be
    summed.
    """
    octaves = 2 * (jnp.finfo(dtype).maxexp // 3)
    return 2.0**octaves, 1.0, 2.0**-octaves


def _whole(count: jax.Array) -> jax.Array:
    fits = count < float(_MOST)
    return jnp.where(fits, jnp.where(fits, count, 0.0).astype(jnp.int32), _MOST)


def _kind(leaf: Any) -> str:
    return f"{getattr(leaf, 'dtype', type(leaf).__name__)}{list(jnp.shape(leaf))}"


def _require_slot(argument: str, slot: Any) -> None:
    shape, dtype = jnp.shape(slot), getattr(slot, "dtype", None)
    if shape[-1:] == (_FIELDS,) and dtype in (jnp.float32, jnp.float64):
        return
    raise InvalidInputError(
        f"`{argument}` must be float32[..., {_FIELDS}] (or float64), made by "
        f"`jaxcheck.probe_slot`; it is {_kind(slot)}."
    )
