"""``assert_gradients_correct``: what passes, what is raised, what pytest shows."""

import inspect
import subprocess
import sys
import textwrap

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcheck.checks import check
from jaxcheck.errors import GradientError, InvalidInputError
from jaxcheck.gradients.report import GradientReport
from jaxcheck.reports.values import Verdict
from jaxcheck.testing import asserts
from jaxcheck.testing.asserts import assert_gradients_correct

PARAMS = {"w": np.float32([0.3, -0.7, 1.1]), "b": np.float32(0.2)}
X = np.float32([1.0, 2.0, -0.5])


@jax.custom_jvp
def wrong_tanh(x):
    return jnp.tanh(x)


@wrong_tanh.defjvp
def wrong_tanh_jvp(primals, tangents):
    y = jnp.tanh(primals[0])
    return y, y**2 * tangents[0]  # lost its `1 -`


def loss(params, x):
    return jnp.sum(jnp.tanh(params["w"] * x + params["b"]) ** 2)


def wrong_loss(params, x):
    return jnp.sum(wrong_tanh(params["w"] * x + params["b"]) ** 2)


def test_passes_in_silence(capsys):
    assert assert_gradients_correct(loss, PARAMS, X) is None
    assert capsys.readouterr() == ("", "")


def test_raises_with_the_report():
    with pytest.raises(GradientError) as caught:
        assert_gradients_correct(wrong_loss, PARAMS, X, progress=False)
    assert isinstance(caught.value, AssertionError)
    assert caught.value.report.verdict is Verdict.WRONG
    assert str(caught.value) == str(caught.value.report)
    assert "['w']" in str(caught.value)


def test_what_cannot_be_confirmed_fails(monkeypatch):
    report = GradientReport(verdict=Verdict.INCONCLUSIVE, leaves=())
    monkeypatch.setattr(asserts, "check", lambda *_, **__: report)
    with pytest.raises(GradientError) as caught:
        assert_gradients_correct(loss, PARAMS, X)
    assert caught.value.report is report


def test_bad_input_is_not_a_wrong_gradient():
    with pytest.raises(InvalidInputError):
        assert_gradients_correct(loss, PARAMS, X, mode="thorough")


def test_takes_the_arguments_of_check():
    asked = inspect.signature(check).parameters.values()
    taken = inspect.signature(assert_gradients_correct).parameters.values()
    assert [(p.name, p.kind, p.default) for p in taken] == [
        (p.name, p.kind, p.default) for p in asked
    ]


def test_passes_every_argument_on(monkeypatch):
    seen = []

    def record(*args, **keywords):
        seen.append((args, keywords))
        return GradientReport(verdict=Verdict.CORRECT, leaves=())

    monkeypatch.setattr(asserts, "check", record)
    names = [
        p.name
        for p in inspect.signature(check).parameters.values()
        if p.kind is p.KEYWORD_ONLY
    ]
    keywords = {name: object() for name in names}
    assert_gradients_correct(loss, PARAMS, X, "more", **keywords)
    assert seen == [((loss, PARAMS, X, "more"), keywords)]


def test_pytest_shows_the_test_and_the_report(tmp_path):
    """And none of our own frames, whatever the style of the traceback."""
    test = tmp_path / "test_model.py"
    test.write_text(
        textwrap.dedent(
            """
            import jax
            import jax.numpy as jnp

            from jaxcheck.testing import assert_gradients_correct


            @jax.custom_jvp
            def double(x):
                return 2 * x


            @double.defjvp
            def double_jvp(primals, tangents):
                return 2 * primals[0], 3 * tangents[0]


            def test_model():
                params = {"w": jnp.ones(3)}
                assert_gradients_correct(lambda p: jnp.sum(double(p["w"])), params)
            """
        )
    )
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", test.name],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1, done.stdout + done.stderr
    shown = [line for line in done.stdout.splitlines() if line.startswith(("E ", ">"))]
    assert shown[0].endswith(
        'assert_gradients_correct(lambda p: jnp.sum(double(p["w"])), params)'
    )
    assert shown[1].startswith("E       jaxcheck.errors.GradientError: jaxcheck: ")
    assert any("['w']" in line for line in shown[2:])
    assert "asserts.py" not in done.stdout
    assert "values.py" not in done.stdout


class UnderVariants(chex.TestCase):
    """A suite that runs its losses jitted and unjitted needs nothing special."""

    @chex.variants(with_jit=True, without_jit=True)
    def test_right(self):
        assert_gradients_correct(self.variant(loss), PARAMS, X)

    @chex.variants(with_jit=True, without_jit=True)
    def test_wrong(self):
        with pytest.raises(GradientError) as caught:
            assert_gradients_correct(self.variant(wrong_loss), PARAMS, X)
        assert caught.value.report.verdict is Verdict.WRONG
