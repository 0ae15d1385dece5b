"""Rules against torch.optim in float64, where torch has the optimizer."""

import jax
import numpy as np
import pytest

from jaxcheck.updates import rules
from tests.test_rules import TREE, furthest, hard_gradients

torch = pytest.importorskip("torch")


@pytest.fixture(autouse=True)
def _float64_everywhere():
    """Else torch keeps its counts, and products of momenta, in float32."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


def torch_runs(make, gradients):
    """The updates of torch's optimizer, and the parameters before them."""
    params = {k: torch.tensor(v, dtype=torch.float64) for k, v in TREE.items()}
    optimizer = make(list(params.values()))
    for g in gradients:
        before = {k: v.numpy().copy() for k, v in params.items()}
        for name, p in params.items():
            p.grad = torch.tensor(g[name], dtype=torch.float64)
        optimizer.step()
        yield before, {k: v.numpy() - before[k] for k, v in params.items()}


# Learning rates are large, so that rounding of the parameters does not hide updates;
# what is left of it is allowed for.
PAIRS = {
    "sgd": (rules.sgd(10.0), ("SGD", {"lr": 10.0})),
    "nesterov": (
        rules.sgd(10.0, momentum=0.9, nesterov=True),
        ("SGD", {"lr": 10.0, "momentum": 0.9, "nesterov": True}),
    ),
    "dampening": (
        rules.sgd(10.0, momentum=0.9, dampening=0.3),
        ("SGD", {"lr": 10.0, "momentum": 0.9, "dampening": 0.3}),
    ),
    "adam": (
        rules.adam(10.0, b1=0.8, b2=0.95, eps=1e-3),
        ("Adam", {"lr": 10.0, "betas": (0.8, 0.95), "eps": 1e-3}),
    ),
    "adam, L2": (
        rules.adamw(10.0, eps=1e-3, weight_decay=0.1, decay="in the gradient"),
        ("Adam", {"lr": 10.0, "eps": 1e-3, "weight_decay": 0.1}),
    ),
    "adamw": (
        rules.adamw(10.0, eps=1e-3, weight_decay=0.1),
        ("AdamW", {"lr": 10.0, "eps": 1e-3, "weight_decay": 0.1}),
    ),
    "amsgrad": (
        rules.amsgrad(10.0, eps=1e-3, b2=0.9, maximum="before correction"),
        ("Adam", {"lr": 10.0, "eps": 1e-3, "betas": (0.9, 0.9), "amsgrad": True}),
    ),
    "nadam": (
        rules.nadam(10.0, eps=1e-3, momentum_decay=4e-3),
        ("NAdam", {"lr": 10.0, "eps": 1e-3}),
    ),
    "nadam, Keras's schedule": (
        rules.nadam(10.0, eps=1e-3, momentum_decay=1.0),
        ("NAdam", {"lr": 10.0, "eps": 1e-3, "momentum_decay": 1.0}),
    ),
    "radam": (
        rules.radam(10.0, eps=1e-3, eps_placement="before correction"),
        ("RAdam", {"lr": 10.0, "eps": 1e-3}),
    ),
    "adamax": (
        rules.adamax(10.0, eps=1e-3),
        ("Adamax", {"lr": 10.0, "eps": 1e-3}),
    ),
    "adamax, L2": (
        rules.adamaxw(10.0, eps=1e-3, weight_decay=0.1, decay="in the gradient"),
        ("Adamax", {"lr": 10.0, "eps": 1e-3, "weight_decay": 0.1}),
    ),
    "adagrad": (
        rules.adagrad(10.0, 0.0, eps=1e-3, eps_placement="outside"),
        ("Adagrad", {"lr": 10.0, "eps": 1e-3}),
    ),
    "adadelta": (
        rules.adadelta(10.0, eps=1e-3, weight_decay=0.1),
        ("Adadelta", {"lr": 10.0, "eps": 1e-3, "weight_decay": 0.1}),
    ),
    "rmsprop": (
        rules.rmsprop(
            10.0, 0.9, 1e-3, eps_in_sqrt=False, momentum=0.8, rate_in_trace=False
        ),
        ("RMSprop", {"lr": 10.0, "alpha": 0.9, "eps": 1e-3, "momentum": 0.8}),
    ),
    "rmsprop, centered": (
        rules.rmsprop(10.0, 0.9, 1e-3, eps_in_sqrt=False, centered=True),
        ("RMSprop", {"lr": 10.0, "alpha": 0.9, "eps": 1e-3, "centered": True}),
    ),
    "rprop": (
        rules.rprop(10.0, min_step_size=1.0, max_step_size=30.0),
        ("Rprop", {"lr": 10.0, "step_sizes": (1.0, 30.0)}),
    ),
    "adafactor": (
        rules.adafactor(
            2.0,
            min_dim_size_to_factor=1,
            weight_decay_rate=0.1,
            relative_step=True,
            decay="times learning rate",
        ),
        ("Adafactor", {"lr": 2.0, "weight_decay": 0.1, "eps": (1e-15, 1e-3)}),
    ),
}


@pytest.mark.parametrize("pair", sorted(PAIRS))
def test_agrees_with_torch(pair):
    rule, (name, settings) = PAIRS[pair]
    gradients, state = hard_gradients(TREE), None
    for step, (params, expected) in enumerate(
        torch_runs(lambda p: getattr(torch.optim, name)(p, **settings), gradients)
    ):
        updates, state = rule(gradients[step], params, state, step)
        after = jax.tree.map(np.add, params, updates)
        size = max(float(abs(x).max()) for x in jax.tree.leaves((params, after)))
        for ours, theirs in zip(
            jax.tree.leaves(updates), jax.tree.leaves(expected), strict=True
        ):
            np.testing.assert_allclose(ours, theirs, rtol=1e-9, atol=4e-16 * size)


def test_rprop_of_torch_is_not_one_step_late():
    rule = rules.rprop(10.0, stale=True)
    gradients = hard_gradients(TREE)
    _, expected = next(torch_runs(lambda p: torch.optim.Rprop(p, lr=10.0), gradients))
    updates, _ = rule(gradients[0], TREE, None, 0)
    assert furthest(updates, expected) == 1.0


@pytest.mark.parametrize(("size", "left_out"), [(1.0, 0), (1e-5, 2)])
def test_lbfgs_agrees_with_torch(size, left_out):
    """Also where pairs of little curvature are left out."""
    rule = rules.lbfgs(0.5, first_norm=1, least_curvature=1e-10)
    scales = np.array([1.0, 3.0, 0.5, 2.0])
    x, state = size * np.array([1.0, -2.0, 3.0, -1.0]), None
    p = torch.tensor(x)
    optimizer = torch.optim.LBFGS(
        [p], lr=0.5, max_iter=1, tolerance_grad=0.0, tolerance_change=0.0
    )

    def closure():
        p.grad = torch.tensor(scales) * p.detach() + torch.sin(p.detach())
        return torch.tensor(1.0)

    for step in range(6):
        optimizer.step(closure)
        updates, state = rule(scales * x + np.sin(x), x, state, step)
        x = x + updates
        np.testing.assert_allclose(x, p.numpy(), rtol=1e-10)
    assert state["pairs"] == step - left_out
