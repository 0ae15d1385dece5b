"""Wrong derivatives of operations that move numbers around: indices, orders, sums."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .cases import MutantList, Pair
from .planting import normal, pair, with_vjp

MUTANTS = MutantList()


def moved(
    rng: np.random.Generator,
    fn: Callable[..., Any],
    wrong: Any,
    right: Any,
    *shape: int,
) -> Pair:
    """``fn`` of the leaf ``x``; rules are functions of (x, out, cotangent)."""

    def loss_with(rule: Any) -> Any:
        ruled = with_vjp(fn, lambda primals, out, ct: (rule(primals[0], out, ct),))

        def loss(params: Any) -> Any:
            out = ruled(params["x"])
            weights = jnp.cos(jnp.arange(out.size, dtype=jnp.float32) + 1)
            return jnp.sum(jnp.sin(out) * weights.reshape(out.shape)) + jnp.sum(
                params["x"] * params["y"]
            )

        return loss

    shape = shape or (6,)
    params = {"x": normal(rng, *shape), "y": normal(rng, *shape)}
    return pair(loss_with, wrong, right, params)


@MUTANTS.add("['x']")
def cumsum_not_reversed(rng: np.random.Generator) -> Pair:
    """The backward of a cumulative sum runs from the end."""
    return moved(
        rng,
        jnp.cumsum,
        lambda x, out, ct: jnp.cumsum(ct),
        lambda x, out, ct: jnp.cumsum(ct[::-1])[::-1],
    )


@MUTANTS.add("['x']")
def cumprod_without_the_division(rng: np.random.Generator) -> Pair:
    """The running product's gradient lost its division by x."""

    def reversed_sum(values: Any) -> Any:
        return jnp.cumsum(values[::-1])[::-1]

    return moved(
        rng,
        jnp.cumprod,
        lambda x, out, ct: reversed_sum(ct * out),
        lambda x, out, ct: reversed_sum(ct * out) / x,
    )


@MUTANTS.add("['x']")
def sort_gradient_not_permuted(rng: np.random.Generator) -> Pair:
    """The gradient of the sorted array handed back in sorted order."""
    return moved(
        rng,
        jnp.sort,
        lambda x, out, ct: ct,
        lambda x, out, ct: jnp.zeros_like(x).at[jnp.argsort(x)].set(ct),
    )


@MUTANTS.add("['x']")
def sort_permuted_forward(rng: np.random.Generator) -> Pair:
    """The permutation applied where its inverse was meant."""
    return moved(
        rng,
        jnp.sort,
        lambda x, out, ct: ct[jnp.argsort(x)],
        lambda x, out, ct: ct[jnp.argsort(jnp.argsort(x))],
    )


DUPLICATES = np.asarray([0, 2, 2, 5, 1, 2, 0], np.int32)


@MUTANTS.add("['x']")
def gather_without_accumulation(rng: np.random.Generator) -> Pair:
    """The gradient of rows looked up twice is set where it must be added."""
    return moved(
        rng,
        lambda x: x[DUPLICATES],
        lambda x, out, ct: jnp.zeros_like(x).at[DUPLICATES[::-1]].max(ct[::-1]),
        lambda x, out, ct: jnp.zeros_like(x).at[DUPLICATES].add(ct),
    )


@MUTANTS.add("['x']")
def gather_off_by_one(rng: np.random.Generator) -> Pair:
    """The rows counted from one in the backward."""
    return moved(
        rng,
        lambda x: x[DUPLICATES],
        lambda x, out, ct: jnp.zeros_like(x).at[(DUPLICATES + 1) % 6].add(ct),
        lambda x, out, ct: jnp.zeros_like(x).at[DUPLICATES].add(ct),
    )


@MUTANTS.add("['x']")
def scatter_add_gathers_the_wrong_rows(rng: np.random.Generator) -> Pair:
    """The backward of scatter-add reads consecutive rows, not the indexed ones."""
    rows = DUPLICATES[:6]
    return moved(
        rng,
        lambda x: jnp.zeros_like(x).at[rows].add(x),
        lambda x, out, ct: ct,
        lambda x, out, ct: ct[rows],
    )


@MUTANTS.add("['x']")
def segment_mean_without_the_counts(rng: np.random.Generator) -> Pair:
    """The counts divide the value and not the gradient."""
    segments = np.asarray([0, 0, 0, 1, 1, 2], np.int32)
    counts = np.asarray([3, 2, 1], np.float32)
    return moved(
        rng,
        lambda x: jax.ops.segment_sum(x, segments, 3) / counts,
        lambda x, out, ct: ct[segments],
        lambda x, out, ct: (ct / counts)[segments],
    )


@MUTANTS.add("['x']")
def roll_rolls_on(rng: np.random.Generator) -> Pair:
    """The backward of a roll rolls in the same direction."""
    return moved(
        rng,
        lambda x: jnp.roll(x, 2),
        lambda x, out, ct: jnp.roll(ct, 2),
        lambda x, out, ct: jnp.roll(ct, -2),
    )


@MUTANTS.add("['x']")
def reshape_for_transpose(rng: np.random.Generator) -> Pair:
    """The backward of a transpose reshapes: the shape is right, the order is not."""
    return moved(
        rng,
        jnp.transpose,
        lambda x, out, ct: ct.reshape(x.shape),
        lambda x, out, ct: ct.T,
        2,
        3,
    )


@MUTANTS.add("['x']")
def halves_swapped(rng: np.random.Generator) -> Pair:
    """The backward of a concatenation hands the halves out the wrong way round."""
    return moved(
        rng,
        lambda x: jnp.concatenate([2 * x[:3], x[3:]]),
        lambda x, out, ct: jnp.concatenate([2 * ct[3:], ct[:3]]),
        lambda x, out, ct: jnp.concatenate([2 * ct[:3], ct[3:]]),
    )


@MUTANTS.add("['x']")
def broadcast_not_summed(rng: np.random.Generator) -> Pair:
    """Of a broadcast value only the first copy's gradient comes back."""
    return moved(
        rng,
        lambda x: jnp.broadcast_to(x, (4, 6)),
        lambda x, out, ct: ct[0],
        lambda x, out, ct: ct.sum(0),
    )


@MUTANTS.add("['x']")
def repeat_taken_for_tile(rng: np.random.Generator) -> Pair:
    """Copies that lie side by side summed as if they lay one array apart."""
    return moved(
        rng,
        lambda x: jnp.repeat(x, 2),
        lambda x, out, ct: ct.reshape(2, -1).sum(0),
        lambda x, out, ct: ct.reshape(-1, 2).sum(1),
    )


@MUTANTS.add("['x']", index=(0,))
def difference_without_the_boundary(rng: np.random.Generator) -> Pair:
    """The first term of the adjoint of a difference was forgotten."""

    def right(x: Any, out: Any, ct: Any) -> Any:
        return jnp.pad(ct, (1, 0)) - jnp.pad(ct, (0, 1))

    return moved(
        rng,
        lambda x: x[1:] - x[:-1],
        lambda x, out, ct: right(x, out, ct).at[0].set(0),
        right,
    )


@MUTANTS.add("['x']")
def slice_put_back_elsewhere(rng: np.random.Generator) -> Pair:
    """The gradient of a slice written one place too early."""
    return moved(
        rng,
        lambda x: x[2:5],
        lambda x, out, ct: jnp.zeros_like(x).at[1:4].set(ct),
        lambda x, out, ct: jnp.zeros_like(x).at[2:5].set(ct),
    )


@MUTANTS.add("['x']")
def where_branches_swapped(rng: np.random.Generator) -> Pair:
    """The slopes of the two branches exchanged."""
    return moved(
        rng,
        lambda x: jnp.where(x > 0, x * x, -x),
        lambda x, out, ct: ct * jnp.where(x > 0, -1.0, 2 * x),
        lambda x, out, ct: ct * jnp.where(x > 0, 2 * x, -1.0),
    )


@MUTANTS.add("['x']")
def max_gives_to_the_smallest(rng: np.random.Generator) -> Pair:
    """Argmin for argmax in the backward."""

    def give(which: Callable[[Any], Any]) -> Any:
        return lambda x, out, ct: jnp.zeros_like(x).at[which(x)].set(ct)

    return moved(rng, jnp.max, give(jnp.argmin), give(jnp.argmax))


@MUTANTS.add("['x']")
def mean_over_the_wrong_axis(rng: np.random.Generator) -> Pair:
    """The gradient of a row mean spread over columns of a square array."""
    return moved(
        rng,
        lambda x: x.mean(1),
        lambda x, out, ct: jnp.broadcast_to(ct[None, :], x.shape) / 3,
        lambda x, out, ct: jnp.broadcast_to(ct[:, None], x.shape) / 3,
        3,
        3,
    )


@MUTANTS.add("['x']")
def variance_with_another_ddof(rng: np.random.Generator) -> Pair:
    """N - 1 in the gradient, n in the value."""

    def over(degrees: int) -> Any:
        return lambda x, out, ct: ct * 2 * (x - x.mean()) / degrees

    return moved(rng, jnp.var, over(5), over(6))


@MUTANTS.add("['table']")
def embedding_gradient_averaged(rng: np.random.Generator) -> Pair:
    """Rows that occur more than once get the mean of their gradients."""
    tokens = np.asarray([1, 3, 3, 1, 3, 0], np.int32)
    counts = np.maximum(np.bincount(tokens, minlength=5), 1).astype(np.float32)

    def loss_with(divide: Any) -> Any:
        lookup = with_vjp(
            lambda table: table[tokens],
            lambda primals, _, ct: (
                jnp.zeros_like(primals[0]).at[tokens].add(ct) / divide[:, None],
            ),
        )

        def loss(params: Any) -> Any:
            return jnp.mean(jnp.tanh(lookup(params["table"]) @ params["head"]))

        return loss

    params = {"table": normal(rng, 5, 3), "head": normal(rng, 3, 2)}
    return pair(loss_with, counts, np.ones_like(counts), params)
