"""Leaves are parted where single coordinates of some spare much of the work."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcheck.gradients.groups import groups_of
from jaxcheck.jaxprs.reach import work_behind_inputs

MANY = 1e9


def chain(depth, width=8):
    """A product of matrices; the last one is multiplied last."""

    def fun(x, *matrices):
        for matrix in matrices:
            x = x @ matrix
        return jnp.sum(x)

    matrix = np.ones((width, width))
    return jax.make_jaxpr(fun)(*[matrix] * (depth + 1))


def test_work_is_counted_with_the_inputs_it_depends_on():
    program = jax.make_jaxpr(lambda a, b, c: (jnp.sin(a) @ b, c + 1))(
        np.ones((2, 3)), np.ones((3, 4)), np.ones(5)
    )
    work, reached = work_behind_inputs(program)
    assert work.tolist() == [6, 24, 5]
    assert reached.tolist() == [[1, 0, 0], [1, 1, 0], [0, 0, 1]]


def work_of(fun, *inputs):
    return float(np.sum(work_behind_inputs(jax.make_jaxpr(fun)(*inputs))[0]))


def test_work_in_a_loop_counts_once_a_turn():
    loop = lambda x: jax.lax.scan(lambda c, y: (jnp.sin(c * y), c), x[0], x)  # noqa: E731
    once, twice = work_of(loop, np.ones(70)), work_of(loop, np.ones(140))
    assert once >= 140
    assert twice == pytest.approx(2 * once, rel=0.05)


def test_work_of_a_convolution_is_that_of_its_products():
    conv = lambda x, k: jax.lax.conv(x, k, (1, 1), "SAME")  # noqa: E731
    work = work_of(conv, np.ones((2, 3, 5, 5)), np.ones((4, 3, 3, 3)))
    assert work == 2 * 4 * 25 * 27


def test_a_chain_is_parted_in_the_middle():
    every = groups_of(chain(7), [MANY] * 8)
    assert len(every) == 2
    first, second = every
    assert first == tuple(range(len(first)))
    assert second == tuple(range(len(first), 8))
    assert len(second) in (4, 5)


def test_leaves_with_few_lanes_do_not_decide():
    assert groups_of(chain(3), [0, 0, 0, MANY]) == [(0, 1, 2), (3,)]


@pytest.mark.parametrize(
    ("program", "lanes"),
    [
        (chain(7), [1.0] * 8),  # nothing worth a second body
        (
            jax.make_jaxpr(lambda a, b: a @ b)(np.ones((9, 9)), np.ones((9, 9))),
            [MANY] * 2,
        ),
        (jax.make_jaxpr(jnp.sin)(1.0), [MANY]),
    ],
    ids=["small", "all_alike", "one"],
)
def test_one_group_where_two_spare_nothing(program, lanes):
    assert groups_of(program, lanes) == [tuple(range(len(lanes)))]


def test_the_order_of_the_inputs_does_not_matter():
    program = jax.make_jaxpr(
        lambda late, early: jnp.sin(jnp.cos(jnp.exp(early))) * late
    )(np.ones(9), np.ones(9))
    assert groups_of(program, [MANY] * 2) == [(1,), (0,)]
