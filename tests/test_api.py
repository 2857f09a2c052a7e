"""The public calls: train, resume, evaluate, load, act."""

import dataclasses
import json
import re
import shutil
import subprocess
import sys
import threading
import warnings
from types import SimpleNamespace

import gymnasium
import jax
import numpy as np
import optax
import pytest
from gymnasium.vector import AutoresetMode, SyncVectorEnv

import inchworm as iw
from inchworm import build
from inchworm.collect.host import HostRollouts
from inchworm.config import ALGORITHMS
from inchworm.envs.source import env_source
from inchworm.errors import (
    CheckpointError,
    ConfigError,
    EnvironmentContractError,
    InvariantError,
    RunFolderError,
    UnsupportedSpaceError,
)
from inchworm.io import checkpoint as checkpoints
from inchworm.io.run_folder import RunFolder, out_of, read_json, write_json
from inchworm.numerics.tree import fingerprint
from inchworm.run import evaluate_until
from inchworm.runner import command
from inchworm.workers import INSIDE

SMALL = iw.PPO(num_envs=2, horizon=16, minibatch_size=16, num_epochs=1, hidden_sizes=(8,))
STEPS = 320


def train(out, env="CartPole-v1", **options):
    options = {"total_steps": STEPS, "evaluation_episodes": 0, "progress": False} | options
    return iw.train(env, options.pop("algorithm", SMALL), out=out, **options)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return train(tmp_path_factory.mktemp("run"), evaluation_episodes=2)


def test_a_run_evaluates_in_the_environment_it_was_trained_in_and_a_loaded_one_asks_for_it(tmp_path):
    own = train(tmp_path, lambda: gymnasium.make("CartPole-v1"))
    assert len(own.evaluate(episodes=2).returns) == 2
    with pytest.raises(ConfigError, match="env=") as error:
        iw.load(own.folder).evaluate(episodes=2)
    assert error.value.field == "env"
    again = iw.load(own.folder).evaluate(episodes=2, env=lambda: gymnasium.make("CartPole-v1"))
    assert again.returns == own.evaluate(episodes=2).returns


class Closes(gymnasium.Env):
    """Writes down that it was closed, and fails at it."""

    observation_space = gymnasium.spaces.Box(-1, 1, (2,))
    action_space = gymnasium.spaces.Box(-np.inf, np.inf, (1,))
    made = closed = 0

    def __init__(self):
        Closes.made += 1

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return np.zeros(2, np.float32), {}

    def step(self, action):
        return np.zeros(2, np.float32), 0.0, True, False, {}

    def close(self):
        Closes.closed += 1
        if Closes.closed > 1:  # the first only tells its spaces
            raise RuntimeError("the window was gone")


def test_environments_that_cannot_be_closed_do_not_cost_the_run(tmp_path, monkeypatch):
    monkeypatch.setattr(Closes, "made", 0)
    monkeypatch.setattr(Closes, "closed", 0)
    with pytest.warns(UserWarning, match="environment 0 could not be closed: RuntimeError: the window was gone"):
        run = train(tmp_path, Closes)
    assert run.summary["env_steps"] == STEPS
    assert Closes.closed == Closes.made == 3


@pytest.mark.filterwarnings("ignore:environment . could not be closed")
def test_environments_are_closed_when_the_settings_do_not_fit_them(tmp_path, monkeypatch):
    monkeypatch.setattr(Closes, "made", 0)
    monkeypatch.setattr(Closes, "closed", 0)
    with pytest.raises(UnsupportedSpaceError, match="has no finite range"):
        train(tmp_path, Closes, algorithm=dataclasses.replace(SMALL, action_distribution="beta"))
    assert Closes.closed == Closes.made


def test_a_worker_s_import_of_a_script_that_resumes_a_run_of_several_processes_is_told(tmp_path, monkeypatch):
    divided = train(tmp_path, env_processes=2)
    monkeypatch.setenv(INSIDE, "1")
    with pytest.raises(ConfigError, match="trains when it is imported"):
        iw.resume(divided.folder, total_steps=2 * STEPS)


def test_a_run_leaves_everything_in_its_folder(run):
    folder = RunFolder(run.folder)
    for path in (folder.config, folder.provenance, folder.metrics, folder.summary, folder.curve, folder.policy):
        assert path.exists(), path
    assert any(folder.path.glob("events.out.tfevents.*"))
    assert run.folder.parent.parent.name == "CartPole-v1"
    assert run.folder.name.endswith("-seed0")
    assert len(run.metrics()) == STEPS // SMALL.steps_per_iteration
    assert run.summary["gradient_steps"] == STEPS // 32 * 2
    assert read_json(folder.provenance)["numerics"]["threads"] == "1"


def test_products_keep_all_bits_of_float32_on_every_device(run):
    product = jax.jit(lambda a, b: a @ b).lower(np.ones((4, 4), np.float32), np.ones((4, 4), np.float32))
    assert "precision = [HIGHEST, HIGHEST]" in product.as_text()


def test_each_iteration_is_reported_in_order(tmp_path):
    seen = []
    train(tmp_path, on_iteration=seen.append)
    assert [report.iteration for report in seen] == list(range(1, 11))
    assert [report.env_steps for report in seen] == list(range(32, 352, 32))
    assert all(report.metrics["policy/log_ratio_at_start"] < 1e-4 for report in seen)
    assert seen[-1].seconds > seen[0].seconds


def test_training_stops_at_the_first_iteration_that_reaches_the_budget(tmp_path):
    assert train(tmp_path, total_steps=321).summary["env_steps"] == 352


def test_training_stops_when_the_callback_says_so(tmp_path):
    run = train(tmp_path, on_iteration=lambda report: report.iteration == 3)
    assert (run.summary["stopped_by"], run.summary["iterations"]) == ("callback", 3)
    assert [path.name for path in checkpoints.list_checkpoints(run.folder / "checkpoints")] == ["000003"]


def test_training_stops_by_the_clock(tmp_path):
    run = train(tmp_path, total_steps=10_000_000, algorithm=SMALL, max_seconds=0.3)
    assert run.summary["stopped_by"] == "max_seconds"
    assert run.summary["env_steps"] < 10_000_000


def test_a_resumed_run_has_its_time_again(tmp_path):
    run = train(tmp_path, total_steps=10_000_000, algorithm=SMALL, max_seconds=0.3)
    again = iw.resume(run.folder, evaluation_episodes=0, progress=False)
    assert again.summary["stopped_by"] == "max_seconds"
    assert again.summary["iterations"] > run.summary["iterations"] + 1


@pytest.mark.parametrize("backend", ["gymnasium", "jax"])
@pytest.mark.parametrize("kind", [SystemExit, KeyboardInterrupt])
def test_a_callback_that_ends_the_program_finds_everything_saved(tmp_path, backend, kind):
    def leave(report):
        if report.iteration == 3:
            raise kind

    with pytest.raises(kind):
        train(tmp_path, on_iteration=leave, backend=backend, name="left")
    folder = RunFolder(tmp_path / "CartPole-v1" / "ppo" / "left")
    assert read_json(folder.summary)["iterations"] == 3
    resumed = iw.resume(folder.path, evaluation_episodes=0, progress=False)
    whole = train(tmp_path, backend=backend)
    assert resumed.summary["parameters_sha256"] == whole.summary["parameters_sha256"]


def test_a_run_whose_last_checkpoint_cannot_be_written_has_its_policy(tmp_path, monkeypatch):
    def fail(*arguments):
        raise CheckpointError("checkpoint", "x", "cannot be saved", "Free space.")

    monkeypatch.setattr(checkpoints, "save_checkpoint", fail)
    with pytest.warns(UserWarning, match="No checkpoint was written"), pytest.raises(CheckpointError):
        train(tmp_path, name="kept")
    kept = iw.load(tmp_path / "CartPole-v1" / "ppo" / "kept")
    assert kept.summary["env_steps"] == STEPS


def test_training_stops_at_a_return(tmp_path):
    run = train(tmp_path, total_steps=100_000, stop_return=5.0)
    assert run.summary["stopped_by"] == "stop_return"
    assert run.summary["episodes"] >= 100, "the mean of fewer episodes is not the score"
    with pytest.raises(ConfigError, match=r"stop_return = 5\.0: has been reached"):
        iw.resume(run.folder)
    config = RunFolder(run.folder).config
    write_json(config, read_json(config) | {"stop_return": None, "max_seconds": 0.1})
    assert iw.resume(run.folder, evaluation_episodes=0, progress=False).summary["stopped_by"] == "max_seconds"


def test_a_callback_that_raises_changes_nothing_and_is_called_again(run, tmp_path):
    called = []

    def fails(report):
        called.append(report.iteration)
        raise ValueError("no screen")

    with pytest.warns(UserWarning, match="fails raised ValueError: no screen"):
        other = train(tmp_path, on_iteration=fails)
    assert other.summary["parameters_sha256"] == run.summary["parameters_sha256"]
    assert called == list(range(1, 11))


def test_several_callbacks_are_called_and_what_cannot_be_is_refused(tmp_path):
    seen = []
    train(tmp_path, on_iteration=[lambda report: seen.append("one"), lambda report: seen.append("two")])
    assert seen == ["one", "two"] * 10
    for wrong in (5, [print, None]):
        with pytest.raises(ConfigError, match=r"on_iteration.*cannot be called"):
            train(tmp_path, on_iteration=wrong)


def test_what_a_callback_adds_to_the_metrics_is_logged(tmp_path):
    def adds(report):
        report.metrics.update({"mine/length": np.float32(report.iteration), "mine/picture": "a cat"})
        raise SystemExit(3) if report.iteration == 2 else ValueError

    with (
        pytest.warns(UserWarning, match="'mine/picture' is not logged, because it is no number"),
        pytest.raises(SystemExit),
    ):
        train(tmp_path, on_iteration=adds)
    rows = iw.load(next(tmp_path.glob("*/ppo/*"))).metrics()
    assert [row["mine/length"] for row in rows] == [1.0, 2.0]
    assert "mine/picture" not in rows[0]


def test_a_full_disk_stops_no_training_and_is_told(run, tmp_path, monkeypatch):
    write, failures = checkpoints.write_file, iter([True, True])

    def full(*args):
        if next(failures, False):
            raise OSError(28, "No space left on device")
        write(*args)

    monkeypatch.setattr(checkpoints, "write_file", full)
    with pytest.warns(UserWarning, match="No space left on device"):
        other = train(tmp_path, checkpoint_seconds=0.0)
    assert other.summary["parameters_sha256"] == run.summary["parameters_sha256"]
    assert checkpoints.list_checkpoints(other.folder / "checkpoints")[-1].name == "000010"


def test_the_newest_checkpoints_and_the_best_are_kept(tmp_path):
    run = train(tmp_path, checkpoint_seconds=0.0, keep_checkpoints=2)
    names = [path.name for path in checkpoints.list_checkpoints(run.folder / "checkpoints")]
    assert names[-2:] == ["000009", "000010"]
    assert len(names) <= 3
    returns = {row["iteration"]: row.get("episode/return_100", -np.inf) for row in run.metrics()}
    assert f"{max(returns, key=returns.__getitem__):06d}" in names


def test_a_loaded_policy_acts_as_the_trained_one(run):
    obs = np.random.default_rng(0).normal(size=(32, 4)).astype(np.float32)
    loaded = iw.load(run.folder)
    np.testing.assert_array_equal(loaded.policy.act(obs, deterministic=True), run.policy.act(obs, deterministic=True))
    assert loaded.summary == read_json(run.folder / "summary.json")
    alone = iw.load_policy(run.folder / "policy")
    np.testing.assert_array_equal(alone.act(obs, deterministic=True), run.policy.act(obs, deterministic=True))
    assert alone.info["env"] == "CartPole-v1"


def test_a_policy_acts_on_one_observation_or_a_batch(run):
    one = run.policy.act(np.zeros(4), deterministic=True)
    many = run.policy.act(np.zeros((3, 4)), deterministic=True)
    assert np.shape(one) == ()
    assert many.tolist() == [one] * 3
    assert gymnasium.spaces.Discrete(2).contains(one)
    with pytest.raises(iw.InchwormError, match=r"\(5,\)"):
        run.policy.act(np.zeros(5))


def test_a_policy_samples_both_actions_and_its_mode_is_the_likelier(run):
    obs = np.zeros((4000, 4), np.float32)
    share = run.policy.act(obs).mean()
    assert 0.01 < share < 0.99
    if abs(share - 0.5) > 0.05:
        assert run.policy.act(obs[:1], deterministic=True)[0] == (share > 0.5)


def test_evaluation_is_repeatable_and_apart_from_training(run):
    first, second = run.evaluate(episodes=3), run.evaluate(episodes=3)
    assert first.returns == second.returns == [float(length) for length in first.lengths]
    assert run.evaluate(episodes=3, seed=5).returns != first.returns


def test_an_endless_episode_is_cut_and_counted_in_evaluation(run):
    class Endless(gymnasium.Env):
        observation_space = gymnasium.spaces.Box(-1, 1, (4,), np.float32)
        action_space = gymnasium.spaces.Discrete(2)

        def reset(self, *, seed=None, options=None):
            return np.zeros(4, np.float32), {}

        def step(self, action):
            return np.zeros(4, np.float32), 1.0, False, False, {}

    from inchworm.collect.evaluate import evaluate

    result = evaluate(run.policy, Endless, episodes=2, max_episode_steps=50)
    assert (result.unfinished, result.lengths) == (1, [50])


def test_a_function_a_class_and_an_id_train_alike(run, tmp_path):
    made = train(tmp_path / "function", env=lambda: gymnasium.make("CartPole-v1"))
    assert made.summary["parameters_sha256"] == run.summary["parameters_sha256"]
    from gymnasium.envs.classic_control import CartPoleEnv

    by_class = train(tmp_path / "class", env=CartPoleEnv)
    assert "CartPoleEnv" in str(by_class.folder)


@pytest.mark.parametrize("mode", list(AutoresetMode))
def test_a_vector_environment_trains_in_every_autoreset_mode(tmp_path, mode):
    env = SyncVectorEnv([lambda: gymnasium.make("CartPole-v1")] * 2, autoreset_mode=mode)
    run = train(tmp_path, env=env)
    assert run.summary["skipped_updates"] == 0
    assert run.summary["episodes"] > 0


def test_a_vector_environment_brings_its_own_number_of_environments(tmp_path):
    env = SyncVectorEnv([lambda: gymnasium.make("CartPole-v1")] * 4)
    run = iw.train(
        env, total_steps=64, horizon=16, minibatch_size=16, out=tmp_path, evaluation_episodes=0, progress=False
    )
    assert run.config.algorithm.num_envs == 4
    with pytest.raises(iw.InchwormError, match="num_envs = 2"):
        train(tmp_path, env=env)


def test_a_run_in_a_vector_environment_says_once_how_it_can_be_evaluated(tmp_path):
    env = SyncVectorEnv([lambda: gymnasium.make("CartPole-v1")] * 2)
    with pytest.warns(UserWarning, match=r"run\.evaluate\(env=\.\.\.\)") as told:
        run = train(tmp_path, env=env, total_steps=32, evaluation_episodes=2)
    assert sum("was not evaluated" in str(warning.message) for warning in told) == 1
    assert "evaluation_deterministic" not in run.summary
    assert len(run.evaluate(episodes=2, env=lambda: gymnasium.make("CartPole-v1")).returns) == 2


def test_an_evaluation_that_is_broken_off_leaves_the_run_as_it_is(tmp_path):
    class LostSensor(gymnasium.wrappers.TransformObservation):
        """A cart pole whose observations are NaN, but for the first."""

        def __init__(self):
            env = gymnasium.make("CartPole-v1")
            super().__init__(env, lambda obs: obs * np.nan, env.observation_space)

        def reset(self, **kwargs):
            return self.env.reset(**kwargs)

    with pytest.warns(UserWarning, match="broken off: observation = "):
        run = train(tmp_path, env=LostSensor, total_steps=32, evaluation_episodes=1)
    assert run.summary["skipped_updates"] == 1
    assert RunFolder(run.folder).curve.exists()


def test_training_works_in_a_thread(run, tmp_path):
    results = []
    thread = threading.Thread(target=lambda: results.append(train(tmp_path)))
    thread.start()
    thread.join()
    assert results[0].summary["parameters_sha256"] == run.summary["parameters_sha256"]


def test_a_run_cannot_be_resumed_while_it_trains(tmp_path):
    errors = []

    def resume_meanwhile(report):
        if report.iteration == 2:
            try:
                iw.resume(next(tmp_path.glob("*/ppo/*")), progress=False)
            except RunFolderError as error:
                errors.append(error)

    train(tmp_path, on_iteration=resume_meanwhile, checkpoint_seconds=0.0)
    assert "another process" in str(errors[0])


def test_a_larger_budget_makes_a_new_run_that_names_its_parent(run):
    longer = iw.resume(run.folder, total_steps=2 * STEPS, evaluation_episodes=0, progress=False)
    assert longer.folder != run.folder
    assert longer.folder.parent == run.folder.parent
    assert read_json(longer.folder / "provenance.json")["parent"] == str(run.folder)
    assert longer.summary["env_steps"] == 2 * STEPS
    assert longer.summary["parameters_sha256"] != run.summary["parameters_sha256"]


@pytest.mark.fault("RF8", outcome="survived")
@pytest.mark.parametrize("lost", ["policy", "summary.json"])
def test_a_run_killed_after_its_last_checkpoint_is_finished_by_resume(tmp_path, lost):
    run = train(tmp_path, evaluation_episodes=2)
    path = run.folder / lost
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    again = iw.resume(run.folder, evaluation_episodes=2, progress=False)
    assert path.exists()
    assert again.summary == run.summary
    assert len(run.metrics()) == STEPS // SMALL.steps_per_iteration
    with pytest.raises(ConfigError, match="has finished its 320 steps"):
        iw.resume(run.folder, progress=False)


def test_a_run_whose_environment_fails_keeps_what_it_has_learned(tmp_path):
    def make():
        return FailingAt(5 * SMALL.horizon + 3)

    with pytest.raises(
        EnvironmentContractError, match=r"battery is empty.*`iw.resume\(.*env=\.\.\.\)` goes on"
    ) as error:
        train(tmp_path, make, name="run")
    assert error.value.field == "env.step"
    (folder,) = tmp_path.glob("*/ppo/run")
    with pytest.warns(UserWarning, match="environment 0: its episode was not kept"):
        resumed = iw.resume(folder, lambda: FailingAt(None), evaluation_episodes=0, progress=False)
    assert [row["iteration"] for row in resumed.metrics()] == list(range(1, 11))
    assert read_json(folder / "provenance.json")["resumed"][0]["iteration"] == 5
    with pytest.raises(EnvironmentContractError, match="left no checkpoint"):
        train(tmp_path, lambda: FailingAt(3), name="other")


class FailingAt(gymnasium.Env):
    """Raises an error at one of its steps."""

    observation_space = gymnasium.spaces.Box(-1.0, 1.0, (4,))
    action_space = gymnasium.spaces.Discrete(2)

    def __init__(self, fails_at):
        self.fails_at, self.steps = fails_at, 0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return np.zeros(4, np.float32), {}

    def step(self, action):
        self.steps += 1
        if self.steps == self.fails_at:
            raise ValueError("the battery is empty")
        return np.zeros(4, np.float32), 1.0, self.steps % 8 == 0, False, {}


class Sized(gymnasium.Env):
    """Pays its size at each of its eight steps."""

    observation_space = gymnasium.spaces.Box(-1.0, 1.0, (4,))

    def __init__(self, size=1, choices=2):
        self.size, self.action_space = size, gymnasium.spaces.Discrete(choices)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.steps = 0
        return np.zeros(4, np.float32), {}

    def step(self, action):
        self.steps += 1
        return np.zeros(4, np.float32), float(self.size), self.steps == 8, False, {}


def test_arguments_of_an_environment_given_as_a_class_are_kept_with_the_run(tmp_path):
    run = train(tmp_path, Sized, env_kwargs={"size": 7}, on_iteration=lambda report: report.iteration == 4)
    assert run.evaluate(episodes=1).returns == [56.0]
    assert iw.load(run.folder).evaluate(episodes=1, env=Sized).returns == [56.0]
    resumed = iw.resume(run.folder, Sized, evaluation_episodes=0, progress=False)
    assert resumed.summary["return_100"] == 56.0
    with pytest.raises(ConfigError, match=r"env_kwargs = .*cannot be written"):
        train(tmp_path, Sized, env_kwargs={"size": object()})


def test_a_policy_is_held_against_the_spaces_of_the_environment_it_is_given(tmp_path):
    run = train(tmp_path, Sized, on_iteration=lambda report: report.iteration == 4)
    for env in (lambda: Sized(choices=4), "Pendulum-v1"):
        with pytest.raises(ConfigError, match="policy was trained for"):
            iw.load(run.folder).evaluate(episodes=1, env=env)
    with pytest.raises(ConfigError, match=r"action_space Discrete\(n=4.*trained for Discrete\(n=2"):
        iw.resume(run.folder, lambda: Sized(choices=4), progress=False)


def test_a_larger_budget_of_a_run_that_was_moved_stays_beside_its_folder(tmp_path):
    out = tmp_path / "runs"
    assert out_of(out / "a" / "ppo" / "x", "a", "ppo") == out
    assert out_of(out / "n-b-c" / "ppo" / "x", "n/b:c", "ppo") == out
    moved = tmp_path / "kept" / "best" / "x"
    for elsewhere in (moved, out / "a" / "trpo" / "x", out / "b" / "ppo" / "x", tmp_path.parents[-1] / "x"):
        assert out_of(elsewhere, "a", "ppo") == elsewhere.parent


def test_metric_lines_past_the_checkpoint_are_dropped_at_resume(tmp_path):
    run = train(tmp_path, on_iteration=lambda report: report.iteration == 4)
    metrics = RunFolder(run.folder).metrics
    lines = metrics.read_text()
    later = lines.splitlines()[-1].replace('"iteration": 4', '"iteration": 5')
    metrics.write_text(f'{lines}{later}\n{{"iteration": 6, "env_st')
    resumed = iw.resume(run.folder, evaluation_episodes=0, progress=False)
    assert [row["iteration"] for row in resumed.metrics()] == list(range(1, 11))


def test_a_resume_on_other_versions_is_told_as_not_exact(tmp_path):
    run = train(tmp_path, on_iteration=lambda report: report.iteration == 4)
    provenance = RunFolder(run.folder).provenance
    provenance.write_text(provenance.read_text().replace('"threads": "1"', '"threads": "64"'))
    with pytest.warns(UserWarning, match="threads was '64' and is '1'"):
        iw.resume(run.folder, evaluation_episodes=0, progress=False)


def test_a_resume_without_provenance_is_told_as_not_exact_and_writes_it_anew(tmp_path):
    run = train(tmp_path, on_iteration=lambda report: report.iteration == 4)
    provenance = RunFolder(run.folder).provenance
    provenance.write_text(provenance.read_text()[:40])
    with pytest.warns(UserWarning, match=r"not known \(provenance\.json"):
        iw.resume(run.folder, evaluation_episodes=0, progress=False)
    assert read_json(provenance)["resumed"][0]["exact"] is False


def test_a_run_whose_summary_is_damaged_is_loaded_with_a_warning(tmp_path):
    run = train(tmp_path, evaluation_episodes=0)
    summary = RunFolder(run.folder).summary
    summary.write_text(summary.read_text()[:40])
    with pytest.warns(UserWarning, match=r"without its summary: summary\.json"):
        loaded = iw.load(run.folder)
    assert (loaded.summary, loaded.policy.act(np.zeros(4)) in (0, 1)) == ({}, True)


def test_a_summary_is_json_also_where_a_return_was_not_finite(tmp_path):
    path = tmp_path / "summary.json"
    write_json(path, {"return_100": float("nan"), "evaluation": {"returns": [1.0, float("-inf")]}})
    assert json.loads(path.read_text(), parse_constant=pytest.fail) == {
        "return_100": None,
        "evaluation": {"returns": [1.0, None]},
    }


def test_a_setting_that_is_a_schedule_is_in_the_metrics(tmp_path):
    moving = dataclasses.replace(SMALL, gamma="linear:0.9:0.99", ent_coef=0.01)
    run = train(tmp_path, algorithm=moving, evaluation_episodes=0)
    rows = run.metrics()
    fractions = np.arange(len(rows)) / len(rows)
    assert [row["schedule/gamma"] for row in rows] == pytest.approx(0.9 + 0.09 * fractions)
    assert "schedule/ent_coef" not in rows[0]


def test_statistics_that_move_between_acting_and_updating_are_named(tmp_path, monkeypatch):
    collect = HostRollouts.collect

    def drifting(self, model, obs_stats, key):
        moved = tuple(stats._replace(mean=stats.mean + 0.5) for stats in obs_stats)
        return collect(self, model, moved, key)

    monkeypatch.setattr(HostRollouts, "collect", drifting)
    # The last layer starts small, so the first update must let the policy depend on what it sees.
    with pytest.raises(InvariantError, match=r"1\.0\.mean"):
        train(tmp_path, algorithm=dataclasses.replace(SMALL, learning_rate=0.1))


def test_log_probabilities_changed_after_acting_are_told(tmp_path, monkeypatch):
    collect = HostRollouts.collect

    def changed(*args):
        rollout, episodes = collect(*args)
        return rollout._replace(log_prob=rollout.log_prob + 0.01), episodes

    monkeypatch.setattr(HostRollouts, "collect", changed)
    with pytest.raises(InvariantError, match="stored log-probabilities or actions were changed"):
        train(tmp_path)


TINY = {"num_envs": 2, "horizon": 16, "hidden_sizes": (8,)}


@pytest.mark.parametrize(
    ("name", "kind", "settings"), [("trpo", iw.TRPO, {"minibatch_size": 16, "max_kl": 0.02}), ("a2c", iw.A2C, {})]
)
def test_an_algorithm_is_chosen_by_name_and_gets_its_preset_s_settings(tmp_path, name, kind, settings):
    run = train(tmp_path, algorithm=name, total_steps=64, **TINY, **settings)
    preset = iw.PRESETS["classic"].settings(name)
    assert run.config.algorithm == dataclasses.replace(preset, **TINY, **settings)
    assert type(run.config.algorithm) is kind
    assert (run.summary["algorithm"], run.folder.parent.name) == (name, name)
    loaded = iw.load(run.folder)
    assert loaded.config == run.config
    assert loaded.policy.settings.hidden_sizes == (8,)


@pytest.mark.fault("RB2")
@pytest.mark.parametrize(
    ("algorithm", "settings", "message"),
    [
        ("tpro", {}, "did you mean trpo"),
        ("trpo", {"clip_range": 0.1}, "clip_range = 0.1: is not a setting of TRPO"),
        ("ppo", {"max_kl": 0.1}, "max_kl = 0.1: is not a setting of PPO"),
        ("trpo", {"shared_trunk": True}, "shared_trunk = True"),
        ("a2c", {"normalize_advantage": "minibatch"}, "no minibatches"),
        (iw.TRPO(), {"preset": "classic"}, "either settings"),
    ],
)
def test_settings_that_are_not_the_algorithm_s_are_refused(tmp_path, algorithm, settings, message):
    with pytest.raises(iw.InchwormError, match=message):
        train(tmp_path, algorithm=algorithm, **settings)
    assert not list(tmp_path.iterdir())


@pytest.mark.fault("RB5")
@pytest.mark.parametrize("kind", ALGORITHMS.values())
def test_a_setting_that_a_class_does_not_have_or_that_has_no_name_is_refused(kind):
    with pytest.raises(ConfigError, match=rf"^gama = 0.9: is not a setting of {kind.__name__} \(did you mean gamma"):
        kind(gama=0.9)
    with pytest.raises(ConfigError, match=rf"^{kind.__name__} = 0.1: is given without the name.*{kind.__name__}\("):
        kind(0.1)


@pytest.mark.fault("RB5")
@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda out: train(out, name=5), "^name = 5: is not the name of one folder"),
        (lambda out: train(None), "^out = None: is no path"),
        (lambda out: iw.train_seeds("CartPole-v1", seeds=(0, 1), out=out, name=5), "^name = 5"),
        (lambda out: iw.train_seeds("CartPole-v1", seeds=(0, 1), out=5), "^out = 5"),
        (lambda out: iw.train_seeds("CartPole-v1", seeds=3, out=out), r"^seeds = 3: is no list.*range\(3\)"),
        (lambda out: iw.load(None), "^path = None"),
        (lambda out: iw.resume(5), "^path = 5"),
        (lambda out: iw.load_policy(None), "^folder = None"),
    ],
)
def test_what_is_no_path_name_or_list_of_seeds_is_refused_by_name(tmp_path, call, message):
    with pytest.raises(iw.InchwormError, match=message):
        call(tmp_path)
    assert not list(tmp_path.iterdir())


def doubled(obs):
    return 2.0 * obs


def own_network(key, space):
    return jax.tree_util.Partial(doubled)


@pytest.fixture(scope="module")
def own_optimizer():
    return optax.chain(optax.clip_by_global_norm(0.5), optax.scale_by_rms())


@pytest.fixture(scope="module")
def own_parts_run(tmp_path_factory, own_optimizer):
    """A run with a network and an optimiser of the user's own, stopped before its end."""
    return train(
        tmp_path_factory.mktemp("own"),
        total_steps=96,
        network=own_network,
        optimizer=own_optimizer,
        on_iteration=lambda report: report.iteration == 1,
    )


def test_a_network_and_an_optimiser_of_one_s_own_must_be_given_again_at_resume(own_parts_run, own_optimizer):
    folder, quiet = own_parts_run.folder, {"evaluation_episodes": 0, "progress": False}
    with pytest.raises(iw.InchwormError, match=r"network = None.*iw\.resume\(folder, network=\.\.\.\)"):
        iw.resume(folder, optimizer=own_optimizer, **quiet)
    with pytest.raises(iw.InchwormError, match="optimizer = None"):
        iw.resume(folder, network=own_network, **quiet)
    resumed = iw.resume(folder, network=own_network, optimizer=own_optimizer, **quiet)
    assert (resumed.summary["env_steps"], resumed.summary["skipped_updates"]) == (96, 0)


def test_a_policy_with_a_network_of_one_s_own_is_loaded_with_it(own_parts_run):
    with pytest.raises(iw.InchwormError, match="Give the network again, as network="):
        iw.load(own_parts_run.folder)
    obs = np.ones((3, 4), np.float32)
    for loaded in (
        iw.load(own_parts_run.folder, network=own_network).policy,
        iw.load_policy(own_parts_run.folder / "policy", network=own_network),
    ):
        np.testing.assert_array_equal(
            loaded.act(obs, deterministic=True), own_parts_run.policy.act(obs, deterministic=True)
        )


def test_a_network_that_was_no_part_of_a_run_is_refused_at_resume(tmp_path):
    stopped = train(tmp_path, on_iteration=lambda report: report.iteration == 1)
    with pytest.raises(iw.InchwormError, match="was not part of the run"):
        iw.resume(stopped.folder, network=own_network)


@pytest.mark.fault("RB5")
@pytest.mark.parametrize(("part", "value"), [("network", 5), ("optimizer", "adam")])
def test_a_part_of_one_s_own_that_is_none_is_refused_by_name(tmp_path, part, value):
    with pytest.raises(iw.InchwormError, match=f"^{part} = {value}: is not"):
        train(tmp_path, **{part: value})
    assert not list(tmp_path.iterdir())


def test_an_optimiser_that_holds_its_learning_rate_is_refused(tmp_path):
    with pytest.raises(iw.InchwormError, match="turns a gradient round"):
        train(tmp_path, optimizer=optax.adam(1e-3))
    assert not list(tmp_path.iterdir())


def test_a_policy_with_memory_is_resumed_bit_for_bit_and_acts_with_a_carry(tmp_path):
    config = dataclasses.replace(SMALL, recurrent="gru", recurrent_size=4)
    whole = train(tmp_path / "whole", algorithm=config, total_steps=96, evaluation_episodes=1)
    stopped = train(
        tmp_path / "stopped", algorithm=config, total_steps=96, on_iteration=lambda report: report.iteration == 1
    )
    resumed = iw.resume(stopped.folder, evaluation_episodes=0, progress=False)
    assert resumed.summary["parameters_sha256"] == whole.summary["parameters_sha256"]
    policy, obs = iw.load(whole.folder).policy, np.float32([0.1, -0.2, 0.3, -0.4])
    action, carry = policy.act(obs, deterministic=True)
    assert gymnasium.spaces.Discrete(2).contains(action)
    _, later = policy.act(obs, carry, deterministic=True)
    assert any((one != two).any() for one, two in zip(*map(jax.tree.leaves, (carry, later)), strict=True))
    with pytest.raises(iw.InchwormError, match=r"^carry = .*no carry for 3 observations"):
        policy.act(np.stack([obs] * 3), carry)


def test_the_number_of_cores_changes_no_bit(tmp_path):
    """A fixed number of threads, whatever the machine: the same run on one core and on all."""
    code = (
        "import os, sys; os.sched_setaffinity(0, eval(sys.argv[1])); import inchworm as iw;"
        "run = iw.train('Pendulum-v1', iw.PPO(num_envs=8, horizon=256, minibatch_size=1024, num_epochs=2),"
        "total_steps=4096, out=sys.argv[2], evaluation_episodes=0, progress=False);"
        "print(run.summary['parameters_sha256'])"
    )
    hashes = {
        subprocess.run(
            [sys.executable, "-c", code, cores, str(tmp_path / str(index))], check=True, capture_output=True, text=True
        ).stdout
        for index, cores in enumerate(["{0}", "set(range(os.cpu_count()))"])
    }
    assert len(hashes) == 1


def test_compiled_functions_are_shared_by_runs_that_differ_in_seed(run):
    source = env_source("CartPole-v1")
    parts = (SMALL, source.spec, STEPS, build.OwnParts(), None)
    assert build._compiled(*parts) is build._compiled(*parts)


def test_importing_the_package_computes_nothing_and_sets_nothing():
    code = (
        "import jax; before = dict(jax.config.values); from inchworm import *;"
        "from jax._src import xla_bridge; assert not xla_bridge._backends;"
        "assert dict(jax.config.values) == before; import sys;"
        "assert not {'matplotlib', 'tensorboardX', 'imageio', 'mujoco'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_warnings_point_at_the_line_that_called_the_library(tmp_path):
    def fails(report):
        raise ValueError("no screen")

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        train(tmp_path, on_iteration=fails, algorithm=dataclasses.replace(SMALL, image_network="small"))
    ours = {warning.filename for warning in caught if warning.category is UserWarning}
    assert len(caught) >= 2
    assert ours == {__file__}


def test_a_run_is_shown_in_a_line_and_in_a_notebook_with_its_scores_and_curve(run):
    assert len(repr(run)) < 400
    assert "CartPole-v1, ppo" in repr(run)
    assert "deterministic" in repr(run)
    page = run._repr_html_()
    assert "data:image/png;base64," in page
    assert "over the last" in page
    assert "Run(" in repr(iw.load(run.folder))
    assert repr(run.policy).startswith("Policy(CartPole-v1, ppo, 320 steps, Box(")
    assert len(repr(run.policy)) < 400
    assert re.fullmatch(r"Evaluation\(deterministic, return .* over 2 episodes\)", repr(run.evaluate(episodes=2)))


def test_the_best_checkpoint_can_be_loaded_and_gone_on_from(tmp_path):
    run = train(tmp_path, checkpoint_seconds=0.0, keep_checkpoints=1)
    rows = [row for row in run.metrics() if "episode/return_100" in row]
    best = max(rows, key=lambda row: row["episode/return_100"])
    assert best["iteration"] < 10, "the case is that of a best checkpoint which is not the last"
    loaded = iw.load(run.folder, which="best")
    assert loaded.policy.info["env_steps"] == best["env_steps"]
    stopped = train(tmp_path, on_iteration=lambda report: report.iteration == best["iteration"])
    obs = np.random.default_rng(0).normal(size=(32, 4)).astype(np.float32)
    at_best = stopped.policy.act(obs, deterministic=True)
    np.testing.assert_array_equal(loaded.policy.act(obs, deterministic=True), at_best)
    again = iw.resume(run.folder, which="best", evaluation_episodes=0, progress=False)
    assert again.folder != run.folder
    assert again.summary["parameters_sha256"] == run.summary["parameters_sha256"]
    assert read_json(RunFolder(again.folder).provenance)["parent"] == str(run.folder)
    assert read_json(RunFolder(again.folder).provenance)["resumed"][0]["exact"]
    with pytest.raises(ConfigError, match="which = worst"):
        iw.load(run.folder, which="worst")


def test_a_run_in_which_no_episode_ended_has_no_best_checkpoint(tmp_path):
    run = train(tmp_path, env="Pendulum-v1", total_steps=32)
    with pytest.raises(CheckpointError, match="no episode had ended"):
        iw.load(run.folder, which="best")


def test_a_run_that_goes_on_in_another_environment_names_that_one(tmp_path):
    run = train(tmp_path)
    with pytest.warns(UserWarning, match="the environment was CartPole-v1 and is CartPole-v0"):
        other = iw.resume(run.folder, "CartPole-v0", total_steps=2 * STEPS, evaluation_episodes=0, progress=False)
    assert other.config.env == iw.load(other.folder).config.env == "CartPole-v0"
    assert other.folder.parent == tmp_path / "CartPole-v0" / "ppo"


def test_a_run_does_not_go_on_in_another_environment_under_its_own_name(tmp_path):
    run = train(tmp_path, on_iteration=lambda report: report.iteration == 4)
    with pytest.raises(ConfigError, match="env = CartPole-v0: is not what the run was trained in, CartPole-v1"):
        iw.resume(run.folder, "CartPole-v0", evaluation_episodes=0, progress=False)


class OneAtATime(gymnasium.Env):
    """Holds a port, as it were."""

    observation_space = gymnasium.spaces.Box(-1, 1, (2,))
    action_space = gymnasium.spaces.Discrete(2)
    open = 0

    def __init__(self):
        if OneAtATime.open:
            raise OSError("address already in use")
        OneAtATime.open += 1

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return np.zeros(2, np.float32), {}

    def step(self, action):
        return np.zeros(2, np.float32), 1.0, True, False, {}

    def close(self):
        OneAtATime.open -= 1


def test_evaluation_opens_environments_when_those_of_training_are_closed(tmp_path):
    run = train(tmp_path, OneAtATime, algorithm=dataclasses.replace(SMALL, num_envs=1), evaluation_episodes=2)
    assert run.summary["evaluation_stochastic"]["returns"] == [1.0, 1.0]


def test_an_environment_that_fails_in_the_evaluation_costs_neither_run_nor_curve(tmp_path):
    class FailsLater(OneAtATime):
        made = 0

        def __init__(self):
            FailsLater.made += 1

        def close(self): ...

        def step(self, action):
            if FailsLater.made > 3:  # its spaces, and the two of training
                raise RuntimeError("the battery is empty")
            return super().step(action)

    with pytest.warns(UserWarning, match=r"evaluation was broken off: .*the battery is empty"):
        run = train(tmp_path, FailsLater, evaluation_episodes=2)
    assert RunFolder(run.folder).curve.exists()
    assert "evaluation_deterministic" not in run.summary


def test_the_evaluation_takes_a_tenth_of_the_time_that_training_may_take(tmp_path, monkeypatch):
    clock = iter(range(10**7))
    monkeypatch.setattr("inchworm.runner.time", SimpleNamespace(monotonic=lambda: float(next(clock))))
    with pytest.warns(UserWarning, match=r"evaluation was ended after 50 seconds, at \d+ of 1,000 episodes; `inchworm"):
        run = train(tmp_path, evaluation_episodes=1000, max_seconds=1000.0)
    for kind in ("deterministic", "stochastic"):
        assert 0 < len(run.summary[f"evaluation_{kind}"]["returns"]) < 50


def test_whole_numbers_may_be_written_with_an_exponent_in_python_too(tmp_path):
    assert train(tmp_path, total_steps=3.2e2).config.total_steps == STEPS
    with pytest.raises(ConfigError, match=r"total_steps = 320\.5"):
        train(tmp_path, total_steps=320.5)


def test_folders_of_runs_have_names_that_a_shell_leaves_alone(tmp_path):
    def made():
        return gymnasium.make("CartPole-v1")

    for env in (made, lambda: made(), "gymnasium.envs.classic_control:CartPoleEnv"):
        folder = train(tmp_path, env, total_steps=32).folder
        assert set("<>|&;()$`\\\"' *?[]#~=%!:") & set(str(folder.relative_to(tmp_path))) == set()


def test_a_preset_is_the_same_for_an_id_with_and_without_its_version(tmp_path):
    runs = [
        iw.train(env, total_steps=2048, out=tmp_path, evaluation_episodes=0, progress=False)
        for env in ("Pendulum", "Pendulum-v1")
    ]
    assert {run.config.preset for run in runs} == {"pendulum"}

    class Pendulum(OneAtATime):
        """Has but the name."""

        def __init__(self): ...

        def close(self): ...

    named = iw.train(Pendulum, total_steps=1024, num_envs=1, out=tmp_path, evaluation_episodes=0, progress=False)
    assert named.config.preset == "classic"


def test_a_preset_s_minibatches_give_way_to_a_memory_and_to_another_horizon(tmp_path):
    quiet = {"total_steps": 1024, "evaluation_episodes": 0, "progress": False, "out": tmp_path}
    with pytest.warns(UserWarning, match="minibatch_size is 128 in place of the preset's 64, .* in whole trajectories"):
        run = iw.train("CartPole-v1", recurrent="gru", **quiet)
    assert run.config.algorithm.minibatch_size == 128
    with pytest.warns(UserWarning, match="minibatch_size is 50 in place of the preset's 64, so that minibatches cover"):
        run = iw.train("CartPole-v1", num_envs=2, horizon=5e1, **quiet)
    assert run.config.algorithm.minibatch_size == 50
    with pytest.raises(ConfigError, match="minibatch_size = 64"):
        iw.train("CartPole-v1", num_envs=2, horizon=50, minibatch_size=64, **quiet)


def test_what_keeps_a_curve_from_being_drawn_costs_no_run(tmp_path, monkeypatch):
    def fails(*args):
        raise RuntimeError("no such font")

    monkeypatch.setattr("inchworm.runner.plot_curves", fails)
    with pytest.warns(UserWarning, match="curve was not drawn: RuntimeError: no such font"):
        run = train(tmp_path, evaluation_episodes=1)
    assert run.summary["evaluation_deterministic"]["returns"]


def test_updates_that_were_dropped_are_told_at_the_end(tmp_path):
    class Faulty(OneAtATime):
        def __init__(self): ...

        def step(self, action):
            return np.zeros(2, np.float32), np.nan, True, False, {}

        def close(self): ...

    with pytest.warns(UserWarning, match="2 of 2 updates met NaN or infinity in rewards"):
        train(tmp_path, Faulty, total_steps=64)


@pytest.mark.filterwarnings("ignore:environment . could not be closed")
def test_no_environment_stays_open_where_a_network_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(Closes, "made", 0)
    monkeypatch.setattr(Closes, "closed", 0)

    def network(key, space):
        raise ValueError("no such layer")

    with pytest.raises(ConfigError, match="no such layer"):
        train(tmp_path, Closes, network=network)
    assert Closes.closed == Closes.made


def test_an_evaluation_side_by_side_that_is_cut_tells_nothing_because_the_shortest_episodes_end_first(tmp_path):
    run = train(tmp_path, backend="jax")
    cut = evaluate_until(run, lambda episodes: True, episodes=8, deterministic=False)
    assert (cut.returns, cut.unfinished) == ([], 0)
    assert len(evaluate_until(run, lambda episodes: False, episodes=8, deterministic=False).returns) == 8


def test_commands_that_are_printed_can_be_typed(tmp_path):
    run = train(tmp_path)
    config, source = run.config, run.source
    folder = tmp_path / "my runs" / "a"
    assert command("resume", folder, config, source).endswith("my runs/a'")
    own = dataclasses.replace(source, name="mine:make", kwargs={"map": "a/b"})
    expected = ' --env mine:make --env-kwargs \'{"map": "a/b"}\''
    assert command("evaluate", folder, config, own).endswith(expected)
    made = dataclasses.replace(config, env_by_id=False)
    assert command("resume", folder, made, source) == f"iw.resume({str(folder)!r}, env=...)"
    assert command("evaluate", folder, made, source) == f"iw.load({str(folder)!r}).evaluate(env=...)"


def test_a_run_that_has_not_ended_is_loaded_with_the_policy_of_its_newest_checkpoint(tmp_path):
    def stop(report):
        return report.iteration == 3

    stopped = train(tmp_path, on_iteration=stop)
    run = RunFolder(stopped.folder)
    early = shutil.copytree(run.policy, tmp_path / "early")
    whole = iw.resume(stopped.folder, evaluation_episodes=0, progress=False)
    # As a kill after the last checkpoint leaves it: with the policy of the stop before, or with none.
    for policy in (early, None):
        shutil.rmtree(run.policy)
        if policy is not None:
            shutil.copytree(policy, run.policy)
        with pytest.warns(UserWarning, match="has not ended: this is the policy of its newest checkpoint, 320 steps"):
            loaded = iw.load(stopped.folder)
        assert fingerprint(loaded.policy.model) == whole.summary["parameters_sha256"]
        assert loaded.policy.info["env_steps"] == 320
        assert loaded.evaluate(episodes=1).returns
    shutil.rmtree(run.checkpoints)
    with pytest.raises(CheckpointError, match="holds no checkpoint"):
        iw.load(stopped.folder)


class Spaces(gymnasium.Env):
    """Ends after each step; of any spaces."""

    def __init__(self, observation_space=None, action_space=None):
        self.observation_space = observation_space or gymnasium.spaces.Discrete(2)
        self.action_space = action_space or gymnasium.spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return self.observation_space.sample(), {}

    def step(self, action):
        return self.observation_space.sample(), 1.0, True, False, {}


@pytest.mark.fault("RB2")
@pytest.mark.parametrize(
    ("spaces", "field"),
    [
        ({"observation_space": gymnasium.spaces.Discrete(10**9)}, "observation_space"),
        ({"action_space": gymnasium.spaces.Discrete(10**9)}, "action_space"),
        ({"observation_space": gymnasium.spaces.Box(0, 255, (400, 400, 3), np.uint8)}, "horizon"),
    ],
)
def test_what_cannot_fit_into_memory_is_refused_before_it_is_tried(tmp_path, spaces, field):
    with pytest.raises(ConfigError, match=r"needs [\d,]+ GB at least .*this machine has") as error:
        iw.train(lambda: Spaces(**spaces), horizon=10_000_000, minibatch_size=1000, out=tmp_path)
    assert error.value.field == field
    assert not list(tmp_path.iterdir())


def test_no_advice_is_given_on_actions_that_are_refused(tmp_path):
    spaces = {"action_space": gymnasium.spaces.Box(0, 10, (2,), np.int32)}
    with warnings.catch_warnings(action="error"), pytest.raises(UnsupportedSpaceError):
        iw.train(lambda: Spaces(**spaces), out=tmp_path)


def test_a_class_of_settings_in_place_of_settings_is_told_to_be_called(tmp_path):
    with pytest.raises(ConfigError, match=r"algorithm = TRPO: is a class.*Write iw\.TRPO\(\)\."):
        train(tmp_path, algorithm=iw.TRPO)
