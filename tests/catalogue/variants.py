"""The variants that a case is run in: every mode, 64-bit types off and on."""

from __future__ import annotations

import pytest


def variants_of(cases, *, every=1):
    """Parameters (case, mode, x64); one of each ``every``-th case is not slow."""
    runs = []
    for number, case in enumerate(cases):
        variants = [(mode, x64) for mode in case.modes for x64 in (False, True)]
        for k, (mode, x64) in enumerate(variants):
            # one worker runs all variants, and finds its programs compiled
            marks = [pytest.mark.xdist_group(case.name)]
            if number % every or k != number // every % len(variants):
                marks.append(pytest.mark.slow)
            name = f"{case.name}-{mode}-{'x64' if x64 else 'x32'}"
            runs.append(pytest.param(case, mode, x64, id=name, marks=marks))
    return runs
