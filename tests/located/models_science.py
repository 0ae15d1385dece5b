"""Correct models of numerical mathematics: decompositions, transforms, fixed points."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from tests.catalogue.cases import Program
from tests.catalogue.planting import complex_normal, normal, uniform

from .cases import ModelList
from .rules import attention, ruled, softmax_backward, standardize, standardize_backward

MODELS = ModelList()


def spd(root):
    """A symmetric positive definite matrix."""
    return root @ root.T + jnp.eye(len(root), dtype=root.dtype)


@MODELS.add
def gaussian_process_evidence(rng):
    """Cholesky, triangular solves, a log determinant."""

    def loss(params, x, y):
        distance = jnp.sum((x[:, None] - x) ** 2, -1)
        kernel = jnp.exp(
            params["log_scale"] - distance / 2 * jnp.exp(params["log_rate"])
        )
        factor = jnp.linalg.cholesky(kernel + 0.5 * jnp.eye(len(x), dtype=x.dtype))
        white = jax.scipy.linalg.solve_triangular(factor, y, lower=True)
        return white @ white / 2 + jnp.sum(jnp.log(jnp.diagonal(factor)))

    params = {"log_scale": jnp.float32(0.3), "log_rate": jnp.float32(-0.4)}
    return Program(loss, params, (normal(rng, 5, 2), normal(rng, 5)))


@MODELS.add
def whitening_by_eigh(rng):
    def loss(params, x):
        h = x @ params["w"]
        values, vectors = jnp.linalg.eigh(h.T @ h / len(x) + jnp.diag(jnp.arange(3.0)))
        white = h @ vectors / jnp.sqrt(values)
        return jnp.mean(jnp.sin(white @ vectors.T)) + jnp.sum(jnp.log(values))

    return Program(loss, {"w": normal(rng, 3, 3)}, (normal(rng, 6, 3),))


@MODELS.add
def nuclear_norm_of_a_completion(rng):
    """The singular values of a low-rank product, on what is observed."""

    def loss(params, y, seen):
        matrix = params["u"] @ params["v"] + jnp.eye(4, 3, dtype=y.dtype)
        fit = jnp.sum(jnp.where(seen, matrix - y, 0) ** 2)
        return fit + 0.3 * jnp.sum(jnp.linalg.svd(matrix, compute_uv=False))

    params = {"u": normal(rng, 4, 3), "v": normal(rng, 3, 3)}
    seen = jnp.asarray(rng.random((4, 3)) < 0.7)
    return Program(loss, params, (normal(rng, 4, 3), seen))


@MODELS.add
def ridge_regression_by_solve(rng):
    """A closed-form head on learned features: meta-learning by differentiable solve."""

    def loss(params, x, y, x_test, y_test):
        def features(x):
            return jnp.tanh(x @ params["w"])

        h = features(x)
        gram = h.T @ h + jnp.exp(params["log_ridge"]) * jnp.eye(4, dtype=x.dtype)
        head = jnp.linalg.solve(gram, h.T @ y)
        return jnp.mean((features(x_test) @ head - y_test) ** 2)

    params = {"w": normal(rng, 3, 4), "log_ridge": jnp.float32(-0.5)}
    args = (normal(rng, 6, 3), normal(rng, 6, 2), normal(rng, 4, 3), normal(rng, 4, 2))
    return Program(loss, params, args)


@MODELS.add
def implicit_layer_by_conjugate_gradients(rng):
    def loss(params, b):
        matrix = spd(params["root"])
        x, _ = jax.scipy.sparse.linalg.cg(lambda v: matrix @ v, b, tol=0.0, maxiter=12)
        return jnp.sum(jnp.tanh(x) ** 2)

    return Program(loss, {"root": normal(rng, 3, 3) / 2}, (normal(rng, 3),))


@MODELS.add
def layer_defined_by_a_root(rng):
    """Newton's iteration inside custom_root."""

    def loss(params, x):
        def newton(f, guess):
            def step(_, z):
                return z - jnp.linalg.solve(jax.jacfwd(f)(z), f(z))

            return lax.fori_loop(0, 20, step, guess)

        def tangent_solve(g, y):
            return jnp.linalg.solve(jax.jacfwd(g)(jnp.zeros_like(y)), y)

        def residual(z):
            return z + z**3 - jnp.tanh(params["w"] @ z + x)

        z = lax.custom_root(residual, jnp.zeros_like(x), newton, tangent_solve)
        return jnp.sum(z * params["out"])

    params = {"w": normal(rng, 3, 3) / 2, "out": normal(rng, 3)}
    return Program(loss, params, (normal(rng, 3),))


@MODELS.add
def sinkhorn_matching(rng):
    """Sixty Sinkhorn iterations, differentiated as they run."""

    def loss(params, x, y):
        moved = x @ params["w"] + params["b"]
        cost = jnp.sum((moved[:, None] - y) ** 2, -1)
        size = jnp.log(jnp.asarray(len(x), x.dtype))

        def update(fg, _):
            f, g = fg
            f = -(jax.nn.logsumexp(g - cost, 1) - size)
            g = -(jax.nn.logsumexp(f[:, None] - cost, 0) - size)
            return (f, g), None

        zero = jnp.zeros(len(x), x.dtype)
        (f, g), _ = lax.scan(update, (zero, zero), None, length=30)
        plan = jnp.exp(f[:, None] + g - cost) / len(x) ** 2
        return jnp.sum(plan * cost)

    params = {"w": normal(rng, 2, 2), "b": normal(rng, 2)}
    return Program(loss, params, (normal(rng, 4, 2), normal(rng, 4, 2)))


@MODELS.add
def fourier_neural_operator(rng):
    """Learned complex multipliers of the lowest frequencies."""

    def loss(params, u, target):
        def layer(u, weight, skip):
            spectrum = jnp.fft.rfft(u, axis=-1)
            low = jnp.einsum("cf,cdf->df", spectrum[:, :3], weight)
            padded = jnp.zeros_like(spectrum).at[:, :3].set(low)
            return jax.nn.gelu(jnp.fft.irfft(padded, u.shape[-1]) + skip @ u)

        out = layer(layer(u, params["w1"], params["s1"]), params["w2"], params["s2"])
        return jnp.mean((out - target) ** 2)

    params = {
        "w1": complex_normal(rng, 2, 2, 3),
        "w2": complex_normal(rng, 2, 2, 3),
        "s1": normal(rng, 2, 2),
        "s2": normal(rng, 2, 2),
    }
    return Program(loss, params, (normal(rng, 2, 8), normal(rng, 2, 8)))


@MODELS.add
def quantum_circuit(rng):
    """Rotations and entangling gates on two qubits, an expected energy."""

    def loss(angles, hamiltonian):
        def rotation(angle):
            c, s = jnp.cos(angle / 2), jnp.sin(angle / 2)
            return jnp.array([[c, -1j * s], [-1j * s, c]])

        def layer(state, pair):
            gate = jnp.kron(rotation(pair[0]), rotation(pair[1]))
            return jnp.array([1, 1, 1, -1]) * (gate @ state), None

        start = jnp.array([1, 0, 0, 0], jnp.complex64)
        state, _ = lax.scan(layer, start, angles)
        return jnp.real(jnp.conj(state) @ hamiltonian @ state)

    root = complex_normal(rng, 4, 4)
    return Program(loss, normal(rng, 3, 2), (root + root.conj().T,))


@MODELS.add
def complex_parameters(rng):
    """A layer whose weights are complex, with the modulus for an activation."""

    def loss(params, z):
        h = z @ params["w"]
        h = jax.nn.relu(jnp.abs(h) - 0.3) * jnp.exp(1j * jnp.angle(h))
        return jnp.mean(jnp.abs(h @ params["v"]) ** 2)

    params = {"w": complex_normal(rng, 3, 4), "v": complex_normal(rng, 4, 2)}
    return Program(loss, params, (complex_normal(rng, 5, 3),))


@MODELS.add
def molecular_forces(rng):
    """A loss of forces: the gradient of an energy, differentiated once more."""

    def loss(params, positions, forces):
        def energy(r):
            i, j = np.triu_indices(len(positions), 1)
            distance = jnp.linalg.norm(r[i] - r[j], axis=-1)
            shells = jnp.exp(-((distance[:, None] - params["centers"]) ** 2))
            return jnp.sum(shells @ params["weights"])

        return jnp.mean((jax.grad(energy)(positions) + forces) ** 2)

    params = {"centers": uniform(rng, 0.5, 2.5, 4), "weights": normal(rng, 4)}
    return Program(loss, params, (normal(rng, 4, 3), normal(rng, 4, 3)))


@MODELS.add
def rules_by_hand_that_are_right(rng):
    """A norm, an attention and an activation with rules of their own."""

    def normalize_backward(saved, ct):
        (x,), y = saved
        return (standardize_backward(x, y, ct),)

    def weigh(scores):
        return jax.nn.softmax(scores)

    def weigh_backward(saved, ct):
        return (softmax_backward(saved[1], ct),)

    @jax.custom_jvp
    def mish(x):
        return x * jnp.tanh(jax.nn.softplus(x))

    @mish.defjvp
    def mish_jvp(primals, tangents):
        (x,), (t,) = primals, tangents
        y = jnp.tanh(jax.nn.softplus(x))
        return x * y, t * (y + x * (1 - y * y) * jax.nn.sigmoid(x))

    normalize = ruled(standardize, normalize_backward)
    weighed = ruled(weigh, weigh_backward)

    def loss(params, x):
        def block(x):
            h = normalize(x)
            x = x + weighed(h @ params["q"] @ h.T) @ mish(h @ params["v"])
            return x + attention(h, h, x)

        return jnp.mean(jax.checkpoint(jax.vmap(block))(x) ** 2)

    params = {"q": normal(rng, 3, 3), "v": normal(rng, 3, 3)}
    return Program(loss, params, (normal(rng, 2, 4, 3),))


@MODELS.add
def wrong_rule_behind_a_right_one(rng):
    """The inner rule is wrong, and the outer rule, which is right, never asks it."""

    def inner_backward(saved, ct):
        return (3 * ct,)

    inner = ruled(lambda x: jnp.sin(x), inner_backward)  # noqa: PLW0108

    def outer(x):
        return inner(x) * x

    def outer_backward(saved, ct):
        (x,), _ = saved
        return (ct * (jnp.sin(x) + x * jnp.cos(x)),)

    wave = ruled(outer, outer_backward)

    def loss(params, x):
        return jnp.mean(wave(x @ params["w"]) ** 2)

    return Program(loss, {"w": normal(rng, 3, 2)}, (normal(rng, 4, 3),))


@MODELS.add
def data_parallel_over_four_devices(rng):
    """shard_map with a collective, and a normalization over all devices."""
    mesh = Mesh(np.asarray(jax.devices()[:4]), ("data",))

    def local(params, x):
        h = x @ params["in"]
        mean = lax.pmean(jnp.mean(h, 0), "data")
        variance = lax.pmean(jnp.mean((h - mean) ** 2, 0), "data")
        h = jax.nn.relu((h - mean) * lax.rsqrt(variance + 1e-5))
        return lax.pmean(jnp.mean((h @ params["out"]) ** 2), "data")

    loss = jax.shard_map(local, mesh=mesh, in_specs=(P(), P("data")), out_specs=P())
    params = {"in": normal(rng, 3, 4), "out": normal(rng, 4, 2)}
    return Program(loss, params, (normal(rng, 8, 3),))


@MODELS.add
def adaptive_branches(rng):
    """cond, switch and a while loop that only counts."""

    def loss(params, x):
        x = lax.cond(jnp.sum(x) > 0, jnp.sin, jnp.cos, x @ params["w"])
        steps = lax.while_loop(lambda n: n * n < 10, lambda n: n + 1, 0)
        branches = (jnp.tanh, jax.nn.softplus, jax.nn.elu)
        x = lax.switch(steps % 3, branches, x)
        return jnp.mean(lax.fori_loop(0, 3, lambda i, h: jnp.tanh(h + x), x) ** 2)

    return Program(loss, {"w": normal(rng, 3, 3)}, (normal(rng, 3),))


@MODELS.add
def differentiable_rendering(rng):
    """Soft circles blended in order of depth, by cumulative products and a sort."""

    def loss(params, grid, image):
        order = jnp.argsort(params["depth"])
        center, radius = params["center"][order], jnp.exp(params["log_radius"][order])
        color = jax.nn.sigmoid(params["color"][order])
        distance = jnp.linalg.norm(grid[:, None] - center, axis=-1)
        alpha = jax.nn.sigmoid(4 * (radius - distance))
        seen = jnp.cumprod(1 - alpha, -1) / (1 - alpha)
        return jnp.mean(((alpha * seen) @ color - image) ** 2)

    params = {
        "depth": jnp.array([0.3, -0.7, 1.1]),
        "center": normal(rng, 3, 2),
        "log_radius": normal(rng, 3) / 2,
        "color": normal(rng, 3, 3),
    }
    return Program(loss, params, (normal(rng, 6, 2), uniform(rng, 0, 1, 6, 3)))
