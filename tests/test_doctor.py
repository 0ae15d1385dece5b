"""``jaxcheck doctor``: each probe sees its trap, and none where there is none."""

import contextlib
import importlib.metadata
import json
import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxcheck import doctor
from jaxcheck.doctor import Installation, Outcome, Probe, examine


@pytest.fixture
def fresh_traces():
    """Trace anew, with what a test has replaced, and forget the trace afterwards."""
    jax.clear_caches()
    yield
    jax.clear_caches()


def propagating(reduce):
    """The reduction as NumPy does it: it keeps NaN."""

    def reduction(x):
        with np.errstate(invalid="ignore"):
            return reduce(np.asarray(x, np.float32))

    return reduction


def test_nan_in_max_is_seen(monkeypatch):
    def max(x):  # noqa: A001
        return np.nanmax(np.asarray(x, np.float32))

    monkeypatch.setattr(jnp, "max", max)
    monkeypatch.setattr(jnp, "min", propagating(np.min))
    probe = doctor.nan_in_max()
    assert probe.outcome is Outcome.TRAP
    assert probe.observed == (
        "max of 4096 float16 loses it; max of 4096 bfloat16 loses it; "
        "max of 4096 float32 loses it"
    )


def test_nan_in_max_only_of_large_arrays_is_seen(monkeypatch):
    def min(x):  # noqa: A001
        keep = x.size < 10_000 or x.dtype != jnp.float32
        return np.nan if keep else np.nanmin(np.asarray(x))

    monkeypatch.setattr(jnp, "max", propagating(np.max))
    monkeypatch.setattr(jnp, "min", min)
    assert doctor.nan_in_max().observed == "min of 32768 float32 loses it"


def test_nan_that_is_kept_is_no_trap(monkeypatch):
    monkeypatch.setattr(jnp, "max", propagating(np.max))
    monkeypatch.setattr(jnp, "min", propagating(np.min))
    assert doctor.nan_in_max().outcome is Outcome.OK


@pytest.mark.usefixtures("fresh_traces")
def test_nan_that_comparisons_miss_is_seen(monkeypatch):
    monkeypatch.setattr(jnp, "isfinite", lambda x: jnp.ones(x.shape, bool))
    probe = doctor.nan_in_comparisons()
    assert probe.outcome is Outcome.TRAP
    assert probe.affects_verdicts
    assert probe.observed.startswith("isfinite misses it in 4096 float16; ")


def test_one_wrong_row_of_a_product_is_seen(monkeypatch):
    def jit(fn):
        return lambda x: fn(x).at[-1].mul(0.99)

    monkeypatch.setattr(jax, "jit", jit)
    probe = doctor.vmapped_matvec()
    assert probe.outcome is Outcome.TRAP
    assert probe.affects_verdicts
    assert probe.observed == (
        "1 of 16385 float64 rows are wrong; 1 of 32769 float32 rows are wrong"
    )


def test_missing_float64_is_seen(monkeypatch):
    monkeypatch.setattr(jax, "enable_x64", lambda _: contextlib.nullcontext())
    probe = doctor.float64_is_double()
    assert probe.outcome is Outcome.TRAP
    assert probe.affects_verdicts
    assert probe.observed == "asked for float64, got float32"


@pytest.mark.slow
@pytest.mark.usefixtures("fresh_traces")
def test_float64_with_the_exp_of_float32_is_seen(monkeypatch):
    exp = jnp.exp

    def short_exp(x):
        return exp(x.astype(jnp.float32)).astype(x.dtype)

    monkeypatch.setattr(jnp, "exp", short_exp)
    probe = doctor.float64_is_double()
    assert probe.outcome is Outcome.TRAP
    assert probe.observed.startswith("exp(1) is off by a relative ")


def test_float16_norm_that_overflows_is_seen(monkeypatch):
    def norm(x):
        return jnp.sqrt(jnp.sum(x * x))  # in float16

    monkeypatch.setattr(jnp.linalg, "norm", norm)
    monkeypatch.setattr(optax.tree, "norm", norm)
    probe = doctor.float16_norms()
    assert probe.outcome is Outcome.TRAP
    assert "jnp.linalg.norm of four 300 gives inf" in probe.observed
    assert "optax.tree.norm of four 0.0001 gives 0" in probe.observed


def test_float16_norm_in_float32_is_no_trap(monkeypatch):
    def norm(x):
        return jnp.sqrt(jnp.sum(x.astype(jnp.float32) ** 2)).astype(x.dtype)

    monkeypatch.setattr(jnp.linalg, "norm", norm)
    monkeypatch.setattr(optax.tree, "norm", norm)
    assert doctor.float16_norms().outcome is Outcome.OK


def on_an_accelerator(monkeypatch):
    device = types.SimpleNamespace(platform="gpu")
    monkeypatch.setattr(jax, "devices", lambda: [device])


@pytest.mark.usefixtures("fresh_traces")
def test_short_matrix_products_are_seen(monkeypatch):
    on_an_accelerator(monkeypatch)

    def jit(fn):
        return lambda x: fn(x.astype(jnp.bfloat16)).astype(jnp.float32)

    monkeypatch.setattr(jax, "jit", jit)
    probe = doctor.matmul_precision()
    assert probe.outcome is Outcome.TRAP
    assert probe.observed == "relative error 0.0005"


def test_full_matrix_products_are_no_trap(monkeypatch):
    on_an_accelerator(monkeypatch)
    if jax.default_backend() == "cpu":
        assert doctor.matmul_precision().outcome is Outcome.OK


def test_matrix_products_of_a_cpu_are_not_probed(monkeypatch):
    device = types.SimpleNamespace(platform="cpu")
    monkeypatch.setattr(jax, "devices", lambda: [device])
    assert doctor.matmul_precision().outcome is Outcome.NOT_APPLICABLE


def test_probe_that_raises_is_a_trap(monkeypatch):
    def broken(_):
        raise RuntimeError("no such kernel")

    monkeypatch.setattr(jnp.linalg, "norm", broken)
    probe = doctor.float16_norms()
    assert probe.outcome is Outcome.TRAP
    assert probe.observed == "could not be run: RuntimeError: no such kernel"


@pytest.fixture(scope="module")
def here():
    return examine()


def test_every_probe_runs_here(here):
    assert len(here.probes) == len(doctor.PROBES) == 7
    assert not [p for p in here.probes if "could not be run" in p.observed]


def test_supported_installation_is_trustworthy(here):
    assert here.trustworthy


def test_facts(here):
    assert dict(here.versions)["jaxlib"] == importlib.metadata.version("jaxlib")
    assert len(here.devices) == jax.device_count()
    assert here.x64 == jax.config.jax_enable_x64


def test_json_is_strict(here):
    text = json.dumps(here.to_dict(), allow_nan=False)
    assert json.loads(text) == here.to_dict()
    assert here.to_dict()["trustworthy"] is True
    assert {probe["outcome"] for probe in here.to_dict()["probes"]} <= {
        "ok",
        "trap",
        "not applicable",
    }


def probe_of(outcome, *, affects_verdicts):
    return Probe(
        name="sums of numbers",
        affects_verdicts=affects_verdicts,
        consequence="A sum is wrong. Add by hand.",
        link="https://example.org/1" if affects_verdicts else None,
        outcome=outcome,
        observed="1 + 1 gives 3" if outcome is Outcome.TRAP else "1 + 1 gives 2",
    )


def installation_with(*probes):
    return Installation(
        python="3.11.7",
        platform="Linux",
        versions=(("jax", "0.10.1"), ("flax", "not installed")),
        devices=("cpu:0 (cpu)", "cpu:1 (cpu)"),
        x64=False,
        probes=probes,
    )


@pytest.mark.parametrize(
    ("outcome", "affects_verdicts", "trustworthy"),
    [
        (Outcome.OK, True, True),
        (Outcome.NOT_APPLICABLE, True, True),
        (Outcome.TRAP, False, True),
        (Outcome.TRAP, True, False),
    ],
)
def test_only_traps_of_our_own_cost_the_trust(outcome, affects_verdicts, trustworthy):
    probe = probe_of(outcome, affects_verdicts=affects_verdicts)
    assert installation_with(probe).trustworthy is trustworthy


def test_text():
    installation = installation_with(
        probe_of(Outcome.OK, affects_verdicts=False),
        probe_of(Outcome.TRAP, affects_verdicts=True),
        probe_of(Outcome.NOT_APPLICABLE, affects_verdicts=False),
    )
    assert str(installation).splitlines() == [
        "jaxcheck doctor: verdicts cannot be trusted here" + " " * 47 + "Linux",
        "",
        "  package  version",
        "  python   3.11.7",
        "  jax      0.10.1",
        "  flax     not installed",
        "  device   cpu:0 (cpu)",
        "  device   cpu:1 (cpu)",
        "  float64  off (jaxcheck switches it on for itself alone)",
        "",
        "  probe            outcome         seen",
        "  sums of numbers  ok              1 + 1 gives 2",
        "  sums of numbers  TRAP",
        "      1 + 1 gives 3.",
        "      A sum is wrong. Add by hand.",
        "      https://example.org/1",
        "  sums of numbers  not applicable  1 + 1 gives 2",
    ]
