"""Rules that divide by a sum or an average of squared gradients, coordinate-wise."""

from __future__ import annotations

import functools
from typing import Any, Literal

import numpy as np

from jaxcheck.updates.rules.decay import Decay, decayed, decays
from jaxcheck.updates.rules.moments import corrected, moment
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


@rule(
    "Duchi, Hazan & Singer (2011), Adaptive subgradient methods for online learning "
    "and stochastic optimization",
    {
        "with eps outside the square root": {"eps_placement": "outside"},
        "with a sum that begins at 0": {"initial_accumulator_value": 0.0},
        "with a sum that begins at 0 and eps outside the square root, as in torch": {
            "initial_accumulator_value": 0.0,
            "eps_placement": "outside",
        },
    },
)
def adagrad(
    learning_rate: Rate,
    initial_accumulator_value: float = 0.1,
    eps: float = 1e-7,
    *,
    eps_placement: Literal["inside", "outside"] = "inside",
) -> Leafwise:
    r"""AdaGrad: :math:`-\alpha g_t / \sqrt{G_t + \epsilon}`.

    With :math:`G_t = G_{t-1} + |g_t|^2`. The paper's sum begins at 0 and its constant
    is outside the root. Where the sum is 0 nothing moves.

    Args:
        learning_rate: a number, or a schedule of the step, counted from 0.
        initial_accumulator_value: :math:`G_0`.
        eps: added to the denominator.
        eps_placement: ``"inside"`` of the root, or ``"outside"``.

    Example:
        >>> import numpy as np
        >>> step = adagrad(0.1, initial_accumulator_value=7.0, eps=0.0)
        >>> step(np.array([3.0]), np.zeros(1), None, 0)[0]
        array([-0.075])
    """

    def init(p: Array) -> State:
        return {"sum_of_squares": np.full(p.shape, float(initial_accumulator_value))}

    def update(g: Array, p: Array, s: State, t: int) -> tuple[Array, State]:
        del p
        total = s["sum_of_squares"] + np.abs(g) ** 2
        if eps_placement == "inside":
            direction = g / np.sqrt(total + eps)
        else:
            direction = g / (np.sqrt(total) + eps)
        direction = np.where(total > 0, direction, 0.0)
        return -rate_at(learning_rate, t) * direction, {"sum_of_squares": total}

    return Elementwise(init, update)


@rule(
    "Zeiler (2012), ADADELTA, arXiv:1212.5701, Algorithm 1",
    {
        "going uphill, as optax 0.2.8 does without a learning rate": {"uphill": True},
        "with eps outside the square roots": {"eps_placement": "outside"},
    }
    | decays("in the gradient"),
)
def adadelta(
    learning_rate: Rate | None = None,
    rho: float = 0.9,
    eps: float = 1e-6,
    weight_decay: Rate = 0.0,
    weight_decay_mask: Any = None,
    *,
    uphill: bool = False,
    eps_placement: Literal["inside", "outside"] = "inside",
    decay: Decay = "in the gradient",
) -> Form:
    r"""AdaDelta: steps in units of the parameters.

    The update is :math:`-\alpha d_t`, with :math:`d_t = g_t \sqrt{X_{t-1} + \epsilon} /
    \sqrt{G_t + \epsilon}` and averages :math:`G_t` of squared gradients and :math:`X_t`
    of :math:`d_t^2`. The paper has no learning rate. optax 0.2.8 goes uphill when it is
    given none, because the sign is flipped together with the multiplication by the
    rate.

    Args:
        learning_rate: a number, or a schedule of the step; None for 1.
        rho: decay of both averages.
        eps: added to both averages.
        weight_decay: :math:`\lambda`, or a schedule of it.
        weight_decay_mask: which leaves decay, see ``adamw``.
        uphill: whether the sign is not flipped.
        eps_placement: ``"inside"`` of the roots, or ``"outside"``.
        decay: see ``adamw``.

    Example:
        >>> import numpy as np
        >>> step = adadelta(eps=0.25, rho=0.75)
        >>> step(np.array([3.0]), np.zeros(1), None, 0)[0].round(6)
        array([-0.948683])
    """
    rate = 1.0 if learning_rate is None else learning_rate

    def root(average: Array) -> Array:
        if eps_placement == "inside":
            return np.sqrt(average + eps)
        return np.sqrt(average) + eps

    def init(p: Array) -> State:
        return {"e_g": np.zeros(p.shape), "e_x": np.zeros(p.shape)}

    def update(g: Array, p: Array, s: State, t: int) -> tuple[Array, State]:
        del p
        e_g = moment(rho, s["e_g"], np.abs(g) ** 2)
        direction = root(s["e_x"]) / root(e_g) * g
        e_x = moment(rho, s["e_x"], np.abs(direction) ** 2)
        step = rate_at(rate, t) * direction
        return step if uphill else -step, {"e_g": e_g, "e_x": e_x}

    plain = Elementwise(init, update)
    return decayed(plain, rate, weight_decay, decay, weight_decay_mask)


@rule(
    "Hinton, Neural networks for machine learning, lecture 6; centered: Graves (2013), "
    "Generating sequences with recurrent neural networks, arXiv:1308.0850",
    {
        "with eps outside the square root": {"eps_in_sqrt": False},
        "with the learning rate outside the momentum": {"rate_in_trace": False},
        "with a second moment that begins at 1": {"initial_scale": 1.0},
        "with a centered second moment": {"centered": True},
        "with bias correction": {"bias_correction": True},
    },
)
def rmsprop(
    learning_rate: Rate,
    decay: float = 0.9,
    eps: float = 1e-8,
    initial_scale: float = 0.0,
    eps_in_sqrt: bool = True,
    centered: bool = False,
    momentum: float | None = None,
    nesterov: bool = False,
    bias_correction: bool = False,
    *,
    rate_in_trace: bool = True,
) -> Leafwise:
    r"""RMSProp: :math:`-\alpha g_t / \sqrt{v_t + \epsilon}`, then momentum.

    With ``centered``, :math:`v_t - m_t^2` takes the place of :math:`v_t`. The momentum
    is a trace of :math:`-\alpha g / \sqrt{v}`; torch's is one of :math:`g / (\sqrt{v} +
    \epsilon)`, multiplied by the learning rate afterwards.

    Args:
        learning_rate: a number, or a schedule of the step, counted from 0.
        decay: decay of the moments.
        eps: added to the denominator.
        initial_scale: the second moment before the first step.
        eps_in_sqrt: whether eps is inside the root.
        centered: whether the square of the mean is subtracted.
        momentum: decay of the trace; None for none.
        nesterov: whether the trace looks ahead.
        bias_correction: whether moments are divided by :math:`1 - \beta^t`.
        rate_in_trace: whether the trace is one of updates with their learning rate.

    Example:
        >>> import numpy as np
        >>> step = rmsprop(0.1, decay=0.75, eps=0.0)
        >>> step(np.array([3.0, -1.0]), np.zeros(2), None, 0)[0]
        array([-0.2,  0.2])
    """

    def init(p: Array) -> State:
        state = {"nu": np.full(p.shape, float(initial_scale))}
        if centered:
            state["mu"] = np.zeros_like(p)
        if momentum is not None:
            state["trace"] = np.zeros_like(p)
        return state

    def update(g: Array, p: Array, s: State, t: int) -> tuple[Array, State]:
        del p
        state = {"nu": moment(decay, s["nu"], np.abs(g) ** 2)}
        spread = corrected(state["nu"], decay, t) if bias_correction else state["nu"]
        if centered:
            state["mu"] = moment(decay, s["mu"], g)
            mean = corrected(state["mu"], decay, t) if bias_correction else state["mu"]
            spread = spread - np.abs(mean) ** 2
        root = np.sqrt(spread + eps) if eps_in_sqrt else np.sqrt(spread) + eps
        inside, outside = -rate_at(learning_rate, t), 1.0
        if not rate_in_trace:
            inside, outside = outside, inside
        u = inside * (g / root)
        if momentum is not None:
            state["trace"] = momentum * s["trace"] + u
            u = u + momentum * state["trace"] if nesterov else state["trace"]
        return outside * u, state

    return Elementwise(init, update)


@rule(
    "Anil et al. (2019), Memory-efficient adaptive optimization, arXiv:1901.11150, "
    "SM3-II with the rows and columns of a tensor as cover, and momentum",
    {
        "without momentum": {"momentum": 0.0},
        "with the sums of SM3-I": {"version": "I"},
        "with momentum that is a trace": {"average": False},
        "with eps outside the square root": {"eps_placement": "outside"},
    },
)
def sm3(
    learning_rate: Rate,
    momentum: float = 0.9,
    *,
    eps: float = 1e-8,
    version: Literal["I", "II"] = "II",
    average: bool = True,
    eps_placement: Literal["inside", "outside"] = "inside",
) -> Leafwise:
    r"""AdaGrad with one sum for each index of each axis.

    .. math::
        \nu_t(i) = \min_r \mu_{t-1}(r) + g_t(i)^2, \quad
        \mu_t(r) = \max_{i \in r} \nu_t(i)

    over the slices r that contain i; the update is :math:`-\alpha` times an average of
    :math:`g_t / \sqrt{\nu_t + \epsilon}`, 0 where the sum is. A vector has a sum for
    each coordinate, and is AdaGrad.

    Args:
        learning_rate: a number, or a schedule of the step, counted from 0.
        momentum: decay of the average of directions.
        eps: added to the sum.
        version: SM3-``"II"``, or SM3-``"I"``, where :math:`\mu_t(r) = \mu_{t-1}(r) +
            \max_{i \in r} g_t(i)^2` and :math:`\nu_t(i) = \min_r \mu_t(r)`.
        average: whether the momentum is an average, or a trace.
        eps_placement: ``"inside"`` of the root, or ``"outside"``.

    Example:
        >>> import numpy as np
        >>> step = sm3(0.1, momentum=0.0, eps=0.0)
        >>> _, state = step(np.array([[3.0, 1.0]]), np.zeros((1, 2)), None, 0)
        >>> state["mu"]
        [array([9.]), array([9., 1.])]
    """

    def init(p: Array) -> State:
        return {"mu": [np.zeros(n) for n in p.shape or (1,)], "nu": np.zeros(p.shape)}

    def least(sums: list[Array], ndim: int) -> Array:
        spread = [
            mu.reshape([-1 if k == axis else 1 for k in range(ndim)])
            for axis, mu in enumerate(sums)
        ]
        return functools.reduce(np.minimum, spread)

    def update(g: Array, p: Array, s: State, t: int) -> tuple[Array, State]:
        del p
        squares = g**2
        if version == "II":
            squares = least(s["mu"], g.ndim) + squares
        mu = [
            np.max(squares, axis=tuple(k for k in range(g.ndim) if k != axis))
            for axis in range(g.ndim)
        ] or [squares.reshape(1)]
        if version == "I":
            mu = [old + new for old, new in zip(s["mu"], mu, strict=True)]
            squares = least(mu, g.ndim)
        inside, outside = (eps, 0.0) if eps_placement == "inside" else (0.0, eps)
        direction = g / (np.sqrt(squares + inside) + outside)
        direction = np.where(squares == 0, 0.0, direction)
        share = 1.0 - momentum if average else 1.0
        nu = momentum * s["nu"] + share * direction
        return -rate_at(learning_rate, t) * nu, {"mu": mu, "nu": nu}

    return Leafwise(init, update)
