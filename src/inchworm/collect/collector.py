"""What the loop needs of whoever collects experience and learns from it, and the one that does both in turn."""

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from inchworm.algorithms.iteration import Iterate
from inchworm.algorithms.settings import Continuation
from inchworm.algorithms.state import TrainState, collection_key
from inchworm.collect import tail as tails
from inchworm.models.actor_critic import Model
from inchworm.models.observations import ObsStats
from inchworm.numerics.tree import to_arrays
from inchworm.types import Episodes, Metrics, PRNGKey, Rollout


class Outcome(NamedTuple):
    """What one iteration of a run came to."""

    metrics: dict[str, float]
    episodes: Episodes
    """Arrays of NumPy."""


class Collector(Protocol):
    """One run, or several that differ by their seeds and are numbered from 0: their learners and environments."""

    capacity: int
    """The most iterations of one call."""

    def advance(self, counts: Sequence[int]) -> list[list[Outcome]]:
        """So many iterations of each run, and what each of them came to."""
        ...

    def repeat(self, counts: Sequence[int]) -> None:
        """Takes the last call back, and does it again with other counts."""
        ...

    def state(self, run: int) -> TrainState:
        """A run's learner."""
        ...

    def moved(self, run: int) -> list[str]:
        """The parameters and statistics that were others in a run's last rollout than at the update from it."""
        ...

    def snapshot(self, run: int) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Where a run's environments stand, as arrays by name and a JSON document."""
        ...

    def restore(
        self, run: int, state: TrainState, arrays: dict[str, np.ndarray], document: dict[str, Any]
    ) -> list[str]:
        """Takes up a run where a snapshot was made.

        Returns:
            Nothing if the environments stand exactly where they stood, else what was lost; those environments
            then start a new episode.

        Raises:
            CheckpointError: the snapshot is not one of such a collector.
        """
        ...

    def close(self) -> None:
        """Closes the environments, once; learners stay."""
        ...


class Rollouts(Protocol):
    """Environments outside JAX, and where a policy stands in them."""

    shape: tuple[int, int]
    """T and N."""
    acted_with: tuple[Model, ObsStats]
    """Of the last rollout."""
    seconds: dict[str, float]
    """For how long so far the `environment` stepped and the `policy` acted, where that can be told apart."""

    def collect(
        self, model: Model, obs_stats: ObsStats, key: PRNGKey, in_batch: bool = True
    ) -> tuple[Rollout, Episodes]:
        """T steps of every environment under one policy with frozen statistics, going on where the last ended.

        As in `TracedRollout`, episodes that begin in a rollout that is not `in_batch` are never told.
        """
        ...

    def snapshot(self) -> tuple[dict[str, np.ndarray], dict[str, Any]]: ...

    def restore(self, arrays: dict[str, np.ndarray], document: dict[str, Any]) -> tuple[list[str], np.ndarray]:
        """As in `Collector`, and which environments (N,) start a new episode."""
        ...

    def close(self) -> None: ...


class TurnCollector:
    """One run, whose rollouts and updates take turns."""

    capacity = 1

    def __init__(
        self, rollouts: Rollouts, state: TrainState, iterate: Iterate, continuation: Continuation | None
    ) -> None:
        """Takes over environments; with a `continuation` returns that the horizon cuts are continued to their end."""
        self._rollouts, self._state, self._updated = rollouts, state, state
        self._iterate, self._continuation = iterate, continuation
        self._closed = False

    def advance(self, counts: Sequence[int]) -> list[list[Outcome]]:
        state = self._updated = self._state
        before = dict(self._rollouts.seconds)
        key = collection_key(state.key, state.iteration)
        rollout, episodes = self._rollouts.collect(state.model, state.obs_stats, key)
        more: dict[str, float] = {}
        if self._continuation is not None:
            rollout, episodes, steps = self._continue(rollout, episodes, key, self._continuation)
            more["collect/tail_steps"] = float(steps)
        more |= {f"time/{what}": seconds - before[what] for what, seconds in self._rollouts.seconds.items()}
        self._state, metrics = self._iterate(state, rollout)
        # One array to fetch instead of a dozen.
        values = np.asarray(_side_by_side(metrics)).tolist()
        return [[Outcome(dict(zip(sorted(metrics), values, strict=True)) | more, episodes)]]

    def _continue(
        self, rollout: Rollout, episodes: Episodes, key: PRNGKey, continuation: Continuation
    ) -> tuple[Rollout, Episodes, int]:
        horizon, num_envs = self._rollouts.shape
        state, after, steps = self._state, tails.start(rollout), 0
        while np.any(after.alive) and steps < tails.MAX_TAIL_STEPS:
            steps += horizon
            key_there = jax.random.fold_in(key, steps)
            further = self._rollouts.collect(state.model, state.obs_stats, key_there, in_batch=False)
            after = tails.extend(after, *further, continuation)
        return *tails.attach(rollout, episodes, jax.device_get(after)), steps * num_envs

    def repeat(self, counts: Sequence[int]) -> None:
        raise AssertionError("a call is one iteration, which cannot be cut short")

    def state(self, run: int) -> TrainState:
        return self._state

    def moved(self, run: int) -> list[str]:
        updated = to_arrays((self._updated.model, self._updated.obs_stats))
        acted = to_arrays(self._rollouts.acted_with)
        return [name for name in updated if not np.array_equal(updated[name], acted[name])]

    def snapshot(self, run: int) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        return self._rollouts.snapshot()

    def restore(
        self, run: int, state: TrainState, arrays: dict[str, np.ndarray], document: dict[str, Any]
    ) -> list[str]:
        problems, started_anew = self._rollouts.restore(arrays, document)
        # What an episode that is lost has paid is no part of the return of the next one.
        self._state = state._replace(discounted_return=jnp.where(started_anew, 0.0, state.discounted_return))
        return problems

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            self._rollouts.close()


@jax.jit
def _side_by_side(metrics: Metrics) -> Float[Array, " metrics"]:
    return jnp.stack(jax.tree.leaves(metrics))  # in the order of their names
