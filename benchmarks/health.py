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
import jax.numpy as jnp
import optax

import jaxcheck
from benchmarks import results
from benchmarks.health_runs import (
    ARCHITECTURES,
    AT,
    STEPS,
    Architecture,
    Plan,
    at_leaf,
    run,
)
from jaxcheck.reports.progress import progress_for

DOCUMENT = pathlib.Path(__file__).parent.parent / "docs" / "health.md"
SEEDS = 8
# A step whose loss is among the last 64, those that a state keeps.
LATE = 120


@dataclasses.dataclass(frozen=True)
class Fault:
    """Something planted, and what has to be said of it.

    Attributes:
        plan: the run.
        rule: the finding that names it.
        or_rules: others that name it as well.
        steps: first and last step that may be named as the first; None for any.
        leaf: whether the leaf has to be named.
        also: findings that follow from it.
    """

    plan: Plan
    rule: str
    steps: tuple[int, int] | None = (AT, AT)
    leaf: bool = True
    also: tuple[str, ...] = ()
    or_rules: tuple[str, ...] = ()


def _element(value: float) -> Callable[[Any, str, Any], Any]:
    """One element of one leaf of the gradient, in one step."""

    def spoiled(step: Any, leaf: str, grads: Any) -> Any:
        def change(g: Any) -> Any:
            flat = jnp.ravel(g)
            return (
                flat.at[3].set(jnp.where(step == AT, value, flat[3])).reshape(g.shape)
            )

        return at_leaf(leaf, change)(grads)

    return spoiled


def _times(factor: Callable[[Any], Any]) -> Callable[[Any, str, Any], Any]:
    """The whole gradient times a factor of the step."""
    return lambda step, leaf, grads: jax.tree.map(lambda g: factor(step) * g, grads)


def _leaf_times(factor: Callable[[Any], Any]) -> Callable[[Any, str, Any], Any]:
    return lambda step, leaf, grads: at_leaf(leaf, lambda g: factor(step) * g)(grads)


def _moment(step: Any, leaf: str, carry: Any) -> Any:
    """One element of Adam's first moment is lost after the step before ``AT``."""

    def change(m: Any) -> Any:
        flat = jnp.ravel(m)
        flat = flat.at[3].set(jnp.where(step == AT - 1, jnp.nan, flat[3]))
        return flat.reshape(m.shape)

    params, state = carry
    adam, *rest = state.inner
    adam = adam._replace(mu=at_leaf(leaf, change)(adam.mu))
    return params, state._replace(inner=(adam, *rest))


def _jump(step: Any, leaf: str, carry: Any) -> Any:
    """All parameters are four times as large after the step before ``LATE``."""
    params, state = carry
    factor = jnp.where(step == LATE - 1, 4.0, 1.0)
    return jax.tree.map(lambda p: factor * p, params), state


def _guarded() -> Any:
    return optax.apply_if_finite(optax.adam(2e-3), 5)


NAN = ("nonfinite_parameter", "poisoned_optimizer", "nonfinite_loss")
FAULTS: dict[str, Fault] = {
    "NaN in one element": Fault(
        Plan(_guarded, gradients=_element(jnp.nan)), "nonfinite_gradient"
    ),
    "infinity in one element": Fault(
        Plan(_guarded, gradients=_element(jnp.inf)), "nonfinite_gradient"
    ),
    "NaN that goes on into parameters": Fault(
        Plan(gradients=_element(jnp.nan)), "nonfinite_gradient", also=NAN
    ),
    "a moment of Adam that is NaN": Fault(
        Plan(carry=_moment), "poisoned_optimizer", also=("nonfinite_gradient", *NAN)
    ),
    "slow explosion": Fault(
        Plan(
            lambda: optax.sgd(1e-9),
            gradients=_times(lambda k: 1.15 ** jnp.maximum(k - 30, 0)),
        ),
        "exploding",
        steps=(45, 85),
        leaf=False,
        also=("vanishing", "flat_loss"),
    ),
    "spike": Fault(
        Plan(gradients=_times(lambda k: jnp.where(k == AT, 100.0, 1.0))),
        "spike",
        leaf=False,
    ),
    "spike of one leaf": Fault(
        Plan(gradients=_leaf_times(lambda k: jnp.where(k == AT, 1000.0, 1.0))), "spike"
    ),
    "a leaf that dies": Fault(
        Plan(gradients=_leaf_times(lambda k: jnp.where(k >= AT, 0.0, 1.0))),
        "zero_gradient",
    ),
    "a leaf without gradient": Fault(
        Plan(gradients=_leaf_times(lambda k: 0.0)), "zero_gradient", steps=(0, 0)
    ),
    "a leaf whose gradient vanishes": Fault(
        Plan(
            lambda: optax.sgd(0.05), gradients=_leaf_times(lambda k: jnp.float32(1e-7))
        ),
        "vanishing",
        steps=None,
    ),
    "a leaf that is frozen": Fault(
        Plan(updates=lambda leaf, updates: at_leaf(leaf, jnp.zeros_like)(updates)),
        "never_updated",
        steps=(0, 0),
    ),
    "updates that bfloat16 loses": Fault(
        Plan(lambda: optax.sgd(1e-5), cast=jnp.bfloat16),
        "lost_updates",
        steps=None,
        leaf=False,
        also=("flat_loss", "vanishing"),
    ),
    "always clipped": Fault(
        Plan(lambda: optax.chain(optax.clip_by_global_norm(1e-3), optax.adam(2e-3))),
        "always_clipped",
        steps=(0, 0),
        leaf=False,
    ),
    "a learning rate that is too high": Fault(
        Plan(lambda: optax.lion(0.2)),
        "update_ratio",
        steps=None,
        leaf=False,
        also=("spike", "exploding", "vanishing"),
        or_rules=("rising_loss", "jumping_loss", "zero_gradient"),
    ),
    "a gradient of the wrong sign": Fault(
        Plan(gradients=_times(lambda k: -1.0)),
        "rising_loss",
        steps=None,
        leaf=False,
        also=("exploding", "spike", "jumping_loss"),
    ),
    "weights that jump": Fault(
        Plan(carry=_jump),
        "jumping_loss",
        steps=(LATE, LATE),
        leaf=False,
        also=("spike", "exploding", "rising_loss"),
    ),
}

WARM = optax.warmup_cosine_decay_schedule(0.0, 5e-3, 20, STEPS)
RESTARTS = optax.sgdr_schedule(
    [
        {
            "init_value": 5e-4,
            "peak_value": 5e-3,
            "decay_steps": 50,
            "warmup_steps": 5,
            "end_value": 1e-4,
        }
    ]
    * 3
)
HEALTHY: dict[str, Plan] = {
    "Adam": Plan(),
    "AdamW, warm-up and cosine": Plan(lambda: optax.adamw(WARM)),
    "restarts": Plan(lambda: optax.adam(RESTARTS)),
    "momentum": Plan(lambda: optax.sgd(2e-2, momentum=0.9)),
    "MultiSteps": Plan(lambda: optax.MultiSteps(optax.adam(3e-3), 4)),
    "clipped now and then": Plan(
        lambda: optax.chain(optax.clip_by_global_norm(2.0), optax.adam(2e-3))
    ),
    "Lion": Plan(lambda: optax.lion(3e-4)),
}


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


def is_right(fault: Fault, finding: Any, leaf: str) -> bool:
    """Whether a finding names what was planted, where and when."""
    if finding.rule not in {fault.rule, *fault.or_rules}:
        return False
    first, last = fault.steps or (0, STEPS)
    when = fault.steps is None or (
        finding.step is not None and first <= finding.step <= last
    )
    return when and (not fault.leaf or finding.leaf == leaf)


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
        self, name: str, label: str, fault: Fault, hit: bool, seen: Any
    ) -> None:
        """One run with a planted fault."""
        self.runs[label] += 1
        self.found[label, name] += hit
        self.right[label] += hit
        wrong = sorted(
            {f.rule for f in seen} - {fault.rule, *fault.or_rules, *fault.also}
        )
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
    with progress_for(True, total, "training") as advance:
        for name, make in ARCHITECTURES.items():
            architecture = make()
            for label, fault in FAULTS.items():
                for seen in findings(architecture, fault.plan, seeds):
                    hit = any(is_right(fault, f, architecture.leaf) for f in seen)
                    counts.add_faulty(name, label, fault, hit, seen)
                advance(1)
            for label, plan in HEALTHY.items():
                for seen in findings(architecture, plan, seeds):
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
    yield f"{len(ARCHITECTURES)} architectures. Versions: " + ", ".join(
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
    yield "## By rule"
    yield ""
    yield "A false alarm is a finding that the planted fault does not explain."
    yield ""
    yield "| rule | recall | false alarms | precision |"
    yield "|---|---|---|---|"
    planted: dict[str, list[str]] = {}
    for label in FAULTS:
        planted.setdefault(_rules(label), []).append(label)
    for rules, labels in planted.items():
        asked = len(labels) * seeds * len(ARCHITECTURES)
        hits = sum(counts.right[label] for label in labels)
        alarms = counts.alarms[FAULTS[labels[0]].rule]
        precision = f"{hits / (hits + alarms):.1%}" if hits + alarms else "–"
        yield f"| {rules} | {hits} of {asked} | {alarms} | {precision} |"
    for rule in sorted(set(counts.alarms) - {f.rule for f in FAULTS.values()}):
        yield f"| `{rule}` | – | {counts.alarms[rule]} | – |"


def _rules(label: str) -> str:
    fault = FAULTS[label]
    return " or ".join(f"`{rule}`" for rule in (fault.rule, *fault.or_rules))


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
