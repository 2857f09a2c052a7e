"""What a command prints at its end: aligned columns, paths that can be copied, and a video or why there is none."""

import subprocess
import sys
from pathlib import Path

import pytest

from inchworm.cli.main import main
from inchworm.cli.report import columns

SMALL = ["--num-envs", "2", "--horizon", "16", "--minibatch-size", "16", "--num-epochs", "1", "--hidden-sizes", "8"]

MODULE = """
import gymnasium
import numpy as np


class Drawn(gymnasium.Env):
    metadata = {"render_modes": ["rgb_array"], "render_fps": 30}
    observation_space = gymnasium.spaces.Box(-1, 1, (1,), np.float32)
    action_space = gymnasium.spaces.Discrete(2)
    steps = 0

    def __init__(self, render_mode=None):
        self.render_mode = render_mode

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.steps = 0
        return np.zeros(1, np.float32), {}

    def step(self, action):
        self.steps += 1
        return np.zeros(1, np.float32), 1.0, self.steps == 5, False, {}

    def render(self):
        return np.zeros((32, 32, 3), np.uint8)


class Undrawn(Drawn):
    tried = False

    def render(self):
        self.tried = True
        raise RuntimeError("no display")

    def __del__(self):
        if self.tried:
            raise RuntimeError("it has never begun")
"""


@pytest.fixture
def module(tmp_path, monkeypatch):
    """A module of the user's own in the folder where the command is run."""
    (tmp_path / "drawn_environments.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setenv("COLUMNS", "80")
    yield "drawn_environments"
    sys.modules.pop("drawn_environments", None)


def trained(capfd, *words):
    command = ["train", *words, "--total-steps", "64", "--name", "x", "--no-progress", "--evaluation-episodes", "1"]
    assert main([*command, *SMALL]) == 0
    return capfd.readouterr()


def test_the_video_stands_in_the_columns_of_the_others_and_its_path_alone(module, capfd):
    captured = trained(capfd, f"{module}:Drawn")
    rows = captured.out.splitlines()
    column = len("  deterministic  ")
    assert all(row[:column].endswith("  ") and row[column] != " " for row in rows), captured.out
    (run,) = Path().glob("runs/*/ppo/x")
    values = {row[:column].strip(): row[column:] for row in rows}
    assert values["run"] == str(run)
    assert values["curve"] == f"{run}/curve.png"
    assert values["video"] == f"{run}/video.mp4"
    assert Path(values["video"]).stat().st_size > 0
    assert values[""] == "6 frames, return 5 up to the last"
    assert captured.err == ""


def test_a_renderer_that_is_missing_is_one_line_at_the_end_of_a_good_training(module, capfd):
    captured = trained(capfd, f"{module}:Undrawn")
    last = captured.out.splitlines()[-1]
    assert last.startswith("  no video: renderer = RuntimeError: the environment cannot be rendered here (no display)")
    assert captured.err == ""
    (run,) = Path().glob("runs/*/ppo/x")
    command = [sys.executable, "-m", "inchworm", "record", str(run), "--env", f"{module}:Undrawn"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("error: renderer = ")
    assert done.stderr.count("\n") == 1, "nothing of what was left behind is told"


def test_a_path_is_as_short_as_it_can_be_and_never_folded(tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.chdir(tmp_path)
    assert columns({"return": "5.0", "run": tmp_path / "runs" / "x"}) == "  return  5.0\n  run     runs/x"
    assert columns({"run": Path("/x")}, 6) == "  run     /x"
    long = Path("y" * 70)
    assert columns({"return": "5.0", "run": long}) == f"  return  5.0\n  run     {long}"
    long = Path("y" * 71)
    assert columns({"return": "5.0", "run": long}) == f"  return  5.0\n  run\n    {long}"
