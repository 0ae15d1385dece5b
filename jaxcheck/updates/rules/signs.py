"""Rules that look at the sign of the gradient, or of an average of it."""

from __future__ import annotations

from typing import Any

import numpy as np

from jaxcheck.updates.rules.decay import Decay, decayed, decays
from jaxcheck.updates.rules.moments import moment
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


def sign(x: Array) -> Array:
    """Give x over its modulus, 0 at 0; NumPy 1 has another sign for complex numbers."""
    if np.iscomplexobj(x):
        return np.where(x == 0, 0.0, x / np.abs(x))
    return np.sign(x)


@rule("Bernstein et al. (2018), signSGD, arXiv:1802.04434")
def sign_sgd(learning_rate: Rate) -> Leafwise:
    r"""Descent along signs: :math:`-\alpha \operatorname{sgn}(g_t)`.

    Args:
        learning_rate: a number, or a schedule of the step, counted from 0.

    Example:
        >>> import numpy as np
        >>> sign_sgd(0.1)(np.array([2.0, 0.0, -3.0]), np.zeros(3), None, 0)[0]
        array([-0.1, -0. ,  0.1])
    """

    def update(g: Array, p: Array, s: State, t: int) -> tuple[Array, State]:
        del p
        return -rate_at(learning_rate, t) * sign(g), s

    return Elementwise(_no_state, update)


@rule(
    "Bernstein et al. (2018), signSGD, arXiv:1802.04434",
    {"with the sign of an average that looks ahead": {"look_ahead": True}},
)
def signum(
    learning_rate: Rate, beta: float = 0.9, *, look_ahead: bool = False
) -> Leafwise:
    r"""Descent along signs of an average: :math:`-\alpha \operatorname{sgn}(m_t)`.

    With :math:`m_t = \beta m_{t-1} + (1 - \beta) g_t`; a trace :math:`\beta m_{t-1} +
    g_t` has the same sign.

    Args:
        learning_rate: a number, or a schedule of the step, counted from 0.
        beta: decay of the average.
        look_ahead: whether the sign is that of
            :math:`\beta m_t + (1 - \beta) g_t`, as with Nesterov's momentum.

    Example:
        >>> import numpy as np
        >>> step = signum(0.1)
        >>> _, state = step(np.array([2.0]), np.zeros(1), None, 0)
        >>> step(np.array([-1.0]), np.zeros(1), state, 1)[0]
        array([-0.1])
    """

    def init(p: Array) -> State:
        return {"ema": np.zeros_like(p)}

    def update(g: Array, p: Array, s: State, t: int) -> tuple[Array, State]:
        del p
        ema = moment(beta, s["ema"], g)
        average = moment(beta, ema, g) if look_ahead else ema
        return -rate_at(learning_rate, t) * sign(average), {"ema": ema}

    return Elementwise(init, update)


@rule(
    "Chen et al. (2023), Symbolic discovery of optimization algorithms, "
    "arXiv:2302.06675, Algorithm 2",
    {"with the average already moved on by b2": {"moved_on": True}}
    | decays("times learning rate"),
)
def lion(
    learning_rate: Rate,
    b1: float = 0.9,
    b2: float = 0.99,
    weight_decay: Rate = 1e-3,
    mask: Any = None,
    *,
    moved_on: bool = False,
    decay: Decay = "times learning rate",
) -> Form:
    r"""Lion: the sign of an average, which then decays at another rate.

    The update is :math:`-\alpha (\operatorname{sgn}(\beta_1 m_{t-1} + (1-\beta_1) g_t)
    + \lambda \theta)`; then :math:`m_t = \beta_2 m_{t-1} + (1 - \beta_2) g_t`.

    Args:
        learning_rate: a number, or a schedule of the step, counted from 0.
        b1: weight of the average in the sign.
        b2: decay of the average.
        weight_decay: :math:`\lambda`, or a schedule of it.
        mask: which leaves decay, see ``adamw``.
        moved_on: whether the sign is that of
            :math:`\beta_1 m_t + (1 - \beta_1) g_t`, with the new average.
        decay: see ``adamw``.

    Example:
        >>> import numpy as np
        >>> lion(0.1)(np.array([2.0, -3.0]), np.ones(2), None, 0)[0]
        array([-0.1001,  0.0999])
    """

    def init(p: Array) -> State:
        return {"mu": np.zeros_like(p)}

    def update(g: Array, p: Array, s: State, t: int) -> tuple[Array, State]:
        del p
        mu = moment(b2, s["mu"], g)
        direction = sign(moment(b1, mu if moved_on else s["mu"], g))
        return -rate_at(learning_rate, t) * direction, {"mu": mu}

    return decayed(Elementwise(init, update), learning_rate, weight_decay, decay, mask)


@rule(
    "Riedmiller & Braun (1993), RPROP; as iRprop-: Igel & Hüsken (2003), Empirical "
    "evaluation of the improved Rprop learning algorithms",
    {
        "one step late, as in optax 0.2.8": {"stale": True},
        "with a step where the sign has changed": {"skip_after_flip": False},
    },
)
def rprop(
    learning_rate: float,
    eta_minus: float = 0.5,
    eta_plus: float = 1.2,
    min_step_size: float = 1e-6,
    max_step_size: float = 50.0,
    *,
    stale: bool = False,
    skip_after_flip: bool = True,
) -> Leafwise:
    r"""Resilient propagation: :math:`-s_t \operatorname{sgn}(g_t)`.

    Each coordinate has a step of its own: :math:`s_t = \eta_+ s_{t-1}` while the sign
    stays and :math:`\eta_- s_{t-1}` where it changes, within bounds. Where it changes
    nothing moves, and the next sign is taken as the first.

    optax 0.2.8 returns the update of the step before
    (https://github.com/google-deepmind/optax/issues/1725).

    Args:
        learning_rate: :math:`s_0`.
        eta_minus: factor of a step where the sign has changed.
        eta_plus: factor of a step where it has not.
        min_step_size: least step.
        max_step_size: largest step.
        stale: whether updates are those of the step before, zero at first and where
            the sign has changed.
        skip_after_flip: whether nothing moves where the sign has changed.

    Example:
        >>> import numpy as np
        >>> step = rprop(0.1)
        >>> _, state = step(np.array([2.0, -1.0]), np.zeros(2), None, 0)
        >>> step(np.array([3.0, 1.0]), np.zeros(2), state, 1)[0]
        array([-0.12, -0.  ])
    """

    def init(p: Array) -> State:
        sizes = np.full(p.shape, float(learning_rate))
        return {"step_sizes": sizes, "prev_updates": np.zeros_like(p)}

    def update(g: Array, p: Array, s: State, t: int) -> tuple[Array, State]:
        del p, t
        trend = np.sign(g) * np.sign(s["prev_updates"])
        factor = np.where(trend > 0, eta_plus, eta_minus)
        moved = np.clip(s["step_sizes"] * factor, min_step_size, max_step_size)
        sizes = np.where(trend == 0, s["step_sizes"], moved)
        flipped = trend < 0
        direction = sizes * np.sign(g)
        if skip_after_flip:
            direction = np.where(flipped, 0.0, direction)
        late = np.where(flipped, 0.0, s["prev_updates"])
        state = {"step_sizes": sizes, "prev_updates": direction}
        return -(late if stale else direction), state

    return Elementwise(init, update)


def _no_state(p: Array) -> State:
    del p
    return {}
