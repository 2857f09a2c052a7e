"""Environments that do not return: they are told of, signals end the run with all saved, and nothing is left behind."""

import ctypes
import os
import signal
import subprocess
import sys
import threading
import time
import warnings

import gymnasium
import numpy as np
import psutil
import pytest

import inchworm as iw
from inchworm import signals
from inchworm.envs.process_pool import ProcessPool
from inchworm.io.checkpoint import list_checkpoints
from inchworm.io.run_folder import RunFolder, read_json

SMALL = iw.PPO(num_envs=2, horizon=8, minibatch_size=16, num_epochs=1, hidden_sizes=(8,))
pytestmark = pytest.mark.fault("RF4")
QUIET = {"evaluation_episodes": 0, "progress": False}
ENVIRONMENT = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}


class Hangs(gymnasium.Env):
    """Does not return from one of its methods, where it is told not to; episodes have 5 steps."""

    observation_space = gymnasium.spaces.Box(-1, 1, (2,), np.float32)
    action_space = gymnasium.spaces.Discrete(2)
    at: tuple[str, int] | None = None
    """A method, and at which of its calls."""
    calls: dict = {}  # noqa: RUF012
    hanging = threading.Event()

    def call(self, method):
        Hangs.calls[method] = Hangs.calls.get(method, 0) + 1
        if Hangs.at == (method, Hangs.calls[method]):
            Hangs.hanging.set()
            self.hang()

    def hang(self):
        time.sleep(60)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.steps = 0
        self.call("reset")
        return np.zeros(2, np.float32), {}

    def step(self, action):
        self.steps += 1
        self.call("step")
        return np.zeros(2, np.float32), 1.0, False, self.steps == 5, {}

    def close(self):
        self.call("close")


@pytest.fixture
def hangs(monkeypatch):
    """Lets it hang somewhere, and sends SIGTERM once it does."""
    monkeypatch.setattr(signals, "PATIENCE_SECONDS", 0.5)
    monkeypatch.setattr(signals, "LOOK_SECONDS", 0.05)
    monkeypatch.setattr(Hangs, "hanging", threading.Event())
    monkeypatch.setattr(Hangs, "calls", {})
    before = signal.signal(signal.SIGTERM, lambda *_: None)

    def stop(event):
        if event.wait(60):
            os.kill(os.getpid(), signal.SIGTERM)

    threads = []

    def set_up(method, number):
        monkeypatch.setattr(Hangs, "at", (method, number))
        threads.append(threading.Thread(target=stop, args=[Hangs.hanging], daemon=True))
        threads[-1].start()

    yield set_up
    for thread in threads:
        thread.join()
    signal.signal(signal.SIGTERM, before)


def stopped(out, **how):
    with pytest.raises(SystemExit) as exit:
        iw.train(Hangs, SMALL, total_steps=320, out=out, **QUIET | how)
    assert exit.value.code == 128 + signal.SIGTERM
    (folder,) = out.glob("*/ppo/*")
    return RunFolder(folder)


def test_a_signal_ends_a_run_whose_environment_hangs_and_saves_its_last_update(tmp_path, hangs, monkeypatch):
    hangs("step", 60)  # in the fourth iteration
    folder = stopped(tmp_path)
    assert read_json(folder.summary)["stopped_by"] == "SIGTERM"
    assert [path.name for path in list_checkpoints(folder.checkpoints)] == ["000003"]
    monkeypatch.setattr(Hangs, "at", None)
    with pytest.warns(UserWarning, match="This resume is not exact: environment 0: its episode was not kept"):
        run = iw.resume(folder.path, Hangs, **QUIET)
    assert run.summary["env_steps"] == 320


def test_an_environment_that_hangs_when_it_is_closed_too_costs_no_more_than_patience(tmp_path, hangs, monkeypatch):
    hangs("step", 60)
    real = Hangs.call

    def call(self, method):
        if method == "close" and Hangs.hanging.is_set():
            time.sleep(60)
        real(self, method)

    monkeypatch.setattr(Hangs, "call", call)
    began = time.monotonic()
    folder = stopped(tmp_path)
    assert time.monotonic() - began < 30
    assert folder.summary.exists()


def test_a_signal_ends_a_run_whose_first_reset_hangs(tmp_path, hangs):
    hangs("reset", 1)
    folder = stopped(tmp_path)
    assert list_checkpoints(folder.checkpoints) == []


def test_a_signal_ends_an_evaluation_that_hangs_and_the_run_is_whole(tmp_path, hangs):
    hangs("step", 330)
    folder = stopped(tmp_path, evaluation_episodes=5)
    summary = read_json(folder.summary)
    assert summary["stopped_by"] == "total_steps"
    assert folder.policy.is_dir()


def test_an_environment_that_is_only_slow_is_waited_for(tmp_path, hangs, monkeypatch):
    monkeypatch.setattr(signals, "PATIENCE_SECONDS", 0.3)
    monkeypatch.setattr(Hangs, "hang", lambda self: None)
    real = Hangs.step

    def slow(self, action):
        time.sleep(0.1 if Hangs.calls.get("step", 0) > 16 else 0)
        return real(self, action)

    monkeypatch.setattr(Hangs, "step", slow)
    hangs("step", 20)
    folder = stopped(tmp_path)
    assert [path.name for path in list_checkpoints(folder.checkpoints)] == ["000002"]
    monkeypatch.setattr(Hangs, "step", real)
    with warnings.catch_warnings(action="error"):
        iw.resume(folder.path, Hangs, **QUIET)


def test_an_environment_that_does_not_return_is_told_of_once(tmp_path, monkeypatch):
    monkeypatch.setattr(signals, "SILENCE_SECONDS", 0.2)
    monkeypatch.setattr(signals, "LOOK_SECONDS", 0.05)
    monkeypatch.setattr(Hangs, "calls", {})
    monkeypatch.setattr(Hangs, "at", None)
    real = Hangs.step

    def slow(self, action):
        time.sleep(0.6 if Hangs.calls.get("step", 0) in (5, 20) else 0)
        return real(self, action)

    monkeypatch.setattr(Hangs, "step", slow)
    with pytest.warns(UserWarning, match="has not returned for") as told:
        run = iw.train(Hangs, SMALL, total_steps=64, out=tmp_path, **QUIET)
    assert run.summary["env_steps"] == 64
    (text,) = [str(one.message) for one in told if "has not returned for" in str(one.message)]
    assert text.endswith("Ctrl-C, or SIGTERM, stops the run and saves what it has learned.")


def test_a_process_of_environments_that_is_stopped_does_not_keep_a_signal_from_ending_the_run(tmp_path, hangs):
    helpers = []
    real = ProcessPool.step

    def step(self, actions, t, buffers):
        if not helpers and t == 4:
            helpers.extend(psutil.Process().children())
            helpers[0].suspend()
            Hangs.hanging.set()
        return real(self, actions, t, buffers)

    hangs("never", 1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ProcessPool, "step", step)
        with pytest.raises(SystemExit) as exit:
            iw.train("CartPole-v1", SMALL, total_steps=320, out=tmp_path, env_processes=2, **QUIET)
    assert exit.value.code == 128 + signal.SIGTERM
    assert not any(helper.is_running() for helper in helpers)


def test_what_heard_of_signals_before_does_again_afterwards(tmp_path):
    incoming, outgoing = os.pipe()
    os.set_blocking(outgoing, False)
    before = signal.set_wakeup_fd(outgoing)
    try:
        iw.train("CartPole-v1", SMALL, total_steps=32, out=tmp_path, **QUIET)
        assert signal.set_wakeup_fd(before) == outgoing
    finally:
        for descriptor in (incoming, outgoing):
            os.close(descriptor)


SCRIPT = """
import ctypes, os, sys, time
import gymnasium, numpy as np
import inchworm as iw
from inchworm import signals

signals.PATIENCE_SECONDS = 0.5


class Task(gymnasium.Env):
    observation_space = gymnasium.spaces.Box(-1, 1, (2,), np.float32)
    action_space = gymnasium.spaces.Discrete(2)
    steps = 0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return np.zeros(2, np.float32), {}

    def step(self, action):
        Task.steps += 1
        if Task.steps == 40:
            print("hangs", os.getpid(), file=sys.stderr, flush=True)
            HANG
        return np.zeros(2, np.float32), 1.0, False, Task.steps % 5 == 0, {}


if __name__ == "__main__":
    settings = iw.PPO(num_envs=2, horizon=8, minibatch_size=16, num_epochs=1, hidden_sizes=(8,))
    iw.TRAIN(Task, settings, total_steps=320, evaluation_episodes=0, progress=False, checkpoint_seconds=0.0, SEEDS)
"""
IN_C = "lock = ctypes.create_string_buffer(64); [ctypes.CDLL(None).pthread_mutex_lock(lock) for _ in range(2)]"
"""What neither a signal nor Python gets out of; it lets other threads run meanwhile."""


def started(tmp_path, hang, seeds="seed=0"):
    (tmp_path / "script.py").write_text(
        SCRIPT.replace("HANG", hang)
        .replace("SEEDS", seeds)
        .replace("TRAIN", "train_seeds" if "seeds" in seeds else "train")
    )
    command = [sys.executable, "script.py"]
    return subprocess.Popen(command, cwd=tmp_path, env=ENVIRONMENT, stderr=subprocess.PIPE, text=True)


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "pthread_mutex_lock"), reason="needs a lock of the C library")
def test_code_outside_python_that_hangs_is_ended_with_its_process(tmp_path):
    process = started(tmp_path, IN_C)
    assert "hangs" in process.stderr.readline()
    process.send_signal(signal.SIGTERM)
    said = process.stderr.read()
    assert process.wait(20) == 128 + signal.SIGTERM
    assert "not even to be interrupted. `inchworm resume` goes on from the last checkpoint." in said
    (folder,) = tmp_path.glob("runs/*/ppo/*")
    assert list_checkpoints(RunFolder(folder).checkpoints)


def test_seeds_whose_environments_hang_end_with_their_parent(tmp_path):
    process = started(tmp_path, "time.sleep(600)", "seeds=[0, 1]")
    children = set()
    while len(children) < 2:
        line = process.stderr.readline()
        assert line, "it ended"
        if line.startswith("hangs"):
            children.add(psutil.Process(int(line.split()[1])))
    process.kill()
    process.wait()
    _, alive = psutil.wait_procs(children, timeout=30)
    for child in alive:
        child.kill()
    assert alive == []


def test_seeds_of_an_environment_that_asks_its_user_fail_and_do_not_wait(tmp_path):
    process = started(tmp_path, "input('Which way? ')", "seeds=[0, 1]")
    try:
        said = process.communicate(timeout=60)[1]
    finally:
        process.kill()
    assert process.returncode == 1
    assert "EOFError" in said
