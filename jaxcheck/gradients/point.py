"""A traced loss at one point, and its two readings.

Complex leaves are seen as real ones with a last axis of 2, so that everything that
follows is about real coordinates, numbered over all leaves.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Hashable, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from jaxcheck.gradients.arrays import (
    from_real_view,
    power_of_two,
    real_view,
)
from jaxcheck.gradients.differences import relative_step
from jaxcheck.gradients.probes import probe
from jaxcheck.jaxprs import compat
from jaxcheck.jaxprs.compiled import identity_of, remembered
from jaxcheck.jaxprs.lift import lift
from jaxcheck.jaxprs.perturb import Perturbation, narrowing_sites
from jaxcheck.jaxprs.sites import site_of
from jaxcheck.jaxprs.trace import TracedLoss
from jaxcheck.reports.values import EquationSite
from jaxcheck.trees import Leaf, widen

Array = Any
IntArray = np.ndarray[Any, np.dtype[np.int64]]


class Point:
    """A loss, its inputs, and how to read it.

    Attributes:
        traced: the loss as a program.
        native_precision: whether the reading keeps the program's own dtypes.
        leaves: the differentiable leaves.
        views: shape of each leaf's real view.
        offsets: first real coordinate of each leaf, and the total at the end.
        inputs: the program's inputs, in the dtypes that it was traced with.
    """

    def __init__(
        self, traced: TracedLoss, *, precision: Literal["float64", "native"]
    ) -> None:
        self.traced = traced
        self.native_precision = precision == "native"
        self.leaves: tuple[Leaf, ...] = traced.params.differentiable
        self.views = [x.shape + ((2,) if x.complex else ()) for x in self.leaves]
        sizes = [math.prod(view) for view in self.views]
        self.offsets: IntArray = np.concatenate([[0], np.cumsum(sizes)]).astype(
            np.int64
        )
        self.inputs = self._inputs()

    @functools.cached_property
    def identity(self) -> Hashable:
        """Equal for another point of the same program, read in the same way."""
        paths = tuple(leaf.path for leaf in self.leaves)
        settings = (self.native_precision, self.traced.x64, paths)
        return settings, identity_of(self.traced.program)

    @functools.cached_property
    def inlined(self) -> Any:
        """The reading with custom rules inlined, for the loss."""
        key = ("inlined", self.identity)
        try:
            return remembered(key, lambda: self._lift("inline"))
        except Exception:
            if not self.native_precision:
                raise
            return self.traced.program  # in its own dtypes it can always run as it is

    @functools.cached_property
    def kept(self) -> Any:
        """The reading with custom rules kept, for autodiff."""
        return self._lift("keep")

    @functools.cached_property
    def perturbation(self) -> Perturbation:
        """The reading, ready to be evaluated at moved points."""
        return Perturbation(self.inlined)

    @property
    def sites(self) -> tuple[EquationSite, ...]:
        """The stop_gradient equations of the loss."""
        return self.perturbation.sites

    @property
    def eps(self) -> float:
        """Unit roundoff of the least precise dtype on the way to the loss."""
        return self._least_precision[0]

    @property
    def lowered(self) -> EquationSite | None:
        """The place where that dtype comes in, None if nothing is lowered."""
        return self._least_precision[1]

    @functools.cached_property
    def native_eps(self) -> float:
        """Unit roundoff of the least precise dtype in the program as it was traced."""
        jaxpr, _ = compat.opened(self.traced.program)
        values = [*jaxpr.invars, *(v for e in jaxpr.eqns for v in e.outvars)]
        return max(float(jnp.finfo(v.aval.dtype).eps) for v in values if _floats(v))

    def _inputs(self) -> list[Array]:
        """The program's inputs in the dtypes that it was traced with."""
        avals = compat.input_avals(self.traced.program)
        return [
            value if isinstance(value, jax.Array) else np.asarray(value, aval.dtype)
            for value, aval in zip(self.traced.inputs, avals, strict=True)
        ]

    def _lift(self, rules: Literal["inline", "keep"]) -> Any:
        with compat.x64(True):
            return lift(
                self.traced.program,
                rules=rules,
                native=self.native_precision,
                native_x64=self.traced.x64,
            )

    @functools.cached_property
    def _least_precision(self) -> tuple[float, EquationSite | None]:
        if self.native_precision:
            return self.native_eps, None
        eps, place = float(np.finfo(np.float64).eps), None
        for dtype, eqn in narrowing_sites(self.inlined, [True] * len(self.inputs)):
            if float(jnp.finfo(dtype).eps) > eps:
                eps, place = float(jnp.finfo(dtype).eps), site_of(eqn)
        return eps, place

    def views_of(self, inputs: Sequence[Array], xp: Any = jnp) -> list[Array]:
        """Real views of the parameters, in the dtypes of the reading.

        Args:
            inputs: the parameters, traced if ``xp`` is ``jax.numpy``.
            xp: ``jax.numpy``, or ``numpy`` on the host.
        """
        if self.native_precision:
            return [real_view(xp.asarray(x), xp) for x in inputs]
        return [real_view(widen(xp.asarray(x)), xp) for x in inputs]

    def steps(
        self,
        k: int,
        view: Array,
        scale: Array,
        words: Array,
        relative: Array,
        xp: Any = jnp,
    ) -> Array:
        """The displacement of every coordinate of leaf ``k`` for one step.

        Args:
            k: number of the leaf.
            view: its real view.
            scale: step of each leaf.
            words: of the probe.
            relative: whether each coordinate moves in proportion to its own value.
            xp: ``jax.numpy``, or ``numpy`` on the host; the numbers are the same.
        """
        wide = xp.abs(widen(view))
        own = power_of_two(wide * relative_step(self.eps), xp)
        scales = xp.where(relative & (wide > 0), own, scale[k])
        return scales * probe(words, self.leaves[k].token, view.shape, xp=xp)

    def arguments(self, views: Sequence[Array]) -> list[Array]:
        """Inputs of the reading, from views."""
        return [
            from_real_view(v, leaf.complex)
            for v, leaf in zip(views, self.leaves, strict=True)
        ]


def _floats(var: Any) -> bool:
    return jnp.issubdtype(getattr(var.aval, "dtype", np.int32), jnp.floating)
