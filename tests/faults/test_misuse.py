"""Row RB5: the library is used as it is not meant to be; what cannot work is told in one sentence, the rest works."""

import os
import re
import shutil
import threading
import warnings
from pathlib import Path

import gymnasium
import jax
import numpy as np
import optax
import pytest

import inchworm as iw
from fixed_model import fixed_model
from inchworm.errors import InchwormError
from inchworm.io.run_folder import RunFolder
from inchworm.spaces import Discrete, EnvSpec

SMALL = iw.PPO(num_envs=2, horizon=16, minibatch_size=16, num_epochs=1, hidden_sizes=(8,))
QUIET = {"evaluation_episodes": 0, "progress": False}
OBS = np.zeros(4, np.float32)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    out = tmp_path_factory.mktemp("runs")
    return iw.train("CartPole-v1", SMALL, total_steps=64, out=out, name="first", **QUIET)


@pytest.fixture
def folder(run, tmp_path):
    return shutil.copytree(run.folder, tmp_path / "copy")


def train(env="CartPole-v1", algorithm=SMALL, out=None, **how):
    return iw.train(env, algorithm, total_steps=64, out=out, **QUIET | how)


def instance():
    return gymnasium.make("CartPole-v1")


def plays_choices() -> iw.Policy:
    """A policy that sees one of three choices."""
    model = fixed_model(EnvSpec(Discrete(3), Discrete(2)), settings=SMALL)
    return iw.Policy(model, (None,), SMALL, 0, {})


class Returns:
    """A network that returns something else than numbers for each action."""

    def __init__(self, what):
        self.what = what

    def __call__(self, *args, **kwargs):
        return self.what


REFUSED = {
    "acting on an observation of another shape": (lambda run, out: run.policy.act(np.zeros(3)), "observation|obs"),
    "acting on nothing": (lambda run, out: run.policy.act(None), "observation|obs"),
    "acting on a text": (lambda run, out: run.policy.act("left"), "observation|obs"),
    "acting on a batch of another shape": (lambda run, out: run.policy.act(np.zeros((5, 3))), "observation|obs"),
    "acting on complex numbers": (lambda run, out: run.policy.act(OBS + 1j), "observation|obs"),
    "evaluating no episodes": (lambda run, out: run.evaluate(episodes=0), "^episodes = 0: is out of range"),
    "evaluating half an episode": (lambda run, out: run.evaluate(episodes=0.5), "^episodes = 0.5: is not a whole"),
    "evaluating with a seed that is none": (lambda run, out: run.evaluate(seed=-1), "^seed = -1: is out of range"),
    "evaluating in another task": (lambda run, out: run.evaluate(env="Pendulum-v1"), "^env = Pendulum-v1: has"),
    "evaluating in an environment itself": (lambda run, out: run.evaluate(env=instance()), "^env = "),
    "a video that is no video": (lambda run, out: run.record(out=out / "a.txt"), "^out = .*a.txt: has no ending"),
    "loading what is not there": (lambda run, out: iw.load(out / "nowhere"), "^run = .*is not a run's folder"),
    "loading a number": (lambda run, out: iw.load(5), "^path = 5: is no path"),
    "loading a policy that there is not": (lambda run, out: iw.load(run.folder, which="worst"), "^which = worst: "),
    "loading a run as a policy": (lambda run, out: iw.load_policy(run.folder), "It is a run's folder: name .*policy"),
    "saving a policy in place of a file": (
        lambda run, out: iw.save_policy(file_in(out), run.policy),
        "^policy = .*cannot be written",
    ),
    "saving something else than a policy": (lambda run, out: iw.save_policy(out / "a", run), "^policy = "),
    "resuming what has ended": (lambda run, out: iw.resume(run.folder, **QUIET), "has finished its 64 steps"),
    "resuming with fewer steps": (lambda run, out: iw.resume(run.folder, total_steps=32, **QUIET), "^total_steps = 32"),
    "resuming in another task": (
        lambda run, out: iw.resume(run.folder, "Pendulum-v1", total_steps=128, **QUIET),
        "^env = Pendulum-v1: has",
    ),
    "training in an environment itself": (lambda run, out: train(instance(), out=out), "^env = "),
    "training in nothing": (lambda run, out: train(None, out=out), "^env = None"),
    "training in settings": (lambda run, out: train(SMALL, out=out), "^env = "),
    "training in what needs arguments": (lambda run, out: train(lambda size: instance(), out=out), "^env = "),
    "training in a vector environment of another size": (
        lambda run, out: train(gymnasium.make_vec("CartPole-v1", num_envs=3), out=out),
        "^num_envs = 2: is not the vector environment's own number, 3",
    ),
    "acting on a choice that there is not": (lambda run, out: plays_choices().act(3), "^obs = 3: "),
    "acting on half a choice": (lambda run, out: plays_choices().act(0.5), "^obs = 0.5: "),
    "training under a name that is taken": (
        lambda run, out: train(out=run.folder.parents[2], name="first"),
        "^name = first: exists already",
    ),
    "training into a file": (lambda run, out: train(out=file_in(out)), "^out = .*cannot be written"),
    "an algorithm's class in place of settings": (lambda run, out: train(algorithm=iw.PPO, out=out), "^algorithm = "),
    "a network that is a number": (lambda run, out: train(network=64, out=out), "^network = 64"),
    "a network that returns a text": (lambda run, out: train(network=Returns("left"), out=out), "^network"),
    "an optimiser's class": (lambda run, out: train(optimizer=optax.adam, out=out), "^optimizer = "),
    "seeds that are a word": (
        lambda run, out: iw.train_seeds("CartPole-v1", SMALL, seeds="abc", total_steps=64, out=out, **QUIET),
        "^seeds = ",
    ),
    "a callback for several seeds": (
        lambda run, out: iw.train_seeds(
            "CartPole-v1", SMALL, seeds=[0, 1], total_steps=64, out=out, on_iteration=print, **QUIET
        ),
        "^on_iteration = ",
    ),
}


def file_in(folder: Path) -> Path:
    (folder / "file").write_text("mine")
    return folder / "file"


@pytest.mark.fault("RB5")
@pytest.mark.parametrize("case", REFUSED)
def test_it_is_refused(case, run, tmp_path):
    call, message = REFUSED[case]
    with warnings.catch_warnings(action="ignore"), pytest.raises(InchwormError) as refused:
        call(run, tmp_path)
    assert re.search(message, str(refused.value)), str(refused.value)
    if (tmp_path / "file").exists():
        assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.fault("RB5")
def test_a_run_that_is_being_trained_is_not_resumed(folder):
    (folder / "summary.json").unlink()
    with RunFolder(folder).lock(), pytest.raises(InchwormError, match="is being trained by another process"):
        iw.resume(folder, **QUIET)


@pytest.mark.fault("RB5", outcome="survived")
def test_training_twice_with_the_same_settings_comes_to_the_same(run, tmp_path):
    assert train(out=tmp_path).summary["parameters_sha256"] == run.summary["parameters_sha256"]


@pytest.mark.fault("RB5", outcome="survived")
def test_training_in_a_thread_comes_to_the_same(run, tmp_path):
    found = []
    thread = threading.Thread(target=lambda: found.append(train(out=tmp_path)))
    thread.start()
    thread.join()
    assert found[0].summary["parameters_sha256"] == run.summary["parameters_sha256"]


@pytest.mark.fault("RB5", outcome="survived")
def test_two_trainings_at_once_in_threads_come_to_the_same(run, tmp_path):
    found = []
    threads = [threading.Thread(target=lambda: found.append(train(out=tmp_path))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {one.summary["parameters_sha256"] for one in found} == {run.summary["parameters_sha256"]}
    assert len({one.folder for one in found}) == 2


@pytest.mark.fault("RB5", outcome="survived")
@pytest.mark.filterwarnings("ignore")
def test_a_fork_after_training_can_act(run):
    expected = run.policy.act(OBS, deterministic=True)
    child = os.fork()
    if not child:
        status = 1
        try:
            status = int(run.policy.act(OBS, deterministic=True) != expected)
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


@pytest.mark.fault("RB5", outcome="survived")
def test_a_run_whose_folder_is_deleted_can_still_act_and_be_evaluated(tmp_path):
    run = train(out=tmp_path)
    shutil.rmtree(run.folder)
    assert run.policy.act(OBS) in (0, 1)
    assert len(run.evaluate(episodes=2).returns) == 2
    assert run.metrics() == []
    assert repr(run)


@pytest.mark.fault("RB5", outcome="survived")
def test_what_a_callback_returns_that_is_no_truth_stops_nothing(tmp_path):
    run = train(out=tmp_path, on_iteration=lambda report: "stop")
    assert run.summary["stopped_by"] == "total_steps"


@pytest.mark.fault("RB5", outcome="survived")
def test_observations_of_the_wrong_dtype_that_keep_their_values_are_taken(run):
    action = run.policy.act(OBS, deterministic=True)
    assert run.policy.act(OBS.astype(np.float64), deterministic=True) == action
    assert run.policy.act([0, 0, 0, 0], deterministic=True) == action
    assert run.policy.act(jax.numpy.zeros(4), deterministic=True) == action


@pytest.mark.fault("RB5", outcome="survived")
def test_choices_at_the_ends_of_their_space_and_numbers_beyond_any_are_taken(run):
    assert {int(plays_choices().act(choice)) for choice in range(3)} <= {0, 1}
    assert run.policy.act(np.full(4, 3.0)) in (0, 1)
    assert run.policy.act(np.full(4, -3.0)) in (0, 1)
