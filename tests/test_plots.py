"""Pictures of a run: what is drawn, by the numbers in them."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxcheck
from jaxcheck import History, InvalidInputError, plots

pytest.importorskip("matplotlib")

PARAMS = {f"layer_{k}": jnp.eye(4) * 0.8 for k in range(5)}
BAD = 25


def loss_fn(params, x):
    for k in range(5):
        x = jax.nn.sigmoid(x @ params[f"layer_{k}"])
    return jnp.mean((x - 0.2) ** 2)


@pytest.fixture(scope="module")
def history():
    """Forty steps of a network of sigmoids; one gradient has a NaN."""
    tx = jaxcheck.monitor(optax.adam(1e-2))

    @jax.jit
    def step(params, state, x, number):
        loss, grads = jax.value_and_grad(loss_fn)(params, x)
        spoiled = grads["layer_2"].at[0, 0].set(jnp.nan)
        seen = grads | {"layer_2": jnp.where(number == BAD, spoiled, grads["layer_2"])}
        _, state = tx.update(seen, state, params, value=loss)
        params = jax.tree.map(lambda p, g: p - 0.1 * g, params, grads)
        return params, state, jaxcheck.gradient_statistics(grads)

    history = History(PARAMS)
    params, state = PARAMS, tx.init(PARAMS)
    for number in range(40):
        x = jax.random.normal(jax.random.key(number), (8, 4))
        params, state, statistics = step(params, state, x, number)
        history.add(state, statistics if number % 10 == 0 else None)
    return history


def test_the_heat_map_has_the_norms_of_every_leaf_and_step(history):
    ax = plots.norms(history)
    drawn, bad = ax.collections[:2]
    values = drawn.get_array().reshape(5, 40)
    wanted = np.log10(history.norms[:, 0, :-1].T)
    np.testing.assert_allclose(values.filled(np.nan), wanted)
    assert np.argwhere(~bad.get_array().mask.reshape(5, 40)).tolist() == [[2, BAD]]
    assert [t.get_text() for t in ax.get_yticklabels()] == list(PARAMS)


def test_depth_shows_that_sigmoids_vanish(history):
    ax = plots.depth(history, steps=(0, 39))
    assert [line.get_label() for line in ax.lines] == ["step 0", "step 39"]
    first = ax.lines[0].get_ydata()
    np.testing.assert_allclose(first, history.norms[0, 0, :-1])
    assert first[0] < 0.1 * first[-1]
    assert len(plots.depth(history, "['layer_3']").lines[0].get_ydata()) == 1


@pytest.mark.parametrize("leaf", [None, "['layer_1']"])
def test_octaves_over_time_are_shares(history, leaf):
    ax = plots.histograms(history, leaf)
    shares = ax.collections[0].get_array()
    shares = shares.reshape(64, 4).filled(0.0)
    np.testing.assert_allclose(shares.sum(axis=0), 1.0)


def test_update_ratios_have_a_line_for_each_leaf_and_everything(history):
    ax = plots.update_ratios(history)
    labels = [line.get_label() for line in ax.lines]
    assert labels == [*PARAMS, "everything"]
    ratio = history.norms[3, 1, -1] / history.norms[3, 2, -1]
    assert ax.lines[-1].get_ydata()[3] == pytest.approx(ratio)


def test_the_loss_has_events_where_they_were(history):
    report = jaxcheck.diagnose(history)
    assert not report.passed
    ax = plots.loss(history, report)
    np.testing.assert_allclose(ax.lines[0].get_ydata(), history.losses)
    marked = {line.get_label(): line.get_xdata()[0] for line in ax.lines[1:]}
    assert marked["gradient not finite"] == BAD
    found = next(label for label in marked if "nonfinite_gradient" in label)
    assert marked[found] == BAD


def test_everything_in_one_picture(history, tmp_path):
    figure = history.plot(tmp_path / "run.png", jaxcheck.diagnose(history))
    assert (tmp_path / "run.png").stat().st_size > 20_000
    titles = [ax.get_title() for ax in figure.axes if ax.get_title()]
    assert titles == [
        "Loss",
        "Norm of the gradient by leaf",
        "Magnitudes of the gradient",
        "Update ratios",
    ]


def test_nothing_is_left_open(history):
    import matplotlib.pyplot as plt

    before = plt.get_fignums()
    plots.loss(history)
    history.plot()
    assert plt.get_fignums() == before


def test_clear_errors(history, tmp_path):
    with pytest.raises(InvalidInputError, match="history.add"):
        plots.loss(History(PARAMS))
    with pytest.raises(InvalidInputError, match="'gradient', 'update', 'parameter'"):
        plots.norms(history, "loss")
    with pytest.raises(InvalidInputError, match="fits no leaf"):
        plots.depth(history, "['layers']")
    with pytest.raises(InvalidInputError, match="none of 0 to 39"):
        plots.depth(history, steps=(40,))
    with pytest.raises(InvalidInputError, match="must be a name"):
        plots.histograms(history, "layer_1")
    history.to_json(tmp_path / "run.json")
    bare = History.from_json(tmp_path / "run.json")  # which has no statistics
    with pytest.raises(InvalidInputError, match="no statistics"):
        plots.histograms(bare)
