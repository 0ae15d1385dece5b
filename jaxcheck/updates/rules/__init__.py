"""Closed forms of optimizers in float64, one family a file."""

from collections.abc import Callable, Mapping

from jaxcheck.updates.rules.adafactor import adafactor
from jaxcheck.updates.rules.adagrad import adadelta, adagrad, rmsprop, sm3
from jaxcheck.updates.rules.adam import adam, adamw
from jaxcheck.updates.rules.adam_relatives import adamax, adamaxw, amsgrad, radam
from jaxcheck.updates.rules.averaging import (
    madgrad,
    schedule_free_adamw,
    schedule_free_sgd,
)
from jaxcheck.updates.rules.belief import acprop, adabelief, yogi
from jaxcheck.updates.rules.galore import galore
from jaxcheck.updates.rules.layerwise import fromage, lamb, lars, novograd
from jaxcheck.updates.rules.momentum import (
    optimistic_adam,
    optimistic_adam_v2,
    optimistic_gradient_descent,
    sgd,
)
from jaxcheck.updates.rules.muon import muon
from jaxcheck.updates.rules.nadam import nadam, nadamw
from jaxcheck.updates.rules.noise import (
    add_noise,
    differentially_private_aggregate,
    dpsgd,
    noisy_sgd,
)
from jaxcheck.updates.rules.parameter_free import cocob, dog, dowg
from jaxcheck.updates.rules.polyak import momo, momo_adam, polyak_sgd
from jaxcheck.updates.rules.prodigy import dadapt_adamw, prodigy
from jaxcheck.updates.rules.rule import Rule
from jaxcheck.updates.rules.second_order import lbfgs, sophia
from jaxcheck.updates.rules.signs import lion, rprop, sign_sgd, signum
from jaxcheck.updates.rules.successors import adan, ademamix, adopt, simplified_ademamix
from jaxcheck.updates.rules.survival import apply_if_finite, zero_nans
from jaxcheck.updates.rules.transformations import (
    adaptive_grad_clip,
    add_decayed_weights,
    chain,
    clip,
    clip_by_block_rms,
    clip_by_global_norm,
    ema,
    normalize_by_update_norm,
    scale,
    scale_by_learning_rate,
    trace,
)
from jaxcheck.updates.rules.wrappers import lookahead, mechanize, multi_steps

__all__ = [
    "BY_NAME",
    "Rule",
    "acprop",
    "adabelief",
    "adadelta",
    "adafactor",
    "adagrad",
    "adam",
    "adamax",
    "adamaxw",
    "adamw",
    "adan",
    "adaptive_grad_clip",
    "add_decayed_weights",
    "add_noise",
    "ademamix",
    "adopt",
    "amsgrad",
    "apply_if_finite",
    "chain",
    "clip",
    "clip_by_block_rms",
    "clip_by_global_norm",
    "cocob",
    "dadapt_adamw",
    "differentially_private_aggregate",
    "dog",
    "dowg",
    "dpsgd",
    "ema",
    "fromage",
    "galore",
    "lamb",
    "lars",
    "lbfgs",
    "lion",
    "lookahead",
    "madgrad",
    "mechanize",
    "momo",
    "momo_adam",
    "multi_steps",
    "muon",
    "nadam",
    "nadamw",
    "noisy_sgd",
    "normalize_by_update_norm",
    "novograd",
    "optimistic_adam",
    "optimistic_adam_v2",
    "optimistic_gradient_descent",
    "polyak_sgd",
    "prodigy",
    "radam",
    "rmsprop",
    "rprop",
    "scale",
    "scale_by_learning_rate",
    "schedule_free_adamw",
    "schedule_free_sgd",
    "sgd",
    "sign_sgd",
    "signum",
    "simplified_ademamix",
    "sm3",
    "sophia",
    "trace",
    "yogi",
    "zero_nans",
]

BY_NAME: Mapping[str, Callable[..., Rule]] = {
    factory.__name__: factory
    for factory in (
        acprop,
        adabelief,
        adadelta,
        adafactor,
        adagrad,
        adam,
        adamax,
        adamaxw,
        adamw,
        adan,
        adaptive_grad_clip,
        add_decayed_weights,
        add_noise,
        ademamix,
        adopt,
        amsgrad,
        apply_if_finite,
        chain,
        clip,
        clip_by_block_rms,
        clip_by_global_norm,
        cocob,
        dadapt_adamw,
        differentially_private_aggregate,
        dog,
        dowg,
        dpsgd,
        ema,
        fromage,
        galore,
        lamb,
        lars,
        lbfgs,
        lion,
        lookahead,
        madgrad,
        mechanize,
        momo,
        momo_adam,
        multi_steps,
        muon,
        nadam,
        nadamw,
        noisy_sgd,
        normalize_by_update_norm,
        novograd,
        optimistic_adam,
        optimistic_adam_v2,
        optimistic_gradient_descent,
        polyak_sgd,
        prodigy,
        radam,
        rmsprop,
        rprop,
        scale,
        scale_by_learning_rate,
        schedule_free_adamw,
        schedule_free_sgd,
        sgd,
        sign_sgd,
        signum,
        simplified_ademamix,
        sm3,
        sophia,
        trace,
        yogi,
        zero_nans,
    )
}
"""Every rule by the name of its optimizer, e.g. ``BY_NAME["adamw"]``."""
