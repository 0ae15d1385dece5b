"""Time training with every 100th step audited beside training without.

Networks of tanh are trained in one jitted scan of 100 steps, transformers in jitted
steps of AdamW, donated. The same program is timed with no audit, with one in a hundred
steps and with one in each, which tells what an audit takes from what the ``cond`` about
it costs every step. All take turns; a second training without audits shows how far
apart two that are alike come out. Of several processes the median counts.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxcheck
from benchmarks import models, monitoring, results
from jaxcheck.reports.progress import progress_for

EVERY = 100


class Task(NamedTuple):
    """What is trained, in scans of how many steps."""

    loss_fn: Callable[..., Any]
    params: Any
    args: tuple[Any, ...]
    scanned: int


def tanh_network(batch: int, width: int) -> Task:
    """Four layers without biases, whose loss takes half of a train step."""

    def loss_fn(params: Any, x: Any) -> Any:
        h = x
        for w in params:
            h = jnp.tanh(h @ w)
        return jnp.mean((h - 0.5 * x) ** 2)

    keys = jax.random.split(jax.random.key(0), 5)
    params = [jax.random.normal(key, (width, width)) / width**0.5 for key in keys[1:]]
    return Task(loss_fn, params, (jax.random.normal(keys[0], (batch, width)),), EVERY)


def of_problem(name: str) -> Task:
    problem: models.Problem = monitoring.PROBLEMS[name]()
    args = problem.inputs, problem.labels
    return Task(problem.loss_fn, problem.params, args, scanned=1)


TASKS: dict[str, Callable[[], Task]] = {
    "tanh, batch 64, width 64": lambda: tanh_network(64, 64),
    "tanh, batch 256, width 128": lambda: tanh_network(256, 128),
    "tanh, batch 256, width 256": lambda: tanh_network(256, 256),
    "transformer, 0.9M": lambda: of_problem("transformer, 0.9M"),
    "transformer, 10M": lambda: of_problem("transformer, 10M"),
}


class Training:
    """Steps with and without audits, and their state."""

    def __init__(self, task: Task, *, audited: bool) -> None:
        tx = optax.adamw(1e-3)

        def step(carry: Any, each: Any) -> Any:
            (params, opt_state, state), (number, due) = carry, each
            grads = jax.grad(task.loss_fn)(params, *task.args)

            def after() -> Any:
                key = jax.random.fold_in(jax.random.key(0), number)
                found = jaxcheck.audit(
                    task.loss_fn, params, *task.args, grads=grads, key=key
                )
                return state.add(found, number)

            if audited:
                state = jax.lax.cond(due, after, lambda: state)
            updates, opt_state = tx.update(grads, opt_state, params)
            return (optax.apply_updates(params, updates), opt_state, state), None

        def steps(carry: Any, due: Any) -> Any:
            if task.scanned == 1:
                return step(carry, (0, due[0]))[0]
            return jax.lax.scan(step, carry, (jnp.arange(task.scanned), due))[0]

        self._steps = jax.jit(steps, donate_argnums=0)
        params = jax.tree.map(jnp.array, task.params)
        self._start = params, tx.init(params), jaxcheck.AuditState.init()
        self.state = jaxcheck.AuditState.init()

    def seconds(self, due: np.ndarray) -> float:
        """What a call takes, from the same start, with audits in those steps."""
        carry = jax.block_until_ready(jax.tree.map(jnp.array, self._start))
        begun = time.perf_counter()
        after = jax.block_until_ready(self._steps(carry, due))
        taken = time.perf_counter() - begun
        self.state = after[2]
        return taken


def measure(repetitions: int, seconds: float, name: str) -> dict[str, Any]:
    """One row: the first calls, with compilation, then warm ones in turn.

    Short calls are timed more often, until all took so many seconds.
    """
    task = TASKS[name]()
    plain, again = (Training(task, audited=False) for _ in range(2))
    audited = Training(task, audited=True)
    never, each = np.zeros(task.scanned, bool), np.ones(task.scanned, bool)
    once = np.arange(task.scanned) == task.scanned // 2
    turns = {
        "plain": (plain, never),
        "plain again": (again, never),
        "never": (audited, never),
        "once": (audited, once),
        "each": (audited, each),
    }
    firsts = {
        "first_plain": plain.seconds(never),
        "first_audited": audited.seconds(never),
    }
    begun = time.perf_counter()
    for training, due in turns.values():
        training.seconds(due)
    taken = time.perf_counter() - begun
    timed: dict[str, list[float]] = {turn: [] for turn in turns}
    for _ in range(max(repetitions, round(seconds / taken))):
        for turn, (training, due) in turns.items():
            timed[turn].append(training.seconds(due))
    state = audited.state  # of the last turn
    assert (int(state.audits), int(state.wrong)) == (task.scanned, 0), state
    size = sum(leaf.size for leaf in jax.tree.leaves(task.params))
    return {
        "model": name,
        "parameters": size,
        "scanned": task.scanned,
        **firsts,
        "seconds": timed,
    }


def table(rows: Sequence[dict[str, Any]]) -> Iterator[list[str]]:
    for row in rows:
        again, never, once, each = (
            results.ratios(row, turn, base="plain")
            for turn in ("plain again", "never", "once", "each")
        )
        calls = EVERY // row["scanned"]
        audited = [
            (with_one + (calls - 1) * without) / calls
            for with_one, without in zip(once, never, strict=True)
        ]
        alone = [all_ - none for all_, none in zip(each, never, strict=True)]
        step = statistics.median(results.seconds(row, "plain")) / row["scanned"]
        yield [
            row["model"],
            f"{1e3 * step:.2f} ms",
            *map(results.between, (again, never, audited)),
            results.between(alone, digits=2),
            f"{row['first_plain']:.1f} s",
            f"{row['first_audited']:.1f} s",
        ]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = results.parser(__doc__, repetitions=11)
    parser.add_argument("--seconds", type=float, default=15.0, help="for each process")
    parser.add_argument("--only", help="tasks whose name contains this")
    results.add_processes(parser, 5)
    options = parser.parse_args(arguments)
    names = [name for name in TASKS if (options.only or "") in name]
    timing = measure, options.repetitions, options.seconds
    rows = []
    with progress_for(True, len(names), "auditing") as advance:
        for name in names:
            rows.append(results.in_processes(options.processes, *timing, name))
            advance(1)
    header = ["model", "step", "again", "never", "every 100th", "an audit, in steps"]
    header += ["first call", "with audits"]
    results.print_table(header, table(rows))
    settings = {"every": EVERY}
    results.write(options.output, "auditing", results.environment(), settings, rows)


if __name__ == "__main__":
    main()
