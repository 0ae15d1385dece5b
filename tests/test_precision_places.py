"""The equations that lose the digits of a gradient are named; where none does, none."""

from __future__ import annotations

import inspect
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxcheck
from jaxcheck import Verdict
from jaxcheck.places.precision import losses

RNG = np.random.default_rng(0)
X = np.float32(RNG.standard_normal((16, 6)))
LAYERS = [
    np.float32(RNG.standard_normal(shape) / np.sqrt(shape[0]))
    for shape in ((6, 8), (8, 8), (8, 3))
]
STACKED = np.float32(RNG.standard_normal((5, 6, 6)) / 2)
TINY = np.float32([1e-3, 2e-3, 3e-3])


def through(dtype: Any):
    """A cast to ``dtype`` and back."""
    return lambda h: h.astype(dtype).astype(jnp.float32)  # cast


def keep(h):
    return h


def places(report):
    """The sites of the imprecise leaves."""
    found = [f for f in report.findings if f.kind == "precision_loss"]
    return [finding.site for finding in found if finding.leaf is not None]


def line_of(function, mark):
    """The number of the line with this comment."""
    lines, first = inspect.getsourcelines(function)
    return first + next(k for k, line in enumerate(lines) if f"# {mark}" in line)


def shares(site):
    """The numbers in "accounts for 91 % of the error" and "leaves 9 %"."""
    first = site.details[0]
    assert first.startswith("it accounts for "), first
    explained, left = first.removeprefix("it accounts for ").split(
        " of the error; in float64 it leaves "
    )
    return explained, left


# -- one loser, and a twin without


def half_versine(x):
    return jnp.sum((1 - jnp.cos(x)) ** 2)  # loses


def half_versine_rewritten(x):
    return jnp.sum((2 * jnp.sin(x / 2) ** 2) ** 2)


def variance(p):
    h = p["w"] * X[:, 0] + 30
    return jnp.log(jnp.mean(h**2) - jnp.mean(h) ** 2)  # loses


def variance_of_centered(p):
    h = p["w"] * X[:, 0] + 30
    return jnp.log(jnp.mean((h - jnp.mean(h)) ** 2))


def layers(p, dtype=jnp.float32):
    h = jnp.tanh(X @ p[0])
    h = jnp.matmul(h.astype(dtype), p[1].astype(dtype))  # loses
    return jnp.mean((jnp.tanh(h.astype(jnp.float32)) @ p[2]) ** 2)


def cast_between(p, cast=keep):
    h = jnp.tanh(X @ p[0])
    h = cast(h)  # loses
    return jnp.mean((jnp.tanh(h @ p[1]) @ p[2]) ** 2)


def two_casts(p):
    h = jnp.tanh(X @ p[0])
    h = h.astype(jnp.float16)  # less
    h = jnp.tanh(h.astype(jnp.float32) @ p[1])
    h = h.astype(jnp.bfloat16)  # more
    h = h.astype(jnp.float32)
    return jnp.mean((h @ p[2]) ** 2)


def running_sum(p, terms, dtype=jnp.bfloat16):
    def body(total, term):
        return total + p.astype(dtype) * term, None  # loses

    total, _ = jax.lax.scan(body, dtype(0), terms.astype(dtype))
    return total.astype(jnp.float32) ** 2


def reduced_sum(p, terms, dtype=jnp.bfloat16):
    terms = p * terms
    total = jnp.sum(terms.astype(dtype), dtype=dtype)  # loses
    return total.astype(jnp.float32) ** 2


def log_softmax(p, unstable):
    logits = X @ p
    if unstable:
        logits = jnp.log(1 - jax.nn.softmax(logits)[:, 0])  # loses
        return -jnp.mean(logits)
    rest = jax.nn.logsumexp(logits[:, 1:], axis=1)
    return -jnp.mean(rest - jax.nn.logsumexp(logits, axis=1))


def test_cancellation_is_named_with_the_equation_whose_rounding_it_amplifies():
    report = jaxcheck.check(half_versine, TINY)
    (site,) = places(report)
    assert report.verdict is Verdict.CORRECT
    assert (site.primitive, site.line) == ("cos", line_of(half_versine, "loses"))
    assert "cos in float32, which sub at" in site.fault
    assert "cancels" in site.fault
    assert shares(site) == ("100 %", "less than 1 %")
    assert report.culprits == ()


def test_cancellation_of_means():
    (site,) = places(jaxcheck.check(variance, {"w": np.float32(1e-2)}))
    assert site.line == line_of(variance, "loses")
    assert "which sub at" in site.fault
    assert "amplifies" in site.fault


@pytest.mark.slow
def test_a_product_in_bfloat16():
    found = places(jaxcheck.check(lambda p: layers(p, jnp.bfloat16), LAYERS))
    assert len(found) == 3
    for site in found:
        assert site.line == line_of(layers, "loses")
        assert "bfloat16" in site.fault
        assert "in float64 it leaves less than 1 %" in " ".join(site.details)


def test_a_cast_to_bfloat16():
    report = jaxcheck.check(lambda p: cast_between(p, through(jnp.bfloat16)), LAYERS)
    found = places(report)
    assert found
    for site in found:
        assert site.primitive == "convert_element_type"
        assert site.fault == "loses the digits: a cast to bfloat16"
        assert site.line == line_of(through, "cast")
        assert shares(site) == ("100 %", "less than 1 %")


def test_a_running_sum_in_a_loop_with_its_iteration():
    terms = np.float32(1 + np.random.default_rng(1).random(2_000))
    report = jaxcheck.check(running_sum, np.float32(1.3), terms)
    (site,) = places(report)
    assert (site.primitive, site.line) == ("add", line_of(running_sum, "loses"))
    assert site.fault == "loses the digits: a running sum in bfloat16"
    # what is added is lost from a total of 256 on, and first in the most iterations
    (iteration,) = site.iteration
    assert 0 < iteration < 2_000
    assert shares(site)[1] == "less than 1 %"


def test_a_sum_of_many_terms():
    terms = np.float32(1 + np.random.default_rng(11).random(1_000))
    (site,) = places(jaxcheck.check(reduced_sum, np.float32(1.3), terms))
    assert (site.primitive, site.line) == ("reduce_sum", line_of(reduced_sum, "loses"))
    assert site.fault == "loses the digits: a sum of 1,000 terms in bfloat16"


def test_the_logarithm_of_an_unstable_softmax():
    p = np.float32(4 * np.random.default_rng(2).standard_normal((6, 3)))
    (site,) = places(jaxcheck.check(lambda p: log_softmax(p, True), p))
    assert "which sub at" in site.fault
    assert f":{line_of(log_softmax, 'loses')} amplifies" in site.fault


@pytest.mark.parametrize(
    ("loss", "arguments"),
    [
        (half_versine_rewritten, (TINY,)),
        (variance_of_centered, ({"w": np.float32(1e-2)},)),
        (layers, (LAYERS,)),
        (cast_between, (LAYERS,)),
        (
            lambda p, x: running_sum(p, x, jnp.float32),
            (np.float32(1.3), np.ones(2_000, np.float32)),
        ),
        (
            lambda p, x: reduced_sum(p, x, jnp.float32),
            (np.float32(1.3), np.ones(1_000, np.float32)),
        ),
        (
            lambda p: log_softmax(p, False),
            (np.float32(2 * np.random.default_rng(1).standard_normal((6, 3))),),
        ),
    ],
)
def test_a_twin_without_the_loss_has_no_place(loss, arguments, monkeypatch):
    monkeypatch.setattr(losses, "Digits", None)  # nor is anything looked for
    report = jaxcheck.check(loss, *arguments)
    assert report.verdict is Verdict.CORRECT, str(report)
    assert places(report) == [], str(report)


# -- several


@pytest.mark.slow
def test_two_losers_are_ranked():
    """bfloat16 has three digits of binary less than float16."""
    found = places(jaxcheck.check(two_casts, LAYERS))
    assert found
    for site in found:
        assert site.line == line_of(two_casts, "more")
        assert site.fault == "loses the digits: a cast to bfloat16"


@pytest.mark.slow
def test_a_cast_in_one_iteration_of_a_loop():
    def loss(p):
        def body(h, layer):
            k, w = layer
            cast = through(jnp.bfloat16)
            return jax.lax.cond(k == 2, cast, keep, jnp.tanh(h @ w)), None

        h, _ = jax.lax.scan(body, X, (jnp.arange(5), p))
        return jnp.mean(h**2)

    (site,) = places(jaxcheck.check(loss, STACKED))
    assert site.fault == "loses the digits: a cast to bfloat16"
    assert site.line == line_of(through, "cast")
    assert site.iteration == (2,)


@pytest.mark.slow
def test_inside_rematerialized_layers(monkeypatch):
    monkeypatch.setattr(losses, "_SITES", 150)

    @jax.checkpoint
    def layer(h, w):
        return through(jnp.bfloat16)(jnp.tanh(h @ w))

    def loss(p):
        h = X
        for w in p:
            h = layer(h, w)
        return jnp.mean(h**2)

    found = places(jaxcheck.check(loss, list(STACKED[:3])))
    assert found
    for site in found:
        assert site.line == line_of(through, "cast")


# -- what is said, and what is not


def test_it_stands_under_the_finding():
    text = str(jaxcheck.check(half_versine, TINY))
    assert "Loses the digits: cos in float32, which sub at" in text
    assert "it accounts for 100 % of the error; in float64 it leaves less than 1 %" in (
        " ".join(text.split())
    )
    assert "Where:" not in text


def test_nothing_is_looked_for_without_locate(monkeypatch):
    monkeypatch.setattr(losses, "Digits", None)
    report = jaxcheck.check(half_versine, TINY, locate=False)
    assert places(report) == [None]


def test_a_loop_without_reverse_mode_is_said():
    @jax.custom_vjp
    def same(x):
        return jax.lax.while_loop(
            lambda c: c[0] < 3, lambda c: (c[0] + 1, 0.9 * c[1]), (0, x)
        )[1]

    same.defvjp(lambda x: (same(x), None), lambda _, g: (0.9**3 * g,))
    report = jaxcheck.check(lambda x: half_versine(same(1.1 * x)), TINY)
    (finding,) = [f for f in report.findings if f.leaf is not None]
    assert (finding.kind, finding.site) == ("precision_loss", None), str(report)
    assert "Which equations lose them cannot be said (ValueError)." in finding.message


@pytest.mark.parametrize(
    ("limit", "value", "said"),
    [
        ("_BYTES", 10, "to say which equations lose them"),
        ("_SITES", 3, "equations that round were not gone through"),
        ("_MISSED", -1.0, "adds up to 100 % of the error"),
        ("_FACTOR", 0.5, "they make an error 1.0e+00 times as large"),
        ("_CONFIRMED", -1.0, "is not certain"),
        ("_SHARE", 2.0, "It is made by many equations"),
    ],
)
def test_where_it_is_not_certain_nothing_is_named(limit, value, said, monkeypatch):
    monkeypatch.setattr(losses, limit, value)
    (finding,) = jaxcheck.check(half_versine, TINY).findings
    assert finding.site is None
    assert said in finding.message


def test_a_stale_place_is_never_told():
    """An equal program seen before stood at other lines."""
    first = lambda x: jnp.sum((1 - jnp.cos(x)) ** 3)  # noqa: E731
    (before,) = places(jaxcheck.check(first, TINY))
    second = lambda x: jnp.sum((1 - jnp.cos(x)) ** 3)  # noqa: E731
    (after,) = places(jaxcheck.check(second, TINY))
    assert after.line == before.line + 2
