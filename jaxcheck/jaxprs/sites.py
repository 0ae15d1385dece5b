"""Where an equation came from: the user's file and line, and the module scope."""

from __future__ import annotations

from jaxcheck.jaxprs import compat
from jaxcheck.jaxprs.compat import Equation
from jaxcheck.reports.values import EquationSite


def site_of(eqn: Equation) -> EquationSite:
    """Describe the place of ``eqn``; what JAX does not know stays None."""
    frame = compat.user_frame(eqn)
    return EquationSite(
        primitive=eqn.primitive.name,
        rule=_rule_name(eqn),
        file=None if frame is None else frame[0],
        line=None if frame is None else frame[1],
        scope=compat.scope(eqn) or None,
    )


def _rule_name(eqn: Equation) -> str | None:
    if not eqn.primitive.name.startswith("custom_"):
        return None
    inner = eqn.params.get("call_jaxpr")
    if inner is None:
        return None
    jaxpr, _ = compat.opened(inner)
    return getattr(jaxpr.debug_info, "func_name", None)
