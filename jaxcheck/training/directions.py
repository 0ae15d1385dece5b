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

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxcheck.gradients.probes import random_bits
from jaxcheck.training.moments import over
from jaxcheck.training.placement import ROWS, across
from jaxcheck.training.sizes import Size, as_real, size_of

# The step, in units of the one that balances truncation and rounding, and how much of
# it is at random. In few digits noise hides more than kinks do.
_STEP, _ASIDE = 0.12, 0.5
_COARSE_STEP, _COARSE_ASIDE = 0.2, 1.0


class Leaf(NamedTuple):
    """One leaf that an audit moves.

    Attributes:
        token: what its randomness is keyed on.
        value: the parameters.
        grad: their gradient, of the same shape.
        axes: mesh axes over which devices hold parts of it.
    """

    token: int
    value: jax.Array
    grad: jax.Array
    axes: tuple[str, ...]

    @property
    def elements(self) -> float:
        """How many elements the whole leaf has."""
        return float(self.value.size * math.prod(map(jax.lax.axis_size, self.axes)))

    def size_of(self, array: jax.Array, dtype: Any) -> Size:
        """How large an array of its shape is, the parts that others hold included."""
        size = size_of(as_real(array, dtype))
        return size.joined(across(self.axes)) if self.axes else size

    def sum(self, array: jax.Array) -> jax.Array:
        """The sum over an array of its shape, likewise."""
        total = jnp.sum(array)
        return across(self.axes).add(total) if self.axes else total


def displacements(
    leaves: Sequence[Leaf], words: jax.Array, loss: jax.Array, eps: float, dtype: Any
) -> list[jax.Array]:
    """How far each leaf is moved by one step, in ``dtype`` or its complex twin."""
    coarse = eps > float(jnp.finfo(dtype).eps)
    step, random = (_COARSE_STEP, _COARSE_ASIDE) if coarse else (_STEP, _ASIDE)
    relative = step * eps ** (1.0 / 3.0)
    params = [leaf.size_of(leaf.value, dtype) for leaf in leaves]
    every = jax.tree.map(lambda *parts: jnp.stack(parts), *params).joined(ROWS)
    elements = sum(leaf.elements for leaf in leaves)
    share = relative * jnp.abs(loss) / math.sqrt(len(leaves))
    result = []
    for leaf, own in zip(leaves, params, strict=True):
        root = math.sqrt(leaf.elements)
        usual = every.norm * (leaf.elements / (elements * len(leaves))) ** 0.25
        scale = jnp.maximum(own.norm, usual)
        most = relative * jnp.where(scale > 0, scale, root)
        grad = leaf.size_of(leaf.grad, dtype)
        wanted = jnp.where(grad.norm > 0, share / grad.norm, most)
        along = jnp.clip(wanted, math.sqrt(relative) * most, most)
        aside = random * jnp.minimum(math.sqrt(root) * along, most)
        weight, unit = _random(leaf, words, dtype)
        # For a complex leaf the steepest ascent is along the conjugate.
        finite = jnp.where(jnp.isfinite(leaf.grad), jnp.conj(leaf.grad), 0)
        ahead = (finite / grad.unit) * over(jnp.ones((), dtype), jnp.sqrt(grad.squares))
        steps = along * jnp.abs(unit) * ahead + aside / root * unit
        result.append(weight * steps)
    return result


def _random(leaf: Leaf, words: jax.Array, dtype: Any) -> tuple[jax.Array, jax.Array]:
    """A weight for the leaf, and coordinates ±U[0.5, 1.5] of its shape."""
    weight = _signed(random_bits(words[::-1], leaf.token, ()), dtype)
    unit = _signed(random_bits(words, leaf.token, leaf.value.shape), dtype)
    if jnp.iscomplexobj(leaf.value):
        imaginary = random_bits(~words, leaf.token, leaf.value.shape)
        unit = jax.lax.complex(unit, _signed(imaginary, dtype))
    return weight, unit


def _signed(bits: jax.Array, dtype: Any) -> jax.Array:
    """±U[0.5, 1.5] of random bits: the first one the sign, 24 others the size."""
    size = ((bits >> 7) & np.uint32(0xFFFFFF)).astype(dtype) / 2.0**24
    return jnp.where(bits >> 31 == 0, 1.0, -1.0).astype(dtype) * (0.5 + size)


def rounded(value: jax.Array, dtype: Any) -> jax.Array:
    """``value``, in its own dtype, rounded to ``dtype``.

    A pair of casts would not do: XLA may leave it out (``xla_allow_excess_precision``).
    """
    if jnp.iscomplexobj(value):
        return jax.lax.complex(*(rounded(x, dtype) for x in (value.real, value.imag)))
    info = jnp.finfo(dtype)
    return jax.lax.reduce_precision(value, info.nexp, info.nmant)
