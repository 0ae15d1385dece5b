"""The distance of the nearest switch, against the program itself.

The oracle knows nothing of switches: the programs of the table are piecewise linear, so
along a line the first switch is where the values leave the straight line, and that
place is found by bisection.
"""

from __future__ import annotations

import functools
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.lax import stop_gradient

from jaxcheck.jaxprs import compat
from jaxcheck.jaxprs.compiled import Compiled
from jaxcheck.jaxprs.lift import lift
from jaxcheck.jaxprs.switches import Switches, nearest_switches

RNG = np.random.default_rng(3)
X, V = RNG.normal(size=(4, 6)), RNG.normal(size=(4, 6))
WEIGHTS = RNG.normal(size=200)
INPUT_WEIGHTS, OUTPUT_WEIGHTS = RNG.normal(size=(6, 8)), RNG.normal(size=(8, 3))
FARTHEST = 4.0
HERE = inspect.currentframe().f_code.co_filename


def reading(fun, *inputs, native=False):
    program = jax.make_jaxpr(fun)(*inputs)
    with compat.x64(True):
        return lift(program, rules="inline", native=native, native_x64=False)


def switches_of(fun, x, v):
    """Switches of the float64 reading; everything must have been looked into."""
    x = np.asarray(x, np.float32)
    found, unseen = nearest_switches(reading(fun, x), [x], [np.asarray(v)])
    assert unseen == ()
    return found


def nearest(fun, x, v):
    """The distance of the nearest switch, infinite if there is none."""
    return min((s.distance for s in switches_of(fun, x, v)), default=np.inf)


def line_of(fun, text):
    """Line of the source of ``fun`` that contains ``text``."""
    lines, start = inspect.getsourcelines(fun)
    (k,) = [k for k, line in enumerate(lines) if text in line]
    return start + k


# ------------------------------------------------------- the table: piecewise linear


def _while(x):
    return lax.while_loop(
        lambda y: jnp.sum(y) < 30, lambda y: y + 0.5 + jax.nn.relu(y - 1), x
    )


def _scan(x):
    body = lambda c, row: (jax.nn.relu(c + row), jnp.abs(c - row))  # noqa: E731
    return jnp.concatenate([*map(jnp.ravel, lax.scan(body, 0.1 * x[0], x))])


def _cond(x):
    return lax.cond(jnp.sum(x) > 0.3, lambda x: jnp.abs(x[0]), lambda x: 2 * x[1], x)


def _pick(x):
    return x[jnp.arange(4), jnp.argmax(x, -1)]


@jax.custom_jvp
def _my_relu(x):
    return jnp.where(x > 0, x, 0)


_my_relu.defjvps(lambda t, out, x: jnp.where(x > 0, t, 0))


@jax.custom_vjp
def _my_abs(x):
    return jnp.abs(x)


_my_abs.defvjp(lambda x: (jnp.abs(x), x), lambda x, ct: (jnp.sign(x) * ct,))


def _pool(x, **more):
    return lax.reduce_window(
        x, -jnp.inf, lax.max, (2, 3), (1, 2), "SAME", window_dilation=(2, 1), **more
    )


def _mlp(x):
    return jax.nn.leaky_relu(jax.nn.relu(x @ INPUT_WEIGHTS) @ OUTPUT_WEIGHTS)


def _lexicographic(x):
    ranks = jnp.array([0, 1, 1, 0, 0, 1], jnp.int32)
    return lax.sort([ranks, x[0], x[1]], num_keys=2)[2]


PIECEWISE_LINEAR = {
    "relu": jax.nn.relu,
    "leaky_relu": jax.nn.leaky_relu,
    "relu6": lambda x: jax.nn.relu6(4 * x),
    "hard_tanh": jax.nn.hard_tanh,
    "abs": jnp.abs,
    "sign": jnp.sign,
    "max": lambda x: jnp.maximum(x[0], x[1]),
    "min": lambda x: jnp.minimum(x, x[:, :1] + 0.2),
    "floor": jnp.floor,
    "ceil": lambda x: jnp.ceil(3 * x),
    "round": lambda x: jnp.round(3 * x),
    "round_half_away": lambda x: lax.round(3 * x),
    "trunc": jnp.trunc,
    "to_integer": lambda x: (3 * x).astype(jnp.int32).astype(jnp.float32),
    "rem": lambda x: lax.rem(x, jnp.full_like(x, 0.75)),
    "mod": lambda x: jnp.mod(x, 0.75),
    "clamp": lambda x: lax.clamp(-0.5, x, 0.75),
    "clip_by_itself": lambda x: jnp.clip(x, x[0], 1.5),
    "where": lambda x: jnp.where(x > 0.25, 2 * x, -x),
    "where_of_equals": lambda x: jnp.where((x <= 0.25) & (x >= -1), 2 * x, x[0] - x),
    "multiplied_by_predicate": lambda x: x[1] * (x[0] < x[2]),
    "sort": lambda x: jnp.sort(x, -1),
    "sort_columns": lambda x: jnp.sort(x, 0),
    "argsort": lambda x: jnp.take_along_axis(x[::-1], jnp.argsort(x, -1), -1),
    "lexicographic": _lexicographic,
    "sorted_vector": lambda x: jnp.sort(x.ravel()),
    "top_k": lambda x: lax.top_k(x, 3)[0],
    "top_all": lambda x: lax.top_k(x, 6)[0],
    "argmax": _pick,
    "argmin": lambda x: x[jnp.argmin(x, 0), jnp.arange(6)],
    "reduce_max": lambda x: jnp.max(x, -1),
    "reduce_max_of_all": jnp.max,
    "reduce_min": lambda x: jnp.min(x[None], (0, 2)),
    "cummax": lambda x: lax.cummax(x, 1),
    "cummax_reversed": lambda x: lax.cummax(x, 0, reverse=True),
    "cummin": lambda x: lax.cummin(x, 1, reverse=True),
    "max_pool": _pool,
    "max_pool_dilated": functools.partial(_pool, base_dilation=(1, 2)),
    "min_pool": lambda x: lax.reduce_window(
        x, jnp.inf, lax.min, (2, 2), (2, 2), "VALID"
    ),
    "mlp": _mlp,
    "jit": jax.jit(lambda x: jax.jit(jax.nn.relu)(x - 0.5) + jax.nn.relu(x)),
    "remat": jax.checkpoint(lambda x: jax.nn.relu(x @ INPUT_WEIGHTS[:, :3])),
    "custom_jvp": _my_relu,
    "custom_vjp": _my_abs,
    "vmap": jax.vmap(jax.vmap(lambda x: jnp.where(x < 0.1, x, 0))),
    "scan": _scan,
    "scan_reversed": lambda x: lax.scan(
        lambda c, row: (jnp.maximum(c, row), None), x[0], x, reverse=True
    )[0],
    "fori": lambda x: lax.fori_loop(0, 3, lambda k, y: jax.nn.relu(y - 0.1 * k), x),
    "while": _while,
    "cond": _cond,
    "cond_other_branch": lambda x: _cond(-x),
    "cond_in_scan": lambda x: lax.scan(
        lambda c, row: (c + 1, lax.cond(c[0] > 2, jnp.abs, jnp.sign, row)), x[0], x
    )[1],
    "scan_in_jit_in_while": lambda x: lax.while_loop(
        lambda y: jnp.max(y) < 9, lambda y: jax.jit(_twice)(y) + 1, x
    ),
}


def _twice(x):
    return lax.scan(lambda c, _: (jax.nn.leaky_relu(c), None), x, None, 2)[0]


def straight_until(fun, x, v):
    """The least |t| at which ``fun(x + t v)`` leaves the straight line through 0.

    Each side is searched on a grid, then by bisection.
    """

    @jax.jit
    def along(t):
        out = jnp.ravel(fun(x + t * v).astype(jnp.float64))
        return out @ WEIGHTS[: out.size]

    @jax.jit
    def line(t):
        return along(0.0) + t * (along(1e-6) - along(-1e-6)) / 2e-6

    def strays(t):
        return np.abs(along(t) - line(t)) > 1e-7 * (np.abs(t) + 1e-3)

    stray = jax.jit(jax.vmap(lambda t: jnp.abs(along(t) - line(t))))
    first = []
    for side in (1, -1):
        grid = side * np.linspace(0, FARTHEST, 4001)
        away = np.asarray(stray(grid)) > 1e-7 * (np.abs(grid) + 1e-3)
        if not away.any():
            continue
        k = int(np.argmax(away))
        low, high = grid[k - 1], grid[k]
        for _ in range(40):
            middle = (low + high) / 2
            low, high = (low, middle) if strays(middle) else (middle, high)
        first.append(abs(high))
    return min(first)


@pytest.mark.parametrize("name", PIECEWISE_LINEAR)
def test_nearest_switch_is_where_the_program_leaves_the_line(name):
    fun = PIECEWISE_LINEAR[name]
    with jax.enable_x64(True):
        x, v = jnp.asarray(X), jnp.asarray(V)
        wanted = straight_until(fun, x, v)
        found, unseen = nearest_switches(jax.make_jaxpr(fun)(x), [x], [v])

    assert unseen == ()
    assert found[0].distance == pytest.approx(wanted, rel=1e-5)


# --------------------------------------------------------------------- by hand


def _columns(x):
    return jnp.sum(jnp.max(x, 0))


def _ranked(ranks, x):
    return lax.sort([jnp.array(ranks), x], num_keys=2)[1]


def _up_to_three(x):
    return lax.while_loop(lambda y: y[0] < 3, lambda y: y + 1, x)


NOTHING = np.zeros((0, 3))
BY_HAND = {
    # name: (function, x, v, distance)
    "far": (jax.nn.relu, [0.5, -2], [1, 1], 0.5),
    "fast": (jax.nn.relu, [0.5, -2], [1, 16], 0.125),
    "backward": (jax.nn.relu, [0.5], [-4], 0.125),
    "tie_that_moves": (jax.nn.relu, [0.0, 1], [1, 1], 0),
    "tie_that_stays": (jax.nn.relu, [0.0, 1], [0, 2], 0.5),
    "nothing_moves": (jax.nn.relu, [0.0, 1], [0, 0], np.inf),
    "equal_by_definition": (lambda x: jnp.maximum(x, x), [1.0], [1], np.inf),
    "is_nan": (lambda x: jnp.where(jnp.isnan(x), 0, x), [1.0], [1], np.inf),
    "not_a_number": (jax.nn.relu, [np.nan, 3], [1, 1], 3),
    "only_nan": (jax.nn.relu, [np.nan], [1], np.inf),
    "nan_direction": (jax.nn.relu, [1.0, 3], [np.nan, 1], 3),
    "infinite_value": (jax.nn.relu, [np.inf, 3], [1, 1], 3),
    "infinite_speed": (lambda x: jnp.maximum(jnp.sqrt(x), 1), [0.0, 4], [1, 1], 4),
    "at_the_switch_with_infinite_speed": (
        lambda x: jnp.maximum(jnp.sqrt(x), 0),
        [0.0, 4],
        [1, 1],
        0,
    ),
    "to_bool": (lambda x: x.astype(bool) * x, [0.5], [1], 0.5),
    "to_integer_is_smooth_at_zero": (
        lambda x: x.astype(int) * x,
        [0.0, 0.25],
        [1, 1],
        0.75,
    ),
    "rem_is_smooth_at_zero": (lambda x: lax.rem(x, 2 * x / x), [0.25], [1], 1.75),
    "floor_at_an_integer": (jnp.floor, [2.0], [1], 0),
    "round_at_an_integer": (jnp.round, [2.0], [1], 0.5),
    "sort_of_ties": (jnp.sort, [1.0, 1, 3], [1, 1, 0], 2),
    "sort_of_moving_ties": (jnp.sort, [1.0, 1, 3], [1, 0, 0], 0),
    "median_of_far_neighbors": (jnp.median, [0, 1, 1.25], [1, 0, 0], 1),
    "max_of_ties": (jnp.max, [1.0, 1, 0], [1, 1, 0], 1),
    "max_of_moving_ties": (jnp.max, [1.0, 1, 0], [0, 1, 0], 0),
    "third_overtakes": (jnp.max, [3.0, 2, 1], [0, 1, 4], 0.5),
    "third_overtakes_at_the_top": (
        lambda x: lax.top_k(x, 1)[0],
        [3.0, 2, 1],
        [0, 1, 4],
        0.5,
    ),
    "cummax_of_ties": (lax.cummax, [1.0, 1], [1, 1], np.inf),
    "columns_apart": (_columns, [[1, 5], [2, 8]], [[1, 0], [0, 0]], 1),
    "one_row": (_columns, [[1, 5]], [[1, 0]], np.inf),
    "nothing_at_all": (jax.nn.relu, NOTHING, NOTHING, np.inf),
    "scalar": (jnp.abs, 0.25, 1, 0.25),
    "complex_modulus": (lambda x: jnp.abs(x[0] + 1j * x[1]), [3.0, 4], [0, 2], 2.5),
    "nothing_to_reduce": (lambda x: jnp.max(x, 1), NOTHING, NOTHING, np.inf),
    "nothing_to_sort": (jnp.sort, NOTHING, NOTHING, np.inf),
    "lower_limit": (lambda x: lax.clamp(0.0, x, 9.0), [0.5], [1], 0.5),
    "upper_limit": (lambda x: lax.clamp(0.0, x, 0.75), [0.5], [1], 0.25),
    "ranks_apart": (functools.partial(_ranked, (0, 1)), [1, 1.125], [1, 0], np.inf),
    "ranks_equal": (functools.partial(_ranked, (1, 1)), [1, 1.125], [1, 0], 0.125),
    "three_ranks": (
        functools.partial(_ranked, (0, 1, 1)),
        [1, 1, 3],
        [1, 0, 0],
        np.inf,
    ),
    "nearly_went_on": (_up_to_three, [0.25], [1], 0.25),
    "nearly_stopped_before": (_up_to_three, [0.875], [1], 0.125),
    "integers": (lambda x: x * jnp.maximum(jnp.arange(2), 1), [1.0, 2], [1, 1], np.inf),
    "integer_condition": (
        lambda x: jnp.where(jnp.arange(2) > 0, x, 2 * x),
        [1.0, 2],
        [1, 1],
        np.inf,
    ),
    "branch_not_taken": (
        lambda x: lax.cond(x[0] > 2, jnp.abs, lambda x: x, x),
        [1.0, 0.125],
        [1, 1],
        1,
    ),
    "scan_in_reverse": (
        lambda x: lax.scan(
            lambda c, y: (jax.nn.relu(c + y), None), 0.0, x, reverse=True
        )[0],
        [1.0, -0.75],
        [1, 1],
        0.75,
    ),
    "iterations_not_made": (
        lambda x: lax.fori_loop(0, 0, lambda _, y: jax.nn.relu(y), x),
        [1.0],
        [1],
        np.inf,
    ),
    "constant_operand": (
        lambda x: x * jax.nn.relu(jnp.ones(2)),
        [1.0, 2],
        [1, 1],
        np.inf,
    ),
    # what autodiff holds constant does not move
    "fixed_condition": (
        lambda x: jnp.where(stop_gradient(x) > 0, x, 2 * x),
        [0.0, 2],
        [1, 1],
        np.inf,
    ),
    "straight_through": (
        lambda x: x + stop_gradient(jnp.round(x) - x),
        [0.5, 2],
        [1, 1],
        np.inf,
    ),
    "frozen_and_used": (
        lambda x: stop_gradient(jnp.abs(x)) + jnp.abs(x),
        [1.0],
        [1],
        1,
    ),
    "frozen_in_scan": (
        lambda x: lax.scan(
            lambda c, y: (c + y * stop_gradient(jax.nn.relu(y)), None), 0.0, x
        )[0],
        [1.0, 0],
        [1, 1],
        np.inf,
    ),
    "unused": (lambda x: (jnp.abs(x), x)[1], [0.0], [1], np.inf),
    "only_as_integer": (lambda x: (x, jnp.argmax(x)), [0.0, 0], [1, 0], np.inf),
    "constant_product": (lambda x: (x > 1) * 2.0 + x, [0.0], [2], 0.5),
}


@pytest.mark.parametrize("name", BY_HAND)
def test_distance_by_hand(name):
    fun, x, v, distance = BY_HAND[name]
    assert nearest(fun, x, v) == pytest.approx(distance, rel=1e-12, abs=0)


SMOOTH = {
    "tanh_mlp": lambda x: jnp.sum(
        jnp.tanh(jnp.tanh(x @ INPUT_WEIGHTS) @ OUTPUT_WEIGHTS)
    ),
    "softmax": lambda x: jax.nn.softmax(x) @ WEIGHTS[:6],
    "log_softmax": jax.nn.log_softmax,
    "sigmoid": jax.nn.sigmoid,
    "gelu": jax.nn.gelu,
    "layer_norm": lambda x: (x - x.mean(-1, keepdims=True)) / x.std(-1, keepdims=True),
    "scan": lambda x: lax.scan(lambda c, y: (jnp.tanh(c + y), c), jnp.zeros(6), x),
    "integer_loop": lambda x: lax.while_loop(
        lambda c: c[0] < 3, lambda c: (c[0] + 1, jnp.sin(c[1])), (0, x)
    )[1],
    "solve": lambda x: jnp.linalg.solve(x[:, :4] + 9 * jnp.eye(4), x[:, 4]),
}


@pytest.mark.parametrize("name", SMOOTH)
def test_smooth_programs_have_no_switches(name):
    fun = SMOOTH[name]
    tie = np.zeros_like(X)
    assert switches_of(fun, X, V) == ()
    if name != "layer_norm":
        assert switches_of(fun, tie, V) == ()


def test_the_shift_of_logsumexp_is_no_switch():
    found = switches_of(jax.nn.logsumexp, np.zeros(5), V[0, :5])
    # the absolute value of a sum of exponentials cannot be nearer than this
    assert all(s.distance >= 1 / np.max(np.abs(V[0, :5])) for s in found)
    assert "max" not in {s.primitive for s in found}
    assert "reduce_max" not in {s.primitive for s in found}


# ------------------------------------------------------------------------ places


def test_a_planted_unit_has_its_distance_and_its_line():
    weights = INPUT_WEIGHTS.astype(np.float32)
    x = X.astype(np.float32)
    bias = np.zeros(8, np.float32)
    bias[5] = -(x[1] @ weights[:, 5]) + np.float32(1e-6)

    def loss(bias, weights):
        hidden = x @ weights + bias
        hidden = jnp.maximum(hidden, 0)  # the planted unit
        return jnp.sum(jax.nn.relu(hidden @ OUTPUT_WEIGHTS + 50) ** 2)

    program = reading(loss, bias, weights)
    # in float64, of the float32 numbers that the program sees
    margin = np.float64(x[1]) @ np.float64(weights[:, 5]) + np.float64(bias[5])
    assert 1e-8 < abs(margin) < 2e-6
    found, unseen = nearest_switches(
        program, [bias, weights], [np.ones(8), np.zeros_like(weights)]
    )

    assert unseen == ()
    assert found[0].distance == pytest.approx(abs(margin), rel=1e-6)
    assert found[0].primitive == "max"
    assert found[0].site.file == HERE
    assert found[0].site.line == line_of(
        test_a_planted_unit_has_its_distance_and_its_line, "# the planted" + " unit"
    )
    assert found[1].distance > 100 * abs(margin)


def _two_calls(x):
    first = jax.nn.relu(x - 1)
    second = jax.nn.relu(x - 3)
    third = jnp.clip(x, -7.0, 8.0)
    return jnp.sum(first + second + third)


TWO_CALLS = [("x - 1", 1.0), ("x - 3", 3.0), ("clip", 7.0), ("clip", 8.0)]


@pytest.mark.parametrize("lifted", [False, True], ids=["traced", "lifted"])
def test_calls_traced_once_have_the_line_of_each_caller(lifted):
    x = np.zeros(1, np.float32)
    program = reading(_two_calls, x) if lifted else jax.make_jaxpr(_two_calls)(x)

    found, unseen = nearest_switches(program, [x], [np.ones(1)])

    assert unseen == ()
    places = [(s.site.file, s.site.line, s.distance) for s in found]
    assert places == [(HERE, line_of(_two_calls, t), d) for t, d in TWO_CALLS]


def test_switches_of_one_equation_are_merged_and_sorted():
    def loss(x):
        far = jnp.abs(x + 10)
        return jnp.sum(lax.scan(lambda c, y: (c + jnp.abs(y), None), far, x)[0])

    found = switches_of(loss, [3.0, -1, 2], [1, 1, 1])
    assert [(s.primitive, s.distance) for s in found] == [("abs", 1), ("abs", 9)]


def test_scopes_are_kept():
    def loss(x):
        with jax.named_scope("encoder"):
            return jnp.abs(x)

    (switch,) = switches_of(loss, 1.0, 1.0)
    assert switch.site.scope == "encoder"


# ------------------------------------------------------------- how it is evaluated


def _several(x):
    y = jax.nn.relu(x[0]) + jnp.sort(x[1]) + jnp.max(x)
    return jnp.sum(_while(x)) + lax.cond(y[0] > 0, jnp.sum, jnp.max, y)


def test_one_program_for_all_directions():
    x = np.asarray(X, np.float32)
    directions = RNG.normal(size=(3, *x.shape))
    switches = Switches(reading(_several, x))
    traces = []

    def distances(x, v):
        traces.append(1)
        return switches.distances([x], [v])

    with compat.x64(True):
        together = jax.jit(jax.vmap(distances, (None, 0)))(x, directions)
        together = np.asarray(together)
        alone = [jax.jit(switches.distances)([x], [v]) for v in directions]

    assert len(traces) == 1
    assert together.shape == (3, len(switches.sites))
    np.testing.assert_allclose(together, np.stack(alone), rtol=1e-12)
    for v, row in zip(directions, together, strict=True):
        ranked = switches.ranked(row)
        assert ranked == nearest_switches(switches.program, [x], [v])[0]
        assert [s.distance for s in ranked] == sorted(row[np.isfinite(row)])


def test_distances_are_compiled_once_for_equal_programs():
    x = np.ones(3, np.float32)
    programs = [reading(lambda x: jnp.abs(x - 2).sum(), x) for _ in range(2)]
    runs = []
    for program in programs:
        switches = Switches(program)
        compiled = Compiled(
            lambda x, v, s=switches: [s.distances([x], [v])], [x, x], x64=True
        )
        runs.append(compiled(x, x)[0])
    np.testing.assert_array_equal(*runs)


def test_distance_is_inverse_to_the_length_of_the_tangent():
    once = switches_of(_several, X, V)
    thrice = switches_of(_several, X, 4 * V)
    assert len(once) > 4
    for a, b in zip(once, thrice, strict=True):
        assert (a.site, a.distance) == (b.site, pytest.approx(4 * b.distance))


def test_a_large_input_with_nan_in_it():
    x = RNG.uniform(1, 2, size=5000).astype(np.float32)
    x[[17, 4321]] = np.nan
    x[4999] = 1e-6
    assert nearest(lambda x: jax.nn.relu(x).sum(), x, np.ones(5000)) == np.float32(1e-6)
    x[4998] = -x[4999]
    x[np.isnan(x)] = 0.5
    wanted = float(np.diff(np.sort(x.astype(np.float64))).min())
    alternating = np.resize([0.5, -0.5], 5000)
    assert (
        nearest(lambda x: jnp.sort(x) @ WEIGHTS[:1].repeat(5000), x, alternating)
        >= wanted
    )


def test_the_native_reading_is_looked_into_as_well():
    x = np.array([1.5, -0.25], jnp.bfloat16)
    program = reading(jnp.abs, x, native=True)
    found, unseen = nearest_switches(program, [x], [np.ones(2)])
    assert (unseen, [s.distance for s in found]) == ((), [0.25])


def test_integer_inputs_do_not_move():
    x, n = np.float32(3), np.array([0, 4], np.int32)

    def loss(x, n):
        return jnp.sum(jnp.maximum(x * n, 6) + jnp.maximum(n, 0))

    found, _ = nearest_switches(reading(loss, x, n), [x, n], [1.0, n])
    assert [s.distance for s in found] == [1.5]


# ------------------------------------------------------------- what is not looked into


@jax.custom_jvp
def _by_callback(x):
    shape = jax.ShapeDtypeStruct(x.shape, x.dtype)
    return jax.pure_callback(np.abs, shape, x)


_by_callback.defjvps(lambda t, out, x: jnp.sign(x) * t)


def _sharded(x):
    mesh = jax.make_mesh(
        (1,),
        ("i",),
        axis_types=(jax.sharding.AxisType.Auto,),
        devices=jax.devices()[:1],
    )
    spec = jax.sharding.PartitionSpec("i")
    return jax.shard_map(jax.nn.relu, mesh=mesh, in_specs=spec, out_specs=spec)(x)


UNSEEN = {
    "pure_callback": _by_callback,
    "while": jax.vmap(
        lambda x: lax.while_loop(lambda y: y < 3, lambda y: y + jax.nn.relu(y) + 1, x)
    ),
    "shard_map": _sharded,
    "approx_top_k": lambda x: lax.approx_max_k(x, 2)[0],
    "reduce": lambda x: lax.reduce(x, 0.0, lambda a, b: a + jnp.maximum(b, 0), (0,)),
}


@pytest.mark.parametrize("name", UNSEEN)
def test_what_is_not_looked_into_is_named(name):
    def loss(x):
        return jnp.sum(UNSEEN[name](x)) + jnp.sum(jnp.abs(x + 5))

    x = np.arange(1.0, 5.0, dtype=np.float32)
    found, unseen = nearest_switches(reading(loss, x), [x], [np.ones(4)])

    assert unseen == (name,)
    # the rest of the program is looked into all the same
    assert [(s.primitive, s.distance) for s in found] == [("abs", 6)]


def test_what_does_not_matter_is_not_named():
    def loss(x):
        return x.sum() + stop_gradient(_by_callback(x)).sum()

    assert switches_of(loss, np.ones(3), np.ones(3)) == ()


def test_behind_what_has_no_derivative_nothing_is_claimed():
    x = np.ones(3, np.float32)
    program = reading(lambda x: jax.nn.relu(_by_callback(x) + x), x)
    assert nearest_switches(program, [x], [x]) == ((), ("pure_callback",))
