"""Returns of a policy in environments of its own, apart from training."""

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from itertools import islice
from typing import Any

import gymnasium
import numpy as np

from inchworm.envs.masks import read_mask
from inchworm.envs.pool import environment_seed
from inchworm.models.policy import Policy

EVALUATION_STREAM = 2**31
"""Seeds of evaluation environments come from this index on, so that none is a training environment's."""


@dataclass(frozen=True)
class Evaluation:
    """Undiscounted returns and lengths of some episodes."""

    returns: list[float]
    lengths: list[int]
    deterministic: bool
    unfinished: int
    """1 if the last episode was cut at `max_episode_steps` because the environment did not end it, else 0."""

    @property
    def mean(self) -> float:
        return float(np.mean(self.returns))

    @property
    def std(self) -> float:
        """Standard deviation over episodes."""
        return float(np.std(self.returns))

    def summary(self) -> dict[str, Any]:
        """As JSON."""
        return asdict(self) | {"mean": self.mean, "std": self.std}


def evaluate(
    policy: Policy,
    factory: Callable[[], gymnasium.Env],
    *,
    episodes: int = 20,
    deterministic: bool = True,
    seed: int = 0,
    max_episode_steps: int = 100_000,
) -> Evaluation:
    """Runs whole episodes, each in a freshly seeded reset.

    Args:
        policy: what acts; its statistics stay as they are.
        factory: makes the environment.
        episodes: how many.
        deterministic: act by the distributions' modes.
        seed: of the environment; training environments of the same seed differ from it.
        max_episode_steps: where an endless episode is cut, and counted as unfinished; it is the last one.
    """
    env = factory()
    returns, lengths, unfinished = [], [], 0
    try:
        for episode in range(episodes):
            start = env.reset(seed=environment_seed(seed, EVALUATION_STREAM + episode, 0))
            episode_rewards = play(policy, env, start, deterministic)
            rewards = list(islice(episode_rewards, max_episode_steps))
            returns.append(sum(rewards))
            lengths.append(len(rewards))
            if len(rewards) == max_episode_steps and next(episode_rewards, None) is not None:
                # An environment that did not end once would take as long each time.
                unfinished = 1
                break
    finally:
        env.close()
    return Evaluation(returns, lengths, deterministic, unfinished)


def play(policy: Policy, env: gymnasium.Env, start: tuple[Any, dict[str, Any]], deterministic: bool) -> Iterator[float]:
    """Acts until the episode ends; gives the reward of each step, after it.

    Args:
        policy: what acts.
        env: in which; it has just been reset.
        start: what `reset` returned.
        deterministic: act by the distributions' modes.
    """
    (obs, info), carry, done = start, None, False
    while not done:
        mask = read_mask(env, info, policy.action_space)
        action = policy.act(obs, carry, mask=mask, deterministic=deterministic)
        if policy.recurrent:
            action, carry = action
        obs, reward, terminated, truncated, info = env.step(action)
        done = terminated or truncated
        yield float(reward)
