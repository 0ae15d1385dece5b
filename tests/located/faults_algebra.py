"""Faults in linear algebra: solvers, Gaussian processes, flows, complex numbers."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from tests.catalogue.cases import Program
from tests.catalogue.planting import complex_normal, normal, uniform

from .architectures import dense_params, mlp
from .cases import FaultList, culprit
from .rules import ruled

FAULTS = FaultList()


# ---- linear solves


def solve_loss(rng, solve):
    """A layer that solves (4 + a) x = b for the output of another."""

    def loss(params, b):
        matrix = 4 * jnp.eye(3, dtype=b.dtype) + params["a"]
        return jnp.sum(solve(matrix, jnp.tanh(params["w"] @ b)) ** 3)

    return Program(
        loss, {"a": normal(rng, 3, 3), "w": normal(rng, 3, 3)}, (normal(rng, 3),)
    )


def implicit_solve(backward):
    """A solve whose derivative is written by hand."""

    def linear_solve(matrix, b):
        return jnp.linalg.inv(matrix) @ b

    solve = ruled(linear_solve, backward)

    def layer(matrix, b):
        return solve(matrix, b)  # rule: implicit linear solve

    return layer


@FAULTS.add(culprit("linear_solve", "implicit linear solve"))
def linear_solve_forgets_the_transpose(rng, faulty):
    def linear_solve_backward(saved, ct):
        (matrix, _), x = saved
        u = jnp.linalg.inv(matrix if faulty else matrix.T) @ ct
        return -jnp.outer(u, x), u

    return solve_loss(rng, implicit_solve(linear_solve_backward))


@FAULTS.add(culprit("linear_solve", "implicit linear solve"))
def linear_solve_loses_a_sign(rng, faulty):
    def linear_solve_backward(saved, ct):
        (matrix, _), x = saved
        u = jnp.linalg.inv(matrix.T) @ ct
        return (1 if faulty else -1) * jnp.outer(u, x), u

    return solve_loss(rng, implicit_solve(linear_solve_backward))


@FAULTS.add(culprit(None, "custom linear solve", primitive="custom_linear_solve"))
def custom_linear_solve_with_the_wrong_transpose(rng, faulty):
    """The transposed system is solved with the matrix itself."""

    def solve(matrix, b):
        def by_inverse(_, b):
            return jnp.linalg.inv(matrix) @ b

        def by_inverse_transposed(_, b):
            return jnp.linalg.inv(matrix if faulty else matrix.T) @ b

        def times(x):
            return matrix @ x

        solvers = (by_inverse, by_inverse_transposed)
        return lax.custom_linear_solve(times, b, *solvers)  # rule: custom linear solve

    return solve_loss(rng, solve)


# ---- likelihoods of matrices


def spd(root):
    """A symmetric positive definite matrix."""
    return root @ root.T + 2 * jnp.eye(len(root), dtype=root.dtype)


@FAULTS.add(culprit("log_determinant", "evidence of a Gaussian process"))
def gaussian_process_doubles_the_complexity_term(rng, faulty):
    """log|K| by Cholesky; its rule forgets the half that went into the factor."""

    def log_determinant(matrix):
        return jnp.sum(jnp.log(jnp.diagonal(jnp.linalg.cholesky(matrix))))

    def log_determinant_backward(saved, ct):
        (matrix,), _ = saved
        return (ct * jnp.linalg.inv(matrix) * (1 if faulty else 0.5),)

    half_log_det = ruled(log_determinant, log_determinant_backward)

    def loss(params, x, y):
        distance = jnp.sum((x[:, None] - x) ** 2, -1)
        kernel = jnp.exp(
            params["log_scale"] - distance / 2 * jnp.exp(params["log_rate"])
        )
        kernel = kernel + 0.5 * jnp.eye(len(x), dtype=x.dtype)
        fit = y @ jnp.linalg.solve(kernel, y) / 2
        return fit + half_log_det(kernel)  # rule: evidence of a Gaussian process

    params = {"log_scale": jnp.float32(0.3), "log_rate": jnp.float32(-0.4)}
    return Program(loss, params, (normal(rng, 5, 2), normal(rng, 5)))


@FAULTS.add(culprit("eigenvalues", "spectral penalty"))
def eigenvalues_with_vectors_in_rows(rng, faulty):
    """Eigenvectors are columns; the rule takes them for rows."""

    def eigenvalues(matrix):
        return jnp.linalg.eigh(matrix)[0]

    def eigenvalues_backward(saved, ct):
        (matrix,), _ = saved
        vectors = jnp.linalg.eigh(matrix)[1]
        vectors = vectors.T if faulty else vectors
        return ((vectors * ct) @ vectors.T,)

    spectrum = ruled(eigenvalues, eigenvalues_backward)

    def loss(params, x):
        hidden = jnp.tanh(x @ params["w"])
        covariance = hidden.T @ hidden / len(x) + jnp.diag(jnp.arange(1.0, 4))
        values = spectrum(covariance.astype(x.dtype))  # rule: spectral penalty
        return jnp.sum(jnp.sin(values))

    return Program(loss, {"w": normal(rng, 3, 3)}, (normal(rng, 6, 3),))


@FAULTS.add(culprit("spectral_norm", "spectral normalization"))
def spectral_norm_divides_by_a_constant(rng, faulty):
    """W/σ(W) differentiated as if σ were constant."""

    def spectral_norm(w):
        return w / jnp.linalg.svd(w, compute_uv=False)[0]

    def spectral_norm_backward(saved, ct):
        (w,), y = saved
        u, s, vt = jnp.linalg.svd(w, full_matrices=False)
        inner = ct if faulty else ct - jnp.sum(ct * y) * jnp.outer(u[:, 0], vt[0])
        return (inner / s[0],)

    normalized = ruled(spectral_norm, spectral_norm_backward)

    def loss(params, x):
        w = normalized(params["w"])  # rule: spectral normalization
        return jnp.mean(jax.nn.softplus(x @ w))

    return Program(loss, {"w": normal(rng, 4, 3)}, (normal(rng, 5, 4),))


# ---- flows


@FAULTS.add(culprit("affine_coupling", "coupling layer"))
def flow_loses_the_volume_term(rng, faulty):
    """The log determinant of a coupling layer gives its scale no gradient."""

    def affine_coupling(x, shift, log_scale):
        return x * jnp.exp(log_scale) + shift, jnp.sum(log_scale, -1)

    def affine_coupling_backward(saved, ct):
        (x, _, log_scale), _ = saved
        ct_y, ct_volume = ct
        scale = jnp.exp(log_scale)
        of_scale = ct_y * x * scale
        of_scale = of_scale if faulty else of_scale + ct_volume[:, None]
        return ct_y * scale, ct_y, of_scale

    couple = ruled(affine_coupling, affine_coupling_backward)

    def loss(params, x):
        volume = 0.0
        for layer in (params["first"], params["second"]):
            left, right = jnp.split(x, 2, -1)
            shift, scale = jnp.split(jnp.tanh(mlp(layer, left, jnp.tanh)), 2, -1)
            right, change = couple(right, shift, scale)  # rule: coupling layer
            x, volume = jnp.concatenate([right, left], -1), volume + change
        return jnp.mean(jnp.sum(x * x, -1) / 2 - volume)

    params = {"first": dense_params(rng, 2, 4, 4), "second": dense_params(rng, 2, 4, 4)}
    return Program(loss, params, (normal(rng, 5, 4),))


@FAULTS.add(culprit("log_abs_det", "invertible convolution"))
def invertible_convolution_forgets_the_transpose(rng, faulty):
    """∂ log|det W| = W⁻ᵀ."""

    def log_abs_det(w):
        return jnp.linalg.slogdet(w)[1]

    def log_abs_det_backward(saved, ct):
        inverse = jnp.linalg.inv(saved[0][0])
        return (ct * (inverse if faulty else inverse.T),)

    volume = ruled(log_abs_det, log_abs_det_backward)

    def loss(params, x):
        z = x @ params["w"]
        return jnp.mean(z * z) / 2 - volume(params["w"])  # rule: invertible convolution

    return Program(loss, {"w": normal(rng, 3, 3)}, (normal(rng, 5, 3),))


# ---- complex numbers


@FAULTS.add(culprit("rotate", "complex layer"))
def complex_product_without_the_conjugate(rng, faulty):
    """JAX's cotangents are bilinear: a z pulls back by a, and not by its conjugate."""

    def rotate(z, factor):
        return z * factor

    def rotate_backward(saved, ct):
        (z, factor), _ = saved
        turn = jnp.conj if faulty else (lambda x: x)
        return ct * turn(factor), jnp.sum(ct * turn(z), 0)

    rotated = ruled(rotate, rotate_backward)

    def loss(params, z):
        z = z @ params["w"]
        z = rotated(z, params["factor"])  # rule: complex layer
        return jnp.mean(jnp.abs(z) ** 2 + jnp.real(z) ** 3)

    params = {"w": complex_normal(rng, 2, 3), "factor": complex_normal(rng, 3)}
    return Program(loss, params, (complex_normal(rng, 4, 2),))


@FAULTS.add(culprit("power_spectrum", "spectral loss"))
def power_spectrum_forgets_the_conjugate(rng, faulty):
    """|F x|² pulls back through the conjugate of the transform."""

    def power_spectrum(x):
        return jnp.abs(jnp.fft.fft(x)) ** 2

    def power_spectrum_backward(saved, ct):
        (x,), _ = saved
        spectrum = jnp.fft.fft(x)
        turned = spectrum if faulty else jnp.conj(spectrum)
        return (2 * jnp.real(jnp.fft.fft(ct * turned)),)

    power = ruled(power_spectrum, power_spectrum_backward)

    def loss(params, x, target):
        signal = jnp.convolve(x, params["filter"], mode="same")
        spectrum = power(signal)  # rule: spectral loss
        return jnp.mean((jnp.log1p(spectrum) - target) ** 2)

    params = {"filter": normal(rng, 3)}
    return Program(loss, params, (normal(rng, 8), uniform(rng, 0, 3, 8)))


@FAULTS.add(culprit("fourier_mix", "Fourier layer"))
def fourier_layer_pulled_back_by_the_inverse(rng, faulty):
    """The transpose of the transform is the transform; its inverse divides by n."""

    def fourier_mix(x):
        return jnp.real(jnp.fft.fft(x, axis=0))

    def fourier_mix_backward(saved, ct):
        back = jnp.fft.ifft if faulty else jnp.fft.fft
        return (jnp.real(back(ct, axis=0)),)

    mix = ruled(fourier_mix, fourier_mix_backward)

    def loss(params, x):
        h = x @ params["in"]
        h = h + mix(h) / np.float32(2)  # rule: Fourier layer
        return jnp.mean(jax.nn.gelu(h) @ params["out"])

    params = {"in": normal(rng, 3, 4), "out": normal(rng, 4)}
    return Program(loss, params, (normal(rng, 6, 3),))
