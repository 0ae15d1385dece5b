r"""How much of a gradient's rounding error each equation accounts for.

With all knobs (``knobs.py``) at 1 the gradient has the error that rounding makes; let u
be its direction, for one leaf. With the knobs turned together from 0,

.. math:: u \cdot (g(1) - g(0))
    = \sum_e \int_0^1 \frac{∂\, u \cdot g}{∂ t_e}(t, …, t)\, dt,

an account that adds up however far from linear the program is, as far as the quadrature
goes. One backward pass gives the derivatives by all knobs.

A compiler that fuses equations rounds less often, or adds in another order: whether the
error is still the one that training has is for ``resemblance`` to say.
"""

from __future__ import annotations

import functools
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxcheck.gradients.arrays import native_view
from jaxcheck.gradients.program import NativeResult, Programs, ReadingResult
from jaxcheck.jaxprs import compat
from jaxcheck.jaxprs.compiled import Compiled
from jaxcheck.jaxprs.memory import peak_bytes
from jaxcheck.places.precision.knobs import Knobs, knobs_of, slot_of, weighed
from jaxcheck.places.rules.instrument import Chain, Site
from jaxcheck.trees import widen

Array = Any
FloatArray = np.ndarray[Any, np.dtype[np.float64]]

# Gauss-Legendre, on [0, 1]: exact to the fifth power of the size of the error.
_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(3)
_PATH = [(0.5 + n / 2, w / 2) for n, w in zip(_NODES, _WEIGHTS, strict=True)]
# What is kept for the way back: errors and values in float64, for each value in float32
# or less.
_NATIVE_UNITS = 4


class Account(NamedTuple):
    """Who accounts for the error of one leaf, in units of that error.

    Attributes:
        shares: of each site, an axis for each loop around it; all together they are one
            as far as they explain the error.
        weights: of each addition and subtraction, how much of the gradient hangs on its
            operands, and on its result.
    """

    shares: Mapping[Chain, FloatArray]
    weights: Mapping[Chain, tuple[float, float]]

    @property
    def total(self) -> float:
        """All shares together."""
        return sum(map(self.share, self.shares))

    def share(self, chain: Chain) -> float:
        """The share of one site, all iterations together."""
        return float(np.sum(self.shares[chain]))


class Digits:
    """The gradient of a loss, with a knob at every equation that rounds.

    Attributes:
        sites: the equations, those of the backward pass among them.
    """

    def __init__(
        self, programs: Programs, native: NativeResult, reading: ReadingResult
    ) -> None:
        """Prepare; nothing is compiled yet."""
        self._programs = programs
        self._native = native
        self._reading = reading
        self._program = programs.native_program()
        self._runs: dict[tuple[Chain, ...], list[Array]] = {}
        self.sites: Mapping[Chain, Site] = self._knobs(again=False).sites

    def _knobs(self, *, again: bool) -> Knobs:
        x64 = self._programs.traced.x64
        return knobs_of(self._program, native_x64=x64, again=again)

    def bytes(self, enough: int) -> int:
        """What ``account`` needs at its peak, estimated.

        Args:
            enough: a lower bound that exceeds it will do.
        """
        least = _NATIVE_UNITS * peak_bytes(self._program)
        return least if least > enough else peak_bytes(self._account.program)

    def start(self) -> None:
        """Compile what ``account`` and ``left`` run, side by side."""
        self._account.start(*map(np.zeros, self._shapes()), *self._point())
        self._replay.start(*map(np.zeros, self._lengths()), *self._programs.inputs)

    def resemblance(self, leaf: int) -> tuple[float, float]:
        """The error of a leaf that is accounted for, beside that of training.

        Returns:
            Its size by that of training's error, and the cosine between the two.
        """
        own = self._rounded[leaf] - self._right(leaf)
        native = self._programs.native_view(self._native, leaf) - self._right(leaf)
        size, trained = np.linalg.norm(own), np.linalg.norm(native)
        return float(size / trained), float(np.vdot(own, native) / (size * trained))

    def account(self, leaf: int) -> Account:
        """Who accounts for the error of one leaf."""
        error = self._rounded[leaf] - self._right(leaf)
        size = float(np.linalg.norm(error))
        total = list(map(np.zeros, self._shapes()))
        for node, weight in _PATH:
            slopes, _ = self._slopes(node, {leaf: error / size})
            for k, slope in enumerate(slopes):
                total[k] += weight * np.asarray(slope) / size
        shares = dict(zip(self.sites, total, strict=False))
        sums = [np.sum(x.reshape(-1, 2), axis=0) for x in total[len(shares) :]]
        weights = [(float(operands), float(result)) for operands, result in sums]
        return Account(shares, dict(zip(self._weighed, weights, strict=True)))

    @functools.cached_property
    def _rounded(self) -> list[FloatArray]:
        """The gradients with all errors let in."""
        return [np.asarray(g) for g in self._slopes(1.0, {})[1]]

    def _slopes(
        self, turned: float, along: Mapping[int, FloatArray]
    ) -> tuple[list[Array], list[Array]]:
        """Derivatives by all knobs and slots of the gradient along something, and it.

        Args:
            turned: how far all knobs are.
            along: the direction, for each leaf that it is not zero for.
        """
        knobs = [np.full(lengths, turned) for lengths in self._lengths()]
        shapes = self._shapes()
        slots = map(np.zeros, shapes[len(knobs) :])
        u = [
            along.get(k, np.zeros(np.shape(g)))
            for k, g in enumerate(self._reading.grads)
        ]
        out = self._account(*knobs, *slots, *u, *self._programs.inputs)
        return out[: len(shapes)], out[len(shapes) :]

    def left(self, leaf: int, without: Collection[Chain]) -> float:
        """The share of a leaf's error that is left if some equations do not round.

        Their results are kept in float64 by what consumes them; all other equations
        round what they get.
        """
        size = np.linalg.norm(self._error(leaf, ()))
        return float(np.linalg.norm(self._error(leaf, tuple(without))) / size)

    def _error(self, leaf: int, without: tuple[Chain, ...]) -> FloatArray:
        """Of one leaf, run again."""
        return np.asarray(self._replayed(without)[leaf]) - self._right(leaf)

    def _right(self, leaf: int) -> FloatArray:
        with compat.x64(True):
            return np.asarray(self._reading.grads[leaf], np.float64)

    def _replayed(self, without: tuple[Chain, ...]) -> list[Array]:
        """All gradients if some equations do not round."""
        if without not in self._runs:
            knobs = [
                np.full(site.lengths, float(chain not in without))
                for chain, site in self.sites.items()
            ]
            self._runs[without] = self._replay(*knobs, *self._programs.inputs)
        return self._runs[without]

    # -- the two programs

    @functools.cached_property
    def _account(self) -> Compiled:
        knobs = self._knobs(again=False)
        count, leaves = len(self._shapes()), len(self._programs.leaves)

        def run(*args: Array) -> list[Array]:
            turned, rest = args[:count], args[count:]
            along, inputs = rest[:leaves], rest[leaves:]

            def error(turned: Sequence[Array]) -> tuple[Array, list[Array]]:
                views = self._gradient(knobs, turned, inputs)
                products = zip(along, views, strict=True)
                total = sum((jnp.sum(u * g) for u, g in products), jnp.zeros(()))
                return total, views

            slopes, views = jax.grad(error, has_aux=True)(turned)
            return [*slopes, *views]

        example = [*map(np.zeros, self._shapes()), *self._point()]
        return Compiled(run, example, x64=True)

    @functools.cached_property
    def _replay(self) -> Compiled:
        knobs = self._knobs(again=True)
        count = len(self.sites)

        def run(*args: Array) -> list[Array]:
            return self._gradient(knobs, args[:count], args[count:])

        example = [*map(np.zeros, self._lengths()), *self._programs.inputs]
        return Compiled(run, example, x64=True)

    def _gradient(
        self, knobs: Knobs, turned: Sequence[Array], inputs: Sequence[Array]
    ) -> list[Array]:
        keys = [*self.sites, *map(slot_of, self._weighed)]
        by_chain = dict(zip(keys, turned, strict=False))
        _, *grads = knobs(self._program, inputs, by_chain)
        return [widen(native_view(g)) for g in grads]

    @functools.cached_property
    def _weighed(self) -> list[Chain]:
        return [chain for chain, site in self.sites.items() if weighed(site)]

    def _shapes(self) -> list[tuple[int, ...]]:
        """Of the knobs, and of the slots after them."""
        slots = [(*self.sites[chain].lengths, 2) for chain in self._weighed]
        return [*self._lengths(), *slots]

    def _lengths(self) -> list[tuple[int, ...]]:
        return [site.lengths for site in self.sites.values()]

    def _point(self) -> list[Any]:
        return [*self._reading.grads, *self._programs.inputs]
