"""How the pages are built: ``sphinx-build docs docs/_build``, from the docs extra."""

import importlib.metadata

project = "jaxcheck"
author = "The jaxcheck authors"
release = importlib.metadata.version("jaxcheck")
extensions = ["myst_parser"]
myst_heading_anchors = 3
# The pages are read on the repository too, and link to files that are no pages.
suppress_warnings = ["myst.xref_missing"]
exclude_patterns = ["_build"]
html_theme = "furo"
