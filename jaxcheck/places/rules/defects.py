r"""How much of a wrong gradient comes from which equation.

Move the parameters along a direction :math:`u`. Every value of the program then has a
tangent :math:`t`, its own central difference, and in the backward pass a cotangent
:math:`c`, from the rules. Cut the program anywhere: the sum of :math:`\langle c, t
\rangle` over the values that cross the cut is :math:`g \cdot u` at the inputs and the
derivative :math:`D` of the loss at the output. From one side of an equation to the
other it changes by the equation's *defect*,

.. math:: d_e = \sum_{\text{operands}} \langle c, t \rangle -
                \sum_{\text{outputs}} \langle c, t \rangle,
          \qquad \sum_e d_e = g \cdot u - D,

which is zero where the rule is the derivative. So the defects say not only which
equation is wrong but how much of the error is its doing, and whether anything is left
that no suspect explains. What is wrong without consequence (a stop_gradient whose
cotangents cancel, as in logsumexp) has no defect: the cotangents are the real ones.

Each defect has an error bar: the two steps h and 2h, rounding, and what a kink leaves
open between its one-sided slopes.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxcheck.gradients.comparison import Lane
from jaxcheck.gradients.differences import FIRST_STEPS
from jaxcheck.gradients.displacement import moved
from jaxcheck.gradients.measure import Meter
from jaxcheck.gradients.probes import words_of
from jaxcheck.jaxprs import compat
from jaxcheck.jaxprs.compiled import Compiled
from jaxcheck.jaxprs.lift import reading_of
from jaxcheck.places.rules.instrument import Chain, Instrument, Site
from jaxcheck.places.rules.tap import Carried, Visit
from jaxcheck.trees import widen

Array = Any
FloatArray = np.ndarray[Any, np.dtype[np.float64]]

# Rounding of one product, in units of roundoff; and the share of what flows through an
# equation that no defect below is told from.
_ROUNDING = 8.0
_RESOLUTION = 1e-6


class Flow(NamedTuple):
    """What passes through an equation in one direction, each as float64 [..., lanes].

    Attributes:
        near: the sum of products, from the differences over h.
        far: the same, over 2h.
        size: the sum of absolute products.
        noise: the sum of |cotangent * value|, where the value moves.
        kink: the sum of |cotangent| times half the jump in slope.
    """

    near: Array
    far: Array
    size: Array
    noise: Array
    kink: Array


@dataclasses.dataclass(frozen=True, kw_only=True)
class Defect:
    """What one equation contributes to the error, per lane; per iteration too.

    Attributes:
        site: the equation.
        error: its defect [*iterations, lanes].
        tolerance: what may be differences' or rounding's doing, likewise.
        through: size of what flows through it, likewise.
    """

    site: Site
    error: FloatArray
    tolerance: FloatArray
    through: FloatArray

    @property
    def certain(self) -> Any:
        """Where it is more than its tolerance; what is not finite is not."""
        with np.errstate(invalid="ignore"):
            return np.abs(self.error) > self.tolerance

    @property
    def total(self) -> FloatArray:
        """Over all iterations [lanes]."""
        return self.error.sum(axis=tuple(range(self.error.ndim - 1)))

    @property
    def share(self) -> float:
        """Its error by what flows through it, where that is largest."""
        if not self.certain.any():
            return 0.0
        with np.errstate(all="ignore"):
            ratio = np.abs(self.error) / self.through
        return float(np.max(ratio[self.certain & np.isfinite(ratio)], initial=0.0))

    def iterations(self) -> list[tuple[int, ...]]:
        """The iterations that are wrong, first one first."""
        wrong = self.certain.any(axis=-1)
        return [tuple(int(i) for i in index) for index in np.argwhere(wrong)]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Account:
    """The whole error, and what is accounted for.

    Attributes:
        defects: one for each instrumented equation.
        error: of the gradient along each lane.
        tolerance: of that error.
        derivative: of the loss along each lane.
    """

    defects: tuple[Defect, ...]
    error: FloatArray
    tolerance: FloatArray
    derivative: FloatArray

    @property
    def certain(self) -> Any:
        """The lanes along which the gradient is wrong."""
        return ~(np.abs(self.error) <= self.tolerance)

    @property
    def rest(self) -> FloatArray:
        """What no instrumented equation explains."""
        return self.error - sum((d.total for d in self.defects), np.zeros(1))

    @property
    def rest_tolerance(self) -> FloatArray:
        """How much of it is no evidence of anything."""
        axes = lambda x: tuple(range(x.ndim - 1))  # noqa: E731
        return self.tolerance + sum(
            (d.tolerance.sum(axis=axes(d.tolerance)) for d in self.defects), np.zeros(1)
        )


def account(
    meter: Meter,
    lanes: Sequence[Lane],
    sites: Mapping[Chain, Site],
    plain: frozenset[int] = frozenset(),
) -> Account:
    """The defects of equations along ``lanes``.

    Args:
        meter: the point, the gradient under test and the steps.
        lanes: what to move.
        sites: the equations to instrument.
        plain: equations (by ``id``) to differentiate without their custom rule.

    Raises:
        Exception: whatever JAX raises where the program cannot be differentiated.
    """
    programs = meter.programs
    run = _Run(meter, sites, len(lanes), plain)
    words = np.stack([words_of(meter.seed, lane.probe or 0) for lane in lanes])
    columns = [
        np.array([lane.lo for lane in lanes], np.int64),
        np.array([lane.hi for lane in lanes], np.int64),
        np.array([lane.relative for lane in lanes], bool),
        words.astype(np.uint32),
    ]
    slots = [np.zeros((*site.lengths, len(lanes), _WIDTH)) for site in sites.values()]
    inputs = [*columns, np.asarray(meter.scales), *slots, *programs.inputs]
    compiled = Compiled(run, inputs, x64=True)
    out = [np.asarray(x, np.float64) for x in compiled(*inputs)]
    whole = _sides(out[0])
    return Account(
        defects=tuple(
            _defect(site, measured, programs.eps)
            for site, measured in zip(sites.values(), out[1:], strict=True)
        ),
        error=whole[0].near - whole[1].near,
        tolerance=_tolerance(*whole, programs.eps),
        derivative=whole[1].near,
    )


@dataclasses.dataclass(frozen=True)
class _Run:
    """The instrumented program: flat arrays to measurements."""

    meter: Meter
    sites: Mapping[Chain, Site]
    lanes: int
    plain: frozenset[int]

    def __call__(
        self,
        lo: Array,
        hi: Array,
        relative: Array,
        words: Array,
        scales: Array,
        *rest: Array,
    ) -> list[Array]:
        programs = self.meter.programs
        slots = dict(zip(self.sites, rest, strict=False))
        views = programs.views_of(rest[len(slots) :])
        moved = self._moved(views, lo, hi, relative, words, scales)

        def loss(views: list[Array], slots: dict[Chain, Array]) -> tuple[Array, Array]:
            base = programs.arguments(views)
            there = jax.vmap(programs.arguments)(moved)
            pairs = [Carried(*pair) for pair in zip(base, there, strict=True)]
            value, others = self._instrument.run(programs.traced.program, pairs, slots)[
                0
            ]
            if others is None:
                others = jnp.broadcast_to(value, moved[0].shape[:1])
            return value, others

        run: Any = jax.value_and_grad(loss, (0, 1), has_aux=True)
        (value, there), (grads, measured) = run(views, slots)
        inputs = [Carried(*pair) for pair in zip(views, moved, strict=True)]
        outputs = [Carried(value, there)]
        visit = Visit(views, inputs, grads, outputs, [jnp.ones_like(value)], value)
        return [_measure(visit, self.lanes), *(measured[key] for key in self.sites)]

    @functools.cached_property
    def _instrument(self) -> Instrument:
        programs = self.meter.programs
        read = functools.partial(
            reading_of,
            programs.traced.program,
            native=programs.native_precision,
            native_x64=programs.traced.x64,
        )
        return Instrument(
            keep=read(rules="keep", plain=self.plain),
            inline=read(rules="inline"),
            sites=self.sites,
            points=self.lanes * len(FIRST_STEPS),
            measure=functools.partial(_measure, lanes=self.lanes),
            frozen=not self.meter.transparent,
        )

    def _moved(
        self,
        views: list[Array],
        lo: Array,
        hi: Array,
        relative: Array,
        words: Array,
        scales: Array,
    ) -> list[Array]:
        """The parameters at every step of every lane [lanes * steps, ...]."""
        programs = self.meter.programs

        def at(
            lo: Array, hi: Array, relative: Array, words: Array, step: Array
        ) -> list[Array]:
            steps = [
                programs.steps(k, view, scales, words, relative)
                for k, view in enumerate(views)
            ]
            return moved(views, steps, (lo, hi, step), jnp)

        count = len(FIRST_STEPS)
        columns = [jnp.repeat(x, count, axis=0) for x in (lo, hi, relative, words)]
        columns.append(jnp.tile(jnp.asarray(FIRST_STEPS), self.lanes))
        return jax.vmap(at)(*columns)


# -- what is measured at an equation

_WIDTH = 2 * len(Flow._fields)


def _measure(visit: Visit, lanes: int) -> Array:
    """float64 [lanes, width]: the flow at the operands, then at the outputs."""
    flow = functools.partial(_flow, lanes=lanes, slot=visit.slot)
    inward = flow(visit.operands, visit.operand_cotangents)
    outward = flow(visit.outputs, visit.output_cotangents)
    return jnp.stack([*inward, *outward], axis=-1)


def _flow(
    values: Sequence[Carried], cotangents: Sequence[Array], *, lanes: int, slot: Array
) -> Flow:
    flows = [
        # what is the same on all devices counts once
        _flow_of(value, widen(cotangent) / compat.copies(cotangent, slot), lanes)
        for value, cotangent in zip(values, cotangents, strict=True)
        if value.moved is not None
    ]
    none = Flow(*(jnp.zeros(lanes) for _ in Flow._fields))
    return functools.reduce(lambda a, b: Flow(*map(jnp.add, a, b)), flows, none)


def _flow_of(value: Carried, cotangent: Array, lanes: int) -> Flow:
    base, c = widen(value.base), cotangent
    shape = (lanes, len(FIRST_STEPS), *jnp.shape(base))
    moved = widen(jnp.asarray(value.moved)).reshape(shape)
    plus, minus, plus2, minus2 = (moved[:, k] for k in range(len(FIRST_STEPS)))
    near, far = (plus - minus) / 2, (plus2 - minus2) / 4
    # four times the curvature at h is that at 2h where smooth, twice it at a kink
    bend, bend2 = abs(plus - 2 * base + minus), abs(plus2 - 2 * base + minus2)
    rounding = 8 * jnp.finfo(jnp.float64).eps * abs(base)
    jump = jnp.maximum((4 * bend - bend2) / 2 - rounding, 0.0)

    def total(x: Array) -> Array:
        # no cotangent, no part in the gradient, whatever the value does
        return jnp.sum(jnp.where(c == 0, 0.0, x).reshape(lanes, -1), axis=-1)

    return Flow(
        near=total(jnp.real(c * near)),
        far=total(jnp.real(c * far)),
        size=total(abs(c) * abs(near)),
        noise=total(jnp.where(near != 0, abs(c * base), 0.0)),
        kink=total(abs(c) * jump) / 2,
    )


def _sides(measured: FloatArray) -> tuple[Flow, Flow]:
    columns = np.moveaxis(measured, -1, 0)
    half = len(Flow._fields)
    return Flow(*columns[:half]), Flow(*columns[half:])


def _defect(site: Site, measured: FloatArray, eps: float) -> Defect:
    devices = tuple(k for k, kind in enumerate(site.axes) if kind == "device")
    inward, outward = _sides(measured.sum(axis=devices))
    return Defect(
        site=site,
        error=inward.near - outward.near,
        tolerance=_tolerance(inward, outward, eps),
        through=np.maximum(inward.size, outward.size),
    )


def _tolerance(inward: Flow, outward: Flow, eps: float) -> FloatArray:
    """What a defect may amount to although the rule is right."""
    near = inward.near - outward.near
    far = inward.far - outward.far
    size = inward.size + outward.size
    return (
        2 * np.abs(far - near)
        + 4 * eps * (inward.noise + outward.noise)
        + (_RESOLUTION + _ROUNDING * eps) * size
        + inward.kink
        + outward.kink
    )
