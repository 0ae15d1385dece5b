"""Which leaves of a tree have statistics, in which rows, and under which names.

Rows follow from a tree's structure alone, so names are never stored beside arrays, and
arrays of other trees are found by the paths of their leaves, never by their order.
"""

from __future__ import annotations

import difflib
import itertools
import math
import re
import zlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp

from jaxcheck.errors import InvalidInputError
from jaxcheck.trees import by_path, is_inexact

# Patterns of the paths of leaves that hold all layers, with the axis of the layers.
Stacked = str | Sequence[str] | Mapping[str, int]

_NAMED = 3  # paths that a message lists


class Entry(NamedTuple):
    """One leaf with statistics.

    Attributes:
        path: where it is, as ``jax.tree_util.keystr`` writes it.
        shape: its shape.
        axis: the axis of the layers that it holds, None for an ordinary leaf.
    """

    path: str
    shape: tuple[int, ...]
    axis: int | None = None

    @property
    def token(self) -> int:
        """A number that depends on the path alone, to key the leaf's randomness."""
        return zlib.crc32(self.path.encode())

    @property
    def rows(self) -> int:
        """How many rows it has: one, or one for each layer."""
        return 1 if self.axis is None else self.shape[self.axis]

    @property
    def size(self) -> int:
        """How many elements it has."""
        return math.prod(self.shape)

    @property
    def reduced(self) -> tuple[int, ...]:
        """The axes that a row sums over."""
        return tuple(k for k in range(len(self.shape)) if k != self.axis)

    @property
    def names(self) -> tuple[str, ...]:
        """A name for each row: the path, and of a layer where it is in the leaf."""
        if self.axis is None:
            return (self.path,)
        before = ":, " * self.axis
        return tuple(f"{self.path}[{before}{k}]" for k in range(self.rows))


def entries_of(argument: str, tree: Any, stacked: Stacked = ()) -> tuple[Entry, ...]:
    """The non-empty floating and complex leaves of ``tree``, in flattening order.

    Args:
        argument: how the tree is called in a message: ``leaf_names(tree=...)``.
        tree: a pytree of arrays; abstract ones and tracers do as well.
        stacked: which leaves hold layers; see ``gradient_statistics``.

    Raises:
        InvalidInputError: there is no such leaf, or ``stacked`` does not fit them.
    """
    leaves = by_path(tree)
    found = {path: x for path, x in leaves.items() if _is_counted(x)}
    if not found:
        got = [f"{path or 'the leaf'}: {_kind(x)}" for path, x in leaves.items()]
        raise InvalidInputError(
            f"`{argument}` must hold at least one non-empty floating or complex array; "
            f"got {', '.join(got) or 'an empty pytree'}."
        )
    axes = _axes_of(argument.partition("(")[0], found, stacked)
    return tuple(Entry(path, jnp.shape(x), axes[path]) for path, x in found.items())


def aligned(
    argument: str,
    entries: Sequence[Entry],
    tree: Any,
    *,
    partly: bool = False,
    like: str = "grads",
) -> list[Any]:
    """The array of ``tree`` for each entry.

    Args:
        argument: how the tree is called in a message.
        entries: of another tree; what else ``tree`` holds is left aside.
        tree: a pytree of arrays.
        partly: whether some may be missing (not all); they are None in the result.
        like: how the tree of the entries is called in a message.

    Raises:
        InvalidInputError: an array is missing, or has another shape.
    """
    leaves = {path: x for path, x in by_path(tree).items() if _is_counted(x)}
    found = matched([entry.path for entry in entries], leaves)
    arrays = [None if path is None else leaves[path] for path in found]
    missing = [e.path for e, x in zip(entries, arrays, strict=True) if x is None]
    if missing and not (partly and len(missing) < len(entries)):
        raise InvalidInputError(
            f"`{argument}` must have the paths of `{like}`; it has no floating or "
            f"complex array at {missing[0] or 'the root'}; "
            f"{nearest(missing[0], list(leaves))}."
        )
    for entry, array in zip(entries, arrays, strict=True):
        if array is not None and jnp.shape(array) != entry.shape:
            raise InvalidInputError(
                f"`{argument}` must have the shapes of `{like}`; at "
                f"{entry.path or 'the root'} it is {list(jnp.shape(array))}, wanted "
                f"{list(entry.shape)}."
            )
    return arrays


def matched(paths: Sequence[str], others: Iterable[str]) -> list[str | None]:
    """The one of ``others`` that is the same place as each of ``paths``, or None.

    That is the same path or, failing that, the one with the same names: a module of
    ``flax.nnx`` has ``.bias`` where its gradient has ``['bias']``.

    Example:
        >>> matched(["['a'][0]", "['c']"], [".a[0]", ".b"])
        ['.a[0]', None]
    """
    others = list(others)
    if set(others).issuperset(paths):
        return [*paths]
    places: dict[str, list[str]] = {}
    for other in others:
        places.setdefault(_names(other), []).append(other)
    alike = [places.get(_names(path), []) for path in paths]
    return [
        path if path in found else found[0] if len(found) == 1 else None
        for path, found in zip(paths, alike, strict=True)
    ]


def _names(path: str) -> str:
    """A path with attributes and keys written alike."""
    return re.sub(r"\['?(.*?)'?\]", r".\1", path)


def leaf_names(tree: Any, *, stacked: Stacked = ()) -> tuple[str, ...]:
    """Name the rows of ``gradient_statistics(tree, stacked=stacked).leaves``.

    Args:
        tree: the gradients, or any tree with their structure and shapes.
        stacked: as it was given to ``gradient_statistics``.

    Returns:
        For each row the path of its leaf as ``jax.tree_util.keystr`` writes it; for a
        layer of a stacked leaf, with the index that selects it.

    Raises:
        InvalidInputError: the tree has no floating leaf, or ``stacked`` does not fit.

    Example:
        >>> import jax.numpy as jnp
        >>> params = {"blocks": {"w": jnp.ones((2, 3))}, "out": jnp.ones(4), "n": 7}
        >>> leaf_names(params)
        ("['blocks']['w']", "['out']")
        >>> leaf_names(params, stacked="['blocks']")
        ("['blocks']['w'][0]", "['blocks']['w'][1]", "['out']")
    """
    entries = entries_of("leaf_names(tree=...)", tree, stacked)
    return tuple(itertools.chain.from_iterable(entry.names for entry in entries))


def stack_names(tree: Any, *, stacked: Stacked) -> tuple[str, ...]:
    """Name the rows of ``gradient_statistics(tree, stacked=stacked).stacks``.

    Args:
        tree: the gradients, or any tree with their structure and shapes.
        stacked: as it was given to ``gradient_statistics``.

    Returns:
        The paths of the stacked leaves.

    Raises:
        InvalidInputError: the tree has no floating leaf, or ``stacked`` does not fit.

    Example:
        >>> import jax.numpy as jnp
        >>> stack_names({"blocks": jnp.ones((2, 3)), "out": jnp.ones(4)}, stacked="*")
        ("['blocks']", "['out']")
    """
    entries = entries_of("stack_names(tree=...)", tree, stacked)
    return tuple(entry.path for entry in entries if entry.axis is not None)


def _is_counted(leaf: Any) -> bool:
    """Whether a leaf is a non-empty array, or a number, that can have a gradient."""
    if isinstance(leaf, float | complex):
        return True
    return is_inexact(getattr(leaf, "dtype", None) or bool) and leaf.size > 0


def _kind(leaf: Any) -> str:
    dtype = getattr(leaf, "dtype", None)
    if dtype is None:
        return type(leaf).__name__
    return f"{dtype}{list(leaf.shape)}"


# ---- stacked leaves


def _axes_of(
    caller: str, leaves: Mapping[str, Any], stacked: Stacked
) -> dict[str, int | None]:
    """The axis of the layers for each leaf; the first pattern that fits decides."""
    if isinstance(stacked, str):
        stacked = (stacked,)
    if not isinstance(stacked, Mapping):
        stacked = dict.fromkeys(stacked, 0)
    axes: dict[str, int | None] = dict.fromkeys(leaves)
    for pattern, axis in stacked.items():
        fits = compiled(pattern)
        hit = [path for path in leaves if fits.match(path)]
        if not hit:
            raise InvalidInputError(
                f"`{caller}(stacked=...)` names {pattern!r}, but no leaf lies there; "
                f"{nearest(pattern, list(leaves))}."
            )
        for path in hit:
            dimensions = len(jnp.shape(leaves[path]))
            if not -dimensions <= axis < dimensions:
                raise InvalidInputError(
                    f"`{caller}(stacked=...)` must select leaves with an axis {axis}; "
                    f"{path or 'the leaf'}, selected by {pattern!r}, has "
                    f"{dimensions} axes."
                )
            if axes[path] is None:
                axes[path] = axis % dimensions
    return axes


def compiled(pattern: str) -> re.Pattern[str]:
    """Fits the leaf at ``pattern`` and those in the subtree there; * is any text."""
    text = ".*".join(re.escape(part) for part in pattern.split("*"))
    return re.compile(rf"{text}(?=[\[.]|$)", re.DOTALL)


def fitting(pattern: str, names: Sequence[str]) -> list[int]:
    """Numbers of the rows whose leaf has a path that fits."""
    fits = compiled(pattern)
    return [k for k, name in enumerate(names) if fits.match(name)]


def nearest(given: str, known: Sequence[str]) -> str:
    """The known paths that are most like ``given``, in a sentence."""
    if not known:
        return "it has none at all"
    close = difflib.get_close_matches(given, known, n=_NAMED, cutoff=0.0)
    rest = len(known) - len(close)
    more = f", and {rest} more" if rest else ""
    return f"the nearest are {', '.join(x or 'the root' for x in close)}{more}"
