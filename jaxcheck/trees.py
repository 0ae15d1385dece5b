"""Leaves of a parameter pytree: their paths, and which of them can be differentiated.

Coordinates are numbered as ``jax.flatten_util.ravel_pytree`` numbers them, over the
differentiable leaves only. This module deliberately knows nothing of programs or
gradients.
"""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from jaxcheck.errors import InvalidInputError


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Leaf:
    """One leaf of a pytree, described without its value.

    Attributes:
        path: where it is, as ``jax.tree_util.keystr`` writes it.
        shape: its shape; ``()`` for what is no array.
        dtype: name of its dtype as a JAX program sees it, or of its Python type.
        size: number of scalars.
        differentiable: whether a gradient with respect to it exists.
        reason: why it is not differentiable, or None.
    """

    path: str
    shape: tuple[int, ...]
    dtype: str
    size: int
    differentiable: bool
    reason: str | None = None

    @property
    def complex(self) -> bool:
        """Whether one scalar of this leaf has two real coordinates."""
        return self.dtype.startswith("complex")

    @property
    def parts(self) -> int:
        """Number of real coordinates of one scalar."""
        return 2 if self.complex else 1

    @property
    def token(self) -> int:
        """A number that depends on the path alone, to key the leaf's randomness."""
        return zlib.crc32(self.path.encode())


def is_inexact(dtype: Any) -> bool:
    """Whether ``dtype`` is a real or complex floating dtype (of any width)."""
    return bool(jnp.issubdtype(dtype, jnp.inexact))


def lies_under(path: str, root: str) -> bool:
    """Whether ``path`` is ``root`` or that of a leaf in the subtree there.

    Example:
        >>> lies_under("['net']['w']", "['net']"), lies_under(".network", ".net")
        (True, False)
    """
    return path == root or (path.startswith(root) and path[len(root)] in "[.")


def by_path(tree: Any) -> dict[str, Any]:
    """The leaves of a pytree by their paths, as ``keystr`` writes them.

    Example:
        >>> by_path({"w": 1.0, "b": [2.0]})
        {"['b'][0]": 2.0, "['w']": 1.0}
    """
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path): value for path, value in leaves}


def on_host(value: Any) -> np.ndarray[Any, Any]:
    """An array in NumPy; of a random key its words."""
    if jnp.issubdtype(getattr(value, "dtype", np.int32), jax.dtypes.prng_key):
        value = jax.random.key_data(value)
    return np.asarray(value)


def widen(value: Any) -> Any:
    """In float64 or complex128, where it is; what is no array of floats passes."""
    if not is_inexact(getattr(value, "dtype", np.int32)):
        return value
    complex_ = jnp.issubdtype(value.dtype, jnp.complexfloating)
    return value.astype(np.complex128 if complex_ else np.float64)


def wide_on_host(value: Any) -> np.ndarray[Any, Any]:
    """An array of whatever numbers in NumPy, and in float64 or complex128."""
    array = on_host(value)
    return array.astype(np.complex128 if np.iscomplexobj(array) else np.float64)


def require_finite(caller: str, name: str, tree: Any) -> None:
    """Raise unless every number in the floating arrays of ``tree`` is finite.

    Raises:
        InvalidInputError: naming the first leaf with NaN or infinity.
    """
    for path, value in by_path(tree).items():
        if not is_inexact(getattr(value, "dtype", np.int32)):
            continue
        bad = int(np.count_nonzero(~np.isfinite(on_host(value))))
        if bad:
            raise InvalidInputError(
                f"`{caller}({name}=...)` must be finite; {bad} of {np.size(value)} "
                f"elements of {path or 'the leaf'} are NaN or infinite. Check earlier "
                "parameters, before they diverged."
            )


def flatten_with_none(tree: Any) -> tuple[list[tuple[Any, Any]], Any]:
    """``tree_flatten_with_path`` that keeps None as a leaf, so that it is reported."""
    return jax.tree_util.tree_flatten_with_path(tree, is_leaf=lambda x: x is None)


def describe(path: Any, value: Any) -> Leaf:
    """Describe one leaf; a value that cannot be differentiated says why."""
    name = jax.tree_util.keystr(path)
    if value is None:
        return _other(name, "None", "None holds nothing to differentiate")
    if isinstance(value, bool | int):
        kind = type(value).__name__
        return _other(name, kind, f"a Python {kind} is not differentiable", size=1)
    if isinstance(value, float | complex | np.ndarray | np.generic | jax.Array):
        return _describe_array(name, value)
    kind = type(value).__name__
    return _other(name, kind, f"{kind} is carried along as a constant")


def _describe_array(name: str, value: Any) -> Leaf:
    shape, size = tuple(np.shape(value)), int(np.size(value))
    if isinstance(value, jax.Array):
        dtype = value.dtype
    else:
        declared = np.result_type(value)
        if declared.kind not in "biufc" and not is_inexact(declared):
            return _other(name, str(declared), f"{declared} is carried along")
        dtype = jax.dtypes.canonicalize_dtype(declared)
    if jnp.issubdtype(dtype, jax.dtypes.prng_key):
        reason = "a random key is not differentiable"
    elif not is_inexact(dtype):
        reason = f"{dtype} is not differentiable"
    elif size == 0:
        reason = "it has no elements"
    else:
        reason = None
    return Leaf(
        path=name,
        shape=shape,
        dtype=str(dtype),
        size=size,
        differentiable=reason is None,
        reason=reason,
    )


def _other(name: str, kind: str, reason: str, size: int = 0) -> Leaf:
    return Leaf(
        path=name,
        shape=(),
        dtype=kind,
        size=size,
        differentiable=False,
        reason=reason,
    )


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Partition:
    """A pytree taken apart into what is differentiated and what is held fixed.

    Attributes:
        leaves: a description of every leaf, in flattening order.
        treedef: structure of the tree (None counted as a leaf).
        moved: values of the differentiable leaves, in order.
        fixed: everything else, as it came, in order.
    """

    leaves: tuple[Leaf, ...]
    treedef: Any
    moved: tuple[Any, ...]
    fixed: tuple[Any, ...]

    @property
    def differentiable(self) -> tuple[Leaf, ...]:
        """The leaves that can be differentiated, in order."""
        return tuple(leaf for leaf in self.leaves if leaf.differentiable)

    def rebuild(self, moved: Sequence[Any]) -> Any:
        """Put the tree together again with other (perhaps traced) values."""
        moving, fixed = iter(moved), iter(self.fixed)
        values = [next(moving if x.differentiable else fixed) for x in self.leaves]
        return jax.tree_util.tree_unflatten(self.treedef, values)


def partition(tree: Any) -> Partition:
    """Take ``tree`` apart into its differentiable leaves and the rest."""
    pairs, treedef = flatten_with_none(tree)
    leaves = tuple(describe(path, value) for path, value in pairs)
    values = [value for _, value in pairs]
    both = list(zip(leaves, values, strict=True))
    return Partition(
        leaves=leaves,
        treedef=treedef,
        moved=tuple(value for leaf, value in both if leaf.differentiable),
        fixed=tuple(value for leaf, value in both if not leaf.differentiable),
    )


def require_differentiable(parts: Partition, name: str) -> None:
    """Raise unless ``parts`` has a leaf to differentiate.

    Raises:
        InvalidInputError: the tree is empty or has no floating leaf.
    """
    for leaf, value in zip(parts.differentiable, parts.moved, strict=True):
        if isinstance(value, Tracer):
            raise InvalidInputError(
                f"`{name}{leaf.path}` must be a concrete array; it is a tracer. Call "
                "jaxcheck outside of jax.jit, jax.grad and jax.vmap."
            )
    if not parts.leaves:
        raise InvalidInputError(
            f"`{name}` must hold at least one floating or complex array; it is an "
            "empty pytree. Pass the parameters to differentiate with respect to."
        )
    if not parts.differentiable:
        listing = ", ".join(f"{x.path or 'the leaf'}: {x.dtype}" for x in parts.leaves)
        raise InvalidInputError(
            f"`{name}` must hold at least one non-empty floating or complex leaf; got "
            f"{listing}. Integer, bool and key leaves have no gradient; convert what "
            "should have one, e.g. with jnp.asarray(x, jnp.float32)."
        )
