"""What shells complete after they have read what `inchworm completion` prints."""

import shlex
import shutil
import subprocess

import pytest

from inchworm.cli.main import COMMANDS, main


def printed(capsys, shell):
    assert main(["completion", shell]) == 0
    return capsys.readouterr().out


@pytest.fixture
def offers(tmp_path, capsys):
    """A function that gives what bash offers for a line, in a folder with a folder `run` and a file `notes`."""
    script = tmp_path / "script"
    script.write_text(printed(capsys, "bash"))
    here = tmp_path / "here"
    (here / "run").mkdir(parents=True)
    (here / "notes").touch()

    def offers(line):
        words = " ".join(map(shlex.quote, line.split(" ")))
        command = f"""source {script}
        COMP_WORDS=({words}); COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1)); COMPREPLY=()
        _shtab_inchworm
        printf '%s\\n' "${{COMPREPLY[@]}}"
        """
        done = subprocess.run(["bash", "--norc", "-c", command], cwd=here, capture_output=True, text=True)
        return set(done.stdout.split())

    return offers


def test_commands_are_completed(offers):
    assert offers("inchworm ") >= set(COMMANDS)
    assert offers("inchworm re") == {"resume", "record"}


def test_options_are_those_of_the_command_and_of_all_algorithms(offers):
    assert offers("inchworm evaluate x --") >= {"--episodes", "--seed", "--env", "--json"}
    assert "--horizon" not in offers("inchworm evaluate x --")
    assert offers("inchworm train CartPole-v1 --") >= {"--clip-range", "--max-kl", "--out", "--no-video", "--horizon"}


def test_choices_are_completed_after_their_option(offers):
    assert offers("inchworm train --algorithm ") == {"ppo", "trpo", "npg", "a2c", "reinforce"}
    assert offers("inchworm train CartPole-v1 --image-network n") == {"nature"}
    assert offers("inchworm train CartPole-v1 --log-std ") >= {"learned", "state"}


def test_folders_are_completed_for_runs_files_for_output_and_nothing_for_numbers(offers):
    assert offers("inchworm evaluate ") == {"run"}
    assert offers("inchworm train CartPole-v1 --out ") == {"run", "notes"}
    assert offers("inchworm train CartPole-v1 --seed ") == set()


@pytest.mark.parametrize("shell", ["zsh", "tcsh"])
def test_other_shells_can_read_what_is_printed(shell, tmp_path, capsys):
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    script = tmp_path / "script"
    script.write_text(printed(capsys, shell))
    assert subprocess.run([shell, "-n", script], capture_output=True, text=True).stderr == ""


def test_the_help_says_how_to_install_it(capsys):
    with pytest.raises(SystemExit):
        main(["completion", "--help"])
    shown = " ".join(capsys.readouterr().out.split())
    assert "source <(inchworm completion bash)" in shown
    assert "~/.zfunc/_inchworm" in shown
