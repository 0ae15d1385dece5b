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
collect_ignore_glob = ["programs/*", "catalogue/*"]
