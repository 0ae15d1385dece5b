"""Where NaN and infinity are born, in the loss or in its gradient.

The program is run with its actual inputs, in its own dtypes, equation by equation, and
backward again; ``walk`` and ``pullbacks`` mark what every non-finite element comes
from. Here the marks of the loss and of the gradient are read: what they do not descend
from (a mask of ``-inf``, an overflow that vanishes again) is nobody's business.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp

from jaxcheck.jaxprs import compat, interpret, sites
from jaxcheck.jaxprs.compat import Equation
from jaxcheck.jaxprs.trace import TracedLoss
from jaxcheck.places.births import masking, remedies, tape
from jaxcheck.places.births.explain import CannotOpenError
from jaxcheck.places.births.ledger import Ledger, Origin
from jaxcheck.places.births.marks import Marked, is_nan, labelled, labels_of, nonfinite
from jaxcheck.places.births.pullbacks import Backward
from jaxcheck.places.births.tape import Frame
from jaxcheck.places.births.walk import Memo
from jaxcheck.reports.values import EquationSite

_LONGEST = 160  # characters of an equation


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Birth:
    """An equation that makes NaN or infinity of finite numbers, or NaN of infinity.

    Attributes:
        site: the equation, its line, and the iteration of each loop around it.
        phase: whether its value is not finite, or what its derivative sends back.
        value: ``"nan"`` or ``"inf"``: what was born.
        message: what happened there, with the numbers.
        remedy: what to do about it, if something general can be said.
        leaves: paths of the parameters whose gradient it reaches.
    """

    site: EquationSite
    phase: Literal["forward", "backward"]
    value: Literal["nan", "inf"]
    message: str
    remedy: str | None
    leaves: tuple[str, ...]


def births(
    traced: TracedLoss, *, advance: Callable[[int], object] | None = None
) -> tuple[Birth, ...]:
    """Find what makes the loss or its gradient NaN or infinite.

    A value counts if it is not finite although all that it was computed from is finite,
    or if it is NaN and was computed from infinities, and if the loss or the gradient
    would be finite without it. An infinity that becomes NaN later is two births.

    Every equation is evaluated by itself, so what only the compiler's fusion makes
    non-finite is not seen. It does not say that a finite gradient is right.

    Args:
        traced: the loss, with its inputs.
        advance: called with 1 after every equation and every iteration of a loop that
            is opened.

    Returns:
        What was born, the first cause first; nothing if all is finite.

    Example:
        >>> from jaxcheck import trees
        >>> from jaxcheck.jaxprs.trace import trace_loss
        >>> loss_fn = lambda x: jnp.sum(jnp.where(x > 0, jnp.sqrt(x), 0.0))
        >>> params = trees.partition(jnp.array([4.0, 0.0]))
        >>> (birth,) = births(trace_loss(loss_fn, params, (), has_aux=False))
        >>> birth.site.primitive, birth.phase, birth.value
        ('sqrt', 'backward', 'nan')
    """
    with compat.x64(traced.x64):
        return _Search(traced, advance).births()


class _Search:
    def __init__(
        self, traced: TracedLoss, advance: Callable[[int], object] | None
    ) -> None:
        self.paths = [leaf.path for leaf in traced.params.differentiable]
        self.ledger = Ledger()
        self.walk = Backward(self.ledger, advance)
        program = tape.quiet(traced.program)
        inputs = [jnp.asarray(x) for x in traced.inputs]
        invars = compat.opened(program)[0].invars
        self.frame = Frame(program, [])
        self.frame.ins.extend(
            self.walk.given(self.frame, var, x, what=f"the parameter {path}")
            for var, x, path in zip(invars, inputs, self.paths, strict=True)
        )

    def births(self) -> tuple[Birth, ...]:
        loss, gradient = self._run()
        direct = [set(labels_of([c])) for c in gradient]
        ends = set(labels_of([loss])).union(*direct)
        self.loss_is_finite = nonfinite(loss.value) is None
        traps = {x: self._trap(self.ledger[x]) for x in self.ledger.ancestry(ends)}
        found = sorted(set(traps) - self._told_by_traps(traps, ends))
        reached = [self.ledger.ancestry(labels) for labels in direct]
        told = (self._birth(x, traps[x], reached) for x in found)
        return tuple(dict.fromkeys(told))  # two equations of one line may tell the same

    def _run(self) -> tuple[Marked, list[Marked | None]]:
        frame, memo = self.frame, Memo({}, {})
        env = self.walk.start(frame)
        for k in range(len(frame.equations)):
            env = self.walk.step(frame, env, k, memo)
        (loss,) = self.walk.outputs(frame, env)
        one = Marked(jnp.ones_like(loss.value))
        wanted = [True] * len(frame.ins)
        try:
            return loss, self.walk.backward(frame, [one], wanted, memo)
        except CannotOpenError as error:
            return loss, self._as_a_whole(error)

    def _as_a_whole(self, error: CannotOpenError) -> list[Marked | None]:
        """The gradient, where the walk backward ended: at an equation, on the way."""

        def loss(*inputs: Any) -> Any:
            return interpret.evaluate(self.frame.program, inputs)[0]

        inputs = [x.value for x in self.frame.ins]
        try:
            gradient = jax.grad(loss, argnums=tuple(range(len(inputs))))(*inputs)
        except Exception:  # the loss has no derivative in reverse mode
            return [None] * len(inputs)
        eqn = error.frame.equations[error.k]
        reason = str(error).splitlines()[0]
        origin = Origin(
            eqn=eqn,
            frame=error.frame,
            position=error.k,
            phase="backward",
            value="nan" if any(is_nan(g).any() for g in gradient) else "inf",
            message=f"here, or in what comes before, the gradient is lost; "
            f"`{eqn.primitive.name}` could not be differentiated by itself ({reason}).",
        )
        masks = [nonfinite(g) for g in gradient]
        if all(mask is None for mask in masks):
            return [None] * len(inputs)
        label = self.ledger.bear(id(eqn), origin)
        return [
            Marked(g, None if mask is None else labelled(mask, label))
            for g, mask in zip(gradient, masks, strict=True)
        ]

    def _trap(self, origin: Origin) -> tuple[Equation, ...] | None:
        """The ``where`` that hides the value of ``origin`` from the loss."""
        hidden = origin.idle or (origin.phase == "forward" and self.loss_is_finite)
        return masking.masked_by(origin) if hidden and not origin.given else None

    def _told_by_traps(
        self, traps: dict[int, tuple[Equation, ...] | None], ends: set[int]
    ) -> set[int]:
        """Values whose equation's derivative is reported as a trap anyway."""
        trapped = [self.ledger[x] for x, where in traps.items() if where and x in ends]
        return {
            parent
            for origin in trapped
            for parent in origin.parents
            if parent not in ends and self.ledger[parent].eqn is origin.eqn
        }

    def _birth(
        self,
        label: int,
        where: tuple[Equation, ...] | None,
        reached: Sequence[set[int]],
    ) -> Birth:
        origin = self.ledger[label]
        stack = (*origin.frame.stack, origin.eqn)
        site = sites.nested_site(stack, origin.frame.iteration)
        leaves = [
            p for p, all_ in zip(self.paths, reached, strict=True) if label in all_
        ]
        return Birth(
            site=dataclasses.replace(site, equation=_text(origin.eqn)),
            phase=origin.phase,
            value=origin.value,
            message=origin.message + self._hiding(origin, where),
            remedy=remedies.remedy_for(origin, trap=where is not None),
            leaves=tuple(leaves),
        )

    def _hiding(self, origin: Origin, where: tuple[Equation, ...] | None) -> str:
        if where is not None:
            site = sites.nested_site(where)
            line = "" if site.file is None else f" at {site.file}:{site.line}"
            return (
                f" The `where`{line} does not take this value, so the loss does not "
                "show it; but the derivative goes through it all the same, and zero "
                "times infinity is NaN (the where trap)."
            )
        if origin.idle:
            return " Zero times an infinite derivative is NaN."
        if origin.phase == "forward" and self.loss_is_finite and not origin.given:
            return " The loss does not show it, its derivative does."
        return ""


def _text(eqn: Equation) -> str:
    """An equation as JAX prints it, on one line."""
    text = " ".join(str(eqn).split())
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 3]}..."
