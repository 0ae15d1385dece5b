"""Time train steps with a monitor beside the same steps without one.

Every variant is AdamW in one jitted, donated step, or a scan of ten of them. All
variants of a model take turns of one call, or of ten steps if they are short, so that
what else the machine does hits all; a ratio is the median of those of ten steps each,
and of several processes. A second variant without a monitor shows how far apart two
that are alike come out, and ``plain_norms`` what a line that is written by hand costs.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxcheck
from benchmarks import models, results
from jaxcheck.reports.progress import progress_for

RATE = 1e-3
SCANNED = 10
# Seconds of a turn: much longer, and the machine is another at the next variant's;
# much shorter, and each variant finds its arrays gone from the caches.
_TURN = 0.02


class PlainNorms(NamedTuple):
    """The state of ``plain_norms``: trees of the parameters' structure."""

    inner: Any
    step: jax.Array
    norms: tuple[Any, Any, Any]


def plain_norms(
    inner: optax.GradientTransformation, every: int = 1
) -> optax.GradientTransformation:
    """Carry the norm of each gradient, update and parameter, of each ``every``-th step.

    What people write by hand: a NaN or a norm above 1e19 is all that it says, and no
    step before the last one is known.
    """

    def norms(*trees: Any) -> tuple[Any, ...]:
        return jax.tree.map(lambda x: jnp.sqrt(jnp.sum(jnp.square(x))), trees)

    def init(params: Any) -> PlainNorms:
        none = jnp.zeros((), jnp.int32)
        return PlainNorms(inner.init(params), none, norms(params, params, params))

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, PlainNorms]:
        grads = updates
        updates, moved = inner.update(grads, state.inner, params)
        if every == 1:
            seen = norms(grads, updates, params)
        else:
            seen = jax.lax.cond(
                state.step % every == 0,
                lambda: norms(grads, updates, params),
                lambda: state.norms,
            )
        return updates, PlainNorms(moved, state.step + 1, seen)

    return optax.GradientTransformation(init, update)


VARIANTS: dict[str, Callable[[Any], Any]] = {
    "none": lambda tx: tx,
    "none again": lambda tx: tx,
    "plain norms": plain_norms,
    "monitor": jaxcheck.monitor,
    "plain, every 10": lambda tx: plain_norms(tx, every=10),
    "every=10": lambda tx: jaxcheck.monitor(tx, every=10),
}
PROBLEMS: dict[str, Callable[[], models.Problem]] = {
    "transformer, 10M": lambda: models.transformer(264, 8, 12, 32, 16),
    "transformer, 0.9M": lambda: models.transformer(96, 4, 8, 32, 16),
    "MLP, 0.7M, batch 256": lambda: models.mlp((784, 512, 512, 10), 256),
    "MLP, 10M, batch 256": lambda: models.mlp((784, 2048, 2048, 2048, 10), 256),
}


def single(problem: models.Problem) -> models.Problem:
    """In float32."""

    def narrow(x: Any) -> Any:
        return x.astype(np.float32) if x.dtype == np.float64 else x

    return models.Problem(
        problem.loss_fn, *jax.tree.map(narrow, (problem.params, *problem[2:]))
    )


class Training:
    """Steps of one variant, and its state."""

    def __init__(self, problem: models.Problem, tx: Any, scanned: bool) -> None:
        def step(carry: Any, _: Any) -> Any:
            params, state = carry
            grads = jax.grad(problem.loss_fn)(params, problem.inputs, problem.labels)
            updates, state = tx.update(grads, state, params)
            return (optax.apply_updates(params, updates), state), None

        def steps(carry: Any) -> Any:
            if not scanned:
                return step(carry, None)[0]
            return jax.lax.scan(step, carry, None, SCANNED)[0]

        self._steps = jax.jit(steps, donate_argnums=0)
        params = jax.tree.map(jnp.array, problem.params)
        self._carry = params, tx.init(params)

    def seconds(self, calls: int) -> float:
        """That so many calls take, each waited for."""
        start = time.perf_counter()
        for _ in range(calls):
            self._carry = jax.block_until_ready(self._steps(self._carry))
        return time.perf_counter() - start


def measure(
    repetitions: int, seconds: float, name: str, scanned: bool
) -> dict[str, Any]:
    """One row; short steps are timed more often, until all took ``seconds``."""
    problem = single(PROBLEMS[name]())
    runs = {
        variant: Training(problem, wrap(optax.adamw(RATE)), scanned)
        for variant, wrap in VARIANTS.items()
    }
    for run in runs.values():
        run.seconds(1)  # compiled
    # a cycle of `every` and of looks at elements is timed
    calls = 1 if scanned else SCANNED
    once = min(run.seconds(calls) for run in runs.values())
    turn = 1 if once / calls > _TURN else calls
    timed: dict[str, list[float]] = {variant: [] for variant in runs}
    for _ in range(max(repetitions, round(seconds / (once * len(runs))))):
        total = dict.fromkeys(runs, 0.0)
        for _ in range(calls // turn):
            for variant, run in runs.items():
                total[variant] += run.seconds(turn)
        for variant in runs:
            timed[variant].append(total[variant] / calls)
    return {
        "model": name,
        "parameters": problem.size,
        "leaves": len(jax.tree.leaves(problem.params)),
        "scanned": SCANNED if scanned else 1,
        "calls": calls,
        "seconds": timed,
    }


def table(rows: Sequence[dict[str, Any]]) -> Iterator[list[str]]:
    for row in rows:
        yield [
            row["model"],
            f"{row['leaves']}",
            "scan of 10" if row["scanned"] > 1 else "one step",
            results.spread(results.seconds(row, "none"), " s"),
            *(
                results.between(results.ratios(row, variant, base="none"))
                for variant in VARIANTS
                if variant != "none"
            ),
        ]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = results.parser(__doc__, repetitions=1)
    parser.add_argument("--seconds", type=float, default=15.0, help="for each process")
    results.add_processes(parser, 3)
    parser.add_argument("--only", help="models whose name contains this")
    options = parser.parse_args(arguments)
    names = [name for name in PROBLEMS if (options.only or "") in name]
    timing = measure, options.repetitions, options.seconds
    rows = []
    with progress_for(True, 2 * len(names), "timing") as advance:
        for name in names:
            for scanned in (False, True):
                step = name, scanned
                rows.append(results.in_processes(options.processes, *timing, *step))
                advance(1)
    header = ["model", "leaves", "", "without", *list(VARIANTS)[1:]]
    results.print_table(header, table(rows))
    settings = {"optimizer": "adamw", "learning_rate": RATE, "scanned": SCANNED}
    results.write(options.output, "monitoring", results.environment(), settings, rows)


if __name__ == "__main__":
    main()
