"""Environments with known answers, each so small that only one thing can be wrong.

All observations are float32 Boxes of shape (1,) unless stated, all actions Discrete(2), or a Box of shape (1,) with
`continuous=True`. An action's reward is largest for action 1, or at 0.5 for a Box.
"""

from typing import Any, ClassVar

import gymnasium
import numpy as np

Step = tuple[np.ndarray, float, bool, bool, dict[str, Any]]
BEST_VECTOR = 0.5


class Probe(gymnasium.Env):
    """Observes zero, pays nothing, and terminates after one step; the others change one of these."""

    metadata: ClassVar[dict[str, Any]] = {"render_modes": []}

    def __init__(self, continuous: bool = False) -> None:
        self.observation_space = gymnasium.spaces.Box(-1.0, 1.0, (1,), np.float32)
        self.action_space = (
            gymnasium.spaces.Box(-1.0, 1.0, (1,), np.float32) if continuous else gymnasium.spaces.Discrete(2)
        )
        self.t = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        self.t = 0
        return self.observe(), {}

    def step(self, action: Any) -> Step:
        self.t += 1
        return self.observe(), 0.0, True, False, {}

    def observe(self) -> np.ndarray:
        return np.zeros(1, np.float32)

    def quality(self, action: Any, sign: float = 1.0) -> float:
        """1 for the best action, less for others; `sign` -1 turns the best one round."""
        if isinstance(self.action_space, gymnasium.spaces.Discrete):
            return 1.0 if (action == 1) == (sign > 0) else -1.0
        return 1.0 - float((action[0] - sign * BEST_VECTOR) ** 2)


class ConstantReward(Probe):
    """One step, reward 1: V = 1. Fails where the value loss or its optimiser is broken."""

    def step(self, action: Any) -> Step:
        return self.observe(), 1.0, True, False, {}


class RewardByObservation(Probe):
    """One step, observation -1 or 1 by chance, and the reward is the observation: V(obs) = obs.

    Fails where observations do not reach the value function, or reach the wrong rows.
    """

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        self.obs = np.float32([self.np_random.choice([-1.0, 1.0])])
        return self.obs, {}

    def step(self, action: Any) -> Step:
        return self.obs, float(self.obs[0]), True, False, {}


class TwoStepDiscount(Probe):
    """Observation -1, then 1, then reward 1 at the end: V(1) = 1 and V(-1) = gamma.

    Fails where discounting or bootstrapping is wrong.
    """

    def observe(self) -> np.ndarray:
        return np.float32([-1.0 if self.t == 0 else 1.0])

    def step(self, action: Any) -> Step:
        self.t += 1
        return self.observe(), float(self.t == 2), self.t == 2, False, {}


class RewardByAction(Probe):
    """One step, rewarded by the action alone: the best action should win. Fails where the advantage's sign is wrong."""

    def step(self, action: Any) -> Step:
        return self.observe(), self.quality(action), True, False, {}


class RewardByObservationAndAction(RewardByObservation):
    """One step, observation -1 or 1 by chance, and the best action is the observation's sign.

    Fails where actions, observations and advantages do not belong to the same rows.
    """

    def step(self, action: Any) -> Step:
        return self.obs, self.quality(action, float(self.obs[0])), True, False, {}


class Endless(Probe):
    """Reward 1 for ever, never an end: V = 1 / (1 - gamma). Fails where the horizon is taken for an end."""

    def step(self, action: Any) -> Step:
        return self.observe(), 1.0, False, False, {}


class OnlyTruncates(Probe):
    """Reward 1, cut off every 5 steps by a time limit that the observation does not show.

    V = 1 / (1 - gamma), because a cut-off does not end the task; where it is taken for a termination V is at most
    1 + gamma + ... + gamma^4.
    """

    limit = 5

    def step(self, action: Any) -> Step:
        self.t += 1
        return self.observe(), 1.0, False, self.t == self.limit, {}


class HiddenState(Probe):
    """Rewards number all steps ever made, over resets and seeds; observations show nothing of it.

    No replay from a seed or a generator's state can bring it back, so that a resume must notice from the rewards.
    """

    limit = 5

    def __init__(self, continuous: bool = False) -> None:
        super().__init__(continuous)
        self.steps_ever = 0

    def step(self, action: Any) -> Step:
        self.t += 1
        self.steps_ever += 1
        return self.observe(), float(self.steps_ever), self.t == self.limit, False, {}


class Counting(Probe):
    """Numbers episodes and steps, so that every row of a rollout tells where it belongs.

    Observations are (episode, step, noise) of shape (3,), the noise a standard normal draw of `np_random`; the reward
    is episode + step / 1000 and its step is the one the action led to. Episodes last `length` steps and end by
    termination or, with `truncate=True`, by truncation.

    A seeded reset starts the numbering of episodes at 0. That count is hidden state which a replay of the last
    episodes does not restore; with `tag_episodes=True` an episode's number is drawn from `np_random` instead, and
    everything the environment does follows from its generator and its actions.
    """

    def __init__(
        self, length: int = 4, truncate: bool = False, continuous: bool = False, tag_episodes: bool = False
    ) -> None:
        super().__init__(continuous)
        self.observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (3,), np.float32)
        self.length, self.truncate, self.tag_episodes = length, truncate, tag_episodes
        self.episode = -1
        self.actions: list[Any] = []
        """Every action received, as received."""

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        gymnasium.Env.reset(self, seed=seed)
        self.t = 0
        if self.tag_episodes:
            self.episode = int(self.np_random.integers(1000))
        else:
            self.episode = 0 if seed is not None else self.episode + 1
        return self.observe(), {}

    def observe(self) -> np.ndarray:
        return np.float32([self.episode, self.t, self.np_random.standard_normal()])

    def step(self, action: Any) -> Step:
        self.actions.append(np.array(action))
        self.t += 1
        ends = self.t == self.length
        reward = self.episode + self.t / 1000
        return self.observe(), reward, ends and not self.truncate, ends and self.truncate, {}


class Faulty(Endless):
    """Behaves for `after` steps, counted over episodes, and then shows its fault at every step."""

    def __init__(self, after: int = 10, continuous: bool = False) -> None:
        super().__init__(continuous)
        self.after, self.steps_ever = after, 0

    def step(self, action: Any) -> Step:
        self.steps_ever += 1
        answer = super().step(action)
        return self.fail(answer) if self.steps_ever > self.after else answer

    def fail(self, answer: Step) -> Step:
        raise NotImplementedError


class NaNReward(Faulty):
    """Rewards become NaN."""

    def fail(self, answer: Step) -> Step:
        obs, _, *rest = answer
        return obs, float("nan"), *rest  # type: ignore[return-value]


class NaNObservation(Faulty):
    """Observations become NaN."""

    def fail(self, answer: Step) -> Step:
        obs, *rest = answer
        return np.full_like(obs, np.nan), *rest  # type: ignore[return-value]


class RaisesInStep(Faulty):
    """`step` raises."""

    def fail(self, answer: Step) -> Step:
        raise RuntimeError("the simulator has exploded")
