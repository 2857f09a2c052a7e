"""Rollouts from pools that are stepped inside compiled code."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from inchworm import spaces
from inchworm.collect.acting import prepare
from inchworm.collect.rollout import Standing, at_start, make_rollout
from inchworm.envs.pool import read_restarts
from inchworm.envs.traced import StartedEnvs
from inchworm.models.actor_critic import Model
from inchworm.models.observations import ObsStats
from inchworm.types import Episodes, PRNGKey, Rollout


class PoolRollouts:
    """Collects (T, N) rollouts, each in one compiled call that goes on where the last one ended."""

    def __init__(self, make: Callable[[int], StartedEnvs], shape: tuple[int, int], squash: spaces.Squash) -> None:
        """Takes a function that makes the environments, given how often they were started anew."""
        self.shape = shape
        self.seconds: dict[str, float] = {}  # one call does both
        self._make = make
        self._squash: spaces.Squash = squash
        self._restarts = 0
        self._begin()

    def _begin(self) -> None:
        self._envs = self._make(self._restarts)
        rollout = make_rollout(self._envs, self._squash)

        def collect(*args: Any) -> Any:
            return _narrow(rollout(*args))

        self._collect = jax.jit(collect)
        self._now: Standing | None = None

    def collect(
        self, model: Model, obs_stats: ObsStats, key: PRNGKey, in_batch: bool = True
    ) -> tuple[Rollout, Episodes]:
        self.acted_with = (model, obs_stats)
        normalizers, noise = prepare(model, obs_stats, key, self.shape)
        if self._now is None:
            self._now = at_start(model, *self._envs.start)
        with self._envs.scope():
            rollout, episodes, self._now = self._collect(model, normalizers, noise, self._now, in_batch)
        return rollout, jax.tree.map(np.asarray, episodes)

    def snapshot(self) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        return {}, {"kind": "pool", "restarts": self._restarts}

    def restore(self, arrays: dict[str, np.ndarray], document: dict[str, Any]) -> tuple[list[str], np.ndarray]:
        restarts = read_restarts(document, "pool")
        self._envs.close()
        self._restarts = restarts + 1
        self._begin()
        lost = "a pool's environments cannot be brought back: all of them start new episodes"
        return [lost], np.ones(self.shape[1], bool)

    def close(self) -> None:
        self._envs.close()


def _narrow(tree: Any) -> Any:
    """The tree without 64-bit leaves."""
    narrow = {"float64": jnp.float32, "int64": jnp.int32, "uint64": jnp.uint32}
    return jax.tree.map(lambda leaf: leaf.astype(narrow.get(str(leaf.dtype), leaf.dtype)), tree)
