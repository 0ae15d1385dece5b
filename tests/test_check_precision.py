"""Rounding is told from wrong rules, in low precision and hard-coded dtypes."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxcheck
from jaxcheck import Verdict
from tests.catalogue.planting import edited, with_jvp

wrong_slightly = edited(lambda x, cotangent: cotangent * 1.5)
X = np.random.default_rng(3).standard_normal((2, 5, 8)).astype(np.float32)
Y = np.array([1, 2])


def kinds(report):
    return {finding.kind for finding in report.findings}


def keep(h):
    return h


class Bfloat16Model(nn.Module):
    """Dense, dropout, attention and an LSTM, every one of them told its dtype."""

    dtype: Any = jnp.bfloat16
    param_dtype: Any = jnp.float32
    planted: Any = keep

    @nn.compact
    def __call__(self, x):
        types = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        h = nn.gelu(nn.Dense(8, name="dense", **types)(x))
        h = nn.Dropout(0.2, deterministic=False)(h)
        h = h + nn.MultiHeadDotProductAttention(
            num_heads=2, deterministic=True, name="attention", **types
        )(h)
        h = self.planted(h)
        h = nn.RNN(nn.OptimizedLSTMCell(4, **types), name="lstm")(h)
        return nn.Dense(3, name="head", **types)(h[:, -1])


def model_loss(model):
    def loss(params, key, x, y):
        logits = model.apply({"params": params}, x, rngs={"dropout": key})
        losses = optax.softmax_cross_entropy_with_integer_labels(
            logits.astype(jnp.float32), y
        )
        return jnp.mean(losses)

    return loss


def initialized(model):
    keys = {"params": jax.random.key(0), "dropout": jax.random.key(1)}
    return model.init(keys, X)["params"]


@pytest.fixture(scope="module")
def bfloat16_report():
    model = Bfloat16Model()
    loss = model_loss(model)
    return jaxcheck.check(loss, initialized(model), jax.random.key(2), X, Y)


def test_rules_of_a_bfloat16_model_are_correct(bfloat16_report):
    assert bfloat16_report.verdict is Verdict.CORRECT, str(bfloat16_report)


def test_rounding_of_a_bfloat16_model_is_told(bfloat16_report):
    """AD-native's relative error, leaf by leaf, and a finding."""
    assert "precision_loss" in kinds(bfloat16_report), str(bfloat16_report)
    precisions = [leaf.precision for leaf in bfloat16_report.leaves]
    assert all(p is not None and p >= 0 for p in precisions)
    assert max(precisions) > 1e-3
    assert max(precisions) < 1.0
    for finding in bfloat16_report.findings:
        assert finding.kind == "precision_loss"
        assert finding.remedy
    named = {finding.leaf for finding in bfloat16_report.findings} - {None}
    imprecise = [leaf.path for leaf in bfloat16_report.leaves if leaf.precision > 1e-2]
    assert set(imprecise) <= named
    assert "precision" in str(bfloat16_report)


def test_the_same_model_with_a_wrong_rule_is_wrong():
    model = Bfloat16Model(planted=wrong_slightly)
    arguments = (initialized(model), jax.random.key(2), X, Y)
    report = jaxcheck.check(model_loss(model), *arguments, mode="directional")
    assert report.verdict is Verdict.WRONG, str(report)
    wrong = {leaf.path for leaf in report.leaves if leaf.verdict is Verdict.WRONG}
    assert "['dense']['kernel']" in wrong
    assert not any("lstm" in path or "head" in path for path in wrong)


def test_the_same_model_in_float32_is_precise():
    model = Bfloat16Model(dtype=jnp.float32)
    arguments = (initialized(model), jax.random.key(2), X, Y)
    report = jaxcheck.check(model_loss(model), *arguments, mode="directional")
    assert report.verdict is Verdict.CORRECT, str(report)
    assert "precision_loss" not in kinds(report), str(report)


@pytest.mark.parametrize(
    ("dtype", "inside"),
    [
        ("float32", "bfloat16"),
        ("float32", "float16"),
        ("float64", "float32"),
        ("bfloat16", "float32"),
        ("float16", "bfloat16"),
    ],
)
def test_hard_coded_casts_inside(dtype, inside):
    """``.astype(jnp.float32)`` on the way does not hide behind wider parameters."""

    def loss(p, planted=keep):
        h = jnp.tanh(p["w"].astype(inside) * 3)
        h = planted(h).astype(dtype) * p["b"]
        return jnp.mean(jnp.square(h).astype(inside)).astype(jnp.float32)

    with jax.enable_x64(dtype == "float64"):
        values = np.linspace(-1, 1.3, 24)
        params = {"w": jnp.asarray(values, dtype), "b": jnp.asarray(0.7, dtype)}
        report = jaxcheck.check(loss, params)
        wrong = jaxcheck.check(lambda p: loss(p, wrong_slightly), params)
    assert report.verdict is Verdict.CORRECT, str(report)
    assert wrong.verdict is Verdict.WRONG, str(wrong)
    leaves = {leaf.path: leaf.verdict for leaf in wrong.leaves}
    assert leaves["['b']"] is Verdict.CORRECT, str(wrong)


def test_rules_with_float32_hard_coded_in_the_rule():
    square = with_jvp(
        lambda x: x**2,
        lambda primals, tangents: (
            2 * primals[0].astype(jnp.float32) * tangents[0].astype(jnp.float32)
        ).astype(primals[0].dtype),
    )
    for x64 in (False, True):
        with jax.enable_x64(x64):
            x = np.linspace(0.1, 1, 7)
            report = jaxcheck.check(lambda p: jnp.sum(square(p)), x)
        assert report.verdict is Verdict.CORRECT, str(report)


def test_small_faults_in_low_precision_are_still_faults():
    """One part in a thousand, far below the rounding of bfloat16 (8 in a thousand)."""
    slightly = edited(lambda x, cotangent: cotangent * 1.001)
    x = jnp.asarray(np.linspace(0.1, 1, 12), jnp.bfloat16)
    loss = lambda p: jnp.sum(jnp.sin(slightly(p.astype(jnp.float32))))  # noqa: E731
    assert jaxcheck.check(loss, x).verdict is Verdict.WRONG


def test_cancellation_is_told_apart_from_a_wrong_rule():
    """(1 - cos x)/x² in float32 near zero: right rules, wrong numbers in training."""
    loss = lambda p: jnp.sum((1 - jnp.cos(p)) / p**2)  # noqa: E731
    report = jaxcheck.check(loss, jnp.asarray([1e-3, 2e-3, 0.5]))
    assert report.verdict is Verdict.CORRECT, str(report)
    assert "precision_loss" in kinds(report), str(report)
    assert report.leaves[0].precision > 1e-2


def test_underflow_of_float16_is_told():
    """A gradient that vanishes in float16 only."""
    loss = lambda p: jnp.sum(jnp.sin(p) * np.float16(1e-7)).astype(jnp.float32) * 1e-3  # noqa: E731
    report = jaxcheck.check(loss, np.linspace(0.1, 1, 5).astype(np.float16))
    assert report.verdict is Verdict.CORRECT, str(report)
    assert "precision_loss" in kinds(report), str(report)


def test_a_gradient_that_is_truly_zero_is_not_called_imprecise():
    """Softmax does not see a common shift: its gradient cancels to rounding."""
    x = jnp.asarray(np.linspace(-1, 2, 8), jnp.float32)
    loss = lambda p, x: -jax.nn.log_softmax(x + p["shift"])[2]  # noqa: E731
    report = jaxcheck.check(loss, {"shift": jnp.float32(0.3)}, x)
    assert report.verdict is Verdict.CORRECT, str(report)
    assert "precision_loss" not in kinds(report), str(report)


@pytest.mark.parametrize("size", [0.0, 1e-16, 1e-3])
def test_a_bias_before_batch_normalization(size):
    """Its gradient is zero up to rounding, and so, soon, is the bias itself."""
    w = jnp.asarray(np.random.default_rng(0).standard_normal((8, 3)), jnp.float32)

    def loss(p, x):
        h = x @ p["w"] + p["b"]
        h = (h - jnp.mean(h, 0)) / jnp.sqrt(jnp.var(h, 0) + 1e-5)
        return jnp.mean(jnp.tanh(h) ** 2)

    params = {"b": jnp.asarray([1.0, -0.5, 0.7]) * size, "w": w}
    report = jaxcheck.check(loss, params, X[0])
    assert report.verdict is Verdict.CORRECT, str(report)


def test_float32_that_is_fine_is_left_alone():
    report = jaxcheck.check(lambda p: jnp.mean(jnp.tanh(p) ** 2), X)
    assert report.verdict is Verdict.CORRECT
    assert not report.findings, str(report)
    assert all(leaf.precision < 1e-4 for leaf in report.leaves)


# ---- precision="native" --------------------------------------------------------------


def smooth(p, x, planted=keep):
    return jnp.mean(jnp.tanh(x @ planted(p["w"])) ** 2) + jnp.mean(p["b"] ** 2)


def native_params(dtype):
    rng = np.random.default_rng(1)
    w = jnp.asarray(rng.standard_normal((8, 3)), dtype)
    return {"w": w, "b": jnp.asarray([0.5, 0.3, -0.2], dtype)}


@pytest.mark.parametrize("mode", ["exhaustive", "directional", "sampled"])
def test_native_float32_is_correct_with_wider_bars(mode):
    params = native_params(jnp.float32)
    native = jaxcheck.check(smooth, params, X, precision="native", mode=mode)
    lifted = jaxcheck.check(smooth, params, X, mode=mode)
    assert native.verdict is Verdict.CORRECT, str(native)
    assert native.precision == "native"
    assert lifted.precision == "float64"
    for coarse, fine in zip(native.leaves, lifted.leaves, strict=True):
        assert coarse.error_bar > 100 * fine.error_bar
    assert "native precision" in str(native)


@pytest.mark.parametrize(
    ("dtype", "mode"),
    [
        ("float32", "exhaustive"),
        ("float32", "directional"),
        ("bfloat16", "exhaustive"),
        ("float16", "directional"),
    ],
)
def test_native_finds_a_rule_wrong_by_a_factor_of_two(dtype, mode):
    twice = edited(lambda x, cotangent: 2 * cotangent)
    report = jaxcheck.check(
        lambda p, x: smooth(p, x, twice),
        native_params(dtype),
        X.astype(jnp.dtype(dtype)),
        precision="native",
        mode=mode,
    )
    verdicts = {leaf.path: leaf.verdict for leaf in report.leaves}
    if dtype == "float32":
        assert verdicts["['w']"] is Verdict.WRONG, str(report)
    assert verdicts["['w']"] is not Verdict.CORRECT, str(report)
    assert verdicts["['b']"] is not Verdict.WRONG, str(report)


@pytest.mark.parametrize(
    ("dtype", "mode", "seed"),
    [
        ("bfloat16", "exhaustive", 0),
        ("bfloat16", "directional", 1),
        ("float16", "exhaustive", 2),
        ("float16", "directional", 0),
    ],
)
def test_native_low_precision_never_calls_a_right_rule_wrong(dtype, mode, seed):
    rng = np.random.default_rng(seed)
    p = jnp.asarray(rng.uniform(0.3, 1.5, 8), dtype)
    report = jaxcheck.check(
        lambda p: jnp.sum(jnp.tanh(p) ** 2), p, precision="native", mode=mode
    )
    assert report.verdict is not Verdict.WRONG, str(report)


def test_native_bars_contain_the_truth():
    x = np.linspace(0.3, 1.5, 9, dtype=np.float32)
    report = jaxcheck.check(lambda p: jnp.sum(jnp.sin(p)), x, precision="native")
    worst = report.leaves[0].worst
    truth = np.cos(np.float64(x[worst.index]))
    assert abs(worst.numerical - truth) <= worst.error_bar
    assert worst.error_bar < 0.1


def test_native_float64_is_as_sharp_as_the_reading():
    with jax.enable_x64(True):
        p = jnp.linspace(0.3, 1.5, 6)
        report = jaxcheck.check(lambda p: jnp.sum(jnp.sin(p)), p, precision="native")
    assert report.verdict is Verdict.CORRECT, str(report)
    assert report.leaves[0].error_bar < 1e-7
