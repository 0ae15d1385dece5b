"""How the survey makes each distribution of numpyro.

A distribution that is not in ``TABLE`` gets random parameters that satisfy the
constraints which it declares.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist

from benchmarks.survey_distributions import Recipe, cases, differentiated, with_
from benchmarks.survey_recipes import Case, Recipes

FOUND: dict[str, Any] = {
    name: value
    for name, value in vars(dist).items()
    if inspect.isclass(value)
    and issubclass(value, dist.Distribution)
    and value is not dist.Distribution
    and name in dist.__all__
}

# --- Points ---------------------------------------------------------------------------

_LOC = [0.3, -0.7, 1.1]
_MATRIX = [[1.3, 0.2, 0.1], [0.2, 0.9, -0.3], [0.1, -0.3, 1.1]]
_TRIANGLE = [[1.2, 0.0, 0.0], [0.3, 0.8, 0.0], [-0.2, 0.4, 1.1]]
_NORMAL = {"loc": [0.3, -0.7], "scale": [1.2, 0.6]}
_GAMMA = {"concentration": [1.3, 2.1], "rate": [0.7, 3.2]}
_VON_MISES = {
    "phi_loc": 0.3,
    "psi_loc": -0.7,
    "phi_concentration": 2.1,
    "psi_concentration": 1.3,
}
_BETA = {"concentration1": [1.3, 2.1], "concentration0": [0.7, 3.2]}
_POWER_LAW = {"alpha": -1.7, "low": 0.4, "high": 2.3}
_STATES = {"transition_matrix": [[0.8, 0.3], [-0.2, 0.6]]}

# --- Distributions of distributions ---------------------------------------------------


def _normal(**fixed: Any) -> Callable[..., Any]:
    """A distribution of a normal one; what else it takes may be ``fixed``."""
    return lambda cls, loc, scale, **more: cls(dist.Normal(loc, scale), **more, **fixed)


def _gamma(cls: Any, concentration: Any, rate: Any, **more: Any) -> Any:
    return cls(dist.Gamma(concentration, rate), **more)


def _poisson(cls: Any, rate: Any, **more: Any) -> Any:
    return cls(dist.Poisson(rate), **more)


def _normal_and_laplace(cls: Any, logits: Any, loc: Any, scale: Any) -> Any:
    components = [dist.Normal(loc, scale), dist.Laplace(loc, scale)]
    return cls(dist.Categorical(logits=logits), components)


def _normals(cls: Any, probs: Any, loc: Any, scale: Any) -> Any:
    return cls(dist.Categorical(probs=probs), dist.Normal(loc, scale))


def _log_normal(cls: Any, loc: Any, scale: Any) -> Any:
    transforms = dist.transforms.AffineTransform(loc, scale)
    return cls(dist.Normal(), [transforms, dist.transforms.ExpTransform()])


def _diffusion(cls: Any, rate: Any, noise: Any, loc: Any, scale: Any) -> Any:
    def drift_and_diffusion(state: Any, time: Any) -> tuple[Any, Any]:
        return -rate * state, noise * jnp.sqrt(1 + state**2)

    times = np.linspace(0, 1, 5)
    return cls(times, drift_and_diffusion, dist.Normal(loc, scale))


def _skewed(cls: Any, skewness: Any, **torus: Any) -> Any:
    return cls(dist.SineBivariateVonMises(**torus), skewness)


# --- The table ------------------------------------------------------------------------

_COUNT = with_(total_count=5)
_HALF_CENSORED = np.array([True, False])

# What has parameters that depend on each other, takes one of several, or another
# distribution.
TABLE: dict[str, str | Recipe | tuple[Recipe, ...]] = {
    "BetaBinomial": Recipe(_BETA, _COUNT),
    "BetaProportion": Recipe(
        {"mean": [0.3, 0.6], "concentration": [2.1, 3.2]}, at=[0.4, 0.7]
    ),
    "BinomialLogits": Recipe({"logits": [0.3, -0.7]}, _COUNT),
    "BinomialProbs": Recipe({"probs": [0.3, 0.6]}, _COUNT),
    "CAR": Recipe(
        {"loc": _LOC, "correlation": 0.3, "conditional_precision": 1.7},
        with_(adj_matrix=np.array([[0, 1, 0], [1, 0, 1], [0, 1, 0]])),
    ),
    "CirculantNormal": (
        Recipe({"loc": [0.3, -0.7, 1.1, 0.2], "covariance_row": [2.0, 0.5, 0.2, 0.5]}),
        Recipe(
            {"loc": [0.3, -0.7, 1.1, 0.2], "covariance_rfft": [3.2, 1.8, 1.2]},
            label="rfft",
        ),
    ),
    "Delta": Recipe({"log_density": 0.3}, with_(v=0.7), at=0.7, in_value=False),
    "DirichletMultinomial": Recipe({"concentration": [1.3, 2.1, 0.8]}, _COUNT),
    "DiscreteUniform": "its parameters are integers",
    "DoublyTruncatedPowerLaw": (
        Recipe(_POWER_LAW),
        Recipe({"low": 0.4, "high": 2.3}, with_(alpha=-1.0), label="alpha -1"),
        Recipe(_POWER_LAW, at=1.3, method="cdf", label="cdf"),
        Recipe(_POWER_LAW, at=0.3, method="icdf", label="icdf"),
    ),
    "EulerMaruyama": Recipe(
        {"rate": 0.7, "noise": 0.4, "loc": 0.3, "scale": 1.2}, _diffusion
    ),
    "ExpandedDistribution": Recipe(_NORMAL, _normal(batch_shape=(3, 2))),
    "FoldedDistribution": Recipe(_NORMAL, _normal()),
    "GaussianCopula": Recipe(
        {"loc": _LOC, "scale": [1.2, 0.6, 0.9]}
        | {"correlation_matrix": [[1.0, 0.2, 0.1], [0.2, 1.0, -0.3], [0.1, -0.3, 1.0]]},
        _normal(),
    ),
    "GaussianCopulaBeta": Recipe(
        _BETA | {"correlation_matrix": [[1.0, 0.4], [0.4, 1.0]]}, at=[0.3, 0.6]
    ),
    "GaussianStateSpace": Recipe(
        _STATES | {"scale_tril": [[1.2, 0.0], [0.3, 0.8]]}, with_(num_steps=4)
    ),
    "HurdleGamma": Recipe(_GAMMA | {"gate": 0.3}, at=[0.0, 0.8], in_value=False),
    "HurdleLogNormal": Recipe(_NORMAL | {"gate": 0.3}, at=[0.0, 0.8], in_value=False),
    "HurdleLogits": Recipe({"rate": 2.1, "gate_logits": -0.7}, _poisson, at=3),
    "HurdleProbs": Recipe({"rate": 2.1, "gate": 0.3}, _poisson, at=3),
    "ImproperUniform": "its log-probability is zero",
    "Independent": Recipe(_NORMAL, _normal(reinterpreted_batch_ndims=1)),
    "IntervalCensoredDistribution": Recipe(
        {"loc": [0.3] * 4, "scale": [1.2] * 4},
        _normal(
            left_censored=np.array([0, 1, 0, 1]), right_censored=np.array([0, 0, 1, 1])
        ),
        at=[[0.2, 1.3]] * 4,
    ),
    "InverseWishart": (
        Recipe({"concentration": 5.2, "scale_matrix": _MATRIX}),
        Recipe({"concentration": 5.2, "rate_matrix": _MATRIX}, label="rate"),
    ),
    "InverseWishartCholesky": Recipe(
        {"concentration": 5.2, "scale_tril": _TRIANGLE}, in_value=False
    ),
    "LKJ": Recipe({"concentration": 1.7}, with_(dimension=3)),
    "LKJCholesky": Recipe({"concentration": 1.7}, with_(dimension=3), in_value=False),
    "LeftCensoredDistribution": Recipe(_NORMAL, _normal(censored=_HALF_CENSORED)),
    "LeftTruncatedDistribution": Recipe(_NORMAL | {"low": [-0.4, 0.2]}, _normal()),
    "LeftTruncatedGamma": Recipe(_GAMMA | {"low": [0.4, 0.2]}, _gamma),
    "LogUniform": Recipe({"low": [0.4, 0.1], "high": [2.3, 1.7]}),
    "LowRankMultivariateNormal": Recipe(
        {"loc": _LOC, "cov_factor": [[0.4], [0.1], [-0.6]], "cov_diag": [0.7, 1.2, 0.5]}
    ),
    "MaskedDistribution": Recipe(_NORMAL, _normal(mask=_HALF_CENSORED)),
    "MatrixNormal": Recipe(
        {"loc": [_LOC] * 3, "scale_tril_row": _TRIANGLE, "scale_tril_column": _TRIANGLE}
    ),
    "MixtureGeneral": Recipe(
        {"logits": [0.3, -0.7], "loc": 0.3, "scale": 1.2}, _normal_and_laplace
    ),
    "MixtureSameFamily": Recipe(_NORMAL | {"probs": [0.3, 0.7]}, _normals),
    "MultinomialLogits": Recipe({"logits": _LOC}, _COUNT),
    "MultinomialProbs": Recipe({"probs": [0.3, 0.5, 0.2]}, _COUNT),
    "MultivariateNormal": (
        Recipe({"loc": _LOC, "covariance_matrix": _MATRIX}),
        Recipe({"loc": _LOC, "precision_matrix": _MATRIX}, label="precision"),
        Recipe({"loc": _LOC, "scale_tril": _TRIANGLE}, label="tril"),
    ),
    "MultivariateStudentT": Recipe({"df": 4.2, "loc": _LOC, "scale_tril": _TRIANGLE}),
    "RelaxedBernoulliLogits": Recipe(
        {"temperature": 0.7, "logits": [0.3, -0.7]}, at=[0.3, 0.6]
    ),
    "RightCensoredDistribution": Recipe(_NORMAL, _normal(censored=_HALF_CENSORED)),
    "RightTruncatedDistribution": Recipe(_NORMAL | {"high": [0.9, 0.2]}, _normal()),
    "RightTruncatedGamma": Recipe(_GAMMA | {"high": [2.4, 1.2]}, _gamma),
    "SineBivariateVonMises": Recipe(_VON_MISES | {"correlation": 0.6}),
    "SineSkewed": Recipe(
        _VON_MISES | {"correlation": 0.6, "skewness": [0.3, -0.4]}, _skewed
    ),
    "TransformedDistribution": Recipe(_NORMAL, _log_normal),
    "TwoSidedTruncatedDistribution": Recipe(
        _NORMAL | {"low": [-0.4, -1.2], "high": [0.9, 0.2]}, _normal()
    ),
    "TwoSidedTruncatedGamma": Recipe(
        _GAMMA | {"low": [0.4, 0.2], "high": [2.4, 1.2]}, _gamma
    ),
    "Uniform": Recipe({"low": [-0.3, 0.1], "high": [1.2, 2.6]}),
    "Wishart": Recipe({"concentration": 4.2, "scale_tril": _TRIANGLE}),
    "WishartCholesky": Recipe(
        {"concentration": 4.2, "scale_tril": _TRIANGLE}, in_value=False
    ),
    "ZeroInflatedLogits": Recipe({"rate": 2.1, "gate_logits": -0.7}, _poisson, at=0),
    "ZeroInflatedProbs": Recipe({"rate": 2.1, "gate": 0.3}, _poisson, at=0),
    "ZeroSumNormal": Recipe({"scale": 1.2}, with_(event_shape=(3,))),
}


# --- Parameters that only have to satisfy a constraint each ---------------------------

# What a constraint's bijection may want to be given: a vector of three, one number,
# the entries of a triangle, of a square.
_SHAPES = ((3,), (), (6,), (3, 3))


def _drawn(cls: Any, rng: np.random.Generator) -> tuple[Any, Callable[..., Any]]:
    signature = inspect.signature(cls.__init__).parameters
    wanted = [
        name
        for name, parameter in signature.items()
        if name in cls.arg_constraints
        and parameter.default in (inspect.Parameter.empty, 0.0, 1.0)
    ]
    parameters = {name: _admissible(cls.arg_constraints[name], rng) for name in wanted}
    distribution = cls(**parameters)
    sample = distribution.sample(jax.random.key(0))
    # Counts may be floating numbers too.
    continuous = not distribution.support.is_discrete
    return differentiated(cls, parameters, sample, in_value=continuous)


def _admissible(constraint: Any, rng: np.random.Generator) -> Any:
    """A random value that satisfies ``constraint``."""
    bijection = dist.biject_to(constraint)
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


CASES: Recipes = {name: Case(_drawn) for name in FOUND} | cases(TABLE)
