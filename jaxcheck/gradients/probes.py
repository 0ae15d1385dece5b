r"""Random directions, and what a handful of them says about a whole gradient.

A probe has independent coordinates :math:`\pm U[0.5, 1.5]`: never near zero, so that a
single wrong coordinate cannot hide, and of varying size, so that two equal errors do
not cancel half of the time as with Rademacher signs.

The density of one coordinate is at most 1/2. A sum of independent variables
:math:`\sum_i e_i u_i` with :math:`\|e\|_2 = 1` then has a density of at most
:math:`\sqrt{2} \cdot \tfrac12` (Rogozin's inequality reduces it to uniform variables,
Ball's theorem on cube slicing bounds those), whatever :math:`e` is. Hence

.. math:: P(|e \cdot u| \le t \|e\|) \le \sqrt{2}\, t,

with near equality for an error in two equal coordinates. If K independent probes leave
residuals of at most r, then :math:`\|e\| \le r / t` with confidence
:math:`1 - (\sqrt{2}\, t)^K`.

References:
    B. A. Rogozin, "The estimate of the maximum of the convolution of bounded
    densities", 1987. K. Ball, "Cube slicing in R^n", Proc. AMS 97, 1986.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

CONFIDENCE = 0.999
_DENSITY = math.sqrt(2.0) / 2.0
# 2³² over the golden ratio, and its inverse modulo 2³².
_STRIDE = np.uint32(0x9E3779B9)
_INVERSE = np.uint32(pow(0x9E3779B9, -1, 2**32))


def words_of(seed: Sequence[int], number: int) -> Any:
    """The two words that all coordinates of probe ``number`` are drawn with."""
    return np.random.SeedSequence([*seed, number]).generate_state(2, np.uint32)


def probe(words: Any, token: int, shape: tuple[int, ...], *, xp: Any = jnp) -> Any:
    """Coordinates of a random direction for one leaf, float64 ``shape``.

    Args:
        words: uint32[2] from ``words_of``, traced or not.
        token: what the leaf's randomness is keyed on (its path).
        shape: shape of the leaf's real view.
        xp: ``jax.numpy``, or ``numpy`` on the host; the numbers are the same.
    """
    bits = random_bits(words, token, shape, xp=xp)
    sign = xp.where(bits >> 31 == 0, 1.0, -1.0)
    uniform = (bits & np.uint32(0x7FFFFFFF)).astype(np.float64) / 2.0**31
    return sign * (0.5 + uniform)


def random_bits(
    words: Any, token: int | jax.Array, shape: tuple[int, ...], *, xp: Any = jnp
) -> Any:
    """uint32 ``shape``: a hash of each coordinate's number, the words and the token.

    A generator that is a dozen operations long; JAX's own, one per leaf, takes longer
    to compile than the loss.
    """
    word = token if isinstance(token, jax.Array) else np.uint32(token)
    # flat: NumPy warns when a scalar wraps around, and not when an array does
    count = xp.arange(math.prod(shape), dtype=np.uint32)
    # That is count * _STRIDE + (words[0] ^ word). A product of constants alone would be
    # written down, an array of this size, where this is called in a loop.
    count = (count + (words[:1] ^ word) * _INVERSE) * _STRIDE
    return _mix(_mix(count) ^ words[1]).reshape(shape)


def _mix(x: Any) -> Any:
    """A bijection of uint32 with good avalanche (C. Wellons' lowbias32)."""
    x = (x ^ (x >> 16)) * np.uint32(0x7FEB352D)
    x = (x ^ (x >> 15)) * np.uint32(0x846CA68B)
    return x ^ (x >> 16)


def bound_factor(count: int, confidence: float = CONFIDENCE) -> float:
    """How many times the largest of ``count`` residuals bounds the error's norm.

    The smallest 1/t with (√2 t)^count = 1 − confidence; infinite for no probe.

    Example:
        >>> round(bound_factor(4), 2)
        7.95
    """
    if count == 0:
        return math.inf
    return 2.0 * _DENSITY / (1.0 - confidence) ** (1.0 / count)
