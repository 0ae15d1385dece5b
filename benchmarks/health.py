"""How often is each rule of health right? Planted faults, and healthy runs.

Every fault is planted in runs of four architectures with several seeds each. A run
counts as right if the rule names it, in the leaf and at the step where it was planted.
A rule that speaks in a healthy run, or of something that no planted fault explains, is
a false alarm. Writes ``docs/health.md``.
"""

from __future__ import annotations

import argparse
import dataclasses
import pathlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax

import jaxcheck
from benchmarks import results
from benchmarks.health_depth import DEEP
from benchmarks.health_faults import (
    FAULTS,
    HEALTHY,
    HEALTHY_DEEP,
    PROFILE,
    Fault,
    profile,
)
from benchmarks.health_runs import ARCHITECTURES, STEPS, Architecture, Plan, run
from jaxcheck.reports.progress import progress_for

DOCUMENT = pathlib.Path(__file__).parent.parent / "docs" / "health.md"
SEEDS = 8
# ---- what is found


def findings(architecture: Architecture, plan: Plan, seeds: int) -> list[Any]:
    """The findings of each seed."""
    params, states = run(architecture, plan, seeds)
    each: list[Any] = []
    for k in range(seeds):
        state, leaves = jax.tree.map(lambda x, k=k: x[k], (states, params))
        report = jaxcheck.diagnose(state, leaves, stacked=architecture.stacked)
        each.append(report.findings)
    return each


@dataclasses.dataclass(frozen=True)
class Counts:
    """What came of all runs.

    Attributes:
        runs: by what was planted, or the healthy plan.
        found: likewise and by architecture: runs in which it was named, or nothing was.
        right: by what was planted, runs in which it was named.
        alarms: by rule, findings that nothing planted explains.
        told: what went wrong, a line each.
    """

    runs: Counter[str] = dataclasses.field(default_factory=Counter)
    found: Counter[tuple[str, str]] = dataclasses.field(default_factory=Counter)
    right: Counter[str] = dataclasses.field(default_factory=Counter)
    alarms: Counter[str] = dataclasses.field(default_factory=Counter)
    told: list[str] = dataclasses.field(default_factory=list)

    def add_faulty(
        self, name: str, label: str, fault: Fault, leaf: str, seen: Any
    ) -> None:
        """One run with a planted fault."""
        hit = any(fault.is_named_by(finding, leaf) for finding in seen)
        self.runs[label] += 1
        self.found[label, name] += hit
        self.right[label] += hit
        wrong = sorted({f.rule for f in seen} - {*fault.rules, *fault.also})
        self.alarms.update(wrong)
        self.told.extend(f"{name}, {label}: {rule}" for rule in wrong)
        if not hit:
            self.told.append(f"{name}, {label}: not named; {[*seen]}")

    def add_healthy(self, name: str, label: str, seen: Any) -> None:
        """One healthy run."""
        rules = {f.rule for f in seen}
        self.runs[label] += 1
        self.found[label, name] += not rules
        self.alarms.update(rules)
        self.told.extend(f"{name}, {label}: {rule}" for rule in sorted(rules))


def measured(seeds: int) -> Counts:
    """Counts over all runs."""
    counts = Counts()
    total = len(ARCHITECTURES) * (len(FAULTS) + len(HEALTHY))
    total += len(DEEP) * (1 + len(HEALTHY_DEEP))
    with progress_for(True, total, "training") as advance:
        for name, make in ARCHITECTURES.items():
            architecture = make()
            for label, fault in FAULTS.items():
                for seen in findings(architecture, fault.plan, seeds):
                    counts.add_faulty(name, label, fault, architecture.leaf, seen)
                advance(1)
            for label, plan in HEALTHY.items():
                for seen in findings(architecture, plan, seeds):
                    counts.add_healthy(name, label, seen)
                advance(1)
        for name, make in DEEP.items():
            deep = make()
            fault = profile(deep.rate)
            for seen in findings(deep.sick, fault.plan, seeds):
                counts.add_faulty(name, PROFILE, fault, deep.sick.leaf, seen)
            advance(1)
            for label, plan in HEALTHY_DEEP.items():
                for seen in findings(deep.sound, plan, seeds):
                    counts.add_healthy(name, label, seen)
                advance(1)
    return counts


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=SEEDS)
    options = parser.parse_args(arguments)
    counts = measured(options.seeds)
    print("\n".join(counts.told))
    lines = [*page(counts, options.seeds)]
    DOCUMENT.write_text("\n".join(lines) + "\n", "utf-8")
    print("\n".join(lines))


def page(counts: Counts, seeds: int) -> Iterator[str]:
    """The document."""
    total = sum(counts.runs.values())
    yield "# How often rules of health are right"
    yield ""
    yield (
        f"Written by `python -m benchmarks.health`: {total} runs of {STEPS} steps, "
        f"{seeds} seeds each, of"
    )
    yield f"{len(ARCHITECTURES) + len(DEEP)} architectures. Versions: " + ", ".join(
        f"{k} {v}" for k, v in results.installed(("jax", "optax")).items()
    )
    yield ""
    yield "## Planted faults"
    yield ""
    yield "Runs in which the rule named the fault, with its leaf and its step."
    yield ""
    yield from _table(counts, FAULTS, seeds, _rules)
    yield ""
    yield "## Healthy runs"
    yield ""
    yield "Runs in which nothing was found."
    yield ""
    yield from _table(counts, HEALTHY, seeds, lambda label: "")
    yield ""
    yield "## Deep networks"
    yield ""
    yield (
        "With a fault that shows in a profile of the gradient over depth: runs in which"
    )
    yield (
        f"`{PROFILE}` named it, with the layer at its lower end. Without: runs in which"
    )
    yield "nothing was found."
    yield ""
    plans = list(HEALTHY_DEEP)
    yield f"| | with it | {' | '.join(f'sound, {plan}' for plan in plans)} |"
    yield "|---|---|" + "---|" * len(plans)
    for name in DEEP:
        cells = (
            f"{counts.found[label, name]} of {seeds}" for label in (PROFILE, *plans)
        )
        yield f"| {name} | {' | '.join(cells)} |"
    yield ""
    yield "## By rule"
    yield ""
    yield "A false alarm is a finding that the planted fault does not explain."
    yield ""
    yield "| rule | recall | false alarms | precision |"
    yield "|---|---|---|---|"
    planted: dict[str, list[str]] = {}
    for label in FAULTS:
        planted.setdefault(_rules(label), []).append(label)
    planted[f"`{PROFILE}`"] = [PROFILE]
    for rules, labels in planted.items():
        asked = sum(counts.runs[label] for label in labels)
        hits = sum(counts.right[label] for label in labels)
        alarms = counts.alarms[rules.split("`")[1]]
        precision = f"{hits / (hits + alarms):.1%}" if hits + alarms else "–"
        yield f"| {rules} | {hits} of {asked} | {alarms} | {precision} |"
    known = {PROFILE, *(fault.rule for fault in FAULTS.values())}
    for rule in sorted(set(counts.alarms) - known):
        yield f"| `{rule}` | – | {counts.alarms[rule]} | – |"


def _rules(label: str) -> str:
    return " or ".join(f"`{rule}`" for rule in FAULTS[label].rules)


def _table(
    counts: Counts, labels: Any, seeds: int, said: Callable[[str], str]
) -> Iterator[str]:
    names = list(ARCHITECTURES)
    yield f"| | rule | {' | '.join(names)} |"
    yield "|---|---|" + "---|" * len(names)
    for label in labels:
        cells = " | ".join(f"{counts.found[label, n]} of {seeds}" for n in names)
        yield f"| {label} | {said(label)} | {cells} |"


if __name__ == "__main__":
    main()
