"""Programs whose gradient cannot be judged: no derivative, or no way to measure it."""

from __future__ import annotations

import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .cases import Program, UnknowableList
from .planting import normal

UNKNOWABLE = UnknowableList()


@UNKNOWABLE.add(finding="discontinuity")
def jump_at_the_point(rng: np.random.Generator) -> Program:
    """Floor at an integer, as a factor."""
    x = jnp.asarray(np.asarray([1.0, 2.0, 3.0], np.float32))
    return Program(lambda p: jnp.sum(jnp.floor(p["x"]) * (p["x"] + 1)), {"x": x})


@UNKNOWABLE.add(finding="discontinuity")
def step_at_the_point(rng: np.random.Generator) -> Program:
    """A threshold exactly at the parameter's value."""
    x = jnp.asarray(np.asarray([0.5, 0.5], np.float32))
    return Program(
        lambda p: jnp.sum(jnp.where(p["x"] >= 0.5, 1.0 + p["x"], p["x"])), {"x": x}
    )


@UNKNOWABLE.add(finding="discontinuity")
def rounding_at_a_tie(rng: np.random.Generator) -> Program:
    """round(x) where x is halfway between two integers."""
    x = jnp.asarray(np.asarray([0.5, 1.5], np.float32))
    return Program(lambda p: jnp.sum(jnp.round(p["x"]) * 2 + p["x"]), {"x": x})


@UNKNOWABLE.add(finding="nondeterministic")
def random_between_calls(rng: np.random.Generator) -> Program:
    """NumPy's randomness inside: another function at each call."""

    def loss(params: Any) -> Any:
        noise = rng.standard_normal(3).astype(np.float32)
        return jnp.sum(jnp.sin(params["x"]) * noise)

    return Program(loss, {"x": normal(rng, 3)})


@UNKNOWABLE.add(finding="nondeterministic")
def counter_in_the_closure(rng: np.random.Generator) -> Program:
    """A schedule that advances whenever the loss is called."""
    count = itertools.count(1)
    return Program(lambda p: next(count) * jnp.sum(p["x"] ** 2), {"x": normal(rng, 3)})


@UNKNOWABLE.add(finding="nondeterministic")
def key_split_in_the_closure(rng: np.random.Generator) -> Program:
    """Dropout whose key is split in an attribute: a moving seed."""
    state = {"key": 0}

    def loss(params: Any) -> Any:
        state["key"] += 1
        mask = jax.random.bernoulli(jax.random.key(state["key"]), 0.5, (8,))
        return jnp.sum(jnp.where(mask, params["x"] ** 2, 0))

    return Program(loss, {"x": normal(rng, 8)})


@UNKNOWABLE.add(finding="noise")
def signal_below_the_last_digit(rng: np.random.Generator) -> Program:
    """1e18 + sin(x): not one digit of the sine survives, in float64 either."""
    return Program(lambda p: 1e18 + jnp.sum(jnp.sin(p["x"])), {"x": normal(rng, 3)})


@UNKNOWABLE.add(finding="nan_loss")
def loss_is_nan(rng: np.random.Generator) -> Program:
    """The logarithm of a negative number."""
    x = jnp.asarray(np.asarray([1.0, -1.0], np.float32))
    return Program(lambda p: jnp.sum(jnp.log(p["x"])), {"x": x})


@UNKNOWABLE.add(finding="nan_loss")
def loss_is_infinite(rng: np.random.Generator) -> Program:
    """exp(1e4) overflows in float64 too."""
    x = jnp.asarray(np.asarray([1.0, 1e4], np.float32))
    return Program(lambda p: jnp.sum(jnp.exp(p["x"])), {"x": x})


@UNKNOWABLE.add(finding="nan_loss")
def loss_is_minus_infinity(rng: np.random.Generator) -> Program:
    """log(0), as a cross-entropy of a class with probability zero."""
    x = jnp.asarray(np.asarray([1.0, 0.0], np.float32))
    return Program(lambda p: jnp.sum(jnp.log(p["x"])), {"x": x})


@UNKNOWABLE.add(finding="nan_loss")
def nan_from_the_data(rng: np.random.Generator) -> Program:
    """One NaN among the inputs."""
    x = normal(rng, 4, 3).at[2, 1].set(jnp.nan)
    return Program(
        lambda p, x: jnp.mean((x @ p["w"]) ** 2), {"w": normal(rng, 3)}, (x,)
    )


@UNKNOWABLE.add()
def edge_of_the_domain(rng: np.random.Generator) -> Program:
    """Sqrt at 0: finite there, NaN on one side, vertical on the other."""
    x = jnp.asarray(np.asarray([0.0, 1.0, 4.0], np.float32))
    return Program(lambda p: jnp.sum(jnp.sqrt(p["x"])), {"x": x})


@UNKNOWABLE.add(resolvable=True)
def logarithm_next_to_its_pole(rng: np.random.Generator) -> Program:
    """Log at 1e-30 beside 1: a step made for the leaf leaves the domain."""
    x = jnp.asarray(np.asarray([1.0, 1e-30], np.float32))
    return Program(lambda p: jnp.sum(jnp.log(p["x"])), {"x": x})
