"""Which use of a leaf contributes how much of its gradient; where none is expected.

The oracle is a loss with its copies written by hand: one argument for each use.
"""

from __future__ import annotations

import inspect
import pickle
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import jaxcheck
from jaxcheck import InvalidInputError, Verdict, check, gradient_flow
from jaxcheck.places.flow import flow

THIS = "test_gradient_flow.py"


def line_of(function, text):
    """The line of this file where ``function`` says ``text``."""
    lines, start = inspect.getsourcelines(function)
    (found,) = [k for k, line in enumerate(lines) if text in line]
    return start + found


def normal(seed, *shape, dtype=np.float32):
    values = np.random.default_rng(seed).normal(size=shape)
    if np.issubdtype(dtype, np.complexfloating):
        values = values + 1j * np.random.default_rng(seed + 100).normal(size=shape)
    return jnp.asarray(values, dtype)


def only(report):
    (leaf,) = report.leaves
    return leaf


def shares(leaf):
    return {(u.site.primitive, u.site.line): u.share for u in leaf.uses}


def shares_by_hand(loss, value, count):
    """Projections of the contributions of ``count`` copies on their sum, in float64."""
    with jax.enable_x64(True):
        wide = jnp.asarray(value, jnp.promote_types(value.dtype, np.float64))
        parts = jax.grad(loss, tuple(range(count)))(*[wide] * count)
        parts = [np.asarray(p).ravel() for p in parts]
    total = sum(parts)
    return [float(np.vdot(total, p).real / np.vdot(total, total).real) for p in parts]


# ---- the missing stop_gradient


def q_values(params, observation):
    hidden = jnp.tanh(observation @ params["hidden"])
    return hidden @ params["q"]


jitted_q_values = jax.jit(q_values)
PARAMS = {"hidden": normal(0, 4, 8), "q": normal(1, 8, 3)}
BATCH = (normal(2, 6, 4), normal(3, 6, 4), normal(4, 6))


def td_loss(params, observation, following, reward, forward=q_values):
    value = forward(params, observation)[:, 0]
    target = reward + 0.875 * forward(params, following).max(axis=-1)
    return jnp.mean((value - target) ** 2)


def stopped_loss(params, observation, following, reward, forward=q_values):
    value = forward(params, observation)[:, 0]
    target = reward + 0.875 * forward(params, following).max(axis=-1)
    return jnp.mean((value - jax.lax.stop_gradient(target)) ** 2)


def frozen_loss(params, observation, following, reward):
    value = q_values(params, observation)[:, 0]
    frozen = jax.lax.stop_gradient(params)
    target = reward + 0.875 * q_values(frozen, following).max(axis=-1)
    return jnp.mean((value - target) ** 2)


def td_by_hand(online, target):
    """The loss with one set of parameters for each branch."""
    observation, following, reward = (jnp.asarray(x, online["q"].dtype) for x in BATCH)
    value = q_values(online, observation)[:, 0]
    goal = reward + 0.875 * q_values(target, following).max(axis=-1)
    return jnp.mean((value - goal) ** 2)


FORWARDS = {
    "called": q_values,
    "jitted": jitted_q_values,
    "remat": jax.checkpoint(q_values),
    "jitted remat": jax.jit(jax.checkpoint(q_values)),
    "vmap": jax.vmap(q_values, in_axes=(None, 0)),
}


@pytest.mark.parametrize("forward", FORWARDS.values(), ids=FORWARDS)
def test_the_branches_of_a_td_loss_are_told_apart_with_their_shares(forward):
    def loss(params, *batch):
        return td_loss(params, *batch, forward=forward)

    report = gradient_flow(loss, PARAMS, *BATCH)
    online = line_of(td_loss, "value = ")
    target = line_of(td_loss, "target = ")
    with jax.enable_x64(True):
        wide = jax.tree.map(lambda x: jnp.asarray(x, np.float64), PARAMS)
        parts = jax.grad(td_by_hand, (0, 1))(wide, wide)
    for leaf, name in zip(report.leaves, ("hidden", "q"), strict=True):
        one, other = (np.asarray(part[name]).ravel() for part in parts)
        total = one + other
        assert leaf.norm == pytest.approx(np.linalg.norm(total), rel=1e-9)
        assert shares(leaf) == {
            ("dot_general", online): pytest.approx(one @ total / (total @ total)),
            ("dot_general", target): pytest.approx(other @ total / (total @ total)),
        }
        norms = {u.site.line: u.norm for u in leaf.uses}
        assert norms[target] == pytest.approx(np.linalg.norm(other), rel=1e-9)
        assert not any(use.zero for use in leaf.uses)


def test_nothing_flows_through_a_stopped_branch():
    for loss in (stopped_loss, frozen_loss):
        for leaf in gradient_flow(loss, PARAMS, *BATCH).leaves:
            online, target = leaf.uses
            assert (online.share, online.zero) == (pytest.approx(1.0), False)
            assert (target.share, target.norm, target.zero) == (0.0, 0.0, True)
            assert target.site.line == line_of(loss, "target = reward")


def test_a_leaf_that_is_stopped_on_its_way_says_where():
    leaf = gradient_flow(frozen_loss, PARAMS, *BATCH).leaves[0]
    online, target = leaf.uses
    assert online.stopped is None
    assert target.stopped.line == line_of(frozen_loss, "stop_gradient")


def test_lines_that_lead_to_a_use_come_innermost_first_with_their_text():
    leaf = gradient_flow(td_loss, PARAMS, *BATCH).leaves[0]
    target = next(u for u in leaf.uses if u.site.line == line_of(td_loss, "target ="))
    own, call, *_ = target.calls
    assert (own.function, own.line) == ("q_values", line_of(q_values, "hidden = "))
    assert (call.function, call.line) == ("td_loss", target.site.line)
    assert (
        call.text == "target = reward + 0.875 * forward(params, following).max(axis=-1)"
    )


def test_two_calls_on_one_line_are_told_apart():
    def loss(w, x, y):
        return jnp.sum(jitted_tanh(w, x)) + 3 * jnp.sum(jitted_tanh(w, y))

    w, x, y = normal(0, 3), normal(1, 4, 3), normal(2, 4, 3)
    leaf = only(gradient_flow(loss, w, x, y))
    wide = [np.asarray(v, np.float64) for v in (x, y)]
    want = shares_by_hand(
        lambda a, b: jnp.tanh(wide[0] @ a).sum() + 3 * jnp.tanh(wide[1] @ b).sum(), w, 2
    )
    assert [u.share for u in leaf.uses] == pytest.approx(sorted(want, reverse=True))
    columns = {u.calls[1].column for u in leaf.uses}
    assert len(columns) == 2
    assert (
        len(set(re.findall(rf"{THIS}:\d+:\d+", str(gradient_flow(loss, w, x, y))))) == 2
    )


@jax.jit
def jitted_tanh(w, x):
    return jnp.tanh(x @ w)


def test_a_loop_in_python_is_one_use():
    def loss(w, x):
        for _ in range(4):
            x = jnp.tanh(x @ w)
        return jnp.sum(x)

    (use,) = only(gradient_flow(loss, normal(0, 3, 3), normal(1, 2, 3))).uses
    assert (use.count, use.share) == (4, pytest.approx(1.0))


# ---- where values go


def test_weight_tying():
    tokens, labels = jnp.array([0, 3, 1]), jnp.array([1, 1, 4])

    def by_hand(inputs, outputs):
        logits = jnp.tanh(inputs[tokens]) @ outputs.T
        logits = jax.nn.log_softmax(logits)
        return -jnp.take_along_axis(logits, labels[:, None], 1).mean()

    embedding = normal(0, 5, 4)
    leaf = only(gradient_flow(lambda e: by_hand(e, e), embedding))
    want = shares_by_hand(by_hand, embedding, 2)
    got = {u.site.primitive: u.share for u in leaf.uses}
    assert got == {
        "gather": pytest.approx(want[0]),
        "dot_general": pytest.approx(want[1]),
    }


def test_constants_of_a_scan():
    x = normal(1, 3)

    def by_hand(inside, after):
        state, _ = jax.lax.scan(
            lambda c, _: (jnp.tanh(inside @ c), None),
            jnp.asarray(x, inside.dtype),
            length=5,
        )
        return jnp.sum(jnp.sin(after) * state)

    w = normal(0, 3, 3)
    leaf = only(gradient_flow(lambda w: by_hand(w, w), w))
    want = shares_by_hand(by_hand, w, 2)
    got = {u.site.primitive: u.share for u in leaf.uses}
    assert got == {"dot_general": pytest.approx(want[0]), "sin": pytest.approx(want[1])}


def test_layers_that_are_scanned_over():
    x = normal(1, 3)

    def by_hand(product, gate):
        def layer(c, weights):
            one, other = weights
            return jnp.tanh(one @ c) * jnp.cos(other).sum(0), None

        return jnp.sum(
            jax.lax.scan(layer, jnp.asarray(x, product.dtype), (product, gate))[0]
        )

    w = normal(0, 4, 3, 3)
    leaf = only(gradient_flow(lambda w: by_hand(w, w), w))
    want = shares_by_hand(by_hand, w, 2)
    got = {u.site.primitive: u.share for u in leaf.uses}
    assert got == {"dot_general": pytest.approx(want[0]), "cos": pytest.approx(want[1])}


def test_what_a_loop_carries_along_unchanged():
    def by_hand(inside, after):
        dtype = inside.dtype

        def body(_, carry):
            w, c = carry
            return w, jnp.tanh(w * c)

        _, state = jax.lax.fori_loop(0, 3, body, (inside, jnp.ones(3, dtype)))
        return jnp.sum(state * after)

    def loss(w):
        def body(_, carry):
            w, c = carry
            return w, jnp.tanh(w * c)

        w, state = jax.lax.fori_loop(0, 3, body, (w, jnp.ones(3, w.dtype)))
        return jnp.sum(state * w)  # what came out of the loop

    w = normal(0, 3)
    leaf = only(gradient_flow(loss, w))
    want = shares_by_hand(by_hand, w, 2)
    assert sorted(u.share for u in leaf.uses) == pytest.approx(sorted(want))


def test_what_a_loop_starts_from_is_a_use_of_the_loop():
    def by_hand(start, factor):
        return jax.lax.scan(lambda c, _: (jnp.sin(c) * factor, None), start, length=2)[
            0
        ].sum()

    w = normal(0, 3)
    leaf = only(gradient_flow(lambda w: by_hand(w, w), w))
    want = shares_by_hand(by_hand, w, 2)
    got = {u.site.primitive: u.share for u in leaf.uses}
    assert got == {"scan": pytest.approx(want[0]), "mul": pytest.approx(want[1])}


def test_what_a_loop_and_a_branch_hand_out_as_it_came():
    def by_hand(handed, other):
        start = jnp.zeros_like(handed)
        last, _ = jax.lax.scan(lambda c, _: (handed, None), start, length=2)
        branch = jax.lax.cond(True, lambda a: a, lambda a: 2 * a, other)
        return jnp.sum(last**2) + jnp.sum(branch * 3)

    w = normal(0, 3)
    leaf = only(gradient_flow(lambda w: by_hand(w, w), w))
    want = shares_by_hand(by_hand, w, 2)
    got = {u.site.primitive: u.share for u in leaf.uses if not u.zero}
    assert got == {"scan": pytest.approx(want[0]), "cond": pytest.approx(want[1])}


@pytest.mark.parametrize("taken", [True, False])
def test_branches_of_cond(taken):
    def loss(w, flag):
        scaled = jax.lax.cond(flag, jnp.sin, jnp.cos, w)
        return jnp.sum(scaled) + jnp.sum(jnp.exp(w))

    def by_hand(a, b):
        return jnp.sum(jnp.sin(a) if taken else jnp.cos(a)) + jnp.sum(jnp.exp(b))

    w = normal(0, 3)
    leaf = only(gradient_flow(loss, w, jnp.asarray(taken)))
    want = shares_by_hand(by_hand, w, 2)
    assert {u.site.primitive: (u.share, u.zero) for u in leaf.uses} == {
        "sin" if taken else "cos": (pytest.approx(want[0]), False),
        "cos" if taken else "sin": (0.0, True),
        "exp": (pytest.approx(want[1]), False),
    }


def test_a_custom_rule_is_a_use_and_speaks_for_what_is_inside():
    @jax.custom_vjp
    def scaled(x):
        return jnp.sin(x)

    scaled.defvjp(lambda x: (jnp.sin(x), None), lambda _, ct: (5 * ct,))

    def loss(w):
        return jnp.sum(scaled(w)) + jnp.sum(w)

    leaf = only(gradient_flow(loss, normal(0, 3)))
    got = {u.site.rule or u.site.primitive: u.share for u in leaf.uses}
    assert got == {"scaled": pytest.approx(5 / 6), "reduce_sum": pytest.approx(1 / 6)}


def test_casts_transposes_and_slices_are_followed():
    def loss(flat, x):
        kernel = flat[:6].reshape(3, 2).astype(jnp.bfloat16).astype(jnp.float32)
        return jnp.sum(jnp.tanh(x @ kernel) + flat[6:]) + jnp.sum(kernel.T @ x.T)

    leaf = only(gradient_flow(loss, normal(0, 8), normal(1, 4, 3)))
    assert sorted(u.site.primitive for u in leaf.uses) == [
        "add",
        "dot_general",
        "dot_general",
    ]
    assert sum(u.share for u in leaf.uses) == pytest.approx(1.0)


def test_a_value_beside_its_own_stopped_copy():
    def loss(w):
        return jnp.sum(w * jax.lax.stop_gradient(w))

    leaf = only(gradient_flow(loss, normal(0, 3)))
    assert [(u.site.primitive, u.share, u.stopped is None) for u in leaf.uses] == [
        ("mul", 1.0, True),
        ("mul", 0.0, False),
    ]


def test_a_leaf_that_is_the_loss():
    (use,) = only(gradient_flow(lambda w: w, 2.0)).uses
    assert (use.site.primitive, use.share, use.norm) == ("the loss itself", 1.0, 1.0)


def test_a_leaf_that_is_not_used():
    used, unused = gradient_flow(
        lambda p: jnp.sum(p["a"] ** 2), {"a": normal(0, 3), "b": normal(1, 2)}
    ).leaves
    assert (len(used.uses), used.zero) == (1, False)
    assert (unused.path, unused.uses, unused.norm, unused.zero) == (
        "['b']",
        (),
        0.0,
        True,
    )


def test_a_loss_that_uses_no_leaf():
    leaf = only(gradient_flow(lambda w: jnp.zeros(()), normal(0, 3)))
    assert (leaf.uses, leaf.norm, leaf.zero) == ((), 0.0, True)


def test_complex_leaf():
    def by_hand(a, b):
        return jnp.sum(jnp.abs(a * (1 + 2j)) ** 2) + jnp.sum(jnp.real(jnp.exp(b)))

    z = normal(0, 4, dtype=np.complex64)
    leaf = only(gradient_flow(lambda z: by_hand(z, z), z))
    want = shares_by_hand(by_hand, z, 2)
    got = {u.site.primitive: u.share for u in leaf.uses}
    assert got == {"mul": pytest.approx(want[0]), "exp": pytest.approx(want[1])}


def test_a_module_of_flax_that_is_called_twice():
    class Siamese(nn.Module):
        @nn.compact
        def __call__(self, x, y):
            encoder = nn.Dense(3, name="encoder")
            left = encoder(x)
            right = encoder(y)
            return jnp.mean((jnp.tanh(left) - right) ** 2)

    model = Siamese()
    x, y = normal(0, 5, 4), normal(1, 5, 4)
    variables = model.init(jax.random.key(0), x, y)
    report = gradient_flow(model.apply, variables, x, y)
    kernel = report.leaves[1]
    assert kernel.path == "['params']['encoder']['kernel']"
    lines = {u.site.line for u in kernel.uses}
    first = line_of(Siamese.__call__, "left = encoder(x)")
    assert lines == {first, first + 1}
    assert all("encoder" in u.site.scope for u in kernel.uses)
    assert sum(u.share for u in kernel.uses) == pytest.approx(1.0)


def test_inside_shard_map():
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:4]), ("data",))
    spec = jax.sharding.PartitionSpec

    def local(w, x):
        return jax.lax.psum(jnp.sum(jnp.tanh(x @ w)) + jnp.sum(jnp.sin(x * w)), "data")

    def loss(w, x):
        specs = (spec(), spec("data"))
        return jax.shard_map(local, mesh=mesh, in_specs=specs, out_specs=spec())(w, x)

    x = normal(1, 8, 3)

    def by_hand(a, b):
        wide = jnp.asarray(x, a.dtype)
        return jnp.sum(jnp.tanh(wide @ a)) + jnp.sum(jnp.sin(wide * b))

    w = normal(0, 3)
    leaf = only(gradient_flow(loss, w, x))
    want = shares_by_hand(by_hand, w, 2)
    got = {u.site.primitive: u.share for u in leaf.uses}
    assert got == {"dot_general": pytest.approx(want[0]), "mul": pytest.approx(want[1])}


def test_contributions_that_cancel_have_no_share():
    def loss(w):
        return jnp.sum(jnp.sin(w)) - jnp.sum(jnp.sin(w + 0.0))

    leaf = only(gradient_flow(loss, normal(0, 3)))
    assert leaf.zero
    assert [(u.share, u.zero) for u in leaf.uses] == [(None, False), (None, False)]
    assert "its contributions cancel" in str(gradient_flow(loss, normal(0, 3)))


def test_a_loss_without_a_float64_reading_is_read_natively(monkeypatch):
    def refuse(*args, **options):
        raise NotImplementedError

    def loss(w):
        return jnp.sum(w) + 3 * jnp.sum(2 * w)

    monkeypatch.setattr(flow, "lift", refuse)
    report = gradient_flow(loss, normal(0, 3))
    got = {u.site.primitive: u.share for u in only(report).uses}
    assert got == {"mul": pytest.approx(6 / 7), "reduce_sum": pytest.approx(1 / 7)}
    assert report.precision == "native"
    assert "float32, in native precision" in str(report)


def test_a_rule_that_closes_over_a_traced_value_is_refused():
    def loss(w, x):
        scale = jnp.sum(x)

        @jax.custom_vjp
        def function(y):
            return y * scale

        function.defvjp(lambda y: (y * scale, None), lambda _, ct: (ct * scale,))
        return jnp.sum(function(w))

    with pytest.raises(InvalidInputError, match="Pass that value to the function"):
        gradient_flow(loss, normal(0, 3), jnp.ones(2))


# ---- conservation


def unary(draw):
    return draw(
        st.sampled_from(
            [
                jnp.sin,
                jax.jit(jnp.tanh),
                jax.checkpoint(lambda x: jnp.cos(x) * x),
                lambda x: x.T,
                lambda x: jax.lax.cond(x[0, 0] > 0, jnp.sin, jnp.cos, x),
                lambda x: jax.lax.scan(lambda c, r: (c + r @ x, c * r), x[0], x)[1],
                jax.lax.stop_gradient,
                jax.nn.softplus,
            ]
        )
    )


@st.composite
def programs(draw):
    """A list of steps, each an operation and the numbers of its operands."""
    steps = []
    for k in range(draw(st.integers(1, 5))):
        operand = st.integers(0, k)
        steps.append((unary(draw), draw(operand), draw(operand)))
    return steps


@pytest.mark.slow
@given(programs())
@settings(max_examples=15)
def test_contributions_add_up_to_the_gradient(steps):
    def loss(w):
        values = [w]
        for operation, i, j in steps:
            values.append(operation(values[i]) @ values[j] / 3)
        return jnp.sum(jnp.sin(values[-1]))

    w = normal(7, 3, 3)
    leaf = only(gradient_flow(loss, w))
    with jax.enable_x64(True):
        gradient = np.asarray(jax.grad(loss)(jnp.asarray(w, np.float64)))
    assert leaf.norm == pytest.approx(np.linalg.norm(gradient), rel=1e-9, abs=1e-12)
    if not leaf.zero:
        assert sum(use.share for use in leaf.uses) == pytest.approx(1.0, rel=1e-9)


# ---- the report


def test_report_is_a_plain_value():
    report = gradient_flow(td_loss, PARAMS, *BATCH)
    assert pickle.loads(pickle.dumps(report)) == report
    assert hash(pickle.loads(pickle.dumps(report))) == hash(report)
    assert (
        report.to_dict()["leaves"][0]["uses"][0]["site"]["primitive"] == "dot_general"
    )
    assert '"share"' in report.to_json()
    assert repr(report) == "<FlowReport: 2 leaves, 4 uses>"
    with pytest.raises(TypeError, match="no truth value"):
        bool(report)
    assert "passed" not in report.to_dict()


def test_report_reads():
    lines = str(gradient_flow(td_loss, PARAMS, *BATCH)).splitlines()
    assert lines[0].startswith("jaxcheck: where the gradient of 2 leaves comes from")
    target = line_of(td_loss, "target = ")
    pattern = rf"    +\d+\.\d %  \S+  dot_general  {THIS}:{target}  target = reward"
    assert len([line for line in lines if re.match(pattern, line)]) == 2
    assert "Reproduce: jaxcheck.gradient_flow(td_loss, params, *args)" in lines


def test_report_says_what_carries_nothing():
    text = str(gradient_flow(frozen_loss, PARAMS, *BATCH))
    target, stop = (line_of(frozen_loss, t) for t in ("target = reward", "frozen = "))
    assert (
        f"nothing through dot_general at {THIS}:{target} "
        f"(cut off by stop_gradient at {THIS}:{stop})" in " ".join(text.split())
    )
    unused = gradient_flow(lambda p: p["a"], {"a": 1.0, "b": 2.0})
    assert "['b']  ()  not used" in str(unused)


def test_many_leaves_with_one_use_are_folded():
    params = {f"w{k}": 1.0 + k for k in range(30)}
    text = str(
        gradient_flow(lambda p: sum(jnp.sin(x) for x in p.values()) * p["w3"], params)
    )
    assert "['w3']" in text
    assert "['w4']" not in text
    assert "  … and 29 more leaves with a single use" in text


def test_with_aux():
    report = gradient_flow(lambda w: (jnp.sum(w**2), "aux"), normal(0, 3), has_aux=True)
    assert [u.site.primitive for u in only(report).uses] == ["integer_pow"]
    assert "has_aux=True" in report.call


@pytest.mark.parametrize("loss", [3, None])
def test_what_is_no_function_is_refused(loss):
    with pytest.raises(
        InvalidInputError, match=r"`gradient_flow\(loss_fn=...\)` must be"
    ):
        gradient_flow(loss, 1.0)


# ---- expectations


def verdicts(report):
    return {leaf.path: leaf.verdict for leaf in report.leaves}


PLACES = {
    "line": lambda: f"{THIS}:{line_of(td_loss, 'target = ')}",
    "longer": lambda: f"tests/{THIS}:{line_of(td_loss, 'target = ')}",
    "leaf and line": lambda: f"['q'] at {THIS}:{line_of(td_loss, 'target = ')}",
}


@pytest.mark.parametrize("place", PLACES)
def test_a_branch_that_was_to_carry_nothing_is_wrong(place):
    expected = PLACES[place]()
    report = check(td_loss, PARAMS, *BATCH, expect_zero=[expected])
    hidden = Verdict.CORRECT if place == "leaf and line" else Verdict.WRONG
    assert verdicts(report) == {"['hidden']": hidden, "['q']": Verdict.WRONG}
    assert report.verdict is Verdict.WRONG
    finding = report.findings[0]
    assert (finding.kind, finding.site.line) == (
        "attached",
        line_of(td_loss, "target = "),
    )
    assert f"through dot_general at {THIS}:{finding.site.line}" in finding.message
    assert "expected no gradient through" in report.leaves[1].reason
    share = next(
        u.share
        for u in gradient_flow(td_loss, PARAMS, *BATCH).leaves[1].uses
        if u.site.line == finding.site.line
    )
    assert f"{100 * share:.1f} %" in report.leaves[1].reason


QUIET = {
    "line": (stopped_loss, lambda: f"{THIS}:{line_of(stopped_loss, 'target = ')}"),
    "line of the stop": (
        stopped_loss,
        lambda: f"['q'] at {THIS}:{line_of(stopped_loss, 'target = ')}",
    ),
    "behind the stop": (
        frozen_loss,
        lambda: f"{THIS}:{line_of(frozen_loss, 'target = ')}",
    ),
}


@pytest.mark.parametrize("case", QUIET)
def test_a_branch_that_carries_nothing_passes_in_silence(case):
    loss, place = QUIET[case]
    report = check(loss, PARAMS, *BATCH, expect_zero=[place()])
    assert report.passed
    assert "attached" not in {f.kind for f in report.findings}


def test_a_stop_that_is_expected_is_not_asked_about():
    asked = {f.kind for f in check(frozen_loss, PARAMS, *BATCH).findings}
    assert "detached" in asked
    place = f"{THIS}:{line_of(frozen_loss, 'target = ')}"
    assert check(frozen_loss, PARAMS, *BATCH, expect_zero=[place]).findings == ()


def bootstrapped(params, following, reward):
    return reward + 0.875 * q_values(params, following).max(axis=-1)


def test_a_function_is_a_place():
    def loss(params, observation, following, reward):
        value = q_values(params, observation)[:, 0]
        return jnp.mean((value - bootstrapped(params, following, reward)) ** 2)

    def fixed(params, observation, following, reward):
        value = q_values(params, observation)[:, 0]
        target = jax.lax.stop_gradient(bootstrapped(params, following, reward))
        return jnp.mean((value - target) ** 2)

    def separated(params, observation, following, reward):
        value = q_values(params, observation)[:, 0]
        target = bootstrapped(PARAMS, following, reward)
        return jnp.mean((value - target) ** 2)

    expected = [f"{THIS}:bootstrapped"]
    assert check(loss, PARAMS, *BATCH, expect_zero=expected).verdict is Verdict.WRONG
    assert check(fixed, PARAMS, *BATCH, expect_zero=expected).passed
    # no leaf is used there any more, and the function runs all the same
    assert check(separated, PARAMS, *BATCH, expect_zero=expected).passed


TWINS = {
    "online": {"a": normal(0, 3), "b": normal(1, 2)},
    "target": {"a": normal(2, 3)},
}


def attached_target(p):
    error = p["online"]["a"] - jnp.sin(p["target"]["a"])
    return jnp.sum(error**2) + jnp.sum(p["online"]["b"] ** 2)


def detached_target(p):
    error = p["online"]["a"] - jax.lax.stop_gradient(jnp.sin(p["target"]["a"]))
    return jnp.sum(error**2) + jnp.sum(p["online"]["b"] ** 2)


@pytest.mark.parametrize("path", ["['target']['a']", "['target']"])
def test_leaves_that_were_to_get_nothing_are_wrong(path):
    report = check(attached_target, TWINS, expect_zero=[path])
    assert verdicts(report) == {
        "['online']['a']": Verdict.CORRECT,
        "['online']['b']": Verdict.CORRECT,
        "['target']['a']": Verdict.WRONG,
    }
    leaf = report.leaves[2]
    norm = gradient_flow(attached_target, TWINS).leaves[2].norm
    assert leaf.reason == f"expected no gradient here, its norm is {norm:.1e}"
    (finding,) = report.findings
    assert (finding.kind, finding.leaf) == ("attached", "['target']['a']")
    assert "100.0 % through sin at" in finding.message


def test_leaves_that_get_nothing_as_expected_are_not_mentioned():
    asked = {f.kind for f in check(detached_target, TWINS).findings}
    assert asked == {"detached", "dead"}
    report = check(detached_target, TWINS, expect_zero=["['target']"])
    assert report.passed
    assert report.findings == ()


def test_an_unused_leaf_that_is_expected_to_be_is_not_mentioned():
    def loss(p):
        return jnp.sum(p["online"]["a"] ** 2) + jnp.sum(p["online"]["b"] ** 2)

    assert {f.kind for f in check(loss, TWINS).findings} == {"unused"}
    assert check(loss, TWINS, expect_zero=["['target']"]).findings == ()


def test_a_gradient_that_cancels_is_zero():
    def loss(w, x):
        logits = x @ w["kernel"] + w["shift"]
        return -jax.nn.log_softmax(logits, axis=0)[:, 0].mean()

    w = {"kernel": normal(0, 3, 4), "shift": normal(1, 4)}
    assert check(loss, w, normal(2, 5, 3), expect_zero=["['shift']"]).passed


def test_a_bare_array_is_called_params():
    report = check(lambda w: jnp.sum(w**2), normal(0, 3), expect_zero=["params"])
    assert report.verdict is Verdict.WRONG


def test_several_expectations_each_have_their_finding():
    report = check(
        attached_target, TWINS, expect_zero=["['target']", "['online']['b']"]
    )
    assert [f.leaf for f in report.findings] == ["['online']['b']", "['target']['a']"]
    assert "expect_zero=[\"['target']\", \"['online']['b']\"]" in report.call


def test_a_wrong_gradient_stays_wrong_beside_an_expectation():
    wrong = jax.custom_jvp(jnp.sin)
    wrong.defjvps(lambda t, out, x: 2 * jnp.cos(x) * t)

    def loss(p):
        return jnp.sum(wrong(p["a"])) + jnp.sum(jax.lax.stop_gradient(p["b"]) * p["a"])

    params = {"a": normal(0, 3), "b": normal(1, 3)}
    report = check(loss, params, expect_zero=["['b']"])
    assert verdicts(report) == {"['a']": Verdict.WRONG, "['b']": Verdict.CORRECT}
    assert report.leaves[0].worst is not None


UNKNOWN = {
    "leaf": (
        "['target']['c']",
        r"`\['target'\]\['c'\]`, but no leaf lies there; the nearest are \['target'",
    ),
    "half a key": ("['targ", "no leaf lies there"),
    "line": (
        f"{THIS}:3",
        rf"the loss runs no such line and no such function. .* {THIS}:\d+",
    ),
    "file": ("test_flow.py:3", "the loss runs no such line"),
    "function": (f"{THIS}:attached", "no such function"),
    "leaf at a line": (f"['x'] at {THIS}:3", "no leaf lies there"),
}


@pytest.mark.parametrize("case", UNKNOWN)
def test_what_names_nothing_is_refused(case):
    given, message = UNKNOWN[case]
    with pytest.raises(InvalidInputError, match=message):
        check(attached_target, TWINS, expect_zero=[given])


def test_the_assert_takes_expectations():
    expected = {"expect_zero": ["['target']"]}
    jaxcheck.assert_gradients_correct(detached_target, TWINS, **expected)
    with pytest.raises(jaxcheck.GradientError, match="expected no gradient here"):
        jaxcheck.assert_gradients_correct(attached_target, TWINS, **expected)


@pytest.mark.parametrize("given", ["['target']", [3], [""], 7])
def test_what_is_no_list_of_texts_is_refused(given):
    with pytest.raises(InvalidInputError, match="must be a list of paths or places"):
        check(attached_target, TWINS, expect_zero=given)
