"""Heads: how many outputs each takes, and what it makes of them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from inchworm import spaces
from inchworm.models.heads import follow_schedule, make_head
from inchworm.models.settings import ModelSettings

BOX = spaces.Box((3,), "float32", -1.0, 1.0)
SETTINGS = {
    "learned": {},
    "state": {"log_std": "state"},
    "scheduled": {"log_std": "linear:-1:-2"},
    "tanh": {"action_distribution": "tanh_gaussian"},
    "beta": {"action_distribution": "beta"},
}


def head_of(name, space=BOX):
    return make_head(space, ModelSettings(**SETTINGS[name]))


@pytest.mark.parametrize(
    ("name", "outputs"), [("learned", 3), ("state", 6), ("scheduled", 3), ("tanh", 3), ("beta", 6)]
)
def test_a_box_takes_one_output_for_each_number_or_two_where_its_spread_is_one(name, outputs):
    assert head_of(name).num_outputs == outputs
    both = spaces.Dict((("a", BOX), ("b", spaces.Discrete(4))))
    assert head_of(name, both).num_outputs == outputs + 4


def test_a_log_std_among_the_outputs_follows_the_means_and_is_clipped():
    outputs = np.float32([[0.1, 0.2, 0.3, -21.0, 0.5, 2.5]])
    distribution = head_of("state")(outputs, None)
    np.testing.assert_array_equal(distribution.mean, outputs[:, :3])
    np.testing.assert_array_equal(distribution.log_std, np.float32([[-20.0, 0.5, 2.0]]))


@pytest.mark.parametrize(("name", "moves"), [("learned", True), ("tanh", True), ("scheduled", False)])
def test_only_a_learned_log_std_has_a_gradient(name, moves):
    def log_prob(head):
        return head(jnp.zeros((1, 3)), None).log_prob(jnp.full((1, 3), 0.5)).sum()

    gradient = jax.grad(log_prob)(head_of(name)).log_std
    assert bool((gradient != 0).all()) == moves


def test_only_a_scheduled_log_std_is_set_from_outside():
    for name in SETTINGS:
        head = head_of(name)
        followed = follow_schedule(head, jnp.float32(-1.5))
        if name == "scheduled":
            np.testing.assert_array_equal(followed.log_std, np.full(3, -1.5, np.float32))
        else:
            assert followed is head


@pytest.mark.parametrize("name", SETTINGS)
def test_sizes_are_structure_and_no_leaves(name):
    leaves = jax.tree.leaves(head_of(name))
    assert all(leaf.shape == (3,) for leaf in leaves)
    assert len(leaves) == (0 if name in ("state", "beta") else 1)
