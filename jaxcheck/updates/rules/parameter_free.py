"""Rules without a learning rate to tune: distances over gradients, and coin betting."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np

from jaxcheck.updates.rules.decay import (
    Decay,
    decayed,
    decayed_in_gradient,
    decays,
)
from jaxcheck.updates.rules.leaves import dot, each, norm
from jaxcheck.updates.rules.rule import (
    Array,
    Elementwise,
    Form,
    Rate,
    State,
    Treewise,
    rate_at,
    rule,
)


@rule(
    "Ivgi, Hinder & Carmon (2023), DoG is SGD's best friend, arXiv:2302.12022",
    {
        "with the gradient of this step left out of the sum": {"late": True},
        "with eps outside the square root": {"eps_placement": "outside"},
        "without weight decay": {"weight_decay": None},
    },
)
def dog(
    learning_rate: Rate = 1.0,
    init_step: tuple[Literal["distance", "learning_rate", "heuristic"], float] = (
        "heuristic",
        1e-6,
    ),
    eps: float = 1e-8,
    weight_decay: float | None = None,
    mask: Any = None,
    *,
    late: bool = False,
    eps_placement: Literal["inside", "outside"] = "inside",
) -> Form:
    r"""Distance over gradients: :math:`-\bar r_t g_t / \sqrt{G_t + \epsilon}`.

    :math:`\bar r_t` is the largest distance from the first parameters so far, and
    :math:`G_t = \sum_{s \le t} \|g_s\|^2`, of all leaves together.

    Args:
        learning_rate: a factor, or a schedule of it.
        init_step: ``("distance", r)`` for :math:`\bar r_1 \ge r`; ``("heuristic", a)``
            for :math:`a (1 + \|\theta_0\|)`; ``("learning_rate", c)`` for a first
            update of :math:`-c g_1`.
        eps: added to the sum.
        weight_decay: :math:`\lambda`, added to the gradient; None for none.
        mask: which leaves decay, see ``adamw``.
        late: whether the sum goes to the step before.
        eps_placement: ``"inside"`` of the root, or ``"outside"``.

    Example:
        >>> import numpy as np
        >>> step = dog(init_step=("distance", 0.5))
        >>> step(np.array([3.0, -4.0]), np.zeros(2), None, 0)[0].round(6)
        array([-0.3,  0.4])
    """
    kind, value = init_step

    def init(p: list[Array]) -> State:
        radius = {
            "distance": value,
            "heuristic": value * (1.0 + norm(p)),
            "learning_rate": 0.0,
        }[kind]
        return {"init_params": p, "max_dist": radius, "sum_sq_norm_grads": 0.0}

    def update(
        g: list[Array], p: list[Array], s: State, t: int, **_: Any
    ) -> tuple[list[Array], State]:
        distance = norm(each(np.subtract, s["init_params"], p))
        radius = np.maximum(s["max_dist"], distance)
        total = s["sum_sq_norm_grads"] + dot(g, g)
        below = s["sum_sq_norm_grads"] if late and t > 1 else total
        rate = radius / np.sqrt(below + eps)
        if eps_placement == "outside":
            rate = radius / (np.sqrt(below) + eps)
        if kind == "learning_rate" and t == 1:
            rate = value
        state = {"max_dist": radius, "sum_sq_norm_grads": total}
        return [-rate_at(learning_rate, t) * rate * x for x in g], s | state

    return decayed_in_gradient(Treewise(init, update), weight_decay, mask)


@rule(
    "Khaled, Mishchenko & Jin (2023), DoWG unleashed, arXiv:2305.16284",
    {
        "with eps inside the square root": {"eps_placement": "inside"},
        "without weight decay": {"weight_decay": None},
    },
)
def dowg(
    learning_rate: Rate = 1.0,
    init_estim_sq_dist: float | None = None,
    eps: float = 1e-4,
    weight_decay: float | None = None,
    mask: Any = None,
    *,
    eps_placement: Literal["inside", "outside"] = "outside",
) -> Form:
    r"""Distance over weighted gradients.

    The update is :math:`-\bar r_t^2 g_t / (\sqrt{v_t} + \epsilon)`; :math:`\bar r_t` is
    the largest distance from the first parameters so far, and :math:`v_t = v_{t-1} +
    \bar r_t^2 \|g_t\|^2`, of all leaves together.

    Args:
        learning_rate: a factor, or a schedule of it.
        init_estim_sq_dist: least :math:`\bar r^2`; None for ``eps``.
        eps: added to the denominator.
        weight_decay: :math:`\lambda`, added to the gradient; None for none.
        mask: which leaves decay, see ``adamw``.
        eps_placement: ``"outside"`` of the root, or ``"inside"``.

    Example:
        >>> import numpy as np
        >>> step = dowg(init_estim_sq_dist=0.25, eps=0.0)
        >>> step(np.array([3.0, -4.0]), np.zeros(2), None, 0)[0].round(6)
        array([-0.3,  0.4])
    """

    def init(p: list[Array]) -> State:
        square = eps if init_estim_sq_dist is None else init_estim_sq_dist
        own = {"estim_sq_dist": square, "weighted_sq_norm_grads": 0.0}
        return {"init_params": p, **own}

    def update(
        g: list[Array], p: list[Array], s: State, t: int, **_: Any
    ) -> tuple[list[Array], State]:
        moved = each(np.subtract, s["init_params"], p)
        square = np.maximum(s["estim_sq_dist"], dot(moved, moved))
        total = s["weighted_sq_norm_grads"] + square * dot(g, g)
        rate = square / (np.sqrt(total) + eps)
        if eps_placement == "inside":
            rate = square / np.sqrt(total + eps)
        state = {"estim_sq_dist": square, "weighted_sq_norm_grads": total}
        return [-rate_at(learning_rate, t) * rate * x for x in g], s | state

    return decayed_in_gradient(Treewise(init, update), weight_decay, mask)


@rule(
    "Orabona & Tommasi (2017), Training deep networks without learning rates through "
    "coin betting, arXiv:1705.07795, Algorithm 2",
    {
        "with a reward that may be negative": {"floor": False},
        "with the bet of the COCOB without alpha": {"alpha": 0.0},
    }
    | decays("in the gradient"),
)
def cocob(
    learning_rate: Rate = 1.0,
    alpha: float = 100.0,
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    mask: Any = None,
    *,
    floor: bool = True,
    decay: Decay = "in the gradient",
) -> Form:
    r"""Coin betting, each coordinate for itself.

    Parameters become :math:`\theta_0 + \frac{C_t}{L_t \max(G_t + L_t, \alpha L_t)}
    (L_t + R_t)`, with the largest gradient :math:`L_t`, sums :math:`G_t` of moduli and
    :math:`C_t` of negative gradients, and the reward :math:`R_t = (R_{t-1} - g_t
    (\theta - \theta_0))_+`.

    Args:
        learning_rate: a factor of the gradient, or a schedule of it.
        alpha: how small the first bets are.
        eps: the largest gradient before the first.
        weight_decay: :math:`\lambda`.
        mask: which leaves decay, see ``adamw``.
        floor: whether the reward is at least 0.
        decay: see ``adamw``.

    Example:
        >>> import numpy as np
        >>> step = cocob(alpha=4.0)
        >>> step(np.array([3.0, -4.0]), np.ones(2), None, 0)[0]
        array([-0.25,  0.25])
    """

    def init(p: Array) -> State:
        zeros = np.zeros_like(p)
        return {
            "init_particles": p,
            "cumulative_gradients": zeros,
            "scale": np.full_like(p, eps),
            "subgradients": zeros,
            "reward": zeros,
        }

    def update(g: Array, p: Array, s: State, t: int) -> tuple[Array, State]:
        g = rate_at(learning_rate, t) * g
        start = s["init_particles"]
        largest = np.maximum(s["scale"], np.abs(g))
        moduli = s["subgradients"] + np.abs(g)
        reward = s["reward"] - g * (p - start)
        if floor:
            reward = np.maximum(reward, 0.0)
        total = s["cumulative_gradients"] - g
        bet = total / (largest * np.maximum(moduli + largest, alpha * largest))
        state = {
            "init_particles": start,
            "cumulative_gradients": total,
            "scale": largest,
            "subgradients": moduli,
            "reward": reward,
        }
        return start + bet * (largest + reward) - p, state

    plain = Elementwise(init, update)
    return decayed(plain, learning_rate, weight_decay, decay, mask)
