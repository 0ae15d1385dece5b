"""Compile programs once: the same program, seen again, is not compiled again.

A checker is called again and again on the same loss (along training, in a test suite),
each time with a new closure that ``jax.jit`` cannot recognize. So every function is
traced afresh, which also notices when it has changed, and compiled only if its program
differs from the last ones. Compilation can be started ahead, beside the tracing of the
next program.
"""

from __future__ import annotations

import collections
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import jax
import numpy as np

from jaxcheck.jaxprs import compat, interpret
from jaxcheck.jaxprs.compat import Program
from jaxcheck.jaxprs.fingerprint import Same, fingerprint

# Entries of one check: readings and compiled programs, about seven.
_CAPACITY = 128
# Programs whose captured constants are larger are not kept alive for the next check.
_MOST_CONSTANT_BYTES = 2**20
_recent: collections.OrderedDict[Hashable, Any] = collections.OrderedDict()


def remembered(key: Hashable, make: Callable[[], Any]) -> Any:
    """``make()``, or what it returned for an equal ``key`` not long ago."""
    if key not in _recent:
        _recent[key] = make()
    _recent.move_to_end(key)
    while len(_recent) > _CAPACITY:
        _recent.popitem(last=False)
    return _recent[key]


def identity_of(program: Program) -> Hashable:
    """A key that only this program has, its captured constants included.

    Programs with large constants, or with custom rules (whose functions are new objects
    at each trace), are never found again.
    """
    _, consts = compat.opened(program)
    if sum(getattr(c, "nbytes", 0) for c in consts) > _MOST_CONSTANT_BYTES:
        return object()
    rules = [
        eqn
        for eqn in interpret.equations(program)
        if eqn.primitive.name.startswith("custom_")
    ]
    if any("call_jaxpr" in eqn.params for eqn in rules):
        return object()
    return fingerprint(program), tuple(map(_constant, consts))


def _constant(value: Any) -> Hashable:
    """A captured constant: by content on the host, where every trace has a copy."""
    if isinstance(value, jax.Array) or not hasattr(value, "dtype"):
        return Same(value)
    array = np.asarray(value)
    return array.shape, str(array.dtype), array.tobytes()


class Compiled:
    """A traced function, ready to run on inputs of the traced shapes.

    Attributes:
        program: its jaxpr.
    """

    def __init__(
        self, fun: Callable[..., Sequence[Any]], inputs: Sequence[Any], *, x64: bool
    ) -> None:
        """Trace ``fun(*inputs)``; ``x64`` holds for tracing, compiling and running."""
        self._x64 = x64
        with compat.x64(x64):
            self.program = compat.make_program(fun, inputs)
        _, self._consts = compat.opened(self.program)
        key = (x64, fingerprint(self.program))
        self._run = remembered(key, lambda: _Jitted(self.program, x64=x64))

    def start(self, *inputs: Any) -> None:
        """Compile for such inputs meanwhile; the next call waits for it.

        Only a head start: what cannot be compiled ahead is compiled when it is called.
        """
        if all(map(_goes_anywhere, (*self._consts, *inputs))):
            self._run.start(list(self._consts), list(inputs))

    def __call__(self, *inputs: Any) -> list[Any]:
        """Run on ``inputs``; returns the outputs as device arrays."""
        return self._run(list(self._consts), list(inputs))


class _Jitted:
    """The compiled code of a program, shared by all programs that are equal to it."""

    def __init__(self, program: Program, *, x64: bool) -> None:
        bare, _ = compat.opened(program)

        def run(consts: Sequence[Any], inputs: Sequence[Any]) -> list[Any]:
            return interpret.evaluate(bare, inputs, consts)

        self._run = jax.jit(run)
        self._x64 = x64
        self._fresh = True
        self._ahead: Future[Any] | None = None

    def start(self, consts: list[Any], inputs: list[Any]) -> None:
        if self._fresh:
            self._fresh = False
            with compat.x64(self._x64):
                lowered = self._run.lower(consts, inputs)
            self._ahead = _workers.submit(self._compile, lowered)

    def _compile(self, lowered: Any) -> None:
        with compat.x64(self._x64):  # the settings of a thread are its own
            lowered.compile()

    def __call__(self, consts: list[Any], inputs: list[Any]) -> list[Any]:
        self._fresh = False
        if self._ahead is not None:
            self._ahead.result()
            self._ahead = None
        with compat.x64(self._x64):
            return self._run(consts, inputs)  # jit finds what was compiled ahead


# XLA compiles without holding Python's lock: one program while the next is traced.
_workers = ThreadPoolExecutor(max_workers=2, thread_name_prefix="jaxcheck-compile")


def _goes_anywhere(value: Any) -> bool:
    """Whether jit may place a value where it likes: a struct of it will then do."""
    return not isinstance(value, jax.Array) or not value.committed
