"""All questions about the derivatives of a function, asked one after the other."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import re
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxcheck.derivatives import charts, identities, opinions
from jaxcheck.derivatives.charts import Chart
from jaxcheck.derivatives.functions import (
    Direction,
    FlatFunction,
    basis_like,
    contracted,
    derivative,
    probe_like,
)
from jaxcheck.derivatives.report import DerivativeCheck, DerivativeReport
from jaxcheck.gradients import ladder
from jaxcheck.gradients.examine import examine
from jaxcheck.gradients.findings import device_name, package_versions
from jaxcheck.gradients.options import Options
from jaxcheck.gradients.plan import DEFAULT_DIRECTIONS, make_plan
from jaxcheck.gradients.report import GradientReport, LeafReport
from jaxcheck.jaxprs.trace import trace_loss
from jaxcheck.reports.progress import progress_for
from jaxcheck.reports.values import Finding, Verdict
from jaxcheck.trees import Leaf, partition

# Forward mode pushes one tangent for each coordinate up to this many of them.
_FORWARD_COORDINATES = 256
# Outputs up to this many real numbers are differentiated one by one.
_SMALL_OUTPUT = 4
# Random cotangents of a larger output.
_COTANGENTS = 2

_ORDER = (Verdict.WRONG, Verdict.INCONCLUSIVE, Verdict.CORRECT, Verdict.NOT_CHECKED)
# How JAX says that a function has no derivative of a kind.
_NO_SUCH_MODE = re.compile(
    r"can't apply forward-mode .* to a custom_vjp"
    r"|Reverse-mode differentiation does not work"
    r"|(Differentiation|Transpose) rule .*not implemented"
)
# What the table of questions says already, or what is natural for one of many outputs.
_SAID = ("wrong_derivative", "dead", "unused")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Questions:
    """What is asked of one function.

    Attributes:
        flat: the function.
        modes: directions of differentiation, at every order.
        order: highest order.
        options: how to compare with differences.
        bounds: (lower, upper) of the domain, or None.
        project: makes tangents admissible, or None.
        opinion: a second opinion, or None.
        started: when the check began, by ``time.perf_counter``.
        call: the user's call, as text.
    """

    flat: FlatFunction
    modes: tuple[Direction, ...]
    order: int
    options: Options
    bounds: Any
    project: Callable[..., Any] | None
    opinion: Any
    started: float
    call: str

    def ask(self) -> DerivativeReport:
        """Ask everything."""
        asked = list(self._differences())
        rest = self._identities()
        checks: list[DerivativeCheck] = []
        findings: list[Finding] = []
        evaluations = 0
        total = len(asked) + len(rest)
        with progress_for(
            self.options.progress, total, "checking derivatives"
        ) as advance:
            for ask in asked:
                check, found, spent = ask()
                checks.append(check)
                findings += found
                evaluations += spent
                advance(1)
            for identity in rest:
                checks.append(identity())
                advance(1)
        checks += self._set_aside()
        leaves = tuple(self._leaf(k, checks) for k in range(len(self._described)))
        return DerivativeReport(
            verdict=_worst([c.verdict for c in checks]),
            checks=tuple(checks),
            leaves=leaves,
            findings=tuple(dict.fromkeys(findings)),
            evaluations=evaluations,
            seconds=time.perf_counter() - self.started,
            precision=self.options.precision,
            call=self.call,
            dtypes=tuple(sorted({leaf.dtype for leaf in self._moved})),
            key_data=self.options.seed,
            versions=package_versions(),
            device=device_name(),
        )

    @property
    def _described(self) -> tuple[Leaf, ...]:
        return self.flat.inputs.leaves

    @property
    def _moved(self) -> tuple[Leaf, ...]:
        return self.flat.inputs.differentiable

    # -- derivatives against differences

    def _differences(self) -> Iterator[Callable[[], Any]]:
        for order in range(1, self.order + 1):
            for path in itertools.product(self.modes, repeat=order):
                *inner, outer = path
                flat = self.flat
                for step, direction in enumerate(inner):
                    seed = (*self.options.seed, step)
                    flat = derivative(flat, direction, seed)
                question = " over ".join(reversed(path))
                for output in range(len(flat.outputs)):
                    yield functools.partial(
                        self._compared, flat, outer, question, order, output
                    )

    def _compared(
        self,
        flat: FlatFunction,
        direction: Direction,
        question: str,
        order: int,
        output: int,
    ) -> tuple[DerivativeCheck, list[Finding], int]:
        """One derivative of one output leaf, for a few cotangents."""
        chart = self._chart(direction)
        reports: list[GradientReport] = []
        for cotangent in self._cotangents(flat.outputs[output]):
            try:
                reports.append(self._one(flat, chart, direction, output, cotangent))
            except (TypeError, ValueError, NotImplementedError) as error:
                if not _NO_SUCH_MODE.search(str(error)):
                    raise
                check = identities.unavailable(question, error, order)
                path = flat.outputs[output].path
                return dataclasses.replace(check, output=path), [], 0
        leaves = tuple(
            self._translated(chart, [r.leaves[k] for r in reports])
            for k in range(len(self._moved))
        )
        errors = [x.relative_error for x in leaves if x.relative_error is not None]
        check = DerivativeCheck(
            question=question,
            order=order,
            output=flat.outputs[output].path,
            verdict=_worst([r.verdict for r in reports]),
            relative_error=max(errors) if errors else None,
            leaves=leaves,
            reason=next((x.reason for x in leaves if x.reason), None),
        )
        findings = [f for r in reports for f in r.findings if f.kind not in _SAID]
        return check, findings, sum(r.evaluations for r in reports)

    def _translated(self, chart: Chart, reports: list[LeafReport]) -> LeafReport:
        worst = min(reports, key=lambda r: (_ORDER.index(r.verdict), -_badness(r)))
        leaf = next(x for x in self._moved if x.path == worst.path)
        return chart.translate(worst, leaf)

    def _one(
        self,
        flat: FlatFunction,
        chart: Chart,
        direction: Direction,
        output: int,
        cotangent: Any,
    ) -> GradientReport:
        def loss(arrays: Any) -> Any:
            return contracted(cotangent, flat.function(*chart.primals(*arrays))[output])

        # the arrays stand where the leaves stood, so that paths are the user's own
        tree = dict(zip((x.path for x in self._moved), chart.values, strict=True))
        parts = dataclasses.replace(
            partition(tuple(tree.values())), leaves=_named(tree)
        )
        forward = direction == "fwd"
        traced = trace_loss(loss, parts, (), has_aux=False, forward=forward)
        options = dataclasses.replace(self.options, progress=False)
        if not chart.whole:
            options = dataclasses.replace(options, mode="exhaustive", budget=None)
        plan = make_plan(parts.differentiable, options)
        examined = examine(traced, plan, options, call=self.call, started=self.started)
        return examined.report

    def _chart(self, direction: Direction) -> Chart:
        parts = self.flat.inputs
        size = sum(leaf.size * leaf.parts for leaf in self._moved)
        forward = direction == "fwd"
        if self.bounds is None and self.project is None:
            if not forward:
                return charts.identity(parts)
            wanted = self.options.mode in ("auto", "exhaustive")
            if wanted and size <= _FORWARD_COORDINATES:
                return charts.real(parts)
        return charts.tangents(
            parts,
            self.options.directions or DEFAULT_DIRECTIONS,
            self.options.seed,
            bounds=self.bounds,
            reach=ladder.reach(self._eps),
            project=self.project,
        )

    @property
    def _eps(self) -> float:
        if self.options.precision == "float64":
            return float(np.finfo(np.float64).eps)
        return max(float(jnp.finfo(leaf.dtype).eps) for leaf in self._moved)

    def _cotangents(self, leaf: Leaf) -> list[Any]:
        if leaf.size * leaf.parts <= _SMALL_OUTPUT:
            return basis_like(leaf)
        seed = self.options.seed
        return [probe_like(leaf, seed, 21 + k) for k in range(_COTANGENTS)]

    # -- everything else

    def _identities(self) -> list[Callable[[], DerivativeCheck]]:
        flat, modes = self.flat, self.modes
        reading = functools.cache(lambda: identities.read(flat, self.options.seed))
        asked: list[Callable[[], DerivativeCheck]] = []
        if set(modes) == {"fwd", "rev"}:
            asked.append(lambda: identities.adjoint(reading()))
        native = functools.cache(
            lambda: identities.read(flat, self.options.seed, native=True)
        )
        if "fwd" in modes:
            asked.append(lambda: identities.batched_forward(native()))
        if "rev" in modes:
            asked.append(lambda: identities.batched(native()))
            asked.append(lambda: identities.zeros(reading()))
        asked.append(lambda: identities.compiled(flat))
        asked.append(lambda: identities.types(flat))
        if self.opinion is not None:
            asked.append(
                lambda: opinions.second_opinion(
                    flat, self.opinion, self.options.seed, self.options.rtol
                )
            )
        return asked

    def _set_aside(self) -> list[DerivativeCheck]:
        """Outputs that have no derivative are named, not dropped."""
        return [
            DerivativeCheck(
                question="/".join(self.modes),
                output=leaf.path,
                verdict=Verdict.NOT_CHECKED,
                reason=leaf.reason,
            )
            for leaf in self.flat.other_outputs
        ]

    def _leaf(self, k: int, checks: Sequence[DerivativeCheck]) -> LeafReport:
        leaf = self._described[k]
        found = [r for c in checks for r in c.leaves if r.path == leaf.path]
        if found:
            return min(found, key=lambda r: (_ORDER.index(r.verdict), -_badness(r)))
        return LeafReport(
            path=leaf.path,
            shape=leaf.shape,
            dtype=leaf.dtype,
            size=leaf.size,
            checked=0,
            method="none",
            verdict=Verdict.NOT_CHECKED,
            reason=leaf.reason or "no derivative by it was checked",
        )


def _named(tree: dict[str, Any]) -> tuple[Leaf, ...]:
    described = partition(tuple(tree.values())).leaves
    pairs = zip(described, tree, strict=True)
    return tuple(dataclasses.replace(leaf, path=path) for leaf, path in pairs)


def _worst(verdicts: Sequence[Verdict]) -> Verdict:
    return min(verdicts, key=_ORDER.index, default=Verdict.NOT_CHECKED)


def _badness(report: LeafReport) -> float:
    """How certain it is that something is wrong: zero within the error bar."""
    error = (report.relative_error or 0.0) - (report.error_bar or 0.0)
    return max(error, report.bound or 0.0)
