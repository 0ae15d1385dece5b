"""Check the gradient of every public differentiable function of JAX, optax and flax.

Each function becomes a loss: the sum of its floating outputs, real and imaginary parts,
with fixed weights of either sign, at a generic point inside its domain. What could not
be checked is a row of its own, with the reason. What is not CORRECT was looked at by
hand; ``survey_remarks.REMARKS`` says what it was.

A part of the survey (``--only``, ``--match``) has results of its own name. Interrupt it
at any time: what has been done is printed and written, and ``--resume`` goes on from
there. If it is killed, all but the last few functions are in the JSON file.
"""

from __future__ import annotations

import argparse
import json
import math
import pathlib
import re
import shlex
import sys
import time
import warnings
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import jaxcheck
from benchmarks import results
from benchmarks import survey_recipes as recipes
from benchmarks.survey_document import document
from benchmarks.survey_rows import (
    CHECK_FAILED,
    NO_GRADIENT,
    NOT_CALLED,
    NOT_DIFFERENTIABLE,
    Row,
    counts,
    in_short,
    table_of,
    title_of,
)
from benchmarks.survey_targets import Target, surveyed, targets

# After this many checks the rows are saved, and compiled programs are dropped: memory
# would grow without bound.
SAVE_EVERY = 25


# --- One function ---------------------------------------------------------------------


def weighted_sum(outputs: Any, seed: int) -> jax.Array:
    """The floating ``outputs``, each number with a weight of its own, as a scalar."""
    rng = np.random.default_rng(seed)
    total = jnp.zeros(())
    for leaf in jax.tree.leaves(outputs):
        if not recipes.is_differentiable(leaf):
            continue
        parts = [jnp.real(leaf), jnp.imag(leaf)] if jnp.iscomplexobj(leaf) else [leaf]
        for part in parts:
            weights = rng.uniform(0.5, 1.5, part.shape) * rng.choice(
                (-1, 1), part.shape
            )
            total += jnp.sum(part * jnp.asarray(weights, part.dtype))
    return total


def examine(target: Target) -> Row:
    """Check one function; whatever happens is a row."""
    row: Row = {
        "module": target.module,
        "function": target.function,
        "case": target.case.label if target.case else "",
        "verdict": target.verdict,
        "reason": target.reason,
    }
    if target.case is None:
        return row
    started = time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the functions, about their own use
        row |= checked(target)
    return row | {"seconds": round(time.perf_counter() - started, 2)}


def checked(target: Target) -> Row:
    seed = zlib.crc32(target.title.encode())
    assert target.case is not None
    try:
        params, apply = target.case.build(target.value, np.random.default_rng(seed))
        outputs = jax.eval_shape(apply, params)
    except Exception as error:
        return {"verdict": NOT_CALLED, "reason": in_short(error)}
    inputs = [leaf for leaf in jax.tree.leaves(params) if is_floating(leaf)]
    if not inputs:
        return not_differentiable("no floating input")
    if not any(is_floating(leaf) for leaf in jax.tree.leaves(outputs)):
        return not_differentiable("no floating output")

    def loss_fn(params: Any) -> jax.Array:
        return weighted_sum(apply(params), seed)

    loss_fn.__name__ = target.function.rpartition(".")[2]
    try:
        jax.eval_shape(jax.grad(loss_fn, allow_int=True), params)
    except Exception as error:
        return {"verdict": NO_GRADIENT, "reason": in_short(error)}
    try:
        report = jaxcheck.check(loss_fn, params, progress=False, mode="auto")
    except Exception as error:
        return {"verdict": CHECK_FAILED, "reason": in_short(error)}
    return summary(report)


def is_floating(leaf: Any) -> bool:
    return jnp.issubdtype(leaf.dtype, jnp.inexact)


def not_differentiable(reason: str) -> Row:
    return {"verdict": NOT_DIFFERENTIABLE, "reason": reason}


def summary(report: jaxcheck.GradientReport) -> Row:
    """What the tables show of a report."""
    bounds = [leaf.bound for leaf in report.leaves if leaf.bound is not None]
    return {
        "verdict": report.verdict.value,
        "reason": reason_of(report),
        "bound": number(max(bounds)) if bounds else None,
        "findings": sorted({finding.kind for finding in report.findings}),
        "messages": [without_prefix(finding.message) for finding in report.findings],
        "parameters": sum(leaf.size for leaf in report.leaves),
        "evaluations": report.evaluations,
    }


def without_prefix(text: str) -> str:
    """``text`` without the places where packages happen to be installed."""
    return re.sub(r"[^\s(]*/site-packages/", "", text)


def number(value: float) -> float | None:
    """``value`` as JSON knows it."""
    return value if math.isfinite(value) else None


def reason_of(report: jaxcheck.GradientReport) -> str:
    """Why a report is not CORRECT: the leaf that decided, and its worst coordinate."""
    for leaf in report.leaves:
        if leaf.verdict is not report.verdict or report.passed:
            continue
        words = [leaf.path, leaf.reason or ""]
        if leaf.worst is not None:
            worst = leaf.worst
            words.append(
                f"at {list(worst.index)} autodiff {worst.autodiff:.6g}, numerical "
                f"{worst.numerical:.6g} ± {worst.error_bar:.1g}"
            )
        return ": ".join(word for word in words if word)
    return ""


# --- The run --------------------------------------------------------------------------


def survey(
    todo: Sequence[Target],
    rows: dict[str, Row],
    show: Callable[[str], None],
    save: Callable[[], object] = lambda: None,
) -> bool:
    """Examine ``todo``, adding to ``rows`` by title; whether it was finished."""
    try:
        for done, target in enumerate(todo, 1):
            if target.title in rows:
                continue
            row = examine(target)
            rows[target.title] = row
            show(f"{done:4}/{len(todo)}  {target.title}: {row['verdict']}")
            if done % SAVE_EVERY == 0:
                save()
                jax.clear_caches()
    except KeyboardInterrupt:
        show("interrupted")
        return False
    return True


# --- The command ----------------------------------------------------------------------


def name_of(only: Sequence[str] | None, match: str) -> str:
    """The name of the results; a part of the survey has one of its own."""
    part = "-".join([*(only or ()), *([match] if match else ())])
    chosen = re.sub(r"[^A-Za-z0-9]+", "-", part).strip("-")
    return "-".join(filter(None, ("survey", chosen, "jax", jax.__version__)))


def resumed(
    directory: pathlib.Path,
    name: str,
    environment: Mapping[str, Any],
    show: Callable[[str], None],
) -> dict[str, Row]:
    """The rows of an earlier run with the same versions and device, by title."""
    same = ("versions", "device")
    reason = f"no {name}-*.json in {directory}"
    for path in sorted(directory.glob(f"{name}-*.json")):
        earlier = json.loads(path.read_text())
        changed = [
            change
            for key in same
            for change in changes(earlier["environment"][key], environment[key], key)
        ]
        if not changed:
            return {title_of(row): row for row in earlier["rows"]}
        reason = f"{path.name} is of {', '.join(changed)}"
    show(f"nothing to resume: {reason}")
    return {}


def changes(earlier: Any, now: Any, name: str) -> Iterator[str]:
    """What was otherwise, a few words each."""
    if isinstance(now, dict):
        for key in earlier | now:
            yield from changes(earlier.get(key, "none"), now.get(key, "none"), key)
    elif earlier != now:
        yield f"{name} {earlier} (here {now})"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = results.parser(__doc__, repetitions=1)
    modules = surveyed()
    parser.add_argument(
        "--only", choices=modules, nargs="+", metavar="MODULE", help=", ".join(modules)
    )
    parser.add_argument("--match", default="", help="only functions with this in them")
    parser.add_argument(
        "--resume", action="store_true", help="keep the rows of the JSON file"
    )
    parser.add_argument(
        "--document",
        type=pathlib.Path,
        help="Markdown file to write, e.g. docs/survey.md",
    )
    parser.add_argument(
        "--against",
        type=pathlib.Path,
        help="JSON file of another survey; the document says what is otherwise there",
    )
    options = parser.parse_args(arguments)
    run(options, modules)


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def run(
    options: argparse.Namespace,
    modules: Mapping[str, tuple[Mapping[str, Any], recipes.Recipes]],
) -> None:
    environment = results.environment()
    name = name_of(options.only, options.match)
    rows = resumed(options.output, name, environment, say) if options.resume else {}
    everything = list(targets(modules))
    todo = [
        target
        for target in everything
        if target.module in (options.only or modules) and options.match in target.title
    ]

    def write(finished: bool, say: Callable[[str], None]) -> list[Row]:
        in_order = [rows[t.title] for t in everything if t.title in rows]
        settings = {
            "finished": finished,
            "complete": len(in_order) == len(everything),
            "mode": "auto",
        }
        results.write(options.output, name, environment, settings, in_order, say)
        return in_order

    finished = survey(todo, rows, say, lambda: write(False, lambda line: None))
    in_order = write(finished, print)
    header = ["function", "verdict", "error bound", "findings", "reason"]
    results.print_table(header, table_of(in_order))
    print()
    header, *lines = counts(in_order)
    results.print_table(header, lines)
    if options.document is not None:
        other = json.loads(options.against.read_text()) if options.against else None
        text = document(in_order, environment, command(options), other)
        options.document.write_text(text)
        print(f"written to {options.document}")


def command(options: argparse.Namespace) -> str:
    """The command that writes the document."""
    words = ["python -m benchmarks.survey"]
    if options.only:
        words += ["--only", *options.only]
    if options.match:
        words += ["--match", shlex.quote(options.match)]
    if options.against:
        words += ["--against", str(options.against)]
    return " ".join([*words, "--document", str(options.document)])


if __name__ == "__main__":
    main()
