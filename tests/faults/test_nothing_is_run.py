"""A folder that somebody else made runs nothing of theirs: no module is imported, no file of their naming opened."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import gymnasium
import pytest

import inchworm as iw
from inchworm.cli.main import main
from inchworm.errors import ConfigError
from inchworm.io import checkpoint as checkpoints
from inchworm.io.run_folder import RunFolder, read_json, write_json

SMALL = iw.PPO(num_envs=2, horizon=16, minibatch_size=16, num_epochs=1, hidden_sizes=(8,))
MODULE = """
import gymnasium


def make(render_mode=None, **kwargs):
    return gymnasium.make("CartPole-v1", render_mode=render_mode)
"""


def make_named(name="plain"):
    return gymnasium.make("CartPole-v1")


def half_a_run(out, env="CartPole-v1", **options):
    """The folder of a run that was stopped in the middle."""
    options = {"total_steps": 320, "evaluation_episodes": 0, "progress": False} | options
    return iw.train(env, SMALL, out=out, on_iteration=lambda report: report.iteration == 3, **options).folder


def forge(folder, **changes):
    """Writes other values into a run's configuration, and into each sealed manifest, so that they agree."""
    run = RunFolder(folder)
    write_json(run.config, read_json(run.config) | changes)
    for path in checkpoints.list_checkpoints(run.checkpoints):
        one = checkpoints.load_checkpoint(path)
        decided_by = one.meta["decided_by"] | changes
        meta = one.meta | {"decided_by": {name: decided_by[name] for name in one.meta["decided_by"]}}
        checkpoints.save_checkpoint(run.checkpoints, dataclasses.replace(one, meta=meta))


@pytest.fixture
def module(tmp_path, monkeypatch):
    """A module of the user's own in the folder where commands are run."""
    (tmp_path / "users_environments.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield "users_environments"
    sys.modules.pop("users_environments", None)


def test_what_a_folder_calls_its_environment_is_neither_run_nor_told_to_be_typed(tmp_path, module, capfd):
    folder = half_a_run(tmp_path / "runs")
    forge(folder, env="os:system", env_kwargs={"command": "touch taken"}, env_by_id=False)
    words = ["resume", str(folder), "--env", f"{module}:make", "--no-progress", "--evaluation-episodes", "0"]
    assert main(words) == 0
    captured = capfd.readouterr()
    assert "os:system" not in captured.out + captured.err
    assert not Path("taken").exists()
    assert (folder / "video.mp4").exists(), captured.out


def test_nothing_is_imported_because_a_folder_names_it(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    folder = half_a_run(tmp_path / "runs")
    forge(folder, env="os:system", env_kwargs={"command": "touch taken"})
    for verb in ("resume", "evaluate", "record"):
        assert main([verb, str(folder)]) == 2
        assert "is code of your own" in capsys.readouterr().err
    assert not Path("taken").exists()


@pytest.mark.parametrize(
    "kwargs",
    [
        {"xml_file": "/etc/passwd"},
        {"xml_file": "evil.xml"},
        {"layout": ["here", "~/there"]},
        {"inner": {"loader": "os:system"}},
        {"../there": 1},
        {"drive": "C:\\\\there"},
    ],
)
def test_arguments_that_may_name_a_file_or_a_module_are_asked_for_again(tmp_path, kwargs):
    folder = half_a_run(tmp_path)
    forge(folder, env_kwargs=kwargs)
    again = [lambda: iw.resume(folder), lambda: iw.load(folder).evaluate(), lambda: iw.load(folder).record()]
    for call in again:
        with pytest.raises(ConfigError, match=r"env_kwargs = .*Give them again") as error:
            call()
        assert error.value.field == "env_kwargs"


def test_arguments_that_are_given_again_are_taken(tmp_path, capsys):
    kwargs = {"name": "maps/small.json"}
    folder = half_a_run(tmp_path, make_named, env_kwargs=kwargs)
    run = iw.load(folder)
    assert run.evaluate(episodes=1, env=make_named, env_kwargs=kwargs).returns
    with pytest.raises(ConfigError, match="is not what the run was trained in"):
        iw.resume(folder, make_named, env_kwargs={"name": "maps/large.json"}, progress=False)
    resumed = iw.resume(folder, make_named, env_kwargs=kwargs, progress=False, evaluation_episodes=1)
    assert resumed.summary["env_steps"] == 320
    assert resumed.evaluate(episodes=1, env=make_named).returns, "this process was given them"


def test_plain_arguments_come_from_the_folder(tmp_path):
    folder = half_a_run(tmp_path, "FrozenLake-v1", env_kwargs={"desc": ["SFH", "FFF", "HFG"], "is_slippery": False})
    assert iw.load(folder).evaluate(episodes=1).returns
    assert iw.resume(folder, progress=False, evaluation_episodes=0).summary["env_steps"] == 320


def test_no_module_in_the_current_folder_takes_the_place_of_one_that_is_installed(tmp_path):
    folder = half_a_run(tmp_path / "runs", total_steps=64)
    for name in ("tyro", "shtab", "matplotlib", "imageio", "gymnasium", "jax", "safetensors", "numpy", "tensorboardX"):
        (folder / f"{name}.py").write_text("raise SystemExit('it was run')")
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    for words in (["plot", "."], ["evaluate", ".", "--episodes", "1", "--env", "gymnasium:make"]):
        command = [sys.executable, "-P", "-m", "inchworm", *words]
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
        assert "it was run" not in done.stdout + done.stderr
        assert done.returncode == (0 if words[0] == "plot" else 2), done.stderr
    config = json.loads((folder / "config.json").read_text())
    assert config["env"] == "CartPole-v1"
