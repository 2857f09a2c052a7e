"""What is printed into a pipe that nobody reads, in letters that a stream has not, and in colours."""

import os
import subprocess
import sys
import warnings

import gymnasium
import pytest

from inchworm.cli.main import main
from inchworm.warning import plain

ENVIRONMENT = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}


def inchworm(*words, stdout=subprocess.PIPE, **variables):
    """A command in a process of its own."""
    command = [sys.executable, "-m", "inchworm", *map(str, words)]
    return subprocess.run(command, stdout=stdout, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT | variables)


@pytest.mark.parametrize("words", [["--help"], ["--version"], ["plot", "--help"], ["train", "--help"]])
def test_a_reader_that_has_gone_is_no_error(words):
    reader, writer = os.pipe()
    os.close(reader)
    done = inchworm(*words, stdout=writer)
    os.close(writer)
    assert (done.stderr, done.returncode) == ("", 1)


def test_errors_for_a_reader_that_has_gone_end_in_silence():
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "inchworm", "nothing"]
    # The exit status says what was wrong, where words reach nobody.
    assert subprocess.run(command, stderr=writer, stdout=writer, env=ENVIRONMENT).returncode == 2
    os.close(writer)


def test_a_help_is_printed_in_ascii_and_in_few_columns():
    done = inchworm("train", "--help", PYTHONIOENCODING="ascii", COLUMNS="40")
    assert done.stderr == ""
    assert "KL(old||new)" in done.stdout


def test_letters_that_a_stream_has_not_are_written_in_others(tmp_path):
    code = "from inchworm.cli.streams import forgiving; import sys; forgiving(sys.stdout); print('1 ± 2 → 3 \u2603')"
    done = subprocess.run(
        [sys.executable, "-c", code], env=ENVIRONMENT | {"PYTHONIOENCODING": "ascii"}, capture_output=True, text=True
    )
    assert (done.stdout, done.stderr) == ("1 +- 2 -> 3 ?\n", "")


@pytest.mark.parametrize(
    "text", ["\x1b[33mWARN: {}\x1b[0m", "\x1b[1;31mWARN: {}\x1b[m", "WARN: \x1b]0;title\x07{}\x1b"]
)
def test_codes_for_colours_are_left_out(text):
    assert plain(text.format("10 < 2")) == "WARN: 10 < 2"


class Coloured(gymnasium.Env):
    """Warns in colour, as Gymnasium does, and then cannot be made."""

    def __init__(self):
        gymnasium.logger.warn("it is yellow")
        raise RuntimeError("\x1b[31mit is red\x1b[0m")


class RedSteps(gymnasium.Env):
    """Its steps raise in colour."""

    observation_space = gymnasium.spaces.Box(-1, 1, (1,))
    action_space = gymnasium.spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        return self.observation_space.sample(), {}

    def step(self, action):
        raise RuntimeError("\x1b[31mit is red\x1b[0m")


def test_what_a_check_finds_is_told_without_colours(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "coloured", sys.modules[__name__])
    assert main(["check", "coloured:RedSteps", "--steps", "10"]) == 2
    told = capsys.readouterr().out
    assert "it is red" in told
    assert "\x1b" not in told


@pytest.mark.parametrize("debug", [[], ["--debug"]])
@pytest.mark.parametrize("command", ["train", "check"])
def test_warnings_and_errors_of_an_environment_are_told_without_their_colours(capsys, monkeypatch, command, debug):
    monkeypatch.setitem(sys.modules, "coloured", sys.modules[__name__])
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        assert main([command, "coloured:Coloured", *debug]) == 2
    told = capsys.readouterr().err
    assert "it is red" in told
    assert "it is yellow" in told or command == "check"
    assert "\x1b" not in told


def test_workers_show_warnings_as_the_command_line_does():
    code = """
import gymnasium
import warnings
from inchworm.workers import own_stdout
own_stdout()
gymnasium.logger.warn("it is yellow")
gymnasium.logger.deprecation("it is old")
"""
    done = subprocess.run([sys.executable, "-c", code], env=ENVIRONMENT, capture_output=True, text=True)
    assert done.stderr == "warning: WARN: it is yellow\n"


def test_on_a_terminal_lines_are_broken_between_words_and_elsewhere_not_at_all(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    wrong = ["train", "CartPole-v1", "--algorithm", "sac"]
    assert main(wrong) == 2
    (line,) = capsys.readouterr().err.splitlines()
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    assert main(wrong) == 2
    lines = capsys.readouterr().err.splitlines()
    assert max(map(len, lines)) <= 40
    assert " ".join(lines) == line


def test_the_help_of_all_fits_into_80_columns(capsys):
    assert main(["--help"]) == 0
    assert max(map(len, capsys.readouterr().out.splitlines())) <= 80
