"""What the host collector needs of environments: N of them, stepped side by side into preallocated rows."""

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from inchworm import spaces
from inchworm.spaces import EnvSpec


@dataclass(frozen=True)
class StepBuffers:
    """The rows that `Pool.step` fills; observation buffers are lists of leaves.

    `obs` and `first` have one row more than there are steps: row t + 1 is what the policy sees after step t.
    """

    obs: list[np.ndarray]
    """(T + 1, N, ...)"""
    first: np.ndarray
    """(T + 1, N)"""
    next_obs: list[np.ndarray]
    """(T, N, ...)"""
    reward: np.ndarray
    terminated: np.ndarray
    truncated: np.ndarray
    valid: np.ndarray

    @classmethod
    def empty(cls, space: spaces.Space, horizon: int, num_envs: int) -> "StepBuffers":
        leaves = spaces.leaves(space)

        def observations(rows: int) -> list[np.ndarray]:
            return [
                np.empty((rows, num_envs, *getattr(leaf, "shape", ())), spaces.storage_dtype(leaf))
                for leaf in leaves
            ]

        return cls(
            observations(horizon + 1),
            np.zeros((horizon + 1, num_envs), bool),
            observations(horizon),
            np.zeros((horizon, num_envs), np.float32),
            np.zeros((horizon, num_envs), bool),
            np.zeros((horizon, num_envs), bool),
            np.ones((horizon, num_envs), bool),
        )


@dataclass(frozen=True)
class PoolSnapshot:
    """What brings a pool back to where it was: arrays by name, and a JSON document."""

    arrays: dict[str, np.ndarray]
    document: dict[str, Any]


class Pool(Protocol):
    """N environments of one specification."""

    spec: EnvSpec
    num_envs: int

    def reset(self, obs: list[np.ndarray]) -> None:
        """Starts every environment anew and writes the first observations into (N, ...) leaves."""
        ...

    def step(self, actions: np.ndarray, t: int, buffers: StepBuffers) -> None:
        """Sends the environments their actions and fills row t of the buffers, and row t + 1 of obs and first.

        Episodes that end are started anew before the next call. A row that is no transition is marked in `valid`.
        """
        ...

    def snapshot(self) -> PoolSnapshot:
        """Where every environment stands, as far as that can be told."""
        ...

    def restore(self, snapshot: PoolSnapshot, obs: list[np.ndarray]) -> list[str]:
        """Brings the environments back and writes their current observations into (N, ...) leaves.

        Returns:
            Nothing if every environment stands exactly where it stood. Otherwise what could not be restored, and
            every such environment has been started anew.
        """
        ...

    def close(self) -> None:
        """Closes the environments."""
        ...


def environment_seed(seed: int, env_index: int, restart: int) -> int:
    """The seed of an environment's first reset.

    Hashed, because with seed + env_index environment 1 of seed 0 would be environment 0 of seed 1.
    """
    return int(np.random.SeedSequence([seed, env_index, restart]).generate_state(1)[0])
