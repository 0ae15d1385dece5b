"""What the survey looks at: the public functions of each module, and their cases."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import flax.linen
import jax
import jax.numpy as jnp
import jax.scipy.linalg
import jax.scipy.special
import jax.scipy.stats
import optax
from flax import nnx

from benchmarks import survey_distributions as probabilities
from benchmarks import survey_layers as layers
from benchmarks import survey_recipes as recipes
from benchmarks.survey_rows import (
    NOT_CALLED,
    NOT_DIFFERENTIABLE,
    SAME,
    in_short,
    title,
)


class Target(NamedTuple):
    """One thing to do: a function with a case, or a reason why there is none."""

    module: str
    function: str
    value: Any
    case: recipes.Case | None
    verdict: str = ""
    reason: str = ""

    @property
    def title(self) -> str:
        label = self.case.label if self.case else ""
        return title(self.module, self.function, label)


def functions_of(module: Any) -> dict[str, Any]:
    """The public functions of a module."""
    named = {name: getattr(module, name) for name in dir(module) if name[0] != "_"}
    return {
        name: value
        for name, value in named.items()
        if callable(value) and not inspect.isclass(value)
    }


def layers_of(module: Any, functions: str) -> dict[str, Any]:
    """The layers of flax's ``module``, and those of ``functions`` that it has."""
    named = {name: getattr(module, name) for name in dir(module) if name[0] != "_"}
    return {
        name: value
        for name, value in named.items()
        if (inspect.isclass(value) and issubclass(value, module.Module))
        or name in functions.split()
    }


def distributions() -> dict[str, Any]:
    """``norm.logpdf`` and so on, and the functions beside the distributions."""
    stats = jax.scipy.stats
    found = functions_of(stats) | {"gaussian_kde": stats.gaussian_kde}
    for name in dir(stats):
        if inspect.ismodule(getattr(stats, name)):
            members = functions_of(getattr(stats, name))
            found |= {f"{name}.{member}": value for member, value in members.items()}
    return found


def distribution_recipes(functions: Mapping[str, Any]) -> recipes.Recipes:
    """The cases of ``jax.scipy.stats``."""
    table: dict[str, Any] = dict(recipes.STATS)
    for name, function in functions.items():
        distribution = name.partition(".")[0]
        if distribution in recipes.DISTRIBUTIONS:
            own = recipes.of_distribution(function, distribution)
            extra = recipes.STATS_EXTRA.get(name)
            table[name] = own if extra is None else (own, extra)
    return table


def surveyed() -> dict[str, tuple[dict[str, Any], recipes.Recipes]]:
    """Public functions and how to call them, by module."""
    stats = distributions()
    return {
        "jax.nn": (functions_of(jax.nn), recipes.NN),
        "jax.numpy": (functions_of(jnp), recipes.NUMPY),
        "jax.numpy.fft": (functions_of(jnp.fft), recipes.FFT),
        "jax.numpy.linalg": (functions_of(jnp.linalg), recipes.NUMPY_LINALG),
        "jax.scipy.special": (functions_of(jax.scipy.special), recipes.SPECIAL),
        "jax.scipy.stats": (stats, distribution_recipes(stats)),
        "jax.scipy.linalg": (functions_of(jax.scipy.linalg), recipes.SCIPY_LINALG),
        "optax.losses": (functions_of(optax.losses), recipes.OPTAX),
        "flax.linen": (
            layers_of(flax.linen, layers.LINEN_FUNCTIONS),
            layers.LINEN,
        ),
        "flax.nnx": (layers_of(nnx, layers.NNX_FUNCTIONS), layers.NNX),
        "numpyro.distributions": probabilities.of("numpyro"),
        "distrax": probabilities.of("distrax"),
    }


def targets(
    modules: Mapping[str, tuple[Mapping[str, Any], recipes.Recipes]],
) -> Iterator[Target]:
    """Every case of every function, once; further names of a function say so."""
    known: dict[int, str] = {}
    for module, (functions, table) in modules.items():
        found: list[Target] = []
        for name in sorted(functions, key=lambda name: (name not in table, name)):
            function = functions[name]
            if id(function) in known:
                reason = known[id(function)]
                found.append(Target(module, name, function, None, SAME, reason))
                continue
            known[id(function)] = f"{module}.{name}"
            found.extend(cases_of(module, name, function, table))
        yield from sorted(found, key=lambda target: target.function)


def cases_of(
    module: str, name: str, function: Any, table: recipes.Recipes
) -> Iterator[Target]:
    entry = table.get(name)
    if isinstance(entry, str):
        yield Target(module, name, function, None, NOT_DIFFERENTIABLE, entry)
        return
    if entry is None:
        try:
            entry = recipes.default(function)
        except (TypeError, ValueError) as error:
            yield Target(module, name, function, None, NOT_CALLED, in_short(error))
            return
    cases = (entry,) if isinstance(entry, recipes.Case) else entry
    for case in cases:
        yield Target(module, name, function, case)
