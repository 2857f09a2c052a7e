"""An episode as pictures."""

from collections.abc import Callable
from dataclasses import replace
from itertools import islice

import gymnasium
import numpy as np

from inchworm.collect.evaluate import play
from inchworm.envs.pool import environment_seed
from inchworm.errors import EnvironmentContractError, MissingDependencyError
from inchworm.models.policy import Policy

MAX_FRAMES = 300


def render_episode(
    policy: Policy, factory: Callable[..., gymnasium.Env], *, seed: int = 0, deterministic: bool = True
) -> tuple[list[np.ndarray], float, int]:
    """Plays an episode, or its first `MAX_FRAMES` steps.

    Args:
        policy: what acts.
        factory: makes an environment that renders to arrays.
        seed: of the episode.
        deterministic: act by the distributions' modes.

    Returns:
        Frames (height, width, 3) of bytes, the return up to the last frame, and frames per second.

    Raises:
        MissingDependencyError: there is no renderer.
        EnvironmentContractError: the environment renders no arrays.
    """
    try:
        env = factory()
        start = env.reset(seed=environment_seed(seed, 2**30, 0))
        frames, total = [_frame(env)], 0.0
        for reward in islice(play(replace(policy, seed=seed), env, start, deterministic), MAX_FRAMES - 1):
            total += reward
            frames.append(_frame(env))
        fps = int(env.metadata.get("render_fps") or 30)
        env.close()
    except EnvironmentContractError:
        raise
    except Exception as error:
        # What a missing renderer raises depends on the simulator: FatalError, GLError, DependencyNotInstalled ...
        raise MissingDependencyError(
            "renderer",
            type(error).__name__,
            f"the environment cannot be rendered here ({str(error).splitlines()[0] if str(error) else 'no message'})",
            "MuJoCo needs EGL or OSMesa (Debian: apt-get install libegl1 libosmesa6), classic control needs "
            'pip install "inchworm[classic]".',
        ) from error
    return frames, total, fps


def _frame(env: gymnasium.Env) -> np.ndarray:
    frame = env.render()
    if not isinstance(frame, np.ndarray) or frame.ndim != 3:
        raise EnvironmentContractError(
            "render_mode", repr(env.render_mode), "gives no pictures", "Support render_mode='rgb_array'."
        )
    return frame
