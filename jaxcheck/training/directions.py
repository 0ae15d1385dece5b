r"""The direction in which an audit moves parameters, and by how much.

Leaf by leaf, with g its gradient, u independent coordinates ±U[0.5, 1.5] and n their
number, parameters move by

.. math:: a = w \left( t\, |u| \odot \frac{g}{\|g\|}
    + \frac{t'}{2} \frac{u}{\sqrt n} \right), \qquad w \in \pm U[0.5, 1.5].

The first part follows the gradient: a random direction of the same length would change
the loss √n times less, and drown in its rounding. The second sees what the gradient has
not, such as rows that were left out of it. The weight w keeps errors of two leaves from
canceling.

Lengths are such that each of the L leaves changes the loss f by
:math:`\eta|f|/\sqrt L`. No leaf moves further than :math:`\eta` times its own norm, or
:math:`\|p\| (n / NL)^{1/4}` if larger, of all N parameters p; nor less than
:math:`\sqrt\eta` times that, for a gradient that is far too large must not hold its
leaf in place. That lies between the RMS of all parameters, with which a bias
shifts what comes in far less than its matrix does and a fault of 1 % in it was found
three times less often, and the norm of a usual leaf, with which it crosses so many
kinks that no fault in its network is found.

With :math:`\eta = \epsilon^{1/3}` a central difference has as much truncation as
rounding, for a function of scale one; 0.12 of it is taken, because networks of ReLUs
have kinks every so often. For their sake :math:`t' = n^{1/4} t`, too: a random
direction crosses kinks in proportion to its length. With :math:`\sqrt n\, t`, where
both parts change the loss alike, faults of 1 % in such a network were found four times
less often. Where parameters, gradients or the loss have fewer digits than what they are
summed in, noise hides more than kinks do: steps are 0.2 of :math:`\epsilon^{1/3}`
there, and the second part is not halved. A leaf whose gradient is lost, in which only
that part says something, is found nine times in ten with it, and hardly ever without.

Only the size of the gradient is used to choose a step, never what it predicts.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxcheck.gradients.probes import random_bits
from jaxcheck.training.leaves import Entry
from jaxcheck.training.moments import over
from jaxcheck.training.norms import norms_of
from jaxcheck.training.placement import across
from jaxcheck.training.sizes import unit_of
from jaxcheck.training.sums import summed

# The step, in units of the one that balances truncation and rounding, and how much of
# it is at random. In few digits noise hides more than kinks do.
_STEP, _ASIDE = 0.12, 0.5
_COARSE_STEP, _COARSE_ASIDE = 0.2, 1.0


class Leaf(NamedTuple):
    """One leaf that an audit moves.

    Attributes:
        entry: where it is; its randomness is keyed on that.
        value: the parameters.
        grad: their gradient, of the same shape.
        axes: mesh axes over which devices hold parts of it.
    """

    entry: Entry
    value: jax.Array
    grad: jax.Array
    axes: tuple[str, ...]

    @property
    def elements(self) -> float:
        """How many elements the whole leaf has."""
        return float(self.value.size * math.prod(map(jax.lax.axis_size, self.axes)))

    def moved(
        self, steps: jax.Array, number: jax.Array
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """The leaf after a number of steps, and what its gradient says of the loss.

        Returns:
            The leaf, Σ gᵢaᵢ with the displacement a that rounding has left of the
            steps, and Σ |gᵢaᵢ|; the parts of the leaf that others hold included.
        """
        there, *sums = _moved(self.value, self.grad, steps, number)
        part, size = map(across(self.axes).add, sums) if self.axes else sums
        return there, part, size


class _Reach(NamedTuple):
    """How far leaves move.

    Attributes:
        unit: a power of two near the norm of the gradient.
        ahead: by how much along the gradient, in that unit.
        aside: by how much at random, a coordinate.
    """

    unit: jax.Array
    ahead: jax.Array
    aside: jax.Array


class Directions(NamedTuple):
    """Directions in which leaves are moved, numbered from 0.

    Attributes:
        leaves: those that are moved.
        words: uint32[directions, 2] that coordinates are drawn with.
        reach: by direction and leaf.
    """

    leaves: Sequence[Leaf]
    words: jax.Array
    reach: _Reach

    def steps(self, number: jax.Array) -> list[jax.Array]:
        """How far one step in one of them moves each leaf, in the dtype of sums."""
        words, reach = self.words[number], _Reach(*(x[number] for x in self.reach))
        return [
            _displaced(
                leaf.grad,
                _Reach(*(x[k] for x in reach)),
                words,
                jnp.uint32(leaf.entry.token),
                real=not jnp.iscomplexobj(leaf.value),
            )
            for k, leaf in enumerate(self.leaves)
        ]


def directions_of(
    leaves: Sequence[Leaf],
    words: jax.Array,
    axes: tuple[str, ...],
    loss: jax.Array,
    eps: float,
) -> Directions:
    """Directions to move leaves in, drawn with the rows of ``words``.

    Args:
        leaves: those to be moved.
        words: uint32[directions, 2].
        axes: mesh axes that leaves may be split over.
        loss: its value where they are, in the dtype of sums.
        eps: of the coarsest of parameters, gradients and computation.
    """
    tokens = jnp.array([leaf.entry.token for leaf in leaves], np.uint32)

    def weight(words: jax.Array, token: jax.Array) -> jax.Array:
        return _signed(random_bits(words[::-1], token, ()), loss.dtype)

    of_leaves = jax.vmap(weight, in_axes=(None, 0))
    weights = jax.vmap(of_leaves, in_axes=(0, None))(words, tokens)
    unit, ahead, aside = _reach(leaves, axes, loss, eps)
    unit = jnp.broadcast_to(unit, weights.shape)
    return Directions(leaves, words, _Reach(unit, weights * ahead, weights * aside))


def _reach(
    leaves: Sequence[Leaf], axes: tuple[str, ...], loss: jax.Array, eps: float
) -> _Reach:
    """How far each leaf moves in any direction, before it is weighted."""
    dtype = loss.dtype
    coarse = eps > float(jnp.finfo(dtype).eps)
    step, random = (_COARSE_STEP, _COARSE_ASIDE) if coarse else (_STEP, _ASIDE)
    relative = step * eps ** (1.0 / 3.0)
    entries = [leaf.entry for leaf in leaves]
    params = norms_of(entries, [leaf.value for leaf in leaves], axes, dtype).norm
    grads = norms_of(entries, [leaf.grad for leaf in leaves], axes, dtype).norm[:-1]
    sizes = np.array([leaf.elements for leaf in leaves])
    root = jnp.asarray(np.sqrt(sizes), dtype)
    among = jnp.asarray((sizes / (sizes.sum() * len(leaves))) ** 0.25, dtype)
    scale = jnp.maximum(params[:-1], params[-1] * among)
    most = relative * jnp.where(scale > 0, scale, root)
    share = relative * jnp.abs(loss) / math.sqrt(len(leaves))
    wanted = jnp.where(grads > 0, share / grads, most)
    along = jnp.clip(wanted, math.sqrt(relative) * most, most)
    aside = random * jnp.minimum(jnp.sqrt(root) * along, most)
    unit = unit_of(grads)
    return _Reach(unit, over(along, grads / unit), aside / root)


# Leaves that are alike are traced once.


@functools.partial(jax.jit, static_argnames="real")
def _displaced(
    grad: jax.Array, reach: _Reach, words: jax.Array, token: jax.Array, *, real: bool
) -> jax.Array:
    def coordinates(words: jax.Array) -> jax.Array:
        return _signed(random_bits(words, token, grad.shape), reach.unit.dtype)

    random = coordinates(words)
    if not real:
        random = jax.lax.complex(random, coordinates(~words))
    # For a complex leaf the steepest ascent is along the conjugate.
    along = jnp.conj(grad) / reach.unit * reach.ahead * jnp.abs(random)
    return jnp.where(jnp.isfinite(along), along, 0) + reach.aside * random


@jax.jit
def _moved(
    value: jax.Array, grad: jax.Array, steps: jax.Array, number: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    there = _rounded(value + number * steps, value.dtype)
    # What is not finite stays where it is, such as the −∞ of a mask.
    apart = jnp.where(jnp.isfinite(there), there - value.astype(there.dtype), 0)
    terms = jnp.real(grad * apart)
    part, size = summed([terms, jnp.abs(terms)])
    return there.astype(value.dtype), part, size


def _signed(bits: jax.Array, dtype: Any) -> jax.Array:
    """±U[0.5, 1.5] of random bits: the first one the sign, 24 others the size."""
    size = ((bits >> 7) & np.uint32(0xFFFFFF)).astype(dtype) / 2.0**24
    return jnp.where(bits >> 31 == 0, 1.0, -1.0).astype(dtype) * (0.5 + size)


def _rounded(value: jax.Array, dtype: Any) -> jax.Array:
    """``value``, in its own dtype, rounded to ``dtype``.

    A pair of casts would not do: XLA may leave it out (``xla_allow_excess_precision``).
    """
    if jnp.iscomplexobj(value):
        return jax.lax.complex(*(_rounded(x, dtype) for x in (value.real, value.imag)))
    info = jnp.finfo(dtype)
    return jax.lax.reduce_precision(value, info.nexp, info.nmant)
