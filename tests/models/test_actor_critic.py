"""The pair of policy and value function."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import oracles
from inchworm import spaces
from inchworm.errors import UnsupportedSpaceError
from inchworm.models import observations
from inchworm.models.actor_critic import ActorCritic
from inchworm.models.observations import Normalizer
from inchworm.rl.distributions import Categorical, DiagonalGaussian
from inchworm.spaces import EnvSpec

OBSERVATION = spaces.Box((3,), "float32", -1.0, 1.0)
CHOICE = EnvSpec(OBSERVATION, spaces.Discrete(4, start=2))
VECTOR = EnvSpec(OBSERVATION, spaces.Box((2, 1), "float32", -1.0, 1.0))
NO_STATS = observations.freeze(observations.empty_stats(OBSERVATION, False))
OBS = np.float32(np.random.default_rng(0).normal(size=(5, 3)))

init = jax.jit(ActorCritic.init, static_argnums=(1, 2))
act = jax.jit(ActorCritic.act)
values = jax.jit(ActorCritic.values)
evaluate = jax.jit(ActorCritic.evaluate)


@pytest.fixture(scope="module")
def choice():
    return init(jax.random.key(0), CHOICE, (8,))


@pytest.fixture(scope="module")
def vector():
    return init(jax.random.key(0), VECTOR, (8,))


def test_a_discrete_space_gives_one_logit_for_each_choice(choice):
    distribution = act(choice, NO_STATS, OBS)
    assert isinstance(distribution, Categorical)
    np.testing.assert_allclose(
        distribution.logits, oracles.mlp(choice.policy.network.weights, choice.policy.network.biases, OBS), atol=1e-6
    )


def test_a_box_gives_a_mean_for_each_element_and_one_log_std_for_all_states(vector):
    distribution = act(vector, NO_STATS, OBS)
    assert isinstance(distribution, DiagonalGaussian)
    assert (distribution.mean.shape, distribution.log_std.shape) == ((5, 2), (2,))
    np.testing.assert_array_equal(vector.policy.head.log_std, [0, 0])


def test_a_fresh_policy_is_nearly_the_same_in_every_state(choice, vector):
    assert np.abs(act(choice, NO_STATS, OBS).logits).max() < 0.05
    assert np.abs(act(vector, NO_STATS, OBS).mean).max() < 0.05
    assert np.abs(values(choice, NO_STATS, OBS)).max() > 0.05


def test_policy_and_value_share_no_parameter(choice):
    by_policy = jax.jit(jax.grad(lambda model: model.act(NO_STATS, jnp.asarray(OBS)).logits.sum()))(choice)
    by_value = jax.jit(jax.grad(lambda model: model.values(NO_STATS, jnp.asarray(OBS)).sum()))(choice)
    assert all((leaf == 0).all() for leaf in jax.tree.leaves(by_policy.value))
    assert all((leaf == 0).all() for leaf in jax.tree.leaves(by_value.policy))
    for gradient in (by_policy.policy.network, by_value.value):
        assert all((leaf != 0).any() for leaf in jax.tree.leaves(gradient))


def test_evaluate_is_act_and_values_in_one(choice):
    distribution, value = evaluate(choice, NO_STATS, OBS)
    np.testing.assert_array_equal(distribution.logits, act(choice, NO_STATS, OBS).logits)
    np.testing.assert_array_equal(value, values(choice, NO_STATS, OBS))
    assert value.shape == (5,)


def test_time_and_environment_axes_pass_through(choice):
    block = np.tile(OBS, (2, 1, 1))
    distribution, value = evaluate(choice, NO_STATS, block)
    assert (distribution.logits.shape, value.shape) == ((2, 5, 4), (2, 5))
    np.testing.assert_allclose(value[1], values(choice, NO_STATS, OBS), rtol=1e-5)


def test_observations_are_normalised_at_the_entry(choice):
    normalizers = (Normalizer(np.float32([1, 2, 3]), np.float32([0.5, 1, 2])),)
    by_hand = (3 * OBS + 1 - np.float32([1, 2, 3])) * np.float32([0.5, 1, 2])
    assert np.abs(by_hand).max() > observations.OBSERVATION_CLIP
    by_hand = np.clip(by_hand, -5, 5)
    np.testing.assert_array_equal(act(choice, normalizers, 3 * OBS + 1).logits, act(choice, NO_STATS, by_hand).logits)
    np.testing.assert_array_equal(values(choice, normalizers, 3 * OBS + 1), values(choice, NO_STATS, by_hand))


def test_a_mask_forbids_choices(choice):
    mask = np.tile([True, False, True, True], (5, 1))
    p = np.exp(act(choice, NO_STATS, OBS, mask).log_probs())
    np.testing.assert_array_equal(p[:, 1], 0)
    free = oracles.softmax(act(choice, NO_STATS, OBS).logits)
    np.testing.assert_allclose(p[:, 0] / p[:, 2], free[:, 0] / free[:, 2], rtol=1e-5)


def test_noise_has_the_shape_that_sampling_needs(choice, vector):
    for model, size in ((choice, 4), (vector, 2)):
        noise = jax.eval_shape(lambda key, head=model.policy.head: head.draw_noise(key, (7, 5)), jax.random.key(0))
        assert (noise.shape, noise.dtype) == ((7, 5, size), jnp.float32)


def test_the_policy_s_own_code_on_numpy_gives_the_same_outputs(choice, vector):
    for model in (choice, vector):
        policy = observations.to_numpy(model.policy)
        outputs = policy.network(OBS)
        assert (type(outputs), outputs.dtype) == (np.ndarray, np.float32)
        distribution = act(model, NO_STATS, OBS)
        parameters = distribution.logits if model is choice else distribution.mean
        np.testing.assert_allclose(outputs, parameters, rtol=1e-5, atol=1e-7)


def test_the_key_decides_the_parameters_and_the_two_networks_differ():
    same, again, other = (init(jax.random.key(k), CHOICE, (8,)) for k in (0, 0, 1))
    for ours, theirs, strange in zip(*map(jax.tree.leaves, (same, again, other)), strict=True):
        np.testing.assert_array_equal(ours, theirs)
        assert ours.ndim == 1 or (ours != strange).any()
    assert (same.policy.network.weights[0] != same.value.weights[0]).any()


def test_parameters_are_single_precision(choice, vector):
    assert {leaf.dtype for model in (choice, vector) for leaf in jax.tree.leaves(model)} == {jnp.dtype("float32")}


@pytest.mark.parametrize(
    "space",
    [
        spaces.Box((2,), "int32", 0.0, 3.0),
        spaces.Box((0,), "float32", -1.0, 1.0),
        spaces.Dict((("a", spaces.Discrete(2)),)),
        spaces.Tuple((spaces.Discrete(2), spaces.Discrete(2))),
    ],
    ids=["whole numbers", "empty", "dict", "tuple"],
)
def test_action_spaces_without_a_policy_are_refused(space):
    with pytest.raises(UnsupportedSpaceError) as error:
        ActorCritic.init(jax.random.key(0), EnvSpec(OBSERVATION, space))
    assert error.value.field == "action_space"


def test_observation_spaces_that_cannot_be_read_are_refused():
    with pytest.raises(UnsupportedSpaceError, match="observation_space"):
        ActorCritic.init(jax.random.key(0), EnvSpec(spaces.Box((8, 8, 3), "uint8", 0.0, 255.0), spaces.Discrete(2)))
