"""What a run ran on, and what of it tells that a resume is not exact."""

import subprocess
from importlib import metadata

import pytest

from inchworm.io import provenance as module
from inchworm.io.provenance import differing_numerics, provenance

SIMULATORS = ["mujoco", "mujoco-mjx", "envpool", "ale-py", "gymnax", "brax", "playground"]


@pytest.fixture
def installed(monkeypatch):
    """The simulators that are installed, with their versions, as far as can be told."""
    found, version = {}, metadata.version

    def look_up(package):
        if package not in SIMULATORS:
            return version(package)
        if package not in found:
            raise metadata.PackageNotFoundError(package)
        return found[package]

    monkeypatch.setattr(module.metadata, "version", look_up)
    return found


@pytest.mark.parametrize("simulator", SIMULATORS)
def test_another_version_of_a_simulator_is_told(installed, simulator):
    installed[simulator] = "1.0"
    then = provenance()
    assert then["versions"][simulator] == "1.0"
    assert differing_numerics(then, provenance()) == []
    installed[simulator] = "1.1"
    assert differing_numerics(then, provenance()) == [f"{simulator} was '1.0' and is '1.1'"]


def test_a_simulator_that_a_run_cannot_have_used_is_not_told(installed):
    bare = provenance()
    assert not set(SIMULATORS) & set(bare["versions"])
    installed["brax"] = "1.0"
    assert differing_numerics(bare, provenance()) == []
    assert differing_numerics(provenance(), bare) == []


@pytest.mark.parametrize("error", [FileNotFoundError("git"), subprocess.TimeoutExpired("git", 10)], ids=repr)
def test_without_an_answer_from_git_a_run_has_no_commit(monkeypatch, error):
    def refuse(*_, **__):
        raise error

    monkeypatch.setattr(module.subprocess, "run", refuse)
    monkeypatch.setattr(module.Path, "exists", lambda path: True)
    assert module._commit.__wrapped__() is None


def test_what_is_not_known_of_the_rest_is_told():
    now = provenance()
    assert {phrase.split()[0] for phrase in differing_numerics({}, now)} >= {"cpu", "jaxlib", "numpy", "gymnasium"}
