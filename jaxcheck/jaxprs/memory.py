"""How many bytes one run of a program keeps alive at its peak, estimated."""

from __future__ import annotations

import math
from typing import Any

from jaxcheck.jaxprs import compat, interpret
from jaxcheck.jaxprs.compat import Program


def peak_bytes(program: Program) -> int:
    """Upper estimate of the live bytes of ``program``, inputs excluded.

    Every value is counted from where it is made to its last use, a nested program's own
    peak on top of it. The compiler fuses, so the truth is usually less.
    """
    jaxpr, _ = compat.opened(program)
    last: dict[Any, int] = {}
    for k, eqn in enumerate(jaxpr.eqns):
        last.update((v, k) for v in eqn.invars if not compat.is_literal(v))
    last.update((v, len(jaxpr.eqns)) for v in jaxpr.outvars if not compat.is_literal(v))
    alive: dict[Any, int] = {}
    peak = 0
    for k, eqn in enumerate(jaxpr.eqns):
        inner = max(map(peak_bytes, interpret.nested_programs(eqn)), default=0)
        alive.update((v, aval_bytes(v.aval)) for v in eqn.outvars)
        peak = max(peak, sum(alive.values()) + inner)
        for v in [v for v in alive if last.get(v, -1) <= k]:
            del alive[v]
    return peak


def aval_bytes(aval: Any) -> int:
    """Bytes of one value; what is no array (a key, a token) counts nothing."""
    itemsize = getattr(getattr(aval, "dtype", None), "itemsize", 0)
    return math.prod(getattr(aval, "shape", ())) * itemsize
