"""Why does my generator not learn? A GAN on handwritten digits under two monitors.

With the loss that theory begins with, log(1 - D(G(z))), the generator's gradient fades
where the discriminator tells its images apart, as it does after a head start. With
-log D(G(z)) it does not. Losses are not given to the monitors: of two networks that
work against each other they say nothing about health.

    python examples/gan.py [gan.png]
"""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
from sklearn.datasets import load_digits

import jaxcheck

STEPS, HEAD_START, BATCH, NOISE = 2000, 200, 64, 16
SIZES = {"discriminator": (64, 128, 128, 1), "generator": (NOISE, 64, 64, 64)}
OPTIMIZERS = {
    "discriminator": optax.adam(1e-3, b1=0.5),
    "generator": optax.sgd(lambda step: jnp.where(step < HEAD_START, 0.0, 0.03)),
}


def init(key, sizes):
    keys = jax.random.split(key, len(sizes) - 1)
    return [
        {"b": jnp.zeros(n), "w": jax.random.normal(k, (m, n)) * (2 / m) ** 0.5}
        for k, m, n in zip(keys, sizes, sizes[1:], strict=False)
    ]


def network(params, x):
    *hidden, last = params
    for layer in hidden:
        x = jax.nn.leaky_relu(x @ layer["w"] + layer["b"], 0.2)
    return x @ last["w"] + last["b"]


def images(generator, z):
    return jnp.tanh(network(generator, z))


def discriminator_loss(discriminator, generator, real, z):
    drawn = network(discriminator, images(generator, z))
    truth = jax.nn.log_sigmoid(network(discriminator, real))
    return -(truth + jax.nn.log_sigmoid(-drawn)).mean()


def fading(generator, discriminator, _, z):
    """log(1 - D(G(z)))."""
    return jax.nn.log_sigmoid(-network(discriminator, images(generator, z))).mean()


def lasting(generator, discriminator, _, z):
    """-log D(G(z))."""
    return -jax.nn.log_sigmoid(network(discriminator, images(generator, z))).mean()


def train(generator_loss):
    """Histories of the discriminator and the generator, and some images."""
    pixels = jnp.asarray(load_digits().data / 8.0 - 1.0, jnp.float32)
    keys = jax.random.split(jax.random.key(0), 3)
    losses = {"discriminator": discriminator_loss, "generator": generator_loss}
    tx = {
        name: jaxcheck.monitor(optimizer, window=STEPS)
        for name, optimizer in OPTIMIZERS.items()
    }

    def step(carry, key):
        params, states = carry
        at, z = jax.random.split(key)
        real = pixels[jax.random.randint(at, (BATCH,), 0, len(pixels))]
        z = jax.random.normal(z, (BATCH, NOISE))
        for name, other in (tuple(SIZES), tuple(SIZES)[::-1]):
            grads = jax.grad(losses[name])(params[name], params[other], real, z)
            updates, state = tx[name].update(grads, states[name], params[name])
            changed = optax.apply_updates(params[name], updates)
            params, states = {**params, name: changed}, {**states, name: state}
        return (params, states), None

    start = {
        name: init(key, SIZES[name]) for name, key in zip(SIZES, keys, strict=False)
    }
    carry = start, {name: tx[name].init(start[name]) for name in SIZES}
    run = jax.jit(lambda carry, keys: jax.lax.scan(step, carry, keys)[0])
    params, states = run(carry, jax.random.split(keys[2], STEPS))
    histories = {name: jaxcheck.History(start[name]) for name in SIZES}
    for name, history in histories.items():
        history.add(states[name])
    z = jax.random.normal(jax.random.key(9), (8, NOISE))
    return histories, images(params["generator"], z)


def main():
    shown = []
    for title, loss_fn in (("log(1 - D)", fading), ("-log D", lasting)):
        histories, drawn = train(loss_fn)
        print(f"The generator descends {title}\n")
        for name, history in histories.items():
            norms = history.norms[:, 0, -1]
            early, late = np.median(norms[:20]), np.median(norms[-100:])
            print(f"Gradient of the {name}: {early:.1e} at first, {late:.1e} at last")
            print(jaxcheck.diagnose(history), end="\n\n")
        shown.append((title, histories, drawn))
    if len(sys.argv) > 1:
        picture(shown).savefig(sys.argv[1])


def picture(shown):
    """Norms of both gradients, and what the generators draw."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 6), layout="constrained")
    panels = figure.subplots(2, 2, width_ratios=(2, 1))
    for (left, right), (title, histories, drawn) in zip(panels, shown, strict=True):
        for name, history in histories.items():
            left.semilogy(history.steps, history.norms[:, 0, -1], label=name, lw=0.7)
        left.set(title=title, xlabel="step", ylabel="gradient norm")
        left.legend()
        rows = np.asarray(drawn).reshape(2, 4, 8, 8)
        right.imshow(np.block([list(row) for row in rows]), cmap="gray")
        right.set_axis_off()
    return figure


if __name__ == "__main__":
    main()
