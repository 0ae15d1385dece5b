"""Hold optimizers of optax against those of torch, and write the table of the docs.

The pairs are those of ``benchmarks.optimizers_pairs``. ``python -m
benchmarks.optimizers_torch`` writes ``docs/optimizers_torch.md``; it needs torch.
"""

from __future__ import annotations

import argparse
import functools
import inspect
import pathlib
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib

from benchmarks import results
from benchmarks.optimizers_pairs import ONLY_TORCH, PAIRS, VECTORS, Pair
from jaxcheck import UpdateReport, check_update
from jaxcheck.updates.torch_optimizers import torch_reference

STEPS = 8
DOCUMENT = pathlib.Path(__file__).parent.parent / "docs" / "optimizers_torch.md"


# ---- what the texts of optax name


def falling(count: Any) -> Any:
    """A learning rate that falls."""
    return 0.1 * 0.8**count


def inverse(count: Any) -> Any:
    """What torch's ``lr_decay=0.5`` makes of 0.1."""
    return 0.1 / (1.0 + 0.5 * count)


def slowing(count: Any) -> Any:
    """What torch's ASGD makes of 0.1, with its exponent 0.75 and ``lambd=0.1``."""
    return 0.1 / (1.0 + 0.1 * 0.1 * count) ** 0.75


def at_most(count: Any) -> Any:
    """0.8, and no more than one over the root of the number of the step."""
    return jnp.minimum(0.8, (count + 1.0) ** -0.5)


def first_twice(count: Any) -> Any:
    """A factor of the gradient: what a dampening of 0.5 leaves undamped, doubled."""
    return jnp.where(count == 0, 2.0, 1.0)


def root_of_bias(count: Any) -> Any:
    """A factor of the update: the root of what corrects a second moment."""
    return jnp.sqrt(1.0 - 0.999 ** (count + 1))


def stored(tx: Any) -> Any:
    """The updates that Rprop keeps for the next step, in this one."""

    def update(gradients: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        _, state = tx.update(gradients, state, params)
        return jax.tree.map(jnp.negative, state[0].prev_updates), state

    return optax.GradientTransformation(tx.init, update)


def optax_of(pair: Pair) -> Any:
    """The transformation of a pair."""
    ours = (falling, inverse, slowing, at_most, first_twice, root_of_bias, stored)
    names = vars(optax) | vars(optax.contrib) | {f.__name__: f for f in ours}
    return eval(pair.optax, names)


# ---- what the texts of torch name


def scheduled(optimizer: Any, schedule: Callable[[int], float]) -> Any:
    """An optimizer of torch under ``torch.optim.lr_scheduler.LambdaLR``."""
    from torch.optim.lr_scheduler import LambdaLR

    scheduler: Any = None

    def before_step(own: Any, step: int) -> None:
        nonlocal scheduler
        if step == 0:
            scheduler = LambdaLR(own, schedule)
        else:
            scheduler.step()

    return torch_reference(optimizer, before_step)


def clipped(clip: Callable[..., Any], optimizer: Any, limit: float) -> Any:
    """An optimizer of torch whose gradients are clipped."""

    def before_step(own: Any, step: int) -> None:
        clip(own.param_groups[0]["params"], limit)

    return torch_reference(optimizer, before_step)


def without_bfloat16(optimizer: Any) -> Any:
    """An optimizer of torch that computes in float64 where it says bfloat16."""
    import torch

    reference = torch_reference(optimizer)

    def rule(*step: Any) -> tuple[Any, Any]:
        # a method today, and `to` after https://github.com/pytorch/pytorch/pull/194664
        with (
            mock.patch.object(torch.Tensor, "bfloat16", torch.Tensor.clone),
            mock.patch.object(torch, "bfloat16", torch.float64),
        ):
            return reference(*step)

    return rule


def torch_of(pair: Pair) -> Any:
    """What the transformation of a pair is held against."""
    import torch

    weight = torch.nn.Parameter(torch.zeros(1, 1))
    clips = (torch.nn.utils.clip_grad_norm_, torch.nn.utils.clip_grad_value_)
    names = {
        **{k: functools.partial(v, [weight]) for k, v in torch_optimizers().items()},
        **{clip.__name__: functools.partial(clipped, clip) for clip in clips},
        "LambdaLR": scheduled,
        "without_bfloat16": without_bfloat16,
        "falling": falling,
    }
    return eval(pair.torch, names)


def torch_optimizers() -> dict[str, Any]:
    """The optimizers of torch by name."""
    import torch

    base = torch.optim.Optimizer
    return {
        name: value
        for name, value in vars(torch.optim).items()
        if isinstance(value, type) and issubclass(value, base) and value is not base
    }


def optax_optimizers() -> dict[str, Any]:
    """The optimizers of optax by name: what takes a learning rate."""

    def of(module: ModuleType) -> dict[str, Any]:
        return {
            name: value
            for name, value in vars(module).items()
            if not name.startswith(("_", "scale_by"))
            and (inspect.isfunction(value) or isinstance(value, functools.partial))
            and any("learning_rate" in k for k in inspect.signature(value).parameters)
        }

    return of(optax) | of(optax.contrib)


# ---- the check of a pair


def parameters(pair: Pair) -> Any:
    """Parameters of the pair, in float64."""
    rng = np.random.default_rng(0)

    def leaf(shape: tuple[int, ...]) -> Any:
        drawn = rng.normal(size=shape)
        return jnp.asarray(
            pair.size * (drawn + 1j * rng.normal(size=shape) if pair.complex else drawn)
        )

    with jax.enable_x64(True):
        return {name: leaf(shape) for name, shape in pair.shapes.items()}


def along_quadratic(tx: Any, params: Any) -> list[Any]:
    """The gradients that a transformation meets on the way down a quadratic."""
    found: list[Any] = []
    with jax.enable_x64(True):
        curvatures = jax.tree.map(
            lambda p: jnp.linspace(0.5, 2.0, p.size).reshape(p.shape), params
        )
        state = tx.init(params)
        for _ in range(STEPS):
            found.append(jax.tree.map(jnp.multiply, curvatures, params))
            updates, state = tx.update(found[-1], state, params)
            params = optax.apply_updates(params, updates)
    return found


def report_of(pair: Pair) -> UpdateReport:
    """Check one pair."""
    tx, params = optax_of(pair), parameters(pair)
    gradients = along_quadratic(tx, params) if pair.quadratic else None
    return check_update(
        tx, params, rule=torch_of(pair), steps=STEPS, gradients=gradients
    )


# ---- the document


def document(reports: Sequence[UpdateReport]) -> str:
    """The table as Markdown.

    Args:
        reports: one for each of ``PAIRS``.
    """
    known = results.environment()["versions"]
    versions = ", ".join(f"{k} {known[k]}" for k in ("jax", "optax", "torch", "numpy"))
    lines = [
        "# optax against torch.optim",
        "",
        f"Written by `python -m benchmarks.optimizers_torch` ({versions}); not to be "
        "edited.",
        "",
        "Each optimizer of optax was held against the one of torch by "
        f"`jaxcheck.check_update(tx, params, rule=torch_optimizer)` over {STEPS} "
        "gradients, both in float64. The number is the largest relative error of an "
        "element of an update, and what was allowed: 1e-9, or what float32 explains, "
        "in which optax computes the decay of Adafactor. Where the two differ it says "
        "why, and the rows beside it show with what settings they agree, if there are "
        "any. An eps of 1e-30 is one so small that its place does not matter.",
        "",
        "Parameters are about 1e-6, so that updates are not lost in what torch adds "
        "them to, or about 1 where they decay. Gradients are the hard ones of "
        "`check_update`, but with `clip_grad_norm_` and `LBFGS` those of a quadratic.",
        "",
        "What is neither optax's nor torch's is in "
        "[optimizers_torch.py](../benchmarks/optimizers_torch.py): the schedules, "
        "and `stored` and `without_bfloat16`, which change the one thing that no "
        "setting does. `LambdaLR` and the clippings are torch's, before each step.",
        "",
        "| optax | torch.optim | on | relative error | agree |",
        "|---|---|---|---|---|",
        *(row(pair, report) for pair, report in zip(PAIRS, reports, strict=True)),
        "",
        "The average of the parameters that `ASGD` keeps has no part in its updates, "
        "and is not compared.",
        "",
        "Only torch has",
        "",
        *(f"- `{name}`, which {why}." for name, why in ONLY_TORCH.items()),
        "",
        "Only optax has",
        "",
        *(f"- `{name}`" for name in sorted(only_optax())),
    ]
    return "\n".join(lines) + "\n"


def row(pair: Pair, report: UpdateReport) -> str:
    """One line of the table."""
    cells = [
        f"`{pair.optax}`",
        f"`{pair.torch}`",
        where(pair),
        f"{report.relative_error:.1e} ({report.tolerance:.0e})",
        answer(pair, report),
    ]
    return f"| {' | '.join(cells)} |"


def where(pair: Pair) -> str:
    """On which parameters and gradients, where they are not the usual ones."""
    told: list[str] = []
    if pair.shapes is not VECTORS:
        told += ["×".join(map(str, shape)) for shape in pair.shapes.values()]
    if pair.complex:
        told.append("complex")
    if pair.quadratic:
        told.append(f"a quadratic, from {pair.size:g}")
    return ", ".join(told)


def answer(pair: Pair, report: UpdateReport) -> str:
    """They agree, or they do not and why."""
    if report.passed:
        return "yes"
    named = f"; the report says {report.matches}" if report.matches else ""
    return f"no: {pair.why}{named}"


def only_optax() -> set[str]:
    """The optimizers of optax that no pair names."""
    named = {pair.optax.partition("(")[0] for pair in PAIRS}
    return optax_optimizers().keys() - named


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n\n")[0])
    parser.add_argument("--output", type=pathlib.Path, default=DOCUMENT)
    options = parser.parse_args(arguments)
    reports: list[UpdateReport] = []
    for pair in PAIRS:
        reports.append(report_of(pair))
        print(row(pair, reports[-1]), flush=True)
    options.output.write_text(document(reports), "utf-8")


if __name__ == "__main__":
    main()
