"""The corpus of planted faults is as it says: enough of them, at their places."""

from __future__ import annotations

import collections

import pytest

from jaxcheck.jaxprs.interpret import equations
from jaxcheck.jaxprs.sites import site_of
from jaxcheck.jaxprs.trace import trace_loss
from jaxcheck.trees import partition
from tests.located import FAULTS, MODELS
from tests.located.cases import marked_lines


def places(program):
    """(rule or primitive, file, line) of every equation of a program and how often."""
    traced = trace_loss(
        program.loss_fn, partition(program.params), program.args, has_aux=False
    )
    sites = [site_of(eqn) for eqn in equations(traced.program)]
    return collections.Counter((s.rule or s.primitive, s.file, s.line) for s in sites)


def test_there_are_enough_and_no_name_twice():
    assert len(FAULTS) >= 60
    assert len(MODELS) >= 40
    names = [case.name for case in (*FAULTS, *MODELS)]
    assert len(set(names)) == len(names)


def test_every_marked_line_belongs_to_a_fault():
    used = {culprit.mark for case in FAULTS for culprit in case.culprits}
    assert used == set(marked_lines())


@pytest.mark.parametrize("case", FAULTS, ids=lambda case: case.name)
def test_the_rule_is_called_where_its_mark_stands(case):
    found = places(case())
    for culprit in case().culprits:
        place = (culprit.rule or culprit.primitive, culprit.file, culprit.line)
        assert place in found, sorted(map(str, found))
