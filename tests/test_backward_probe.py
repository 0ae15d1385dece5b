"""backward_probe: cotangents of activations come back as the gradient of a slot."""

from __future__ import annotations

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

import jaxcheck
from jaxcheck import backward_probe, probe_slot, probe_statistics

needs_four_devices = pytest.mark.skipif(
    len(jax.devices()) < 4, reason="needs four devices"
)
RNG = np.random.default_rng(7)


@pytest.fixture(autouse=True)
def _same_numbers_in_any_order(monkeypatch):
    monkeypatch.setitem(globals(), "RNG", np.random.default_rng(7))


def normal(*shape, scale=1.0):
    return (scale * RNG.standard_normal(shape)).astype(np.float32)


def seen(cotangent, **options):
    """Statistics of a cotangent that is sent through a probe as it is."""
    x = jnp.zeros_like(cotangent)

    def pull(slot, cotangent):
        through, back = jax.vjp(backward_probe, x, slot)
        assert through.dtype == x.dtype
        return back(cotangent)

    sent, grads = pull(probe_slot(**options), cotangent)
    np.testing.assert_array_equal(np.asarray(sent), np.asarray(cotangent))
    return probe_statistics(grads)


def assert_seen(stats, *cotangents, rtol=1e-5):
    """``stats`` are those of the arrays together, worked out in float64."""
    every = np.concatenate([np.ravel(np.asarray(c)) for c in cotangents])
    size = np.abs(every.astype(np.complex128))
    finite = size[np.isfinite(size)]
    assert int(stats.size) == every.size
    assert int(stats.nonfinite) == every.size - finite.size
    assert finite.size
    unit = finite.max()
    rms = unit * np.sqrt(np.mean((finite / unit) ** 2))
    np.testing.assert_allclose(stats.rms, rms, rtol=rtol)
    np.testing.assert_allclose(stats.norm, rms * np.sqrt(finite.size), rtol=rtol)
    share = np.mean(finite == 0)
    np.testing.assert_allclose(stats.zero_share, share, rtol=rtol)


# ---- what is measured


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "complex64"])
@pytest.mark.parametrize("shape", [(), (1,), (5, 3), (7, 1), (3, 1000), (2, 3, 400)])
def test_statistics_of_a_cotangent(dtype, shape):
    cotangent = jnp.asarray(normal(*shape)).astype(dtype)
    if dtype == "complex64":
        cotangent = cotangent * jnp.complex64(1 - 2j)
    assert_seen(seen(cotangent), cotangent)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_counted_and_left_out(bad):
    cotangent = normal(64, 100)
    cotangent[3, 5:8], cotangent[9] = bad, 0.0
    stats = seen(jnp.asarray(cotangent))
    assert int(stats.nonfinite) == 3
    assert_seen(stats, cotangent)


def test_nothing_finite():
    stats = seen(jnp.full((4,), jnp.nan))
    assert [float(x) for x in stats] == [0.0, 0.0, 0.0, 4.0, 4.0]


@pytest.mark.parametrize(
    "magnitude", [1e-37, 1e-30, 2.0**-42, 1e-12, 1.0, 2.0**42, 1e20, 1e37]
)
def test_squares_neither_overflow_nor_vanish(magnitude):
    cotangent = (magnitude * np.array([1.0, -0.5, 0.75] * 5)).astype(np.float32)
    assert_seen(seen(jnp.asarray(cotangent)), cotangent)


def test_magnitudes_mixed():
    cotangent = np.float32([1e30, 3e30, 1.0, 1e-30, 0.0, -1e-20])
    assert_seen(seen(jnp.asarray(cotangent)), cotangent)
    assert_seen(seen(jnp.asarray(cotangent[2:])), cotangent[2:])
    assert_seen(seen(jnp.asarray(cotangent[3:])), cotangent[3:])


def test_norm_that_is_no_number_of_its_dtype():
    stats = seen(jnp.full((400,), 3e38, jnp.float32))
    assert np.isinf(stats.norm)
    np.testing.assert_allclose(stats.rms, 3e38, rtol=1e-5)
    assert int(stats.nonfinite) == 0


def test_large_half_precision():
    """The sum of squares of these overflows float16 with the second element."""
    assert_seen(seen(jnp.full((300,), 300.0, jnp.float16)), np.full(300, 300.0))


def test_double_precision():
    with jax.enable_x64(True):
        cotangent = jnp.asarray([1e200, 1e-3, -1e200])
        assert_seen(seen(cotangent, dtype=jnp.float64), cotangent, rtol=1e-14)
        narrow = seen(cotangent)
        assert narrow.norm.dtype == jnp.float32
        assert int(narrow.nonfinite) == 2  # of the slot's dtype, they are not finite
        assert narrow.size.dtype == jnp.int32


def test_counts_that_int32_cannot_hold():
    grads = jnp.float32([0, 1, 0, 0, 3e9, 6e9])
    stats = probe_statistics(grads)
    assert (int(stats.nonfinite), int(stats.size)) == (2**31 - 1, 2**31 - 1)


def test_no_cotangent_no_elements():
    grads = jax.grad(lambda slot, x: (backward_probe(x, slot), 2.0)[1])
    stats = probe_statistics(grads(probe_slot(), jnp.ones(3)))
    assert [float(x) for x in stats] == [0.0] * 5


def test_pytree_with_other_leaves():
    x = {"h": jnp.ones((2, 3)), "none": None, "step": 3, "low": jnp.ones(4, "bfloat16")}

    def loss_fn(x, slot):
        x = backward_probe(x, slot)
        assert x["none"] is None
        assert x["step"] == 3
        return jnp.sum(x["h"] ** 2) + 3 * jnp.sum(x["low"]).astype("float32")

    floating = {"h": x["h"], "low": x["low"]}
    grads = jax.grad(lambda f, slot: loss_fn({**x, **f}, slot), argnums=(0, 1))
    found, slot = grads(floating, probe_slot())
    assert_seen(probe_statistics(slot), found["h"], found["low"].astype(jnp.float32))


# ---- an identity


def losses(probed, remat):
    """A scanned network, with or without probes behind its layers."""

    def layer(h, at):
        w, slot = at
        h = jnp.tanh(h @ w)
        return (backward_probe(h, slot) if probed else h), None

    def loss_fn(params, slots, x):
        body = jax.checkpoint(layer) if remat else layer
        h, _ = jax.lax.scan(body, x, (params, slots))
        return jnp.mean((h - 0.5) ** 2)

    return loss_fn


@pytest.mark.parametrize("remat", [False, True])
def test_everything_else_is_bitwise_unchanged(remat):
    params, x = normal(6, 8, 8, scale=0.4), normal(16, 8)
    run = [
        jax.jit(jax.value_and_grad(losses(probed, remat), argnums=(0, 2)))(
            params, probe_slot(6), x
        )
        for probed in (True, False)
    ]
    jax.tree.map(np.testing.assert_array_equal, *run)


def test_without_a_gradient_nothing_is_left_of_it():
    args = normal(6, 8, 8), probe_slot(6), normal(16, 8)
    costs = [
        jax.jit(losses(probed, remat=False)).lower(*args).compile().cost_analysis()
        for probed in (True, False)
    ]
    assert costs[0]["flops"] > 0
    assert costs[0] == costs[1]


@pytest.mark.parametrize("remat", [False, True])
def test_no_buffer_of_an_activations_size(remat):
    args = normal(8, 128, 128, scale=0.1), probe_slot(8), normal(512, 128)
    temporary = [
        jax.jit(jax.grad(losses(probed, remat), argnums=(0, 1)))
        .lower(*args)
        .compile()
        .memory_analysis()
        .temp_size_in_bytes
        for probed in (True, False)
    ]
    activation = args[2].nbytes
    assert temporary[0] - temporary[1] < activation / 10


# ---- what it is for


@pytest.mark.parametrize("remat", [False, True])
def test_layer_that_makes_nan_inside_a_jitted_scan(remat):
    """√0 at layer 5 has an infinite derivative; what is before it sees 0·∞ = NaN."""

    def layer(h, at):
        w, slot, touched = at
        h = backward_probe(jnp.tanh(h @ w), slot)
        root = jnp.sqrt(jnp.where(touched, 0.0 * h, 1.0 + h**2))
        return h + 0.0 * root, None

    @jax.jit
    def grads(params, slots, x, touched):
        def loss_fn(params, slots):
            body = jax.checkpoint(layer) if remat else layer
            h, _ = jax.lax.scan(body, x, (params, slots, touched))
            return jnp.mean(h**2)

        return jax.value_and_grad(loss_fn, argnums=1)(params, slots)

    args = normal(8, 4, 4), probe_slot(8), normal(3, 4)
    loss, slot = grads(*args, jnp.arange(8) == 5)
    assert np.isfinite(loss)
    nonfinite = probe_statistics(slot).nonfinite
    assert nonfinite.tolist() == [12] * 6 + [0, 0]
    _, slot = grads(*args, jnp.zeros(8, bool))
    assert probe_statistics(slot).nonfinite.tolist() == [0] * 8


def test_depth_profile_of_a_sigmoid_network():
    depth, x = 20, normal(32, 16)
    params = normal(depth, 16, 16, scale=0.25)

    def layer(h, at):
        w, slot = at
        return backward_probe(jax.nn.sigmoid(h @ w), slot), None

    def loss_fn(slots):
        h, _ = jax.lax.scan(layer, x, (params, slots))
        return jnp.mean(h**2)

    stats = probe_statistics(jax.jit(jax.grad(loss_fn))(probe_slot(depth)))

    # by hand, in float64: forward, then one layer back at a time
    hidden = [x.astype(np.float64)]
    for w in params:
        hidden.append(1 / (1 + np.exp(-hidden[-1] @ w)))
    cotangent = 2 * hidden[-1] / hidden[-1].size
    rms = []
    for w, h in zip(params[::-1], hidden[:0:-1], strict=True):
        rms.append(np.sqrt(np.mean(cotangent**2)))
        cotangent = (cotangent * h * (1 - h)) @ w.T
    np.testing.assert_allclose(stats.rms, rms[::-1], rtol=1e-4)
    # σ' is at most 1/4, and so much smaller is what each layer hands on
    shrinks = stats.rms[1:] / stats.rms[:-1]
    assert np.exp(np.mean(np.log(shrinks))) > 3.5
    assert stats.rms[0] < 1e-10 * stats.rms[-1]


def test_dead_units_show_as_zero_share():
    w, x = normal(8, 6), np.abs(normal(40, 8))
    bias = np.zeros(6, np.float32)
    bias[[1, 4]] = -1e3  # never active

    def loss_fn(unit_slots, layer_slot):
        h = backward_probe(x @ w + bias, layer_slot)
        by_unit = jax.vmap(backward_probe, in_axes=(-1, 0), out_axes=-1)
        return jnp.sum(jax.nn.relu(by_unit(h, unit_slots)) ** 2)

    grads = jax.grad(loss_fn, argnums=(0, 1))(probe_slot(6), probe_slot())
    units, layer = (probe_statistics(g) for g in grads)
    inactive = np.mean(x @ w + bias <= 0, axis=0)
    np.testing.assert_allclose(units.zero_share, inactive, rtol=1e-6)
    assert np.flatnonzero(units.zero_share == 1.0).tolist() == [
        *np.flatnonzero(inactive == 1)
    ]
    assert {1, 4} <= set(np.flatnonzero(units.zero_share == 1.0))
    np.testing.assert_allclose(layer.zero_share, inactive.mean(), rtol=1e-6)


# ---- sums add


def test_one_slot_used_twice():
    a, b = normal(3, 4), normal(5)

    def loss_fn(slot, x, y):
        return jnp.sum(backward_probe(x, slot) * a) + jnp.sum(
            backward_probe(y, slot) * b
        )

    slot = jax.grad(loss_fn)(probe_slot(), jnp.ones((3, 4)), jnp.ones(5))
    assert_seen(probe_statistics(slot), a, b)


def test_one_slot_for_a_whole_scan():
    """A bad element in one iteration of many is still counted among them."""
    weights = normal(50, 7)
    weights[30, 2] = np.nan

    def loss_fn(slot):
        def body(total, w):
            return total + jnp.sum(backward_probe(jnp.ones(7), slot) * w), None

        return jax.lax.scan(body, 0.0, weights)[0]

    assert_seen(probe_statistics(jax.grad(loss_fn)(probe_slot())), weights)


def test_nested_scans():
    weights = normal(4, 3, 5)

    def loss_fn(slots):
        def inner(total, at):
            w, slot = at
            return total + jnp.sum(backward_probe(jnp.ones(5), slot) * w), None

        def outer(total, at):
            return jax.lax.scan(inner, total, at)[0], None

        return jax.lax.scan(outer, 0.0, (weights, slots))[0]

    stats = probe_statistics(jax.jit(jax.grad(loss_fn))(probe_slot(4, 3)))
    assert stats.norm.shape == (4, 3)
    for i, j in np.ndindex(4, 3):
        assert_seen(jax.tree.map(lambda x, at=(i, j): x[at], stats), weights[i, j])


def test_vmapped_examples_together_and_apart():
    weights = normal(6, 5)

    def loss_fn(slot, w):
        return jnp.sum(jnp.square(backward_probe(w, slot))) / 2

    apart = jax.vmap(jax.grad(loss_fn), in_axes=(None, 0))(probe_slot(), weights)
    for k in range(6):
        assert_seen(probe_statistics(apart[k]), weights[k])
    examples = jax.vmap(loss_fn, in_axes=(None, 0))
    together = jax.grad(lambda slot: jnp.sum(examples(slot, weights)))(probe_slot())
    assert_seen(probe_statistics(together), weights)
    own = jax.grad(lambda s: jnp.sum(jax.vmap(loss_fn)(s, weights)))(probe_slot(6))
    np.testing.assert_allclose(own, apart, rtol=1e-6)


# ---- several devices


def pull(weights, slot):
    """The gradient of a slot behind which the cotangent is ``weights``."""
    x = jnp.ones_like(weights)
    return jax.grad(lambda slot: jnp.sum(backward_probe(x, slot) * weights))(slot)


@needs_four_devices
def test_shared_slot_in_shard_map():
    """With check_vma the gradient of what all devices share is their sum."""
    weights = normal(8, 3)
    mesh = jax.make_mesh((4,), ("d",), axis_types=(AxisType.Auto,))
    run = jax.shard_map(pull, mesh=mesh, in_specs=(P("d"), P()), out_specs=P())
    assert_seen(probe_statistics(jax.jit(run)(weights, probe_slot())), weights)


@needs_four_devices
@pytest.mark.parametrize("check_vma", [True, False])
@pytest.mark.parametrize("split", [True, False])
def test_slot_of_each_device_in_shard_map(check_vma, split):
    """Slots may vary where the array does, and where it does not."""
    weights = normal(8, 3)
    mesh = jax.make_mesh((4,), ("d",), axis_types=(AxisType.Auto,))
    run = jax.shard_map(
        lambda w, slots: pull(w, slots[0])[None],
        mesh=mesh,
        in_specs=(P("d") if split else P(), P("d")),
        out_specs=P("d"),
        check_vma=check_vma,
    )
    found = jax.jit(run)(weights, probe_slot(4))
    for k in range(4):
        part = weights[2 * k : 2 * k + 2] if split else weights
        assert_seen(probe_statistics(found[k]), part)


@needs_four_devices
def test_unchecked_shard_map_sums_where_it_is_told_to():
    weights = normal(8, 3)
    mesh = jax.make_mesh((4,), ("d",), axis_types=(AxisType.Auto,))
    run = jax.shard_map(
        lambda w, slot: jax.lax.psum(pull(w, slot), "d"),
        mesh=mesh,
        in_specs=(P("d"), P()),
        out_specs=P(),
        check_vma=False,
    )
    assert_seen(probe_statistics(jax.jit(run)(weights, probe_slot())), weights)


@needs_four_devices
def test_pmap():
    weights = normal(4, 6)
    run = jax.pmap(lambda w: jax.lax.psum(pull(w, probe_slot()), "d"), axis_name="d")
    assert_seen(probe_statistics(run(weights)[0]), weights)


@needs_four_devices
@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
def test_sharded_activations_are_seen_as_wholes(kind):
    weights = normal(8, 600)
    mesh = jax.make_mesh((2, 2), ("a", "b"), axis_types=(kind, kind))
    with jax.set_mesh(mesh):
        split = jax.device_put(weights, jax.NamedSharding(mesh, P("a", "b")))
        found = jax.jit(pull)(split, probe_slot())
    assert_seen(probe_statistics(found), weights)


# ---- derivatives of higher order, checks


def test_second_derivatives_are_those_without_the_probe():
    w, x = normal(4, 4), normal(3, 4)

    def loss_fn(w, slot, probed):
        h = jnp.tanh(x @ w)
        return jnp.sum(jnp.tanh(backward_probe(h, slot) if probed else h) ** 3)

    def along(w, probed):
        grad = jax.grad(functools.partial(loss_fn, probed=probed))(w, probe_slot())
        return jnp.sum(grad**2)

    np.testing.assert_array_equal(
        jax.grad(along)(w, True),
        jax.grad(along)(w, False),
    )
    forward = jax.jacfwd(jax.grad(loss_fn))
    np.testing.assert_allclose(
        forward(w, probe_slot(), True), forward(w, probe_slot(), False), rtol=1e-5
    )


def test_statistics_are_constants():
    """Whoever adds them to a loss does not train on them by accident."""

    def norm(w):
        slot = jax.grad(lambda s: jnp.sum(backward_probe(w, s) ** 2))(probe_slot())
        return probe_statistics(slot).norm

    assert float(norm(jnp.ones(4))) == 4.0
    assert not jnp.any(jax.grad(norm)(jnp.ones(4)))


def test_forward_mode_says_that_there_is_none():
    x = jnp.ones(3)
    with pytest.raises(TypeError, match="forward-mode"):
        jax.jvp(lambda x: backward_probe(x, probe_slot()), (x,), (x,))


def test_check_passes_a_loss_with_a_probe_in_it():
    params, x = normal(3, 4, 4), normal(5, 4)
    loss_fn = losses(probed=True, remat=False)
    report = jaxcheck.check(loss_fn, params, probe_slot(3), x)
    assert report.passed, str(report)
    assert not report.findings


def test_check_sees_through_a_probe():
    """A wrong rule before the probe is found, and the probe is not blamed for it."""

    @jax.custom_vjp
    def bad_tanh(x):
        return jnp.tanh(x)

    bad_tanh.defvjp(
        lambda x: (jnp.tanh(x), x), lambda x, g: (1.01 * g / jnp.cosh(x) ** 2,)
    )

    def loss_fn(w, slot, x):
        return jnp.sum(backward_probe(bad_tanh(x @ w), slot) ** 2)

    report = jaxcheck.check(loss_fn, normal(4, 4), probe_slot(), normal(5, 4))
    assert not report.passed
    assert "bad_tanh" in str(report.culprits[0])


# ---- inside modules


def test_linen_module():
    class Block(nn.Module):
        @nn.compact
        def __call__(self, x, slots):
            for k in range(3):
                x = backward_probe(nn.tanh(nn.Dense(4)(x)), slots[k])
            return x

    x, slots = normal(5, 4), probe_slot(3)
    params = Block().init(jax.random.key(0), x, slots)
    grads = jax.grad(lambda s: jnp.sum(Block().apply(params, x, s)))(slots)
    stats = probe_statistics(grads)
    assert stats.size.tolist() == [20, 20, 20]
    np.testing.assert_allclose(stats.rms[-1], 1.0)


def test_nnx_module():
    class Block(nnx.Module):
        def __init__(self, rngs):
            self.dense = nnx.Linear(4, 4, rngs=rngs)

        def __call__(self, x, slot):
            return backward_probe(nnx.tanh(self.dense(x)), slot)

    block = Block(nnx.Rngs(0))
    x = jnp.asarray(normal(5, 4))

    @nnx.jit
    def grads(block, slot):
        return nnx.grad(lambda b, s: jnp.sum(b(x, s)), argnums=(0, 1))(block, slot)

    _, slot = grads(block, probe_slot())
    assert_seen(probe_statistics(slot), np.ones((5, 4)))


# ---- input errors


def test_nothing_to_measure():
    with pytest.raises(jaxcheck.InvalidInputError, match=r"int32\[3\].*no cotangent"):
        backward_probe(jnp.arange(3), probe_slot())


@pytest.mark.parametrize(
    ("slot", "says"),
    [
        (jnp.zeros(5), r"float32\[\.\.\., 6\].*it is float32\[5\]"),
        (jnp.zeros(6, jnp.bfloat16), r"it is bfloat16\[6\]"),
        (0.0, r"it is float\[\]"),
        (probe_slot(8), r"a stack of them, \[8, 6\]. Index it, or scan"),
    ],
)
def test_no_slot(slot, says):
    with pytest.raises(jaxcheck.InvalidInputError, match=says):
        backward_probe(jnp.ones(3), slot)


def test_no_gradient_of_a_slot():
    with pytest.raises(jaxcheck.InvalidInputError, match=r"probe_statistics\(slot_gr"):
        probe_statistics(jnp.zeros((3, 5)))
