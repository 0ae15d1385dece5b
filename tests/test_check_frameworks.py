"""Parameters of flax linen, flax nnx, equinox, haiku and chex go in as they are."""

from __future__ import annotations

from typing import Any

import chex
import equinox as eqx
import flax.linen as nn
import flax.struct
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from flax.errors import TraceContextError

import jaxcheck
from jaxcheck import Verdict
from tests.catalogue.planting import edited

RNG = np.random.default_rng(5)
X = RNG.standard_normal((6, 4)).astype(np.float32)
Y = RNG.integers(0, 3, 6)

wrong_twice = edited(lambda x, cotangent: 2 * cotangent)


def cross_entropy(logits, labels):
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    return jnp.mean(losses)


def by_path(report):
    return {leaf.path: leaf for leaf in report.leaves}


def wrong_paths(report):
    return {leaf.path for leaf in report.leaves if leaf.verdict is Verdict.WRONG}


# ---- dataclasses ---------------------------------------------------------------------


@flax.struct.dataclass
class FlaxParams:
    w: Any
    b: Any
    name: str = flax.struct.field(pytree_node=False, default="dense")


@chex.dataclass(frozen=True)
class ChexParams:
    w: Any
    b: Any


@pytest.mark.parametrize("kind", [FlaxParams, ChexParams])
def test_dataclasses_of_flax_and_chex(kind):
    params = kind(w=X[:4, :3], b=np.float32([0.1, 0.2, 0.3]))

    def loss(p, x, planted):
        assert isinstance(p, kind)
        return cross_entropy(jnp.tanh(x @ p.w) + planted(p.b), Y)

    report = jaxcheck.check(loss, params, X, lambda b: b)
    assert report.verdict is Verdict.CORRECT, str(report)
    assert {leaf.shape for leaf in report.leaves} == {(4, 3), (3,)}
    report = jaxcheck.check(loss, params, X, wrong_twice)
    (path,) = wrong_paths(report)
    assert "b" in path


def test_optax_state_as_part_of_the_parameters():
    """A TrainState-like tree: counters are carried along."""
    params = {"w": jnp.asarray(X[:4, :3])}
    state = {"params": params, "opt_state": optax.adam(1e-3).init(params)}
    report = jaxcheck.check(
        lambda s, x: cross_entropy(x @ s["params"]["w"], Y), state, X
    )
    assert report.verdict is Verdict.CORRECT, str(report)
    verdicts = {leaf.dtype: leaf.verdict for leaf in report.leaves}
    assert verdicts["int32"] is Verdict.NOT_CHECKED
    assert sum(finding.kind == "unused" for finding in report.findings) == 2


# ---- flax linen ----------------------------------------------------------------------


class Linen(nn.Module):
    planted: Any = lambda h: h

    @nn.compact
    def __call__(self, x, train):
        x = nn.Dense(5, name="first")(x)
        x = nn.BatchNorm(use_running_average=not train, name="norm")(x)
        x = nn.Dropout(0.3, deterministic=not train)(nn.gelu(x))
        return self.planted(nn.Dense(3, name="last")(x))


def linen_loss(model):
    def loss(params, batch_stats, x, key, train=True):
        logits, changed = model.apply(
            {"params": params, "batch_stats": batch_stats},
            x,
            train,
            mutable=["batch_stats"],
            rngs={"dropout": key},
        )
        return cross_entropy(logits, Y), changed

    return loss


@pytest.fixture(scope="module")
def linen():
    return Linen().init(jax.random.key(0), X, False)


@pytest.mark.parametrize("jit", [False, True])
def test_linen_with_batch_statistics_and_dropout(linen, jit):
    loss = linen_loss(Linen())
    loss = jax.jit(loss) if jit else loss
    arguments = (linen["params"], linen["batch_stats"], X, jax.random.key(1))
    report = jaxcheck.check(loss, *arguments, has_aux=True)
    assert report.verdict is Verdict.CORRECT, str(report)
    assert "['first']['kernel']" in by_path(report)


def test_linen_variables_as_a_whole(linen):
    """Running statistics have a gradient too, though nobody uses it."""

    def loss(variables, x):
        return cross_entropy(Linen().apply(variables, x, False), Y)

    report = jaxcheck.check(loss, linen, X)
    assert report.verdict is Verdict.CORRECT, str(report)
    paths = set(by_path(report))
    assert "['params']['last']['kernel']" in paths
    assert "['batch_stats']['norm']['mean']" in paths


def test_linen_wrong_layer_is_named(linen):
    class Planted(nn.Module):
        @nn.compact
        def __call__(self, x, train):
            x = nn.tanh(nn.Dense(5, name="first")(x))
            return nn.Dense(3, name="last")(wrong_twice(x))

    model = Planted()
    params = model.init(jax.random.key(0), X, True)["params"]
    loss = lambda p, x: cross_entropy(model.apply({"params": p}, x, True), Y)  # noqa: E731
    report = jaxcheck.check(loss, params, X)
    assert wrong_paths(report) == {"['first']['kernel']", "['first']['bias']"}


# ---- flax nnx ------------------------------------------------------------------------


class Nnx(nnx.Module):
    def __init__(self, rngs, rate=0.3):
        self.first = nnx.Linear(4, 5, rngs=rngs)
        self.norm = nnx.BatchNorm(5, rngs=rngs)
        self.dropout = nnx.Dropout(rate, rngs=rngs)
        self.last = nnx.Linear(5, 3, rngs=rngs)

    def __call__(self, x, planted=lambda h: h):
        x = planted(jax.nn.gelu(self.norm(self.first(x))))
        return self.last(self.dropout(x))


def nnx_loss(model, x):
    return cross_entropy(model(x), Y)


def test_nnx_module_itself():
    model = Nnx(nnx.Rngs(0))
    model.eval()
    report = jaxcheck.check(nnx_loss, model, X)
    assert report.verdict is Verdict.CORRECT, str(report)
    assert any("first" in path and "kernel" in path for path in by_path(report))


def test_nnx_module_in_training_is_checked_and_left_alone():
    """BatchNorm and dropout rngs change inside the loss, on the copy that it gets."""
    model = Nnx(nnx.Rngs(0))
    before = jax.tree.map(np.array, nnx.to_pure_dict(nnx.state(model, nnx.BatchStat)))
    report = jaxcheck.check(nnx_loss, model, X)
    assert report.verdict is Verdict.CORRECT, str(report)
    after = jax.tree.map(np.array, nnx.to_pure_dict(nnx.state(model, nnx.BatchStat)))
    assert jax.tree.all(jax.tree.map(np.array_equal, before, after))
    assert report.verdict is jaxcheck.check(nnx_loss, model, X).verdict
    model(X)  # still usable: no tracer has leaked into it


def test_nnx_split_state():
    graphdef, params, rest = nnx.split(Nnx(nnx.Rngs(0)), nnx.Param, ...)

    def loss(params, rest, x, planted=lambda h: h):
        # a copy: flax refuses to update the caller's statistics under `jax.grad`
        model = nnx.merge(graphdef, params, rest, copy=True)
        return cross_entropy(model(x, planted), Y)

    report = jaxcheck.check(loss, params, rest, X)
    assert report.verdict is Verdict.CORRECT, str(report)
    report = jaxcheck.check(lambda p, *xs: loss(p, *xs, wrong_twice), params, rest, X)
    assert report.verdict is Verdict.WRONG
    assert all("last" not in path for path in wrong_paths(report)), str(report)


def test_nnx_rngs_in_the_closure_are_refused_by_flax_itself():
    """As under ``jax.grad``: flax's own error, untouched."""
    rngs = nnx.Rngs(0)

    def loss(p):
        keep = jax.random.bernoulli(rngs.dropout(), 0.5, p.shape)
        return jnp.sum(jnp.where(keep, p**2, 0.0))

    with pytest.raises(TraceContextError, match="RngCount"):
        jaxcheck.check(loss, jnp.linspace(0.1, 1, 40))


# ---- equinox -------------------------------------------------------------------------


def equinox_model():
    return eqx.nn.MLP(4, 3, 5, 2, activation=jax.nn.softplus, key=jax.random.key(0))


def equinox_loss(model, x):
    return cross_entropy(jax.vmap(model)(x), Y)


@pytest.mark.parametrize("wrap", [lambda f: f, eqx.filter_jit], ids=["plain", "jit"])
def test_equinox_module_with_its_activation_as_a_leaf(wrap):
    report = jaxcheck.check(wrap(equinox_loss), equinox_model(), X)
    assert report.verdict is Verdict.CORRECT, str(report)
    leaves = by_path(report)
    assert leaves[".layers[0].weight"].verdict is Verdict.CORRECT
    assert leaves[".activation"].verdict is Verdict.NOT_CHECKED


def test_equinox_wrong_activation_is_found():
    where = lambda m: m.activation  # noqa: E731
    model = eqx.tree_at(where, equinox_model(), lambda h: wrong_twice(jnp.tanh(h)))
    report = jaxcheck.check(equinox_loss, model, X)
    assert report.verdict is Verdict.WRONG
    assert not any(".layers[2]" in path for path in wrong_paths(report))
    assert ".layers[0].weight" in wrong_paths(report)


def test_equinox_partition_and_dropout():
    model = eqx.nn.Sequential(
        [
            eqx.nn.Linear(4, 5, key=jax.random.key(0)),
            eqx.nn.LayerNorm(5),
            eqx.nn.Dropout(0.4),
            eqx.nn.Linear(5, 3, key=jax.random.key(1)),
        ]
    )
    params, static = eqx.partition(model, eqx.is_inexact_array)

    @eqx.filter_jit
    def loss(params, static, x, key):
        keys = jax.random.split(key, len(x))
        logits = jax.vmap(eqx.combine(params, static))(x, key=keys)
        return cross_entropy(logits, Y)

    report = jaxcheck.check(loss, params, static, X, jax.random.key(2))
    assert report.verdict is Verdict.CORRECT, str(report)


# ---- haiku ---------------------------------------------------------------------------


def test_haiku_transformed():
    def forward(x):
        h = hk.dropout(hk.next_rng_key(), 0.3, jax.nn.silu(hk.Linear(5)(x)))
        return hk.nets.MLP([4, 3], activation=jnp.tanh)(h)

    model = hk.transform(forward)
    params = model.init(jax.random.PRNGKey(0), X)

    def loss(params, key, x):
        return cross_entropy(model.apply(params, key, x), Y)

    report = jaxcheck.check(loss, params, jax.random.PRNGKey(1), X)
    assert report.verdict is Verdict.CORRECT, str(report)
    assert "['linear']['w']" in by_path(report)


def test_haiku_with_state():
    def forward(x):
        h = hk.BatchNorm(True, True, 0.9)(hk.Linear(5)(x), is_training=True)
        return hk.Linear(3)(jax.nn.relu(h))

    model = hk.transform_with_state(forward)
    params, state = model.init(jax.random.PRNGKey(0), X)

    def loss(params, state, x):
        logits, state = model.apply(params, state, None, x)
        return cross_entropy(logits, Y), state

    report = jaxcheck.check(loss, params, state, X, has_aux=True)
    assert report.verdict is Verdict.CORRECT, str(report)
