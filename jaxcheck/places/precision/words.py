"""What an equation that loses digits is, in words; only what is certain is recognized.

The numbers come from ``shares.py``; nothing is computed here but ratios of them.
"""

from __future__ import annotations

import dataclasses
import math
import pathlib
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp

from jaxcheck.jaxprs import compat
from jaxcheck.jaxprs.compat import Equation
from jaxcheck.jaxprs.sites import nested_site
from jaxcheck.places.precision.shares import Account
from jaxcheck.places.rules.instrument import Chain, Site
from jaxcheck.reports.numbers import count, significant
from jaxcheck.reports.values import EquationSite

PRODUCTS = ("dot_general", "conv_general_dilated", "ragged_dot_general")
SUMS = ("add", "add_any", "reduce_sum", "cumsum")
# Operands this many times larger than what is left of them cancel.
_CANCELS = 30.0
# A subtraction passes an error on if operands that are off by one unit of roundoff each
# would make at least this share of it.
_PASSES_ON = 0.25


class Amplifier(NamedTuple):
    """A subtraction that cancels, and so makes much of what its operands are off by."""

    site: Site
    factor: float


def place_of(site: Site, iteration: tuple[int, ...] = ()) -> EquationSite:
    """Where it is, in the forward pass as the user wrote it."""
    place = nested_site(site.path, iteration)
    scope = place.scope or ""
    while (inner := re.sub(r"\w+\(([^()]*)\)", r"\1", scope)) != scope:
        scope = inner  # the scope of transpose(jvp(layer))
    parts = [part for part in scope.split("/") if part]
    return dataclasses.replace(place, scope="/".join(parts) or None)


def is_backward(site: Site) -> bool:
    """Whether it belongs to the backward pass."""
    return any("transpose(" in compat.scope(eqn) for eqn in site.path)


def what(site: Site, *, backward: bool, amplifier: Amplifier | None) -> str:
    """What loses the digits, e.g. ``a sum of 1,000 terms in bfloat16``.

    Args:
        site: the equation.
        backward: whether only the backward pass is meant.
        amplifier: the subtraction that its error goes through.
    """
    text = _what(site) + (" in the backward pass" if backward else "")
    if amplifier is not None:
        by = amplifier.site.equation.primitive.name
        where = short(place_of(amplifier.site))
        factor = significant(amplifier.factor, 1)
        text += f", which {by}{where} amplifies {factor} times: it cancels"
    return text


def short(place: EquationSite) -> str:
    """`` at model.py:9``, or nothing where no line is known."""
    if place.file is None:
        return ""
    return f" at {pathlib.PurePath(place.file).name}:{place.line}"


def _what(site: Site) -> str:
    eqn = site.equation
    name, dtype = eqn.primitive.name, eqn.outvars[0].aval.dtype
    if name == "convert_element_type":
        return f"a cast to {dtype}"
    if name in PRODUCTS:
        return f"a {dtype} product ({name})"
    if name == "reduce_sum":
        terms = _size(eqn.invars[0]) // max(1, _size(eqn.outvars[0]))
        return f"a sum of {count(terms)} terms in {dtype}"
    if name in SUMS and _runs(site):
        return f"a running sum in {dtype}"
    return f"{name} in {dtype}"


def _size(atom: Any) -> int:
    return math.prod(atom.aval.shape)


def _runs(site: Site) -> bool:
    """Whether a loop carries the sum from one iteration to the next."""
    eqn, around = site.equation, site.path[-2:-1]
    if not around or around[0].primitive.name != "scan":
        return False
    jaxpr, _ = compat.opened(site.program)
    n_consts, n_carry = compat.scan_sizes(around[0])
    producer = {v: e for e in jaxpr.eqns for v in e.outvars}
    operands = {_before_casts(v, producer) for v in eqn.invars if _is_variable(v)}
    return any(
        _is_variable(out)
        and _before_casts(out, producer) is eqn.outvars[0]
        and jaxpr.invars[n_consts + k] in operands
        for k, out in enumerate(jaxpr.outvars[:n_carry])
    )


def _is_variable(atom: Any) -> bool:
    return not compat.is_literal(atom)


def _before_casts(var: Any, producer: dict[Any, Equation]) -> Any:
    while (eqn := producer.get(var)) is not None:
        if eqn.primitive.name != "convert_element_type":
            break
        if not _is_variable(eqn.invars[0]):
            break
        var = eqn.invars[0]
    return var


def amplifier_of(
    chain: Chain, share: float, account: Account, sites: Mapping[Chain, Site]
) -> Amplifier | None:
    """The cancelling subtraction that an equation's error goes through, if one must.

    Args:
        chain: of the equation.
        share: of the error that it accounts for.
        account: all of the error.
        sites: all equations.
    """
    site = sites[chain]
    eps = float(jnp.finfo(site.equation.outvars[0].aval.dtype).eps)
    found: list[Amplifier] = []
    for after in _downstream(site):
        key = (*chain[:-1], id(after))
        operands, left = account.weights.get(key, (0.0, 0.0))
        if operands > _CANCELS * left and operands * eps > _PASSES_ON * abs(share):
            found.append(Amplifier(sites[key], operands / left if left else math.inf))
    return max(found, key=lambda a: a.factor, default=None)


def _downstream(site: Site) -> list[Equation]:
    """The equations of the same program that depend on this one."""
    jaxpr, _ = compat.opened(site.program)
    reached = set(site.equation.outvars)
    found: list[Equation] = []
    for eqn in jaxpr.eqns:
        if any(_is_variable(v) and v in reached for v in eqn.invars):
            reached.update(eqn.outvars)
            found.append(eqn)
    return found
