"""What the report of a check holds, and that it is made of plain values."""

from __future__ import annotations

import dataclasses
import enum
import functools
import importlib.metadata
import json
import math
import pickle
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxcheck
from jaxcheck import GradientError, Verdict
from tests.catalogue.planting import edited

PARAMS = {
    "b": np.float32([0.2, -0.4]),
    "n": np.arange(3),
    "w": np.linspace(-0.5, 1, 6, dtype=np.float32).reshape(2, 3),
}


def loss(p, planted=lambda w: w):
    return jnp.sum(jnp.tanh(planted(p["w"]))) * jnp.sum(p["b"] ** 2) + jnp.sum(p["n"])


def scaled(factor):
    return lambda p: loss(p, edited(lambda x, cotangent: factor * cotangent))


def nan_rule(p):
    return loss(p, edited(lambda x, cotangent: cotangent * jnp.nan))


REPORTS = {
    "correct": lambda **o: jaxcheck.check(loss, PARAMS, **o),
    "wrong": lambda **o: jaxcheck.check(scaled(2.0), PARAMS, **o),
    "nan gradient": lambda **o: jaxcheck.check(nan_rule, PARAMS, **o),
    "nan loss": lambda **o: jaxcheck.check(lambda p: loss(p) * jnp.nan, PARAMS, **o),
    "complex": lambda **o: jaxcheck.check(
        lambda z: jnp.sum(jnp.abs(z) ** 2), np.complex64([1 + 2j, 3]), **o
    ),
    "detached": lambda **o: jaxcheck.check(
        lambda p: jnp.sum(p * jax.lax.stop_gradient(p)), np.float32([1, 2]), **o
    ),
    "native": lambda **o: jaxcheck.check(loss, PARAMS, precision="native", **o),
}

ALL = pytest.mark.parametrize(
    "report",
    [
        pytest.param((make, mode), id=f"{name}-{mode}")
        for name, make in REPORTS.items()
        for mode in ("exhaustive", "directional", "sampled")
        if mode == "exhaustive" or name in ("correct", "wrong", "nan gradient")
    ],
    indirect=True,
)


@functools.cache
def made(make, mode):
    return make(mode=mode)


@pytest.fixture
def report(request):
    return made(*request.param)


def plain_values(value, path="report"):
    """Yields what is no plain value, exactly: np.float64 is not float."""
    if dataclasses.is_dataclass(value):
        for field in dataclasses.fields(value):
            yield from plain_values(getattr(value, field.name), f"{path}.{field.name}")
    elif type(value) is tuple:
        for k, item in enumerate(value):
            yield from plain_values(item, f"{path}[{k}]")
    elif not isinstance(value, enum.Enum) and type(value) not in (
        str,
        int,
        float,
        bool,
        type(None),
    ):
        yield f"{path}: {type(value)}"


@ALL
def test_everything_is_a_plain_value(report):
    assert not list(plain_values(report))


@ALL
def test_json_and_pickle_come_back(report):
    text = report.to_json()
    back = json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} in JSON"))
    assert back == report.to_dict()
    assert back["verdict"] == report.verdict.value
    assert back["passed"] is report.passed
    assert len(back["leaves"]) == len(report.leaves)
    assert set(back) >= {field.name for field in dataclasses.fields(report)}
    copy = pickle.loads(pickle.dumps(report))
    assert copy.to_dict() == report.to_dict()
    assert str(copy) == str(report)


@ALL
def test_it_behaves_like_a_report(report):
    assert report.passed is (report.verdict is Verdict.CORRECT)
    with pytest.raises(TypeError, match="passed"):
        bool(report)
    assert "\n" not in repr(report)
    assert "\x1b" not in str(report)
    with pytest.raises(dataclasses.FrozenInstanceError):
        report.verdict = Verdict.CORRECT
    if report.passed:
        assert report.raise_if_failed() is None
    else:
        with pytest.raises(GradientError) as caught:
            report.raise_if_failed()
        assert caught.value.report is report
        assert str(caught.value) == str(report)


@ALL
def test_the_verdict_is_that_of_the_worst_leaf(report):
    leaves = {leaf.verdict for leaf in report.leaves}
    order = (Verdict.WRONG, Verdict.INCONCLUSIVE, Verdict.CORRECT)
    assert report.verdict is next(v for v in order if v in leaves)


@ALL
def test_a_report_is_no_pytree(report):
    assert jax.tree_util.tree_leaves(report) == [report]


def test_fields_of_the_run():
    started = time.perf_counter()
    report = jaxcheck.check(loss, PARAMS)
    elapsed = time.perf_counter() - started
    assert 0 < report.seconds <= elapsed
    assert report.device.startswith(jax.devices()[0].platform)
    versions = dict(report.versions)
    assert versions["jax"] == jax.__version__
    assert versions["jaxlib"] == importlib.metadata.version("jaxlib")
    assert versions["numpy"] == np.__version__
    assert versions["jaxcheck"] == jaxcheck.__version__
    assert versions["python"]
    assert report.key_data == (0, 0)
    assert report.mode == "auto"
    assert report.precision == "float64"
    assert report.dtypes == ("float32",)
    assert report.loss == pytest.approx(float(loss(PARAMS)), rel=1e-6)
    assert report.culprits == ()
    assert "check(" in report.call
    assert "loss" in report.call


def test_the_device_is_the_one_that_it_ran_on():
    device = jax.devices()[-1]
    report = jaxcheck.check(loss, jax.device_put(PARAMS, device))
    assert report.device.startswith(device.platform)


def test_leaves_come_in_the_order_of_the_tree():
    report = jaxcheck.check(loss, PARAMS)
    assert [leaf.path for leaf in report.leaves] == ["['b']", "['n']", "['w']"]
    assert [leaf.shape for leaf in report.leaves] == [(2,), (3,), (2, 3)]
    assert [leaf.size for leaf in report.leaves] == [2, 3, 6]
    assert report.leaves[1].verdict is Verdict.NOT_CHECKED
    assert report.leaves[1].dtype.startswith("int")


@pytest.mark.parametrize(
    ("error", "grade"),
    [
        (1e-10, "below 1e-7"),
        (2e-5, "below 1e-4"),
        (2e-3, "below 1e-2"),
        (0.5, "above 1e-2"),
        (-2.0, "above 1e-2"),
    ],
)
def test_relative_difference_and_its_grade(error, grade):
    """A factor 1 + e on all: |e| / (1 + |1 + e|)."""
    factor = 1.0 + error
    rule = edited(lambda x, cotangent: factor * cotangent)
    report = jaxcheck.check(
        lambda p: jnp.sum(jnp.sin(rule(p))), np.float32([0.3, 0.9, 1.2]), rtol=1e-8
    )
    exact = abs(error) / (1 + abs(factor))
    assert report.grade == grade
    if error > 1e-8:
        # the rule's factor is rounded to float32 where it is written down
        assert report.relative_difference == pytest.approx(exact, rel=5e-3)
    if error == -2.0:
        assert report.relative_difference == pytest.approx(1.0)


def test_relative_error_is_against_the_larger_norm():
    rule = edited(lambda x, cotangent: 4 * cotangent)
    report = jaxcheck.check(
        lambda p: jnp.sum(jnp.sin(rule(p))), np.float32([0.3, 0.9]), mode="exhaustive"
    )
    assert report.leaves[0].relative_error == pytest.approx(0.75, rel=1e-6)
    assert report.relative_difference == pytest.approx(3 / 5, rel=1e-6)


def test_worst_coordinate_of_a_right_gradient():
    report = jaxcheck.check(loss, PARAMS, mode="exhaustive")
    for leaf in report.leaves:
        if leaf.verdict is Verdict.NOT_CHECKED:
            continue
        worst = leaf.worst
        assert len(worst.index) == len(leaf.shape)
        assert worst.part is None
        assert worst.error_bar > 0
        assert abs(worst.autodiff - worst.numerical) <= 2 * worst.error_bar


def test_numbers_agree_with_jax_grad():
    report = jaxcheck.check(loss, PARAMS, mode="exhaustive")
    grads = jax.grad(loss, allow_int=True)(PARAMS)
    for leaf, name in ((report.leaves[0], "b"), (report.leaves[2], "w")):
        wanted = float(grads[name][leaf.worst.index])
        assert leaf.worst.autodiff == pytest.approx(wanted, rel=1e-5)
        assert leaf.worst.numerical == pytest.approx(wanted, rel=1e-5)


def test_unused_and_dead_leaves_are_found():
    def partly(p):
        return jnp.sum(p["used"] ** 2) + jnp.sum(jax.nn.relu(-1 - p["dead"] ** 2))

    report = jaxcheck.check(
        partly, {k: np.float32([0.5, 1]) for k in ("dead", "lost", "used")}
    )
    assert report.verdict is Verdict.CORRECT, str(report)
    found = {(f.kind, f.leaf) for f in report.findings}
    assert found == {("unused", "['lost']"), ("dead", "['dead']")}
    assert all(math.isfinite(leaf.relative_error) for leaf in report.leaves)


def test_kinks_are_found_and_accepted():
    report = jaxcheck.check(lambda p: jnp.sum(jax.nn.relu(p)), np.float32([0, 1, -1]))
    assert report.verdict is Verdict.CORRECT, str(report)
    assert {f.kind for f in report.findings} == {"kink"}


def test_the_text_gives_the_line_to_repeat_it():
    report = jaxcheck.check(
        scaled(2.0), PARAMS, mode="directional", key=jax.random.key(9)
    )
    assert "jax.random.key(9)" in str(report)
    assert "mode='directional'" in str(report) or 'mode="directional"' in str(report)
