r"""Are these numbers independent draws of a standard normal distribution?

Every test has a p-value that holds for any number of draws, exactly or as a bound:

* the mean of n draws: :math:`\sqrt n \, \bar x` is normal;
* their mean square s: :math:`P \le 2 \exp(-n (s - 1 - \ln s) / 2)` (Chernoff's bound of
  :math:`\chi^2_n`);
* their distribution: :math:`P(\sup |F_n - \Phi| > d) \le 2 \exp(-2 n d^2)` (Dvoretzky,
  Kiefer & Wolfowitz 1956, with the constant of Massart 1990);
* the largest of n draws:
  :math:`P(\max |x| \le m) = \operatorname{erf}(m / \sqrt 2)^n`, and
  :math:`P(\max |x| \ge m) \le n \operatorname{erfc}(m / \sqrt 2)`;
* the correlation r of N pairs (x, y) in which no draw comes twice, those of each step
  and leaf divided by their root mean square:
  :math:`P(|r| \ge \rho) \le 2 \exp(-N \rho^2 / 2)`. For given x, such y are uniform on
  spheres, and a coordinate of a point on the sphere in n dimensions has no larger
  moments than a normal one of variance 1/n. Noise of the wrong size is no correlation.

With k tests, one is failed if its p-value is below the share :math:`\alpha / k` of the
probability of a false alarm. Draws that are not independent fail the first tests for
that reason alone; so independence is asked first.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

Array = Any
# By the path of the leaf: steps first, then elements of the leaf in order.
Draws = Mapping[str, Array]

# Steps apart that are compared, and leaves of which each two are.
_LAGS = 8
_LEAVES = 32
# A correlation that means the same numbers.
SAME = 0.999


class Tested(NamedTuple):
    """One test.

    Attributes:
        about: what was asked, one of the names of ``ABOUT``.
        where: what of, as text.
        value: what was found: a mean, a ratio of standard deviations, a distance of
            distributions, the largest draw, or a correlation.
        p: probability of it, or of more, if the draws are as they should be.
        n: of how many numbers, or pairs of them.
        again: for a correlation, the part that repeats another: a leaf or None.
    """

    about: str
    where: str
    value: float
    p: float
    n: int
    again: str | None = None


ABOUT = (
    "mean",
    "standard deviation",
    "distribution",
    "largest",
    "between steps",
    "between leaves",
    "between elements",
)


@np.errstate(all="ignore")
def independence(
    draws: Draws, shapes: Mapping[str, tuple[int, ...]], front: int
) -> list[Tested]:
    """Whether steps, leaves and neighbors have each their own noise.

    Args:
        draws: numbers that may be standard normal ones.
        shapes: of the leaves.
        front: how many elements of a leaf come first and in order.
    """
    draws = {path: x[:, :front] for path, x in draws.items()}
    return [
        *_between_steps(draws),
        *_between_leaves(draws),
        *_between_elements(draws, shapes),
    ]


@np.errstate(all="ignore")
def law(draws: Draws) -> list[Tested]:
    """Whether the numbers are standard normal ones, if they are independent."""
    everything = np.concatenate([x.ravel() for x in draws.values()])
    by_step = np.concatenate(list(draws.values()), axis=1)
    parts = [("all", everything)]
    parts += [(f"step {t}", x) for t, x in enumerate(by_step)]
    parts += [(path or "the leaf", x.ravel()) for path, x in draws.items()]
    return [
        *itertools.chain.from_iterable(_moments(where, x) for where, x in parts),
        _distance(everything),
        _extreme(everything),
    ]


def _moments(where: str, x: Array) -> Iterator[Tested]:
    n, mean, square = x.size, float(np.mean(x)), float(np.mean(x**2))
    yield Tested("mean", where, mean, _two_sided(mean * math.sqrt(n)), n)
    rate = (square - 1.0 - float(np.log(square))) / 2.0
    # infinite noise is noise of infinite spread
    p = min(1.0, 2.0 * math.exp(-n * rate)) if math.isfinite(square) else 0.0
    yield Tested("standard deviation", where, math.sqrt(square), p, n)


def _distance(x: Array) -> Tested:
    """Of the two distributions, the largest on a grid: the bound holds for that too."""
    at, normal = _normal()
    share = np.searchsorted(np.sort(x), at, side="right") / x.size
    d = float(np.max(np.abs(share - normal)))
    p = min(1.0, 2.0 * math.exp(-2.0 * x.size * d**2))
    return Tested("distribution", "all", d, p, x.size)


def _extreme(x: Array) -> Tested:
    most = float(np.max(np.abs(x)))
    beyond = math.erfc(most / math.sqrt(2.0))
    small = math.exp(x.size * math.log1p(-beyond)) if beyond < 1.0 else 0.0
    p = min(1.0, 2.0 * min(small, x.size * beyond))
    return Tested("largest", "all", most, p, x.size)


@functools.cache
def _normal() -> tuple[Array, Array]:
    at = np.linspace(-6.0, 6.0, 2401)
    return at, np.array([0.5 * math.erfc(-v / math.sqrt(2.0)) for v in at])


def _between_steps(draws: Draws) -> Iterator[Tested]:
    steps = len(next(iter(draws.values())))
    for lag in range(1, min(_LAGS, steps // 2) + 1):
        early = [t for t in range(steps - lag) if (t // lag) % 2 == 0]
        later = [t + lag for t in early]
        pairs = [(x[early], x[later]) for x in draws.values()]
        yield _correlation("between steps", f"{lag} apart", pairs)


def _between_leaves(draws: Draws) -> Iterator[Tested]:
    paths = list(draws)[:_LEAVES]
    for one, other in itertools.combinations(paths, 2):
        n = min(draws[one].shape[1], draws[other].shape[1])
        pairs = [(draws[one][:, :n], draws[other][:, :n])]
        yield _correlation("between leaves", f"{one} and {other}", pairs, other)


def _between_elements(
    draws: Draws, shapes: Mapping[str, tuple[int, ...]]
) -> Iterator[Tested]:
    for path, x in draws.items():
        flat = np.arange(x.shape[1])
        for axis, size in enumerate(shapes[path]):
            stride = math.prod(shapes[path][axis + 1 :])
            at = flat // stride % size
            even = (at % 2 == 0) & (at + 1 < size) & (flat + stride < flat.size)
            first = flat[even]
            if first.size:
                where = f"axis {axis} of {path or 'the leaf'}"
                pairs = [(x[:, first], x[:, first + stride])]
                yield _correlation("between elements", where, pairs, path)


def _correlation(
    about: str,
    where: str,
    pairs: Sequence[tuple[Array, Array]],
    again: str | None = None,
) -> Tested:
    """Of pairs of arrays, a row for each step, in which no number comes twice."""
    n = sum(x.size for x, _ in pairs)
    r = float(sum(np.sum(_unit(x) * _unit(y)) for x, y in pairs)) / n
    return Tested(about, where, r, min(1.0, 2.0 * math.exp(-n * r**2 / 2.0)), n, again)


def _unit(rows: Array) -> Array:
    """Each row over its root mean square; none where that is zero or infinite."""
    return np.nan_to_num(rows / np.sqrt(np.mean(rows**2, axis=1, keepdims=True)))


def _two_sided(z: float) -> float:
    return math.erfc(abs(z) / math.sqrt(2.0)) if math.isfinite(z) else 1.0


def failed(tests: Sequence[Tested], alpha: float, count: int) -> list[Tested]:
    """Those that are below their share of ``alpha``, the worst first.

    The largest number comes last: it is off where anything else is.

    Args:
        tests: some tests.
        alpha: probability that any of all is failed by chance.
        count: how many there are in all.
    """
    bad = [test for test in tests if not test.p >= alpha / count]
    return sorted(bad, key=lambda test: (test.about == "largest", test.p))
