"""Every wrong derivative is WRONG at the stated place, and its correct twin CORRECT."""

from __future__ import annotations

import jax
import pytest

import jaxcheck
from jaxcheck import Verdict
from tests.catalogue import MUTANTS


def runs_of(mutants):
    """Every mode, 64-bit types off and on; not slow: one of them, for a fourth."""
    runs = []
    for number, mutant in enumerate(mutants):
        variants = [(mode, x64) for mode in mutant.modes for x64 in (False, True)]
        for k, (mode, x64) in enumerate(variants):
            # one worker runs all variants, and finds its programs compiled
            marks = [pytest.mark.xdist_group(mutant.name)]
            if number % 4 or k != number // 4 % len(variants):
                marks.append(pytest.mark.slow)
            name = f"{mutant.name}-{mode}-{'x64' if x64 else 'x32'}"
            runs.append(pytest.param(mutant, mode, x64, id=name, marks=marks))
    return runs


def leaves_with(report, verdict):
    """The paths of the leaves that got ``verdict``."""
    return {leaf.path for leaf in report.leaves if leaf.verdict is verdict}


@pytest.mark.parametrize(("mutant", "mode", "x64"), runs_of(MUTANTS))
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
    ("mutant", "mode", "x64"), runs_of([m for m in MUTANTS if not m.same_twin])
)
def test_twin_is_correct(mutant, mode, x64):
    with jax.enable_x64(x64):
        _, twin, params, args = mutant.build()
        report = jaxcheck.check(twin, params, *args, mode=mode, locate=False)

    assert report.verdict is Verdict.CORRECT, str(report)
    paths = {leaf.path for leaf in report.leaves}
    assert leaves_with(report, Verdict.CORRECT) == paths, str(report)
