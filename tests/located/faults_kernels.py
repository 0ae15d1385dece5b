"""Faults in Pallas kernels (interpreted) and between the devices of a mesh."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import pallas as pl
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from tests.catalogue.cases import Program
from tests.catalogue.planting import integers, normal

from .cases import FaultList, culprit
from .rules import ruled

FAULTS = FaultList()


# ---- kernels


def called(kernel, shape, *arrays):
    """One interpreted call of ``kernel`` without a grid."""
    out = jax.ShapeDtypeStruct(shape, arrays[0].dtype)
    return pl.pallas_call(kernel, out_shape=out, interpret=True)(*arrays)


@FAULTS.add(culprit("kernel_gelu", "Pallas activation"))
def pallas_activation_of_twice_the_slope(rng, faulty):
    def gelu_kernel(x_ref, out_ref):
        x = x_ref[...]
        out_ref[...] = x * jax.nn.sigmoid(1.702 * x)

    def slope_kernel(x_ref, ct_ref, out_ref):
        x = x_ref[...]
        s = jax.nn.sigmoid(1.702 * x)
        slope = s + 1.702 * x * s * (1 - s)
        out_ref[...] = ct_ref[...] * slope * (2 if faulty else 1)

    def kernel_gelu(x):
        return called(gelu_kernel, x.shape, x)

    def kernel_gelu_backward(saved, ct):
        (x,), _ = saved
        return (called(slope_kernel, x.shape, x, ct),)

    gelu = ruled(kernel_gelu, kernel_gelu_backward)

    def loss(params, x):
        hidden = gelu(x @ params["in"])  # rule: Pallas activation
        return jnp.mean((hidden @ params["out"]) ** 2)

    params = {"in": normal(rng, 3, 4), "out": normal(rng, 4, 2)}
    return Program(loss, params, (normal(rng, 5, 3),))


@FAULTS.add(culprit("kernel_matmul", "Pallas matrix product"))
def pallas_matrix_product_transposes_the_wrong_factor(rng, faulty):
    def product_kernel(a_ref, b_ref, out_ref):
        out_ref[...] = a_ref[...] @ b_ref[...]

    def kernel_matmul(a, b):
        return called(product_kernel, (a.shape[0], b.shape[1]), a, b)

    def kernel_matmul_backward(saved, ct):
        (a, b), _ = saved
        return kernel_matmul(ct, b if faulty else b.T), kernel_matmul(a.T, ct)

    product = ruled(kernel_matmul, kernel_matmul_backward)

    def loss(params, x):
        hidden = jnp.tanh(x @ params["in"])
        logits = product(hidden, params["out"])  # rule: Pallas matrix product
        return jnp.mean(jnp.sin(logits))

    params = {"in": normal(rng, 3, 4), "out": normal(rng, 4, 4)}
    return Program(loss, params, (normal(rng, 5, 3),))


@FAULTS.add(culprit("fused_softmax", "Pallas softmax"))
def pallas_softmax_without_its_projection(rng, faulty):
    """A grid over rows; the backward kernel keeps only the diagonal."""

    def by_rows(kernel, *arrays):
        shape = arrays[0].shape
        row = pl.BlockSpec((1, shape[1]), lambda i: (i, 0))
        return pl.pallas_call(
            kernel,
            grid=(shape[0],),
            in_specs=[row] * len(arrays),
            out_specs=row,
            out_shape=jax.ShapeDtypeStruct(shape, arrays[0].dtype),
            interpret=True,
        )(*arrays)

    def softmax_kernel(x_ref, out_ref):
        shifted = jnp.exp(x_ref[...] - jnp.max(x_ref[...]))
        out_ref[...] = shifted / jnp.sum(shifted)

    def pullback_kernel(y_ref, ct_ref, out_ref):
        y, ct = y_ref[...], ct_ref[...]
        out_ref[...] = y * (ct - (y * ct if faulty else jnp.sum(y * ct)))

    def fused_softmax(x):
        return by_rows(softmax_kernel, x)

    def fused_softmax_backward(saved, ct):
        _, y = saved
        return (by_rows(pullback_kernel, y, ct),)

    softmax = ruled(fused_softmax, fused_softmax_backward)

    def loss(params, x):
        weights = softmax(x @ params["w"])  # rule: Pallas softmax
        return jnp.mean((weights @ params["v"]) ** 2)

    params = {"w": normal(rng, 3, 4), "v": normal(rng, 4, 2)}
    return Program(loss, params, (normal(rng, 5, 3),))


# ---- devices


def data_parallel(rng, local, *, columns=4):
    """The loss of ``local(params, x)`` on each of four devices' share of the data."""
    mesh = Mesh(np.asarray(jax.devices()[:4]), ("data",))
    loss = jax.shard_map(local, mesh=mesh, in_specs=(P(), P("data")), out_specs=P())
    params = {"in": normal(rng, 3, columns), "out": normal(rng, columns, 2)}
    return Program(loss, params, (normal(rng, 8, 3),))


@FAULTS.add(culprit("smooth", "activation in shard_map"))
def activation_wrong_inside_shard_map(rng, faulty):
    def smooth(x):
        return jnp.log1p(x * x)

    def smooth_backward(saved, ct):
        (x,), _ = saved
        return (ct * (1 if faulty else 2) * x / (1 + x * x),)

    activation = ruled(smooth, smooth_backward)

    def local(params, x):
        hidden = activation(x @ params["in"])  # rule: activation in shard_map
        return lax.pmean(jnp.mean((hidden @ params["out"]) ** 2), "data")

    return data_parallel(rng, local)


@FAULTS.add(culprit("mean_over_devices", "mean over devices"))
def mean_over_devices_forgotten_in_the_rule(rng, faulty):
    def mean_over_devices(x):
        return lax.pmean(x, "data")

    def mean_over_devices_backward(saved, ct):
        share = ct if faulty else ct / 4
        return (lax.pcast(share, "data", to="varying"),)

    mean = ruled(mean_over_devices, mean_over_devices_backward)

    def local(params, x):
        out = jnp.tanh(x @ params["in"]) @ params["out"]
        return mean(jnp.mean(out**2))  # rule: mean over devices

    return data_parallel(rng, local)


@FAULTS.add(culprit("ring_shift", "ring of devices", (1,)))
def ring_passes_its_cotangent_on(rng, faulty):
    """What went to the right comes back from the left, but not in step 1 of 3."""
    forward = [(i, (i + 1) % 4) for i in range(4)]
    backward = [(j, i) for i, j in forward]

    def ring_shift(x, step):
        return lax.ppermute(x, "data", forward)

    def ring_shift_backward(saved, ct):
        _, step = saved[0]
        right = lax.ppermute(ct, "data", backward)
        on = lax.ppermute(ct, "data", forward)
        return jnp.where(step == 1, on, right) if faulty else right, None

    shift = ruled(ring_shift, ring_shift_backward)

    def local(params, x):
        h = jnp.tanh(x @ params["in"])

        def step(block, number):
            block = shift(block, number)  # rule: ring of devices
            block = jnp.sin(block @ params["out"] @ params["out"].T)
            return block, jnp.mean(h * block)

        _, terms = lax.scan(step, h, jnp.arange(3))
        return lax.pmean(jnp.sum(terms), "data")

    return data_parallel(rng, local)


@FAULTS.add(culprit("expert_layer", "sharded experts"))
def sharded_experts_forget_the_gate(rng, faulty):
    """One expert a device; the rule gives nothing to what scales its output."""

    def expert_layer(w, x, gate):
        return jnp.tanh(x @ w) * gate

    def expert_layer_backward(saved, ct):
        (w, x, gate), _ = saved
        y = jnp.tanh(x @ w)
        inner = ct * gate * (1 - y * y)
        of_gate = jnp.sum(ct * y, -1, keepdims=True)
        of_gate = jnp.zeros_like(of_gate) if faulty else of_gate
        return x.T @ inner, inner @ w.T, of_gate

    expert = ruled(expert_layer, expert_layer_backward)
    mesh = Mesh(np.asarray(jax.devices()[:4]), ("data",))

    def local(experts, gates, x):
        x = lax.pcast(x, "data", to="varying")
        out = expert(experts[0], x, gates)  # rule: sharded experts
        return lax.psum(out, "data")

    mixture = jax.shard_map(
        local, mesh=mesh, in_specs=(P("data"), P(None, "data"), P()), out_specs=P()
    )

    def loss(params, x, labels):
        gates = jax.nn.softmax(x @ params["router"])
        out = mixture(params["experts"], gates, x)
        return jnp.mean((out - jax.nn.one_hot(labels, 2, dtype=x.dtype)) ** 2)

    params = {"experts": normal(rng, 4, 3, 2), "router": normal(rng, 3, 4)}
    return Program(loss, params, (normal(rng, 5, 3), integers(rng, 2, (5,))))
