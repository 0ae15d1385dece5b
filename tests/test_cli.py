"""The command line: exit status, options, targets, JSON, exceptions of the user."""

import inspect
import json
import subprocess
import sys
import textwrap

import jax
import pytest

from jaxcheck import checks, cli, doctor
from jaxcheck.checks import check
from jaxcheck.gradients.report import GradientReport
from jaxcheck.reports.values import Verdict

MODEL = """
import jax
import jax.numpy as jnp


@jax.custom_jvp
def double(x):
    return 2 * x


@double.defjvp
def double_jvp(primals, tangents):
    return 2 * primals[0], 3 * tangents[0]


def problem():
    return (lambda w, x: jnp.sum(jnp.sin(w) * x)), jnp.ones(3), jnp.arange(3.0)


def wrong():
    return (lambda w: jnp.sum(double(w["a"]))), {"a": jnp.ones(3)}


def with_aux():
    return (lambda w: (jnp.sum(w**2), "aux")), jnp.ones(3)


def loss_raises():
    def loss_fn(w):
        raise KeyError("no such layer")

    return loss_fn, jnp.ones(3)


def no_tuple():
    return jnp.sum


def no_function():
    return jnp.ones(3), jnp.sum


def raises():
    raise ZeroDivisionError("division of my data")


def leaves():
    raise SystemExit(0)


number = 3
"""


@pytest.fixture(autouse=True)
def _fresh_imports(monkeypatch, tmp_path):
    """Loading a problem adds to the import path and to the loaded modules."""
    monkeypatch.setattr(sys, "path", sys.path.copy())
    yield
    for name, module in list(sys.modules.items()):
        if str(getattr(module, "__file__", None)).startswith(str(tmp_path)):
            del sys.modules[name]


@pytest.fixture
def model(tmp_path):
    file = tmp_path / "model.py"
    file.write_text(MODEL)
    return file


@pytest.fixture
def asked(monkeypatch):
    """What the command line asks; the answer is CORRECT."""
    calls = []

    def record(*args, **keywords):
        calls.append((args, keywords))
        return GradientReport(verdict=Verdict.CORRECT, leaves=())

    monkeypatch.setattr(checks, "check", record)
    return calls


def run(*argv):
    """The exit status, argparse's own exits included."""
    try:
        return cli.main([str(part) for part in argv])
    except SystemExit as leaving:
        return leaving.code


# ---- exit status ---------------------------------------------------------------------


def test_correct_gradient(model, capsys):
    assert run("check", f"{model}:problem") == 0
    out, err = capsys.readouterr()
    assert out.startswith("jaxcheck: ")
    assert not err


def test_wrong_gradient(model, capsys):
    assert run("check", f"{model}:wrong") == 1
    out, err = capsys.readouterr()
    assert "['a']" in out
    assert "WRONG" in out
    assert not err


@pytest.mark.parametrize(
    ("verdict", "status"),
    [
        (Verdict.CORRECT, 0),
        (Verdict.WRONG, 1),
        (Verdict.INCONCLUSIVE, 2),
        (Verdict.NOT_CHECKED, 2),
    ],
)
def test_status_is_the_verdict(model, monkeypatch, verdict, status):
    report = GradientReport(verdict=verdict, leaves=())
    monkeypatch.setattr(checks, "check", lambda *_, **__: report)
    assert run("check", f"{model}:problem") == status


@pytest.mark.parametrize(
    "argv",
    [
        (),
        ("verify",),
        ("check",),
        ("check", "model.py:problem", "--mode", "thorough"),
        ("check", "model.py:problem", "--samples", "many"),
        ("check", "model.py:problem", "--speed"),
        ("doctor", "model.py:problem"),
    ],
)
def test_bad_usage(argv, capsys):
    """Argparse alone would exit with 2, which is INCONCLUSIVE."""
    assert run(*argv) == 3
    assert capsys.readouterr().err.startswith("usage: jaxcheck")


def test_help(capsys):
    assert run("check", "--help") == 0
    assert "exit status: 0 correct, 1 wrong, 2 incon" in capsys.readouterr().out


def test_as_a_process(model):
    """The module runs, and the shell sees the status."""
    argv = [sys.executable, "-m", "jaxcheck", "check", f"{model}:wrong", "--json", "-"]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stderr
    assert json.loads(done.stdout)["verdict"] == "wrong"
    assert "['a']" in done.stderr


# ---- options -------------------------------------------------------------------------


def test_what_is_not_given_is_left_to_check(model, asked):
    assert run("check", f"{model}:problem") == 0
    ((args, keywords),) = asked
    assert callable(args[0])
    assert [x.tolist() for x in args[1:]] == [[1, 1, 1], [0, 1, 2]]
    assert keywords == {}


def test_every_keyword_of_check_is_an_option(model, asked):
    options = (
        "--mode sampled --samples 5 --directions 7 --precision native "
        "--stop-gradient transparent --rtol 1e-3 --atol 1e-9 --budget 100 --seed 3 "
        "--expect-zero ['a'] --expect-zero model.py:3 "
        "--has-aux --no-locate --no-progress"
    )
    assert run("check", f"{model}:problem", *options.split()) == 0
    ((_, keywords),) = asked
    key = keywords.pop("key")
    assert jax.random.key_data(key).tolist() == [0, 3]
    assert keywords == {
        "mode": "sampled",
        "samples": 5,
        "directions": 7,
        "precision": "native",
        "stop_gradient": "transparent",
        "rtol": 1e-3,
        "atol": 1e-9,
        "budget": 100,
        "expect_zero": ["['a']", "model.py:3"],
        "has_aux": True,
        "locate": False,
        "progress": False,
    }
    parameters = inspect.signature(check).parameters.values()
    taken = {p.name for p in parameters if p.kind is p.KEYWORD_ONLY}
    assert taken == {"key", *keywords}


def test_progress_can_be_forced(model, asked):
    assert run("check", f"{model}:problem", "--progress") == 0
    assert asked[0][1] == {"progress": True}


def test_aux(model):
    assert run("check", f"{model}:with_aux", "--has-aux") == 0


def test_quiet(model, capsys):
    assert run("check", f"{model}:wrong", "--quiet") == 1
    assert capsys.readouterr() == ("", "")


# ---- JSON ----------------------------------------------------------------------------


def test_json_file(model, tmp_path, capsys):
    file = tmp_path / "report.json"
    assert run("check", f"{model}:wrong", "--json", file) == 1
    result = json.loads(file.read_text())
    assert result["verdict"] == "wrong"
    assert result["passed"] is False
    assert [leaf["path"] for leaf in result["leaves"]] == ["['a']"]
    assert "['a']" in capsys.readouterr().out


def test_json_has_standard_output_for_itself(tmp_path, capsys):
    """Even if the problem prints."""
    file = tmp_path / "loud.py"
    file.write_text(f"print('loading')\n{MODEL}")
    assert run("check", f"{file}:problem", "--json", "-") == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["verdict"] == "correct"
    assert err.startswith("loading\njaxcheck: ")


def test_json_file_that_cannot_be_written(model, tmp_path, capsys):
    file = tmp_path / "nowhere" / "report.json"
    assert run("check", f"{model}:problem", "--json", file) == 3
    error = capsys.readouterr().err
    assert error == (
        f"jaxcheck: `--json {file}` cannot be written: No such file or directory.\n"
    )


# ---- targets -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("{file}", "must be FILE.py:problem or package.module:problem; got `{file}`"),
        (":problem", "got `:problem`"),
        ("{file}:", "got `{file}:`"),
        ("{folder}/missing.py:problem", "`{folder}/missing.py` is not a file."),
        ("missing:problem", "no module `missing`; for a file write missing.py:problem"),
        ("jax.missing:problem", "There is no module `jax.missing`"),
        ("{file}:missing", "must name a function in `{file}`; got nothing of that"),
        ("{file}:number", "must name a function in `{file}`; got int"),
        ("{file}:no_tuple", "must return (loss_fn, params, *args), a function first"),
        ("{file}:no_function", "it returned (ArrayImpl, "),
    ],
)
def test_bad_target(model, target, message, capsys):
    names = {"file": model, "folder": model.parent}
    assert run("check", target.format(**names)) == 3
    out, err = capsys.readouterr()
    assert message.format(**names) in err
    assert err.startswith("jaxcheck: ")
    assert err.count("\n") == 1
    assert not out


def test_module(model, monkeypatch, asked):
    monkeypatch.chdir(model.parent)
    assert run("check", "model:problem") == 0
    assert len(asked) == 1


def test_module_in_a_package(model, monkeypatch, asked):
    package = model.parent / "package"
    package.mkdir()
    model.rename(package / "model.py")
    monkeypatch.chdir(package.parent)
    assert run("check", "package.model:problem") == 0
    assert len(asked) == 1


def test_file_imports_its_neighbors(model, asked):
    file = model.parent / "scripts.py"
    file.write_text("def problem():\n    import model\n    return model.problem()\n")
    assert run("check", f"{file}:problem") == 0
    assert len(asked) == 1


def test_file_with_the_name_of_a_library(tmp_path, asked):
    file = tmp_path / "optax.py"
    file.write_text(MODEL)
    library = sys.modules["optax"]
    assert run("check", f"{file}:problem") == 0
    assert sys.modules["optax"] is library
    assert len(asked) == 1


def test_file_with_a_dataclass(tmp_path, asked):
    """A dataclass with postponed annotations looks its module up."""
    file = tmp_path / "model.py"
    classes = """
        from __future__ import annotations

        import dataclasses

        import jax.numpy as jnp


        @dataclasses.dataclass
        class Config:
            width: int = 3


        def problem():
            return jnp.sum, jnp.ones(Config().width)
        """
    file.write_text(textwrap.dedent(classes))
    assert run("check", f"{file}:problem") == 0
    assert len(asked) == 1


# ---- exceptions of the user ----------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("raises", "ZeroDivisionError: division of my data"),
        ("leaves", "SystemExit: 0"),
        ("loss_raises", "KeyError: 'no such layer'"),
    ],
)
def test_exception_of_the_problem(model, name, message, capsys):
    """Ends with 3 and with the traceback, whatever was raised: never with an answer."""
    assert run("check", f"{model}:{name}") == 3
    out, err = capsys.readouterr()
    assert not out
    assert err.startswith("Traceback (most recent call last):\n")
    assert f'File "{model}"' in err
    assert message in err


def test_traceback_begins_in_the_users_file(model, capsys):
    run("check", f"{model}:raises")
    first = capsys.readouterr().err.splitlines()[1]
    assert first.startswith(f'  File "{model}", line ')


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("import a_library_that_is_missing\n", "No module named 'a_library_that_is_"),
        ("def problem(:\n", "SyntaxError: "),
        ("raise SystemExit\n", "SystemExit"),
    ],
)
@pytest.mark.parametrize("place", ["broken.py", "broken"])
def test_file_that_cannot_be_imported(
    tmp_path, monkeypatch, text, message, place, capsys
):
    (tmp_path / "broken.py").write_text(text)
    monkeypatch.chdir(tmp_path)
    assert run("check", f"{place}:problem") == 3
    out, err = capsys.readouterr()
    assert not out
    assert message in err
    assert "Traceback" in err or "SyntaxError" in err


def test_interrupt_goes_through(model, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(checks, "check", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run("check", f"{model}:problem")


def test_bad_input_is_one_message(model, capsys):
    assert run("check", f"{model}:problem", "--samples", "-1") == 3
    out, err = capsys.readouterr()
    assert not out
    assert err.startswith("jaxcheck: ")
    assert "samples" in err
    assert "Traceback" not in err


# ---- doctor --------------------------------------------------------------------------


def installation_with(outcome):
    probe = doctor.Probe(
        name="sums of numbers",
        affects_verdicts=True,
        consequence="A sum is wrong.",
        link=None,
        outcome=outcome,
        observed="1 + 1 was tried",
    )
    return doctor.Installation(
        python="3.11.7",
        platform="Linux",
        versions=(("jax", "0.10.1"),),
        devices=("cpu:0 (cpu)",),
        x64=False,
        probes=(probe,),
    )


@pytest.mark.parametrize(
    ("outcome", "status"), [(doctor.Outcome.OK, 0), (doctor.Outcome.TRAP, 2)]
)
def test_doctor(outcome, status, monkeypatch, tmp_path, capsys):
    installation = installation_with(outcome)
    monkeypatch.setattr(doctor, "examine", lambda: installation)
    file = tmp_path / "doctor.json"
    assert run("doctor", "--json", file) == status
    assert capsys.readouterr().out == f"{installation}\n"
    assert json.loads(file.read_text()) == installation.to_dict()


def test_doctor_writes_only_json_to_standard_output(monkeypatch, capsys):
    installation = installation_with(doctor.Outcome.OK)
    monkeypatch.setattr(doctor, "examine", lambda: installation)
    assert run("doctor", "--json", "-") == 0
    out, err = capsys.readouterr()
    assert json.loads(out) == installation.to_dict()
    assert err == f"{installation}\n"
