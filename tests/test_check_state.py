"""The world is left as it was found: after success, failure, exceptions and Ctrl-C."""

from __future__ import annotations

import logging
import os
import random
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxcheck
from jaxcheck import InvalidInputError, Verdict
from tests.catalogue.planting import edited

W = jnp.linspace(0.1, 1.0, 6)
SETTINGS = (
    "jax_enable_x64",
    "jax_default_device",
    "jax_default_matmul_precision",
    "jax_default_prng_impl",
    "jax_debug_nans",
    "jax_debug_infs",
    "jax_disable_jit",
    "jax_numpy_dtype_promotion",
    "jax_numpy_rank_promotion",
    "jax_log_compiles",
    "jax_check_tracer_leaks",
    "jax_threefry_partitionable",
    "jax_transfer_guard",
    "jax_traceback_filtering",
    "jax_explain_cache_misses",
    "jax_compilation_cache_dir",
    "jax_platforms",
)


def right(p):
    return jnp.sum(jnp.sin(p) ** 2)


def wrong(p):
    return right(edited(lambda x, cotangent: 2 * cotangent)(p))


class Stop(RuntimeError):
    pass


def raising(p):
    raise Stop


def interrupted(p):
    raise KeyboardInterrupt


def in_the_rule(p):
    def rule(x, cotangent):
        raise KeyboardInterrupt

    return right(edited(rule)(p))


def interrupt(done, total):
    raise KeyboardInterrupt


RUNS = {
    "right": (right, {}, None),
    "native": (right, {"precision": "native"}, None),
    "wrong": (wrong, {}, None),
    "wrong, directional": (wrong, {"mode": "directional"}, None),
    "bad input": (right, {"mode": "thorough"}, InvalidInputError),
    "bad loss": (lambda p: p, {}, InvalidInputError),
    "the loss raises": (raising, {}, Stop),
    "interrupted in the loss": (interrupted, {}, KeyboardInterrupt),
    "interrupted in a rule": (in_the_rule, {}, KeyboardInterrupt),
    "interrupted in progress": (right, {"progress": interrupt}, KeyboardInterrupt),
}


def world():
    name, keys, *rest = np.random.get_state()  # noqa: NPY002
    root = logging.getLogger()
    return {
        **{s: getattr(jax.config, s) for s in SETTINGS if hasattr(jax.config, s)},
        "x64 of new arrays": str(jnp.asarray(1.0).dtype),
        "device of new arrays": jnp.asarray(1.0).devices(),
        "numpy.random": (name, keys.tobytes(), *rest),
        "random": random.getstate(),
        "numpy errors": np.geterr(),
        "print options": str(np.get_printoptions()),
        "warning filters": list(warnings.filters),
        "environment": dict(os.environ),
        "root logger": (root.level, list(root.handlers)),
        "jax logger": (
            logging.getLogger("jax").level,
            list(logging.getLogger("jax").handlers),
        ),
        "directory": os.getcwd(),  # noqa: PTH109
        "threads": threading.active_count(),
    }


@pytest.mark.parametrize(
    ("name", "x64"),
    [
        *((name, False) for name in RUNS),
        ("right", True),
        ("wrong", True),
        ("interrupted in progress", True),
    ],
)
def test_the_world_is_left_as_it_was(name, x64):
    loss, options, error = RUNS[name]
    random.seed(3)
    with jax.enable_x64(x64), jax.default_device(jax.devices()[1]):
        before = world()
        if error is None:
            jaxcheck.check(loss, W, **options)
        else:
            with pytest.raises(error):
                jaxcheck.check(loss, W, **options)
        after = world()
    changed = {name for name in before if before[name] != after[name]}
    assert not changed


def test_x64_set_globally_stays_set():
    before = jax.config.jax_enable_x64
    try:
        for value in (True, False):
            jax.config.update("jax_enable_x64", value)
            assert jaxcheck.check(right, np.linspace(0.1, 1, 5)).passed
            with pytest.raises(KeyboardInterrupt):
                jaxcheck.check(right, np.linspace(0.1, 1, 5), progress=interrupt)
            assert jax.config.jax_enable_x64 is value
            assert jnp.asarray(1.0).dtype == ("float64" if value else "float32")
    finally:
        jax.config.update("jax_enable_x64", before)


def test_a_check_after_ctrl_c_is_right():
    with pytest.raises(KeyboardInterrupt):
        jaxcheck.check(right, W, progress=interrupt)
    assert jaxcheck.check(right, W).passed
    assert jaxcheck.check(wrong, W).verdict is Verdict.WRONG


def test_the_users_own_compiled_loss_stays_compiled():
    traces = []

    @jax.jit
    def loss(p):
        traces.append(1)
        return right(p)

    loss(W)
    assert len(traces) == 1
    jaxcheck.check(loss, W)
    jaxcheck.check(wrong, W)
    count = len(traces)
    loss(W)
    assert len(traces) == count


def test_no_tracer_leaks():
    with jax.checking_leaks():
        assert jaxcheck.check(right, W).passed


def test_matplotlib_and_flax_are_not_imported_by_a_check(subprocess_run):
    subprocess_run(
        """
        import sys
        import jax.numpy as jnp
        import jaxcheck
        report = jaxcheck.check(lambda p: jnp.sum(p**2), jnp.ones(3))
        str(report), repr(report), report.to_json()
        loaded = {"matplotlib", "flax", "pandas"} & set(sys.modules)
        assert not loaded, loaded
        """
    )


@pytest.fixture
def subprocess_run():
    import subprocess
    import sys
    import textwrap

    def run(code):
        done = subprocess.run(
            [sys.executable, "-W", "error", "-c", textwrap.dedent(code)],
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done

    return run


def test_nothing_is_printed_and_nothing_is_logged(capfd, caplog):
    with caplog.at_level(logging.INFO):
        jaxcheck.check(right, W)
        jaxcheck.check(wrong, W)
    assert capfd.readouterr() == ("", "")
    assert not [r for r in caplog.records if r.name.startswith("jaxcheck")]


def test_a_print_in_the_loss_is_not_multiplied(capfd):
    def loss(p):
        jax.debug.print("loss {}", p[0])
        return right(p)

    assert jaxcheck.check(loss, W).passed
    jax.effects_barrier()
    assert capfd.readouterr().out.count("loss") <= 2


# ---- under what a user may have switched on --------------------------------------


@pytest.mark.parametrize(
    ("mode", "precision"), [("exhaustive", "native"), ("directional", "float64")]
)
def test_strict_dtype_promotion(mode, precision):
    with jax.numpy_dtype_promotion("strict"):
        report = jaxcheck.check(right, W, mode=mode, precision=precision)
        assert report.verdict is Verdict.CORRECT, str(report)
        report = jaxcheck.check(wrong, W, mode=mode, precision=precision)
        assert report.verdict is Verdict.WRONG, str(report)


@pytest.mark.parametrize("mode", ["exhaustive", "directional"])
def test_rank_promotion_raises(mode):
    params = {"w": jnp.ones((2, 3)), "s": jnp.float32(0.3)}
    with jax.numpy_rank_promotion("raise"):
        loss = lambda p: right(p["w"]) * p["s"]  # noqa: E731
        assert jaxcheck.check(loss, params, mode=mode).passed


def test_transfers_are_disallowed():
    """Everything that a check moves to the device, it moves explicitly."""
    key = jax.random.key(0)
    with jax.transfer_guard("disallow"):
        assert jaxcheck.check(right, W, key=key).passed
        assert jaxcheck.check(right, W).passed


def test_without_jit():
    with jax.disable_jit():
        assert jaxcheck.check(right, W[:1]).passed
        report = jaxcheck.check(wrong, W[:1], mode="directional", directions=1)
        assert report.verdict is Verdict.WRONG


def test_nans_are_debugged():
    """A right loss is not stopped, and a NaN is a report, or JAX's own error."""
    with jax.debug_nans(True):
        assert jaxcheck.check(right, W).passed
        assert jaxcheck.check(wrong, W).verdict is Verdict.WRONG
        report = jaxcheck.check(lambda p: jnp.sum(jnp.log(-p)), W)
    assert report.verdict is Verdict.INCONCLUSIVE
    assert "nan_loss" in {finding.kind for finding in report.findings}


def test_nans_are_debugged_beside_the_edge_of_the_domain():
    """Steps of the ladder leave the domain: no reason for an error of ours."""
    p = jnp.asarray([1e-3, 2.0])

    def loss(p):
        return jnp.sum(edited(lambda x, ct: 2 * ct)(jnp.sqrt(p - 9e-4)))

    expected = jaxcheck.check(loss, p).verdict
    with jax.debug_nans(True):
        assert jaxcheck.check(loss, p).verdict is expected


def test_compilations_are_logged():
    with jax.log_compiles(False), jax.default_matmul_precision("bfloat16"):
        w = jnp.asarray(np.linspace(0, 1, 12, dtype=np.float32).reshape(3, 4))
        loss = lambda w: jnp.sum(jnp.tanh(w @ w.T))  # noqa: E731
        assert jaxcheck.check(loss, w).passed


@pytest.mark.parametrize("impl", ["rbg", "unsafe_rbg"])
def test_another_random_generator_as_default(impl):
    before = jax.config.jax_default_prng_impl
    jax.config.update("jax_default_prng_impl", impl)
    try:
        report = jaxcheck.check(right, W, mode="directional")
        assert report.verdict is Verdict.CORRECT, str(report)
        report = jaxcheck.check(wrong, W, mode="directional", key=jax.random.key(3))
        assert report.verdict is Verdict.WRONG
        assert str(report)
    finally:
        jax.config.update("jax_default_prng_impl", before)


def test_on_another_device():
    device = jax.devices()[2]
    with jax.default_device(device):
        assert jaxcheck.check(right, W).passed
    assert jaxcheck.check(right, jax.device_put(W, device)).passed


def test_many_threads_at_once():
    """Each thread has its own x64 context; none disturbs another."""

    def one(k):
        with jax.enable_x64(bool(k % 2)):
            leaf = np.linspace(0.1, 1, 3 + k)
            report = jaxcheck.check(wrong if k % 3 == 0 else right, leaf)
            return report.verdict, report.leaves[0].dtype

    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(one, range(4)))
    assert found == [
        (
            Verdict.WRONG if k % 3 == 0 else Verdict.CORRECT,
            "float64" if k % 2 else "float32",
        )
        for k in range(4)
    ]


def test_inside_pytest_with_xdist(tmp_path, subprocess_run):
    (tmp_path / "test_gradients.py").write_text(
        "import jax.numpy as jnp\n"
        "import jaxcheck\n"
        "def test_gradient():\n"
        "    jaxcheck.assert_gradients_correct(\n"
        "        lambda p: jnp.sum(jnp.sin(p)), jnp.ones(2))\n"
    )
    subprocess_run(
        f"""
        import pytest, sys
        sys.exit(pytest.main(["-n", "1", "-q", "-p", "no:cacheprovider",
                              "--rootdir", {str(tmp_path)!r}, {str(tmp_path)!r}]))
        """
    )
