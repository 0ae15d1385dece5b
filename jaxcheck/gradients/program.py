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

import jax.numpy as jnp
import numpy as np

from jaxcheck.gradients.arrays import native_view
from jaxcheck.gradients.differentiation import value_and_gradient
from jaxcheck.gradients.evaluation import Evaluator, Lanes, Shared, Values
from jaxcheck.gradients.point import Point
from jaxcheck.gradients.probes import random_bits
from jaxcheck.gradients.tally import bad_counts, measures
from jaxcheck.jaxprs import compat, interpret
from jaxcheck.jaxprs.compat import Program
from jaxcheck.jaxprs.compiled import Compiled, remembered
from jaxcheck.jaxprs.magnitudes import run_with_magnitudes
from jaxcheck.jaxprs.trace import TracedLoss
from jaxcheck.trees import widen

Array = Any
FloatArray = np.ndarray[Any, np.dtype[np.float64]]
IntArray = np.ndarray[Any, np.dtype[np.int64]]


# Rounding of a whole native backward pass, in units of its roundoff.
_BORROWED_UNITS = 32.0


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
        borrowed: why the rules could not be read in float64, so that the native
            gradient stands in for the reading's; None if they could.
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
        self.borrowed: str | None = None
        self._lanes = lanes
        self._coordinates = coordinates

    def natively(self) -> Programs:
        """The same in the program's own dtypes; what was spent stays counted."""
        other = Programs(
            self.traced,
            precision="native",
            lanes=self._lanes,
            coordinates=self._coordinates,
        )
        other.evaluations = self.evaluations
        return other

    def start_gradients(self) -> None:
        """Compile what ``native`` and ``read`` run, side by side."""
        self._native.start(*self.native_inputs)
        self._reading.start(*self._reading_inputs)

    def start_evaluation(self) -> None:
        """Compile what ``evaluate`` runs, meanwhile."""
        self._evaluator.start()

    def _gradient(self, loss: Callable[..., Array]) -> Callable[..., Any]:
        return value_and_gradient(loss, forward=self.traced.forward)

    # -- the gradient as training computes it

    @functools.cached_property
    def _native(self) -> Compiled:
        inputs, x64 = self.native_inputs, self.traced.x64
        key = ("native", self.traced.forward, self.identity)
        return remembered(key, lambda: Compiled(self._natively, inputs, x64=x64))

    def _natively(self, *moved: Array) -> list[Array]:
        return _flat(self._gradient(self.traced.function)(*moved))

    def native_program(self) -> Program:
        """What ``native`` runs, traced for its places: ``leaves -> (loss, *grads)``."""
        with compat.x64(self.traced.x64):
            return compat.make_program(self._natively, self.native_inputs)

    @functools.cached_property
    def native_inputs(self) -> list[Any]:
        """What the loss is called with: Python scalars weakly typed, as it saw them."""
        originals = zip(self.traced.inputs, self.inputs, strict=True)
        return [v if type(v) in (float, complex) else x for v, x in originals]

    def loss_alone(self) -> float:
        """The loss as it is when it is compiled without its gradient."""

        def run(*moved: Array) -> list[Array]:
            return interpret.evaluate(self.traced.program, moved)[:1]

        return self._alone("loss", run, self.native_inputs, x64=self.traced.x64)

    def native(self) -> NativeResult:
        """Run the loss and its gradient in the program's own dtypes, twice."""
        count = len(self.leaves)
        compiled, inputs = self._native, self.native_inputs
        value, *grads = compiled(*inputs)
        again = compiled(*inputs)[0]
        self.evaluations += 2
        counts = bad_counts([*self.inputs[:count], *grads])
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
        """Loss, gradients and sizes; see ``read``."""
        inputs = self._reading_inputs
        try:
            return remembered(
                ("reading", self.traced.forward, self.identity),
                lambda: Compiled(self._read, inputs, x64=True),
            )
        except Exception as error:
            # a rule that holds on to values of another trace, a collective that needs
            # to know what it varies over: the gradient as training has it must do
            self.borrowed = type(error).__name__
            return Compiled(lambda jitter, words, *x: self._value(*x), inputs, x64=True)

    @functools.cached_property
    def _reading_inputs(self) -> list[Any]:
        return [np.float64(0.0), np.zeros(2, np.uint32), *self.inputs]

    def _read(self, jitter: Array, words: Array, *inputs: Array) -> list[Array]:
        count = len(self.leaves)
        views = [
            _jittered(view, jitter, words, leaf.token)
            for view, leaf in zip(self.views_of(inputs), self.leaves, strict=True)
        ]

        def loss(*views: Array) -> Array:
            return interpret.evaluate(self.kept, self.arguments(views))[0]

        gradient = self._gradient(loss)
        flat = compat.make_program(lambda *args: _flat(gradient(*args)), views)
        out, sizes = run_with_magnitudes(flat, views, range(1, count + 1))
        return [widen(x) for x in (*out, *sizes)]

    def _value(self, *inputs: Array) -> list[Array]:
        """The loss of the reading without its gradient."""
        arguments = self.arguments(self.views_of(inputs))
        return [widen(interpret.evaluate(self.inlined, arguments)[0])]

    def read(
        self, native: NativeResult, *, jitter: float = 0.0, words: Any = (0, 0)
    ) -> ReadingResult:
        """Loss and gradient of the reading.

        Args:
            native: the native gradients, to measure their error, and to stand in
                where there is no other.
            jitter: how many units of float64 roundoff to move each parameter by, in
                random directions, to measure autodiff's own noise; 0 for none.
            words: from ``probes.words_of``, for those directions.
        """
        words = np.asarray(words, np.uint32)
        loss, *rest = self._reading(np.float64(jitter), words, *self.inputs)
        self.evaluations += 1
        count = len(self.leaves)
        grads, sizes = rest[:count], rest[count:]
        if self.borrowed is not None:
            with compat.x64(True):
                grads = [widen(native_view(g)) for g in native.grads]
                sizes = [jnp.abs(g) for g in grads]
        table = measures(self.inputs[:count], grads, sizes, native.grads)
        return ReadingResult(
            loss=float(loss),
            grads=grads,
            sizes=sizes,
            rms=table[0],
            norms=table[1],
            size_norms=table[2],
            native_errors=table[3],
            bad_grads=bad_counts(grads),
        )

    @property
    def gradient_eps(self) -> float:
        """Unit roundoff of the gradient under test."""
        if self.borrowed is None:
            return self.eps
        return max(self.eps, _BORROWED_UNITS * self.native_eps)

    # -- the loss at moved points

    @functools.cached_property
    def _evaluator(self) -> Evaluator:
        return Evaluator(self, lanes=self._lanes, coordinates=self._coordinates)

    def reading_alone(self) -> float:
        """The loss of the reading, compiled without its gradient."""
        return self._alone("reading", self._value, self.inputs, x64=True)

    def _alone(
        self, name: str, loss: Callable[..., list[Array]], inputs: Any, *, x64: bool
    ) -> float:
        key = ("alone", name, self.identity)
        compiled = remembered(key, lambda: Compiled(loss, inputs, x64=x64))
        self.evaluations += 1
        return float(compiled(*inputs)[0])

    def at_rest(self, reading: ReadingResult) -> list[float]:
        """The loss where nothing moves, as the programs of ``evaluate`` have it."""
        first = self.offsets[:-1][np.diff(self.offsets) > 0]
        lanes = Lanes(lo=first, hi=first + 1, step=np.zeros(len(first)))
        scales, words = np.ones(len(self.leaves)), np.zeros(2, np.uint32)
        values = self.evaluate(lanes, reading, scales, words=words, unit=True)
        return [float(value) for value in values.loss]

    def evaluate(
        self,
        lanes: Lanes,
        reading: ReadingResult,
        scales: FloatArray,
        *,
        words: Array,
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
            words: of the probe that all these lanes take their coordinates from.
            unit: each lane moves one coordinate, by ``lanes.step`` itself.
            relative: step of each coordinate in proportion to its own value.
            transparent: flag for each stop_gradient site, all False by default.
            advance: told how many lanes have been done.
        """
        flags = np.zeros(len(self.sites), bool)
        if transparent is not None:
            flags[:] = transparent
        shared = Shared(
            transparent=flags,
            scale=np.asarray(scales, np.float64),
            words=words,
            relative=relative,
            unit=unit,
            grads=reading.grads,
            sizes=reading.sizes,
        )

        def done(count: int) -> None:
            self.evaluations += count
            advance(count)

        return self._evaluator.run(lanes, shared, done)


def _jittered(view: Array, jitter: Array, words: Array, token: int) -> Array:
    sign = jnp.where(random_bits(words, token, view.shape) >> 31 == 0, 1.0, -1.0)
    moved = view * (1 + jitter * jnp.finfo(view.dtype).eps * sign).astype(view.dtype)
    return jnp.where(jitter == 0, view, moved)


def _flat(out: tuple[Array, Sequence[Array]]) -> list[Array]:
    value, grads = out
    return [value, *grads]
