"""Later relatives of Adam: Adan, AdEMAMix and ADOPT."""

from __future__ import annotations

from collections.abc import Callable
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
    "Xie et al. (2022), Adan, arXiv:2208.06677, with 1 - b for the paper's betas, as "
    "in the authors' code",
    {
        "with weight b2 of the change of gradient, as in the authors' code": {
            "look_ahead": "b2"
        },
        "without bias correction": {"bias_correction": False},
    }
    | decays("times learning rate"),
)
def adan(
    learning_rate: Rate,
    b1: float = 0.98,
    b2: float = 0.92,
    b3: float = 0.99,
    eps: float = 1e-8,
    eps_root: float = 1e-8,
    weight_decay: Rate = 0.0,
    mask: Any = None,
    *,
    look_ahead: Literal["b2", "1 - b2"] = "1 - b2",
    bias_correction: bool = True,
    decay: Decay = "times learning rate",
) -> Form:
    r"""Adan: adaptive Nesterov momentum.

    The update is :math:`-\alpha (\hat m_t + (1 - \beta_2) \hat v_t) /
    (\sqrt{\hat n_t} + \epsilon)` with averages m of :math:`g_t`, v of :math:`d_t = g_t
    - g_{t-1}` (with :math:`d_1 = 0`), and n of :math:`|g_t + (1 - \beta_2) d_t|^2`,
    with decays :math:`\beta_1, \beta_2, \beta_3`.

    This is what optax documents and does. The paper writes :math:`\beta` for what is
    :math:`1 - \beta` here: its weight of the change of gradient is 0.92, as in the
    authors' code (``look_ahead="b2"``), and not 0.08; and its weight decay is
    ``"proximal"``.

    Args:
        learning_rate: a number, or a schedule of the step, counted from 0.
        b1: decay of the average of gradients.
        b2: decay of the average of their changes.
        b3: decay of the second moment.
        eps: added to the denominator.
        eps_root: added inside the square root.
        weight_decay: :math:`\lambda`, or a schedule of it.
        mask: which leaves decay, see ``adamw``.
        look_ahead: the weight of changes.
        bias_correction: whether averages are divided by :math:`1 - \beta^t`.
        decay: as in ``adamw``; ``"proximal"`` in the paper.

    Example:
        >>> import numpy as np
        >>> step = adan(0.1)
        >>> step(np.array([2.0, -3.0]), np.zeros(2), None, 0)[0].round(6)
        array([-0.1,  0.1])
    """
    weight = b2 if look_ahead == "b2" else 1.0 - b2

    def init(p: Array) -> State:
        zeros = np.zeros_like(p)
        return {"m": zeros, "v": zeros, "n": np.zeros(p.shape), "g": zeros}

    def update(g: Array, p: Array, s: State, t: int) -> tuple[Array, State]:
        del p
        change = np.zeros_like(g) if t == 1 else g - s["g"]
        m = moment(b1, s["m"], g)
        v = moment(b2, s["v"], change)
        n = moment(b3, s["n"], np.abs(g + weight * change) ** 2)
        state = {"m": m, "v": v, "n": n, "g": g}
        if bias_correction:
            m, v, n = corrected(m, b1, t), corrected(v, b2, t), corrected(n, b3, t)
        direction = (m + weight * v) / (np.sqrt(n + eps_root) + eps)
        return -rate_at(learning_rate, t) * direction, state

    plain = Elementwise(init, update)
    return decayed(plain, learning_rate, weight_decay, decay, mask)


@rule(
    "Pagliardini, Ablin & Grangier (2024), The AdEMAMix optimizer, arXiv:2409.03137",
    {
        "with bias correction of the slow average": {"correct_slow": True},
        "without bias correction": {"bias_correction": False},
    }
    | decays("times learning rate"),
)
def ademamix(
    learning_rate: Rate,
    b1: float = 0.9,
    b2: float = 0.999,
    b3: Rate = 0.9999,
    alpha: Rate = 5.0,
    eps: float = 1e-8,
    eps_root: float = 0.0,
    weight_decay: float = 0.0,
    mask: Any = None,
    *,
    bias_correction: bool = True,
    correct_slow: bool = False,
    decay: Decay = "times learning rate",
) -> Form:
    r"""Adam with a slow average beside the fast one.

    The update is :math:`-\eta (\hat m_1 + \alpha m_2) / (\sqrt{\hat v} + \epsilon)`;
    :math:`m_1` and :math:`m_2` have decays :math:`\beta_1` and :math:`\beta_3`; the
    slow one is not corrected for its bias.

    Args:
        learning_rate: :math:`\eta`, a number, or a schedule counted from 0.
        b1: decay of the fast average.
        b2: decay of the second moment.
        b3: decay of the slow average, or a schedule of it.
        alpha: weight of the slow average, or a schedule of it.
        eps: added to the denominator.
        eps_root: added inside the square root.
        weight_decay: :math:`\lambda`.
        mask: which leaves decay, see ``adamw``.
        bias_correction: whether :math:`m_1` and :math:`v` are corrected.
        correct_slow: whether :math:`m_2` is corrected; not with a schedule of b3.
        decay: see ``adamw``.

    Example:
        >>> import numpy as np
        >>> step = ademamix(0.1, b3=0.9)
        >>> step(np.array([2.0, -3.0]), np.zeros(2), None, 0)[0].round(6)
        array([-0.15,  0.15])
    """

    def init(p: Array) -> State:
        zeros = np.zeros_like(p)
        return {"m1": zeros, "m2": zeros, "nu": np.zeros(p.shape)}

    def update(g: Array, p: Array, s: State, t: int) -> tuple[Array, State]:
        del p
        slow_decay = rate_at(b3, t)
        m1, m2 = moment(b1, s["m1"], g), moment(slow_decay, s["m2"], g)
        nu = moment(b2, s["nu"], np.abs(g) ** 2)
        state = {"m1": m1, "m2": m2, "nu": nu}
        if bias_correction:
            m1, nu = corrected(m1, b1, t), corrected(nu, b2, t)
        slow = corrected(m2, slow_decay, t) if correct_slow else m2
        direction = (m1 + rate_at(alpha, t) * slow) / (np.sqrt(nu + eps_root) + eps)
        return -rate_at(learning_rate, t) * direction, state

    plain = Elementwise(init, update)
    return decayed(plain, learning_rate, weight_decay, decay, mask)


@rule(
    "Morwani et al. (2025), Connections between schedule-free optimizers, AdEMAMix, "
    "and accelerated SGD variants, arXiv:2502.02431",
    {
        "with (1 - b1) times the gradient in the momentum": {"average": True},
        "without bias correction": {"bias_correction": False},
    }
    | decays("times learning rate"),
)
def simplified_ademamix(
    learning_rate: Rate,
    b1: float = 0.99,
    b2: float = 0.95,
    alpha: Rate = 0.0,
    eps: float = 1e-8,
    eps_root: float = 0.0,
    weight_decay: float = 0.0,
    mask: Any = None,
    *,
    average: bool = False,
    bias_correction: bool = True,
    decay: Decay = "times learning rate",
) -> Form:
    r"""AdEMAMix with one momentum.

    The update is :math:`-\eta (m_t + \alpha g_t) / (\sqrt{\hat n_t} + \epsilon)` with
    :math:`m_t = \beta_1 m_{t-1} + g_t`, which is no average.

    Args:
        learning_rate: :math:`\eta`, a number, or a schedule counted from 0.
        b1: decay of the momentum.
        b2: decay of the second moment.
        alpha: weight of the gradient, or a schedule of it.
        eps: added to the denominator.
        eps_root: added inside the square root.
        weight_decay: :math:`\lambda`.
        mask: which leaves decay, see ``adamw``.
        average: whether the momentum is an average.
        bias_correction: whether the second moment is corrected.
        decay: see ``adamw``.

    Example:
        >>> import numpy as np
        >>> step = simplified_ademamix(0.1, alpha=1.0)
        >>> step(np.array([2.0, -3.0]), np.zeros(2), None, 0)[0].round(6)
        array([-0.2,  0.2])
    """

    def init(p: Array) -> State:
        return {"m": np.zeros_like(p), "n": np.zeros(p.shape)}

    def update(g: Array, p: Array, s: State, t: int) -> tuple[Array, State]:
        del p
        m = moment(b1, s["m"], g) if average else b1 * s["m"] + g
        n = moment(b2, s["n"], np.abs(g) ** 2)
        second = corrected(n, b2, t) if bias_correction else n
        direction = (m + rate_at(alpha, t) * g) / (np.sqrt(second + eps_root) + eps)
        return -rate_at(learning_rate, t) * direction, {"m": m, "n": n}

    plain = Elementwise(init, update)
    return decayed(plain, learning_rate, weight_decay, decay, mask)


def fourth_root(count: float) -> float:
    """The bound of ADOPT's clipping, by the count of steps from 0."""
    return count**0.25


@rule(
    "Taniguchi et al. (2024), ADOPT, arXiv:2411.02853",
    {
        "without clipping": {"use_clipping": False},
        "with the second moment of this step": {"second": "of this step"},
        "with Nesterov momentum": {"nesterov": True},
    },
)
def adopt(
    learning_rate: Rate,
    b1: float = 0.9,
    b2: float = 0.9999,
    eps: float = 1e-6,
    *,
    nesterov: bool = False,
    use_clipping: bool = True,
    clip_value_fn: Callable[[float], float] = fourth_root,
    second: Literal["of the step before", "of this step"] = "of the step before",
) -> Leafwise:
    r"""ADOPT: :math:`-\alpha m_t`, normalized by the second moment of the step before.

    .. math::
        m_t = \beta_1 m_{t-1} + (1 - \beta_1) \operatorname{clip}\!\left(
            \frac{g_t}{\max(\sqrt{v_{t-1}}, \epsilon)}, \pm (t - 1)^{1/4} \right)

    The first step sets :math:`v_1 = g_1^2` and moves nothing.

    Args:
        learning_rate: a number, or a schedule of the step, counted from 0.
        b1: decay of the first moment.
        b2: decay of the second moment.
        eps: least denominator.
        nesterov: whether the first moment looks ahead.
        use_clipping: whether normalized gradients are clipped.
        clip_value_fn: the bound by the count of steps from 0.
        second: which second moment normalizes.

    Example:
        >>> import numpy as np
        >>> step = adopt(0.1)
        >>> _, state = step(np.array([2.0]), np.zeros(1), None, 0)
        >>> step(np.array([-1.0]), np.zeros(1), state, 1)[0].round(6)
        array([0.005])
    """

    def init(p: Array) -> State:
        return {"mu": np.zeros_like(p), "nu": np.zeros(p.shape)}

    def update(g: Array, p: Array, s: State, t: int) -> tuple[Array, State]:
        del p
        if t == 1:
            return np.zeros_like(g), {"mu": s["mu"], "nu": np.abs(g) ** 2}
        nu = moment(b2, s["nu"], np.abs(g) ** 2)
        below = s["nu"] if second == "of the step before" else nu
        normal = g / np.maximum(np.sqrt(below), eps)
        if use_clipping:
            bound = clip_value_fn(t - 1)
            normal = np.clip(normal, -bound, bound)
        mu = moment(b1, s["mu"], normal)
        direction = moment(b1, mu, normal) if nesterov else mu
        return -rate_at(learning_rate, t) * direction, {"mu": mu, "nu": nu}

    return Elementwise(init, update)
