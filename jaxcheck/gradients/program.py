"""The programs behind a check, each compiled once.

- *native*: loss and gradient as training computes them, in the program's own dtypes;
- *reading*: loss and gradient of the float64 reading with the custom rules kept;
- *evaluation*: the loss at moved points, custom rules inlined (``evaluation.py``).
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from jaxcheck.gradients.arrays import count_bad, native_view, norm, rms, widen
from jaxcheck.gradients.evaluation import Evaluator, Lanes, Values
from jaxcheck.gradients.point import Point
from jaxcheck.jaxprs import compat, interpret
from jaxcheck.jaxprs.compiled import Compiled, remembered
from jaxcheck.jaxprs.magnitudes import run_with_magnitudes
from jaxcheck.jaxprs.trace import TracedLoss

Array = Any
FloatArray = np.ndarray[Any, np.dtype[np.float64]]
IntArray = np.ndarray[Any, np.dtype[np.int64]]


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


class Programs(Point):
    """A point with the compiled programs of one check.

    Attributes:
        evaluations: loss evaluations spent so far.
    """

    def __init__(
        self,
        traced: TracedLoss,
        *,
        precision: Literal["float64", "native"],
        lanes: int,
        coordinates: bool = False,
    ) -> None:
        """Prepare; nothing is compiled yet.

        Args:
            traced: the loss.
            precision: of the reading.
            lanes: how many will be evaluated at least.
            coordinates: whether most lanes will move a single coordinate.
        """
        super().__init__(traced, precision=precision)
        self.evaluations = 0
        self._lanes = lanes
        self._coordinates = coordinates

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
            bad = [count_bad(x) for x in (*moved, *grads)]
            return [value, jnp.stack(bad), *grads]

        key = ("native", self.identity)
        compiled = remembered(
            key, lambda: Compiled(run, self.inputs, x64=self.traced.x64)
        )
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
            return np.asarray(widen(native_view(native.grads[leaf])))

    # -- autodiff of the reading

    @functools.cached_property
    def _reading(self) -> Compiled:
        count = self.traced.n_moved
        structs = [jax.ShapeDtypeStruct((), np.float64), jax.random.key(0)]
        native = [compat.struct(v.aval) for v in self._moved_vars()]
        run = functools.partial(self._read, count)
        return remembered(
            ("reading", self.identity),
            lambda: Compiled(run, [*structs, *native, *self.inputs], x64=True),
        )

    def _moved_vars(self) -> list[Any]:
        jaxpr, _ = compat.opened(self.traced.program)
        return list(jaxpr.invars[: self.traced.n_moved])

    def _read(self, count: int, jitter: Array, key: Array, *rest: Array) -> list[Array]:
        native, inputs = rest[:count], rest[count:]
        views = [
            _jittered(view, jitter, key, leaf.token)
            for view, leaf in zip(self.views_of(inputs), self.leaves, strict=True)
        ]

        def loss(*args: Array) -> Array:
            full = self.full(args[:count], args[count:])
            return interpret.evaluate(self.kept, full)[0]

        gradient = jax.value_and_grad(loss, argnums=tuple(range(count)))
        arguments = [*views, *inputs[count:]]
        flat = compat.make_program(lambda *args: _flat(gradient(*args)), arguments)
        out, sizes = run_with_magnitudes(flat, arguments, range(1, count + 1))
        grads = [widen(g) for g in out[1:]]
        sizes = [widen(s) for s in sizes]
        natives = [widen(native_view(g)) for g in native]
        errors = [n - g for n, g in zip(natives, grads, strict=True)]
        table = [
            [rms(widen(v)) for v in views],
            [norm(g) for g in grads],
            [norm(s) for s in sizes],
            [norm(e) for e in errors],
        ]
        bad = [count_bad(g) for g in grads]
        return [widen(out[0]), jnp.array(table), jnp.stack(bad), *grads, *sizes]

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
    def _evaluator(self) -> Evaluator:
        return Evaluator(self, lanes=self._lanes, coordinates=self._coordinates)

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
            unit: each lane moves one coordinate, by ``lanes.step`` itself.
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
            np.bool_(relative),
            *reading.grads,
            *reading.sizes,
            *self.inputs,
        )

        def done(count: int) -> None:
            self.evaluations += count
            advance(count)

        return self._evaluator.run(lanes, fixed, unit=unit, advance=done)


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
