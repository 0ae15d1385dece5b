"""What cannot be known is INCONCLUSIVE with its cause: never CORRECT, never WRONG."""

from __future__ import annotations

import jax
import pytest

import jaxcheck
from jaxcheck import Verdict
from tests.catalogue import UNKNOWABLE


@pytest.mark.parametrize("x64", [False, True], ids=["x32", "x64"])
@pytest.mark.parametrize("mode", ["exhaustive", "directional"])
@pytest.mark.parametrize("case", UNKNOWABLE, ids=lambda case: case.name)
def test_unknowable_is_inconclusive(case, mode, x64):
    with jax.enable_x64(x64):
        loss_fn, params, args = case.build()
        report = jaxcheck.check(loss_fn, params, *args, mode=mode, locate=False)

    if case.resolvable:
        assert report.verdict in (Verdict.CORRECT, Verdict.INCONCLUSIVE), str(report)
        return
    assert report.verdict is Verdict.INCONCLUSIVE, str(report)
    assert all(leaf.verdict is not Verdict.WRONG for leaf in report.leaves), str(report)
    assert report.findings or any(leaf.reason for leaf in report.leaves), str(report)
    if case.finding is not None:
        kinds = {finding.kind for finding in report.findings}
        assert case.finding in kinds, str(report)
