"""CartPole whose velocities cannot be seen: what is needed is to be remembered from one position to the next."""

from typing import Any

import gymnasium
import numpy as np


class BlindCartPole(gymnasium.ObservationWrapper):
    """Observations are the cart's position and the pole's angle only."""

    def __init__(self, env: gymnasium.Env) -> None:
        super().__init__(env)
        space = env.observation_space
        assert isinstance(space, gymnasium.spaces.Box)
        self.observation_space = gymnasium.spaces.Box(space.low[[0, 2]], space.high[[0, 2]], dtype=np.float32)

    def observation(self, observation: Any) -> Any:
        return observation[[0, 2]]


def make(**kwargs: Any) -> gymnasium.Env:
    return BlindCartPole(gymnasium.make("CartPole-v1", **kwargs))
