r"""What can be said of an optimizer without its formula.

Each property is found by comparing two updates that it makes equal. They are taken in
float64 from a fresh state, at gradients of one scale, so that eps plays no part.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxcheck.jaxprs import compat
from jaxcheck.reports.numbers import counted, significant
from jaxcheck.reports.values import Finding
from jaxcheck.trees import by_path
from jaxcheck.updates.nonfinite import KINDS, reaction

Array = Any
Updates = dict[str, Array]  # by the path of the leaf

# Two updates are the same up to this share of the larger one: some transformations
# compute in float32 whatever they are given.
_SAME = 1e-6
_SCALE = 1e4
_STEPS = 6
# Signs of random gradients agree by chance in half of the elements.
_CHANCE = 0.65
_SURELY = 0.95


class Screened(NamedTuple):
    """What kind of optimizer it is.

    Attributes:
        properties: pairs of a property and what was found.
        findings: what is odd.
    """

    properties: list[tuple[str, str]]
    findings: list[Finding]


class Answer(NamedTuple):
    """One property, and what is odd about it."""

    name: str
    text: str
    finding: Finding | None = None


class Screen:
    """Asks one transformation."""

    def __init__(
        self, tx: Any, params: Any, extra: Callable[[int], dict[str, Any]], seed: Any
    ) -> None:
        """Prepare.

        Args:
            tx: the transformation.
            params: a pytree of float64 arrays.
            extra: what else it is given in a step.
            seed: of the gradients.
        """
        self._tx = tx
        self._extra = extra
        self._rng = np.random.default_rng(seed)
        self._update = jax.jit(lambda g, s, p, e: tx.update(g, s, p, **e))
        with compat.x64(True):
            self._params = jax.tree.map(jnp.asarray, params)
            self._gradient = jax.tree.map(self._draw, params)

    def _draw(self, value: Array) -> Array:
        """Numbers of either sign, none of them small."""
        sign = self._rng.choice((-1.0, 1.0), np.shape(value))
        drawn = _SCALE * sign * self._rng.uniform(0.5, 1.5, np.shape(value))
        return jnp.asarray(drawn, np.asarray(value).dtype)

    def screen(self) -> Screened:
        """Everything at once."""
        with compat.x64(True):
            first = self._first(self._gradient)
            still = self._first(_times(self._gradient, 0.0))
            random = self._is_random()
            answers = [
                self._descent(first, still),
                self._zero(still, random),
                self._stale(),
                self._oddness(first, still, random),
                self._degree(first, still),
                self._translation(first),
                self._coupling(first),
                self._order(first),
                self._shapes(first),
                self._carried(),
                self._pure(first),
                *(self._nonfinite(kind, random) for kind in KINDS),
            ]
        return Screened(
            [(answer.name, answer.text) for answer in answers],
            [answer.finding for answer in answers if answer.finding is not None],
        )

    # -- running

    def _first(self, gradient: Any, params: Any = None) -> Updates:
        """The update of the first step."""
        params = self._params if params is None else params
        out, _ = self._update(gradient, self._tx.init(params), params, self._extra(0))
        return _named(out)

    def _after(self, gradients: Sequence[Any], moves: bool = True) -> list[Updates]:
        """The updates of several steps."""
        params, state = self._params, self._tx.init(self._params)
        out: list[Updates] = []
        for k, gradient in enumerate(gradients):
            updates, state = self._update(gradient, state, params, self._extra(k))
            if moves:
                params = jax.tree.map(lambda p, u: p + u, params, updates)
            out.append(_named(updates))
        return out

    def _is_random(self) -> bool:
        """Whether the state holds a random key."""
        return any(
            jnp.issubdtype(x.dtype, jax.dtypes.prng_key)
            or (x.dtype == jnp.uint32 and x.shape == (2,))
            for x in jax.tree.leaves(self._tx.init(self._params))
            if hasattr(x, "dtype")
        )

    # -- questions: name, answer, and what is odd about it

    def _zero(self, still: Updates, random: bool) -> Answer:
        name = "at a zero gradient"
        if not _finite(still):
            message = "at a zero gradient, in the first step, the update is not finite."
            return Answer(name, "NaN or infinite", _nan(message))
        if random:
            return Answer(name, "random: the state holds a key")
        if _norm(still) == 0.0:
            return Answer(name, "stands still")
        params = _named(self._params)
        decay = -_inner(still, params) / _inner(params, params)
        rest = {k: u + decay * params[k] for k, u in still.items()}
        if decay > 0 and _norm(rest) <= _SAME * _norm(still):
            return Answer(name, f"decays the parameters by {significant(decay, 3)}")
        text = f"moves by {significant(_largest(still), 2)}"
        message = (
            f"at a zero gradient, in the first step, it {text}, which is no weight "
            "decay: parameters without a gradient do not rest."
        )
        return Answer(name, text, _odd(message))

    def _descent(self, first: Updates, still: Updates) -> Answer:
        name = "first step"
        gradient = _named(self._gradient)
        if not _finite(first):
            return Answer(name, "not finite", _nan("the first update is not finite."))
        still = still if _finite(still) else jax.tree.map(np.zeros_like, still)
        change = {k: u - still[k] for k, u in first.items()}
        slope = _inner(change, gradient)
        if slope == 0.0:
            return Answer(name, "does not move: a warm-up from zero, or one step late")
        cosine = slope / (_norm(change) * _norm(gradient))
        if slope > 0:
            message = (
                f"it ascends: the first update points along the gradient (cosine "
                f"{cosine:.2f}). Updates are added to the parameters, so that it is "
                "the learning rate's sign that is missing."
            )
            return Answer(name, "ascends", _odd(message))
        return Answer(name, f"descends (cosine {cosine:.2f} with the gradient)")

    def _stale(self) -> Answer:
        """Does an update follow the gradient of its own step, or of the one before?"""
        name = "a step and its gradient"
        gradients = [jax.tree.map(self._draw, self._params) for _ in range(_STEPS)]
        updates = [_flat(u) for u in self._after(gradients)]
        against = [-np.sign(_flat(_named(g))) for g in gradients]
        own = _agreement(updates[1:], against[1:])
        before = _agreement(updates[1:], against[:-1])
        if own > _CHANCE or before < _SURELY:
            return Answer(name, "each step uses its own gradient")
        message = (
            f"it is one step late: {before:.0%} of the elements of an update have the "
            f"sign that the gradient of the step before asks for, {own:.0%} that of "
            "its own."
        )
        return Answer(name, "one step late", _odd(message))

    def _oddness(self, first: Updates, still: Updates, random: bool) -> Answer:
        name = "opposite gradient"
        if random:
            return Answer(name, "random")
        other = self._first(_times(self._gradient, -1.0))
        total = {k: first[k] + other[k] - 2 * still[k] for k in first}
        if _norm(total) <= _SAME * max(_norm(first), _norm(other)):
            return Answer(name, "opposite update")
        share = _norm(total) / (2 * _norm(first))
        text = f"not the opposite update (off by {significant(share, 2)})"
        return Answer(name, text)

    def _degree(self, first: Updates, still: Updates) -> Answer:
        name = "twice the gradient"
        double = self._first(_times(self._gradient, 2.0))
        one = _norm({k: first[k] - still[k] for k in first})
        two = _norm({k: double[k] - still[k] for k in first})
        if not (one > 0 and two > 0):
            return Answer(name, "cannot be told")
        degree = math.log2(two / one)
        known = {0.0: "the same update", 1.0: "twice the update"}
        for number, text in known.items():
            if abs(degree - number) < 1e-3:
                return Answer(name, text)
        return Answer(name, f"{significant(two / one, 3)} times the update")

    def _translation(self, first: Updates) -> Answer:
        name = "other parameters"
        moved = jax.tree.map(lambda p: p + np.ones_like(p), self._params)
        same = _same(self._first(self._gradient, moved), first)
        text = "the same update" if same else "another update: it looks at them"
        return Answer(name, text)

    def _coupling(self, first: Updates) -> Answer:
        """How far the change of one element of the gradient reaches."""
        name = "elements act on"
        gradients = [jax.tree.map(self._draw, self._params) for _ in range(3)]
        leaves, treedef = jax.tree.flatten(gradients[0])
        largest = max(range(len(leaves)), key=lambda k: np.size(leaves[k]))
        changed = [np.array(x) for x in leaves]
        changed[largest].flat[0] *= -3.0
        # in the first step many an optimizer sees nothing but signs
        plain = self._after(gradients)
        other = self._after([jax.tree.unflatten(treedef, changed), *gradients[1:]])
        path = list(first)[largest]
        pairs = list(zip(plain, other, strict=True))
        elsewhere = [p for p in first if p != path]
        if not all(_same_array(a[p], b[p]) for a, b in pairs for p in elsewhere):
            return Answer(name, "all leaves")
        rests = [[np.ravel(u[path])[1:] for u in pair] for pair in pairs]
        alone = all(_same_array(a, b) for a, b in rests)
        return Answer(name, "themselves alone" if alone else "their leaf")

    def _order(self, first: Updates) -> Answer:
        name = "other order of leaves"
        leaves = jax.tree.leaves(self._gradient)
        if len(leaves) < 2:
            return Answer(name, "there is one leaf")
        params, gradient = (
            list(reversed(jax.tree.leaves(tree)))
            for tree in (self._params, self._gradient)
        )
        try:
            other = list(reversed(list(self._first(gradient, params).values())))
        except Exception as error:  # a mask that is a tree knows one structure only
            return Answer(name, f"needs this tree ({type(error).__name__})")
        pairs = zip(other, first.values(), strict=True)
        same = all(_same_array(a, b) for a, b in pairs)
        return Answer(name, "the same updates" if same else "other updates")

    def _shapes(self, first: Updates) -> Answer:
        name = "leaves as vectors"
        params, gradient = (
            jax.tree.map(np.ravel, tree) for tree in (self._params, self._gradient)
        )
        try:
            other = self._first(gradient, params)
        except Exception as error:  # a mask that is a tree of arrays, say
            return Answer(name, f"needs these shapes ({type(error).__name__})")
        same = all(_same_array(other[k], np.ravel(u)) for k, u in first.items())
        return Answer(
            name, "the same updates" if same else "other updates: shapes count"
        )

    def _carried(self) -> Answer:
        """Whether the state keeps its structure, shapes and dtypes."""
        name = "carried by lax.scan"
        state = self._tx.init(self._params)
        updates, after = self._update(
            self._gradient, state, self._params, self._extra(0)
        )
        kinds = [_kinds(x) for x in (state, after)]
        named = _named(updates)
        off = [k for k, p in _named(self._params).items() if named[k].dtype != p.dtype]
        if off:
            message = f"the update of {off[0] or 'the leaf'} has another dtype than it."
            return Answer(name, "updates change dtype", _odd(message))
        if kinds[0] == kinds[1]:
            arrays = len(jax.tree.leaves(state))
            return Answer(name, f"yes; {counted(arrays, 'array')} of state")
        message = (
            "the state changes its structure, shapes or dtypes in the first step: it "
            "cannot be carried by lax.scan, and each step compiles anew."
        )
        return Answer(name, "no", _odd(message))

    def _pure(self, first: Updates) -> Answer:
        name = "asked twice, and without jit"
        again = self._first(self._gradient)
        if not _same(again, first):
            message = "the same call gives another update: it is not a pure function."
            return Answer(name, "another update", _odd(message))
        state = self._tx.init(self._params)
        eager, _ = self._tx.update(
            self._gradient, state, self._params, **self._extra(0)
        )
        if not _same(_named(eager), first):
            message = "without jit the update is another one."
            return Answer(name, "another update without jit", _odd(message))
        return Answer(name, "the same update")

    def _nonfinite(self, kind: str, random: bool) -> Answer:
        """What one element of a gradient does that is not finite."""
        name = f"{kind} in a gradient"
        if random:
            return Answer(name, "random")
        gradients = [jax.tree.map(self._draw, self._params) for _ in range(4)]
        run = functools.partial(self._after, moves=False)
        return Answer(name, reaction(run, gradients, KINDS[kind]))


def _odd(message: str) -> Finding:
    return Finding(kind="odd_update", message=message)


def _nan(message: str) -> Finding:
    return Finding(kind="nan_update", message=message)


def _kinds(tree: Any) -> Any:
    leaves, treedef = jax.tree.flatten(tree)
    return treedef, [(jnp.shape(x), jnp.asarray(x).dtype) for x in leaves]


def _named(tree: Any) -> Updates:
    return {path: np.asarray(x) for path, x in by_path(tree).items()}


def _times(tree: Any, factor: float) -> Any:
    return jax.tree.map(lambda x: factor * x, tree)


def _flat(updates: Updates) -> Array:
    return np.concatenate([np.real(u).ravel() for u in updates.values()])


def _agreement(updates: Sequence[Array], signs: Sequence[Array]) -> float:
    """Share of the elements that move and have the sign that is asked for."""
    moves = np.concatenate(updates) != 0
    agree = np.sign(np.concatenate(updates)) == np.concatenate(signs)
    return float(np.mean(agree[moves])) if moves.any() else 0.5


def _finite(updates: Updates) -> bool:
    return all(bool(np.isfinite(u).all()) for u in updates.values())


def _norm(updates: Updates) -> float:
    return float(np.sqrt(sum(np.sum(np.abs(u) ** 2) for u in updates.values())))


def _largest(updates: Updates) -> float:
    return max(float(np.max(np.abs(u), initial=0.0)) for u in updates.values())


def _inner(one: Updates, other: Updates) -> float:
    return float(sum(np.vdot(one[k], other[k]).real for k in one))


def _same(one: Updates, other: Updates) -> bool:
    return all(_same_array(one[k], other[k]) for k in one)


def _same_array(one: Array, other: Array) -> bool:
    scale = max(np.max(np.abs(one), initial=0.0), np.max(np.abs(other), initial=0.0))
    return bool(np.all(np.abs(one - other) <= _SAME * scale))
