"""Where does the difference come from? Weight decay in the gradient, not in the loss.

A small transformer forecasts the next return of a market whose volatility comes in
clusters. A hand-written rule adds an L2 term to the gradient; the loss has none. The
report recognizes the term, gives its lambda, and names the rule. With the term in the
loss, the gradient is the same and passes.

    python examples/weight_decay.py
"""

import jax
import jax.numpy as jnp
import numpy as np

import jaxcheck

DECAY = 0.01


@jax.custom_vjp
def decayed(params):
    """The parameters as they are; their gradient gets an L2 term."""
    return params


def decayed_fwd(params):
    return params, params


def decayed_bwd(params, gradient):  # the bug: the loss has no such term
    return (jax.tree.map(lambda w, g: g + DECAY * w, params, gradient),)


decayed.defvjp(decayed_fwd, decayed_bwd)


def returns_of_market(rng, days=64):
    """Daily returns in percent, a GARCH(1, 1) process."""
    variance, returns = 1.0, []
    for shock in rng.standard_normal(days):
        returns.append(variance**0.5 * shock)
        variance = 0.05 + 0.15 * returns[-1] ** 2 + 0.8 * variance
    return np.array(returns)


def load_batch(window=8):
    """Windows [n, window, 2] of returns and their sizes, and what follows each."""
    returns = returns_of_market(np.random.default_rng(0))
    windows = np.lib.stride_tricks.sliding_window_view(returns, window + 1)[::4]
    features = np.stack([windows[:, :-1], np.abs(windows[:, :-1])], axis=-1)
    return jnp.asarray(features, jnp.float32), jnp.asarray(windows[:, -1], jnp.float32)


def init_params(key, width=4):
    names = ("embedding", "query", "key", "value", "readout")
    shapes = ((2, width), *[(width, width)] * 3, (width,))
    draws = zip(names, jax.random.split(key, 5), shapes, strict=True)
    weights = {name: jax.random.normal(k, shape) / 2 for name, k, shape in draws}
    return {**weights, "bias": jnp.zeros(())}


def forecast(params, days):
    days = jnp.tanh(days @ params["embedding"])
    query, key, value = (days @ params[name] for name in ("query", "key", "value"))
    days += jax.nn.softmax(query @ key.swapaxes(-1, -2) / 2) @ value
    return days[:, -1] @ params["readout"] + params["bias"]


def loss_fn_wrong(params, days, following):
    return jnp.mean((forecast(decayed(params), days) - following) ** 2)


def loss_fn(params, days, following):
    squares = sum(jnp.sum(w**2) for w in jax.tree.leaves(params))
    return jnp.mean((forecast(params, days) - following) ** 2) + DECAY / 2 * squares


def problem(loss_fn=loss_fn):
    """The loss function, its parameters, and a batch: what ``check`` takes."""
    return loss_fn, init_params(jax.random.key(0)), *load_batch()


def problem_wrong():
    return problem(loss_fn_wrong)


def main():
    wrong = jaxcheck.check(*problem_wrong())
    print("With the planted bug", wrong, sep="\n\n", end="\n\n\n")
    right = jaxcheck.check(*problem())
    print("Fixed: the L2 term is in the loss", right, sep="\n\n")

    decays = [leaf.pattern for leaf in wrong.leaves if leaf.path != "['bias']"]
    assert all("1.00e-02 times the parameters: an L2 term" in text for text in decays)
    assert [c.derivative for c in wrong.culprits] == ["decayed_bwd"]
    assert right.passed


if __name__ == "__main__":
    main()
