"""Random optimizers: right noise passes, and what is wrong with wrong noise is said."""

from __future__ import annotations

import functools
import warnings
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from optax import contrib

from jaxcheck import InvalidInputError, Verdict, check_update, rules
from jaxcheck.updates.inputs import asked
from jaxcheck.updates.noise import WithNoise
from tests.test_optimizers_table import some

RATE, ETA, GAMMA = 1e-2, 0.04, 0.55
CLIP, MULTIPLIER = 2.0, 0.5
NOISY = rules.noisy_sgd(RATE, ETA, GAMMA)
PRIVATE = rules.dpsgd(RATE, CLIP, MULTIPLIER)


def private(*settings, **more):
    """Of optax; a seed is the only key that it takes, and it warns of that."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return contrib.dpsgd(*settings, **more)


class State(NamedTuple):
    count: Any
    key: Any


def own_keys(key, leaves):
    return list(jax.random.split(key, len(leaves)))


def noisy_sgd(
    *,
    spread=lambda t: jnp.sqrt(ETA / t**GAMMA),
    keys=own_keys,
    draw=jax.random.normal,
    update=lambda g, n: -RATE * (g + n),
    carried=lambda old, new: new,
):
    """noisy_sgd, written once more; every part can be another one."""

    def init(params):
        return State(jnp.zeros((), jnp.int32), jax.random.key(3))

    def step(grads, state, params=None):
        key, sub = jax.random.split(state.key)
        t = state.count + 1
        leaves, treedef = jax.tree.flatten(grads)
        size = spread(t.astype(leaves[0].dtype))
        out = [
            update(g, size.astype(g.dtype) * draw(k, g.shape, g.dtype))
            for g, k in zip(leaves, keys(sub, leaves), strict=True)
        ]
        return treedef.unflatten(out), State(t, carried(state.key, key))

    return optax.GradientTransformation(init, step)


def dpsgd(
    *,
    clip=CLIP,
    deviation=CLIP * MULTIPLIER,
    before=0.0,
    divided=lambda total, noise, batch: (total + noise) / batch,
):
    """dpsgd, likewise."""

    def init(params):
        return State(jnp.zeros((), jnp.int32), jax.random.key(4))

    def step(grads, state, params=None):
        key, sub, early = jax.random.split(state.key, 3)
        leaves, treedef = jax.tree.flatten(grads)
        batch = leaves[0].shape[0]
        leaves = [
            g + before * jax.random.normal(k, g.shape, g.dtype)
            for g, k in zip(leaves, own_keys(early, leaves), strict=True)
        ]
        squares = [jnp.sum(g.reshape(batch, -1) ** 2, axis=1) for g in leaves]
        factor = 1 / jnp.maximum(1.0, jnp.sqrt(sum(squares)) / clip)
        totals = [jnp.tensordot(factor, g, axes=1) for g in leaves]
        out = [
            -RATE
            * divided(x, deviation * jax.random.normal(k, x.shape, x.dtype), batch)
            for x, k in zip(totals, own_keys(sub, leaves), strict=True)
        ]
        return treedef.unflatten(out), State(state.count + 1, key)

    return optax.GradientTransformation(init, step)


def by_shape(key, leaves):
    return [jax.random.fold_in(key, g.size) for g in leaves]


def one_row(key, shape, dtype):
    return jnp.broadcast_to(jax.random.normal(key, shape[-1:], dtype), shape)


def uniform(key, shape, dtype):
    return jax.random.uniform(key, shape, dtype, -(3**0.5), 3**0.5)


def truncated(key, shape, dtype):
    return jax.random.truncated_normal(key, -2.5, 2.5, shape, dtype) / 0.9546


# With its rule, what the message begins with, and the variant if known.
MUTANTS = {
    "variance for standard deviation": (
        noisy_sgd(spread=lambda t: ETA / t**GAMMA),
        NOISY,
        "the standard deviation of the noise is 0.",
        "with eta / (1 + t)**gamma the standard deviation of the noise, not its "
        "variance",
    ),
    "exponent 0.5": (
        noisy_sgd(spread=lambda t: jnp.sqrt(ETA / t**0.5)),
        NOISY,
        "the standard deviation of the noise",
        "with gamma=0.5",
    ),
    "exponent 0.57": (
        noisy_sgd(spread=lambda t: jnp.sqrt(ETA / t**0.57)),
        NOISY,
        "the standard deviation of the noise",
        None,
    ),
    "no decay": (
        noisy_sgd(spread=lambda t: jnp.sqrt(ETA + 0 * t)),
        NOISY,
        "the standard deviation of the noise",
        "with noise that does not decay",
    ),
    "counted from one": (
        noisy_sgd(spread=lambda t: jnp.sqrt(ETA / (1 + t) ** GAMMA)),
        NOISY,
        "the standard deviation of the noise",
        "with its steps counted from 1 in the noise",
    ),
    "not redrawn": (
        noisy_sgd(carried=lambda old, new: old),
        NOISY,
        "the noise of steps 1 apart is correlated by 1.000",
        "with the noise of steps 1 apart the same",
    ),
    "the same for leaves of equal shape": (
        noisy_sgd(keys=by_shape),
        NOISY,
        "the noise of ['kernel'] and ['output'] is correlated by 1.000",
        "with the same noise in ['kernel'] and ['output']",
    ),
    "the same for all leaves": (
        noisy_sgd(keys=lambda key, leaves: [key] * len(leaves)),
        NOISY,
        "the noise of",
        ...,
    ),
    "the same in every row": (
        noisy_sgd(
            draw=lambda key, shape, dtype: (
                one_row(key, shape, dtype)
                if len(shape) == 2
                else jax.random.normal(key, shape, dtype)
            )
        ),
        NOISY,
        "the noise of neighbors along axis 0 of",
        ...,
    ),
    "not scaled by the learning rate": (
        noisy_sgd(update=lambda g, n: -RATE * g + n),
        NOISY,
        "the standard deviation of the noise is 100.",
        "with noise that is not multiplied by the learning rate",
    ),
    "uniform": (
        noisy_sgd(draw=uniform),
        NOISY,
        "the noise is not normal",
        None,
    ),
    "truncated": (
        noisy_sgd(draw=truncated),
        NOISY,
        "the",
        None,
    ),
    "no noise": (
        optax.sgd(RATE),
        NOISY,
        "the standard deviation of the noise is 0.000",
        "with eta=0",
    ),
    "noise with a mean": (
        noisy_sgd(draw=lambda *args: 0.1 + jax.random.normal(*args)),
        NOISY,
        "the mean of the noise",
        None,
    ),
    "noise as large as the gradient": (
        noisy_sgd(update=lambda g, n: -RATE * (g + n * (1 + jnp.abs(g)))),
        NOISY,
        "in step 0, the update at",
        None,
    ),
    "twice the learning rate": (
        noisy_sgd(update=lambda g, n: -2 * RATE * (g + n)),
        NOISY,
        "in step 0, the update at",
        "multiplied by 2",
    ),
    "twice the learning rate for the gradient alone": (
        noisy_sgd(update=lambda g, n: -RATE * (2 * g + n)),
        NOISY,
        "in step 0, the update at",
        None,
    ),
    "clipped at another norm": (
        dpsgd(clip=2 * CLIP, deviation=2 * CLIP * MULTIPLIER),
        PRIVATE,
        "in step 0, the update at",
        "with l2_norm_clip=4",
    ),
    "clipped at another norm, with the noise of the first": (
        dpsgd(clip=2 * CLIP),
        PRIVATE,
        "in step 0, the update at",
        None,
    ),
    "noise before clipping": (
        dpsgd(deviation=0.0, before=CLIP * MULTIPLIER),
        PRIVATE,
        "in step 0, the update at",
        None,
    ),
    "another multiplier": (
        dpsgd(deviation=CLIP * MULTIPLIER / 10),
        PRIVATE,
        "the standard deviation of the noise is 0.1",
        "with noise_multiplier=0.05",
    ),
    "noise not divided by the batch": (
        dpsgd(divided=lambda total, noise, batch: total / batch + noise),
        PRIVATE,
        "the standard deviation of the noise is 6.0",
        "with noise that is not divided by the batch size",
    ),
    "noise not multiplied by the norm": (
        dpsgd(deviation=MULTIPLIER),
        PRIVATE,
        "the standard deviation of the noise is 0.5",
        "with noise that is not multiplied by the clipping norm",
    ),
    "the sum over examples": (
        dpsgd(divided=lambda total, noise, batch: total + noise),
        PRIVATE,
        "in step 0, the update at",
        "with the sum over examples, not the mean",
    ),
    "not clipped": (
        dpsgd(clip=1e30),
        PRIVATE,
        "in step 0, the update at",
        "with gradients that are not clipped",
    ),
    "another momentum": (
        private(RATE, CLIP, MULTIPLIER, 0, momentum=0.8),
        rules.dpsgd(RATE, CLIP, MULTIPLIER, 0.9),
        "in step 1, the update at",
        "with momentum=0.8",
    ),
}


@pytest.mark.parametrize("name", some(MUTANTS, 7))
def test_wrong_noise_is_found_and_named(name):
    tx, rule, text, matches = MUTANTS[name]
    report = check_update(tx, rule=rule)
    assert report.verdict is Verdict.WRONG
    assert report.findings[0].message.startswith(text), str(report)
    if matches is ...:
        assert report.matches.startswith("with the same noise")
    else:
        assert report.matches == matches, str(report)
    kind = "wrong_update" if text.startswith("in step") else "wrong_noise"
    assert report.findings[0].kind == kind
    assert "not those of" in str(report)


def schedule(count):
    return RATE * 0.9**count


MOMENTUM = optax.chain(optax.add_noise(ETA, GAMMA, 5), optax.sgd(RATE, 0.9, True))
RIGHT = {
    "written once more": (noisy_sgd(), NOISY),
    "dpsgd, written once more": (dpsgd(), PRIVATE),
    "noisy_sgd": (optax.noisy_sgd(RATE, ETA, GAMMA, 1), NOISY),
    "noisy_sgd with a schedule": (
        optax.noisy_sgd(schedule, ETA, GAMMA, 1),
        rules.noisy_sgd(schedule, ETA, GAMMA),
    ),
    "noisy_sgd by its name": (optax.noisy_sgd(3e-3, key=1), "noisy_sgd"),
    "add_noise": (optax.add_noise(ETA, GAMMA, 1), rules.add_noise(ETA, GAMMA)),
    "add_noise and momentum": (
        MOMENTUM,
        rules.add_noise(ETA, GAMMA, rules.sgd(RATE, 0.9, True)),
    ),
    "add_noise and decay": (
        optax.chain(
            optax.add_noise(ETA, GAMMA, 1),
            optax.add_decayed_weights(0.1),
            optax.sgd(RATE),
        ),
        rules.add_noise(
            ETA, GAMMA, rules.chain(rules.add_decayed_weights(0.1), rules.sgd(RATE))
        ),
    ),
    "dpsgd": (private(RATE, CLIP, MULTIPLIER, 0), PRIVATE),
    "dpsgd with momentum": (
        private(RATE, CLIP, MULTIPLIER, 0, momentum=0.9, nesterov=True),
        rules.dpsgd(RATE, CLIP, MULTIPLIER, 0.9, True),
    ),
    "differentially_private_aggregate": (
        contrib.differentially_private_aggregate(CLIP, MULTIPLIER, 0),
        rules.differentially_private_aggregate(CLIP, MULTIPLIER),
    ),
}


@pytest.mark.parametrize("name", some(RIGHT, 4))
def test_right_noise_is_correct(name):
    tx, rule = RIGHT[name]
    report = check_update(tx, rule=rule)
    assert report.verdict is Verdict.CORRECT, str(report)
    assert report.relative_error < 1e-14
    found = dict(report.properties)
    assert found["noise: standard deviation"].endswith("of the rule's")
    assert found["noise: false alarm"].startswith("1e-06 at most, with")


@pytest.mark.slow
def test_right_noise_in_float64():
    with jax.enable_x64(True):
        params = {"w": jnp.ones((32, 32)), "b": jnp.ones(32)}
        for name in ("noisy_sgd", "dpsgd"):
            tx, rule = RIGHT[name]
            report = check_update(tx, params, rule=rule)
            assert report.verdict is Verdict.CORRECT, str(report)
            assert report.native_error is None


@pytest.mark.slow
@pytest.mark.parametrize("name", ["noisy_sgd", "dpsgd"])
def test_what_has_no_noise_is_compared_exactly(name):
    with_noise = {
        "noisy_sgd": (optax.noisy_sgd(RATE, 0.0, GAMMA, 1), "eta"),
        "dpsgd": (private(RATE, CLIP, 0.0, 0), "noise_multiplier"),
    }
    tx, setting = with_noise[name]
    _, rule = RIGHT[name]
    report = check_update(tx, rule=rule.replace(**{setting: 0.0}))
    assert report.verdict is Verdict.CORRECT, str(report)
    assert report.properties == ()
    # and if there is noise all the same
    wrong = check_update(RIGHT[name][0], rule=rule.replace(**{setting: 0.0}))
    assert wrong.verdict is Verdict.WRONG


@pytest.mark.slow
@pytest.mark.parametrize("first", range(0, 100, 10))
def test_no_seed_of_optax_is_called_wrong(first):
    for seed in range(first, first + 10):
        for tx, rule in (
            (optax.noisy_sgd(RATE, ETA, GAMMA, seed), NOISY),
            (private(RATE, CLIP, MULTIPLIER, seed), PRIVATE),
        ):
            problem = asked(tx, None, 8, None, None, [0], rule).problem
            noise = WithNoise(tx, rule, problem, 1e-9)
            assert noise.failures(noise.heard) == []
            assert noise.failures(noise.heard_natively) == []


@pytest.mark.slow
def test_leaves_that_are_large_or_small():
    params = {"large": jnp.ones(30_000), "small": jnp.ones(())}
    tx, rule = RIGHT["noisy_sgd"]
    report = check_update(tx, params, rule=rule)
    assert report.verdict is Verdict.CORRECT, str(report)
    assert "524,352 numbers of 64 steps" in dict(report.properties)["noise"]
    few = check_update(tx, jnp.ones(100), rule=rule)
    assert few.verdict is Verdict.CORRECT, str(few)
    assert "131,100 numbers of 1,311 steps" in dict(few.properties)["noise"]

    def halved_at_the_end(key, shape, dtype):
        drawn = jax.random.normal(key, shape, dtype)
        return drawn.at[-1000:].multiply(0.5) if drawn.size > 1 else drawn

    report = check_update(noisy_sgd(draw=halved_at_the_end), params, rule=NOISY)
    assert report.verdict is Verdict.WRONG


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_normal_numbers_of_16_bits_are_cut_off(dtype):
    # jax.random.normal has 128 values in bfloat16, none beyond 2.9
    params = {"w": jnp.ones((64, 64), dtype)}
    report = check_update(RIGHT["noisy_sgd"][0], params, rule=NOISY)
    assert [f.kind for f in report.findings] == ["precision_loss"]
    told = "in float64 the noise is the rule's; in the parameters' own dtypes "
    assert report.findings[0].message.startswith(told)


@pytest.mark.slow
def test_a_warm_up_from_zero():
    def warm(count):
        return RATE * jnp.minimum(count / 4, 1.0)

    tx = optax.noisy_sgd(warm, ETA, GAMMA, 1)
    report = check_update(tx, rule=rules.noisy_sgd(warm, ETA, GAMMA))
    assert report.verdict is Verdict.CORRECT, str(report)
    assert dict(report.properties)["noise"].endswith("63 steps")
    rule = rules.add_noise(ETA, GAMMA, rules.sgd(warm, 0.9))
    tx = optax.chain(optax.add_noise(ETA, GAMMA, 1), optax.sgd(warm, 0.9))
    with pytest.raises(InvalidInputError, match="learning rate that is not zero"):
        check_update(tx, rule=rule)


def test_bad_input():
    rule = rules.add_noise(ETA, GAMMA, rules.adam(RATE))
    tx = optax.chain(optax.add_noise(ETA, GAMMA, 1), optax.adam(RATE))
    with pytest.raises(InvalidInputError, match="affine"):
        check_update(tx, rule=rule)
    with pytest.raises(InvalidInputError, match="must be real"):
        check_update(optax.noisy_sgd(RATE, key=1), jnp.ones(3) + 0j, rule=NOISY)
    gradients = [jnp.ones((5, 3))] * 2
    report = check_update(
        private(RATE, CLIP, MULTIPLIER, 0),
        jnp.ones(3),
        rule=PRIVATE,
        gradients=gradients,
    )
    assert report.verdict is Verdict.CORRECT, str(report)
    with pytest.raises(InvalidInputError, match="after a first axis of examples"):
        check_update(
            private(RATE, CLIP, MULTIPLIER, 0),
            jnp.ones(3),
            rule=PRIVATE,
            gradients=[jnp.ones(3)],
        )


# ---- the rules by hand


def test_the_mean_of_private_gradients_by_hand():
    gradients = {"a": np.array([[3.0], [0.3]]), "b": np.array([[4.0], [0.4]])}
    params = {"a": np.zeros(1), "b": np.zeros(1)}
    rule = functools.partial(rules.differentially_private_aggregate, 1.0, 0.5)
    wanted = {
        "example": (0.45, 0.6),
        "leaf": (0.65, 0.7),
        "batch": (0.6, 0.8),
        "nothing": (1.65, 2.2),
    }
    for clipped, (a, b) in wanted.items():
        updates, _ = rule(clipped=clipped)(gradients, params, None, 0)
        np.testing.assert_allclose((updates["a"], updates["b"]), ([a], [b]))


def test_the_deviation_of_the_noise_by_hand():
    def deviation(rule, t):
        return rule.form.moments([np.zeros((4, 2))], t)[1]

    assert deviation(rules.noisy_sgd(0.1, 0.04, 0.5), 1) == pytest.approx(0.2)
    assert deviation(rules.noisy_sgd(0.1, 0.04, 0.5), 16) == pytest.approx(0.1)
    assert deviation(rules.dpsgd(0.1, 2.0, 0.5), 9) == pytest.approx(0.25)
