"""Count which broken gradients audits find, and how often they accuse right ones.

A network is trained while every step is audited. ``audit_runs`` holds the networks and
the faults; a fault is found if one of five audits in a row says so.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from benchmarks import audit_runs, results
from jaxcheck.reports.progress import progress_for

# Audits that a fault may take.
WITHIN = 5
# One that is not finite ends the run, and is found by its first audit.
FAULTS = [fault for fault in audit_runs.FAULTS if fault not in ("none", "nan")]
# Steps of a run with a fault, and of one without.
FAULTY, RIGHT = 200, 2000


def found(kind: audit_runs.Kind, fault: str, seeds: int) -> float:
    """Share of the stretches of ``WITHIN`` audits that find ``fault``."""
    shares = []
    for seed in range(seeds):
        _, wrong = audit_runs.trained(kind, FAULTY, fault=fault, seed=seed)
        shares.append(np.asarray(wrong).reshape(-1, WITHIN).any(axis=1).mean())
    return float(np.mean(shares))


def accused(kind: audit_runs.Kind, seeds: int) -> dict[str, int]:
    """Answers to gradients that are right."""
    total = {"audits": 0, "wrong": 0, "inconclusive": 0}
    for seed in range(seeds):
        # Not the networks and batches of the runs with a fault.
        state, _ = audit_runs.trained(kind, RIGHT, seed=100 + seed)
        for name in total:
            total[name] += int(getattr(state, name))
    return total


def measure(
    name: str,
    kind: audit_runs.Kind,
    seeds: int,
    right_seeds: int,
    advance: Callable[[int], None],
) -> dict[str, Any]:
    shares = {}
    for fault in FAULTS:
        shares[fault] = found(kind, fault, seeds)
        advance(1)
    return {"kind": name, "found": shares, "right": accused(kind, right_seeds)}


def table(rows: Sequence[dict[str, Any]]) -> Iterator[list[str]]:
    for fault in rows[0]["found"]:
        yield [fault, *(f"{row['found'][fault]:.0%}" for row in rows)]
    yield ["false alarms", *(str(row["right"]["wrong"]) for row in rows)]
    inconclusive = (
        row["right"]["inconclusive"] / row["right"]["audits"] for row in rows
    )
    yield ["inconclusive", *(f"{share:.2%}" for share in inconclusive)]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = results.parser(__doc__, repetitions=6)
    parser.add_argument("--right-repetitions", type=int, default=20)
    options = parser.parse_args(arguments)
    kinds = audit_runs.KINDS
    with progress_for(True, len(kinds) * len(FAULTS), "planting faults") as advance:
        rows = [
            measure(name, kind, options.repetitions, options.right_repetitions, advance)
            for name, kind in kinds.items()
        ]
    results.print_table(["", *(row["kind"] for row in rows)], table(rows))
    settings = {"faulty_steps": FAULTY, "right_steps": RIGHT, "within": WITHIN}
    environment = results.environment()
    results.write(options.output, "audit_faults", environment, settings, rows)


if __name__ == "__main__":
    main()
