"""Programs with control flow: loops, branches, calls, remat, shard_map, vmapped too."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import PartitionSpec

from tests.programs.table import normal, positive, program, weighted


@program()
def _jit_nested(rng):
    @jax.jit
    def inner(x):
        return jnp.sin(x) * x

    return lambda x: jnp.sum(jax.jit(lambda y: inner(y) + inner(2 * y))(x)), (
        normal(rng, 5),
    )


def _recurrence(rng, **options):
    w, h, xs = normal(rng, 3, 3), normal(rng, 3), normal(rng, 6, 3)

    def loss(w, h, xs):
        def body(carry, x):
            new = jnp.tanh(w @ carry + x)
            return new, new * x

        last, ys = jax.lax.scan(body, h, xs, **options)
        return weighted(last) + weighted(ys)

    return loss, (w, h, xs)


@program()
def _scan_forward(rng):
    return _recurrence(rng)


@program()
def _scan_reverse(rng):
    return _recurrence(rng, reverse=True)


@program()
def _scan_unrolled(rng):
    return _recurrence(rng, unroll=2)


@program()
def _scan_fully_unrolled(rng):
    return _recurrence(rng, unroll=True)


@program()
def _scan_xs_only(rng):
    def loss(xs):
        _, ys = jax.lax.scan(lambda carry, x: (carry, jnp.exp(x)), None, xs)
        return weighted(ys)

    return loss, (normal(rng, 5),)


@program()
def _scan_length_only_with_integer_carry(rng):
    def loss(x):
        def body(carry, _):
            k, y = carry
            return (k + 1, jnp.sin(y) * k), y

        (_, y), ys = jax.lax.scan(body, (jnp.int32(1), x), None, length=4)
        return jnp.sum(y) + weighted(ys)

    return loss, (normal(rng, 3),)


@program()
def _scan_with_closed_over_array(rng):
    table = normal(rng, 4, 3)

    def loss(w):
        return jax.lax.scan(
            lambda c, row: (c + jnp.sum(jnp.tanh(row * w) * table.sum(0)), None),
            jnp.zeros((), w.dtype),
            table.astype(w.dtype),
        )[0]

    return loss, (normal(rng, 3),)


@program()
def _scan_nested(rng):
    def loss(w, xs):
        def outer(carry, row):
            def inner(c, x):
                return jnp.tanh(c * w + x), c

            carry, ys = jax.lax.scan(inner, carry, row)
            return carry, jnp.sum(ys)

        last, ys = jax.lax.scan(outer, w, xs)
        return last + weighted(ys)

    return loss, (normal(rng), normal(rng, 3, 4))


@program(gradient="forward")
def _while(rng):
    def loss(x):
        def body(state):
            k, y = state
            return k + 1, jnp.sin(y) + x

        return jnp.sum(jax.lax.while_loop(lambda s: s[0] < 5, body, (0, x))[1])

    return loss, (normal(rng, 3),)


@program(gradient="forward")
def _while_until_small(rng):
    def loss(x):
        return jax.lax.while_loop(lambda y: jnp.abs(y) > 0.125, lambda y: y * 0.75, x)

    return loss, (positive(rng),)


@program(gradient="forward")
def _while_with_batched_predicate(rng):
    def one(x):
        return jax.lax.while_loop(
            lambda s: s[0] < 4, lambda s: (s[0] * 1.5 + 0.25, s[1] * s[0]), (x, x)
        )[1]

    return lambda x: weighted(jax.vmap(one)(x)), (positive(rng, 4),)


@program()
def _fori_static(rng):
    return lambda x: jnp.sum(jax.lax.fori_loop(0, 4, lambda i, y: jnp.sin(y) * i, x)), (
        normal(rng, 3),
    )


@program(gradient="forward")
def _fori_dynamic(rng):
    return lambda x, n: jnp.sum(
        jax.lax.fori_loop(0, n, lambda i, y: jnp.sin(y) + x, x)
    ), (normal(rng, 3), np.int32(3))


@program()
def _cond(rng):
    return lambda x: jax.lax.cond(
        jnp.sum(x) > 0, lambda: weighted(jnp.exp(x)), lambda: weighted(jnp.sin(x))
    ), (positive(rng, 3),)


@program()
def _switch(rng):
    branches = [jnp.sin, jnp.cos, lambda x: jnp.exp(x) * 2]
    return lambda x, k: weighted(jax.lax.switch(k, branches, x)), (
        normal(rng, 3),
        np.int32(2),
    )


@program()
def _switch_vmapped(rng):
    branches = [jnp.sin, jnp.cos, lambda x: jnp.exp(x) * 2]
    return lambda x, k: weighted(
        jax.vmap(lambda k, x: jax.lax.switch(k, branches, x))(k, x)
    ), (normal(rng, 3, 2), np.array([2, 0, 1], np.int32))


@program()
def _cond_in_scan(rng):
    def loss(w, xs):
        def body(c, x):
            c = jax.lax.cond(x > 0, lambda c: c * w, jnp.sin, c)
            return c, None

        return jax.lax.scan(body, w + 1, xs)[0]

    return loss, (positive(rng), normal(rng, 6))


@program()
def _scan_vmapped(rng):
    loss, (w, _, xs) = _recurrence(rng)
    h = normal(rng, 4, 3)
    return lambda w, h, xs: weighted(jax.vmap(loss, (None, 0, None))(w, h, xs)), (
        w,
        h,
        xs,
    )


@program()
def _lax_map_batched(rng):
    return lambda xs: weighted(
        jax.lax.map(lambda x: jnp.sin(x) * x, xs, batch_size=2)
    ), (normal(rng, 5),)


def _remat(rng, **options):
    @functools.partial(jax.checkpoint, **options)
    def block(w, x):
        return jnp.tanh(w @ jnp.sin(w @ x))

    return lambda w, x: weighted(block(w, block(w, x))), (
        normal(rng, 3, 3),
        normal(rng, 3),
    )


@program()
def _remat_plain(rng):
    return _remat(rng)


@program()
def _remat_saving_dots(rng):
    return _remat(rng, policy=jax.checkpoint_policies.dots_saveable)


@program()
def _remat_saving_everything(rng):
    return _remat(rng, policy=jax.checkpoint_policies.everything_saveable)


@program()
def _remat_without_cse_barrier(rng):
    return _remat(rng, prevent_cse=False)


@program()
def _remat_saving_names(rng):
    policy = jax.checkpoint_policies.save_only_these_names("kept")

    @functools.partial(jax.checkpoint, policy=policy)
    def block(w, x):
        hidden = checkpoint_name(jnp.sin(w @ x), "kept")
        return jnp.tanh(w @ hidden)

    return lambda w, x: weighted(block(w, x)), (normal(rng, 3, 3), normal(rng, 3))


@program()
def _remat_in_scan(rng):
    @jax.checkpoint
    def body(c, x):
        return jnp.tanh(c * x), c

    def loss(c, xs):
        last, ys = jax.lax.scan(body, c, xs)
        return last + weighted(ys)

    return loss, (normal(rng), normal(rng, 5))


@program()
def _remat_vmapped(rng):
    block = jax.checkpoint(lambda w, x: jnp.tanh(w @ jnp.sin(w @ x)))
    return lambda w, xs: weighted(jax.vmap(block, (None, 0))(w, xs)), (
        normal(rng, 3, 3),
        normal(rng, 2, 3),
    )


@program()
def _gradient_inside_the_loss(rng):
    def energy(x):
        return jnp.sum(jnp.sin(x) * x**2)

    return lambda x: weighted(jax.grad(energy)(x) ** 2), (normal(rng, 4),)


def _sharded(rng, body, out_spec, **options):
    mesh = jax.make_mesh(
        (4,),
        ("i",),
        axis_types=(jax.sharding.AxisType.Auto,),
        devices=jax.devices()[:4],
    )
    run = jax.shard_map(
        body,
        mesh=mesh,
        in_specs=(PartitionSpec(), PartitionSpec("i")),
        out_specs=out_spec,
        **options,
    )
    return lambda w, x: weighted(run(w, x)), (normal(rng, 3), normal(rng, 8, 3))


def _local_mean(w, x):
    return jax.lax.psum(jnp.sum(jnp.tanh(x * w), axis=0), "i") / 8


def _gathered(w, x):
    every = jax.lax.all_gather(jnp.tanh(x * w), "i", tiled=True)
    return jnp.sum(every**2, axis=0)[None] * x


@program()
def _shard_map_psum(rng):
    return _sharded(rng, _local_mean, PartitionSpec())


@program()
def _shard_map_psum_unchecked(rng):
    return _sharded(rng, _local_mean, PartitionSpec(), check_vma=False)


@program()
def _shard_map_all_gather(rng):
    return _sharded(rng, _gathered, PartitionSpec("i"))


@program()
def _shard_map_all_gather_unchecked(rng):
    return _sharded(rng, _gathered, PartitionSpec("i"), check_vma=False)


@program()
def _shard_map_ppermute_in_scan(rng):
    ring = [(k, (k + 1) % 4) for k in range(4)]

    def body(w, x):
        def step(c, _):
            return jax.lax.ppermute(jnp.sin(c * w), "i", ring), jnp.sum(c)

        last, sums = jax.lax.scan(step, x, None, length=3)
        return last * jnp.sum(sums)

    return _sharded(rng, body, PartitionSpec("i"))


@program()
def _shard_map_with_custom_rule(rng):
    @jax.custom_vjp
    def cube(x):
        return x**3

    cube.defvjp(lambda x: (x**3, x), lambda x, ct: (2 * x**2 * ct,))

    def body(w, x):
        return jax.lax.psum(jnp.sum(cube(x * w), axis=0), "i")

    return _sharded(rng, body, PartitionSpec(), check_vma=False)


@program()
def _platform_dependent(rng):
    return lambda x: weighted(
        jax.lax.platform_dependent(x, cpu=jnp.sin, default=jnp.cos)
    ), (normal(rng, 3),)


@program()
def _associative_scan(rng):
    return lambda x: weighted(jax.lax.associative_scan(jnp.multiply, x)), (
        positive(rng, 6),
    )


@program()
def _named_axis_collectives_under_vmap(rng):
    def one(x):
        return x / jax.lax.psum(jnp.exp(x), "batch") + jax.lax.pmean(x**2, "batch")

    return lambda x: weighted(jax.vmap(one, axis_name="batch")(x)), (normal(rng, 4),)
