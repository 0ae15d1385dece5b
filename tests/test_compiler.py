"""What the compiler gets wrong is told from what rounding does."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

import jaxcheck
from jaxcheck import Verdict, trees
from jaxcheck.gradients.program import Programs
from jaxcheck.jaxprs import compat, rounding, stepwise
from jaxcheck.jaxprs.trace import trace_loss
from jaxcheck.places.compiler.smallest import smallest_part
from tests.located import MODELS

# ---- a compiler that gets one thing wrong: the identity of a product, in one program


def identity(name, factor):
    """The identity; compiled, that of a product is ``factor`` times as much."""
    primitive = Primitive(name)
    primitive.def_impl(lambda x: x)
    primitive.def_abstract_eval(lambda x: x)
    ad.deflinear2(primitive, lambda cotangent, x: [primitive.bind(cotangent)])
    batching.defvectorized(primitive)

    def lowered(ctx, x):
        made_by = getattr(x.owner, "name", "")
        if made_by != "stablehlo.multiply" or factor == 1:
            return [x]
        times = mlir.lower_fun(lambda x: x * factor, multiple_results=False)
        return times(ctx, x)

    mlir.register_lowering(primitive, lowered, cacheable=False)
    return primitive.bind


broken = identity("broken", 1.01)
sound = identity("sound", 1.0)


def line_of(function, text):
    """The number of the line of ``function`` that holds ``text``."""
    lines, first = inspect.getsourcelines(function)
    return first + next(k for k, line in enumerate(lines) if text in line)


def compiler_findings(report):
    return [f for f in report.findings if f.kind == "compiler"]


W = np.linspace(0.3, 1.7, 6).astype(np.float32)
X = np.linspace(-1.0, 2.0, 6).astype(np.float32)


def loss_of(identity):
    def loss(w):
        return jnp.sum(jnp.sin(identity(w * X)))

    return loss


def test_a_loss_that_is_compiled_wrong():
    loss = loss_of(broken)
    report = jaxcheck.check(loss, W)
    finding, *others = compiler_findings(report)
    assert finding.site.file == __file__
    assert finding.site.line == line_of(loss_of, "jnp.sin(identity")
    assert "2 equations" in finding.message
    assert [
        line.split(" = ")[1].split()[0] for line in finding.site.equation.split("\n")
    ] == ["mul", "broken"]
    assert finding.site.details[0] in str(report)
    assert all("gradient" in f.message for f in others)


def test_a_gradient_that_is_compiled_wrong():
    def loss(w):
        return jnp.sum(broken(jnp.sin(w)) * X)

    report = jaxcheck.check(loss, W)
    assert report.verdict is Verdict.WRONG, str(report)
    assert "compiled" in report.leaves[0].reason
    (site,) = report.culprits
    assert site.line == line_of(test_a_gradient_that_is_compiled_wrong, "jnp.sin(w)")
    assert jaxcheck.locate(loss, W) == (site,)


def test_inside_a_loop():
    def loss(w):
        def body(carry, x):
            return carry + jnp.sum(jnp.cos(broken(w * x))), None

        return jax.lax.scan(body, 0.0, X)[0]

    finding = compiler_findings(jaxcheck.check(loss, W))[0]
    assert finding.site.line == line_of(test_inside_a_loop, "broken(w * x)")
    assert finding.site.iteration == (0,)


@pytest.mark.parametrize("mode", ["directional", "exhaustive"])
def test_a_compiler_that_is_right(mode):
    report = jaxcheck.check(loss_of(sound), W, mode=mode)
    assert report.verdict is Verdict.CORRECT
    assert not compiler_findings(report)


@pytest.mark.skipif(jax.__version__ != "0.10.2", reason="only jax 0.10.2 has this")
@pytest.mark.parametrize(("dtype", "rows"), [("float64", 16_385), ("float32", 32_769)])
@pytest.mark.parametrize("reduced", [jnp.sum, jnp.mean, lambda y: y[-1]])
def test_the_miscompiled_product_of_issue_39103(dtype, rows, reduced):
    with jax.enable_x64(True):
        first = jnp.arange(rows, dtype=dtype)
        x = jnp.stack([first, 0 * first, 0 * first], axis=1)
        matrix = jnp.eye(3, dtype=dtype)

        def loss(x):
            return reduced(jax.vmap(lambda row: jnp.sum((matrix @ row) ** 2))(x))

        (finding,) = compiler_findings(jaxcheck.check(loss, x))
    assert "dot_general" in finding.site.equation
    assert "3 equations" in finding.message


# ---- rounding, however large, is not the compiler's fault


def logistic_map(x):
    """Every step doubles an error: after sixty, float32 knows nothing."""
    return jax.lax.scan(lambda x, _: (3.9 * x * (1 - x), None), x, length=60)[0].sum()


CONTROLS = {
    "cancellation": lambda x: jnp.sum((1 + x) ** 2 - 1 - 2 * x - x * x),
    "a variance by squares": lambda x: (
        jnp.mean((x + 1e3) ** 2) - jnp.mean(x + 1e3) ** 2
    ),
    "a product fused with a sum": lambda x: jnp.sum(x * 3.7 - x * 3.7 + x * 1e-9),
    "chaos": lambda x: logistic_map(jax.nn.sigmoid(x)),
    "a long sum": lambda x: jnp.sum(jnp.tile(x, 10_000) * 0.1),
    "softmax": lambda x: -jax.nn.log_softmax(300 * x)[0],
    "tanh chain": lambda x: jnp.sum(
        jax.lax.fori_loop(0, 30, lambda _, h: jnp.tanh(1.5 * h), x)
    ),
    "a maximum": lambda x: jnp.max(x * 1.1) + jnp.min(jnp.exp(x)),
    "a rounded product": lambda x: jnp.sum(jnp.round(x * 7.0)) + jnp.sum(x),
    "low precision": lambda x: jnp.sum(
        jnp.tanh(x.astype(jnp.bfloat16) @ jnp.ones((64, 8), jnp.bfloat16))
    ).astype(jnp.float32),
    "fft": lambda x: jnp.sum(jnp.abs(jnp.fft.fft(x)) ** 2),
    "cholesky": lambda x: jnp.linalg.cholesky(
        jnp.outer(x, x) + 1e-3 * jnp.eye(64)
    ).sum(),
}


def beyond_rounding(loss, params, args=()):
    """The part of loss or gradient that differs from its equations, if one does."""
    traced = trace_loss(loss, trees.partition(params), args, has_aux=False)
    programs = Programs(traced, precision="native", lanes=1)
    with compat.x64(traced.x64):
        inputs = programs.native_inputs
        found = [
            smallest_part(program, inputs, lambda n: None)
            for program in (traced.program, programs.native_program())
        ]
    return [part for part in found if part is not None]


@pytest.mark.parametrize("name", CONTROLS)
def test_rounding_is_not_held_against_the_compiler(name):
    x = np.random.default_rng(1).normal(size=64).astype(np.float32)
    assert beyond_rounding(CONTROLS[name], x) == []


@pytest.mark.slow
@pytest.mark.parametrize("case", MODELS, ids=lambda case: case.name)
def test_models_are_compiled_right(case):
    model = case()
    assert beyond_rounding(model.loss_fn, model.params, model.args) == []


def test_random_rounding_leaves_random_keys_as_they_are():
    x = np.linspace(0, 1, 16, dtype=np.float32)

    def noisy(x):
        key = jax.random.split(jax.random.key(3))[1]
        return [jnp.sin(x) + jax.random.normal(key, x.shape)]

    runs = rounding.random_runs(compat.make_program(noisy, [x]), [x])
    for (value,) in runs:
        np.testing.assert_allclose(value, noisy(x)[0], rtol=1e-5, atol=1e-6)
    assert not np.array_equal(runs[0][0], runs[1][0])


def test_random_rounding_covers_the_error_of_a_sum():
    """The sum in another order is within what is tolerated; a lost term is not."""
    x = np.random.default_rng(0).normal(size=100_000).astype(np.float32)
    program = compat.make_program(lambda x: [jnp.sum(x)], [x])
    (value,) = stepwise.one_by_one(program, [x])
    others = [
        stepwise.one_by_one(program, [x], rounding.rounded(np.random.default_rng(k)))[0]
        for k in range(rounding.RUNS)
    ]
    another = np.float32(0)
    for term in np.sort(x):
        another += term
    assert rounding.beyond(another, value, others) <= 1
    assert rounding.beyond(value + np.float32(1e5), value, others) > 1


def test_only_one_of_two_that_is_finite_is_beyond_rounding():
    value = jnp.ones(3)
    assert np.isinf(rounding.beyond(np.array([1, np.nan, 1.0]), value, [value]))[1]
    assert np.all(rounding.beyond(np.full(3, np.nan), value * jnp.nan, [value]) == 0)
