"""`make train` and `make test` set themselves up with whichever Python is there."""

import subprocess
from pathlib import Path

import pytest

SET_UP = Path(__file__).resolve().parents[1] / ".ci" / "venv"

pytestmark = pytest.mark.skipif(not SET_UP.exists(), reason="only a checkout has what sets it up")


def python(path: Path, identity: str, status: int = 0) -> str:
    """A program that answers the questions asked of a Python and makes no more than the folder of an environment."""
    path.write_text(
        f"#!/bin/sh\nif [ \"$1\" = -c ]; then echo '{identity}'; exit {status}; fi\n"
        f'mkdir -p "$3/bin" && cp "$0" "$3/bin/python" && touch "$3/pyvenv.cfg"\n'
    )
    path.chmod(0o755)
    return str(path)


def set_up(folder: Path, *candidates: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([SET_UP, folder, *candidates], capture_output=True, text=True)


def test_an_environment_is_kept_until_the_python_changes(tmp_path):
    venv = tmp_path / "venv"
    one, other = python(tmp_path / "one", "3.11.7 /usr"), python(tmp_path / "other", "3.12.1 /usr")
    assert set_up(venv, one).returncode == 0
    assert set_up(venv, one).returncode == 0
    (venv / "installed").touch()
    made = (venv / ".python").stat().st_mtime_ns
    set_up(venv, one)
    assert (venv / "installed").exists()
    assert (venv / ".python").stat().st_mtime_ns == made
    set_up(venv, other)
    assert not (venv / "installed").exists()
    assert (venv / ".python").read_text() == "3.12.1 /usr\n"


def test_an_environment_whose_python_is_gone_is_made_anew(tmp_path):
    venv, one = tmp_path / "venv", python(tmp_path / "one", "3.11.7 /usr")
    set_up(venv, one)
    (venv / "bin" / "python").unlink()
    assert set_up(venv, one).returncode == 0
    assert (venv / "bin" / "python").exists()


def test_the_first_python_that_will_do_is_taken(tmp_path):
    old = python(tmp_path / "old", "3.10.13", 1)
    bare = python(tmp_path / "bare", "3.11.2 without its modules venv and ensurepip", 1)
    good = python(tmp_path / "good", "3.12.1 /usr")
    assert set_up(tmp_path / "venv", str(tmp_path / "absent"), old, bare, good).returncode == 0
    assert (tmp_path / "venv" / ".python").read_text() == "3.12.1 /usr\n"


def test_where_no_python_will_do_one_paragraph_says_so(tmp_path):
    old = python(tmp_path / "old", "3.10.13", 1)
    bare = python(tmp_path / "bare", "3.11.2 without its modules venv and ensurepip", 1)
    done = set_up(tmp_path / "venv", old, str(tmp_path / "absent"), bare)
    assert done.returncode == 1
    assert done.stderr == (
        "error: Inchworm needs Python 3.11 or newer with its modules venv and ensurepip, and found "
        f"{old} (3.10.13), {bare} (3.11.2 without its modules venv and ensurepip). "
        "Install one (Debian and Ubuntu: apt install python3 python3-venv), "
        "or name one: make PYTHON=/path/to/python3 ...\n"
    )
    assert not (tmp_path / "venv").exists()


def test_where_there_is_no_python_the_same_paragraph_says_so(tmp_path):
    assert "and found none. Install one" in set_up(tmp_path / "venv", str(tmp_path / "absent")).stderr


def test_a_folder_that_is_no_environment_is_left_as_it_is(tmp_path):
    (tmp_path / "venv").mkdir()
    (tmp_path / "venv" / "mine").touch()
    done = set_up(tmp_path / "venv", python(tmp_path / "one", "3.11.7 /usr"))
    assert done.returncode == 1
    assert done.stderr == f"error: {tmp_path / 'venv'} is no virtual environment. Move it away.\n"
    assert (tmp_path / "venv" / "mine").exists()
