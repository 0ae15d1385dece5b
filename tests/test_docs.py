"""What the pages point at exists."""

import ast
import re
from pathlib import Path

import pytest

import jaxcheck

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_files(page):
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text()):
        if not target.startswith("http"):
            assert (page.parent / target).exists(), target


def test_every_test_that_the_derivatives_page_names_exists():
    named = re.findall(
        r"`(test_\w+\.py)::(test_\w+)`", (ROOT / "docs/derivatives.md").read_text()
    )
    assert len(named) > 15
    for file, name in named:
        tree = ast.parse((ROOT / "tests" / file).read_text())
        assert name in {
            n.name for n in ast.walk(tree) if isinstance(n, ast.FunctionDef)
        }


def test_the_index_names_every_public_function():
    index = (ROOT / "docs/index.md").read_text()
    for name in jaxcheck.__all__:
        if callable(getattr(jaxcheck, name)) and name.islower():
            assert f"jaxcheck.{name}" in index, name
