"""The question "where is it wrong?": what is named, what is said, what is refused."""

from __future__ import annotations

import functools
import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxcheck
from jaxcheck import InvalidInputError, Verdict, check, locate


def ruled(function, rule):
    """``function`` with the pullback ``rule(x, g)``."""
    wrapped = jax.custom_vjp(function)
    wrapped.defvjp(lambda x: (function(x), x), rule)
    return wrapped


def line_of(mark):
    """The line of this file that ends in the comment ``# mark``."""
    lines = pathlib.Path(__file__).read_text(encoding="utf-8").splitlines()
    return 1 + next(k for k, text in enumerate(lines) if text.endswith(f"  # {mark}"))


def cubed(x):
    return x**3


def wrong_cube(x, g):
    return (2 * x**2 * g,)


def right_cube(x, g):
    return (3 * x**2 * g,)


def loss_of(cube):
    def loss(params, x):
        hidden = x @ params["kernel"] + params["bias"]
        return jnp.mean(cube(hidden) ** 2)  # cube is called

    return loss


@pytest.fixture
def params():
    rng = np.random.default_rng(1)
    return {
        "kernel": jnp.asarray(rng.normal(size=(4, 3)), jnp.float32),
        "bias": jnp.asarray(rng.normal(size=3), jnp.float32),
    }


@pytest.fixture
def x():
    return jnp.asarray(np.random.default_rng(2).normal(size=(5, 4)), jnp.float32)


def test_a_wrong_rule_is_named_with_everything_about_it(params, x):
    (site,) = locate(loss_of(ruled(cubed, wrong_cube)), params, x)
    assert (site.rule, site.primitive) == ("cubed", "custom_vjp_call")
    assert (site.file, site.line) == (__file__, line_of("cube is called"))
    assert site.derivative == "wrong_cube"
    assert site.derivative_line == wrong_cube.__code__.co_firstlineno
    assert site.cures is True
    assert site.relative_error == pytest.approx(1 / 3, rel=1e-3)
    assert "> %" in site.equation
    assert "custom_vjp_call[cubed]" in site.equation


def test_both_numbers_at_the_worst_place(params, x):
    (site,) = locate(loss_of(ruled(cubed, wrong_cube)), params, x)
    found = re.match(
        r"at x\[(\d), (\d)\] = (\S+) the rule gives (\S+), the function's derivative "
        r"is (\S+) ± (\S+)",
        site.details[0],
    )
    value, rule, own = (float(found[k]) for k in (3, 4, 5))
    assert rule == pytest.approx(2 * value**2, rel=2e-2)  # the value has three digits
    assert own == pytest.approx(1.5 * rule, rel=1e-3)
    assert "without this rule the gradient is correct" in site.details[-1]


def test_a_right_gradient_has_no_culprit(params, x):
    assert locate(loss_of(ruled(cubed, right_cube)), params, x) == ()


def test_two_faults_are_both_named_and_cure_together(params, x):
    first, second = ruled(cubed, wrong_cube), ruled(jnp.tanh, lambda x, g: (g,))

    def loss(params, x):
        return jnp.sum(second(0.1 * first(x @ params["kernel"])) + params["bias"])

    sites = locate(loss, params, x)
    assert {s.rule for s in sites} == {"cubed", "tanh"}
    assert all(s.cures for s in sites)
    assert all("without these 2 rules" in s.details[-1] for s in sites)


def test_one_rule_at_two_lines_is_two_sites(params, x):
    cube = ruled(cubed, wrong_cube)

    def loss(params, x):
        hidden = cube(x @ params["kernel"])
        return jnp.sum(0.01 * cube(0.3 * hidden)) + jnp.sum(params["bias"])

    sites = locate(loss, params, x)
    start = loss.__code__.co_firstlineno
    assert {s.line - start for s in sites} == {1, 2}


def test_a_rule_that_is_right_beside_a_wrong_one_is_spared(params, x):
    wrong, right = (
        ruled(cubed, wrong_cube),
        ruled(jnp.sinh, lambda x, g: (jnp.cosh(x) * g,)),
    )

    def loss(params, x):
        hidden = jax.nn.silu(right(0.1 * x @ params["kernel"]))
        return jax.nn.logsumexp(jax.nn.relu(wrong(hidden)) + params["bias"])

    assert [s.rule for s in locate(loss, params, x)] == ["cubed"]


def test_a_custom_jvp(params, x):
    @jax.custom_jvp
    def squash(x):
        return jnp.tanh(x)

    @squash.defjvp
    def squash_jvp(primals, tangents):
        y = jnp.tanh(primals[0])
        return y, (1 + y**2) * tangents[0]

    (site,) = locate(loss_of(squash), params, x)
    assert (site.rule, site.derivative, site.cures) == ("squash", "squash_jvp", True)


def test_a_rule_without_plain_derivative_is_named_without_the_removal_test(params, x):
    """Reverse mode does not go through a while loop: nothing to put in its place."""

    def root(x):
        return jax.lax.while_loop(
            lambda s: s[0] < 20,
            lambda s: (s[0] + 1, 0.5 * (s[1] + x**2 / s[1])),
            (0, jnp.ones_like(x)),
        )[1]

    def loss(params, x):
        scaled = ruled(root, lambda x, g: (2 * jnp.sign(x) * g,))(x @ params["kernel"])
        return jnp.sum(scaled) + jnp.sum(params["bias"])

    (site,) = locate(loss, params, x)
    assert (site.rule, site.cures) == ("root", None)


def test_only_one_coordinate_is_wrong(x):
    @functools.partial(ruled, rule=lambda w, g: (g.at[17, 3].set(0.0),))
    def identity(w):
        return 1.0 * w

    def loss(w, x):
        return jnp.mean((x @ identity(w)) ** 2)

    w = jnp.asarray(np.random.default_rng(0).normal(size=(50, 40)), jnp.float32)
    data = jnp.asarray(np.random.default_rng(3).normal(size=(6, 50)), jnp.float32)
    (site,) = locate(loss, w, data)
    assert site.rule == "identity"
    assert "[17, 3]" in site.details[0]


def test_an_iteration_is_given():
    cube = jax.custom_vjp(lambda x, bad: x**3)
    cube.defvjp(
        lambda x, bad: (x**3, (x, bad)),
        lambda kept, g: (jnp.where(kept[1], 1.0, 3.0) * kept[0] ** 2 * g, None),
    )

    def loss(w):
        def body(state, k):
            return cube(0.9 * state + w, k == 3), None

        return jnp.sum(jax.lax.scan(body, jnp.full(2, 0.1), jnp.arange(6))[0])

    (site,) = locate(loss, jnp.array([0.2, 0.3]))
    assert site.iteration == (3,)
    assert "wrong in 1 of 6 iterations" in site.details


# ---- as a part of check


def test_check_names_the_culprit_and_prints_it(params, x):
    report = check(loss_of(ruled(cubed, wrong_cube)), params, x)
    assert [site.rule for site in report.culprits] == ["cubed"]
    text = str(report)
    assert (
        "Where: the rule of custom_vjp `cubed` disagrees with its own function" in text
    )
    assert f"test_locate.py:{line_of('cube is called')}" in text
    assert "rule wrong_cube" in text


def test_check_does_not_look_if_it_is_told_so_or_all_is_well(params, x):
    report = check(loss_of(ruled(cubed, wrong_cube)), params, x, locate=False)
    assert report.verdict is Verdict.WRONG
    assert (report.culprits, report.not_located) == ((), None)
    report = check(loss_of(ruled(cubed, right_cube)), params, x)
    assert (report.culprits, report.not_located) == ((), None)


def test_a_cut_is_the_culprit_where_it_is_looked_through(params, x):
    def loss(params, x):
        hidden = jnp.tanh(x @ params["kernel"])
        return jnp.sum(jax.lax.stop_gradient(hidden) * params["bias"])  # cut

    report = check(loss, params, x, stop_gradient="transparent")
    (site,) = report.culprits
    assert (site.primitive, site.line) == ("stop_gradient", line_of("cut"))
    assert site.cures is True
    assert "stop_gradient cuts the gradient off" in str(report)


def test_a_culprit_survives_json_and_pickle(params, x):
    import json
    import pickle

    report = check(loss_of(ruled(cubed, wrong_cube)), params, x)
    assert pickle.loads(pickle.dumps(report)) == report
    (site,) = json.loads(report.to_json())["culprits"]
    assert site["rule"] == "cubed"


def test_a_masked_softmax_is_opened_with_its_minus_infinities_held(x):
    def softmax(scores):
        weights = jnp.exp(scores - scores.max(axis=-1, keepdims=True))
        return weights / weights.sum(axis=-1, keepdims=True)

    def loss_of_axis(axis):
        @jax.custom_vjp
        def attention(scores):
            return softmax(scores)

        def attention_bwd(weights, g):
            return (weights * (g - jnp.sum(weights * g, axis=axis, keepdims=True)),)

        attention.defvjp(lambda scores: (softmax(scores),) * 2, attention_bwd)

        def loss(params, x):
            scores = (x @ params) @ (x @ params).T
            causal = jnp.tril(jnp.ones(scores.shape, bool))
            return jnp.mean((attention(jnp.where(causal, scores, -jnp.inf)) @ x) ** 2)

        return loss

    kernel = jnp.linspace(-0.5, 0.5, 12).reshape(4, 3)
    (site,) = locate(loss_of_axis(0), kernel, x)
    assert (site.rule, site.derivative) == ("attention", "attention_bwd")
    assert site.cures is True
    found = re.match(
        r"the cotangent of scores\[(\d), (\d)\] = (\S+) is \S+ by the rule, "
        r"\S+ ± \S+ by differences",
        site.details[0],
    )
    assert found, site.details
    assert int(found[2]) <= int(found[1])
    assert np.isfinite(float(found[3]))
    assert locate(loss_of_axis(-1), kernel, x) == ()


# ---- what is refused


def test_bad_input_is_refused_by_name(params, x):
    with pytest.raises(InvalidInputError, match="locate\\(stop_gradient='no'\\)"):
        locate(loss_of(cubed), params, x, stop_gradient="no")
    with pytest.raises(InvalidInputError, match="`params`"):
        locate(lambda p: 0.0, {})
    with pytest.raises(InvalidInputError, match="locate\\(rtol=-1"):
        locate(loss_of(cubed), params, x, rtol=-1.0)


def test_nothing_global_is_touched(params, x):
    before = jax.config.jax_enable_x64
    locate(loss_of(ruled(cubed, wrong_cube)), params, x)
    assert jax.config.jax_enable_x64 == before
    assert jaxcheck.locate is locate
