"""Every number of gradient_statistics against NumPy in float64."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import jaxcheck
from jaxcheck import gradient_statistics
from jaxcheck.training.counts import Count, count
from jaxcheck.training.lost import lost_of
from jaxcheck.training.placement import ROWS
from tests.programs.statistics import EDGES, assert_row, by_hand

RNG = np.random.default_rng(0)
LOW = [np.float16, ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn]
SINGLE = [*LOW, np.float32, np.complex64]
DOUBLE = [np.float64, np.complex128]


def normal(shape, dtype, scale=1.0):
    x = RNG.standard_normal(shape)
    if np.issubdtype(dtype, np.complexfloating):
        x = x + 1j * RNG.standard_normal(shape)
    return (scale * x).astype(dtype)


def assert_statistics(grads, params=None, updates=None, rtol=1e-5):
    """The rows of a dict of arrays in its order of keys, and the total."""
    stats = gradient_statistics(grads, params, updates)
    trees = [t for t in (grads, params, updates) if t is not None]
    for row, name in enumerate(sorted(grads)):
        wanted = by_hand(*([tree[name]] for tree in trees))
        assert_row(stats.leaves, wanted, row=row, rtol=rtol)
    wanted = by_hand(*([tree[k] for k in sorted(grads)] for tree in trees))
    assert_row(stats.total, wanted, rtol=rtol)
    return stats


# ---- numbers


@pytest.mark.parametrize("dtype", SINGLE, ids=lambda d: np.dtype(d).name)
def test_every_number_of_every_dtype(dtype):
    shapes = {"a": (), "b": (7,), "c": (33, 1, 5)}
    grads = {k: normal(shape, dtype, 0.1) for k, shape in shapes.items()}
    grads["b"][2:4] = 0
    grads["c"][5] = np.nan
    params = {k: normal(shape, dtype) for k, shape in shapes.items()}
    updates = {k: normal(shape, dtype, 0.01) for k, shape in shapes.items()}
    stats = assert_statistics(grads, params, updates)
    assert stats.total.norm.dtype == jnp.float32
    assert 0 < float(stats.total.zero_share) < 1
    assert int(stats.total.nonfinite) == 5


@pytest.mark.parametrize("dtype", DOUBLE, ids=lambda d: np.dtype(d).name)
@pytest.mark.parametrize("scale", [1.0, 1e200, 1e-200])
def test_64_bit_leaves_are_measured_in_float64(dtype, scale):
    with jax.enable_x64(True):
        grads = {k: normal(n, dtype, scale) for k, n in (("a", 5), ("b", 4096))}
        params = {k: normal(x.shape, dtype) for k, x in grads.items()}
        updates = {k: normal(x.shape, dtype, 1e-16) for k, x in grads.items()}
        stats = gradient_statistics(grads, params, updates)
        wanted = by_hand(
            [g / scale for g in grads.values()], params.values(), updates.values()
        )
    for name in ("norm", "rms", "max_abs", "mean", "std"):
        got = float(getattr(stats.total, name)) / scale
        assert got == pytest.approx(wanted[name], rel=1e-12, abs=1e-15), name
    assert float(stats.total.lost_share) == wanted["lost_share"] > 0
    assert float(stats.total.update_ratio) == pytest.approx(wanted["update_ratio"])


def test_one_64_bit_leaf_makes_all_results_float64():
    zeros, tiny = np.zeros(3, np.float32), np.full(4, 1e-200)
    with jax.enable_x64(True):
        stats = gradient_statistics({"a": zeros, "b": tiny})
        assert stats.leaves.norm.dtype == np.float64
        assert float(stats.total.norm) == pytest.approx(2e-200)
        assert float(stats.total.rms) == pytest.approx(2e-200 / np.sqrt(7))


def test_dtypes_do_not_depend_on_x64():
    w = jnp.arange(6.0, dtype=jnp.float32).reshape(2, 3)
    tree = {"w": w, "b": jnp.ones(2, jnp.bfloat16)}

    def kinds():
        stats = gradient_statistics(tree, tree, tree, stacked="['w']")
        return jax.tree.map(lambda x: f"{x.dtype} {x.shape}", stats)

    without = kinds()
    with jax.enable_x64(True):
        assert kinds() == without
    assert {kind.split()[0] for kind in jax.tree.leaves(without)} == {
        "float32",
        "int32",
    }


# float32 squares end at 1e±19 and float16 itself at 65504.
EXTREMES = [
    (np.float32, 1e30),
    (np.float32, 1e-30),
    (np.float32, 3e38 / 1000),
    (np.float32, 1.2e-38),
    (np.complex64, 1e30),
    (np.complex64, 1e-30),
    (ml_dtypes.bfloat16, 1e30),
    (ml_dtypes.bfloat16, 1e-30),
    (np.float16, 300.0),
    (np.float16, 65504.0),
    (np.float16, 6e-8),
]


@pytest.mark.parametrize(("dtype", "value"), EXTREMES)
def test_neither_overflow_nor_underflow(dtype, value):
    g = np.full((100, 50), value, dtype)
    g[::2] *= -1
    stats = assert_statistics({"w": g}, {"w": g})
    assert 0 < float(stats.total.norm) < np.inf


def test_a_leaf_beside_one_of_another_scale():
    grads = {k: np.full(3, 10.0**-k, np.float32) for k in (0, 10, 20, 30)}
    stats = gradient_statistics(grads)
    np.testing.assert_allclose(
        stats.leaves.norm, [np.sqrt(3) * 10.0**-k for k in grads], rtol=1e-6
    )


def test_a_norm_too_large_for_its_dtype_is_infinite_and_no_element_is():
    stats = gradient_statistics(jnp.full(100, 3e38), jnp.full(100, 3e38), jnp.ones(100))
    assert float(stats.total.norm) == np.inf
    assert int(stats.total.nonfinite) == 0
    assert float(stats.total.rms) == pytest.approx(3e38)
    assert float(stats.total.update_ratio) == pytest.approx(1 / 3e38, rel=1e-3)


def test_large_elements_hide_neither_small_ones_nor_zeros():
    g = np.array([1e30, 1e-30, 2.0**-40, 0.0], np.float32)
    stats = assert_statistics({"w": g})
    assert float(stats.total.zero_share) == 0.25


@pytest.mark.parametrize("mean", [1e4, -3e-7])
def test_the_deviation_of_a_gradient_that_hardly_varies(mean):
    g = {
        k: (mean * (1 + 1e-5 * RNG.standard_normal(n))).astype(np.float32)
        for k, n in (("a", 5_000), ("b", 3_000))
    }
    stats = gradient_statistics(g)
    wanted = by_hand(g.values())
    assert float(stats.total.std) == pytest.approx(wanted["std"], rel=1e-2)
    assert float(stats.total.mean) == pytest.approx(wanted["mean"], rel=1e-6)


def test_leaves_with_means_of_their_own():
    stats = assert_statistics({"a": 1e20 + np.zeros(5, np.float32), "b": np.ones(3)})
    assert float(stats.total.std) == pytest.approx(1e20 * np.sqrt(15) / 8)


@given(
    st.lists(
        st.lists(
            st.floats(width=32, allow_subnormal=False)
            | st.sampled_from([0.0, 1.0, -2.0, np.nan]),
            min_size=1,
            max_size=4,
        ),
        min_size=3,
        max_size=3,
    )
)
def test_the_total_does_not_depend_on_how_it_is_split(rows):
    arrays = [np.array(row + [0.0] * (4 - len(row)), np.float32) for row in rows]
    split = gradient_statistics(arrays).total
    whole = gradient_statistics(np.concatenate(arrays)).total
    for name, value in whole._asdict().items():
        if value is not None:
            scale = float(whole.rms) if name in ("mean", "std") else 0.0
            np.testing.assert_allclose(
                getattr(split, name), value, rtol=1e-5, atol=1e-5 * scale, err_msg=name
            )


# ---- what is not finite


@pytest.mark.parametrize(
    ("shape", "dtype"),
    [
        ((1,), np.float32),
        ((4_095,), np.float32),
        ((4_096,), np.float32),
        ((100_000,), np.float32),
        ((64, 64), np.float32),
        ((100_000,), ml_dtypes.bfloat16),
    ],
)
def test_one_bad_element_is_counted_and_the_others_are_seen(shape, dtype):
    for bad in (np.nan, np.inf, -np.inf):
        for place in (0.0, 0.5, 0.9, 1.0):
            g = np.array(normal(shape, dtype))
            g.reshape(-1)[int(place * (g.size - 1))] = bad
            stats = gradient_statistics({"w": g, "ok": np.ones(2, dtype)})
            assert stats.leaves.nonfinite.tolist() == [0, 1]
            assert int(stats.total.nonfinite) == 1
            assert_row(stats.leaves, by_hand([g]), row=1)
            assert_row(stats.total, by_hand([g, np.ones(2)]))


def test_a_leaf_with_nothing_finite():
    stats = gradient_statistics({"w": np.full(5_000, np.nan, np.float32)})
    assert_row(stats.total, by_hand([np.full(5_000, np.nan)]))
    assert int(stats.total.nonfinite) == 5_000


def test_bad_parameters_and_updates_are_counted_apart():
    good, bad = np.ones(5_000, np.float32), np.ones(5_000, np.float32)
    bad[4_321] = np.nan
    for params, updates in ((bad, good), (good, bad)):
        stats = assert_statistics({"w": good}, {"w": params}, {"w": updates})
        assert int(stats.total.nonfinite) == 0
        assert int(stats.total.param_nonfinite) == int(params is bad)
        assert int(stats.total.update_nonfinite) == int(updates is bad)


def test_half_a_complex_number_is_enough():
    g = np.array([1 + 1j, complex(np.nan, 1), complex(1, np.inf)], np.complex64)
    assert int(gradient_statistics(g).total.nonfinite) == 2


# ---- counts


def test_counts_stop_where_integers_end():
    numbers = jnp.array([2**30, 2**30, 2**30], jnp.int32)
    rows = Count(numbers.astype(jnp.float32), numbers)
    assert int(rows.joined(ROWS).exact) == 2**31 - 1
    assert float(rows.joined(ROWS).rough) == 3 * 2.0**30
    fewer = Count(rows.rough[:1], rows.exact[:1])
    assert int(fewer.joined(ROWS).exact) == 2**30


@pytest.mark.parametrize("axes", [(), (0,), (1,), (0, 1), (0, 2), (0, 1, 2)])
def test_counts_along_axes(axes):
    flags = RNG.random((4, 5, 6)) < 0.3
    np.testing.assert_array_equal(
        count(jnp.asarray(flags), axes, jnp.float32).exact, np.sum(flags, axis=axes)
    )


def test_counts_of_more_than_integers_hold(monkeypatch):
    """Axis by axis, here for flags that are few."""
    monkeypatch.setattr("jaxcheck.training.counts._MOST", 50)
    monkeypatch.setattr("jaxcheck.training.counts._SURE", 40)
    flags = jnp.arange(120).reshape(4, 5, 6) < 45
    along = count(flags, (1, 2), jnp.float32)
    assert along.exact.tolist() == along.rough.tolist() == [30, 15, 0, 0]
    every = count(flags, (0, 1, 2), jnp.float32)
    assert (int(every.exact), float(every.rough)) == (50, 45.0)


@pytest.mark.parametrize("name", ["norm", "rms", "mean", "std", "max_abs"])
@pytest.mark.parametrize("differentiate", [jax.grad, jax.jacfwd])
def test_statistics_have_derivatives(name, differentiate):
    """As a penalty on gradients needs them."""
    grads = jax.random.normal(jax.random.key(0), (300, 2)) + 0.5
    plain = {
        "norm": jnp.linalg.norm,
        "rms": lambda g: jnp.sqrt(jnp.mean(g**2)),
        "mean": jnp.mean,
        "std": jnp.std,
        "max_abs": lambda g: jnp.max(jnp.abs(g)),
    }

    def measured(parts):
        return getattr(gradient_statistics(parts).total, name)

    got = differentiate(measured)({"a": grads[:7], "b": grads[7:]})
    wanted = differentiate(plain[name])(jnp.ravel(grads)).reshape(grads.shape)
    got = np.concatenate([got["a"], got["b"]])
    np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-6)


def test_largest_elements_that_are_equal_share_the_derivative():
    got = jax.grad(lambda g: gradient_statistics(g).leaves.max_abs[0])(
        jnp.array([2.0, -2.0, 1.0])
    )
    np.testing.assert_array_equal(got, [0.5, -0.5, 0.0])


def test_edges_are_powers_of_two():
    np.testing.assert_array_equal(jaxcheck.histogram_edges(), EDGES)


@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16])
def test_an_element_on_an_edge_is_in_the_bin_above(dtype):
    inner = EDGES[1:-1]
    for values in (inner, np.nextafter(inner.astype(dtype), dtype(0))):
        g = np.concatenate([values, -values]).astype(dtype)
        stats = gradient_statistics(g)
        wanted = np.histogram(np.abs(g).astype(float), EDGES)[0]
        np.testing.assert_array_equal(stats.total.histogram, wanted)


def test_what_lies_beyond_the_edges_is_in_the_outer_bins():
    g = np.array([1e-38, 1e-30, 3e38, -1e30, 0.0, np.inf, np.nan, 1.0], np.float32)
    histogram = np.asarray(gradient_statistics(g).total.histogram)
    assert (histogram[0], histogram[-1], histogram.sum()) == (2, 2, 5)


# ---- updates


def test_an_update_that_is_too_small_for_bfloat16_is_lost():
    p = jnp.ones(1_000, jnp.bfloat16)
    u = jnp.where(jnp.arange(1_000) < 250, 2.0**-7, 2.0**-10).astype(jnp.bfloat16)
    stats = gradient_statistics(p, p, u)
    assert float(stats.total.lost_share) == 0.75
    wide = p.astype(jnp.float32)
    assert float(gradient_statistics(p, wide, u).total.lost_share) == 0.0


LOST = [
    # parameter, update, share lost
    (np.float32(1), np.float32(2.0**-25), 1.0),
    (np.float32(1), np.float32(2.0**-23), 0.0),
    (np.float32(0), np.float32(1e-30), 0.0),
    (np.float16(-0.0), np.float32(1e-12), 1.0),
    (np.float16(6e-8), np.float32(1e-9), 1.0),  # denormal float16
    (np.float16(6e-8), np.float16(6e-8), 0.0),
    (ml_dtypes.bfloat16(1), np.float32(1e-3), 1.0),
    (ml_dtypes.bfloat16(1), np.float32(1e-2), 0.0),
    (np.complex64(1 + 1j), np.complex64(1e-9 + 1e-9j), 1.0),
    (np.complex64(1 + 1j), np.complex64(1e-9 + 1e-3j), 0.0),
    (np.complex64(1 + 1j), np.float32(1e-9), 1.0),
    (np.float32(1), np.float32(0), 0.0),  # no update, none lost
    (np.float32(1), np.float32(np.nan), 0.0),
    (np.float32(np.nan), np.float32(1), 0.0),
    (np.float32(np.inf), np.float32(1), 0.0),
]


@pytest.mark.parametrize(("param", "update", "share"), LOST)
def test_lost_updates(param, update, share):
    p, u = np.full(3, param), np.full(3, update)
    lost = jax.jit(lambda p, u: lost_of(p, u, None, jnp.float32))(p, u)
    assert float(lost.lost) == 3 * share
    assert by_hand([p], [p], [u])["lost_share"] == share


def test_elements_without_an_update_are_not_lost():
    p, u = jnp.ones(100), jnp.zeros(100).at[:4].set(1e-9).at[4].set(1.0)
    assert float(gradient_statistics(p, p, u).total.lost_share) == pytest.approx(0.8)


@pytest.mark.parametrize(
    ("param", "update", "ratio"),
    [
        (0.0, 1.0, 0.0),
        (0.0, 0.0, 0.0),
        (1.0, 0.0, 0.0),
        (2.0, 0.5, 0.25),
        (1e30, 1e-5, 1e-35),
        (1e-30, 1e5, 1e35),
        (1e30, 1e30, 1.0),
        (1e-30, 2e-30, 2.0),
    ],
)
def test_update_ratio(param, update, ratio):
    p, u = jnp.full(50, param), jnp.full(50, update)
    stats = gradient_statistics(jnp.ones(50), p, u)
    assert float(stats.total.update_ratio) == pytest.approx(ratio, rel=1e-5)


def test_what_is_not_given_is_none():
    tree = {"w": jnp.ones(3)}
    alone = gradient_statistics(tree).total
    assert alone.param_norm is alone.update_norm is alone.update_ratio is None
    beside = gradient_statistics(tree, tree).total
    assert beside.update_ratio is beside.lost_share is beside.update_norm is None
    assert float(beside.param_norm) == pytest.approx(np.sqrt(3))
    after = gradient_statistics(tree, updates=tree).total
    assert after.update_ratio is after.lost_share is after.param_norm is None
    assert float(after.update_norm) == pytest.approx(np.sqrt(3))
