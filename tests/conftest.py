"""Ground rules of the test suite: four devices, and nothing is left changed behind."""

import collections
import os

# Before JAX looks at its devices: sharded parameters are tested on one CPU as well.
os.environ["XLA_FLAGS"] = (
    f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=4"
)

import jax
import numpy as np
import pytest
from hypothesis import settings

# Compilation makes a first example slow, so a deadline would measure the machine.
settings.register_profile("jaxcheck", deadline=None)
settings.register_profile("jaxcheck-ci", deadline=None, derandomize=True)
settings.load_profile("jaxcheck-ci" if "CI" in os.environ else "jaxcheck")


def global_state():
    """What a check must leave as it found it."""
    name, keys, *rest = np.random.get_state()  # noqa: NPY002
    return {
        "jax_enable_x64": jax.config.jax_enable_x64,
        "jax_default_device": jax.config.jax_default_device,
        "jax_default_matmul_precision": jax.config.jax_default_matmul_precision,
        "numpy.random": (name, keys.tobytes(), *rest),
    }


@pytest.fixture(autouse=True)
def _state_is_left_as_found():
    before = global_state()
    yield
    assert global_state() == before


# Tables that tests import; --doctest-modules would import them a second time.
collect_ignore_glob = ["programs/*", "catalogue/*", "located/*"]

# Whole files that are left out unless asked for with -m "slow or not slow": grids over
# programs, dtypes and frameworks, which take longer than everything else together.
SLOW_FILES = {
    "test_benchmarks.py",
    "test_catalogue_oracle.py",
    "test_check_frameworks.py",
    "test_check_inputs.py",
    "test_check_modes.py",
    "test_check_nonfinite.py",
    "test_check_precision.py",
    "test_check_report.py",
    "test_check_sharded.py",
    "test_check_state.py",
    "test_check_stop_gradient.py",
    "test_error_bars.py",
    "test_examples.py",
    "test_fingerprint.py",
    "test_gradient_statistics_transforms.py",
    "test_interpret.py",
    "test_lift.py",
    "test_located_faults.py",
    "test_magnitudes.py",
    "test_onehot.py",
    "test_perturb.py",
    "test_probes.py",
}

# Of each test in these files that has many cases, every n-th is run by default: they
# are alike, and all of them take as long as everything else together.
EVERY_NTH_CASE = {
    "test_approximations.py": 3,
    "test_audit.py": 3,
    "test_backward_probe.py": 3,
    "test_check_compilations.py": 2,
    "test_check_kinks.py": 2,
    "test_check_update.py": 3,
    "test_comparison.py": 2,
    "test_compiler.py": 2,
    "test_controls.py": 4,
    "test_defects.py": 2,
    "test_derivatives.py": 2,
    "test_diagnose.py": 2,
    "test_evaluation.py": 3,
    "test_gradient_flow.py": 2,
    "test_gradient_statistics.py": 2,
    "test_locate.py": 2,
    "test_monitor.py": 2,
    "test_monitor_places.py": 2,
    "test_mutants.py": 3,
    "test_narrow.py": 2,
    "test_optimizers_table.py": 4,
    "test_optimizers_torch.py": 6,
    "test_precision_places.py": 2,
    "test_rules_optax.py": 3,
    "test_selftest.py": 2,
    "test_switches.py": 3,
    "test_todays_tools.py": 2,
    "test_train_step.py": 4,
    "test_train_step_equivalences.py": 2,
    "test_train_step_frameworks.py": 3,
    "test_update_mutants.py": 2,
    "test_update_noise.py": 5,
    "test_update_nonfinite.py": 3,
    "test_update_others.py": 2,
}


def pytest_collection_modifyitems(items):
    cases = collections.Counter()
    for item in items:
        name = item.path.name
        is_slow = name in SLOW_FILES
        if name in EVERY_NTH_CASE and hasattr(item, "callspec"):
            test = name, item.originalname
            is_slow |= cases[test] % EVERY_NTH_CASE[name] > 0
            cases[test] += 1
        if is_slow:
            item.add_marker(pytest.mark.slow)
