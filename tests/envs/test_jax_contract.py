"""A JAX environment that breaks its interface is refused before anything is compiled, by the name of what is wrong."""

import os
import subprocess
import sys
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import pytest

from inchworm.envs.jax_control import CLASSIC_CONTROL, ClassicControl
from inchworm.envs.jax_env import Step
from inchworm.envs.source import env_source, is_object
from inchworm.errors import ConfigError, EnvironmentContractError
from inchworm.spaces import Box, Dict, Discrete, EnvSpec
from jax_probes import ACTION_SPACES, Cue, Recall


class State(NamedTuple):
    position: jax.Array
    steps: jax.Array


@dataclass(frozen=True)
class Walk:
    """Keeps its promises but for one, `broken`."""

    broken: str = ""

    @property
    def spec(self):
        return EnvSpec(Box((2,), "float32", 0.0, 9.0), Discrete(3))

    def reset(self, key):
        if self.broken == "no state":
            return jnp.zeros(2)
        return State(jnp.float32(0), jnp.int32(0)), jnp.zeros(3 if self.broken == "reset's shape" else 2)

    def step(self, state, action, key):
        obs, reward, terminated, truncated = jnp.zeros(2), 1.0, state.steps >= 5, False
        position, steps = state.position + action, state.steps + 1
        match self.broken:
            case "step's shape":
                obs = jnp.zeros((2, 1))
            case "complex":
                obs = jnp.zeros(2, complex)
            case "reward":
                reward = jnp.ones(1)
            case "flag":
                terminated = terminated[None]
            case "no flag":
                truncated = None
            case "state's dtype":
                position = position.astype(jnp.int32)
            case "state's shape":
                position = position[None]
            case "state's structure":
                return Step((position, steps), obs, reward, terminated, truncated)
            case "tuple":
                return State(position, steps), obs, reward, terminated, truncated
            case "if":
                reward = 2.0 if state.steps > 3 else 1.0
        return Step(State(position, steps), obs, reward, terminated, truncated)


@dataclass(frozen=True)
class Masked(Walk):
    def action_mask(self, state):
        match self.broken:
            case "mask's shape":
                return jnp.ones(2, bool)
            case "mask's dtype":
                return jnp.ones(3)
        return jnp.ones(3, bool)


MESSAGES = {
    "no state": r"env\.reset = float32\[2\]: is what it returned\. Return \(state, observation\)",
    "reset's shape": r"observation = float32\[3\]: is what reset\(\) returned, but its space says numbers of shape",
    "step's shape": r"observation = float32\[2, 1\]: is what step\(\) returned",
    "complex": r"observation = complex64\[2\]: is what step\(\) returned",
    "reward": r"reward = float32\[1\]: .*Return reward of shape \(\)",
    "flag": r"terminated = bool\[1\]: .*Return terminated of shape \(\)",
    "no flag": r"truncated = None: is what step\(\) returned, not one number or flag",
    "state's dtype": r"state\.position = int32\[\]: is what step\(\) returned, where it was float32\[\]",
    "state's shape": r"state\.position = float32\[1\]: .*Keep shapes and dtypes",
    "state's structure": r"state = \(float32\[\], int32\[\]\): .* State\(position=float32\[\], steps=int32\[\]\)",
    "tuple": r"env\.step = \(State\(.*Return Step\(state, obs, reward, terminated, truncated\)",
    "if": r"env\.step = TracerBoolConversionError: .*test_jax_contract\.py, line \d+.*jnp\.where",
    "mask's shape": r"action_mask = bool\[2\]: .*Return flags of shape \(3,\)",
    "mask's dtype": r"action_mask = float32\[3\]: .*Return flags of shape \(3,\)",
}


@pytest.mark.fault("RB1")
@pytest.mark.parametrize("broken", MESSAGES)
def test_what_breaks_the_interface_is_named(broken):
    with pytest.raises(EnvironmentContractError, match=MESSAGES[broken]):
        env_source((Masked if broken.startswith("mask") else Walk)(broken))


def test_numbers_that_bytes_cannot_hold_are_refused():
    class Bytes(Walk):
        spec = EnvSpec(Box((2,), "uint8", 0, 255), Discrete(3))

        def reset(self, key):
            return super().reset(key)[0], jnp.full(2, 256)

    with pytest.raises(EnvironmentContractError, match=r"observation = int32\[2\]: .*its space says bytes of shape"):
        env_source(Bytes())


def test_a_state_that_no_checkpoint_could_hold_is_refused():
    class Short(Walk):
        def reset(self, key):
            state, obs = super().reset(key)
            return state._replace(position=state.position.astype(jnp.bfloat16)), obs

    with pytest.raises(EnvironmentContractError, match=r"state\.position = bfloat16\[\]: .* no checkpoint holds"):
        env_source(Short())


@pytest.mark.parametrize("origin", [Walk, lambda: Walk(), "test_jax_contract:Walk"], ids=["class", "function", "text"])
def test_what_makes_a_jax_environment_is_taken_as_well(origin):
    source = env_source(origin)
    assert source.jax_env == Walk()
    assert source.backend == "jax"
    assert not source.draws


def test_an_observation_without_a_part_is_named():
    class NoNoise(Cue):
        def reset(self, key):
            state, obs = super().reset(key)
            return state, {"cue": obs["cue"]}

    with pytest.raises(EnvironmentContractError, match=r"observation = \{'cue': int32\[\]\}: .*no part of its space"):
        env_source(NoNoise("discrete", dict_obs=True))


def test_fractions_are_no_choice():
    class Fractions(Cue):
        def reset(self, key):
            state, obs = super().reset(key)
            return state, obs | {"cue": obs["cue"] / 2}

    with pytest.raises(EnvironmentContractError, match=r"observation = float32\[\]: .* whole numbers of shape \(\)"):
        env_source(Fractions("discrete", dict_obs=True))


@pytest.mark.parametrize(
    "env",
    [Walk(), Masked(), Recall(), *(Cue(action, dict_obs=True) for action in ACTION_SPACES), Cue("hybrid", masked=True)],
    ids=repr,
)
def test_an_environment_that_keeps_its_promises_is_taken(env):
    assert env_source(env).jax_env is env


def test_the_check_computes_nothing():
    """It comes before the settings of JAX's backend in some calls, which act only on a backend that is not started."""
    code = """
from jax._src.xla_bridge import backends_are_initialized
from test_jax_contract import Walk, env_source
assert not backends_are_initialized()
env_source(Walk())
assert not backends_are_initialized()
"""
    path = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    subprocess.run([sys.executable, "-c", code], check=True, env=os.environ | {"PYTHONPATH": path})


def test_arguments_for_an_environment_that_is_made_are_refused():
    with pytest.raises(
        ConfigError, match=r"env_kwargs = \{'broken': 'if'\}: are given with an environment that is made"
    ):
        env_source(Walk(), {"broken": "if"})


@dataclass(frozen=True)
class Shown(Walk):
    """Shows a mask among its observations."""

    @property
    def spec(self):
        return EnvSpec(Dict({"action_mask": Box((3,), "float32", 0.0, 1.0)}), Discrete(3))

    def reset(self, key):
        return State(jnp.float32(0), jnp.int32(0)), {"action_mask": jnp.ones(3)}

    def step(self, state, action, key):
        return Step(state, {"action_mask": jnp.ones(3)}, 1.0, False, False)


@dataclass(frozen=True)
class Given(Shown):
    """Gives it as well."""

    def action_mask(self, state):
        return jnp.ones(3, bool)


def test_a_mask_among_the_observations_alone_is_told_to_forbid_nothing():
    with pytest.warns(UserWarning, match=r'^observation: its "action_mask" forbids nothing.*action_mask\(state\)'):
        env_source(Shown())
    with warnings.catch_warnings(action="error"):
        env_source(Given())


def test_a_wrapper_that_passes_on_what_it_does_not_have_is_an_environment_too():
    class Passes:
        def __init__(self, env):
            self._env = env

        def __getattr__(self, name):
            return getattr(self._env, name)

    assert is_object(Passes(CLASSIC_CONTROL["CartPole-v1"]))
    assert not is_object(ClassicControl)
    assert not is_object(Passes(3))
