"""What helps? Remedies for a deep network on handwritten digits, before and after.

A network is trained under a monitor, without a remedy and with it. The table has the
median norm of the first layer's gradient over that of the last, the largest norm of
the whole gradient, the loss and the share of right answers on digits that were held
out, and what ``diagnose`` finds without the remedy.

    python examples/remedies.py [remedies.png]
"""

import functools
import sys
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from sklearn.datasets import load_digits

import jaxcheck

DEPTH, WIDTH, STEPS, BATCH, TRAINED = 12, 48, 300, 64, 1400
LAYERS = "['layers']"


class Kind(NamedTuple):
    """What makes another program of it."""

    act: Any = jax.nn.relu
    norm: Any = jnp.asarray
    optimizer: Any = optax.sgd
    dtype: Any = jnp.float32


class Plan(NamedTuple):
    kind: Kind = Kind()
    lr: float = 0.01
    gain: float = 2**0.5  # of initial weights, over 1/sqrt(inputs)
    warm: float = 1.0  # steps after which the learning rate is reached
    residual: float = 0.0
    smoothing: float = 0.0
    scale: float = 1.0  # of the loss, and divided out of its gradient

    def but(self, **changes):
        """With another kind or other numbers."""
        kind = {k: changes.pop(k) for k in Kind._fields if k in changes}
        return self._replace(kind=self.kind._replace(**kind), **changes)


def centered(z, axis):
    return (z - z.mean(axis, keepdims=True)) / (z.std(axis, keepdims=True) + 1e-5)


def root_mean_square(z):
    return z / jnp.sqrt(jnp.mean(z**2, axis=-1, keepdims=True) + 1e-5)


def momentum(lr, clip=None):
    sgd = optax.sgd(lr, momentum=0.9)
    return sgd if clip is None else optax.chain(clip, sgd)


def clipped(clip):
    return functools.partial(momentum, clip=clip)


HE = Plan()
SMALL, THIN, SLOW = HE.but(gain=0.7), HE.but(gain=0.4), HE.but(lr=3e-5)
TANH = HE.but(act=jnp.tanh, gain=1.0)
SIGMOID = HE.but(act=jax.nn.sigmoid, gain=1.0)
WILD = TANH.but(optimizer=momentum, lr=0.2, gain=1.5)
SURE = HE.but(optimizer=optax.adam, lr=2e-3)
STEEP = TANH.but(optimizer=momentum, lr=0.1)
FAINT = 2.0**-20  # a loss that is a mean over a million pixels
HALF = HE.but(dtype=jnp.float16, scale=FAINT)
REMEDIES = {
    "Xavier initialization": (TANH.but(gain=0.4), TANH),
    "He initialization": (SMALL, HE),
    "ReLU": (SIGMOID, HE),
    "LeakyReLU": (SIGMOID, HE.but(act=jax.nn.leaky_relu)),
    "ELU": (SIGMOID, HE.but(act=jax.nn.elu, gain=1.2)),
    "GELU": (SIGMOID, HE.but(act=jax.nn.gelu, gain=1.5)),
    "batch normalization": (SMALL, SMALL.but(norm=lambda z: centered(z, 0))),
    "layer normalization": (SMALL, SMALL.but(norm=lambda z: centered(z, -1))),
    "RMS normalization": (SMALL, SMALL.but(norm=root_mean_square)),
    "residual connections": (THIN, THIN.but(residual=1.0)),
    "clipping by norm": (
        WILD,
        WILD.but(optimizer=clipped(optax.clip_by_global_norm(0.05))),
    ),
    "clipping by value": (WILD, WILD.but(optimizer=clipped(optax.clip(0.0005)))),
    "lower learning rate": (WILD, WILD.but(lr=0.005)),
    "warm-up": (STEEP, STEEP.but(warm=200.0)),
    "Adam": (SLOW, SLOW.but(optimizer=optax.adam, lr=1e-3)),
    "RMSProp": (SLOW, SLOW.but(optimizer=optax.rmsprop, lr=1e-3)),
    "AdamW": (SLOW, SLOW.but(optimizer=optax.adamw, lr=1e-3)),
    "label smoothing": (SURE, SURE.but(smoothing=0.1)),
    "loss scaling": (HALF, HALF.but(scale=FAINT * 2.0**20)),
}


def digits():
    """Images and labels, in random order."""
    x, y = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(y))
    x = ((x - x.mean()) / x.std()).astype(np.float32)
    return jnp.asarray(x[order]), jnp.asarray(y[order])


def logits(kind, params, x, residual):
    params, x = jax.tree.map(lambda a: a.astype(kind.dtype), (params, x))

    def layer(h, w):
        return h * jnp.astype(residual, h.dtype) + kind.act(kind.norm(h @ w)), None

    h, _ = jax.lax.scan(layer, x @ params["in"], params["layers"])
    return (h @ params["out"]).astype(jnp.float32)


@functools.partial(jax.jit, static_argnums=0)
def run(kind, plan, params):
    """The monitor's state after training; loss and right answers on other digits."""
    x, y = digits()

    def lr(count):
        return plan.lr * jnp.minimum(1.0, (count + 1) / plan.warm)

    tx = jaxcheck.monitor(kind.optimizer(lr), window=STEPS, stacked=LAYERS)

    def loss_fn(params, at):
        labels = optax.smooth_labels(jax.nn.one_hot(y[at], 10), plan.smoothing)
        found = logits(kind, params, x[at], plan.residual)
        return plan.scale * optax.softmax_cross_entropy(found, labels).mean()

    def step(carry, at):
        params, state = carry
        loss, grads = jax.value_and_grad(loss_fn)(params, at)
        loss, grads = jax.tree.map(lambda a: a / plan.scale, (loss, grads))
        updates, state = tx.update(grads, state, params, value=loss)
        return (optax.apply_updates(params, updates), state), None

    at = jax.random.randint(jax.random.key(1), (STEPS, BATCH), 0, TRAINED)
    (params, state), _ = jax.lax.scan(step, (params, tx.init(params)), at)
    found = logits(kind, params, x[TRAINED:], plan.residual)
    truth = y[TRAINED:]
    loss = optax.softmax_cross_entropy_with_integer_labels(found, truth).mean()
    return state, loss, (found.argmax(-1) == truth).mean()


@functools.cache
def train(plan):
    """The history of a run, and what ``run`` says of other digits."""
    keys = jax.random.split(jax.random.key(0), 3)
    shapes = {"in": (64, WIDTH), "layers": (DEPTH, WIDTH, WIDTH), "out": (WIDTH, 10)}
    params = {
        name: plan.gain * jax.random.normal(key, shape) / shape[-2] ** 0.5
        for key, (name, shape) in zip(keys, shapes.items(), strict=True)
    }
    state, *unseen = run(plan.kind, plan._replace(kind=None), params)
    history = jaxcheck.History(params, stacked=LAYERS)
    history.add(state)
    return history, *map(float, unseen)


def numbers(plan):
    history, loss, right = train(plan)
    norms = history.norms[:, 0]
    first, last = np.nanmedian(norms[:, [1, DEPTH]], axis=0)
    return first / last if last else np.nan, np.nanmax(norms[:, -1]), loss, right


def main():
    print(f"{'':22}{'first : last':>18}{'largest norm':>20}{'loss':>15}{'right':>12}")
    for name, (before, after) in REMEDIES.items():
        found = jaxcheck.diagnose(train(before)[0]).findings
        (a, c, e, g), (b, d, f, h) = numbers(before), numbers(after)
        row = f"{name:22}{a:8.0e} → {b:7.0e}{c:10.0e} → {d:7.0e}{e:8.2f} → {f:4.2f}"
        says = ", ".join(finding.rule for finding in found) or "nothing"
        print(f"{row}{g:6.0%} → {h:4.0%}  {says}", flush=True)
    if len(sys.argv) > 1:
        picture().savefig(sys.argv[1])


def picture():
    """The median norm of the gradient by layer, before (dashed) and after."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(14, 10), layout="constrained")
    panels = figure.subplots(4, 5, sharex=True, sharey=True).flat
    for ax, (name, plans) in zip(panels, REMEDIES.items(), strict=False):
        for plan, style in zip(plans, ("--", "-"), strict=True):
            norms = np.nanmedian(train(plan)[0].norms[:, 0, 1 : DEPTH + 1], axis=0)
            label = f"{train(plan)[2]:.0%}"
            ax.semilogy(range(1, DEPTH + 1), norms, style, label=label)
        ax.set_title(name, fontsize="medium")
        ax.legend(title="right", fontsize="small")
    panels[-1].set_axis_off()
    figure.suptitle("before (dashed) and after")
    figure.supxlabel("layer")
    figure.supylabel("median norm of the gradient")
    return figure


if __name__ == "__main__":
    main()
