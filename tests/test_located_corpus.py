"""The corpus of planted faults is as it says: enough of them, at their places."""

from __future__ import annotations

import pathlib

import pytest

from jaxcheck.jaxprs.interpret import nested_programs
from jaxcheck.jaxprs.sites import site_of
from jaxcheck.jaxprs.trace import trace_loss
from jaxcheck.trees import partition
from tests.located import FAULTS, MODELS
from tests.located.cases import marked_lines

HERE = pathlib.Path(__file__).parent


def places(program, around=(None, None)):
    """(rule or primitive, file, line) of all equations.

    What a framework calls inside a loop knows no frames outside of the loop; it is
    where the loop is.
    """
    for eqn in getattr(program, "jaxpr", program).eqns:
        site = site_of(eqn)
        ours = site.file is not None and HERE in pathlib.Path(site.file).parents
        place = (site.file, site.line) if ours else around
        yield (site.rule or site.primitive, *place)
        for nested in nested_programs(eqn):
            yield from places(nested, place)


def test_there_are_enough_and_no_name_twice():
    assert len(FAULTS) >= 60
    assert len(MODELS) >= 40
    names = [case.name for case in (*FAULTS, *MODELS)]
    assert len(set(names)) == len(names)


def test_every_marked_line_belongs_to_a_fault():
    used = {culprit.mark for case in FAULTS for culprit in case.culprits}
    assert used == set(marked_lines())


@pytest.mark.parametrize(
    "case",
    [
        # every eighth in the default run: tracing all of them takes a minute
        pytest.param(case, id=case.name, marks=[pytest.mark.slow] if n % 8 else [])
        for n, case in enumerate(FAULTS)
    ],
)
def test_the_rule_is_called_where_its_mark_stands(case):
    fault = case()
    params = partition(fault.params)
    traced = trace_loss(fault.loss_fn, params, fault.args, has_aux=False)
    found = set(places(traced.program))
    for culprit in fault.culprits:
        name = culprit.rule or culprit.primitive
        assert (name, culprit.file, culprit.line) in found
