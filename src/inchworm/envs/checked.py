"""One environment apart from training, whose every answer is read as a pool of training reads it."""

import math
from typing import Any

import numpy as np

from inchworm import spaces
from inchworm.envs.gymnasium import RESET_PARTS, read_step
from inchworm.envs.making import EnvFactory
from inchworm.envs.masks import MaskRows, find_mask, gives_by_method
from inchworm.envs.pool import ObservationReader, close_env, raised_error, unpack
from inchworm.errors import EnvironmentContractError
from inchworm.spaces import EnvSpec

SOURCE = "the environment"


def not_finite(what: str, value: Any) -> EnvironmentContractError:
    """What is wrong with NaN or infinity. Training drops what it would learn from it; apart from it nothing is left."""
    return EnvironmentContractError(
        what,
        repr(value),
        f"is what {SOURCE} returned, and is not finite",
        "Find the division, root or logarithm that it comes from.",
    )


class CheckedEnv:
    """An environment for a policy of some spaces; an error of its own becomes an `EnvironmentContractError`."""

    def __init__(self, factory: EnvFactory, spec: EnvSpec) -> None:
        self.env = factory()
        self._space = spec.observation_space
        self._read = ObservationReader(self._space)
        self._masks = MaskRows(spec.action_space, 1)
        self._by_method = gives_by_method(self.env)

    @property
    def mask(self) -> np.ndarray | None:
        """The choices it allows for its next action, (num_mask_columns,); None without masks."""
        return None if self._masks.rows is None else self._masks.rows[0]

    def reset(self, seed: int) -> Any:
        """Starts an episode; returns the first observation, a tree like its space."""
        try:
            answer = self.env.reset(seed=seed)
        except (Exception, SystemExit) as error:
            raise raised_error("reset", error, SOURCE) from error
        raw_obs, info = unpack("reset", answer, RESET_PARTS, SOURCE)
        obs = self._observe(raw_obs, acted_on=True)
        self._read_mask(info)
        return obs

    def step(self, action: Any) -> tuple[Any, float, bool]:
        """The observation after an action, its reward, and whether the episode is over."""
        try:
            answer = self.env.step(action)
        except (Exception, SystemExit) as error:
            raise raised_error("step", error, SOURCE) from error
        raw_obs, reward, terminated, truncated, info = read_step(answer, SOURCE)
        done = bool(terminated or truncated)
        obs = self._observe(raw_obs, acted_on=not done)
        if not done:
            self._read_mask(info)
        if not math.isfinite(reward):
            raise not_finite("reward", reward)
        return obs, float(reward), done

    def close(self) -> None:
        """Closes it; what keeps it from being closed is warned of."""
        close_env(SOURCE, self.env)

    def _observe(self, raw_obs: Any, acted_on: bool) -> Any:
        leaves = self._read(raw_obs, SOURCE)
        for leaf in leaves if acted_on else []:
            if leaf.dtype.kind == "f" and not np.isfinite(leaf).all():
                raise not_finite("observation", leaf)
        return spaces.unflatten(self._space, leaves)

    def _read_mask(self, info: Any) -> None:
        self._masks.write(0, find_mask(self.env, info, self._by_method, SOURCE), SOURCE)
