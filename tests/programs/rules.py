"""Programs with derivative rules of their own: right, wrong, and odd ones."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np

from tests.programs.table import normal, positive, program, weighted


def _jvp_rule(factor):
    @jax.custom_jvp
    def f(x):
        return jnp.tanh(x)

    @f.defjvp
    def _(primals, tangents):
        (x,), (t,) = primals, tangents
        y = jnp.tanh(x)
        return y, factor * t * (1 - y * y)

    return f


@program()
def _custom_jvp(rng):
    f = _jvp_rule(1.0)
    return lambda x: weighted(f(x)), (normal(rng, 3),)


@program()
def _custom_jvp_wrong_by_a_factor(rng):
    f = _jvp_rule(1.0009765625)
    return lambda x: weighted(f(x)), (normal(rng, 3),)


@program()
def _custom_jvp_vmapped_in_scan(rng):
    f = _jvp_rule(0.5)

    def loss(w, xs):
        return weighted(jax.lax.scan(lambda c, x: (jax.vmap(f)(c * x), None), w, xs)[0])

    return loss, (normal(rng, 3), normal(rng, 4, 3))


@program()
def _custom_jvp_of_several_outputs_one_integer(rng):
    @jax.custom_jvp
    def f(x, k):
        return x * k, jnp.floor(x).astype(jnp.int32), jnp.sin(x)

    @f.defjvp
    def _(primals, tangents):
        (x, k), (t, _) = primals, tangents
        y, n, s = f(x, k)
        return (y, n, s), (
            t * k * 1.5,
            np.zeros(n.shape, jax.dtypes.float0),
            t * jnp.cos(x),
        )

    def loss(x, k):
        y, n, s = f(x, k)
        return weighted(y) + weighted(s * n)

    return loss, (3 * normal(rng, 4), np.int32(3))


@program()
def _custom_jvp_nondiff_argnums(rng):
    @functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
    def power(n, x):
        return x**n

    @power.defjvp
    def _(n, primals, tangents):
        return power(n, primals[0]), 1.25 * n * primals[0] ** (n - 1) * tangents[0]

    return lambda x: weighted(power(3, x)), (normal(rng, 3),)


@program()
def _custom_jvp_symbolic_zeros(rng):
    @jax.custom_jvp
    def f(x, y):
        return jnp.sin(x) * y

    def rule(primals, tangents):
        (x, y), (tx, ty) = primals, tangents
        out = jnp.zeros_like(x)
        if not isinstance(tx, jax.custom_derivatives.SymbolicZero):
            out = out + jnp.cos(x) * y * tx
        if not isinstance(ty, jax.custom_derivatives.SymbolicZero):
            out = out + 2 * jnp.sin(x) * ty
        return f(x, y), out

    f.defjvp(rule, symbolic_zeros=True)
    return lambda x, y: weighted(f(x, y)), (normal(rng, 3), normal(rng, 3))


@program()
def _custom_jvp_defjvps(rng):
    @jax.custom_jvp
    def f(x, y):
        return x * y**2

    f.defjvps(lambda t, out, x, y: t * y**2, lambda t, out, x, y: 3 * t * x * y)
    return lambda x, y: weighted(f(x, y)), (normal(rng, 3), normal(rng, 3))


def _vjp_rule(factor, **options):
    @jax.custom_vjp
    def f(x, w):
        return jnp.tanh(x @ w)

    def forward(x, w):
        if options.get("symbolic_zeros"):
            x, w = x.value, w.value
        y = jnp.tanh(x @ w)
        return y, (x, w, y)

    def backward(saved, ct):
        x, w, y = saved
        inner = ct * (1 - y * y)
        return factor * inner @ w.T, x.T @ inner

    f.defvjp(forward, backward, **options)
    return f


@program()
def _custom_vjp(rng):
    f = _vjp_rule(1.0)
    return lambda x, w: weighted(f(x, w)), (normal(rng, 4, 3), normal(rng, 3, 2))


@program()
def _custom_vjp_wrong_by_a_factor(rng):
    f = _vjp_rule(1.0009765625)
    return lambda x, w: weighted(f(x, w)), (normal(rng, 4, 3), normal(rng, 3, 2))


@program()
def _custom_vjp_symbolic_zeros(rng):
    f = _vjp_rule(0.5, symbolic_zeros=True)
    return lambda x, w: weighted(f(x, w)), (normal(rng, 4, 3), normal(rng, 3, 2))


@program()
def _custom_vjp_under_jit_scan_and_vmap(rng):
    f = _vjp_rule(0.5)

    def loss(x, w):
        def body(c, _):
            return jax.vmap(lambda row: f(row[None], w)[0])(c), None

        return weighted(jax.jit(lambda: jax.lax.scan(body, x, None, length=2)[0])())

    return loss, (normal(rng, 4, 3), normal(rng, 3, 3))


@program()
def _custom_vjp_in_remat(rng):
    f = _vjp_rule(0.5)
    return lambda x, w: weighted(jax.checkpoint(lambda x: f(x, w) ** 2)(x)), (
        normal(rng, 4, 3),
        normal(rng, 3, 2),
    )


@program()
def _custom_vjp_integer_argument(rng):
    @jax.custom_vjp
    def take(table, index):
        return table[index]

    def forward(table, index):
        return table[index], (table, index)

    def backward(saved, ct):
        table, index = saved
        return 2 * jnp.zeros_like(table).at[index].add(ct), None

    take.defvjp(forward, backward)
    return lambda table, index: weighted(take(table, index) ** 2), (
        normal(rng, 4, 2),
        np.array([1, 3, 1], np.int32),
    )


@program()
def _custom_vjp_nondiff_argnums(rng):
    @functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
    def power(x, n):
        return x**n

    power.defvjp(
        lambda x, n: (x**n, x), lambda n, x, ct: (0.75 * n * x ** (n - 1) * ct,)
    )
    return lambda x: weighted(power(x, 3)), (normal(rng, 3),)


@program()
def _custom_vjp_stale_residual(rng):
    @jax.custom_vjp
    def normalize(x):
        return x / jnp.sqrt(jnp.sum(x * x))

    def forward(x):
        size = jnp.sqrt(jnp.sum(x * x))
        return x / size, (x, size)  # saves x where the rule means x / size

    def backward(saved, ct):
        y, size = saved
        return ((ct - y * jnp.sum(ct * y)) / size,)

    normalize.defvjp(forward, backward)
    return lambda x: weighted(normalize(x)), (normal(rng, 4),)


@program(value_differs=True)
def _custom_vjp_forward_computes_something_else(rng):
    @jax.custom_vjp
    def f(x):
        return jnp.sin(x)

    f.defvjp(lambda x: (jnp.cos(x), x), lambda x, ct: (-jnp.sin(x) * ct,))
    return lambda x: weighted(f(x) ** 2), (normal(rng, 3),)


@program()
def _custom_vjp_of_a_pytree(rng):
    @jax.custom_vjp
    def f(p):
        return {"out": p["a"] * p["b"][0]}

    def backward(p, ct):
        return ({"a": ct["out"] * p["b"][0], "b": [0.5 * ct["out"] * p["a"]]},)

    f.defvjp(lambda p: (f(p), p), backward)
    return lambda p: weighted(f(p)["out"]), (
        {"a": normal(rng, 3), "b": [normal(rng, 3)]},
    )


@program()
def _custom_vjp_hard_coded_bfloat16_inside(rng):
    low = jnp.bfloat16

    @jax.custom_vjp
    def f(x):
        return jnp.sin(x)

    f.defvjp(
        lambda x: (jnp.sin(x), x.astype(low) if x.dtype == jnp.float32 else x),
        lambda x, ct: ((jnp.cos(x) * 0.5).astype(ct.dtype) * ct,),
    )
    return lambda x: weighted(f(x)), (normal(rng, 3),)


@program()
def _custom_gradient(rng):
    @jax.custom_gradient
    def f(x):
        return jnp.sin(x), lambda ct: 1.5 * ct * jnp.cos(x)

    return lambda x: weighted(f(x)), (normal(rng, 3),)


@program()
def _clipped_gradient(rng):
    @jax.custom_vjp
    def clip(x):
        return x

    clip.defvjp(lambda x: (x, None), lambda _, ct: (jnp.clip(ct, -0.25, 0.25),))
    return lambda x: weighted(clip(x) ** 3), (normal(rng, 6),)


@program()
def _rule_around_a_rule(rng):
    inner = _jvp_rule(0.5)

    @jax.custom_vjp
    def outer(x):
        return inner(x) * x

    def forward(x):
        value, pull = jax.vjp(lambda x: inner(x) * x, x)
        return value, pull

    outer.defvjp(forward, lambda pull, ct: (2 * pull(ct)[0],))
    return lambda x: weighted(outer(x)), (normal(rng, 3),)


@program()
def _library_rules(rng):
    def loss(x):
        terms = (
            jax.nn.relu(x),
            jax.nn.silu(x),
            jax.nn.logsumexp(x, axis=0),
            jax.nn.elu(x),
        )
        return sum(weighted(t) for t in terms) + weighted(jax.nn.softmax(x))

    return loss, (normal(rng, 6),)


@program()
def _linear_solve(rng):
    def loss(a, b):
        matvec = functools.partial(jnp.matmul, a @ a.T + 3 * jnp.eye(3, dtype=a.dtype))

        def solve(mv, b):
            dense = jax.vmap(mv, 1, 1)(jnp.eye(3, dtype=b.dtype))
            return jnp.linalg.inv(dense) @ b

        return weighted(jax.lax.custom_linear_solve(matvec, b, solve, symmetric=True))

    return loss, (normal(rng, 3, 3), normal(rng, 3))


@program()
def _linear_solve_of_numpy(rng):
    return lambda a, b: weighted(
        jnp.linalg.solve(a @ a.T + jnp.eye(3, dtype=a.dtype), b)
    ), (
        normal(rng, 3, 3),
        normal(rng, 3),
    )


@program()
def _linear_solve_vmapped(rng):
    def one(a, b):
        return jnp.linalg.solve(a @ a.T + jnp.eye(3, dtype=a.dtype), b)

    return lambda a, b: weighted(jax.vmap(one)(a, b)), (
        normal(rng, 2, 3, 3),
        normal(rng, 2, 3),
    )


@program()
def _conjugate_gradients(rng):
    def loss(a, b):
        matrix = a @ a.T + 2 * jnp.eye(4, dtype=a.dtype)
        x, _ = jax.scipy.sparse.linalg.cg(lambda v: matrix @ v, b, tol=0.0, maxiter=8)
        return weighted(x)

    return loss, (normal(rng, 4, 4), normal(rng, 4))


@program()
def _root(rng):
    def newton(f, x):
        def body(_, x):
            return x - f(x) / jax.jvp(f, (x,), (jnp.ones_like(x),))[1]

        return jax.lax.fori_loop(0, 40, body, x)

    def tangent_solve(g, y):
        return y / g(jnp.ones_like(y))

    def loss(c):
        root = jax.lax.custom_root(
            lambda x: x**3 + x - c, jnp.ones_like(c), newton, tangent_solve
        )
        return root**2

    return loss, (positive(rng),)


@program()
def _stop_gradient(rng):
    return lambda x: weighted(jax.lax.stop_gradient(jnp.sin(x)) * x), (normal(rng, 3),)
