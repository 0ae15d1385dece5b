"""Measure the peak memory of an exhaustive check, in a fresh process.

Memory is bounded batch by batch, so the peak is reached long before the last coordinate
is: a check that runs out of ``--seconds`` is stopped, and what it needed so far counts.
The same process with one evaluation of the gradient, and nothing of jaxcheck, is the
number to compare with.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from typing import Any

from benchmarks import results

# ru_maxrss counts KiB on Linux and bytes on macOS.
MAXRSS_UNIT = 1 if sys.platform == "darwin" else 1024

WORKLOADS = ("gradient only", "exhaustive check")


def run_workload(workload: str, width: int, batch: int) -> None:
    """In the child: do the work whose memory is measured."""
    import jax
    import numpy as np

    import jaxcheck
    from benchmarks import models

    problem = models.mlp([width, width, width, 10], batch, np.float32)
    if workload == "gradient only":
        grad_fn = jax.jit(jax.grad(problem.loss_fn))
        jax.block_until_ready(grad_fn(*problem[1:]))
    else:
        jaxcheck.check(*problem, mode="exhaustive", progress=False)


def peak_of_child(workload: str, options: Any) -> dict[str, Any]:
    """Run ``workload`` in a child process and read its resource usage when it ends."""
    command = [sys.executable, "-m", "benchmarks.memory", "--workload", workload]
    command += ["--width", str(options.width), "--batch", str(options.batch)]
    # This process stays small: Linux counts what a child's parent held when it forked.
    child = subprocess.Popen(command)
    timer = threading.Timer(options.seconds, child.kill)
    timer.start()
    _, status, usage = os.wait4(child.pid, 0)
    finished = timer.is_alive()
    timer.cancel()
    exit_code = child.returncode = os.waitstatus_to_exitcode(status)
    if finished and exit_code != 0:
        raise SystemExit(f"{workload}: the child process failed with {exit_code}")
    return {
        "workload": workload,
        "peak_gib": usage.ru_maxrss * MAXRSS_UNIT / 2**30,
        "cpu_seconds": usage.ru_utime + usage.ru_stime,
        "finished": finished,
    }


def table(rows: Sequence[dict[str, Any]]) -> Iterator[list[str]]:
    for row in rows:
        ended = "finished" if row["finished"] else "stopped by the time limit"
        yield [
            row["workload"],
            f"{row['peak_gib']:.2f} GiB",
            f"{row['cpu_seconds']:.1f} s",
            ended,
        ]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = results.parser(__doc__, repetitions=1)
    parser.add_argument("--width", type=int, default=704, help="704: 1M parameters")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=120.0, help="time limit")
    parser.add_argument("--workload", choices=WORKLOADS, help="run only this, here")
    options = parser.parse_args(arguments)
    if options.workload is not None:
        run_workload(options.workload, options.width, options.batch)
        return

    rows = [
        peak_of_child(workload, options)
        for _ in range(options.repetitions)
        for workload in WORKLOADS
    ]
    parameters = 2 * (options.width + 1) * options.width + (options.width + 1) * 10
    print(f"{parameters:,} parameters, float32, batch {options.batch}\n")
    results.print_table(["workload", "peak memory", "cpu time", "ended"], table(rows))
    settings = {
        "parameters": parameters,
        "width": options.width,
        "batch": options.batch,
        "time_limit_seconds": options.seconds,
    }
    results.write(options.output, "memory", results.environment(), settings, rows)


if __name__ == "__main__":
    main()
