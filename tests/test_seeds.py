"""Several seeds at once: each run is the one that a training of its own gives."""

import json
import os
import signal
import subprocess
import sys
import time

import gymnasium
import numpy as np
import optax
import pytest
from gymnasium.vector import SyncVectorEnv

import inchworm as iw
from inchworm.cli.main import main
from inchworm.errors import ConfigError, RunFolderError
from inchworm.io import run_folder
from inchworm.io.run_folder import RunFolder, read_json
from jax_probes import Cue

SMALL = iw.PPO(num_envs=2, horizon=16, minibatch_size=16, num_epochs=1, hidden_sizes=(8,))
QUIET = {"progress": False, "total_steps": 320}
CODE = """
import sys
import inchworm as iw
SMALL = iw.PPO(num_envs=2, horizon=16, minibatch_size=16, num_epochs=1, hidden_sizes=(8,))
"""


def hashes(runs):
    return [run.summary["parameters_sha256"] for run in runs]


@pytest.mark.fault("RL5", outcome="survived")
def test_runs_of_a_jax_environment_are_bit_for_bit_the_single_runs(tmp_path):
    together = iw.train_seeds(Cue("discrete"), SMALL, seeds=(3, 5), out=tmp_path, evaluation_episodes=2, **QUIET)
    alone = [
        iw.train(Cue("discrete"), SMALL, seed=seed, out=tmp_path / "alone", evaluation_episodes=2, **QUIET)
        for seed in (3, 5)
    ]
    assert hashes(together) == hashes(alone)
    assert [run.summary["evaluation_stochastic"] for run in together] == [
        run.summary["evaluation_stochastic"] for run in alone
    ]
    assert [row["loss/policy"] for row in together[1].metrics()] == [row["loss/policy"] for row in alone[1].metrics()]
    means = [run.summary["evaluation_deterministic"]["mean"] for run in together]
    assert together.summary["evaluation_deterministic"]["mean"] == np.mean(means)
    assert [run.folder.name.rpartition("-")[2] for run in together] == ["seed3", "seed5"]
    assert (together.folder / "curve.png").stat().st_size > 10_000
    again = iw.load(together[1].folder)
    assert again.config.seed == 5


@pytest.mark.fault("RL5", outcome="survived")
def test_runs_on_several_devices_are_bit_for_bit_those_on_one(tmp_path):
    code = CODE + (
        "env = 'Pendulum-v1'; options = dict(backend='jax', total_steps=96, evaluation_episodes=0, progress=False);"
        "seeds = [0, 1, 2]; out = sys.argv[1];"
        "runs = iw.train_seeds(env, SMALL, seeds=seeds, out=out, **options) if sys.argv[2] == 'together' else"
        " [iw.train(env, SMALL, seed=seed, out=out, **options) for seed in seeds];"
        "import jax; print(len(jax.devices()), [run.summary['parameters_sha256'] for run in runs])"
    )
    answers = []
    for how in ("together", "alone"):
        words = [sys.executable, "-c", code, str(tmp_path), how]
        done = subprocess.run(words, capture_output=True, text=True, check=True, timeout=300)
        answers.append(done.stdout.split(" ", 1))
    (devices, together), (one, alone) = answers
    assert together == alone
    assert int(devices) == min(3, len(os.sched_getaffinity(0)))
    assert one == "1"


@pytest.mark.fault("RL5", outcome="survived")
def test_runs_in_processes_are_bit_for_bit_the_single_runs(tmp_path):
    together = iw.train_seeds("CartPole-v1", SMALL, seeds=(3, 5), out=tmp_path, evaluation_episodes=1, **QUIET)
    code = CODE + (
        "print([iw.train('CartPole-v1', SMALL, seed=seed, total_steps=320, out=sys.argv[1], evaluation_episodes=0,"
        " progress=False).summary['parameters_sha256'] for seed in (3, 5)])"
    )
    # In a process of its own, because this one compiles without optimisation.
    words = [sys.executable, "-c", code, str(tmp_path / "alone")]
    alone = subprocess.run(words, capture_output=True, text=True, check=True, timeout=300).stdout.strip()
    assert repr(hashes(together)) == alone
    assert read_json(RunFolder(together.folder).summary)["runs"] == [run.folder.name for run in together]
    assert len(together[0].evaluate(episodes=1).returns) == 1


def test_seeds_that_are_none_or_twice_are_refused(tmp_path):
    for seeds in ([], [1, 1], [-1], [0.5]):
        with pytest.raises(ConfigError, match=r"^seeds = "):
            iw.train_seeds("CartPole-v1", SMALL, seeds=seeds, out=tmp_path, **QUIET)
    assert not list(tmp_path.iterdir())


def test_environments_that_cannot_reach_other_processes_are_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"^env = .*cannot be found by other processes"):
        iw.train_seeds(lambda: gymnasium.make("CartPole-v1"), SMALL, seeds=(0, 1), out=tmp_path, **QUIET)
    with pytest.raises(ConfigError, match=r"^optimizer = .*cannot be sent"):
        iw.train_seeds("CartPole-v1", SMALL, seeds=(0, 1), optimizer=optax.sgd(1.0), out=tmp_path, **QUIET)
    vector = SyncVectorEnv([lambda: gymnasium.make("CartPole-v1")] * 2)
    with pytest.raises(ConfigError, match="each seed needs its own"):
        iw.train_seeds(vector, SMALL, seeds=(0, 1), out=tmp_path, **QUIET)
    assert not list(tmp_path.iterdir()), "nothing was begun"


@pytest.mark.parametrize("backend", ["gymnasium", "jax"])
def test_a_name_that_is_taken_is_told_before_anything_is_written(tmp_path, backend):
    taken = tmp_path / "CartPole-v1" / "ppo" / "mine-seed1"
    taken.mkdir(parents=True)
    with pytest.raises(RunFolderError, match=r"mine-seed1.*exists already"):
        iw.train_seeds("CartPole-v1", SMALL, seeds=(0, 1), backend=backend, name="mine", out=tmp_path, **QUIET)
    assert list(taken.parent.iterdir()) == [taken]


def test_seeds_begun_in_the_same_second_as_another_run_have_names_of_their_own(tmp_path, monkeypatch):
    monkeypatch.setattr(run_folder, "_stamps", lambda: ["now", "now-2"])
    (tmp_path / "CartPole-v1" / "ppo" / "now-seed1").mkdir(parents=True)
    group = iw.train_seeds("CartPole-v1", SMALL, seeds=(0, 1), backend="jax", out=tmp_path, **QUIET)
    assert group.folder.name == "now-2-seeds"
    assert [run.folder.name for run in group] == ["now-2-seed0", "now-2-seed1"]


def test_a_script_s_own_functions_reach_the_processes(tmp_path):
    code = (
        "import sys, gymnasium\n"
        "from gymnasium.vector import SyncVectorEnv\n"
        + CODE
        + "def make():\n    return SyncVectorEnv([lambda: gymnasium.make('CartPole-v1')] * 2)\n"
        "{guard}print(len(iw.train_seeds(make, SMALL, seeds=(0, 1), out=sys.argv[1], total_steps=64, progress=False)))"
    )
    script = tmp_path / "script.py"
    script.write_text(code.format(guard="if __name__ == '__main__': "))
    done = subprocess.run([sys.executable, script, str(tmp_path / "runs")], capture_output=True, text=True, timeout=300)
    assert done.stdout == "2\n", done.stderr
    script.write_text(code.format(guard=""))
    done = subprocess.run([sys.executable, script, tmp_path / "again"], capture_output=True, text=True, timeout=300)
    assert "below `if __name__" in done.stderr
    assert not list((tmp_path / "again").rglob("*seeds"))


@pytest.mark.parametrize("backend", ["gymnasium", "jax"])
def test_a_signal_stops_all_seeds_with_everything_saved(tmp_path, backend):
    code = CODE + (
        "if __name__ == '__main__':\n"
        "    iw.train_seeds('CartPole-v1', SMALL, seeds=(0, 1), total_steps=10**8, out=sys.argv[1],"
        f" backend={backend!r}, evaluation_episodes=0, progress=False)"
    )
    script = tmp_path / "script.py"
    script.write_text(code)
    process = subprocess.Popen(
        [sys.executable, script, tmp_path], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    folders = [tmp_path / "CartPole-v1" / "ppo"]
    deadline = time.monotonic() + 120
    begun: list = []
    while len(begun) < 2 and time.monotonic() < deadline:
        time.sleep(0.2)
        metrics = folders[0].glob("*seed[01]/metrics.jsonl")
        begun = [path.parent for path in metrics if path.stat().st_size > 0]
    process.send_signal(signal.SIGTERM)
    said = process.communicate(timeout=60)[0]
    assert process.returncode == 128 + signal.SIGTERM
    assert said.count("inchworm resume") == 2
    for folder in begun:
        summary = json.loads((folder / "summary.json").read_text())
        assert summary["stopped_by"] == "SIGTERM"
        assert list((folder / "checkpoints").iterdir())
    (group,) = folders[0].glob("*-seeds")
    assert main(["plot", str(group)]) == 0
    assert (group / "curve.png").exists()
    with pytest.raises(RunFolderError, match=r"is that of several seeds together\. Name one of its runs"):
        iw.load(group)


def test_ctrl_c_before_any_seed_has_begun_is_quiet_and_leaves_the_name_free(tmp_path):
    command = ["-P", "-m", "inchworm", "train", "CartPole-v1", "--seeds", "0", "1", "--name", "x", "--out", tmp_path]
    process = subprocess.Popen([sys.executable, *command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    deadline = time.monotonic() + 120
    while not list(tmp_path.rglob("x-seeds/summary.json")) and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.3)  # while the processes import what they need
    process.send_signal(signal.SIGINT)
    said = process.communicate(timeout=60)[0]
    assert process.returncode == 130
    assert "Traceback" not in said
    assert not list(tmp_path.rglob("x-*"))
