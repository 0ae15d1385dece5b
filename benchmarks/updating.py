"""Time a check of AdamW's updates beside the steps that it checks, as the tree grows.

The check makes its gradients, takes the steps in float64 and again in float32,
evaluates the rule and compares. The steps are jitted, ``tx.update`` and
``apply_updates`` in one. Both are timed warm, in turn; the first call of each has its
compilation in it.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

import jaxcheck
from benchmarks import results

STEPS = 5
LAYERS = 10
SIZES = (100_000, 1_000_000, 10_000_000)
RATE = 1e-3


def tree(size: int) -> Any:
    """Ten layers of a matrix and a vector, about ``size`` scalars."""
    width = round((size / LAYERS) ** 0.5)
    keys = jax.random.split(jax.random.key(0), LAYERS)
    return {
        f"layer_{k}": {
            "b": jnp.zeros(width),
            "w": jax.random.normal(key, (width, width)),
        }
        for k, key in enumerate(keys)
    }


def seconds(function: Callable[[], Any]) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def measure(size: int, repetitions: int) -> dict[str, Any]:
    """One row: the first calls, then warm ones in turn."""
    params = tree(size)
    tx = optax.adamw(RATE)
    gradients = jax.tree.map(jnp.ones_like, params)

    @jax.jit
    def step(params: Any, state: Any) -> Any:
        updates, state = tx.update(gradients, state, params)
        return optax.apply_updates(params, updates), state

    def steps() -> None:
        moved, state = params, tx.init(params)
        for _ in range(STEPS):
            moved, state = step(moved, state)
        jax.block_until_ready(moved)

    def check() -> None:
        rule = jaxcheck.rules.adamw(RATE)
        report = jaxcheck.check_update(tx, params, rule=rule, steps=STEPS)
        assert report.passed, str(report)

    firsts = {"first_steps": seconds(steps), "first_check": seconds(check)}
    pairs = [(seconds(steps), seconds(check)) for _ in range(repetitions)]
    return {
        "parameters": sum(x.size for x in jax.tree.leaves(params)),
        **firsts,
        "steps_seconds": [a for a, _ in pairs],
        "check_seconds": [b for _, b in pairs],
    }


def table(rows: Sequence[dict[str, Any]]) -> Iterator[list[str]]:
    for row in rows:
        steps, check = row["steps_seconds"], row["check_seconds"]
        ratio = statistics.median(check) / statistics.median(steps)
        yield [
            f"{row['parameters']:,}",
            results.spread(steps, " s"),
            results.spread(check, " s"),
            f"{ratio:.1f}×",
            f"{row['first_check'] / row['first_steps']:.1f}×",
        ]


def main(arguments: Sequence[str] | None = None) -> None:
    options = results.parser(__doc__, repetitions=7).parse_args(arguments)
    rows = [measure(size, options.repetitions) for size in SIZES]
    header = ["parameters", f"{STEPS} steps", "check_update", "ratio", "first calls"]
    results.print_table(header, table(rows))
    settings = {"steps": STEPS, "layers": LAYERS, "learning_rate": RATE}
    results.write(options.output, "updating", results.environment(), settings, rows)


if __name__ == "__main__":
    main()
