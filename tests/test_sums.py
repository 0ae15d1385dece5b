"""Sums over arrays of all shapes, against NumPy's in float64."""

from __future__ import annotations

import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxcheck.training.leaves import entries_of
from jaxcheck.training.norms import norms_of
from jaxcheck.training.sums import summed

needs_four_devices = pytest.mark.skipif(
    len(jax.devices()) < 4, reason="needs four devices"
)

# Short and long axes, some of which nothing divides, and elements that one sum of them
# all, one after the other, would lose digits of.
SHAPES = [
    (),
    (1,),
    (7,),
    (4099,),
    (1_299_709,),
    (1 << 21,),
    (1_000_003, 2),
    (4096, 200),
    (50_257, 12),
    (3, 3, 64, 128),
    (2, 1, 20_011, 3),
]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_sums_and_maxima_of_any_shape(shape):
    rng = np.random.default_rng(0)
    x = np.abs(0.1 + 0.01 * rng.standard_normal(shape)).astype(np.float32)
    for keep in [None, *range(len(shape))]:
        axes = tuple(k for k in range(len(shape)) if k != keep)
        total, above, most = jax.jit(
            lambda x, keep=keep: summed(
                [x, (x > 0.1).astype(jnp.int32)], keep, largest=[x]
            )
        )(x)
        np.testing.assert_allclose(total, x.sum(axis=axes, dtype=float), rtol=3e-6)
        np.testing.assert_array_equal(above, (x > 0.1).sum(axis=axes))
        np.testing.assert_array_equal(most, x.max(axis=axes))
        assert above.dtype == jnp.int32


def test_norms_alone_are_one_pass():
    """A library's reduction would be handed the squares of all elements."""
    x = jnp.ones((512, 512))
    alone = jax.jit(lambda x: norms_of(entries_of("", [x]), [x], (), jnp.float32).norm)
    memory = alone.lower(x).compile().memory_analysis()
    assert memory.temp_size_in_bytes < x.nbytes // 10


@pytest.mark.parametrize("shape", [(1 << 20,), (1 << 12, 24)], ids=str)
@needs_four_devices
def test_long_arrays_that_are_split_over_devices_stay_there(shape):
    mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,))
    x = jax.device_put(jnp.ones(shape), NamedSharding(mesh, P("data")))
    compiled = jax.jit(lambda x: summed([x, jnp.square(x)])).lower(x).compile()
    kinds = r"= \w+\[([\d,]*)\]\S* (all-\w+|collective-permute)\("
    sent = re.findall(kinds, compiled.as_text())
    # of each sum, what four devices have of it
    assert [math.prod(map(int, size.split(","))) for size, _ in sent] == [4, 4]
    assert [float(total) for total in compiled(x)] == [x.size] * 2
