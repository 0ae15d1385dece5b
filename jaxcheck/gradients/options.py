"""What a check is asked for: read from the arguments of a call, or refused."""

from __future__ import annotations

import dataclasses
import math
import numbers
import operator
from collections.abc import Callable, Sequence
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np

from jaxcheck.errors import InvalidInputError

Mode = Literal["auto", "exhaustive", "sampled", "directional"]
Precision = Literal["float64", "native"]
StopGradient = Literal["frozen", "transparent"]
Progress = bool | Callable[[int, int], None] | None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """How to compare; the attributes are the arguments of ``jaxcheck.check``.

    Attributes:
        mode: which scalars are compared.
        samples: coordinates a leaf, or None for the default.
        directions: probes a leaf, or None for the default.
        precision: of the differences.
        stop_gradient: how its output is seen.
        rtol: relative tolerance.
        atol: absolute tolerance.
        budget: number of loss evaluations of the first pass, or None.
        expect_zero: where no gradient is expected.
        seed: the words of the random key.
        progress: how progress is shown.
    """

    mode: Mode = "auto"
    samples: int | None = None
    directions: int | None = None
    precision: Precision = "float64"
    stop_gradient: StopGradient = "frozen"
    rtol: float = 1e-6
    atol: float = 0.0
    budget: int | None = None
    expect_zero: Sequence[str] = ()
    seed: tuple[int, ...] = (0, 0)  # what jax.random.key(0) holds
    progress: Progress = None


def read_options(caller: str, *, key: Any, **given: Any) -> Options:
    """The options of a call.

    Args:
        caller: name of the public function, for the messages.
        key: a random key, or None.
        **given: fields of ``Options``.

    Raises:
        InvalidInputError: one of them cannot be used.
    """
    choices = {
        "mode": get_args(Mode),
        "precision": get_args(Precision),
        "stop_gradient": get_args(StopGradient),
    }
    for name, value in given.items():
        if name in choices:
            require_choice(caller, name, value, choices[name])
        elif name in ("rtol", "atol"):
            _require_tolerance(caller, name, value)
        elif name in ("samples", "directions", "budget") and value is not None:
            require_count(caller, name, value, ", or None")
        elif name == "expect_zero":
            _require_texts(caller, name, value)
    return Options(seed=read_key(caller, key), **given)


def require_choice(caller: str, name: str, value: Any, allowed: Sequence[Any]) -> None:
    """Raise unless ``value`` is one of ``allowed``."""
    if value not in allowed:
        wanted = ", ".join(repr(x) for x in allowed)
        raise InvalidInputError(
            f"`{caller}({name}={value!r})` is not known; use one of {wanted}."
        )


def require_count(caller: str, name: str, value: Any, other: str = "") -> None:
    """Raise unless ``value`` is a positive integer."""
    try:
        number = operator.index(value)
    except TypeError:
        number = 0
    if number < 1 or isinstance(value, bool):
        raise InvalidInputError(
            f"`{caller}({name}={value!r})` must be a positive integer{other}."
        )


def _require_tolerance(caller: str, name: str, value: Any) -> None:
    real = isinstance(value, numbers.Real | np.generic)
    if not (real and 0 <= float(value) < math.inf):  # pyright: ignore[reportUnknownArgumentType, reportArgumentType]
        raise InvalidInputError(
            f"`{caller}({name}={value!r})` must be a non-negative finite number."
        )


def _require_texts(caller: str, name: str, value: Any) -> None:
    items: list[Any] = list(value) if isinstance(value, list | tuple) else [None]  # pyright: ignore[reportUnknownArgumentType]
    if not all(isinstance(item, str) and item for item in items):
        raise InvalidInputError(
            f"`{caller}({name}={value!r})` must be a list of paths or places, e.g. "
            '["[\'target\']", "dqn.py:31"].'
        )


def read_key(caller: str, key: Any) -> tuple[int, ...]:
    """The words of a random key, typed or old, of any implementation."""
    if key is None:
        return Options().seed
    dtype = getattr(key, "dtype", None)
    if dtype is not None and jnp.issubdtype(dtype, jax.dtypes.prng_key):
        if key.shape == ():
            return tuple(int(x) for x in np.asarray(jax.random.key_data(key)))
    elif dtype == np.uint32 and np.ndim(key) == 1:
        return tuple(int(x) for x in np.asarray(key))
    got = type(key).__name__ + (
        "" if dtype is None else f" of {dtype}{list(key.shape)}"
    )
    raise InvalidInputError(
        f"`{caller}(key=...)` must be one random key, e.g. jax.random.key(0); got "
        f"{got}."
    )


def require_function(caller: str, name: str, value: Any) -> None:
    """Raise unless ``value`` can be called."""
    if not callable(value):
        raise InvalidInputError(
            f"`{caller}({name}=...)` must be a function; got {type(value).__name__}."
        )
