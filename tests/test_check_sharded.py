"""Parameters on a mesh get the same verdicts as on one device."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import jaxcheck
from jaxcheck import Verdict
from tests.catalogue.planting import edited

pytestmark = pytest.mark.skipif(len(jax.devices()) < 4, reason="needs four devices")

RNG = np.random.default_rng(0)
W = RNG.standard_normal((8, 4)).astype(np.float32)
B = RNG.standard_normal(4).astype(np.float32)
X = RNG.standard_normal((12, 8)).astype(np.float32)


def keep(h):
    return h


twice = edited(lambda x, cotangent: 2 * cotangent)


def mesh_of(kind=AxisType.Auto):
    return jax.make_mesh((4,), ("data",), axis_types=(kind,))


def loss(p, x, planted=keep):
    return jnp.mean(jnp.tanh(x @ planted(p["w"]) + p["b"]) ** 2)


def verdicts(report):
    return {leaf.path: leaf.verdict for leaf in report.leaves}


def put(mesh, w, b, x):
    place = lambda value, spec: jax.device_put(value, NamedSharding(mesh, spec))  # noqa: E731
    return {"w": place(W, w), "b": place(B, b)}, place(X, x)


SHARDINGS = {
    "replicated": (P(), P(), P()),
    "data": (P(), P(), P("data")),
    "rows": (P("data"), P(), P()),
    "columns": (P(None, "data"), P("data"), P()),
    "rows and data": (P("data"), P(), P("data")),
}


@pytest.mark.parametrize(
    ("name", "mode"),
    [
        ("replicated", "directional"),
        ("data", "exhaustive"),
        ("rows", "directional"),
        ("columns", "exhaustive"),
        ("rows and data", "exhaustive"),
    ],
)
def test_sharded_parameters(name, mode):
    params, x = put(mesh_of(), *SHARDINGS[name])
    report = jaxcheck.check(loss, params, x, mode=mode)
    alone = jaxcheck.check(loss, {"w": W, "b": B}, X, mode=mode)
    assert report.verdict is Verdict.CORRECT, str(report)
    assert verdicts(report) == verdicts(alone)
    assert report.loss == pytest.approx(alone.loss, rel=1e-6)
    wrong = jaxcheck.check(lambda p, x: loss(p, x, twice), params, x, mode=mode)
    assert verdicts(wrong) == {"['b']": Verdict.CORRECT, "['w']": Verdict.WRONG}


def test_the_parameters_stay_where_they_are():
    params, x = put(mesh_of(), *SHARDINGS["rows and data"])
    before = jax.tree.map(lambda v: v.sharding, params)
    jaxcheck.check(loss, params, x)
    assert jax.tree.map(lambda v: v.sharding, params) == before


def test_a_jitted_loss_with_a_sharding_constraint():
    mesh = mesh_of()

    @jax.jit
    def constrained(p, x):
        h = jax.lax.with_sharding_constraint(
            x @ p["w"], NamedSharding(mesh, P("data", None))
        )
        return jnp.mean(jnp.tanh(h + p["b"]) ** 2)

    params, x = put(mesh, P(), P(), P("data"))
    assert jaxcheck.check(constrained, params, x).passed


def sharded_loss(mesh, combine, planted=keep):
    def local(p, x):
        return combine(loss(p, x, planted))

    return jax.shard_map(local, mesh=mesh, in_specs=(P(), P("data")), out_specs=P())


@pytest.mark.parametrize(
    ("name", "mode", "jit"),
    [
        ("psum", "exhaustive", False),
        ("psum", "directional", True),
        ("pmean", "exhaustive", True),
        ("pmean", "directional", False),
    ],
)
def test_collectives_in_shard_map(name, mode, jit):
    mesh = mesh_of()
    params, x = put(mesh, P(), P(), P("data"))
    wrap = jax.jit if jit else keep

    def combine(value):
        return getattr(jax.lax, name)(value, "data")

    report = jaxcheck.check(wrap(sharded_loss(mesh, combine)), params, x, mode=mode)
    assert report.verdict is Verdict.CORRECT, str(report)
    wrong = jaxcheck.check(
        wrap(sharded_loss(mesh, combine, twice)), params, x, mode=mode
    )
    assert verdicts(wrong) == {"['b']": Verdict.CORRECT, "['w']": Verdict.WRONG}


def test_a_forgotten_mean_over_devices_is_found():
    mesh = mesh_of()
    params, x = put(mesh, P(), P(), P("data"))

    @jax.custom_vjp
    def mean(value):
        return jax.lax.pmean(value, "data")

    def backward(_, cotangent):  # lost its 1/n
        return (jax.lax.pcast(cotangent, "data", to="varying"),)

    mean.defvjp(lambda value: (mean(value), None), backward)
    report = jaxcheck.check(sharded_loss(mesh, mean), params, x)
    assert report.verdict is Verdict.WRONG, str(report)
    assert set(verdicts(report).values()) == {Verdict.WRONG}


def test_stop_gradient_inside_shard_map():
    mesh = mesh_of()
    params, x = put(mesh, P(), P(), P("data"))

    def local(p, x):
        h = x @ p["w"] + jax.lax.stop_gradient(p["b"])
        return jax.lax.pmean(jnp.mean(h**2), "data")

    total = jax.shard_map(local, mesh=mesh, in_specs=(P(), P("data")), out_specs=P())
    report = jaxcheck.check(total, params, x)
    assert report.verdict is Verdict.CORRECT, str(report)
    assert {f.leaf for f in report.findings if f.kind == "detached"} == {"['b']"}


@pytest.mark.parametrize("mode", ["exhaustive", "directional"])
def test_explicit_mesh(mode):
    mesh = mesh_of(AxisType.Explicit)
    with jax.set_mesh(mesh):
        params, x = put(mesh, P(), P(), P("data"))
        report = jaxcheck.check(loss, params, x, mode=mode)
        assert report.verdict is Verdict.CORRECT, str(report)
        wrong = jaxcheck.check(lambda p, x: loss(p, x, twice), params, x, mode=mode)
    assert verdicts(wrong) == {"['b']": Verdict.CORRECT, "['w']": Verdict.WRONG}


@pytest.mark.parametrize("mode", ["exhaustive", "directional"])
def test_explicit_mesh_with_sharded_parameters(mode):
    mesh = mesh_of(AxisType.Explicit)
    with jax.set_mesh(mesh):
        params, x = put(mesh, P(None, "data"), P("data"), P())
        jax.grad(loss)(params, x)
        report = jaxcheck.check(loss, params, x, mode=mode)
    assert report.verdict is Verdict.CORRECT, str(report)


def test_sharded_worst_coordinate_is_numbered_globally():
    params, x = put(mesh_of(), P("data"), P(), P())
    hurt = edited(lambda _, cotangent: cotangent.at[6, 3].multiply(3.0))
    for mode in ("exhaustive", "directional"):
        report = jaxcheck.check(lambda p, x: loss(p, x, hurt), params, x, mode=mode)
        (leaf,) = (leaf for leaf in report.leaves if leaf.path == "['w']")
        assert leaf.worst.index == (6, 3), str(report)


def scaled_sine(factor):
    @jax.custom_vjp
    def sine(x):
        return jnp.sin(x)

    sine.defvjp(lambda x: (jnp.sin(x), x), lambda x, g: (factor * jnp.cos(x) * g,))
    return sine


@pytest.mark.parametrize("mode", ["exhaustive", "directional"])
@pytest.mark.parametrize("factor", [1.0, 2.0])
def test_loop_that_varies_over_a_mesh_axis_is_read_in_float64(mode, factor):
    sine = scaled_sine(factor)

    def local(x):
        carry, _ = jax.lax.scan(lambda c, _: (sine(c * x), None), x, None, 3)
        return jax.lax.psum(jnp.sum(carry), "data")

    loss = jax.shard_map(local, mesh=mesh_of(), in_specs=P("data"), out_specs=P())
    report = jaxcheck.check(loss, jnp.linspace(0.3, 1.2, 8), mode=mode)

    expected = Verdict.CORRECT if factor == 1.0 else Verdict.WRONG
    assert report.verdict is expected, str(report)
    assert "lowered_precision" not in {f.kind for f in report.findings}, str(report)
    if factor != 1.0:
        (culprit,) = report.culprits
        assert (culprit.rule, culprit.cures) == ("sine", True)
