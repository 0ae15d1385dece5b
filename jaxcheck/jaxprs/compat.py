"""Everything that differs between the supported versions of JAX (0.10 to 0.12).

Up to 0.11 a ``ClosedJaxpr`` pairs a ``Jaxpr`` with its constants; in 0.12 the two are
one class. Everything else in this package speaks of a *program*: what
``jax.make_jaxpr`` returns, opened by ``opened``.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Generator, Sequence
from typing import Any, NamedTuple

import jax
from jax._src import source_info_util
from jax.extend import core as jex_core

Program = Any  # ClosedJaxpr up to 0.11, Jaxpr from 0.12 on
Equation = Any

_VJP = ("custom_vjp_call", "custom_vjp_call_jaxpr")
_JAXPR_TYPES: tuple[type, ...] = (jex_core.Jaxpr, jex_core.ClosedJaxpr)


def is_program(value: Any) -> bool:
    """Whether ``value`` is a jaxpr, open or closed."""
    return isinstance(value, _JAXPR_TYPES)


def is_literal(atom: Any) -> bool:
    """Whether an operand is a constant written into the equation."""
    return isinstance(atom, jex_core.Literal)


def is_dropped(var: Any) -> bool:
    """Whether an output variable is thrown away."""
    return isinstance(var, jex_core.DropVar)


def opened(program: Program) -> tuple[Any, Sequence[Any]]:
    """The bare jaxpr of a program, and its constants."""
    if hasattr(program, "consts"):
        return program.jaxpr, program.consts
    return program, ()


def input_avals(program: Program) -> list[Any]:
    """Abstract values of a program's inputs, constants excluded."""
    jaxpr, _ = opened(program)
    return [v.aval for v in jaxpr.invars]


def like(template: Program, program: Program) -> Program:
    """``program``, open or closed as ``template`` is, to replace it as a parameter."""
    if hasattr(template, "consts"):
        return program
    jaxpr, consts = opened(program)
    if consts:
        raise NotImplementedError("an open jaxpr cannot carry constants")
    return jaxpr


def make_program(fun: Callable[..., Any], inputs: Sequence[Any]) -> Program:
    """Trace ``fun`` on abstract or concrete ``inputs``."""
    return jax.make_jaxpr(fun)(*inputs)


def struct(aval: Any, dtype: Any = None) -> jax.ShapeDtypeStruct:
    """An abstract input like ``aval``, strongly typed, perhaps of another dtype.

    Shardings of explicit meshes are kept, and over which axes a value varies inside
    shard_map.
    """
    name, varies = _variation(aval)
    more: dict[str, Any] = {name: varies} if _axes(varies) else {}
    sharding = getattr(aval, "sharding", None)
    mesh = getattr(sharding, "mesh", None)
    # what varies over an axis must say of which mesh
    if mesh is None or mesh.empty or not (more or mesh.are_all_axes_explicit):
        sharding = None
    dtype = aval.dtype if dtype is None else dtype
    return jax.ShapeDtypeStruct(aval.shape, dtype, sharding=sharding, **more)


def _variation(aval: Any) -> tuple[str, Any]:
    """What is noted of the mesh axes that a value varies over, and under what name."""
    for name in ("manual_axis_type", "vma"):  # the name changed between versions
        if (varies := getattr(aval, name, None)) is not None:
            return name, varies
    return "", frozenset()


def _axes(varies: Any) -> frozenset[str]:
    return frozenset(getattr(varies, "varying", varies))


def varying_axes(value: Any) -> frozenset[str]:
    """The mesh axes over which ``value`` is known to vary, inside shard_map."""
    return _axes(_variation(jax.typeof(value))[1])


def varied(value: Any, axes: frozenset[str]) -> Any:
    """``value``, known to vary over ``axes`` too; the transpose sums over these."""
    missing = tuple(sorted(axes - varying_axes(value)))
    return jax.lax.pcast(value, missing, to="varying") if missing else value


def copies(value: Any, varying: Any) -> int:
    """On how many devices ``value`` is known to be the same, inside shard_map.

    Args:
        value: an array.
        varying: an array that varies over all mesh axes there are.
    """
    axes = varying_axes(varying) - varying_axes(value)
    return math.prod(jax.lax.axis_size(name) for name in axes)


def expansion(eqn: Equation) -> Callable[..., list[Any]]:
    """What a primitive of a higher level (custom_root from 0.12 on) stands for."""
    primitive = eqn.params["_prim"]

    def run(*args: Any) -> list[Any]:
        tree = jax.tree_util.tree_unflatten(primitive.in_tree, args)
        return jax.tree_util.tree_leaves(primitive.expand(*tree))

    return run


def bind(eqn: Equation, values: Sequence[Any], params: Any = None) -> list[Any]:
    """Apply an equation's primitive to ``values``; always a list of outputs."""
    params = eqn.params if params is None else params
    bound = eqn.primitive.get_bind_params(params)
    if isinstance(bound, tuple):  # (functions, params) in some versions
        functions, bound = bound
        out = eqn.primitive.bind(*functions, *values, **bound)
    else:
        out = eqn.primitive.bind(*values, **bound)
    return list(out) if eqn.primitive.multiple_results else [out]


@contextlib.contextmanager
def context(eqn: Equation) -> Generator[None]:
    """Bind in the name of ``eqn``: its source line, scope and configuration."""
    stack = source_info_util.current_name_stack() + eqn.source_info.name_stack
    traceback = eqn.source_info.traceback
    if not user_frames(eqn):  # traced once for all callers: it has the call's line
        traceback = source_info_util.current().traceback
    user = source_info_util.user_context(traceback, name_stack=stack)
    with user, eqn.ctx.manager:
        yield


class Place(NamedTuple):
    """A line of source code and the function that it belongs to."""

    name: str
    file: str
    line: int
    column: int = 0


def user_frames(eqn: Equation) -> list[Place]:
    """The frames that are not JAX's own or the standard library's, innermost first."""
    frames = source_info_util.user_frames(eqn.source_info.traceback)
    return [
        Place(f.function_name, f.file_name, f.start_line, f.start_column)
        for f in frames
    ]


def rule_function(eqn: Equation) -> Place | None:
    """Where the function of a custom rule is defined, None for other equations."""
    inner = eqn.params.get("call_jaxpr")
    if inner is None or eqn.primitive.name not in ("custom_jvp_call", *_VJP):
        return None
    return _definition(opened(inner)[0].debug_info)


def rule_derivative(eqn: Equation) -> Place | None:
    """Where the function that computes the derivative is defined, likewise.

    None too where JAX made it up from scalar derivatives (``defjvps``).
    """
    if rule_function(eqn) is None:
        return None
    name = "bwd" if eqn.primitive.name in _VJP else "jvp_jaxpr_fun"
    place = _definition(getattr(eqn.params.get(name), "debug_info", None))
    if place is None or not source_info_util.is_user_filename(place.file):
        return None
    return place


def operand_names(eqn: Equation) -> list[str]:
    """The user's names for an equation's operands, or their numbers."""
    count = len(eqn.invars)
    infos = [getattr(eqn.params.get("fwd_jaxpr_thunk"), "debug_info", None)]
    if (inner := eqn.params.get("call_jaxpr")) is not None:
        infos.append(opened(inner)[0].debug_info)
    for info in infos:
        names = getattr(info, "arg_names", None) or ()
        held = count - len(names)  # what the function closed over comes first
        named = all(names) and len(set(names)) == len(names)
        if names and named and held == eqn.params.get("num_consts", 0):
            return [*(f"constant {k}" for k in range(held)), *names]
    return [f"operand {k}" for k in range(count)]


def _definition(debug_info: Any) -> Place | None:
    if debug_info is None or debug_info.func_filename is None:
        return None
    return Place(
        debug_info.func_name, debug_info.func_filename, debug_info.func_lineno or 0
    )


def scope(eqn: Equation) -> str:
    """The name stack of an equation, e.g. ``MLP/dense0``."""
    return str(eqn.source_info.name_stack)


def scan_sizes(eqn: Equation) -> tuple[int, int]:
    """Number of constants and of carried values of a scan equation."""
    params = eqn.params
    if "num_carry" in params:
        return params["num_consts"], params["num_carry"]
    consts, carry, _ = params["ft_in"].unpack()
    return len(consts), len(carry)


def shard_map_options(eqn: Equation) -> dict[str, Any]:
    """Keyword arguments of ``jax.shard_map`` to do again what ``eqn`` does."""
    params = eqn.params
    axes = params.get("manual_axes", params.get("newly_manual_axes"))
    return {
        "mesh": params["mesh"],
        "axis_names": set(axes),
        "check_vma": params["check_vma"],
    }


def manual_axes(eqn: Equation) -> dict[str, int]:
    """The mesh axes that a shard_map equation splits its operands over, with sizes."""
    params = eqn.params
    axes = params.get("manual_axes", params.get("newly_manual_axes"))
    shape = params["mesh"].shape
    return {
        name: int(shape[name]) for name in params["mesh"].axis_names if name in axes
    }


@contextlib.contextmanager
def x64(enabled: bool) -> Generator[None]:
    """Switch 64-bit types on or off for this thread, and back as it was.

    For our own programs; the user's promotion rules and debugging aids, which stop at a
    NaN far from the point or at a mixed dtype of ours, are suspended meanwhile.
    """
    with (
        jax.enable_x64(enabled),
        jax.numpy_dtype_promotion("standard"),
        jax.numpy_rank_promotion("allow"),
        jax.debug_nans(False),
        jax.debug_infs(False),
        jax.transfer_guard("allow"),
    ):
        yield


def x64_enabled() -> bool:
    """Whether 64-bit types are on at this moment."""
    return bool(jax.config.jax_enable_x64)  # pyright: ignore[reportAttributeAccessIssue]


def with_equations(program: Program, eqns: Sequence[Equation]) -> Program:
    """``program`` with fewer equations; the ones left out must not be needed."""
    jaxpr, consts = opened(program)
    shorter = jaxpr.replace(eqns=list(eqns))
    if shorter.__class__ is program.__class__:
        return shorter
    return program.__class__(shorter, consts)
