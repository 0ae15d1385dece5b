"""Wrong derivatives of elementwise functions: the slips of pencil and paper."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .cases import MutantList, Pair
from .planting import normal, pair, uniform, with_jvp, with_vjp

MUTANTS = MutantList()


def network(
    rng: np.random.Generator, fn: Callable[..., Any], wrong: Any, right: Any
) -> Pair:
    """A two-layer network with the activation ``fn``; wrong and right slopes of it.

    The slopes are functions of (x, fn(x)). What lies before the activation gets a wrong
    gradient, what lies behind it a right one.
    """

    def loss_with(slope: Any) -> Any:
        activation = with_vjp(
            fn, lambda primals, out, ct: (ct * slope(primals[0], out),)
        )

        def loss(params: Any, x: Any, y: Any) -> Any:
            hidden = activation(x @ params["w0"] + params["b0"])
            return jnp.mean((hidden @ params["w1"] + params["b1"] - y) ** 2)

        return loss

    params = {
        "w0": normal(rng, 3, 4),
        "b0": normal(rng, 4),
        "w1": normal(rng, 4, 2),
        "b1": normal(rng, 2),
    }
    return pair(loss_with, wrong, right, params, normal(rng, 5, 3), normal(rng, 5, 2))


BEFORE = ("['b0']", "['w0']")


@MUTANTS.add(*BEFORE)
def tanh_without_one_minus(rng: np.random.Generator) -> Pair:
    """The derivative of tanh taken for tanh²."""
    return network(rng, jnp.tanh, lambda _, t: t * t, lambda _, t: 1 - t * t)


@MUTANTS.add(*BEFORE)
def tanh_square_of_the_input(rng: np.random.Generator) -> Pair:
    """``1 - x²`` where ``1 - tanh(x)²`` was meant."""
    return network(rng, jnp.tanh, lambda x, _: 1 - x * x, lambda _, t: 1 - t * t)


@MUTANTS.add(*BEFORE)
def sigmoid_without_one_minus(rng: np.random.Generator) -> Pair:
    """``s`` where ``s (1 - s)`` was meant."""
    return network(rng, jax.nn.sigmoid, lambda _, s: s, lambda _, s: s * (1 - s))


@MUTANTS.add(*BEFORE)
def softplus_gives_tanh(rng: np.random.Generator) -> Pair:
    """The derivative of softplus is the sigmoid, not tanh."""
    return network(
        rng,
        lambda x: jnp.logaddexp(x, 0.0),
        lambda x, _: jnp.tanh(x),
        lambda x, _: jax.nn.sigmoid(x),
    )


@MUTANTS.add(*BEFORE)
def swish_without_the_second_term(rng: np.random.Generator) -> Pair:
    """The product rule with one factor differentiated."""

    def right(x: Any, out: Any) -> Any:
        s = jax.nn.sigmoid(x)
        return s + out * (1 - s)

    return network(
        rng, lambda x: x * jax.nn.sigmoid(x), lambda x, _: jax.nn.sigmoid(x), right
    )


def gelu_slope(constant: float) -> Callable[[Any, Any], Any]:
    """The derivative of tanh-approximated GELU with the given cubic coefficient."""

    def slope(x: Any, _: Any) -> Any:
        root = np.float32(np.sqrt(2 / np.pi))
        t = jnp.tanh(root * (x + constant * x**3))
        inner = root * (1 + 3 * constant * x**2)
        return 0.5 * (1 + t) + 0.5 * x * (1 - t * t) * inner

    return slope


@MUTANTS.add(*BEFORE)
def gelu_with_another_constant(rng: np.random.Generator) -> Pair:
    """0.04715 typed for 0.044715."""
    return network(
        rng,
        lambda x: jax.nn.gelu(x, approximate=True),
        gelu_slope(0.04715),
        gelu_slope(0.044715),
    )


@MUTANTS.add(*BEFORE)
def gelu_slope_of_the_approximation(rng: np.random.Generator) -> Pair:
    """Exact GELU forward, the derivative of its tanh approximation backward."""

    def exact(x: Any, _: Any) -> Any:
        density = jnp.exp(-x * x / 2) / np.float32(np.sqrt(2 * np.pi))
        return jax.scipy.stats.norm.cdf(x) + x * density

    return network(
        rng, lambda x: jax.nn.gelu(x, approximate=False), gelu_slope(0.044715), exact
    )


@MUTANTS.add(*BEFORE)
def relu_slope_one_everywhere(rng: np.random.Generator) -> Pair:
    """The mask of relu was forgotten."""
    return network(
        rng,
        lambda x: jnp.maximum(x, 0),
        lambda x, _: jnp.ones_like(x),
        lambda x, _: jnp.where(x > 0, 1, 0).astype(x.dtype),
    )


@MUTANTS.add(*BEFORE)
def leaky_relu_sides_swapped(rng: np.random.Generator) -> Pair:
    """The small slope on the positive side."""

    def slope(negative: float, positive: float) -> Any:
        return lambda x, _: jnp.where(x > 0, jnp.float32(positive), negative)

    return network(
        rng, lambda x: jnp.where(x > 0, x, 0.1 * x), slope(1, 0.1), slope(0.1, 1)
    )


@MUTANTS.add(*BEFORE)
def elu_without_the_plus_one(rng: np.random.Generator) -> Pair:
    """For x < 0 the slope of exp(x) - 1 is out + 1, not out."""
    return network(
        rng,
        jax.nn.elu,
        lambda x, out: jnp.where(x > 0, 1.0, out),
        lambda x, out: jnp.where(x > 0, 1.0, out + 1),
    )


@MUTANTS.add(*BEFORE)
def erf_constant(rng: np.random.Generator) -> Pair:
    """1/√π for 2/√π."""

    def slope(constant: float) -> Any:
        return lambda x, _: constant * jnp.exp(-x * x)

    root = float(np.sqrt(np.pi))
    return network(rng, jax.scipy.special.erf, slope(1 / root), slope(2 / root))


@MUTANTS.add(*BEFORE)
def chain_factor_missing(rng: np.random.Generator) -> Pair:
    """The inner derivative of sin(3x) was forgotten."""
    return network(
        rng,
        lambda x: jnp.sin(3 * x),
        lambda x, _: jnp.cos(3 * x),
        lambda x, _: 3 * jnp.cos(3 * x),
    )


@MUTANTS.add(*BEFORE)
def power_with_exponent_not_lowered(rng: np.random.Generator) -> Pair:
    """N xⁿ for n xⁿ⁻¹."""
    return network(rng, lambda x: x**3, lambda x, _: 3 * x**3, lambda x, _: 3 * x**2)


@MUTANTS.add(*BEFORE)
def clip_passes_everything(rng: np.random.Generator) -> Pair:
    """Clip with the gradient of the identity: an undeclared straight-through."""
    return network(
        rng,
        lambda x: jnp.clip(x, -0.5, 0.5),
        lambda x, _: jnp.ones_like(x),
        lambda x, _: jnp.where(jnp.abs(x) < 0.5, 1, 0).astype(x.dtype),
    )


@MUTANTS.add(*BEFORE)
def abs_without_sign(rng: np.random.Generator) -> Pair:
    """The slope of |x| taken for 1."""
    return network(
        rng, jnp.abs, lambda x, _: jnp.ones_like(x), lambda x, _: jnp.sign(x)
    )


def of_two(
    rng: np.random.Generator,
    fn: Callable[..., Any],
    wrong: Any,
    right: Any,
    *,
    low: float = 0.5,
    high: float = 2.0,
) -> Pair:
    """A sum of ``fn(a, b)`` of two equal-sized leaves, with rules for both."""

    def loss_with(slopes: Any) -> Any:
        ruled = with_vjp(
            fn,
            lambda primals, _, ct: tuple(ct * slope for slope in slopes(*primals)),
        )
        return lambda params, y: (
            jnp.sum(y * ruled(params["a"], params["b"])) + jnp.sum(params["c"] * y)
        )

    params = {
        "a": uniform(rng, low, high, 6),
        "b": uniform(rng, low, high, 6),
        "c": normal(rng, 6),
    }
    return pair(loss_with, wrong, right, params, normal(rng, 6))


@MUTANTS.add("['a']", "['b']")
def gradients_swapped(rng: np.random.Generator) -> Pair:
    """The gradient of a is handed to b, and that of b to a."""
    return of_two(
        rng,
        lambda a, b: a * jnp.exp(b),
        lambda a, b: (a * jnp.exp(b), jnp.exp(b)),
        lambda a, b: (jnp.exp(b), a * jnp.exp(b)),
    )


@MUTANTS.add("['b']")
def same_gradient_for_both(rng: np.random.Generator) -> Pair:
    """The gradient of a is handed to b as well."""
    return of_two(
        rng,
        lambda a, b: a * jnp.log(b),
        lambda a, b: (jnp.log(b), jnp.log(b)),
        lambda a, b: (jnp.log(b), a / b),
    )


@MUTANTS.add("['b']")
def quotient_with_wrong_sign(rng: np.random.Generator) -> Pair:
    """The sign of the denominator's term."""
    return of_two(
        rng,
        lambda a, b: a / b,
        lambda a, b: (1 / b, a / b**2),
        lambda a, b: (1 / b, -a / b**2),
    )


@MUTANTS.add("['b']")
def quotient_without_the_square(rng: np.random.Generator) -> Pair:
    """-a / b for -a / b²."""
    return of_two(
        rng,
        lambda a, b: a / b,
        lambda a, b: (1 / b, -a / b),
        lambda a, b: (1 / b, -a / b**2),
    )


@MUTANTS.add("['a']", "['b']")
def atan2_operands_swapped(rng: np.random.Generator) -> Pair:
    """The signs of atan2(x, y) for atan2(y, x)."""
    return of_two(
        rng,
        jnp.arctan2,
        lambda a, b: (-b / (a**2 + b**2), a / (a**2 + b**2)),
        lambda a, b: (b / (a**2 + b**2), -a / (a**2 + b**2)),
    )


@MUTANTS.add("['a']", "['b']")
def hypot_without_the_root(rng: np.random.Generator) -> Pair:
    """The derivative of a² + b², halved, for that of its root."""
    return of_two(
        rng,
        lambda a, b: jnp.sqrt(a**2 + b**2),
        lambda a, b: (a, b),
        lambda a, b: (a / jnp.hypot(a, b), b / jnp.hypot(a, b)),
    )


@MUTANTS.add("['a']", "['b']")
def logaddexp_weights_swapped(rng: np.random.Generator) -> Pair:
    """The softmax weights of the two arguments exchanged."""
    return of_two(
        rng,
        jnp.logaddexp,
        lambda a, b: (jax.nn.sigmoid(b - a), jax.nn.sigmoid(a - b)),
        lambda a, b: (jax.nn.sigmoid(a - b), jax.nn.sigmoid(b - a)),
    )


@MUTANTS.add("['b']")
def power_without_the_logarithm(rng: np.random.Generator) -> Pair:
    """The exponent's derivative lost its log."""
    return of_two(
        rng,
        lambda a, b: a**b,
        lambda a, b: (b * a ** (b - 1), a**b),
        lambda a, b: (b * a ** (b - 1), a**b * jnp.log(a)),
    )


@MUTANTS.add("['b']")
def gradient_of_one_leaf_dropped(rng: np.random.Generator) -> Pair:
    """Zeros for an argument that does matter."""
    return of_two(
        rng,
        lambda a, b: jnp.sin(a * b),
        lambda a, b: (b * jnp.cos(a * b), jnp.zeros_like(b)),
        lambda a, b: (b * jnp.cos(a * b), a * jnp.cos(a * b)),
    )


@MUTANTS.add("['b']")
def none_for_a_cotangent(rng: np.random.Generator) -> Pair:
    """A custom_vjp that returns None, which JAX reads as zero."""

    def loss_with(keep: bool) -> Any:
        product = with_vjp(
            jnp.multiply,
            lambda primals, _, ct: (ct * primals[1], ct * primals[0] if keep else None),
        )
        return lambda params: jnp.sum(product(params["a"], params["b"]) ** 2)

    return pair(loss_with, False, True, {"a": normal(rng, 4), "b": normal(rng, 4)})


@MUTANTS.add("['a']")
def dropped_tangent(rng: np.random.Generator) -> Pair:
    """A custom_jvp that leaves out one tangent of a product."""

    def loss_with(keep: float) -> Any:
        product = with_jvp(
            jnp.multiply,
            lambda primals, dots: keep * dots[0] * primals[1] + primals[0] * dots[1],
        )
        return lambda params: jnp.sum(jnp.cos(product(params["a"], params["b"])))

    return pair(loss_with, 0.0, 1.0, {"a": normal(rng, 4), "b": normal(rng, 4)})


@MUTANTS.add("['x']")
def stale_residual(rng: np.random.Generator) -> Pair:
    """The residual was taken after the input had been rescaled in place."""

    def loss_with(rescale: float) -> Any:
        sine = with_vjp(
            jnp.sin, lambda primals, _, ct: (ct * jnp.cos(rescale * primals[0]),)
        )
        return lambda params: jnp.sum(sine(params["x"])) * params["scale"]

    return pair(loss_with, 0.9, 1.0, {"x": normal(rng, 5), "scale": jnp.float32(1.5)})


@MUTANTS.add("['x']")
def huber_branches_swapped(rng: np.random.Generator) -> Pair:
    """The linear branch's slope inside, the quadratic branch's outside."""

    def loss_with(inside: Any) -> Any:
        def rule(primals: Any, _: Any, ct: Any) -> Any:
            (r,) = primals
            return (ct * jnp.where(inside(jnp.abs(r)), r, jnp.sign(r)),)

        def value(r: Any) -> Any:
            return jnp.where(jnp.abs(r) < 1, 0.5 * r * r, jnp.abs(r) - 0.5)

        huber = with_vjp(value, rule)
        return lambda params: jnp.mean(huber(params["x"])) * params["scale"]

    x = jnp.asarray(np.asarray([-2.5, -0.4, 0.3, 0.7, 1.8], np.float32))
    params = {"x": x, "scale": jnp.float32(1.5)}
    return pair(loss_with, lambda r: r > 1, lambda r: r < 1, params)


@MUTANTS.add("['x']")
def log_with_forgotten_epsilon(rng: np.random.Generator) -> Pair:
    """log(x + ε) forward, 1/x backward."""

    def loss_with(epsilon: float) -> Any:
        log = with_vjp(
            lambda x: jnp.log(x + 1e-3),
            lambda primals, _, ct: (ct / (primals[0] + epsilon),),
        )
        return lambda params: jnp.sum(log(params["x"])) - params["scale"]

    params = {"x": uniform(rng, 0.1, 1.0, 5), "scale": jnp.float32(1.5)}
    return pair(loss_with, 0.0, 1e-3, params)


@MUTANTS.add("['x']")
def sqrt_without_the_half(rng: np.random.Generator) -> Pair:
    """1/√x for 1/(2√x), in a custom_jvp."""

    def loss_with(half: float) -> Any:
        root = with_jvp(
            jnp.sqrt, lambda primals, dots: half * dots[0] / jnp.sqrt(primals[0])
        )
        return lambda params: jnp.sum(root(params["x"])) * params["scale"]

    params = {"x": uniform(rng, 0.5, 4.0, 5), "scale": jnp.float32(1.5)}
    return pair(loss_with, 1.0, 0.5, params)


@MUTANTS.add("['x']", index=(2,), smooth=False)
def relu_outside_its_subgradient(rng: np.random.Generator) -> Pair:
    """Slope 2 at exactly zero, where anything from 0 to 1 could be defended."""

    def loss_with(at_zero: float) -> Any:
        def rule(primals: Any, _: Any, ct: Any) -> Any:
            (x,) = primals
            positive = jnp.where(x > 0, 1, 0).astype(x.dtype)
            return (ct * jnp.where(x == 0, at_zero, positive),)

        relu = with_vjp(lambda x: jnp.maximum(x, 0), rule)
        return lambda params: jnp.sum(relu(params["x"])) * params["scale"]

    x = jnp.asarray(np.asarray([1.0, -0.5, 0.0, 2.0], np.float32))
    return pair(loss_with, 2.0, 0.0, {"x": x, "scale": jnp.float32(1.5)})


@MUTANTS.add("['x']", smooth=False)
def max_multiplies_by_the_ties(rng: np.random.Generator) -> Pair:
    """Tied maxima share the gradient; here it is multiplied by their number instead."""

    def loss_with(share: Any) -> Any:
        def rule(primals: Any, out: Any, ct: Any) -> Any:
            (x,) = primals
            tied = (x == out).astype(x.dtype)
            return (ct * share(tied, jnp.sum(tied)),)

        largest = with_vjp(jnp.max, rule)
        return lambda params: largest(params["x"]) * params["scale"]

    x = jnp.asarray(np.asarray([1.0, 3.0, 2.0, 3.0], np.float32))
    params = {"x": x, "scale": jnp.float32(1.5)}
    return pair(loss_with, jnp.multiply, jnp.divide, params)


@MUTANTS.add("['x']")
def second_derivative_wrong(rng: np.random.Generator) -> Pair:
    """A right first derivative, written with a square whose own rule is wrong."""

    def loss_with(factor: float) -> Any:
        square = with_vjp(
            jnp.square, lambda primals, _, ct: (factor * primals[0] * ct,)
        )
        tanh = with_jvp(
            jnp.tanh, lambda primals, dots: (1 - square(jnp.tanh(primals[0]))) * dots[0]
        )

        def loss(params: Any) -> Any:
            slope = jax.grad(lambda x: jnp.sum(tanh(x)))(params["x"])
            return jnp.sum(slope**2) * params["scale"]

        return loss

    return pair(loss_with, 1.0, 2.0, {"x": normal(rng, 4), "scale": jnp.float32(1.5)})
