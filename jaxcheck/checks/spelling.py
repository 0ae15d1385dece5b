"""How a call is written in a report, so that it can be repeated."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any


def spelled(
    caller: Callable[..., Any],
    function: Callable[..., Any],
    fallback: str,
    words: Sequence[str],
    options: Mapping[str, Any],
) -> str:
    """A call as a person would write it, options at their defaults left out.

    Args:
        caller: the public function that was called.
        function: the user's function.
        fallback: what to call it if it has no name.
        words: the other positional arguments, as text.
        options: the keyword arguments.
    """
    while isinstance(function, functools.partial):
        function = function.func
    name = getattr(function, "__name__", "")
    defaults: Mapping[str, Any] = caller.__kwdefaults__ or {}
    given = [
        f"{k}={_value(v)}"
        for k, v in options.items()
        if not (v is defaults[k] or (_is_plain(v) and v == defaults[k]))
    ]
    arguments = [name if name.isidentifier() else fallback, *words, *given]
    return f"jaxcheck.{caller.__name__}({', '.join(arguments)})"


def _is_plain(value: Any) -> bool:
    if isinstance(value, tuple | list):
        items: Sequence[Any] = value  # pyright: ignore[reportUnknownVariableType]
        return all(map(_is_plain, items))
    return isinstance(value, str | int | float | None)


def _value(value: Any) -> str:
    if callable(value):
        name = getattr(value, "__name__", "")
        return name if name.isidentifier() else "..."
    return repr(value) if _is_plain(value) else "..."
