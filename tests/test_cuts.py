"""What cuts a leaf off is named at its line; what is not cut off is left alone."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxcheck
from jaxcheck import Verdict

X = np.linspace(-1.3, 2.2, 5).astype(np.float32)


def rounded(w):
    return jnp.sum(jnp.round(w * 3) * X)  # cut: round


def cast(w):
    return jnp.sum((w * 10).astype(jnp.int32) * X)  # cut: convert_element_type


def signed(w):
    return jax.jit(lambda w: jnp.sum(jnp.sign(w) * X))(w)  # cut: sign


def chosen(w):
    return jnp.asarray(X)[jnp.argmax(w)]  # cut: argmax


def compared(w):
    return jnp.sum(jnp.where(w > 0.5, X, 2 * X))  # cut: gt


def in_a_loop(w):
    def body(carry, x):
        return carry + jnp.floor(w) * x, None  # cut: floor

    return jnp.sum(jax.lax.scan(body, jnp.zeros_like(w), X)[0])


def carried(w):
    """The carry is smooth from the second iteration on, and is rounded at the end."""

    def body(carry, x):
        return w * x, carry

    last, seen = jax.lax.scan(body, jnp.zeros_like(w), X)
    return jnp.sum(jnp.ceil(seen)) + jnp.sum(jnp.ceil(last))  # cut: ceil


def in_a_branch(w):
    branches = [lambda w: jnp.sum(jnp.round(w)), lambda w: 0.0 * w[0]]  # cut: round
    return jax.lax.switch(0, branches[:1], w)


CUT = [rounded, cast, signed, chosen, compared, in_a_loop, carried, in_a_branch]


@jax.custom_vjp
def straight_through(x):
    return jnp.round(x)


straight_through.defvjp(lambda x: (jnp.round(x), None), lambda _, g: (g,))

NOT_CUT = {
    "beside a smooth path": lambda w: jnp.sum(jnp.round(w) * w),
    "dead units": lambda w: jnp.sum(jax.nn.relu(w - 9.0)),
    "zeros": lambda w: jnp.sum(0.0 * w + jnp.round(w)),
    "a carry that ends smooth": lambda w: jnp.sum(
        jax.lax.scan(lambda c, x: (w * x, jnp.round(c)), w, jnp.asarray(X))[0] * 0.0
    ),
}


@pytest.mark.parametrize("loss", CUT, ids=lambda loss: loss.__name__)
def test_what_cuts_a_leaf_off_is_named(loss):
    w = {"cut": np.linspace(0.21, 1.83, 5).astype(np.float32), "other": np.float32(2)}
    report = jaxcheck.check(lambda p: loss(p["cut"]) + p["other"] ** 2, w)
    assert report.verdict is Verdict.CORRECT, str(report)
    (finding,) = report.findings
    lines, first = inspect.getsourcelines(loss)
    line, text = next((first + k, x) for k, x in enumerate(lines) if "# cut: " in x)
    assert (finding.kind, finding.leaf) == ("dead", "['cut']")
    assert finding.site.primitive == text.split("# cut: ")[1].strip()
    assert (finding.site.file, finding.site.line) == (__file__, line)
    assert f"{line}" in finding.message


@pytest.mark.parametrize("name", NOT_CUT)
def test_what_is_not_cut_off_is_left_alone(name):
    w = np.linspace(0.21, 1.83, 5).astype(np.float32)
    report = jaxcheck.check(lambda w: NOT_CUT[name](w) + 0.0 * jnp.sum(w), w)
    assert all(f.site is None for f in report.findings if f.kind == "dead"), str(report)


def test_a_rule_may_let_a_derivative_through_what_is_flat():
    report = jaxcheck.check(lambda w: jnp.sum(straight_through(w)), X, locate=False)
    assert all(f.kind != "dead" for f in report.findings)
