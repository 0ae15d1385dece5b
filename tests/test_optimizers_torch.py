"""The table of optax against torch: each row is what is found, and none is missing."""

from __future__ import annotations

import ast

import pytest

from benchmarks import optimizers_torch
from benchmarks.optimizers_pairs import ONLY_TORCH, PAIRS
from tests.test_optimizers_table import some

PAGE = optimizers_torch.DOCUMENT.read_text("utf-8").splitlines()
ROWS = [
    line.removeprefix("| ").removesuffix(" |").split(" | ")
    for line in PAGE
    if line.startswith("| `")
]


def names(text):
    """What an expression calls by name."""
    return {node.id for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Name)}


def test_the_table_of_the_docs_is_that_of_these_pairs():
    assert [row[:3] for row in ROWS] == [
        [f"`{pair.optax}`", f"`{pair.torch}`", optimizers_torch.where(pair)]
        for pair in PAIRS
    ]
    for (*_, said), pair in zip(ROWS, PAIRS, strict=True):
        assert said.startswith(f"no: {pair.why}") if pair.why else said == "yes"


@pytest.mark.parametrize("index", some(range(len(PAIRS)), 3))
def test_a_row_is_what_is_found(index):
    pytest.importorskip("torch")
    pair, (*_, numbers, said) = PAIRS[index], ROWS[index]
    report = optimizers_torch.report_of(pair)
    assert report.passed == (not pair.why), str(report)
    assert optimizers_torch.answer(pair, report) == said
    error, tolerance = (float(x) for x in numbers.removesuffix(")").split(" ("))
    assert report.tolerance == pytest.approx(tolerance, rel=0.5)
    if report.passed:
        assert max(report.relative_error, error) <= tolerance
    else:
        assert report.relative_error == pytest.approx(error, rel=0.5)


def test_every_optimizer_of_torch_is_there():
    pytest.importorskip("torch")
    run = set().union(*(names(pair.torch) for pair in PAIRS))
    known = optimizers_torch.torch_optimizers().keys()
    assert known - run == ONLY_TORCH.keys()


def test_every_optimizer_of_optax_is_there_or_listed():
    run = set().union(*(names(pair.optax) for pair in PAIRS))
    rest = PAGE[PAGE.index("Only optax has") :]
    listed = {line.split("`")[1] for line in rest if line.startswith("- ")}
    assert listed == optimizers_torch.optax_optimizers().keys() - run


def test_of_every_optimizer_there_is_a_pair_that_agrees():
    agree = set().union(*(names(pair.torch) for pair in PAIRS if not pair.why))
    for pair in PAIRS:
        assert names(pair.torch) <= agree, pair
