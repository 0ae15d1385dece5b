"""Rules that know something of curvature: L-BFGS and Sophia."""

from __future__ import annotations

from typing import Any, Literal

import jax
import numpy as np

from jaxcheck.updates.rules.decay import weights_added
from jaxcheck.updates.rules.leaves import dot, each, norm
from jaxcheck.updates.rules.moments import corrected, moment
from jaxcheck.updates.rules.rule import (
    Array,
    Form,
    Rate,
    State,
    Treewise,
    of_all_leaves,
    rate_at,
    rule,
)


@rule(
    "Nocedal & Wright (2006), Numerical optimization, Algorithm 7.4",
    {
        "with the identity for the first estimate": {"scale_init_precond": False},
        "with a first step of min(1, 1 / |g|_1), as in torch": {"first_norm": 1},
        "without pairs of little curvature, as in torch": {"least_curvature": 1e-10},
    },
)
def lbfgs(
    learning_rate: Rate | None = None,
    memory_size: int = 10,
    scale_init_precond: bool = True,
    *,
    first_norm: Literal[1, 2] = 2,
    least_curvature: float = 0.0,
) -> Treewise:
    r"""L-BFGS without a line search: :math:`-\alpha H_t g_t` by the two-loop recursion.

    From pairs :math:`s = \theta_t - \theta_{t-1}`, :math:`y = g_t - g_{t-1}`, with
    :math:`\rho = 1 / \langle y, s \rangle` (0 where that is 0), and :math:`\gamma_t =
    \langle y, s \rangle / \|y\|^2` of the last pair; at the first step :math:`\gamma_1
    = \min(1, 1 / \|g_1\|)`. In optax give ``linesearch=None``.

    Args:
        learning_rate: :math:`\alpha`, or a schedule of it; None for 1.
        memory_size: the number of pairs.
        scale_init_precond: whether the recursion begins with :math:`\gamma` I, or I.
        first_norm: of which norm :math:`\gamma_1` is.
        least_curvature: pairs whose :math:`\langle y, s \rangle` is no larger are left
            out, and :math:`\gamma_t` stays as it was, if this is not 0.

    Example:
        >>> import numpy as np
        >>> step, g = lbfgs(), np.array([3.0, -4.0])
        >>> update, state = step(g, np.zeros(2), None, 0)
        >>> update, step(0.5 * g, update, state, 1)[0]
        (array([-0.6,  0.8]), array([-0.6,  0.8]))
    """

    def init(p: list[Array]) -> State:
        zeros = each(np.zeros_like, p)
        memory = [np.zeros((memory_size, *x.shape), x.dtype) for x in p]
        return {
            "params": zeros,
            "updates": zeros,
            "diff_params_memory": memory,
            "diff_updates_memory": memory,
            "weights_memory": np.zeros(memory_size),
            **({"pairs": np.int64(0)} if least_curvature else {}),
        }

    def remembered(s: State, t: int) -> int:
        """The number of pairs so far."""
        return int(s["pairs"]) if least_curvature else t - 1

    def scale(g: list[Array], s: State, t: int) -> Array:
        """The first estimate of the inverse Hessian is this times the identity."""
        if not scale_init_precond:
            return np.float64(1.0)
        if t == 1:
            size = norm(g) if first_norm == 2 else sum(np.sum(np.abs(x)) for x in g)
            return np.minimum(1.0, 1.0 / np.float64(size))
        if remembered(s, t) == 0:
            return np.float64(1.0)
        last = (remembered(s, t) - 1) % memory_size
        y = [memory[last] for memory in s["diff_updates_memory"]]
        moved = [memory[last] for memory in s["diff_params_memory"]]
        square = dot(y, y)
        return dot(y, moved) / square if square > 0 else np.float64(1.0)

    def remember(g: list[Array], p: list[Array], s: State, t: int) -> State:
        if t == 1:
            return s
        moved = each(np.subtract, p, s["params"])
        y = each(np.subtract, g, s["updates"])
        curvature = dot(y, moved)
        if least_curvature:
            if curvature <= least_curvature:
                return s
            s = s | {"pairs": s["pairs"] + 1}
        weight = 1.0 / curvature if curvature != 0 else 0.0
        last = (remembered(s, t) - 1) % memory_size
        return s | {
            "diff_params_memory": each(
                lambda memory, x: _put(memory, last, x), s["diff_params_memory"], moved
            ),
            "diff_updates_memory": each(
                lambda memory, x: _put(memory, last, x), s["diff_updates_memory"], y
            ),
            "weights_memory": _put(s["weights_memory"], last, weight),
        }

    def update(
        g: list[Array], p: list[Array], s: State, t: int, **_: Any
    ) -> tuple[list[Array], State]:
        s = remember(g, p, s, t)
        count = remembered(s, t)
        newest_first = [
            (count - 1 - k) % memory_size for k in range(min(count, memory_size))
        ]
        pairs = [
            (
                [memory[k] for memory in s["diff_params_memory"]],
                [memory[k] for memory in s["diff_updates_memory"]],
                s["weights_memory"][k],
            )
            for k in newest_first
        ]
        q, alphas = g, []
        for moved, y, rho in pairs:
            alpha = rho * dot(moved, q)
            q = each(lambda a, b, alpha=alpha: a - alpha * b, q, y)
            alphas.append(alpha)
        factor = scale(g, s, t)
        q = [factor * x for x in q]
        for (moved, y, rho), alpha in zip(pairs[::-1], alphas[::-1], strict=True):
            beta = rho * dot(y, q)
            q = each(lambda a, b, c=alpha - beta: a + c * b, q, moved)
        rate = 1.0 if learning_rate is None else rate_at(learning_rate, t)
        return [-rate * x for x in q], s | {"params": p, "updates": g}

    return Treewise(init, update)


def _put(memory: Array, k: int, value: Array) -> Array:
    memory = memory.copy()
    memory[k] = value
    return memory


@rule(
    "Liu et al. (2023), Sophia, arXiv:2305.14342, Algorithm 3, with bias correction",
    {
        "with the Hessian refreshed before the step, as in the paper": {
            "refresh": "before the step"
        },
        "without bias correction, as in the paper": {"bias_correction": False},
        "without clipping": {"clip_threshold": None},
        "without weight decay": {"weight_decay": 0.0},
    },
)
def sophia(
    learning_rate: Rate,
    b1: float = 0.965,
    b2: float = 0.99,
    eps: float = 1e-8,
    weight_decay: float = 1e-4,
    weight_decay_mask: Any = None,
    gamma: float = 0.01,
    clip_threshold: float | None = 1.0,
    update_interval: int = 10,
    *,
    bias_correction: bool = True,
    refresh: Literal["after the step", "before the step"] = "after the step",
) -> Form:
    r"""Sophia: a clipped step over the diagonal of the Hessian.

    The update is :math:`-\alpha (\operatorname{clip}(\hat m_t / \max(\gamma h,
    \epsilon), \pm \rho) + \lambda \theta)`. h is an average of estimates of the
    diagonal of the Hessian, which are random: they are given as ``hessian``, a pytree
    like the parameters, at each step whose count from 0 is a multiple of the interval.

    Args:
        learning_rate: a number, or a schedule of the step, counted from 0.
        b1: decay of the first moment.
        b2: decay of h.
        eps: least denominator.
        weight_decay: :math:`\lambda`.
        weight_decay_mask: which leaves decay, see ``adamw``.
        gamma: :math:`\gamma`.
        clip_threshold: :math:`\rho`; None for no clipping.
        update_interval: steps from one estimate to the next.
        bias_correction: whether the first moment is divided by :math:`1 - \beta_1^t`.
        refresh: whether an estimate counts from the next step on, as in optax and
            Levanter, or in its own, as in the paper.

    Example:
        >>> import numpy as np
        >>> step = sophia(0.1, weight_decay=0.0)
        >>> h = np.ones(2)
        >>> step(np.array([3.0, -4.0]), np.zeros(2), None, 0, hessian=h)[0]
        array([-0.1,  0.1])
    """

    def form(params: Any) -> Treewise:
        decay = of_all_leaves(weights_added(weight_decay, weight_decay_mask), params)

        def init(p: list[Array]) -> State:
            return {"mu": each(np.zeros_like, p), "nu": each(np.zeros_like, p)}

        def direction(m: Array, h: Array) -> Array:
            u = m / np.maximum(gamma * h, eps)
            if clip_threshold is None:
                return u
            return np.clip(u, -clip_threshold, clip_threshold)

        def update(
            g: list[Array], p: list[Array], s: State, t: int, *, hessian: Any, **_: Any
        ) -> tuple[list[Array], State]:
            mu = each(lambda m, x: moment(b1, m, x), s["mu"], g)
            nu = s["nu"]
            if (t - 1) % update_interval == 0:
                nu = each(lambda h, x: moment(b2, h, x), nu, jax.tree.leaves(hessian))
            first = [corrected(m, b1, t) for m in mu] if bias_correction else mu
            u = each(direction, first, nu if refresh == "before the step" else s["nu"])
            u, _state = decay.update(u, p, {}, t)
            rate = rate_at(learning_rate, t)
            return [-rate * x for x in u], {"mu": mu, "nu": nu}

        return Treewise(init, update)

    return form
