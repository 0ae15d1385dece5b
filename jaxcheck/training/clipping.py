"""Whether an optimizer begins by clipping its gradient, and at which norm."""

from __future__ import annotations

from typing import Any

from jaxcheck.updates.stages import made_by, stages_of


def clip_of(tx: Any) -> Any:
    """The largest norm that ``tx`` lets through; None if it is not known to clip.

    It is read from ``optax.clip_by_global_norm``, alone or first in a chain.

    Example:
        >>> import optax
        >>> clip_of(optax.chain(optax.clip_by_global_norm(2.0), optax.sgd(0.1)))
        2.0
        >>> clip_of(optax.sgd(0.1)) is None
        True
    """
    if tx is None:
        return None
    first = next((stage.tx for stage in stages_of(tx)), tx)
    name, settings = made_by(first.update)
    return settings.get("max_norm") if name == "clip_by_global_norm" else None
