"""What a reader should know beside the verdict: findings about leaves and programs."""

from __future__ import annotations

import dataclasses
import math
import platform
import sys
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import jaxlib.version
import numpy as np

from jaxcheck.gradients.comparison import Comparison, Lane
from jaxcheck.gradients.judge import LeafOutcome
from jaxcheck.gradients.measure import Meter
from jaxcheck.gradients.program import NativeResult, Programs, ReadingResult
from jaxcheck.jaxprs import interpret
from jaxcheck.jaxprs.cuts import flat_equations
from jaxcheck.jaxprs.sites import nested_site
from jaxcheck.jaxprs.switches import Switch
from jaxcheck.jaxprs.trace import TracedLoss
from jaxcheck.reports.values import Finding, Verdict

# A native gradient may be off by this many units of its leaf's roundoff before it is
# called imprecise, and by this share in any case.
_PRECISION_UNITS = 1_000.0
_PRECISION_SHARE = 1e-3
# By this many units of roundoff of what was summed in any case.
_CANCELLED_UNITS = 64.0
# Factors of a matrix whose signs are a matter of rounding.
_UP_TO_SIGN = frozenset(
    {"eigh", "eig", "svd", "qr", "geqrf", "schur", "householder_product"}
)
# A switch farther away than this, in steps, is none that a difference crossed.
_NEAR_STEPS = 4.0
# A stop_gradient site that changes the derivative by less is not worth mentioning.
_DETACHED_SHARE = 1e-6
_PROBE = 0
# Flat equations that are named.
_CUTS = 3


def nondeterminism(traced: TracedLoss, native: NativeResult) -> Finding | None:
    """A finding if two equal calls of the loss differ."""
    if not traced.deterministic:
        return Finding(
            kind="nondeterministic",
            message=(
                "the loss is another program each time it is called: something outside "
                "its arguments moves (NumPy or Python randomness, a counter, random "
                "state of a module)."
            ),
            remedy=(
                "Pass what moves as an argument: a jax.random key for dropout, running "
                "statistics as part of the state."
            ),
        )
    first, second = native.loss, native.repeated
    both_nan = math.isnan(first) and math.isnan(second)
    # the last digits may move where a device adds in any order
    if first == second or both_nan or abs(first - second) <= 1e-5 * abs(first):
        return None
    return Finding(
        kind="nondeterministic",
        message=(
            f"two equal calls of the compiled loss gave {first!r} and {second!r}: it "
            "reads something besides its arguments, through a callback perhaps."
        ),
        remedy="Make the callback a function of its operands.",
    )


def leaf_findings(
    programs: Programs,
    native: NativeResult,
    reading: ReadingResult,
    k: int,
    outcome: LeafOutcome,
) -> list[Finding]:
    """Findings about one leaf that hold whatever its verdict is."""
    leaf = programs.leaves[k]
    name = leaf.path or "the leaf"
    found: list[Finding] = []
    if not interpret.used_inputs(programs.traced.program)[k]:
        message = f"the loss does not depend on {name}."
        found.append(Finding(kind="unused", leaf=leaf.path, message=message))
    elif (
        reading.norms[k] == 0
        and outcome.verdict is Verdict.CORRECT
        and not outcome.findings
    ):
        found.append(_dead(programs, k, leaf.path))
    if (loss := precision_loss(programs, native, reading, k)) is not None:
        found.append(loss)
    return found


def precision_loss(
    programs: Programs, native: NativeResult, reading: ReadingResult, k: int
) -> Finding | None:
    """A finding if the native gradient of a leaf is off by more than must be."""
    leaf = programs.leaves[k]
    error, scale = reading.native_errors[k], reading.norms[k]
    summed = max(float(scale), 1e-3 * float(reading.size_norms[k]))
    eps = float(jnp.finfo(leaf.dtype).eps)
    allowed = min(_PRECISION_UNITS * eps, _PRECISION_SHARE) * summed
    # a gradient that is zero by cancellation is as precise as what it cancels
    allowed = max(allowed, _CANCELLED_UNITS * eps * float(reading.size_norms[k]))
    if native.bad_grads[k] == 0 and error > allowed > 0:
        share = float(error) / summed
        return _precision_loss(programs, leaf.path, leaf.dtype, share)
    return None


def _dead(programs: Programs, k: int, path: str) -> Finding:
    name = path or "the leaf"
    cuts = [nested_site(stack) for stack in flat_equations(programs.traced.program, k)]
    if not cuts:
        message = f"the gradient of {name} is exactly zero at this point, rightly."
        return Finding(kind="dead", leaf=path, message=message)
    others = "".join(f", and by {site}" for site in cuts[1:_CUTS])
    more = f", and {len(cuts) - _CUTS} more" if len(cuts) > _CUTS else ""
    return Finding(
        kind="dead",
        leaf=path,
        site=cuts[0],
        message=(
            f"the gradient of {name} is zero everywhere, rightly: it is cut off by "
            f"{cuts[0]}{others}{more}, constant but for jumps."
        ),
        remedy=(
            "If it should learn, give that operation a derivative: a straight-through "
            "estimator with jax.custom_vjp, or a smooth relaxation."
        ),
    )


def _precision_loss(programs: Programs, path: str, dtype: str, share: float) -> Finding:
    used = {e.primitive.name for e in interpret.equations(programs.traced.program)}
    ambiguous = (
        " Eigenvectors and singular vectors are defined up to a sign, which two "
        "precisions may choose differently."
        if used & _UP_TO_SIGN
        else ""
    )
    return Finding(
        kind="precision_loss",
        leaf=path,
        message=(
            f"the gradient of {path or 'the leaf'} ({dtype}) as training computes it "
            f"is off by {share:.1e} of its size; what is compared above are the same "
            "rules in float64. The rules are not the cause, rounding is."
            f"{ambiguous}"
        ),
        remedy=(
            "Raise the dtype of the operations that lose the digits (accumulations, "
            "softmax, normalization), or rewrite a difference of nearly equal numbers."
        ),
    )


def program_findings(
    programs: Programs, native: NativeResult, reading: ReadingResult
) -> list[Finding]:
    """Findings about the loss as a whole."""
    found: list[Finding] = []
    if programs.lowered is not None:
        found.append(
            Finding(
                kind="lowered_precision",
                site=programs.lowered,
                message=(
                    f"{programs.lowered.primitive} ran in the program's own precision "
                    f"(eps {programs.eps:.1e}), because it has no float64 reading; the "
                    "error bars are as wide as that demands."
                ),
            )
        )
    if programs.borrowed is not None:
        found.append(
            Finding(
                kind="lowered_precision",
                message=(
                    "a custom rule could not be read in float64 "
                    f"({programs.borrowed}): the gradient in the program's own dtypes "
                    "was compared with the differences, with a tolerance to match."
                ),
            )
        )
    difference = abs(native.loss - reading.loss)
    if difference > 1e-2 * abs(reading.loss) and not programs.native_precision:
        found.append(
            Finding(
                kind="precision_loss",
                message=(
                    f"the loss itself is {native.loss:.6g} in the program's own "
                    f"precision and {reading.loss:.6g} in float64."
                ),
            )
        )
    return found


def detached_findings(
    meter: Meter, outcomes: Sequence[LeafOutcome], intended: Sequence[bool]
) -> list[Finding]:
    """Which stop_gradient cuts how much of which leaf's gradient off.

    All leaves together are probed once as written and once with every site looked
    through; only if the two differ is each leaf probed, and each site tried alone.

    Args:
        meter: measures.
        outcomes: one a leaf.
        intended: for each leaf, whether its gradient is meant to be cut off.
    """
    sites = meter.programs.sites
    if not sites or meter.transparent:
        return []
    if not np.any(_cut(meter, [meter.everything(_PROBE)])[0]):
        return []
    lanes = [meter.whole(leaf, _PROBE) for leaf in range(len(outcomes))]
    cut, frozen, through = _cut(meter, lanes)
    size = np.maximum(np.abs(frozen.numerical), np.abs(through.numerical))
    found: list[Finding] = []
    shares: dict[int, list[tuple[float, str]]] = {}
    together: list[tuple[float, str]] = []
    for leaf in np.flatnonzero(cut & ~np.asarray(intended)):
        for site in range(len(sites)):
            alone = meter.through_site(lanes[leaf], site)
            change = abs(alone - float(frozen.numerical[leaf]))
            noise = float(frozen.bar[leaf] + through.bar[leaf])
            if change > noise + _DETACHED_SHARE * float(size[leaf]):
                share = change / max(abs(alone), abs(float(frozen.numerical[leaf])))
                path = meter.programs.leaves[leaf].path
                shares.setdefault(site, []).append((share, path))
        if not any(
            path == meter.programs.leaves[leaf].path for _, path in _all(shares)
        ):
            share = float(
                np.abs(through.numerical - frozen.numerical)[leaf] / size[leaf]
            )
            together.append((share, meter.programs.leaves[leaf].path))
    if together:
        found.append(_detached(None, sorted(together, reverse=True)))
    for site, cuts in shares.items():
        found.append(_detached(sites[site], sorted(cuts, reverse=True)))
    return found


def _all(shares: dict[int, list[tuple[float, str]]]) -> list[tuple[float, str]]:
    return [cut for cuts in shares.values() for cut in cuts]


def _cut(meter: Meter, lanes: list[Lane]) -> tuple[Any, Comparison, Comparison]:
    """Where looking through every site changes the derivative; both derivatives."""
    frozen = meter.compare("directional", lanes)
    through = meter.transparently().compare("directional", lanes)
    gap = np.abs(frozen.numerical - through.numerical)
    size = np.maximum(np.abs(through.numerical), frozen.size)
    noise = frozen.bar + through.bar
    return gap > noise + _DETACHED_SHARE * size, frozen, through


def _detached(site: Any, cuts: list[tuple[float, str]]) -> Finding:
    listing = ", ".join(
        f"{share:.0%} of {path or 'the leaf'}" for share, path in cuts[:5]
    )
    more = f" and {len(cuts) - 5} more" if len(cuts) > 5 else ""
    name = site or "several stop_gradient equations together"
    return Finding(
        kind="detached",
        leaf=cuts[0][1],
        site=site,
        message=f"{name} removes {listing}{more} from the gradient: intended?",
        remedy='stop_gradient="transparent" makes such a cut WRONG.',
    )


def switch_findings(meter: Meter, outcomes: Sequence[LeafOutcome]) -> list[Finding]:
    """Where the switch is that a ladder of steps had to go below.

    A finding ``kink`` that a leaf has already gets its place.
    """
    found: list[Finding] = []
    for leaf, outcome in enumerate(outcomes):
        if not outcome.explained:
            continue
        lane = outcome.explained[0]
        kinks = [k for k, f in enumerate(outcome.findings) if f.kind == "kink"]
        # without a kink, what switches at the point itself does not reach the loss
        nearest = next(
            (s for s in meter.switches(lane) if kinks or s.distance > 0), None
        )
        if nearest is None or nearest.distance > _NEAR_STEPS:
            continue
        for k in kinks:
            outcome.findings[k] = dataclasses.replace(
                outcome.findings[k], site=nearest.site
            )
        if not kinks:
            path = meter.programs.leaves[leaf].path
            found.append(_near_switch(meter, path, lane, nearest))
    return found


def _near_switch(meter: Meter, path: str, lane: Lane, nearest: Switch) -> Finding:
    change = nearest.distance * meter.step_size(lane)
    of = "a coordinate" if lane.probe is None else "its relative size"
    return Finding(
        kind="kink",
        leaf=path,
        site=nearest.site,
        message=(
            f"{nearest.primitive} switches when {path or 'the leaf'} moves by "
            f"{change:.1e} ({of}): close, and not at this point. Differences were "
            "taken below it."
        ),
    )


def package_versions() -> tuple[tuple[str, str], ...]:
    """Versions of what a verdict depends on."""
    own = str(getattr(sys.modules["jaxcheck"], "__version__", "unknown"))
    return (
        ("python", platform.python_version()),
        ("jaxcheck", own),
        ("jax", jax.__version__),
        ("jaxlib", jaxlib.version.__version__),
        ("numpy", np.__version__),
    )


def device_name() -> str:
    """The default device's platform, with its kind where that says more."""
    device = jax.devices()[0]
    if device.device_kind.lower() == device.platform:
        return device.platform
    return f"{device.platform} ({device.device_kind})"
