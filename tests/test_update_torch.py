"""Optimizers of torch as rules: what counts of them, and what cannot be run."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import optax
import pytest

from jaxcheck import InvalidInputError, check_update
from jaxcheck.updates.torch_optimizers import torch_reference

torch = pytest.importorskip("torch")

RATE = 0.01


def weight():
    return torch.nn.Parameter(torch.zeros(2, 2))


def check(tx, rule):
    with jax.enable_x64(True):
        params = {"w": jnp.linspace(-1.0, 1.0, 12).reshape(4, 3), "b": jnp.ones(3)}
        return check_update(tx, params, rule=rule)


def test_the_optimizer_that_is_given_stays_as_it_was():
    given = weight()
    optimizer = torch.optim.Adam([given], lr=RATE)
    assert check(optax.adam(RATE), optimizer).passed
    assert torch.equal(given.detach(), torch.zeros(2, 2))
    assert not optimizer.state
    assert torch.get_default_dtype() is torch.float32


def test_the_settings_are_those_of_the_group_and_not_the_defaults():
    optimizer = torch.optim.SGD([{"params": [weight()], "momentum": 0.9}], lr=0.5)
    optimizer.param_groups[0]["lr"] = RATE
    assert check(optax.sgd(RATE, momentum=0.9), optimizer).passed
    assert not check(optax.sgd(0.5), optimizer).passed
    assert not check(optax.sgd(RATE), optimizer).passed


def test_groups_may_not_differ():
    groups = [{"params": [weight()]}, {"params": [weight()], "lr": 2 * RATE}]
    optimizer = torch.optim.SGD(groups, lr=RATE)
    with pytest.raises(
        InvalidInputError, match=r"they differ in lr\. Check each group"
    ):
        check(optax.sgd(RATE), optimizer)
    optimizer.param_groups[1]["lr"] = RATE
    assert check(optax.sgd(RATE), optimizer).passed


@pytest.mark.parametrize("switch", ["capturable", "differentiable", "foreach", "fused"])
def test_which_implementation_runs_is_no_setting(switch):
    optimizer = torch.optim.Adam([weight()], lr=RATE, **{switch: True})
    assert check(optax.adam(RATE), optimizer).passed


@pytest.mark.parametrize(
    ("name", "settings", "said"),
    [
        ("Muon", {}, "cannot be run: Muon only supports 2D parameters"),
        ("SparseAdam", {}, "cannot be run: SparseAdam does not support dense"),
        ("LBFGS", {}, "must ask for one gradient a step; .* Set max_iter=1"),
        (
            "LBFGS",
            {"max_iter": 1, "line_search_fn": "strong_wolfe"},
            "must ask for one gradient a step; .* no line search",
        ),
    ],
)
def test_what_cannot_be_run_is_said(name, settings, said):
    optimizer = getattr(torch.optim, name)([weight()], **settings)
    with pytest.raises(InvalidInputError, match=rf"rule=torch.optim.{name}\(.*{said}"):
        check(optax.sgd(RATE), optimizer)
    assert torch.get_default_dtype() is torch.float32


def test_settings_that_are_in_no_group_are_not_guessed():
    class Scaled(torch.optim.SGD):
        def __init__(self, params, lr, scale=1.0):
            super().__init__(params, lr=lr * scale)

    optimizer = Scaled([weight()], lr=RATE, scale=2.0)
    with pytest.raises(InvalidInputError, match="it has no scale there"):
        check(optax.sgd(2 * RATE), optimizer)


def test_an_error_before_the_step_is_its_owners():
    def fail(optimizer, step):
        raise ValueError(f"no schedule at {step}")

    rule = torch_reference(torch.optim.SGD([weight()], lr=RATE), fail)
    with pytest.raises(ValueError, match="^no schedule at 0$"):
        check(optax.sgd(RATE), rule)
