"""Rollouts from Python environments: a lean loop that steps a pool and lets the policy act in between."""

import time
from typing import Any

import jax
import numpy as np

from inchworm import spaces
from inchworm.collect.acting import make_actor
from inchworm.envs.masks import UNREAD_MASK, shows_mask
from inchworm.envs.pool import Pool, PoolSnapshot, StepBuffers
from inchworm.errors import CheckpointError
from inchworm.models.actor_critic import Model
from inchworm.models.observations import ObsStats
from inchworm.numerics.tree import from_arrays, to_arrays
from inchworm.types import ArrayTree, Episodes, PRNGKey, Rollout
from inchworm.warning import warn


class HostRollouts:
    """Collects (T, N) rollouts from a pool, each going on where the last one ended."""

    def __init__(self, pool: Pool, horizon: int, squash: spaces.Squash) -> None:
        """Takes over a pool."""
        self.pool = pool
        self.shape = (horizon, pool.num_envs)
        self._door = spaces.action_door(pool.spec.action_space, squash)
        self._first = np.ones(pool.num_envs, bool)
        self._carry: ArrayTree = None
        self._saved_carry: dict[str, np.ndarray] = {}
        self._episode_return = np.zeros(pool.num_envs)
        self._episode_length = np.zeros(pool.num_envs)
        self._counted = np.ones(pool.num_envs, bool)
        start = StepBuffers.empty(pool.spec.observation_space, 0, pool.num_envs)
        self._obs = [leaf[0] for leaf in start.obs]
        self._started = False
        self.seconds = {"environment": 0.0, "policy": 0.0}

    def collect(
        self, model: Model, obs_stats: ObsStats, key: PRNGKey, in_batch: bool = True
    ) -> tuple[Rollout, Episodes]:
        """T steps of every environment under one policy with frozen statistics."""
        self._start()
        self.acted_with = (model, obs_stats)
        horizon, num_envs = self.shape
        observation_space, action_space = self.pool.spec.observation_space, self.pool.spec.action_space
        # New arrays each time, because JAX may go on reading the last rollout's.
        buffers = StepBuffers.empty(observation_space, horizon, num_envs)
        for leaf, last in zip(buffers.obs, self._obs, strict=True):
            leaf[0] = last
        buffers.first[0] = self._first

        carry = self._carry_of(model)
        actor = make_actor(model, obs_stats, carry, key, (horizon, num_envs))
        actions, masks = [], []
        single = not isinstance(observation_space, spaces.Dict | spaces.Tuple)
        for t in range(horizon):
            leaves = [leaf[t] for leaf in buffers.obs]
            obs = leaves[0] if single else spaces.unflatten(observation_space, leaves)
            mask = self.pool.mask
            if mask is not None:
                mask = mask.copy()
                masks.append(mask)
            began = time.perf_counter()
            action = actor.act(t, obs, buffers.first[t], mask)
            actions.append(action)
            through_door = self._door(action)
            acted = time.perf_counter()
            self.pool.step(through_door, t, buffers)
            self.seconds["policy"] += acted - began
            self.seconds["environment"] += time.perf_counter() - acted

        self._obs = [leaf[horizon].copy() for leaf in buffers.obs]
        self._first = buffers.first[horizon].copy()
        self._carry = actor.carry
        own = [np.stack(leaf) for leaf in zip(*actions, strict=True)]
        action = spaces.unflatten(
            action_space, [leaf.astype(np.int32) if leaf.dtype.kind == "i" else leaf for leaf in own]
        )
        # A termination outranks a time limit that falls on the same step.
        truncated = buffers.truncated & ~buffers.terminated
        rollout = Rollout(
            obs=spaces.unflatten(observation_space, [leaf[:horizon] for leaf in buffers.obs]),
            first=buffers.first[:horizon],
            action=action,
            mask=np.stack(masks) if masks else None,
            log_prob=actor.log_prob(action),
            reward=buffers.reward,
            terminated=buffers.terminated,
            truncated=truncated,
            next_obs=spaces.unflatten(observation_space, buffers.next_obs),
            carry=carry,
            valid=buffers.valid,
        )
        return rollout, self._account(rollout, in_batch)

    def _carry_of(self, model: Model) -> ArrayTree:
        """The recurrent state to go on from: that of the last rollout, of a snapshot, or of an episode's start."""
        if self._saved_carry:
            template = jax.eval_shape(lambda: model.initial_carry(self.pool.num_envs))
            self._carry, self._saved_carry = from_arrays(template, self._saved_carry), {}
        elif self._carry is None:
            self._carry = model.initial_carry(self.pool.num_envs)
        return self._carry

    def _start(self) -> None:
        if not self._started:
            self.pool.reset(self._obs)
            self._started = True
            if shows_mask(self.pool.spec) and self.pool.mask is None:
                warn(str(UNREAD_MASK))

    def _account(self, rollout: Rollout, in_batch: bool) -> Episodes:
        """Return and length of the episodes that began in a batch and ended, and what the running ones have so far."""
        ended = (rollout.terminated | rollout.truncated) & rollout.valid
        horizon, num_envs = ended.shape
        # One environment's steps after the other's, cut into pieces where an episode ends and where a rollout does.
        over, valid = ended.T.ravel(), rollout.valid.T.ravel()
        cut = over.copy()
        cut[horizon - 1 :: horizon] = True
        last = np.flatnonzero(cut)
        starts = np.concatenate([[0], last[:-1] + 1])
        env, at_start = last // horizon, starts % horizon == 0
        reward = np.where(valid, rollout.reward.T.ravel(), 0.0).astype(np.float64)
        # Sums of their own, because one return that is no number must not spoil the next.
        piece_return = np.add.reduceat(reward, starts) + np.where(at_start, self._episode_return[env], 0.0)
        piece_length = np.add.reduceat(valid.astype(np.float64), starts) + np.where(
            at_start, self._episode_length[env], 0.0
        )
        counted = np.where(at_start & (self._episode_length[env] > 0), self._counted[env], in_batch)

        told, whole = over[last] & counted, [np.zeros((num_envs, horizon)) for _ in range(2)]
        ends = np.zeros((num_envs, horizon), bool)
        ends.flat[last] = told
        for array, of_pieces in zip(whole, (piece_return, piece_length), strict=True):
            array.flat[last] = np.where(told, of_pieces, 0.0)
        final = np.flatnonzero((last + 1) % horizon == 0)
        running = ~over[last[final]]
        self._episode_return = np.where(running, piece_return[final], 0.0)
        self._episode_length = np.where(running, piece_length[final], 0.0)
        self._counted = np.where(running, counted[final], in_batch)
        return Episodes(ends.T, whole[0].T, whole[1].T)

    def snapshot(self) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Where the collector stands, as arrays by name and a JSON document."""
        self._start()
        pool = self.pool.snapshot()
        arrays = {f"pool.{name}": array for name, array in pool.arrays.items()}
        arrays |= {
            "first": self._first.copy(),
            "episode_return": self._episode_return.copy(),
            "episode_length": self._episode_length.copy(),
            "counted": self._counted.copy(),
        }
        arrays |= {f"carry.{name}": array for name, array in to_arrays(self._carry).items()} or {
            f"carry.{name}": array for name, array in self._saved_carry.items()
        }
        return arrays, {"pool": pool.document}

    def restore(self, arrays: dict[str, np.ndarray], document: dict[str, Any]) -> tuple[list[str], np.ndarray]:
        """Takes up where a snapshot was made.

        Returns:
            Nothing if the environments stand exactly where they stood, else what was lost; and which environments
            (N,) then start a new episode.

        Raises:
            CheckpointError: the snapshot is not one of such a collector.
        """
        started_anew = np.zeros(self.pool.num_envs, bool)
        try:
            pool_arrays = {name[5:]: array for name, array in arrays.items() if name.startswith("pool.")}
            own = [arrays[name] for name in ("first", "episode_return", "episode_length", "counted")]
            if any(array.shape != started_anew.shape for array in own):
                raise ValueError("other number of environments")
            problems = self.pool.restore(PoolSnapshot(pool_arrays, document["pool"]), self._obs, started_anew)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise CheckpointError(
                "collector", repr(error), "does not fit this run's environments", "Resume from another checkpoint."
            ) from error
        self._started = True
        self._saved_carry = {name[6:]: array for name, array in arrays.items() if name.startswith("carry.")}
        first, episode_return, episode_length, counted = own
        self._first, self._counted = first.astype(bool) | started_anew, counted.astype(bool)
        self._episode_return, self._episode_length = (
            np.where(started_anew, 0.0, array) for array in (episode_return, episode_length)
        )
        return problems, started_anew

    def close(self) -> None:
        """Closes the environments."""
        self.pool.close()
