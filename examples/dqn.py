"""Where does my gradient come from? Q-learning that lost its ``stop_gradient``.

A small network learns to balance a pole. Its target is computed by the same network,
and no gradient is to flow through it. Without ``stop_gradient`` the gradient is still
that of the loss as written, so that no comparison objects. ``gradient_flow`` shows the
second path, and ``expect_zero`` makes it a verdict.

    python examples/dqn.py
    jaxcheck check examples/dqn.py:problem_wrong --expect-zero dqn.py:bootstrapped_value
"""

import sys
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import jaxcheck

EXPECT_ZERO = ["dqn.py:bootstrapped_value"]


class Transitions(NamedTuple):
    state: jax.Array  # angle and angular velocity
    action: jax.Array
    reward: jax.Array
    following: jax.Array


def step(state, action):
    """An upright pole for 0.05 s, pushed to the left (0) or to the right (1)."""
    angle, spin = state
    spin = spin + 0.05 * (9.8 * np.sin(angle) + 4.0 * (2 * action - 1))
    return np.array([angle + 0.05 * spin, spin])


def play(rng, steps=64):
    """Transitions of random play; it begins again when the pole has fallen."""
    state, rows = rng.uniform(-0.1, 0.1, 2), []
    for action in rng.integers(2, size=steps):
        following = step(state, action)
        rows.append((state, action, np.cos(following[0]), following))
        stands = abs(following[0]) < 1.0
        state = following if stands else rng.uniform(-0.1, 0.1, 2)
    return Transitions(*(jnp.asarray(np.array(c)) for c in zip(*rows, strict=True)))


def init_params(key, hidden=16):
    k1, k2 = jax.random.split(key)
    return {
        "hidden": {"w": jax.random.normal(k1, (2, hidden)), "b": jnp.zeros(hidden)},
        "q": {"w": jax.random.normal(k2, (hidden, 2)) / 4, "b": jnp.zeros(2)},
    }


@jax.jit
def q_values(params, state):
    hidden = jnp.tanh(state @ params["hidden"]["w"] + params["hidden"]["b"])
    return hidden @ params["q"]["w"] + params["q"]["b"]


def bootstrapped_value(params, batch):
    best = q_values(params, batch.following).max(axis=-1)
    return batch.reward + 0.99 * best


def td_loss(params, batch, hold=jax.lax.stop_gradient):
    values = q_values(params, batch.state)
    chosen = jnp.take_along_axis(values, batch.action[:, None], axis=-1)[:, 0]
    target = hold(bootstrapped_value(params, batch))
    return jnp.mean((chosen - target) ** 2)


def td_loss_wrong(params, batch):
    return td_loss(params, batch, hold=lambda target: target)  # the bug


def problem(loss_fn=td_loss):
    """The loss function, its parameters, and a batch: what ``check`` takes."""
    return loss_fn, init_params(jax.random.key(0)), play(np.random.default_rng(0))


def problem_wrong():
    """The same problem without ``stop_gradient``."""
    return problem(td_loss_wrong)


def main():
    right = jaxcheck.check(*problem(), expect_zero=EXPECT_ZERO)
    print("As it should be", right, sep="\n\n", end="\n\n\n")

    wrong = jaxcheck.check(*problem_wrong(), expect_zero=EXPECT_ZERO)
    flow = jaxcheck.gradient_flow(*problem_wrong())
    print("With the planted bug", flow, wrong, sep="\n\n")
    return 0 if right.passed and wrong.verdict is jaxcheck.Verdict.WRONG else 1


if __name__ == "__main__":
    sys.exit(main())
