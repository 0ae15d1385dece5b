"""Rules for gradients that are not finite: a step is skipped, or NaN counts as zero."""

from __future__ import annotations

from typing import Any

import numpy as np

from jaxcheck.updates.rules.leaves import all_finite, each
from jaxcheck.updates.rules.rule import (
    Array,
    Form,
    Leafwise,
    Rule,
    State,
    Treewise,
    of_all_leaves,
    rule,
)
from jaxcheck.updates.rules.transformations import prefixed, unprefixed


@rule(
    "optax.apply_if_finite",
    {
        "with no step skipped": {"max_consecutive_errors": 0},
        "with the inner state moved on in skipped steps": {"inner_moves": True},
        "with the count of bad steps in a row never reset": {"resets": False},
        "with the count of bad steps in a row reset where one is let through": {
            "restarts": True
        },
    },
)
def apply_if_finite(
    inner: Rule,
    max_consecutive_errors: int,
    *,
    inner_moves: bool = False,
    resets: bool = True,
    restarts: bool = False,
) -> Form:
    """A rule's update if all of the gradient is finite, else none.

    A skipped step leaves the inner state as it is. After ``max_consecutive_errors``
    of them in a row, steps are taken whatever the gradient is, until a finite one.

    Args:
        inner: the rule. Names of its state begin with ``"inner_state."``.
        max_consecutive_errors: how many steps in a row are skipped at most.
        inner_moves: whether the inner state is that after the step that is skipped.
        resets: whether a finite gradient ends the row.
        restarts: whether a step that is let through ends the row, as
            https://github.com/google-deepmind/optax/pull/1746 wants it.

    Example:
        >>> import numpy as np
        >>> from jaxcheck.updates.rules.momentum import sgd
        >>> step = apply_if_finite(sgd(0.5), 1)
        >>> bad, p = np.array([np.nan, 1.0]), np.zeros(2)
        >>> skipped, state = step(bad, p, None, 0)
        >>> skipped, step(bad, p, state, 1)[0]
        (array([0., 0.]), array([ nan, -0.5]))
    """
    prefix = "inner_state."

    def form(params: Any) -> Treewise:
        tree = of_all_leaves(inner.form, params)

        def init(p: list[Array]) -> State:
            counts = {"notfinite_count": 0, "total_notfinite": 0, "_taken": 0}
            return counts | {"last_finite": True} | prefixed(prefix, tree.init(p))

        def update(
            g: list[Array], p: list[Array], s: State, t: int, **extra: Any
        ) -> tuple[list[Array], State]:
            del t
            finite = all_finite(g)
            row = 0 if finite and resets else s["notfinite_count"] + (not finite)
            taken = finite or row > max_consecutive_errors
            u, known = each(np.zeros_like, p), unprefixed(prefix, s)
            if taken or inner_moves:
                moved, known = tree.update(g, p, known, s["_taken"] + 1, **extra)
                u = moved if taken else u
            counts = {
                "notfinite_count": 0 if restarts and taken else row,
                "total_notfinite": s["total_notfinite"] + (not finite),
                "_taken": s["_taken"] + (taken or inner_moves),
                "last_finite": finite,
            }
            return u, counts | prefixed(prefix, known)

        return Treewise(init, update)

    return form


@rule(
    "optax.zero_nans",
    {
        "with zeros in all of a leaf that has NaN": {"by_leaf": True},
        "with zeros for infinity too": {"infinities": True},
    },
)
def zero_nans(*, by_leaf: bool = False, infinities: bool = False) -> Leafwise:
    """Zero where the gradient is NaN; infinity stays.

    Args:
        by_leaf: whether all of a leaf is zero if one element is NaN.
        infinities: whether infinity is zero too.

    Example:
        >>> import numpy as np
        >>> zero_nans()(np.array([np.nan, 2.0]), np.zeros(2), None, 0)
        (array([0., 2.]), {'found_nan': True})
    """

    def update(g: Array, p: Array, s: State, t: int) -> tuple[Array, State]:
        del p, s, t
        bad = ~np.isfinite(g) if infinities else np.isnan(g)
        found = bool(bad.any())
        zeroed = np.full_like(bad, found) if by_leaf else bad
        return np.where(zeroed, 0.0, g), {"found_nan": found}

    return Leafwise(lambda p: {"found_nan": False}, update)
