"""Correct gradients are CORRECT, however hard they look; what has none is carried."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxcheck
from jaxcheck import Verdict
from tests.catalogue import CONTROLS
from tests.catalogue.variants import variants_of


def expected_verdicts(params, *, settled):
    """The verdicts that each leaf may get, by path."""
    confirmed = (
        {Verdict.CORRECT} if settled else {Verdict.CORRECT, Verdict.INCONCLUSIVE}
    )
    expected = {}
    every = jax.tree_util.tree_flatten_with_path(params, is_leaf=lambda x: x is None)[0]
    for path, leaf in every:
        numeric = isinstance(leaf, float | np.generic | np.ndarray | jax.Array)
        if not (numeric and jnp.issubdtype(jnp.result_type(leaf), jnp.inexact)):
            allowed = {Verdict.NOT_CHECKED}
        elif np.size(leaf) == 0:
            # Of nothing, "correct" and "not checked" are both true.
            allowed = {Verdict.CORRECT, Verdict.NOT_CHECKED}
        else:
            allowed = confirmed
        expected[jax.tree_util.keystr(path)] = allowed
    return expected


@pytest.mark.parametrize(("control", "mode", "x64"), variants_of(CONTROLS, every=4))
def test_control_is_correct(control, mode, x64):
    with jax.enable_x64(x64):
        loss_fn, params, args = control.build()
        expected = expected_verdicts(params, settled=control.settled)
        report = jaxcheck.check(loss_fn, params, *args, mode=mode, locate=False)

    if control.settled:
        assert report.verdict is Verdict.CORRECT, str(report)
    else:
        assert report.verdict in (Verdict.CORRECT, Verdict.INCONCLUSIVE), str(report)
    assert [leaf.path for leaf in report.leaves] == list(expected), str(report)
    for leaf in report.leaves:
        assert leaf.verdict in expected[leaf.path], str(report)
    kinds = {finding.kind for finding in report.findings}
    assert not kinds & {"wrong_derivative", "nan_gradient", "nan_loss"}, str(report)
    if control.finding is not None:
        assert control.finding in kinds, str(report)
