"""Every wrong derivative is WRONG at the stated place, and its correct twin CORRECT."""

from __future__ import annotations

import jax
import pytest

import jaxcheck
from jaxcheck import Verdict
from tests.catalogue import MUTANTS
from tests.catalogue.variants import variants_of


def leaves_with(report, verdict):
    """The paths of the leaves that got ``verdict``."""
    return {leaf.path for leaf in report.leaves if leaf.verdict is verdict}


@pytest.mark.parametrize(("mutant", "mode", "x64"), variants_of(MUTANTS, every=4))
def test_mutant_is_wrong_exactly_where_it_is(mutant, mode, x64):
    with jax.enable_x64(x64):
        wrong, _, params, args = mutant.build()
        report = jaxcheck.check(wrong, params, *args, mode=mode, locate=False)

    assert report.verdict is Verdict.WRONG, str(report)
    assert leaves_with(report, Verdict.WRONG) == set(mutant.leaves), str(report)
    rest = {leaf.path for leaf in report.leaves} - set(mutant.leaves)
    assert leaves_with(report, Verdict.CORRECT) == rest, str(report)
    if mutant.finding is not None:
        kinds = {f.kind for f in report.findings if f.leaf in (None, *mutant.leaves)}
        assert mutant.finding in kinds, str(report)
    if mutant.index is not None and mode == "exhaustive":
        (leaf,) = (each for each in report.leaves if each.path in mutant.leaves)
        assert leaf.worst is not None, str(report)
        assert leaf.worst.index == mutant.index, str(report)


@pytest.mark.parametrize(
    ("mutant", "mode", "x64"),
    variants_of([m for m in MUTANTS if not m.same_twin], every=4),
)
def test_twin_is_correct(mutant, mode, x64):
    with jax.enable_x64(x64):
        _, twin, params, args = mutant.build()
        report = jaxcheck.check(twin, params, *args, mode=mode, locate=False)

    assert report.verdict is Verdict.CORRECT, str(report)
    paths = {leaf.path for leaf in report.leaves}
    assert leaves_with(report, Verdict.CORRECT) == paths, str(report)
