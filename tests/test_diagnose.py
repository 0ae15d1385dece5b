"""Every rule of health: faults that it must name, healthy runs that it must not."""

from __future__ import annotations

import itertools
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import jaxcheck
from jaxcheck import HealthError, HealthFinding, Verdict, diagnose, monitor
from jaxcheck.training.symptoms import Exploding, Vanishing

STEPS = 120
AT = 70


def mlp(widths=(8, 32, 32, 4), seed=0, scale=2.0):
    keys = jax.random.split(jax.random.key(seed), len(widths))
    return {
        f"layer_{k:02}": {
            "b": jnp.zeros(n),
            "w": jnp.sqrt(scale / m) * jax.random.normal(keys[k], (m, n)),
        }
        for k, (m, n) in enumerate(itertools.pairwise(widths))
    }


def loss_of(activation=jax.nn.relu):
    def loss_fn(params, batch):
        x, y = batch
        *hidden, last = params.values()
        for layer in hidden:
            x = activation(x @ layer["w"] + layer["b"])
        return jnp.mean((x @ last["w"] + last["b"] - y) ** 2)

    return loss_fn


def data(steps=STEPS, seed=1):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(steps, 32, 8)).astype(np.float32)
    y = np.stack([np.sin(x[..., k] + x[..., k + 1]) for k in range(4)], axis=-1)
    return jnp.asarray(x), jnp.asarray(y)


def train(tx, params, *, loss_fn=None, batches=None, tamper=None, change=None):
    """One scan; ``tamper`` sees gradients, ``change`` the state after step ``AT``."""
    loss_fn = loss_of() if loss_fn is None else loss_fn
    batches = data() if batches is None else batches

    def step(carry, inputs):
        params, state = carry
        k, batch = inputs
        loss, grads = jax.value_and_grad(loss_fn)(params, batch)
        if tamper is not None:
            grads = tamper(k, grads)
        updates, state = tx.update(grads, state, params, value=loss)
        return (optax.apply_updates(params, updates), state), None

    @jax.jit
    def run(carry, steps, batches):
        return jax.lax.scan(step, carry, (steps, batches))[0]

    steps = jnp.arange(len(batches[0]))
    carry = params, tx.init(params)
    if change is None:
        return run(carry, steps, batches)
    early, late = (
        jax.tree.map(lambda x, s=s: x[s], (steps, batches))
        for s in (slice(AT), slice(AT, None))
    )
    return run(change(run(carry, *early)), *late)


def findings(state, params, **options):
    report = diagnose(state, params, **options)
    return {finding.rule: finding for finding in report.findings}


def scaled(factor):
    """Gradients times a factor of the step."""
    return lambda k, grads: jax.tree.map(lambda g: factor(k) * g, grads)


def one_leaf(value, step=AT):
    def tamper(k, grads):
        w = grads["layer_01"]["w"]
        w = w.at[3, 5].set(jnp.where(k == step, value, w[3, 5]))
        return {**grads, "layer_01": {**grads["layer_01"], "w": w}}

    return tamper


W1 = "['layer_01']['w']"


# ---- faults


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_not_finite_in_one_leaf_and_step(value):
    tx = monitor(optax.apply_if_finite(optax.adam(1e-3), 3))
    params, state = train(tx, mlp(), tamper=one_leaf(value))
    found = findings(state, params)
    assert set(found) == {"nonfinite_gradient"}
    assert found["nonfinite_gradient"].leaf == W1
    assert found["nonfinite_gradient"].others == ()
    assert found["nonfinite_gradient"].step == AT


def test_nan_that_goes_on_into_parameters():
    params, state = train(monitor(optax.adam(1e-3)), mlp(), tamper=one_leaf(np.nan))
    found = findings(state, params)
    assert found["nonfinite_gradient"].leaf == W1
    assert found["nonfinite_parameter"].leaf == W1
    assert found["nonfinite_parameter"].step == AT + 1


def test_a_poisoned_moment():
    def change(carry):
        params, state = carry
        adam, *rest = state.inner
        mu = adam.mu["layer_01"]["w"].at[0, 0].set(jnp.nan)
        mu = {**adam.mu, "layer_01": {**adam.mu["layer_01"], "w": mu}}
        return params, state._replace(inner=(adam._replace(mu=mu), *rest))

    params, state = train(monitor(optax.adam(1e-3)), mlp(), change=change)
    found = findings(state, params)
    assert found["poisoned_optimizer"].leaf == W1
    assert found["poisoned_optimizer"].step == AT
    assert found["nonfinite_parameter"].step == AT + 1


def test_slow_explosion():
    tamper = scaled(lambda k: 1.2 ** jnp.maximum(k - 30, 0))
    params, state = train(monitor(optax.sgd(1e-9)), mlp(), tamper=tamper)
    found = findings(state, params)
    assert set(found) == {"exploding"}
    # 100 times after log(100) / log(1.2) = 25 steps
    assert 50 <= found["exploding"].step <= 60


def test_a_learning_rate_that_is_too_high():
    tx = monitor(optax.lion(0.1))
    params, state = train(tx, mlp(), loss_fn=loss_of(jnp.tanh))
    found = findings(state, params)
    assert "update_ratio" in found, str(diagnose(state, params))


def test_a_spike():
    tamper = scaled(lambda k: jnp.where(k == AT, 300.0, 1.0))
    params, state = train(monitor(optax.adam(1e-3)), mlp(), tamper=tamper)
    found = findings(state, params)
    assert found["spike"].step == AT
    assert found["spike"].value > 6.0


def test_a_spike_of_one_leaf():
    def tamper(k, grads):
        w = jnp.where(k == AT, 1e4, 1.0) * grads["layer_01"]["w"]
        return {**grads, "layer_01": {**grads["layer_01"], "w": w}}

    params, state = train(monitor(optax.sgd(1e-6)), mlp(), tamper=tamper)
    found = findings(state, params)
    assert found["spike"].leaf == W1
    assert found["spike"].step == AT


def test_vanishing_by_depth():
    params = mlp((8, *[16] * 19, 4), scale=1.0)
    tx = monitor(optax.sgd(1e-2))
    params, state = train(tx, params, loss_fn=loss_of(jax.nn.sigmoid))
    found = findings(state, params)
    assert found["vanishing"].leaf == "['layer_00']['w']"
    assert "['layer_01']['w']" in found["vanishing"].others
    assert "['layer_18']['w']" not in found["vanishing"].others
    params = mlp((8, *[16] * 19, 4))
    params, state = train(monitor(optax.sgd(1e-3)), params)
    assert not findings(state, params)


def test_a_whole_gradient_that_fades():
    tamper = scaled(lambda k: 10.0 ** (-k / 20))
    params, state = train(monitor(optax.sgd(1e-3)), mlp(), tamper=tamper)
    found = findings(state, params)
    assert set(found) == {"vanishing"}
    assert found["vanishing"].leaf is None
    assert found["vanishing"].value < 1e-3
    # one that divides by its latest gradients still moves
    _, state = train(monitor(optax.adam(1e-3, b2=0.8)), mlp(), tamper=tamper)
    assert not findings(state, params)


def sigmoids(depth, stacked):
    """A network of sigmoids, its layers leaves of their own or one leaf."""
    keys = jax.random.split(jax.random.key(0), depth)
    layers = [jax.random.normal(key, (8, 8)) / 8**0.5 for key in keys]
    params = {"layers": jnp.stack(layers) if stacked else layers, "out": jnp.ones(8)}

    def loss_fn(params, batch):
        x, y = batch
        for k in range(depth):
            x = jax.nn.sigmoid(x @ params["layers"][k])
        return jnp.mean((x @ params["out"] - y[:, 0]) ** 2)

    return params, loss_fn


@pytest.mark.parametrize("stacked", [False, True])
def test_a_profile_over_depth(stacked):
    params, loss_fn = sigmoids(9, stacked)
    watched = {"stacked": "['layers']"} if stacked else {}
    state = train(monitor(optax.sgd(1e-2), **watched), params, loss_fn=loss_fn)[1]
    found = findings(state, params, **watched)
    assert set(found) == {"depth_profile"}  # not below 1e-4 of the median
    finding = found["depth_profile"]
    assert finding.leaf == "['layers'][0]"
    assert "from ['layers'][8] to here" in finding.message
    assert finding.value < 1e-3
    assert "sigmoid" in finding.remedies[0]
    state = train(monitor(optax.adam(1e-3), **watched), params, loss_fn=loss_fn)[1]
    assert not findings(state, params, **watched)  # it moves them all


def test_a_profile_that_grows_towards_the_first_layer():
    params, loss_fn = sigmoids(6, stacked=False)

    def tamper(k, grads):
        grown = [g * 1e3 ** (5 - k) for k, g in enumerate(grads["layers"])]
        return {**grads, "layers": grown}

    params, state = train(
        monitor(optax.sgd(1e-15)), params, loss_fn=loss_fn, tamper=tamper
    )
    finding = findings(state, params)["depth_profile"]
    assert finding.leaf == "['layers'][5]"
    assert "too large" in finding.causes[1]


def test_one_small_layer_is_no_profile():
    params, loss_fn = sigmoids(6, stacked=False)

    def tamper(k, grads):
        small = grads["layers"][0] * 1e-4
        grown = [g * 8**-k for k, g in enumerate(grads["layers"])]  # even, about
        return {**grads, "layers": [small, *grown[1:]]}

    params, state = train(
        monitor(optax.sgd(1e-3)), params, loss_fn=loss_fn, tamper=tamper
    )
    assert "depth_profile" not in findings(state, params)


def test_a_relu_layer_that_dies():
    def change(carry):
        params, state = carry
        layer = {**params["layer_01"], "b": params["layer_01"]["b"] - 1e3}
        return {**params, "layer_01": layer}, state

    params, state = train(monitor(optax.sgd(1e-3)), mlp(), change=change)
    found = findings(state, params)
    finding = found["zero_gradient"]
    assert finding.step == AT
    assert {finding.leaf, *finding.others} >= {
        "['layer_00']['b']",
        "['layer_00']['w']",
        "['layer_01']['b']",
        W1,
    }


def test_a_relu_of_nan_parameters_is_not_called_dead():
    def change(carry):
        params, state = carry
        layer = {**params["layer_01"], "b": params["layer_01"]["b"] * jnp.nan}
        return {**params, "layer_01": layer}, state

    params, state = train(monitor(optax.sgd(1e-3)), mlp(), change=change)
    assert state.zero_run[0, :-1].max() >= 20
    found = findings(state, params)
    assert "nonfinite_parameter" in found
    assert "zero_gradient" not in found


def test_a_leaf_that_is_never_updated():
    labels = jax.tree.map(lambda _: "adam", mlp())
    labels["layer_01"]["w"] = "frozen"
    tx = optax.partition(
        {"adam": optax.adam(1e-3), "frozen": optax.set_to_zero()}, labels
    )
    params, state = train(monitor(tx), mlp())
    found = findings(state, params)
    assert set(found) == {"never_updated"}
    assert found["never_updated"].leaf == W1
    assert found["never_updated"].others == ()
    report = diagnose(state, params, ignore=W1)
    assert report.passed
    assert W1 in report.not_judged[0]


def test_a_leaf_that_is_never_used():
    params = {**mlp(), "spare": {"w": jnp.ones((3, 3))}}

    def loss_fn(params, batch):
        return loss_of()({k: v for k, v in params.items() if k != "spare"}, batch)

    params, state = train(monitor(optax.adam(1e-3)), params, loss_fn=loss_fn)
    found = findings(state, params)
    assert set(found) == {"zero_gradient"}
    assert found["zero_gradient"].leaf == "['spare']['w']"
    assert found["zero_gradient"].step == 0


def test_updates_that_are_lost_in_bfloat16():
    params = jax.tree.map(lambda p: (p + 1).astype(jnp.bfloat16), mlp())
    params, state = train(monitor(optax.adam(1e-4)), params)
    found = findings(state, params)
    assert "lost_updates" in found
    assert found["lost_updates"].value > 0.5


def test_always_clipped():
    tx = optax.chain(optax.clip_by_global_norm(1e-4), optax.adam(1e-3))
    params, state = train(monitor(tx), mlp())
    found = findings(state, params)
    assert set(found) == {"always_clipped"}
    assert found["always_clipped"].value == 1.0


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_loss_that_is_not_finite(value):
    tx = monitor(optax.sgd(0.1))
    params = mlp()
    state = tx.init(params)
    for loss in (1.0, value, 1.0):
        _, state = tx.update(params, state, params, value=jnp.float32(loss))
    assert findings(state, params)["nonfinite_loss"].step == 1


@pytest.mark.parametrize("steps", [60, 160])
def test_a_loss_that_does_not_move(steps):
    """In a run that its state holds, and in a longer one."""
    batches = jax.tree.map(lambda x: jnp.stack([x[0]] * steps), data())
    params, state = train(monitor(optax.sgd(1e-12)), mlp(), batches=batches)
    assert set(findings(state, params)) == {"flat_loss"}


def seeing(losses):
    """What is found in losses alone."""
    params = {"w": jnp.ones(2)}
    tx = monitor(optax.sgd(1e-3), window=256)

    def step(state, loss):
        return tx.update(params, state, params, value=loss)[1], None

    losses = jnp.asarray(losses, jnp.float32)
    return findings(jax.lax.scan(step, tx.init(params), losses)[0], params)


def noisy(losses, seed=0):
    return losses * np.exp(0.2 * np.random.default_rng(seed).normal(size=len(losses)))


def test_a_loss_that_rises_above_where_it_began():
    steps = np.arange(200)
    found = seeing(noisy(2.0 + steps / 50))
    assert set(found) == {"rising_loss"}
    assert found["rising_loss"].step == 180
    assert found["rising_loss"].value > 5.0
    assert not seeing(noisy(2.0 - 0.009 * steps))
    assert not seeing(-5 + noisy(np.exp(-steps / 50)))  # a negative one that falls
    assert set(seeing(-5 + noisy(np.exp(steps / 100)))) == {"rising_loss"}


def test_a_loss_that_rises_is_known_by_its_first_value_in_a_short_window():
    batches = data()
    tx = monitor(optax.sgd(-3e-4), window=32)
    params, state = train(tx, mlp(), batches=batches)
    assert len(state.losses) == 32
    assert "rising_loss" in {f.rule for f in diagnose(state, params).findings}
    assert float(state.first_loss) == pytest.approx(
        float(loss_of()(mlp(), jax.tree.map(lambda x: x[0], batches))), rel=1e-5
    )


def test_a_loss_that_jumps():
    steps = np.arange(200)
    falling = noisy(2 * np.exp(-steps / 60))
    assert not seeing(falling)
    jumping = falling.copy()
    jumping[[90, 150]] *= 20
    found = seeing(jumping)
    assert set(found) == {"jumping_loss"}
    assert found["jumping_loss"].step == 90
    assert "2 steps" in found["jumping_loss"].message


def test_a_small_loss_may_jump():
    losses = noisy(2 * np.exp(-np.arange(200) / 20))  # 1e-4 of the first in the end
    losses[150] *= 100
    assert not seeing(losses)


def test_a_noisy_loss_does_not_jump():
    rng = np.random.default_rng(0)
    assert not seeing(np.exp(rng.normal(size=250)))


# ---- places


def test_behind_clipping():
    tx = optax.chain(optax.clip_by_global_norm(1e-3), monitor(), optax.adam(1e-3))
    params, state = train(tx, mlp())
    found = findings(state, params)
    assert set(found) == {"placement"}
    assert "behind a clipping" in found["placement"].message


def test_inside_apply_if_finite_and_behind_zero_nans():
    tx = optax.apply_if_finite(monitor(optax.adam(1e-3)), 3)
    params, state = train(tx, mlp())
    assert "apply_if_finite" in findings(state, params)["placement"].message
    tx = optax.chain(optax.zero_nans(), monitor(optax.adam(1e-3)))
    params, state = train(tx, mlp())
    assert "zero_nans" in findings(state, params)["placement"].message


# ---- healthy

WARM = optax.warmup_cosine_decay_schedule(0.0, 3e-3, 20, STEPS)
RESTARTS = optax.sgdr_schedule(
    [
        {
            "init_value": 1e-3,
            "peak_value": 5e-3,
            "decay_steps": 40,
            "warmup_steps": 5,
            "end_value": 1e-4,
        }
    ]
    * 3
)
HEALTHY = {
    "adam": lambda: optax.adam(1e-3),
    "adamw, warm-up and cosine": lambda: optax.adamw(WARM),
    "restarts": lambda: optax.adam(RESTARTS),
    "momentum": lambda: optax.sgd(1e-2, momentum=0.9),
    "sgd": lambda: optax.sgd(1e-2),
    "clipped now and then": lambda: optax.chain(
        optax.clip_by_global_norm(2.0), optax.adam(1e-3)
    ),
    "MultiSteps": lambda: optax.MultiSteps(optax.adam(1e-3), 4),
    "lion": lambda: optax.lion(1e-4),
    "adafactor": lambda: optax.adafactor(1e-3),
}


@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[pytest.mark.slow] if k % 2 else [])
        for k, name in enumerate(HEALTHY)
    ],
)
def test_healthy_training(name, seed):
    tx = monitor(HEALTHY[name]())
    params, state = train(tx, mlp(seed=seed), batches=data(seed=seed + 10))
    report = diagnose(state, params)
    assert report.passed, str(report)
    jaxcheck.assert_training_healthy(state, params)


# ---- the report


def test_the_report_reads_well_and_is_a_value():
    params, state = train(monitor(optax.adam(1e-3)), mlp(), tamper=one_leaf(np.nan))
    report = diagnose(state, params)
    text = str(report)
    assert text.startswith("jaxcheck: training is not healthy: nonfinite_gradient")
    assert f"from step {AT}" in text
    assert "Try: " in text
    assert all(len(line) <= 100 for line in text.splitlines())
    assert pickle.loads(pickle.dumps(report)) == report
    assert report.to_dict()["findings"][0]["step"] == AT
    with pytest.raises(HealthError, match="nonfinite_gradient"):
        jaxcheck.assert_training_healthy(state, params)


@pytest.mark.parametrize("whole", [False, True])
def test_an_optimizer_of_nnx(whole):
    model = nnx.Linear(3, 2, rngs=nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, monitor(optax.adam(1e-3)), wrt=nnx.Param)
    for scale in (1.0, jnp.nan):
        grads = nnx.grad(lambda m, s=scale: s * m(jnp.ones((1, 3))).sum())(model)
        optimizer.update(model, grads)
    state = optimizer if whole else optimizer.opt_state
    found = findings(state, nnx.state(model, nnx.Param))
    assert found["nonfinite_gradient"].step == 1
    assert "kernel" in "".join(found["nonfinite_gradient"].others)


def test_before_the_first_step():
    tx = monitor(optax.adam(1e-3))
    report = diagnose(tx.init(mlp()), mlp())
    assert report.verdict is Verdict.NOT_CHECKED
    assert not report.passed


def test_a_rule_of_the_user():
    def large(seen):
        if seen.state.norm[0, -1] > 0:
            yield HealthFinding(rule="large", message="it is.")

    params, state = train(monitor(optax.adam(1e-3)), mlp())
    report = diagnose(state, params, rules=(large,))
    assert [finding.rule for finding in report.findings] == ["large"]
    assert report.rules == ("large", "placement")


def test_classical_thresholds():
    params, state = train(monitor(optax.sgd(1e-5)), mlp(), tamper=scaled(lambda k: 1e5))
    assert not findings(state, params)
    found = findings(state, params, rules=(Exploding(above=1e3),))
    assert found["exploding"].threshold == 1e3
    params, state = train(
        monitor(optax.adam(1e-3)), mlp(), tamper=scaled(lambda k: 1e-9)
    )
    found = findings(state, params, rules=(Vanishing(under=1e-6),))
    assert set(found) == {"vanishing"}


def test_bad_input():
    params, state = mlp(), monitor(optax.adam(1e-3)).init(mlp())
    with pytest.raises(jaxcheck.InvalidInputError, match="it holds 0"):
        diagnose(optax.adam(1e-3).init(params), params)
    with pytest.raises(jaxcheck.InvalidInputError, match="it holds 2"):
        diagnose((state, state), params)
    with pytest.raises(jaxcheck.InvalidInputError, match="leaves and layers"):
        diagnose(state, params["layer_00"])
    with pytest.raises(jaxcheck.InvalidInputError, match=r"diagnose\(ignore=...\)"):
        diagnose(state, params, ignore="['nowhere']")
    ensemble = jax.tree.map(lambda x: jnp.stack([x, x]), state)
    with pytest.raises(jaxcheck.InvalidInputError, match="Give one member"):
        diagnose(ensemble, params)
