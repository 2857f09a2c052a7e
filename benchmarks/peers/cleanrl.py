"""PPO for continuous control as CleanRL documents it, re-stated here: none of this is CleanRL's code.

CleanRL is not a library: its package wants Python below 3.11 and Gymnasium 0.29, so that it cannot run beside the
others. What is kept of its `ppo_continuous_action` is its structure and what that costs: one file of eager PyTorch
without data loaders or compilation, environments with wrappers of their own in a SyncVectorEnv, advantages by a loop
over time, two networks and one Adam. What differs: one torch thread, no logging, no diagnostics in the minibatches
(which saves it time), and no clipped value loss, as on all sides.

Like CleanRL it takes a time limit for the end of the task.
"""

from __future__ import annotations

import itertools
from functools import partial
from math import prod

import gymnasium
import numpy as np
import torch
from gymnasium import wrappers
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from torch import Tensor, nn
from torch.distributions import Normal

from peers.protocol import Clock, PPOWork, Training, Work, gymnasium_simulator, main

PACKAGES = ("torch", "gymnasium", "mujoco", "numpy")
CLIP = 10.0
"""Of normalised observations and rewards."""


class Agent(nn.Module):
    """A Gaussian policy whose deviation is a parameter, and a value function apart from it."""

    def __init__(self, obs_size: int, action_size: int, hidden_sizes: tuple[int, ...]) -> None:
        super().__init__()
        self.mean = _network(obs_size, hidden_sizes, action_size, last_gain=0.01)
        self.log_std = nn.Parameter(torch.zeros(action_size))
        self.value = _network(obs_size, hidden_sizes, 1, last_gain=1.0)

    def distribution(self, obs: Tensor) -> Normal:
        mean = self.mean(obs)
        return Normal(mean, self.log_std.exp().expand_as(mean))


class Rollout:
    """What T steps of N environments leave behind, first axis T."""

    def __init__(self, work: Work, obs_size: int, action_size: int) -> None:
        shape = (work.horizon, work.num_envs)
        self.obs = torch.zeros(*shape, obs_size)
        self.action = torch.zeros(*shape, action_size)
        self.log_prob, self.value, self.reward, self.done = (torch.zeros(shape) for _ in range(4))


def train(work: Work, seed: int, clock: Clock) -> Training:
    """Train, and count gradient steps where they are taken."""
    envs = SyncVectorEnv([partial(make_env, work)] * work.num_envs, autoreset_mode=AutoresetMode.SAME_STEP)
    if type(work) is not PPOWork or not isinstance(envs.single_action_space, gymnasium.spaces.Box):
        raise ValueError(f"{work.name} is no work for continuous control")
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    np.random.seed(seed)
    sizes = prod(envs.single_observation_space.shape or ()), prod(envs.single_action_space.shape)
    agent = Agent(*sizes, work.hidden_sizes)
    optimizer = torch.optim.Adam(agent.parameters(), lr=work.learning_rate, eps=1e-5)
    rollout = Rollout(work, *sizes)
    obs = torch.as_tensor(envs.reset(seed=seed)[0], dtype=torch.float32)
    env_steps = gradient_steps = 0
    for iteration in range(work.iterations):
        optimizer.param_groups[0]["lr"] = work.learning_rate * (1 - iteration / work.iterations)
        obs = collect(envs, agent, rollout, obs)
        env_steps += rollout.reward.numel()
        with clock.update():
            advantage = generalized_advantage(work, rollout, agent, obs)
            gradient_steps += update(work, agent, optimizer, rollout, advantage)
        clock.iteration_done()
    return Training(
        env_steps=env_steps,
        gradient_steps=gradient_steps,
        gradient_steps_source="counted in the loop over minibatches",
        parameter_shapes=[list(parameter.shape) for parameter in agent.parameters()],
        simulator=gymnasium_simulator(work.env_id),
    )


def make_env(work: Work) -> gymnasium.Env:
    """One environment in CleanRL's wrappers, statistics of its own included."""
    env = wrappers.ClipAction(wrappers.RecordEpisodeStatistics(gymnasium.make(work.env_id)))
    if work.normalize:
        env = wrappers.NormalizeObservation(env)
        env = wrappers.TransformObservation(env, lambda obs: np.clip(obs, -CLIP, CLIP), env.observation_space)
        env = wrappers.NormalizeReward(env, gamma=work.gamma)
        env = wrappers.TransformReward(env, lambda reward: min(max(float(reward), -CLIP), CLIP))
    return env


@torch.no_grad()
def collect(envs: SyncVectorEnv, agent: Agent, rollout: Rollout, obs: Tensor) -> Tensor:
    """Fill the rollout from this observation on, and return the one after it."""
    for step in range(len(rollout.obs)):
        distribution = agent.distribution(obs)
        action = distribution.sample()
        rollout.obs[step] = obs
        rollout.action[step] = action
        rollout.log_prob[step] = distribution.log_prob(action).sum(-1)
        rollout.value[step] = agent.value(obs).squeeze(-1)
        next_obs, reward, terminated, truncated, _ = envs.step(action.numpy())
        rollout.reward[step] = torch.as_tensor(reward)
        rollout.done[step] = torch.as_tensor(terminated | truncated)
        obs = torch.as_tensor(next_obs, dtype=torch.float32)
    return obs


@torch.no_grad()
def generalized_advantage(work: Work, rollout: Rollout, agent: Agent, last_obs: Tensor) -> Tensor:
    """GAE by a loop backwards over time, (T, N)."""
    advantage = torch.zeros_like(rollout.reward)
    next_value, running = agent.value(last_obs).squeeze(-1), torch.zeros(work.num_envs)
    for step in range(work.horizon - 1, -1, -1):
        discount = work.gamma * (1 - rollout.done[step])
        error = rollout.reward[step] + discount * next_value - rollout.value[step]
        running = error + work.gae_lambda * discount * running
        advantage[step], next_value = running, rollout.value[step]
    return advantage


def update(work: PPOWork, agent: Agent, optimizer: torch.optim.Optimizer, rollout: Rollout, advantage: Tensor) -> int:
    """Epochs of minibatches in random orders; returns the number of gradient steps."""
    batch = [
        column.flatten(0, 1)
        for column in (rollout.obs, rollout.action, rollout.log_prob, advantage, advantage + rollout.value)
    ]
    indices, gradient_steps = np.arange(work.steps_per_iteration), 0
    for _ in range(work.num_epochs):
        np.random.shuffle(indices)
        for chosen in np.split(indices, work.steps_per_iteration // work.minibatch_size):
            loss = loss_of(work, agent, *(column[chosen] for column in batch))
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(agent.parameters(), work.max_grad_norm)
            optimizer.step()
            gradient_steps += 1
    return gradient_steps


def loss_of(
    work: PPOWork, agent: Agent, obs: Tensor, action: Tensor, log_prob: Tensor, advantage: Tensor, returns: Tensor
) -> Tensor:
    """The clipped surrogate, half the squared error of the value and the entropy."""
    distribution = agent.distribution(obs)
    ratio = (distribution.log_prob(action).sum(-1) - log_prob).exp()
    advantage = (advantage - advantage.mean()) / (advantage.std() + 1e-8)
    clipped = ratio.clamp(1 - work.clip_range, 1 + work.clip_range)
    policy_loss = -torch.minimum(advantage * ratio, advantage * clipped).mean()
    value_loss = 0.5 * (agent.value(obs).squeeze(-1) - returns).square().mean()
    return policy_loss + work.vf_coef * value_loss - work.ent_coef * distribution.entropy().sum(-1).mean()


def _network(inputs: int, hidden_sizes: tuple[int, ...], outputs: int, last_gain: float) -> nn.Sequential:
    """Tanh units with orthogonal weights and no biases at the start."""
    sizes = (inputs, *hidden_sizes, outputs)
    layers: list[nn.Module] = []
    for number, (before, after) in enumerate(itertools.pairwise(sizes), start=1):
        last = number == len(sizes) - 1
        linear = nn.Linear(before, after)
        nn.init.orthogonal_(linear.weight, last_gain if last else 2**0.5)
        nn.init.zeros_(linear.bias)
        layers += [linear] if last else [linear, nn.Tanh()]
    return nn.Sequential(*layers)


if __name__ == "__main__":
    main("cleanrl", train, PACKAGES)
