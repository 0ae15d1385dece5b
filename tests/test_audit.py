"""audit: gradients held against the loss inside a jitted training loop."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

import jaxcheck
from benchmarks import audit_runs as audited
from jaxcheck import Audit, AuditState, audit
from tests.test_optimizers_table import some

needs_four_devices = pytest.mark.skipif(
    len(jax.devices()) < 4, reason="needs four devices"
)


def key(seed=0):
    return jax.random.key(seed)


def quadratic(params, x):
    return jnp.mean((x @ params["w"] + params["b"]) ** 2)


PARAMS = {"b": jnp.float32(0.3), "w": jnp.arange(1.0, 5.0)}
X = jax.random.normal(key(), (64, 4))


def found(loss_fn, params, *args, change=lambda g: g):
    grads = change(jax.grad(loss_fn)(params, *args))
    return audit(loss_fn, params, *args, grads=grads, key=key())


def found_with(loss_fn, params, *args, change=lambda g: g, seeds=10):
    """Audits with several keys, compiled once."""
    grads = change(jax.grad(loss_fn)(params, *args))
    run = jax.jit(lambda k: audit(loss_fn, params, *args, grads=grads, key=k))
    return [run(key(seed)) for seed in range(seeds)]


def verdict(result):
    return "wrong" if result.wrong else "?" if result.inconclusive else "agrees"


# ---- gradients that are broken


def times_four(grads):
    return jax.tree.map(lambda g: 4 * g, grads)


AT_ONCE = ["times four", "sign of a leaf", "leaf of zeros", "nan", "bit"]


@pytest.mark.parametrize("fault", some(AT_ONCE, 2))
@pytest.mark.parametrize(
    "loss_fn",
    [audited.smooth, pytest.param(audited.kinked, marks=pytest.mark.slow)],
)
def test_large_faults_are_found_at_once(loss_fn, fault):
    state, _ = audited.trained(audited.Kind(loss_fn), 5, fault=fault)
    assert int(state.first_wrong_step) == 0


SOON = ["1% first", "1% second", "1% third", "rows left out", "transposed"]


@pytest.mark.parametrize("fault", some(SOON, 2))
def test_small_faults_are_found_within_five(fault):
    for seed in range(3):
        state, _ = audited.trained(audited.KINDS["tanh"], 5, fault=fault, seed=seed)
        assert int(state.wrong) > 0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "fault", "share"),
    [("ReLU", "1% bias", 0.8), ("ReLU, dropout", "1% bias", 0.8)]
    + [(f"bfloat16, {how}", "leaf of zeros", 0.8) for how in ("computed", "stored")],
)
def test_kinks_and_noise_hide_little(kind, fault, share):
    """Of stretches of five audits, in which one must find it."""
    _, wrong = audited.trained(audited.KINDS[kind], 200, fault=fault)
    assert np.asarray(wrong).reshape(-1, 5).any(axis=1).mean() >= share


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["times four", "sign of a leaf"])
@pytest.mark.parametrize("kind", ["computed", "stored"])
def test_large_faults_in_bfloat16(kind, fault):
    kind = audited.KINDS[f"bfloat16, {kind}"]
    state, _ = audited.trained(kind, 5, fault=fault)
    assert int(state.wrong) > 0


def test_a_wrong_gradient_is_off_by_more_than_the_bar():
    """Also where kinks are so near that a closer look has narrower bars."""
    args = (*audited.batch(key(1), 32), key(2))

    @jax.jit
    @jax.vmap
    def audits(seed):
        params = audited.network(seed)
        grads = jax.grad(audited.kinked)(params, *args)
        broken = audited.FAULTS["1% second"](grads)
        return audit(audited.kinked, params, *args, grads=broken, key=key(seed))

    results = audits(jnp.arange(50))
    wrong = jax.tree.map(lambda x: x[results.wrong], results)
    assert len(wrong.wrong) > 20
    apart = np.abs(wrong.autodiff - wrong.numerical)
    assert (apart > 0.999 * wrong.error_bar).all()


# ---- gradients that are right


@pytest.mark.parametrize(
    "name", ["tanh", pytest.param("ReLU, dropout", marks=pytest.mark.slow)]
)
def test_no_false_alarm(name):
    state, _ = audited.trained(audited.KINDS[name], 50)
    assert int(state.audits) == 50
    assert (int(state.wrong), int(state.first_wrong_step)) == (0, -1)
    assert int(state.inconclusive) < 10


@pytest.mark.slow
@pytest.mark.parametrize("name", audited.KINDS)
def test_no_false_alarm_in_thousands(name):
    for seed in range(2):
        state, _ = audited.trained(audited.KINDS[name], 2000, seed=seed)
        assert int(state.wrong) == 0


@pytest.mark.slow
def test_other_masks_are_another_loss():
    """Whoever does not pass the key of the step is told that something is wrong."""

    def other(params, x, labels, key):
        return audited.dropout(params, x, labels, jax.random.fold_in(key, 7))

    params, args = audited.network(), (*audited.batch(key(1), 32), key(2))
    grads = jax.grad(audited.dropout)(params, *args)

    def run(loss_fn):
        return audit(loss_fn, params, *args, grads=grads, key=key()).wrong

    assert jax.jit(lambda: run(other))()
    assert not jax.jit(lambda: run(audited.dropout))()


@pytest.mark.parametrize("at", [0.0, 1e-6, -1e-3])
def test_kink_is_not_called_wrong(at):
    """Any slope between those of both sides is a right one at a kink."""
    loss_fn = lambda x: jnp.abs(x[0]) + 1.0  # noqa: E731
    assert not any(r.wrong for r in found_with(loss_fn, jnp.array([at])))


def test_kinks_on_both_sides_are_not_called_wrong():
    """The loss is as curved as without them: only finer steps tell them apart."""

    def loss_fn(x):
        t, at = x[0] - 1.0, 5e-5
        return x[0] + 0.3 * (jax.nn.relu(t - at) - jax.nn.relu(-t - at))

    assert not any(r.wrong for r in found_with(loss_fn, jnp.ones(1)))


def test_jump_is_not_called_wrong():
    loss_fn = lambda x: jnp.sum(x**2) + jnp.floor(x[0])  # noqa: E731
    results = found_with(loss_fn, jnp.array([1.0, 0.5]))
    assert {verdict(r) for r in results} == {"?"}


def test_loss_that_cancels_is_noisy_not_wrong():
    """What is left of 1e4 has noise of 1e-3, which eps·|f| does not tell."""
    loss_fn = lambda x: (1e4 + jnp.sum(jnp.sin(x))) - 1e4  # noqa: E731
    results = found_with(loss_fn, jnp.linspace(0.0, 1.0, 50), seeds=50)
    assert not any(r.wrong for r in results)


@pytest.mark.parametrize("bad", [jnp.nan, jnp.inf])
def test_loss_that_is_not_finite_says_nothing(bad):
    result = found(lambda x: jnp.sum(x**2) + bad, jnp.ones(3))
    assert verdict(result) == "?"


def test_gradient_that_is_lost():
    loss_fn = lambda x: jnp.sum(jax.lax.stop_gradient(x) ** 2) + x[0]  # noqa: E731
    assert verdict(found(loss_fn, jnp.ones(3))) == "wrong"
    assert verdict(found(lambda x: jnp.sum(x**2) + x[0], jnp.ones(3))) == "agrees"


# ---- what comes back


def test_numbers():
    result = found(quadratic, PARAMS, X)
    assert isinstance(result, Audit)
    apart = abs(result.autodiff - result.numerical)
    assert apart <= result.error_bar < 0.01 * abs(result.autodiff)
    twice = found(quadratic, PARAMS, X, change=times_four)
    np.testing.assert_allclose(twice.autodiff, 4 * twice.numerical, rtol=1e-2)


def test_state_keeps_the_first_failure():
    state = AuditState.init()
    right = found(quadratic, PARAMS, X)
    wrong = found(quadratic, PARAMS, X, change=times_four)
    worse = wrong._replace(autodiff=2 * wrong.autodiff)
    unknown = right._replace(inconclusive=jnp.array(True))
    for step, result in enumerate([right, wrong, unknown, worse, right]):
        state = state.add(result, step)
    assert (int(state.audits), int(state.wrong), int(state.inconclusive)) == (5, 2, 1)
    assert int(state.first_wrong_step) == 1
    assert float(state.first_wrong.autodiff) == float(wrong.autodiff)
    ratio = abs(right.autodiff - right.numerical) / right.error_bar
    np.testing.assert_allclose(state.worst_ratio, ratio, rtol=1e-6)


@pytest.mark.parametrize("x64", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_structure_and_dtypes_are_stable(x64):
    with jax.enable_x64(x64):
        params = jax.tree.map(lambda p: p.astype(float), PARAMS)
        before = AuditState.init()
        after = before.add(found(quadratic, params, X), jnp.arange(3)[2])
        assert jax.tree.structure(before) == jax.tree.structure(after)
        for one, two in zip(*map(jax.tree.leaves, (before, after)), strict=True):
            assert (one.dtype, one.shape) == (two.dtype, two.shape)


@pytest.mark.slow
def test_double_precision_is_sharper():
    with jax.enable_x64(True):
        params = jax.tree.map(lambda p: p.astype(jnp.float64), PARAMS)
        x = X.astype(jnp.float64)
        result = found(quadratic, params, x)
        assert result.error_bar < 1e-8 * abs(result.autodiff)
        off = found(quadratic, params, x, change=lambda g: {**g, "b": g["b"] + 1e-6})
        assert verdict(off) == "wrong"


def test_every_so_often():
    kind = audited.KINDS["tanh"]
    for fault, wrong in (("none", 0), ("times four", 1)):
        state, _ = audited.trained(kind, 5, fault=fault, every=9)
        assert (int(state.audits), int(state.wrong)) == (1, wrong)


# ---- what parameters may be


def test_complex_parameters():
    z = jnp.array([1 + 2j, -0.5j, 0.3], jnp.complex64)
    loss_fn = lambda z: jnp.sum(jnp.abs(z - 1j) ** 2)  # noqa: E731
    assert {verdict(r) for r in found_with(loss_fn, z)} == {"agrees"}
    assert {verdict(r) for r in found_with(loss_fn, z, change=jnp.conj)} == {"wrong"}


@pytest.mark.parametrize(("factor", "wanted"), [(1.0, "agrees"), (1.05, "wrong")])
def test_a_module_of_nnx_has_other_paths_than_its_gradient(factor, wanted):
    model = nnx.Sequential(
        *(nnx.Linear(4, 4, rngs=nnx.Rngs(k)) for k in range(2)),
        nnx.BatchNorm(4, rngs=nnx.Rngs(2)),
    )
    x = jax.random.normal(jax.random.key(0), (8, 4))

    def loss_fn(model, x):
        return jnp.mean((model(x) - 1.0) ** 2)

    @nnx.jit
    def audited_step(model, x):
        grads = nnx.grad(loss_fn)(model, x)
        grads = jax.tree.map(lambda g: factor * g, grads)
        return audit(loss_fn, model, x, grads=grads, key=jax.random.key(1))

    result = audited_step(model, x)
    assert verdict(result) == wanted
    grads = nnx.grad(loss_fn)(model, x)
    given, alike = (
        jaxcheck.gradient_statistics(grads, params, grads).leaves.update_ratio
        for params in (model, nnx.state(model, nnx.Param))
    )
    np.testing.assert_array_equal(given, alike)


def test_other_leaves_are_held_fixed():
    params = {**PARAMS, "frozen": jnp.ones(3), "none": None, "step": 3}
    loss_fn = lambda p, x: quadratic(p, x) + jnp.sum(p["frozen"])  # noqa: E731
    trainable = {k: PARAMS[k] for k in ("b", "w")}
    grads = jax.grad(quadratic)(trainable, X)
    partly = {**grads, "frozen": None, "none": None, "step": None}
    result = audit(loss_fn, params, X, grads=partly, key=key())
    assert verdict(result) == "agrees"


@pytest.mark.parametrize(
    ("change", "wanted"),
    [
        (lambda g: g, "agrees"),
        (lambda g: {**g, "w": 1.05 * g["w"]}, "wrong"),
        (lambda g: {**g, "mask": g["mask"].at[1].set(jnp.nan)}, "wrong"),
    ],
)
def test_what_is_infinite_stays_where_it_is(change, wanted):
    def loss_fn(params):
        scores = jnp.outer(X[:, 0], params["w"]) + params["mask"]
        return jnp.mean(jax.nn.logsumexp(scores, axis=1))

    params = {"mask": jnp.array([0.0, -jnp.inf, 0.0, 0.1]), "w": PARAMS["w"]}
    for result in found_with(loss_fn, params, change=change):
        assert verdict(result) == wanted


def test_zeros_have_a_scale():
    loss_fn = lambda p, x: jnp.mean((x @ p - 1.0) ** 2)  # noqa: E731
    assert verdict(found(loss_fn, jnp.zeros(4), X)) == "agrees"
    off = found(loss_fn, jnp.zeros(4), X, change=lambda g: 1.1 * g)
    assert verdict(off) == "wrong"


@pytest.mark.slow
def test_auxiliary_output():
    loss_fn = lambda p, x: (quadratic(p, x), {"n": 3})  # noqa: E731
    grads = jax.grad(quadratic)(PARAMS, X)
    result = audit(loss_fn, PARAMS, X, grads=grads, key=key(), has_aux=True)
    assert verdict(result) == "agrees"


def test_not_a_scalar():
    with pytest.raises(jaxcheck.InvalidInputError, match=r"audit\(loss_fn=.*real scal"):
        audit(lambda p: p, jnp.ones(3), grads=jnp.ones(3), key=key())


def test_a_loss_that_is_no_function():
    with pytest.raises(jaxcheck.InvalidInputError, match=r"audit\(loss_fn=.*got int"):
        audit(3, PARAMS, X, grads=PARAMS, key=key())


def test_gradient_of_something_else():
    with pytest.raises(jaxcheck.InvalidInputError, match=r"audit\(params=\.\.\.\)"):
        audit(quadratic, PARAMS, X, grads={"v": jnp.ones(4)}, key=key())


def test_a_number_is_no_key():
    with pytest.raises(jaxcheck.InvalidInputError, match=r"audit\(key=.*got 0"):
        audit(quadratic, PARAMS, X, grads=jax.grad(quadratic)(PARAMS, X), key=0)


# ---- transformations and devices


@pytest.mark.slow
def test_vmapped_ensemble():
    many = jax.tree.map(lambda p: jnp.stack([p, 2 * p, -p]), PARAMS)
    factors = jnp.array([1.0, 1.0, 1.5])

    def one(params, factor):
        grads = jax.tree.map(lambda g: factor * g, jax.grad(quadratic)(params, X))
        return audit(quadratic, params, X, grads=grads, key=key())

    assert jax.vmap(one)(many, factors).wrong.tolist() == [False, False, True]


AVERAGED = {"averaged": jax.lax.pmean, "summed": jax.lax.psum, "own": lambda g, _: g}


@needs_four_devices
@pytest.mark.parametrize("how", AVERAGED)
@pytest.mark.parametrize("mapped", ["shard_map", "pmap"])
def test_mean_over_devices(mapped, how):
    """Summed gradients, and those of a device alone, are not those of the mean."""
    x = X * jnp.repeat(jnp.arange(1.0, 5.0), 16)[:, None]

    def mean_loss(params, x):
        return jax.lax.pmean(quadratic(params, x), "d")

    def step(params, x):
        grads = AVERAGED[how](jax.grad(quadratic)(params, x), "d")
        return audit(mean_loss, params, x, grads=grads, key=key())

    if mapped == "pmap":
        run = jax.pmap(lambda x: step(PARAMS, x), axis_name="d")
        result = run(x.reshape(4, 16, 4))
    else:
        mesh = jax.make_mesh((4,), ("d",), axis_types=(AxisType.Auto,))
        run = jax.shard_map(
            lambda x: jax.tree.map(lambda r: r[None], step(PARAMS, x)),
            mesh=mesh,
            in_specs=P("d"),
            out_specs=P("d"),
            check_vma=False,
        )
        result = jax.jit(run)(x)
    assert result.wrong.tolist() == [how != "averaged"] * 4
    assert not result.inconclusive.any()


@pytest.mark.parametrize(
    ("activation", "dtype", "wanted"),
    [
        (jnp.square, jnp.float32, 3),
        (jnp.abs, jnp.float32, 5),
        (jnp.square, jnp.bfloat16, 13),
    ],
)
def test_number_of_evaluations(activation, dtype, wanted):
    """Two steps are needed where a kink, here beside the point, shows in the first."""
    evaluations = []

    def loss_fn(params):
        jax.debug.callback(lambda: evaluations.append(1))
        terms = activation(params.astype(dtype)).astype(jnp.float32)
        return jnp.mean(terms * 2.0 ** -jnp.arange(4.0))

    params = jnp.array([1e-5, 1.0, -1.0, 1.5], jnp.float32)
    grads = jax.grad(loss_fn)(params)
    evaluations.clear()
    found = jax.jit(lambda k: audit(loss_fn, params, grads=grads, key=k))(key())
    jax.effects_barrier()
    assert not found.wrong
    assert len(evaluations) == wanted


@needs_four_devices
def test_doubt_on_one_device_alone():
    """All look closer then: a loss with a mean over devices needs every one of them."""
    mesh = jax.make_mesh((4,), ("d",), axis_types=(AxisType.Auto,))

    def mean_loss(params, x):
        return jax.lax.pmean(quadratic(params, x), "d")

    @jax.jit
    @functools.partial(
        jax.shard_map,
        mesh=mesh,
        in_specs=(P(), P("d"), P(), P()),
        out_specs=P("d"),
        check_vma=False,
    )
    def step(params, x, excess, number):
        grads = jax.lax.pmean(jax.grad(quadratic)(params, x), "d")
        factor = 1 + excess * (jax.lax.axis_index("d") == 1)
        grads = jax.tree.map(lambda g: factor * g, grads)
        found = audit(mean_loss, params, x, grads=grads, key=key(number))
        return jax.tree.map(lambda r: r[None], found)

    for excess in (0.0, 1e-4, 3e-4, 1e-3, 1.0):
        wrong = [step(PARAMS, X, excess, number).wrong for number in range(8)]
        shares = np.mean(wrong, axis=0)
        assert not (excess == 0 and shares.any()), shares
        assert not (excess == 1 and shares.min() < 1), shares


@needs_four_devices
@pytest.mark.parametrize("factor", [1.0, 4.0])
def test_checked_shard_map(factor):
    """There JAX sums the gradient of what all devices share by itself."""
    mesh = jax.make_mesh((4,), ("d",), axis_types=(AxisType.Auto,))

    def mean_loss(params, x):
        return jax.lax.pmean(quadratic(params, x), "d")

    def step(params, x):
        grads = jax.tree.map(lambda g: factor * g, jax.grad(mean_loss)(params, x))
        return audit(mean_loss, params, x, grads=grads, key=key())

    run = jax.shard_map(step, mesh=mesh, in_specs=(P(), P("d")), out_specs=P())
    assert bool(jax.jit(run)(PARAMS, X).wrong) == (factor != 1.0)


@needs_four_devices
@pytest.mark.parametrize("factor", [1.0, 4.0])
def test_shard_map_inside_the_loss(factor):
    """Its axes are no axes out here, where the audit is."""
    mesh = jax.make_mesh((4,), ("d",), axis_types=(AxisType.Auto,))

    def mean_loss(params, x):
        return jax.lax.pmean(quadratic(params, x), "d")

    loss_fn = jax.shard_map(mean_loss, mesh=mesh, in_specs=(P(), P("d")), out_specs=P())

    @jax.jit
    def step(params, x):
        grads = jax.tree.map(lambda g: factor * g, jax.grad(loss_fn)(params, x))
        return audit(loss_fn, params, x, grads=grads, key=key())

    assert bool(step(PARAMS, X).wrong) == (factor != 1.0)


@needs_four_devices
@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
@pytest.mark.parametrize("factor", [1.0, 1.5])
def test_sharded_parameters(kind, factor):
    mesh = jax.make_mesh((4,), ("d",), axis_types=(kind,))
    w = jnp.linspace(-1.0, 1.0, 8 * 3).reshape(8, 3)

    def loss_fn(w):
        return jnp.sum(jnp.tanh(w) ** 2)

    @jax.jit
    def step(w):
        grads = factor * jax.grad(loss_fn)(w)
        return audit(loss_fn, w, grads=grads, key=key())

    with jax.set_mesh(mesh):
        split = jax.device_put(w, jax.NamedSharding(mesh, P("d", None)))
        assert bool(step(split).wrong) == (factor != 1.0)


@needs_four_devices
@pytest.mark.parametrize("check_vma", [True, False])
@pytest.mark.parametrize("factor", [1.0, 1.5])
def test_parameters_split_in_shard_map(check_vma, factor):
    mesh = jax.make_mesh((4,), ("d",), axis_types=(AxisType.Auto,))
    w = jnp.linspace(-1.0, 1.0, 8 * 3).reshape(8, 3)

    def loss_fn(w):
        return jax.lax.psum(jnp.sum(jnp.tanh(w) ** 2), "d")

    def step(w):
        grads = factor * 2 * jnp.tanh(w) / jnp.cosh(w) ** 2
        return audit(loss_fn, w, grads=grads, key=key(), axis_name="d")

    run = jax.shard_map(
        step, mesh=mesh, in_specs=P("d"), out_specs=P(), check_vma=check_vma
    )
    assert bool(jax.jit(run)(w).wrong) == (factor != 1.0)
