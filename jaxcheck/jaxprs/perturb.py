"""Evaluate a program at a moved point, holding constant what autodiff holds constant.

Where a program contains ``stop_gradient``, its value at the moved point needs the value
at the base point too: the output of ``stop_gradient`` is what it was there. So both are
carried side by side, through loops and branches as well; the base side is the same for
every move, and is left out wherever no ``stop_gradient`` needs it.

Each ``stop_gradient`` equation (a *site*) has a flag, decided at run time: True lets
the moved value through, so that one compiled program answers for the program as written
(all False), for the transparent reading (all True), and for each site alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxcheck.jaxprs import compat, interpret
from jaxcheck.jaxprs.compat import Equation, Program
from jaxcheck.jaxprs.sites import site_of
from jaxcheck.reports.values import EquationSite
from jaxcheck.trees import is_inexact

Pair = tuple[Any, Any]  # (value at the base point, value at the moved point)


class Perturbation:
    """A program prepared for evaluation at moved points.

    Attributes:
        program: the reading to evaluate (custom rules inlined).
        sites: where its stop_gradient equations are, in program order.
        narrowed: where a moved value is rounded to a lower precision on its way, each
            with the name of the dtype; filled while the program is traced.
    """

    def __init__(self, program: Program) -> None:
        self.program = program
        found = [
            eqn
            for eqn in interpret.equations(program)
            if eqn.primitive.name == "stop_gradient"
        ]
        self.sites: tuple[EquationSite, ...] = tuple(site_of(eqn) for eqn in found)
        self._number = {id(eqn): k for k, eqn in enumerate(found)}

    def __call__(
        self, base: Sequence[Any], moved: Sequence[Any], transparent: Any
    ) -> list[Any]:
        """Outputs at the moved point.

        Args:
            base: the program's inputs at the base point.
            moved: the same at the moved point.
            transparent: bool array [number of sites].
        """
        pairs = list(zip(base, moved, strict=True))
        return [m for _, m in self.moves(transparent).program(self.program, pairs)]

    def moves(self, transparent: Any) -> Moves:
        """What runs equations on pairs, with these flags."""
        return Moves(self._number, transparent)


class Moves:
    """Runs equations on pairs (base, moved); a pair of one object has not moved.

    Attributes:
        number: of each stop_gradient equation, by ``id``.
        transparent: flag of each.
    """

    def __init__(self, number: dict[int, int], transparent: Any) -> None:
        self.number = number
        self.transparent = transparent

    def program(self, program: Program, pairs: Sequence[Pair]) -> list[Pair]:
        """Outputs of a program."""
        jaxpr, _ = compat.opened(program)
        needed = self._needing_base(jaxpr)

        def rule(eqn: Equation, operands: list[Pair]) -> Sequence[Pair]:
            return self.equation(eqn, operands, with_base=id(eqn) in needed)

        return interpret.interpret(program, pairs, rule, lambda c: (c, c))

    def equation(
        self, eqn: Equation, operands: list[Pair], *, with_base: bool = True
    ) -> list[Pair]:
        """Outputs of one equation; without base, the base of what moves is None."""
        if eqn.primitive.name == "stop_gradient":
            return [self._site(eqn, operands[0])]
        if all(base is moved for base, moved in operands):
            out = compat.bind(eqn, [base for base, _ in operands])
            return [(value, value) for value in out]
        if self._has_sites(eqn):
            return self._nested(eqn, operands)
        moved = compat.bind(eqn, [m for _, m in operands])
        if not with_base:
            return [(None, m) for m in moved]
        base = compat.bind(eqn, [b for b, _ in operands])
        return list(zip(base, moved, strict=True))

    def is_transparent(self, eqn: Equation) -> Any:
        """The flag of a stop_gradient equation."""
        return self.transparent[self.number[id(eqn)]]

    def _needing_base(self, jaxpr: Any) -> set[int]:
        """Equations (by id) whose base value a stop_gradient needs, or the outputs."""
        # The outputs' base values are needed only inside nested programs, where there
        # is no telling; the outermost caller throws them away and XLA removes them.
        live = {v for v in jaxpr.outvars if not compat.is_literal(v)}
        needed: set[int] = set()
        for eqn in reversed(jaxpr.eqns):
            if self._has_sites(eqn) or any(v in live for v in eqn.outvars):
                needed.add(id(eqn))
                live.update(v for v in eqn.invars if not compat.is_literal(v))
        return needed

    def _has_sites(self, eqn: Equation) -> bool:
        if id(eqn) in self.number:
            return True
        return any(
            id(inner) in self.number
            for program in interpret.nested_programs(eqn)
            for inner in interpret.equations(program)
        )

    def _site(self, eqn: Equation, operand: Pair) -> Pair:
        base, moved = operand
        if base is moved:
            return operand
        return base, jnp.where(self.is_transparent(eqn), moved, base)

    def _nested(self, eqn: Equation, operands: list[Pair]) -> list[Pair]:
        handlers: dict[str, Callable[[Equation, list[Pair]], list[Pair]]] = {
            "scan": self._scan,
            "while": self._while,
            "cond": self._cond,
            "shard_map": self._shard_map,
        }
        handler = handlers.get(eqn.primitive.name)
        if handler is None:
            raise NotImplementedError(
                f"stop_gradient inside the nested program of {eqn.primitive.name}"
            )
        return handler(eqn, operands)

    def _scan(self, eqn: Equation, operands: list[Pair]) -> list[Pair]:
        n_consts, n_carry = compat.scan_sizes(eqn)
        consts = operands[:n_consts]
        carry = operands[n_consts : n_consts + n_carry]
        xs = operands[n_consts + n_carry :]

        def body(carried: list[Pair], x: list[Pair]) -> tuple[list[Pair], list[Pair]]:
            out = self.program(eqn.params["jaxpr"], [*consts, *carried, *x])
            return out[:n_carry], out[n_carry:]

        final, ys = jax.lax.scan(
            body,
            [tuple(pair) for pair in carry],
            [tuple(pair) for pair in xs],
            length=eqn.params["length"],
            reverse=eqn.params["reverse"],
            unroll=eqn.params["unroll"],
        )
        return [*final, *ys]

    def _while(self, eqn: Equation, operands: list[Pair]) -> list[Pair]:
        params = eqn.params
        n_cond, n_body = params["cond_nconsts"], params["body_nconsts"]
        cond_consts = operands[:n_cond]
        body_consts = operands[n_cond : n_cond + n_body]
        start = operands[n_cond + n_body :]

        def goes_on(side: int, carried: Sequence[Pair]) -> Any:
            consts = [pair[side] for pair in cond_consts]
            values = [pair[side] for pair in carried]
            return interpret.evaluate(params["cond_jaxpr"], [*consts, *values])[0]

        def either(carried: list[Pair]) -> Any:
            return jnp.any(goes_on(0, carried) | goes_on(1, carried))

        def body(carried: list[Pair]) -> list[Pair]:
            # the side that has finished waits for the other
            active = (goes_on(0, carried), goes_on(1, carried))
            out = self.program(params["body_jaxpr"], [*body_consts, *carried])
            return [
                (
                    _keep_unless(active[0], new[0], old[0]),
                    _keep_unless(active[1], new[1], old[1]),
                )
                for new, old in zip(out, carried, strict=True)
            ]

        return list(jax.lax.while_loop(either, body, [tuple(p) for p in start]))

    def _cond(self, eqn: Equation, operands: list[Pair]) -> list[Pair]:
        branches = eqn.params["branches"]
        (base_index, moved_index), rest = operands[0], operands[1:]

        def paired(branch: Program) -> Callable[..., list[Any]]:
            return lambda pairs: [m for _, m in self.program(branch, pairs)]

        def plain(branch: Program) -> Callable[..., list[Any]]:
            return lambda pairs: interpret.evaluate(branch, [b for b, _ in pairs])

        pairs = [tuple(pair) for pair in rest]
        moved = jax.lax.switch(moved_index, [paired(b) for b in branches], pairs)
        base = jax.lax.switch(base_index, [plain(b) for b in branches], pairs)
        return list(zip(base, moved, strict=True))

    def _shard_map(self, eqn: Equation, operands: list[Pair]) -> list[Pair]:
        params = eqn.params

        def body(*pairs: Pair) -> tuple[Pair, ...]:
            return tuple(self.program(params["jaxpr"], pairs))

        run = jax.shard_map(
            body,
            in_specs=tuple((spec, spec) for spec in params["in_specs"]),
            out_specs=tuple((spec, spec) for spec in params["out_specs"]),
            **compat.shard_map_options(eqn),
        )
        return list(run(*[tuple(pair) for pair in operands]))


def _keep_unless(active: Any, new: Any, old: Any) -> Any:
    """``new`` where the loop goes on, else ``old``."""
    # the axes of a batched predicate stand on the left
    flag = jnp.reshape(active, active.shape + (1,) * (jnp.ndim(new) - active.ndim))
    if jnp.issubdtype(new.dtype, jax.dtypes.prng_key):
        data = jax.random.key_data
        picked = jnp.where(flag[..., None], data(new), data(old))
        return jax.random.wrap_key_data(picked, impl=jax.random.key_impl(new))
    return jnp.where(flag, new, old)


def narrowing_sites(program: Program, moving: Sequence[bool]) -> list[tuple[str, Any]]:
    """Where a value that depends on a moved input is rounded to a lower precision.

    A float64 reading rounds only around equations that run as they were traced.

    Args:
        program: the reading.
        moving: for each input, whether it moves.

    Returns:
        Pairs (dtype name, equation after the rounding), in program order.
    """
    found: dict[int, tuple[str, Any]] = {}
    _spread(program, list(moving), found)
    return list(found.values())


def _spread(program: Program, moving: list[bool], found: dict[int, Any]) -> list[bool]:
    """Forward pass: which outputs depend on a moved input."""
    jaxpr, _ = compat.opened(program)
    live = {v for v, m in zip(jaxpr.invars, moving, strict=True) if m}
    rounded: dict[Any, Equation] = {}  # values in a lower precision
    for eqn in jaxpr.eqns:
        operands = [not compat.is_literal(v) and v in live for v in eqn.invars]
        if not any(operands):
            continue
        if _narrows(eqn):
            rounded[eqn.outvars[0]] = eqn
        elif any(_is_float(v) for v in eqn.outvars):
            # rounding does not reach what is no float: signs, comparisons, indices
            for v in eqn.invars:
                if not compat.is_literal(v) and v in rounded:
                    _note(rounded[v], found)
            if _from_bits(eqn):
                found[id(eqn)] = (str(eqn.outvars[0].aval.dtype), eqn)
        for inner in interpret.nested_programs(eqn):
            # no telling which operand feeds which input of every primitive: assume all
            inner_jaxpr, _ = compat.opened(inner)
            _spread(inner, [True] * len(inner_jaxpr.invars), found)
        live.update(eqn.outvars)
    outputs = [v for v in jaxpr.outvars if not compat.is_literal(v)]
    for v in outputs:
        if v in rounded:
            _note(rounded[v], found)
    return [not compat.is_literal(v) and v in live for v in jaxpr.outvars]


def _note(eqn: Equation, found: dict[int, Any]) -> None:
    found[id(eqn)] = (str(eqn.params["new_dtype"]), eqn)


def _is_float(var: Any) -> bool:
    return hasattr(var.aval, "dtype") and is_inexact(var.aval.dtype)


def _from_bits(eqn: Equation) -> bool:
    """Whether an equation makes a float of the bits of an integer that moves."""
    if eqn.primitive.name != "bitcast_convert_type":
        return False
    return not is_inexact(eqn.invars[0].aval.dtype)


def _narrows(eqn: Equation) -> bool:
    if eqn.primitive.name != "convert_element_type":
        return False
    source, target = eqn.invars[0].aval.dtype, eqn.params["new_dtype"]
    if not (is_inexact(source) and is_inexact(target)):
        return False
    return bool(jnp.finfo(target).eps > jnp.finfo(source).eps)
