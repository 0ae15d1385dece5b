"""Wrong derivatives in linear algebra and with complex numbers."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.linalg import solve_triangular

from .cases import MutantList, Pair
from .planting import complex_normal, edited, normal, pair, with_jvp, with_vjp

MUTANTS = MutantList()


def general(rng: np.random.Generator, n: int) -> jax.Array:
    """A well-conditioned matrix that is not symmetric."""
    return 3 * jnp.eye(n, dtype=jnp.float32) + normal(rng, n, n)


def of_matrix(
    rng: np.random.Generator, fn: Callable[..., Any], wrong: Any, right: Any
) -> Pair:
    """A function of the leaf ``a`` with a rule (a, out, cotangent), and a scale."""

    def loss_with(rule: Any) -> Any:
        ruled = with_vjp(fn, lambda primals, out, ct: (rule(primals[0], out, ct),))

        def loss(params: Any, y: Any) -> Any:
            return jnp.sum(jnp.sin(ruled(params["a"]) * params["scale"]) * y)

        return loss

    n = 3
    params = {"a": general(rng, n), "scale": normal(rng, n)}
    return pair(loss_with, wrong, right, params, normal(rng, n, n))


@MUTANTS.add("['a']")
def inverse_without_the_transposes(rng: np.random.Generator) -> Pair:
    """-A⁻¹ G A⁻¹ for -A⁻ᵀ G A⁻ᵀ."""
    return of_matrix(
        rng,
        jnp.linalg.inv,
        lambda a, out, ct: -out @ ct @ out,
        lambda a, out, ct: -out.T @ ct @ out.T,
    )


@MUTANTS.add("['a']")
def inverse_without_the_sign(rng: np.random.Generator) -> Pair:
    """The minus of the inverse's derivative."""
    return of_matrix(
        rng,
        jnp.linalg.inv,
        lambda a, out, ct: out.T @ ct @ out.T,
        lambda a, out, ct: -out.T @ ct @ out.T,
    )


@MUTANTS.add("['a']")
def determinant_without_itself(rng: np.random.Generator) -> Pair:
    """A⁻ᵀ, which is the gradient of the logarithm, for det(A) A⁻ᵀ."""
    return of_matrix(
        rng,
        jnp.linalg.det,
        lambda a, out, ct: ct * jnp.linalg.inv(a).T,
        lambda a, out, ct: ct * out * jnp.linalg.inv(a).T,
    )


@MUTANTS.add("['a']")
def log_determinant_not_transposed(rng: np.random.Generator) -> Pair:
    """A⁻¹ for A⁻ᵀ: equal for the symmetric matrices of the usual test."""
    return of_matrix(
        rng,
        lambda a: jnp.linalg.slogdet(a)[1],
        lambda a, out, ct: ct * jnp.linalg.inv(a),
        lambda a, out, ct: ct * jnp.linalg.inv(a).T,
    )


@MUTANTS.add("['a']")
def matrix_square_operands_swapped(rng: np.random.Generator) -> Pair:
    """Aᵀ G twice for G Aᵀ + Aᵀ G."""
    return of_matrix(
        rng,
        lambda a: a @ a,
        lambda a, out, ct: 2 * a.T @ ct,
        lambda a, out, ct: ct @ a.T + a.T @ ct,
    )


@MUTANTS.add("['a']")
def cholesky_diagonal_not_halved(rng: np.random.Generator) -> Pair:
    """Φ takes the lower triangle and forgets to halve the diagonal."""

    def cholesky(a: Any) -> Any:
        return jnp.linalg.cholesky(a @ a.T, symmetrize_input=False)

    def rule(diagonal: float) -> Any:
        def backward(a: Any, lower: Any, ct: Any) -> Any:
            phi = jnp.tril(lower.T @ ct)
            phi = phi * (1 - (1 - diagonal) * jnp.eye(len(phi), dtype=phi.dtype))
            inner = solve_triangular(lower, phi, trans=1, lower=True)
            inner = solve_triangular(lower, inner.T, trans=1, lower=True).T
            return (inner + inner.T) @ a

        return backward

    return of_matrix(rng, cholesky, rule(1.0), rule(0.5))


@MUTANTS.add("['a']")
def frobenius_norm_squared_gradient(rng: np.random.Generator) -> Pair:
    """2 A, the gradient of the squared norm, for A / |A|."""
    return of_matrix(
        rng,
        lambda a: jnp.sqrt(jnp.sum(a * a)),
        lambda a, out, ct: 2 * ct * a,
        lambda a, out, ct: ct * a / out,
    )


def solve_rule(*, transpose: bool, sign: float) -> Callable[..., Any]:
    """The reverse rule of solve(a, b) with the named faults."""

    def rule(primals: Any, out: Any, ct: Any) -> Any:
        a, _ = primals
        d_b = jnp.linalg.solve(a.T if transpose else a, ct)
        return sign * jnp.outer(d_b, out), d_b

    return rule


def solve_pair(rng: np.random.Generator, **fault: Any) -> Pair:
    """A linear system whose matrix and right-hand side are leaves."""

    def loss_with(fault: Any) -> Any:
        rule = solve_rule(**({"transpose": True, "sign": -1.0} | fault))
        solve = with_vjp(jnp.linalg.solve, rule)
        return lambda params, y: jnp.sum(
            jnp.sin(solve(params["a"], params["b"]) * params["scale"]) * y
        )

    params = {"a": general(rng, 3), "b": normal(rng, 3), "scale": normal(rng, 3)}
    return pair(loss_with, fault, {}, params, normal(rng, 3))


@MUTANTS.add("['a']", "['b']")
def solve_without_the_transpose(rng: np.random.Generator) -> Pair:
    """The backward solves with A where it must with Aᵀ."""
    return solve_pair(rng, transpose=False)


@MUTANTS.add("['a']")
def solve_sign_of_the_matrix(rng: np.random.Generator) -> Pair:
    """The minus in front of the matrix's gradient."""
    return solve_pair(rng, sign=1.0)


def product_pair(
    rng: np.random.Generator, product: Callable[..., Any], wrong: Any, right: Any
) -> Pair:
    """A product of two square leaves with a rule (a, b, cotangent)."""

    def loss_with(rule: Any) -> Any:
        ruled = with_vjp(product, lambda primals, _, ct: rule(*primals, ct))
        return lambda params: jnp.sum(
            jnp.sin(ruled(params["a"], params["b"])) * params["scale"]
        )

    params = {"a": normal(rng, 3, 3), "b": normal(rng, 3, 3), "scale": normal(rng, 3)}
    return pair(loss_with, wrong, right, params)


@MUTANTS.add("['a']")
def matmul_left_not_transposed(rng: np.random.Generator) -> Pair:
    """G B for G Bᵀ."""
    return product_pair(
        rng,
        jnp.matmul,
        lambda a, b, ct: (ct @ b, a.T @ ct),
        lambda a, b, ct: (ct @ b.T, a.T @ ct),
    )


@MUTANTS.add("['b']")
def matmul_right_in_the_wrong_order(rng: np.random.Generator) -> Pair:
    """G Aᵀ for Aᵀ G."""
    return product_pair(
        rng,
        jnp.matmul,
        lambda a, b, ct: (ct @ b.T, ct @ a.T),
        lambda a, b, ct: (ct @ b.T, a.T @ ct),
    )


@MUTANTS.add("['a']", "['b']")
def matmul_gradients_swapped(rng: np.random.Generator) -> Pair:
    """Both gradients right, each handed to the other operand."""
    return product_pair(
        rng,
        jnp.matmul,
        lambda a, b, ct: (a.T @ ct, ct @ b.T),
        lambda a, b, ct: (ct @ b.T, a.T @ ct),
    )


@MUTANTS.add("['a']")
def einsum_with_swapped_indices(rng: np.random.Generator) -> Pair:
    """A subscript typed the wrong way round."""
    return product_pair(
        rng,
        lambda a, b: jnp.einsum("ij,kj->ik", a, b),
        lambda a, b, ct: (
            jnp.einsum("ki,kj->ij", ct, b),
            jnp.einsum("ik,ij->kj", ct, a),
        ),
        lambda a, b, ct: (
            jnp.einsum("ik,kj->ij", ct, b),
            jnp.einsum("ik,ij->kj", ct, a),
        ),
    )


@MUTANTS.add("['a']", "['b']")
def cross_product_operands_swapped(rng: np.random.Generator) -> Pair:
    """A × g for g × a: the sign."""
    return product_pair(
        rng,
        jnp.cross,
        lambda a, b, ct: (jnp.cross(ct, b), jnp.cross(a, ct)),
        lambda a, b, ct: (jnp.cross(b, ct), jnp.cross(ct, a)),
    )


@MUTANTS.add("['x']")
def quadratic_form_taken_for_symmetric(rng: np.random.Generator) -> Pair:
    """2 A x for (A + Aᵀ) x, with an A that is not symmetric."""

    def loss_with(rule: Any) -> Any:
        form = with_vjp(
            lambda x, a: x @ a @ x,
            lambda primals, _, ct: (
                ct * rule(*primals),
                ct * jnp.outer(primals[0], primals[0]),
            ),
        )
        return lambda params: form(params["x"], params["a"])

    params = {"x": normal(rng, 4), "a": normal(rng, 4, 4)}
    return pair(loss_with, lambda x, a: 2 * a @ x, lambda x, a: (a + a.T) @ x, params)


@MUTANTS.add("['x']")
def quadratic_form_moves_one_side(rng: np.random.Generator) -> Pair:
    """A custom_jvp of xᵀAx that moves only the right-hand x."""

    def loss_with(left: float) -> Any:
        def rule(primals: Any, dots: Any) -> Any:
            x, a = primals
            d_x, d_a = dots
            return left * (d_x @ a @ x) + x @ a @ d_x + x @ d_a @ x

        form = with_jvp(lambda x, a: x @ a @ x, rule)
        return lambda params: jnp.tanh(0.1 * form(params["x"], params["a"]))

    params = {"x": normal(rng, 3), "a": normal(rng, 3, 3)}
    return pair(loss_with, 0.0, 1.0, params)


def complex_pair(
    rng: np.random.Generator, product: Callable[..., Any], wrong: Any, right: Any
) -> Pair:
    """A function of two complex leaves with a rule (a, b, cotangent)."""

    def loss_with(rule: Any) -> Any:
        ruled = with_vjp(product, lambda primals, _, ct: rule(*primals, ct))

        def loss(params: Any, y: Any) -> Any:
            difference = ruled(params["a"], params["b"]) - y
            return jnp.sum(jnp.abs(difference) ** 2) * params["scale"]

        return loss

    params = {
        "a": complex_normal(rng, 4),
        "b": complex_normal(rng, 4),
        "scale": jnp.float32(0.3),
    }
    return pair(loss_with, wrong, right, params, complex_normal(rng, 4))


@MUTANTS.add("['b']")
def complex_product_conjugated(rng: np.random.Generator) -> Pair:
    """JAX's cotangent of a product is not conjugated; here it is, once."""
    return complex_pair(
        rng,
        jnp.multiply,
        lambda a, b, ct: (ct * b, ct * jnp.conj(a)),
        lambda a, b, ct: (ct * b, ct * a),
    )


@MUTANTS.add("['a']")
def conjugate_missing(rng: np.random.Generator) -> Pair:
    """The backward of conj(a) b without the conjugate."""
    return complex_pair(
        rng,
        lambda a, b: jnp.conj(a) * b,
        lambda a, b, ct: (ct * b, ct * jnp.conj(a)),
        lambda a, b, ct: (jnp.conj(ct * b), ct * jnp.conj(a)),
    )


@MUTANTS.add("['a']")
def imaginary_part_dropped(rng: np.random.Generator) -> Pair:
    """Only the real part of a gradient comes back."""
    return complex_pair(
        rng,
        jnp.add,
        lambda a, b, ct: ((ct.real + 0j).astype(ct.dtype), ct),
        lambda a, b, ct: (ct, ct),
    )


@MUTANTS.add("['a']")
def fourier_backward_normalized(rng: np.random.Generator) -> Pair:
    """The inverse transform, with its 1/n, for the transpose, without."""
    return complex_pair(
        rng,
        lambda a, b: jnp.fft.fft(a) + b,
        lambda a, b, ct: (jnp.fft.ifft(ct), ct),
        lambda a, b, ct: (jnp.fft.fft(ct), ct),
    )


@MUTANTS.add("['z']")
def squared_modulus_conjugated(rng: np.random.Generator) -> Pair:
    """2 z for 2 z̄ in the cotangent of |z|²."""

    def loss_with(rule: Any) -> Any:
        power = with_vjp(
            lambda z: jnp.real(z * jnp.conj(z)),
            lambda primals, _, ct: (
                (2 * ct * rule(primals[0])).astype(primals[0].dtype),
            ),
        )
        return lambda params: jnp.sum(jnp.log1p(power(params["z"])) * params["weight"])

    params = {"z": complex_normal(rng, 4), "weight": normal(rng, 4)}
    return pair(loss_with, lambda z: z, jnp.conj, params)


DTYPES = {
    "bfloat16": (jnp.bfloat16, 2.0),
    "float16": (jnp.float16, 2.0),
    "float64": (np.float64, 1.001),
    "complex64": (np.complex64, 1.001),
    "complex128": (np.complex128, -1.0),
}


def scaled_in(rng: np.random.Generator, *, dtype: Any, factor: float) -> Pair:
    """One leaf in ``dtype`` beside a float32 leaf; its gradient times a factor."""

    def loss_with(factor: float) -> Any:
        identity = edited(lambda _, ct: factor * ct)

        def loss(params: Any) -> Any:
            x = identity(params["x"])
            power = jnp.real(x * jnp.conj(x)).astype(params["y"].dtype)
            return jnp.sum(jnp.sin(power) * params["y"])

        return loss

    x = rng.standard_normal(5)
    if np.issubdtype(dtype, np.complexfloating):
        x = x + 1j * rng.standard_normal(5)
    params = {"x": jnp.asarray(x.astype(dtype)), "y": normal(rng, 5)}
    return pair(loss_with, factor, 1.0, params)


for _name, (_dtype, _factor) in DTYPES.items():
    MUTANTS.add("['x']", name=f"times_{_factor}_in_{_name}")(
        partial(scaled_in, dtype=_dtype, factor=_factor)
    )
