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


def code_of(page):
    """The Python of a page, each block on the lines where it stands in it."""
    lines = page.read_text().splitlines()
    inside, kept = False, []
    for line in lines:
        starts = line == "```python"
        inside = (inside or starts) and not (inside and line == "```")
        kept.append(line if inside and not starts else "")
    return "\n".join(kept)


@pytest.mark.parametrize(
    "page",
    [page for page in PAGES if code_of(page).strip()],
    ids=lambda page: page.stem,
)
def test_the_code_of_a_page_runs_from_top_to_bottom(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    exec(compile(code_of(page), str(page), "exec"), {"__name__": "__main__"})
