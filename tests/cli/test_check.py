"""`inchworm check` prints what it found and says by its exit status whether to go on."""

import sys

import pytest

from inchworm.cli.main import main

MODULE = """
import sys

import gymnasium
import numpy as np


class Environment(gymnasium.Env):
    observation_space = gymnasium.spaces.Box(-1, 1, (1,), np.float32)
    action_space = gymnasium.spaces.Discrete(2)

    def __init__(self, reward=None):
        self.reward = reward

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        print("chatter")
        return self.np_random.uniform(-1, 1, 1).astype(np.float32), {}

    def step(self, action):
        print("chatter", file=sys.stderr)
        ended = bool(self.np_random.integers(5) == 0)
        return self.np_random.uniform(-1, 1, 1).astype(np.float32), self.reward, ended, False, {}


def unlicensed():
    raise RuntimeError("no licence")
"""


@pytest.fixture
def module(tmp_path, monkeypatch):
    """A module of the user's own in the folder where the command is run."""
    (tmp_path / "checked_environments.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield "checked_environments"
    sys.modules.pop("checked_environments", None)


def test_a_healthy_environment_exits_with_0_and_shows_the_settings_of_its_preset(capsys):
    assert main(["check", "CartPole-v1", "--steps", "200"]) == 0
    rows = capsys.readouterr().out.splitlines()
    assert rows[0] == "CartPole-v1"
    assert "Problems: none" in rows
    assert "Warnings: none" in rows
    settings = dict(row.split(maxsplit=1) for row in rows[rows.index("PPO settings it would get") + 1 :])
    assert settings["preset"].startswith("classic (")
    assert settings["num_envs"] == "8"
    assert settings["learning_rate"] == "linear:0.001:0.0"
    assert settings["normalisation"] == "returns, advantages over the batch"
    assert settings["total_steps"] == "100,000"


def test_an_environment_of_another_backend_is_checked_with_the_settings_it_gets_there(capsys):
    assert main(["check", "MountainCarContinuous-v0", "--backend", "jax", "--steps", "200"]) == 0
    out = capsys.readouterr().out
    assert "Problems: none" in out
    assert "batched (" in out


def test_values_stand_in_one_column(capsys):
    main(["check", "CartPole-v1", "--steps", "200"])
    rows = [row for row in capsys.readouterr().out.splitlines() if row.startswith("  ")]
    column = rows[0].index("Box")
    assert all(row[column - 2 : column] == "  " and row[column] != " " for row in rows)


def test_a_problem_exits_with_2_and_the_environments_chatter_is_hidden(module, capsys):
    assert main(["check", f"{module}:Environment", "--steps", "50"]) == 2
    captured = capsys.readouterr()
    assert "Problems: 1" in captured.out
    assert "is None, at step 1 of episode 1" in " ".join(captured.out.split())
    assert "chatter" not in captured.out + captured.err


def test_keyword_arguments_reach_the_environment(module, capsys):
    arguments = ["check", f"{module}:Environment", "--steps", "50", "--env-kwargs", '{"reward": 1.0}']
    assert main(arguments) == 0
    assert "Problems: none" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["CartPol-v1"], "did you mean CartPole-v1"),
        (["CartPole-v1", "--steps", "0"], "steps = 0"),
        (["CartPole-v1", "--env-kwargs", "[]"], "is no JSON object"),
        (["checked_environments:unlicensed"], "cannot be made: RuntimeError: no licence"),
    ],
)
def test_wrong_input_exits_with_2_and_one_line(module, arguments, message, capsys):
    assert main(["check", *arguments]) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.err.count("\n") == 1
    assert captured.out == ""
