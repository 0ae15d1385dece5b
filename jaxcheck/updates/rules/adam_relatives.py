r"""Adam with another second moment, or a doubt about it.

Moments are those of ``adam``: :math:`m_t`, :math:`v_t`, and :math:`\hat m_t`,
:math:`\hat v_t` without the bias of their zero beginning.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np

from jaxcheck.updates.rules.decay import Decay, decayed, decays
from jaxcheck.updates.rules.moments import (
    EpsPlacement,
    ahead,
    corrected,
    moment,
    normalized,
)
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

Maximum = Literal["of the corrected", "before correction"]
EpsInMax = Literal["in the maximum", "outside"]

ADAMAX = {
    "with eps added to the denominator": {"eps_placement": "outside"},
    "without bias correction": {"bias_correction": False},
}


@rule(
    "Reddi et al. (2018), On the convergence of Adam and beyond, arXiv:1904.09237, "
    "with bias correction",
    {
        "with the maximum taken before the bias correction, as in torch": {
            "maximum": "before correction"
        },
        "without bias corrections, as in the paper": {
            "bias_correction_mu": False,
            "bias_correction_nu": False,
        },
        "without bias correction of the second moment": {"bias_correction_nu": False},
        "with eps inside the square root": {"eps_placement": "inside"},
    },
)
def amsgrad(
    learning_rate: Rate,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    eps_root: float = 0.0,
    bias_correction_mu: bool = True,
    bias_correction_nu: bool = True,
    *,
    maximum: Maximum = "of the corrected",
    eps_placement: Literal["outside", "inside"] = "outside",
) -> Leafwise:
    r"""Adam whose second moment never falls.

    The update is :math:`-\alpha \hat m_t / (\sqrt{\max_{s \le t} \hat v_s} +
    \epsilon)`. The paper has no bias corrections. torch takes :math:`\max_s v_s` and
    corrects it by :math:`1 - \beta_2^t`; its documentation says otherwise
    (https://github.com/pytorch/pytorch/issues/142323).

    Args:
        learning_rate: a number, or a schedule of the step, counted from 0.
        b1: decay of the first moment.
        b2: decay of the second moment.
        eps: added to the denominator.
        eps_root: added inside the square root.
        bias_correction_mu: whether the first moment is corrected.
        bias_correction_nu: whether the second moment is corrected.
        maximum: whether it is taken ``"of the corrected"`` moments or ``"before
            correction"``; then it is corrected.
        eps_placement: ``"outside"`` of the root or ``"inside"``.

    Example:
        >>> import numpy as np
        >>> step = amsgrad(0.1)
        >>> _, state = step(np.array([4.0]), np.zeros(1), None, 0)
        >>> _, state = step(np.array([0.0]), np.zeros(1), state, 1)
        >>> state["nu_max"]
        array([16.])
    """

    def init(p: Array) -> State:
        zeros = np.zeros(p.shape)
        return {"mu": np.zeros_like(p), "nu": zeros, "nu_max": zeros}

    def update(g: Array, p: Array, s: State, t: int) -> tuple[Array, State]:
        del p
        mu = moment(b1, s["mu"], g)
        nu = moment(b2, s["nu"], np.abs(g) ** 2)
        first = corrected(mu, b1, t) if bias_correction_mu else mu
        correction = 1.0 - b2**t if bias_correction_nu else 1.0
        before, after = correction, 1.0
        if maximum == "before correction":
            before, after = 1.0, correction
        nu_max = np.maximum(s["nu_max"], nu / before)
        direction = normalized(first, nu_max, after, eps, eps_root, eps_placement)
        state = {"mu": mu, "nu": nu, "nu_max": nu_max}
        return -rate_at(learning_rate, t) * direction, state

    return Elementwise(init, update)


@rule("Kingma & Ba (2015), Adam, arXiv:1412.6980, Algorithm 2", ADAMAX)
def adamax(
    learning_rate: Rate,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    *,
    bias_correction: bool = True,
    eps_placement: EpsInMax = "in the maximum",
) -> Leafwise:
    r"""Adam with the infinity norm: :math:`-\alpha \hat m_t / u_t`.

    With :math:`u_t = \max(\beta_2 u_{t-1}, |g_t| + \epsilon)`. The paper has no
    :math:`\epsilon`; Keras adds it to the denominator.

    Args:
        learning_rate: a number, or a schedule of the step, counted from 0.
        b1: decay of the first moment.
        b2: decay of the infinity norm.
        eps: added to the modulus of the gradient.
        bias_correction: whether the first moment is divided by :math:`1 - \beta_1^t`.
        eps_placement: ``"in the maximum"``, or ``"outside"``, in the denominator.

    Example:
        >>> import numpy as np
        >>> adamax(0.1)(np.array([2.0, -3.0]), np.zeros(2), None, 0)[0].round(6)
        array([-0.1,  0.1])
    """
    return _adamax(learning_rate, b1, b2, eps, bias_correction, eps_placement)


@rule(
    "Kingma & Ba (2015), Adam, arXiv:1412.6980, Algorithm 2, with the weight decay of "
    "Loshchilov & Hutter (2019), arXiv:1711.05101",
    ADAMAX | decays("times learning rate"),
)
def adamaxw(
    learning_rate: Rate,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    weight_decay: Rate = 1e-4,
    mask: Any = None,
    *,
    bias_correction: bool = True,
    eps_placement: EpsInMax = "in the maximum",
    decay: Decay = "times learning rate",
) -> Form:
    r"""``adamax`` minus :math:`\alpha \lambda \theta_{t-1}`.

    Args:
        learning_rate: a number, or a schedule of the step, counted from 0.
        b1: decay of the first moment.
        b2: decay of the infinity norm.
        eps: added to the modulus of the gradient.
        weight_decay: :math:`\lambda`, or a schedule of it.
        mask: which leaves decay, see ``adamw``.
        bias_correction: whether the first moment is divided by :math:`1 - \beta_1^t`.
        eps_placement: see ``adamax``.
        decay: see ``adamw``; torch's ``Adamax`` has it in the gradient.

    Example:
        >>> import numpy as np
        >>> step = adamaxw(0.1, weight_decay=0.5)
        >>> step(np.zeros(2), np.array([1.0, 2.0]), None, 0)[0]
        array([-0.05, -0.1 ])
    """
    plain = _adamax(learning_rate, b1, b2, eps, bias_correction, eps_placement)
    return decayed(plain, learning_rate, weight_decay, decay, mask)


def _adamax(
    learning_rate: Rate,
    b1: float,
    b2: float,
    eps: float,
    bias_correction: bool,
    eps_placement: EpsInMax,
) -> Leafwise:
    inside, outside = (eps, 0.0) if eps_placement == "in the maximum" else (0.0, eps)

    def init(p: Array) -> State:
        return {"mu": np.zeros_like(p), "nu": np.zeros(p.shape)}

    def update(g: Array, p: Array, s: State, t: int) -> tuple[Array, State]:
        del p
        mu = moment(b1, s["mu"], g)
        nu = np.maximum(b2 * s["nu"], np.abs(g) + inside)
        first = corrected(mu, b1, t) if bias_correction else mu
        direction = first / (nu + outside)
        return -rate_at(learning_rate, t) * direction, {"mu": mu, "nu": nu}

    return Elementwise(init, update)


@rule(
    "Liu et al. (2020), On the variance of the adaptive learning rate and beyond, "
    "arXiv:1908.03265",
    {
        "rectified from a length of 4 on, as in the paper": {"threshold": 4.0},
        "with eps added before the bias correction, as in torch": {
            "eps_placement": "before correction"
        },
        "with eps inside the square root": {"eps_placement": "inside"},
        "with Nesterov momentum": {"nesterov": True},
    },
)
def radam(
    learning_rate: Rate,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    eps_root: float = 0.0,
    threshold: float = 5.0,
    *,
    nesterov: bool = False,
    eps_placement: EpsPlacement = "outside",
) -> Leafwise:
    r"""Rectified Adam: :math:`-\alpha r_t \hat m_t / (\sqrt{\hat v_t} + \epsilon)`.

    Where the length :math:`\rho_t` is below the threshold, :math:`-\alpha \hat m_t`.

    .. math::
        \rho_\infty = \frac{2}{1 - \beta_2} - 1, \quad
        \rho_t = \rho_\infty - \frac{2 t \beta_2^t}{1 - \beta_2^t}, \quad
        r_t^2 = \frac{(\rho_t - 4)(\rho_t - 2) \rho_\infty}
                     {(\rho_\infty - 4)(\rho_\infty - 2) \rho_t}

    Args:
        learning_rate: a number, or a schedule of the step, counted from 0.
        b1: decay of the first moment.
        b2: decay of the second moment.
        eps: added to the denominator.
        eps_root: added inside the square root.
        threshold: least length that is rectified; the paper rectifies above 4.
        nesterov: whether the first moment looks ahead.
        eps_placement: see ``adam``; torch has it ``"before correction"``.

    Example:
        >>> import numpy as np
        >>> radam(0.1)(np.array([2.0, -3.0]), np.zeros(2), None, 0)[0].round(6)
        array([-0.2,  0.3])
    """
    longest = 2.0 / (1.0 - b2) - 1.0

    def init(p: Array) -> State:
        return {"mu": np.zeros_like(p), "nu": np.zeros(p.shape)}

    def update(g: Array, p: Array, s: State, t: int) -> tuple[Array, State]:
        del p
        mu = moment(b1, s["mu"], g)
        nu = moment(b2, s["nu"], np.abs(g) ** 2)
        length = longest - 2.0 * t * b2**t / (1.0 - b2**t)
        first = ahead(mu, g, b1, t, True) if nesterov else corrected(mu, b1, t)
        direction = first
        if length >= threshold:
            rectified = (length - 4.0) * (length - 2.0) * longest
            rectified /= (longest - 4.0) * (longest - 2.0) * length
            direction = np.sqrt(rectified) * normalized(
                first, nu, 1.0 - b2**t, eps, eps_root, eps_placement
            )
        return -rate_at(learning_rate, t) * direction, {"mu": mu, "nu": nu}

    return Elementwise(init, update)
