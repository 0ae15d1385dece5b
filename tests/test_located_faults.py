"""Every planted fault makes a gradient wrong; its correct twin leaves it right."""

from __future__ import annotations

import pytest

import jaxcheck
from jaxcheck import Verdict
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
