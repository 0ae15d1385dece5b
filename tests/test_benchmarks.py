"""The benchmarks run on tiny sizes and write what they promise. No time is asserted."""

import json
import pathlib
import subprocess
import sys

import jax
import pytest

ROOT = pathlib.Path(__file__).parent.parent

COMMANDS = {
    "audit_faults": ["--right-repetitions", "1"],
    "auditing": ["--only", "width 64", "--seconds", "1", "--processes", "1"],
    "monitoring": ["--only", "0.7M", "--seconds", "1", "--processes", "2"],
    "peers": ["--sizes", "6,5,4", "--batch", "3"],
    "import_time": [],
    "memory": ["--width", "8", "--batch", "2", "--seconds", "120"],
    "scaling": ["--sizes", "200", "--batch", "2"],
}


@pytest.fixture(scope="module", params=COMMANDS)
def benchmark(request, tmp_path_factory):
    """The name of a benchmark, what it printed, and what it wrote."""
    name = request.param
    output = tmp_path_factory.mktemp("results")
    command = [sys.executable, "-m", f"benchmarks.{name}", *COMMANDS[name]]
    command += ["--repetitions", "1", "--output", str(output)]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    (path,) = output.iterdir()
    assert path.name.startswith(f"{name}-")
    return name, done.stdout, json.loads(path.read_text())


def test_result_names_benchmark_versions_and_machine(benchmark):
    name, _, written = benchmark
    assert written["benchmark"] == name
    environment = written["environment"]
    assert environment["versions"].keys() >= {"python", "jax", "jaxlib", "numpy"}
    assert environment["device"]
    assert environment["processor"]
    assert environment["cpus"] >= 1


def test_every_row_is_in_the_table(benchmark):
    name, printed, written = benchmark
    label = {
        "audit_faults": "kind",
        "auditing": "model",
        "monitoring": "model",
        "peers": "checker",
        "import_time": "statement",
        "memory": "workload",
        "scaling": "family",
    }[name]
    assert written["rows"]
    for row in written["rows"]:
        assert row[label] in printed


TIMED = [name for name in COMMANDS if name != "audit_faults"]


@pytest.mark.parametrize("benchmark", TIMED, indirect=True)
def test_every_measurement_is_positive(benchmark):
    _, _, written = benchmark
    for row in written["rows"]:
        measured = jax.tree.leaves(row.get("seconds", row.get("cpu_seconds")))
        assert measured
        assert all(value > 0 for value in measured)


@pytest.mark.parametrize("benchmark", ["audit_faults"], indirect=True)
def test_large_faults_are_found_and_no_right_gradient_is_called_wrong(benchmark):
    _, _, written = benchmark
    for row in written["rows"]:
        assert row["found"]["times four"] == 1.0
        assert row["right"]["wrong"] == 0


@pytest.mark.parametrize("benchmark", ["peers"], indirect=True)
def test_peers_are_run_or_listed_as_not_installed(benchmark):
    _, printed, written = benchmark
    ran = " ".join(row["checker"] for row in written["rows"])
    for package in ("jaxcheck", "torch", "scipy", "jax"):
        missing = package in written["settings"]["not_installed"]
        assert missing or package in ran
        assert not missing or "not installed" in printed


@pytest.mark.parametrize("benchmark", ["peers"], indirect=True)
def test_jaxcheck_tells_the_right_gradient_from_the_wrong_one(benchmark):
    _, _, written = benchmark
    ours = [row for row in written["rows"] if row["checker"].startswith("jaxcheck")]
    assert len(ours) == 4
    for row in ours:
        assert row["verdict"] == "correct"
        assert row["verdict_with_fault"] == "wrong"


@pytest.mark.parametrize("benchmark", ["import_time"], indirect=True)
def test_import_brings_neither_flax_nor_matplotlib(benchmark):
    _, _, written = benchmark
    assert not {"flax", "matplotlib"} & set(written["settings"]["heavy_imports"])


@pytest.mark.parametrize("benchmark", ["memory"], indirect=True)
def test_memory_is_that_of_a_process_that_finished(benchmark):
    _, _, written = benchmark
    assert all(row["finished"] and row["peak_gib"] > 0 for row in written["rows"])


@pytest.mark.parametrize("benchmark", ["scaling"], indirect=True)
def test_scaling_covers_both_models(benchmark):
    _, _, written = benchmark
    assert [row["family"] for row in written["rows"]] == ["mlp", "transformer"]
    assert all(row["verdict"] == "correct" for row in written["rows"])
