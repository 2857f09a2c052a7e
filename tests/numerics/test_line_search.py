"""The first good enough point of a shrinking step, and the inner product of trees, by hand."""

import jax.numpy as jnp
import numpy as np
import pytest

from inchworm.numerics.line_search import backtrack, inner


@pytest.mark.parametrize(
    ("limit", "accepted", "tries", "point"),
    [
        (1.0, True, 1, (1.0, 2.0)),
        (0.3, True, 3, (-0.5, 1.25)),
        (0.125, True, 4, (-0.75, 1.125)),
        (0.124, False, 4, (-1.0, 1.0)),
    ],
)
def test_the_first_share_of_the_step_that_is_acceptable_is_taken_or_the_start(limit, accepted, tries, point):
    start, step = {"x": jnp.float32(-1.0), "y": jnp.float32([1.0])}, {"x": jnp.float32(2.0), "y": jnp.float32([1.0])}
    # Shares of 1, 1/2, 1/4 and 1/8; the share is how far y is from 1.
    found = backtrack(lambda at: at["y"][0] - 1.0 <= limit, start, step, 0.5, 4)
    assert (bool(found.accepted), int(found.tries)) == (accepted, tries)
    assert (float(found.point["x"]), float(found.point["y"][0])) == point


def test_a_start_that_adding_nothing_would_change_is_given_back_bit_for_bit():
    start = jnp.float32([-0.0])
    found = backtrack(lambda at: jnp.array(False), start, jnp.float32([np.inf]), 0.5, 2)
    assert np.asarray(found.point).tobytes() == np.float32([-0.0]).tobytes()


def test_the_inner_product_of_trees_is_the_sum_of_those_of_their_leaves():
    a, b = {"x": jnp.array([1.0, 2.0]), "y": jnp.array([[3.0]])}, {"x": jnp.array([4.0, 5.0]), "y": jnp.array([[6.0]])}
    assert inner(a, b) == 1 * 4 + 2 * 5 + 3 * 6
    assert inner({}, {}) == 0
