"""A policy by itself: from raw observations to what an environment is sent, and to a folder and back."""

import dataclasses

import numpy as np
import pytest

from fixed_model import fixed_model
from inchworm import spaces
from inchworm.errors import CheckpointError, ConfigError
from inchworm.io.policy_file import load_policy, save_policy
from inchworm.models import observations
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
