"""Transformations that are chained with a rule, and the chain."""

from __future__ import annotations

from typing import Any

import numpy as np

from jaxcheck.updates.rules.decay import weights_added
from jaxcheck.updates.rules.leaves import norm
from jaxcheck.updates.rules.moments import corrected, moment
from jaxcheck.updates.rules.rule import (
    Array,
    Elementwise,
    Form,
    Leafwise,
    Rate,
    Rule,
    State,
    Treewise,
    of_all_leaves,
    rate_at,
    rule,
)


@rule("optax.chain")
def chain(*rules: Rule) -> Form:
    """Rules one after the other, each given the updates of the one before.

    Names of the state are those of the stages after their number: ``"1.mu"``.

    Args:
        *rules: the stages.

    Example:
        >>> import numpy as np
        >>> step = chain(clip(1.0), trace(0.9), scale_by_learning_rate(0.1))
        >>> step(np.array([3.0, -0.5]), np.zeros(2), None, 0)
        (array([-0.1 ,  0.05]), {'1.trace': array([ 1. , -0.5])})
    """

    def form(params: Any) -> Treewise:
        stages = [of_all_leaves(stage.form, params) for stage in rules]

        def init(p: list[Array]) -> State:
            state: State = {}
            for number, stage in enumerate(stages):
                state |= prefixed(f"{number}.", stage.init(p))
            return state

        def update(
            g: list[Array], p: list[Array], s: State, t: int, **extra: Any
        ) -> tuple[list[Array], State]:
            state: State = {}
            for number, stage in enumerate(stages):
                prefix = f"{number}."
                g, after = stage.update(g, p, unprefixed(prefix, s), t, **extra)
                state |= prefixed(prefix, after)
            return g, state

        return Treewise(init, update)

    return form


def prefixed(prefix: str, state: State) -> State:
    """A state as part of a larger one."""
    return {prefix + name: value for name, value in state.items()}


def unprefixed(prefix: str, state: State) -> State:
    """That part of a state."""
    return {
        name.removeprefix(prefix): value
        for name, value in state.items()
        if name.startswith(prefix)
    }


@rule("optax.clip")
def clip(max_delta: float) -> Leafwise:
    """Each coordinate within ``[-max_delta, max_delta]``.

    Args:
        max_delta: the bound.

    Example:
        >>> import numpy as np
        >>> clip(1.0)(np.array([3.0, -0.5]), np.zeros(2), None, 0)[0]
        array([ 1. , -0.5])
    """
    return _stateless(lambda g, p, t: np.clip(g, -max_delta, max_delta), Elementwise)


@rule(
    "Pascanu, Mikolov & Bengio (2013), On the difficulty of training recurrent neural "
    "networks, arXiv:1211.5063, Algorithm 1",
    {
        "with the norm of each leaf": {"by_leaf": True},
        "divided by the norm plus 1e-6, as in torch": {"eps": 1e-6},
    },
)
def clip_by_global_norm(
    max_norm: float, *, by_leaf: bool = False, eps: float = 0.0
) -> Treewise:
    r"""Updates divided by their norm, times :math:`c`, where the norm is not below it.

    Zeros stay zeros with a bound of 0 as well, where optax 0.2.8 gives NaN
    (https://github.com/google-deepmind/optax/pull/1752).

    Args:
        max_norm: :math:`c`, for the norm of all leaves together.
        by_leaf: whether each leaf has its own norm.
        eps: added to the norm.

    Example:
        >>> import numpy as np
        >>> clip_by_global_norm(1.0)(np.array([3.0, -4.0]), np.zeros(2), None, 0)[0]
        array([ 0.6, -0.8])
    """

    def clipped(g: list[Array]) -> list[Array]:
        size = norm(g) + eps
        if size < max_norm or size == 0:
            return g
        return [x / size * max_norm for x in g]

    def update(
        g: list[Array], p: list[Array], s: State, t: int, **_: Any
    ) -> tuple[list[Array], State]:
        del p, t
        return ([clipped([x])[0] for x in g] if by_leaf else clipped(g)), s

    return Treewise(lambda p: {}, update)


@rule("Shazeer & Stern (2018), Adafactor, arXiv:1804.04235, update clipping")
def clip_by_block_rms(threshold: float) -> Leafwise:
    r"""Each leaf divided by :math:`\max(1, \mathrm{RMS} / d)`.

    Args:
        threshold: :math:`d`.

    Example:
        >>> import numpy as np
        >>> clip_by_block_rms(1.0)(np.array([3.0, -3.0]), np.zeros(2), None, 0)[0]
        array([ 1., -1.])
    """

    def clipped(g: Array, p: Array, t: int) -> Array:
        del p, t
        return g / np.maximum(1.0, np.sqrt(np.mean(np.abs(g) ** 2)) / threshold)

    return _stateless(clipped)


@rule(
    "Brock et al. (2021), High-performance large-scale image recognition without "
    "normalization, arXiv:2102.06171",
    {"with the norm of the whole leaf": {"by_leaf": True}},
)
def adaptive_grad_clip(
    clipping: float,
    eps: float = 1e-3,
    axis: int | tuple[int, ...] | None = None,
    *,
    by_leaf: bool = False,
) -> Leafwise:
    r"""Each unit's norm at most :math:`\lambda \max(\|\theta\|, \epsilon)`.

    A unit is what belongs to one output: a column of a matrix, and all of a vector.

    Args:
        clipping: :math:`\lambda`.
        eps: least norm of parameters.
        axis: the axes of a unit; None for all of vectors, the first of matrices and
            tensors of three axes, and all but the last of larger ones.
        by_leaf: whether a leaf is one unit.

    Example:
        >>> import numpy as np
        >>> step = adaptive_grad_clip(0.5)
        >>> step(np.array([3.0, -4.0]), np.array([0.0, 2.0]), None, 0)[0]
        array([ 0.6, -0.8])
    """

    def unit(x: Array) -> tuple[int, ...]:
        if by_leaf or (axis is None and np.squeeze(x).ndim <= 1):
            return tuple(range(x.ndim))
        if axis is not None:
            return (axis,) if isinstance(axis, int) else axis
        return (0,) if x.ndim <= 3 else tuple(range(x.ndim - 1))

    def clipped(g: Array, p: Array, t: int) -> Array:
        del t
        size, bound = (
            np.sqrt(np.sum(np.abs(x) ** 2, axis=unit(x), keepdims=True)) for x in (g, p)
        )
        bound = clipping * np.maximum(bound, eps)
        return np.where(size < bound, g, g * (bound / np.maximum(size, 1e-6)))

    return _stateless(clipped)


@rule("optax.add_decayed_weights")
def add_decayed_weights(weight_decay: Rate = 0.0, mask: Any = None) -> Form:
    r"""Add :math:`\lambda \theta`.

    Args:
        weight_decay: :math:`\lambda`, or a schedule of it.
        mask: which leaves decay, see ``adamw``.

    Example:
        >>> import numpy as np
        >>> add_decayed_weights(0.5)(np.zeros(2), np.array([1.0, 2.0]), None, 0)[0]
        array([0.5, 1. ])
    """
    return weights_added(weight_decay, mask)


@rule("optax.scale")
def scale(step_size: float) -> Leafwise:
    """Multiply by a number.

    Args:
        step_size: the number.

    Example:
        >>> import numpy as np
        >>> scale(-0.5)(np.array([1.0, -2.0]), np.zeros(2), None, 0)[0]
        array([-0.5,  1. ])
    """
    return _stateless(lambda g, p, t: step_size * g, Elementwise)


@rule("optax.scale_by_learning_rate")
def scale_by_learning_rate(
    learning_rate: Rate | None = None, *, flip_sign: bool = True
) -> Leafwise:
    r"""Multiply by :math:`-\alpha`.

    Args:
        learning_rate: :math:`\alpha`, or a schedule of it; None for no change at all,
            as optax has it.
        flip_sign: whether there is a minus sign.

    Example:
        >>> import numpy as np
        >>> scale_by_learning_rate(0.5)(np.array([1.0, -2.0]), np.zeros(2), None, 0)[0]
        array([-0.5,  1. ])
    """
    if learning_rate is None:
        return _stateless(lambda g, p, t: g, Elementwise)
    factor = -1.0 if flip_sign else 1.0
    return _stateless(
        lambda g, p, t: factor * rate_at(learning_rate, t) * g, Elementwise
    )


@rule("optax.trace", {"with Nesterov momentum": {"nesterov": True}})
def trace(decay: float, nesterov: bool = False) -> Leafwise:
    r"""Momentum :math:`b_t = \mu b_{t-1} + g_t`.

    Args:
        decay: :math:`\mu`.
        nesterov: whether the result is :math:`g_t + \mu b_t`.

    Example:
        >>> import numpy as np
        >>> trace(0.5, nesterov=True)(np.array([2.0]), np.zeros(1), None, 0)
        (array([3.]), {'trace': array([2.])})
    """

    def update(g: Array, p: Array, s: State, t: int) -> tuple[Array, State]:
        del p, t
        total = g + decay * s["trace"]
        return (g + decay * total if nesterov else total), {"trace": total}

    return Elementwise(lambda p: {"trace": np.zeros_like(p)}, update)


@rule("optax.ema", {"without bias correction": {"debias": False}})
def ema(decay: float, debias: bool = True) -> Leafwise:
    r"""The average :math:`m_t = \beta m_{t-1} + (1 - \beta) g_t`.

    Args:
        decay: :math:`\beta`.
        debias: whether the result is :math:`m_t / (1 - \beta^t)`.

    Example:
        >>> import numpy as np
        >>> ema(0.5)(np.array([2.0]), np.zeros(1), None, 0)
        (array([2.]), {'ema': array([1.])})
    """

    def update(g: Array, p: Array, s: State, t: int) -> tuple[Array, State]:
        del p
        average = moment(decay, s["ema"], g)
        return corrected(average, decay, t) if debias else average, {"ema": average}

    return Elementwise(lambda p: {"ema": np.zeros_like(p)}, update)


@rule("optax.normalize_by_update_norm")
def normalize_by_update_norm(scale_factor: float = 1.0, eps: float = 1e-6) -> Treewise:
    r"""Multiply by :math:`s / (\|g\| + \epsilon)`, the norm of all leaves together.

    Args:
        scale_factor: :math:`s`.
        eps: added to the norm.

    Example:
        >>> import numpy as np
        >>> step = normalize_by_update_norm(eps=0.0)
        >>> step(np.array([3.0, -4.0]), np.zeros(2), None, 0)[0]
        array([ 0.6, -0.8])
    """

    def update(
        g: list[Array], p: list[Array], s: State, t: int, **_: Any
    ) -> tuple[list[Array], State]:
        del p, t
        size = (norm(g) + eps) / scale_factor
        return [x / size for x in g], s

    return Treewise(lambda p: {}, update)


def _stateless(fn: Any, kind: type[Leafwise] = Leafwise) -> Leafwise:
    """A function of gradient, parameter and step."""
    return kind(lambda p: {}, lambda g, p, s, t: (fn(g, p, t), s))
