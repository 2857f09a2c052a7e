"""Simulators with Brax's interface, MuJoCo Playground's too, as JAX environments."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

from inchworm import spaces
from inchworm.envs.jax_env import Clocked, Step
from inchworm.spaces import EnvSpec
from inchworm.types import ArrayTree, PRNGKey


@dataclass(frozen=True, eq=False)
class SimulatedEnv:
    """A simulator's environment with a time limit."""

    name: str
    env: Any
    spec: EnvSpec
    max_episode_steps: int
    action_repeat: int = 1
    """How many of the simulator's steps an action lasts; fewer where the task ends before."""

    def reset(self, key: PRNGKey) -> tuple[Clocked, ArrayTree]:
        state = self.env.reset(key)
        return Clocked(state, jnp.int32(0)), _seen(state.obs)

    def step(self, state: Clocked, action: Array, key: PRNGKey) -> Step:
        after, steps = self.env.step(state.physics, action), state.steps + 1
        reward = after.reward
        if self.action_repeat > 1:
            after, reward = lax.fori_loop(1, self.action_repeat, partial(self._again, action), (after, reward))
        ended, cut = after.done.astype(bool), steps >= self.max_episode_steps
        return Step(Clocked(after, steps), _seen(after.obs), reward, ended, cut)

    def _again(self, action: Array, count: Any, so_far: tuple[ArrayTree, Array]) -> tuple[ArrayTree, Array]:
        """The simulator's next step under the same action, and the sum of rewards; nothing where the task is over."""
        before, reward = so_far
        after, over = self.env.step(before, action), before.done.astype(bool)
        kept = jax.tree.map(lambda old, new: jnp.where(over, old, new), before, after)
        return kept, jnp.where(over, reward, reward + after.reward)


def simulated(name: str, env: Any, max_episode_steps: int, action_repeat: int = 1) -> SimulatedEnv:
    """An environment with its spaces: observations as the simulator gives them, actions between -1 and 1."""
    obs = _seen(jax.eval_shape(lambda: env.reset(jax.random.key(0))).obs)
    action = spaces.Box((env.action_size,), "float32", -1.0, 1.0)
    return SimulatedEnv(name, env, EnvSpec(_space_of(obs), action), max_episode_steps, action_repeat)


def _seen(obs: Any) -> Any:
    """What a policy may see: where there is a privileged state, which a robot cannot sense, the state beside it."""
    return obs["state"] if isinstance(obs, Mapping) and "privileged_state" in obs else obs


def _space_of(obs: Any) -> spaces.Space:
    if isinstance(obs, Mapping):
        return spaces.Dict(tuple((name, _space_of(part)) for name, part in obs.items()))
    return spaces.Box(obs.shape, "float32", float("-inf"), float("inf"))
