"""Hold every optimizer of optax against its rule, and write the table of the docs.

Each is checked with its default settings and with others, in float64 and in float32,
and screened without any formula. ``python -m benchmarks.optimizers`` writes
``docs/optimizers.md``.
"""

from __future__ import annotations

import argparse
import dataclasses
import inspect
import pathlib
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib

from benchmarks import results
from jaxcheck import UpdateReport, check_update, rules

RATE = 0.01
STEPS = 8
SHAPES = {"bias": (6,), "kernel": (8, 6), "scale": ()}
MATRICES = {"bias": (6,), "kernel": (8, 6), "output": (3, 8)}
DECAY = {"weight_decay": 0.1}
NOISE_SHAPES = {"bias": (64,), "kernel": (64, 32), "output": (64, 32)}
MOMENTS = {"b1": 0.8, "b2": 0.95, "eps": 1e-4}


def schedule(count: Any) -> Any:
    """A learning rate that falls."""
    return RATE * 0.8**count


@dataclasses.dataclass(frozen=True)
class Case:
    """One optimizer with one choice of settings.

    Attributes:
        name: of the optimizer, and of its rule.
        settings: of both.
        shapes: of the parameters.
        values: whether it is given the loss.
        key: what the optimizer of optax is given for its noise.
    """

    name: str
    settings: dict[str, Any]
    shapes: dict[str, tuple[int, ...]] = dataclasses.field(
        default_factory=lambda: SHAPES
    )
    values: bool = False
    key: dict[str, int] = dataclasses.field(default_factory=dict)

    def transformation(self) -> Any:
        """The optimizer of optax."""
        module = optax.contrib if hasattr(optax.contrib, self.name) else optax
        with warnings.catch_warnings():
            # that a seed is deprecated, by optax's own dpsgd
            warnings.simplefilter("ignore", DeprecationWarning)
            return getattr(module, self.name)(**self.settings, **self.key)

    def rule(self) -> Any:
        """The rule that it is held against."""
        return getattr(rules, self.name)(**self.settings)

    def options(self) -> dict[str, Any]:
        """What the check is given besides."""
        if not self.values:
            return {}
        losses = [1.0 + 0.5 * np.cos(step) for step in range(STEPS)]
        return {"extra_args": {"value": losses}}

    def __str__(self) -> str:
        told = (f"{k}={getattr(v, '__name__', v)}" for k, v in self.settings.items())
        return f"{self.name}({', '.join(told)})"


# Settings other than the defaults, for each optimizer with a rule.
OTHER: dict[str, dict[str, Any]] = {
    "acprop": MOMENTS | DECAY,
    "add_noise": {"eta": 0.5, "gamma": 0.3},
    "adabelief": MOMENTS,
    "adadelta": {"rho": 0.7, "eps": 1e-3},
    "adafactor": {"min_dim_size_to_factor": 2, "decay_rate": 0.7},
    "adagrad": {"initial_accumulator_value": 0.0, "eps": 1e-3},
    "adam": MOMENTS | {"nesterov": True},
    "adamax": MOMENTS,
    "adamaxw": MOMENTS | DECAY,
    "adamw": MOMENTS | DECAY,
    "adan": {"b1": 0.9, "b2": 0.8, "b3": 0.95, "eps": 1e-4} | DECAY,
    "ademamix": MOMENTS | DECAY | {"b3": 0.99, "alpha": 3.0},
    "adopt": MOMENTS,
    "amsgrad": MOMENTS,
    "cocob": {"alpha": 4.0, "eps": 1e-3},
    "dadapt_adamw": DECAY,
    "differentially_private_aggregate": {"l2_norm_clip": 3.0, "noise_multiplier": 0.2},
    "dog": DECAY,
    "dowg": DECAY,
    "dpsgd": {"l2_norm_clip": 3.0, "noise_multiplier": 0.2, "momentum": 0.9},
    "fromage": {"min_norm": 1.0},
    "lamb": MOMENTS | DECAY,
    "lars": DECAY | {"trust_coefficient": 0.5, "nesterov": True},
    "lion": {"b1": 0.8, "b2": 0.7} | DECAY,
    "madgrad": {"momentum": 0.5, "eps": 1e-3},
    "momo": {"beta": 0.5} | DECAY,
    "momo_adam": {"b1": 0.5, "b2": 0.9} | DECAY,
    "muon": {"beta": 0.8, "nesterov": False},
    "nadam": MOMENTS,
    "nadamw": MOMENTS | DECAY,
    "noisy_sgd": {"eta": 0.5, "gamma": 0.3},
    "novograd": {"b1": 0.8, "b2": 0.5, "eps": 0.1} | DECAY,
    "optimistic_adam_v2": MOMENTS | {"alpha": 0.8, "beta": 0.3},
    "optimistic_gradient_descent": {"alpha": 0.8, "beta": 0.3},
    "polyak_sgd": {"f_min": 0.2, "eps": 0.1},
    "prodigy": DECAY,
    "radam": MOMENTS | {"threshold": 4.0},
    "rmsprop": {"momentum": 0.9, "eps": 1e-3, "centered": True},
    "rprop": {"eta_minus": 0.3, "eta_plus": 1.5},
    "schedule_free_adamw": {"warmup_steps": 4},
    "schedule_free_sgd": {"warmup_steps": 4},
    "sgd": {"momentum": 0.9, "nesterov": True},
    "sign_sgd": {},
    "signum": {"beta": 0.7},
    "simplified_ademamix": MOMENTS | {"alpha": 2.0},
    "sm3": {"momentum": 0.5},
    "yogi": MOMENTS,
}
NEED_MATRICES = {"sm3", "muon"}
NEED_VALUES = {"polyak_sgd", "momo", "momo_adam"}
# The key of the noise, for optax alone.
KEYS = {
    "add_noise": {"key": 0},
    "differentially_private_aggregate": {"key": 0},
    "dpsgd": {"seed": 0},
    "noisy_sgd": {"key": 0},
}
PRIVATE = {"l2_norm_clip": 1.0, "noise_multiplier": 1.0}
# Settings that have no default.
NEEDED = {
    "add_noise": {"eta": 0.01, "gamma": 0.55},
    "differentially_private_aggregate": PRIVATE,
    "dpsgd": PRIVATE,
}
# The screen has no gradients of examples, and asks for a descent.
NOT_SCREENED = {"add_noise", "differentially_private_aggregate", "dpsgd"}
# What their learning rate means does not allow a schedule of it.
CONSTANT = {"rprop", "sm3", "schedule_free_adamw", "schedule_free_sgd", "dadapt_adamw"}


def cases() -> Iterator[Case]:
    """Every optimizer with its defaults, and with others and a schedule."""
    for name, settings in OTHER.items():
        given = inspect.signature(getattr(rules, name)).parameters
        needs = given.get("learning_rate")
        required = needs is not None and needs.default is inspect.Parameter.empty
        more: dict[str, Any] = {
            "shapes": MATRICES if name in NEED_MATRICES else SHAPES,
            "values": name in NEED_VALUES,
        }
        if name in KEYS:
            more |= {"shapes": NOISE_SHAPES, "key": KEYS[name]}
        first = {"learning_rate": RATE} if required else {}
        first = first | NEEDED.get(name, {})
        second = {"learning_rate": schedule} if needs is not None else {}
        if name in CONSTANT:
            second = first
        yield Case(name, first, **more)
        yield Case(name, second | settings, **more)


@dataclasses.dataclass(frozen=True)
class Row:
    """What was found for one case.

    Attributes:
        case: the case.
        wide: the report with float64 parameters.
        native: the report with float32 parameters.
        screened: the report without a rule; None if there can be none.
    """

    case: Case
    wide: UpdateReport
    native: UpdateReport
    screened: UpdateReport | None


def parameters(case: Case, dtype: Any) -> Any:
    """Parameters of the case."""
    rng = np.random.default_rng(0)
    return {
        name: jnp.asarray(rng.normal(size=shape), dtype)
        for name, shape in case.shapes.items()
    }


def row_of(case: Case) -> Row:
    """Check one case."""
    with jax.enable_x64(True):
        wide = parameters(case, jnp.float64)
    given = case.options()
    tx, rule = case.transformation(), case.rule()
    native = parameters(case, jnp.float32)
    screened = None
    if case.name not in NOT_SCREENED:
        screened = check_update(tx, native, steps=STEPS, **given)
    return Row(
        case,
        check_update(tx, wide, rule=rule, steps=STEPS, **given),
        check_update(tx, native, rule=rule, steps=STEPS, **given),
        screened,
    )


def document(rows: Sequence[Row]) -> str:
    """The table as Markdown."""
    known = results.environment()["versions"]
    versions = ", ".join(f"{k} {known[k]}" for k in ("jax", "optax", "numpy"))
    lines = [
        "# optax held against its rules",
        "",
        f"Written by `python -m benchmarks.optimizers` ({versions}); not to be edited.",
        "",
        "Each optimizer ran with its default settings and with others and a falling "
        f"learning rate (`schedule`), over {STEPS} gradients of "
        "`jaxcheck.check_update`. The numbers are the largest relative error of an "
        "element of an update, and what was allowed; where the rule is off in float64, "
        "float32 was not asked for. An element may be off by a few units in the last "
        "place of its parameter, and by what rounding is measured to do. A rule says "
        "what its paper or the documentation of optax says; where optax differs, the "
        "variant that does match is named.",
        "",
        "| optimizer | float64 | float32 | agrees |",
        "|---|---|---|---|",
    ]
    for row in rows:
        pairs = [
            (row.wide.relative_error, row.wide.tolerance),
            (row.native.native_error, row.native.native_tolerance),
        ]
        numbers = [
            "–" if error is None else f"{error:.0e} ({tolerance:.0e})"
            for error, tolerance in pairs
        ]
        lines.append(f"| `{row.case}` | {' | '.join(numbers)} | {answer(row)} |")
    odd = [
        f"- `{row.case}`: {finding.message}"
        for row in rows
        if row.screened is not None and not told(row)
        for finding in row.screened.findings
    ]
    if odd:
        lines += ["", "Without a rule, the screen finds besides:", "", *odd]
    noise = [row for row in rows if row.native.properties]
    if noise:
        lines += ["", "Of those with noise, the table compares what they do less the "]
        lines[-1] += "noise. The noise was tested against its law, in float64:"
        lines += ["", *(f"- `{row.case}`: {heard(row)}" for row in noise)]
    return "\n".join(lines) + "\n"


def heard(row: Row) -> str:
    """What was found of the noise."""
    found = dict(row.native.properties)
    spread, alarm = (
        found[f"noise: {x}"] for x in ("standard deviation", "false alarm")
    )
    return (
        f"{found['noise']}; their standard deviation is {spread}; false alarm {alarm}."
    )


def told(row: Row) -> bool:
    """Whether the table says already that something is wrong."""
    return not (row.wide.passed and row.native.passed)


def answer(row: Row) -> str:
    """Agrees, or differs and how."""
    if not told(row):
        return "yes"
    report = row.native if row.wide.passed else row.wide
    if report.matches is not None:
        return f"no: it matches the rule {report.matches}"
    return f"no: {report.findings[0].message}"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n\n")[0])
    root = pathlib.Path(__file__).parent.parent
    parser.add_argument("--output", type=pathlib.Path, default=root / "docs")
    parser.add_argument("names", nargs="*", help="only these optimizers")
    options = parser.parse_args(arguments)
    rows: list[Row] = []
    for case in cases():
        if options.names and case.name not in options.names:
            continue
        rows.append(row_of(case))
        print(case, answer(rows[-1]), flush=True)
    if not options.names:
        (options.output / "optimizers.md").write_text(document(rows), "utf-8")


if __name__ == "__main__":
    main()
