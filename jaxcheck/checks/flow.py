"""Which use of a leaf contributes how much of its gradient?"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from jaxcheck.checks.spelling import spelled
from jaxcheck.gradients.findings import device_name
from jaxcheck.gradients.options import require_function
from jaxcheck.jaxprs.trace import trace_loss
from jaxcheck.places.flow.flow import flow_of
from jaxcheck.places.flow.report import FlowReport
from jaxcheck.trees import partition, require_differentiable


def gradient_flow(
    loss_fn: Callable[..., Any],
    params: Any,
    *args: Any,
    has_aux: bool = False,
) -> FlowReport:
    r"""Take each leaf's gradient apart by the places where the leaf is used.

    Reverse mode adds up what comes back through every use of a leaf. Here every use
    gets a copy of its own, so that the contributions :math:`c_k` are known one by one:

    .. math:: g = \sum_k c_k, \qquad
              \text{share}_k = \frac{\langle c_k, g \rangle}{\langle g, g \rangle},
              \qquad \sum_k \text{share}_k = 1.

    This shows what no comparison with differences can see: a path that carries gradient
    and should not, such as a target network without ``stop_gradient``. The gradient is
    right then; it is that of the loss as written. To hold what you expect, pass
    ``expect_zero`` to :func:`jaxcheck.check`.

    A use is an equation that does something with the leaf; casts, transposes, slices
    and the like are followed to where the value goes, through ``jit``, ``scan``,
    ``cond``, remat and ``shard_map``. Equations that no line of the program tells apart
    are one use. The contributions are autodiff's; whether its rules are right is not
    asked. Memory grows by one gradient of a leaf for each of its uses.

    Args:
        loss_fn: ``loss_fn(params, *args)`` returns a real floating scalar, or ``(loss,
            aux)`` with ``has_aux``. It must be traceable by ``jax.jit``.
        params: any pytree with at least one floating or complex leaf.
        *args: further arguments, any pytrees; not differentiated.
        has_aux: whether ``loss_fn`` returns ``(loss, aux)``.

    Returns:
        The report: ``report.leaves[k].uses`` holds the uses of a leaf by share.

    Raises:
        InvalidInputError: an argument cannot be used. What ``loss_fn`` itself raises is
            passed on untouched.

    Example:
        >>> import jax.numpy as jnp
        >>> loss_fn = lambda w: jnp.sum(w**2) + 6 * jnp.sum(w)
        >>> report = gradient_flow(loss_fn, jnp.ones(4))
        >>> [(u.site.primitive, u.share) for u in report.leaves[0].uses]
        [('reduce_sum', 0.75), ('integer_pow', 0.25)]
    """
    started = time.perf_counter()
    require_function("gradient_flow", "loss_fn", loss_fn)
    parts = partition(params)
    require_differentiable(parts, "params")
    flow = flow_of(trace_loss(loss_fn, parts, args, has_aux=has_aux))
    words = ["params", *(["*args"] if args else [])]
    options = {"has_aux": has_aux}
    return FlowReport(
        leaves=flow.leaves,
        precision=flow.precision,
        call=spelled(gradient_flow, loss_fn, "loss_fn", words, options),
        dtypes=tuple(sorted({leaf.dtype for leaf in flow.leaves})),
        device=device_name(),
        seconds=time.perf_counter() - started,
    )
