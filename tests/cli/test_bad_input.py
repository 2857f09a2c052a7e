"""Wrong input ends with exit status 2 and one readable paragraph: the field, the value, what to do. Nothing is lost."""

import contextlib
import json
import shutil
import sys
from importlib import import_module
from types import ModuleType

import gymnasium
import numpy as np
import pytest

import inchworm as iw
from inchworm.cli.main import main
from inchworm.io import checkpoint as checkpoints
from inchworm.io.words import short

SMALL = ["--num-envs", "2", "--horizon", "16", "--minibatch-size", "16", "--num-epochs", "1", "--hidden-sizes", "8"]
QUIET = ["--no-video", "--no-progress", "--evaluation-episodes", "0"]


def error_of(capsys, *arguments):
    """The message of a command that must fail."""
    assert main([str(word) for word in arguments]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("error: ")
    assert "Traceback" not in captured.err
    assert captured.err.count("\n") == 1, "the message must be one paragraph"
    return captured.err


class Faulty(gymnasium.Env):
    """An environment with a fault to choose."""

    observation_space = gymnasium.spaces.Box(-1.0, 1.0, (2,), np.float32)
    action_space = gymnasium.spaces.Discrete(2)

    def __init__(self, fault="none"):
        self.fault = fault
        if fault == "action space":
            self.action_space = gymnasium.spaces.Box(0, 3, (2,), np.int32)
        if fault == "observation space":
            self.observation_space = gymnasium.spaces.Text(5)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.steps = 0
        return np.zeros(2, np.float32), {}

    def step(self, action):
        self.steps += 1
        reward = np.nan if self.fault == "nan" else 1.0
        if self.fault == "raises" and self.steps == 20:
            raise RuntimeError("the gripper is lost")
        return np.zeros(2, np.float32), reward, False, self.steps >= 10 and self.fault != "raises", {}


@pytest.fixture(autouse=True)
def faulty_module(monkeypatch):
    def refuses():
        raise RuntimeError("no gripper")

    module = ModuleType("faulty")
    module.refuses, module.wrong_type = refuses, lambda: len(5)
    for fault in ("none", "nan", "raises", "action space", "observation space"):
        setattr(module, fault.replace(" ", "_"), lambda fault=fault: Faulty(fault))
    monkeypatch.setitem(sys.modules, "faulty", module)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    out = tmp_path_factory.mktemp("runs")
    assert main(["train", "CartPole-v1", "--total-steps", "64", "--out", str(out), "--name", "a", *SMALL, *QUIET]) == 0
    return out / "CartPole-v1" / "ppo" / "a"


@pytest.fixture
def run_copy(finished, tmp_path):
    shutil.copytree(finished, tmp_path / "run")
    return tmp_path / "run"


def test_an_unknown_environment_is_told_with_the_nearest_ones(capsys, tmp_path):
    message = error_of(capsys, "train", "HalfChetah-v5", "--out", tmp_path)
    assert "env = HalfChetah-v5" in message
    assert "did you mean HalfCheetah-v5" in message


def test_an_unknown_command_is_told_with_the_nearest_one(capsys):
    assert "did you mean resume?" in error_of(capsys, "resum", "x")


def test_an_unknown_option_is_told_with_the_nearest_one(capsys, tmp_path):
    told = error_of(capsys, "train", "CartPole-v1", "--out", tmp_path, "--learning-rat", "1e-3")
    assert "option = --learning-rat: is no option of `inchworm train` (did you mean --learning-rate" in told


@pytest.mark.parametrize(
    ("option", "ours"),
    [
        ("--lr", "--learning-rate"),
        ("--n_envs", "--num-envs"),
        ("--total-timesteps", "--total-steps"),
        ("--batch-size=64", "--minibatch-size"),
        ("--verbose", "--progress"),
    ],
)
def test_what_other_libraries_call_an_option_leads_to_its_name_here(capsys, option, ours):
    told = error_of(capsys, "train", "CartPole-v1", option, "1")
    assert f"option = {option.split('=')[0].replace('_', '-')}: is no option" in told
    assert f"(did you mean {ours}?)" in told


def test_an_off_policy_algorithm_is_told_to_be_one(capsys):
    told = error_of(capsys, "train", "CartPole-v1", "--algorithm", "sac")
    assert "algorithm = sac: is not one of the choices (it is an off-policy algorithm" in told
    assert "did you mean" not in told


@pytest.mark.parametrize("fault", ["action space", "observation space"])
def test_an_unsupported_space_is_named(capsys, tmp_path, fault):
    message = error_of(capsys, "train", "faulty:" + fault.replace(" ", "_"), "--out", tmp_path)
    assert fault.replace(" ", "_") in message
    assert "wrapper" in message.lower()


def test_an_environment_that_keeps_giving_nan_stops_with_a_good_checkpoint_to_go_on_from(capsys, tmp_path):
    command = ["train", "faulty:nan", "--out", tmp_path, "--name", "x", "--total-steps", 3200, *SMALL, *QUIET]
    message = error_of(capsys, *command)
    assert "10 updates in a row" in message
    run = tmp_path / "faulty-nan" / "ppo" / "x"
    assert f"`inchworm resume {short(run)} --env faulty:nan` goes on from its last checkpoint" in message
    newest = checkpoints.list_checkpoints(run / "checkpoints")[-1]
    state = checkpoints.load_checkpoint(newest).state
    assert all(np.isfinite(array).all() for array in state.values() if array.dtype.kind == "f")


def test_an_environment_that_raises_is_told_with_its_own_message(capsys, tmp_path):
    message = error_of(capsys, "train", "faulty:raises", "--out", tmp_path, "--total-steps", 320, *SMALL, *QUIET)
    assert "RuntimeError: the gripper is lost" in message


@pytest.mark.fault("RB2")
@pytest.mark.parametrize(
    ("option", "value", "field"),
    [
        ("--minibatch-size", "100", "minibatch_size"),
        ("--minibatch-size", "1", "minibatch_size"),
        ("--learning-rate", "-1", "learning_rate"),
        ("--learning-rate", "nan", "learning_rate"),
        ("--learning-rate", "linear:3e-4", "learning_rate"),
        ("--gamma", "1.01", "gamma"),
        ("--gae-lambda", "-0.1", "gae_lambda"),
        ("--clip-range", "0", "clip_range"),
        ("--horizon", "0", "horizon"),
        ("--num-envs", "-1", "num_envs"),
        ("--num-epochs", "0", "num_epochs"),
        ("--max-grad-norm", "inf", "max_grad_norm"),
        ("--hidden-sizes", "0", "hidden_sizes"),
        ("--total-steps", "-5", "total_steps"),
        ("--total-steps", "10", "total_steps"),
        ("--seed", "18446744073709551616", "seed"),
        ("--max-seconds", "0", "max_seconds"),
        ("--keep-checkpoints", "0", "keep_checkpoints"),
        ("--threads", "0", "threads"),
        ("--evaluation-episodes", "-1", "evaluation_episodes"),
        ("--target-kl", "0", "target_kl"),
        ("--log-std", "loud", "log_std"),
        ("--preset", "mojuco", "preset"),
        ("--algorithm", "tpro", "algorithm"),
        ("--env-kwargs", "[1]", "env_kwargs"),
    ],
)
def test_a_wrong_setting_is_named_with_its_value(capsys, tmp_path, option, value, field):
    message = error_of(capsys, "train", "CartPole-v1", "--out", tmp_path, option, value)
    assert field in message.split(" = ")[0]
    assert not list(tmp_path.rglob("config.json")), "nothing may be left behind"


def test_a_missing_optional_package_is_told_with_the_command_that_installs_it(capsys, tmp_path, monkeypatch):
    def make(*_, **__):
        raise gymnasium.error.DependencyNotInstalled("MuJoCo is not installed, run `pip install mujoco`")

    monkeypatch.setattr(gymnasium, "make", make)
    message = error_of(capsys, "train", "HalfCheetah-v5", "--out", tmp_path)
    assert 'pip install "inchworm[mujoco]"' in message


def test_a_run_folder_that_cannot_be_written_is_named(capsys, tmp_path):
    (tmp_path / "file").write_text("in the way")
    message = error_of(capsys, "train", "CartPole-v1", "--out", tmp_path / "file", *QUIET)
    assert "--out" in message
    assert (tmp_path / "file").read_text() == "in the way"


def test_an_existing_run_is_not_written_over(capsys, run_copy, tmp_path):
    target = tmp_path / "out" / "CartPole-v1" / "ppo" / "a"
    shutil.copytree(run_copy, target)
    before = {path: path.read_bytes() for path in target.rglob("*") if path.is_file()}
    message = error_of(capsys, "train", "CartPole-v1", "--out", tmp_path / "out", "--name", "a")
    assert "resume" in message
    assert before == {path: path.read_bytes() for path in target.rglob("*") if path.is_file()}


def test_a_folder_without_a_run_is_refused(capsys, tmp_path):
    for command in ("resume", "evaluate", "record", "plot"):
        assert "config.json" in error_of(capsys, command, tmp_path)


def test_resuming_a_finished_run_says_how_to_go_on(capsys, run_copy):
    assert "larger total_steps" in error_of(capsys, "resume", run_copy)


def test_a_run_with_only_damaged_checkpoints_is_refused(capsys, run_copy):
    for path in (run_copy / "checkpoints").glob("*/state.safetensors"):
        path.write_bytes(path.read_bytes()[:-1])
    assert main(["resume", str(run_copy), "--total-steps", "128"]) == 2
    warning, message = capsys.readouterr().err.splitlines()
    assert warning.startswith("warning: The checkpoint 000002 is passed over")
    assert message.startswith("error: ")
    assert "no checkpoint that verifies" in message


def test_a_checkpoint_of_another_environment_is_refused(capsys, run_copy):
    config = json.loads((run_copy / "config.json").read_text())
    (run_copy / "config.json").write_text(json.dumps(config | {"env": "Pendulum-v1"}))
    assert "env = Pendulum-v1: is in config.json" in error_of(capsys, "resume", run_copy, "--total-steps", "128")


@pytest.mark.fault("RB3")
@pytest.mark.parametrize("text", ["", "{", "[]", '{"env": 3}', "\x00", '{"settings": {"gama": 1}, "algorithm": "ppo"}'])
def test_a_damaged_configuration_is_refused(capsys, run_copy, text):
    (run_copy / "config.json").write_text(text)
    for command in ("resume", "evaluate"):
        error_of(capsys, command, run_copy)


def test_which_checkpoint_is_to_be_used_is_one_of_two(capsys, finished):
    for command in ("evaluate", "record", "resume"):
        assert "error: which = first: is not one of the choices" in error_of(
            capsys, command, finished, "--which", "first"
        )


@pytest.mark.parametrize("words", [[], ["--which", "best"], ["--which=last"]])
def test_the_checkpoint_that_is_named_is_used(monkeypatch, words):
    class Taken(Exception):
        pass

    def take(*arguments, which, **options):
        raise Taken(which)

    monkeypatch.setattr("inchworm.api.load", take)
    for name in ("evaluate", "resume", "record"):
        command = import_module(f"inchworm.cli.{name}")
        monkeypatch.setattr(command, "resume" if name == "resume" else "load", take, raising=False)
        with pytest.raises(Taken) as taken:
            command.main(["runs/x", *words])
        assert str(taken.value) == ("best" if "best" in words else "last")


def test_a_damaged_policy_is_refused(capsys, run_copy):
    tensors = run_copy / "policy" / "policy.safetensors"
    tensors.write_bytes(b"\x80\x04" + tensors.read_bytes()[2:])
    assert "SHA-256" in error_of(capsys, "evaluate", run_copy)


def test_a_module_named_in_a_run_is_not_imported_at_resume(capsys, tmp_path):
    command = ["train", "faulty:none", "--total-steps", 64, "--out", tmp_path, "--name", "x", *SMALL, *QUIET]
    assert main([str(word) for word in command]) == 0
    path = tmp_path / "faulty-none" / "ppo" / "x"
    sys.modules.pop("faulty")
    assert "--env" in error_of(capsys, "resume", path, "--total-steps", "128")


def test_debug_shows_the_traceback(capsys):
    assert main(["train", "HalfChetah-v5", "--debug"]) == 2
    assert "Traceback" in capsys.readouterr().err


def test_a_misspelt_setting_in_python_is_told_with_the_nearest_one():
    with pytest.raises(iw.InchwormError, match=r"clip_rang.*did you mean clip_range"):
        iw.train("CartPole-v1", clip_rang=0.1)


def test_settings_beside_a_whole_algorithm_are_refused():
    with pytest.raises(iw.InchwormError, match="either settings"):
        iw.train("CartPole-v1", iw.PPO(), clip_range=0.1)


def test_an_environment_object_is_refused_with_what_to_give_instead():
    with pytest.raises(iw.InchwormError, match="function that makes"):
        iw.train(Faulty())


@pytest.mark.parametrize("word", [[], ["--help"], ["train", "--help"], ["check", "--help"]])
def test_help_is_no_error(word, capsys):
    try:
        status = main(list(word))
    except SystemExit as exit:
        status = exit.code or 0
    assert status == 0
    assert "usage" in capsys.readouterr().out


@pytest.mark.parametrize("words", ["CartPole-v1 --algorithm trpo", "--algorithm=trpo", "--algorithm trpo"])
def test_help_shows_the_settings_of_the_algorithm_that_is_named(words, capsys):
    assert main(["train", *words.split(), "--help"]) == 0
    shown = capsys.readouterr().out
    assert "--max-kl" in shown
    assert "--clip-range" not in shown


@pytest.mark.parametrize(
    ("words", "preset"), [("CartPole-v1", "classic"), ("--preset atari --num-envs 1 Pendulum-v1", "atari")]
)
def test_help_shows_the_defaults_of_the_preset_that_is_named_or_fits(words, preset, capsys):
    with contextlib.suppress(SystemExit):
        main(["train", *words.split(), "--help"])
    shown = " ".join(capsys.readouterr().out.split())
    assert f"Default: {iw.PRESETS[preset].total_steps}." in shown
    assert f"Default: {iw.PRESETS[preset].settings('ppo').learning_rate}." in shown


def test_a_command_without_arguments_names_what_is_missing(capsys):
    assert "arguments = none: ENV is missing. Usage: inchworm train ENV" in error_of(capsys, "train")
    assert "RUN is missing" in error_of(capsys, "plot")


@pytest.mark.fault("RB1")
@pytest.mark.parametrize(
    ("env", "told"),
    [
        ("faulty:refuses", "cannot be made: RuntimeError: no gripper"),
        ("faulty:wrong_type", "cannot be made: TypeError"),
        ("faulty:actoin_space", "faulty has no actoin_space (did you mean action_space"),
    ],
)
def test_an_environment_that_cannot_be_made_is_told_with_what_it_raised(capsys, faulty_module, env, told):
    assert told in error_of(capsys, "train", env, *SMALL, *QUIET)


def test_a_picture_or_video_that_cannot_be_written_is_told_before_any_work(capsys, finished):
    for command, name in (("plot", "curve.xyz"), ("plot", "nowhere/curve.png"), ("record", "video.xyz")):
        assert "error: out = " in error_of(capsys, command, finished, "--out", finished / name)
    for command in ("evaluate", "record"):
        assert "error: seed = -1" in error_of(capsys, command, finished, "--seed", "-1")


@pytest.mark.parametrize("name", ["a/b", "../x", "..", ""])
def test_a_name_that_is_no_folder_s_is_refused(capsys, tmp_path, name):
    arguments = ["train", "CartPole-v1", *SMALL, *QUIET, "--out", tmp_path, "--name", name]
    assert "error: name = " in error_of(capsys, *arguments)
    assert not list(tmp_path.rglob("config.json"))


@pytest.mark.fault("RB3")
@pytest.mark.parametrize(("name", "value"), [("learning_rate", "0.1"), ("horizon", 32), ("ent_coef", "0.5")])
def test_a_run_whose_settings_were_edited_is_not_taken_up(capsys, run_copy, name, value):
    path = run_copy / "config.json"
    document = json.loads(path.read_text())
    document["settings"][name] = value
    path.write_text(json.dumps(document))
    assert f"error: settings.{name} = " in error_of(capsys, "resume", run_copy, "--total-steps", "640")


def test_an_option_that_the_others_leave_unread_is_refused_also_in_its_other_spellings(capsys):
    for option in (["--clip-range", "0.1"], ["--clip_range=0.1"]):
        told = error_of(capsys, "train", "CartPole-v1", "--surrogate", "kl", *option, *QUIET)
        assert "error: clip_range = 0.1: has no effect without surrogate = clip or log_clip" in told
    told = error_of(capsys, "train", "CartPole-v1", "--algorithm", "npg", "--line-search", *QUIET)
    assert "error: line_search = True" in told


def test_a_preset_without_settings_for_the_algorithm_is_told_on_the_command_line(capsys, tmp_path):
    small = ["--num-envs", "1", "--horizon", "16", "--minibatch-size", "16", "--total-steps", "16", "--out", tmp_path]
    words = ["train", "CartPole-v1", "--preset", "atari", "--algorithm", "trpo", *small, *QUIET]
    assert main([str(word) for word in words]) == 0
    assert "warning: The preset atari has no settings for trpo" in capsys.readouterr().err
