"""Tianshou's PPO for continuous control, set up as its example for MuJoCo, with one torch thread and no logging.

Three ways of stepping the environments are measured, of which the example takes the last if it can: all in its own
process (DummyVectorEnv, here), each in a process of its own with shared memory (`peers.tianshou_processes`), and
EnvPool (`peers.tianshou_envpool`). Of what its documentation calls slow, the search for NaN by the collector is left
out, and values are computed for the whole batch at once. The example's clipped value loss, and advantages computed anew
in each epoch, are left out as on all sides.

Rewards are not normalised in the environment: its way is `return_scaling`, by which returns are scaled in the update.
"""

from __future__ import annotations

from importlib.metadata import version
from typing import Any, Literal

import gymnasium
import numpy as np
import torch
from tianshou.algorithm import PPO
from tianshou.algorithm.modelfree.reinforce import ProbabilisticActorPolicy
from tianshou.algorithm.optim import AdamOptimizerFactory, LRSchedulerFactoryLinear
from tianshou.data import Collector, VectorReplayBuffer
from tianshou.env import DummyVectorEnv, SubprocVectorEnv, VectorEnvNormObs
from tianshou.trainer import OnPolicyTrainerParams
from tianshou.utils.net.common import Net
from tianshou.utils.net.continuous import ContinuousActorProbabilistic, ContinuousCritic
from torch.distributions import Distribution, Independent, Normal

from peers.protocol import Clock, PPOWork, Training, Work, gymnasium_simulator, main

PACKAGES = ("tianshou", "torch", "gymnasium", "numpy")
Environments = Literal["serial", "processes", "envpool"]


def train(work: Work, seed: int, clock: Clock, environments: Environments = "serial") -> Training:
    """Train with Tianshou's trainer; an iteration's end is where the next one starts, or where training ends."""
    single = gymnasium.make(work.env_id)
    if type(work) is not PPOWork or not isinstance(single.action_space, gymnasium.spaces.Box):
        raise ValueError(f"{work.name} is no work for Tianshou")
    torch.set_num_threads(1)
    np.random.seed(seed)
    torch.manual_seed(seed)
    algorithm = make_algorithm(work, single.observation_space, single.action_space)
    envs = make_environments(work, seed, environments)
    buffer = VectorReplayBuffer(work.steps_per_iteration, work.num_envs)
    collector = Collector(algorithm, envs, buffer, exploration_noise=True, raise_on_nan_in_buffer=False)
    collector.reset()
    update = algorithm.update
    gradient_steps = 0

    def timed_update(*arguments: Any, **settings: Any) -> Any:
        nonlocal gradient_steps
        with clock.update():
            stats = update(*arguments, **settings)
        gradient_steps += stats.gradient_steps
        return stats

    def tell_clock(epoch: int, env_steps: int) -> None:
        if env_steps > 0:
            clock.iteration_done()

    algorithm.update = timed_update
    algorithm.run_training(
        OnPolicyTrainerParams(
            training_collector=collector,
            max_epochs=1,
            epoch_num_steps=work.total_steps,
            collection_step_num_env_steps=work.steps_per_iteration,
            update_step_num_repetitions=work.num_epochs,
            batch_size=work.minibatch_size,
            training_fn=tell_clock,
            verbose=False,
            show_progress=False,
        )
    )
    clock.iteration_done()
    return Training(
        env_steps=collector.collect_step,
        gradient_steps=gradient_steps,
        gradient_steps_source="the sum of what its updates report",
        # The deviation of the actions is a column.
        parameter_shapes=[
            list(parameter.flatten().shape if name.endswith("sigma_param") else parameter.shape)
            for name, parameter in algorithm.named_parameters()
        ],
        simulator=f"EnvPool {version('envpool')}, with its own build of the simulator"
        if environments == "envpool"
        else gymnasium_simulator(work.env_id),
    )


def make_environments(work: Work, seed: int, environments: Environments) -> Any:
    """Its vectorised environments, observations normalised if the work says so."""
    match environments:
        case "envpool":
            import envpool  # only on Linux

            envs = envpool.make_gymnasium(work.env_id, num_envs=work.num_envs, seed=seed)
        case "processes":
            factories = [lambda: gymnasium.make(work.env_id)] * work.num_envs
            envs = SubprocVectorEnv(factories, share_memory=True, context="fork")
            envs.seed(seed)
        case "serial":
            envs = DummyVectorEnv([lambda: gymnasium.make(work.env_id)] * work.num_envs)
            envs.seed(seed)
    return VectorEnvNormObs(envs) if work.normalize else envs


def make_algorithm(work: PPOWork, observation_space: gymnasium.Space, action_space: gymnasium.Space) -> PPO:
    """PPO with a network for the mean of the actions, their deviation as a parameter, and a network for the value."""
    net: dict[str, Any] = {
        "state_shape": observation_space.shape,
        "hidden_sizes": work.hidden_sizes,
        "activation": torch.nn.Tanh,
    }
    actor = ContinuousActorProbabilistic(preprocess_net=Net(**net), action_shape=action_space.shape, unbounded=True)
    policy = ProbabilisticActorPolicy(
        actor=actor,
        dist_fn=_normal,
        action_scaling=True,
        action_bound_method="clip",
        action_space=action_space,
    )
    schedule = LRSchedulerFactoryLinear(1, work.total_steps, work.steps_per_iteration)
    return PPO(
        policy=policy,
        critic=ContinuousCritic(preprocess_net=Net(**net)),
        optim=AdamOptimizerFactory(lr=work.learning_rate).with_lr_scheduler_factory(schedule),
        gamma=work.gamma,
        gae_lambda=work.gae_lambda,
        eps_clip=work.clip_range,
        vf_coef=work.vf_coef,
        ent_coef=work.ent_coef,
        max_grad_norm=work.max_grad_norm,
        advantage_normalization=True,
        return_scaling=work.normalize,
        max_batchsize=work.steps_per_iteration,
    )


def _normal(location_and_scale: tuple[torch.Tensor, torch.Tensor]) -> Distribution:
    return Independent(Normal(*location_and_scale), 1)


if __name__ == "__main__":
    main("tianshou", train, (*PACKAGES, "mujoco"))
