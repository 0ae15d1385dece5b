"""Correct gradients that are hard on numbers: scale, cancellation, depth, precision."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from .cases import TOO_LARGE_FOR_EXHAUSTIVE, ControlList, Program
from .planting import complex_normal, edited, integers, normal, signed, uniform

CONTROLS = ControlList()


@CONTROLS.add()
def scales_side_by_side_in_leaves(rng: np.random.Generator) -> Program:
    """Leaves of size 1e-8 to 1e8, each of which matters equally."""
    scales = (1e-8, 1e-4, 1.0, 1e4, 1e8)

    def loss(params: Any) -> Any:
        return sum(
            jnp.sum(jnp.sin(params[f"at_{scale:g}"] / scale)) for scale in scales
        )

    return Program(loss, {f"at_{s:g}": jnp.asarray(s * signed(rng, 3)) for s in scales})


@CONTROLS.add()
def scales_side_by_side_in_one_leaf(rng: np.random.Generator) -> Program:
    """The same in one array."""
    scale = np.asarray([1e-8, 1e-4, 1.0, 1e4, 1e8], np.float32)
    x = jnp.asarray(scale * signed(rng, 5))
    return Program(lambda p: jnp.sum((p["x"] / scale) ** 2), {"x": x})


@CONTROLS.add()
def scales_without_rescaling(rng: np.random.Generator) -> Program:
    """Squares from 1e-16 to 1e16 in one sum: the small ones vanish beside the large."""

    def loss(params: Any) -> Any:
        return sum(jnp.sum(leaf**2) for leaf in params.values())

    return Program(
        loss, {f"at_{s:g}": jnp.asarray(s * signed(rng, 3)) for s in (1e-8, 1.0, 1e8)}
    )


@CONTROLS.add()
def converged_linear_regression(rng: np.random.Generator) -> Program:
    """At the optimum the gradient is a sum of terms that cancel."""
    x = rng.standard_normal((40, 3))
    y = x @ rng.standard_normal(3) + 0.5 + 0.1 * rng.standard_normal(40)
    ones = np.concatenate([x, np.ones((40, 1))], 1)
    solution = np.linalg.lstsq(ones, y)[0].astype(np.float32)
    params = {"w": jnp.asarray(solution[:3]), "b": jnp.asarray(solution[3])}

    def loss(params: Any, x: Any, y: Any) -> Any:
        return jnp.mean((x @ params["w"] + params["b"] - y) ** 2)

    return Program(
        loss,
        params,
        (jnp.asarray(x.astype(np.float32)), jnp.asarray(y.astype(np.float32))),
    )


@CONTROLS.add()
def converged_logistic_regression(rng: np.random.Generator) -> Program:
    """Newton's method to the optimum, in NumPy."""
    x = np.concatenate([rng.standard_normal((60, 3)), np.ones((60, 1))], 1)
    y = (rng.random(60) < 1 / (1 + np.exp(-x @ [1.0, -2.0, 0.5, 0.2]))).astype(float)
    w = np.zeros(4)
    for _ in range(15):
        p = 1 / (1 + np.exp(-x @ w))
        hessian = x.T @ (x * (p * (1 - p))[:, None]) + 0.1 * np.eye(4)
        w -= np.linalg.solve(hessian, x.T @ (p - y) + 0.1 * w)

    def loss(params: Any, x: Any, y: Any) -> Any:
        logits = x @ params["w"]
        likelihood = jnp.sum(jax.nn.softplus(logits) - y * logits)
        return likelihood + 0.05 * jnp.sum(params["w"] ** 2)

    args = jnp.asarray(x.astype(np.float32)), jnp.asarray(y.astype(np.float32))
    return Program(loss, {"w": jnp.asarray(w.astype(np.float32))}, args)


def mlp_loss(params: Any, x: Any, y: Any) -> Any:
    """Mean squared error of a small tanh network."""
    hidden = jnp.tanh(x @ params["w0"] + params["b0"])
    return jnp.mean((hidden @ params["w1"] + params["b1"] - y) ** 2)


def mlp_params(rng: np.random.Generator) -> dict[str, Any]:
    """Weights of a small network."""
    return {
        "w0": normal(rng, 2, 4),
        "b0": normal(rng, 4),
        "w1": normal(rng, 4),
        "b1": normal(rng),
    }


@CONTROLS.add()
def converged_mlp(rng: np.random.Generator) -> Program:
    """A network after 2,000 steps of gradient descent in float32."""
    x = normal(rng, 20, 2)
    y = jnp.sin(x[:, 0]) * x[:, 1]

    @jax.jit
    def train(params: Any) -> Any:
        def step(params: Any, _: Any) -> Any:
            grads = jax.grad(mlp_loss)(params, x, y)
            return jax.tree.map(
                lambda p, g: p - jnp.float32(0.1) * g, params, grads
            ), None

        return lax.scan(step, params, None, length=2_000)[0]

    return Program(mlp_loss, train(mlp_params(rng)), (x, y))


@CONTROLS.add()
def loss_exactly_zero(rng: np.random.Generator) -> Program:
    """The target is the prediction: loss 0, gradient 0."""
    target = normal(rng, 5)

    def loss(params: Any, target: Any) -> Any:
        return jnp.mean((params["x"] - target) ** 2)

    return Program(loss, {"x": target}, (target,))


def deep(
    rng: np.random.Generator, layer: Any, scale: float, *, scanned: bool = False
) -> Program:
    """Thirty layers of width four: sixty leaves, or two that a scan goes through."""
    depth, width = 30, 4
    params = {
        "w": scale / 2 * normal(rng, depth, width, width),
        "b": 0.1 * normal(rng, depth, width),
    }
    if not scanned:
        params = [{"w": params["w"][i], "b": params["b"][i]} for i in range(depth)]

    def loss(params: Any, x: Any) -> Any:
        if scanned:
            x, _ = lax.scan(lambda x, p: (layer(x, p["w"], p["b"]), None), x, params)
        else:
            for each in params:
                x = layer(x, each["w"], each["b"])
        return jnp.mean(x**2)

    return Program(loss, params, (normal(rng, 3, width),))


@CONTROLS.add()
def thirty_layers_of_tanh(rng: np.random.Generator) -> Program:
    """Gradients that shrink layer by layer."""
    return deep(rng, lambda x, w, b: jnp.tanh(x @ w + b), 1.2)


@CONTROLS.add()
def thirty_layers_of_sigmoid(rng: np.random.Generator) -> Program:
    """A quarter per layer: the first layers' gradients are around 1e-15 of the last."""
    return deep(rng, lambda x, w, b: jax.nn.sigmoid(x @ w + b), 1.0)


@CONTROLS.add()
def thirty_layers_of_leaky_relu(rng: np.random.Generator) -> Program:
    """Hundreds of kinks, none of them at the point."""
    return deep(
        rng, lambda x, w, b: jax.nn.leaky_relu(x @ w + b, 0.2), 1.4, scanned=True
    )


@CONTROLS.add()
def thirty_layers_with_residuals(rng: np.random.Generator) -> Program:
    """Residual blocks with layer normalization."""

    def block(x: Any, w: Any, b: Any) -> Any:
        centered = x - x.mean(-1, keepdims=True)
        normed = centered * lax.rsqrt(jnp.mean(centered**2, -1, keepdims=True) + 1e-5)
        return x + jnp.tanh(normed @ w + b)

    return deep(rng, block, 1.0, scanned=True)


@CONTROLS.add()
def softmax_at_a_thousand(rng: np.random.Generator) -> Program:
    """Saturated: the gradient is zero to all digits of float32."""
    x = jnp.asarray(np.asarray([1000.0, 0.0, -1000.0], np.float32))
    return Program(
        lambda p: jnp.sum(jax.nn.softmax(p["x"]) * p["y"]),
        {"x": x, "y": normal(rng, 3)},
    )


@CONTROLS.add()
def softmax_among_thousands(rng: np.random.Generator) -> Program:
    """Logits near 1e3, close enough to compete."""
    x = 1000 + normal(rng, 4)
    return Program(
        lambda p: jnp.sum(jax.nn.softmax(p["x"]) * p["y"]),
        {"x": x, "y": normal(rng, 4)},
    )


@CONTROLS.add()
def logsumexp_far_out(rng: np.random.Generator) -> Program:
    """The shift in logsumexp is a stop_gradient that changes nothing."""
    x = 500 * normal(rng, 3, 4)
    return Program(lambda p: jnp.sum(jax.nn.logsumexp(p["x"], axis=-1)), {"x": x})


@CONTROLS.add()
def cross_entropy_of_sure_predictions(rng: np.random.Generator) -> Program:
    """Losses of 1e-9 beside one of 30."""
    logits = 20 * jax.nn.one_hot(jnp.arange(4), 4, dtype=jnp.float32) + 0.1 * normal(
        rng, 4, 4
    )

    def loss(params: Any, labels: Any) -> Any:
        log_p = jax.nn.log_softmax(params["logits"])
        return -jnp.mean(jnp.take_along_axis(log_p, labels[:, None], 1))

    labels = jnp.asarray(np.asarray([0, 1, 2, 0], np.int32))
    return Program(loss, {"logits": logits}, (labels,))


@CONTROLS.add(modes=TOO_LARGE_FOR_EXHAUSTIVE)
def sum_of_a_hundred_thousand_squares(rng: np.random.Generator) -> Program:
    """The float32 sum carries an error much larger than one coordinate's share."""
    return Program(lambda p: jnp.sum(p["x"] ** 2), {"x": normal(rng, 100_000)})


@CONTROLS.add()
def sum_of_a_thousand_squares(rng: np.random.Generator) -> Program:
    """The same, small enough for every coordinate."""
    return Program(lambda p: jnp.sum(p["x"] ** 2), {"x": normal(rng, 1_000)})


@CONTROLS.add()
def tiny_loss(rng: np.random.Generator) -> Program:
    """A loss of 1e-20: an absolute tolerance passes or fails everything."""
    return Program(lambda p: 1e-20 * jnp.sum(p["x"] ** 2), {"x": normal(rng, 5)})


@CONTROLS.add()
def huge_loss(rng: np.random.Generator) -> Program:
    """A loss of 1e20."""
    return Program(lambda p: 1e20 * jnp.sum(p["x"] ** 2), {"x": normal(rng, 5)})


@CONTROLS.add()
def large_offset(rng: np.random.Generator) -> Program:
    """A loss of 1e4 of which 1e4 does not depend on anything."""
    return Program(lambda p: 1e4 + jnp.sum(jnp.sin(p["x"])), {"x": normal(rng, 5)})


@CONTROLS.add()
def fast_oscillation(rng: np.random.Generator) -> Program:
    """A step that fits most functions is too long for sin(300 x)."""
    return Program(lambda p: jnp.sum(jnp.sin(300 * p["x"])), {"x": normal(rng, 4)})


@CONTROLS.add()
def nearly_flat(rng: np.random.Generator) -> Program:
    """Saturated tanh: slopes around 1e-8 beside slopes of 1."""
    x = jnp.asarray(np.asarray([0.1, 5.0, -9.0, 0.5], np.float32))
    return Program(lambda p: jnp.sum(jnp.tanh(p["x"])), {"x": x})


@CONTROLS.add()
def key_bias_of_attention(rng: np.random.Generator) -> Program:
    """Softmax does not see a bias of the keys: the true gradient is exactly zero."""

    def loss(params: Any, x: Any) -> Any:
        query = x @ params["query"]
        key = x @ params["key"] + params["key_bias"]
        weights = jax.nn.softmax(query @ key.T / 2.0)
        return jnp.mean((weights @ x) ** 2)

    params = {
        "query": normal(rng, 4, 4),
        "key": normal(rng, 4, 4),
        "key_bias": normal(rng, 4),
    }
    return Program(loss, params, (normal(rng, 5, 4),))


@CONTROLS.add()
def bias_before_batchnorm(rng: np.random.Generator) -> Program:
    """The batch mean removes the bias: the true gradient is exactly zero."""

    def loss(params: Any, x: Any) -> Any:
        hidden = x @ params["w"] + params["b"]
        centered = hidden - hidden.mean(0)
        return jnp.mean(jnp.tanh(centered / jnp.sqrt(jnp.mean(centered**2, 0) + 1e-5)))

    params = {"w": normal(rng, 3, 4), "b": normal(rng, 4)}
    return Program(loss, params, (normal(rng, 8, 3),))


@CONTROLS.add()
def float32_inside(rng: np.random.Generator) -> Program:
    """``astype(float32)``, which hides from a checker that only widens its inputs."""

    def loss(params: Any, x: Any) -> Any:
        hidden = jnp.tanh((x @ params["w"]).astype(jnp.float32))
        return jnp.mean(hidden.astype(jnp.float32) ** 2)

    return Program(loss, {"w": normal(rng, 3, 4)}, (normal(rng, 5, 3),))


@CONTROLS.add(finding="precision_loss")
def bfloat16_inside(rng: np.random.Generator) -> Program:
    """Rules are right; the gradient that training uses is off by percents."""

    def loss(params: Any, x: Any) -> Any:
        hidden = x.astype(jnp.bfloat16) @ params["w"].astype(jnp.bfloat16)
        hidden = jax.nn.softmax(jnp.tanh(hidden) * 3)
        return jnp.mean(hidden.astype(jnp.float32) ** 2)

    return Program(loss, {"w": normal(rng, 8, 4)}, (normal(rng, 5, 8),))


@CONTROLS.add()
def float16_inside(rng: np.random.Generator) -> Program:
    """The same in float16."""

    def loss(params: Any, x: Any) -> Any:
        hidden = x.astype(jnp.float16) @ params["w"].astype(jnp.float16)
        return jnp.mean(jnp.tanh(hidden).astype(jnp.float32) ** 2)

    return Program(loss, {"w": normal(rng, 3, 4)}, (normal(rng, 5, 3),))


@CONTROLS.add()
def gradient_through_bfloat16(rng: np.random.Generator) -> Program:
    """A right rule whose cotangent is squeezed through bfloat16."""
    squeezed = edited(lambda _, ct: ct.astype(jnp.bfloat16).astype(ct.dtype))
    return Program(lambda p: jnp.sum(jnp.sin(squeezed(p["x"]))), {"x": normal(rng, 6)})


def in_dtype(rng: np.random.Generator, dtype: Any) -> Program:
    """A model whose leaves have ``dtype``."""
    params = jax.tree.map(lambda leaf: leaf.astype(dtype), mlp_params(rng))
    args = normal(rng, 6, 2).astype(dtype), normal(rng, 6).astype(dtype)
    return Program(mlp_loss, params, args)


@CONTROLS.add()
def bfloat16_leaves(rng: np.random.Generator) -> Program:
    """Parameters in bfloat16."""
    return in_dtype(rng, jnp.bfloat16)


@CONTROLS.add()
def float16_leaves(rng: np.random.Generator) -> Program:
    """Parameters in float16."""
    return in_dtype(rng, jnp.float16)


@CONTROLS.add()
def float64_leaves(rng: np.random.Generator) -> Program:
    """Parameters in float64 where x64 is on, in float32 where it is off."""
    params = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), mlp_params(rng))
    args = np.asarray(normal(rng, 6, 2)), np.asarray(normal(rng, 6))
    return Program(mlp_loss, params, args)


@CONTROLS.add()
def mixed_dtypes(rng: np.random.Generator) -> Program:
    """Four floating dtypes in one tree."""
    dtypes = (jnp.float32, jnp.bfloat16, jnp.float16, jnp.complex64)
    params = {str(jnp.dtype(d)): normal(rng, 3).astype(d) for d in dtypes}

    def loss(params: Any) -> Any:
        total = sum(
            (leaf.astype(jnp.complex64) for leaf in params.values()),
            jnp.zeros(3, jnp.complex64),
        )
        return jnp.sum(jnp.abs(total) ** 2)

    return Program(loss, params)


@CONTROLS.add()
def modulus_of_complex_leaves(rng: np.random.Generator) -> Program:
    """|A z - y|² over complex leaves."""

    def loss(params: Any, y: Any) -> Any:
        return jnp.sum(jnp.abs(params["a"] @ params["z"] - y) ** 2)

    params = {"a": complex_normal(rng, 3, 3), "z": complex_normal(rng, 3)}
    return Program(loss, params, (complex_normal(rng, 3),))


@CONTROLS.add()
def holomorphic_functions(rng: np.random.Generator) -> Program:
    """exp, log, sin and division of complex leaves, then a real part."""

    def loss(params: Any) -> Any:
        z, w = params["z"], params["w"]
        return jnp.sum(jnp.real(jnp.exp(z / 2) * jnp.sin(w) + jnp.log(z) / w))

    return Program(loss, {"z": complex_normal(rng, 3), "w": complex_normal(rng, 3)})


@CONTROLS.add()
def real_parameters_complex_inside(rng: np.random.Generator) -> Program:
    """A phase turned by a real angle."""

    def loss(params: Any, z: Any) -> Any:
        turned = z * jnp.exp(1j * params["angle"])
        return jnp.sum(jnp.real(turned) ** 2) + jnp.sum(jnp.angle(turned))

    return Program(loss, {"angle": 0.1 * normal(rng, 4)}, (complex_normal(rng, 4),))


@CONTROLS.add()
def fourier_transforms(rng: np.random.Generator) -> Program:
    """A filter in Fourier space: fft, ifft, rfft, irfft."""

    def loss(params: Any, y: Any) -> Any:
        filtered = jnp.fft.irfft(jnp.fft.rfft(params["x"]) * params["filter"], 8)
        spectrum = jnp.abs(jnp.fft.fft(filtered)) ** 2
        back = jnp.real(jnp.fft.ifft(jnp.fft.fft(filtered) * y))
        return jnp.mean(jnp.log1p(spectrum)) + jnp.sum(back**3)

    params = {"x": normal(rng, 8), "filter": complex_normal(rng, 5)}
    return Program(loss, params, (normal(rng, 8),))


@CONTROLS.add()
def optimum_of_a_quartic(rng: np.random.Generator) -> Program:
    """At the minimum of x⁴ the first three derivatives vanish."""
    x = jnp.asarray(np.asarray([0.0, 1e-3, 0.0], np.float32))
    return Program(lambda p: jnp.sum(p["x"] ** 4) + jnp.sum(p["y"]), {"x": x, "y": x})


@CONTROLS.add()
def divergence_of_near_equals(rng: np.random.Generator) -> Program:
    """KL between two distributions that differ by 1e-3."""
    logits = normal(rng, 5)

    def loss(params: Any, logits: Any) -> Any:
        log_p = jax.nn.log_softmax(params["logits"])
        return jnp.sum(jnp.exp(log_p) * (log_p - jax.nn.log_softmax(logits)))

    return Program(loss, {"logits": logits + 1e-3 * normal(rng, 5)}, (logits,))


@CONTROLS.add()
def integers_among_the_arguments(rng: np.random.Generator) -> Program:
    """Class labels and Python numbers among the arguments."""

    def loss(params: Any, x: Any, labels: Any, smoothing: float, power: int) -> Any:
        log_p = jax.nn.log_softmax(x @ params["w"])
        picked = jnp.take_along_axis(log_p, labels[:, None], 1)
        return -jnp.mean(picked) + smoothing * jnp.sum(params["w"] ** power)

    args = normal(rng, 5, 3), integers(rng, 4, (5,)), 0.01, 2
    return Program(loss, {"w": uniform(rng, 0.5, 1.0, 3, 4)}, args)
