"""Every derivative of any function: mutants are caught at their order, twins pass."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxcheck
from jaxcheck import InvalidInputError, Verdict

X = np.linspace(0.2, 1.4, 5, dtype=np.float32)


def answers(report):
    """The verdict of each question; the worst where it was asked of several outputs."""
    found = {}
    for check in report.checks:
        found.setdefault(check.question, set()).add(check.verdict)
    rank = [Verdict.WRONG, Verdict.INCONCLUSIVE, Verdict.CORRECT, Verdict.NOT_CHECKED]
    return {q: min(v, key=rank.index) for q, v in found.items()}


def jvp_rule(function, rule):
    wrapped = jax.custom_jvp(function)
    wrapped.defjvps(lambda t, out, x: rule(x) * t)
    return wrapped


def vjp_rule(function, backward):
    wrapped = jax.custom_vjp(function)
    wrapped.defvjp(lambda *xs: (function(*xs), xs), backward)
    return wrapped


# ---- first order ---------------------------------------------------------------------


@pytest.mark.parametrize(
    "fn",
    [
        jnp.sin,
        lambda x: {"a": jnp.cumsum(x), "b": (x[0] * x, jnp.prod(x))},
        lambda x: x @ jnp.ones((5, 7)),
        lambda x: jnp.linalg.inv(jnp.diag(x) + 0.1),
        lambda x: x.astype(jnp.bfloat16) ** 2,
        jax.jit(jnp.tanh),
    ],
)
def test_right_derivatives_of_any_output_are_correct(fn):
    report = jaxcheck.check_derivatives(fn, (X,))
    assert report.verdict is Verdict.CORRECT, str(report)
    assert {"fwd", "rev", "adjoint", "batched", "zeros"} <= set(answers(report))
    assert Verdict.NOT_CHECKED not in answers(report).values()


def test_any_pytree_goes_in_and_what_has_no_derivative_is_listed():
    def fn(p, n, key):
        noise = jax.random.normal(key, p["w"].shape)
        return {"y": p["w"] * noise * n, "count": jnp.arange(3)}

    primals = ({"w": X, "none": None}, 3, jax.random.key(0))
    report = jaxcheck.check_derivatives(fn, primals)
    assert report.verdict is Verdict.CORRECT, str(report)
    listed = {leaf.path: leaf.verdict for leaf in report.leaves}
    assert listed.pop("[0]['w']") is Verdict.CORRECT
    assert set(listed.values()) == {Verdict.NOT_CHECKED}
    assert any(c.output == "['count']" for c in report.checks)
    assert "['count']" in str(report)


@pytest.mark.slow
@pytest.mark.parametrize("n", [5, 500, 100_000])
def test_a_jvp_wrong_by_two_is_wrong_in_both_modes(n):
    bad = jvp_rule(jnp.sin, lambda x: 2 * jnp.cos(x))
    x = np.linspace(0.1, 1.4, n, dtype=np.float32)
    report = jaxcheck.check_derivatives(bad, (x,))
    assert answers(report)["fwd"] is Verdict.WRONG, str(report)
    assert answers(report)["rev"] is Verdict.WRONG
    assert answers(report)["adjoint"] is Verdict.CORRECT


def test_the_wrong_argument_and_the_wrong_output_are_named():
    bad = vjp_rule(lambda x, y: x * y, lambda res, ct: (ct * res[1], ct * res[1]))
    report = jaxcheck.check_derivatives(
        lambda d: {"right": d["x"] ** 2, "wrong": bad(d["x"], d["y"])},
        {"x": X, "y": X + 1},
        modes="rev",
    )
    wrong = [c for c in report.checks if c.verdict is Verdict.WRONG]
    assert [c.output for c in wrong] == ["['wrong']"]
    verdicts = {leaf.path: leaf.verdict for leaf in wrong[0].leaves}
    assert verdicts == {"[0]['x']": Verdict.CORRECT, "[0]['y']": Verdict.WRONG}


def test_a_mode_that_does_not_exist_is_not_checked():
    right = vjp_rule(jnp.sin, lambda res, ct: (ct * jnp.cos(res[0]),))
    report = jaxcheck.check_derivatives(right, X)
    assert report.verdict is Verdict.CORRECT
    assert answers(report)["fwd"] is Verdict.NOT_CHECKED
    assert "custom_vjp" in str(report)

    def loop(x):
        return jax.lax.while_loop(lambda y: jnp.sum(y) < 99, lambda y: 2 * y, x)

    report = jaxcheck.check_derivatives(loop, X)
    assert answers(report)["fwd"] is Verdict.CORRECT
    assert answers(report)["rev"] is Verdict.NOT_CHECKED


def test_forward_and_reverse_that_are_no_adjoints():
    @jax.custom_jvp
    def f(x):
        return jnp.sin(x)

    @f.defjvp
    def rule(primals, tangents):
        # linear, and right, but transposed into something else
        (x,), (t,) = primals, tangents
        cos = jax.lax.stop_gradient(jnp.cos(x))
        pushed = jax.custom_derivatives.linear_call(
            lambda r, t: r * t, lambda r, ct: 2 * r * ct, cos, t
        )
        return jnp.sin(x), pushed

    found = answers(jaxcheck.check_derivatives(f, X))
    assert found["fwd"] is Verdict.CORRECT
    assert found["rev"] is Verdict.WRONG
    assert found["adjoint"] is Verdict.WRONG


# ---- higher orders -------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("order", [2, 3])
def test_right_derivatives_of_higher_order_are_correct(order):
    report = jaxcheck.check_derivatives(
        lambda x: jnp.sum(jnp.exp(x) * x), X, order=order
    )
    assert report.verdict is Verdict.CORRECT, str(report)
    assert sum(c.order == order for c in report.checks) == 2**order


def test_a_rule_that_is_wrong_at_second_order_only():
    slope = jvp_rule(jnp.cos, lambda x: -2 * jnp.sin(x))
    bad = jvp_rule(jnp.sin, slope)
    assert jaxcheck.check_derivatives(bad, X).passed
    report = jaxcheck.check_derivatives(bad, X, order=2)
    orders = {c.order for c in report.checks if c.verdict is Verdict.WRONG}
    assert orders == {2}
    wrong = {c.question for c in report.checks if c.verdict is Verdict.WRONG}
    assert wrong == {f"{a} over {b}" for a in ("fwd", "rev") for b in ("fwd", "rev")}


# ---- complex -------------------------------------------------------------------------

Z = np.array([0.3 + 0.4j, -1.1 + 0.2j, 0.7 - 0.9j], np.complex64)


@pytest.mark.parametrize(
    "fn",
    [
        jnp.exp,  # holomorphic
        lambda z: z * jnp.conj(z) ** 2,
        jnp.abs,
        jnp.fft.fft,
    ],
)
def test_complex_functions_holomorphic_or_not(fn):
    report = jaxcheck.check_derivatives(fn, (Z,))
    assert report.verdict is Verdict.CORRECT, str(report)


@pytest.mark.slow
def test_complex_output_of_real_input():
    report = jaxcheck.check_derivatives(lambda x: jnp.exp(1j * x), X, order=2)
    assert report.verdict is Verdict.CORRECT, str(report)


@pytest.mark.parametrize("conjugate", [False, True])
def test_a_missing_conjugate_is_wrong(conjugate):
    def backward(res, ct):
        slope = jnp.exp(res[0])
        return (ct * (jnp.conj(slope) if conjugate else slope),)

    report = jaxcheck.check_derivatives(vjp_rule(jnp.exp, backward), Z, modes="rev")
    wanted = Verdict.WRONG if conjugate else Verdict.CORRECT  # JAX does not conjugate
    assert report.verdict is wanted


# ---- identities ----------------------------------------------------------------------


def test_a_batching_rule_that_is_wrong():
    @jax.custom_batching.custom_vmap
    def double(x):
        return 2.0 * x

    @double.def_vmap
    def rule(axis_size, in_batched, x):
        return 3.0 * x, True

    bad = vjp_rule(lambda x: x**2, lambda res, ct: (double(res[0] * ct),))
    found = answers(jaxcheck.check_derivatives(bad, X, modes="rev"))
    assert found["batched"] is Verdict.WRONG
    assert found["rev"] is Verdict.CORRECT


def test_a_pullback_of_zero_that_is_not_zero():
    def backward(res, ct):
        return (ct * jnp.cos(res[0]) + jnp.where(jnp.all(ct == 0), 1.0, 0.0),)

    found = answers(
        jaxcheck.check_derivatives(vjp_rule(jnp.sin, backward), X, modes="rev")
    )
    assert found["zeros"] is Verdict.WRONG


def test_a_pullback_that_divides_by_the_cotangent():
    def backward(res, ct):
        return (jnp.cos(res[0]) * ct**2 / ct,)

    found = answers(
        jaxcheck.check_derivatives(vjp_rule(jnp.sin, backward), X, modes="rev")
    )
    assert found["zeros"] is Verdict.WRONG


def test_a_function_that_is_another_one_under_jit():
    def fn(x):
        return x * (2.0 if isinstance(x, jax.core.Tracer) else 3.0)

    # the value op by op is that of another program than the one that is traced
    report = jaxcheck.check_derivatives(lambda x: fn(x).astype(jnp.float32), X)
    assert answers(report)["compiled"] is Verdict.CORRECT  # one trace, run both ways

    def typed(x):
        return x if isinstance(x, jax.core.Tracer) else x.astype(jnp.bfloat16)

    assert answers(jaxcheck.check_derivatives(typed, X))["types"] is Verdict.WRONG


# ---- domains -------------------------------------------------------------------------


def test_steps_stay_inside_the_bounds():
    def fn(p):
        outside = jnp.any((p < -1) | (p > 1))
        return jnp.where(outside, jnp.nan, jnp.arcsin(p))

    points = np.array([0.999, 0.1, -0.9999, 1.0], np.float32)[:3]
    report = jaxcheck.check_derivatives(fn, points, bounds=(-1.0, 1.0))
    assert report.verdict is Verdict.CORRECT, str(report)
    bad = jvp_rule(fn, lambda p: 1.01 / jnp.sqrt(1 - p**2))
    report = jaxcheck.check_derivatives(bad, points, bounds=(-1.0, 1.0))
    assert report.verdict is Verdict.WRONG


def test_tangents_restricted_to_symmetric_matrices():
    @functools.partial(vjp_rule, backward=lambda res, ct: (ct * jnp.eye(3) * 2,))
    def lower_trace(a):  # reads the diagonal and, wrongly for others, a[0, 1] = a[1, 0]
        return 2 * jnp.trace(a) + a[0, 1] - a[1, 0]

    point = np.eye(3, dtype=np.float32) + 0.1
    free = jaxcheck.check_derivatives(lower_trace, point, modes="rev")
    assert free.verdict is Verdict.WRONG
    symmetric = jaxcheck.check_derivatives(
        lower_trace, point, modes="rev", project_tangent=lambda t: (t + t.T) / 2
    )
    assert symmetric.verdict is Verdict.CORRECT, str(symmetric)


# ---- second opinion ------------------------------------------------------------------


def test_a_complex_step_agrees_or_does_not():
    fine = jaxcheck.check_derivatives(jnp.exp, X, second_opinion="complex_step")
    assert answers(fine)["second opinion"] is Verdict.CORRECT
    bad = jvp_rule(jnp.exp, lambda x: 1.001 * jnp.exp(x))
    found = jaxcheck.check_derivatives(bad, X, second_opinion="complex_step")
    assert answers(found)["second opinion"] is Verdict.WRONG


def test_a_complex_step_needs_an_analytic_function():
    report = jaxcheck.check_derivatives(jnp.abs, X, second_opinion="complex_step")
    assert answers(report)["second opinion"] is Verdict.NOT_CHECKED
    assert report.verdict is Verdict.CORRECT


@pytest.mark.parametrize("factor", [1.0, 1.01])
def test_a_derivative_that_the_user_supplies(factor):
    def reference(primals, tangents):
        return factor * jnp.cos(primals[0]) * tangents[0]

    report = jaxcheck.check_derivatives(jnp.sin, X, second_opinion=reference)
    wanted = Verdict.CORRECT if factor == 1 else Verdict.WRONG
    assert answers(report)["second opinion"] is wanted


# ---- the report, and bad input -------------------------------------------------------


def test_aux_is_set_aside():
    report = jaxcheck.check_derivatives(lambda x: (jnp.sin(x), "aux"), X, has_aux=True)
    assert report.passed


def test_report_is_a_value():
    first, second = (jaxcheck.check_derivatives(jnp.sin, X) for _ in range(2))
    assert first.to_dict() | {"seconds": 0} == second.to_dict() | {"seconds": 0}
    assert "Reproduce: jaxcheck.check_derivatives(sin, primals" in str(first)
    with pytest.raises(TypeError, match="truth value"):
        bool(first)


def test_the_assert_raises_with_the_report():
    bad = jvp_rule(jnp.sin, lambda x: 2 * jnp.cos(x))
    jaxcheck.assert_derivatives_correct(jnp.sin, X)
    with pytest.raises(jaxcheck.GradientError) as caught:
        jaxcheck.assert_derivatives_correct(bad, X)
    assert caught.value.report.verdict is Verdict.WRONG
    assert "forward (jvp)" in str(caught.value)


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: jaxcheck.check_derivatives(3, X), "fn"),
        (lambda: jaxcheck.check_derivatives(jnp.sin, X, modes=("up",)), "modes"),
        (lambda: jaxcheck.check_derivatives(jnp.sin, X, modes=()), "modes"),
        (lambda: jaxcheck.check_derivatives(jnp.sin, X, order=0), "order"),
        (lambda: jaxcheck.check_derivatives(jnp.sin, 3), "primals"),
        (lambda: jaxcheck.check_derivatives(jnp.sin, ()), "primals"),
        (lambda: jaxcheck.check_derivatives(jnp.sin, X * np.nan), "primals"),
        (lambda: jaxcheck.check_derivatives(jnp.argmax, X), "fn"),
        (lambda: jaxcheck.check_derivatives(jnp.sin, X, second_opinion=2), "opinion"),
        (lambda: jaxcheck.check_derivatives(jnp.sin, X, bounds=1.0), "bounds"),
        (lambda: jaxcheck.check_derivatives(jnp.sin, X, bounds=(1.0, 2.0)), "outside"),
        (lambda: jaxcheck.check_derivatives(jnp.sin, X, has_aux=True), "has_aux"),
        (lambda: jaxcheck.check_derivatives(jnp.sin, X, rtol=-1), "rtol"),
    ],
)
def test_bad_input_is_refused_by_name(call, match):
    with pytest.raises(InvalidInputError, match=match):
        call()


def test_an_error_of_the_function_passes_untouched():
    def fails(x):
        raise RuntimeError("mine")

    with pytest.raises(RuntimeError, match="mine"):
        jaxcheck.check_derivatives(fails, X)


def test_a_batching_rule_that_is_wrong_in_forward_mode():
    @jax.custom_batching.custom_vmap
    def double(t):
        return 2.0 * t

    @double.def_vmap
    def rule(axis_size, in_batched, t):
        return 3.0 * t, True

    @jax.custom_jvp
    def f(x):
        return 2.0 * x

    f.defjvps(lambda t, out, x: double(t))
    found = answers(jaxcheck.check_derivatives(f, X, modes="fwd"))
    assert found["batched forward"] is Verdict.WRONG


@pytest.mark.slow
def test_sparse_arguments():
    from jax.experimental import sparse

    dense = np.array([[0.0, 1.5, 0.0], [2.0, 0.0, -1.0]], np.float32)
    matrix = sparse.BCOO.fromdense(dense)
    report = jaxcheck.check_derivatives(
        lambda m, v: jnp.tanh(m @ v), (matrix, np.float32([0.3, 0.5, 0.7]))
    )
    assert report.verdict is Verdict.CORRECT, str(report)
    assert [x.verdict for x in report.leaves].count(Verdict.CORRECT) == 2


def test_a_function_that_differs_between_two_calls_is_not_judged():
    rng = np.random.default_rng(0)
    report = jaxcheck.check_derivatives(lambda x: x * rng.normal(), X)
    assert report.verdict is Verdict.INCONCLUSIVE
    assert "nondeterministic" in {f.kind for f in report.findings}


def test_options_of_check_are_heard():
    wrong = jvp_rule(jnp.sin, lambda x: 1.001 * jnp.cos(x))
    assert jaxcheck.check_derivatives(wrong, X).verdict is Verdict.WRONG
    assert jaxcheck.check_derivatives(wrong, X, rtol=1e-2).passed
    assert jaxcheck.check_derivatives(jnp.sin, X, precision="native").passed
