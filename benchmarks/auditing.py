"""Time training with audits beside training without, every 100th step audited.

Both are one jitted scan of 200 steps of AdamW, timed warm and in turn. An audit that
agrees evaluates the loss three or five times; two in 200 steps is what is measured.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

import jaxcheck
from benchmarks import results

STEPS = 200
EVERY = 100
SHAPES = ((64, 64), (256, 128), (256, 256))  # batch, width


def loss_fn(params: Any, x: Any) -> Any:
    h = x
    for w in params:
        h = jnp.tanh(h @ w)
    return jnp.mean((h - 0.5 * x) ** 2)


def training(tx: Any, x: Any, *, audited: bool) -> Any:
    def step(carry: Any, number: Any) -> Any:
        params, opt_state, state = carry
        grads = jax.grad(loss_fn)(params, x)
        if audited:

            def after() -> Any:
                key = jax.random.fold_in(jax.random.key(0), number)
                found = jaxcheck.audit(loss_fn, params, x, grads=grads, key=key)
                return state.add(found, number)

            state = jax.lax.cond(number % EVERY == 0, after, lambda: state)
        updates, opt_state = tx.update(grads, opt_state, params)
        return (optax.apply_updates(params, updates), opt_state, state), None

    return jax.jit(lambda carry: jax.lax.scan(step, carry, jnp.arange(STEPS))[0])


def seconds(run: Any, carry: Any) -> float:
    start = time.perf_counter()
    jax.block_until_ready(run(carry))
    return time.perf_counter() - start


def measure(batch: int, width: int, repetitions: int) -> dict[str, Any]:
    """One row: the first calls, with compilation, then warm ones in turn."""
    keys = jax.random.split(jax.random.key(0), 5)
    params = [jax.random.normal(key, (width, width)) / width**0.5 for key in keys[1:]]
    x = jax.random.normal(keys[0], (batch, width))
    tx = optax.adamw(1e-3)
    carry = (params, tx.init(params), jaxcheck.AuditState.init())
    plain, audited = (training(tx, x, audited=a) for a in (False, True))
    firsts = {"first_plain": seconds(plain, carry), "first_audited": 0.0}
    firsts["first_audited"] = seconds(audited, carry)
    state = audited(carry)[2]
    assert (int(state.audits), int(state.wrong)) == (STEPS // EVERY, 0), state
    pairs = [
        (seconds(plain, carry), seconds(audited, carry)) for _ in range(repetitions)
    ]
    return {
        "batch": batch,
        "width": width,
        **firsts,
        "plain_seconds": [a for a, _ in pairs],
        "audited_seconds": [b for _, b in pairs],
    }


def table(rows: Sequence[dict[str, Any]]) -> Iterator[list[str]]:
    for row in rows:
        # The fastest runs: what two audits add is less than what other programs do.
        plain, audited = min(row["plain_seconds"]), min(row["audited_seconds"])
        yield [
            f"{row['batch']} x {row['width']}",
            f"{1e3 * plain / STEPS:.2f} ms",
            f"{audited / plain:.3f}",
            f"{row['first_plain']:.1f} s",
            f"{row['first_audited']:.1f} s",
        ]


def main(arguments: Sequence[str] | None = None) -> None:
    options = results.parser(__doc__, repetitions=7).parse_args(arguments)
    rows = [measure(*shape, options.repetitions) for shape in SHAPES]
    header = ["batch x width", "step", "audited/plain", "first call", "with audits"]
    results.print_table(header, table(rows))
    settings = {"steps": STEPS, "every": EVERY, "layers": 4}
    results.write(options.output, "auditing", results.environment(), settings, rows)


if __name__ == "__main__":
    main()
