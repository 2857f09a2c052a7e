"""What surrounds a run may end the program, move the ground or take nothing any more: it is told, nothing is lost."""

import os
import shutil
import subprocess
import sys

import gymnasium
import jax
import numpy as np
import pytest

import inchworm as iw
from inchworm.errors import ConfigError, EnvironmentContractError, RunFolderError
from inchworm.io.checkpoint import list_checkpoints
from inchworm.io.provenance import differing_numerics, provenance
from inchworm.io.run_folder import RunFolder

SMALL = iw.PPO(num_envs=2, horizon=16, minibatch_size=16, num_epochs=1, hidden_sizes=(8,))
QUIET = {"evaluation_episodes": 0, "progress": False}
ENVIRONMENT = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
WORDS = "train CartPole-v1 --total-steps 64 --num-envs 2 --horizon 16 --minibatch-size 16 --hidden-sizes 8 --no-video"


class Walks(gymnasium.Env):
    """Does something at a step."""

    observation_space = gymnasium.spaces.Box(-1, 1, (2,), np.float32)
    action_space = gymnasium.spaces.Discrete(2)
    at_step = 100
    steps = 0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return np.zeros(2, np.float32), {}

    def step(self, action):
        Walks.steps += 1
        if Walks.steps == self.at_step:
            self.act()
        return np.zeros(2, np.float32), 1.0, Walks.steps % 10 == 0, False, {}

    def act(self):
        pass


def doing(act):
    Walks.steps = 0
    return type("Doing", (Walks,), {"act": lambda self: act()})


@pytest.mark.fault("RF1")
def test_an_environment_that_would_end_the_program_ends_its_run_with_all_saved(tmp_path):
    with pytest.raises(EnvironmentContractError, match=r"SystemExit.*was raised by.*goes on from its last checkpoint"):
        iw.train(doing(lambda: sys.exit(0)), SMALL, total_steps=320, out=tmp_path, **QUIET)
    (folder,) = tmp_path.glob("*/ppo/*")
    assert list_checkpoints(RunFolder(folder).checkpoints)


@pytest.mark.fault("RB1", outcome="survived")
def test_an_environment_that_changes_the_current_folder_scatters_no_files(tmp_path, monkeypatch):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(tmp_path)
    run = iw.train(doing(lambda: os.chdir(elsewhere)), SMALL, total_steps=320, out="runs", **QUIET)
    assert run.folder.is_relative_to(tmp_path / "runs")
    assert {path.name for path in run.folder.iterdir()} >= {"config.json", "policy", "checkpoints", "summary.json"}
    assert not list(elsewhere.iterdir())
    assert iw.load(run.folder).policy.info["env_steps"] == 320


@pytest.mark.fault("RB5")
@pytest.mark.parametrize("how", [shutil.rmtree, lambda folder: folder.rename(folder.with_name("moved"))])
def test_a_folder_that_is_removed_or_moved_while_a_run_is_trained_is_told_and_not_made_anew(tmp_path, how):
    def away(report):
        if report.iteration == 4:
            how(tmp_path / "CartPole-v1" / "ppo" / "x")

    options = QUIET | {"out": tmp_path, "name": "x", "total_steps": 320, "on_iteration": away}
    # Checkpoints are warned of, one by one; the end is an error.
    error = pytest.raises(RunFolderError, match="was removed or moved while it was trained")
    with pytest.warns(UserWarning, match="No checkpoint was written"), error:
        iw.train("CartPole-v1", SMALL, checkpoint_seconds=0.0, **options)
    assert not (tmp_path / "CartPole-v1" / "ppo" / "x").exists()


@pytest.mark.fault("RB2")
@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan])
def test_arguments_that_no_configuration_can_hold_are_refused(tmp_path, value):
    with pytest.raises(ConfigError, match=r"env_kwargs = .*so not be read again"):
        iw.train("CartPole-v1", SMALL, env_kwargs={"x": [value]}, out=tmp_path, **QUIET)


def run_in_shell(command, **options):
    options = {"env": ENVIRONMENT, "shell": True, "capture_output": True, "text": True} | options
    return subprocess.run(f"{sys.executable} -P -m inchworm {command}", **options)


@pytest.mark.fault("RF17", outcome="survived")
@pytest.mark.parametrize("redirection", ["2>/dev/full", "2>&-"])
def test_a_standard_error_that_takes_nothing_ends_no_training(tmp_path, redirection):
    # A preset's minibatch size that gives way is warned of.
    words = WORDS.replace("--minibatch-size 16", "--threads 1")
    done = run_in_shell(f"{words} --out {tmp_path} --evaluation-episodes 0 {redirection}")
    assert done.returncode == 0
    assert "stopped by  total_steps" in " ".join(done.stdout.split("\n")).replace("stopped by   ", "stopped by ")


@pytest.mark.fault("RB5")
def test_a_current_folder_that_is_gone_is_told(tmp_path):
    gone = tmp_path / "gone"
    gone.mkdir()
    done = run_in_shell(WORDS, cwd=gone, preexec_fn=gone.rmdir)
    assert done.returncode == 2
    assert done.stderr.endswith("error: the current folder is not there any more. Go to one that is.\n")
    assert "Traceback" not in done.stderr


@pytest.mark.fault("RB2")
def test_a_platform_that_jax_cannot_start_is_told(tmp_path):
    done = run_in_shell(f"{WORDS} --out {tmp_path}", env=ENVIRONMENT | {"JAX_PLATFORMS": "tpu"})
    assert done.returncode == 2
    assert done.stderr.startswith("error: JAX_PLATFORMS = tpu: names no platform that JAX can start here")
    assert not list(tmp_path.iterdir())


@pytest.fixture
def narrow_again():
    yield
    jax.config.update("jax_enable_x64", False)


@pytest.mark.fault("RB1")
@pytest.mark.parametrize("when", ["made", "stepped"])
def test_an_environment_that_switches_64_bit_numbers_on_is_told(tmp_path, narrow_again, when):
    class Widens(Walks):
        def __init__(self):
            if when == "made":
                jax.config.update("jax_enable_x64", True)

        def act(self):
            jax.config.update("jax_enable_x64", True)

    Walks.steps = 0
    with pytest.raises(EnvironmentContractError, match="jax_enable_x64 = True: was False before"):
        iw.train(Widens, SMALL, total_steps=320, out=tmp_path, **QUIET)
    if when == "stepped":
        (folder,) = tmp_path.glob("*/ppo/*")
        assert list_checkpoints(RunFolder(folder).checkpoints)


def test_a_resume_with_64_bit_numbers_is_not_exact():
    before = provenance()
    assert differing_numerics(before, before) == []
    wide = {**before, "numerics": before["numerics"] | {"float64": True}}
    assert differing_numerics(before, wide) == ["float64 was False and is True"]
    del before["numerics"]["float64"]
    assert differing_numerics(before, wide) == ["float64 was False and is True"]
