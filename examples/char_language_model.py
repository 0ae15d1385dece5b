"""Is training healthy? A language model of characters, watched while it trains.

The text is one that comes with Python, the topics of its help system. A line shows how
training goes, and ``diagnose`` says what the monitor has seen. A second run takes the
logarithm of a softmax in half precision; ``replay`` goes back to the step at which it
broke and names the line.

    python examples/char_language_model.py [run.png]
"""

import sys
from pydoc_data.topics import topics

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxcheck

WIDTH, LENGTH, BATCH, STEPS, CHUNK = 64, 48, 16, 400, 50


def text():
    """The text as numbers, and how many there are."""
    characters = "".join(topics[name] for name in sorted(topics))[:200_000]
    known = sorted(set(characters))
    return np.searchsorted(known, list(characters)), len(known)


def init(key, symbols):
    shapes = {
        "embed": (symbols, WIDTH),
        "input": (WIDTH, 3 * WIDTH),
        "recurrent": (WIDTH, 3 * WIDTH),
        "output": (WIDTH, symbols),
    }
    keys = jax.random.split(key, len(shapes))
    return {
        name: jax.random.normal(key, shape) / WIDTH**0.5
        for key, (name, shape) in zip(keys, shapes.items(), strict=True)
    }


def predicted(params, tokens):
    """Logits of a gated recurrent unit: each character from those before it."""

    def step(h, x):
        a, b, c = jnp.split(params["embed"][x] @ params["input"], 3, axis=-1)
        d, e, f = jnp.split(h @ params["recurrent"], 3, axis=-1)
        reset, keep = jax.nn.sigmoid(a + d), jax.nn.sigmoid(b + e)
        h = keep * h + (1 - keep) * jnp.tanh(c + reset * f)
        return h, h @ params["output"]

    h = jnp.zeros((len(tokens), WIDTH))
    return jax.lax.scan(step, h, tokens[:, :-1].T)[1]


def loss_fn(params, tokens):
    logits, targets = predicted(params, tokens), tokens[:, 1:].T
    return optax.softmax_cross_entropy_with_integer_labels(logits, targets).mean()


def careless_loss_fn(params, tokens):
    logits, targets = predicted(params, tokens), tokens[:, 1:].T
    probabilities = jax.nn.softmax(logits.astype(jnp.float16))
    found = jnp.take_along_axis(probabilities, targets[..., None], axis=-1)
    return -jnp.log(found).astype(jnp.float32).mean()


def train(loss_fn):
    """The history of a run, the state before it, and what a replay needs."""
    numbers, symbols = text()
    starts = np.random.default_rng(0).integers(
        len(numbers) - LENGTH, size=(STEPS, BATCH)
    )
    batches = jnp.asarray(numbers[starts[..., None] + np.arange(LENGTH)])
    tx = jaxcheck.monitor(optax.chain(optax.clip_by_global_norm(1.0), optax.adam(5e-2)))

    def train_step(carry, tokens):
        params, state = carry
        loss, grads = jax.value_and_grad(loss_fn)(params, tokens)
        updates, state = tx.update(grads, state, params, value=loss)
        return (optax.apply_updates(params, updates), state), None

    chunk = jax.jit(lambda carry, batches: jax.lax.scan(train_step, carry, batches)[0])
    params = init(jax.random.key(0), symbols)
    start = carry = params, tx.init(params)
    history = jaxcheck.History(params)
    with history.live(STEPS, progress=True):
        for k in range(0, STEPS, CHUNK):
            carry = chunk(carry, batches[k : k + CHUNK])
            history.add(carry[1])
    return history, (start, batches, jax.jit(train_step))


def main():
    for title, loss in (("As it should be", loss_fn), ("Careless", careless_loss_fn)):
        print(title, flush=True)
        history, (start, batches, train_step) = train(loss)
        report = jaxcheck.diagnose(history)
        print(f"{history}\n\n{report}\n")
        if not report.passed:
            print(report.replay(loss, start, list(batches), train_step=train_step))
        if len(sys.argv) > 1:
            history.plot(sys.argv[1].replace(".", f"_{loss.__name__}."), report)


if __name__ == "__main__":
    main()
