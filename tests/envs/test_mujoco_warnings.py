"""MuJoCo's messages are warnings, each given once and in one process, and nothing is written."""

import os
import subprocess
import sys
import warnings

import gymnasium
import pytest

from inchworm.envs import mujoco_warnings
from inchworm.envs.making import Factory

mujoco = pytest.importorskip("mujoco")

MASSES = '<mujoco><compiler settotalmass="1"/><worldbody><body><geom size="1"/></body></worldbody></mujoco>'


class Loading(gymnasium.Env):
    """Loads a model that MuJoCo has something to say about."""

    def __init__(self):
        mujoco.MjModel.from_xml_string(MASSES)


class Quiet(gymnasium.Env):
    """Says nothing."""


@pytest.fixture(autouse=True)
def untold(monkeypatch, tmp_path):
    """As in a new process, in an empty folder."""
    monkeypatch.setattr(mujoco_warnings, "_told", set())
    monkeypatch.chdir(tmp_path)
    mujoco.set_mju_user_warning(None)
    yield
    assert os.listdir() == []
    mujoco.set_mju_user_warning(None)


def test_a_message_is_a_warning_given_once():
    with pytest.warns(UserWarning, match="^MuJoCo: .*settotalmass") as told:
        list(map(Factory.__call__, [Factory(Loading)] * 3))
    assert [warning.filename for warning in told] == [__file__]


def test_messages_that_differ_in_their_numbers_are_one():
    texts = ["Nan in QACC at DOF 0. Time = 1.25.", "Nan in QACC at DOF 3. Time = -2e-05.", "Another."]
    with pytest.warns(UserWarning, match="^MuJoCo: ") as told:
        list(map(mujoco_warnings._tell, texts))
    assert [str(each.message) for each in told] == ["MuJoCo: Nan in QACC at DOF 0. Time = 1.25.", "MuJoCo: Another."]


def test_a_handler_of_the_user_s_own_stays():
    told = []
    mujoco.set_mju_user_warning(told.append)
    with warnings.catch_warnings(action="error"):
        Factory(Loading)()
    assert len(told) == 1
    assert "settotalmass" in told[0]


def test_where_warnings_are_errors_the_process_lives():
    with warnings.catch_warnings(action="error"), pytest.raises(UserWarning, match=r"^MuJoCo: .*settotalmass"):
        Factory(Loading)()


def test_where_warnings_are_errors_what_comes_up_in_a_step_is_printed(capfd):
    Factory(Quiet)()
    with warnings.catch_warnings(action="error"):
        mujoco.MjModel.from_xml_string(MASSES)
    assert "MuJoCo: " in capfd.readouterr().err


def test_a_process_that_steps_a_share_leaves_to_its_parent_what_comes_up_while_environments_are_made(monkeypatch):
    monkeypatch.setenv("INCHWORM_WORKER", "1")
    with warnings.catch_warnings(action="error"):
        Factory(Loading)()
    with pytest.warns(UserWarning, match="astray"):
        mujoco_warnings._tell("The simulation goes astray.")


SCRIPT = """
import sys
import gymnasium
from inchworm.envs.source import env_source
env_source("CartPole-v1")
assert "mujoco" not in sys.modules
env_source(lambda: gymnasium.make("HalfCheetah-v5"))
assert "mujoco" in sys.modules
env_source("HalfCheetah-v5")
"""


def test_mujoco_is_imported_by_who_uses_it_and_taken_over_then():
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True)
    assert done.stderr.count("settotalmass") == 1
    assert "UserWarning: MuJoCo: " in done.stderr
