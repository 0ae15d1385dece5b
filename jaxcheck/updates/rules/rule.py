"""What a closed form of an optimizer is: NumPy in float64, and nothing of JAX or optax.

A rule is called as users' own rules are, ``(gradients, params, state, step) ->
(updates, state)``. It is written for one leaf, or for all leaves at once where they act
on each other; what is here makes the former into the latter.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import inspect
import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, ParamSpec

import jax
import numpy as np

from jaxcheck.errors import InvalidInputError
from jaxcheck.trees import wide_on_host

Array = Any  # np.ndarray, float64 or complex128
State = dict[str, Any]
Rate = float | Callable[[int], Any]  # a learning rate, or a schedule of one
P = ParamSpec("P")


class Leafwise(NamedTuple):
    """A rule that treats each leaf by itself.

    Attributes:
        init: state of one leaf, arrays or numbers by name.
        update: ``(gradient, parameter, state, t) -> (update, state)`` of one leaf, t
            counted from 1 as papers do.
    """

    init: Callable[[Array], State]
    update: Callable[[Array, Array, State, int], tuple[Array, State]]


class Elementwise(Leafwise):
    """A rule that treats each element by itself: of some elements, it says the same."""

    __slots__ = ()


class Treewise(NamedTuple):
    """A rule in which leaves act on each other.

    Attributes:
        init: state of all leaves by name: lists of one array a leaf, or what belongs
            to no leaf, as it is. A name that begins with an underscore is the rule's
            own: no transformation has it.
        update: as for ``Leafwise``, with lists of arrays, and what else the
            transformation is given (``value=...``) by name.
    """

    init: Callable[[list[Array]], State]
    update: Callable[..., tuple[list[Array], State]]


class Masked(NamedTuple):
    """A rule for some leaves, and another for the rest.

    Attributes:
        mask: a pytree of bools like the parameters, or a prefix of such a one, or a
            function of the parameters that gives it.
        chosen: the rule where it is True.
        others: the rule where it is False.
    """

    mask: Any
    chosen: Leafwise | Masked
    others: Leafwise | Masked


class Noisy(NamedTuple):
    """A rule that adds normal noise to a gradient, and goes on as another rule.

    As a rule of updates it gives their mean: what they are without the noise.

    Attributes:
        moments: ``(gradients, t) -> (mean, deviation)`` of the noisy gradient: an array
            a leaf, and the standard deviation of each of their elements.
        then: what becomes of it; affine in the gradient.
        per_example: whether gradients have a first axis of examples, which the mean
            has not.
        outside: whether the noise is added to the updates instead.
    """

    moments: Callable[[list[Array], int], tuple[list[Array], float]]
    then: Form
    per_example: bool = False
    outside: bool = False


# A rule that is made of other rules is a function of the parameters, because those may
# have masks, and a mask is known once the pytree is.
Form = Leafwise | Treewise | Masked | Noisy | Callable[[Any], Treewise]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Rule:
    """A closed form: ``(gradients, params, state, step) -> (updates, state)``.

    Attributes:
        name: e.g. ``"adamw"``.
        settings: every argument of the rule, by name.
        source: where it is from, as text.
        variants: what implementations of it are known to do otherwise: settings by
            what is said of them ("with eps inside the square root").
        form: how it is written.
        make: gives the same rule with other settings.
    """

    name: str
    settings: Mapping[str, Any]
    source: str
    variants: Mapping[str, Mapping[str, Any]]
    form: Form
    make: Callable[..., Rule]

    def __call__(
        self, gradients: Any, params: Any, state: Any, step: int, **extra: Any
    ) -> tuple[Any, State]:
        """The updates that are added to ``params``, and the next state.

        Args:
            gradients: a pytree of float64 or complex128 arrays.
            params: a pytree of the same structure.
            state: what the last call returned; None before the first.
            step: number of the call, from 0.
            **extra: what else the transformation is given, e.g. ``value``.

        Returns:
            The updates, a pytree like ``params``, and the state: by name, pytrees of
            that structure, or what belongs to no leaf. Where the formula divides by
            zero they are not finite.
        """
        treedef = jax.tree.structure(params)
        g, p = (
            [wide_on_host(x) for x in jax.tree.leaves(tree)]
            for tree in (gradients, params)
        )
        tree = of_all_leaves(self.form, params)
        known = tree.init(p)
        if state is not None:
            known = {
                name: treedef.flatten_up_to(state[name])
                if isinstance(value, list)
                else state[name]
                for name, value in known.items()
            }
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            updates, after = tree.update(g, p, known, step + 1, **extra)
        unflatten = functools.partial(jax.tree.unflatten, treedef)
        return unflatten(updates), {
            name: unflatten(value) if isinstance(value, list) else value
            for name, value in after.items()
        }

    def replace(self, **settings: Any) -> Rule:
        """The same rule with some settings changed.

        Raises:
            InvalidInputError: if the rule has no setting of that name.
        """
        for name in settings:
            if name not in self.settings:
                known = ", ".join(self.settings)
                raise InvalidInputError(
                    f"`replace({name}=...)`: {self.name} has no such setting; it has "
                    f"{known}."
                )
        arguments = inspect.BoundArguments(
            inspect.signature(self.make),
            collections.OrderedDict({**self.settings, **settings}),
        )
        return self.make(*arguments.args, **arguments.kwargs)

    def __repr__(self) -> str:
        parameters = inspect.signature(self.make).parameters
        told: list[str] = []
        for name, value in self.settings.items():
            if parameters[name].kind is inspect.Parameter.VAR_POSITIONAL:
                told += [repr(one) for one in value]
            elif value is not parameters[name].default:
                told.append(f"{name}={value!r}")
        return f"{self.name}({', '.join(told)})"


def rule(
    source: str, variants: Mapping[str, Mapping[str, Any]] | None = None
) -> Callable[[Callable[P, Form]], Callable[P, Rule]]:
    """Make a function of settings that gives a form into one that gives a ``Rule``.

    Args:
        source: paper and equation.
        variants: see ``Rule.variants``.
    """

    def decorate(factory: Callable[P, Form]) -> Callable[P, Rule]:
        signature = inspect.signature(factory)

        @functools.wraps(factory)
        def make(*args: P.args, **kwargs: P.kwargs) -> Rule:
            bound = signature.bind(*args, **kwargs)
            bound.apply_defaults()
            return Rule(
                name=factory.__name__,
                settings=bound.arguments,
                source=source,
                variants=variants or {},
                form=factory(*args, **kwargs),
                make=make,
            )

        return make

    return decorate


def rate_at(rate: Rate, t: int) -> float:
    """The learning rate of call ``t``, counted from 1: schedules count from 0."""
    return float(rate(t - 1)) if callable(rate) else float(rate)


def acts_elementwise(form: Form) -> bool:
    """Whether it can be evaluated on some elements of the leaves alone."""
    if isinstance(form, Masked):
        # a function would see leaves of other shapes
        chosen = acts_elementwise(form.chosen) and acts_elementwise(form.others)
        return chosen and not callable(form.mask)
    if isinstance(form, Noisy):
        return acts_elementwise(form.then) and not form.per_example
    return isinstance(form, Elementwise)


def of_all_leaves(form: Form, params: Any) -> Treewise:
    """Any form as one for all leaves of ``params``."""
    if isinstance(form, Treewise):
        return form
    if isinstance(form, Leafwise):
        return _leaf_by_leaf(itertools.repeat(form))
    if isinstance(form, Masked):
        return _leaf_by_leaf(_chosen(form, params))
    if isinstance(form, Noisy):
        return _mean_of(form, params)
    return form(params)


def _mean_of(form: Noisy, params: Any) -> Treewise:
    tree = of_all_leaves(form.then, params)

    def update(
        gradients: list[Array], params: list[Array], state: State, t: int, **extra: Any
    ) -> tuple[list[Array], State]:
        mean, _ = form.moments(gradients, t)
        return tree.update(mean, params, state, t, **extra)

    return Treewise(tree.init, update)


def _chosen(form: Leafwise | Masked, params: Any) -> list[Leafwise]:
    """The rule of each leaf."""
    if isinstance(form, Leafwise):
        return [form] * len(jax.tree.leaves(params))
    mask = form.mask(params) if callable(form.mask) else form.mask
    flags = jax.tree.leaves(jax.tree.broadcast(mask, params))
    rules = zip(_chosen(form.chosen, params), _chosen(form.others, params), strict=True)
    return [
        chosen if flag else other
        for flag, (chosen, other) in zip(flags, rules, strict=True)
    ]


def _leaf_by_leaf(forms: Iterable[Leafwise]) -> Treewise:
    def init(params: list[Array]) -> State:
        return _by_name([form.init(p) for form, p in zip(forms, params, strict=False)])

    def update(
        gradients: list[Array], params: list[Array], state: State, t: int, **_: Any
    ) -> tuple[list[Array], State]:
        states = [
            {name: value[k] for name, value in state.items()}
            for k in range(len(params))
        ]
        leaves = zip(gradients, params, states, strict=True)
        done = [
            form.update(*leaf, t) for form, leaf in zip(forms, leaves, strict=False)
        ]
        return [u for u, _ in done], _by_name([s for _, s in done])

    return Treewise(init, update)


def _by_name(states: Sequence[State]) -> State:
    names = dict.fromkeys(name for state in states for name in state)
    return {name: [state.get(name) for state in states] for name in names}
