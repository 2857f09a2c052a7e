"""Inchworm: policies trained by small, measured steps.

import inchworm as iw
run = iw.train("HalfCheetah-v5", total_steps=1_000_000, seed=0)
run.policy.act(obs)
run.evaluate(episodes=20)
"""

import sys

if sys.platform == "win32":
    raise ImportError("Inchworm runs on Linux and macOS, and on Windows inside WSL: it needs POSIX files and signals.")

from importlib import import_module
from importlib.metadata import version
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
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

# JAX takes a second to load, so the names are loaded when they are first asked for.
_PLACES = {
    "A2C": "inchworm.algorithms.policy_gradient",
    "NPG": "inchworm.algorithms.trpo",
    "PPO": "inchworm.algorithms.ppo",
    "PRESETS": "inchworm.config",
    "REINFORCE": "inchworm.algorithms.policy_gradient",
    "TRPO": "inchworm.algorithms.trpo",
    "Evaluation": "inchworm.collect.evaluate",
    "InchwormError": "inchworm.errors",
    "Iteration": "inchworm.loop",
    "Policy": "inchworm.models.policy",
    "Run": "inchworm.run",
    "RunGroup": "inchworm.seeds",
    "Schedule": "inchworm.rl.schedules",
    "load": "inchworm.api",
    "load_policy": "inchworm.io.policy_file",
    "resume": "inchworm.api",
    "save_policy": "inchworm.io.policy_file",
    "train": "inchworm.api",
    "train_seeds": "inchworm.seeds",
}


def __getattr__(name: str) -> Any:
    if name in _PLACES:
        value = globals()[name] = getattr(import_module(_PLACES[name]), name)
        return value
    if not name.startswith("_") and find_spec(f"{__name__}.{name}"):
        return import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*__all__, *(name for name in globals() if name.startswith("__"))})
