"""Weight decay, and the places in a rule where it is found."""

from __future__ import annotations

from typing import Any, Literal

from jaxcheck.updates.rules.rule import (
    Array,
    Elementwise,
    Form,
    Leafwise,
    Masked,
    Rate,
    State,
    Treewise,
    of_all_leaves,
    rate_at,
)

Decay = Literal[
    "times learning rate", "alone", "in the gradient", "of the new params", "proximal"
]

_WORDS: dict[Decay, str] = {
    "times learning rate": "with weight decay multiplied by the learning rate",
    "alone": "with weight decay not multiplied by the learning rate",
    "in the gradient": "with weight decay added to the gradient (L2)",
    "of the new params": "with weight decay of the parameters after the update",
    "proximal": "with proximal weight decay",
}


def decays(default: Decay) -> dict[str, dict[str, Any]]:
    """Variants of a rule whose weight decay is the default one."""
    others = {text: {"decay": kind} for kind, text in _WORDS.items() if kind != default}
    return {**others, "without weight decay": {"weight_decay": 0.0}}


def decayed(
    plain: Leafwise,
    learning_rate: Rate,
    weight_decay: Rate,
    decay: Decay,
    mask: Any = None,
) -> Leafwise | Masked:
    r"""A rule with weight decay beside it, or in its gradient.

    With update :math:`u` of the plain rule, learning rate :math:`\alpha` and decay
    :math:`\lambda`: :math:`u - \alpha \lambda \theta` if it is ``"times learning
    rate"``, :math:`u - \lambda \theta` ``"alone"``, :math:`u - \alpha \lambda (\theta +
    u)` ``"of the new params"``, :math:`(\theta + u) / (1 + \alpha \lambda) - \theta` if
    ``"proximal"``; ``"in the gradient"``, the plain rule of :math:`g + \lambda \theta`.
    """

    def update(g: Array, p: Array, s: State, t: int) -> tuple[Array, State]:
        rate, strength = rate_at(learning_rate, t), rate_at(weight_decay, t)
        if decay == "in the gradient":
            return plain.update(g + strength * p, p, s, t)
        u, s = plain.update(g, p, s, t)
        if decay == "of the new params":
            return u - rate * strength * (p + u), s
        if decay == "proximal":
            return (u - rate * strength * p) / (1.0 + rate * strength), s
        return u - (strength if decay == "alone" else rate * strength) * p, s

    form = type(plain)(plain.init, update)
    return form if mask is None else Masked(mask, form, plain)


def weights_added(weight_decay: Rate, mask: Any = None) -> Leafwise | Masked:
    r"""Updates plus :math:`\lambda \theta`, where the mask is True."""

    def added(g: Array, p: Array, s: State, t: int) -> tuple[Array, State]:
        return g + rate_at(weight_decay, t) * p, s

    def kept(g: Array, p: Array, s: State, t: int) -> tuple[Array, State]:
        del p, t
        return g, s

    form = Elementwise(_no_state, added)
    return form if mask is None else Masked(mask, form, Elementwise(_no_state, kept))


def decayed_in_gradient(
    tree: Treewise, weight_decay: float | None, mask: Any = None
) -> Form:
    """A rule for all leaves with weight decay in its gradient."""
    if weight_decay is None:
        return tree

    def form(params: Any) -> Treewise:
        decay = of_all_leaves(weights_added(weight_decay, mask), params)

        def update(
            g: list[Array], p: list[Array], s: State, t: int, **extra: Any
        ) -> tuple[list[Array], State]:
            g, _ = decay.update(g, p, {}, t)
            return tree.update(g, p, s, t, **extra)

        return Treewise(tree.init, update)

    return form


def _no_state(p: Array) -> State:
    del p
    return {}
