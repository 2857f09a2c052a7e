"""Wrong arguments for environments of other libraries are told by name, value and what to do."""

import subprocess
from typing import NamedTuple

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gymnasium.vector import SyncVectorEnv

from inchworm import spaces
from inchworm.config import preset_for
from inchworm.envs.foreign import check_known_id, check_kwargs, constructing, importing
from inchworm.envs.gymnasium import spec_of
from inchworm.envs.jax_contract import check_jax_env
from inchworm.envs.simulated import simulated
from inchworm.envs.single_view import SingleView
from inchworm.envs.source import env_source
from inchworm.errors import ConfigError, EnvironmentContractError, MissingDependencyError
from inchworm.planning import preset_name

DEFAULTS = {"max_episode_steps": 500, "gravity": 9.8, "noisy": False, "mode": -1, "robot": "go1", "torque": jnp.ones(2)}


@pytest.mark.parametrize(
    ("name", "value", "problem"),
    [
        *(("max_episode_steps", value, "is out of range") for value in (0, -3)),
        *(("max_episode_steps", value, "is not a whole number") for value in (2.5, "abc", None, [1], True)),
        *(("gravity", value, "is not a number") for value in ("x", None, [9.8])),
        ("gravity", float("nan"), "is not finite"),
        ("noisy", 1, "is neither true nor false"),
        ("mode", 0.5, "is not a whole number"),
        ("robot", 3, "is no text"),
        *(("torque", value, "is not 2 numbers") for value in ([1.0], "x", [[1], [1, 2]], {"a": 1})),
        ("num_envs", 3, "is set by Inchworm itself"),
        (
            "gravty",
            9.8,
            r"is no argument of the environment \(did you mean gravity\?\). It takes max_episode_steps, gravity",
        ),
    ],
)
def test_an_argument_unlike_its_default_is_refused(name, value, problem):
    with pytest.raises(ConfigError, match=rf"env_kwargs\.{name} = .*: {problem}"):
        check_kwargs({name: value}, DEFAULTS, ("num_envs",))


def test_arguments_like_their_defaults_are_taken():
    given = {"max_episode_steps": 7, "gravity": 1, "noisy": True, "mode": -2, "robot": "h1", "torque": [1, 2]}
    checked = check_kwargs(given | {"more": [3]}, DEFAULTS, closed=False)
    assert checked.pop("torque").tolist() == [1.0, 2.0]
    assert checked == {name: value for name, value in given.items() if name != "torque"} | {"more": [3]}


def test_a_time_limit_is_of_its_default_s_kind():
    """One of gymnax's environments counts steps in floats, and fails with integers."""
    limit = check_kwargs({"max_steps_in_episode": 20}, {"max_steps_in_episode": 1e3})["max_steps_in_episode"]
    assert (limit, type(limit)) == (20.0, float)


def test_a_package_that_is_not_installed_is_told_with_its_extra():
    with (
        pytest.raises(MissingDependencyError, match=r'nowhere.*pip install "inchworm\[atari\]"'),
        importing("ale", "atari"),
    ):
        import nowhere  # noqa: F401


def test_an_unknown_id_is_told_with_the_nearest():
    with pytest.raises(EnvironmentContractError, match=r"env = Ponk: is no environment that ALE knows .*mean Pong"):
        check_known_id("Ponk", ["Pong", "Breakout"], "ALE")


@pytest.mark.parametrize(
    ("kwargs", "error", "kind", "told"),
    [
        ({"size": 3}, ValueError("too small\nmore"), ConfigError, r"env_kwargs\.size = 3: .*ValueError: too small\)"),
        ({"size": 3, "hue": 4}, TypeError("no argument 'hue'"), ConfigError, r"env_kwargs\.hue = 4"),
        (
            {"size": 3, "hue": 4},
            AssertionError(),
            ConfigError,
            r"env_kwargs = \{'size': 3, 'hue': 4\}: .*AssertionError",
        ),
        ({}, ValueError("odd"), EnvironmentContractError, r"env = Toy: cannot be made \(ValueError: odd\)"),
        (
            {"size": 3},
            subprocess.CalledProcessError(128, ["git", "clone"]),
            EnvironmentContractError,
            r"env = Toy: cannot be made \(CalledProcessError: .*downloads",
        ),
        ({"size": 3}, MissingDependencyError("a", 1, "b", "c"), MissingDependencyError, "a = 1"),
    ],
)
def test_an_error_of_another_library_is_told_with_the_argument_it_is_about(kwargs, error, kind, told):
    with pytest.raises(kind, match=told), constructing("Toy", kwargs):
        raise error


WRONG = [
    ("jax", "CartPole-v1", {"max_episode_steps": 0}),
    ("jax", "CartPole-v1", {"max_episode_steps": [1]}),
    ("jax", "CartPole-v1", {"name": "x"}),
    ("gymnax", "CartPole-v1", {"max_steps_in_episode": [1]}),
    ("gymnax", "CartPole-v1", {"max_steps_in_episode": None}),
    ("gymnax", "CartPole-v1", {"gravity": "x"}),
    ("gymnax", "CartPole-v1", {"nope": 1}),
    ("brax", "inverted_pendulum", {"backend": "nope"}),
    ("brax", "inverted_pendulum", {"max_episode_steps": -1}),
    ("brax", "inverted_pendulum", {"nope": 1}),
    ("playground", "CartpoleBalance", {"episode_length": None}),
    ("playground", "CartpoleBalance", {"ctrl_dt": "x"}),
    ("playground", "CartpoleBalance", {"nope": 1}),
    ("envpool", "CartPole-v1", {"max_episode_steps": 0}),
    ("envpool", "CartPole-v1", {"max_episode_steps": "abc"}),
    ("envpool", "CartPole-v1", {"nope": 1}),
    *(("envpool", "CartPole-v1", {name: 1}) for name in ("num_envs", "batch_size", "num_threads", "seed", "env_seed")),
    *(("ale", "PongNoFrameskip-v4", {name: 1}) for name in ("num_envs", "batch_size", "num_threads", "episodic_life")),
    ("ale", "PongNoFrameskip-v4", {"autoreset_mode": "SameStep"}),
    ("ale", "PongNoFrameskip-v4", {"max_num_frames_per_episode": 0}),
    ("ale", "PongNoFrameskip-v4", {"noop_max": "a"}),
    ("ale", "PongNoFrameskip-v4", {"nope": 1}),
]
MODULES = {"gymnax": "gymnax", "brax": "brax", "playground": "mujoco_playground", "envpool": "envpool", "ale": "ale_py"}


@pytest.mark.fault("RB2")
@pytest.mark.parametrize(("backend", "env", "kwargs"), WRONG)
def test_a_wrong_argument_of_a_backend_is_named(backend, env, kwargs):
    if backend in MODULES:
        pytest.importorskip(MODULES[backend])
    (name,) = kwargs
    with pytest.raises(ConfigError, match=rf"env_kwargs\.{name} = "):
        env_source(env, kwargs, backend)


@pytest.mark.fault("RB5")
@pytest.mark.parametrize("kwargs", [[1], "ab", 3, {1: 2}], ids=repr)
def test_arguments_that_are_no_dict_by_name_are_refused(kwargs):
    with pytest.raises(ConfigError, match=r"env_kwargs = .* is no dict"):
        env_source("CartPole-v1", kwargs, "jax")


def test_the_same_arguments_make_the_same_environment():
    first, again, other = (
        env_source("CartPole-v1", {"max_episode_steps": steps}, "jax").jax_env for steps in (20, 20, 30)
    )
    assert first is again
    assert (first.max_episode_steps, other.max_episode_steps) == (20, 30)


@pytest.mark.parametrize(
    ("entry_point", "preset"),
    [("envpool.atari", "atari"), ("ale_py.vector_env", "atari"), ("envpool.classic_control", "classic")],
)
def test_games_of_envpool_and_of_ale_get_the_preset_of_atari(entry_point, preset):
    assert preset_for("Pong-v5", entry_point, spaces.Discrete(6)) == preset


@pytest.mark.parametrize(
    ("env", "backend", "preset"),
    [
        ("MountainCarContinuous-v0", "jax", "batched"),
        ("MountainCarContinuous-v0", "gymnasium", "mujoco"),
        ("CartPole-v1", "jax", "classic"),
        ("Pendulum-v1", "jax", "pendulum"),
    ],
)
def test_forces_in_a_jax_environment_get_the_preset_with_sixteen_environments(env, backend, preset):
    assert preset_name(env_source(env, None, backend)) == preset


def test_a_game_of_envpool_is_known_by_its_module():
    pytest.importorskip("envpool")
    assert preset_name(env_source("Pong-v5", None, "envpool")) == "atari"


def test_the_only_environment_of_a_vector_environment_is_played_as_a_single_one():
    def vector():
        return SyncVectorEnv([lambda: gymnasium.make("CartPole-v1")])

    def restart(old, seed):
        old.close()
        new = vector()
        return new, new.reset(seed=seed)

    alone, first = gymnasium.make("CartPole-v1"), vector()
    view = SingleView(first, spec_of(alone), restart, "toys", 500)
    np.testing.assert_array_equal(view.reset(seed=3)[0], alone.reset(seed=3)[0])
    assert first.closed
    for _ in range(5):
        (obs, *rest), (alone_obs, *alone_rest) = view.step(np.int64(1)), alone.step(1)
        np.testing.assert_array_equal(obs, alone_obs)
        assert rest == alone_rest
    np.testing.assert_array_equal(view.reset()[0], alone.reset()[0])
    view.close()


class FakeState(NamedTuple):
    obs: dict
    reward: jax.Array
    done: jax.Array


class FakeRobot:
    """An environment with Playground's interface, whose observations have the parts given."""

    action_size = 2

    def __init__(self, **parts):
        self._parts = parts

    def reset(self, key):
        return FakeState({name: jnp.zeros(size) for name, size in self._parts.items()}, jnp.zeros(()), jnp.zeros(()))

    def step(self, state, action):
        return state


@pytest.mark.parametrize(
    ("parts", "seen"),
    [
        ({"state": 3, "privileged_state": 9}, ["state"]),
        ({"camera": 4, "state": 3}, ["camera", "state"]),
    ],
)
def test_a_privileged_state_reaches_no_policy(parts, seen):
    env = simulated("Robot", FakeRobot(**parts), 5)
    assert [leaf.shape for leaf in spaces.leaves(env.spec.observation_space)] == [(parts[name],) for name in seen]
    check_jax_env(env)


class Counts(FakeRobot):
    """Earns the number of the step, and ends with the third."""

    def reset(self, key):
        return FakeState({"state": jnp.zeros(1)}, jnp.float32(0), jnp.float32(0))

    def step(self, state, action):
        count = state.obs["state"] + 1
        return FakeState({"state": count}, count[0], (count[0] >= 3).astype(jnp.float32))


def test_an_action_lasts_as_many_of_a_simulator_s_steps_as_its_task_says_and_not_beyond_its_end():
    env = simulated("Robot", Counts(state=1), 5, action_repeat=2)
    state, _ = env.reset(jax.random.key(0))
    first = env.step(state, jnp.zeros(2), jax.random.key(0))
    second = env.step(first.state, jnp.zeros(2), jax.random.key(0))
    assert [float(step.reward) for step in (first, second)] == [1 + 2, 3]
    assert [bool(step.terminated) for step in (first, second)] == [False, True]
    assert [float(step.obs["state"][0]) for step in (first, second)] == [2, 3]
    check_jax_env(env)


def test_a_vector_environment_made_to_be_looked_at_is_the_first_one_trained_in():
    made = []

    def make():
        made.append(SyncVectorEnv([lambda: gymnasium.make("CartPole-v1")] * 2))
        return made[-1]

    source = env_source(make)
    assert (source.num_envs, len(made)) == (2, 1)
    source.make_pool(2, 0, 1).close()
    assert (len(made), made[0].closed) == (1, True)
    source.make_pool(2, 0, 1).close()
    assert (len(made), made[1].closed) == (2, True)
