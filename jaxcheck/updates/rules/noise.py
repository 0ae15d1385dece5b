"""Rules with normal noise: annealed gradient noise, and private descent (DP-SGD)."""

from __future__ import annotations

from typing import Literal

import numpy as np

from jaxcheck.updates.rules.momentum import sgd
from jaxcheck.updates.rules.rule import Array, Noisy, Rate, Rule, rule
from jaxcheck.updates.rules.transformations import scale

Spread = Literal["variance", "deviation"]
Clipped = Literal["example", "leaf", "batch", "nothing"]
Scaled = Literal["clip/batch", "clip", "1/batch"]

_ANNEALED = {
    "with eta / (1 + t)**gamma the standard deviation of the noise, not its variance": {
        "spread": "deviation"
    },
    "with noise that does not decay": {"gamma": 0.0},
    "with its steps counted from 1 in the noise": {"first": 1},
    "with noise that is not multiplied by the learning rate": {"outside": True},
}
_PRIVATE = {
    "with the gradient of the batch clipped, not that of each example": {
        "clipped": "batch"
    },
    "with each leaf clipped by its own norm": {"clipped": "leaf"},
    "with gradients that are not clipped": {"clipped": "nothing"},
    "with noise that is not divided by the batch size": {"scaled": "clip"},
    "with noise that is not multiplied by the clipping norm": {"scaled": "1/batch"},
    "with the sum over examples, not the mean": {"mean": False, "scaled": "clip"},
    "with noise that is not multiplied by the learning rate": {"outside": True},
}
_NEELAKANTAN = (
    "Neelakantan et al. (2015), Adding gradient noise improves learning for very deep "
    "networks, arXiv:1511.06807"
)
_ABADI = (
    "Abadi et al. (2016), Deep learning with differential privacy, arXiv:1607.00133, "
    "Algorithm 1"
)


@rule(_NEELAKANTAN, _ANNEALED)
def add_noise(
    eta: float,
    gamma: float,
    then: Rule | None = None,
    *,
    spread: Spread = "variance",
    first: int = 0,
    outside: bool = False,
) -> Noisy:
    r"""Normal noise of variance :math:`\sigma_t^2 = \eta / (1 + t)^\gamma`, t from 0.

    Called, it gives the mean of the update. ``check_update`` holds the noise against
    its distribution.

    Args:
        eta: :math:`\eta`, the variance of the first step.
        gamma: :math:`\gamma`, how fast it decays.
        then: what follows in the chain, affine in the gradient; None for nothing.
        spread: what :math:`\eta / (1 + t)^\gamma` is.
        first: t of the first step.
        outside: whether the noise is added to the updates of ``then``.

    Example:
        >>> import numpy as np
        >>> step = add_noise(0.01, 0.55, sgd(0.5))
        >>> step(np.array([2.0]), np.zeros(1), None, 0)[0]
        array([-1.])
    """
    following = scale(1.0) if then is None else then
    return _annealed(eta, gamma, following, spread, first, outside)


@rule(_NEELAKANTAN, _ANNEALED)
def noisy_sgd(
    learning_rate: Rate,
    eta: float = 0.01,
    gamma: float = 0.55,
    *,
    spread: Spread = "variance",
    first: int = 0,
    outside: bool = False,
) -> Noisy:
    r"""Descent with noise: :math:`-\alpha (g_t + \sigma_t \xi_t)`.

    With :math:`\sigma_t^2 = \eta / (1 + t)^\gamma`, t from 0, as in ``add_noise``.

    Args:
        learning_rate: :math:`\alpha`, a number, or a schedule counted from 0.
        eta: :math:`\eta`, the variance of the first step.
        gamma: :math:`\gamma`, how fast it decays.
        spread: what :math:`\eta / (1 + t)^\gamma` is.
        first: t of the first step.
        outside: whether the noise is added to the updates, not to the gradient.

    Example:
        >>> import numpy as np
        >>> noisy_sgd(0.5)(np.array([2.0]), np.zeros(1), None, 0)[0]
        array([-1.])
    """
    return _annealed(eta, gamma, sgd(learning_rate), spread, first, outside)


def _annealed(
    eta: float, gamma: float, then: Rule, spread: Spread, first: int, outside: bool
) -> Noisy:
    def moments(g: list[Array], t: int) -> tuple[list[Array], float]:
        value = eta / (t + first) ** gamma  # t counts from 1 here
        return g, float(np.sqrt(value) if spread == "variance" else value)

    return Noisy(moments, then.form, outside=outside)


@rule(_ABADI, _PRIVATE)
def differentially_private_aggregate(
    l2_norm_clip: float,
    noise_multiplier: float,
    then: Rule | None = None,
    *,
    clipped: Clipped = "example",
    scaled: Scaled = "clip/batch",
    mean: bool = True,
    outside: bool = False,
) -> Noisy:
    r"""The mean of clipped gradients of examples, with noise.

    .. math::
        \frac{1}{B} \Big( \sum_i g_i / \max(1, \|g_i\| / C) + N(0, z^2 C^2) \Big)

    Gradients have a first axis of B examples. The norm is that of all leaves. Called,
    it gives the mean of the update.

    Args:
        l2_norm_clip: C.
        noise_multiplier: z.
        then: what follows in the chain, affine in the gradient; None for nothing.
        clipped: what is clipped: the gradient of each example, each of its leaves, the
            mean over the batch, or nothing.
        scaled: what the noise is multiplied by, beside z.
        mean: whether gradients are averaged, or summed.
        outside: whether the noise is added to the updates of ``then``.

    Example:
        >>> import numpy as np
        >>> step = differentially_private_aggregate(1.0, 0.1)
        >>> step(np.array([[3.0, 4.0], [0.0, 0.5]]), np.zeros(2), None, 0)[0]
        array([0.3 , 0.65])
    """
    following = scale(1.0) if then is None else then
    return _private(
        l2_norm_clip, noise_multiplier, following, clipped, scaled, mean, outside
    )


@rule(_ABADI, _PRIVATE | {"without momentum": {"momentum": None}})
def dpsgd(
    learning_rate: Rate,
    l2_norm_clip: float,
    noise_multiplier: float,
    momentum: float | None = None,
    nesterov: bool = False,
    *,
    clipped: Clipped = "example",
    scaled: Scaled = "clip/batch",
    mean: bool = True,
    outside: bool = False,
) -> Noisy:
    r"""Descent along ``differentially_private_aggregate``, with momentum.

    Args:
        learning_rate: a number, or a schedule counted from 0.
        l2_norm_clip: C.
        noise_multiplier: z.
        momentum: see ``sgd``.
        nesterov: see ``sgd``.
        clipped: see ``differentially_private_aggregate``.
        scaled: likewise.
        mean: likewise.
        outside: whether the noise is added to the updates, not to the gradient.

    Example:
        >>> import numpy as np
        >>> step = dpsgd(0.1, 1.0, 0.5)
        >>> step(np.array([[3.0, 4.0], [0.0, 0.5]]), np.zeros(2), None, 0)[0]
        array([-0.03 , -0.065])
    """
    following = sgd(learning_rate, momentum, nesterov)
    return _private(
        l2_norm_clip, noise_multiplier, following, clipped, scaled, mean, outside
    )


def _private(
    clip: float,
    multiplier: float,
    then: Rule,
    clipped: Clipped,
    scaled: Scaled,
    mean: bool,
    outside: bool,
) -> Noisy:
    def moments(g: list[Array], t: int) -> tuple[list[Array], float]:
        del t
        batch = g[0].shape[0]
        total = [np.sum(x, 0) for x in _clipped(g, clip, clipped)]
        if clipped == "batch":
            total = [
                x[0] * batch for x in _by_norm([x[None] / batch for x in total], clip)
            ]
        size = {"clip/batch": clip / batch, "clip": clip, "1/batch": 1 / batch}[scaled]
        return [x / batch if mean else x for x in total], multiplier * size

    return Noisy(moments, then.form, per_example=True, outside=outside)


def _clipped(g: list[Array], clip: float, clipped: Clipped) -> list[Array]:
    if clipped == "example":
        return _by_norm(g, clip)
    if clipped == "leaf":
        return [_by_norm([x], clip)[0] for x in g]
    return g


def _by_norm(g: list[Array], clip: float) -> list[Array]:
    """Gradients whose norm over all but the first axis is at most ``clip``."""
    squares = [np.sum(np.abs(x.reshape(len(x), -1)) ** 2, axis=1) for x in g]
    size = np.sqrt(np.sum(squares, axis=0))
    factor = 1.0 / np.maximum(1.0, size / clip)
    return [x * factor.reshape(-1, *[1] * (x.ndim - 1)) for x in g]
