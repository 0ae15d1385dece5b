"""Moments of gradients, and what is made of them."""

from __future__ import annotations

from typing import Literal

import numpy as np

from jaxcheck.updates.rules.rule import (
    Array,
    Elementwise,
    Leafwise,
    Rate,
    State,
    rate_at,
)

EpsPlacement = Literal["outside", "inside", "before correction"]

MOMENTS = {
    "with eps inside the square root": {"eps_placement": "inside"},
    "with eps added before the bias correction": {"eps_placement": "before correction"},
    "without bias correction": {"bias_correction": False},
}


def moment(decay: float, average: Array, value: Array) -> Array:
    """An exponential moving average, one step on."""
    return decay * average + (1.0 - decay) * value


def corrected(average: Array, decay: float, t: int) -> Array:
    """An average that began at zero, without the bias of that."""
    return average / (1.0 - decay**t)


def ahead(average: Array, value: Array, decay: float, t: int, correct: bool) -> Array:
    """An average as if ``value`` came once more, as Nesterov's momentum has it.

    Both parts are corrected for their own bias, as Dozat (2016) does.
    """
    if not correct:
        return moment(decay, average, value)
    return moment(decay, corrected(average, decay, t + 1), corrected(value, decay, t))


def normalized(
    first: Array,
    second: Array,
    correction: float,
    eps: float,
    eps_root: float,
    placement: EpsPlacement,
) -> Array:
    """``first`` over the root of ``second / correction``, with eps somewhere."""
    if placement == "inside":
        return first / np.sqrt(second / correction + eps_root + eps)
    if placement == "before correction":
        return first * np.sqrt(correction) / (np.sqrt(second + eps_root) + eps)
    return first / (np.sqrt(second / correction + eps_root) + eps)


def adam_moments(
    learning_rate: Rate,
    b1: float,
    b2: float,
    eps: float,
    eps_root: float,
    nesterov: bool,
    bias_correction: bool,
    eps_placement: EpsPlacement,
    momentum_decay: float | None = None,
    scale_second: bool = False,
) -> Leafwise:
    """Adam of one leaf, for the rules that are made of it; see ``adam``, ``nadam``."""

    def momentum(i: int) -> float:
        if momentum_decay is None:
            return b1
        return b1 * (1.0 - 0.5 * 0.96 ** (i * momentum_decay))

    def init(p: Array) -> State:
        return {"mu": np.zeros_like(p), "nu": np.zeros(p.shape)}

    def first_moment(mu: Array, g: Array, t: int) -> Array:
        if not nesterov:
            return corrected(mu, b1, t) if bias_correction else mu
        if momentum_decay is None:
            return ahead(mu, g, b1, t, bias_correction)
        now = np.prod([momentum(i) for i in range(1, t + 1)])
        following = momentum(t + 1)
        scales = (1.0 - now * following, 1.0 - now) if bias_correction else (1.0, 1.0)
        return following * mu / scales[0] + (1.0 - momentum(t)) * g / scales[1]

    def update(g: Array, p: Array, s: State, t: int) -> tuple[Array, State]:
        del p
        mu = moment(b1, s["mu"], g)
        nu = moment(b2, s["nu"], np.abs(g) ** 2)
        correction = 1.0 - b2**t if bias_correction else 1.0
        second = b2 * nu if scale_second else nu
        first = first_moment(mu, g, t)
        direction = normalized(first, second, correction, eps, eps_root, eps_placement)
        return -rate_at(learning_rate, t) * direction, {"mu": mu, "nu": nu}

    return Elementwise(init, update)
