"""A run put together from what monitors keep, and what becomes of it elsewhere."""

from __future__ import annotations

import csv
import io
import json
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxcheck
from jaxcheck import History, InvalidInputError
from jaxcheck.training.history_numbers import octaves, tag

PARAMS = {"layers": jnp.stack([jnp.eye(4) * 0.9] * 3), "out": jnp.ones(4) / 2}
STACKED = "['layers']"


def loss_fn(params, x):
    h, _ = jax.lax.scan(lambda h, w: (jnp.tanh(h @ w), None), x, params["layers"])
    return jnp.mean((h @ params["out"] - 1.0) ** 2)


def training(window=16, **settings):
    """A transformation, and a jitted scan over batches."""
    tx = jaxcheck.monitor(optax.adam(1e-2), stacked=STACKED, window=window, **settings)

    def step(carry, x):
        params, state = carry
        loss, grads = jax.value_and_grad(loss_fn)(params, x)
        updates, state = tx.update(grads, state, params, value=loss)
        return (optax.apply_updates(params, updates), state), None

    return tx, jax.jit(lambda carry, xs: jax.lax.scan(step, carry, xs)[0])


BATCHES = jax.random.normal(jax.random.key(0), (60, 8, 4))


def history_of(batches=BATCHES, chunk=10, window=16, snapshots=False):
    tx, run = training(window)
    history = History(PARAMS, stacked=STACKED)
    carry = PARAMS, tx.init(PARAMS)
    for k in range(0, len(batches), chunk):
        carry = run(carry, batches[k : k + chunk])
        statistics = None
        if snapshots:
            grads = jax.grad(loss_fn)(carry[0], batches[k])
            statistics = jaxcheck.gradient_statistics(grads, stacked=STACKED)
        history.add(carry[1], statistics)
    return history, carry


@pytest.fixture(scope="module")
def history():
    return history_of(snapshots=True)[0]


def test_chunks_are_put_together_as_if_the_window_held_all_steps(history):
    (whole, _) = history_of(window=64, chunk=60)
    assert history.steps.tolist() == list(range(60))
    np.testing.assert_array_equal(history.norms, whole.norms)
    np.testing.assert_array_equal(history.losses, whole.losses)
    assert history.missing == 0
    assert history.names == jaxcheck.leaf_names(PARAMS, stacked=STACKED)


def test_norms_are_those_of_the_gradients(history):
    grads = jax.grad(loss_fn)(PARAMS, BATCHES[0])
    wanted = [np.linalg.norm(x) for x in (*grads["layers"], grads["out"])]
    np.testing.assert_allclose(history.norms[0, 0, :-1], wanted, rtol=1e-5)
    assert history.losses[0] == pytest.approx(float(loss_fn(PARAMS, BATCHES[0])))


def test_steps_that_were_overwritten_are_missing_and_counted():
    history, _ = history_of(chunk=30)
    assert history.steps.tolist() == [*range(14, 30), *range(44, 60)]
    assert history.missing == 28
    assert "28 not kept" in str(history)


def test_going_back_to_a_checkpoint_replaces_what_came_after():
    tx, run = training()
    history = History(PARAMS, stacked=STACKED)
    saved = carry = run((PARAMS, tx.init(PARAMS)), BATCHES[:10])
    history.add(saved[1])
    carry = run(carry, BATCHES[10:20])
    history.add(carry[1])
    first = history.losses.copy()
    carry = run(saved, BATCHES[30:35])
    history.add(carry[1])
    assert history.steps.tolist() == list(range(15))
    np.testing.assert_array_equal(history.losses[:10], first[:10])
    assert (history.losses[10:] != first[10:15]).all()


def test_a_diagnosis_of_a_history_is_that_of_its_last_state():
    bad = BATCHES.at[31].mul(jnp.inf)
    history, carry = history_of(bad)
    one = jaxcheck.diagnose(history)
    other = jaxcheck.diagnose(carry[1], PARAMS, stacked=STACKED)
    assert [f.rule for f in one.findings] == [f.rule for f in other.findings]
    assert one.findings[0].rule == "nonfinite_gradient"
    assert one.findings[0].step == 31
    with pytest.raises(jaxcheck.HealthError):
        jaxcheck.assert_training_healthy(history)


def test_what_left_the_window_is_still_seen():
    """A loss that was NaN long ago is in no ring any more."""
    bad = BATCHES.at[3].mul(jnp.nan)
    tx, run = training()
    guarded = optax.apply_if_finite(tx, 5)
    del guarded  # the parameters below are simply not moved by the bad step
    history = History(PARAMS, stacked=STACKED)
    carry = PARAMS, tx.init(PARAMS)
    for k in range(0, 60, 10):
        params, state = run(carry, bad[k : k + 10])
        history.add(state)
        carry = (PARAMS if k == 0 else params), state
    steps = {f.rule: f.step for f in jaxcheck.diagnose(history).findings}
    assert steps["nonfinite_loss"] == 3


def test_summary_names_few_leaves_the_worst_first():
    spoiled = history_of(BATCHES.at[40].mul(jnp.nan))[0]
    text = spoiled.summary(top=2)
    assert "NaN or infinity in the gradient: 20 steps, first step 40" in text
    assert "and 2 that stand out less" in text
    quiet = history_of()[0]
    assert "NaN" not in str(quiet)
    assert quiet.summary(top=0).count("['layers']") == 0
    assert repr(quiet) == "<History: 60 steps, last 59>"


def test_rows_are_flat_dicts_of_numbers(history):
    rows = list(history.rows(since=58))
    assert [step for step, _ in rows] == [58, 59]
    values = rows[1][1]
    assert values["loss"] == history.losses[59]
    assert values["gradient"] == history.norms[59, 0, -1]
    assert values["gradient/layers/1"] == history.norms[59, 0, 1]
    assert values["update_ratio"] == pytest.approx(
        history.norms[59, 1, -1] / history.norms[59, 2, -1]
    )
    assert all(type(x) is float for x in values.values())


def test_what_was_not_measured_is_left_out():
    tx, run = training(every=4)
    state = run((PARAMS, tx.init(PARAMS)), BATCHES[:10])[1]
    history = History(PARAMS, stacked=STACKED)
    history.add(state)
    measured = [step for step, values in history.rows() if "update" in values]
    assert measured == [0, 4, 8]


def test_csv_has_a_row_for_each_step(history, tmp_path):
    history.to_csv(tmp_path / "run.csv")
    with (tmp_path / "run.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 60
    assert float(rows[7]["gradient/out"]) == history.norms[7, 0, 3]


@pytest.mark.parametrize("factor", [1.0, np.nan])
def test_json_is_read_back_as_it_was(tmp_path, factor):
    history, _ = history_of(BATCHES.at[40].mul(factor))
    history.to_json(tmp_path / "run.json")
    json.loads((tmp_path / "run.json").read_text(), parse_constant=pytest.fail)
    again = History.from_json(tmp_path / "run.json")
    np.testing.assert_array_equal(again.norms, history.norms)
    np.testing.assert_array_equal(again.losses, history.losses)
    np.testing.assert_array_equal(again.steps, history.steps)
    assert str(again) == str(history)
    with pytest.raises(InvalidInputError, match="numbers only"):
        jaxcheck.diagnose(again)
    with pytest.raises(InvalidInputError, match="read from a file"):
        again.add(None)


def test_a_file_that_is_no_history(tmp_path):
    (tmp_path / "x.json").write_text('{"names": ["a"], "steps": 3}')
    with pytest.raises(InvalidInputError, match="must be a file that `to_json` wrote"):
        History.from_json(tmp_path / "x.json")


def test_histograms_are_counts_and_edges(history):
    found = history.histograms(59)
    counts, edges = found["gradient/out"]
    assert counts.sum() == 4
    assert len(edges) == len(counts) + 1
    assert (np.diff(edges) == 1).all()
    assert np.isfinite(edges).all()
    assert edges[1:-1].tolist() == np.log2(jaxcheck.histogram_edges()[1:-1]).tolist()
    with pytest.raises(InvalidInputError, match="9, 19, 29"):
        history.histograms(3)


def test_statistics_of_something_else_are_refused():
    tx, run = training()
    state = run((PARAMS, tx.init(PARAMS)), BATCHES[:2])[1]
    other = jaxcheck.gradient_statistics(PARAMS)
    with pytest.raises(InvalidInputError, match="the same `stacked`: 4 rows"):
        History(PARAMS, stacked=STACKED).add(state, other)


def test_tensorboard_reads_what_was_written(history, tmp_path):
    pytest.importorskip("tensorboardX")
    events = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator"
    )
    history.to_tensorboard(tmp_path)
    board = events.EventAccumulator(
        str(tmp_path), {events.SCALARS: 0, events.HISTOGRAMS: 0}
    )
    board.Reload()
    losses = board.Scalars("loss")
    assert [event.step for event in losses] == list(range(60))
    np.testing.assert_allclose(
        [event.value for event in losses], history.losses, rtol=1e-6
    )
    norms = [event.value for event in board.Scalars("gradient/layers/2")]
    np.testing.assert_allclose(norms, history.norms[:, 0, 2], rtol=1e-6)
    name = "log2 gradient/layers/0"
    drawn = board.Histograms(name)
    assert [event.step for event in drawn] == [9, 19, 29, 39, 49, 59]
    counts = history.snapshots[59].leaves.histogram[0]
    value = drawn[-1].histogram_value
    assert value.num == counts.sum() == sum(value.bucket)
    filled = np.flatnonzero(counts)
    assert value.bucket_limit[0] == octaves()[filled[0] + 1]
    assert value.bucket_limit[-1] == octaves()[filled[-1] + 1]


def test_a_writer_of_ones_own_stays_open(history):
    class Writer:
        def __init__(self):
            self.scalars, self.histograms = [], []

        def add_scalar(self, name, value, step):
            self.scalars.append((name, step))

        def add_histogram_raw(self, name, **given):
            self.histograms.append((name, given["global_step"]))

    writer = Writer()
    history.to_tensorboard(writer, since=50)
    assert {step for _, step in writer.scalars} == set(range(50, 60))
    assert {step for _, step in writer.histograms} == {59}
    with pytest.raises(InvalidInputError, match="add_histogram_raw"):
        history.to_tensorboard(3)


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("['layers']['up'][1]", "layers/up/1"),
        (".layers[0].kernel", "layers/0/kernel"),
        ("['a/b']['c.d']", "a/b/c.d"),
        ("['w'][:, 2]", "w/2"),
        ("", "params"),
    ],
)
def test_names_for_trackers(name, wanted):
    assert tag(name) == wanted


# ---- the live line


def test_a_live_line_on_a_file_is_written_now_and_then(monkeypatch):
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    tx, run = training()
    history = History(PARAMS, stacked=STACKED)
    carry = PARAMS, tx.init(PARAMS)
    with history.live(30, progress=True):
        for k in range(0, 30, 10):
            carry = run(carry, BATCHES[k : k + 10])
            history.add(carry[1])
    lines = stream.getvalue().splitlines()
    assert len(lines) == 2  # the first, and the last at the end
    assert lines[0].startswith("step 10/30 · loss ")
    assert lines[1].startswith("step 30/30 · loss ")
    history.add(carry[1])
    assert stream.getvalue().splitlines() == lines


def test_a_live_line_on_a_terminal_is_drawn_in_place(monkeypatch):
    class Terminal(io.StringIO):
        encoding = "utf-8"

        def isatty(self):
            return True

    stream = Terminal()
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "40")
    tx, run = training()
    history = History(PARAMS, stacked=STACKED)
    carry = PARAMS, tx.init(PARAMS)
    with history.live(20):
        for k in range(0, 20, 10):
            carry = run(carry, BATCHES[k : k + 10])
            history.add(carry[1])
    drawn = stream.getvalue().split("\r\x1b[2K")
    assert [line[:10] for line in drawn[1:]] == ["step 10/20", "step 20/20"]
    assert all(len(line.rstrip("\n")) < 40 for line in drawn)
    assert stream.getvalue().endswith("\n")


def test_a_live_line_is_silent_by_default_and_tells_functions(monkeypatch):
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    tx, run = training()
    state = run((PARAMS, tx.init(PARAMS)), BATCHES[:10])[1]
    history, told = History(PARAMS, stacked=STACKED), []
    with history.live(10):
        history.add(state)
    with history.live(10, progress=lambda done, total: told.append((done, total))):
        history.add(state)
    assert stream.getvalue() == ""
    assert told == [(10, 10)]
    with pytest.raises(InvalidInputError, match="positive integer of steps"):
        history.live(0)
    with pytest.raises(InvalidInputError, match="None, True, False"):
        history.live(3, progress="yes")


# ---- what cannot be


def test_clear_errors():
    history = History(PARAMS, stacked=STACKED)
    with pytest.raises(InvalidInputError, match="call `history.add"):
        jaxcheck.diagnose(history)
    with pytest.raises(InvalidInputError, match=r"History.add\(opt_state"):
        history.add(optax.adam(1e-3).init(PARAMS))
    plain = jaxcheck.monitor(optax.sgd(0.1)).init(PARAMS)
    with pytest.raises(InvalidInputError, match="it has 4 leaves and layers"):
        history.add(plain)
    full, _ = history_of()
    with pytest.raises(InvalidInputError, match="leave them out"):
        jaxcheck.diagnose(full, PARAMS)
    assert len(history.steps) == 0
    assert "0 steps" in str(history)
