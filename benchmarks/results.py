"""What every benchmark writes down: times with their spread, a table, a JSON file.

The JSON holds the raw samples as well as the medians, with the versions, the device
and the thread counts, so that two files can be compared later.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import multiprocessing
import os
import pathlib
import platform
import re
import statistics
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Any

PACKAGES = (
    *("jaxcheck", "jax", "jaxlib", "numpy", "scipy", "torch", "optax", "flax"),
    *("numpyro", "distrax", "tfp-nightly"),
)


def parser(module_doc: str | None, repetitions: int) -> argparse.ArgumentParser:
    """An argument parser with the options that all benchmarks share."""
    summary = (module_doc or "").partition("\n\n")[0]
    result = argparse.ArgumentParser(description=summary)
    result.add_argument("--repetitions", type=int, default=repetitions)
    result.add_argument(
        "--output",
        type=pathlib.Path,
        default=pathlib.Path(__file__).parent / "results",
        help="directory of the JSON file",
    )
    return result


def add_processes(parser: argparse.ArgumentParser, number: int) -> None:
    """Let it be said in how many processes each row is measured."""
    parser.add_argument("--processes", type=int, default=number, help="for each row")


def apart(function: Callable[..., Any], *arguments: Any) -> Any:
    """``function(*arguments)``, in a process of its own.

    Where arrays come to lie in memory is settled once in a process, and makes a program
    some per cent faster or slower than its twin.
    """
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(function, arguments)


def in_processes(
    number: int, measure: Callable[..., dict[str, Any]], *arguments: Any
) -> dict[str, Any]:
    """The row that ``measure`` gives, with the ``"seconds"`` of so many processes."""
    rows = [apart(measure, *arguments) for _ in range(number)]
    return {**rows[0], "seconds": [row["seconds"] for row in rows]}


def ratios(row: dict[str, Any], variant: str, base: str) -> list[float]:
    """For each process, the median of what a variant takes in turns of another."""
    return [
        statistics.median(
            a / b for a, b in zip(timed[variant], timed[base], strict=True)
        )
        for timed in row["seconds"]
    ]


def seconds(row: dict[str, Any], variant: str) -> list[float]:
    """For each process, the median of what a variant takes."""
    return [statistics.median(timed[variant]) for timed in row["seconds"]]


def environment() -> dict[str, Any]:
    """Versions, device, processor and thread counts of this process."""
    # Imported here: a benchmark that measures child processes must stay small itself.
    import jax

    device = jax.devices()[0]
    result: dict[str, Any] = {
        "versions": {"python": platform.python_version()} | installed(PACKAGES),
        "device": device.device_kind,
        "platform": device.platform,
        "processor": processor(),
        "cpus": len(os.sched_getaffinity(0)),
        # Above the number of cpus, others were computing too and times mean little.
        "load_average": os.getloadavg()[0],
    }
    if "torch" in sys.modules:
        result["torch_threads"] = sys.modules["torch"].get_num_threads()
    return result


def installed(packages: Iterable[str]) -> dict[str, str]:
    """The versions of those of ``packages`` that are installed."""
    versions: dict[str, str] = {}
    for package in packages:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def processor() -> str:
    """The processor's name as Linux tells it, else what Python knows."""
    cpuinfo = pathlib.Path("/proc/cpuinfo")
    text = cpuinfo.read_text() if cpuinfo.exists() else ""
    match = re.search(r"model name\s*:\s*(.+)", text)
    return match[1] if match else platform.processor() or platform.machine()


def spread(samples: Sequence[float], unit: str = "") -> str:
    """``median (min–max)``, with three significant digits."""
    low, middle, high = min(samples), statistics.median(samples), max(samples)
    return f"{middle:.3g}{unit} ({low:.3g}–{high:.3g})"


def between(ratios: Sequence[float], digits: int = 3) -> str:
    """``median (min–max)`` of ratios, or the one that there is."""
    low, middle, high = (
        f"{f(ratios):.{digits}f}" for f in (min, statistics.median, max)
    )
    return middle if len(ratios) == 1 else f"{middle} ({low}–{high})"


def print_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print ``rows`` under ``header``, columns aligned."""
    lines = [header, *rows]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        cells = (cell.ljust(width) for cell, width in zip(line, widths, strict=True))
        print("  ".join(cells).rstrip())


def write(
    directory: pathlib.Path,
    name: str,
    environment: dict[str, Any],
    settings: dict[str, Any],
    rows: Sequence[dict[str, Any]],
    say: Callable[[str], None] = print,
) -> pathlib.Path:
    """Write one benchmark's JSON file and say where it is."""
    device = re.sub(r"[^a-z0-9]+", "-", environment["device"].lower()).strip("-")
    path = directory / f"{name}-{device}.json"
    content = {
        "benchmark": name,
        "environment": environment,
        "settings": settings,
        "rows": list(rows),
    }
    directory.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=2, allow_nan=False) + "\n")
    say(f"\nwritten to {path}")
    return path
