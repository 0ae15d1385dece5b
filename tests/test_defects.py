"""The account of a gradient's error, equation by equation."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcheck.gradients.examine import Examination, begin
from jaxcheck.gradients.options import Options
from jaxcheck.gradients.plan import make_plan
from jaxcheck.gradients.writing import ReportWriter
from jaxcheck.jaxprs.trace import trace_loss
from jaxcheck.places.rules.defects import account
from jaxcheck.places.rules.instrument import sites_of
from jaxcheck.places.rules.suspects import everything_else, fault_of, first_suspects
from jaxcheck.trees import partition


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def scaled_tanh(x, factor):
    """Compute tanh; its rule is ``factor`` times the derivative."""
    return jnp.tanh(x)


scaled_tanh.defvjp(
    lambda x, factor: (jnp.tanh(x), jnp.tanh(x)),
    lambda factor, y, g: (factor * g * (1 - y**2),),
)


def meter_of(loss, params, *args):
    parts = partition(params)
    traced = trace_loss(loss, parts, args, has_aux=False)
    options = Options(progress=False)
    plan = make_plan(parts.differentiable, options)
    writer = ReportWriter(traced=traced, options=options, call="", started=0.0)
    begun = begin(traced, plan, options, writer)
    assert isinstance(begun, Examination)
    return begun.verification(plan, options).meter


def books_of(loss, params, *args, wanted=None):
    meter = meter_of(loss, params, *args)
    wanted = wanted or first_suspects(transparent=False)
    sites = sites_of(meter.programs.traced.program, wanted)
    lanes = [meter.everything(0), meter.everything(1)]
    return account(meter, lanes, sites)


def guilty(books):
    return [d for d in books.defects if d.certain.any()]


@pytest.fixture
def weights():
    rng = np.random.default_rng(7)
    return {
        name: jnp.asarray(rng.normal(size=(4, 4)), jnp.float32) for name in ("a", "b")
    }


@pytest.fixture
def x():
    return jnp.asarray(np.random.default_rng(8).normal(size=(6, 4)), jnp.float32)


def chain(params, x, first, second):
    return jnp.sum(
        scaled_tanh(scaled_tanh(x @ params["a"], first) @ params["b"], second)
    )


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [(2.0, 1.0, [0]), (1.0, 2.0, [1]), (1.001, -1.0, [0, 1]), (1.0, 1.0, [])],
)
def test_only_wrong_rules_have_a_defect(weights, x, first, second, expected):
    books = books_of(chain, weights, x, first, second)
    assert [k for k, d in enumerate(books.defects) if d.certain.any()] == expected


@pytest.mark.parametrize("first", [2.0, 1.001, -1.0, 0.0])
def test_defects_add_up_to_the_error(weights, x, first):
    books = books_of(chain, weights, x, first, 1.5)
    assert books.certain.all()
    total = sum(d.total for d in books.defects)
    np.testing.assert_allclose(total, books.error, rtol=1e-6)
    assert np.all(np.abs(books.rest) <= books.rest_tolerance)


def test_all_equations_account_for_a_right_gradient_too(weights, x):
    books = books_of(chain, weights, x, 1.0, 1.0, wanted=everything_else)
    assert len(books.defects) >= 2
    assert not guilty(books)
    assert not books.certain.any()


def test_a_defect_is_the_equations_share_of_the_error(weights, x):
    """Two faults in branches that meet by addition contribute independently."""

    def loss(params, x, f, g):
        left = jnp.sum(scaled_tanh(x @ params["a"], f))
        return left + jnp.sum(scaled_tanh(x @ params["b"], g) ** 2)

    both = books_of(loss, weights, x, 3.0, 0.5)
    left = books_of(loss, weights, x, 3.0, 1.0)
    right = books_of(loss, weights, x, 1.0, 0.5)
    np.testing.assert_allclose(both.error, left.error + right.error, rtol=1e-6)
    np.testing.assert_allclose(both.defects[0].total, left.error, rtol=1e-6)
    np.testing.assert_allclose(both.defects[1].total, right.error, rtol=1e-6)


# ---- through structure


def scanned(params, x):
    def body(carry, row):
        number, state = carry
        # wrong in iterations 2 and 4 only
        wrong = jnp.where((number == 2) | (number == 4), 2.0, 1.0)
        drive = row + state @ params["a"]
        return (number + 1, by(drive, wrong)), None

    return jnp.sum(jax.lax.scan(body, (0, jnp.zeros(4) + 0.1), x)[0][1])


@jax.custom_vjp
def by(x, factor):
    return jnp.tanh(x)


by.defvjp(
    lambda x, factor: (jnp.tanh(x), (jnp.tanh(x), factor)),
    lambda kept, g: (kept[1] * g * (1 - kept[0] ** 2), None),
)


def test_the_wrong_iterations_are_told(weights, x):
    books = books_of(scanned, weights, x)
    (defect,) = guilty(books)
    assert defect.iterations() == [(2,), (4,)]
    np.testing.assert_allclose(defect.total, books.error, rtol=1e-6)


def test_nested_loops_have_an_index_each(weights, x):
    def loss(params, x):
        def outer(carry, k):
            def inner(state, j):
                wrong = jnp.where((k == 1) & (j == 2), 3.0, 1.0)
                return by(state @ params["a"], wrong), None

            return jax.lax.scan(inner, carry, jnp.arange(4))[0], None

        return jnp.sum(jax.lax.scan(outer, x, jnp.arange(3))[0])

    (defect,) = guilty(books_of(loss, weights, x))
    assert defect.iterations() == [(1, 2)]


WRAPS = {
    "jit": jax.jit,
    "remat": jax.checkpoint,
    "remat in jit": lambda f: jax.jit(jax.checkpoint(f)),
    "cond": lambda f: lambda x: jax.lax.cond(x[0, 0] > -1e9, f, lambda x: x, x),
    "switch": lambda f: lambda x: jax.lax.switch(1, [lambda x: x, f, jnp.cos], x),
    "vmap": jax.vmap,
    "scan": lambda f: lambda x: jax.lax.scan(lambda c, r: (c, f(r)), 0.0, x)[1],
    "reverse scan": lambda f: (
        lambda x: jax.lax.scan(lambda c, r: (c, f(r)), 0.0, x, reverse=True)[1]
    ),
    "map": lambda f: lambda x: jax.lax.map(f, x),
}


@pytest.mark.parametrize("wrap", WRAPS.values(), ids=WRAPS)
@pytest.mark.parametrize("factor", [1.0, 1.01])
def test_inside(wrap, factor, weights, x):
    def loss(params, x):
        return jnp.sum(wrap(lambda v: scaled_tanh(v, factor))(x @ params["a"]) ** 2)

    books = books_of(loss, weights, x)
    assert [fault_of(d.site.equation).function.name for d in guilty(books)] == (
        ["scaled_tanh"] if factor != 1.0 else []
    )
    np.testing.assert_allclose(
        sum(d.total for d in books.defects), books.error, rtol=1e-5, atol=1e-12
    )


def test_two_calls_of_one_jitted_function_are_two_sites(weights, x):
    block = jax.jit(lambda v: scaled_tanh(v, 2.0))

    def loss(params, x):
        return jnp.sum(block(x @ params["a"])) + jnp.sum(block(x @ params["b"]))

    books = books_of(loss, weights, x)
    assert len(guilty(books)) == 2
    np.testing.assert_allclose(
        sum(d.total for d in books.defects), books.error, rtol=1e-6
    )


# ---- what is wrong without consequence, or not wrong


@pytest.mark.slow
def test_stop_gradient_in_logsumexp_is_no_defect(weights, x):
    def loss(params, x):
        return jnp.sum(jax.nn.logsumexp(x @ params["a"], axis=-1))

    books = books_of(loss, weights, x, wanted=lambda e: True)
    assert not guilty(books)


def test_a_cut_is_a_defect_only_if_it_is_looked_through(weights, x):
    def loss(params, x):
        return jnp.sum(
            jax.lax.stop_gradient(jnp.tanh(x @ params["a"])) * params["b"][0]
        )

    assert not guilty(books_of(loss, weights, x))
    meter = meter_of(loss, weights, x).transparently()
    sites = sites_of(meter.programs.traced.program, first_suspects(transparent=True))
    books = account(meter, [meter.everything(0)], sites)
    (defect,) = guilty(books)
    assert defect.site.equation.primitive.name == "stop_gradient"
    np.testing.assert_allclose(defect.total, books.error, rtol=1e-6)


def test_a_tie_of_relu_is_no_defect():
    params = {"w": jnp.zeros((4, 3)), "b": jnp.zeros(3)}

    def loss(params):
        return jnp.sum(jax.nn.relu(jnp.ones((2, 4)) @ params["w"] + params["b"]) * 1.5)

    assert not guilty(books_of(loss, params))


@pytest.mark.slow
def test_complex_values(x):
    @jax.custom_vjp
    def square(z):
        return z * z

    def make(backward):
        square.defvjp(lambda z: (z * z, z), backward)

    rng = np.random.default_rng(3)
    z = jnp.asarray(rng.normal(size=3) + 1j * rng.normal(size=3), jnp.complex64)

    def loss(z):
        return jnp.sum(jnp.abs(square(z)) ** 2)

    make(lambda z, g: (2 * z * g,))
    assert not guilty(books_of(loss, z))
    make(lambda z, g: (2 * jnp.conj(z) * g,))
    books = books_of(loss, z)
    assert len(guilty(books)) == 1
    np.testing.assert_allclose(books.defects[0].total, books.error, rtol=1e-6)


def test_a_wrong_primitive_of_somebody_else(weights, x):
    from jax.extend.core import Primitive
    from jax.interpreters import ad, mlir

    cube = Primitive("cube")
    cube.def_impl(lambda x: x**3)
    cube.def_abstract_eval(lambda x: x)
    mlir.register_lowering(cube, mlir.lower_fun(lambda x: x**3, multiple_results=False))
    ad.defjvp(cube, lambda t, x: 2 * x**2 * t)
    jax.interpreters.batching.defvectorized(cube)

    def loss(params, x):
        return jnp.sum(cube.bind(x @ params["a"]))

    (defect,) = guilty(books_of(loss, weights, x))
    assert defect.site.equation.primitive is cube
