"""The gradient that a step really used, read off the optimizer's state.

Moments are linear or quadratic in the gradient, element by element; which they are, and
by what number, two probes tell. A gradient that is read off one field has to explain
the other fields and the parameters too: so it is that of a step whose update is right
and whose gradient is not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxcheck.trees import by_path, wide_on_host
from jaxcheck.updates.expected import After, Expected, added
from jaxcheck.updates.faults import Fault, parts_of
from jaxcheck.updates.fields import fields_of
from jaxcheck.updates.step_report import Inferred
from jaxcheck.updates.watching import Seen

Array = Any
Leaves = dict[str, Array]  # by the path of the parameter

# Numbers that are the same in two probes.
_SAME = 1e-5
# Sizes of a probe beside the gradient: a small one passes where a norm is clipped.
_PROBES = (1.0, 1e-3)
# What twice the probe makes of a field, by the power of the gradient in it.
_ORDERS = {1: 2.0, 2: 4.0}
# Parts of a batch that are looked at.
_PARTS = (2, 3, 4, 8)


class Reading(NamedTuple):
    """How a field of the state is read.

    Attributes:
        field: its number.
        order: 1 if it is linear in the gradient, 2 if it is quadratic.
        size: of the probe.
    """

    field: int
    order: int
    size: float


class Named(NamedTuple):
    """What is said of a gradient."""

    name: str
    text: str
    inferred: Inferred


def of_another_gradient(
    expected: Expected, steps: Sequence[Seen], same: float
) -> Iterator[Fault]:
    """Faults of the gradient that no number says: of some leaves, of some elements.

    Args:
        expected: the stated step.
        steps: what was seen.
        same: relative difference of gradients that are the same.
    """
    stated = [by_path(expected.gradient(seen)) for seen in steps]
    for reading in _readings(expected, steps[0]):
        for signs in _signs(reading, expected):
            used = [
                _read(reading, expected, seen, signs(seen, gradient))
                for seen, gradient in zip(steps, stated, strict=True)
            ]
            if all(all(np.isfinite(x).all() for x in g.values()) for g in used):
                yield from _told(expected, steps, stated, used, same)


# ---- reading


def _readings(expected: Expected, seen: Seen) -> Iterator[Reading]:
    """The fields that are like the parameters, and powers of the gradient."""
    gradient = expected.gradient(seen)
    rms = _rms(gradient)
    if not rms > 0:
        return
    for share in _PROBES:
        size = share * rms
        at_zero, at_one, at_two = (
            _fields(expected.update(seen, _all(gradient, k * size))[1], seen)
            for k in (0.0, 1.0, 2.0)
        )
        for number, (none, one, two) in enumerate(
            zip(at_zero, at_one, at_two, strict=True)
        ):
            order = _order(none, one, two)
            if order is not None:
                yield Reading(number, order, size)


def _order(none: Leaves, one: Leaves, two: Leaves) -> int | None:
    for order, ratio in _ORDERS.items():
        steps = [(one[k] - none[k], two[k] - none[k]) for k in one]
        if all(np.all(a != 0) for a, _ in steps) and all(
            np.allclose(b, ratio * a, rtol=_SAME, atol=0.0) for a, b in steps
        ):
            return order
    return None


def _fields(opt_state: Any, seen: Seen) -> list[Leaves]:
    """Those fields that have an array like each parameter."""
    shapes = {path: np.shape(x) for path, x in by_path(seen.params).items()}
    found: list[Leaves] = []
    for field in fields_of(opt_state, shapes.keys()):
        leaves = {
            path: wide_on_host(x)
            for path, x in field.leaves.items()
            if path is not None
        }
        if {path: x.shape for path, x in leaves.items()} == shapes:
            found.append(leaves)
    return found


def _read(reading: Reading, expected: Expected, seen: Seen, signs: Leaves) -> Leaves:
    """The gradient that ``seen`` used, as one field has it."""
    gradient = expected.gradient(seen)
    none, one = (
        _fields(expected.update(seen, _all(gradient, size))[1], seen)[reading.field]
        for size in (0.0, reading.size)
    )
    got = _fields(seen.opt_state_after, seen)[reading.field]
    with np.errstate(all="ignore"):
        power = {k: (got[k] - none[k]) / (one[k] - none[k]) for k in got}
        if reading.order == 1:
            return {k: reading.size * x for k, x in power.items()}
        # what rounding makes negative is zero
        root = {k: np.sqrt(np.maximum(x, 0.0)) for k, x in power.items()}
    return {k: reading.size * signs[k] * x for k, x in root.items()}


def _signs(
    reading: Reading, expected: Expected
) -> list[Callable[[Seen, Leaves], Leaves]]:
    """Signs that a square does not tell: those stated, or those of the change."""

    def stated(seen: Seen, gradient: Leaves) -> Leaves:
        del seen
        return {k: np.sign(wide_on_host(x)) for k, x in gradient.items()}

    def of_change(seen: Seen, gradient: Leaves) -> Leaves:
        del gradient
        zero = _all(expected.gradient(seen), 0.0)
        still = added(seen.params, expected.update(seen, zero)[0])
        before, after = by_path(still), by_path(seen.params_after)
        return {
            k: -np.sign(wide_on_host(after[k]) - wide_on_host(before[k])) for k in after
        }

    return [stated] if reading.order == 1 else [stated, of_change]


# ---- telling


def _told(
    expected: Expected,
    steps: Sequence[Seen],
    stated: Sequence[Leaves],
    used: Sequence[Leaves],
    same: float,
) -> Iterator[Fault]:
    """The fault whose gradients ``used`` are."""
    off = {
        k
        for wanted, got in zip(stated, used, strict=True)
        for k in got
        if np.any(_off(wide_on_host(wanted[k]), got[k], same))
    }
    if not off:
        return
    name, text, inferred = _of_clipped_parts(expected, steps, used, same) or _named(
        steps, stated, used, off, same
    )

    def predict(expected: Expected, steps: Sequence[Seen], t: int) -> After:
        seen = steps[t]
        treedef = jax.tree.structure(seen.params)
        leaves = [
            jnp.asarray(used[t][path], jnp.asarray(x).dtype)
            for path, x in by_path(seen.params).items()
        ]
        updates, state = expected.update(seen, jax.tree.unflatten(treedef, leaves))
        return After(added(seen.params, updates), state)

    yield Fault(name, text, predict, inferred)


def _named(
    steps: Sequence[Seen],
    stated: Sequence[Leaves],
    used: Sequence[Leaves],
    off: set[str],
    same: float,
) -> Named:
    """A name by how the gradients of the leaves ``off`` differ."""
    names = ", ".join(path or "the leaf" for path in sorted(off))
    pairs = [
        (wide_on_host(wanted[k]), got[k])
        for wanted, got in zip(stated, used, strict=True)
        for k in sorted(off)
    ]
    params = [wide_on_host(by_path(s.params)[k]) for s in steps for k in sorted(off)]
    if all(np.all(np.abs(g) <= same * np.max(np.abs(w))) for w, g in pairs):
        return Named("leaf_cut_off", f"no gradient reached {names}", Inferred())
    more = [got - wanted for wanted, got in pairs]
    decay = _share(params, more, same)
    if decay is not None:
        text = f"{decay:.6g} × the parameters were added to the gradient of {names}"
        return Named("decay_in_the_gradient", text, Inferred())
    factor = _share([w for w, _ in pairs], [g for _, g in pairs], same)
    if factor is not None:
        text = f"the gradient of {names} was multiplied by {factor:.6g}"
        return Named("gradient_of_leaves_scaled", text, Inferred(gradient_scale=factor))
    first = pairs[: len(off)]
    count = sum(int(np.count_nonzero(_off(w, g, same))) for w, g in first)
    size = sum(x.size for x in used[0].values())
    text = (
        "the update was that of another gradient, which differs from the loss's in "
        f"{names}: in the first step in {count:,} of {size:,} elements"
    )
    return Named("gradient_tampered", text, Inferred())


def _of_clipped_parts(
    expected: Expected, steps: Sequence[Seen], used: Sequence[Leaves], same: float
) -> Named | None:
    """Whether parts of each batch were clipped, and averaged after that."""
    for count in _PARTS:
        limits: list[float] = []
        for seen, got in zip(steps, used, strict=True):
            parts = parts_of(seen.batch, count)
            if parts is None:
                break
            of_parts = [_flat(expected.gradient(seen, batch=part)) for part in parts]
            limit = _limit(np.stack(of_parts), _flat(list(got.values())), same)
            if limit is None:
                break
            limits.append(limit)
        if len(limits) == len(steps) and max(limits) - min(limits) <= same * limits[0]:
            text = (
                f"the gradients of {count} parts of the batch were clipped at a norm "
                f"of {limits[0]:.4g} before they were averaged"
            )
            return Named("parts_clipped", text, Inferred())
    return None


def _limit(parts: Array, used: Array, same: float) -> float | None:
    """The norm at which rows must be clipped for their mean to be ``used``."""
    norms = np.linalg.norm(parts, axis=1)
    for clipped in (norms > bound for bound in [0.0, *np.sort(norms)[:-1]]):
        base = parts[~clipped].sum(axis=0)
        # of those that are clipped, the direction is left
        rest = (parts[clipped] / norms[clipped, None]).sum(axis=0)
        limit = _share([rest], [len(parts) * used - base], same)
        if limit is not None and limit > 0 and np.all((norms > limit) == clipped):
            return limit
    return None


def _share(
    bases: Sequence[Array], values: Sequence[Array], same: float
) -> float | None:
    """The number c for which ``values`` are c times ``bases``, if there is one."""
    base, value = (np.concatenate([np.ravel(x) for x in xs]) for xs in (bases, values))
    square = float(base @ base)
    if not square > 0:
        return None
    factor = float(base @ value) / square
    scale = max(float(np.max(np.abs(value))), np.finfo(float).tiny)
    alike = float(np.max(np.abs(value - factor * base))) <= same * scale
    return factor if alike else None


def _off(stated: Array, got: Array, same: float) -> Array:
    scale = max(float(np.max(np.abs(stated))), float(np.max(np.abs(got))))
    return np.abs(got - stated) > same * scale


# ---- arrays


def _all(tree: Any, value: float) -> Any:
    return jax.tree.map(lambda x: jnp.full_like(x, value), tree)


def _rms(tree: Any) -> float:
    return float(np.sqrt(np.mean(np.abs(_flat(tree)) ** 2)))


def _flat(tree: Any) -> Array:
    return np.concatenate([np.ravel(wide_on_host(x)) for x in jax.tree.leaves(tree)])
