"""Environments in several processes: the very rollouts of a single one, and what is told when one of them fails."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time

import gymnasium
import jax
import numpy as np
import pytest
from gymnasium import spaces as gym_spaces
from test_masks import Everything, Masked

import inchworm as iw
from inchworm import spaces
from inchworm.envs.pool import PoolSnapshot, StepBuffers
from inchworm.envs.process_pool import Channel, Kind
from inchworm.envs.source import env_source
from inchworm.errors import CheckpointError, ConfigError, EnvironmentContractError, WorkerError
from probes import RaisesInStep
from test_workers import gone, wait_for

NUM_ENVS = 5
HORIZON = 64


class Frames(gymnasium.Env):
    """Pictures beside numbers, and episodes of random length that end by themselves or are cut."""

    observation_space = gym_spaces.Dict(
        {"picture": gym_spaces.Box(0, 255, (4, 4, 1), np.uint8), "place": gym_spaces.Discrete(7, start=-3)}
    )
    action_space = gym_spaces.MultiBinary(3)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.left, self.last = int(self.np_random.integers(2, 7)), None
        return self.look(), {}

    def step(self, action):
        print("what an environment prints is no answer")
        # What was sent is the environment's own: it may be kept, and written into.
        paid = 0.0 if self.last is None else float(self.last.sum())
        self.last = action
        self.last += 1
        self.left -= 1
        over = self.left == 0
        cut = over and bool(self.np_random.integers(2))
        return self.look(), paid, over and not cut, cut, {}

    def look(self):
        picture = self.np_random.integers(0, 256, (4, 4, 1)).astype(np.uint8)
        return {"picture": picture, "place": int(self.np_random.integers(-3, 4))}


class SometimesMasked(Masked):
    """Gives masks in the process that the tests run in, and none elsewhere."""

    @property
    def gives(self):
        return "info" if "INCHWORM_WORKER" not in os.environ else "nothing"


class ReadsTheTerminal(Masked):
    """Looks for what was typed."""

    def reset(self, *, seed=None, options=None):
        assert sys.stdin.read() == ""
        return super().reset(seed=seed, options=options)


class OtherElsewhere(gymnasium.Env):
    """Has another observation in other processes."""

    action_space = gym_spaces.Discrete(2)

    def __init__(self):
        self.observation_space = gym_spaces.Box(0, 1, (3 if "INCHWORM_WORKER" in os.environ else 2,))

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return self.observation_space.low, {}


class Dies(Masked):
    """Kills its process at its third step, where that is not the first one."""

    steps = 0

    def step(self, action):
        Dies.steps += 1
        if Dies.steps == 3 and "INCHWORM_WORKER" in os.environ:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().step(action)


class LeavesAChild(Masked):
    """Kills its process at its third step, where that is not the first one; a child it has forked lives on."""

    steps = 0

    def step(self, action):
        LeavesAChild.steps += 1
        if LeavesAChild.steps == 3 and "INCHWORM_WORKER" in os.environ:
            if os.fork() == 0:
                time.sleep(60)
                os._exit(0)
            os.kill(os.getpid(), signal.SIGKILL)
        return super().step(action)


@contextlib.contextmanager
def pool_of(env, processes=3, num_envs=NUM_ENVS, seed=4):
    pool = env_source(env).make_pool(num_envs, seed, HORIZON, processes)
    try:
        yield pool
    finally:
        pool.close()


def current(pool):
    return [leaf[0] for leaf in StepBuffers.empty(pool.spec.observation_space, 0, pool.num_envs).obs]


def play(pool, steps, seed=0, begin=True):
    """Steps with random actions that masks allow; the buffers and the masks."""
    rng = np.random.default_rng(seed)
    buffers = StepBuffers.empty(pool.spec.observation_space, steps, pool.num_envs)
    if begin:
        pool.reset([leaf[0] for leaf in buffers.obs])
    door, masks = spaces.action_door(pool.spec.action_space, "clip"), []
    for t in range(steps):
        masks.append(None if pool.mask is None else pool.mask.copy())
        pool.step(door(random_actions(pool, rng)), t, buffers)
    return buffers, masks


def random_actions(pool, rng):
    leaves, columns = [], 0
    for leaf in spaces.leaves(pool.spec.action_space):
        shape, dtype = spaces.own_action(leaf)
        width = spaces.num_mask_columns(leaf)
        if isinstance(leaf, spaces.Discrete) and pool.mask is not None:
            allowed = pool.mask[:, columns : columns + width]
            leaves.append(np.array([rng.choice(np.flatnonzero(row)) for row in allowed], dtype))
        else:
            leaves.append(rng.integers(0, 2, (pool.num_envs, *shape)).astype(dtype))
        columns += width
    return leaves


def assert_equal(found, expected):
    jax.tree.map(np.testing.assert_array_equal, found, expected)


@pytest.mark.parametrize("env", ["CartPole-v1", Frames, Everything])
def test_rollouts_and_snapshots_are_those_of_a_single_process(env):
    with pool_of(env, 1) as alone, pool_of(env) as divided:
        played = play(alone, 40)
        assert_equal(play(divided, 40), played)
        found, expected = divided.snapshot(), alone.snapshot()
        assert found.document == expected.document
        jax.tree.map(np.testing.assert_array_equal, found.arrays, expected.arrays)

        copied = PoolSnapshot(found.arrays, json.loads(json.dumps(found.document)))
        with pool_of(env, 2) as resumed:
            obs, started_anew = current(resumed), np.zeros(NUM_ENVS, bool)
            assert resumed.restore(copied, obs, started_anew) == []
            assert not started_anew.any()
            jax.tree.map(np.testing.assert_array_equal, obs, [leaf[-1] for leaf in played[0].obs])
            future = play(resumed, 30, seed=1, begin=False)
            expected_future = play(alone, 30, seed=1, begin=False)
            np.testing.assert_array_equal(future[0].reward, expected_future[0].reward)
            jax.tree.map(np.testing.assert_array_equal, future[0].next_obs, expected_future[0].next_obs)
            jax.tree.map(np.testing.assert_array_equal, future[1], expected_future[1])


def test_what_cannot_be_brought_back_is_named_by_its_number_and_starts_anew():
    with pool_of("CartPole-v1") as pool:
        play(pool, 40)
        snapshot = pool.snapshot()
        snapshot.document["episodes"][3] = []
        obs, started_anew = current(pool), np.zeros(NUM_ENVS, bool)
        assert pool.restore(snapshot, obs, started_anew) == ["environment 3: its episode was not kept"]
        assert started_anew.tolist() == [False, False, False, True, False]
        # The seed of an environment's new start does not depend on the process it is in.
        with pool_of("CartPole-v1", 1) as alone:
            expected = current(alone)
            alone.restore(snapshot, expected, np.zeros(NUM_ENVS, bool))
        np.testing.assert_array_equal(obs[0], expected[0])
        snapshot.document["episodes"].append([])
        with pytest.raises(CheckpointError, match="does not describe these environments"):
            pool.restore(snapshot, obs, started_anew)


def test_training_comes_to_the_same_bits(tmp_path):
    settings = {"num_envs": 3, "horizon": 32, "minibatch_size": 32, "num_epochs": 2, "normalize_return": True}

    def train(**how):
        run = iw.train(
            "Pendulum-v1",
            iw.PPO(**settings),
            total_steps=384,
            evaluation_episodes=0,
            progress=False,
            out=tmp_path,
            **how,
        )
        return jax.tree.leaves(run.policy.model), run

    alone, _ = train()
    divided, run = train(env_processes=2)
    jax.tree.map(np.testing.assert_array_equal, divided, alone)
    assert json.loads((run.folder / "config.json").read_text())["env_processes"] == 2
    assert iw.resume(run.folder, total_steps=480, evaluation_episodes=0, progress=False).summary["env_steps"] == 480


@pytest.mark.fault("RF1")
def test_an_error_in_another_process_names_the_environment_and_what_was_learned_is_kept(tmp_path):
    settings = {"num_envs": 2, "horizon": 4, "minibatch_size": 8, "num_epochs": 1}
    with pytest.raises(
        EnvironmentContractError, match=r"exploded.*was raised by environment \d.*goes on from its last"
    ):
        iw.train(RaisesInStep, iw.PPO(**settings), total_steps=80, env_processes=2, progress=False, out=tmp_path)
    assert any(path.iterdir() for path in tmp_path.rglob("checkpoints"))


def test_from_a_step_that_failed_no_episode_goes_on():
    with pool_of(RaisesInStep, num_envs=3) as pool:
        with pytest.raises(EnvironmentContractError, match="exploded"):
            play(pool, 20)
        assert pool.snapshot().document["episodes"] == [[], [], []]


def test_a_step_that_failed_does_not_forget_how_often_environments_were_started_anew():
    with pool_of("CartPole-v1", num_envs=3) as pool:
        nothing_kept = {"kind": "gymnasium", "restarts": [0, 2, 4], "episodes": [[], [], []]}
        pool.restore(PoolSnapshot({}, nothing_kept), current(pool), np.zeros(3, bool))
        assert pool.snapshot().document["restarts"] == [1, 3, 5]
        pool._whole = False
        assert pool.snapshot().document["restarts"] == [1, 3, 5]


def test_the_death_of_a_process_is_told_and_what_was_learned_is_kept(tmp_path):
    settings = {"num_envs": 3, "horizon": 1, "minibatch_size": 3, "num_epochs": 1}
    message = r"environments 1 to 2 was killed by signal 9 and left no word.*goes on from its last checkpoint"
    with pytest.raises(WorkerError, match=message):
        iw.train(Dies, iw.PPO(**settings), total_steps=30, env_processes=2, progress=False, out=tmp_path)
    assert any(path.iterdir() for path in tmp_path.rglob("checkpoints"))


def test_a_process_that_died_is_told_though_a_child_of_its_environment_lives_on():
    began = time.monotonic()
    with pool_of(LeavesAChild, 2, 2) as pool, pytest.raises(WorkerError, match="killed by signal 9"):
        play(pool, 20)
    assert time.monotonic() - began < 40


def test_a_death_that_a_snapshot_meets_costs_the_episodes_alone_and_is_told_by_the_next_step():
    with pool_of("CartPole-v1") as pool:
        play(pool, 5)
        helper = pool._helpers[1]._process
        helper.kill()
        helper.wait()
        assert pool.snapshot().document["episodes"] == [[]] * NUM_ENVS
        with pytest.raises(WorkerError, match="environments 3 to 4 was killed by signal 9"):
            play(pool, 5, begin=False)


def test_a_signal_to_stop_leaves_a_process_to_its_parent():
    with pool_of("CartPole-v1", 2, 2) as pool:
        play(pool, 5)
        for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
            pool._helpers[0]._process.send_signal(number)
        play(pool, 5, begin=False)
        assert all(pool.snapshot().document["episodes"])


def test_an_id_means_in_another_process_what_it_means_here(monkeypatch):
    monkeypatch.setattr(gymnasium.envs.registration, "registry", dict(gymnasium.registry))
    monkeypatch.setattr(gymnasium, "registry", gymnasium.envs.registration.registry)
    entry_point = "gymnasium.envs.classic_control:CartPoleEnv"
    gymnasium.register("InThisProcess-v0", entry_point, max_episode_steps=3)
    with pool_of("InThisProcess-v0", 1) as alone, pool_of("InThisProcess-v0") as divided:
        played = play(alone, 20)
        assert played[0].truncated[2].all()
        assert_equal(play(divided, 20), played)
    gymnasium.register("ByAFunction-v0", lambda: gymnasium.make("CartPole-v1"))
    with pytest.raises(ConfigError, match=r"ByAFunction-v0.*cannot be told.*Register it with"):
        iw.train("ByAFunction-v0", num_envs=2, env_processes=2)


def test_what_environments_may_not_differ_in_is_told():
    with (
        pool_of(SometimesMasked, 2, 2) as pool,
        pytest.raises(EnvironmentContractError, match="by some of the environments, and not by others"),
    ):
        pool.reset(current(pool))
    with pool_of(OtherElsewhere, 2, 2) as pool, pytest.raises(EnvironmentContractError, match="differ from those of"):
        pool.reset(current(pool))


@pytest.mark.fault("RB1", outcome="survived")
def test_an_environment_that_reads_the_terminal_finds_nothing_there():
    with pool_of(ReadsTheTerminal, 2, 2) as pool:
        # Only the other process's: pytest gives this one no input either, but says so by an error.
        pool._own = pool_of_one = env_source(Masked).make_pool(1, 4, HORIZON)
        pool.reset(current(pool))
        assert pool_of_one.mask is not None


@pytest.mark.fault("RB1")
def test_an_environment_that_other_processes_cannot_find_is_refused():
    with pytest.raises(ConfigError, match="cannot be found by other processes"):
        iw.train(lambda: Masked(), num_envs=2, env_processes=2)


@pytest.mark.parametrize(
    ("env", "settings", "message"),
    [
        ("CartPole-v1", {"num_envs": 2, "env_processes": 3}, "more than there are environments, num_envs = 2"),
        ("CartPole-v1", {"num_envs": 2, "env_processes": 0}, "env_processes = 0"),
        ("CartPole-v1", {"backend": "jax", "env_processes": 2}, "are stepped together"),
    ],
)
def test_a_number_of_processes_that_cannot_be_is_refused(env, settings, message, tmp_path):
    with pytest.raises(ConfigError, match=message):
        iw.train(env, total_steps=10_000, out=tmp_path, **settings)
    assert not any(tmp_path.iterdir())


def test_messages_of_any_size_arrive_whole():
    incoming, outgoing = os.pipe()
    channel = Channel(incoming, outgoing, lambda: False)
    for size in (0, 1, 60_000):
        channel.send(Kind.DONE, bytes(range(256)) * (size // 256) + b"x")
        assert channel.receive() == (Kind.DONE, bytes(range(256)) * (size // 256) + b"x")
    os.close(outgoing)
    with pytest.raises(EOFError):
        channel.receive()
    os.close(incoming)


PARENT = """
import os, sys, threading, time
import numpy as np
from gymnasium.envs.classic_control import CartPoleEnv
from inchworm.envs.pool import StepBuffers
from inchworm.envs.source import env_source
class Hangs(CartPoleEnv):
    def step(self, action):
        time.sleep(600)
if __name__ == "__main__":
    pool = env_source(Hangs).make_pool(3, 0, 8, 3)
    buffers = StepBuffers.empty(pool.spec.observation_space, 8, 3)
    pool.reset([leaf[0] for leaf in buffers.obs])
    print(*(helper._process.pid for helper in pool._helpers), flush=True)
    {then}
"""


@pytest.mark.parametrize("then", ["time.sleep(600)", "pool.step([np.zeros(3, int)], 0, buffers)"])
def test_no_process_outlives_its_parent(then, tmp_path):
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    script = tmp_path / "parent.py"
    script.write_text(PARENT.replace("{then}", then))
    parent = subprocess.Popen([sys.executable, script], env=environment, stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    pids = [int(word) for word in parent.stdout.readline().split()]
    assert len(pids) == 2
    time.sleep(0.2)  # until the step is told
    parent.kill()
    parent.wait()
    wait_for(lambda: all(gone(pid) for pid in pids))
    parent.stdout.close()
