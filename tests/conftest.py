"""Ground rules of the test suite: four devices, and nothing is left changed behind."""

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


def pytest_collection_modifyitems(items):
    for item in items:
        if item.path.name in SLOW_FILES:
            item.add_marker(pytest.mark.slow)
