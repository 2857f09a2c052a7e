"""What training carries from one iteration to the next, and what an algorithm is."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from inchworm.algorithms.settings import Settings
from inchworm.models import observations
from inchworm.models.actor_critic import Model
from inchworm.models.observations import ObsStats
from inchworm.numerics import running_stats
from inchworm.numerics.running_stats import RunningStats
from inchworm.spaces import EnvSpec
from inchworm.types import Metrics, PRNGKey, Rollout


class TrainState(NamedTuple):
    """Everything an update reads and moves; a checkpoint holds all of it."""

    model: Model
    """theta: the policy's and the value function's parameters."""
    opt_state: Any
    obs_stats: ObsStats
    """Statistics of observations; they change only between an update and the next rollout."""
    return_stats: RunningStats
    """Statistics of the discounted return so far, by whose deviation rewards are scaled."""
    discounted_return: Float[Array, " N"]
    """Discounted sum of the running episode's rewards in each environment."""
    adaptive: dict[str, Any]
    """What the algorithm itself moves besides parameters, by name: a penalty's coefficient, an average network, ..."""
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


def initial_state(
    config: Settings, spec: EnvSpec, key: PRNGKey, model: Model, opt_state: Any, adaptive: dict[str, Any]
) -> TrainState:
    """The state before the first iteration."""
    return TrainState(
        model=model,
        opt_state=opt_state,
        obs_stats=observations.empty_stats(spec.observation_space, config.normalize_observation),
        return_stats=running_stats.empty(()),
        discounted_return=jnp.zeros(config.num_envs),
        adaptive=adaptive,
        key=key,
        iteration=zero(),
        skipped=zero(),
        skipped_in_row=zero(),
    )


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
