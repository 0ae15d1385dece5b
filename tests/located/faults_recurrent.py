"""Faults inside loops: recurrent nets, nested scans, linear recurrences."""

from __future__ import annotations

import haiku as hk
import jax
import jax.numpy as jnp
from jax import lax

from tests.catalogue.cases import Program
from tests.catalogue.planting import normal

from .architectures import recurrent
from .cases import FaultList, culprit
from .rules import ruled

FAULTS = FaultList()


def lstm_cell(drive, state, number):
    """One step of long short-term memory; ``number`` is the step's."""
    del number
    i, f, g, o = jnp.split(drive, 4)
    memory = jax.nn.sigmoid(f + 1) * state[1] + jax.nn.sigmoid(i) * jnp.tanh(g)
    return jax.nn.sigmoid(o) * jnp.tanh(memory), memory


def lstm_pullback(saved, ct):
    """The pullback of ``lstm_cell``, by hand."""
    (drive, (_, old), _), (_, memory) = saved
    i, f, g, o = jnp.split(drive, 4)
    i, f, o, g = (
        jax.nn.sigmoid(i),
        jax.nn.sigmoid(f + 1),
        jax.nn.sigmoid(o),
        jnp.tanh(g),
    )
    squashed = jnp.tanh(memory)
    ct_hidden, ct_memory = ct
    ct_memory = ct_memory + ct_hidden * o * (1 - squashed**2)
    gates = (
        ct_memory * g * i * (1 - i),
        ct_memory * old * f * (1 - f),
        ct_memory * i * (1 - g**2),
        ct_hidden * squashed * o * (1 - o),
    )
    return gates, ct_memory * f


@FAULTS.add(culprit("lstm_cell", "recurrent cell"))
def lstm_forget_gate_gets_nothing(rng, faulty):
    def lstm_backward(saved, ct):
        (i, f, g, o), ct_memory = lstm_pullback(saved, ct)
        f = jnp.zeros_like(f) if faulty else f
        return jnp.concatenate([i, f, g, o]), (jnp.zeros_like(i), ct_memory), None

    return recurrent(ruled(lstm_cell, lstm_backward), 4)(rng)


@FAULTS.add(culprit("lstm_cell", "recurrent cell", (4,)))
def lstm_wrong_in_one_step(rng, faulty):
    """The rule is wrong in step 4 only."""

    def lstm_backward(saved, ct):
        number = saved[0][2]
        (i, f, g, o), ct_memory = lstm_pullback(saved, ct)
        drive = jnp.concatenate([i, f, g, o])
        drive = drive * jnp.where(number == 4, 3, 1) if faulty else drive
        return drive, (jnp.zeros_like(i), ct_memory), None

    return recurrent(ruled(lstm_cell, lstm_backward), 4)(rng)


@FAULTS.add(culprit("lstm_cell", "recurrent cell"))
def lstm_remembers_too_little(rng, faulty):
    """The cotangent of the memory is truncated from step to step."""

    def lstm_backward(saved, ct):
        (i, f, g, o), ct_memory = lstm_pullback(saved, ct)
        ct_memory = 0.5 * ct_memory if faulty else ct_memory
        return jnp.concatenate([i, f, g, o]), (jnp.zeros_like(i), ct_memory), None

    return recurrent(ruled(lstm_cell, lstm_backward), 4)(rng)


@FAULTS.add(culprit("grow", "growing carry", (5,), (6,), (7,)))
def wrong_once_the_carry_is_large(rng, faulty):
    """A carry that doubles from 0.1; the rule is wrong beyond 2, from step 5 on."""

    @jax.custom_jvp
    def grow(carry, rate):
        return carry * (2 + rate)

    @grow.defjvp
    def grow_jvp(primals, tangents):
        carry, rate = primals
        wrong = jnp.where(jnp.abs(carry) > 2, 1.1, 1.0) if faulty else 1.0
        return grow(carry, rate), tangents[0] * (2 + rate) + wrong * carry * tangents[1]

    def loss(params, xs):
        def step(carry, x):
            carry = grow(carry, jnp.tanh(params["w"] @ x) / 10)  # rule: growing carry
            return carry, jnp.log1p(carry)

        _, logs = lax.scan(step, jnp.full(3, 0.1, xs.dtype), xs)
        return jnp.mean(logs**2)

    return Program(loss, {"w": normal(rng, 3, 2)}, (normal(rng, 8, 2),))


@FAULTS.add(culprit("mix", "inner of two scans", (1, 2)))
def wrong_in_one_step_of_two_nested_scans(rng, faulty):
    """Segments of steps; wrong in step 2 of segment 1."""

    def mix(h, x, segment, step):
        return jnp.tanh(h + x)

    def mix_backward(saved, ct):
        (_, _, segment, step), y = saved
        ct = ct * (1 - y * y)
        here = (segment == 1) & (step == 2)
        return ct, jnp.where(here, 0.5, 1) * ct if faulty else ct, None, None

    mixed = ruled(mix, mix_backward)

    def loss(params, xs):
        def segment(h, inputs):
            x, number = inputs

            def step(h, inputs):
                row, inner = inputs
                drive, row = params["loop"] @ h, params["in"] @ row
                h = mixed(drive, row, number, inner)  # rule: inner of two scans
                return h, None

            h, _ = lax.scan(step, h, (x, jnp.arange(len(x))))
            return h, h

        start = jnp.zeros(3, xs.dtype)
        _, hidden = lax.scan(segment, start, (xs, jnp.arange(len(xs))))
        return jnp.mean(hidden**2)

    params = {"in": normal(rng, 3, 2), "loop": normal(rng, 3, 3)}
    return Program(loss, params, (normal(rng, 3, 4, 2),))


@FAULTS.add(culprit("relax", "step of a fori_loop"))
def fori_loop_with_the_wrong_argument(rng, faulty):
    """(1 − a) x + a y, its rule with the roles of x and y exchanged."""

    def relax(x, y, a):
        return (1 - a) * x + a * y

    def relax_backward(saved, ct):
        (x, y, a), _ = saved
        by_a = jnp.sum(ct * (x - y if faulty else y - x))
        return (1 - a) * ct, a * ct, by_a

    relaxed = ruled(relax, relax_backward)

    def loss(params, x):
        def step(_, x):
            new = jnp.tanh(params["w"] @ x)
            return relaxed(x, new, params["a"])  # rule: step of a fori_loop

        return jnp.sum(lax.fori_loop(0, 5, step, x) ** 2)

    params = {"w": normal(rng, 3, 3), "a": jnp.float32(0.3)}
    return Program(loss, params, (normal(rng, 3),))


@FAULTS.add(culprit("saturate", "cond in a jit in a scan"))
def scan_of_a_jitted_cond(rng, faulty):
    """The rule is called in one branch of a cond, inside a jit, inside a scan."""

    def saturate(x):
        return x / (1 + jnp.abs(x))

    def saturate_backward(saved, ct):
        (x,), _ = saved
        bottom = 1 + jnp.abs(x)
        return (ct / (bottom if faulty else bottom**2),)

    saturated = ruled(saturate, saturate_backward)

    def bound(drive):
        return saturated(drive)  # rule: cond in a jit in a scan

    def loss(params, xs):
        @jax.jit
        def update(h, x):
            drive = h @ params["loop"] + x @ params["in"]
            return lax.cond(jnp.sum(x) > 0, bound, jnp.tanh, drive)

        def step(h, x):
            h = update(h, x)
            return h, h

        _, hidden = lax.scan(step, jnp.zeros(3, xs.dtype), xs)
        return jnp.mean(hidden**2)

    params = {"in": normal(rng, 2, 3), "loop": normal(rng, 3, 3)}
    return Program(loss, params, (normal(rng, 6, 2),))


@FAULTS.add(culprit("bounded", "haiku unroll"))
def haiku_rnn_reads_a_stale_output(rng, faulty):
    """The rule of an output nonlinearity takes its input for its output."""

    def bounded(x):
        return jnp.tanh(x)

    def bounded_backward(saved, ct):
        (x,), y = saved
        return (ct * (1 - (x if faulty else y) ** 2),)

    activation = ruled(bounded, bounded_backward)

    def forward(xs):
        core = hk.DeepRNN([hk.GRU(4), activation, hk.Linear(2)])
        start = core.initial_state(2)
        return hk.dynamic_unroll(core, xs, start)[0]  # rule: haiku unroll

    net = hk.without_apply_rng(hk.transform(forward))
    xs = normal(rng, 5, 2, 3)

    def loss(params, xs):
        out = net.apply(params, xs)
        return jnp.mean(out**2)

    return Program(loss, net.init(jax.random.key(0), xs), (xs,))


@FAULTS.add(culprit("linear_recurrence", "state space model"))
def state_space_model_not_reversed(rng, faulty):
    """The adjoint of hₜ = aₜ hₜ₋₁ + xₜ runs from the end; the rule from the start."""

    def accumulate(a, x, *, reverse=False):
        def join(left, right):
            return left[0] * right[0], left[1] * right[0] + right[1]

        return lax.associative_scan(join, (a, x), reverse=reverse)[1]

    def linear_recurrence(a, x):
        return accumulate(a, x)

    def linear_recurrence_backward(saved, ct):
        (a, _), h = saved
        none = jnp.zeros_like(a[:1])
        later = jnp.concatenate([a[1:], none])
        adjoint = accumulate(later, ct, reverse=not faulty)
        return adjoint * jnp.concatenate([none, h[:-1]]), adjoint

    model = ruled(linear_recurrence, linear_recurrence_backward)

    def loss(params, xs):
        decay = jax.nn.sigmoid(xs @ params["gate"])
        h = jax.vmap(model)(decay, xs @ params["in"])  # rule: state space model
        return jnp.mean((h @ params["out"]) ** 2)

    params = {
        "gate": normal(rng, 2, 3),
        "in": normal(rng, 2, 3),
        "out": normal(rng, 3, 2),
    }
    return Program(loss, params, (normal(rng, 2, 6, 2),))
