"""Does a train step do what it says?"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxcheck.errors import InvalidInputError
from jaxcheck.gradients.findings import package_versions
from jaxcheck.gradients.options import require_count, require_function
from jaxcheck.jaxprs import compat
from jaxcheck.reports.values import Finding, Verdict
from jaxcheck.states import batches_of, copied, next_batch, readers_of
from jaxcheck.trees import by_path, is_inexact, require_finite, widen
from jaxcheck.updates.expected import After, Agreement, Expected, agreement
from jaxcheck.updates.faults import FAULTS, SCHEDULES, Fault, parts
from jaxcheck.updates.inferring import (
    learning_rates,
    limited,
    of_each_step,
    of_gradient,
    of_updates,
)
from jaxcheck.updates.recovering import of_another_gradient
from jaxcheck.updates.runs import is_transformation
from jaxcheck.updates.step_report import Inferred, TrainStepReport
from jaxcheck.updates.views import Viewer, viewer_of
from jaxcheck.updates.watching import Seen, Watched, watch

_CALLER = "check_train_step"
# What a change of parameters may be off by, in the program's own dtypes.
_NATIVE = 1e-3
# Gradients that are the same, by what steps may be off by.
_SAME = 10.0
# Share of the elements that should move and do not, from which updates are called lost.
_LOST = 0.5


def check_train_step(
    train_step: Callable[..., Any],
    state: Any,
    batches: Iterable[Any],
    *,
    loss_fn: Callable[..., Any],
    tx: Any,
    params_of: Callable[[Any], Any] | None = None,
    opt_state_of: Callable[[Any], Any] | None = None,
    has_aux: bool = False,
    steps: int = 4,
    rtol: float = 1e-6,
) -> TrainStepReport:
    r"""Check that a train step is ``tx.update`` of the gradient, applied once.

    The step is run as it is, and each of its results is held against
    ``tx.update(jax.grad(loss_fn)(params, batch), opt_state, params)`` and
    ``optax.apply_updates``, from the state that the step was given. Changes of
    parameters are compared, by the largest change in their leaf, and the optimizer's
    state; in float64 if the step runs on float64 arrays, else as it is. Where they
    differ, a dictionary of faults is gone through for the one that predicts what the
    step really left, in all steps.

    It establishes nothing about the gradient (``jaxcheck.check``) or the optimizer
    (``jaxcheck.check_update``) by themselves.

    Args:
        train_step: ``train_step(state, batch)`` returns the new state, or a tuple that
            begins with it; or None, if it changes ``state`` in place. It may be jitted,
            and may donate its arguments.
        state: the state before the first step; it stays as it is.
        batches: gone through again and again; two different ones at least tell more.
        loss_fn: ``loss_fn(params, batch)`` returns the loss that the step should
            minimize, of what ``params_of`` gives. A transformation that needs ``value``
            is given it.
        tx: the optax transformation that it should use.
        params_of: reads the parameters from a state; by default its attribute or key
            ``params`` or ``model``, or the first item of a tuple.
        opt_state_of: reads the optimizer's state; by default ``opt_state`` or
            ``optimizer``, or the second item of a tuple. It may be an
            ``nnx.Optimizer``; what else a model holds than ``tx`` was initialized
            with goes into ``loss_fn`` as it is.
        has_aux: whether ``loss_fn`` returns ``(loss, aux)``.
        steps: how many to take.
        rtol: relative tolerance in float64.

    Returns:
        The report: verdict, the name of the fault, the numbers that show it.

    Raises:
        InvalidInputError: an argument cannot be used.

    Example:
        >>> import jax, jax.numpy as jnp, optax
        >>> tx = optax.adam(0.1)
        >>> loss = lambda w, x: jnp.mean((x @ w - 1.0) ** 2)
        >>> def step(state, x):
        ...     w, opt_state = state
        ...     updates, opt_state = tx.update(jax.grad(loss)(w, x), opt_state, w)
        ...     return w - updates, opt_state
        >>> w = jnp.arange(3.0)
        >>> batches = [jnp.ones((4, 3)), jnp.eye(3)]
        >>> check_train_step(step, (w, tx.init(w)), batches, loss_fn=loss, tx=tx).fault
        'wrong_sign'
    """
    _require(train_step, loss_fn, tx, steps)
    coming = batches_of(_CALLER, batches)
    taken = [next_batch(_CALLER, coming, k, steps) for k in range(steps)]
    readers = readers_of(_CALLER, state, params_of, opt_state_of)
    viewer = viewer_of(_CALLER, tx, state, readers)
    require_finite(_CALLER, "state", viewer.view(state).params)
    native = watch(train_step, state, taken, viewer)
    expected = Expected(loss_fn, tx, viewer, has_aux=has_aux)
    wide = _in_float64(train_step, state, taken, viewer)
    watched, tolerance = (native, _NATIVE) if wide is None else (wide, rtol)
    with compat.x64(wide is not None or _is_wide(native)):
        found = _judge(expected, watched, tx, tolerance)
    findings = [*found.findings]
    if not native.pure:
        findings.append(_impure())
    if found.fault is None and not findings:
        findings += _lost(expected, native)
    name = "lost_to_rounding" if _only_lost(findings) else None
    return TrainStepReport(
        verdict=Verdict.WRONG if findings else Verdict.CORRECT,
        fault=name if found.fault is None else found.fault.name,
        behaves=None if found.fault is None else found.fault.text,
        inferred=Inferred() if found.fault is None else found.fault.inferred,
        leaf=found.leaf,
        state_field=found.state_field,
        step=found.step,
        relative_error=found.error,
        tolerance=tolerance,
        findings=tuple(findings),
        steps=steps,
        precision="native" if wide is None else "float64",
        versions=package_versions(),
    )


# ---- what is asked


def _require(train_step: Any, loss_fn: Any, tx: Any, steps: int) -> None:
    require_function("check_train_step", "train_step", train_step)
    require_function("check_train_step", "loss_fn", loss_fn)
    require_count("check_train_step", "steps", steps)
    if not is_transformation(tx):
        raise InvalidInputError(
            "`check_train_step(tx=...)` must have functions `init` and `update`, like "
            f"an optax.GradientTransformation; got {type(tx).__name__}."
        )


def _in_float64(
    train_step: Any, state: Any, batches: Sequence[Any], viewer: Viewer
) -> Watched | None:
    """The same steps on float64 arrays, if the step keeps them."""
    with compat.x64(True):
        try:
            wide = jax.tree.map(widen, copied(state))
            watched = watch(
                train_step, wide, [jax.tree.map(widen, b) for b in batches], viewer
            )
        except Exception:  # it insists on its dtypes: then it is watched in those
            return None
    return watched if _is_wide(watched) else None


def _is_wide(watched: Watched) -> bool:
    leaves = jax.tree.leaves([seen.params_after for seen in watched.seen])
    dtypes = {jnp.asarray(x).dtype for x in leaves if is_inexact(jnp.asarray(x).dtype)}
    return all(jnp.finfo(dtype).bits == 64 for dtype in dtypes)


# ---- what was found


class _Found(NamedTuple):
    fault: Fault | None = None
    step: int | None = None
    leaf: str | None = None
    state_field: str | None = None
    error: float = 0.0
    findings: Sequence[Finding] = ()


def _judge(expected: Expected, watched: Watched, tx: Any, tolerance: float) -> _Found:
    steps = watched.seen
    agreements = [
        agreement(seen.params, _after(seen), expected.step(seen)) for seen in steps
    ]
    error = max(max(a.error.values(), default=0.0) for a in agreements)
    wrong = [k for k, a in enumerate(agreements) if a.worst > tolerance]
    if not wrong:
        return _Found(error=error)
    step = wrong[0]
    leaf, field = _place(agreements[step], tolerance)
    fault = _explained(expected, steps, tx, tolerance) or _of_leaves(
        steps, agreements, tolerance
    )
    finding = Finding(
        kind="wrong_update",
        leaf=leaf,
        message=_told(step, leaf, field, agreements[step], fault),
    )
    return _Found(fault, step, leaf, field, error, [finding])


def _after(seen: Seen) -> After:
    return After(seen.params_after, seen.opt_state_after)


def _place(found: Agreement, tolerance: float) -> tuple[str | None, str | None]:
    leaf = max(found.error, key=lambda k: found.error[k], default=None)
    if leaf is not None and found.error[leaf] > tolerance:
        return leaf, None
    return None, max(found.state_error, key=lambda k: found.state_error[k])


def _explained(
    expected: Expected, steps: Sequence[Seen], tx: Any, tolerance: float
) -> Fault | None:
    """The fault that predicts what every step left."""
    devices = jax.device_count()

    def candidates() -> Iterator[Fault]:
        yield from FAULTS
        yield from SCHEDULES
        yield from of_updates(expected, steps, learning_rates(tx))
        yield from of_gradient(expected, steps, devices)
        yield from parts(devices)
        yield from limited(expected, steps)
        yield from of_each_step(expected, steps)
        yield from of_another_gradient(expected, steps, _SAME * tolerance)

    for fault in candidates():
        if _holds(fault, expected, steps, tolerance):
            return fault
    return None


def _holds(
    fault: Fault, expected: Expected, steps: Sequence[Seen], tolerance: float
) -> bool:
    known = 0
    for t, seen in enumerate(steps):
        try:
            predicted = fault.predict(expected, steps, t)
        except (TypeError, ValueError):
            return False  # that cannot be done with this optimizer
        if predicted is None:
            continue
        known += 1
        if agreement(seen.params, _after(seen), predicted).worst > tolerance:
            return False
    return known > 0


def _of_leaves(
    steps: Sequence[Seen], agreements: Sequence[Agreement], tolerance: float
) -> Fault | None:
    """Some leaves are off, and the same ones in every step: how?"""
    off = {
        path for found in agreements for path, e in found.error.items() if e > tolerance
    }
    if not off or len(off) == len(agreements[0].error):
        return None
    still = {path for path in off if all(_stands(seen, path) for seen in steps)}
    names = ", ".join(sorted(off))

    def unknown(expected: Expected, steps: Sequence[Seen], t: int) -> After | None:
        del expected, steps, t
        return None

    if still == off:
        return Fault("leaf_not_updated", f"{names} were not trained", unknown)
    if all(
        np.isinf(a.error[path]) or a.error[path] > 1e3
        for a in agreements
        for path in off
    ):
        return Fault("frozen_leaf_moved", f"{names} were not frozen", unknown)
    return None


def _stands(seen: Seen, path: str) -> bool:
    before, after = by_path(seen.params)[path], by_path(seen.params_after)[path]
    return bool(np.array_equal(before, after))


def _told(
    step: int,
    leaf: str | None,
    field: str | None,
    found: Agreement,
    fault: Fault | None,
) -> str:
    if field is None:
        error = found.error[leaf or ""]
        where = f"the change of {leaf or 'the leaf'} is off by {error:.1e}"
    else:
        where = f"opt_state{field} is off by {found.state_error[field]:.1e}"
    behaves = (
        "no fault of the dictionary explains all steps."
        if fault is None
        else f"it behaves as if {fault.text}."
    )
    return f"in step {step}, {where} of what it should be; {behaves}"


def _impure() -> Finding:
    return Finding(
        kind="nondeterministic",
        message=(
            "the first step gave another result when it was taken again: it is not a "
            "function of its state and its batch."
        ),
        remedy="Carry what it draws from (a random key, a counter) in the state.",
    )


def _lost(expected: Expected, native: Watched) -> list[Finding]:
    """Updates that leave the parameters as they are, for they are too small."""
    seen = native.seen[0]
    updates, _ = expected.update(seen, expected.gradient(seen))
    moving = still = 0
    for before, after, update in zip(
        *(jax.tree.leaves(x) for x in (seen.params, seen.params_after, updates)),
        strict=True,
    ):
        moves = np.asarray(update) != 0
        moving += int(np.count_nonzero(moves))
        same = np.asarray(before) == np.asarray(after)
        still += int(np.count_nonzero(moves & same))
    if not moving or still < _LOST * moving:
        return []
    message = (
        f"{still:,} of {moving:,} elements of the parameters that have an update stay "
        "as they are: the updates are smaller than half a unit in their last place."
    )
    remedy = "Keep the parameters in float32, or round them stochastically."
    return [Finding(kind="precision_loss", message=message, remedy=remedy)]


def _only_lost(findings: Sequence[Finding]) -> bool:
    return [finding.kind for finding in findings] == ["precision_loss"]
