"""What is said of noise: a row for each kind of test, and what a failed one means."""

from __future__ import annotations

from collections.abc import Sequence

from jaxcheck.reports.numbers import counted
from jaxcheck.reports.values import Finding
from jaxcheck.updates.noise import FALSE_ALARM, Heard
from jaxcheck.updates.normality import ABOUT, Tested

_WORDS = {
    "mean": "{:.4f} of the rule's deviations off",
    "standard deviation": "{:.4f} of the rule's",
    "distribution": "normal up to {:.4f}",
    "largest": "{:.2f} of the rule's deviations",
}
_CORRELATED = "correlated by {:.4f}, of {:,} pairs"


def rows(heard: Heard) -> list[tuple[str, str]]:
    """Pairs of what was tested and what was found.

    Of all numbers together where there is that; else of the parts, the least likely.
    """
    sizes = [x.size for x in heard.draws.values()]
    steps = max(len(x) for x in heard.draws.values())
    out = [("noise", f"{sum(sizes):,} numbers of {counted(steps, 'step')}")]
    for about in ABOUT:
        tests = [test for test in heard.tests if test.about == about]
        if tests:
            shown = min(tests, key=lambda test: (test.where != "all", test.p))
            words = _WORDS.get(about, _CORRELATED).format(abs(shown.value), shown.n)
            out.append((f"noise: {about}", words))
    alarm = f"{FALSE_ALARM:.0e} at most, with {counted(heard.asked, 'test')}"
    return [*out, ("noise: false alarm", alarm)]


def finding(failed: Sequence[Tested], matches: str | None, native: bool) -> Finding:
    """What the tests that failed say, the worst of them."""
    worst = failed[0]
    chance = f"{worst.p:.0e}" if worst.p else "1e-300"
    message = f"{_told(worst)}; of right noise, with probability {chance} or less."
    if native:
        told = "in float64 the noise is the rule's; in the parameters' own dtypes "
        message = told + message
    if matches is not None:
        message += f" It matches the rule {matches}."
    kind = "precision_loss" if native else "wrong_noise"
    return Finding(kind=kind, leaf=worst.again, message=message)


def _told(test: Tested) -> str:
    number = f"{test.value:.3f}" if abs(test.value) < 1e4 else f"{test.value:.1e}"
    where = "" if test.where == "all" else f" in {test.where}"
    if test.about == "mean":
        return f"the mean of the noise{where} is {number} of the rule's deviations"
    if test.about == "standard deviation":
        return f"the standard deviation of the noise{where} is {number} of the rule's"
    if test.about == "distribution":
        return f"the noise is not normal: its distribution is off by {number}"
    if test.about == "largest":
        return f"the largest of {test.n:,} numbers of noise is {number} deviations"
    return {
        "between steps": f"the noise of steps {test.where} is correlated by {number}",
        "between leaves": f"the noise of {test.where} is correlated by {number}",
        "between elements": (
            f"the noise of neighbors along {test.where} is correlated by {number}"
        ),
    }[test.about]
