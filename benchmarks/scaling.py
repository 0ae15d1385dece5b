"""Time a directional check as the model grows: an MLP and a transformer.

The cost of a directional check is a number of loss evaluations that depends on the
number of leaves and hardly on their sizes. ``gradients`` is the same time counted in
compiled gradients of the same loss.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np

import jaxcheck
from benchmarks import models, results

DEPTH = 4


def mlp_of_size(parameters: float, batch: int) -> models.Problem:
    """An MLP of ``DEPTH`` square layers with about ``parameters`` scalars."""
    width = round(math.sqrt(parameters / DEPTH))
    return models.mlp([width] * (DEPTH + 1), batch, np.float32)


def transformer_of_size(parameters: float, batch: int) -> models.Problem:
    """A transformer of ``DEPTH`` blocks, 12 width² scalars each."""
    width = math.sqrt(parameters / (12 * DEPTH))
    heads = max(1, round(width / 64))
    return models.transformer(heads * round(width / heads), heads, DEPTH, batch)


FAMILIES: dict[str, Callable[[float, int], models.Problem]] = {
    "mlp": mlp_of_size,
    "transformer": transformer_of_size,
}


def seconds(function: Callable[[], Any]) -> tuple[float, Any]:
    start = time.perf_counter()
    result = function()
    return time.perf_counter() - start, result


def measure(family: str, problem: models.Problem, repetitions: int) -> dict[str, Any]:
    """One row: the first call, then warm calls beside the plain gradient."""

    def check() -> jaxcheck.GradientReport:
        return jaxcheck.check(*problem, mode="directional", progress=False)

    grad_fn = jax.jit(jax.grad(problem.loss_fn))
    operands = jax.device_put(problem[1:])

    def gradient() -> None:
        jax.block_until_ready(grad_fn(*operands))

    jax.clear_caches()
    gradient()
    first, report = seconds(check)
    warm: list[float] = []
    gradients: list[float] = []
    for _ in range(repetitions):
        gradients.append(seconds(gradient)[0])
        warm.append(seconds(check)[0])
    return {
        "family": family,
        "parameters": problem.size,
        "leaves": len(report.leaves),
        "verdict": report.verdict.value,
        "evaluations": report.evaluations,
        "first_call_seconds": first,
        "seconds": warm,
        "gradient_seconds": gradients,
    }


def table(rows: Sequence[dict[str, Any]]) -> Iterator[list[str]]:
    for row in rows:
        gradient = statistics.median(row["gradient_seconds"])
        yield [
            row["family"],
            f"{row['parameters']:,}",
            str(row["leaves"]),
            row["verdict"],
            str(row["evaluations"]),
            f"{row['first_call_seconds']:.3g}",
            results.spread(row["seconds"]),
            f"{statistics.median(row['seconds']) / gradient:.3g}",
        ]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = results.parser(__doc__, repetitions=3)
    parser.add_argument("--sizes", default="1e4,1e5,1e6,1e7", help="parameters")
    parser.add_argument("--batch", type=int, default=4)
    options = parser.parse_args(arguments)
    sizes = [float(size) for size in options.sizes.split(",")]
    rows = [
        measure(family, make(size, options.batch), options.repetitions)
        for family, make in FAMILIES.items()
        for size in sizes
    ]
    header = "model|parameters|leaves|verdict|evaluations|first call, s|seconds"
    results.print_table([*header.split("|"), "gradients"], table(rows))
    settings = {
        "sizes": sizes,
        "batch": options.batch,
        "repetitions": options.repetitions,
    }
    results.write(options.output, "scaling", results.environment(), settings, rows)


if __name__ == "__main__":
    main()
