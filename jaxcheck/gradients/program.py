"""The three programs behind a check, each compiled once.

- *native*: loss and gradient as training computes them, in the program's own dtypes;
- *reading*: loss and gradient of the float64 reading with the custom rules kept;
- *evaluation*: the loss at moved points, custom rules inlined, batched over *lanes*.

A lane moves the coordinates ``lo <= i < hi``, by ``step`` times the leaf's own step
times the probe (or times one). So one program serves single coordinates, whole leaves,
and everything between. Complex leaves are seen as real ones with a last axis of 2.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from jaxcheck.gradients.probes import probe
from jaxcheck.jaxprs import compat, interpret
from jaxcheck.jaxprs.compiled import Compiled
from jaxcheck.jaxprs.lift import lift
from jaxcheck.jaxprs.magnitudes import run_with_magnitudes
from jaxcheck.jaxprs.memory import aval_bytes, peak_bytes
from jaxcheck.jaxprs.perturb import Perturbation, narrowing_sites
from jaxcheck.jaxprs.sites import site_of
from jaxcheck.jaxprs.trace import TracedLoss
from jaxcheck.reports.values import EquationSite
from jaxcheck.trees import Leaf

Array = Any
FloatArray = np.ndarray[Any, np.dtype[np.float64]]
IntArray = np.ndarray[Any, np.dtype[np.int64]]

# Below this, lanes fit into a CPU's cache (measured: 64 lanes of a 9,000-parameter MLP
# run twice as fast as 1,024); an accelerator wants more work at a time.
_CPU_BATCH_BYTES = 16 * 2**20
_ACCELERATOR_BATCH_BYTES = 2**30
_CPU_LANES = 64
_MAX_LANES = 1024
# Calls that are dispatched before the first of them is waited for.
_IN_FLIGHT = 8


@dataclasses.dataclass(frozen=True, kw_only=True)
class NativeResult:
    """What training computes, at the parameters that were given.

    Attributes:
        loss: the loss.
        repeated: the loss of a second run of the same program.
        grads: one gradient a leaf, on the device.
        bad_params: non-finite elements of each leaf.
        bad_grads: non-finite elements of each gradient.
    """

    loss: float
    repeated: float
    grads: list[Array]
    bad_params: IntArray
    bad_grads: IntArray


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReadingResult:
    """The reading's own gradient by autodiff; arrays are real views, one a leaf.

    Attributes:
        loss: the loss of the reading.
        grads: gradients, on the device.
        sizes: size of what was summed to give them, on the device.
        rms: root mean square of each leaf.
        norms: 2-norm of each gradient.
        size_norms: 2-norm of each size.
        native_errors: 2-norm of (native gradient - this one).
        bad_grads: non-finite elements of each gradient.
    """

    loss: float
    grads: list[Array]
    sizes: list[Array]
    rms: FloatArray
    norms: FloatArray
    size_norms: FloatArray
    native_errors: FloatArray
    bad_grads: IntArray


@dataclasses.dataclass(frozen=True, kw_only=True)
class Lanes:
    """What to evaluate: arrays of one length, one entry a lane.

    Attributes:
        lo: first real coordinate that moves.
        hi: one past the last.
        step: signed multiple of the leaf's step.
    """

    lo: IntArray
    hi: IntArray
    step: FloatArray

    def __len__(self) -> int:
        return len(self.lo)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Values:
    """What came of lanes.

    Attributes:
        loss: the loss at the moved point.
        predicted: the change that the reading's gradient predicts.
        size: the same sum over the sizes of what was summed.
        moved: the sum of the coordinates' actual displacements.
    """

    loss: FloatArray
    predicted: FloatArray
    size: FloatArray
    moved: FloatArray


def real_view(value: Array) -> Array:
    """A complex array as a real one with a last axis (real, imaginary)."""
    if jnp.iscomplexobj(value):
        return jnp.stack([jnp.real(value), jnp.imag(value)], axis=-1)
    return value


def from_real_view(view: Array, is_complex: bool) -> Array:
    """The inverse of ``real_view``."""
    if is_complex:
        return jax.lax.complex(view[..., 0], view[..., 1])
    return view


class Programs:
    """The compiled programs of one check.

    Attributes:
        leaves: the differentiable leaves.
        offsets: first real coordinate of each leaf, and the total at the end.
        evaluations: loss evaluations spent so far.
    """

    def __init__(
        self, traced: TracedLoss, *, precision: Literal["float64", "native"], lanes: int
    ) -> None:
        self.traced = traced
        self.native_precision = precision == "native"
        self.leaves: tuple[Leaf, ...] = traced.params.differentiable
        self.views = [x.shape + ((2,) if x.complex else ()) for x in self.leaves]
        sizes = [math.prod(view) for view in self.views]
        self.offsets: IntArray = np.concatenate([[0], np.cumsum(sizes)]).astype(
            np.int64
        )
        self.inputs = self._inputs()
        self.evaluations = 0
        self._lanes = lanes

    @functools.cached_property
    def _inlined(self) -> Any:
        return self._lift("inline")

    @functools.cached_property
    def _kept(self) -> Any:
        return self._lift("keep")

    @functools.cached_property
    def _perturbation(self) -> Perturbation:
        return Perturbation(self._inlined)

    @property
    def sites(self) -> tuple[EquationSite, ...]:
        """The stop_gradient equations of the loss."""
        return self._perturbation.sites

    @property
    def eps(self) -> float:
        """Unit roundoff of the least precise dtype on the way to the loss."""
        return self._least_precision[0]

    @property
    def lowered(self) -> EquationSite | None:
        """The place where that dtype comes in, None if nothing is lowered."""
        return self._least_precision[1]

    def _inputs(self) -> list[Array]:
        """The program's inputs in the dtypes that it was traced with."""
        avals = compat.input_avals(self.traced.program)
        return [
            value if isinstance(value, jax.Array) else np.asarray(value, aval.dtype)
            for value, aval in zip(self.traced.inputs, avals, strict=True)
        ]

    def _lift(self, rules: Literal["inline", "keep"]) -> Any:
        with compat.x64(True):
            return lift(
                self.traced.program,
                rules=rules,
                native=self.native_precision,
                native_x64=self.traced.x64,
            )

    @functools.cached_property
    def _least_precision(self) -> tuple[float, EquationSite | None]:
        moving = [i < self.traced.n_moved for i in range(len(self.inputs))]
        if self.native_precision:
            # every floating value on the way counts, not only where it is rounded
            jaxpr, _ = compat.opened(self._inlined)
            dtypes = [v.aval.dtype for e in jaxpr.eqns for v in e.outvars if _floats(v)]
            dtypes += [v.aval.dtype for v in jaxpr.invars if _floats(v)]
            return max(float(jnp.finfo(d).eps) for d in dtypes), None
        eps, place = float(np.finfo(np.float64).eps), None
        for dtype, eqn in narrowing_sites(self._inlined, moving):
            if float(jnp.finfo(dtype).eps) > eps:
                eps, place = float(jnp.finfo(dtype).eps), site_of(eqn)
        return eps, place

    @functools.cached_property
    def batch(self) -> int:
        """Lanes of one call, from the bytes that one lane takes."""
        jaxpr, _ = compat.opened(self._inlined)
        n_moved = self.traced.n_moved
        moved = 2 * sum(aval_bytes(v.aval) for v in jaxpr.invars[:n_moved])
        one = peak_bytes(self._inlined) + moved
        on_cpu = jax.default_backend() == "cpu"
        allowed = _CPU_BATCH_BYTES if on_cpu else _ACCELERATOR_BATCH_BYTES
        fitting = max(1, allowed // max(one, 1))
        # not the exact number of lanes: another mode then finds the program compiled
        wanted = _CPU_LANES if on_cpu else min(_MAX_LANES, max(_CPU_LANES, self._lanes))
        return int(min(fitting, wanted))

    # -- the gradient as training computes it

    def native(self) -> NativeResult:
        """Run the loss and its gradient in the program's own dtypes, twice."""
        count = self.traced.n_moved

        def run(*inputs: Array) -> list[Array]:
            def loss(*moved: Array) -> Array:
                full = [*moved, *inputs[count:]]
                return interpret.evaluate(self.traced.program, full)[0]

            moved = inputs[:count]
            value, grads = jax.value_and_grad(loss, argnums=tuple(range(count)))(*moved)
            bad = [_count_bad(x) for x in (*moved, *grads)]
            return [value, jnp.stack(bad), *grads]

        compiled = Compiled(run, self.inputs, x64=self.traced.x64)
        value, bad, *grads = compiled(*self.inputs)
        again = compiled(*self.inputs)[0]
        self.evaluations += 2
        counts = np.asarray(bad, dtype=np.int64)
        return NativeResult(
            loss=float(value),
            repeated=float(again),
            grads=grads,
            bad_params=counts[:count],
            bad_grads=counts[count:],
        )

    def native_view(self, native: NativeResult, leaf: int) -> FloatArray:
        """The native gradient of one leaf on the host, as its real view."""
        with compat.x64(True):
            return np.asarray(_widen(_native_view(native.grads[leaf])))

    # -- autodiff of the reading

    def _views_of(self, inputs: Sequence[Array]) -> list[Array]:
        moved = inputs[: self.traced.n_moved]
        if self.native_precision:
            return [real_view(jnp.asarray(x)) for x in moved]
        return [real_view(_widen(x)) for x in moved]

    def _full(self, views: Sequence[Array], others: Sequence[Array]) -> list[Array]:
        moved = [
            from_real_view(v, leaf.complex)
            for v, leaf in zip(views, self.leaves, strict=True)
        ]
        rest = [value if self.native_precision else _widen(value) for value in others]
        return [*moved, *rest]

    @functools.cached_property
    def _reading(self) -> Compiled:
        count = self.traced.n_moved
        structs = [jax.ShapeDtypeStruct((), np.float64), jax.random.key(0)]
        native = [compat.struct(v.aval) for v in self._moved_vars()]
        return Compiled(
            functools.partial(self._read, count),
            [*structs, *native, *self.inputs],
            x64=True,
        )

    def _moved_vars(self) -> list[Any]:
        jaxpr, _ = compat.opened(self.traced.program)
        return list(jaxpr.invars[: self.traced.n_moved])

    def _read(self, count: int, jitter: Array, key: Array, *rest: Array) -> list[Array]:
        native, inputs = rest[:count], rest[count:]
        views = [
            _jittered(view, jitter, key, leaf.token)
            for view, leaf in zip(self._views_of(inputs), self.leaves, strict=True)
        ]

        def loss(*args: Array) -> Array:
            full = self._full(args[:count], args[count:])
            return interpret.evaluate(self._kept, full)[0]

        gradient = jax.value_and_grad(loss, argnums=tuple(range(count)))
        arguments = [*views, *inputs[count:]]
        flat = compat.make_program(lambda *args: _flat(gradient(*args)), arguments)
        out, sizes = run_with_magnitudes(flat, arguments, range(1, count + 1))
        grads = [_widen(g) for g in out[1:]]
        sizes = [_widen(s) for s in sizes]
        natives = [_widen(_native_view(g)) for g in native]
        errors = [n - g for n, g in zip(natives, grads, strict=True)]
        table = [
            [_rms(_widen(v)) for v in views],
            [_norm(g) for g in grads],
            [_norm(s) for s in sizes],
            [_norm(e) for e in errors],
        ]
        bad = [_count_bad(g) for g in grads]
        return [_widen(out[0]), jnp.array(table), jnp.stack(bad), *grads, *sizes]

    def read(self, native: NativeResult, *, jitter: float, key: Array) -> ReadingResult:
        """Loss and gradient of the reading.

        Args:
            native: the native gradients, to measure their error.
            jitter: how many units of float64 roundoff to move each parameter by, in
                random directions, to measure autodiff's own noise; 0 for none.
            key: key of those directions.
        """
        out = self._reading(np.float64(jitter), key, *native.grads, *self.inputs)
        self.evaluations += 1
        count = len(self.leaves)
        table = np.asarray(out[1], dtype=np.float64)
        return ReadingResult(
            loss=float(out[0]),
            grads=out[3 : 3 + count],
            sizes=out[3 + count :],
            rms=table[0],
            norms=table[1],
            size_norms=table[2],
            native_errors=table[3],
            bad_grads=np.asarray(out[2], dtype=np.int64),
        )

    # -- the loss at moved points

    @functools.cached_property
    def _evaluation(self) -> Compiled:
        lane = np.zeros(self.batch)
        whole = np.zeros(self.batch, np.int64)
        floats = [jax.ShapeDtypeStruct(view, np.float64) for view in self.views]
        inputs = [
            *(whole, whole, lane),
            np.zeros(len(self.leaves)),
            np.zeros(len(self.sites), bool),
            jax.random.key(0),
            *(np.False_, np.False_),
            *floats,
            *floats,
            *self.inputs,
        ]
        try:
            return Compiled(
                functools.partial(self._evaluate, jax.vmap), inputs, x64=True
            )
        except Exception as error:
            if not _is_batching_failure(error):
                raise
            # no batching rule (an ordered callback, a foreign kernel): lane by lane
            return Compiled(
                functools.partial(self._evaluate, _one_by_one), inputs, x64=True
            )

    def _evaluate(
        self,
        batch: Callable[..., Any],
        lo: Array,
        hi: Array,
        step: Array,
        scale: Array,
        transparent: Array,
        key: Array,
        unit: Array,
        relative: Array,
        *rest: Array,
    ) -> list[Array]:
        count = len(self.leaves)
        grads, sizes, inputs = rest[:count], rest[count : 2 * count], rest[2 * count :]
        views = self._views_of(inputs)
        steps = [
            self._steps(k, views[k], scale[k], key, unit, relative)
            for k in range(count)
        ]
        others = inputs[count:]
        base = self._full(views, others)
        small = self.offsets[-1] < np.iinfo(np.int32).max
        index_dtype = jnp.int32 if small else jnp.int64

        def lane(lo: Array, hi: Array, step: Array) -> tuple[Array, ...]:
            moved: list[Array] = []
            sums = [jnp.zeros(()), jnp.zeros(()), jnp.zeros(())]
            for k, view in enumerate(views):
                index = jax.lax.iota(index_dtype, math.prod(view.shape))
                index = index.reshape(view.shape) + self.offsets[k].astype(index_dtype)
                inside = (index >= lo) & (index < hi)
                shift = jnp.where(inside, step * steps[k], 0.0).astype(view.dtype)
                moved.append(view + shift)
                actual = _widen(moved[-1]) - _widen(view)
                sums = _add_sums(sums, grads[k], sizes[k], actual, unit)
            out = self._perturbation(base, self._full(moved, others), transparent)
            return (_widen(out[0]), *sums)

        lo, hi = lo.astype(index_dtype), hi.astype(index_dtype)
        return list(batch(lane)(lo, hi, step))

    def _steps(
        self,
        k: int,
        view: Array,
        scale: Array,
        key: Array,
        unit: Array,
        relative: Array,
    ) -> Array:
        """The displacement of every coordinate of leaf ``k`` for ``step = 1``."""
        wide = jnp.abs(_widen(view))
        own = _power_of_two(wide * _cube_root(self.eps))
        scales = jnp.where(relative & (wide > 0), own, scale)
        draw = functools.partial(probe, key, self.leaves[k].token, view.shape)
        return scales * jax.lax.cond(unit, lambda: jnp.ones(view.shape), draw)

    def evaluate(
        self,
        lanes: Lanes,
        reading: ReadingResult,
        scales: FloatArray,
        *,
        key: Array,
        unit: bool = False,
        relative: bool = False,
        transparent: Sequence[bool] | None = None,
        advance: Callable[[int], None] = lambda n: None,
    ) -> Values:
        """Evaluate the loss in every lane.

        Args:
            lanes: what to move, and how far.
            reading: the gradient to predict changes with.
            scales: step of each leaf.
            key: key of the probe that all these lanes take their coordinates from.
            unit: move by one step instead of along a probe.
            relative: step of each coordinate in proportion to its own value.
            transparent: flag for each stop_gradient site, all False by default.
            advance: told how many lanes have been done.
        """
        flags = np.zeros(len(self.sites), bool)
        if transparent is not None:
            flags[:] = transparent
        fixed = (
            np.asarray(scales, np.float64),
            flags,
            key,
            np.bool_(unit),
            np.bool_(relative),
            *reading.grads,
            *reading.sizes,
            *self.inputs,
        )
        pending: list[tuple[int, list[Array]]] = []
        parts: list[list[FloatArray]] = []

        def collect() -> None:
            for done, out in pending:
                parts.append([np.asarray(x)[:done] for x in out])
                self.evaluations += done
                advance(done)
            pending.clear()

        for start in range(0, len(lanes), self.batch):
            chunk = slice(start, start + self.batch)
            columns = (lanes.lo[chunk], lanes.hi[chunk], lanes.step[chunk])
            padded = [_pad(x, self.batch) for x in columns]
            pending.append((len(columns[0]), self._evaluation(*padded, *fixed)))
            # a few calls stay in flight, so that the device does not wait for the host
            if len(pending) >= _IN_FLIGHT:
                collect()
        collect()
        joined = [np.concatenate(c) for c in zip(*parts, strict=True)] if parts else []
        loss, predicted, size, moved = joined or [np.zeros(0)] * 4
        return Values(loss=loss, predicted=predicted, size=size, moved=moved)


def _one_by_one(fun: Callable[..., Any]) -> Callable[..., Any]:
    return lambda *xs: jax.lax.map(lambda x: fun(*x), xs)


def _is_batching_failure(error: Exception) -> bool:
    return isinstance(error, NotImplementedError | ValueError)


def _floats(var: Any) -> bool:
    return jnp.issubdtype(getattr(var.aval, "dtype", np.int32), jnp.floating)


def _widen(value: Array) -> Array:
    """In float64 (complex128); what is no float passes."""
    if not hasattr(value, "dtype") or not jnp.issubdtype(value.dtype, jnp.inexact):
        return value
    wide = jnp.complex128 if jnp.iscomplexobj(value) else jnp.float64
    return value.astype(wide)


def _native_view(grad: Array) -> Array:
    """JAX's gradient of a complex leaf as derivatives by its real and imaginary part.

    For real f, ``jax.grad`` returns df/dx - i df/dy.
    """
    if jnp.iscomplexobj(grad):
        return jnp.stack([jnp.real(grad), -jnp.imag(grad)], axis=-1)
    return grad


def _jittered(view: Array, jitter: Array, key: Array, token: int) -> Array:
    bits = jax.random.bits(
        jax.random.fold_in(key, np.uint32(token)), view.shape, "uint8"
    )
    sign = jnp.where(bits < 128, 1.0, -1.0)
    eps = jnp.finfo(view.dtype).eps
    return jnp.where(jitter == 0, view, view * (1 + jitter * eps * sign)).astype(
        view.dtype
    )


def _flat(out: tuple[Array, Sequence[Array]]) -> list[Array]:
    value, grads = out
    return [value, *grads]


def _add_sums(
    sums: list[Array], grad: Array, size: Array, actual: Array, unit: Array
) -> list[Array]:
    """Predicted change, its size, and displacement; skipped where the host knows them."""

    def add() -> list[Array]:
        # a NaN gradient must not reach the sums of lanes that leave it alone
        used = actual != 0
        change = jnp.where(used, grad * actual, 0.0)
        weight = jnp.where(used, size * jnp.abs(actual), 0.0)
        terms = (change, weight, actual)
        return [s + jnp.sum(t) for s, t in zip(sums, terms, strict=True)]

    return jax.lax.cond(unit, lambda: list(sums), add)


def _count_bad(value: Array) -> Array:
    # a sum of flags, never max: max loses NaN on some backends
    return jnp.sum(~jnp.isfinite(value), dtype=jnp.int32)


def _norm(value: Array) -> Array:
    """2-norm that neither overflows nor underflows before it must."""
    largest = jnp.max(jnp.abs(value), initial=0.0)
    unit = jnp.where((largest > 0) & jnp.isfinite(largest), largest, 1.0)
    return jnp.sqrt(jnp.sum((value / unit) ** 2)) * unit


def _rms(value: Array) -> Array:
    return _norm(value) / math.sqrt(max(1, math.prod(value.shape)))


def _cube_root(eps: float) -> float:
    return eps ** (1.0 / 3.0)


def _power_of_two(value: Array) -> Array:
    """The power of two at or below each positive value, exactly (exp2 rounds)."""
    _, exponent = jnp.frexp(jnp.where(value > 0, value, 1.0))
    return jnp.ldexp(jnp.ones(()), exponent - 1)


def _pad(values: Any, length: int) -> Any:
    """Repeat the last lane: the last batch must not be another program."""
    return np.concatenate([values, np.repeat(values[-1:], length - len(values))])
