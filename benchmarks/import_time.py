"""Time ``import jaxcheck`` against ``import jax, optax``, in fresh interpreters.

What jaxcheck costs on top of them is measured in the interpreter that has just imported
both. A second interpreter imports jaxcheck alone. The two are run in pairs, so that a
slow spell of the machine hits both.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from typing import Any

from benchmarks import results

# Each name is imported in turn; its own time and the heavy packages it brought.
CHILD = """
import importlib, json, sys, time
seconds = {}
for name in sys.argv[1:]:
    start = time.perf_counter()
    importlib.import_module(name)
    seconds[name] = time.perf_counter() - start
heavy = [name for name in ("flax", "matplotlib", "rich") if name in sys.modules]
print(json.dumps({"seconds": seconds, "heavy": heavy}))
"""


def import_in_fresh_process(*names: str) -> dict[str, Any]:
    command = [sys.executable, "-c", CHILD, *names]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return json.loads(done.stdout)


def measure(repetitions: int) -> tuple[list[dict[str, Any]], list[str]]:
    """Rows of seconds, and the heavy packages that ``import jaxcheck`` brings."""
    for names in (("jax", "optax", "jaxcheck"), ("jaxcheck",)):
        import_in_fresh_process(*names)  # fill the disk cache, write bytecode
    jax_optax: list[float] = []
    on_top: list[float] = []
    alone: list[float] = []
    heavy: list[str] = []
    for _ in range(repetitions):
        after = import_in_fresh_process("jax", "optax", "jaxcheck")["seconds"]
        jax_optax.append(after["jax"] + after["optax"])
        on_top.append(after["jaxcheck"])
        child = import_in_fresh_process("jaxcheck")
        alone.append(child["seconds"]["jaxcheck"])
        heavy = child["heavy"]
    return [
        row("import jax, optax", jax_optax, jax_optax),
        row("import jaxcheck, after jax and optax", on_top, jax_optax),
        row("import jaxcheck, alone", alone, jax_optax),
    ], heavy


def row(
    statement: str, seconds: Sequence[float], reference: Sequence[float]
) -> dict[str, Any]:
    pairs = zip(seconds, reference, strict=True)
    return {
        "statement": statement,
        "seconds": list(seconds),
        "of_jax_optax": [ours / theirs for ours, theirs in pairs],
    }


def table(rows: Sequence[dict[str, Any]]) -> Iterator[list[str]]:
    for r in rows:
        ratio = results.spread(r["of_jax_optax"], "×")
        yield [r["statement"], results.spread(r["seconds"]), ratio]


def main(arguments: Sequence[str] | None = None) -> None:
    options = results.parser(__doc__, repetitions=9).parse_args(arguments)
    rows, heavy = measure(options.repetitions)
    results.print_table(["statement", "seconds", "of jax, optax"], table(rows))
    print(
        f"\n`import jaxcheck` alone also imports: {', '.join(heavy) or 'nothing heavy'}"
    )
    settings = {"repetitions": options.repetitions, "heavy_imports": heavy}
    results.write(options.output, "import_time", results.environment(), settings, rows)


if __name__ == "__main__":
    main()
