"""Planted faults are caught, what is stated as detectable is, stages are checked."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxcheck
from jaxcheck import InvalidInputError, Verdict

RNG = np.random.default_rng(0)
X = RNG.normal(size=(16, 6)).astype(np.float32)
PARAMS = {
    "w1": RNG.normal(size=(6, 8)).astype(np.float32),
    "b1": np.zeros(8, np.float32),
    "w2": RNG.normal(size=(8, 3)).astype(np.float32),
    "b2": np.zeros(3, np.float32),
}


def loss(p, x):
    hidden = jnp.tanh(x @ p["w1"] + p["b1"])
    return jnp.mean((hidden @ p["w2"] + p["b2"] - 1.0) ** 2)


# ---- self_test -----------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["exhaustive", "directional"])
def test_every_planted_fault_is_caught(mode):
    report = jaxcheck.self_test(loss, PARAMS, X, mode=mode)
    assert report.verdict is Verdict.CORRECT, str(report)
    assert len(report.faults) == 4 * len(PARAMS)
    assert {f.leaf for f in report.faults} == {f"['{name}']" for name in PARAMS}
    assert "16 of 16" in str(report)


def test_leaves_of_one_shape_are_swapped():
    report = jaxcheck.self_test(
        lambda p: jnp.sum(jnp.sin(p["a"])) + jnp.sum(p["b"] ** 2),
        {"a": np.float32([0.1, 0.2]), "b": np.float32([0.3, 0.4])},
    )
    assert any(f.fault == "swapped with ['b']" for f in report.faults)
    assert report.passed


def test_a_fault_that_changes_nothing_is_not_planted():
    report = jaxcheck.self_test(jnp.sum, np.ones(3, np.float32))
    reversed_ = next(f for f in report.faults if f.fault == "reversed")
    assert reversed_.verdict is Verdict.NOT_CHECKED
    assert report.passed
    assert "Not planted" in str(report)


def test_a_wrong_gradient_cannot_be_tested():
    wrong = jax.custom_jvp(jnp.sin)
    wrong.defjvps(lambda t, out, x: 2 * jnp.cos(x) * t)
    report = jaxcheck.self_test(lambda w: jnp.sum(wrong(w)), np.ones(3, np.float32))
    assert report.verdict is Verdict.INCONCLUSIVE
    assert all(f.verdict is Verdict.NOT_CHECKED for f in report.faults)


def test_a_fault_that_sampling_misses_is_reported_as_missed():
    w = np.linspace(0.1, 1, 400, dtype=np.float32)
    report = jaxcheck.self_test(lambda w: jnp.sum(w**3), w, mode="sampled", samples=2)
    assert report.verdict is Verdict.WRONG
    missed = [f.fault for f in report.faults if f.verdict is Verdict.WRONG]
    assert missed == ["its largest coordinate zeroed"]
    assert "went unnoticed" in str(report)


# ---- detection power -----------------------------------------------------------------


def wrong_by(error):
    """A loss whose gradient is off by ``error``, a vector like the parameters."""

    @jax.custom_vjp
    def f(w):
        return jnp.sum(jnp.sin(w))

    f.defvjp(lambda w: (f(w), w), lambda w, ct: (ct * (jnp.cos(w) + error),))
    return f


@pytest.mark.slow
@pytest.mark.parametrize(
    ("mode", "trials"),
    [
        ("exhaustive", 6),
        ("directional", 30),
        pytest.param("directional", 500, marks=pytest.mark.slow),
    ],
)
def test_what_is_stated_as_detectable_is_detected(mode, trials):
    """Errors of the stated size, of many shapes: one in a thousand may be missed."""
    size = 40
    w = np.linspace(-1, 1, size)
    with jax.enable_x64(True):
        gradient = np.cos(w)
        missed = 0
        for trial in range(trials):
            key = jax.random.key(trial)
            clean = jaxcheck.check(wrong_by(np.zeros(size)), w, mode=mode, key=key)
            power = clean.leaves[0].detectable
            rng = np.random.default_rng(trial)
            error = np.zeros(size)
            chosen = rng.choice(size, (1, 2, size)[trial % 3], replace=False)
            error[chosen] = rng.choice([-1, 1], len(chosen))
            error *= power * np.linalg.norm(gradient) / np.linalg.norm(error)
            report = jaxcheck.check(wrong_by(error), w, mode=mode, key=key)
            missed += report.verdict is Verdict.CORRECT
    assert missed <= 3 * (trials == 500)  # 0.1 % of 500, and the sampling error
    assert power < 1e-3


def test_nothing_is_stated_for_samples():
    report = jaxcheck.check(loss, PARAMS, X, mode="sampled", samples=2)
    assert report.leaves[0].detectable is None


# ---- check_along ---------------------------------------------------------------------


def step(params, x):
    grads = jax.grad(loss)(params, x)
    return jax.tree.map(lambda p, g: p - 0.1 * g, params, grads)


def test_one_report_for_each_stage():
    report = jaxcheck.check_along(
        step, PARAMS, [X, -X], at=(5, 0), loss_fn=loss, params_of=lambda p: p
    )
    assert report.verdict is Verdict.CORRECT, str(report)
    assert [s.step for s in report.stages] == [0, 5]
    assert report.stages[0].report.loss != report.stages[1].report.loss
    assert "After 5 steps: jaxcheck: all 4 leaves" in str(report)


def test_a_rule_that_is_wrong_once_weights_have_grown():
    @jax.custom_jvp
    def square(w):
        return w**2

    square.defjvps(lambda t, out, w: jnp.where(jnp.abs(w) > 2, 1.9, 2.0) * w * t)
    grow = lambda w, batch: (w + 0.5, {"metric": batch})  # noqa: E731
    report = jaxcheck.check_along(
        grow,
        np.float32(0.1),
        iter([None] * 8),
        at=(0, 1, 6),
        loss_fn=lambda w, batch: square(w),
        params_of=lambda w: w,
    )
    verdicts = [s.report.verdict for s in report.stages]
    assert verdicts == [Verdict.CORRECT, Verdict.CORRECT, Verdict.WRONG]
    assert report.verdict is Verdict.WRONG
    assert "step 6" in repr(report)


@pytest.mark.parametrize(
    ("more", "match"),
    [
        ({"at": ()}, "at"),
        ({"at": (-1,)}, "at"),
        ({"batches": []}, "batches"),
        ({"batches": iter([X])}, "ran out after 1"),
        ({"batches": X}, "batches"),
        ({"train_step": 3}, "train_step"),
        ({"train_step": lambda s, b: None}, "train_step"),
        ({"state": np.ones(2), "params_of": None}, "params_of"),
        ({"rtol": -1}, "rtol"),
    ],
)
def test_bad_input_is_refused_by_name(more, match):
    call = {
        "train_step": step,
        "state": PARAMS,
        "batches": [X],
        "at": (0, 2),
        "loss_fn": loss,
        "params_of": lambda p: p,
    }
    call |= more
    positional = [call.pop(name) for name in ("train_step", "state", "batches")]
    with pytest.raises(InvalidInputError, match=match):
        jaxcheck.check_along(*positional, **call)


def test_a_module_that_is_updated_in_place():
    from flax import nnx

    net = nnx.Linear(6, 2, rngs=nnx.Rngs(0))

    def loss_of(net, x):
        return jnp.mean(net(x) ** 2)

    def in_place(net, x):
        grads = nnx.grad(loss_of)(net, x)
        state = jax.tree.map(lambda p, g: p - 0.1 * g, nnx.state(net), grads)
        nnx.update(net, state)

    call = {"at": (0, 3), "loss_fn": loss_of, "params_of": lambda net: net}
    report = jaxcheck.check_along(in_place, net, [X], **call)
    assert report.passed, str(report)
    assert report.stages[0].report.loss > report.stages[1].report.loss
    with pytest.raises(InvalidInputError, match="train_step"):
        jaxcheck.check_along(lambda net, x: None, net, [X], **call)
