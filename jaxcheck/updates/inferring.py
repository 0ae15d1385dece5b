"""Numbers that a train step shows: factors of its gradient, its updates, its decay.

They are read off the first step and then have to explain all the others. A factor of
the gradient leaves no trace in Adam's updates; it does in the moments, which are linear
or quadratic in it.
"""

from __future__ import annotations

import dataclasses
import inspect
import math
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxcheck.updates.expected import After, Expected, agreement, scaled
from jaxcheck.updates.faults import (
    Fault,
    Predict,
    gradient_scaled,
    parted,
    updates_scaled,
)
from jaxcheck.updates.step_report import Inferred
from jaxcheck.updates.watching import Seen

Array = Any

# Two numbers that are the same.
_SAME = 1e-5
# Limits that are the same, and steps that are explained by them.
_SAME_LIMIT = 1e-3
# Functions inside functions that are looked into for learning rates.
_DEPTH = 8


def of_gradient(
    expected: Expected, steps: Sequence[Seen], devices: int
) -> Iterator[Fault]:
    """Factors that the gradient may have been multiplied by."""
    seen = steps[0]
    gradient = expected.gradient(seen)
    size = _batch_size(seen.batch)
    for factor in _distinct(_gradient_factors(expected, seen, gradient)):
        name, text = _named_factor(factor, devices, size)
        inferred = Inferred(updates_applied=1.0, gradient_scale=factor)
        yield Fault(name, text, gradient_scaled(factor), inferred)


def _gradient_factors(expected: Expected, seen: Seen, gradient: Any) -> Iterator[float]:
    updates, state = expected.update(seen, gradient)
    still, rest = expected.update(seen, scaled(gradient, 0.0))
    change = jax.tree.map(lambda a, b: a - b, seen.params_after, seen.params)
    yield from _projection(change, updates, still)
    for got, wanted, none in zip(
        *(jax.tree.leaves(x) for x in (seen.opt_state_after, state, rest)), strict=True
    ):
        if np.ndim(got) == 0 or not _floats(got):
            continue
        for factor in _projection(got, wanted, none):
            yield factor
            if factor > 0:
                yield math.sqrt(factor)


def _projection(got: Any, wanted: Any, none: Any) -> Iterator[float]:
    """The number c for which ``got`` is ``none + c * (wanted - none)``, if it is."""
    a, b, c = (_flat(tree) for tree in (got, wanted, none))
    direction = b - c
    square = float(direction @ direction)
    if square > 0 and np.isfinite(square):
        yield float((a - c) @ direction) / square


def of_updates(
    expected: Expected, steps: Sequence[Seen], rates: Sequence[float]
) -> Iterator[Fault]:
    """Factors that the update, and the decay in it, may have been multiplied by."""
    seen = steps[0]
    updates, _ = expected.update(seen, expected.gradient(seen))
    plain, decay = (_flat(x) for x in parted(expected, seen, updates))
    change = _flat(jax.tree.map(lambda a, b: a - b, seen.params_after, seen.params))
    if not (np.isfinite(change).all() and np.isfinite(plain).all()):
        return
    decays = float(np.max(np.abs(decay), initial=0.0)) > 0
    columns = np.stack([plain, decay] if decays else [plain], axis=1)
    # each column by its size, for the decay may be small beside the update
    size = np.linalg.norm(columns, axis=0)
    if not np.all(size > 0):
        return
    solved = np.linalg.lstsq(columns / size, change, rcond=None)[0] / size
    of_plain = float(solved[0])
    of_decay = float(solved[1]) if decays else of_plain
    inferred = Inferred(
        weight_decay=of_decay if decays else None,
        updates_applied=of_plain,
        gradient_scale=1.0,
    )
    predict = updates_scaled(of_plain, of_decay)
    yield _fault_of_update(inferred, of_decay, rates, predict)


def _fault_of_update(
    inferred: Inferred, decay: float, rates: Sequence[float], predict: Predict
) -> Fault:
    plain = inferred.updates_applied or 0.0
    if _close(plain, decay):
        for rate in rates:
            known = dataclasses.replace(inferred, learning_rate=rate)
            if _close(plain, rate):
                text = f"the learning rate {rate:g} was applied twice"
                return Fault("learning_rate_squared", text, predict, known)
            if _close(plain * rate, 1.0):
                text = f"the learning rate {rate:g} was not applied"
                return Fault("learning_rate_missing", text, predict, known)
    name, text = _named_update(plain, decay)
    return Fault(name, text, predict, inferred)


def _named_update(plain: float, decay: float) -> tuple[str, str]:
    if _close(plain, decay):
        if _close(plain, 2.0):
            return "applied_twice", "the updates were added twice"
        if _close(plain, -1.0):
            return "wrong_sign", "the updates were subtracted"
        return "updates_scaled", f"the updates were multiplied by {plain:.6g}"
    if _close(plain, 1.0):
        if abs(decay) < _SAME:
            return "decay_missing", "there were no weight decay"
        if _close(decay, 2.0):
            return "decay_doubled", "weight decay were applied twice"
        if _close(decay, -1.0):
            return "decay_wrong_sign", "weight decay had the wrong sign"
        return "decay_scaled", f"weight decay were multiplied by {decay:.6g}"
    text = f"the updates were multiplied by {plain:.6g}, the decay by {decay:.6g}"
    return "updates_scaled", text


def _named_factor(factor: float, devices: int, size: int | None) -> tuple[str, str]:
    is_ = f"the gradient is {factor:.6g} × the stated one"
    if _close(factor, -1.0):
        return "gradient_wrong_sign", "the gradient had the wrong sign"
    if size is not None and size > 1:
        if _close(factor, size):
            return "sum_for_mean", f"{is_}: the size of the batch, a sum for a mean"
        if _close(factor * size, 1.0):
            return "mean_twice", f"{is_}: divided by the size of the batch once more"
    if devices > 1:
        for power, text in ((1, "the device count"), (2, "the device count squared")):
            if _close(factor, devices**power):
                return "device_count", f"{is_}: {text}"
            if _close(factor * devices**power, 1.0):
                return "device_count", f"{is_}: divided by {text}"
    for parts in range(2, (size or 0) // 2 + 1):
        if size is not None and size % parts == 0:
            if _close(factor, parts):
                text = f"a sum over {parts} parts of the batch for their mean"
                return "sum_over_parts", f"{is_}: {text}"
            if _close(factor * parts, 1.0):
                text = f"divided by {parts}, a number of parts, once more"
                return "mean_over_parts_twice", f"{is_}: {text}"
    return "gradient_scaled", is_


def learning_rates(tx: Any) -> list[float]:
    """The numbers that the transformation's functions hold, as optax's do.

    Of learning rates the size alone is kept: optax stores them with a minus sign.
    """
    found: dict[float, None] = {}
    _search(tx, found, set(), _DEPTH)
    return [abs(x) for x in found if x not in (0.0, 1.0, -1.0)]


def _search(value: Any, found: dict[float, None], done: set[int], depth: int) -> None:
    if id(value) in done or depth == 0:
        return
    done.add(id(value))
    if isinstance(value, float):
        found[value] = None
    elif isinstance(value, tuple | list):
        for item in value:  # pyright: ignore[reportUnknownVariableType]
            _search(item, found, done, depth)
    elif inspect.isfunction(value):
        for cell in value.__closure__ or ():
            try:
                _search(cell.cell_contents, found, done, depth - 1)
            except ValueError:  # an empty cell
                continue


def limited(expected: Expected, steps: Sequence[Seen]) -> Iterator[Fault]:
    """Gradients of one norm, or of one at most, if the factors of all steps say so."""
    limits: list[float] = []
    factors: list[float] = []
    for t, seen in enumerate(steps):
        gradient = expected.gradient(seen)
        for factor in _distinct(_gradient_factors(expected, seen, gradient)):
            if factor > 0 and _holds(gradient_scaled(factor), expected, steps, t):
                factors.append(factor)
                limits.append(factor * float(np.linalg.norm(_flat(gradient))))
                break
    if not limits or max(limits) - min(limits) > _SAME_LIMIT * max(limits):
        return
    limit, clips = limits[0], max(factors) < 1

    def predict(expected: Expected, steps: Sequence[Seen], t: int) -> Any:
        gradient = expected.gradient(steps[t])
        norm = float(np.linalg.norm(_flat(gradient)))
        factor = limit / norm
        return gradient_scaled(min(1.0, factor) if clips else factor)(
            expected, steps, t
        )

    name, text = "gradient_normalized", "the gradient was given a norm of"
    if clips:
        name, text = "gradient_clipped", "the norm of the gradient was clipped at"
    yield Fault(name, f"{text} {limit:.4g}", predict)


def of_each_step(expected: Expected, steps: Sequence[Seen]) -> Iterator[Fault]:
    """Updates that were multiplied by another number in each step."""
    factors: list[float] = []
    norms: list[float] = []
    for seen in steps:
        updates, _ = expected.update(seen, expected.gradient(seen))
        change = jax.tree.map(lambda a, b: a - b, seen.params_after, seen.params)
        zero = jax.tree.map(jnp.zeros_like, updates)
        factor = next(_projection(change, updates, zero), math.nan)
        factors.append(factor)
        norms.append(abs(factor) * float(np.linalg.norm(_flat(updates))))
    if not np.isfinite(factors).all():
        return

    def predict(expected: Expected, steps: Sequence[Seen], t: int) -> After | None:
        return updates_scaled(factors[t], factors[t])(expected, steps, t)

    off = [norm for norm, x in zip(norms, factors, strict=True) if not _close(x, 1.0)]
    if off and max(factors) <= 1 + _SAME and max(off) - min(off) <= _SAME * max(off):
        text = f"the norm of the updates was clipped at {off[0]:.4g}"
        yield Fault("updates_clipped", text, predict)
        return
    listing = ", ".join(f"{x:.4g}" for x in factors)
    text = f"the updates were multiplied by {listing}, step by step"
    yield Fault("updates_scaled_by_step", text, predict)


def _holds(predict: Predict, expected: Expected, steps: Sequence[Seen], t: int) -> bool:
    """Whether that is what one step left."""
    predicted = predict(expected, steps, t)
    got = After(steps[t].params_after, steps[t].opt_state_after)
    if predicted is None:
        return False
    return agreement(steps[t].params, got, predicted).worst <= _SAME_LIMIT


def _distinct(values: Iterator[float]) -> list[float]:
    found: list[float] = []
    for value in values:
        usable = np.isfinite(value) and abs(value) > 1e-9 and not _close(value, 1.0)
        if usable and not any(_close(value, known) for known in found):
            found.append(value)
    return found


def _batch_size(batch: Any) -> int | None:
    lengths = {len(x) for x in jax.tree.leaves(batch) if np.ndim(x) > 0}
    return lengths.pop() if len(lengths) == 1 else None


def _close(one: float, other: float) -> bool:
    return abs(one - other) <= _SAME * max(abs(one), abs(other))


def _floats(value: Any) -> bool:
    return bool(jnp.issubdtype(value.dtype, jnp.floating))


def _flat(tree: Any) -> Array:
    return np.concatenate(
        [np.ravel(np.asarray(x, np.float64)) for x in jax.tree.leaves(tree)]
    )
