"""How the survey builds distributions of numpyro and distrax, where they are installed.

What is differentiated is the log-probability, in the distribution's parameters and in
the value where that is continuous: samplers need the one, variational methods both.
"""

from __future__ import annotations

import importlib
import importlib.util
import warnings
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.survey_recipes import Case, Recipes


def with_(**fixed: Any) -> Callable[..., Any]:
    """Make a distribution with ``fixed`` arguments beside the parameters."""
    return lambda cls, **parameters: cls(**parameters, **fixed)


class Recipe(NamedTuple):
    """One way to make one distribution.

    Attributes:
        parameters: what is differentiated: numbers, as nested lists.
        make: ``make(cls, **parameters)`` returns the distribution.
        at: the value, a nested list or a tuple of several; a sample of the
            distribution's own if there is none.
        in_value: whether the value is differentiated too.
        label: tells the recipes of one distribution apart.
        method: the function of the value that is differentiated.
    """

    parameters: Mapping[str, Any]
    make: Callable[..., Any] = with_()
    at: Any = None
    in_value: bool = True
    label: str = ""
    method: str = "log_prob"

    def case(self) -> Case:
        return Case(self._build, self.label)

    def _build(
        self, cls: Any, rng: np.random.Generator
    ) -> tuple[Any, Callable[..., Any]]:
        del rng
        parameters = {
            name: jnp.asarray(value, jnp.float32)
            for name, value in self.parameters.items()
        }
        value = self.at
        if value is None:
            value = self.make(cls, **parameters).sample(jax.random.key(0))
        return differentiated(
            lambda **given: self.make(cls, **given),
            parameters,
            value,
            in_value=self.in_value,
            method=self.method,
        )


def differentiated(
    make: Callable[..., Any],
    parameters: Mapping[str, Any],
    value: Any,
    *,
    in_value: bool = True,
    method: str = "log_prob",
) -> tuple[Any, Callable[..., Any]]:
    """``make(**parameters).log_prob(value)``: what it is differentiated in, and it."""
    value = jax.tree.map(
        jnp.asarray, value, is_leaf=lambda node: isinstance(node, list)
    )
    floating = jnp.issubdtype(jnp.result_type(*jax.tree.leaves(value)), jnp.floating)
    moved = {"parameters": parameters} | (
        {"value": value} if floating and in_value else {}
    )

    def apply(given: Any) -> Any:
        distribution = make(**given["parameters"])
        return getattr(distribution, method)(given.get("value", value))

    return moved, apply


def cases(
    table: Mapping[str, str | Recipe | tuple[Recipe, ...]],
) -> dict[str, str | tuple[Case, ...]]:
    """The cases of each distribution, or why it has no derivative to check."""
    found: dict[str, str | tuple[Case, ...]] = {}
    for name, entry in table.items():
        if isinstance(entry, str):
            found[name] = entry
            continue
        several = (entry,) if isinstance(entry, Recipe) else entry
        found[name] = tuple(recipe.case() for recipe in several)
    return found


def of(package: str) -> tuple[dict[str, Any], Recipes]:
    """The distributions of ``package`` and their cases; none if it is not installed."""
    if importlib.util.find_spec(package) is None:
        return {}, {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the package, about its own use of JAX
        tables = importlib.import_module(f"benchmarks.survey_{package}")
    return tables.FOUND, tables.CASES
