"""Variants of rules: each shows, and where optax is wrong one is as optax is."""

import dataclasses

import jax
import pytest

from jaxcheck.updates import rules
from tests.test_rules import (
    ADAM,
    DECAY,
    LR,
    MODERATE,
    SCHEDULE,
    SMALL,
    TOWARDS,
    TREE,
    Case,
    cases,
    extra_arguments,
    furthest,
    hard_gradients,
    run_rule,
    runs,
    schedule,
    tree,
)
from tests.test_rules_optax import CASES


def growing(count):
    return 0.1 * (count + 1)


@dataclasses.dataclass(frozen=True)
class Wrong:
    """Where optax 0.2.8 is wrong: the variant agrees with it, and the rule does not."""

    case: Case
    variant: str

    def __str__(self):
        return f"{self.case} {self.variant}"


def wrongs(name, variant, *settings, **options):
    return [Wrong(case, variant) for case in cases(name, *settings, **options)]


WRONG = [
    *wrongs(
        "adadelta", "going uphill, as optax 0.2.8 does without a learning rate", {}
    ),
    *wrongs(
        "acprop",
        "with the mean of the step before in the second moment",
        LR,
        SCHEDULE | ADAM | DECAY,
    ),
    *wrongs(
        "yogi",
        "with a first moment that begins at 1e-6, as in optax 0.2.8",
        LR,
        SCHEDULE | {"b1": 0.8, "b2": 0.95, "eps": 1e-5},
    ),
    *wrongs(
        "polyak_sgd",
        "with the norm of the scaled gradient, as in optax 0.2.8",
        {"scaling": 0.5},
        {"scaling": schedule, "eps": 0.1},
    ),
    *wrongs(
        "schedule_free_sgd",
        "with the step one count behind the weights, as in optax 0.2.8",
        {"warmup_steps": 3},
        of_params=True,
        tolerance=1e-6,  # optax's warm-up is a float32 number
    ),
    *wrongs(
        "schedule_free_sgd",
        "with the step one count behind the weights, as in optax 0.2.8",
        {"learning_rate": growing},
        of_params=True,
    ),
    *wrongs(
        "schedule_free_adamw",
        "with the step one count behind the weights, as in optax 0.2.8",
        {"warmup_steps": 5, "learning_rate": 0.1},
        of_params=True,
        tolerance=1e-6,
    ),
    *wrongs(
        "prodigy",
        "without a guard against a first gradient of zero, as in optax 0.2.8",
        {},
        gradients={"quiet": 0},
    ),
    *wrongs(
        "dadapt_adamw",
        "without a guard against a first gradient of zero, as in optax 0.2.8",
        {},
        gradients={"quiet": 0},
    ),
    *wrongs(
        "rprop",
        "one step late, as in optax 0.2.8",
        LR,
        LR | {"eta_minus": 0.3, "eta_plus": 1.5, "max_step_size": 0.2},
    ),
]


@pytest.mark.parametrize("wrong", WRONG, ids=str)
def test_the_variant_agrees_where_optax_is_wrong(wrong):
    rule = wrong.case.rule()
    variant = rule.replace(**rule.variants[wrong.variant])
    assert max(runs(wrong.case, variant)) <= wrong.case.tolerance
    assert runs(wrong.case, rule, compare_states=False)[0] > 1e-3


# Settings under which every variant of a rule must show: eps is not lost beside the
# gradients, weights decay, and the learning rate changes.
TELLING = {
    **dict.fromkeys(["adam", "nadam"], SCHEDULE | ADAM),
    **dict.fromkeys(["adamw", "nadamw"], SCHEDULE | ADAM | {"weight_decay": 0.1}),
    **dict.fromkeys(["amsgrad", "radam"], SCHEDULE | ADAM),
    "adamax": SCHEDULE | {"eps": 1e-3},
    "adamaxw": SCHEDULE | {"eps": 1e-3, "weight_decay": 0.1},
    "sgd": SCHEDULE | {"momentum": 0.9},
    "sign_sgd": LR,
    "signum": LR,
    "lion": SCHEDULE | {"b1": 0.5, "b2": 0.6, "weight_decay": 0.1},
    "optimistic_gradient_descent": LR,
    "optimistic_adam": LR | ADAM,
    "optimistic_adam_v2": LR | ADAM,
    "rprop": LR,
    "adagrad": LR | {"eps": 1e-3},
    "adadelta": SCHEDULE | {"eps": 1e-3, "weight_decay": 0.1},
    "rmsprop": SCHEDULE | {"momentum": 0.9, "eps": 1e-3},
    "sm3": LR | {"eps": 1e-3},
    "adafactor": {
        "learning_rate": 2.0,
        "min_dim_size_to_factor": 2,
        "weight_decay_rate": 0.1,
    },
    "lamb": SCHEDULE | ADAM | {"weight_decay": 0.1},
    "lars": SCHEDULE | {"weight_decay": 0.1},
    "novograd": LR | {"weight_decay": 0.1},
    "fromage": LR,
    "adabelief": LR | {"eps": 1e-3, "eps_root": 1e-3},
    "acprop": SCHEDULE | {"eps": 1e-3, "eps_root": 1e-3, "weight_decay": 0.1},
    "yogi": LR,
    "adan": SCHEDULE | {"weight_decay": 0.1},
    "ademamix": SCHEDULE | {"weight_decay": 0.1},
    "simplified_ademamix": SCHEDULE | {"weight_decay": 0.1},
    "adopt": LR | {"b2": 0.9},
}
TELLING |= {
    "clip": {"max_delta": 1.0},
    "clip_by_global_norm": {"max_norm": 1e-6},
    "clip_by_block_rms": {"threshold": 1.0},
    "adaptive_grad_clip": {"clipping": 0.1},
    "add_decayed_weights": {"weight_decay": 0.1},
    "scale": {"step_size": 0.1},
    "lbfgs": LR,
    "sophia": LR | {"weight_decay": 0.1, "update_interval": 3, "gamma": 10.0},
    "muon": LR,
    "galore": SCHEDULE | {"rank": 2, "weight_decay": 0.1},
    "scale_by_learning_rate": LR,
    "trace": {"decay": 0.9},
    "ema": {"decay": 0.9},
    "normalize_by_update_norm": {},
    "polyak_sgd": {"scaling": 0.5, "f_min": 1.0, "max_learning_rate": 0.1},
    "momo": {"weight_decay": 0.1, "lower_bound": 0.9},
    "momo_adam": {"learning_rate": 1.0, "weight_decay": 0.1, "lower_bound": 0.9},
    "dog": {"weight_decay": 0.1, "eps": 1e-3},
    "dowg": {"weight_decay": 0.1},
    "cocob": {"weight_decay": 0.1},
    "prodigy": SCHEDULE | {"weight_decay": 0.1, "estim_lr_coef": 1e6},
    "dadapt_adamw": {"weight_decay": 0.1},
    "schedule_free_sgd": {"warmup_steps": 3, "weight_decay": 0.1},
    "schedule_free_adamw": {"warmup_steps": 3, "weight_decay": 0.1},
    "madgrad": LR | {"weight_decay": 0.1, "eps": 1e-3},
}
WRAPPERS = {"apply_if_finite", "chain", "lookahead", "mechanize", "multi_steps"}
# These are held against optax in tests of their own, with gradients of their own.
OTHERS = {
    "add_noise",
    "differentially_private_aggregate",
    "dpsgd",
    "noisy_sgd",
    "zero_nans",
}
GRADIENTS = {
    "clip_by_global_norm": SMALL,
    "dog": SMALL,
    "dowg": SMALL,
    "momo": MODERATE,
    "momo_adam": MODERATE,
    "polyak_sgd": MODERATE,
    "lbfgs": MODERATE,
    "sophia": MODERATE,
    "muon": MODERATE,
    "galore": MODERATE,
    "prodigy": TOWARDS | {"quiet": 0},
    "dadapt_adamw": TOWARDS | {"quiet": 0},
}
PARAMS = {
    "lamb": jax.tree.map(lambda p: 100.0 * p, TREE),  # norms of more than 10
    **dict.fromkeys(["muon", "galore"], tree(wide=(3, 5), tall=(5, 2), bias=(5,))),
}


def test_every_rule_is_compared():
    compared = {case.name for case in CASES} | {wrong.case.name for wrong in WRONG}
    assert compared == set(rules.BY_NAME) - WRAPPERS - OTHERS


@pytest.mark.parametrize("name", sorted(set(rules.BY_NAME) - WRAPPERS - OTHERS))
def test_every_variant_shows(name):
    rule = rules.BY_NAME[name](**TELLING[name])
    extra = extra_arguments(name, PARAMS.get(name, TREE))
    params = PARAMS.get(name, TREE)
    gradients = hard_gradients(params, **GRADIENTS.get(name, {}))
    plain = run_rule(rule, gradients, params, extra)
    for text, settings in rule.variants.items():
        assert all(rule.settings[name] != value for name, value in settings.items())
        other = run_rule(rule.replace(**settings), gradients, params, extra)
        differs = max(
            furthest(a, b) for (a, _), (b, _) in zip(plain, other, strict=True)
        )
        assert differs > 1e-4, text
