"""What a user should know of an environment's spaces before a policy is trained in them."""

import math
from dataclasses import dataclass

import numpy as np

from inchworm import spaces
from inchworm.models.observations import may_be_image
from inchworm.models.settings import ModelSettings
from inchworm.rl.schedules import Schedule
from inchworm.spaces import Box, EnvSpec

SELDOM = 5.0
"""A Gaussian policy comes this many deviations from its mean once in millions of actions."""


@dataclass(frozen=True)
class Finding:
    """Something wrong with an environment, or that may keep a policy from learning well."""

    where: str
    """What it is about: reward, observation, env.reset, ..."""
    problem: str
    fix: str
    """What to do about it, a sentence of its own."""

    def __str__(self) -> str:
        return f"{self.where}: {self.problem}. {self.fix}"


def advise(spec: EnvSpec, settings: ModelSettings, own_network: bool = False) -> list[Finding]:
    """What is against the spaces, for a policy of these settings, perhaps with a network of the user's own."""
    seen = [] if own_network else [_of_vector(leaf) for leaf in spaces.leaves(spec.observation_space)]
    # Boxes of whole numbers have no policy, and are refused.
    leaves = spaces.leaves(spec.action_space)
    boxes = [leaf for leaf in leaves if isinstance(leaf, Box) and np.dtype(leaf.dtype).kind == "f"]
    gaussian = settings.action_distribution == "gaussian"
    return [each for each in seen if each is not None] + [
        found for box in boxes if gaussian for found in _of_bounds(box, first_deviation(settings))
    ]


def first_deviation(settings: ModelSettings) -> float:
    """Deviation of a Gaussian policy before its first update."""
    log_std = settings.log_std
    return math.exp(log_std.start) if isinstance(log_std, Schedule) else 1.0


def clipped_at_first(box: Box, deviation: float) -> np.ndarray:
    """For each number of a Box the share of a Gaussian policy's first actions that are clipped at its bounds."""
    normal_cdf = np.vectorize(lambda x: (1 + math.erf(x / math.sqrt(2))) / 2)
    low, high = spaces.bounds(box)
    return 1 - (normal_cdf(high / deviation) - normal_cdf(low / deviation))


def _of_vector(leaf: spaces.Leaf) -> Finding | None:
    if not isinstance(leaf, Box) or not may_be_image(leaf):
        return None
    return Finding(
        "observation_space",
        f"a Box of shape {leaf.shape}, {leaf.dtype}, becomes a vector of {leaf.size:,} numbers",
        "If it is an image, give it as bytes of shape (H, W, C): a Box from 0 to 255 of dtype np.uint8.",
    )


def _of_bounds(box: Box, deviation: float) -> list[Finding]:
    low, high = spaces.bounds(box)
    infinite = np.isinf(high - low)
    fix = "Give bounds of -1 and 1 and scale inside."
    if not infinite.any():
        fix = (
            'Set action_distribution to "beta" or "tanh_gaussian", which spread over the range, or wrap the '
            "environment in gymnasium.wrappers.RescaleAction(env, -1, 1)."
        )
    found = (
        (infinite, "which does not bound the Gaussian policy: whatever it draws is sent"),
        ((low > 0) | (high < 0), "which leaves out 0, around which the Gaussian policy starts"),
        (
            clipped_at_first(box, deviation) > 0.75,
            "so narrow that nearly all first actions of the Gaussian policy are a bound itself",
        ),
        (
            ~infinite & (np.maximum(-low, high) > SELDOM * deviation),
            f"so wide that the Gaussian policy, of deviation {deviation:.3g}, tries little of it",
        ),
    )
    # Of what is against a number the first is told.
    told = np.zeros(box.size, bool)
    advice = []
    for faulty, text in found:
        for index in np.flatnonzero(faulty & ~told)[:1]:
            problem = f"number {index} has the range [{low[index]:g}, {high[index]:g}], {text}"
            advice.append(Finding("action_space", problem, fix))
        told |= faulty
    return advice
