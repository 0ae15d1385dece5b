"""How the survey builds distributions of numpyro and distrax, where they are installed.

The parameters are random values that satisfy the constraints which the distribution
declares; its log-probability is differentiated in them, at a sample of its own.
"""

from __future__ import annotations

import functools
import importlib
import inspect
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.survey_recipes import Case, Recipes

# What a constraint's bijection may want to be given: a vector of three, one number,
# the entries of a triangle, of a square.
_SHAPES = ((3,), (), (6,), (3, 3))


def numpyro() -> tuple[dict[str, Any], Recipes]:
    """The distributions of numpyro; none if it is not installed."""
    try:
        distributions = importlib.import_module("numpyro.distributions")
    except ImportError:
        return {}, {}
    base = distributions.Distribution
    found = {
        name: value
        for name, value in vars(distributions).items()
        if inspect.isclass(value)
        and issubclass(value, base)
        and value is not base
        and name in distributions.__all__
    }
    return found, {name: Case(_numpyro_case) for name in found}


_MATRIX = [[1.3, 0.2, 0.1], [0.2, 0.9, -0.3], [0.1, -0.3, 1.1]]
_TRIANGLE = [[1.2, 0.0, 0.0], [0.3, 0.8, 0.0], [-0.2, 0.4, 1.1]]
# Distributions whose parameters depend on each other, or that take one of several.
_NUMPYRO: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "BetaBinomial": (
        {"concentration1": [1.3, 2.1], "concentration0": [0.7, 3.2]},
        {"total_count": 5},
    ),
    "BinomialLogits": ({"logits": [0.3, -0.7]}, {"total_count": 5}),
    "BinomialProbs": ({"probs": [0.3, 0.6]}, {"total_count": 5}),
    "DirichletMultinomial": ({"concentration": [1.3, 2.1, 0.8]}, {"total_count": 5}),
    "DoublyTruncatedPowerLaw": ({"alpha": -1.7, "low": 0.4, "high": 2.3}, {}),
    "LKJ": ({"concentration": 1.7}, {"dimension": 3}),
    "LKJCholesky": ({"concentration": 1.7}, {"dimension": 3}),
    "LogUniform": ({"low": [0.4, 0.1], "high": [2.3, 1.7]}, {}),
    "MatrixNormal": (
        {
            "loc": [[0.3, -0.7, 1.1]] * 3,
            "scale_tril_row": _TRIANGLE,
            "scale_tril_column": _TRIANGLE,
        },
        {},
    ),
    "MultinomialLogits": ({"logits": [0.3, -0.7, 1.1]}, {"total_count": 5}),
    "MultinomialProbs": ({"probs": [0.3, 0.5, 0.2]}, {"total_count": 5}),
    "MultivariateNormal": (
        {"loc": [0.3, -0.7, 1.1], "covariance_matrix": _MATRIX},
        {},
    ),
    "MultivariateStudentT": (
        {"df": 4.2, "loc": [0.3, -0.7, 1.1], "scale_tril": _TRIANGLE},
        {},
    ),
    "LowRankMultivariateNormal": (
        {
            "loc": [0.3, -0.7, 1.1],
            "cov_factor": [[0.4], [0.1], [-0.6]],
            "cov_diag": [0.7, 1.2, 0.5],
        },
        {},
    ),
    "Uniform": ({"low": [-0.3, 0.1], "high": [1.2, 2.6]}, {}),
    "Wishart": ({"concentration": 4.2, "scale_tril": _TRIANGLE}, {}),
    "WishartCholesky": ({"concentration": 4.2, "scale_tril": _TRIANGLE}, {}),
    "ZeroSumNormal": ({"scale": 1.2}, {"event_shape": (3,)}),
}


def _numpyro_case(cls: Any, rng: np.random.Generator) -> tuple[Any, Callable[..., Any]]:
    distributions = importlib.import_module("numpyro.distributions")
    if cls.__name__ in _NUMPYRO:
        given, fixed = _NUMPYRO[cls.__name__]
        parameters = {k: jnp.asarray(v, jnp.float32) for k, v in given.items()}
        return parameters, _at_a_sample(functools.partial(cls, **fixed), parameters)
    signature = inspect.signature(cls.__init__).parameters
    wanted = [
        name
        for name, p in signature.items()
        if name in cls.arg_constraints
        and p.default in (inspect.Parameter.empty, 0.0, 1.0)
    ]
    parameters = {
        name: _admissible(distributions, cls.arg_constraints[name], rng)
        for name in wanted
    }
    return parameters, _at_a_sample(cls, parameters)


def _at_a_sample(make: Callable[..., Any], parameters: Any) -> Callable[..., Any]:
    """The log-probability of a sample, as a function of the parameters."""
    sample = make(**parameters).sample(jax.random.key(0))
    return lambda parameters: make(**parameters).log_prob(sample)


def _admissible(distributions: Any, constraint: Any, rng: np.random.Generator) -> Any:
    """A random value that satisfies ``constraint``."""
    bijection = distributions.biject_to(constraint)
    error: Exception | None = None
    for shape in _SHAPES:
        try:
            value = bijection(jnp.asarray(0.5 * rng.normal(size=shape), jnp.float32))
        except Exception as failed:
            error = failed
            continue
        if bool(jnp.all(constraint(value))):
            return value
    raise TypeError(f"no value for the constraint {constraint}") from error


def distrax() -> tuple[dict[str, Any], Recipes]:
    """Some distributions of distrax; none if it is not installed."""
    try:
        module = importlib.import_module("distrax")
    except ImportError:
        return {}, {}
    found = {name: getattr(module, name) for name in _DISTRAX if hasattr(module, name)}
    return found, {name: Case(_distrax_case(name)) for name in found}


_DISTRAX: dict[str, tuple[dict[str, Any], Any]] = {
    "Beta": ({"alpha": [1.3, 2.1], "beta": [0.7, 3.2]}, [0.3, 0.6]),
    "Categorical": ({"logits": [0.3, -0.7, 1.1]}, 1),
    "Dirichlet": ({"concentration": [1.3, 2.1, 0.8]}, [0.2, 0.5, 0.3]),
    "Gamma": ({"concentration": [1.3, 2.1], "rate": [0.7, 3.2]}, [0.3, 1.6]),
    "Gumbel": ({"loc": [0.3, -0.7], "scale": [1.2, 0.6]}, [0.1, 0.9]),
    "Laplace": ({"loc": [0.3, -0.7], "scale": [1.2, 0.6]}, [0.1, 0.9]),
    "Logistic": ({"loc": [0.3, -0.7], "scale": [1.2, 0.6]}, [0.1, 0.9]),
    "LogStddevNormal": ({"loc": [0.3, -0.7], "log_scale": [0.2, -0.6]}, [0.1, 0.9]),
    "MultivariateNormalDiag": (
        {"loc": [0.3, -0.7], "scale_diag": [1.2, 0.6]},
        [0.1, 0.9],
    ),
    "MultivariateNormalTri": (
        {"loc": [0.3, -0.7], "scale_tri": [[1.2, 0.0], [0.4, 0.6]]},
        [0.1, 0.9],
    ),
    "Normal": ({"loc": [0.3, -0.7], "scale": [1.2, 0.6]}, [0.1, 0.9]),
    "Softmax": ({"logits": [0.3, -0.7, 1.1], "temperature": 0.7}, 2),
    "Uniform": ({"low": [-0.3, 0.1], "high": [1.2, 2.6]}, [0.1, 0.9]),
    "VonMises": ({"loc": [0.3, -0.7], "concentration": [1.2, 0.6]}, [0.1, 0.9]),
}


def _distrax_case(name: str) -> Callable[..., Any]:
    arguments, at = _DISTRAX[name]

    def build(cls: Any, rng: np.random.Generator) -> tuple[Any, Callable[..., Any]]:
        del rng
        parameters = {k: jnp.asarray(v, jnp.float32) for k, v in arguments.items()}
        return parameters, lambda p: cls(**p).log_prob(jnp.asarray(at))

    return build
