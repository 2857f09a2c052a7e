"""What the words of a command line come to, and how a help shows what can be said."""

import os
import subprocess
import sys
from importlib import import_module

import pytest

from inchworm.cli.main import COMMANDS, main
from inchworm.cli.options import help_page, options_of, read
from inchworm.cli.plot import Options as PlotOptions
from inchworm.cli.train import groups
from inchworm.config import ALGORITHMS
from inchworm.errors import ConfigError

EVERY = groups(*ALGORITHMS.values())


def named(words):
    """What a training is told by these words."""
    return read("train", EVERY, words.split())


@pytest.mark.parametrize("name", ALGORITHMS)
def test_only_what_is_named_is_filled_in(name):
    assert named(f"--algorithm {name} --no-video --seed -3 CartPole-v1") == {
        "algorithm": name,
        "video": False,
        "seed": -3,
        "env": "CartPole-v1",
    }


@pytest.mark.parametrize(
    "words",
    [
        'CartPole-v1 --env-kwargs {"a":1} --seeds 1 2 --log-std -0.5',
        '--env_kwargs {"a":1} --log_std -0.5 --seeds 1 2 -- CartPole-v1',
        '--env_kwargs={"a":1} --seeds 1 2 --log-std=-0.5 CartPole-v1',
        '--seeds 7 --log-std -5e-1 --seeds 1 2 --log-std -0.5 --env-kwargs {} CartPole-v1 --env_kwargs={"a":1}',
    ],
)
def test_hyphens_underscores_and_equal_signs_are_the_same_and_the_last_of_an_option_counts(words):
    found = {"env": "CartPole-v1", "env_kwargs": {"a": 1}, "seeds": (1, 2), "log_std": "-0.5"}
    assert named(words) == found


def test_an_environment_s_arguments_reach_it_under_each_spelling(tmp_path, capsys):
    for option in ("--env-kwargs", "--env_kwargs"):
        assert main(["train", "CartPole-v1", option, '{"lenght": 1}', "--out", str(tmp_path)]) == 2
        assert "env_kwargs = {'lenght': 1}: do not fit CartPole-v1" in capsys.readouterr().err
        assert main(["train", "CartPole-v1", option, '{"lenght": 1}', "--help"]) == 2
        assert "env_kwargs = {'lenght': 1}: do not fit CartPole-v1" in capsys.readouterr().err


@pytest.mark.parametrize(("text", "steps"), [("2048", 2048), ("1e6", 1_000_000), ("2.5E+4", 25_000)])
def test_steps_may_be_written_with_an_exponent(text, steps):
    assert named(f"CartPole-v1 --total-steps {text}")["total_steps"] == steps


@pytest.mark.parametrize("text", ["2.5e0", "1e-3", "1.2.3e5", "many"])
def test_steps_that_are_no_whole_number_are_refused(text):
    with pytest.raises(ConfigError, match=rf"total_steps = {text}: is no whole number\. Give a whole number"):
        named(f"CartPole-v1 --total-steps {text}")


@pytest.mark.parametrize("text", ["none", "None"])
def test_every_optional_number_may_be_none_in_small_letters_or_large(text):
    options = ("max_grad_norm", "clip_range_high", "target_kl", "max_seconds")
    found = named("CartPole-v1 " + " ".join(f"--{option} {text}" for option in options))
    assert found == {"env": "CartPole-v1", **dict.fromkeys(options)}
    number = named("CartPole-v1 --max-grad-norm 0.25 --max-seconds -1e3")
    assert (number["max_grad_norm"], number["max_seconds"]) == (0.25, -1000.0)


@pytest.mark.parametrize("option", ["--algorithm", "--preset", "--backend", "--env-kwargs", "--env_kwargs"])
@pytest.mark.parametrize("words", ["{} --out x CartPole-v1", "CartPole-v1 {}"])
def test_an_option_whose_value_is_missing_is_told_so(option, words):
    with pytest.raises(ConfigError, match=f"option = {option.replace('_', '-')}: has no value"):
        named(words.format(option))


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("CartPole-v1 --no-video=3", "option = --no-video: takes no value"),
        ("CartPole-v1 Pendulum-v1", "arguments = Pendulum-v1: are too many, it takes one ENV"),
        ("CartPole-v1 -q", "option = -q: is no option of `inchworm train`"),
        ("CartPole-v1 --learning", "option = --learning: is no option"),
        ("--seeds 0 1 CartPole-v1", "A list ends where an option begins"),
    ],
)
def test_words_that_cannot_be_are_told(words, told):
    with pytest.raises(ConfigError) as error:
        named(words)
    assert told in str(error.value)


def test_free_words_may_stand_on_both_sides_of_an_option():
    found = read("plot", {"options": [PlotOptions]}, ["a", "b", "--out", "c.png", "d"])
    assert [str(path) for path in found["runs"]] == ["a", "b", "d"]


@pytest.mark.parametrize("columns", [40, 80, 120])
def test_a_help_stays_within_the_terminal(monkeypatch, columns):
    monkeypatch.setenv("COLUMNS", str(columns))
    for name, algorithm in ALGORITHMS.items():
        page = help_page("train", "What it does.", groups(algorithm), {"algorithm": name})
        lines = page.splitlines()
        wide = [line for line in lines if len(line) > columns]
        # A list of choices stays in one piece, to be read and copied.
        assert all(line.startswith("  --") for line in wide)
        assert columns < 80 or not wide
        shown = " ".join(page.split())
        assert "--algorithm {ppo,trpo,npg,a2c,reinforce} How the policy is improved. Default: " in shown
        assert "--activation {tanh,relu}" in shown
        assert "--backend {gymnasium,envpool,ale,jax,gymnax,brax,playground}" in shown
        assert "--seeds INT ..." in shown
        assert [line for line in lines if line.endswith(":") and line[0] != " "] == [
            "run:",
            "environment:",
            "output:",
            "machine:",
            "policy and value networks:",
            "rollouts, returns and advantages:",
            f"{algorithm.__name__}:",
        ]
        assert shown.count("--horizon") == 1


def test_every_option_of_every_command_has_a_help():
    for name in COMMANDS:
        options = import_module(f"inchworm.cli.{name}").Options
        for option in (option for group in options_of({"": [options]}).values() for option in group):
            assert option.about.endswith("."), option
    assert all(option.about.endswith(".") for group in options_of(EVERY).values() for option in group)


@pytest.mark.parametrize("words", [["--help"], ["--version"], ["plot", "--help"]])
def test_what_does_without_jax_does_not_wait_for_it(words):
    code = """
import sys
from inchworm.cli.main import main
try:
    main(sys.argv[1:])
finally:
    assert "jax" not in sys.modules
"""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", code, *words], env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
