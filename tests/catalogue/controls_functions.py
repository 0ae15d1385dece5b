"""Correct gradients of special functions, linear algebra, kinks and indexing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jax.scipy import special
from jax.scipy.linalg import cho_factor, cho_solve, expm, solve_triangular

from .cases import ControlList, Program
from .planting import integers, normal, signed, uniform

CONTROLS = ControlList()


def elementwise(low: float, high: float, fn: Callable[[Any], Any]) -> Any:
    """A weighted sum of ``fn`` over a leaf between ``low`` and ``high``."""

    def make(rng: np.random.Generator) -> Program:
        def loss(params: Any) -> Any:
            return jnp.sum(fn(params["x"]) * params["y"])

        return Program(loss, {"x": uniform(rng, low, high, 5), "y": normal(rng, 5)})

    return make


ELEMENTWISE = {
    "gammaln": (0.3, 8.0, special.gammaln),
    "digamma": (0.5, 8.0, special.digamma),
    "erf_inv": (-0.9, 0.9, special.erfinv),
    "log_ndtr": (-8.0, 3.0, special.log_ndtr),
    "bessel_i0e_and_i1e": (0.5, 5.0, lambda x: special.i0e(x) + special.i1e(x)),
    "betainc": (0.1, 0.9, lambda x: special.betainc(2.5, 1.5, x)),
    "igamma_of_x": (0.5, 4.0, lambda x: special.gammainc(2.5, x)),
    "igamma_of_a": (0.5, 4.0, lambda a: special.gammainc(a, 1.5)),
    "xlogy_and_entr": (0.1, 2.0, lambda x: special.xlogy(x, x) + special.entr(x)),
    "inverse_trigonometry": (-0.8, 0.8, lambda x: jnp.arcsin(x) + jnp.arctanh(x)),
    "expm1_and_log1p": (-1e-4, 1e-4, lambda x: jnp.expm1(x) + jnp.log1p(x) ** 2),
    "sinc_away_from_zero": (0.5, 3.0, jnp.sinc),
    "gelu_silu_softplus": (
        -4.0,
        4.0,
        lambda x: jax.nn.gelu(x) + jax.nn.silu(x) + jax.nn.softplus(x),
    ),
}

for _name, (_low, _high, _fn) in ELEMENTWISE.items():
    CONTROLS.add(_name)(elementwise(_low, _high, _fn))


def of_matrix(fn: Callable[[Any, Any], Any]) -> Any:
    """A scalar function of a well-conditioned matrix ``a`` and a vector ``b``."""

    def make(rng: np.random.Generator) -> Program:
        a = np.diag(np.asarray([2.0, 3.0, 4.5])) + 0.3 * rng.standard_normal((3, 3))
        params = {"a": jnp.asarray(a.astype(np.float32)), "b": normal(rng, 3)}
        return Program(lambda params: fn(params["a"], params["b"]), params)

    return make


def symmetric(a: Any) -> Any:
    """A positive definite matrix made of ``a``."""
    return a @ a.T


MATRIX = {
    "cholesky": lambda a, b: jnp.sum(jnp.sin(jnp.linalg.cholesky(symmetric(a))) * b),
    "cho_solve": lambda a, b: b @ cho_solve(cho_factor(symmetric(a)), b),
    "solve": lambda a, b: jnp.sum(jnp.linalg.solve(a, b) ** 3),
    "solve_triangular": lambda a, b: jnp.sum(solve_triangular(a, b, lower=True) ** 2),
    "inverse": lambda a, b: b @ jnp.linalg.inv(a) @ b,
    "eigenvalues": lambda a, b: jnp.sum(jnp.linalg.eigvalsh(symmetric(a)) * b),
    "eigenvectors": lambda a, b: jnp.sum(
        (b @ jnp.linalg.eigh(symmetric(a))[1]) ** 2 * jnp.arange(3, dtype=a.dtype)
    ),
    "singular_values": lambda a, b: jnp.sum(
        jnp.linalg.svd(a, compute_uv=False) ** 2 * b
    ),
    "qr": lambda a, b: jnp.sum(jnp.abs(jnp.diag(jnp.linalg.qr(a)[1])) * b),
    "determinant": lambda a, b: jnp.linalg.det(a) * jnp.sum(b),
    "slogdet": lambda a, b: jnp.linalg.slogdet(a)[1] * jnp.sum(b),
    "expm": lambda a, b: jnp.sum(expm(a / 4) @ b),
    "pinv": lambda a, b: jnp.sum(jnp.linalg.pinv(a[:, :2]) @ b),
    "norms": lambda a, b: jnp.linalg.norm(a) + jnp.linalg.norm(b, 3),
    "conjugate_gradients": lambda a, b: jnp.sum(
        jax.scipy.sparse.linalg.cg(lambda x: symmetric(a) @ x, b, tol=1e-12)[0] ** 2
    ),
    "matrix_power_and_kron": lambda a, b: jnp.sum(
        jnp.kron(jnp.linalg.matrix_power(a / 4, 3), b[:, None])
    ),
}

for _name, _fn in MATRIX.items():
    CONTROLS.add(_name)(of_matrix(_fn))


def of_vector(fn: Callable[[Any], Any]) -> Any:
    """A function of eight numbers, none near zero and no two alike, then a sine."""

    def make(rng: np.random.Generator) -> Program:
        # Half a unit apart, so that no order and no sign changes within a step.
        x = rng.permutation(np.arange(8) / 2 - 1.75).astype(np.float32)

        def loss(params: Any) -> Any:
            out = fn(params["x"])
            weights = jnp.cos(jnp.arange(out.size, dtype=jnp.float32))
            return jnp.sum(jnp.sin(out).ravel() * weights) + jnp.sum(params["b"] ** 2)

        return Program(loss, {"x": jnp.asarray(x), "b": normal(rng, 2)})

    return make


ROWS = np.asarray([0, 2, 2, 5, 7, 2], np.int32)
SEGMENTS = np.asarray([0, 0, 1, 1, 1, 3, 3, 0], np.int32)

VECTOR = {
    "cumulative_sums_and_products": lambda x: jnp.cumsum(x) + jnp.cumprod(x),
    "cumulative_maximum": lax.cummax,
    "cumulative_logsumexp": lax.cumlogsumexp,
    "sort": jnp.sort,
    "top_k": lambda x: lax.top_k(x, 3)[0],
    "argsort_then_gather": lambda x: x[jnp.argsort(-x)],
    "median": lambda x: jnp.median(x)[None],
    "quantile": lambda x: jnp.quantile(x, jnp.asarray([0.1, 0.65], x.dtype)),
    "segment_sum": lambda x: jax.ops.segment_sum(x, SEGMENTS, 4),
    "segment_max": lambda x: jax.ops.segment_max(x, SEGMENTS % 2, 2),
    "gather_with_duplicates": lambda x: x[ROWS],
    "scatter_add_with_duplicates": lambda x: x.at[ROWS].add(x[:6] ** 2),
    "scatter_multiply_and_set": lambda x: x.at[1].multiply(3.0).at[2:4].set(x[:2]),
    "dynamic_slice": lambda x: lax.dynamic_slice(x, (jnp.int32(2),), (3,)),
    "dynamic_update_slice": lambda x: lax.dynamic_update_slice(x, x[:2], (5,)),
    "associative_scan": lambda x: lax.associative_scan(jnp.multiply, x),
    "clip": lambda x: jnp.clip(x, -1.0, 1.1),
    "relu_and_friends": lambda x: jax.nn.relu(x) + jax.nn.relu6(x) + jax.nn.elu(x),
    "hinge": lambda x: jnp.maximum(0, 1 - x),
    "huber": lambda x: optax.losses.huber_loss(x, delta=1.0),
    "absolute_values": jnp.abs,
    "double_where": lambda x: jnp.where(x > 0, jnp.sqrt(jnp.where(x > 0, x, 1)), 0),
    "max_and_min": lambda x: jnp.stack([x.max(), x.min(), jnp.ptp(x)]),
    "rounding_that_is_locally_constant": lambda x: jnp.round(x) + jnp.floor(x / 3) + x,
    "interpolation": lambda x: jnp.interp(
        x, jnp.linspace(-2.1, 2.3, 6), jnp.asarray([0.0, 1, 3, 2, 2.5, 1])
    ),
    "convolution": lambda x: jnp.convolve(x, x[:3], precision="highest"),
    "sort_pairs": lambda x: lax.sort((x, x**2), num_keys=1)[1],
    "modulo": lambda x: jnp.mod(x, 0.7),
    "polynomial": lambda x: jnp.polyval(x, jnp.asarray(0.7, x.dtype))[None],
}

for _name, _fn in VECTOR.items():
    CONTROLS.add(_name)(of_vector(_fn))


@CONTROLS.add(finding="kink")
def relu_at_exactly_zero(rng: np.random.Generator) -> Program:
    """JAX's 0 is one of the subgradients, though a central difference gives ½."""
    x = jnp.asarray(np.asarray([1.0, 0.0, -0.5, 2.0], np.float32))
    return Program(
        lambda p: jnp.sum(jax.nn.relu(p["x"]) * p["y"]),
        {"x": x, "y": jnp.asarray(signed(rng, 4))},
    )


@CONTROLS.add()
def kink_nearby(rng: np.random.Generator) -> Program:
    """A kink 1e-4 away: inside a float32 step, outside a float64 one."""
    x = jnp.asarray(np.asarray([1e-4, -1e-4, 0.5], np.float32))
    return Program(
        lambda p: jnp.sum(jax.nn.relu(p["x"]) * p["y"]), {"x": x, "y": normal(rng, 3)}
    )


@CONTROLS.add()
def convolution_and_pooling(rng: np.random.Generator) -> Program:
    """A strided convolution, max and average pooling."""

    def loss(params: Any, images: Any) -> Any:
        hidden = lax.conv_general_dilated(
            images,
            params["kernel"],
            (1, 1),
            "SAME",
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
        window = (1, 2, 2, 1)
        largest = lax.reduce_window(hidden, -jnp.inf, lax.max, window, window, "VALID")
        mean = lax.reduce_window(hidden, 0.0, lax.add, window, window, "VALID") / 4
        return jnp.mean(jnp.sin(largest) + mean**2)

    args = (normal(rng, 2, 4, 4, 2),)
    return Program(loss, {"kernel": normal(rng, 3, 3, 2, 3)}, args)


@CONTROLS.add()
def embedding_with_unused_rows(rng: np.random.Generator) -> Program:
    """Rows that the batch does not look up have gradient zero."""

    def loss(params: Any, tokens: Any) -> Any:
        return jnp.mean(jnp.tanh(params["table"][tokens] @ params["head"]))

    params = {"table": normal(rng, 10, 3), "head": normal(rng, 3)}
    tokens = jnp.asarray(np.asarray([1, 4, 4, 8], np.int32))
    return Program(loss, params, (tokens,))


@CONTROLS.add(finding="unused")
def unused_leaf(rng: np.random.Generator) -> Program:
    """A parameter that the loss never reads."""
    params = {"used": normal(rng, 3), "unused": normal(rng, 4)}
    return Program(lambda p: jnp.sum(jnp.sin(p["used"])), params)


@CONTROLS.add()
def optax_classification_losses(rng: np.random.Generator) -> Program:
    """Integer and binary cross-entropy, focal loss and KL divergence of optax."""

    def loss(params: Any, labels: Any) -> Any:
        logits = params["logits"]
        hot = jax.nn.one_hot(labels, 4, dtype=logits.dtype)
        integer = optax.losses.softmax_cross_entropy_with_integer_labels(logits, labels)
        binary = optax.losses.sigmoid_binary_cross_entropy(logits, hot)
        focal = optax.losses.sigmoid_focal_loss(logits, hot)
        smooth = 0.9 * hot + 0.025
        divergence = optax.losses.kl_divergence(jax.nn.log_softmax(logits), smooth)
        return integer.mean() + binary.mean() + focal.mean() + divergence.mean()

    return Program(loss, {"logits": 2 * normal(rng, 3, 4)}, (integers(rng, 4, (3,)),))


@CONTROLS.add()
def optax_ctc_loss(rng: np.random.Generator) -> Program:
    """Connectionist temporal classification: a scan over log-probabilities."""

    def loss(params: Any, labels: Any) -> Any:
        logits = params["logits"]
        paddings = jnp.zeros(logits.shape[:2], logits.dtype)
        label_paddings = jnp.zeros(labels.shape, logits.dtype)
        return jnp.mean(optax.losses.ctc_loss(logits, paddings, labels, label_paddings))

    labels = jnp.asarray(np.asarray([[1, 2]], np.int32))
    return Program(loss, {"logits": normal(rng, 1, 5, 4)}, (labels,))


@CONTROLS.add()
def optax_metric_losses(rng: np.random.Generator) -> Program:
    """Cosine distance, log-cosh and a hinge."""

    def loss(params: Any, y: Any) -> Any:
        x = params["x"]
        return (
            jnp.sum(optax.losses.cosine_distance(x, y, epsilon=1e-6))
            + jnp.sum(optax.losses.log_cosh(x, y))
            + jnp.sum(optax.losses.hinge_loss(x, jnp.sign(y)))
        )

    return Program(loss, {"x": normal(rng, 3, 4)}, (normal(rng, 3, 4),))
