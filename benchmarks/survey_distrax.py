"""How the survey makes each distribution of distrax."""

from __future__ import annotations

import inspect
from typing import Any

import distrax
import jax.numpy as jnp

from benchmarks.survey_distributions import Recipe, cases, with_
from benchmarks.survey_recipes import Recipes

FOUND: dict[str, Any] = {
    name: value
    for name, value in vars(distrax).items()
    if inspect.isclass(value)
    and issubclass(value, distrax.Distribution)
    and value is not distrax.Distribution
}

_LOGITS = {"logits": [0.3, -0.7, 1.1]}
_NORMAL = {"loc": [0.3, -0.7], "scale": [1.2, 0.6]}
_MATRIX = [[1.3, 0.2], [0.2, 0.9]]
_AT = [0.1, 0.9]
_VON_MISES = {"loc": [0.3, -0.7], "concentration": [1.2, 0.6]}
# One value at the lower bound, one inside.
_CLIPPED = Recipe(
    _NORMAL, with_(minimum=-0.5, maximum=1.5), at=[-0.5, 0.9], in_value=False
)
_PIECEWISE_CONSTANT = "piecewise constant in the preferences"


def _normal(cls: Any, loc: Any, scale: Any, **more: Any) -> Any:
    return cls(distrax.Normal(loc, scale), **more)


def _clipped(cls: Any, loc: Any, scale: Any) -> Any:
    return cls(distrax.Normal(loc, scale), minimum=-0.5, maximum=1.5)


def _quantized(cls: Any, loc: Any, scale: Any) -> Any:
    return cls(distrax.Normal(loc, scale), low=-3.0, high=3.0)


def _joint(cls: Any, loc: Any, scale: Any) -> Any:
    return cls((distrax.Normal(loc[0], scale[0]), distrax.Laplace(loc[1], scale[1])))


def _two(cls: Any, prob_a: Any, loc: Any, scale: Any) -> Any:
    return cls(prob_a, distrax.Normal(loc, scale), distrax.Laplace(loc, scale))


def _normals(cls: Any, probs: Any, loc: Any, scale: Any) -> Any:
    return cls(distrax.Categorical(probs=probs), distrax.Normal(loc, scale))


def _log_normal(cls: Any, loc: Any, scale: Any) -> Any:
    return cls(distrax.Normal(loc, scale), distrax.Lambda(jnp.exp))


def _affine(cls: Any, loc: Any, matrix: Any) -> Any:
    return cls(loc, distrax.TriangularLinear(matrix))


TABLE: dict[str, str | Recipe | tuple[Recipe, ...]] = {
    "Bernoulli": (
        Recipe({"logits": [0.3, -0.7]}, at=[1, 0]),
        Recipe({"probs": [0.3, 0.6]}, at=[1, 0], label="probs"),
    ),
    "Beta": Recipe({"alpha": [1.3, 2.1], "beta": [0.7, 3.2]}, at=[0.3, 0.6]),
    "Categorical": (
        Recipe(_LOGITS, at=1),
        Recipe({"probs": [0.3, 0.5, 0.2]}, at=1, label="probs"),
    ),
    "CategoricalUniform": Recipe(_LOGITS | {"low": -0.3, "high": 2.6}, at=0.4),
    "Clipped": Recipe(_NORMAL, _clipped, at=[-0.5, 0.9], in_value=False),
    "ClippedLogistic": _CLIPPED,
    "ClippedNormal": _CLIPPED,
    "Deterministic": "its log-probability is zero or minus infinity",
    "Dirichlet": Recipe({"concentration": [1.3, 2.1, 0.8]}, at=[0.2, 0.5, 0.3]),
    "EpsilonGreedy": _PIECEWISE_CONSTANT,
    "Gamma": Recipe({"concentration": [1.3, 2.1], "rate": [0.7, 3.2]}, at=[0.3, 1.6]),
    "Greedy": _PIECEWISE_CONSTANT,
    "Gumbel": Recipe(_NORMAL, at=_AT),
    "Independent": Recipe(_NORMAL, _normal, at=_AT),
    "Joint": Recipe(_NORMAL, _joint, at=tuple(_AT)),
    "Laplace": Recipe(_NORMAL, at=_AT),
    "LogStddevNormal": Recipe({"loc": [0.3, -0.7], "log_scale": [0.2, -0.6]}, at=_AT),
    "Logistic": Recipe(_NORMAL, at=_AT),
    "MixtureOfTwo": Recipe({"prob_a": 0.3, "loc": 0.3, "scale": 1.2}, _two, at=0.9),
    "MixtureSameFamily": Recipe(_NORMAL | {"probs": [0.3, 0.7]}, _normals, at=0.4),
    "Multinomial": Recipe(_LOGITS, with_(total_count=5), at=[1, 0, 4]),
    "MultivariateNormalDiag": Recipe(
        {"loc": [0.3, -0.7], "scale_diag": [1.2, 0.6]}, at=_AT
    ),
    "MultivariateNormalDiagPlusLowRank": Recipe(
        {
            "loc": [0.3, -0.7],
            "scale_diag": [1.2, 0.6],
            "scale_u_matrix": [[0.4], [0.2]],
        },
        at=_AT,
    ),
    "MultivariateNormalFromBijector": Recipe(
        {"loc": [0.3, -0.7], "matrix": [[1.2, 0.0], [0.4, 0.6]]}, _affine, at=_AT
    ),
    "MultivariateNormalFullCovariance": Recipe(
        {"loc": [0.3, -0.7], "covariance_matrix": _MATRIX}, at=_AT
    ),
    "MultivariateNormalTri": Recipe(
        {"loc": [0.3, -0.7], "scale_tri": [[1.2, 0.0], [0.4, 0.6]]}, at=_AT
    ),
    "Normal": Recipe(_NORMAL, at=_AT),
    "OneHotCategorical": Recipe(_LOGITS, at=[0, 1, 0]),
    "Quantized": Recipe(_NORMAL, _quantized, at=[1.0, 0.0], in_value=False),
    "Softmax": Recipe(_LOGITS | {"temperature": 0.7}, at=2),
    "Transformed": Recipe(_NORMAL, _log_normal, at=[0.7, 1.9]),
    "Uniform": Recipe({"low": [-0.3, 0.1], "high": [1.2, 2.6]}, at=_AT),
    "VonMises": (
        Recipe(_VON_MISES, at=_AT),
        Recipe(_VON_MISES, at=_AT, method="cdf", label="cdf"),
        Recipe(
            _VON_MISES | {"concentration": [12.0, 20.0]},
            at=_AT,
            method="cdf",
            label="cdf, concentrated",
        ),
    ),
}

CASES: Recipes = cases(TABLE)
