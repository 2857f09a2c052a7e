"""An episode as pictures."""

import contextlib
import traceback
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice

import gymnasium
import numpy as np

from inchworm.collect.evaluate import play
from inchworm.envs.checked import CheckedEnv
from inchworm.envs.making import EnvFactory
from inchworm.envs.pool import environment_seed, first_line, mending
from inchworm.errors import EnvironmentContractError, InchwormError, MissingDependencyError
from inchworm.models.policy import Policy
from inchworm.spaces import EnvSpec

MAX_FRAMES = 300


def render_episode(
    policy: Policy, factory: EnvFactory, *, seed: int = 0, deterministic: bool = True
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
        EnvironmentContractError: the environment renders no arrays, or does not keep its interface's promises.
    """
    with _rendering():
        checked = CheckedEnv(factory, EnvSpec(policy.observation_space, policy.action_space))
    with contextlib.closing(checked):
        env, obs = checked.env, checked.reset(environment_seed(seed, 2**30, 0))
        frames, total = [_frame(env)], 0.0
        for reward in islice(play(replace(policy, seed=seed), checked, obs, deterministic), MAX_FRAMES - 1):
            total += reward
            frames.append(_frame(env))
        return frames, total, int(env.metadata.get("render_fps") or 30)


def _frame(env: gymnasium.Env) -> np.ndarray:
    with _rendering():
        frame = env.render()
    if not isinstance(frame, np.ndarray) or frame.ndim != 3:
        raise EnvironmentContractError(
            "render_mode", repr(env.render_mode), "gives no pictures", "Support render_mode='rgb_array'."
        )
    return frame


@contextlib.contextmanager
def _rendering() -> Iterator[None]:
    """Inside it an error means that a renderer is missing, if it is none of this library's.

    What a missing renderer raises depends on the simulator: FatalError, GLError, DependencyNotInstalled ...
    """
    try:
        yield
    except InchwormError:
        raise
    except NotImplementedError as error:
        raise EnvironmentContractError(
            "env.render", "NotImplementedError", "the environment does not draw itself", "Write its render()."
        ) from error
    except Exception as error:
        raise MissingDependencyError(
            "renderer",
            type(error).__name__,
            f"the environment cannot be rendered here ({first_line(error)})",
            _renderer_of(error),
        ) from error


def _renderer_of(error: Exception) -> str:
    """What to install, by the modules that an error has passed; where it comes from, if they are no renderer's."""
    frames = (frame for frame, _ in traceback.walk_tb(error.__traceback__))
    modules = {part for frame in frames for part in str(frame.f_globals.get("__name__")).split(".")}
    if modules & {"mujoco", "OpenGL", "glfw"}:
        return "MuJoCo needs EGL or OSMesa (Debian: apt-get install libegl1 libosmesa6)."
    if "pygame" in str(error):
        return 'It needs pip install "inchworm[classic]".'
    return mending("render", error)
