"""Compile programs once: the same program, seen again, is not compiled again.

A checker is called again and again on the same loss (along training, in a test suite),
each time with a new closure that ``jax.jit`` cannot recognize. So every function is
traced afresh, which also notices when it has changed, and compiled only if its program
differs from the last ones.
"""

from __future__ import annotations

import collections
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import jax

from jaxcheck.jaxprs import compat, interpret
from jaxcheck.jaxprs.compat import Program
from jaxcheck.jaxprs.fingerprint import fingerprint

# A check compiles three programs; this remembers about ten checks.
_CAPACITY = 32
_recent: collections.OrderedDict[Hashable, Callable[..., Any]] = (
    collections.OrderedDict()
)


class Compiled:
    """A traced function, ready to run on inputs of the traced shapes.

    Attributes:
        program: its jaxpr.
    """

    def __init__(
        self, fun: Callable[..., Sequence[Any]], inputs: Sequence[Any], *, x64: bool
    ) -> None:
        """Trace ``fun(*inputs)``; ``x64`` holds while tracing, compiling and running."""
        self._x64 = x64
        with compat.x64(x64):
            self.program = compat.make_program(fun, inputs)
        _, self._consts = compat.opened(self.program)
        key = (x64, fingerprint(self.program))
        if key not in _recent:
            _recent[key] = jax.jit(_runner(self.program))
        _recent.move_to_end(key)
        while len(_recent) > _CAPACITY:
            _recent.popitem(last=False)
        self._run = _recent[key]

    def __call__(self, *inputs: Any) -> list[Any]:
        """Run on ``inputs``; returns the outputs as device arrays."""
        with compat.x64(self._x64):
            return self._run(list(self._consts), list(inputs))


def _runner(program: Program) -> Callable[..., Any]:
    bare, _ = compat.opened(program)

    def run(consts: Sequence[Any], inputs: Sequence[Any]) -> list[Any]:
        return interpret.evaluate(bare, inputs, consts)

    return run
