"""One equation by itself: its rule against its own function, where it is used.

The operands that it really had and the cotangents that really came in make of a single
equation a loss of its own, and that is checked like any other: every number has an
error bar, and the coordinate where the rule is worst comes out by name.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxcheck.gradients.examine import examine
from jaxcheck.gradients.measure import Meter
from jaxcheck.gradients.options import Options
from jaxcheck.gradients.plan import make_plan
from jaxcheck.gradients.report import GradientReport, LeafReport
from jaxcheck.jaxprs import compat
from jaxcheck.jaxprs.compat import Equation
from jaxcheck.jaxprs.compiled import Compiled
from jaxcheck.jaxprs.lift import Lift, raised, reading_of, unchanged
from jaxcheck.jaxprs.trace import trace_loss
from jaxcheck.places.rules.instrument import Chain, Instrument, Site
from jaxcheck.places.rules.tap import Carried, Visit
from jaxcheck.reports.numbers import significant, telling_digits, with_error_bar
from jaxcheck.reports.values import Verdict
from jaxcheck.trees import is_inexact, partition, widen

Array = Any


class Scene(NamedTuple):
    """What an equation worked on.

    Attributes:
        operands: all of them.
        cotangents: of its floating outputs.
    """

    operands: list[Array]
    cotangents: list[Array]


class Opened(NamedTuple):
    """What is wrong with one equation.

    Attributes:
        report: the check of the equation by itself.
        detail: the two numbers where it is worst, as a sentence; None if it is right.
    """

    report: GradientReport
    detail: str | None


def opened(
    meter: Meter, chain: Chain, site: Site, iteration: Sequence[int], options: Options
) -> Opened:
    """Check one equation by itself.

    Args:
        meter: the point.
        chain: which equation.
        site: the same.
        iteration: in which iteration of the loops around it.
        options: the tolerances of the check.

    Raises:
        Exception: whatever JAX raises where the equation does not run by itself.
    """
    scene = captured(meter, chain, site, iteration)
    lifted = _reading(meter, "keep")
    report = _checked(lifted, site.equation, scene, options)
    return Opened(report, _detail(report, _reading(meter, "inline"), site, scene))


def captured(meter: Meter, chain: Chain, site: Site, iteration: Sequence[int]) -> Scene:
    """Operands and cotangents of a site in one iteration, on the first device."""
    programs, eqn = meter.programs, site.equation
    instrument = Instrument(
        keep=_reading(meter, "keep"),
        inline=_reading(meter, "inline"),
        sites={chain: site},
        points=1,
        measure=_seen,
        frozen=not meter.transparent,
    )

    def slot_of(aval: Any) -> Array:
        shape, dtype = _slot(aval)
        return np.zeros((*site.lengths, *shape), dtype)

    outputs = [v.aval for v in eqn.outvars if is_inexact(v.aval.dtype)]
    slots = [*(slot_of(v.aval) for v in eqn.invars), *map(slot_of, outputs)]

    def run(*flat: Array) -> list[Array]:
        inputs = flat[len(slots) :]

        def loss(slots: list[Array]) -> Array:
            base = programs.arguments(programs.views_of(inputs))
            values = [Carried(x, None) for x in base]
            out = instrument.run(programs.traced.program, values, {chain: slots})
            return out[0].base

        return jax.grad(loss)(list(flat[: len(slots)]))

    flat = [*slots, *programs.inputs]
    found = Compiled(run, flat, x64=True)(*flat)
    loops = iter(iteration)
    index = tuple(next(loops) if kind == "iteration" else 0 for kind in site.axes)
    values = [np.asarray(x)[index] for x in found]
    count = len(eqn.invars)
    operands = [
        _restored(value, v.aval, meter.programs.native_precision)
        for value, v in zip(values[:count], eqn.invars, strict=True)
    ]
    return Scene(operands, values[count:])


def _reading(meter: Meter, rules: Any) -> Lift:
    programs = meter.programs
    return reading_of(
        programs.traced.program,
        rules=rules,
        native=programs.native_precision,
        native_x64=programs.traced.x64,
    )


# -- through a slot, everything leaves as a float


def _slot(aval: Any) -> tuple[tuple[int, ...], Any]:
    if jnp.issubdtype(aval.dtype, jax.dtypes.prng_key):
        words = jax.eval_shape(jax.random.key_data, compat.struct(aval))
        return words.shape, np.float64
    if jnp.issubdtype(aval.dtype, jnp.complexfloating):
        return aval.shape, np.complex128
    return aval.shape, np.float64


def _seen(visit: Visit) -> list[Array]:
    return [*map(_as_float, visit.bases), *map(_as_float, visit.output_cotangents)]


def _as_float(value: Array) -> Array:
    if jnp.issubdtype(value.dtype, jax.dtypes.prng_key):
        value = jax.random.key_data(value)
    return widen(value) if is_inexact(value.dtype) else value.astype(np.float64)


def _restored(value: Array, aval: Any, native: bool) -> Array:
    if jnp.issubdtype(aval.dtype, jax.dtypes.prng_key):
        words = jnp.asarray(value.astype(np.uint32))
        return jax.random.wrap_key_data(words, impl=aval.dtype._impl.name)
    dtype = aval.dtype if native else raised(aval.dtype)
    return value.astype(dtype)


# -- the check


def _checked(
    lifted: Lift, eqn: Equation, scene: Scene, options: Options
) -> GradientReport:
    names = compat.operand_names(eqn)
    moving = {
        name: np.where(np.isfinite(value), value, np.zeros_like(value))
        for name, value in zip(names, scene.operands, strict=True)
        if is_inexact(value.dtype)
    }

    def loss(moving: dict[str, Array]) -> Array:
        full = [
            _moved(value, moving[name]) if name in moving else value
            for name, value in zip(names, scene.operands, strict=True)
        ]
        out = [x for x in lifted.equation(eqn, full) if is_inexact(x.dtype)]
        terms = [
            jnp.sum(jnp.real(c.astype(x.dtype) * x))
            for x, c in zip(out, scene.cotangents, strict=True)
        ]
        return functools.reduce(jnp.add, terms)

    x64 = lifted.dtype is not unchanged or lifted.native_x64
    with compat.x64(x64):
        parts = partition(moving)
        traced = trace_loss(loss, parts, (), has_aux=False)
        asked = Options(
            rtol=options.rtol,
            seed=options.seed,
            stop_gradient=options.stop_gradient,
            progress=False,
        )
        plan = make_plan(parts.differentiable, asked)
        started = time.perf_counter()
        return examine(traced, plan, asked, call="", started=started).report


def _moved(value: Array, moving: Array) -> Array:
    """``moving`` where ``value`` is finite: the -inf of a mask stays as it is."""
    finite = np.isfinite(value)
    return moving if finite.all() else jnp.where(finite, moving, value)


def _detail(
    report: GradientReport, inline: Lift, site: Site, scene: Scene
) -> str | None:
    wrong = [leaf for leaf in report.leaves if leaf.verdict is Verdict.WRONG]
    if not wrong:
        return None
    leaf = max(wrong, key=lambda leaf: leaf.relative_error or 0.0)
    worst = leaf.worst
    if worst is None:
        return None
    name = leaf.path[2:-2]  # ['x'] as keystr has it
    operand = compat.operand_names(site.equation).index(name)
    value = scene.operands[operand][worst.index]
    index = f"[{', '.join(map(str, worst.index))}]" if worst.index else ""
    numbers = worst.autodiff, worst.numerical, worst.error_bar
    scale = _own_cotangent(leaf, inline, site.equation, scene, operand)
    if scale:
        numbers = numbers[0] / scale, numbers[1] / scale, numbers[2] / abs(scale)
    digits = telling_digits(*numbers[:2])
    rule = significant(numbers[0], digits)
    own = with_error_bar(numbers[1], numbers[2], digits)
    at = f"{name}{index} = {significant(_plain(value), 3)}"
    who = "the rule" if compat.rule_function(site.equation) else "autodiff"
    if scale:
        text = f"at {at} {who} gives {rule}, the function's derivative is {own}"
    else:
        text = f"the cotangent of {at} is {rule} by {who}, {own} by differences"
    if leaf.pattern:
        text += f"; {leaf.pattern}"
    return text


def _own_cotangent(
    leaf: LeafReport, inline: Lift, eqn: Equation, scene: Scene, operand: int
) -> float | None:
    """The cotangent of the output at the same place, if only that depends on it."""
    worst = leaf.worst
    if len(scene.cotangents) != 1 or worst is None or worst.part is not None:
        return None
    [cotangent] = scene.cotangents
    if cotangent.shape != leaf.shape or np.iscomplexobj(cotangent):
        return None
    moved = list(scene.operands)
    moved[operand] = np.array(moved[operand])
    moved[operand][worst.index] += 1e-3 * (1 + abs(moved[operand][worst.index]))
    with compat.x64(True):
        before, after = (
            np.asarray(inline.equation(eqn, values)[0])
            for values in (scene.operands, moved)
        )
    changed = np.argwhere(before != after)
    if [tuple(index) for index in changed] != [worst.index]:
        return None
    return float(cotangent[worst.index]) or None


def _plain(value: Any) -> Any:
    return complex(value) if np.iscomplexobj(value) else float(value)
