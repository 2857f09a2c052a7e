"""The policy and the value function, apart and on a shared trunk."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import oracles
from inchworm import spaces
from inchworm.errors import ConfigError, UnsupportedSpaceError
from inchworm.models import observations
from inchworm.models.actor_critic import SharedActorCritic, make_model, runs_on_numpy
from inchworm.models.heads import BetaHead
from inchworm.models.observations import Normalizer
from inchworm.models.settings import ModelSettings
from inchworm.rl.distributions import Bernoulli, Categorical, DiagonalGaussian, MultiCategorical, Product
from inchworm.spaces import EnvSpec

OBSERVATION = spaces.Box((3,), "float32", -1.0, 1.0)
CHOICE = EnvSpec(OBSERVATION, spaces.Discrete(4, start=2))
VECTOR = EnvSpec(OBSERVATION, spaces.Box((2, 1), "float32", -1.0, 1.0))
IMAGE = spaces.Box((36, 36, 3), "uint8", 0.0, 255.0)
GREY = spaces.Box((36, 36), "uint8", 0.0, 255.0)
SMALL = ModelSettings(hidden_sizes=(8,))
SHARED = ModelSettings(hidden_sizes=(8,), shared_trunk=True)
NO_STATS = observations.freeze(observations.empty_stats(OBSERVATION, False))
OBS = np.float32(np.random.default_rng(0).normal(size=(5, 3)))

init = jax.jit(make_model, static_argnums=(1, 2))
act = jax.jit(lambda model, normalizers, obs, mask=None: model.act(normalizers, obs, mask=mask)[0])
unroll = jax.jit(lambda model, normalizers, obs: model.unroll(normalizers, obs)[:2])


def values(model, normalizers, obs):
    return unroll(model, normalizers, obs)[1]


def fresh_shapes(spec: EnvSpec, settings: ModelSettings = SMALL, custom_network=None):
    """A model of shapes alone, which costs no compilation."""
    return jax.eval_shape(lambda key: make_model(key, spec, settings, custom_network), jax.random.key(0))


@pytest.fixture(scope="module")
def choice():
    return init(jax.random.key(0), CHOICE, SMALL)


@pytest.fixture(scope="module")
def vector():
    return init(jax.random.key(0), VECTOR, SMALL)


@pytest.fixture(scope="module")
def shared():
    return init(jax.random.key(0), CHOICE, SHARED)


def test_a_discrete_space_gives_one_logit_for_each_choice(choice):
    distribution = act(choice, NO_STATS, OBS)
    assert isinstance(distribution, Categorical)
    layers = choice.policy.network.layers
    np.testing.assert_allclose(distribution.logits, oracles.mlp(layers.weights, layers.biases, OBS), atol=1e-6)


def test_a_box_gives_a_mean_for_each_element_and_one_log_std_for_all_states(vector):
    distribution = act(vector, NO_STATS, OBS)
    assert isinstance(distribution, DiagonalGaussian)
    assert (distribution.mean.shape, distribution.log_std.shape) == ((5, 2), (2,))
    np.testing.assert_array_equal(vector.head.log_std, [0, 0])


def test_a_fresh_policy_is_nearly_the_same_in_every_state(choice, vector, shared):
    assert np.abs(act(choice, NO_STATS, OBS).logits).max() < 0.05
    assert np.abs(act(vector, NO_STATS, OBS).mean).max() < 0.05
    assert np.abs(act(shared, NO_STATS, OBS).logits).max() < 0.05
    for model in (choice, shared):
        assert np.abs(values(model, NO_STATS, OBS)).max() > 0.05


def test_policy_and_value_share_no_parameter(choice):
    by_policy, by_value = slopes(choice)
    assert all((leaf == 0).all() for leaf in jax.tree.leaves(by_policy.value))
    assert all((leaf == 0).all() for leaf in jax.tree.leaves(by_value.policy))
    for gradient in (by_policy.policy.network, by_value.value):
        assert all((leaf != 0).any() for leaf in jax.tree.leaves(gradient))


def test_with_a_shared_trunk_all_but_the_last_layers_is_shared(shared):
    by_policy, by_value = slopes(shared)
    for gradient in (by_policy.trunk, by_value.trunk, by_policy.policy, by_value.value):
        assert all((leaf != 0).any() for leaf in jax.tree.leaves(gradient))
    for gradient in (by_policy.value, by_value.policy):
        assert all((leaf == 0).all() for leaf in jax.tree.leaves(gradient))
    assert [len(part.weights) for part in (shared.trunk.layers, shared.policy, shared.value)] == [1, 1, 1]


@jax.jit
def slopes(model):
    """The gradients of all logits' sum and of all values' sum."""
    obs = jnp.asarray(OBS)
    by_policy = jax.grad(lambda model: model.act(NO_STATS, obs)[0].logits.sum())(model)
    return by_policy, jax.grad(lambda model: model.unroll(NO_STATS, obs).value.sum())(model)


@pytest.mark.parametrize("name", ["choice", "shared"])
def test_unrolling_gives_what_acting_gives_and_the_values(name, request):
    model = request.getfixturevalue(name)
    distribution, value = unroll(model, NO_STATS, OBS)
    np.testing.assert_allclose(distribution.logits, act(model, NO_STATS, OBS).logits, rtol=1e-6)
    np.testing.assert_allclose(jax.jit(type(model).outputs)(model, NO_STATS, OBS), distribution.logits, rtol=1e-6)
    np.testing.assert_allclose(jax.jit(type(model).look_ahead)(model, NO_STATS, OBS, None), value, rtol=1e-6)
    assert value.shape == (5,)
    assert (model.recurrent, model.initial_carry(5)) == (False, None)


@pytest.fixture(params=[(core, shared) for core in ("gru", "lstm") for shared in (False, True)], ids=str)
def remembering(request, made_up):
    """A model with memory, four steps of two environments, and memories that all differ."""
    core, shared = request.param
    settings = ModelSettings(hidden_sizes=(4,), recurrent=core, recurrent_size=3, shared_trunk=shared)
    model = made_up(lambda key: make_model(key, CHOICE, settings))
    generator = np.random.default_rng(1)
    carry = jax.tree.map(lambda leaf: np.float32(generator.normal(size=leaf.shape)), model.initial_carry(2))
    return model, np.float32(generator.normal(size=(4, 2, 3))), carry


@jax.jit
def unroll_from(model, obs, first, carry):
    return model.unroll(NO_STATS, obs, first, None, carry)


def test_policy_and_value_function_each_go_on_from_their_own_memory_in_acting_as_in_unrolling(remembering):
    model, obs, carry = remembering
    first = np.zeros((4, 2), bool)
    first[2, 0] = True
    whole = unroll_from(model, obs, first, carry)
    step = jax.jit(lambda model, *now: (*model.act(NO_STATS, now[0], now[1], None, now[2]), value_after(model, *now)))

    def value_after(model, obs, first, carry):
        if isinstance(model, SharedActorCritic):
            return model.value(model.trunk.step(NO_STATS, obs, first, carry)[0])
        return model.value.step(NO_STATS, obs, first, carry[1])[0]

    for t in range(4):
        distribution, carry, value = step(model, obs[t], first[t], carry)
        np.testing.assert_allclose(whole.distribution.logits[t], distribution.logits, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(whole.value[t], value[:, 0], rtol=1e-5, atol=1e-6)
        for ours, theirs in zip(*map(jax.tree.leaves, (whole.carries, carry)), strict=True):
            np.testing.assert_allclose(ours[t], theirs, rtol=1e-5, atol=1e-6)


def test_looking_ahead_gives_the_value_that_the_next_row_has(remembering):
    model, obs, carry = remembering
    whole = unroll_from(model, obs, np.zeros((4, 2), bool), carry)
    carries = jax.tree.map(lambda leaf: leaf[:-1], whole.carries)
    ahead = jax.jit(type(model).look_ahead)(model, NO_STATS, obs[1:], carries)
    np.testing.assert_allclose(ahead, whole.value[1:], rtol=1e-5, atol=1e-6)


def test_densities_on_an_interval_have_parameters_of_one_and_the_softplus_of_the_outputs():
    outputs = jnp.float32([[-100.0, 0.0, 3.0, -1.0]])
    distribution = BetaHead(2)(outputs, None)
    softplus = np.log1p(np.exp(np.float64(outputs[0])))
    np.testing.assert_allclose(distribution.alpha[0], 1.0 + softplus[:2], rtol=1e-6)
    np.testing.assert_allclose(distribution.beta[0], 1.0 + softplus[2:], rtol=1e-6)


def test_time_and_environment_axes_pass_through(choice):
    block = np.tile(OBS, (2, 1, 1))
    distribution, value = unroll(choice, NO_STATS, block)
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
        noise = jax.eval_shape(lambda key, head=model.head: head.draw_noise(key, (7, 5)), jax.random.key(0))
        assert (noise.shape, noise.dtype) == ((7, 5, size), jnp.float32)


def test_the_policy_s_own_code_on_numpy_gives_the_same_outputs(choice, vector, shared):
    for model in (choice, vector, shared):
        on_numpy = observations.to_numpy(model)
        assert runs_on_numpy(on_numpy)
        outputs = on_numpy.outputs(NO_STATS, OBS)
        assert (type(outputs), outputs.dtype) == (np.ndarray, np.float32)
        distribution = act(model, NO_STATS, OBS)
        parameters = distribution.mean if model is vector else distribution.logits
        np.testing.assert_allclose(outputs, parameters, rtol=1e-5, atol=1e-7)


def test_the_key_decides_the_parameters_and_the_two_networks_differ():
    same, again, other = (init(jax.random.key(k), CHOICE, SMALL) for k in (0, 0, 1))
    for ours, theirs, strange in zip(*map(jax.tree.leaves, (same, again, other)), strict=True):
        np.testing.assert_array_equal(ours, theirs)
        assert ours.ndim == 1 or (ours != strange).any()
    assert (same.policy.network.layers.weights[0] != same.value.layers.weights[0]).any()


def test_parameters_are_single_precision(choice, vector):
    assert {leaf.dtype for model in (choice, vector) for leaf in jax.tree.leaves(model)} == {jnp.dtype("float32")}


PARTS = spaces.Dict((("a", spaces.Discrete(2)), ("b", spaces.Tuple((spaces.MultiBinary((3,)), VECTOR.action_space)))))


@pytest.mark.parametrize(
    ("space", "kind", "outputs"),
    [
        (spaces.MultiDiscrete((2, 3), (2,), (0, 5)), MultiCategorical, 5),
        (spaces.MultiBinary((2, 2)), Bernoulli, 4),
        (PARTS, Product, 2 + 3 + 2),
    ],
    ids=["several choices", "bits", "nested"],
)
def test_choices_bits_and_whatever_is_made_of_such_parts_have_a_policy(space, kind, outputs):
    model = fresh_shapes(EnvSpec(OBSERVATION, space))
    assert model.head.num_outputs == outputs
    assert model.policy.network.layers.weights[-1].shape == (8, outputs)
    distribution, _ = jax.eval_shape(lambda model: model.act(NO_STATS, jnp.asarray(OBS)), model)
    assert isinstance(distribution, kind)


@pytest.mark.parametrize(
    "space",
    [
        spaces.Box((2,), "int32", 0.0, 3.0),
        spaces.Dict((("a", spaces.Box((2,), "int32", 0.0, 3.0)),)),
    ],
    ids=["whole numbers", "whole numbers inside"],
)
def test_action_spaces_without_a_policy_are_refused(space):
    with pytest.raises(UnsupportedSpaceError) as error:
        make_model(jax.random.key(0), EnvSpec(OBSERVATION, space), SMALL)
    assert error.value.field == "action_space"


@pytest.mark.parametrize("action_distribution", ["tanh_gaussian", "beta"])
def test_a_box_without_bounds_is_refused_by_policies_that_spread_over_it(action_distribution):
    spec = EnvSpec(OBSERVATION, spaces.Box((2,), "float32", -np.inf, np.inf))
    with pytest.raises(UnsupportedSpaceError, match="no finite range"):
        make_model(jax.random.key(0), spec, ModelSettings(action_distribution=action_distribution))


@pytest.mark.parametrize("image", [IMAGE, GREY], ids=["colours", "grey"])
def test_images_go_through_a_convolutional_network_and_what_lies_beside_them_does_not(image):
    space = spaces.Dict((("camera", image), ("walk", OBSERVATION)))
    model = fresh_shapes(EnvSpec(space, spaces.Discrete(2)), ModelSettings(hidden_sizes=(8,), image_network="nature"))
    camera, walk = model.policy.network.encoder.networks
    assert (camera is not None, walk) == (True, None)
    # The network's 512 features for the image, then the walk as it is (Mnih et al. 2015, table of layers).
    assert model.policy.network.layers.weights[0].shape == (512 + 3, 8)
    assert not runs_on_numpy(model)
    obs = {"camera": jnp.zeros((7, *image.shape), jnp.uint8), "walk": jnp.zeros((7, 3))}
    unrolled = jax.eval_shape(lambda model, obs: model.unroll((None, None), obs), model, obs)
    assert (unrolled.distribution.logits.shape, unrolled.value.shape) == ((7, 2), (7,))


class Scaled:
    """A network of the user's own without parameters: features are the observation `times` two, side by side."""

    def __init__(self, times: int, shape: tuple[int, ...] = ()) -> None:
        self.times, self.shape = times, shape

    def __call__(self, key, space):
        return jax.tree_util.Partial(lambda obs: jnp.tile(2 * obs, self.times).reshape(len(obs), *self.shape, -1))


def test_a_network_of_the_user_s_own_takes_the_encoder_s_place_and_gets_normalised_observations(made_up):
    model = made_up(lambda key: make_model(key, CHOICE, SMALL, Scaled(2)))
    assert model.policy.network.layers.weights[0].shape == (6, 8)
    normalizers = (Normalizer(np.float32([1, 2, 3]), np.float32([0.5, 1, 2])),)
    normalized = np.clip((OBS - normalizers[0].mean) * normalizers[0].inverse_std, -5, 5)
    features = 2 * np.tile(normalized, 2)
    layers = model.policy.network.layers
    outputs = model.outputs(normalizers, jnp.asarray(OBS))
    np.testing.assert_allclose(outputs, oracles.mlp(layers.weights, layers.biases, features), atol=1e-5)
    assert not runs_on_numpy(model)


def test_a_network_that_gives_no_features_is_refused():
    for custom in (Scaled(1, (1,)), lambda key, space: jax.tree_util.Partial(lambda obs: obs["image"])):
        with pytest.raises(ConfigError, match="for a batch of one observation") as error:
            make_model(jax.random.key(0), CHOICE, SMALL, custom)
        assert error.value.field == "network"


def test_a_network_that_cannot_be_made_is_told_with_what_it_is_called_with():
    with pytest.raises(ConfigError, match=r"^network = .*raises TypeError.*a random key and the observation space"):
        make_model(jax.random.key(0), CHOICE, SMALL, lambda key: key)  # type: ignore[arg-type]


def test_a_log_std_that_follows_a_schedule_has_no_gradient_and_is_set_from_outside():
    settings = ModelSettings(hidden_sizes=(8,), log_std="linear:-0.7:-1.6")
    model = init(jax.random.key(0), VECTOR, settings)
    np.testing.assert_allclose(model.head.log_std, [-0.7, -0.7], rtol=1e-6)
    gradient = jax.jit(jax.grad(lambda model: model.act(NO_STATS, jnp.asarray(OBS))[0].entropy().sum()))(model)
    np.testing.assert_array_equal(gradient.head.log_std, [0, 0])
    np.testing.assert_array_equal(model.with_log_std(jnp.float32(-1.5)).head.log_std, [-1.5, -1.5])


def test_a_learned_log_std_stays_where_it_is(vector):
    np.testing.assert_array_equal(vector.with_log_std(jnp.float32(-1.5)).head.log_std, [0, 0])


@pytest.mark.parametrize("shared", [False, True])
def test_the_value_function_ends_in_one_output_of_unit_scale(shared):
    spec = EnvSpec(spaces.Box((3,), "float32", -1.0, 1.0), spaces.Discrete(2))
    model = make_model(jax.random.key(0), spec, ModelSettings(hidden_sizes=(4,), shared_trunk=shared))
    layers = model.value if shared else model.value.layers
    last = np.asarray(layers.weights[-1])
    assert last.shape == (4, 1)
    assert np.linalg.norm(last) == pytest.approx(1.0, rel=1e-5)
