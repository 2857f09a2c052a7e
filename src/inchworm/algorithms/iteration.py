"""What surrounds every algorithm's update, compiled with it: statistics, reward scaling, the finite guard."""

from collections.abc import Callable, Sequence
from typing import Any, cast

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from inchworm.algorithms import health
from inchworm.algorithms.settings import Settings
from inchworm.algorithms.state import Algorithm, TrainState, zero
from inchworm.models import observations
from inchworm.numerics import running_stats
from inchworm.numerics.devices import mesh_of, on, place
from inchworm.numerics.tree import all_finite, flatten_time, select, where_rows
from inchworm.rl.returns import discounted_return
from inchworm.rl.schedules import Schedule
from inchworm.spaces import EnvSpec
from inchworm.types import Metrics, Rollout

REWARD_CLIP = 10.0
"""Scaled rewards are clipped to +-10, as in openai/baselines ppo2's VecNormalize."""
MAX_MEAN_RETURN = 5.0
"""Rewards are divided by so much at least that returns have a mean within this: where returns hardly vary, their
deviation alone would lift every reward to the clip, and with it all that tells them apart."""

Iterate = Callable[[TrainState, Rollout], tuple[TrainState, Metrics]]


def make_iteration(algorithm: Algorithm, spec: EnvSpec, config: Settings, total_steps: int) -> Iterate:
    """The whole step from a rollout to the next state.

    1. rows that are no transition become copies of one that is, so that nothing in them can matter;
    2. rewards are clipped to their sign, and the maximum-entropy objective changes them, where these are asked for;
    3. return statistics take in the rollout, then scale its rewards;
    4. the algorithm's update;
    5. observation statistics take in the rollout, and a log-std that follows a schedule moves on: neither ever
       moves between acting and updating;
    6. if anything in the rollout or the result is NaN or infinite, the old parameters, optimiser and statistics
       stay, bit for bit, and the skip is counted; only the running episodes' discounted returns go on, as the
       environments do.

    Where gamma is scheduled, the returns that scale rewards are discounted by its start throughout.
    """
    gamma, log_std = cast(Schedule, config.gamma), config.log_std
    alpha = cast(Schedule, config.max_entropy_alpha)

    def iterate(state: TrainState, rollout: Rollout) -> tuple[TrainState, Metrics]:
        raw = rollout = _fill_invalid_rows(rollout)
        env_steps = state.iteration * float(config.steps_per_iteration)
        if config.clip_reward:
            rollout = rollout._replace(reward=jnp.sign(rollout.reward))
        if alpha != Schedule(0.0, 0.0):
            rollout = maximum_entropy_rewards(rollout, alpha(env_steps, total_steps))
        scaled_state = state
        if config.normalize_return:
            scaled_state, rollout = _scale_rewards(state, rollout, gamma.start)
        new_state, metrics = algorithm.update(scaled_state, rollout)
        flat_obs, weight = flatten_time((raw.obs, raw.valid))
        new_state = new_state._replace(
            obs_stats=observations.absorb(state.obs_stats, spec.observation_space, flat_obs, weight.astype(jnp.float32))
        )
        finite = all_finite((raw, new_state._replace(key=zero()), metrics))
        metrics["guard/skipped"] = jnp.where(finite, 0.0, 1.0)
        metrics |= health.of_rewards(raw)
        now = config.at(env_steps, total_steps)
        metrics = {f"schedule/{name}": now[name] for name in config.moving} | metrics
        next_state = _advance(state, new_state, finite)
        metrics["guard/skipped_in_row"] = next_state.skipped_in_row.astype(jnp.float32)
        if isinstance(log_std, Schedule):
            next_log_std = log_std(env_steps + config.steps_per_iteration, total_steps)
            next_state = next_state._replace(model=next_state.model.with_log_std(next_log_std))
        return next_state, metrics

    return iterate


def on_devices(iterate: Iterate, devices: Sequence[Any], num_envs: int) -> Iterate:
    """The same iteration with a rollout's environments divided between several devices; the state it gives back is on
    the first of them, where the policy acts."""
    mesh = mesh_of(devices)
    spread = on(mesh, iterate)

    def placed(state: TrainState, rollout: Rollout) -> tuple[TrainState, Metrics]:
        rows = rollout._replace(carry=None, tail=None)
        once = (rollout.carry, rollout.tail)
        carry, tail = place(mesh, once, 0, num_envs)
        rows = place(mesh, rows, 1, num_envs)._replace(carry=carry, tail=tail)
        return jax.device_put(spread(place(mesh, state), rows), devices[0])

    return placed


def maximum_entropy_rewards(rollout: Rollout, alpha: Float[Array, ""]) -> Rollout:
    """The rollout with r - alpha log pi(a|s) for r, by the stored log-probabilities.

    Its expectation is the reward plus alpha times the entropy, discounted like a reward; through the sampled action it
    also carries the gradient of the state's own entropy, which the analytic entropy in its place would not.
    """
    bonus = jnp.where(rollout.valid, -alpha * rollout.log_prob, 0.0)
    return rollout._replace(reward=rollout.reward + bonus)


def _fill_invalid_rows(rollout: Rollout) -> Rollout:
    """The rollout with the first valid row in place of every invalid one, and no reward there.

    Not zeros: a weight of zero is no help against an action outside a distribution's support, whose infinite
    log-probability makes NaN of it.
    """
    valid = rollout.valid
    example = jnp.argmax(valid.reshape(-1))

    def fill(leaf: Array) -> Array:
        return where_rows(valid, leaf, flatten_time(leaf)[example])

    fields = ("obs", "next_obs", "action", "mask", "log_prob")
    filled = {name: jax.tree.map(fill, getattr(rollout, name)) for name in fields}
    return rollout._replace(**filled, reward=jnp.where(valid, rollout.reward, 0.0))


def _scale_rewards(state: TrainState, rollout: Rollout, gamma: float) -> tuple[TrainState, Rollout]:
    done = rollout.terminated | rollout.truncated
    # Of a rollout that the guard drops, the sums go on by what is finite in it.
    finite = jnp.where(jnp.isfinite(rollout.reward), rollout.reward, 0.0)
    totals, end = discounted_return(finite, done, rollout.valid, state.discounted_return, gamma)
    sample = running_stats.of_samples(totals.reshape(-1), rollout.valid.reshape(-1).astype(jnp.float32))
    stats = running_stats.merge(state.return_stats, sample)
    scale = jnp.maximum(stats.std, jnp.abs(stats.mean) / MAX_MEAN_RETURN) + 1e-8
    reward = jnp.clip(rollout.reward / scale, -REWARD_CLIP, REWARD_CLIP)
    tail = None
    if rollout.tail is not None:
        # After it every environment is somewhere in an episode whose rewards so far are in no rollout.
        tail, end = rollout.tail / scale, jnp.zeros_like(end)
    return state._replace(return_stats=stats, discounted_return=end), rollout._replace(reward=reward, tail=tail)


def _advance(old: TrainState, new: TrainState, finite: Bool[Array, ""]) -> TrainState:
    kept = select(finite, new._replace(key=zero()), old._replace(key=zero()))
    return kept._replace(
        discounted_return=jnp.where(jnp.isfinite(new.discounted_return), new.discounted_return, 0.0),
        key=old.key,
        iteration=old.iteration + 1,
        skipped=old.skipped + ~finite,
        skipped_in_row=jnp.where(finite, 0, old.skipped_in_row + 1),
    )
