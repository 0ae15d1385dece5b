"""One coordinate moved through slabs gives what moving the whole input gives.

The oracle is the program itself (in its float64 reading), evaluated at inputs with that
coordinate moved: what the rules for slabs do may only differ in rounding.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.lax import stop_gradient

from jaxcheck.gradients.arrays import from_real_view, real_view
from jaxcheck.jaxprs import interpret
from jaxcheck.jaxprs.lift import lift
from jaxcheck.jaxprs.onehot import OneHot, Slab, Whole
from jaxcheck.jaxprs.perturb import Perturbation
from tests.programs import PROGRAMS

RNG = np.random.default_rng(0)
RTOL = 1e-12
STEP = 2.0**-4
# Code is generated without optimizing it: it runs once.
QUICK = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
# Coordinates of one input: the first, the last, and some between.
LANES = 5


def numbers(*shape):
    return np.asarray(RNG.uniform(0.5, 1.5, size=shape), np.float32)


X, W, V = numbers(4, 5), numbers(5, 3), numbers(3, 4)
S, IMAGE, KERNEL = numbers(4, 4), numbers(2, 6, 7, 3), numbers(3, 2, 3, 5)
CONV = ("NHWC", "HWIO", "NHWC")


def _conv(image, kernel, numbers=CONV, **options):
    return lax.conv_general_dilated(
        image, kernel, (1, 1), "SAME", dimension_numbers=numbers, **options
    )


def _mlp(x, w, b, v):
    return jnp.tanh(x @ w + b) @ v


def _scan(x, w):
    return lax.scan(lambda c, y: (jnp.tanh(c + y @ w), c), jnp.zeros(3), x)


def _while(x):
    return lax.while_loop(lambda y: jnp.sum(y) < 40, lambda y: 1.25 * y + 0.125, x)


def _cond(x):
    return lax.cond(x[0, 0] > 0.5, jnp.sin, jnp.cos, x) * x


TABLE = {
    "matmul": (jnp.matmul, X, W),
    "matmul_of_transposed": (lambda w, x: w.T @ x.T, W, X),
    "matmul_with_a_constant_left": (lambda w: X @ w, W),
    "matmul_with_a_constant_right": (lambda x: x @ W, X),
    "matmul_chain": (lambda x, w, v: (x @ w) @ v, X, W, V),
    "matmul_chain_other_way": (lambda x, w, v: x @ (w @ v), X, W, V),
    "matmul_with_itself": (lambda s: s @ s, S),
    "matmul_with_its_transpose": (lambda s: s @ s.T + s.T @ s, S),
    "matmul_of_functions": (lambda s: jnp.sin(s) @ jnp.cos(s), S),
    "power_of_a_matrix": (lambda s: s @ s @ s, S),
    "matrix_vector": (lambda x, u: x @ u, X, numbers(5)),
    "vector_matrix": (lambda u, w: u @ w, numbers(5), W),
    "dot": (jnp.dot, numbers(5), numbers(5)),
    "outer": (jnp.outer, numbers(4), numbers(3)),
    "batched_matmul": (jnp.matmul, numbers(2, 3, 4), numbers(2, 4, 5)),
    "matmul_of_a_cube": (jnp.matmul, numbers(2, 3, 5), W),
    "matrix_times_cube": (
        lambda x, c: jnp.einsum("ij,kjl->ikl", x, c),
        X,
        numbers(2, 5, 3),
    ),
    "tensordot_of_two_axes": (
        lambda a, b: jnp.tensordot(a, b, 2),
        numbers(2, 3, 4),
        numbers(3, 4, 5),
    ),
    "einsum": (lambda a, b: jnp.einsum("ij,kj->ki", a, b), X, numbers(3, 5)),
    "mlp": (_mlp, X, W, numbers(3), V),
    "column_added_to_a_matrix": (lambda a, x: (a + x) * 2, numbers(4, 1), X),
    "row_added_to_a_matrix": (lambda r, x: (r + x) @ W, numbers(1, 5), X),
    "one_added_to_a_matrix": (lambda a, x: (a + x) * 2, numbers(1, 1), X),
    "shared_weight": (lambda x, w: jnp.tanh(x @ w) @ w.T @ w, X, W),
    "scaled_matmul": (lambda x, w: 2 * (x @ (w * w)), X, W),
    "masked_matmul": (lambda x, w: x @ jnp.where(w > 1, w, 0), X, W),
    "matmul_of_normalized": (lambda x, w: x @ (w / jnp.sum(w, 0)), X, W),
    "matmul_of_shifted": (lambda x, w: x @ (w + jnp.sum(w)), X, W),
    "convolution": (_conv, IMAGE, KERNEL),
    "convolution_twice": (
        lambda i, k, m: _conv(jnp.tanh(_conv(i, k)), m),
        IMAGE,
        KERNEL,
        numbers(2, 2, 5, 2),
    ),
    "convolution_oihw": (
        lambda i, k: _conv(i, k, ("NCHW", "OIHW", "NCHW")),
        numbers(2, 3, 5, 6),
        numbers(4, 3, 2, 2),
    ),
    "convolution_grouped": (
        functools.partial(_conv, feature_group_count=3),
        IMAGE,
        numbers(3, 2, 1, 6),
    ),
    "convolution_biased": (lambda i, k, b: _conv(i, k) + b, IMAGE, KERNEL, numbers(5)),
    "transpose": (lambda x: x.T * 2, X),
    "transpose_cube": (lambda c: c.transpose(2, 0, 1) ** 2, numbers(2, 3, 4)),
    "transpose_and_matmul": (
        lambda c: c.transpose(1, 2, 0) @ numbers_like(c),
        numbers(2, 3, 4),
    ),
    "reshape_flat": (lambda x: jnp.sin(x.reshape(-1)), X),
    "reshape_split": (lambda x: x.reshape(2, 2, 5) + 1, X),
    "reshape_merged": (lambda c: c.reshape(6, 4) * 2, numbers(2, 3, 4)),
    "reshape_mixed": (lambda x: x.reshape(5, 4) @ X, X),
    "reshape_ones": (lambda x: x.reshape(4, 1, 5, 1) * 2, X),
    "reshape_of_equal_sizes": (lambda s: s.reshape(1, 4, 4) @ S, S),
    "reshape_of_ones": (lambda a: a.reshape(1, 3, 1, 1) * 2, numbers(3, 1)),
    "squeeze": (lambda a: jnp.squeeze(a) * 3, numbers(1, 5, 1)),
    "broadcast": (lambda b: jnp.broadcast_to(b, (4, 5)) * X, numbers(5)),
    "broadcast_of_one": (lambda b: jnp.broadcast_to(b, (4, 5)) * X, numbers(4, 1)),
    "broadcast_rows": (lambda b, x: b[:, None] * x, numbers(4), X),
    "broadcast_middle": (lambda x: x[:, None, :] * numbers_like(x, 2), X),
    "bias_added_twice": (lambda x, b: (x + b) @ (x + b).T, X, numbers(5)),
    "pairwise": (lambda u: jnp.exp(u[:, None] - u[None, :]), numbers(4)),
    "sum_rows": (lambda x: jnp.sum(x, 0) ** 2, X),
    "sum_columns": (lambda x: jnp.sum(x, 1) ** 2, X),
    "sum_all": (lambda x: jnp.sum(x) ** 2, X),
    "sum_of_a_cube": (lambda c: jnp.sum(c, (0, 2)), numbers(2, 3, 4)),
    "sum_kept": (lambda c: jnp.sum(c, (0, 1)) * 2, numbers(2, 3, 4)),
    "reductions": (lambda x: jnp.max(x, 0) * jnp.prod(x) + jnp.min(x, 0), X),
    "softmax": (lambda x: jax.nn.softmax(x, -1), X),
    "softmax_of_logits": (lambda x, w: jax.nn.log_softmax(x @ w), X, W),
    "layer_norm": (lambda x: (x - x.mean(-1, keepdims=True)) / x.std(), X),
    "select": (lambda x: jnp.where(x > 1, x, jnp.sin(x)), X),
    "clamp": (lambda x: jnp.clip(x, 0.75, 1.25) * x, X),
    "clamp_by_a_scalar_input": (lambda x, s: lax.clamp(0.75, x, s), X, numbers()),
    "select_by_a_scalar_predicate": (
        lambda x, s: lax.select_n(s > 2, x, 2 * x),
        X,
        numbers(),
    ),
    "gather": (lambda x: x[jnp.array([2, 0, 2])] * 2, X),
    "concatenate": (lambda x, y: jnp.concatenate([x, y]) @ W, X, numbers(2, 5)),
    "cumsum": (lambda x: jnp.cumsum(x, 1), X),
    "scalar": (jnp.sin, numbers()),
    "scalars": (lambda a, b, c: a * b + jnp.exp(c), numbers(), numbers(), numbers()),
    "scalar_times_matrix": (lambda s, x: (s * x) @ W, numbers(), X),
    "scalar_broadcast": (lambda s: jnp.full((2, 3), s) * 2, numbers()),
    "one_element": (lambda a: a @ a.T, numbers(1, 1)),
    "different_sizes": (lambda a, b, c: a.sum() * b @ c, numbers(2), W, numbers(3)),
    "met_at_bounded_positions": (lambda a, b: (a @ b.T) @ b, numbers(3, 2), W.T[:, :2]),
    "unused_input": (lambda a, b: a * 2, X, W),
    "input_as_output": (lambda a, b: (a, b.T), X, W),
    "integers": (lambda x, n: x * n, X, np.arange(5, dtype=np.int32)),
    "scan": (_scan, X, W),
    "scan_over_slabs": (lambda x: lax.scan(lambda c, y: (c * y, c + y), 1.0, x[0]), X),
    "while": (_while, numbers(4)),
    "cond": (_cond, X),
    "jit": (jax.jit(lambda x, w: jax.jit(jnp.matmul)(x, w) * 2), X, W),
    "vmap": (jax.vmap(lambda x: jnp.tanh(x @ W)), X),
    "complex": (lambda z: jnp.abs(z) ** 2, numbers(5) + 1j * numbers(5)),
    "complex_matmul": (
        lambda z, x: (x @ z) * jnp.conj(z),
        numbers(5) + 1j * numbers(5),
        numbers(5, 5),
    ),
    "complex_scalar": (jnp.exp, np.complex64(0.5 + 0.25j)),
}


def numbers_like(value, *front):
    """Fixed weights of a value's shape, or with axes in front of its last."""
    shape = value.shape if not front else (value.shape[0], *front, value.shape[-1])
    if len(shape) == 3 and not front:
        shape = (shape[1], shape[0], 2)
    return jnp.cos(jnp.arange(float(np.prod(shape)))).reshape(shape)


FROZEN = {
    "stop_gradient": (lambda x: stop_gradient(jnp.sin(x)) * x, X),
    "stop_gradient_of_a_product": (lambda x, w: stop_gradient(x @ w) * (x @ w), X, W),
    "stop_gradient_of_an_operand": (lambda x, w: stop_gradient(x) @ w + x @ w, X, W),
    "stop_gradient_of_a_sum": (lambda x: x * stop_gradient(jnp.sum(x)), X),
    "stop_gradient_of_a_scalar": (lambda s: s * stop_gradient(s), numbers()),
    "straight_through": (lambda x: (x + stop_gradient(jnp.round(x) - x)) @ W, X),
    "two_sites": (lambda x: stop_gradient(x * stop_gradient(x)) * x, X),
    "stop_gradient_in_a_loop": (
        lambda x: lax.scan(lambda c, y: (c * y + stop_gradient(c), c), x[0], x),
        S,
    ),
    "stop_gradient_in_a_branch": (
        lambda x: lax.cond(x[0, 0] > 0, lambda x: stop_gradient(x) * x, jnp.sin, x),
        X,
    ),
    "shifted_softmax": (
        lambda x, w: jnp.exp(x @ w - stop_gradient(jnp.max(x @ w, 1, keepdims=True))),
        X,
        W,
    ),
}


def read(fun, inputs):
    """The float64 reading, as a check evaluates it."""
    with jax.enable_x64(False):
        traced = jax.make_jaxpr(fun)(*inputs)
    with jax.enable_x64(True):
        return lift(traced, rules="inline", native=False, native_x64=False)


def widened(x):
    if not is_float(x):
        return x
    wide = np.complex128 if jnp.iscomplexobj(x) else np.float64
    return jnp.asarray(np.asarray(x).astype(wide))


def is_float(x):
    return bool(jnp.issubdtype(x.dtype, jnp.inexact))


def coordinates(size):
    """Some coordinates of an input of ``size`` real numbers."""
    return np.unique(np.linspace(0, size - 1, min(size, LANES)).astype(int))


def moved_lanes(program, inputs, flags, step=STEP):
    """Outputs with one coordinate moved: through slabs, and by the program itself."""
    perturbation = Perturbation(program)
    moving = [k for k, x in enumerate(inputs) if is_float(x) and x.size]
    views = {k: real_view(inputs[k]) for k in moving}

    def one_hot(which, inner, last, step):
        moves = perturbation.moves(flags)
        one = OneHot(inner % last, moves)
        args = list(inputs)
        for k in moving:
            out = one.moved(views[k], inner, which == k, step)
            if jnp.iscomplexobj(inputs[k]):
                moved = from_real_view(one.whole(out), is_complex=True)
                out = Whole(inputs[k], moved)
            args[k] = out
        return one.run(program, args)

    def dense(which, inner, last, step):
        args = list(inputs)
        for k in moving:
            count = jnp.arange(views[k].size).reshape(views[k].shape)
            shift = jnp.where((count == inner) & (which == k), step, 0.0)
            args[k] = from_real_view(
                views[k] + shift, is_complex=jnp.iscomplexobj(inputs[k])
            )
        return perturbation(inputs, args, flags)

    lanes = [
        (k, c, views[k].shape[-1] if views[k].ndim else 1, step)
        for k in moving
        for c in coordinates(views[k].size)
    ]
    columns = [np.array(column) for column in zip(*lanes, strict=True)]

    def both(*columns):
        return jax.vmap(one_hot)(*columns), jax.vmap(dense)(*columns)

    return jax.tree.map(np.asarray, jax.jit(both, compiler_options=QUICK)(*columns))


def assert_alike(got, wanted):
    __tracebackhide__ = True
    for mine, theirs in zip(got, wanted, strict=True):
        assert mine.shape == theirs.shape
        scale = np.max(np.abs(theirs), initial=1e-300, where=np.isfinite(theirs))
        np.testing.assert_allclose(mine, theirs, rtol=RTOL, atol=RTOL * scale)


def flags_of(program, transparent):
    return np.full(len(Perturbation(program).sites), transparent)


@pytest.mark.parametrize("name", TABLE)
def test_a_moved_coordinate_gives_what_the_program_gives(name):
    fun, *inputs = TABLE[name]
    program = read(fun, inputs)
    with jax.enable_x64(True):
        inputs = [widened(np.asarray(x)) for x in inputs]
        assert_alike(*moved_lanes(program, inputs, flags_of(program, False)))


@pytest.mark.parametrize("transparent", [False, True])
@pytest.mark.parametrize("name", FROZEN)
def test_stop_gradients_hold_constant_what_they_are_told_to(name, transparent):
    fun, *inputs = FROZEN[name]
    program = read(fun, inputs)
    with jax.enable_x64(True):
        inputs = [widened(np.asarray(x)) for x in inputs]
        flags = flags_of(program, transparent)
        assert len(flags) > 0
        got, wanted = moved_lanes(program, inputs, flags)
    assert_alike(got, wanted)


BY_NAME = {p.name: p for p in PROGRAMS if p.reference == "float64"}
# Foreign calls have no batching rule, and effects are no values.
SKIPPED = {n for n in BY_NAME if "callback" in n or "debug" in n or "pallas" in n}
SKIPPED |= {"shard_map_ppermute_in_scan"}  # has no float64 reading to compare with


@pytest.mark.parametrize("name", sorted(set(BY_NAME) - SKIPPED)[::4])
def test_every_kind_of_program_is_moved_alike(name):
    with jax.enable_x64(False):
        fun, inputs = BY_NAME[name].build()
    program = read(fun, inputs)
    with jax.enable_x64(True):
        inputs = [widened(x) for x in inputs]
        got, wanted = moved_lanes(program, inputs, flags_of(program, False), 2.0**-7)
    assert_alike(got, wanted)


@pytest.mark.parametrize("name", ["matmul", "mlp", "convolution", "different_sizes"])
def test_no_step_is_the_program_at_the_point(name):
    fun, *inputs = TABLE[name]
    program = read(fun, inputs)
    with jax.enable_x64(True):
        inputs = [widened(np.asarray(x)) for x in inputs]
        got, _ = moved_lanes(program, inputs, flags_of(program, False), 0.0)
        plain = interpret.evaluate(program, inputs)
    for mine, value in zip(got, plain, strict=True):
        for lane in mine:
            np.testing.assert_allclose(lane, value, rtol=RTOL)


def one_lane(view, position, coordinate=0, *, active=True):
    with jax.enable_x64(True):
        one = OneHot(jnp.asarray(position), Perturbation(_nothing()).moves([]))
        flag, step = jnp.asarray(active), jnp.asarray(STEP)
        moved = one.moved(jnp.asarray(view), jnp.asarray(coordinate), flag, step)
        return one, moved


def _nothing():
    return jax.make_jaxpr(lambda x: x)(1.0)


@pytest.mark.parametrize("coordinate", [0, 7, 14])
@pytest.mark.parametrize("active", [True, False])
def test_an_input_moves_in_one_place_or_not_at_all(coordinate, active):
    view = np.arange(15.0).reshape(5, 3)
    one, moved = one_lane(view, coordinate % 3, coordinate, active=active)

    assert isinstance(moved, Slab)
    assert (moved.axis, moved.size) == (1, 3)
    wanted = view.copy()
    wanted.flat[coordinate] += STEP * active
    with jax.enable_x64(True):
        np.testing.assert_array_equal(one.whole(moved), wanted)


def test_a_scalar_moves_as_a_whole():
    one, moved = one_lane(np.float64(2), 0)
    assert isinstance(moved, Whole)
    assert float(moved.base) == 2
    assert float(one.whole(moved)) == 2 + STEP


def kept_slabs(fun, *inputs, moving=1):
    """Which equations of ``fun`` still had a slab as their result.

    The first ``moving`` inputs may move.
    """
    program = read(fun, inputs)
    kept = []

    class Watched(OneHot):
        def _equation(self, eqn, values):
            out = super()._equation(eqn, values)
            moves = any(isinstance(v, Slab | Whole) for v in values)
            if moves:
                kept.append((eqn.primitive.name, isinstance(out[0], Slab)))
            return out

    with jax.enable_x64(True):
        one = Watched(jnp.asarray(0), Perturbation(program).moves([]))
        args = [widened(x) for x in inputs]
        for k in range(moving):
            active = jnp.asarray(k == 0)
            args[k] = one.moved(args[k], jnp.asarray(0), active, jnp.asarray(STEP))
        one.run(program, args)
    return kept


@pytest.mark.parametrize(
    ("fun", "inputs"),
    [
        (lambda w: X @ w, [W]),
        (lambda w: jnp.tanh(X @ w + 1) * 2, [W]),
        (lambda w: X @ w + numbers(1, 3), [W]),
        (lambda k: jax.nn.relu(_conv(IMAGE, k)), [KERNEL]),
        (lambda w: jnp.sum((X @ w).reshape(2, 2, 3), (0, 1)), [W]),
        (lambda w: (X @ w).T[:, None, :] * 2, [W]),
        (lambda b: jnp.broadcast_to(b, (4, 5)) * X, [numbers(5)]),
    ],
    ids=[
        *("matmul", "layer", "constant_bias", "convolution", "reduced", "transposed"),
        "bias",
    ],
)
def test_what_stays_in_one_slab_is_computed_as_one(fun, inputs):
    kept = kept_slabs(fun, *inputs)
    assert len(kept) >= 1
    assert all(is_slab for _, is_slab in kept), kept


def test_a_bias_that_may_move_keeps_its_layer_in_one_slab():
    kept = kept_slabs(lambda w, b: jnp.tanh(X @ w + b) * 2, W, numbers(3), moving=2)
    assert len(kept) >= 4
    assert all(is_slab for _, is_slab in kept), kept


def test_what_is_repeated_along_the_axis_is_made_whole():
    kept = kept_slabs(lambda a: jnp.add(a, X), numbers(4, 1))
    assert not any(is_slab for name, is_slab in kept if name == "add"), kept


def test_what_mixes_the_slabs_is_made_whole():
    kept = kept_slabs(lambda x: jnp.cumsum(jnp.sin(x), 1), X)
    assert kept[0] == ("sin", True)
    assert not kept[-1][1]
