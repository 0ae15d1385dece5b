"""Rules around a rule: accumulation of gradients, lookahead, Mechanic."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np

from jaxcheck.updates.rules.leaves import all_finite, dot, each, norm
from jaxcheck.updates.rules.rule import (
    Array,
    Form,
    Rule,
    State,
    Treewise,
    of_all_leaves,
    rule,
)
from jaxcheck.updates.rules.transformations import prefixed, unprefixed


@rule(
    "optax.MultiSteps",
    {
        "with the sum of gradients": {"mean": False},
        "with the learning rate of the step, not of the update": {"count": "steps"},
    },
)
def multi_steps(
    inner: Rule,
    every: int,
    *,
    mean: bool = True,
    skip_not_finite: bool = False,
    max_squared_norm: float | None = None,
    count: Literal["updates", "steps"] = "updates",
    skipped_count: bool = False,
) -> Form:
    """Every k-th step the rule's update of the mean of k gradients, else none.

    The inner rule counts its own updates: a schedule of it moves on once in k steps.
    Its state is named ``"inner_opt_state.mu"``. optax accumulates in float32 unless it
    is told otherwise. A step that is skipped is as if it had not been.

    Args:
        inner: the rule.
        every: k.
        mean: whether gradients are averaged, or summed.
        skip_not_finite: whether steps are skipped whose gradient is not finite.
        max_squared_norm: what the squared norm of a gradient must be below for its
            step not to be skipped; None for any.
        count: what the inner rule's schedules count.
        skipped_count: whether a step that is skipped is one of the k.

    Example:
        >>> import numpy as np
        >>> from jaxcheck.updates.rules.momentum import sgd
        >>> step, p = multi_steps(sgd(0.5), 2), np.zeros(1)
        >>> first, state = step(np.array([2.0]), p, None, 0)
        >>> first, step(np.array([4.0]), p, state, 1)[0]
        (array([0.]), array([-1.5]))
    """
    prefix = "inner_opt_state."

    def skips(g: list[Array]) -> bool:
        if skip_not_finite and not all_finite(g):
            return True
        # NaN is not below the bound
        return max_squared_norm is not None and not dot(g, g) < max_squared_norm

    def form(params: Any) -> Treewise:
        tree = of_all_leaves(inner.form, params)

        def init(p: list[Array]) -> State:
            counts = {"mini_step": 0, "gradient_step": 0}
            state = counts | {"acc_grads": each(np.zeros_like, p)}
            return state | prefixed(prefix, tree.init(p))

        def update(
            g: list[Array], p: list[Array], s: State, t: int, **extra: Any
        ) -> tuple[list[Array], State]:
            skipped = skips(g)
            if skipped and not skipped_count:
                return each(np.zeros_like, p), s
            position, total = s["mini_step"], s["acc_grads"]
            if not skipped and mean:
                total = each(lambda a, x: a + (x - a) / (position + 1), total, g)
            elif not skipped:
                total = each(np.add, total, g)
            if position < every - 1:
                after = s | {"mini_step": position + 1, "acc_grads": total}
                return each(np.zeros_like, p), after
            done = s["gradient_step"] + 1
            inner_t = done if count == "updates" else t
            u, after = tree.update(total, p, unprefixed(prefix, s), inner_t, **extra)
            counts = {"mini_step": 0, "gradient_step": done}
            state = counts | {"acc_grads": each(np.zeros_like, p)}
            return u, state | prefixed(prefix, after)

        return Treewise(init, update)

    return form


@rule(
    "Zhang et al. (2019), Lookahead optimizer: k steps forward, 1 step back, "
    "arXiv:1907.08610, Algorithm 1",
    {"with the state of the fast rule reset": {"reset_state": True}},
)
def lookahead(
    fast_optimizer: Rule,
    sync_period: int,
    slow_step_size: float,
    reset_state: bool = False,
) -> Form:
    r"""Fast steps, and after k of them a slow one, :math:`\alpha (\theta - \phi)`.

    Parameters are a pair of pytrees as in ``optax.LookaheadParams``: all leaves of the
    fast :math:`\theta`, then all of the slow :math:`\phi`; so are the updates.
    Gradients are those by the fast parameters. Leaves of the state,
    ``"fast_state.mu"``, that belong to slow parameters are None.

    Args:
        fast_optimizer: the rule of the fast parameters.
        sync_period: k.
        slow_step_size: :math:`\alpha`.
        reset_state: whether the fast rule begins anew after a slow step. It goes on
            counting.

    Example:
        >>> import numpy as np
        >>> from jaxcheck.updates.rules.momentum import sgd
        >>> step = lookahead(sgd(1.0), sync_period=1, slow_step_size=0.5)
        >>> step(np.array([2.0]), (np.zeros(1), np.zeros(1)), None, 0)[0]
        (array([-1.]), array([-1.]))
    """
    prefix = "fast_state."

    def form(params: Any) -> Treewise:
        tree = of_all_leaves(fast_optimizer.form, params[0])

        def with_slow(state: State) -> State:
            """A state of the pair: what is by leaf has None for slow leaves."""
            return prefixed(
                prefix,
                {
                    name: value + [None] * len(value)
                    if isinstance(value, list)
                    else value
                    for name, value in state.items()
                },
            )

        def without_slow(state: State) -> State:
            return {
                name: value[: len(value) // 2] if isinstance(value, list) else value
                for name, value in unprefixed(prefix, state).items()
            }

        def init(p: list[Array]) -> State:
            return with_slow(tree.init(p[: len(p) // 2]))

        def update(
            g: list[Array], p: list[Array], s: State, t: int, **extra: Any
        ) -> tuple[list[Array], State]:
            fast, slow = p[: len(p) // 2], p[len(p) // 2 :]
            u, state = tree.update(g, fast, without_slow(s), t, **extra)
            if t % sync_period:
                return u + each(np.zeros_like, slow), with_slow(state)
            ahead = each(lambda f, x, s: f + x - s, fast, u, slow)
            back = each(lambda x, d: x - (1.0 - slow_step_size) * d, u, ahead)
            if reset_state:
                state = tree.init(fast)
            return back + [slow_step_size * d for d in ahead], with_slow(state)

        return Treewise(init, update)

    return form


@rule(
    "Cutkosky, Defazio & Mehta (2023), Mechanic: a learning rate tuner, "
    "arXiv:2306.00144",
    {
        "without weight decay": {"weight_decay": 0.0},
        "without clipping of the inner product": {"clipped": False},
    },
)
def mechanize(
    base_optimizer: Rule,
    weight_decay: float = 1e-2,
    eps: float = 1e-8,
    s_init: float = 1e-6,
    num_betas: int = 6,
    *,
    clipped: bool = True,
) -> Form:
    r"""A rule's steps from the first parameters, times a learnt scale s.

    .. math::
        \Delta_t = \Delta_{t-1} - u_t, \quad
        \theta_t = \theta_0 - \Big(\sum_i s_{t,i}\Big) \Delta_t

    where :math:`u_t` are the updates of the rule and s is won by betting on
    :math:`h_t = \langle g_t + \lambda \|g\| / \|\theta\| \sum s \, \theta,
    \Delta_{t-1} \rangle` with decays :math:`1 - 10^{-i}`.

    Args:
        base_optimizer: the rule.
        weight_decay: :math:`\lambda`.
        eps: added to what divides.
        s_init: the scale before the first step.
        num_betas: number of decays.
        clipped: whether h is clipped by the largest before.

    Example:
        >>> import numpy as np
        >>> from jaxcheck.updates.rules.momentum import sgd
        >>> step = mechanize(sgd(1.0), s_init=0.5)
        >>> step(np.array([2.0]), np.zeros(1), None, 0)[1]["s"].round(3)
        array([0.083, 0.083, 0.083, 0.083, 0.083, 0.083])
    """
    prefix = "base_optimizer_state."
    betas = 1.0 - 0.1 ** np.arange(1, num_betas + 1)

    def form(params: Any) -> Treewise:
        tree = of_all_leaves(base_optimizer.form, params)

        def init(p: list[Array]) -> State:
            zeros = np.zeros(num_betas)
            state = {"r": zeros, "m": zeros, "v": zeros, "s": zeros + s_init, "x0": p}
            return state | prefixed(prefix, tree.init(p))

        def update(
            g: list[Array], p: list[Array], s: State, t: int, **extra: Any
        ) -> tuple[list[Array], State]:
            u, after = tree.update(g, p, unprefixed(prefix, s), t, **extra)
            x0 = p if t == 1 else s["x0"]
            scale = np.sum(s["s"])
            strength = weight_decay * scale * norm(g) / (norm(p) + eps)
            before = each(lambda x, y: (x - y) / (scale + eps), x0, p)
            h = dot(each(lambda x, y: x + strength * y, g, p), before)
            bound = np.clip(h, -s["m"], s["m"]) if clipped else h
            m = np.maximum(betas * s["m"], abs(h) + eps)
            v = betas**2 * s["v"] + h**2
            r = betas * s["r"] + bound * s["s"]
            wealth = s_init / num_betas * m + np.maximum(0.0, r)
            won = wealth / (np.sqrt(v) + eps)
            total = np.sum(won)
            updates = each(
                lambda x, y, d, u: (x - total * (d - u)) - y, x0, p, before, u
            )
            state = {"r": r, "m": m, "v": v, "s": won, "x0": x0}
            return updates, state | prefixed(prefix, after)

        return Treewise(init, update)

    return form
