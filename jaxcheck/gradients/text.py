"""A gradient report as people read it.

In this order: the count and what was asked, the leaves with their numbers, findings,
where it is wrong, what was not checked, how to reproduce it, what it cost. Only says
what the report holds; decides nothing.
"""

from __future__ import annotations

import ast
import math
import pathlib
from collections.abc import Iterator
from typing import IO

from jaxcheck.gradients.report import Coordinate, GradientReport, LeafReport
from jaxcheck.reports.numbers import (
    count,
    counted,
    duration,
    significant,
    telling_digits,
    upper_bound,
    with_error_bar,
)
from jaxcheck.reports.tables import (
    HANGING,
    WIDTH,
    Blank,
    Block,
    Headline,
    Paragraph,
    Row,
    Span,
    Table,
    Tone,
    plain_text,
    print_blocks,
    shortened,
)
from jaxcheck.reports.values import EquationSite, Finding, Verdict

FOLDED_ABOVE = 20  # with more correct leaves than this only the worst are listed
WORST_CORRECT = 5
FINDINGS_OF_A_KIND = 4
CULPRITS = 4
# Below this nobody's training notices; bfloat16 (7.8e-3) is always above it.
NOTABLE_PRECISION = 1e-3
PRECISION_KINDS = frozenset({"precision_loss", "lowered_precision"})
ERROR_KINDS = frozenset({"wrong_derivative", "attached", "nan_gradient", "nan_loss"})

TONES: dict[Verdict, Tone] = {
    Verdict.CORRECT: "good",
    Verdict.WRONG: "bad",
    Verdict.INCONCLUSIVE: "unsure",
    Verdict.NOT_CHECKED: "quiet",
}


def as_text(report: GradientReport) -> str:
    """The whole report in plain text, at most 100 columns wide where words allow it."""
    return plain_text(blocks(report))


def print_report(report: GradientReport, file: IO[str] | None = None) -> None:
    """Print the whole report, in color if ``file`` (standard output) is a terminal."""
    print_blocks(blocks(report), file)


def as_line(report: GradientReport) -> str:
    """The report in one line, for ``repr``: the headline and the worst number."""
    text = headline(report)
    wrong = [leaf for leaf in report.leaves if leaf.verdict is Verdict.WRONG]
    if wrong:
        worst = max(wrong, key=badness)
        text += f", {name_of(worst.path)}: {error_of(worst)}"
    elif report.relative_difference is not None:
        text += f", relative difference {significant(report.relative_difference, 2)}"
    return f"<{type(report).__name__}: {text}>"


def blocks(report: GradientReport) -> Iterator[Block]:
    """The report, part by part."""
    head = Span(f"jaxcheck: {headline(report)}", TONES[report.verdict])
    yield Headline(head, Span(context(report), "quiet"))
    if checked_leaves(report):
        yield Blank()
        yield leaf_table(report)
    if report.findings:
        yield Blank()
        yield from finding_paragraphs(report.findings, report.culprits)
    if report.culprits:
        yield Blank()
        yield from culprit_paragraphs(report.culprits)
    elif report.not_located:
        yield Blank()
        yield labelled("Where:", report.not_located)
    yield Blank()
    yield from closing_paragraphs(report)


# ---- headline ------------------------------------------------------------------------


def headline(report: GradientReport) -> str:
    """The verdict and the count, e.g. ``1 of 6 leaves has a wrong gradient``."""
    leaves = checked_leaves(report)
    wrong = sum(leaf.verdict is Verdict.WRONG for leaf in leaves)
    undecided = sum(leaf.verdict is Verdict.INCONCLUSIVE for leaf in leaves)
    if not leaves:
        return f"{report.verdict.value}: no leaf was checked"
    if report.verdict is Verdict.CORRECT:
        return (
            f"{share(len(leaves), len(leaves))} {have(len(leaves))} a correct gradient"
        )
    if report.verdict is Verdict.WRONG:
        if not wrong:
            return "the gradient is wrong, see below"
        rest = f", {count(undecided)} inconclusive" if undecided else ""
        return f"{share(wrong, len(leaves))} {have(wrong)} a wrong gradient{rest}"
    if undecided:
        return f"inconclusive: {share(undecided, len(leaves))} could not be decided"
    if report.findings:
        return f"inconclusive: {report.findings[0].kind.replace('_', ' ')}, see below"
    return "inconclusive"


def share(part: int, whole: int) -> str:
    """So many of the leaves, e.g. ``2 of 6 leaves``."""
    if whole == 1:
        return "the only leaf"
    if part < whole:
        return f"{count(part)} of {count(whole)} leaves"
    return "both leaves" if whole == 2 else f"all {count(whole)} leaves"


def have(number: int) -> str:
    """The verb for so many."""
    return "has" if number == 1 else "have"


def context(report: GradientReport) -> str:
    """What was asked: the call, the dtypes, and where it ran."""
    dtypes = " and ".join(report.dtypes)
    if report.precision == "native":
        precision = "checked in native precision"
    else:
        precision = f"checked in {report.precision}"
    asked = f"{dtypes}, {precision}" if dtypes else precision
    return f"{loss_call(report.call)} · {asked} · {report.device}"


def loss_call(call: str) -> str:
    """``loss_fn(params, batch)`` out of ``jaxcheck.check(loss_fn, params, batch)``."""
    try:
        expression = ast.parse(call, mode="eval").body
    except SyntaxError:  # e.g. <lambda>
        return call
    if not isinstance(expression, ast.Call) or not expression.args:
        return call
    function, *primals = (ast.unparse(argument) for argument in expression.args)
    return f"{function}({', '.join(primals)})"


# ---- leaves --------------------------------------------------------------------------


def checked_leaves(report: GradientReport) -> list[LeafReport]:
    """The leaves that have a verdict."""
    return [leaf for leaf in report.leaves if leaf.verdict is not Verdict.NOT_CHECKED]


def leaf_table(report: GradientReport) -> Table:
    """One row a leaf; of many correct ones only the worst, and how many are folded."""
    leaves = checked_leaves(report)
    correct = [leaf for leaf in leaves if leaf.verdict is Verdict.CORRECT]
    remark = None
    if len(correct) > FOLDED_ABOVE:
        folded = sorted(correct, key=badness, reverse=True)[WORST_CORRECT:]
        hidden = {id(leaf) for leaf in folded}
        leaves = [leaf for leaf in leaves if id(leaf) not in hidden]
        remark = Span(f"… and {count(len(folded))} more, all correct", "quiet")
    precision = precision_matters(report)
    directional = any(leaf.method == "directional" for leaf in leaves)
    titles = ["leaf", "shape", "checked", "relative error"]
    if directional:
        titles[-1] += " (confidence)"
    titles += ["precision", "verdict"] if precision else ["verdict"]
    rows = tuple(leaf_row(leaf, precision) for leaf in leaves)
    return Table(tuple(titles), rows, remark)


def precision_matters(report: GradientReport) -> bool:
    """Whether the rounding of the native gradient is worth a column."""
    measured = [leaf.precision for leaf in report.leaves if leaf.precision is not None]
    found = any(finding.kind in PRECISION_KINDS for finding in report.findings)
    # "not below" and not "above": NaN is worth showing.
    return bool(measured) and (
        found or not all(p < NOTABLE_PRECISION for p in measured)
    )


def leaf_row(leaf: LeafReport, precision: bool) -> Row:
    """The numbers of one leaf, and below them what explains its verdict."""
    verdict = leaf.verdict.value
    if leaf.verdict is Verdict.WRONG:
        verdict = verdict.upper()
    checked = f"{count(leaf.checked)}/{count(leaf.size)}"
    if leaf.method == "directional":
        checked = "directional"
    cells = [name_of(leaf.path), str(leaf.shape), checked, error_of(leaf)]
    if precision:
        cells += ["" if leaf.precision is None else significant(leaf.precision, 2)]
    spans = [Span(cell) for cell in cells]
    return Row((*spans, Span(verdict, TONES[leaf.verdict])), tuple(leaf_notes(leaf)))


def name_of(path: str) -> str:
    """The path of a leaf, which is empty if the parameters are a single array."""
    return path or "params"


def error_of(leaf: LeafReport) -> str:
    """The relative error of a leaf, or the bound that its probes give."""
    decided = leaf.verdict is Verdict.CORRECT or leaf.relative_error is None
    if leaf.method == "directional" and decided and leaf.bound is not None:
        return upper_bound(leaf.bound, leaf.confidence)
    if leaf.relative_error is None:
        return "unknown"
    return with_error_bar(leaf.relative_error, leaf.error_bar, digits=2)


def badness(leaf: LeafReport) -> float:
    """How far a leaf is off, for sorting; NaN is worse than everything."""
    if leaf.method == "directional" and leaf.verdict is Verdict.CORRECT:
        value = leaf.bound
    else:
        value = leaf.relative_error
    return math.inf if value is None or math.isnan(value) else value


def leaf_notes(leaf: LeafReport) -> Iterator[Span]:
    """What stands below the row of a leaf."""
    if leaf.verdict is not Verdict.CORRECT and leaf.worst is not None:
        yield Span(both_numbers(leaf.worst), "strong")
    remarks: list[str] = []
    if leaf.failing and leaf.checked > 1:
        checked = counted(leaf.checked, "checked coordinate")
        verb = "disagrees" if leaf.failing == 1 else "disagree"
        remark = f"{count(leaf.failing)} of {checked} {verb}"
        others = leaf.examples[1 : leaf.failing]
        if others and leaf.failing < leaf.checked:
            remark += f", next {' '.join(str(list(c.index)) for c in others)}"
        remarks.append(remark)
    if leaf.pattern:
        remarks.append(f"pattern: {leaf.pattern}")
    if remarks:
        yield Span("; ".join(remarks))
    if leaf.reason:
        yield Span(leaf.reason)


def both_numbers(worst: Coordinate) -> str:
    """``at [3, 17]: autodiff 2.147e-01, numerical 4.912e-01 ± 3e-11``."""
    digits = telling_digits(worst.autodiff, worst.numerical)
    autodiff = significant(worst.autodiff, digits)
    numerical = with_error_bar(worst.numerical, worst.error_bar, digits)
    index = f"[{', '.join(map(str, worst.index))}]" if worst.index else ""
    part = f".{worst.part}" if worst.part else ""
    place = f"at {index}{part}: " if index or part else ""
    return f"{place}autodiff {autodiff}, numerical {numerical}"


# ---- findings and places -------------------------------------------------------------


def finding_paragraphs(
    findings: tuple[Finding, ...], culprits: tuple[EquationSite, ...] = ()
) -> Iterator[Paragraph]:
    """One paragraph a finding; of many of one kind the first few."""
    seen: dict[str, int] = {}
    for finding in findings:
        seen[finding.kind] = seen.get(finding.kind, 0) + 1
        if seen[finding.kind] <= FINDINGS_OF_A_KIND:
            located = finding.site in culprits
            yield finding_paragraph(finding, located=located)
    for kind, number in seen.items():
        if number > FINDINGS_OF_A_KIND:
            more = count(number - FINDINGS_OF_A_KIND)
            yield Paragraph(
                Span(f"… and {more} more {kind}, in report.findings", "quiet")
            )


def finding_paragraph(finding: Finding, *, located: bool = False) -> Paragraph:
    """What was found, in which leaf, where, and what to do about it.

    Args:
        finding: what was found.
        located: whether its place has a paragraph of its own.
    """
    tone: Tone = "bad" if finding.kind in ERROR_KINDS else "unsure"
    places = [] if finding.leaf is None else [f"in {name_of(finding.leaf)}"]
    if finding.site is not None:
        places.append(str(finding.site))
    details = [Span(finding.message)]
    if finding.site is not None and finding.site.fault and not located:
        fault = finding.site.fault
        details.append(Span(f"{fault[0].upper()}{fault[1:]}", "strong"))
        details += site_details(finding.site)
    if finding.remedy:
        details.append(Span(f"Remedy: {finding.remedy}"))
    return Paragraph(Span(finding.kind, tone), ", ".join(places), tuple(details))


def culprit_paragraphs(culprits: tuple[EquationSite, ...]) -> Iterator[Paragraph]:
    """The equations that make the gradient wrong, most certain first."""
    for number, site in enumerate(culprits[:CULPRITS]):
        label = Span("And:" if number else "Where:", "strong")
        fault = site.fault or f"{site.rule or site.primitive} makes the gradient wrong"
        yield Paragraph(label, fault, tuple(culprit_details(site)))
    if len(culprits) > CULPRITS:
        more = count(len(culprits) - CULPRITS)
        yield Paragraph(Span(f"… and {more} more, in report.culprits", "quiet"))


def culprit_details(site: EquationSite) -> Iterator[Span]:
    """Where it stands, and what is known about it."""
    places = [f"{_short(site.file)}:{site.line}"] if site.file else []
    if site.derivative:
        place = f"{_short(site.derivative_file)}:{site.derivative_line}"
        places.append(f"rule {site.derivative}, {place}")
    if site.scope:
        places.append(f"in {site.scope}")
    if site.iteration:
        places.append(f"iteration {', '.join(map(str, site.iteration))}")
    if places:
        yield Span("   ".join(places), "strong")
    yield from site_details(site)


def site_details(site: EquationSite) -> Iterator[Span]:
    """What is known about an equation, and how it reads."""
    for detail in site.details:
        yield Span(detail)
    for line in (site.equation or "").splitlines():
        yield Span(shortened(line, WIDTH - HANGING), "quiet")


def _short(file: str | None) -> str:
    """The name of a file, with its folder; the whole path is in the site."""
    return "" if file is None else "/".join(pathlib.PurePath(file).parts[-2:])


# ---- what stands at the end ----------------------------------------------------------


def closing_paragraphs(report: GradientReport) -> Iterator[Paragraph]:
    """The classical number, what was left out, how to repeat it, and what it cost."""
    if report.relative_difference is not None:
        ratio = significant(report.relative_difference, 2)
        grade = f" (classical grade: {report.grade})" if report.grade else ""
        yield labelled("Relative difference:", f"{ratio}{grade}")
    omitted = not_checked(report)
    if omitted:
        yield labelled("Not checked:", omitted)
    yield labelled("Reproduce:", reproduction(report))
    evaluations = counted(report.evaluations, "loss evaluation")
    yield labelled("Cost:", f"{evaluations}, {duration(report.seconds)}")
    if report.versions and not report.passed:
        yield labelled("Versions:", ", ".join(" ".join(v) for v in report.versions))


def labelled(label: str, text: str) -> Paragraph:
    """A closing line."""
    return Paragraph(Span(label, "strong"), text)


def not_checked(report: GradientReport) -> str:
    """Every leaf without a verdict, those with the same dtype and reason together."""
    groups: dict[tuple[str, str | None], list[str]] = {}
    for leaf in report.leaves:
        if leaf.verdict is Verdict.NOT_CHECKED:
            groups.setdefault((leaf.dtype, leaf.reason), []).append(name_of(leaf.path))
    return "; ".join(
        f"{', '.join(paths)} {dtype}" + (f" ({reason})" if reason else "")
        for (dtype, reason), paths in groups.items()
    )


def reproduction(report: GradientReport) -> str:
    """The call, with the random key that was used."""
    return key_argument(report.call, report.key_data)


def key_argument(call: str, key_data: tuple[int, ...]) -> str:
    """``call`` with the key of these words."""
    if not key_data or "key=" in call or not call.endswith(")"):
        return call
    high, low = key_data if len(key_data) == 2 else (1, 0)
    if high == 0 and low < 2**31:
        key = f"jax.random.key({low})"
    else:
        words = ", ".join(map(str, key_data))
        key = f"jax.random.wrap_key_data(np.uint32([{words}]))"
    return f"{call[:-1]}, key={key})"
