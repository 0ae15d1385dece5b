"""What train steps do instead: a dictionary of faults, each a prediction.

A fault predicts what the step leaves, from what was seen of it so far; it is the one if
its predictions hold in every step. Faults with a number (a factor of the gradient, of
the update, of the decay) take the number from the first step, and have to hold with it
in the others.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxcheck.updates.expected import After, Expected, added, scaled
from jaxcheck.updates.step_report import Inferred
from jaxcheck.updates.watching import Seen

Steps = Sequence[Seen]
# What the step leaves, by the number of the step; None where that is not known.
Predict = Callable[[Expected, Steps, int], After | None]


@dataclasses.dataclass(frozen=True)
class Fault:
    """One thing that may be wrong with a train step.

    Attributes:
        name: of the fault.
        text: completes "it behaves as if ...".
        predict: what the step leaves.
        inferred: its numbers, if it has some.
    """

    name: str
    text: str
    predict: Predict
    inferred: Inferred = dataclasses.field(default_factory=Inferred)


def _with_gradient(
    choose: Callable[[Expected, Steps, int], Any],
) -> Predict:
    """A step with another gradient."""

    def predict(expected: Expected, steps: Steps, t: int) -> After | None:
        gradient = choose(expected, steps, t)
        if gradient is None:
            return None
        seen = steps[t]
        updates, state = expected.update(seen, gradient)
        return After(added(seen.params, updates), state)

    return predict


def _with_updates(apply: Callable[[Expected, Seen, Any], Any]) -> Predict:
    """A step that does something else with its updates."""

    def predict(expected: Expected, steps: Steps, t: int) -> After:
        seen = steps[t]
        updates, state = expected.update(seen, expected.gradient(seen))
        return After(apply(expected, seen, updates), state)

    return predict


# ---- of the gradient


def _of_params_before(expected: Expected, steps: Steps, t: int) -> Any:
    return expected.gradient(steps[t], params=steps[max(t - 1, 0)].params)


def _of_first_params(expected: Expected, steps: Steps, t: int) -> Any:
    return expected.gradient(steps[t], params=steps[0].params)


def _of_batch_before(expected: Expected, steps: Steps, t: int) -> Any:
    if t == 0:
        return None  # whatever it began with
    return expected.gradient(steps[t], batch=steps[t - 1].batch)


def _of_first_batch(expected: Expected, steps: Steps, t: int) -> Any:
    return expected.gradient(steps[t], batch=steps[0].batch)


def _of_all_steps_so_far(expected: Expected, steps: Steps, t: int) -> Any:
    return functools.reduce(
        lambda total, more: jax.tree.map(jnp.add, total, more),
        (expected.gradient(seen) for seen in steps[: t + 1]),
    )


def _in_bfloat16(expected: Expected, steps: Steps, t: int) -> Any:
    return jax.tree.map(_rounded, expected.gradient(steps[t]))


def _in_signs(expected: Expected, steps: Steps, t: int) -> Any:
    return jax.tree.map(jnp.sign, expected.gradient(steps[t]))


def _rounded(x: Any) -> Any:
    return x.astype(jnp.bfloat16).astype(x.dtype)


def parts_of(batch: Any, count: int) -> list[Any] | None:
    """A batch in ``count`` equal parts along its leading axis, if it has one."""
    arrays = [x for x in jax.tree.leaves(batch) if np.ndim(x) > 0]
    lengths = {len(x) for x in arrays}
    if len(lengths) != 1 or (length := lengths.pop()) % count or length < 2:
        return None
    size = length // count

    def part(k: int) -> Any:
        window = slice(k * size, (k + 1) * size)
        return jax.tree.map(lambda x: x[window] if np.ndim(x) > 0 else x, batch)

    return [part(k) for k in range(count)]


def rest_of(batch: Any, count: int, which: int) -> Any | None:
    """A batch without one of its parts."""
    parts = parts_of(batch, count)
    if parts is None:
        return None
    rest = [part for k, part in enumerate(parts) if k != which]

    def joined(*arrays: Any) -> Any:
        return jnp.concatenate(arrays) if np.ndim(arrays[0]) > 0 else arrays[0]

    return jax.tree.map(joined, *rest)


def _of_rest(
    count: int, which: int, factor: float
) -> Callable[[Expected, Steps, int], Any]:
    def choose(expected: Expected, steps: Steps, t: int) -> Any:
        rest = rest_of(steps[t].batch, count, which)
        if rest is None:
            return None
        return scaled(expected.gradient(steps[t], batch=rest), factor)

    return choose


def _of_part(count: int, which: int) -> Callable[[Expected, Steps, int], Any]:
    def choose(expected: Expected, steps: Steps, t: int) -> Any:
        parts = parts_of(steps[t].batch, count)
        if parts is None:
            return None
        return expected.gradient(steps[t], batch=parts[which])

    return choose


# ---- of the state


def _not_carried(expected: Expected, steps: Steps, t: int) -> After:
    seen = steps[t]
    return After(expected.step(seen).params, seen.opt_state)


def _fresh(expected: Expected, steps: Steps, t: int) -> After:
    seen = steps[t]
    return expected.step(seen, opt_state=expected.init(seen.params))


def _state_before(expected: Expected, steps: Steps, t: int) -> After:
    seen, before = steps[t], steps[max(t - 1, 0)]
    return expected.step(seen, opt_state=before.opt_state)


def _updated_twice(expected: Expected, steps: Steps, t: int) -> After:
    """``tx.update`` called twice, the second update applied."""
    seen = steps[t]
    gradient = expected.gradient(seen)
    _, state = expected.update(seen, gradient)
    updates, state = expected.update(seen, gradient, opt_state=state)
    return After(added(seen.params, updates), state)


def _two_updates(expected: Expected, steps: Steps, t: int) -> After:
    """``tx.update`` called twice with one gradient, both updates applied."""
    seen = steps[t]
    gradient = expected.gradient(seen)
    updates, state = expected.update(seen, gradient)
    params = added(seen.params, updates)
    updates, state = expected.update(seen, gradient, params=params, opt_state=state)
    return After(added(params, updates), state)


def _two_steps(expected: Expected, steps: Steps, t: int) -> After:
    seen = steps[t]
    first = expected.step(seen)
    return expected.step(seen, params=first.params, opt_state=first.opt_state)


def _nothing(expected: Expected, steps: Steps, t: int) -> After:
    del expected
    return After(steps[t].params, steps[t].opt_state)


# ---- of the parameters


def _onto_params_before(expected: Expected, steps: Steps, t: int) -> After:
    seen, before = steps[t], steps[max(t - 1, 0)]
    updates, state = expected.update(seen, expected.gradient(seen))
    return After(added(before.params, updates), state)


def _swapped(expected: Expected, steps: Steps, t: int) -> After:
    """``tx.update(params, opt_state, gradients)``."""
    seen = steps[t]
    gradient = expected.gradient(seen)
    updates, state = expected.update(seen, seen.params, params=gradient)
    return After(added(seen.params, updates), state)


def _only_state(expected: Expected, seen: Seen, updates: Any) -> Any:
    del expected, updates
    return seen.params


def _are_updates(expected: Expected, seen: Seen, updates: Any) -> Any:
    del expected, seen
    return updates


def _cast(expected: Expected, seen: Seen, updates: Any) -> Any:
    del expected
    return jax.tree.map(_rounded, added(seen.params, updates))


FAULTS = (
    Fault(
        "not_applied",
        "the updates were not added to the parameters",
        _with_updates(_only_state),
    ),
    Fault("nothing_done", "the step returned the state that it was given", _nothing),
    Fault(
        "params_replaced_by_updates",
        "the parameters were replaced by the updates",
        _with_updates(_are_updates),
    ),
    Fault(
        "params_and_gradients_swapped",
        "tx.update was given the parameters for the gradients",
        _swapped,
    ),
    Fault(
        "params_cast_to_bfloat16",
        "the new parameters went through bfloat16",
        _with_updates(_cast),
    ),
    Fault(
        "gradient_cast_to_bfloat16",
        "the gradient went through bfloat16",
        _with_gradient(_in_bfloat16),
    ),
    Fault(
        "gradient_signs", "the gradient was its signs only", _with_gradient(_in_signs)
    ),
    Fault(
        "opt_state_not_carried",
        "the optimizer's state was not carried to the next step",
        _not_carried,
    ),
    Fault("init_inside_the_step", "tx.init was called inside the step", _fresh),
    Fault(
        "stale_opt_state",
        "the optimizer's state was that of the step before",
        _state_before,
    ),
    Fault("updated_twice", "tx.update was called twice", _updated_twice),
    Fault(
        "two_updates", "two updates were made of each gradient, and added", _two_updates
    ),
    Fault("two_steps", "two steps were taken with the same batch", _two_steps),
    Fault(
        "stale_gradient",
        "the gradient was taken at the parameters of the step before",
        _with_gradient(_of_params_before),
    ),
    Fault(
        "gradient_at_the_first_params",
        "the gradient was taken at the first parameters",
        _with_gradient(_of_first_params),
    ),
    Fault(
        "batch_before",
        "the gradient was that of the batch before",
        _with_gradient(_of_batch_before),
    ),
    Fault(
        "first_batch",
        "the gradient was that of the first batch, always",
        _with_gradient(_of_first_batch),
    ),
    Fault(
        "gradient_of_all_steps",
        "the gradients of all steps so far were added up",
        _with_gradient(_of_all_steps_so_far),
    ),
    Fault(
        "stale_params",
        "the updates were added to the parameters of the step before",
        _onto_params_before,
    ),
)


def parts(devices: int) -> Iterator[Fault]:
    """Gradients of a part of the batch: a shard, a micro-batch, an example."""
    for count in dict.fromkeys((devices, 2, 4, 8)):
        if count < 2:
            continue
        shard = "a device's share" if count == devices else f"one of {count} parts"
        for which, name in ((0, "first"), (count - 1, "last")):
            yield Fault(
                "gradient_of_a_part",
                f"the gradient was that of {shard} of the batch alone, the {name}",
                _with_gradient(_of_part(count, which)),
            )
            for factor, text in ((1.0, ""), (1 - 1 / count, ", and counted as zero")):
                if count == 2 and factor == 1.0:
                    continue  # the other half alone
                yield Fault(
                    "part_left_out",
                    f"{shard} of the batch was left out, the {name}{text}",
                    _with_gradient(_of_rest(count, which, factor)),
                )


# ---- with a number


def gradient_scaled(factor: float) -> Predict:
    """The gradient multiplied by a number."""

    def choose(expected: Expected, steps: Steps, t: int) -> Any:
        return scaled(expected.gradient(steps[t]), factor)

    return _with_gradient(choose)


def updates_scaled(plain: float, decay: float) -> Predict:
    """The update multiplied by a number, and what is weight decay in it by another."""

    def apply(expected: Expected, seen: Seen, updates: Any) -> Any:
        of_gradient, of_decay = parted(expected, seen, updates)
        wanted = jax.tree.map(lambda u, d: plain * u + decay * d, of_gradient, of_decay)
        return added(seen.params, wanted)

    return _with_updates(apply)


def parted(expected: Expected, seen: Seen, updates: Any) -> tuple[Any, Any]:
    """An update without and by weight decay: without, the parameters are zero."""
    zeros = jax.tree.map(jnp.zeros_like, seen.params)
    without, _ = expected.update(seen, expected.gradient(seen), params=zeros)
    return without, jax.tree.map(lambda u, w: u - w, updates, without)


# ---- of a schedule


def schedule_shifted(shift: int, text: str) -> Fault:
    """The schedule of the learning rate evaluated at another count."""

    def predict(expected: Expected, steps: Steps, t: int) -> After:
        seen = steps[t]
        gradient = expected.gradient(seen)
        _, state = expected.update(seen, gradient)
        moved = _shifted(seen.opt_state, shift)
        updates, _ = expected.update(seen, gradient, opt_state=moved)
        return After(added(seen.params, updates), state)

    name = "schedule_ahead" if shift > 0 else "schedule_behind"
    return Fault(name, f"its schedule were one step {text}", predict)


def _shifted(state: Any, shift: int) -> Any:
    """A state with the counts of its schedules moved; others count for themselves."""
    if isinstance(state, dict):
        return {k: _shifted(v, shift) for k, v in state.items()}  # pyright: ignore[reportUnknownVariableType]
    if not isinstance(state, tuple):
        return state
    names: tuple[str, ...] = getattr(state, "_fields", ())
    values = [_shifted(value, shift) for value in state]  # pyright: ignore[reportUnknownVariableType]
    if not names:
        return tuple(values)
    kind = type(state).__name__  # pyright: ignore[reportUnknownArgumentType]
    if "count" in names and ("Schedule" in kind or "Inject" in kind):
        at = names.index("count")
        values[at] = jnp.maximum(values[at] + shift, 0)
    return type(state)(*values)  # pyright: ignore[reportUnknownVariableType]


SCHEDULES = (schedule_shifted(1, "ahead"), schedule_shifted(-1, "behind"))
