"""What shells complete after they have read what `inchworm completion` prints."""

import shlex
import shutil
import subprocess

import pytest

from inchworm.cli.main import COMMANDS, main

# What each shell would offer for a line whose last word is completed; bash takes an equals sign for a word.
ASK = {
    "bash": """
source {script}
COMP_WORDS=({words}); COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1))
_inchworm
printf '%s\\n' "${{COMPREPLY[@]}}"
""",
    "zsh": """
compdef() {{ }}; compset() {{ }}; _files() {{ [[ $1 == -/ ]] && print -l *(/) || print -l *; }}
compadd() {{ print -l -- "${{@:2}}"; }}
source {script}
words=({words}); CURRENT=$#words
_inchworm
""",
    "fish": """
source {script}
complete -C {line}
""",
}


@pytest.fixture(scope="module", params=ASK)
def offers(request, tmp_path_factory):
    """A function that gives what a shell offers for a line, in a folder with a folder `a run` and a file `notes`."""
    shell = request.param
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    folder = tmp_path_factory.mktemp("shell")
    script = folder / "script"
    with open(script, "w") as file, pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.stdout", file)
        assert main(["completion", shell]) == 0
    here = folder / "here"
    (here / "a run").mkdir(parents=True)
    (here / "notes").touch()

    def offers(line):
        *words, last = line.split(" ")
        if shell == "bash":
            words += last.replace("=", " = ").split(" ") if "=" in last else [last]
        else:
            words += [last]
        words = " ".join(word if word == "=" else shlex.quote(word) for word in words)
        command = ASK[shell].format(script=script, words=words, line=shlex.quote(line))
        flags = {"bash": ["--norc"], "zsh": ["-f"], "fish": ["--no-config"]}[shell]
        environment = {"HOME": str(folder), "PATH": "/usr/bin:/bin", "TERM": "dumb"}
        done = subprocess.run([shell, *flags, "-c", command], cwd=here, env=environment, capture_output=True, text=True)
        assert done.stderr == ""
        found = {one.split("\t")[0].rstrip("/") for one in done.stdout.splitlines() if one}
        # zsh and fish leave it to what calls them to pick those that begin like the word.
        begin = last.rpartition("=")[2]
        found = {one.rpartition("=")[2] if "=" in last else one for one in found}
        return {one.replace("\\ ", " ") for one in found if one.startswith(begin)}

    return offers


def test_commands_are_completed(offers):
    assert offers("inchworm ") >= set(COMMANDS)
    assert offers("inchworm re") == {"resume", "record"}


def test_options_are_those_of_the_command_and_of_the_algorithm(offers):
    assert offers("inchworm evaluate x --") >= {"--episodes", "--seed", "--env", "--json"}
    assert "--horizon" not in offers("inchworm evaluate x --")
    assert "--clip-range" in offers("inchworm train CartPole-v1 --")
    for words in ("--algorithm trpo", "--seed 1 --algorithm=trpo --num-envs 2"):
        of_trpo = offers(f"inchworm train CartPole-v1 {words} --" if "=" not in words else f"inchworm train {words} --")
        assert {"--max-kl", "--out", "--no-video", "--horizon"} <= of_trpo
        assert "--clip-range" not in of_trpo


def test_choices_are_completed_after_their_option(offers):
    assert offers("inchworm train --algorithm ") == {"ppo", "trpo", "npg", "a2c", "reinforce"}
    assert offers("inchworm train CartPole-v1 --image-network n") == {"nature"}
    assert offers("inchworm train CartPole-v1 --backend=") >= {"gymnasium", "brax"}
    assert offers("inchworm train CartPole-v1 --log-std ") == {"learned", "state"}
    assert offers("inchworm completion ") == {"bash", "zsh", "fish"}


def test_folders_are_completed_for_runs_files_for_output_and_nothing_for_numbers(offers):
    assert offers("inchworm evaluate ") == {"a run"}
    assert offers("inchworm train CartPole-v1 --out ") == {"a run", "notes"}
    assert offers("inchworm train CartPole-v1 --seed ") == set()


def test_the_help_says_how_to_install_it(capsys):
    with pytest.raises(SystemExit):
        main(["completion", "--help"])
    shown = " ".join(capsys.readouterr().out.split())
    assert "source <(inchworm completion bash)" in shown
    assert "~/.zshrc" in shown
    assert "~/.config/fish/completions/inchworm.fish" in shown
