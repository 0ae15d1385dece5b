"""Muon: momentum that is orthogonalized, and AdamW for what is no matrix."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import jax
import numpy as np

from jaxcheck.updates.rules.decay import decayed
from jaxcheck.updates.rules.moments import adam_moments, ahead, corrected, moment
from jaxcheck.updates.rules.rule import (
    Array,
    Form,
    Leafwise,
    Masked,
    Rate,
    State,
    rate_at,
    rule,
)

Coefficients = Sequence[float] | Sequence[Sequence[float]]
Preconditioning = Literal["frobenius", "spectral", "aol", "schatten"]

# Jordan's coefficients, and those that optax has under the name of Dion.
JORDAN = (3.4445, -4.7750, 2.0315)
DION = (
    (4.0848, -6.8946, 2.9270),
    (3.9505, -6.3029, 2.6377),
    (3.7418, -5.5913, 2.3037),
    (2.8769, -3.1427, 1.2046),
    (2.8366, -3.0525, 1.2012),
)


@rule(
    "Jordan et al. (2024), Muon: an optimizer for hidden layers in neural networks; "
    "consistent_rms: Liu et al. (2025), Muon is scalable for LLM training, "
    "arXiv:2502.16982",
    {
        "without bias corrections, as in Jordan's code and torch": {
            "bias_correction": False
        },
        "without Nesterov momentum": {"nesterov": False},
        "without a scale of the shape": {"shape_scale": "none"},
        "with rows for outputs in the scale of the shape": {
            "shape_scale": "transposed"
        },
        "with the root mean square of AdamW, 0.2": {"consistent_rms": 0.2},
    },
)
def muon(
    learning_rate: Rate,
    ns_coeffs: Coefficients | Literal["standard", "dion"] = JORDAN,
    ns_steps: int = 5,
    beta: float = 0.95,
    eps: float = 1e-8,
    weight_decay: Rate = 0.0,
    weight_decay_mask: Any = None,
    *,
    nesterov: bool = True,
    adaptive: bool = False,
    preconditioning: Preconditioning = "frobenius",
    adam_b1: float = 0.9,
    adam_b2: float = 0.999,
    adam_eps_root: float = 0.0,
    adam_weight_decay: Rate = 0.0,
    adam_learning_rate: Rate | None = None,
    consistent_rms: float | None = None,
    bias_correction: bool = True,
    shape_scale: Literal["width", "transposed", "none"] = "width",
) -> Form:
    r"""Muon: :math:`-\alpha (s \, \mathrm{NS}(\hat m_t) + \lambda W)` for matrices.

    NS is Newton and Schulz's iteration :math:`X \leftarrow a X + (b A + c A^2) X` with
    :math:`A = X X^T`, from :math:`X = M / (\|M\|_F + \epsilon)`; and :math:`s =
    \sqrt{\max(1, n / m)}` for a matrix of m inputs and n outputs, its rows and columns.
    The average :math:`\hat m_t` looks ahead as in ``nadam``: gradient and average each
    without their bias, which Jordan's code does not do. All that is not of two axes is
    AdamW's, with the same ``eps`` and ``nesterov``.

    Args:
        learning_rate: a number, or a schedule of the step, counted from 0.
        ns_coeffs: a, b, c for all iterations or for each, or the name of such.
        ns_steps: iterations; with coefficients for each, the last of those.
        beta: decay of the average.
        eps: added to the norm.
        weight_decay: :math:`\lambda`, or a schedule of it.
        weight_decay_mask: which matrices decay, see ``adamw``.
        nesterov: whether the average looks ahead.
        adaptive: whether the result is multiplied by its product with the average.
        preconditioning: what the iteration begins from: the matrix over its
            ``"frobenius"`` or ``"spectral"`` norm, or rescaled in the first iteration
            by rows (``"aol"``) or by :math:`\|A\|_F` (``"schatten"``).
        adam_b1: b1 of AdamW.
        adam_b2: b2 of AdamW.
        adam_eps_root: eps_root of AdamW.
        adam_weight_decay: weight decay of AdamW.
        adam_learning_rate: that of AdamW; None for the same.
        consistent_rms: if given, :math:`s` is :math:`\sqrt{\max(m, n)}` times it.
        bias_correction: whether averages are corrected.
        shape_scale: ``"width"`` for s as above, ``"transposed"`` for
            :math:`\sqrt{\max(1, m / n)}`, as for torch's layout, or ``"none"`` for 1.

    Example:
        >>> import numpy as np
        >>> step = muon(0.1, ns_coeffs=(1.5, -0.5, 0.0), ns_steps=30)
        >>> step(np.diag([2.0, -3.0]), np.zeros((2, 2)), None, 0)[0].round(6) + 0.0
        array([[-0.1,  0. ],
               [ 0. ,  0.1]])
    """
    coefficients = _each_step(ns_coeffs, ns_steps)

    def scale(rows: int, columns: int) -> float:
        if consistent_rms is not None:
            return consistent_rms * max(rows, columns) ** 0.5
        if shape_scale == "none":
            return 1.0
        ratio = columns / rows if shape_scale == "width" else rows / columns
        return max(1.0, ratio) ** 0.5

    def init(p: Array) -> State:
        return {"mu": np.zeros_like(p)}

    def update(g: Array, p: Array, s: State, t: int) -> tuple[Array, State]:
        del p
        mu = moment(beta, s["mu"], g)
        first = corrected(mu, beta, t) if bias_correction else mu
        if nesterov:
            first = ahead(mu, g, beta, t, bias_correction)
        u = orthogonalized(first, coefficients, preconditioning, eps)
        if adaptive:
            u = np.sum(np.conj(first) * u) * u
        return -rate_at(learning_rate, t) * scale(*g.shape) * u, {"mu": mu}

    adam_rate = learning_rate if adam_learning_rate is None else adam_learning_rate
    adam = decayed(
        adam_moments(
            adam_rate,
            adam_b1,
            adam_b2,
            eps,
            adam_eps_root,
            nesterov,
            True,
            "outside",
        ),
        adam_rate,
        adam_weight_decay,
        "times learning rate",
    )
    matrix = decayed(
        Leafwise(init, update),
        learning_rate,
        weight_decay,
        "times learning rate",
        weight_decay_mask,
    )
    return Masked(_matrices, matrix, adam)


def _matrices(params: Any) -> Any:
    return jax.tree.map(lambda p: np.ndim(p) == 2, params)


def _each_step(
    coefficients: Coefficients | str, steps: int
) -> list[tuple[float, float, float]]:
    if coefficients == "dion":
        coefficients = DION
    elif isinstance(coefficients, str):
        coefficients = JORDAN
    table = np.asarray(coefficients, np.float64)
    rows = [table] * steps if table.ndim == 1 else list(table[-steps:])
    return [(float(a), float(b), float(c)) for a, b, c in rows]


def orthogonalized(
    x: Array,
    coefficients: list[tuple[float, float, float]],
    preconditioning: Preconditioning,
    eps: float,
) -> Array:
    """Newton and Schulz's iteration, which takes singular values to about 1."""
    if x.shape[0] > x.shape[1]:
        return orthogonalized(x.T, coefficients, preconditioning, eps).T
    if preconditioning == "frobenius":
        x = x / (np.linalg.norm(x) + eps)
    elif preconditioning == "spectral":
        x = x / (_largest(x) + eps)
    elif preconditioning == "aol":
        sums = np.sum(np.abs(x @ np.conj(x.T)), axis=-1, keepdims=True)
        x = x / np.sqrt(np.maximum(sums, 1e-8))
    else:
        x = x / np.sqrt(np.maximum(np.linalg.norm(x @ np.conj(x.T)), 1e-8))
    for a, b, c in coefficients:
        gram = x @ np.conj(x.T)
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x


def _largest(x: Array) -> Array:
    """The largest singular value. LAPACK may not come back from what is not finite."""
    return np.linalg.norm(x, 2) if np.isfinite(x).all() else np.float64(np.nan)
