"""Where an equation came from: the user's file and line, the module scope, the rule."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Sequence

from jaxcheck.jaxprs import compat
from jaxcheck.jaxprs.compat import Equation
from jaxcheck.reports.values import EquationSite

# A line inside one of these stands for the line of the user that called it.
_FRAMEWORKS = frozenset(
    ("chex", "distrax", "equinox", "flax", "haiku", "numpyro", "optax")
)
# The lines that trace a loss.
_OURS = str(pathlib.Path(__file__).parents[1])


def site_of(eqn: Equation) -> EquationSite:
    """Describe the place of ``eqn``; what JAX does not know stays None."""
    frame = user_frame(eqn)
    function = compat.rule_function(eqn)
    derivative = compat.rule_derivative(eqn)
    return EquationSite(
        primitive=eqn.primitive.name,
        rule=None if function is None else function.name,
        file=None if frame is None else frame.file,
        line=None if frame is None else frame.line,
        scope=compat.scope(eqn) or None,
        derivative=None if derivative is None else derivative.name,
        derivative_file=None if derivative is None else derivative.file,
        derivative_line=None if derivative is None else derivative.line,
    )


def user_frame(eqn: Equation) -> compat.Place | None:
    """The innermost frame that is the user's own, or else a framework's.

    A custom rule that no frame calls (it is the loss) stands where it is defined.
    """
    own = own_frames(eqn)
    return own[0] if own else compat.rule_function(eqn)


def own_frames(*stack: Equation) -> list[compat.Place]:
    """The frames that are the user's own, innermost first, or else a framework's.

    Args:
        *stack: nested equations, outermost first.
    """
    frames = [
        frame
        for eqn in reversed(stack)
        for frame in compat.user_frames(eqn)
        if not frame.file.startswith(_OURS)
    ]
    return [f for f in frames if not _of_framework(f.file)] or frames


def _of_framework(file: str) -> bool:
    parts = pathlib.PurePath(file).parts
    if "site-packages" not in parts:
        return False
    inside = parts[len(parts) - parts[::-1].index("site-packages") :]
    return bool(inside) and inside[0] in _FRAMEWORKS


def nested_site(
    stack: Sequence[Equation], iteration: tuple[int, ...] = ()
) -> EquationSite:
    """Describe the place of the last equation of ``stack``, the others around it.

    JAX's own jitted functions are traced once for all their callers and know no line of
    the user; then the line is that of the innermost equation around it that knows one.
    """
    site = site_of(stack[-1])
    frames = own_frames(*stack)
    frame = frames[0] if frames else user_frame(stack[-1])
    scopes = [scope for eqn in stack if (scope := compat.scope(eqn))]
    return dataclasses.replace(
        site,
        file=None if frame is None else frame.file,
        line=None if frame is None else frame.line,
        scope="/".join(scopes) or None,
        iteration=iteration,
    )
