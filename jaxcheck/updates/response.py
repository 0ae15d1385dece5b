"""What a random transformation does, less its noise."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp


class Response:
    """A transformation less its noise, and less all that zeros give."""

    def __init__(self, tx: Any) -> None:
        self._tx = tx

    def init(self, params: Any) -> Any:
        """Two states: with the gradient, and with zeros."""
        return self._tx.init(params), self._tx.init(params)

    def update(self, gradient: Any, state: Any, params: Any, **extra: Any) -> Any:
        """The difference of two updates with the same noise."""
        zeros = jax.tree.map(jnp.zeros_like, (gradient, params))
        one, first = self._tx.update(gradient, state[0], params, **extra)
        other, second = self._tx.update(zeros[0], state[1], zeros[1], **extra)
        return jax.tree.map(jnp.subtract, one, other), (first, second)
