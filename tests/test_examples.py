"""What people copy works: examples, the code in README.md and docs/, and the links."""

import pathlib
import re
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parent.parent
EVERY = sorted((ROOT / "examples").glob("*.py"))
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]

# What a reader finds in the WRONG report of each example: leaves that the bug reaches,
# and one that it does not.
LEAVES = {
    "digits": (
        ["['hidden']['bias']", "['hidden']['kernel']"],
        "['output']['kernel']",
    ),
    "digits_cnn_linen": (
        ["['params']['Conv_0']['kernel']", "['params']['Conv_1']['kernel']"],
        "['params']['Dense_0']['kernel']",
    ),
    "digits_mlp_nnx": ([".hidden.kernel", ".norm.scale"], ".output.kernel"),
    "digits_rnn_scan": ([".input", ".recurrent", ".bias"], ".readout"),
}
# Their question is another one; each has a test of its own.
OTHERS = {
    "char_language_model",
    "dqn",
    "dropout_seed",
    "gan",
    "graph_attention",
    "optimizer",
    "q_learning",
    "remedies",
    "weight_decay",
}
# Two networks, and nineteen experiments, take some more lines.
LINES = {"gan": 140, "remedies": 210}
EXAMPLES = [example for example in EVERY if example.stem not in OTHERS]


def run(*command):
    return subprocess.run(
        [sys.executable, *map(str, command)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )


def row_of(leaf, report):
    """The line of the table that begins with ``leaf``."""
    rows = [line for line in report.splitlines() if line.strip().startswith(leaf)]
    assert len(rows) == 1, report
    return rows[0]


def is_name(example):
    return example.stem


@pytest.mark.parametrize("example", EXAMPLES, ids=is_name)
def test_example_prints_a_correct_and_a_wrong_report(example):
    done = run(example)
    assert done.returncode == 0, done.stderr
    right, wrong = done.stdout.split("With the planted bug")
    reached, not_reached = LEAVES[example.stem]
    assert "WRONG" not in right
    for leaf in (*reached, not_reached):
        assert row_of(leaf, right).endswith("correct")
    for leaf in reached:
        assert row_of(leaf, wrong).endswith("WRONG")
        after = wrong.partition(row_of(leaf, wrong))[2].splitlines()[1]
        assert re.search(r"autodiff \S+, numerical \S+ ± \S+", after)
    assert row_of(not_reached, wrong).endswith("correct")


@pytest.mark.parametrize("example", EXAMPLES, ids=is_name)
@pytest.mark.parametrize(("problem", "status"), [("problem", 0), ("problem_wrong", 1)])
def test_command_line_reads_the_problem_of_an_example(example, problem, status):
    done = run("-m", "jaxcheck", "check", f"{example}:{problem}")
    assert done.returncode == status, done.stderr


@pytest.mark.parametrize("example", EVERY, ids=is_name)
def test_example_is_short_and_told_apart(example):
    text = example.read_text()
    assert len(text.splitlines()) <= LINES.get(example.stem, 110)
    assert (example.stem in LEAVES) != (example.stem in OTHERS)


def test_example_of_a_missing_stop_gradient():
    example = ROOT / "examples" / "dqn.py"
    done = run(example)
    assert done.returncode == 0, done.stderr
    right, wrong = done.stdout.split("With the planted bug")
    assert "WRONG" not in right
    flow, report = wrong.split("jaxcheck: all 4 leaves have a wrong gradient")
    code = example.read_text().splitlines()
    target = next(k for k, line in enumerate(code, 1) if "batch.following)" in line)
    assert len(re.findall(rf" % .* dqn\.py:{target}  best = q_values", flow)) == 4
    assert row_of("['q']['w']", report).endswith("WRONG")
    assert f"through dot_general at dqn.py:{target}" in " ".join(report.split())


@pytest.mark.parametrize(("problem", "status"), [("problem", 0), ("problem_wrong", 1)])
def test_command_line_takes_an_expectation(problem, status):
    target = f"{ROOT / 'examples' / 'dqn.py'}:{problem}"
    expected = "dqn.py:bootstrapped_value"
    done = run("-m", "jaxcheck", "check", target, "--expect-zero", expected)
    assert done.returncode == status, done.stderr


def reports_of(name, *titles):
    """What an example prints below each title, on one line each, and its own lines."""
    example = ROOT / "examples" / f"{name}.py"
    done = run(example)
    assert done.returncode == 0, done.stderr
    pattern = "|".join(f"^{re.escape(title)}$" for title in titles)
    before, *reports = re.split(pattern, done.stdout, flags=re.M)
    assert (before, len(reports)) == ("", len(titles)), done.stdout
    return [" ".join(report.split()) for report in reports], example.read_text()


def line_with(text, code):
    """The number of the only line of ``code`` that contains ``text``."""
    [number] = [k for k, line in enumerate(code.splitlines(), 1) if text in line]
    return number


def test_example_of_a_softmax_over_the_wrong_axis_and_of_a_nan():
    titles = ("With the planted bug", "With a member without ties", "Fixed")
    (wrong, nan, fixed), code = reports_of("graph_attention", *titles)
    rule = line_with("def softmax_bwd_wrong", code)
    assert f"rule softmax_bwd_wrong, examples/graph_attention.py:{rule} " in wrong
    assert re.search(r"the cotangent of scores\[\d+, \d+\] = \S+ is \S+ by the", wrong)
    assert "without this rule the gradient is correct" in wrong
    born = line_with("jnp.exp(scores - scores.max", code)
    where = f"forward pass of sub examples/graph_attention.py:{born} `sub` of -inf"
    assert f"Where: NaN is born in the {where} and -inf is nan at [34, 0]" in nan
    assert fixed.startswith("jaxcheck: all 3 leaves have a correct gradient")


def test_example_of_weight_decay_that_the_loss_lacks():
    titles = ("With the planted bug", "Fixed: the L2 term is in the loss")
    (wrong, fixed), code = reports_of("weight_decay", *titles)
    assert wrong.startswith("jaxcheck: 5 of 6 leaves have a wrong gradient")
    pattern = "pattern: difference is 1.00e-02 times the parameters: an L2 term that "
    assert wrong.count(f"{pattern}autodiff has and the loss does not") == 5
    rule = line_with("def decayed_bwd", code)
    assert f"rule decayed_bwd, examples/weight_decay.py:{rule} " in wrong
    assert fixed.startswith("jaxcheck: all 6 leaves have a correct gradient")


def test_example_of_dropout_with_a_moving_seed():
    titles = ("With the planted bug", "Fixed: the key is an argument, dropout is on")
    (wrong, fixed), _ = reports_of("dropout_seed", *titles)
    assert wrong.startswith("jaxcheck: inconclusive: all 3 leaves")
    assert wrong.count("the loss is not a function") == 3
    assert "nondeterministic the loss is another program each time" in wrong
    assert "numerical" not in wrong
    assert fixed.startswith("jaxcheck: all 3 leaves have a correct gradient")


def test_example_of_a_language_model_that_breaks_and_is_replayed():
    titles = ("As it should be", "Careless")
    (right, careless), code = reports_of("char_language_model", *titles)
    assert "nothing is wrong with training 400 steps" in right
    found = re.search(r"nonfinite_gradient in .* from step (\d+)", careless)
    assert f"Step {found[1]}, where nonfinite_gradient was found" in careless
    born = line_with("jnp.log(found)", code)
    where = "Where: infinity is born in the forward pass of log"
    assert f"{where} examples/char_language_model.py:{born} `log` of 0" in careless


def test_example_of_remedies(tmp_path):
    done = run(ROOT / "examples" / "remedies.py", tmp_path / "remedies.png")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "remedies.png").stat().st_size > 10_000
    _, *rows = done.stdout.splitlines()
    found = {}
    for row in rows:
        pattern = r"(\D+?) {2,}.* (\d+)% → +(\d+)%  (.*)"
        name, before, after, found_before = re.fullmatch(pattern, row).groups()
        found[name] = found_before
        assert int(after) > int(before), row
    assert len(found) == 19
    assert {found[name] for name in ("ReLU", "LeakyReLU", "ELU", "GELU")} == {
        "depth_profile"
    }
    assert found["He initialization"] == "flat_loss"
    assert found["loss scaling"] == "zero_gradient"


def test_example_of_a_gan():
    titles = ("The generator descends log(1 - D)", "The generator descends -log D")
    (fading, lasting), _ = reports_of("gan", *titles)
    number = r"Gradient of the generator: (\S+) at first, (\S+) at last"
    first, last = map(float, re.search(number, fading).groups())
    assert last < 1e-2 * first
    generator = fading.partition("Gradient of the generator")[2]
    assert "training is not healthy: vanishing" in generator
    first, last = map(float, re.search(number, lasting).groups())
    assert last > 0.1 * first
    generator = lasting.partition("Gradient of the generator")[2]
    assert "nothing is wrong with training" in generator


def test_example_of_q_learning():
    titles = ("As it should be", "Without a target network")
    (right, wrong), _ = reports_of("q_learning", *titles)
    assert "nothing is wrong with training" in right
    assert float(re.search(r"stand (\S+) high", right)[1]) > 0.9
    assert "training is not healthy: " in wrong
    assert float(re.search(r"stand (\S+) high", wrong)[1]) < 0.5


def test_example_of_an_optimizer():
    done = run(ROOT / "examples" / "optimizer.py")
    assert done.returncode == 0, done.stderr
    _, *reports = done.stdout.split("jaxcheck: ")
    wrong, right, screen = (" ".join(report.split()) for report in reports)
    assert "It matches the rule with weight decay not multiplied by the" in wrong
    assert right.startswith("the updates are those of adamw")
    assert screen.startswith("nothing is odd about these updates")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_python_blocks_of_a_page_run(page, tmp_path):
    """Run the page as one test file, its lines numbered as they are in the page."""
    copy = tmp_path / f"{page.stem.replace('-', '_').lower()}.py"
    copy.write_text(python_of(page.read_text()))
    done = run(
        "-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir", tmp_path, copy
    )
    no_tests = 5  # pytest's exit status if the file runs and holds no test function
    assert done.returncode in {0, no_tests}, done.stdout


def python_of(markdown):
    """The Python blocks of a page, every other line blank."""
    lines = []
    inside = False
    for line in markdown.splitlines():
        if line.startswith("```"):
            inside = line == "```python"
            lines.append("")
        else:
            lines.append(line if inside else "")
    return "\n".join(lines) + "\n"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_between_pages_lead_somewhere(page):
    targets = re.findall(r"\]\((?!https?:|#)([^)#]+)", page.read_text())
    for target in targets:
        assert (page.parent / target).exists(), target


@pytest.mark.parametrize("name", ["quickstart", "tests"])
def test_readme_marks_the_commands_that_are_run_from_a_clean_clone(name):
    readme = (ROOT / "README.md").read_text()
    blocks = re.findall(rf"<!-- ci: {name} -->\n```sh\n(.*?)\n```", readme, re.S)
    assert len(blocks) == 1
    assert "\n" not in blocks[0]


def test_command_line_page_describes_every_option():
    shown = set()
    for command in (["check"], ["doctor"], []):
        done = run("-m", "jaxcheck", *command, "--help")
        shown |= set(re.findall(r"(?<![\w-])--[a-z][\w-]*", done.stdout))
    page = (ROOT / "docs" / "command-line.md").read_text()
    described = set(re.findall(r"`(--[a-z][\w-]*)", page))
    assert described == shown - {"--help"}
