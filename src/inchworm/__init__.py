"""Inchworm: policies trained by small, measured steps.

import inchworm as iw
run = iw.train("HalfCheetah-v5", total_steps=1_000_000, seed=0)
run.policy.act(obs)
run.evaluate(episodes=20)
"""

from importlib.metadata import version

from inchworm.algorithms.policy_gradient import A2C, REINFORCE
from inchworm.algorithms.ppo import PPO
from inchworm.algorithms.trpo import NPG, TRPO
from inchworm.api import load, resume, train
from inchworm.collect.evaluate import Evaluation
from inchworm.config import PRESETS
from inchworm.errors import InchwormError
from inchworm.io.policy_file import load_policy, save_policy
from inchworm.loop import Iteration
from inchworm.models.policy import Policy
from inchworm.rl.schedules import Schedule
from inchworm.run import Run
from inchworm.seeds import RunGroup, train_seeds

__version__ = version("inchworm")

__all__ = [
    "A2C",
    "NPG",
    "PPO",
    "PRESETS",
    "REINFORCE",
    "TRPO",
    "Evaluation",
    "InchwormError",
    "Iteration",
    "Policy",
    "Run",
    "RunGroup",
    "Schedule",
    "load",
    "load_policy",
    "resume",
    "save_policy",
    "train",
    "train_seeds",
]
