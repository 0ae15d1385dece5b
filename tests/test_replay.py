"""From a finding of health to its cause, at the very step and leaf."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import optax
import pytest
from flax.training import train_state

import jaxcheck
from jaxcheck import InvalidInputError, Verdict

BAD = 23


@jax.custom_vjp
def gain(x):
    """3x, by a rule that is wrong where x is large."""
    return 3.0 * x


def _gain_forward(x):
    return 3.0 * x, x


def _gain_backward(x, g):
    return (jnp.where(jnp.abs(x) > 50.0, 300.0, 3.0) * g,)


gain.defvjp(_gain_forward, _gain_backward)

PARAMS = {"scale": jnp.ones(4) / 5, "shift": jnp.zeros(4)}
BATCHES = list(jax.random.normal(jax.random.key(0), (40, 6, 4)))


def loss_fn(params, x):
    return jnp.mean((gain(x * params["scale"]) + params["shift"] - 1.0) ** 2)


def right_fn(params, x):
    return jnp.mean((3.0 * x * params["scale"] + params["shift"] - 1.0) ** 2)


def root_fn(params, x):
    return jnp.mean(jnp.sqrt(jnp.abs(x * params["scale"])) + params["shift"] ** 2)


def trained(loss_fn, batches, steps=40):
    """A step, the state before the first, and a report after the last."""
    tx = jaxcheck.monitor(optax.sgd(1e-5))

    @jax.jit
    def train_step(state, x):
        params, opt_state = state
        loss, grads = jax.value_and_grad(loss_fn)(params, x)
        updates, opt_state = tx.update(grads, opt_state, params, value=loss)
        return (optax.apply_updates(params, updates), opt_state), loss

    start = state = PARAMS, tx.init(PARAMS)
    for x in batches[:steps]:
        state, _ = train_step(state, x)
    return train_step, start, state, jaxcheck.diagnose(state[1], PARAMS)


def with_batch(change):
    return [change(x) if k == BAD else x for k, x in enumerate(BATCHES)]


def found(report, rule):
    return next(f for f in report.findings if f.rule == rule)


def test_a_nan_is_traced_to_the_line_that_bears_it():
    batches = with_batch(lambda x: x.at[2, 1].set(0.0))
    train_step, start, _, report = trained(root_fn, batches)
    again = report.replay(root_fn, start, batches, train_step=train_step)
    assert again.step == BAD
    assert again.reproduced
    assert again.finding.rule == "nonfinite_gradient"
    site = again.check.culprits[0]
    assert (site.primitive, site.line) == (
        "sqrt",
        root_fn.__code__.co_firstlineno + 1,
    )
    assert "sqrt" in str(again)
    assert "is not finite" in repr(again)


def test_a_rule_that_breaks_at_large_values_is_found_where_it_broke():
    batches = with_batch(lambda x: 400.0 * x)
    train_step, start, _, report = trained(loss_fn, batches)
    finding = found(report, "spike")
    again = report.replay(
        loss_fn, start, batches, train_step=train_step, finding=finding
    )
    assert (again.step, again.leaf) == (BAD, finding.leaf)
    assert again.leaf == "['scale']"
    assert again.verdict is Verdict.WRONG
    assert again.reproduced is None
    checked = [leaf.path for leaf in again.check.leaves if leaf.checked]
    assert checked == ["['scale']"]
    assert again.check.culprits[0].rule == "gain"
    with pytest.raises(jaxcheck.GradientError):
        again.raise_if_failed()


def test_before_it_broke_the_rule_is_right():
    batches = with_batch(lambda x: 400.0 * x)
    train_step, start, _, report = trained(loss_fn, batches)
    finding = found(report, "spike")
    calm = report.replay(
        loss_fn, start, BATCHES, train_step=train_step, finding=finding
    )
    assert calm.passed


def test_a_right_gradient_is_said_to_be_right():
    batches = with_batch(lambda x: 400.0 * x)
    train_step, start, _, report = trained(right_fn, batches)
    again = report.replay(right_fn, start, batches, train_step=train_step)
    assert again.passed
    assert "has other causes" in str(again)


def test_a_run_that_was_another_one_says_so():
    batches = with_batch(lambda x: x.at[2, 1].set(0.0))
    train_step, start, _, report = trained(root_fn, batches)
    again = report.replay(root_fn, start, BATCHES, train_step=train_step)
    assert again.reproduced is False
    assert "another one" in str(again)


def test_a_checkpoint_on_the_way_knows_its_own_step():
    batches = with_batch(lambda x: x.at[2, 1].set(0.0))
    train_step, _, _, report = trained(root_fn, batches)
    _, _, saved, _ = trained(root_fn, batches, steps=20)
    again = report.replay(root_fn, saved, batches[20:], train_step=train_step)
    assert (again.step, again.reproduced) == (BAD, True)
    _, _, there, _ = trained(root_fn, batches, steps=BAD)
    at_once = report.replay(root_fn, there, [batches[BAD]])
    assert at_once.reproduced
    params = there[0]
    kept = report.replay(
        root_fn, params, [batches[BAD]], start=BAD, params_of=lambda p: p
    )
    assert kept.reproduced


def test_a_layer_of_a_stack_is_replayed_as_its_leaf_and_a_train_state_is_read():
    params = {"layers": jnp.stack([jnp.eye(3)] * 4), "out": jnp.ones(3)}

    def loss_fn(params, x):
        h, _ = jax.lax.scan(lambda h, w: (jnp.tanh(h @ w), None), x, params["layers"])
        return jnp.mean((h @ params["out"]) ** 2)

    tx = jaxcheck.monitor(optax.sgd(1e-3), stacked="['layers']")
    state = train_state.TrainState.create(apply_fn=None, params=params, tx=tx)

    def step(state, k):
        grads = jax.grad(loss_fn)(state.params, jnp.full((2, 3), 0.1) + 0.01 * k)
        grads["layers"] = grads["layers"].at[2].mul(0.0)
        return state.apply_gradients(grads=grads), None

    state, _ = jax.lax.scan(step, state, jnp.arange(30))
    report = jaxcheck.diagnose(state, params, stacked="['layers']")
    finding = found(report, "zero_gradient")
    assert finding.leaf == "['layers'][2]"
    again = report.replay(loss_fn, state, [jnp.ones((2, 3))], finding=None, start=0)
    assert (again.leaf, again.passed) == ("['layers']", True)


def test_a_leaf_that_is_not_among_the_parameters_is_said():
    batches = with_batch(lambda x: 400.0 * x)
    train_step, start, _, report = trained(loss_fn, batches)

    def only_shift(params, x):
        return loss_fn({"scale": PARAMS["scale"], "shift": params["b"]}, x)

    again = report.replay(
        only_shift,
        start,
        batches,
        train_step=train_step,
        finding=found(report, "spike"),
        params_of=lambda state: {"b": state[0]["shift"]},
    )
    assert (again.leaf, again.passed) == (None, True)
    assert "['scale'] is not among the parameters, so all of them" in str(again)


def test_clear_errors():
    batches = with_batch(lambda x: x.at[2, 1].set(0.0))
    train_step, start, after, report = trained(root_fn, batches)
    replay = report.replay
    with pytest.raises(InvalidInputError, match="has taken 40 steps"):
        replay(root_fn, after, batches, train_step=train_step)
    with pytest.raises(InvalidInputError, match="to go from step 0"):
        replay(root_fn, start, batches)
    with pytest.raises(InvalidInputError, match="ran out after 5 batches"):
        replay(root_fn, start, iter(batches[:5]), train_step=train_step)
    with pytest.raises(InvalidInputError, match="Pass start="):
        replay(root_fn, (PARAMS,), batches, train_step=train_step)
    with pytest.raises(InvalidInputError, match=r"start=-1"):
        replay(root_fn, (PARAMS,), batches, train_step=train_step, start=-1)
    with pytest.raises(InvalidInputError, match="loss_fn"):
        replay(3, start, batches, train_step=train_step)
    other = jaxcheck.HealthFinding(rule="spike", message="")
    with pytest.raises(InvalidInputError, match="one of `report.findings`"):
        replay(root_fn, start, batches, train_step=train_step, finding=other)
    with pytest.raises(InvalidInputError, match="nothing to replay"):
        trained(right_fn, BATCHES)[3].replay(right_fn, start, batches)
