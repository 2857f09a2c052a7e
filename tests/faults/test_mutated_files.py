"""Files of runs and policies, damaged in thousands of ways: an error that names them, or what could have been written.

Their seals are made anew, so that what lies behind them is reached; tests of checkpoints do the same for theirs.
"""

import contextlib
import json
import math
import shutil
import signal
import time
import warnings

import numpy as np
import pytest

import inchworm as iw
from inchworm.config import RunConfig
from inchworm.errors import CheckpointError, ConfigError
from inchworm.io.files import sealed
from inchworm.io.loggers import read_metrics
from inchworm.io.policy_file import JSON, TENSORS, load_policy
from inchworm.io.run_folder import read_json, read_summary, runs_of_group
from inchworm.io.words import scores
from mutator import damaged, mutated

SMALL = iw.PPO(num_envs=2, horizon=16, minibatch_size=16, num_epochs=1, hidden_sizes=(8,))
TYPED = (CheckpointError, ConfigError)


class Hangs(BaseException):
    """Nothing catches it."""


@contextlib.contextmanager
def within(seconds):
    def too_late(*_):
        raise Hangs

    old = signal.signal(signal.SIGALRM, too_late)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, old)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    out = tmp_path_factory.mktemp("run")
    return iw.train("Pendulum-v1", SMALL, total_steps=64, out=out, evaluation_episodes=0, progress=False)


@pytest.fixture
def folder(run, tmp_path):
    return shutil.copytree(run.folder, tmp_path / "run")


def outcomes_of(faults, load, change, count, seed=0):
    """How many damaged files were refused by a typed error; each is judged within five seconds."""
    rng, refused = np.random.default_rng(seed), 0
    for number in range(count):
        change(rng, number)
        began = time.monotonic()
        with within(5.0), warnings.catch_warnings(action="ignore"):
            try:
                load()
            except TYPED:
                refused += 1
        assert time.monotonic() - began < 4.0
    faults.count("RB4", detected=refused, survived=count - refused)
    return refused


def json_of(path):
    """A function that writes the file of a run's with a part of its JSON another, or with bytes that are others."""
    good = path.read_bytes()

    def change(rng, number):
        if number % 4 == 0:
            path.write_bytes(damaged(good, rng))
            return
        document = json.loads(good)
        for _ in range(rng.integers(1, 3)):
            document = mutated(document, rng)
        path.write_text(json.dumps(document))

    return change


def test_400_mutations_of_a_configuration_are_refused_or_a_configuration(folder, faults):
    def load():
        config = RunConfig.from_json(read_json(folder / "config.json"))
        assert config.algorithm.steps_per_iteration >= 1
        assert math.isfinite(config.checkpoint_seconds)

    refused = outcomes_of(faults, load, json_of(folder / "config.json"), 400)
    assert 150 < refused < 400


def test_300_mutations_of_a_summary_are_refused_or_told(folder, faults):
    def load():
        assert repr(loaded := iw.load(folder))
        assert loaded._repr_html_()
        assert isinstance(scores(read_summary(folder / "summary.json")), dict)

    outcomes_of(faults, load, json_of(folder / "summary.json"), 300)


def test_300_mutations_of_a_group_s_summary_name_no_folder_elsewhere(tmp_path, faults):
    group = tmp_path / "group"
    group.mkdir()
    (group / "summary.json").write_text(json.dumps({"env": "x", "seeds": [0, 1], "runs": ["x-seed0", "x-seed1"]}))

    def load():
        assert all(run.path.parent == tmp_path for run in runs_of_group(group))

    outcomes_of(faults, load, json_of(group / "summary.json"), 300)


def test_300_mutations_of_metrics_leave_rows_of_numbers(folder, faults):
    path = folder / "metrics.jsonl"
    good = path.read_bytes()

    def change(rng, number):
        lines = good.decode().splitlines()
        index = rng.integers(len(lines))
        lines[index] = json.dumps(mutated(json.loads(lines[index]), rng))
        path.write_bytes("\n".join(lines).encode() if number % 2 else damaged(good, rng))

    def load():
        for row in read_metrics(path):
            assert type(row["iteration"]) is type(row["env_steps"]) is int
            assert all(value is None or math.isfinite(value) for value in row.values())

    assert outcomes_of(faults, load, change, 300) == 0


def test_400_mutations_of_a_policy_are_refused_or_act_within_the_bounds(folder, faults):
    policy, obs = folder / "policy", np.float32([1.0, 0.0, 0.5])
    good, body = (policy / TENSORS).read_bytes(), (policy / JSON).read_bytes()

    def change(rng, number):
        document = json.loads(body)
        del document["sha256"]
        for _ in range(rng.integers(1, 3)):
            document = mutated(document, rng)
        if not isinstance(document, dict) or not document:
            document = {"format": 2}
        (policy / JSON).write_bytes(sealed(json.dumps(document).encode().removesuffix(b"}")))

    def load():
        loaded = load_policy(policy)
        action = loaded.act(obs, deterministic=True)
        assert np.isfinite(action).all()
        assert repr(loaded)

    refused = outcomes_of(faults, load, change, 400)
    assert 200 < refused < 400
    assert (policy / TENSORS).read_bytes() == good
