"""A moved point with stop_gradient held constant, against functions written by hand.

For every program there is a reference ``by_hand(base, moved, flags)`` in plain NumPy,
where what a stop_gradient returns is computed at ``base``, or at ``moved`` where its
flag is set.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.lax import stop_gradient
from jax.sharding import PartitionSpec

from jaxcheck.jaxprs.lift import lift
from jaxcheck.jaxprs.perturb import Perturbation, narrowing_sites

BASE = np.array([0.3, -0.7, 1.1])
MOVED = np.array([0.35, -0.6, 1.3])


class Case(NamedTuple):
    """A program with ``sites`` stop_gradients, and the same by hand."""

    fun: object
    by_hand: object
    sites: int


def seen(base, moved, flag):
    """What a stop_gradient shows of a value."""
    return moved if flag else base


def _plain(x):
    return stop_gradient(jnp.sin(x)) * x


def _plain_by_hand(b, m, f):
    return seen(np.sin(b), np.sin(m), f[0]) * m


def _two_sites(x):
    return stop_gradient(jnp.sin(x)) * x + stop_gradient(x) ** 2


def _two_sites_by_hand(b, m, f):
    return seen(np.sin(b), np.sin(m), f[0]) * m + seen(b, m, f[1]) ** 2


def _nested_sites(x):
    return stop_gradient(x * stop_gradient(jnp.sin(x))) + x


def _nested_sites_by_hand(b, m, f):
    inner_b = np.sin(b)
    inner_m = seen(np.sin(b), np.sin(m), f[0])
    return seen(b * inner_b, m * inner_m, f[1]) + m


def _straight_through(x):
    return x + stop_gradient(jnp.round(x) - x)


def _straight_through_by_hand(b, m, f):
    return m + seen(np.round(b) - b, np.round(m) - m, f[0])


def _logsumexp_by_hand(b, m, f):
    shift = seen(np.max(b), np.max(m), f[0])
    return np.full(3, np.log(np.sum(np.exp(m - shift))) + shift)


def _logsumexp(x):
    shift = stop_gradient(jnp.max(x))
    return jnp.zeros(3) + jnp.log(jnp.sum(jnp.exp(x - shift))) + shift


def _in_scan(x):
    def body(c, _):
        c = jnp.sin(c) + stop_gradient(c) * x
        return c, stop_gradient(c * x)

    last, ys = jax.lax.scan(body, x, None, length=4)
    return last + jnp.sum(ys, axis=0)


def _in_scan_by_hand(b, m, f):
    cb, cm, total = b, m, 0.0
    for _ in range(4):
        cb, cm = np.sin(cb) + cb * b, np.sin(cm) + seen(cb, cm, f[0]) * m
        total = total + seen(cb * b, cm * m, f[1])
    return cm + total


def _in_reverse_scan(x):
    def body(c, y):
        return stop_gradient(c) * y + x, c

    last, ys = jax.lax.scan(body, x, x[:, None] * x, reverse=True)
    return last + jnp.sum(ys * x, axis=0)


def _in_reverse_scan_by_hand(b, m, f):
    cb, cm, ys = b, m, []
    for k in (2, 1, 0):
        ys.append(cm)
        cb, cm = cb * (b[k] * b) + b, seen(cb, cm, f[0]) * (m[k] * m) + m
    return cm + np.sum(ys * m, axis=0)


def _in_while(x):
    # base and moved point need different numbers of rounds
    def body(s):
        k, y = s
        return k + 1, y * 1.25 + stop_gradient(x) * 0.5 + 0.125

    return jax.lax.while_loop(lambda s: jnp.sum(s[1]) < 6, body, (0, x))[1]


def _in_while_by_hand(b, m, f):
    y = m
    while np.sum(y) < 6:
        y = y * 1.25 + seen(b, m, f[0]) * 0.5 + 0.125
    return y


def _while_of_different_lengths(x):
    # the site's value is the final value of a loop that runs longer at one point
    def run(start):
        return jax.lax.while_loop(
            lambda y: jnp.sum(y) < 20, lambda y: y * 1.5 + 0.25, start
        )

    return stop_gradient(run(x)) * x + run(x)


def _while_of_different_lengths_by_hand(b, m, f):
    def run(y):
        while np.sum(y) < 20:
            y = y * 1.5 + 0.25
        return y

    return seen(run(b), run(m), f[0]) * m + run(m)


def _carried_site_in_while(x):
    def body(s):
        y, total = s
        y = y * 1.5 + 0.25
        return y, total + stop_gradient(y) * x

    return jax.lax.while_loop(lambda s: jnp.sum(s[0]) < 20, body, (x, x))[1]


def _carried_site_in_while_by_hand(b, m, f):
    # a base loop that has ended keeps its last value
    yb, ym, total = b, m, m
    while np.sum(ym) < 20:
        if np.sum(yb) < 20:
            yb = yb * 1.5 + 0.25
        ym = ym * 1.5 + 0.25
        total = total + seen(yb, ym, f[0]) * m
    return total


def _in_fori(x):
    return jax.lax.fori_loop(0, 3, lambda i, y: jnp.sin(y) + i * stop_gradient(y), x)


def _in_fori_by_hand(b, m, f):
    yb, ym = b, m
    for i in range(3):
        yb, ym = np.sin(yb) + i * yb, np.sin(ym) + i * seen(yb, ym, f[0])
    return ym


def _in_cond(x):
    return jax.lax.cond(
        x[0] > 0, lambda x: stop_gradient(jnp.sin(x)) * x, lambda x: 2 * x, x
    )


def _in_cond_by_hand(b, m, f):
    return seen(np.sin(b), np.sin(m), f[0]) * m


def _cond_that_switches(x):
    # base takes one branch (sum 0.7), the moved point the other (sum 1.05)
    y = jax.lax.cond(jnp.sum(x) > 1, lambda x: x**2, lambda x: 3 * x, x)
    return stop_gradient(y) * x + y


def _cond_that_switches_by_hand(b, m, f):
    def y(x):
        return x**2 if np.sum(x) > 1 else 3 * x

    return seen(y(b), y(m), f[0]) * m + y(m)


def _in_switch(x):
    branches = [jnp.sin, lambda x: stop_gradient(x) ** 2 * x, jnp.cos]
    return jax.lax.switch(jnp.argmax(x) - 1, branches, x)


def _in_switch_by_hand(b, m, f):
    return seen(b, m, f[0]) ** 2 * m


def _in_jit(x):
    return jax.jit(lambda x: jax.jit(_plain)(x) + x)(x)


def _in_jit_by_hand(b, m, f):
    return _plain_by_hand(b, m, f) + m


def _in_remat(x):
    return jax.checkpoint(lambda x: jnp.sin(_plain(x)))(x)


def _in_remat_by_hand(b, m, f):
    return np.sin(_plain_by_hand(b, m, f))


def _in_vmap(x):
    return jax.vmap(lambda y: stop_gradient(jnp.exp(y)) * y)(x)


def _in_vmap_by_hand(b, m, f):
    return seen(np.exp(b), np.exp(m), f[0]) * m


def _in_scan_in_cond_in_jit(x):
    def body(c, _):
        return jax.lax.cond(c[0] > -9, _plain, jnp.cos, c) + x, None

    return jax.jit(lambda x: jax.lax.scan(body, x, None, length=3)[0])(x)


def _in_scan_in_cond_in_jit_by_hand(b, m, f):
    cb, cm = b, m
    for _ in range(3):
        cb, cm = np.sin(cb) * cb + b, seen(np.sin(cb), np.sin(cm), f[0]) * cm + m
    return cm


def _while_vmapped(x):
    def one(x):
        def body(y):
            return y * 0.5 + 2 + 0.125 * stop_gradient(y)

        return jax.lax.while_loop(lambda y: y < 2, body, x) + stop_gradient(x) * x

    return jax.vmap(one)(x)


def _while_vmapped_by_hand(b, m, f):
    out = []
    for bk, mk in zip(b, m, strict=True):
        yb, ym = bk, mk
        while ym < 2:
            last = yb
            if yb < 2:
                yb = yb * 0.5 + 2 + 0.125 * yb
            ym = ym * 0.5 + 2 + 0.125 * seen(last, ym, f[0])
        out.append(ym + seen(bk, mk, f[1]) * mk)
    return np.array(out)


def _sharded(x, check_vma=True):
    mesh = jax.make_mesh(
        (3,),
        ("i",),
        axis_types=(jax.sharding.AxisType.Auto,),
        devices=jax.devices()[:3],
    )

    def body(x):
        total = jax.lax.psum(x, "i")
        return stop_gradient(total * x) * x

    spec = PartitionSpec("i")
    return jax.shard_map(
        body, mesh=mesh, in_specs=spec, out_specs=spec, check_vma=check_vma
    )(x)


def _sharded_by_hand(b, m, f):
    return seen(np.sum(b) * b, np.sum(m) * m, f[0]) * m


def _custom_rule(x):
    # autodiff never sees a site inside a rule's function: it is no site
    @jax.custom_vjp
    def f(x):
        return stop_gradient(x) ** 2

    f.defvjp(lambda x: (x**2, x), lambda x, ct: (2 * x * ct,))
    return f(x)


def _solver(x):
    a = jnp.outer(x, x) + 2 * jnp.eye(3, dtype=x.dtype)
    return jnp.linalg.solve(a, x)


def _solver_by_hand(b, m, f):
    return np.linalg.solve(np.outer(m, m) + 2 * np.eye(3), m)


def _solver_and_a_site(x):
    a = jnp.outer(x, x) + 2 * jnp.eye(3, dtype=x.dtype)
    return jnp.linalg.solve(a, stop_gradient(x)) * x


def _solver_and_a_site_by_hand(b, m, f):
    a = np.outer(m, m) + 2 * np.eye(3)
    return np.linalg.solve(a, seen(b, m, f[0])) * m


CASES = {
    "plain": Case(_plain, _plain_by_hand, 1),
    "two_sites": Case(_two_sites, _two_sites_by_hand, 2),
    "nested_sites": Case(_nested_sites, _nested_sites_by_hand, 2),
    "straight_through": Case(_straight_through, _straight_through_by_hand, 1),
    "logsumexp": Case(_logsumexp, _logsumexp_by_hand, 1),
    "scan": Case(_in_scan, _in_scan_by_hand, 2),
    "reverse_scan": Case(_in_reverse_scan, _in_reverse_scan_by_hand, 1),
    "while": Case(_in_while, _in_while_by_hand, 1),
    "while_lengths": Case(
        _while_of_different_lengths, _while_of_different_lengths_by_hand, 1
    ),
    "while_carried": Case(_carried_site_in_while, _carried_site_in_while_by_hand, 1),
    "fori": Case(_in_fori, _in_fori_by_hand, 1),
    "cond": Case(_in_cond, _in_cond_by_hand, 1),
    "cond_switches": Case(_cond_that_switches, _cond_that_switches_by_hand, 1),
    "switch": Case(_in_switch, _in_switch_by_hand, 1),
    "jit": Case(_in_jit, _in_jit_by_hand, 1),
    "remat": Case(_in_remat, _in_remat_by_hand, 1),
    "vmap": Case(_in_vmap, _in_vmap_by_hand, 1),
    "scan_cond_jit": Case(_in_scan_in_cond_in_jit, _in_scan_in_cond_in_jit_by_hand, 1),
    "while_vmapped": Case(_while_vmapped, _while_vmapped_by_hand, 2),
    "shard_map": Case(_sharded, _sharded_by_hand, 1),
    "shard_map_unchecked": Case(
        functools.partial(_sharded, check_vma=False), _sharded_by_hand, 1
    ),
    "custom_rule": Case(_custom_rule, lambda b, m, f: m**2, 0),
    "solver": Case(_solver, _solver_by_hand, 0),
    "solver_and_a_site": Case(_solver_and_a_site, _solver_and_a_site_by_hand, 1),
    "none": Case(jnp.sin, lambda b, m, f: np.sin(m), 0),
}
RUNS = [
    pytest.param(name, flags, id=f"{name}-{flags:0{max(case.sites, 1)}b}")
    for name, case in CASES.items()
    for flags in range(2**case.sites)
]


@functools.cache
def perturbation(name, x64=False):
    with jax.enable_x64(x64):
        traced = jax.make_jaxpr(CASES[name].fun)(BASE.astype(np.float32))
    with jax.enable_x64(True):
        reading = lift(traced, rules="inline", native=False, native_x64=x64)
        prepared = Perturbation(reading)
        return prepared, jax.jit(lambda b, m, f: prepared([b], [m], f)[0])


@pytest.mark.parametrize(("name", "bits"), RUNS)
def test_moved_point_is_as_written_by_hand(name, bits):
    case = CASES[name]
    flags = [bool(bits >> k & 1) for k in range(case.sites)]
    prepared, run = perturbation(name)

    with jax.enable_x64(True):
        got = np.asarray(run(BASE, MOVED, np.array(flags, bool)))

    assert len(prepared.sites) == case.sites
    np.testing.assert_allclose(
        got, case.by_hand(BASE, MOVED, flags), rtol=1e-12, atol=1e-14
    )


@pytest.mark.parametrize("name", CASES)
def test_unmoved_point_gives_the_value_itself(name):
    case = CASES[name]
    _, run = perturbation(name)
    flags = np.zeros(case.sites, bool)
    with jax.enable_x64(True):
        got = np.asarray(run(BASE, BASE, flags))
        wanted = np.asarray(jax.jit(case.fun)(BASE))
    np.testing.assert_allclose(got, wanted, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("name", CASES)
def test_all_transparent_is_the_function_at_the_moved_point(name):
    case = CASES[name]
    _, run = perturbation(name)
    flags = np.ones(case.sites, bool)
    with jax.enable_x64(True):
        got = np.asarray(run(BASE, MOVED, flags))
        wanted = np.asarray(jax.jit(case.fun)(MOVED))
    np.testing.assert_allclose(got, wanted, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize(
    "name", [n for n in CASES if "while" not in n and "switches" not in n]
)
def test_derivative_with_sites_frozen_is_that_of_autodiff(name):
    case = CASES[name]
    _, run = perturbation(name)
    flags = np.zeros(case.sites, bool)
    direction = np.array([1.0, -0.5, 0.25])
    h = 2.0**-18
    with jax.enable_x64(True):
        plus = np.asarray(run(BASE, BASE + h * direction, flags))
        minus = np.asarray(run(BASE, BASE - h * direction, flags))
        _, pull = jax.vjp(jax.jit(case.fun), jnp.asarray(BASE))
        rows = [pull(row)[0] @ direction for row in jnp.eye(3)]
    np.testing.assert_allclose((plus - minus) / (2 * h), rows, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("name", ["scan", "while_carried", "cond_switches"])
def test_lanes_by_vmap_are_single_runs(name):
    prepared, run = perturbation(name)
    flags = np.zeros(CASES[name].sites, bool)
    lanes = BASE + np.linspace(-0.2, 0.3, 7)[:, None]

    with jax.enable_x64(True):
        many = jax.jit(jax.vmap(lambda m: prepared([BASE], [m], flags)[0]))(lanes)
        single = [np.asarray(run(BASE, m, flags)) for m in lanes]

    np.testing.assert_allclose(np.asarray(many), single, rtol=1e-13)


def test_keys_in_a_loop_with_a_site():
    def fun(x, key):
        def body(s):
            k, key, y = s
            key, sub = jax.random.split(key)
            noise = jax.random.uniform(sub, (3,), jnp.float32)
            return k + 1, key, jnp.sin(y) + stop_gradient(y) * noise

        return jax.lax.while_loop(lambda s: s[0] < 3, body, (0, key, x))[2]

    for key in (jax.random.key(1), jax.random.PRNGKey(1)):
        traced = jax.make_jaxpr(fun)(BASE.astype(np.float32), key)
        with jax.enable_x64(True):
            reading = lift(traced, rules="inline", native=False, native_x64=False)
            run = Perturbation(reading)
            (got,) = run([BASE, key], [MOVED, key], np.zeros(1, bool))
        yb, ym, k = BASE, MOVED, key
        for _ in range(3):
            k, sub = jax.random.split(k)
            noise = np.asarray(jax.random.uniform(sub, (3,), jnp.float32), float)
            yb, ym = np.sin(yb) + yb * noise, np.sin(ym) + yb * noise
        np.testing.assert_allclose(np.asarray(got), ym, rtol=1e-12)


def test_sites_say_where_they_are():
    prepared, _ = perturbation("two_sites")
    assert all(site.primitive == "stop_gradient" for site in prepared.sites)
    assert all(site.file.endswith("test_perturb.py") for site in prepared.sites)
    wanted = _two_sites.__code__.co_firstlineno + 1
    assert [site.line for site in prepared.sites] == [wanted, wanted]


# -- roundings on the way


def reading_of(fun, *inputs):
    traced = jax.make_jaxpr(fun)(*inputs)
    with jax.enable_x64(True):
        return lift(traced, rules="inline", native=False, native_x64=False)


def _called_back(x):
    return jax.pure_callback(
        lambda x: x, jax.ShapeDtypeStruct(x.shape, x.dtype), x, vmap_method="sequential"
    )


NARROWING = {
    "nothing": (lambda x, y: jnp.sin(x) * y, []),
    "hard_coded_dtype": (lambda x, y: x.astype(jnp.bfloat16).astype(jnp.float32), []),
    "callback": (lambda x, y: _called_back(x) * y, ["float32"]),
    "callback_of_the_other_input": (lambda x, y: _called_back(y) * x, []),
    "callback_in_jit": (lambda x, y: jax.jit(_called_back)(x * y), ["float32"]),
    "callback_in_scan": (
        lambda x, y: jax.lax.scan(lambda c, _: (_called_back(c), None), x, None, 2)[0],
        ["float32"],
    ),
    "bitcast_of_bfloat16": (
        lambda x, y: (
            x * jax.lax.bitcast_convert_type(x.astype(jnp.bfloat16), jnp.int16)
        ),
        ["bfloat16"],
    ),
}


@pytest.mark.parametrize("name", NARROWING)
def test_roundings_of_moving_values_are_found(name):
    fun, wanted = NARROWING[name]
    x = np.ones(3, np.float32)

    found = narrowing_sites(reading_of(fun, x, x), [True, False])

    assert [dtype for dtype, _ in found] == wanted
