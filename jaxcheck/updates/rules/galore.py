"""GaLore: Adam in a subspace of the gradient."""

from __future__ import annotations

from typing import Any

import numpy as np

from jaxcheck.updates.rules.decay import Decay, decayed, decays
from jaxcheck.updates.rules.moments import adam_moments
from jaxcheck.updates.rules.rule import (
    Array,
    Form,
    Leafwise,
    Rate,
    State,
    rate_at,
    rule,
)


@rule(
    "Zhao et al. (2024), GaLore, arXiv:2403.03507",
    {"with a projector of each step": {"update_proj_gap": 1}}
    | decays("times learning rate"),
)
def galore(
    learning_rate: Rate,
    rank: int = 128,
    update_proj_gap: int = 200,
    scale: float = 1.0,
    weight_decay: float = 0.0,
    mask: Any = None,
    *,
    decay: Decay = "times learning rate",
) -> Form:
    r"""GaLore: :math:`-\alpha s P \, \mathrm{Adam}(P^T G)` for matrices, else Adam.

    P has the first r left singular vectors of the gradient, or right ones (and stands
    on the right) where there are more columns than rows; it is taken anew at each step
    whose count from 0 is a multiple of the gap. Adam is the one of optax's defaults,
    without a learning rate; other base optimizers and layouts are not written down
    here.

    optax takes singular vectors in float32, under x64 as well. Their signs are
    arbitrary; updates do not depend on them until the projector is taken anew, when the
    moments carry over from old vectors to new ones. From then on, and with equal
    singular values, the update is arbitrary too.

    Args:
        learning_rate: a number, or a schedule of the step, counted from 0.
        rank: r, or the length of the shorter axis if that is less.
        update_proj_gap: steps from one projector to the next.
        scale: s, for matrices only.
        weight_decay: :math:`\lambda`.
        mask: which leaves decay, see ``adamw``.
        decay: see ``adamw``.

    Example:
        >>> import numpy as np
        >>> step = galore(0.1, rank=1)
        >>> step(np.diag([2.0, -3.0]), np.zeros((2, 2)), None, 0)[0].round(6) + 0.0
        array([[0. , 0. ],
               [0. , 0.1]])
    """
    adam = adam_moments(-1.0, 0.9, 0.999, 1e-8, 0.0, False, True, "outside")

    def projected(g: Array, projector: Array) -> Array:
        return projector.T @ g if g.shape[0] >= g.shape[1] else g @ projector

    def init(p: Array) -> State:
        if p.ndim != 2:
            return {"projector": np.zeros((0, 0)), **adam.init(p)}
        projector = np.zeros((max(p.shape), min(rank, *p.shape)))
        return {"projector": projector, **adam.init(projected(p, projector))}

    def update(g: Array, p: Array, s: State, t: int) -> tuple[Array, State]:
        rate, projector = rate_at(learning_rate, t), s["projector"]
        if g.ndim != 2:
            u, state = adam.update(g, p, s, t)
            return -rate * u, {"projector": projector, **state}
        left = g.shape[0] >= g.shape[1]
        if (t - 1) % update_proj_gap == 0:
            projector = _singular(g if left else g.T)[:, : min(rank, *g.shape)]
        u, state = adam.update(projected(g, projector), p, s, t)
        u = projector @ u if left else u @ projector.T
        return -rate * scale * u, {"projector": projector, **state}

    plain = Leafwise(init, update)
    return decayed(plain, learning_rate, weight_decay, decay, mask)


def _singular(g: Array) -> Array:
    """Left singular vectors. LAPACK may not come back from what is not finite."""
    if not np.isfinite(g).all():
        return np.full_like(g, np.nan)
    return np.linalg.svd(g, full_matrices=False)[0]
