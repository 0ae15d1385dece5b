"""Where no gradient is expected: read from text, found in a program, held against it.

An expectation names a leaf or a subtree, a line or a function that leaves are used
through, or both:

    ['target']                     no gradient reaches these leaves
    dqn.py:31                      none flows through what line 31 calls
    dqn.py:bootstrap               none flows through the function bootstrap
    ['q']['w'] at dqn.py:31        none of this leaf's

The gradient that is judged is the one of the loss as written: no difference is taken.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import pathlib
import re
from collections.abc import Sequence

from jaxcheck.errors import InvalidInputError
from jaxcheck.gradients.report import GradientReport, LeafReport
from jaxcheck.gradients.text import name_of
from jaxcheck.jaxprs import compat, interpret
from jaxcheck.jaxprs.compat import Program
from jaxcheck.places.flow.report import FlowLeaf, FlowUse
from jaxcheck.places.flow.text import described, percentage, place_of
from jaxcheck.reports.numbers import counted, significant
from jaxcheck.reports.values import Finding, Verdict
from jaxcheck.trees import Leaf, lies_under

# What does not look like a path of keys, a colon, and a line or the name of a function.
_PLACE = re.compile(r"(?:(?P<root>.+) at )?(?P<file>[^\[\]]+):(?P<at>\d+|[A-Za-z_]\w*)")
_NAMED = 3  # places or paths that a message lists


@dataclasses.dataclass(frozen=True, kw_only=True)
class Expectation:
    """That no gradient reaches some leaves, or flows through some place.

    Attributes:
        text: as it was given.
        root: path of a leaf or a subtree, None for all leaves.
        file: end of a source file's path, None for all uses.
        at: a line number or the name of a function in it.
    """

    text: str
    root: str | None = None
    file: str | None = None
    at: str = ""

    @property
    def place(self) -> str:
        """The place as it was given."""
        return f"{self.file}:{self.at}"

    def concerns(self, path: str) -> bool:
        """Whether it is about the leaf at ``path``."""
        return self.root is None or lies_under(name_of(path), self.root)

    def passes(self, file: str, line: int, function: str) -> bool:
        """Whether a line of source code is the place that it names."""
        wanted = pathlib.PurePath(self.file or "").parts
        if pathlib.PurePath(file).parts[-len(wanted) :] != wanted:
            return False
        return self.at in (str(line), function.rpartition(".")[2])

    def covers(self, use: FlowUse) -> bool:
        """Whether a use is one that it is about."""
        if self.file is None:
            return True
        return any(self.passes(c.file, c.line, c.function) for c in use.calls)


def read_expectation(text: str) -> Expectation:
    """An expectation from its text."""
    text = text.strip()
    place = _PLACE.fullmatch(text)
    if place is None:
        return Expectation(text=text, root=text)
    return Expectation(text=text, **place.groupdict())


def require_known(
    expectations: Sequence[Expectation],
    leaves: Sequence[Leaf],
    flows: Sequence[FlowLeaf],
    program: Program,
) -> None:
    """Raise unless every expectation names something that there is.

    A line or function that runs is known even if no leaf is used there any more: that
    is how an expectation is met.

    Raises:
        InvalidInputError: a path or a place is not known.
    """
    paths = [leaf.path for leaf in leaves]
    places = {
        f for eqn in interpret.equations(program) for f in compat.user_frames(eqn)
    }
    for expected in expectations:
        given = f"`check(expect_zero=...)` names `{expected.text}`, but "
        if not any(map(expected.concerns, paths)):
            near = _nearest(expected.root or "", paths)
            raise InvalidInputError(f"{given}no leaf lies there; {near}.")
        known = any(expected.passes(p.file, p.line, p.name) for p in places)
        if expected.file is not None and not known:
            used = dict.fromkeys(
                place_of(u).split()[0] for leaf in flows for u in leaf.uses
            )
            near = _nearest(expected.text, list(used))
            raise InvalidInputError(
                f"{given}the loss runs no such line and no such function. Of the "
                f"places where leaves are used, {near}."
            )


def _nearest(given: str, known: Sequence[str]) -> str:
    close = difflib.get_close_matches(given, known, n=_NAMED, cutoff=0.0)
    rest = len(known) - len(close)
    more = f", and {rest} more" if rest else ""
    return f"the nearest are {', '.join(path or 'params' for path in close)}{more}"


def held_against(
    report: GradientReport,
    flows: Sequence[FlowLeaf],
    expectations: Sequence[Expectation],
) -> GradientReport:
    """``report`` with every leaf WRONG that gets a gradient where none is expected."""
    by_path = {flow.path: flow for flow in flows}
    leaves: list[LeafReport] = []
    broken: dict[Expectation, list[FlowLeaf]] = {}
    findings = list(report.findings)
    for leaf in report.leaves:
        flow = by_path.get(leaf.path)
        about = [e for e in expectations if e.concerns(leaf.path)]
        if flow is None:
            leaves.append(leaf)
            continue
        findings = [f for f in findings if not _is_intended(f, about, flow)]
        first = next((e for e in about if _is_broken(e, flow)), None)
        if first is not None:
            broken.setdefault(first, []).append(flow)
        leaves.append(leaf if first is None else _wrong(leaf, _reason(first, flow)))
    return dataclasses.replace(
        report,
        verdict=Verdict.WRONG if broken else report.verdict,
        leaves=tuple(leaves),
        findings=(*(_attached(e, those) for e, those in broken.items()), *findings),
    )


def _wrong(leaf: LeafReport, reason: str) -> LeafReport:
    """``leaf`` with the verdict WRONG; coordinates that agree are no evidence of it."""
    if leaf.verdict is Verdict.WRONG:
        return dataclasses.replace(leaf, reason=reason)
    return dataclasses.replace(leaf, verdict=Verdict.WRONG, reason=reason, worst=None)


def _is_intended(
    finding: Finding, about: Sequence[Expectation], flow: FlowLeaf
) -> bool:
    """Whether a finding says of a leaf what is expected of it."""
    if finding.leaf != flow.path:
        return False
    if finding.kind in ("dead", "unused"):
        return flow.zero and any(e.file is None for e in about)
    if finding.kind != "detached" or finding.site is None:
        return False
    lines: set[tuple[str | None, int | None]] = set()
    for use in flow.uses:
        if use.zero and any(e.covers(use) for e in about):
            lines |= {(call.file, call.line) for call in use.calls}
            if use.stopped is not None:
                lines.add((use.stopped.file, use.stopped.line))
    return (finding.site.file, finding.site.line) in lines


def _is_broken(expected: Expectation, flow: FlowLeaf) -> bool:
    # a gradient that is not finite says nothing about where it comes from, and has a
    # verdict of its own
    if not math.isfinite(flow.norm):
        return False
    if expected.file is None:
        return not flow.zero
    return bool(_flowing(expected, flow))


def _flowing(expected: Expectation, flow: FlowLeaf) -> list[FlowUse]:
    """The uses that it is about, through which there is a gradient all the same."""
    return [use for use in flow.uses if expected.covers(use) and not use.zero]


def _reason(expected: Expectation, flow: FlowLeaf) -> str:
    """What stands below the row of the leaf."""
    if expected.file is None:
        norm = significant(flow.norm, 2)
        return f"expected no gradient here, its norm is {norm}"
    amount = _amount(_flowing(expected, flow))
    return f"expected no gradient through {expected.place}, it carries {amount}"


def _attached(expected: Expectation, broken: Sequence[FlowLeaf]) -> Finding:
    """Which leaves get a gradient against one expectation, and through what."""
    first = _flowing(expected, broken[0])[0]
    listed = "; ".join(
        f"{name_of(flow.path)} gets {_through(_flowing(expected, flow))}"
        for flow in broken[:_NAMED]
    )
    rest = len(broken) - _NAMED
    more = f"; and {counted(rest, 'more leaf', 'more leaves')}" if rest > 0 else ""
    return Finding(
        kind="attached",
        leaf=broken[0].path,
        site=first.site,
        message=f"no gradient was expected at {expected.text}: {listed}{more}.",
        remedy=(
            "jax.lax.stop_gradient around what is computed there cuts it off; so does "
            "passing what is used there as another argument of the loss."
        ),
    )


def _through(uses: Sequence[FlowUse]) -> str:
    listed = [f"{_amount([use])} through {described(use)}" for use in uses[:_NAMED]]
    more = [f"{len(uses) - _NAMED} more"] if len(uses) > _NAMED else []
    return ", ".join([*listed, *more])


def _amount(uses: Sequence[FlowUse]) -> str:
    shares = [use.share for use in uses]
    if None in shares:  # the gradient is zero, these contributions cancel
        return f"norm {significant(max(use.norm for use in uses), 2)}"
    return percentage(sum(share for share in shares if share is not None))
