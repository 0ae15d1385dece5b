"""Which use of a leaf contributes how much of its gradient: the values.

How they read is in ``flow_text``. A flow is a description and has no verdict.
"""

from __future__ import annotations

import dataclasses

from jaxcheck.reports.values import EquationSite, Record


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class SourceLine:
    """A line of the user's program.

    Attributes:
        file: source file.
        line: line number, counted from 1.
        column: where the expression begins in it, counted from 1.
        function: name of the function around it.
        text: the line itself, without indentation; empty if the file cannot be read.
    """

    file: str
    line: int
    column: int
    function: str
    text: str = ""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class FlowUse:
    """One place where a leaf is used, and what flows back through it.

    Attributes:
        site: the equation that uses the leaf. Its ``file`` and ``line`` are those of
            the innermost line that tells this use from the others of the same leaf: of
            two calls of one function, the line of the call.
        calls: the lines that lead to the equation, innermost first.
        share: projection of the contribution c on the leaf's gradient g, <c, g>/<g, g>.
            The shares of a leaf add up to 1; one is negative if it works against the
            others. None if g is zero.
        norm: 2-norm of the contribution.
        zero: whether it is zero up to rounding.
        count: how many equations stand here that no line tells apart (a Python loop).
        stopped: the stop_gradient that the leaf passed on the way, if any.
    """

    site: EquationSite
    calls: tuple[SourceLine, ...]
    share: float | None
    norm: float
    zero: bool
    count: int = 1
    stopped: EquationSite | None = None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class FlowLeaf:
    """One leaf, and where its gradient comes from.

    Attributes:
        path: where the leaf is, as ``jax.tree_util.keystr`` writes it.
        shape: shape of the leaf.
        dtype: dtype of the leaf as the program sees it.
        norm: 2-norm of its gradient.
        zero: whether it is zero, up to the rounding of what cancels.
        uses: the places where it is used, by share, the largest first.
    """

    path: str
    shape: tuple[int, ...]
    dtype: str
    norm: float
    zero: bool
    uses: tuple[FlowUse, ...]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, repr=False, eq=False)
class FlowReport(Record):
    """The answer to "where does this gradient come from?".

    Attributes:
        leaves: one entry a differentiable leaf, in the order of the tree.
        precision: ``"float64"``, or ``"native"`` where the loss cannot be read so.
        call: the call, as text.
        dtypes: the floating dtypes of the parameters.
        device: where it ran.
        seconds: wall time.
    """

    leaves: tuple[FlowLeaf, ...]
    precision: str = "float64"
    call: str = "jaxcheck.gradient_flow(loss_fn, params)"
    dtypes: tuple[str, ...] = ()
    device: str = "cpu"
    seconds: float = 0.0

    def __str__(self) -> str:
        from jaxcheck.places.flow.text import as_text

        return as_text(self)

    def __repr__(self) -> str:
        from jaxcheck.places.flow.text import as_line

        return as_line(self)
