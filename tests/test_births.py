"""Where NaN and infinity are born: primitive, line, iteration, phase, what and why.

Each case is a loss whose source says where: ``# born`` marks the line of the first
birth, ``# then`` that of the second, ``# where`` the other half of a ``where`` trap.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from jaxcheck import trees
from jaxcheck.jaxprs.trace import trace_loss
from jaxcheck.places.births import pullbacks
from jaxcheck.places.births.births import births
from jaxcheck.places.births.explain import CannotOpenError

f32 = jnp.float32
f16 = jnp.float16


def births_of(loss_fn, params, *args):
    traced = trace_loss(loss_fn, trees.partition(params), args, has_aux=False)
    return births(traced)


def marked_line(function, mark):
    """The line of ``function``'s source, with its nested functions, that has a mark."""
    lines, first = inspect.getsourcelines(function)
    (found,) = [first + k for k, text in enumerate(lines) if f"# {mark}" in text]
    return found


@dataclasses.dataclass(frozen=True)
class Case:
    """A loss, its parameters, and what must be said first (and second)."""

    loss: Callable[..., Any]
    params: Any
    primitive: str
    phase: str
    value: str
    iteration: tuple[int, ...] = ()
    says: tuple[str, ...] = ()  # parts of the message
    remedy: str | None = None  # a part of the remedy
    then: tuple[str, str, str] | None = None  # primitive, phase, value
    scope: str | None = None
    source: Any = None  # whose source has the marks, if not the loss's

    @property
    def name(self):
        return self.loss.__name__


CASES: list[Case] = []


def case(params, primitive, phase, value, *iteration, **more):
    def add(loss):
        CASES.append(
            Case(loss, params, primitive, phase, value, iteration=iteration, **more)
        )
        return loss

    return add


# ---- forward


@case([1.0, 0.0, 2.0], "log", "forward", "inf", says=("`log` of 0 is -inf at [1]",))
def log_of_zero(p):
    y = p * 2
    z = jnp.log(y)  # born
    return jnp.sum(z)


@case([1.0, -2.0], "log", "forward", "nan", says=("`log` of -2 is nan",))
def log_of_a_negative_number(p):
    return jnp.sum(jnp.log(p))  # born


@case([0.5, 1.0], "div", "forward", "inf", remedy="x_safe", says=("of 1 and 0 is inf",))
def division_by_zero(p):
    gap = p - 1.0
    return jnp.sum(1.0 / gap)  # born


@case([0.0, 1.0], "div", "forward", "nan", says=("of 0 and 0 is nan",))
def zero_by_zero(p):
    return jnp.sum(p / p)  # born


@case([100.0, 1.0], "exp", "forward", "inf", remedy="logsumexp")
def exp_overflow(p):
    weights = jnp.exp(p)  # born
    return jnp.log(jnp.sum(weights))


@case([-1.0, 4.0], "sqrt", "forward", "nan", remedy="jnp.maximum")
def root_of_a_negative_number(p):
    return jnp.sum(jnp.sqrt(p))  # born


@case([-0.5, 4.0], "pow", "forward", "nan", says=("of -0.5 and 0.3",))
def power_of_a_negative_number(p):
    return jnp.sum(p**0.3)  # born


@case([1.5], "acos", "forward", "nan", remedy="jnp.clip")
def arccos_outside(p):
    return jnp.sum(jnp.arccos(p))  # born


@case([1.0, 2.0, 3.0], "sub", "forward", "nan", remedy="unmasked")
def softmax_of_nothing_but_minus_infinity(p):
    scores = p[:, None] * p[None, :]
    mask = jnp.tril(jnp.ones((3, 3), bool), -1)
    scores = jnp.where(mask, scores, -jnp.inf)
    weights = jax.nn.softmax(scores, axis=-1)  # born
    return jnp.sum(weights @ p)


@case(
    [3.0, 1.0],
    "mul",
    "forward",
    "inf",
    then=("sub", "forward", "nan"),
    says=("of 3e+30 and 1e+30 is inf",),
)
def overflow_and_then_inf_minus_inf(p):
    big = p * 1e30
    square = big * 1e30  # born
    return jnp.sum(square - 2 * square)  # then


@case([300.0], "mul", "forward", "inf", remedy="bfloat16")
def float16_overflow(p):
    half = p.astype(f16)
    square = half * half  # born
    return jnp.sum(square.astype(f32))


@case([1e5], "convert_element_type", "forward", "inf", remedy="65504")
def float16_cast(p):
    half = p.astype(f16)  # born
    return jnp.sum(half.astype(f32)) * 2


@case([200.0] * 1000, "reduce_sum", "forward", "inf")
def float16_sum(p):
    return jnp.sum(p.astype(f16), dtype=f16).astype(f32)  # born


@case([1.0, 2.0], "cholesky", "forward", "nan", remedy="identity")
def cholesky_of_an_indefinite_matrix(p):
    matrix = jnp.outer(p, p) - 3 * jnp.eye(2)
    return jnp.sum(jnp.linalg.cholesky(matrix))  # born


@case([1.0, 1.0], "triangular_solve", "forward", "nan", remedy="singular")
def solve_of_a_singular_matrix(p):
    return jnp.sum(jnp.linalg.solve(jnp.outer(p, p), p))  # born


@case([1.0, 2.0], "gather", "forward", "nan", remedy="out of bounds")
def index_out_of_bounds(p):
    return jnp.sum(jnp.take(p, jnp.asarray([0, 5]), axis=0))  # born


@case([1.0, 2.0], "mul", "forward", "nan", says=("nan",))
def the_data_is_nan(p):
    return jnp.sum(p * np.float32([1.0, np.nan]))  # born


@case([1.0, 2.0], "log", "forward", "inf")
def two_jitted_calls_of_one_function(p):
    first = jax.scipy.special.xlog1py(p, p)
    second = jax.nn.logsumexp(p - 1)
    third = jax.nn.logsumexp(jnp.where(p > 5, p, -jnp.inf))  # born
    return jnp.sum(first) + second + third


# ---- backward


@case([1.0, 0.0], "sqrt", "backward", "inf", says=("`sqrt` of 0 is 0", "in is 1"))
def root_at_zero(p):
    return jnp.sum(jnp.sqrt(p))  # born


@case(
    [0.0, 0.0],
    "sqrt",
    "backward",
    "inf",
    remedy="norm",
    then=("mul", "backward", "nan"),
)
def norm_at_zero(p):
    other = jnp.linalg.norm(p + 1)
    return other * jnp.linalg.norm(p)  # born  # then


@case([1.0, 0.0], "pow", "backward", "inf", remedy="base")
def power_at_zero(p):
    return jnp.sum(p**0.5)  # born


@case([0.3, 1.0], "acos", "backward", "inf", remedy="arctan2")
def arccos_at_one(p):
    return jnp.sum(jnp.arccos(p))  # born


@case([-1.0], "asin", "backward", "inf")
def arcsin_at_minus_one(p):
    return jnp.sum(jnp.arcsin(p))  # born


@case([1.0, 1.0, 2.0], "eigh", "backward", "nan", remedy="split", says=("equal",))
def degenerate_eigh(p):
    _, vectors = jnp.linalg.eigh(jnp.diag(p))  # born
    return jnp.sum(vectors[:, 0] * p)


@case(
    [-100.0, 1.0],
    "exp",
    "forward",
    "inf",
    then=("exp", "backward", "nan"),
    says=("The loss does not show it",),
)
def residual_infinity(p):
    e = jnp.exp(-p)  # born  # then
    return jnp.sum(1 / (1 + e))


@case([1.0], "convert_element_type", "backward", "inf", remedy="65504")
def float16_backward_overflow(p):
    half = p.astype(f16)
    wide = half.astype(f32)  # born
    return jnp.sum(wide) * 1e6


@case([2.0, 2.0, 2.0], "sqrt", "backward", "inf", then=("square", "backward", "nan"))
def standard_deviation_of_equal_numbers(p):
    return jnp.std(p * 2)  # born  # then


# ---- the where trap


@case(
    [1.0, 0.0, -1.0],
    "sqrt",
    "backward",
    "nan",
    remedy="jnp.sqrt(x_safe)",
    says=("where trap", "`sqrt` of 0 is 0", "in is 0"),
)
def trap_root(p):
    root = jnp.sqrt(p)  # born
    return jnp.sum(jnp.where(p > 0, root, 0.0))  # where


@case([1.0, -1.0], "sqrt", "backward", "nan", says=("where trap",))
def trap_root_of_a_negative_number(p):
    root = jnp.sqrt(p)  # born
    return jnp.sum(jnp.where(p > 0, root, 0.0))  # where


@case([1.0, 0.0], "log", "backward", "nan", remedy="jnp.log(x_safe)")
def trap_log(p):
    y = 3 * jnp.log(p)  # born
    y = jnp.reshape(y, (2, 1))
    return jnp.sum(jnp.where(p[:, None] > 0, y, 0.0))  # where


@case([1.0, 0.0], "div", "backward", "nan", remedy="/ x_safe")
def trap_division(p):
    inverse = p / (p * p)  # born
    return jnp.sum(jnp.where(p > 0, inverse, 0.0))  # where


@case([0.5, 0.0], "pow", "backward", "nan", remedy="x_safe ** p")
def trap_power(p):
    y = p**0.7  # born
    return jnp.sum(jnp.where(p > 0, y, 0.0))  # where


@case([0.5, 1.0], "acos", "backward", "nan", remedy="arccos(x_safe)")
def trap_arccos(p):
    angle = jnp.arccos(p)  # born
    return jnp.sum(jnp.where(p < 1, angle, 0.0))  # where


@case([0.0, 0.0], "sqrt", "backward", "nan", remedy="x_safe")
def trap_norm(p):
    norm = jnp.linalg.norm(p)  # born
    return jnp.where(norm > 0, norm, 0.0) + jnp.sum(p)  # where


@case([1.0, -1.0], "sqrt", "forward", "nan", remedy="x_safe")
def trap_whose_value_is_used_again(p):
    root = jnp.sqrt(p)  # born
    cube = root * root * root
    return jnp.sum(jnp.where(p > 0, cube, 0.0))  # where


@case([0.0, 1.0], "div", "backward", "nan", remedy="/ x_safe")
def trap_that_asks_isnan(p):
    ratio = p / p  # born
    return jnp.sum(jnp.where(jnp.isnan(ratio), 0.0, ratio))  # where


@case([0.5, 0.0], "sqrt", "backward", "nan", 1, remedy="x_safe")
def trap_with_the_where_behind_a_scan(p):
    roots = lax.scan(
        lambda c, x: (c, jnp.sqrt(x)),  # born
        0.0,
        p,
    )[1]
    return jnp.sum(jnp.where(p > 0, roots, 0.0))  # where


@case([0.5, 0.0, 1.0], "log", "backward", "nan", 1, remedy="x_safe")
def trap_inside_a_scan(p):
    def body(total, x):
        y = jnp.log(x)  # born
        return total + jnp.where(x > 0, y, 0.0), None  # where

    return lax.scan(body, 0.0, p)[0]


# ---- loops, branches, calls


@case(1.0, "div", "forward", "inf", 17)
def scan_forward(p):
    def body(c, i):
        return c / (17 - i), None  # born

    return lax.scan(body, p, jnp.arange(30.0))[0]


@case(1.0, "sqrt", "backward", "inf", 17, then=("mul", "backward", "nan"))
def scan_backward(p):
    def body(c, i):
        x = jnp.where(i == 17, 0.0, 1.0) * c  # then
        return c + jnp.sqrt(x), None  # born

    return lax.scan(body, p, jnp.arange(30))[0]


@case(1.0, "log", "forward", "inf", 2, 3)
def two_nested_scans(p):
    def inner(c, ij):
        x = (ij[0] - 2.0) ** 2 + (ij[1] - 3.0) ** 2
        return c + p * jnp.log(x), None  # born

    def outer(c, i):
        js = jnp.arange(5.0)
        return lax.scan(inner, c, (jnp.full(5, i), js))[0], None

    return jax.jit(lambda: lax.scan(outer, 0.0, jnp.arange(4.0))[0])()


@case(1.0, "sqrt", "backward", "inf", 2, 3, then=("mul", "backward", "nan"))
def two_nested_scans_backward(p):
    def inner(c, ij):
        x = jnp.abs(ij[0] - 2.0) + jnp.abs(ij[1] - 3.0)
        return c + jnp.sqrt(x * p), None  # born  # then

    def outer(c, i):
        return lax.scan(inner, c, (jnp.full(5, i), jnp.arange(5.0)))[0], None

    return lax.scan(outer, 0.0, jnp.arange(4.0))[0]


@case([1.0, 2.0], "log", "forward", "nan", 4)
def reverse_scan(p):
    def body(c, i):
        return c + jnp.log(i - 0.5) * p, None  # born

    return jnp.sum(lax.scan(body, p, jnp.arange(5.0), reverse=True)[0])


@case(1.0, "log", "forward", "inf", 3, says=("`log` of 0",))
def fori_loop(p):
    return lax.fori_loop(
        0,
        8,
        lambda i, c: c + p * jnp.log(jnp.abs(i - 3.0)),  # born
        0.0,
    )


@case([1.0, 0.0], "sqrt", "backward", "inf", then=("mul", "backward", "nan"))
def branch_of_a_cond(p):
    def taken(x):
        return jnp.sqrt(x * x)  # born  # then

    return jnp.sum(lax.cond(p[0] > 0, taken, jnp.sin, p))


@case([1.0, 0.0], "sqrt", "backward", "inf")
def inside_remat(p):
    @jax.checkpoint
    def block(x):
        return jnp.sqrt(x) * jnp.cos(x)  # born

    return jnp.sum(block(p))


@case(
    [[1.0, 2.0], [0.0, 0.0]], "sqrt", "backward", "inf", then=("mul", "backward", "nan")
)
def vmapped_norm(p):
    def length(row):
        return jnp.sqrt(jnp.sum(row * row))  # born

    return jnp.sum(jax.vmap(length)(p))


_LAYERS = np.full((4, 2, 2), 0.25, np.float32)
_LAYERS[2] = [[1.0, -1.0], [-1.0, 1.0]]  # adds up to zero


@case(_LAYERS, "sqrt", "backward", "nan", 2, says=("`sqrt` of 0 is 0",))
def remat_scan_over_layers(p):
    def layer(x, weights):
        scores = x @ weights @ x.T
        x = x + jax.nn.softmax(scores, axis=-1) @ x
        x = x * jnp.sum(weights)
        size = jnp.sqrt(jnp.sum(x * x, axis=-1, keepdims=True))  # born
        return x / (size + 1.0) + 1.0, None

    x, _ = lax.scan(jax.checkpoint(layer), jnp.ones((3, 2)), p)
    return jnp.sum(x)


@case([1.0, 1.0, 1.0], "sqrt", "backward", "inf", then=("mul", "backward", "nan"))
def root_beside_a_parameter_that_is_broadcast(p):
    x = jnp.array([[1.0, 0.0, 3.0], [1.0, 2.0, 3.0]])
    scaled = x * p  # then
    return jnp.mean(jnp.sqrt(jnp.abs(scaled)))  # born


# ---- custom rules


@jax.custom_vjp
def _divider(x):
    return x * x


_divider.defvjp(
    lambda x: (x * x, x),
    lambda x, ct: (2 * ct * x * x / x,),
)


@case(
    [1.0, 0.0],
    "custom_vjp_call",
    "backward",
    "nan",
    says=("Inside the rule: `div` of 0 and 0 is nan",),
)
def rule_whose_backward_divides_by_zero(p):
    return jnp.sum(_divider(p))  # born


@case([[1.0, 0.0]], "custom_vjp_call", "backward", "nan", 0)
def rule_in_a_scan_under_vmap(p):
    def body(c, row):
        return c + jnp.sum(jax.vmap(_divider)(row)), None  # born

    return lax.scan(body, 0.0, p)[0]


@jax.custom_jvp
def _rooted(x):
    return jnp.abs(x)


_rooted.defjvps(lambda t, y, x: t / x * y)


@case([2.0, 0.0], "custom_jvp_call", "backward", "nan", says=("Inside the rule",))
def custom_jvp_that_divides_by_zero(p):
    return jnp.sum(_rooted(p))  # born


@jax.custom_vjp
def _logged(x):
    return jnp.log(x)


_logged.defvjp(lambda x: (jnp.log(x), x), lambda x, ct: (ct / (x + 1),))


@case([2.0, 0.0], "log", "forward", "inf", source=_logged.__wrapped__)
def value_of_a_rule(p):
    return jnp.sum(_logged(p))


# ---- modules


class _Normed(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.Dense(3, name="inner")(x)
        return x / jnp.linalg.norm(x)


_NORMED = _Normed()
_VARIABLES = jax.tree.map(
    jnp.zeros_like, _NORMED.init(jax.random.key(0), np.ones(2, np.float32))
)


@case(_VARIABLES, "div", "forward", "nan", scope="_Normed", source=_Normed.__call__)
def flax_module(p):
    return jnp.sum(_NORMED.apply(p, np.ones(2, np.float32)))


def as_params(params):
    if isinstance(params, list | float):
        return jnp.asarray(params, f32)
    return params


@pytest.mark.parametrize(
    "case",
    [
        pytest.param(case, id=case.name, marks=[pytest.mark.slow] if n % 6 else [])
        for n, case in enumerate(CASES)
    ],
)
def test_where_it_is_born(case):
    found = births_of(case.loss, as_params(case.params))
    assert found, "nothing was found"
    source = case.source or case.loss
    first = found[0]
    text = "\n".join(f"{b.phase} {b.value} {b.site}: {b.message}" for b in found)
    assert (first.site.primitive, first.phase, first.value) == (
        case.primitive,
        case.phase,
        case.value,
    ), text
    assert first.site.file == __file__
    if case.source is None or "# born" in inspect.getsource(source):
        assert first.site.line == marked_line(source, "born"), text
    assert first.site.iteration == case.iteration, text
    for part in case.says:
        assert part in first.message, text
    if case.remedy is not None:
        assert case.remedy in (first.remedy or ""), first.remedy
    if case.scope is not None:
        assert first.site.scope == case.scope
    if "# where" in inspect.getsource(case.loss):
        line = marked_line(case.loss, "where")
        assert f"{__file__}:{line}" in first.message, text
    if case.then is not None:
        second = found[1]
        got = (second.site.primitive, second.phase, second.value)
        assert got == case.then, text


def by_name(name):
    (found,) = [case for case in CASES if case.name == name]
    return found


# ---- correct twins


def norm_of_something(p):
    return jnp.linalg.norm(p)


def double_where_root(p):
    ok = p > 0
    return jnp.sum(jnp.where(ok, jnp.sqrt(jnp.where(ok, p, 1.0)), 0.0))


def masked_attention(p):
    scores = p[:, None] * p[None, :]
    mask = jnp.tril(jnp.ones((3, 3), bool))
    weights = jax.nn.softmax(jnp.where(mask, scores, -jnp.inf), axis=-1)
    return jnp.sum(weights @ p)


def maximum_with_minus_infinity(p):
    return jnp.sum(jnp.maximum(p, jnp.asarray([-jnp.inf, 0.0, 0.0]))) + 1 / jnp.inf


def overflow_that_vanishes(p):
    return jnp.sum(p) + lax.stop_gradient(1 / jnp.exp(jnp.sum(p) * 1e3))


def nan_behind_stop_gradient(p):
    """The root has an infinite slope at 0, which nothing asks for."""
    return jnp.sum(p) + jnp.sum(p * lax.stop_gradient(jnp.sqrt(p - p)))


def root_of_zero_that_nothing_uses(p):
    @jax.jit
    def both(x):
        return jnp.sum(x), jnp.sqrt(x - x)

    return both(p)[0]


def scan_with_a_safe_root(p):
    def body(c, i):
        x = jnp.abs(i - 2.0)
        y = jnp.where(x > 0, jnp.sqrt(jnp.where(x > 0, x * c, 1.0)), 0.0)
        return c + y, None

    return lax.scan(body, p[0], jnp.arange(5.0))[0]


TWINS = [
    norm_of_something,
    double_where_root,
    masked_attention,
    maximum_with_minus_infinity,
    overflow_that_vanishes,
    nan_behind_stop_gradient,
    root_of_zero_that_nothing_uses,
    scan_with_a_safe_root,
]


@pytest.mark.parametrize("loss", TWINS, ids=lambda loss: loss.__name__)
def test_where_all_is_finite_nothing_is_born(loss):
    params = jnp.asarray([1.0, 2.0, 0.5])
    assert np.isfinite(jax.grad(loss)(params)).all()
    assert births_of(loss, params) == ()


# ---- what does not matter is not mentioned


def test_a_harmless_mask_beside_a_birth():
    """The -inf of the mask and the NaN of the root go through the same softmax."""

    def loss(p):
        scores = jnp.sqrt(p)[:, None] * p[None, :]  # born
        mask = jnp.tril(jnp.ones((3, 3), bool))
        weights = jax.nn.softmax(jnp.where(mask, scores, -jnp.inf), axis=-1)
        return jnp.sum(weights @ p)

    found = births_of(loss, jnp.asarray([1.0, -1.0, 2.0]))
    assert [(b.site.primitive, b.site.line) for b in found] == [
        ("sqrt", marked_line(loss, "born"))
    ]


def test_the_iteration_that_matters_is_told_not_the_first():
    """log(0) at iteration 2 is not used; at iteration 5 it is."""

    def loss(p):
        def body(c, i):
            y = jnp.log(jnp.abs(i - 2.0) * jnp.abs(i - 5.0)) * c
            return c + jnp.where(i > 3, y, 0.0), None

        return lax.scan(body, p, jnp.arange(8.0))[0]

    first = births_of(loss, jnp.float32(1.0))[0]
    assert (first.site.primitive, first.site.iteration) == ("log", (5,))


def test_the_leaves_that_it_reaches():
    def loss(p):
        return jnp.sum(jnp.sqrt(p["a"])) + jnp.sum(p["b"] ** 2)

    params = {"a": jnp.zeros(2), "b": jnp.ones(2), "n": 3}
    (birth,) = births_of(loss, params)
    assert birth.leaves == ("['a']",)


def test_two_births_are_both_told():
    def loss(p):
        return jnp.sum(jnp.sqrt(p["a"])) + jnp.sum(jnp.arccos(p["b"]))

    found = births_of(loss, {"a": jnp.zeros(2), "b": jnp.ones(2)})
    told = {b.site.primitive: b.leaves for b in found}
    assert told == {"sqrt": ("['a']",), "acos": ("['b']",)}


def test_a_parameter_that_is_nan_is_named():
    found = births_of(lambda p: jnp.sum(p["w"] ** 2), {"w": jnp.asarray([1.0, np.nan])})
    assert found[0].site.primitive == "integer_pow"
    assert "['w']" in found[0].message


# ---- what cannot be opened


def test_a_shard_map_is_named_and_not_opened():
    mesh = jax.make_mesh((2,), ("d",), axis_types=(jax.sharding.AxisType.Auto,))
    spec = jax.sharding.PartitionSpec("d")

    def loss(p):
        roots = jax.shard_map(jnp.sqrt, mesh=mesh, in_specs=spec, out_specs=spec)
        return jnp.sum(roots(p))  # born

    (birth,) = births_of(loss, jnp.asarray([1.0, 0.0]))
    assert (birth.site.primitive, birth.phase) == ("shard_map", "backward")
    assert birth.site.line == marked_line(loss, "born")
    assert "not opened" in birth.message


def test_a_loss_without_reverse_mode():
    """Nothing can be said of its gradient; its value is followed all the same."""

    def loss(p):
        return lax.while_loop(lambda c: c < 5, lambda c: 2 * c, p)

    assert births_of(loss, jnp.float32(1.0)) == ()
    (birth,) = births_of(lambda p: loss(p + 1) + jnp.log(p), jnp.float32(0.0))
    assert (birth.site.primitive, birth.phase) == ("log", "forward")


@pytest.mark.parametrize("nested", [False, True], ids=["top", "nested"])
def test_an_equation_that_cannot_be_differentiated_by_itself(monkeypatch, nested):
    def loss(p):
        wrap = jax.jit if nested else lambda f: f
        return jnp.sum(wrap(lambda x: jnp.sin(jnp.sqrt(x)))(p))  # born

    original = pullbacks.derivative

    def refusing(site, *rest):
        if site.eqn.primitive.name == "sin":
            raise CannotOpenError("no rule", site.frame, site.k)
        return original(site, *rest)

    monkeypatch.setattr(pullbacks, "derivative", refusing)
    (birth,) = births_of(loss, jnp.asarray([1.0, 0.0]))
    assert birth.site.primitive == ("jit" if nested else "sin")
    assert birth.site.line == marked_line(loss, "born")
    assert ("not opened" if nested else "no rule") in birth.message


# ---- what runs, how often


def test_callbacks_run_once_at_the_top_and_prints_not_at_all(capsys):
    calls = []

    def host(x):
        calls.append(1)
        return x

    def loss(p):
        jax.debug.print("p is {p}", p=p)
        seen = jax.pure_callback(host, jax.ShapeDtypeStruct((), f32), 1.0)
        return jnp.sqrt(p) * seen

    (birth,) = births_of(loss, jnp.float32(0.0))
    jax.effects_barrier()
    assert birth.site.primitive == "sqrt"
    assert len(calls) == 1
    assert capsys.readouterr().out == ""


def test_every_equation_and_iteration_is_counted():
    seen = []
    traced = trace_loss(
        by_name("scan_forward").loss, trees.partition(jnp.float32(1)), (), has_aux=False
    )
    births(traced, advance=seen.append)
    assert len(seen) > 30
    assert set(seen) == {1}


def test_a_program_with_64_bit_types():
    with jax.enable_x64(True):
        traced = trace_loss(
            by_name("exp_overflow").loss,
            trees.partition(jnp.asarray([1000.0, 1.0])),
            (),
            has_aux=False,
        )
    (birth, *_) = births(traced)
    assert (birth.site.primitive, birth.value) == ("exp", "inf")
    assert "f64" in birth.site.equation


def test_while_debug_nans_is_on():
    with jax.debug_nans(True):
        found = births_of(by_name("scan_backward").loss, jnp.float32(1.0))
    assert found[0].site.iteration == (17,)
