"""Returns of a policy in environments of its own, apart from training."""

import math
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from itertools import islice
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from inchworm import spaces
from inchworm.collect.acting import prepare
from inchworm.collect.rollout import Standing, at_start, make_rollout
from inchworm.envs.checked import CheckedEnv, not_finite
from inchworm.envs.jax_env import JaxEnv, first_key
from inchworm.envs.making import EnvFactory
from inchworm.envs.pool import environment_seed
from inchworm.envs.traced import Copies
from inchworm.io.words import count, with_spread
from inchworm.models.actor_critic import Model
from inchworm.models.observations import ObsStats
from inchworm.models.policy import Policy
from inchworm.spaces import EnvSpec
from inchworm.types import Episodes, PRNGKey
from inchworm.warning import warn

EVALUATION_STREAM = 2**31
"""Seeds of evaluation environments come from this index on, so that none is a training environment's."""
CALL_STEPS = 125
"""Of a compiled call, after which episodes that have ended are looked for."""


@dataclass(frozen=True, repr=False)
class Evaluation:
    """Undiscounted returns and lengths of some episodes."""

    returns: list[float]
    lengths: list[int]
    deterministic: bool
    unfinished: int
    """How many episodes were cut at `max_episode_steps` because the environment did not end them."""

    @property
    def mean(self) -> float:
        return float(np.mean(self.returns)) if self.returns else math.nan

    @property
    def std(self) -> float:
        """Standard deviation over episodes."""
        return float(np.std(self.returns)) if self.returns else math.nan

    def __repr__(self) -> str:
        how = "deterministic" if self.deterministic else "stochastic"
        cut = f", {self.unfinished} cut at its step limit" if self.unfinished else ""
        told = f"{with_spread(self.mean, self.std)} over {count(len(self.returns), 'episode')}{cut}"
        return f"Evaluation({how}, return {told if self.returns else 'of no episode'})"

    def summary(self) -> dict[str, Any]:
        """As JSON."""
        return asdict(self) | {"mean": self.mean, "std": self.std}


def never(episodes: int) -> bool:
    """Lets an evaluation go on to its end."""
    return False


def evaluate(
    policy: Policy,
    factory: EnvFactory,
    *,
    episodes: int = 20,
    deterministic: bool = True,
    seed: int = 0,
    max_episode_steps: int = 100_000,
    over: Callable[[int], bool] = never,
) -> Evaluation:
    """Runs whole episodes, each in a freshly seeded reset.

    Args:
        policy: what acts; its statistics stay as they are.
        factory: makes the environment.
        episodes: how many.
        deterministic: act by the distributions' modes.
        seed: of the environment and of sampled actions; training environments of the same seed differ from it.
        max_episode_steps: where an endless episode is cut, and counted as unfinished; it is the last one.
        over: told after each step how many episodes had ended before; True drops this one and ends the evaluation.

    Raises:
        EnvironmentContractError: the environment does not keep its interface's promises, or a reward or an observation
            is not finite.
    """
    env = CheckedEnv(factory, EnvSpec(policy.observation_space, policy.action_space))
    returns, lengths, unfinished = [], [], 0
    try:
        for episode in range(episodes):
            episode_seed = environment_seed(seed, EVALUATION_STREAM + episode, 0)
            # Noise of its own, so that an episode does not depend on what the policy has done before.
            player = replace(policy, seed=episode_seed)
            episode_rewards = play(player, env, env.reset(episode_seed), deterministic)
            rewards = []
            for reward in islice(episode_rewards, max_episode_steps):
                rewards.append(reward)
                if over(len(returns)):
                    return Evaluation(returns, lengths, deterministic, unfinished)
            returns.append(sum(rewards))
            lengths.append(len(rewards))
            if len(rewards) == max_episode_steps and next(episode_rewards, None) is not None:
                # An environment that did not end once would take as long each time.
                unfinished = 1
                warn(
                    f"Evaluation ends after {len(returns)} of {episodes} episodes: the last was cut at "
                    f"{max_episode_steps:,} steps, which the environment had not ended."
                )
                break
    finally:
        env.close()
    return Evaluation(returns, lengths, deterministic, unfinished)


def evaluate_at_once(
    policy: Policy,
    env: JaxEnv,
    *,
    episodes: int = 20,
    deterministic: bool = True,
    seed: int = 0,
    max_episode_steps: int = 100_000,
    over: Callable[[int], bool] = never,
) -> Evaluation:
    """Runs whole episodes of a JAX environment side by side, in compiled calls; for the rest as `evaluate`.

    Where `over` ends it, there are none: those that had ended were the shortest.
    """
    start, advance = _programs(env, policy.settings.squash, deterministic, episodes)
    seeds = [environment_seed(seed, EVALUATION_STREAM + episode, 0) for episode in range(episodes)]
    now = start(policy.model, jnp.stack([first_key(one) for one in seeds]))
    key = first_key(environment_seed(seed, EVALUATION_STREAM + episodes, 0))
    returns, lengths, running, steps = np.zeros(episodes), np.zeros(episodes), np.ones(episodes, bool), 0
    while running.any() and steps < max_episode_steps:
        told, now = advance(policy.model, policy.obs_stats, jax.random.fold_in(key, steps), now)
        ended, episode_return, episode_length = (np.asarray(leaf) for leaf in told)
        for episode in np.flatnonzero(running & ended.any(axis=0)):
            first = ended[:, episode].argmax()
            returns[episode], lengths[episode] = episode_return[first, episode], episode_length[first, episode]
            running[episode] = False
        steps += CALL_STEPS
        if over(episodes - int(running.sum())):
            # Of episodes side by side those that are over by now are the shortest.
            return Evaluation([], [], deterministic, 0)
    returns[running], lengths[running] = np.asarray(now.episode_return)[running], steps
    if not np.isfinite(returns).all():
        raise not_finite("reward", returns[~np.isfinite(returns)][0].item())
    return Evaluation(returns.tolist(), lengths.astype(int).tolist(), deterministic, int(running.sum()))


@lru_cache(maxsize=32)
def _programs(env: JaxEnv, squash: spaces.Squash, deterministic: bool, num_envs: int) -> tuple[Any, Any]:
    envs = Copies(env)
    rollout = make_rollout(envs, squash, deterministic)

    @jax.jit
    def start(model: Model, keys: PRNGKey) -> Standing:
        return at_start(model, *envs.start(keys))

    @jax.jit
    def advance(model: Model, obs_stats: ObsStats, key: PRNGKey, now: Standing) -> tuple[Episodes, Standing]:
        normalizers, noise = prepare(model, obs_stats, key, (CALL_STEPS, num_envs))
        return rollout(model, normalizers, noise, now)[1:]

    return start, advance


def play(policy: Policy, env: CheckedEnv, obs: Any, deterministic: bool) -> Iterator[float]:
    """Acts until the episode ends; gives the reward of each step, after it.

    Args:
        policy: what acts.
        env: in which; it has just been reset.
        obs: what `reset` returned.
        deterministic: act by the distributions' modes.
    """
    carry, done = None, False
    while not done:
        action = policy.act(obs, carry, mask=env.mask, deterministic=deterministic)
        if policy.recurrent:
            action, carry = action
        obs, reward, done = env.step(action)
        yield reward
