"""What training carries from one iteration to the next, and what an algorithm is."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from inchworm.models.actor_critic import ActorCritic
from inchworm.models.observations import ObsStats
from inchworm.numerics.running_stats import RunningStats
from inchworm.types import Metrics, PRNGKey, Rollout


class TrainState(NamedTuple):
    """Everything an update reads and moves; a checkpoint holds all of it."""

    model: ActorCritic
    """theta: the policy's and the value function's parameters."""
    opt_state: Any
    obs_stats: ObsStats
    """Statistics of observations; they change only between an update and the next rollout."""
    return_stats: RunningStats
    """Statistics of the discounted return so far, by whose deviation rewards are scaled."""
    discounted_return: Float[Array, " N"]
    """Discounted sum of the running episode's rewards in each environment."""
    key: PRNGKey
    """The run's random key. It never changes: every draw folds in the iteration."""
    iteration: Int[Array, ""]
    """Iterations finished, skipped ones included."""
    skipped: Int[Array, ""]
    """Iterations whose update was dropped because something was not finite."""
    skipped_in_row: Int[Array, ""]


class Algorithm(NamedTuple):
    """A pair of pure functions, compiled by whoever uses them."""

    init: Callable[[PRNGKey], TrainState]
    update: Callable[[TrainState, Rollout], tuple[TrainState, Metrics]]


@jax.jit
def collection_key(key: PRNGKey, iteration: Int[Array, ""]) -> PRNGKey:
    """Key of the noise of this iteration's rollout."""
    return jax.random.fold_in(jax.random.fold_in(key, 0), iteration)


def update_key(key: PRNGKey, iteration: Int[Array, ""]) -> PRNGKey:
    """Key of this iteration's shuffles."""
    return jax.random.fold_in(jax.random.fold_in(key, 1), iteration)


def zero() -> Int[Array, ""]:
    """A counter at its start."""
    return jnp.zeros((), jnp.int32)
