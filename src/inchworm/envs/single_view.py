"""One environment of a foreign vector environment, which compiled rollouts step in numbers, as a Gymnasium one."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import gymnasium
import jax
import numpy as np

from inchworm.envs.jax_env import to_gymnasium
from inchworm.spaces import EnvSpec

MAX_SEED = 2**31
"""Seeds of EnvPool and of ALE are 32-bit integers with a sign."""


@dataclass(eq=False)
class SingleView(gymnasium.Env):
    """The only environment of a vector environment."""

    vector: Any
    env_spec: EnvSpec
    restart: Callable[[Any, int], tuple[Any, Any]]
    """Gives a vector environment of a seed, the same or another, and what its reset returned."""
    module: str
    max_episode_steps: int | None
    metadata: ClassVar[dict[str, Any]] = {"render_modes": []}  # pyright: ignore[reportIncompatibleVariableOverride]

    def __post_init__(self) -> None:
        self.observation_space = to_gymnasium(self.env_spec.observation_space)
        self.action_space = to_gymnasium(self.env_spec.action_space)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        if seed is None:
            obs, _ = self.vector.reset()
        else:
            self.vector, (obs, _) = self.restart(self.vector, seed)
        return _only(obs), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        obs, reward, terminated, truncated, _ = self.vector.step(np.asarray(action)[None])
        return _only(obs), float(reward[0]), bool(terminated[0]), bool(truncated[0]), {}

    def close(self) -> None:
        self.vector.close()


def _only(obs: Any) -> Any:
    return jax.tree.map(lambda leaf: np.array(leaf[0]), obs)
