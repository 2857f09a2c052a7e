"""A run on several devices is the run on one, up to the order in which sums are added."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

import inchworm as iw
from inchworm.errors import ConfigError
from quick_compilation import cache_folder, known_flags

CASES = ("ppo jax", "ppo-lstm jax", "trpo jax", "ppo gymnasium")


@pytest.fixture(scope="module")
def document(tmp_path_factory):
    """What one process with eight devices found."""
    script = Path(__file__).with_name("eight_devices.py")
    command = [sys.executable, script, tmp_path_factory.mktemp("runs")]
    # The tests' own NPROC is too few threads for simulated devices that wait for each other.
    environment = {name: value for name, value in os.environ.items() if name != "NPROC"} | {
        "XLA_FLAGS": known_flags(cache_folder())
    }
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("case", CASES)
def test_eight_devices_learn_what_one_learns(document, case):
    one, eight = document["runs"][case]
    np.testing.assert_allclose(eight["parameters"], one["parameters"], rtol=0, atol=1e-5)
    for ours, theirs in zip(eight["metrics"], one["metrics"], strict=True):
        assert ours.keys() == theirs.keys()
        np.testing.assert_allclose(list(ours.values()), list(theirs.values()), rtol=1e-3, atol=1e-5)


def test_a_run_on_eight_devices_goes_on_bit_for_bit(document):
    for case, found in document["resumed"].items():
        assert found == document["runs"][case][1]["hash"]


def test_each_device_has_its_share_of_environments_and_all_parameters(document):
    assert document["rows"] == {"observations": [1] * 8, "weights": [4] * 8}


@pytest.mark.parametrize(
    ("algorithm", "message"),
    [
        (iw.PPO(num_envs=6, horizon=16, minibatch_size=32), "num_envs = 6"),
        (iw.PPO(num_envs=8, horizon=3, minibatch_size=6), "minibatch_size = 6"),
        (iw.PPO(num_envs=8, horizon=16, minibatch_size=32, recurrent="gru"), "minibatch_size = 32"),
    ],
)
def test_shares_that_cannot_be_equal_are_refused(tmp_path, algorithm, message):
    with pytest.raises(ConfigError, match=f"devices = 4: cannot have equal shares of {message}"):
        iw.train("CartPole-v1", algorithm, devices=4, total_steps=1000, out=tmp_path)


def test_more_devices_than_there_are_is_refused_with_what_to_do(tmp_path):
    there = len(jax.devices())
    algorithm = iw.PPO(num_envs=8 * there, horizon=16, minibatch_size=32 * there)
    with pytest.raises(ConfigError, match=f"more than JAX sees here.*JAX_NUM_CPU_DEVICES={2 * there}"):
        iw.train("CartPole-v1", algorithm, devices=2 * there, total_steps=1000 * there, out=tmp_path)
