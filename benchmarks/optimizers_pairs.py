"""The optimizers that optax and torch both have, and where the two differ.

One list, in the order of torch. An optimizer is written as the text of the table, and
that text is what runs: names are those of ``optax``, ``optax.contrib`` and
``torch.optim``, and the functions of ``benchmarks.optimizers_torch``. What is said of a
pair that differs is shown by the pairs around it, which differ in that alone.
"""

from __future__ import annotations

import dataclasses

Shapes = dict[str, tuple[int, ...]]

VECTORS: Shapes = {"bias": (6,), "kernel": (8, 6), "scale": ()}
MATRICES: Shapes = {"kernel": (8, 6), "output": (3, 8)}
SQUARE: Shapes = {"kernel": (6, 6)}


@dataclasses.dataclass(frozen=True)
class Pair:
    """An optimizer of optax and one of torch.

    Attributes:
        optax: as it is written in Python.
        torch: likewise.
        why: they differ; empty if they agree.
        shapes: of the parameters.
        size: of the parameters. They are small by default, so that updates are not lost
            in the parameters that torch adds them to.
        complex: whether the parameters are.
        quadratic: whether the gradients are those of a quadratic, along the way that
            the optimizer of optax takes, instead of hard ones.
    """

    optax: str
    torch: str
    why: str = ""
    shapes: Shapes = dataclasses.field(default_factory=lambda: VECTORS)
    size: float = 1e-6
    complex: bool = False
    quadratic: bool = False


PAIRS = (
    # ---- SGD
    Pair("sgd(0.1)", "SGD(lr=0.1)"),
    Pair("chain(scale(-1.0), sgd(0.1))", "SGD(lr=0.1, maximize=True)"),
    Pair(
        "chain(add_decayed_weights(0.1), sgd(0.1))",
        "SGD(lr=0.1, weight_decay=0.1)",
        size=1.0,
    ),
    Pair("sgd(0.1, momentum=0.9)", "SGD(lr=0.1, momentum=0.9)"),
    Pair(
        "sgd(0.1, momentum=0.9, nesterov=True)",
        "SGD(lr=0.1, momentum=0.9, nesterov=True)",
    ),
    Pair(
        "sgd(falling, momentum=0.9)",
        "LambdaLR(SGD(lr=1.0, momentum=0.9), falling)",
    ),
    Pair(
        "sgd(0.1, momentum=0.9)",
        "SGD(lr=0.1, momentum=0.9, dampening=0.5)",
        "optax has no dampening, and torch does not damp the first gradient",
    ),
    Pair(
        "chain(scale_by_schedule(first_twice), sgd(0.05, momentum=0.9))",
        "SGD(lr=0.1, momentum=0.9, dampening=0.5)",
    ),
    Pair(
        "chain(clip(0.5), sgd(0.1))",
        "clip_grad_value_(SGD(lr=0.1), 0.5)",
    ),
    Pair(
        "chain(clip_by_global_norm(0.001), sgd(0.1))",
        "clip_grad_norm_(SGD(lr=0.1), 0.001)",
        "torch divides by the norm plus 1e-6, and no setting changes that; it matters "
        "where the norm is small",
        size=0.01,
        quadratic=True,
    ),
    Pair(
        "chain(clip_by_global_norm(1000.0), sgd(0.1))",
        "clip_grad_norm_(SGD(lr=0.1), 1000.0)",
        size=1e4,
        quadratic=True,
    ),
    # ---- Adam
    Pair("adam(0.1)", "Adam(lr=0.1)"),
    Pair(
        "adam(0.1, b1=0.8, b2=0.95, eps=0.1)",
        "Adam(lr=0.1, betas=(0.8, 0.95), eps=0.1)",
    ),
    Pair(
        "chain(add_decayed_weights(0.1), adam(0.1))",
        "Adam(lr=0.1, weight_decay=0.1)",
        size=1.0,
    ),
    Pair(
        "adam(0.1, eps_root=0.01)",
        "Adam(lr=0.1)",
        "torch adds nothing inside the square root; only eps_root=0 agrees",
    ),
    Pair(
        "amsgrad(0.1)",
        "Adam(lr=0.1, amsgrad=True)",
        "optax takes the maximum of corrected second moments, torch that of "
        "uncorrected ones, which it then corrects",
    ),
    Pair(
        "amsgrad(0.1, bias_correction_nu=False)",
        "Adam(lr=0.1, amsgrad=True)",
        "the maximum is the same, but optax leaves it uncorrected",
    ),
    Pair(
        "chain(scale_by_amsgrad(eps=1e-30, bias_correction_nu=False), "
        "scale_by_schedule(root_of_bias), scale(-0.1))",
        "Adam(lr=0.1, eps=1e-30, amsgrad=True)",
    ),
    Pair(
        "adam(0.1)",
        "Adam(lr=0.1)",
        "optax averages the squared modulus of the gradient, torch the squares of its "
        "real and of its imaginary part, each for itself",
        complex=True,
    ),
    Pair("split_real_and_imaginary(adam(0.1))", "Adam(lr=0.1)", complex=True),
    # ---- AdamW
    Pair(
        "adamw(0.1)",
        "AdamW(lr=0.1)",
        "the default weight decay is 1e-4 in optax, 1e-2 in torch",
        size=1.0,
    ),
    Pair("adamw(0.1, weight_decay=0.01)", "AdamW(lr=0.1)", size=1.0),
    Pair(
        "adamw(falling, weight_decay=0.1)",
        "LambdaLR(AdamW(lr=1.0, weight_decay=0.1), falling)",
        size=1.0,
    ),
    # ---- NAdam
    Pair(
        "nadam(0.1)",
        "NAdam(lr=0.1)",
        "torch's momentum grows with the step, β₁(1 − 0.96^(tψ) / 2) with ψ = 0.004",
    ),
    Pair(
        "nadam(0.1)",
        "NAdam(lr=0.1, momentum_decay=0.0)",
        "with ψ = 0 torch's momentum is β₁ / 2",
    ),
    Pair("nadam(0.1)", "NAdam(lr=0.1, momentum_decay=1e6)"),
    Pair(
        "nadamw(0.1, weight_decay=0.1)",
        "NAdam(lr=0.1, weight_decay=0.1, momentum_decay=1e6, "
        "decoupled_weight_decay=True)",
        size=1.0,
    ),
    # ---- RAdam
    Pair(
        "radam(0.1)",
        "RAdam(lr=0.1)",
        "torch adds eps before the bias correction, optax after it",
    ),
    Pair("radam(0.1, eps=1e-30)", "RAdam(lr=0.1, eps=1e-30)"),
    # ---- Adamax
    Pair("adamax(0.1)", "Adamax(lr=0.1)"),
    Pair(
        "adamaxw(0.1, weight_decay=0.1)",
        "Adamax(lr=0.1, weight_decay=0.1)",
        "torch adds the decay to the gradient, optax to the update",
        size=1.0,
    ),
    Pair(
        "chain(add_decayed_weights(0.1), adamax(0.1))",
        "Adamax(lr=0.1, weight_decay=0.1)",
        size=1.0,
    ),
    # ---- Adagrad
    Pair(
        "adagrad(0.1)",
        "Adagrad(lr=0.1)",
        "the sum begins at 0.1 in optax, at 0 in torch; and eps, as below",
    ),
    Pair(
        "adagrad(0.1, initial_accumulator_value=0.0, eps=1e-10)",
        "Adagrad(lr=0.1, eps=1e-10)",
        "eps stands inside the square root in optax, outside in torch",
    ),
    Pair(
        "adagrad(0.1, initial_accumulator_value=0.0, eps=0.0)",
        "Adagrad(lr=0.1, eps=1e-30)",
    ),
    Pair(
        "adagrad(0.1, eps=0.0)",
        "Adagrad(lr=0.1, initial_accumulator_value=0.1, eps=0.0)",
    ),
    Pair(
        "adagrad(inverse, initial_accumulator_value=0.0, eps=0.0)",
        "Adagrad(lr=0.1, lr_decay=0.5, eps=1e-30)",
    ),
    # ---- Adadelta
    Pair(
        "adadelta()",
        "Adadelta()",
        "optax 0.2.8 goes uphill without a learning rate; torch's default is 1",
    ),
    Pair("adadelta(1.0)", "Adadelta()"),
    Pair(
        "adadelta(0.1, rho=0.7, eps=1e-3, weight_decay=0.1)",
        "Adadelta(lr=0.1, rho=0.7, eps=1e-3, weight_decay=0.1)",
        size=1.0,
    ),
    # ---- RMSprop
    Pair(
        "rmsprop(0.1)",
        "RMSprop(lr=0.1)",
        "the default decay is 0.9 in optax, 0.99 in torch; and eps, as below",
    ),
    Pair(
        "rmsprop(0.1, decay=0.99)",
        "RMSprop(lr=0.1)",
        "eps stands inside the square root in optax, outside in torch",
    ),
    Pair("rmsprop(0.1, decay=0.99, eps_in_sqrt=False)", "RMSprop(lr=0.1)"),
    Pair(
        "rmsprop(0.1, decay=0.99, eps_in_sqrt=False, centered=True)",
        "RMSprop(lr=0.1, centered=True)",
    ),
    Pair(
        "rmsprop(0.1, decay=0.99, eps_in_sqrt=False, momentum=0.9)",
        "RMSprop(lr=0.1, momentum=0.9)",
    ),
    Pair(
        "rmsprop(falling, decay=0.99, eps_in_sqrt=False, momentum=0.9)",
        "LambdaLR(RMSprop(lr=1.0, momentum=0.9), falling)",
        "optax multiplies by the learning rate before the momentum, torch after it: "
        "the same only while it is constant",
    ),
    Pair(
        "chain(scale_by_rms(decay=0.99, eps_in_sqrt=False), trace(0.9), "
        "scale_by_learning_rate(falling))",
        "LambdaLR(RMSprop(lr=1.0, momentum=0.9), falling)",
    ),
    # ---- Rprop
    Pair(
        "rprop(0.1)",
        "Rprop(lr=0.1)",
        "optax 0.2.8 returns the update of the step before "
        "([pull request](https://github.com/google-deepmind/optax/pull/1725)), and no "
        "setting changes that; what it stores for the next step agrees",
    ),
    Pair("stored(rprop(0.1))", "Rprop(lr=0.1)"),
    # ---- Adafactor
    Pair(
        "adafactor(0.8)",
        "Adafactor(lr=0.8)",
        "optax factors only where both axes have 128 elements or more, torch always; "
        "and the learning rate, as below",
    ),
    Pair(
        "adafactor(0.8, min_dim_size_to_factor=1)",
        "Adafactor(lr=0.8)",
        "torch's learning rate is at most 1 / √t",
    ),
    Pair("adafactor(at_most, min_dim_size_to_factor=1)", "Adafactor(lr=0.8)"),
    Pair(
        "adafactor(at_most, min_dim_size_to_factor=1)",
        "Adafactor(lr=0.8)",
        "of three axes, here 8 × 3 × 6, optax factors the two longest, torch the last "
        "two",
        shapes={"kernel": (8, 3, 6)},
    ),
    Pair(
        "adafactor(at_most, min_dim_size_to_factor=1)",
        "Adafactor(lr=0.8)",
        shapes={"kernel": (3, 8, 6)},
    ),
    Pair(
        "adafactor(at_most, min_dim_size_to_factor=1, weight_decay_rate=0.1)",
        "Adafactor(lr=0.8, weight_decay=0.1)",
        "torch multiplies the decay by the learning rate, optax does not",
        size=1.0,
    ),
    Pair(
        "adafactor(at_most, min_dim_size_to_factor=1, weight_decay_rate=0.08)",
        "Adafactor(lr=0.8, weight_decay=0.1)",
        size=1.0,
    ),
    # ---- ASGD, whose average of the parameters has no part in its updates
    Pair(
        "chain(add_decayed_weights(0.1), sgd(slowing))",
        "ASGD(lr=0.1, lambd=0.1)",
        size=1.0,
    ),
    # ---- Muon
    Pair(
        "muon(0.1)",
        "Muon(lr=0.1)",
        "the default weight decay is 0 in optax, 0.1 in torch; and the rest, as below",
        shapes=MATRICES,
        size=1.0,
    ),
    Pair(
        "muon(0.1, weight_decay=0.1, nesterov=False, consistent_rms=0.2)",
        "Muon(lr=0.1, nesterov=False, adjust_lr_fn='match_rms_adamw')",
        "torch orthogonalizes in bfloat16, whatever the dtype of the parameters, and "
        "no setting changes that",
        shapes=MATRICES,
        size=1.0,
    ),
    Pair(
        "muon(0.1, weight_decay=0.1, nesterov=False, consistent_rms=0.2)",
        "without_bfloat16(Muon(lr=0.1, nesterov=False, "
        "adjust_lr_fn='match_rms_adamw'))",
        shapes=MATRICES,
        size=1.0,
    ),
    Pair(
        "muon(0.1, weight_decay=0.1, nesterov=False)",
        "without_bfloat16(Muon(lr=0.1, nesterov=False))",
        "the factor √max(1, outputs / inputs) takes columns for outputs in optax, rows "
        "in torch",
        shapes=MATRICES,
        size=1.0,
    ),
    Pair(
        "muon(0.1, weight_decay=0.1, nesterov=False)",
        "without_bfloat16(Muon(lr=0.1, nesterov=False))",
        shapes=SQUARE,
        size=1.0,
    ),
    Pair(
        "muon(0.1, weight_decay=0.1)",
        "without_bfloat16(Muon(lr=0.1))",
        "with Nesterov's momentum optax corrects the bias of average and gradient, "
        "torch of neither, and no setting changes that",
        shapes=SQUARE,
        size=1.0,
    ),
    # ---- LBFGS
    Pair(
        "lbfgs(1.0, linesearch=None)",
        "LBFGS(lr=1.0, max_iter=1)",
        "the first step is divided by max(1, ‖g‖₂) in optax, by max(1, ‖g‖₁) in torch",
        size=0.1,
        quadratic=True,
    ),
    Pair(
        "lbfgs(1.0, linesearch=None)",
        "LBFGS(lr=1.0, max_iter=1)",
        size=0.01,
        quadratic=True,
    ),
    Pair(
        "lbfgs(1.0, linesearch=None)",
        "LBFGS(lr=1.0, max_iter=1, tolerance_grad=0.0, tolerance_change=0.0)",
        "torch leaves out pairs of little curvature, y·s ≤ 1e-10, and no setting "
        "changes that",
        size=1e-6,
        quadratic=True,
    ),
)

# Optimizers of torch that are not in the table, and why.
ONLY_TORCH = {"SparseAdam": "takes sparse gradients, which `jax.grad` does not give"}
