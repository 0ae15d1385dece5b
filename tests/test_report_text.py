"""What people read of a gradient check, character by character.

The texts are in ``golden/``. After a change that is meant, look at what has changed:

    JAXCHECK_UPDATE_GOLDEN=1 pytest tests/test_report_text.py && git diff tests/golden
"""

import dataclasses
import io
import os
import pathlib
import re

import jax
import pytest

from jaxcheck.gradients.report import Coordinate, GradientReport, LeafReport
from jaxcheck.gradients.text import as_line, as_text, print_report
from jaxcheck.reports.tables import (
    WIDTH,
    Row,
    Span,
    Table,
    broken_name,
    plain_text,
    wrapped,
)
from jaxcheck.reports.values import EquationSite, Finding, Verdict

GOLDEN = pathlib.Path(__file__).parent / "golden"
NAN = float("nan")
ESCAPE_CODE = re.compile(r"\x1b\[[0-9;]*m")


def leaf(path, shape, verdict=Verdict.CORRECT, **values):
    """A leaf of which every coordinate was compared; ``values`` change that."""
    size = 1
    for length in shape:
        size *= length
    defaults = {
        "dtype": "float32",
        "size": size,
        "checked": size,
        "method": "exhaustive",
        "relative_error": 2.1e-10,
        "error_bar": 4e-11,
        "bound": 2.5e-10,
        "confidence": 1.0,
        "precision": 1.3e-7,
    }
    return LeafReport(path=path, shape=shape, verdict=verdict, **(defaults | values))


def not_checked(path, dtype, reason):
    return LeafReport(
        path=path,
        shape=(),
        dtype=dtype,
        size=1,
        checked=0,
        method="none",
        verdict=Verdict.NOT_CHECKED,
        reason=reason,
    )


def report(verdict, *leaves, **values):
    defaults = {
        "loss": 2.302585,
        "relative_difference": 2.3e-10,
        "grade": "below 1e-7",
        "evaluations": 8324,
        "seconds": 2.345,
        "call": "jaxcheck.check(loss_fn, params, batch)",
        "dtypes": ("float32",),
        "key_data": (0, 0),
        "versions": (("jaxcheck", "0.1.0"), ("jax", "0.10.1"), ("jaxlib", "0.10.1")),
        "device": "cpu",
    }
    return GradientReport(verdict=verdict, leaves=leaves, **(defaults | values))


BAD_KERNEL = leaf(
    "['dense0']['kernel']",
    (64, 64),
    Verdict.WRONG,
    relative_error=0.39,
    error_bar=6e-11,
    failing=1024,
    worst=Coordinate(
        index=(3, 17), autodiff=0.21472, numerical=0.49123, error_bar=2.6e-11
    ),
)
BAD_TANH = EquationSite(
    primitive="custom_vjp_call",
    fault="the rule of custom_vjp `bad_tanh` disagrees with its own function",
    rule="bad_tanh",
    file="src/model.py",
    line=12,
    scope="MLP/dense0",
    iteration=(3,),
    equation="  %1:f32[32,64] = add %0 bias\n> %2:f32[32,64] = "
    "custom_vjp_call[bad_tanh] %1\n  %3:f32[32,10] = dot_general %2 kernel",
    derivative="bad_tanh_bwd",
    derivative_file="src/model.py",
    derivative_line=9,
    relative_error=0.39,
    cures=True,
    details=(
        "at x[0, 3] = -8.30e-01 the rule gives 4.650e-01, the function's derivative is "
        "5.350e-01 ± 2e-10",
        "without this rule the gradient is correct (relative error 4e-10)",
    ),
)


def correct():
    return report(
        Verdict.CORRECT,
        leaf("['dense0']['bias']", (64,)),
        leaf("['dense0']['kernel']", (64, 64), relative_error=3.9e-10, error_bar=6e-11),
        leaf("['dense1']['bias']", (10,), relative_error=4.02e-12, error_bar=3.1e-11),
        leaf("['dense1']['kernel']", (64, 10), relative_error=0.0, error_bar=2e-11),
    )


def wrong():
    return report(
        Verdict.WRONG,
        leaf("['dense0']['bias']", (64,)),
        BAD_KERNEL,
        leaf("['dense1']['bias']", (10,)),
        leaf("['dense1']['kernel']", (64, 10)),
        not_checked("['step']", "int32", "an integer has no derivative"),
        relative_difference=0.24,
        grade="above 1e-2",
    )


def inconclusive():
    return report(
        Verdict.INCONCLUSIVE,
        leaf("['scale']", ()),
        leaf(
            "['table']",
            (1000, 16),
            Verdict.INCONCLUSIVE,
            method="sampled",
            checked=64,
            relative_error=0.012,
            error_bar=0.034,
            bound=None,
            confidence=None,
            worst=Coordinate(
                index=(731, 4), autodiff=1.25e-9, numerical=2e-9, error_bar=7.1e-9
            ),
            reason=(
                "the loss carries noise of 3e-07, so that no step gives a difference "
                "that is known better than the gradient is large"
            ),
        ),
        findings=(
            Finding(
                kind="noise",
                leaf="['table']",
                message="Repeated evaluations differ by 3e-07 of the loss.",
                site=EquationSite(primitive="pure_callback", file="data.py", line=88),
                remedy="make the callback return the same values for the same input.",
            ),
        ),
        relative_difference=0.011,
        grade="above 1e-2",
    )


def mixed():
    """Everything at once."""
    return report(
        Verdict.WRONG,
        leaf("['dense0']['bias']", (64,), precision=2.1e-2),
        dataclasses.replace(
            BAD_KERNEL, pattern="autodiff is 0.437 times the truth", precision=7.13e-2
        ),
        leaf(
            "['scale']",
            (),
            Verdict.WRONG,
            relative_error=1e-6,
            error_bar=3e-11,
            failing=1,
            precision=1e-3,
            worst=Coordinate(
                index=(), autodiff=1.250001, numerical=1.25, error_bar=3e-11
            ),
        ),
        leaf(
            "['shift']",
            (4,),
            Verdict.INCONCLUSIVE,
            relative_error=None,
            error_bar=None,
            precision=None,
            reason="the loss jumps at these parameters: there is nothing to compare",
        ),
        not_checked("['step']", "int32", "an integer has no derivative"),
        not_checked("['epoch']", "int32", "an integer has no derivative"),
        not_checked("['key']", "key<fry>", "a random key has no derivative"),
        findings=(
            Finding(
                kind="wrong_derivative",
                leaf="['dense0']['kernel']",
                message="1,024 of 4,096 coordinates disagree by a factor of 0.437.",
                site=BAD_TANH,
            ),
            Finding(
                kind="detached",
                leaf="['encoder']['w']",
                message=(
                    "stop_gradient removes 41 % of the gradient of this leaf and 3 % "
                    "of that of ['encoder']['b']. If the target network is meant to be "
                    "constant, all is well."
                ),
                site=EquationSite(
                    primitive="stop_gradient", file="vae.py", line=40, scope="Encoder"
                ),
                remedy="pass stop_gradient='transparent' to count such a cut as wrong.",
            ),
            Finding(
                kind="nondeterministic",
                message="Two calls with the same arguments give 2.302 and 2.317.",
            ),
        ),
        culprits=(
            BAD_TANH,
            EquationSite(
                primitive="dot_general", file="model.py", line=31, cures=False
            ),
        ),
        relative_difference=0.24,
        grade="above 1e-2",
        dtypes=("bfloat16", "float32"),
        call="jaxcheck.check(loss_fn, params, batch, mode='exhaustive')",
        key_data=(17, 4000000000),
        device="gpu",
        seconds=201.0,
    )


def many_leaves():
    """300 leaves, one of them wrong; the worst correct ones are at both ends."""
    leaves = [
        leaf(
            f"['params']['layers_{number}']['attention']['query']['kernel']",
            (256, 256),
            relative_error=1e-10 + 1e-12 * abs(number - 150),
            error_bar=2e-11,
        )
        for number in range(300)
    ]
    leaves[123] = dataclasses.replace(BAD_KERNEL, path=leaves[123].path)
    return report(Verdict.WRONG, *leaves, evaluations=39_321_603, seconds=7500.0)


def directional():
    return report(
        Verdict.CORRECT,
        leaf(
            "['embed']",
            (50000, 512),
            method="directional",
            bound=3.02e-9,
            confidence=0.999,
        ),
        leaf("['norm']['scale']", (512,), method="sampled", checked=32),
        leaf("['norm']['bias']", (512,), bound=1.2e-10),
        call="jaxcheck.check(loss_fn, params, batch, mode='directional')",
        evaluations=41,
        seconds=0.4,
    )


def complex_leaves():
    return report(
        Verdict.WRONG,
        leaf(
            "[0].kernel",
            (8, 20),
            Verdict.WRONG,
            dtype="complex64",
            relative_error=2.0,
            error_bar=1e-10,
            pattern="the conjugate is missing",
            failing=160,
            worst=Coordinate(
                index=(3, 17),
                part="imag",
                autodiff=-0.5,
                numerical=0.5,
                error_bar=1e-11,
            ),
        ),
        leaf(
            "[1].phase",
            (),
            Verdict.WRONG,
            dtype="complex64",
            relative_error=1.0,
            error_bar=0.0,
            worst=Coordinate(
                index=(), part="real", autodiff=0.0, numerical=1e-300, error_bar=0.0
            ),
        ),
        relative_difference=1.0,
        grade="above 1e-2",
        dtypes=("complex64",),
        call="jaxcheck.check(loss_fn, params)",
    )


def not_finite():
    return report(
        Verdict.WRONG,
        leaf(
            "",
            (4096,),
            Verdict.WRONG,
            relative_error=NAN,
            error_bar=NAN,
            precision=NAN,
            failing=4096,
            worst=Coordinate(
                index=(0,), autodiff=NAN, numerical=float("-inf"), error_bar=NAN
            ),
            reason="autodiff gives NaN in 4,096 coordinates",
        ),
        findings=(
            Finding(
                kind="nan_gradient",
                leaf="",
                message="The gradient is NaN although the loss is finite.",
                remedy="apply jnp.where to the argument of the root, not its result.",
            ),
        ),
        relative_difference=NAN,
        grade=None,
        call="jaxcheck.check(<lambda>, params)",
        evaluations=1,
        seconds=0.0001,
        key_data=(),
    )


def only_leaf():
    return report(Verdict.CORRECT, leaf("", (3,)), precision="native", key_data=(0, 7))


def long_names():
    return report(
        Verdict.WRONG,
        leaf("['params']['head']['bias']", (10,)),
        dataclasses.replace(
            BAD_KERNEL,
            path="['params']['TransformerEncoder_0']['EncoderBlock_11']"
            "['MultiHeadDotProductAttention_0']['query']['kernel']",
        ),
        culprits=(
            EquationSite(
                primitive="scan",
                file="/home/someone/projects/a_rather_long_name/experiments/2024/"
                "sources/transformer/attention_with_rotary_positions.py",
                line=1234,
                equation="> %0:f32[3] = scan " + " ".join(["params['kernel']"] * 20),
            ),
        ),
    )


REPORTS = {
    make.__name__: make
    for make in (
        correct,
        wrong,
        inconclusive,
        mixed,
        many_leaves,
        directional,
        complex_leaves,
        not_finite,
        only_leaf,
        long_names,
    )
}


@pytest.mark.parametrize("name", REPORTS)
def test_text_is_the_golden_one(name):
    golden = GOLDEN / f"{name}.txt"
    text = f"{REPORTS[name]()}\n"
    if os.environ.get("JAXCHECK_UPDATE_GOLDEN") == "1":
        golden.write_text(text, encoding="utf-8")
    assert text == golden.read_text(encoding="utf-8")


def test_every_golden_text_belongs_to_a_report():
    assert {path.stem for path in GOLDEN.glob("*.txt")} == set(REPORTS)


# ---- where it is drawn ---------------------------------------------------------------


@pytest.mark.parametrize("name", REPORTS)
def test_terminal_adds_nothing_but_color(name, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    stream = io.StringIO()
    print_report(REPORTS[name](), stream)
    assert ESCAPE_CODE.search(stream.getvalue())
    assert ESCAPE_CODE.sub("", stream.getvalue()) == f"{REPORTS[name]()}\n"


def test_verdicts_have_their_color(monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    stream = io.StringIO()
    print_report(mixed(), stream)
    assert "\x1b[32mcorrect\x1b[0m" in stream.getvalue()
    assert "\x1b[1;31mWRONG\x1b[0m" in stream.getvalue()
    assert "\x1b[33minconclusive\x1b[0m" in stream.getvalue()


@pytest.mark.parametrize("name", REPORTS)
@pytest.mark.parametrize("environment", [{}, {"COLUMNS": "40"}, {"TERM": "dumb"}])
def test_file_gets_the_plain_text(name, environment, monkeypatch, tmp_path):
    monkeypatch.delenv("FORCE_COLOR", raising=False)
    for variable, value in environment.items():
        monkeypatch.setenv(variable, value)
    path = tmp_path / "report.txt"
    with path.open("w", encoding="utf-8") as file:
        print_report(REPORTS[name](), file)
    assert path.read_text(encoding="utf-8") == f"{REPORTS[name]()}\n"


@pytest.mark.parametrize("environment", [{"COLUMNS": "40"}, {"FORCE_COLOR": "1"}])
def test_str_ignores_the_environment(environment, monkeypatch):
    before = str(mixed())
    for variable, value in environment.items():
        monkeypatch.setenv(variable, value)
    assert str(mixed()) == before
    assert "\x1b" not in before


def test_narrow_terminal_gets_narrow_paragraphs(monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "72")
    monkeypatch.setenv("TERM", "xterm-256color")
    stream = io.StringIO()
    print_report(inconclusive(), stream)
    lines = ESCAPE_CODE.sub("", stream.getvalue()).splitlines()
    assert max(len(line) for line in lines) <= 72


def test_stream_without_unicode_gets_ascii():
    raw = io.BytesIO()
    with io.TextIOWrapper(raw, encoding="ascii") as stream:
        print_report(directional(), stream)
        stream.flush()
        text = raw.getvalue().decode("ascii")
    assert "<= 3.1e-09 (99.9 %)" in text
    assert "2.1e-10 +- 4e-11" in text


# ---- layout --------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(set(REPORTS) - {"long_names"}))
def test_lines_fit_into_the_page_and_end_without_spaces(name):
    for line in str(REPORTS[name]()).splitlines():
        assert len(line) <= WIDTH
        assert line == line.rstrip()


def test_correct_report_is_calm():
    assert len(str(correct()).splitlines()) <= 12


def test_long_file_place_stays_whole():
    place = "attention_with_rotary_positions.py:1234"
    assert any(line.endswith(place) for line in str(long_names()).splitlines())


def test_long_path_is_broken_between_keys_only():
    lines = str(long_names()).splitlines()
    start = next(n for n, line in enumerate(lines) if "TransformerEncoder" in line)
    name = lines[start].strip() + lines[start + 1].strip()
    assert name == long_names().leaves[1].path


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("['a']['b']", ["['a']", "  ['b']"]),
        ("['a.b[0]']['c']", ["['a.b[0]']", "  ['c']"]),
        (".layers[0].weight", [".layers", "  [0]", "  .weight"]),
        ("net/~/linear_0", ["net/~/linear_0"]),
        ("['open", ["[", "  'open"]),
    ],
)
def test_keys_of_a_name(name, parts):
    assert broken_name(name, 1) == parts
    assert broken_name(name, WIDTH) == [name]


def test_wide_characters_are_aligned():
    table = Table(("name", "n"), (Row((Span("层"), Span("1"))),))
    assert plain_text([table]) == "  name  n\n  层    1"


def test_text_that_looks_like_markup_is_shown_as_it_is():
    stream = io.StringIO()
    path = "['[bold]w[/bold]']"
    print_report(report(Verdict.CORRECT, leaf(path, (1,))), stream)
    assert path in stream.getvalue()


def test_number_is_not_parted_from_its_error_bar():
    words = "x" * 10
    assert wrapped(f"{words} 4.9e-01 ± 3e-11, 5 %, [3, 17]", width=10) == [
        words,
        "4.9e-01 ± 3e-11,",
        "5 %,",
        "[3, 17]",
    ]


# ---- what is said --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("verdicts", "headline"),
    [
        ("c", "the only leaf has a correct gradient"),
        ("cc", "both leaves have a correct gradient"),
        ("ccc", "all 3 leaves have a correct gradient"),
        ("ccn", "both leaves have a correct gradient"),
        ("w", "the only leaf has a wrong gradient"),
        ("wc", "1 of 2 leaves has a wrong gradient"),
        ("wwc", "2 of 3 leaves have a wrong gradient"),
        ("www", "all 3 leaves have a wrong gradient"),
        ("wic", "1 of 3 leaves has a wrong gradient, 1 inconclusive"),
        ("i", "inconclusive: the only leaf could not be decided"),
        ("icc", "inconclusive: 1 of 3 leaves could not be decided"),
        ("iic", "inconclusive: 2 of 3 leaves could not be decided"),
        ("ii", "inconclusive: both leaves could not be decided"),
    ],
)
def test_headline_counts_leaves(verdicts, headline):
    meaning = {
        "c": Verdict.CORRECT,
        "w": Verdict.WRONG,
        "i": Verdict.INCONCLUSIVE,
        "n": Verdict.NOT_CHECKED,
    }
    leaves = [leaf(f"[{n}]", (2,), meaning[v]) for n, v in enumerate(verdicts)]
    overall = next(meaning[v] for v in "wic" if v in verdicts)
    text = str(report(overall, *leaves))
    assert text.splitlines()[0].startswith(f"jaxcheck: {headline}")
    assert headline in repr(report(overall, *leaves))


def test_headline_where_no_leaf_explains_the_verdict():
    good = leaf("['w']", (2,))
    finding = Finding(kind="nondeterministic", message="Two calls differ.")
    unsure = report(Verdict.INCONCLUSIVE, good, findings=(finding,))
    assert "jaxcheck: inconclusive: nondeterministic, see below" in str(unsure)
    assert "jaxcheck: the gradient is wrong, see below" in str(
        report(Verdict.WRONG, good)
    )
    assert str(report(Verdict.INCONCLUSIVE, good)).startswith(
        "jaxcheck: inconclusive  "
    )


def test_report_without_a_checked_leaf():
    empty = report(
        Verdict.INCONCLUSIVE,
        not_checked("['w']", "float32", "the budget is spent"),
        relative_difference=None,
        grade=None,
    )
    assert str(empty).startswith("jaxcheck: inconclusive: no leaf was checked")
    assert "Not checked: ['w'] float32 (the budget is spent)" in str(empty)
    assert "Relative difference" not in str(empty)


@pytest.mark.parametrize("name", REPORTS)
def test_repr_is_one_line(name):
    line = as_line(REPORTS[name]())
    assert line == repr(REPORTS[name]())
    assert line.startswith("<GradientReport: ")
    assert "\n" not in line


def test_no_failing_leaf_is_folded():
    leaves = [leaf(f"[{n}]", (2,), Verdict.WRONG) for n in range(50)]
    leaves += [leaf(f"[{n}]", (2,), Verdict.INCONCLUSIVE) for n in range(50, 100)]
    leaves += [leaf(f"[{n}]", (2,)) for n in range(100, 400)]
    leaves += [not_checked(f"[{n}]", "int32", None) for n in range(400, 450)]
    text = as_text(report(Verdict.WRONG, *leaves))
    assert text.count("WRONG") == 50
    assert text.count("  inconclusive\n") == 50
    assert "… and 295 more, all correct" in text
    unmentioned = [n for n in [*range(100), *range(400, 450)] if f"[{n}]" not in text]
    assert unmentioned == []


def test_worst_correct_leaves_stay_visible():
    leaves = [leaf(f"[{n}]", (2,), relative_error=1e-12 * n) for n in range(100)]
    leaves[7] = dataclasses.replace(leaves[7], relative_error=None)
    text = str(report(Verdict.CORRECT, *leaves))
    shown = re.findall(r"^  (\[\d+\])", text, flags=re.MULTILINE)
    assert shown == ["[7]", "[96]", "[97]", "[98]", "[99]"]


def test_twenty_correct_leaves_are_all_shown():
    leaves = [leaf(f"[{n}]", (2,)) for n in range(20)]
    assert "more, all correct" not in str(report(Verdict.CORRECT, *leaves))


def test_findings_of_one_kind_are_folded():
    many = tuple(
        Finding(kind="precision_loss", leaf=f"[{n}]", message="Off.") for n in range(9)
    )
    other = Finding(kind="kink", message="At a kink.")
    text = str(report(Verdict.CORRECT, leaf("[0]", (2,)), findings=(*many, other)))
    assert text.count("precision_loss in [") == 4
    assert "… and 5 more precision_loss, in report.findings" in text
    assert "kink\n    At a kink." in text


def test_culprits_are_folded():
    sites = tuple(EquationSite(primitive=f"p{n}") for n in range(7))
    text = str(report(Verdict.WRONG, BAD_KERNEL, culprits=sites))
    said = "{} makes the gradient wrong\n"
    listed = "And: ".join(said.format(f"p{n}") for n in range(4))
    assert f"Where: {listed}… and 3 more" in text


@pytest.mark.parametrize(
    ("precision", "shown"), [(None, False), (1e-6, False), (0.05, True), (NAN, True)]
)
def test_precision_is_shown_where_it_matters(precision, shown):
    text = str(report(Verdict.CORRECT, leaf("[0]", (2,), precision=precision)))
    assert ("precision" in text.split("\n\n")[1]) is shown


def test_precision_is_shown_where_a_finding_speaks_of_it():
    finding = Finding(kind="precision_loss", message="Off.")
    leaves = (leaf("[0]", (2,), precision=2e-5), leaf("[1]", (2,), precision=None))
    text = str(report(Verdict.CORRECT, *leaves, findings=(finding,)))
    assert "2.0e-05" in text


@pytest.mark.parametrize(
    ("values", "line"),
    [
        ({}, "loss_fn, params, batch, key=jax.random.key(0))"),
        ({"key_data": (0, 2**31 - 1)}, "batch, key=jax.random.key(2147483647))"),
        ({"key_data": (0, 2**31)}, "wrap_key_data(np.uint32([0, 2147483648])))"),
        ({"key_data": (0, 1, 2, 3)}, "wrap_key_data(np.uint32([0, 1, 2, 3])))"),
        ({"key_data": ()}, "Reproduce: jaxcheck.check(loss_fn, params, batch)\n"),
        ({"call": "jaxcheck.check(f, p, key=k)"}, "jaxcheck.check(f, p, key=k)\n"),
    ],
)
def test_reproduction(values, line):
    text = str(report(Verdict.CORRECT, leaf("[0]", (2,)), **values))
    assert line in text.replace("\n    ", " ")


@pytest.mark.parametrize("seed", [0, 42, 2**31 - 1])
def test_reproduced_key_is_the_same(seed):
    words = tuple(jax.random.key_data(jax.random.key(seed)).tolist())
    assert words == (0, seed)


@pytest.mark.parametrize(
    ("call", "asked"),
    [
        ("jaxcheck.check(loss_fn, params)", "loss_fn(params) ·"),
        ("jaxcheck.check(model.loss, p, (x, y), budget=9)", "model.loss(p, (x, y)) ·"),
        ("jaxcheck.check()", "jaxcheck.check() ·"),
        ("not a call", "not a call ·"),
    ],
)
def test_what_was_asked(call, asked):
    assert asked in str(report(Verdict.CORRECT, leaf("[0]", (2,)), call=call))


def test_singular_and_plural():
    leaves = (leaf("[0]", (1, 2), Verdict.WRONG, failing=1),)
    text = str(report(Verdict.WRONG, *leaves, evaluations=1))
    assert "1 of 2 checked coordinates disagrees" in text
    assert "Cost: 1 loss evaluation," in text
