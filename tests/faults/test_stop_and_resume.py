"""A run that is stopped by SIGTERM and resumed ends with the very parameters of the run never stopped.

Real signals, sent to this process at seeded random instants of the run's duration.
"""

import os
import signal
import threading
import warnings

import gymnasium
import numpy as np
import pytest

import inchworm as iw
from inchworm.collect.host import HostRollouts
from inchworm.io import checkpoint as checkpoints
from inchworm.io.run_folder import RunFolder, read_json
from inchworm.io.words import short


class AlwaysTruncates(gymnasium.Env):
    """Noisy observations, reward by action, and a time limit that falls in the middle of rollouts."""

    def __init__(self):
        self.observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (3,), np.float32)
        self.action_space = gymnasium.spaces.Box(-1.0, 1.0, (2,), np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.steps = 0
        return self.np_random.normal(size=3).astype(np.float32), {}

    def step(self, action):
        self.steps += 1
        obs = self.np_random.normal(size=3).astype(np.float32)
        return obs, float(-np.square(action).sum()), False, self.steps >= 37, {}


class RemembersEpisodes(AlwaysTruncates):
    """Counts its episodes across resets, which only its rewards betray."""

    def __init__(self):
        super().__init__()
        self.episodes = 0

    def reset(self, *, seed=None, options=None):
        self.episodes += 1
        return super().reset(seed=seed, options=options)

    def step(self, action):
        obs, reward, terminated, truncated, info = super().step(action)
        return obs, reward + 1e-6 * self.episodes, terminated, truncated, info


SMALL = {"num_envs": 2, "horizon": 32, "minibatch_size": 32, "num_epochs": 2, "hidden_sizes": (8,)}
RUNS = {
    "CartPole-v1": ("CartPole-v1", 2560, SMALL | {"normalize_observation": False}),
    "HalfCheetah-v5": ("HalfCheetah-v5", 1280, SMALL | {"normalize_return": True, "max_grad_norm": 0.5}),
    "AlwaysTruncates": (AlwaysTruncates, 2560, SMALL | {"normalize_return": True}),
}
INSTANTS = 8


def run(which, folder, **options):
    env, total_steps, settings = RUNS[which]
    return iw.train(
        env,
        iw.PPO(**settings),
        total_steps=total_steps,
        seed=3,
        out=folder,
        evaluation_episodes=0,
        progress=False,
        **options,
    )


def interrupt(number=signal.SIGTERM):
    os.kill(os.getpid(), number)


@pytest.fixture(autouse=True)
def late_signals_are_ignored():
    """A signal that comes when the loop has already ended must not end the tests."""
    before = signal.signal(signal.SIGTERM, lambda *_: None)
    yield
    signal.signal(signal.SIGTERM, before)


def stopped(name, folder, **options):
    """Trains until SIGTERM comes; the folder of the stopped run."""
    with pytest.raises(SystemExit) as exit:
        run(name, folder, name="stopped", **options)
    assert exit.value.code == 143
    return next(folder.glob("*/ppo/stopped"))


def stopped_at(name, folder, iteration, delay):
    """Stopped some seconds after an iteration, wherever the run then is: acting, updating, logging."""
    timers = []

    def start_timer(report):
        if report.iteration == iteration:
            timers.append(threading.Timer(delay, interrupt))
            timers[0].start()

    try:
        return stopped(name, folder, on_iteration=start_timer)
    finally:
        timers[0].join()


def resumed_hash(name, path):
    env = RUNS[name][0]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        result = iw.resume(path, None if isinstance(env, str) else env, evaluation_episodes=0, progress=False)
    assert read_json(RunFolder(path).provenance)["resumed"][-1]["exact"] is True
    return result.summary["parameters_sha256"]


@pytest.fixture(scope="module", params=sorted(RUNS))
def unstopped(request, tmp_path_factory):
    """A run never stopped: its name, its parameters' hash, its iterations and their duration when compiled."""
    folder = tmp_path_factory.mktemp("reference")
    first = run(request.param, folder, name="first")
    second = run(request.param, folder, name="second")
    assert first.summary["parameters_sha256"] == second.summary["parameters_sha256"], "same seed, other parameters"
    summary = second.summary
    return (
        request.param,
        summary["parameters_sha256"],
        summary["iterations"],
        summary["seconds"] / summary["iterations"],
    )


def test_stopping_at_random_instants_changes_no_bit(unstopped, tmp_path, faults):
    name, expected, iterations, duration = unstopped
    random = np.random.default_rng(0)
    stops = []
    while len(stops) < INSTANTS:
        folder = tmp_path / str(len(stops))
        path = stopped_at(name, folder, random.integers(1, iterations // 2), random.uniform(0.0, duration))
        stops.append(read_json(RunFolder(path).summary)["iterations"])
        assert resumed_hash(name, path) == expected
        faults.count("RF6", survived=1)
    assert len(set(stops)) > 3


@pytest.mark.fault("RF6", outcome="survived")
def test_stopping_in_the_first_iteration_changes_no_bit(unstopped, tmp_path, monkeypatch):
    name, expected, *_ = unstopped
    collect = HostRollouts.collect

    def collect_and_stop(*args):
        interrupt()
        return collect(*args)

    monkeypatch.setattr(HostRollouts, "collect", collect_and_stop)
    path = stopped(name, tmp_path)
    monkeypatch.undo()
    assert read_json(RunFolder(path).summary)["iterations"] == 1
    assert resumed_hash(name, path) == expected


@pytest.mark.fault("RF6", outcome="survived")
def test_stopping_during_a_save_changes_no_bit(unstopped, tmp_path, monkeypatch):
    name, expected, *_ = unstopped
    save, calls = checkpoints.write_file, []

    def write_and_stop(*args):
        calls.append(args)
        if len(calls) == 6:
            interrupt()
        save(*args)

    monkeypatch.setattr(checkpoints, "write_file", write_and_stop)
    path = stopped(name, tmp_path, checkpoint_seconds=0.0)
    assert resumed_hash(name, path) == expected


@pytest.mark.fault("RF9", outcome="survived")
def test_a_chain_of_stops_and_resumes_changes_no_bit(unstopped, tmp_path):
    name, expected, *_ = unstopped
    path = stopped(name, tmp_path, on_iteration=lambda _: interrupt())
    env = RUNS[name][0]
    for _ in range(3):
        with pytest.raises(SystemExit):
            iw.resume(
                path,
                None if isinstance(env, str) else env,
                evaluation_episodes=0,
                progress=False,
                on_iteration=lambda _: interrupt(),
            )
    assert read_json(RunFolder(path).summary)["iterations"] == 4
    assert resumed_hash(name, path) == expected


@pytest.mark.fault("RF6")
def test_hidden_state_across_episodes_is_told_as_not_exact(tmp_path, monkeypatch):
    monkeypatch.setitem(RUNS, "RemembersEpisodes", (RemembersEpisodes, 2560, SMALL))
    told = 0
    for index, iterations in enumerate((5, 8, 13)):
        folder = tmp_path / str(index)

        def stop(report, iterations=iterations):
            if report.iteration == iterations:
                interrupt()

        path = stopped("RemembersEpisodes", folder, on_iteration=stop)
        with pytest.warns(UserWarning, match="not exact: environment .*hidden"):
            iw.resume(path, RemembersEpisodes, evaluation_episodes=0, progress=False)
        assert read_json(RunFolder(path).provenance)["resumed"][-1]["exact"] is False
        told += 1
    assert told == 3


def test_another_seed_gives_other_parameters(unstopped, tmp_path):
    name, expected, *_ = unstopped
    env, total_steps, settings = RUNS[name]
    other = iw.train(
        env, iw.PPO(**settings), total_steps=total_steps, seed=4, out=tmp_path, evaluation_episodes=0, progress=False
    )
    assert other.summary["parameters_sha256"] != expected


@pytest.mark.fault("RF7", outcome="survived")
def test_a_second_interrupt_ends_at_once(tmp_path):
    steps = []

    class InterruptedTwice(AlwaysTruncates):
        def step(self, action):
            steps.append(action)
            if len(steps) in (5, 10):
                interrupt(signal.SIGINT)
            return super().step(action)

    with pytest.raises(KeyboardInterrupt):
        iw.train(
            InterruptedTwice,
            iw.PPO(num_envs=1, horizon=1024, minibatch_size=64, hidden_sizes=(8,)),
            total_steps=2048,
            out=tmp_path,
            evaluation_episodes=0,
            progress=False,
        )
    assert len(steps) == 10, "the first waits for the iteration's end, the second does not"


@pytest.mark.fault("RF7", outcome="survived")
def test_ctrl_c_in_the_last_iteration_ends_the_program_when_all_is_saved(tmp_path, capsys):
    settings = iw.PPO(**RUNS["CartPole-v1"][2])

    def at_the_end(report):
        if report.env_steps == report.total_steps:
            interrupt(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        iw.train("CartPole-v1", settings, total_steps=320, out=tmp_path, progress=False, on_iteration=at_the_end)
    (folder,) = tmp_path.glob("*/ppo/*")
    summary = read_json(RunFolder(folder).summary)
    assert summary["stopped_by"] == "total_steps"
    assert "evaluation_deterministic" not in summary
    assert RunFolder(folder).is_complete(320)
    told = capsys.readouterr().out
    assert "Stopped by SIGINT; everything is saved." in told
    assert "The run itself is over, after 320 steps. Play whole episodes with:\n" in told
    assert f"  inchworm evaluate {short(folder)}" in told or f"iw.load({str(folder)!r}).evaluate(" in told


class SendsSigterm(AlwaysTruncates):
    """Asks the program to end in the second episode of an evaluation."""

    made = episodes = 0

    def __init__(self):
        super().__init__()
        SendsSigterm.made += 1

    def reset(self, *, seed=None, options=None):
        SendsSigterm.episodes += SendsSigterm.made > 3  # its spaces, and the two of training
        if SendsSigterm.episodes == 2:
            interrupt()
        return super().reset(seed=seed, options=options)


@pytest.mark.fault("RF7", outcome="survived")
def test_a_signal_ends_the_evaluation_and_what_was_played_is_kept(tmp_path):
    with pytest.raises(SystemExit) as ending:
        iw.train(SendsSigterm, iw.PPO(**SMALL), total_steps=320, out=tmp_path, progress=False)
    assert ending.value.code == 143
    (folder,) = tmp_path.glob("*/ppo/*")
    summary = read_json(RunFolder(folder).summary)
    assert len(summary["evaluation_deterministic"]["returns"]) == 1
    assert "evaluation_stochastic" not in summary
    assert RunFolder(folder).is_complete(320)
