"""The loop gives the host its turn."""

import numpy as np
import pytest

import inchworm as iw
from inchworm.collect.collector import Outcome
from inchworm.config import RunConfig
from inchworm.loop import LiveRun, Progress, train_loop
from inchworm.types import Episodes

QUIET = {
    "guard/skipped": 0.0,
    "guard/skipped_in_row": 0.0,
    "policy/log_ratio_at_start": 0.0,
    "policy/log_ratio_tolerance": 1e-5,
}
NOTHING = Episodes(np.zeros((1, 1), bool), np.zeros((1, 1), np.float32), np.zeros((1, 1), np.float32))


class TimedCollector:
    """A collector whose iterations take the seconds they are said to take."""

    capacity = 10_000

    def __init__(self, seconds):
        self.seconds, self.now, self.iteration, self.calls = seconds, 0.0, 0, []

    def monotonic(self):
        return self.now

    def advance(self, counts):
        began = self.now
        for _ in range(counts[0]):
            self.now += self.seconds(self.iteration)
            self.iteration += 1
        self.calls.append(self.now - began)
        return [[Outcome(dict(QUIET), NOTHING) for _ in range(counts[0])]]

    def state(self, run):
        return None

    def moved(self, run):
        return []


@pytest.mark.parametrize(
    "seconds",
    [
        lambda iteration: 2e-4,
        lambda iteration: 6.0 if iteration == 0 else 3e-3,
        lambda iteration: 1e-3 * (1 + 4 * (iteration > 2_000)),
        lambda iteration: 1e-3 + 1e-5 * iteration,
    ],
    ids=["quick", "compiled first", "five times slower half-way", "slower and slower"],
)
def test_calls_last_about_a_second_and_never_more_than_five(monkeypatch, seconds):
    collector = TimedCollector(seconds)
    monkeypatch.setattr("time.monotonic", collector.monotonic)
    algorithm = iw.PPO(num_envs=1, horizon=64)
    config = RunConfig(env="none", algorithm=algorithm, total_steps=64 * 6_000)
    saved = []
    run = LiveRun(config, Progress(), [], lambda state, progress: saved.append(progress.iteration))
    train_loop([run], collector, lambda: None)
    assert collector.iteration == 6_000 == saved[-1]
    assert max(collector.calls[1:]) <= 5.0
    assert len(collector.calls) <= 2 * sum(collector.calls) + 10


def told_of(total_steps, returns, horizon=64):
    """The metrics of iterations in each of which one episode ends, with the return given; None where none does."""
    config = RunConfig(env="none", algorithm=iw.PPO(num_envs=1, horizon=horizon), total_steps=total_steps)
    told = []
    run = LiveRun(config, Progress(), [lambda report: told.append(dict(report.metrics))], lambda *_: None)
    for value in returns:
        ended = np.full((1, 1), value is not None)
        episodes = Episodes(ended, np.full((1, 1), value or 0.0), np.ones((1, 1)))
        run.take([Outcome(dict(QUIET), episodes)], 1.0, list)
    return told


def test_the_recent_return_is_that_of_the_last_hundredth_of_the_budget():
    returns = [float(index) for index in range(2000)]
    told = told_of(64 * 2000, returns)
    for index in (100, 777, 1999):  # 20 iterations are a hundredth
        # Steps are counted in tenths of that hundredth.
        last = [np.mean(returns[index - count + 1 : index + 1]) for count in (20, 21)]
        assert told[index]["episode/return_recent"] in last
        assert told[index]["episode/return_100"] == pytest.approx(np.mean(returns[index - 99 : index + 1]))


def test_the_recent_return_is_that_of_ten_episodes_where_a_hundredth_holds_fewer():
    returns = [float(index) if index % 7 == 0 else None for index in range(400)]
    told = told_of(64 * 400, returns)
    ended = [value for value in returns if value is not None]
    assert told[-1]["episode/return_recent"] == pytest.approx(np.mean(ended[-10:]))
    assert told[0]["episode/return_recent"] == told[0]["episode/return_100"] == 0.0


def test_what_is_remembered_of_recent_episodes_stays_small():
    progress = Progress()
    for step in range(2, 40_000, 2):
        progress.take([1.0] * 3, [1.0] * 3, step, 10**6)
    assert len(progress.recent) <= 11
    assert 15_000 <= sum(ended.episodes for ended in progress.recent) <= 1.1 * 15_000


def test_an_episode_whose_return_is_not_finite_is_counted_and_spoils_no_mean():
    config = RunConfig(env="none", algorithm=iw.PPO(num_envs=1, horizon=64), total_steps=640)
    told = []
    run = LiveRun(config, Progress(), [lambda report: told.append(report.metrics)], lambda *_: None)
    returns = np.array([[3.0], [np.nan], [5.0], [np.inf], [0.0]], np.float32)
    ended = np.array([[True], [True], [True], [True], [False]])
    run.take([Outcome(dict(QUIET), Episodes(ended, returns, np.ones_like(returns)))], 1.0, list)
    assert told[0]["episode/return"] == told[0]["episode/return_100"] == run.progress.mean_return == 4.0
    assert told[0]["episode/count"] == 4.0
