"""A policy by itself: from raw observations to what an environment is sent, and to a folder and back."""

import dataclasses

import jax
import numpy as np
import pytest

from fixed_model import fixed_model
from inchworm import spaces
from inchworm.errors import CheckpointError, ConfigError
from inchworm.io.policy_file import load_policy, save_policy
from inchworm.models import observations
from inchworm.models.actor_critic import make_model
from inchworm.models.policy import NOISE_BLOCK, Policy
from inchworm.models.settings import ModelSettings

OBSERVATION = spaces.Box((3,), "float32", -1.0, 1.0)
CHOICE = spaces.Discrete(4, start=2)
PARTS = spaces.Dict(
    (
        ("bits", spaces.MultiBinary((2,))),
        ("choice", CHOICE),
        ("push", spaces.Box((2, 1), "float32", -0.1, 0.1)),
    )
)
OBS = np.float32(np.random.default_rng(0).normal(size=(50, 3)))


def make(action_space, settings: ModelSettings | None = None, seed: int = 0) -> Policy:
    spec = spaces.EnvSpec(OBSERVATION, action_space)
    settings = settings or ModelSettings(hidden_sizes=(8,))
    return Policy(fixed_model(spec, settings=settings), observations.empty_stats(OBSERVATION, True), settings, seed)


def test_one_observation_gives_one_action_and_a_batch_a_batch():
    policy = make(CHOICE)
    batch = policy.act(OBS, deterministic=True)
    assert (batch.shape, batch.dtype) == ((50,), np.int64)
    assert set(batch.tolist()) <= {2, 3, 4, 5}
    assert [int(policy.act(obs, deterministic=True)) for obs in OBS] == batch.tolist()


def test_an_action_in_parts_has_the_environment_s_structure_shapes_and_bounds():
    action = make(PARTS).act(OBS)
    assert {name: (part.shape, part.dtype.name) for name, part in action.items()} == {
        "bits": ((50, 2), "int8"),
        "choice": ((50,), "int64"),
        "push": ((50, 2, 1), "float32"),
    }
    assert np.abs(action["push"]).max() == np.float32(0.1)
    one = make(PARTS).act(OBS[0])
    assert (one["bits"].shape, np.shape(one["choice"]), one["push"].shape) == ((2,), (), (2, 1))


@pytest.mark.parametrize("space", [CHOICE, spaces.MultiDiscrete((4, 2), (2,), (0, 0)), spaces.MultiBinary((2,))])
def test_a_mask_that_allows_nothing_of_a_choice_is_refused(space):
    mask = np.ones((50, spaces.num_mask_columns(space)), bool)
    mask[7, -2:] = False
    mask[7, : 2 if space is CHOICE else 0] = False
    with pytest.raises(ConfigError, match="allows nothing") as error:
        make(space).act(OBS, mask=mask)
    assert error.value.field == "mask"


def test_what_a_mask_forbids_is_never_done():
    policy, mask = make(CHOICE), np.array([False, True, False, True])
    assert set(policy.act(OBS, mask=np.tile(mask, (50, 1))).tolist()) == {3, 5}
    assert set(policy.act(OBS, mask=np.tile(mask, (50, 1)), deterministic=True).tolist()) <= {3, 5}
    assert {int(policy.act(obs, mask=mask)) for obs in OBS} == {3, 5}


@pytest.mark.parametrize(
    ("space", "mask"),
    [
        (CHOICE, np.ones(3, bool)),
        (CHOICE, np.ones((2, 4), bool)),
        (CHOICE, True),
        (OBSERVATION, np.ones(3, bool)),
    ],
    ids=["too short", "too many rows", "no vector", "of a Box"],
)
def test_a_mask_that_does_not_fit_is_refused(space, mask):
    with pytest.raises(ConfigError) as error:
        make(space).act(OBS[0], mask=mask)
    assert error.value.field == "mask"


@pytest.mark.parametrize("obs", ["abc", [{}, 1, 2], [[1], 2, 3], None, 10**400], ids=repr)
def test_what_is_no_observation_is_refused(obs):
    with pytest.raises(ConfigError) as error:
        make(CHOICE).act(obs)
    assert error.value.field == "obs"


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_an_observation_that_is_not_finite_is_refused(value):
    obs = OBS.copy()
    obs[7, 1] = value
    for given in (obs, obs[7]):
        with pytest.raises(ConfigError, match="holds NaN or infinity") as error:
            make(CHOICE).act(given)
        assert error.value.field == "obs"


def test_what_is_given_for_a_carry_to_a_policy_without_memory_is_refused():
    beta = ModelSettings(hidden_sizes=(8,), action_distribution="beta")
    for policy in (make(CHOICE), make(spaces.Box((2,), "float32", -1.0, 1.0), beta)):
        with pytest.raises(ConfigError, match=r"^carry = .*mask=\.\.\.") as error:
            policy.act(OBS[0], np.ones(4, bool))
        assert error.value.field == "carry"


def test_the_seed_decides_what_is_sampled_over_any_number_of_calls():
    one, same, other = make(CHOICE), make(CHOICE), make(CHOICE, seed=1)
    sequences = [[int(policy.act(OBS[0])) for _ in range(NOISE_BLOCK + 50)] for policy in (one, same, other)]
    assert sequences[0] == sequences[1] != sequences[2]
    assert sequences[0][:50] != sequences[0][NOISE_BLOCK:], "the next block is another one"


@pytest.mark.parametrize(
    ("kind", "share"),
    [("tanh_gaussian", lambda own: (np.tanh(own) + 1) / 2), ("beta", lambda own: own)],
    ids=["tanh", "beta"],
)
def test_a_policy_on_a_bounded_interval_spreads_its_actions_over_the_box(kind, share):
    policy = make(spaces.Box((2,), "float32", -3.0, 5.0), ModelSettings(hidden_sizes=(8,), action_distribution=kind))
    own = policy.model.act((None,), OBS)[0].mode()
    np.testing.assert_allclose(policy.act(OBS, deterministic=True), -3 + 8 * share(np.asarray(own)), atol=1e-4)
    sent = policy.act(OBS)
    assert ((sent > -3) & (sent < 5)).all()
    assert (sent != policy.act(OBS)).all()


@pytest.mark.parametrize(
    "settings",
    [
        ModelSettings(hidden_sizes=(8,), log_std=-0.5),
        ModelSettings(hidden_sizes=(8,), log_std="linear:-0.5:-1.6"),
    ],
    ids=["constant", "schedule"],
)
def test_a_policy_comes_back_from_its_folder_with_its_settings(tmp_path, settings):
    policy = make(PARTS, settings)
    save_policy(str(tmp_path / "policy"), policy)
    loaded = load_policy(str(tmp_path / "policy"))
    assert loaded.settings == settings
    assert loaded.model.action_space == PARTS
    for one, two in zip(policy.act(OBS).values(), loaded.act(OBS).values(), strict=True):
        np.testing.assert_array_equal(one, two)


def test_a_policy_whose_settings_do_not_make_its_tensors_is_refused(tmp_path):
    policy = make(CHOICE)
    save_policy(tmp_path, dataclasses.replace(policy, settings=ModelSettings(hidden_sizes=(9,))))
    with pytest.raises(CheckpointError, match="belongs to another model"):
        load_policy(tmp_path)


def test_noise_is_taken_row_by_row_from_blocks_that_a_key_each_is_folded_for():
    policy = make(CHOICE, seed=3)
    distribution, key = policy.model.act((None,), OBS[:1])[0], jax.random.key(3)
    expected = [
        2 + int(distribution.sample_from(row)[0])
        for block in range(2)
        for row in np.asarray(policy.model.head.draw_noise(jax.random.fold_in(key, block), (256, 1)))
    ]
    assert [int(policy.act(OBS[0])) for _ in range(300)] == expected[:300]
    # Another number of observations begins another block.
    distribution = policy.model.act((None,), OBS)[0]
    noise = np.asarray(policy.model.head.draw_noise(jax.random.fold_in(key, 2), (256, 50)))
    for row in noise[:3]:
        np.testing.assert_array_equal(policy.act(OBS), 2 + np.asarray(distribution.sample_from(row)))


def test_where_numpy_cannot_sample_each_call_has_a_key_of_its_own():
    beta = ModelSettings(hidden_sizes=(8,), action_distribution="beta")
    policy, twin = make(spaces.Box((2,), "float32", 0.0, 1.0), beta, 3), make(CHOICE)
    distribution = policy.model.act((None,), OBS)[0]
    for call in (1, 2, 3):
        noise = policy.model.head.draw_noise(jax.random.fold_in(jax.random.key(3), call), (50,))
        np.testing.assert_allclose(policy.act(OBS), distribution.sample_from(noise), atol=1e-6)
    assert isinstance(twin._acting.value.layers.weights[0], np.ndarray)


def test_a_policy_is_seeded_with_zero_and_tells_of_itself_what_is_known():
    model = make(CHOICE).model
    assert Policy(model, (None,)).seed == 0
    assert repr(Policy(model, (None,))).startswith("Policy(Box(")
    told = Policy(model, (None,), info={"env": "Here-v0", "algorithm": "ppo", "env_steps": 2048})
    assert repr(told).startswith("Policy(Here-v0, ppo, 2,048 steps, Box(")


@pytest.fixture(scope="module")
def remembering():
    settings = ModelSettings(hidden_sizes=(4,), recurrent="gru", recurrent_size=5)
    spec = spaces.EnvSpec(OBSERVATION, CHOICE)
    return Policy(jax.jit(lambda key: make_model(key, spec, settings))(jax.random.key(0)), (None,), settings)


def test_a_policy_with_memory_goes_on_from_the_carry_it_is_given(remembering):
    _, start = remembering.act(OBS[:2], deterministic=True)
    again, _ = remembering.act(OBS[:2], None, deterministic=True), None
    jax.tree.map(np.testing.assert_array_equal, start, again[1])
    _, other = remembering.act(OBS[:2], start, deterministic=True)
    assert any((a != b).any() for a, b in zip(jax.tree.leaves(start), jax.tree.leaves(other), strict=True))


def test_a_carry_for_another_number_of_observations_is_refused(remembering):
    _, carry = remembering.act(OBS[:1])
    with pytest.raises(ConfigError, match="are the shapes of no carry for 2 observations") as error:
        remembering.act(OBS[:2], carry)
    assert error.value.field == "carry"


def test_what_is_wrong_with_a_mask_or_an_observation_is_told_with_what_would_do():
    with pytest.raises(ConfigError, match=r"Give one of shape \(4,\) for each observation\."):
        make(CHOICE).act(OBS[0], mask=np.ones(3, bool))
    with pytest.raises(ConfigError, match="A Box has no mask"):
        make(OBSERVATION).act(OBS[0], mask=np.ones(3, bool))
    with pytest.raises(ConfigError, match="A Box has no mask"):
        make(OBSERVATION).act(OBS[0], mask=np.ones(0, bool))
    for shape in ((50, 4), (2, 3, 3)):
        with pytest.raises(ConfigError, match="neither one observation nor a batch"):
            make(CHOICE).act(np.zeros(shape, np.float32))


def test_a_mask_of_a_single_column_is_one():
    assert make(spaces.Discrete(1)).act(OBS[0], mask=np.ones(1, bool)) == 0


def test_parts_of_different_batch_sizes_are_refused():
    space = spaces.Dict((("a", OBSERVATION), ("b", OBSERVATION)))
    policy = Policy(fixed_model(spaces.EnvSpec(space, CHOICE)), (None, None))
    with pytest.raises(ConfigError, match="different batch sizes"):
        policy.act({"a": OBS[:2], "b": OBS[:3]})
    assert policy.act({"a": OBS[:2], "b": OBS[:2]}).shape == (2,)
