"""What surrounds every algorithm's update, compiled with it: statistics, reward scaling, the finite guard."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool

from inchworm.algorithms.state import Algorithm, TrainState, zero
from inchworm.models import observations
from inchworm.numerics import running_stats
from inchworm.numerics.tree import all_finite, flatten_time, select
from inchworm.rl.returns import discounted_return
from inchworm.rl.schedules import Schedule
from inchworm.spaces import EnvSpec
from inchworm.types import Metrics, Rollout

REWARD_CLIP = 10.0
"""Scaled rewards are clipped to +-10, as in openai/baselines ppo2's VecNormalize."""

Iterate = Callable[[TrainState, Rollout], tuple[TrainState, Metrics]]


def make_iteration(algorithm: Algorithm, spec: EnvSpec, normalize_return: bool, gamma: Schedule) -> Iterate:
    """The whole step from a rollout to the next state.

    1. rows that are no transition are blanked, so that nothing in them can matter;
    2. return statistics take in the rollout, then scale its rewards;
    3. the algorithm's update;
    4. observation statistics take in the rollout: they never move between acting and updating;
    5. if anything in the rollout or the result is NaN or infinite, the old parameters, optimiser and statistics
       stay, bit for bit, and the skip is counted.

    Where gamma is scheduled, the returns that scale rewards are discounted by its start throughout.
    """

    def iterate(state: TrainState, rollout: Rollout) -> tuple[TrainState, Metrics]:
        rollout = _blank_invalid_rows(rollout)
        scaled_state, scaled = _scale_rewards(state, rollout, gamma.start) if normalize_return else (state, rollout)
        new_state, metrics = algorithm.update(scaled_state, scaled)
        flat_obs, weight = flatten_time((rollout.obs, rollout.valid))
        new_state = new_state._replace(
            obs_stats=observations.absorb(state.obs_stats, spec.observation_space, flat_obs, weight.astype(jnp.float32))
        )
        finite = all_finite((rollout, new_state._replace(key=zero()), metrics))
        metrics["guard/skipped"] = jnp.where(finite, 0.0, 1.0)
        return _advance(state, new_state, finite), metrics

    return iterate


def _blank_invalid_rows(rollout: Rollout) -> Rollout:
    valid = rollout.valid

    def blank(leaf: Array) -> Array:
        return jnp.where(valid.reshape(valid.shape + (1,) * (leaf.ndim - 2)), leaf, jnp.zeros_like(leaf))

    fields = ("obs", "next_obs", "action", "reward", "log_prob")
    return rollout._replace(**{name: jax.tree.map(blank, getattr(rollout, name)) for name in fields})


def _scale_rewards(state: TrainState, rollout: Rollout, gamma: float) -> tuple[TrainState, Rollout]:
    done = rollout.terminated | rollout.truncated
    totals, end = discounted_return(rollout.reward, done, rollout.valid, state.discounted_return, gamma)
    sample = running_stats.of_samples(totals.reshape(-1), rollout.valid.reshape(-1).astype(jnp.float32))
    stats = running_stats.merge(state.return_stats, sample)
    reward = jnp.clip(rollout.reward / (stats.std + 1e-8), -REWARD_CLIP, REWARD_CLIP)
    return state._replace(return_stats=stats, discounted_return=end), rollout._replace(reward=reward)


def _advance(old: TrainState, new: TrainState, finite: Bool[Array, ""]) -> TrainState:
    kept = select(finite, new._replace(key=zero()), old._replace(key=zero()))
    return kept._replace(
        key=old.key,
        iteration=old.iteration + 1,
        skipped=old.skipped + ~finite,
        skipped_in_row=jnp.where(finite, 0, old.skipped_in_row + 1),
    )
