"""A leaf's gradient, taken apart by the places where the leaf is used.

Reverse mode adds up what comes back through every use of a value. Give every use a copy
of its own, x_1 = ... = x_K = x, and the derivative by x_k is what came through use k:

    g = sum_k c_k,   c_k = dL/dx_k,   share_k = <c_k, g> / <g, g>,   sum_k share_k = 1.

The contributions are those of autodiff, with the rules as they are. Whether the rules
are right is not asked here.
"""

from __future__ import annotations

import dataclasses
import linecache
import math
from collections import Counter
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxcheck.errors import InvalidInputError
from jaxcheck.gradients.arrays import norm
from jaxcheck.gradients.point import Point
from jaxcheck.jaxprs import compat, interpret
from jaxcheck.jaxprs.compat import Equation, Place, Program
from jaxcheck.jaxprs.compiled import Compiled
from jaxcheck.jaxprs.lift import lift
from jaxcheck.jaxprs.magnitudes import run_with_magnitudes
from jaxcheck.jaxprs.sites import site_of
from jaxcheck.jaxprs.trace import TracedLoss
from jaxcheck.places.flow.copies import with_copies
from jaxcheck.places.flow.report import FlowLeaf, FlowUse, SourceLine
from jaxcheck.places.flow.uses import Use, uses_of
from jaxcheck.reports.values import EquationSite
from jaxcheck.trees import widen

Array = Any
FloatArray = np.ndarray[Any, np.dtype[np.float64]]

# A contribution is zero up to this many units of roundoff of what was summed for it.
_ROUNDING_UNITS = 64.0


class Flow(NamedTuple):
    """What flows where, and in which precision that was computed."""

    leaves: tuple[FlowLeaf, ...]
    precision: Literal["float64", "native"]


def flow_of(traced: TracedLoss) -> Flow:
    """Take the gradient of every leaf of a traced loss apart.

    Computed in the float64 reading, or in the loss's own dtypes where it has none.
    """
    uses = uses_of(traced.program)
    if not uses:
        return Flow(_leaves(traced, uses, _Measured.empty(traced), 0.0), "float64")
    with compat.x64(traced.x64):
        copied = with_copies(traced.program, uses)
    try:
        measured = _measure(traced, copied, uses, "float64")
    except Exception:  # a rule or a collective without a float64 reading
        measured = _measured_natively(traced, copied, uses)
        eps = Point(traced, precision="native").native_eps
        return Flow(_leaves(traced, uses, measured, eps), "native")
    eps = float(np.finfo(np.float64).eps)
    return Flow(_leaves(traced, uses, measured, eps), "float64")


def _measured_natively(
    traced: TracedLoss, copied: Program, uses: Sequence[Use]
) -> _Measured:
    try:
        return _measure(traced, copied, uses, "native")
    except jax.errors.UnexpectedTracerError as error:
        raise InvalidInputError(
            "the loss cannot be taken apart: the rule of a custom function closes over "
            "a value that the loss computes. Pass that value to the function as an "
            "argument."
        ) from error


class _Measured(NamedTuple):
    """Norms of gradients and contributions, shares, and the size of what was summed."""

    gradients: FloatArray
    contributions: FloatArray
    sizes: FloatArray
    shares: FloatArray

    @classmethod
    def empty(cls, traced: TracedLoss) -> _Measured:
        """Of a loss that uses no leaf."""
        count = len(traced.params.differentiable)
        return cls(np.zeros(count), *[np.zeros(0)] * 3)


def _measure(
    traced: TracedLoss,
    copied: Program,
    uses: Sequence[Use],
    precision: Literal["float64", "native"],
) -> _Measured:
    reads = precision == "float64"
    if reads:
        with compat.x64(True):
            copied = lift(copied, rules="keep", native=False, native_x64=traced.x64)

    numbers = range(len(uses))

    def loss(*copies: Array) -> Array:
        return interpret.evaluate(copied, copies)[0]

    def run(*inputs: Array) -> list[Array]:
        moved = [widen(x) if reads else jnp.asarray(x) for x in inputs]
        copies = [moved[use.input] for use in uses]
        gradient = compat.make_program(jax.grad(loss, tuple(numbers)), copies)
        contributions, sizes = run_with_magnitudes(gradient, copies, numbers)
        gradients: list[Array] = [jnp.zeros(()) for _ in inputs]
        for use, contribution in zip(uses, contributions, strict=True):
            gradients[use.input] = gradients[use.input] + contribution
        shares = [
            _share(contribution, gradients[use.input])
            for use, contribution in zip(uses, contributions, strict=True)
        ]
        measured = (gradients, contributions, sizes)
        norms = [jnp.stack([norm(jnp.abs(x)) for x in xs]) for xs in measured]
        return [*norms, jnp.stack(shares)]

    inputs = Point(traced, precision=precision).inputs
    out = Compiled(run, inputs, x64=reads or traced.x64)(*inputs)
    return _Measured(*(np.asarray(x, np.float64) for x in out))


def _share(contribution: Array, gradient: Array) -> Array:
    """<c, g>/<g, g>; both are divided by |g| first, so that no square overflows."""
    size = norm(jnp.abs(gradient))
    unit = jnp.where(size > 0, size, 1.0)
    return jnp.sum(jnp.real(contribution / unit * jnp.conj(gradient / unit)))


# ---- writing them down


def _leaves(
    traced: TracedLoss, uses: Sequence[Use], measured: _Measured, eps: float
) -> tuple[FlowLeaf, ...]:
    leaves: list[FlowLeaf] = []
    for k, leaf in enumerate(traced.params.differentiable):
        own = [n for n, use in enumerate(uses) if use.input == k]
        rounding = _ROUNDING_UNITS * eps * measured.sizes
        size = float(measured.gradients[k])
        zero = bool(size <= np.sum(rounding[own]))
        telling = telling_lines([uses[n].calls for n in own])
        described = [
            _use(
                uses[n],
                line,
                norm=float(measured.contributions[n]),
                share=None if zero else float(measured.shares[n]),
                zero=bool(measured.contributions[n] <= rounding[n]),
            )
            for n, line in zip(own, telling, strict=True)
        ]
        leaves.append(
            FlowLeaf(
                path=leaf.path,
                shape=leaf.shape,
                dtype=leaf.dtype,
                norm=size,
                zero=zero,
                uses=tuple(sorted(described, key=_order)),
            )
        )
    return tuple(leaves)


def _order(use: FlowUse) -> tuple[float, float]:
    share = use.share
    return (0.0 if share is None or math.isnan(share) else -share), -use.norm


def _use(
    use: Use, line: Place | None, *, norm: float, share: float | None, zero: bool
) -> FlowUse:
    return FlowUse(
        site=_site(use.equations, line),
        calls=tuple(map(_source_line, use.calls)),
        share=share,
        norm=norm,
        zero=zero,
        count=len({address[:-1] for address in use.addresses}),
        stopped=None if use.stopped is None else site_of(use.stopped),
    )


def _site(equations: Sequence[Equation], line: Place | None) -> EquationSite:
    """The last of nested equations, at ``line``."""
    if not equations:
        return EquationSite(primitive="the loss itself")
    scopes = [compat.scope(eqn) for eqn in equations]
    return dataclasses.replace(
        site_of(equations[-1]),
        scope="/".join(filter(None, scopes)) or None,
        file=None if line is None else line.file,
        line=None if line is None else line.line,
    )


def _source_line(place: Place) -> SourceLine:
    return SourceLine(
        file=place.file,
        line=place.line,
        column=place.column,
        function=place.name,
        text=linecache.getline(place.file, place.line).strip(),
    )


def telling_lines(chains: Sequence[Sequence[Place]]) -> list[Place | None]:
    """Of each chain of calls the innermost line that no other chain shares so far.

    Args:
        chains: lines, innermost first.

    Returns:
        One line a chain; the innermost one where nothing tells it apart, and None for a
        chain without lines.

    Example:
        >>> net, online, target = (Place("f", "dqn.py", k) for k in (14, 27, 31))
        >>> [line.line for line in telling_lines([(net, online), (net, target)])]
        [27, 31]
    """
    shared = Counter(
        tuple(chain[:n]) for chain in chains for n in range(1, len(chain) + 1)
    )
    found: list[Place | None] = []
    for chain in chains:
        alone = (
            chain[n] for n in range(len(chain)) if shared[tuple(chain[: n + 1])] == 1
        )
        found.append(next(alone, chain[0] if chain else None))
    return found
