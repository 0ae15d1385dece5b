"""What is planted in training runs, what has to be said of it, and healthy runs."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from benchmarks.health_runs import AT, STEPS, Plan, at_leaf

# A step whose loss is among the last 64, those that a state keeps.
LATE = 120


@dataclasses.dataclass(frozen=True)
class Fault:
    """Something planted, and what has to be said of it.

    Attributes:
        plan: the run.
        rule: the finding that names it.
        or_rules: others that name it as well.
        steps: first and last step that may be named as the first; None for any.
        leaf: whether the leaf has to be named.
        also: findings that follow from it.
    """

    plan: Plan
    rule: str
    steps: tuple[int, int] | None = (AT, AT)
    leaf: bool = True
    also: tuple[str, ...] = ()
    or_rules: tuple[str, ...] = ()

    @property
    def rules(self) -> tuple[str, ...]:
        """All that name it."""
        return (self.rule, *self.or_rules)

    def is_named_by(self, finding: Any, leaf: str) -> bool:
        """Whether a finding says what was planted, in or below ``leaf``, and when."""
        first, last = self.steps or (0, STEPS)
        when = self.steps is None or (
            finding.step is not None and first <= finding.step <= last
        )
        where = not self.leaf or (finding.leaf or "").startswith(leaf)
        return finding.rule in self.rules and when and where


def _element(value: float) -> Callable[[Any, str, Any], Any]:
    """One element of one leaf of the gradient, in one step."""

    def spoiled(step: Any, leaf: str, grads: Any) -> Any:
        def change(g: Any) -> Any:
            flat = jnp.ravel(g)
            return (
                flat.at[3].set(jnp.where(step == AT, value, flat[3])).reshape(g.shape)
            )

        return at_leaf(leaf, change)(grads)

    return spoiled


def _times(factor: Callable[[Any], Any]) -> Callable[[Any, str, Any], Any]:
    """The whole gradient times a factor of the step."""
    return lambda step, leaf, grads: jax.tree.map(lambda g: factor(step) * g, grads)


def _leaf_times(factor: Callable[[Any], Any]) -> Callable[[Any, str, Any], Any]:
    return lambda step, leaf, grads: at_leaf(leaf, lambda g: factor(step) * g)(grads)


def _moment(step: Any, leaf: str, carry: Any) -> Any:
    """One element of Adam's first moment is lost after the step before ``AT``."""

    def change(m: Any) -> Any:
        flat = jnp.ravel(m)
        flat = flat.at[3].set(jnp.where(step == AT - 1, jnp.nan, flat[3]))
        return flat.reshape(m.shape)

    params, state = carry
    adam, *rest = state.inner
    adam = adam._replace(mu=at_leaf(leaf, change)(adam.mu))
    return params, state._replace(inner=(adam, *rest))


def _jump(step: Any, leaf: str, carry: Any) -> Any:
    """All parameters are four times as large after the step before ``LATE``."""
    params, state = carry
    factor = jnp.where(step == LATE - 1, 4.0, 1.0)
    return jax.tree.map(lambda p: factor * p, params), state


def _guarded() -> Any:
    return optax.apply_if_finite(optax.adam(2e-3), 5)


NAN = ("nonfinite_parameter", "poisoned_optimizer", "nonfinite_loss")
FAULTS: dict[str, Fault] = {
    "NaN in one element": Fault(
        Plan(_guarded, gradients=_element(jnp.nan)), "nonfinite_gradient"
    ),
    "infinity in one element": Fault(
        Plan(_guarded, gradients=_element(jnp.inf)), "nonfinite_gradient"
    ),
    "NaN that goes on into parameters": Fault(
        Plan(gradients=_element(jnp.nan)), "nonfinite_gradient", also=NAN
    ),
    "a moment of Adam that is NaN": Fault(
        Plan(carry=_moment), "poisoned_optimizer", also=("nonfinite_gradient", *NAN)
    ),
    "a learning rate that is far too low, on one batch": Fault(
        Plan(lambda: optax.sgd(1e-6), one_batch=True),
        "flat_loss",
        steps=(0, 0),
        leaf=False,
    ),
    "slow explosion": Fault(
        Plan(
            lambda: optax.sgd(1e-9),
            gradients=_times(lambda k: 1.15 ** jnp.maximum(k - 30, 0)),
        ),
        "exploding",
        steps=(45, 85),
        leaf=False,
        also=("vanishing", "flat_loss"),
    ),
    "spike": Fault(
        Plan(gradients=_times(lambda k: jnp.where(k == AT, 100.0, 1.0))),
        "spike",
        leaf=False,
    ),
    "spike of one leaf": Fault(
        Plan(gradients=_leaf_times(lambda k: jnp.where(k == AT, 1000.0, 1.0))), "spike"
    ),
    "a leaf that dies": Fault(
        Plan(gradients=_leaf_times(lambda k: jnp.where(k >= AT, 0.0, 1.0))),
        "zero_gradient",
    ),
    "a leaf without gradient": Fault(
        Plan(gradients=_leaf_times(lambda k: 0.0)), "zero_gradient", steps=(0, 0)
    ),
    "a leaf whose gradient vanishes": Fault(
        Plan(
            lambda: optax.sgd(0.05), gradients=_leaf_times(lambda k: jnp.float32(1e-7))
        ),
        "vanishing",
        steps=None,
    ),
    "a leaf that is frozen": Fault(
        Plan(updates=lambda leaf, updates: at_leaf(leaf, jnp.zeros_like)(updates)),
        "never_updated",
        steps=(0, 0),
    ),
    "updates that bfloat16 loses": Fault(
        Plan(lambda: optax.sgd(1e-5), cast=jnp.bfloat16),
        "lost_updates",
        steps=None,
        leaf=False,
        also=("flat_loss", "vanishing"),
    ),
    "always clipped": Fault(
        Plan(lambda: optax.chain(optax.clip_by_global_norm(1e-3), optax.adam(2e-3))),
        "always_clipped",
        steps=(0, 0),
        leaf=False,
    ),
    "a learning rate that is too high": Fault(
        Plan(lambda: optax.lion(0.2)),
        "update_ratio",
        steps=None,
        leaf=False,
        also=("spike", "exploding", "vanishing"),
        or_rules=("rising_loss", "jumping_loss", "zero_gradient"),
    ),
    "a gradient of the wrong sign": Fault(
        Plan(gradients=_times(lambda k: -1.0)),
        "rising_loss",
        steps=None,
        leaf=False,
        also=("exploding", "spike", "jumping_loss"),
    ),
    "weights that jump": Fault(
        Plan(carry=_jump),
        "jumping_loss",
        steps=(LATE, LATE),
        leaf=False,
        also=("spike", "exploding", "rising_loss"),
    ),
}

WARM = optax.warmup_cosine_decay_schedule(0.0, 5e-3, 20, STEPS)
RESTARTS = optax.sgdr_schedule(
    [
        {
            "init_value": 5e-4,
            "peak_value": 5e-3,
            "decay_steps": 50,
            "warmup_steps": 5,
            "end_value": 1e-4,
        }
    ]
    * 3
)
HEALTHY: dict[str, Plan] = {
    "Adam": Plan(),
    "AdamW, warm-up and cosine": Plan(lambda: optax.adamw(WARM)),
    "restarts": Plan(lambda: optax.adam(RESTARTS)),
    "momentum": Plan(lambda: optax.sgd(2e-2, momentum=0.9)),
    "MultiSteps": Plan(lambda: optax.MultiSteps(optax.adam(3e-3), 4)),
    "clipped now and then": Plan(
        lambda: optax.chain(optax.clip_by_global_norm(2.0), optax.adam(2e-3))
    ),
    "Lion": Plan(lambda: optax.lion(3e-4)),
}

# Of deep networks, by gradient descent: an optimizer that divides by its moments makes
# a profile harmless.
PROFILE = "depth_profile"


def profile(rate: float) -> Fault:
    """A gradient that fades or grows from layer to layer."""
    return Fault(
        Plan(lambda: optax.sgd(rate)),
        PROFILE,
        steps=(0, STEPS - 64),
        also=("vanishing", "flat_loss"),
    )


HEALTHY_DEEP: dict[str, Plan] = {
    "momentum": Plan(lambda: optax.sgd(5e-3, momentum=0.9)),
    "Adam": Plan(lambda: optax.adam(1e-3)),
}
