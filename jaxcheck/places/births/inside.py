"""Which equation inside a custom rule bears the NaN that the rule returns."""

from __future__ import annotations

from collections.abc import Sequence

from jaxcheck.jaxprs import sites
from jaxcheck.jaxprs.compat import Program
from jaxcheck.places.births.explain import CannotOpenError
from jaxcheck.places.births.ledger import Ledger
from jaxcheck.places.births.marks import Marked, labels_of
from jaxcheck.places.births.tape import Frame
from jaxcheck.places.births.walk import Walk


def of_rule(program: Program, values: Sequence[Marked]) -> str:
    """A sentence about the first birth inside a rule, or nothing."""
    ledger = Ledger()
    try:
        outs = Walk(ledger).forward(Frame(program, [Marked(x.value) for x in values]))
    except CannotOpenError:
        return ""
    found = sorted(ledger.ancestry(set(labels_of(outs))))
    if not found:
        return ""
    origin = ledger[found[0]]
    site = sites.nested_site((*origin.frame.stack, origin.eqn))
    place = "" if site.file is None else f" ({site.file}:{site.line})"
    return f" Inside the rule: {origin.message.rstrip('.')}{place}."
