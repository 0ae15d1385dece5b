"""Rules whose second moment is one of surprises, or grows by sign."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np

from jaxcheck.updates.rules.decay import Decay, decayed, decays
from jaxcheck.updates.rules.moments import ahead, corrected, moment
from jaxcheck.updates.rules.rule import (
    Array,
    Elementwise,
    Form,
    Leafwise,
    Rate,
    State,
    rate_at,
    rule,
)

Mean = Literal["of this step", "of the step before"]

STALE = {
    "with the mean of the step before in the second moment": {
        "mean": "of the step before"
    }
}


@rule(
    "Zhuang et al. (2020), AdaBelief, arXiv:2010.07468",
    STALE
    | {
        "without eps_root in the second moment": {"eps_root": 0.0},
        "with eps_root added once, inside the square root": {"accumulate": False},
        "with Nesterov momentum": {"nesterov": True},
        "without bias correction": {"bias_correction": False},
    },
)
def adabelief(
    learning_rate: Rate,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-16,
    eps_root: float = 1e-16,
    *,
    nesterov: bool = False,
    bias_correction: bool = True,
    mean: Mean = "of this step",
    accumulate: bool = True,
) -> Leafwise:
    r"""AdaBelief: :math:`-\alpha \hat m_t / (\sqrt{\hat s_t} + \epsilon)`.

    With :math:`s_t = \beta_2 s_{t-1} + (1 - \beta_2) |g_t - m_t|^2 + \epsilon_r`. The
    paper has 1e-8 for both eps; optax once took :math:`m_{t-1}`
    (https://github.com/google-deepmind/optax/pull/1130).

    Args:
        learning_rate: a number, or a schedule of the step, counted from 0.
        b1: decay of the first moment.
        b2: decay of the second moment.
        eps: added to the denominator.
        eps_root: added to the second moment at each step.
        nesterov: whether the first moment looks ahead.
        bias_correction: whether moments are divided by :math:`1 - \beta^t`.
        mean: which mean is subtracted, :math:`m_t` or :math:`m_{t-1}`.
        accumulate: whether ``eps_root`` stays in the second moment.

    Example:
        >>> import numpy as np
        >>> step = adabelief(0.1, b1=0.5)
        >>> step(np.array([2.0, -3.0]), np.zeros(2), None, 0)[0].round(6)
        array([-0.2,  0.2])
    """

    def update(g: Array, p: Array, s: State, t: int) -> tuple[Array, State]:
        del p
        mu, nu = _surprise(g, s, b1, b2, mean)
        root = nu + eps_root
        state = {"mu": mu, "nu": root if accumulate else nu}
        first = ahead(mu, g, b1, t, bias_correction) if nesterov else mu
        if bias_correction:
            root = corrected(root, b2, t)
            first = first if nesterov else corrected(mu, b1, t)
        direction = first / (np.sqrt(root) + eps)
        return -rate_at(learning_rate, t) * direction, state

    return Elementwise(_two_moments, update)


@rule(
    "Zhuang et al. (2021), Momentum centering and asynchronous update for adaptive "
    "gradient methods (ACProp), arXiv:2110.05454",
    STALE
    | decays("times learning rate")
    | {"without eps_root in the second moment": {"eps_root": 0.0}},
)
def acprop(
    learning_rate: Rate,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-16,
    eps_root: float = 1e-16,
    weight_decay: float = 0.0,
    mask: Any = None,
    *,
    mean: Mean = "of this step",
    decay: Decay = "times learning rate",
) -> Form:
    r"""ACProp: :math:`-\alpha g_t / (\sqrt{\hat s_{t-1}} + \epsilon)`.

    With :math:`s_t` as in ``adabelief`` and :math:`\hat s_0 = 1`. optax 0.2.8 subtracts
    :math:`m_{t-1}` although its documentation has :math:`m_t`
    (https://github.com/google-deepmind/optax/issues/1716).

    Args:
        learning_rate: a number, or a schedule of the step, counted from 0.
        b1: decay of the first moment.
        b2: decay of the second moment.
        eps: added to the denominator.
        eps_root: added to the second moment at each step.
        weight_decay: :math:`\lambda`.
        mask: which leaves decay, see ``adamw``.
        mean: which mean is subtracted, :math:`m_t` or :math:`m_{t-1}`.
        decay: see ``adamw``.

    Example:
        >>> import numpy as np
        >>> step = acprop(0.1, b1=0.5)
        >>> update, state = step(np.array([2.0]), np.zeros(1), None, 0)
        >>> update, step(np.array([2.0]), np.zeros(1), state, 1)[0].round(6)
        (array([-0.2]), array([-0.2]))
    """

    def update(g: Array, p: Array, s: State, t: int) -> tuple[Array, State]:
        del p
        mu, nu = _surprise(g, s, b1, b2, mean)
        root = np.ones(g.shape) if t == 1 else corrected(s["nu"], b2, t - 1)
        state = {"mu": mu, "nu": nu + eps_root}
        return -rate_at(learning_rate, t) * (g / (np.sqrt(root) + eps)), state

    plain = Elementwise(_two_moments, update)
    return decayed(plain, learning_rate, weight_decay, decay, mask)


@rule(
    "Zaheer et al. (2018), Adaptive methods for nonconvex optimization (Yogi), with "
    "bias correction",
    {
        "with a first moment that begins at 1e-6, as in optax 0.2.8": {
            "initial_mu": 1e-6
        },
        "with a second moment that begins at 0": {"initial_nu": 0.0},
        "without bias correction, as in the paper": {"bias_correction": False},
    },
)
def yogi(
    learning_rate: Rate,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-3,
    *,
    initial_mu: float = 0.0,
    initial_nu: float = 1e-6,
    bias_correction: bool = True,
) -> Leafwise:
    r"""Yogi: :math:`-\alpha \hat m_t / (\sqrt{\hat v_t} + \epsilon)`.

    With :math:`v_t = v_{t-1} - (1 - \beta_2) \operatorname{sgn}(v_{t-1} - |g_t|^2)
    |g_t|^2`. In optax 0.2.8 the first moment begins at 1e-6 as the second does, so that
    parameters move although their gradient has always been zero.

    Args:
        learning_rate: a number, or a schedule of the step, counted from 0.
        b1: decay of the first moment.
        b2: how slowly the second moment moves.
        eps: added to the denominator.
        initial_mu: the first moment before the first step.
        initial_nu: the second moment before the first step.
        bias_correction: whether moments are divided by :math:`1 - \beta^t`.

    Example:
        >>> import numpy as np
        >>> step = yogi(0.1, b2=0.75, eps=0.0, initial_nu=0.0)
        >>> step(np.array([2.0]), np.zeros(1), None, 0)[0].round(6)
        array([-0.1])
    """

    def init(p: Array) -> State:
        return {
            "mu": np.full_like(p, initial_mu),
            "nu": np.full(p.shape, float(initial_nu)),
        }

    def update(g: Array, p: Array, s: State, t: int) -> tuple[Array, State]:
        del p
        square = np.abs(g) ** 2
        mu = moment(b1, s["mu"], g)
        nu = s["nu"] - (1.0 - b2) * np.sign(s["nu"] - square) * square
        first, second = mu, nu
        if bias_correction:
            first, second = corrected(mu, b1, t), corrected(nu, b2, t)
        direction = first / (np.sqrt(second) + eps)
        return -rate_at(learning_rate, t) * direction, {"mu": mu, "nu": nu}

    return Elementwise(init, update)


def _two_moments(p: Array) -> State:
    return {"mu": np.zeros_like(p), "nu": np.zeros(p.shape)}


def _surprise(
    g: Array, s: State, b1: float, b2: float, mean: Mean
) -> tuple[Array, Array]:
    """The mean, and the moment of what it did not expect."""
    mu = moment(b1, s["mu"], g)
    error = g - (mu if mean == "of this step" else s["mu"])
    return mu, moment(b2, s["nu"], np.abs(error) ** 2)
