"""``stop_gradient`` is part of the program; what it cuts off is told."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxcheck
from jaxcheck import Verdict
from tests.catalogue.planting import edited

stop = jax.lax.stop_gradient
W = jnp.asarray([0.5, -0.8, 1.2, 2.0])


def detached(report):
    return [finding for finding in report.findings if finding.kind == "detached"]


def here(function):
    """File and first line of a function."""
    return function.__code__.co_filename, function.__code__.co_firstlineno


def half_cut(p):
    return jnp.sum(p * stop(p))  # the whole gradient is 2p, autodiff gives p


def all_cut(p):
    return jnp.sum(stop(p) ** 2)


def straight_through(p):
    rounded = p + stop(jnp.round(p) - p)
    return jnp.sum((rounded - 0.3) ** 2)


def shifted_logsumexp(p):
    shift = stop(jnp.max(p))
    return jnp.log(jnp.sum(jnp.exp(p - shift))) + shift


def weighted(p):
    return jnp.sum(stop(jax.nn.softmax(p)) * jnp.sin(p))


LOSSES = {f.__name__: f for f in (half_cut, all_cut, straight_through, weighted)}
WRAPS = {
    "plain": lambda f: f,
    "jit": jax.jit,
    "checkpoint": jax.checkpoint,
    "scan": lambda f: (
        lambda p: jax.lax.scan(lambda c, x: (c + f(p * x), None), 0.0, jnp.ones(3))[0]
    ),
    "cond": lambda f: lambda p: jax.lax.cond(p[0] > 0, f, jnp.sum, p),
    "vmap": lambda f: lambda p: jnp.sum(jax.vmap(f)(jnp.stack([p, 2 * p]))),
}


@pytest.mark.parametrize(
    ("loss", "wrap", "mode"),
    [
        *(("half_cut", wrap, "exhaustive") for wrap in WRAPS),
        ("all_cut", "scan", "exhaustive"),
        ("straight_through", "jit", "exhaustive"),
        ("weighted", "vmap", "exhaustive"),
        ("weighted", "cond", "directional"),
        ("half_cut", "scan", "directional"),
        ("straight_through", "plain", "sampled"),
    ],
)
def test_frozen_is_correct_as_written(loss, wrap, mode):
    report = jaxcheck.check(WRAPS[wrap](LOSSES[loss]), W, mode=mode)
    assert report.verdict is Verdict.CORRECT, str(report)
    assert detached(report), str(report)


@pytest.mark.parametrize(
    ("loss", "mode"),
    [(half_cut, "exhaustive"), (all_cut, "directional"), (weighted, "sampled")],
)
def test_transparent_makes_a_cut_wrong(loss, mode):
    report = jaxcheck.check(loss, W, stop_gradient="transparent", mode=mode)
    assert report.verdict is Verdict.WRONG, str(report)


@pytest.mark.parametrize("mode", ["exhaustive", "directional"])
def test_transparent_leaves_alone_what_changes_nothing(mode):
    options = {"stop_gradient": "transparent", "mode": mode}
    report = jaxcheck.check(shifted_logsumexp, W, **options)
    assert report.verdict is Verdict.CORRECT, str(report)
    report = jaxcheck.check(lambda p: jnp.sum(jnp.sin(p)), W, **options)
    assert report.verdict is Verdict.CORRECT, str(report)


@pytest.mark.parametrize(
    "loss",
    [
        shifted_logsumexp,
        jax.nn.logsumexp,
        lambda p: -jax.nn.log_softmax(p)[1],
        lambda p: jnp.sum(jax.nn.softmax(p) ** 2),
        lambda p: jnp.sum(p * stop(3.0)),
        lambda p: jnp.sum(p) + 0 * jnp.sum(stop(p) ** 2),
    ],
)
def test_a_site_that_changes_nothing_is_not_mentioned(loss):
    report = jaxcheck.check(loss, W)
    assert report.verdict is Verdict.CORRECT, str(report)
    assert not detached(report), str(report)


def test_the_finding_names_site_leaf_and_share():
    def loss(p):
        return jnp.sum(stop(p["encoder"]) * p["decoder"] ** 2) + jnp.sum(p["encoder"])

    params = {"decoder": jnp.float32([1.0, 2.0]), "encoder": jnp.float32([0.5, 0.7])}
    report = jaxcheck.check(loss, params)
    assert report.verdict is Verdict.CORRECT, str(report)
    (finding,) = detached(report)
    assert finding.leaf == "['encoder']"
    assert finding.site.primitive == "stop_gradient"
    file, line = here(loss)
    assert finding.site.file == file
    assert finding.site.line == line + 1
    assert "['encoder']" in finding.message
    assert "['decoder']" not in finding.message
    assert "%" in finding.message
    assert finding.remedy
    assert f"{finding.site.file}:{finding.site.line}" in str(report)


@pytest.mark.parametrize(("weight", "share"), [(3.0, 75), (0.25, 20), (1e-3, 0)])
def test_the_share_is_the_share(weight, share):
    """P + weight · stop(p): the cut part is weight / (1 + weight) of the whole."""
    loss = lambda p: p + weight * stop(p)  # noqa: E731
    (finding,) = detached(jaxcheck.check(loss, 2.0))
    assert f"{share}%" in finding.message, finding.message


def test_a_path_that_is_cut_as_a_whole_is_all_of_it():
    report = jaxcheck.check(all_cut, W)
    assert report.verdict is Verdict.CORRECT, str(report)
    (finding,) = detached(report)
    assert "100%" in finding.message


def test_each_site_is_named_with_its_own_leaves():
    def loss(p):
        first = stop(p["a"]) * p["c"]
        second = stop(p["b"] ** 2) * p["c"]
        return jnp.sum(first + second)

    report = jaxcheck.check(loss, {k: jnp.float32([0.5, 0.7]) for k in "abc"})
    findings = detached(report)
    _, line = here(loss)
    named = {finding.leaf: finding.site.line - line for finding in findings}
    assert named == {"['a']": 1, "['b']": 2}


def test_two_sites_on_one_line_of_a_helper_that_is_called_twice():
    def frozen(x):
        return stop(x)

    def loss(p):
        return jnp.sum(frozen(p["a"]) * frozen(p["b"]) * p["c"])

    report = jaxcheck.check(loss, {k: jnp.float32([0.5, 0.7]) for k in "abc"})
    assert report.verdict is Verdict.CORRECT, str(report)
    assert {f.leaf for f in detached(report)} == {"['a']", "['b']"}


def test_two_sites_in_a_row_hide_each_other():
    """Looking through one of them alone changes nothing: it must still be told."""
    report = jaxcheck.check(lambda p: jnp.sum(p * stop(stop(p) * 2)), W)
    assert report.verdict is Verdict.CORRECT, str(report)
    assert detached(report), str(report)


def test_a_cut_that_does_not_matter_at_this_point_is_told_by_its_share_only():
    target = lambda p: jnp.mean((jnp.tanh(p) - stop(jnp.tanh(p))) ** 2)  # noqa: E731
    report = jaxcheck.check(target, W)  # a target equal to the prediction
    assert report.verdict is Verdict.CORRECT, str(report)


def test_target_network():
    """Bootstrapping: the target is not differentiated, on purpose."""

    def loss(p, target, x):
        value, bootstrap = jnp.tanh(x @ p), stop(0.9 * jnp.tanh(x @ target) + 1)
        return jnp.mean((value - bootstrap) ** 2)

    x = jnp.asarray(np.random.default_rng(0).standard_normal((5, 4)), jnp.float32)
    report = jaxcheck.check(loss, W, W + 0.1, x)
    assert report.verdict is Verdict.CORRECT, str(report)
    assert not detached(report)  # the target holds no parameters
    report = jaxcheck.check(lambda p, x: loss(p, p, x), W, x)
    assert report.verdict is Verdict.CORRECT, str(report)
    assert detached(report)


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
def test_a_wrong_rule_is_found_beside_a_stop(loss):
    hurt = edited(lambda x, cotangent: 1.5 * cotangent)
    # the gradient of all_cut is zero, and half as much again is zero
    right = loss is all_cut
    report = jaxcheck.check(lambda p: loss(hurt(p)), W)
    wanted = Verdict.CORRECT if right else Verdict.WRONG
    assert report.verdict is wanted, str(report)


def test_stop_inside_a_rule_is_the_rules_own_affair():
    @jax.custom_vjp
    def safe_norm(x):
        return jnp.sqrt(jnp.sum(stop(x) * x))

    safe_norm.defvjp(
        lambda x: (safe_norm(x), x), lambda x, ct: (ct * x / jnp.linalg.norm(x),)
    )
    report = jaxcheck.check(lambda p: safe_norm(p) ** 2, W)
    assert report.verdict is Verdict.CORRECT, str(report)


def test_solve_and_inverse_use_stop_gradient_inside():
    a = jnp.asarray([[2.0, 0.3], [0.1, 1.5]])
    for loss in (
        lambda a: jnp.sum(jnp.linalg.solve(a, jnp.ones(2)) ** 2),
        lambda a: jnp.sum(jnp.linalg.inv(a) ** 2),
    ):
        report = jaxcheck.check(loss, a)
        assert report.verdict is Verdict.CORRECT, str(report)
        assert not detached(report), str(report)


def test_stop_of_a_complex_value():
    z = jnp.asarray([1 + 2j, 0.5 - 1j])
    loss = lambda z: jnp.real(jnp.sum(z * jnp.conj(stop(z))))  # noqa: E731
    report = jaxcheck.check(loss, z)
    assert report.verdict is Verdict.CORRECT, str(report)
    assert detached(report)


def test_stop_in_a_while_loop_and_in_a_fori_loop():
    def loss(p):
        def body(_, h):
            return jnp.sin(h) * stop(p) + 0.1 * h

        return jnp.sum(jax.lax.fori_loop(0, 3, body, p))

    report = jaxcheck.check(loss, W)
    assert report.verdict is Verdict.CORRECT, str(report)


def test_native_precision_freezes_too():
    report = jaxcheck.check(half_cut, W, precision="native")
    assert report.verdict is Verdict.CORRECT, str(report)
    options = {"precision": "native", "stop_gradient": "transparent"}
    assert jaxcheck.check(half_cut, W, **options).verdict is Verdict.WRONG
