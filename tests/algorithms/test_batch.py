"""Rows of a batch, and the minibatches they are drawn into."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from inchworm.algorithms.batch import from_rows, minibatches, to_rows
from inchworm.types import Batch

T, N = 4, 3


def batch(carry):
    """Its observations name the step and the environment."""
    numbers = jnp.arange(T * N).reshape(T, N)
    return Batch(numbers, None, None, None, carry, None, jnp.zeros((T, N, 2)), None, None, None)  # type: ignore[arg-type]


def test_a_row_is_a_transition_or_with_memory_an_environment_s_trajectory():
    flat = to_rows(batch(None), recurrent=False)
    np.testing.assert_array_equal(flat.obs, np.arange(T * N))
    assert flat.advantage.shape == (T * N, 2)
    assert from_rows(flat, recurrent=False) is flat
    trajectories = to_rows(batch(jnp.arange(N)), recurrent=True)
    np.testing.assert_array_equal(trajectories.obs, np.arange(T * N).reshape(T, N).T)
    np.testing.assert_array_equal(trajectories.carry, np.arange(N))
    np.testing.assert_array_equal(from_rows(trajectories, recurrent=True).obs, batch(None).obs)


@pytest.mark.parametrize("number", [2, 4, 12])
def test_minibatches_hold_every_row_once_in_an_order_of_the_key_and_keep_what_belongs_together(number):
    rows = {"a": jnp.arange(12), "b": jnp.stack([jnp.arange(12), -jnp.arange(12)], axis=1)}
    one, again, other = (minibatches(rows, jax.random.key(seed), number) for seed in (0, 0, 1))
    assert (one["a"].shape, one["b"].shape) == ((number, 12 // number), (number, 12 // number, 2))
    assert sorted(np.ravel(one["a"])) == list(range(12))
    np.testing.assert_array_equal(one["b"], np.stack([one["a"], -one["a"]], axis=-1))
    np.testing.assert_array_equal(one["a"], again["a"])
    assert not np.array_equal(one["a"], other["a"])
    assert not np.array_equal(np.ravel(one["a"]), np.arange(12))


def test_the_only_minibatch_is_the_batch_as_it_is():
    rows = {"a": jnp.arange(6), "b": jnp.ones((6, 2))}
    found = minibatches(rows, jax.random.key(0), 1)
    np.testing.assert_array_equal(found["a"], [np.arange(6)])
    assert found["b"].shape == (1, 6, 2)
