"""Gradient descent, with momentum and with optimism."""

from __future__ import annotations

from typing import Literal

import numpy as np

from jaxcheck.updates.rules.moments import MOMENTS, EpsPlacement, adam_moments
from jaxcheck.updates.rules.rule import (
    Array,
    Elementwise,
    Leafwise,
    Rate,
    State,
    rate_at,
    rule,
)

First = Literal["gradient", "zero"]

OPTIMISM = {"with a previous gradient of zero at the first step": {"first": "zero"}}


@rule(
    "Polyak (1964); Sutskever et al. (2013), On the importance of initialization and "
    "momentum in deep learning, for Nesterov's",
    {
        "with Nesterov momentum": {"nesterov": True},
        "without momentum": {"momentum": None},
        "with the learning rate inside the momentum": {"rate_in_trace": True},
        "with (1 - momentum) times the gradient in the trace": {"average": True},
    },
)
def sgd(
    learning_rate: Rate,
    momentum: float | None = None,
    nesterov: bool = False,
    *,
    dampening: float = 0.0,
    average: bool = False,
    rate_in_trace: bool = False,
) -> Leafwise:
    r"""Gradient descent: :math:`-\alpha b_t`, where :math:`b_t = \mu b_{t-1} + g_t`.

    With ``nesterov`` the update is :math:`-\alpha (g_t + \mu b_t)`; without momentum,
    :math:`-\alpha g_t`. torch takes the learning rate out of the trace as optax does;
    Keras and TensorFlow keep it inside, which differs under a schedule.

    Args:
        learning_rate: a number, or a schedule of the step, counted from 0.
        momentum: :math:`\mu`; None for none.
        nesterov: whether the trace looks ahead.
        dampening: :math:`\tau` in :math:`b_t = \mu b_{t-1} + (1 - \tau) g_t`, with
            :math:`b_1 = g_1`, as torch has it. optax has none.
        average: whether the trace is an average,
            :math:`b_t = \mu b_{t-1} + (1 - \mu) g_t`.
        rate_in_trace: whether the trace is one of :math:`\alpha g`.

    Example:
        >>> import numpy as np
        >>> step = sgd(0.1, momentum=0.5)
        >>> _, state = step(np.array([2.0]), np.zeros(1), None, 0)
        >>> update, state = step(np.array([2.0]), np.zeros(1), state, 1)
        >>> update, state
        (array([-0.3]), {'trace': array([3.])})
    """

    def init(p: Array) -> State:
        return {} if momentum is None else {"trace": np.zeros_like(p)}

    def update(g: Array, p: Array, s: State, t: int) -> tuple[Array, State]:
        del p
        rate = rate_at(learning_rate, t)
        if momentum is None:
            return -rate * g, s
        share = 1.0 if t == 1 else 1.0 - dampening
        if average:
            share = 1.0 - momentum
        inside, outside = (rate, 1.0) if rate_in_trace else (1.0, rate)
        g = inside * g
        trace = momentum * s["trace"] + share * g
        direction = g + momentum * trace if nesterov else trace
        return -outside * direction, {"trace": trace}

    return Elementwise(init, update)


@rule(
    "Mokhtari et al. (2020), A unified analysis of extra-gradient and optimistic "
    "gradient methods for saddle point problems, arXiv:1901.08511",
    OPTIMISM,
)
def optimistic_gradient_descent(
    learning_rate: Rate,
    alpha: float = 1.0,
    beta: float = 1.0,
    *,
    first: First = "gradient",
) -> Leafwise:
    r"""Optimistic descent: :math:`-\eta ((\alpha + \beta) g_t - \beta g_{t-1})`.

    Args:
        learning_rate: :math:`\eta`, a number, or a schedule counted from 0.
        alpha: weight of the gradient.
        beta: weight of its change.
        first: what :math:`g_0` is: the first ``"gradient"``, which makes the first
            step one of plain descent, or ``"zero"``.

    Example:
        >>> import numpy as np
        >>> step = optimistic_gradient_descent(0.1)
        >>> _, state = step(np.array([2.0]), np.zeros(1), None, 0)
        >>> step(np.array([3.0]), np.zeros(1), state, 1)[0]
        array([-0.4])
    """
    return _optimistic(learning_rate, alpha, beta, first)


@rule(
    "Daskalakis et al. (2018), Training GANs with optimism, arXiv:1711.00141, with "
    "Nesterov's momentum unless told otherwise",
    MOMENTS | OPTIMISM | {"without Nesterov momentum": {"nesterov": False}},
)
def optimistic_adam(
    learning_rate: float,
    optimism: float | None = None,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    eps_root: float = 0.0,
    *,
    nesterov: bool = True,
    bias_correction: bool = True,
    eps_placement: EpsPlacement = "outside",
    first: First = "gradient",
) -> Leafwise:
    r"""Optimistic Adam: :math:`-((\alpha + \beta) d_t - \beta d_{t-1})`.

    With :math:`d_t` the direction of ``adam``.

    Args:
        learning_rate: :math:`\alpha`, a number.
        optimism: :math:`\beta`; None for the learning rate.
        b1: decay of the first moment.
        b2: decay of the second moment.
        eps: added to the denominator.
        eps_root: added inside the square root.
        nesterov: whether the first moment looks ahead.
        bias_correction: whether moments are divided by :math:`1 - \beta^t`.
        eps_placement: see ``adam``.
        first: see ``optimistic_gradient_descent``.

    Example:
        >>> import numpy as np
        >>> step = optimistic_adam(0.1, nesterov=False)
        >>> step(np.array([2.0, -3.0]), np.zeros(2), None, 0)[0].round(6)
        array([-0.1,  0.1])
    """
    beta = learning_rate if optimism is None else optimism
    direction = adam_moments(
        -1.0, b1, b2, eps, eps_root, nesterov, bias_correction, eps_placement
    )
    return _after(direction, _optimistic(1.0, learning_rate, beta, first))


@rule(
    "Daskalakis et al. (2018), Training GANs with optimism, arXiv:1711.00141, with "
    "Nesterov's momentum unless told otherwise",
    MOMENTS | OPTIMISM | {"without Nesterov momentum": {"nesterov": False}},
)
def optimistic_adam_v2(
    learning_rate: Rate,
    *,
    alpha: float = 1.0,
    beta: float = 1.0,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    eps_root: float = 0.0,
    nesterov: bool = True,
    bias_correction: bool = True,
    eps_placement: EpsPlacement = "outside",
    first: First = "gradient",
) -> Leafwise:
    r"""Optimistic Adam: :math:`-\eta ((\alpha + \beta) d_t - \beta d_{t-1})`.

    With :math:`d_t` the direction of ``adam``.

    Args:
        learning_rate: :math:`\eta`, a number, or a schedule counted from 0.
        alpha: weight of the direction.
        beta: weight of its change.
        b1: decay of the first moment.
        b2: decay of the second moment.
        eps: added to the denominator.
        eps_root: added inside the square root.
        nesterov: whether the first moment looks ahead.
        bias_correction: whether moments are divided by :math:`1 - \beta^t`.
        eps_placement: see ``adam``.
        first: see ``optimistic_gradient_descent``.

    Example:
        >>> import numpy as np
        >>> step = optimistic_adam_v2(0.1, nesterov=False)
        >>> step(np.array([2.0, -3.0]), np.zeros(2), None, 0)[0].round(6)
        array([-0.1,  0.1])
    """
    direction = adam_moments(
        -1.0, b1, b2, eps, eps_root, nesterov, bias_correction, eps_placement
    )
    return _after(direction, _optimistic(learning_rate, alpha, beta, first))


def _optimistic(rate: Rate, alpha: float, beta: float, first: First) -> Leafwise:
    def init(p: Array) -> State:
        return {"previous_gradient": np.zeros_like(p)}

    def update(g: Array, p: Array, s: State, t: int) -> tuple[Array, State]:
        del p
        previous = s["previous_gradient"]
        if t == 1 and first == "gradient":
            previous = g
        direction = (alpha + beta) * g - beta * previous
        return -rate_at(rate, t) * direction, {"previous_gradient": g}

    return Elementwise(init, update)


def _after(first: Leafwise, then: Leafwise) -> Elementwise:
    """What ``then`` makes of the updates of ``first``."""

    def init(p: Array) -> State:
        return {**first.init(p), **then.init(p)}

    def update(g: Array, p: Array, s: State, t: int) -> tuple[Array, State]:
        u, before = first.update(g, p, s, t)
        u, after = then.update(u, p, s, t)
        return u, {**before, **after}

    return Elementwise(init, update)
