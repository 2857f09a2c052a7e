"""An episode as pictures, and whose fault it is when there are none."""

import re

import gymnasium
import numpy as np
import pytest

from fixed_model import fixed_model
from inchworm import spaces
from inchworm.collect import record as module
from inchworm.collect.record import MAX_FRAMES, render_episode
from inchworm.errors import EnvironmentContractError, MissingDependencyError
from inchworm.models.policy import Policy
from inchworm.models.settings import ModelSettings

SPEC = spaces.EnvSpec(spaces.Box((3,), "float32", -1.0, 1.0), spaces.Discrete(2))


class Painter(gymnasium.Env):
    """Pictures whose pixels are the number of the step, which is also the reward; a fault to choose."""

    observation_space = gymnasium.spaces.Box(-1.0, 1.0, (3,), np.float32)
    action_space = gymnasium.spaces.Discrete(2)
    metadata = {"render_modes": ["rgb_array"], "render_fps": 12}  # noqa: RUF012
    render_mode = "rgb_array"

    def __init__(self, fault="none", length=4):
        self.fault, self.length, self.closed = fault, length, False
        if fault == "make":
            raise OSError("no display")

    def reset(self, *, seed=None, options=None):
        self.steps = 0
        return np.zeros(3, np.float32), {}

    def step(self, action):
        self.steps += 1
        if self.fault == "step":
            raise ValueError("the gripper is lost")
        return np.zeros(3, np.float32), float(self.steps), self.steps == self.length, False, {}

    def render(self):
        if self.fault == "render":
            raise RuntimeError("no EGL")
        return None if self.fault == "no picture" else np.full((2, 3, 3), self.steps % 256, np.uint8)

    def close(self):
        self.closed = True


def record(env):
    settings = ModelSettings(hidden_sizes=(8,))
    return render_episode(Policy(fixed_model(SPEC, settings=settings), (None,), settings), lambda: env)


def test_an_episode_has_a_picture_before_and_after_each_step():
    env = Painter()
    frames, total, fps = record(env)
    assert [frame[0, 0, 0] for frame in frames] == [0, 1, 2, 3, 4]
    assert (total, fps, env.closed) == (1.0 + 2 + 3 + 4, 12, True)


def test_a_long_episode_is_cut():
    frames, total, _ = record(Painter(length=10_000))
    assert (len(frames), total) == (MAX_FRAMES, sum(range(MAX_FRAMES)))


@pytest.mark.parametrize(
    ("fault", "error", "message"),
    [
        ("render", MissingDependencyError, r"^renderer = RuntimeError: .*\(no EGL\)"),
        ("no picture", EnvironmentContractError, "^render_mode = "),
        (
            "step",
            EnvironmentContractError,
            r"^env\.step = ValueError: the gripper is lost: was raised by the environment",
        ),
    ],
)
def test_only_what_keeps_from_drawing_is_told_as_a_missing_renderer(fault, error, message):
    env = Painter(fault)
    with pytest.raises(error, match=message):
        record(env)
    assert env.closed


def test_an_environment_that_cannot_be_made_to_draw_is_told_as_a_missing_renderer():
    policy = Policy(fixed_model(SPEC, settings=ModelSettings(hidden_sizes=(8,))), (None,))
    with pytest.raises(MissingDependencyError, match=r"OSError: .*\(no display\)"):
        render_episode(policy, lambda: Painter("make"))


def test_a_video_is_of_300_pictures_at_most_and_thirty_a_second_where_nothing_else_is_said(monkeypatch):
    assert MAX_FRAMES == 300
    monkeypatch.setattr(Painter, "metadata", {"render_modes": ["rgb_array"]})
    assert record(Painter())[2] == 30


@pytest.mark.parametrize(
    ("name", "error", "told"),
    [
        ("mujoco.egl.gl_context", RuntimeError("x"), "MuJoCo needs EGL or OSMesa"),
        ("OpenGL.error", RuntimeError("x"), "MuJoCo needs EGL or OSMesa"),
        ("tasks", RuntimeError("pygame is not installed"), 'It needs pip install "inchworm\\[classic\\]"'),
        ("tasks", RuntimeError("x"), "^It comes from <string>"),
    ],
)
def test_what_to_install_is_told_by_where_an_error_comes_from(name, error, told):
    functions = {"__name__": name, "error": error}
    exec("def draw():\n    raise error", functions)
    with pytest.raises(RuntimeError) as caught:
        functions["draw"]()
    advice = module._renderer_of(caught.value)
    assert re.search(told, advice)
    assert ("MuJoCo" in advice) == (name != "tasks")
    assert ("classic" in advice) == ("pygame" in str(error))
