"""Does it still learn? Q-learning of poles that swing up, under a monitor.

A target network moves slowly what a network is trained towards. Without it, and with a
high learning rate, values chase themselves until no gradient is left. Each run is one
scan, with the poles, the memory and the monitor in its carry.

    python examples/q_learning.py [q.png]
"""

import functools
import sys

import jax
import jax.numpy as jnp
import optax

import jaxcheck

POLES, MEMORY, BATCH, STEPS = 16, 500, 64, 3000


def move(state, action):
    """Poles after 0.05 s, pushed to the left (0) or to the right (1), and rewards."""
    angle, spin = state.T
    spin = 0.9 * (spin + 0.05 * (9.8 * jnp.sin(angle) + 12.0 * (2 * action - 1)))
    angle = angle + 0.05 * spin
    return jnp.stack([angle, spin], axis=1), jnp.cos(angle)


def init(key, hidden=64):
    sizes, keys = (3, hidden, hidden, 2), jax.random.split(key, 3)
    return [
        {"b": jnp.zeros(n), "w": jax.random.normal(k, (m, n)) / m**0.5}
        for k, m, n in zip(keys, sizes, sizes[1:], strict=False)
    ]


def q_values(params, state):
    angle, spin = state[..., 0], state[..., 1]
    x = jnp.stack([jnp.cos(angle), jnp.sin(angle), spin / 5], axis=-1)
    for layer in params[:-1]:
        x = jnp.tanh(x @ layer["w"] + layer["b"])
    return x @ params[-1]["w"] + params[-1]["b"]


def loss_fn(params, target, batch):
    state, action, reward, following = batch
    values = jnp.take_along_axis(q_values(params, state), action[:, None], -1)[:, 0]
    best = reward + 0.97 * q_values(target, following).max(axis=-1)
    return optax.huber_loss(values, jax.lax.stop_gradient(best)).mean()


def train(tx, pace):
    """The history of a run, and the mean height of the poles in its last fifth."""

    def step(carry, inputs):
        params, target, opt_state, poles, memory = carry
        number, key = inputs
        explore, choose, draw = jax.random.split(key, 3)
        greedy = q_values(params, poles).argmax(axis=-1)
        chance = jax.random.uniform(explore, (POLES,)) < 0.1
        action = jnp.where(chance, jax.random.randint(choose, (POLES,), 0, 2), greedy)
        following, reward = move(poles, action)
        new = poles, action, reward, following
        memory = [
            x.at[number % MEMORY].set(n) for x, n in zip(memory, new, strict=True)
        ]
        known = jnp.minimum(number + 1, MEMORY)
        at = jax.random.randint(draw, (BATCH,), 0, known * POLES)
        batch = [x.reshape(-1, *x.shape[2:])[at] for x in memory]
        loss, grads = jax.value_and_grad(loss_fn)(params, target, batch)
        updates, opt_state = tx.update(grads, opt_state, params, value=loss)
        params = optax.apply_updates(params, updates)
        target = optax.incremental_update(params, target, pace)
        return (params, target, opt_state, following, memory), reward.mean()

    params = init(jax.random.key(0))
    poles = jnp.stack([jnp.full(POLES, jnp.pi), jnp.linspace(-1, 1, POLES)], axis=1)
    empty = poles, jnp.zeros(POLES, int), jnp.zeros(POLES), poles
    memory = [jnp.zeros((MEMORY, *x.shape), x.dtype) for x in empty]
    run = jax.jit(functools.partial(jax.lax.scan, step))
    carry = params, params, tx.init(params), poles, memory
    inputs = jnp.arange(STEPS), jax.random.split(jax.random.key(1), STEPS)
    (_, _, opt_state, *_), heights = run(carry, inputs)
    history = jaxcheck.History(params)
    history.add(opt_state)
    return history, float(heights[-STEPS // 5 :].mean())


RUNS = {"As it should be": (1e-3, 0.02), "Without a target network": (0.1, 1.0)}


def main():
    for title, (lr, pace) in RUNS.items():
        tx = jaxcheck.monitor(optax.adam(lr), window=STEPS)
        history, height = train(tx, pace)
        report = jaxcheck.diagnose(history)
        print(f"{title}\n\nThe poles stand {height:.2f} high.\n{history}\n\n{report}\n")
        if len(sys.argv) > 1:
            history.plot(sys.argv[1].replace(".", f"_{lr:g}."), report)


if __name__ == "__main__":
    main()
