"""What ``gradient_statistics`` must give, in NumPy and float64."""

from __future__ import annotations

import numpy as np

EDGES = np.array([0.0, *(2.0**k for k in range(-47, 16)), np.inf])


def by_hand(grads, params=None, updates=None):
    """The statistics of one row, of which the arguments are the arrays."""
    g, bad = finite(grads)
    size = np.abs(g)
    found = {
        "norm": np.linalg.norm(g),
        "rms": np.sqrt(mean(size**2)),
        "max_abs": np.max(size, initial=0.0),
        "mean": mean(g),
        "std": np.sqrt(mean((g - mean(g)) ** 2)),
        "zero_share": mean(g == 0),
        "nonfinite": bad,
        "histogram": np.histogram(size[size > 0], EDGES)[0],
    }
    if params is not None:
        p, found["param_nonfinite"] = finite(params)
        found["param_norm"] = np.linalg.norm(p)
    if updates is not None:
        u, found["update_nonfinite"] = finite(updates)
        found["update_norm"] = np.linalg.norm(u)
    if params is not None and updates is not None:
        ratio = found["update_norm"] / (found["param_norm"] or np.inf)
        found["update_ratio"] = ratio
        found["lost_share"] = lost_share(params, updates)
    return found


def finite(arrays):
    """The finite elements of all arrays as one, and the number of the others."""
    real = [np.abs(x) if np.iscomplexobj(x) else x for x in map(np.asarray, arrays)]
    every = np.concatenate([np.ravel(x).astype(np.float64) for x in real])
    kept = every[np.isfinite(every)]
    return kept, every.size - kept.size


def mean(values):
    return np.mean(values) if values.size else 0.0


def lost_share(params, updates):
    moving = lost = 0
    for p, u in zip(map(np.asarray, params), map(np.asarray, updates), strict=True):
        wide = np.complex128 if np.iscomplexobj(p) else np.float64
        p_wide, u_wide = p.astype(wide), u.astype(wide)
        stays = (p_wide + u_wide).astype(p.dtype) == p
        counts = np.isfinite(p_wide) & np.isfinite(u_wide) & (u_wide != 0)
        moving += np.sum(counts)
        lost += np.sum(counts & stays)
    return lost / moving if moving else 0.0


def assert_row(statistics, wanted, *, row=..., rtol=1e-5):
    """One row of ``Statistics`` is what was worked out by hand."""
    for name, value in statistics._asdict().items():
        if name not in wanted:
            assert value is None, name
            continue
        got = np.asarray(value)[row]
        # a mean near zero is as sharp as its summands
        atol = rtol * wanted["rms"] if name in ("mean", "std") else 0.0
        np.testing.assert_allclose(
            got, wanted[name], rtol=rtol, atol=atol, err_msg=name
        )
