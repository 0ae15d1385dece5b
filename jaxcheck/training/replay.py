"""From a finding to its cause: the gradient, checked where training went wrong."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from typing import Any, ClassVar

import jax
import numpy as np

from jaxcheck.checks import check
from jaxcheck.errors import CheckFailedError, GradientError, InvalidInputError
from jaxcheck.gradients.options import Progress, require_count, require_function
from jaxcheck.gradients.report import GradientReport
from jaxcheck.reports.progress import progress_for
from jaxcheck.reports.values import Report, Verdict
from jaxcheck.states import batches_of, next_batch, params_reader, stepped
from jaxcheck.training.health import HealthFinding, HealthReport
from jaxcheck.training.seen import monitors_in
from jaxcheck.trees import by_path

# Findings whose place is looked for in the whole loss: a NaN spreads.
_BROKEN = ("nonfinite_gradient", "nonfinite_loss")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, repr=False, eq=False)
class ReplayReport(Report):
    """The gradient at the point where a finding was made.

    Attributes:
        verdict: that of ``check``.
        finding: what was replayed.
        step: number of the training step whose parameters and batch were used.
        leaf: path of the leaf that was checked; None for all of them, which is said
            where the finding names a leaf that the parameters do not have.
        reproduced: whether the loss or its gradient is not finite there, for a finding
            that says so; None for others.
        check: the check of the gradient, with the equations that are to blame.
    """

    error_class: ClassVar[type[CheckFailedError]] = GradientError

    verdict: Verdict
    finding: HealthFinding
    step: int
    leaf: str | None
    reproduced: bool | None
    check: GradientReport

    def __str__(self) -> str:
        return f"{self._told()}\n\n{self.check}"

    def __repr__(self) -> str:
        return f"<ReplayReport: {self._told()}>"

    def _told(self) -> str:
        place = "the gradient"
        if self.leaf is not None:
            place += f" of {self.leaf or 'the leaf'}"
        told = f"Step {self.step}, where {self.finding.rule} was found: "
        if (
            self.leaf is None
            and self.finding.leaf is not None
            and not _is_broken(self.finding)
        ):
            told += (
                f"{self.finding.leaf} is not among the parameters, so all of them were "
                "checked; "
            )
        told += f"{place} is "
        if self.reproduced is False:
            return told + (
                "finite here. The run was another one: other batches, keys or "
                "parameters, or a step that does not repeat itself."
            )
        if self.reproduced:
            return told + "not finite."
        if self.passed:
            causes = "; ".join(self.finding.causes)
            why = f" What was found has other causes: {causes}." if causes else ""
            return f"{told}the derivative of the loss.{why}"
        return f"{told}{self.verdict.value}."


def replay(
    report: HealthReport,
    loss_fn: Callable[..., Any],
    state: Any,
    batches: Iterable[Any],
    *,
    train_step: Callable[..., Any] | None,
    finding: HealthFinding | None,
    start: int | None,
    params_of: Callable[[Any], Any] | None,
    progress: Progress,
    options: dict[str, Any],
) -> ReplayReport:
    """See :meth:`jaxcheck.HealthReport.replay`."""
    require_function("replay", "loss_fn", loss_fn)
    finding = _chosen(report, finding)
    accessor = params_of or params_reader("replay", state)
    require_function("replay", "params_of", accessor)
    begun = _begun(state, start, finding)
    step = begun if finding.step is None else finding.step
    state, batch = _reached(train_step, state, batches, begun, step, progress)
    params = accessor(state)
    leaf = None if _is_broken(finding) else _leaf_of(finding, params)
    if leaf is None:
        checked = check(loss_fn, params, batch, progress=progress, **options)
    else:
        checked = _checked_alone(loss_fn, params, batch, leaf, progress, options)
    reproduced = None
    if _is_broken(finding):
        kinds = {f.kind for f in checked.findings}
        reproduced = not kinds.isdisjoint(("nan_loss", "nan_gradient"))
    return ReplayReport(
        verdict=checked.verdict,
        finding=finding,
        step=step,
        leaf=leaf,
        reproduced=reproduced,
        check=checked,
    )


def _is_broken(finding: HealthFinding) -> bool:
    return finding.rule in _BROKEN


def _chosen(report: HealthReport, finding: HealthFinding | None) -> HealthFinding:
    if finding is not None:
        if finding not in report.findings:
            raise InvalidInputError(
                "`HealthReport.replay(finding=...)` must be one of `report.findings`."
            )
        return finding
    if not report.findings:
        raise InvalidInputError(
            "`HealthReport.replay` has nothing to replay: the report has no findings."
        )
    dated = [f for f in report.findings if f.step is not None]
    return (dated or report.findings)[0]


def _begun(state: Any, start: int | None, finding: HealthFinding) -> int:
    """How many steps ``state`` has taken."""
    if start is not None:
        if start != 0:
            require_count("HealthReport.replay", "start", start, ", or 0")
        begun = start
    else:
        monitors = monitors_in(state)
        if len(monitors) == 1:
            begun = int(np.asarray(monitors[0].step))
        elif finding.step is None:
            begun = 0
        else:
            raise InvalidInputError(
                "`HealthReport.replay(state=...)` holds no jaxcheck.monitor that "
                "counts its steps. Pass start=, the number of steps it has taken."
            )
    if finding.step is not None and begun > finding.step:
        raise InvalidInputError(
            f"`HealthReport.replay(state=...)` has taken {begun} steps, and the "
            f"finding is of step {finding.step}. Reload a state from before it."
        )
    return begun


def _reached(
    train_step: Callable[..., Any] | None,
    state: Any,
    batches: Iterable[Any],
    begun: int,
    step: int,
    progress: Progress,
) -> tuple[Any, Any]:
    """The state before ``step``, and its batch."""
    if step > begun:
        if train_step is None:
            raise InvalidInputError(
                f"`HealthReport.replay(train_step=...)` is needed to go from step "
                f"{begun}, where `state` is, to step {step}."
            )
        require_function("replay", "train_step", train_step)
    coming = batches_of("replay", batches)
    needed = step - begun + 1
    with progress_for(progress, needed, "training up to the finding") as advance:
        for done in range(needed - 1):
            batch = next_batch("replay", coming, done, needed)
            assert train_step is not None
            state = stepped("replay", train_step, state, batch)
            advance(1)
        return state, next_batch("replay", coming, needed - 1, needed)


def _leaf_of(finding: HealthFinding, params: Any) -> str | None:
    """The leaf of a finding; of a layer the leaf that it is in."""
    if finding.leaf is None:
        return None
    paths = list(by_path(params))
    inside = [p for p in paths if finding.leaf == p or finding.leaf.startswith(p + "[")]
    return max(inside, key=len, default=None)


def _checked_alone(
    loss_fn: Callable[..., Any],
    params: Any,
    batch: Any,
    leaf: str,
    progress: Progress,
    options: dict[str, Any],
) -> GradientReport:
    """The gradient of one leaf, all others held fixed."""

    def taken(keys: Any, value: Any) -> Any:
        return value if jax.tree_util.keystr(keys) == leaf else None

    def left(keys: Any, value: Any) -> Any:
        return None if jax.tree_util.keystr(keys) == leaf else value

    alone = jax.tree_util.tree_map_with_path(taken, params)
    others = jax.tree_util.tree_map_with_path(left, params)

    def loss(alone: Any, others: Any, batch: Any) -> Any:
        whole = jax.tree.map(
            lambda a, b: b if a is None else a,
            alone,
            others,
            is_leaf=lambda x: x is None,
        )
        return loss_fn(whole, batch)

    return check(loss, alone, others, batch, progress=progress, **options)
