"""Every planted fault is WRONG and is named at its place; what is right is not."""

from __future__ import annotations

import pytest

import jaxcheck
from jaxcheck import Verdict, locate
from tests.located import FAULTS, MODELS


def parameters(cases):
    """One parameter a case; all tests of a case find its programs compiled."""
    return [
        pytest.param(case, id=case.name, marks=pytest.mark.xdist_group(case.name))
        for case in cases
    ]


def check(program):
    return jaxcheck.check(program.loss_fn, program.params, *program.args, locate=False)


@pytest.mark.parametrize("case", parameters(FAULTS))
def test_a_fault_is_wrong_and_its_twin_correct(case):
    wrong, twin = check(case()), check(case(faulty=False))

    assert wrong.verdict is Verdict.WRONG, str(wrong)
    assert twin.verdict is Verdict.CORRECT, str(twin)
    assert wrong.loss == twin.loss


@pytest.mark.parametrize("case", parameters(MODELS))
def test_a_model_is_correct(case):
    report = check(case())
    assert report.verdict is Verdict.CORRECT, str(report)


# ---- where


def place(named):
    """What is named, and the user's line that calls it."""
    return named.rule or named.primitive, named.file, named.line


@pytest.mark.parametrize("case", parameters(FAULTS))
def test_a_fault_is_named_first_at_its_place(case):
    fault = case()
    sites = locate(fault.loss_fn, fault.params, *fault.args)

    expected = {place(culprit): culprit for culprit in fault.culprits}
    first = sites[: len(expected)]
    assert {place(site) for site in first} == set(expected), list(map(str, sites))
    for site in first:
        iterations = expected[place(site)].iterations
        assert not iterations or site.iteration in iterations, str(site)
    certain = {place(site) for site in sites if site.cures is True}
    assert certain <= set(expected), list(map(str, sites))


@pytest.mark.parametrize("case", parameters(FAULTS))
def test_nothing_is_named_in_a_correct_twin(case):
    twin = case(faulty=False)
    assert locate(twin.loss_fn, twin.params, *twin.args) == ()


@pytest.mark.parametrize("case", parameters(MODELS))
def test_nothing_is_named_in_a_correct_model(case):
    model = case()
    assert locate(model.loss_fn, model.params, *model.args) == ()
