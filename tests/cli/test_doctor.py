"""`inchworm doctor` names what ails runs that were made sick, says nothing of those that are well, and looks at the
installation."""

import importlib.util
import json
import subprocess
import sys
from importlib import metadata

import jax
import pytest
from sick_runs import HEALTHY, SICK, SMALL, Run, Slow, Task

import inchworm as iw
from inchworm.cli import installation
from inchworm.cli.main import main
from inchworm.diagnosis import diagnose
from inchworm.io.run_folder import RunFolder, write_json


def trained(run: Run, out):
    how = {"evaluation_episodes": 0, "progress": False, "out": out} | run.how
    return iw.train(run.env, run.algorithm, total_steps=run.steps, **how)


# Each compiles a program of its own. tests/test_diagnosis.py holds every rule against rows made up for it.
QUICK = ("no rewards", "narrow bounds", "a task that changes")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in SICK]
)
def test_the_sickness_is_named(name, tmp_path):
    sick = SICK[name]()
    run = trained(sick, tmp_path)
    assert sick.finding in [finding.where for finding in diagnose(run.config, run.metrics())]


@pytest.mark.slow
@pytest.mark.parametrize("name", HEALTHY)
def test_nothing_is_found_in_a_run_that_is_well(name, tmp_path):
    run = trained(HEALTHY[name], tmp_path)
    assert diagnose(run.config, run.metrics()) == []


@pytest.fixture(scope="module")
def well(tmp_path_factory):
    return trained(Run(Task, SMALL, 8000, None), tmp_path_factory.mktemp("runs")).folder


def test_a_run_that_is_well_exits_with_0(well, capsys):
    assert main(["doctor", str(well)]) == 0
    rows = capsys.readouterr().out.splitlines()
    assert rows[0] == "Task"
    told = dict(row.split(maxsplit=1) for row in rows[1 : rows.index("")])
    assert told["algorithm"] == "ppo, 4 environments, seed 0"
    assert told["done"] == "8,192 of 8,000 steps, 32 iterations"
    assert told["state"] == "stopped by total_steps"
    assert "over the last 100 of" in told["return"]
    assert "% environment" in told["time"]
    assert rows[-1] == "What is wrong: none"


def test_a_sick_run_exits_with_2_and_is_told_what_to_try(tmp_path, capsys):
    run = trained(SICK["no rewards"](), tmp_path)
    assert main(["doctor", str(run.folder), "--json"]) == 2
    findings = json.loads(capsys.readouterr().out)["findings"]
    assert findings[0]["where"] == "advantage/std"
    assert findings[0]["fix"].startswith("See that the reward")
    assert main(["doctor", str(run.folder)]) == 2
    assert "What is wrong: " in capsys.readouterr().out


def test_an_environment_that_takes_all_the_time_is_told_how_it_would_go_faster(tmp_path, capsys):
    run = trained(Run(Slow, SMALL, 2600, None), tmp_path)
    main(["doctor", str(run.folder)])
    told = " ".join(capsys.readouterr().out.split())
    assert "% environment, " in told
    assert "--env-processes steps environments on several cores" in told


def test_a_run_that_goes_on_and_one_that_was_broken_off_are_told_apart(well, tmp_path, capsys):
    folder = RunFolder(tmp_path)
    for name in ("config.json", "metrics.jsonl"):
        (tmp_path / name).write_bytes((well / name).read_bytes())
    assert main(["doctor", str(tmp_path)]) == 0
    assert "was broken off; `inchworm resume` goes on with it" in capsys.readouterr().out
    with folder.lock():
        assert folder.is_held()
        assert main(["doctor", str(tmp_path)]) == 0
    told = capsys.readouterr().out
    assert "is being trained" in told
    assert "now" in told
    assert not folder.is_held()


def test_a_run_that_has_hardly_begun_is_told_so(well, tmp_path, capsys):
    (tmp_path / "config.json").write_bytes((well / "config.json").read_bytes())
    assert main(["doctor", str(tmp_path)]) == 0
    assert "0 of 8,000 steps, 0 iterations; fewer than 10 say nothing" in capsys.readouterr().out


@pytest.mark.parametrize("contents", [{}, {"env": 5}, {"env": "CartPole-v1", "algorithm": "sac", "settings": {}}])
def test_a_folder_that_is_no_runs_is_refused(contents, tmp_path, capsys):
    if contents:
        write_json(tmp_path / "config.json", contents)
    assert main(["doctor", str(tmp_path)]) == 2
    assert capsys.readouterr().err.startswith("error: ")


def test_without_a_run_the_installation_is_looked_at(monkeypatch, capsys):
    monkeypatch.setattr(installation, "PICTURE_OF", {"pygame": "CartPole-v1"})
    assert main(["doctor"]) == 0
    told = capsys.readouterr().out
    assert f"jax               {jax.__version__}" in told
    assert "1 x cpu: cpu" in told
    assert "1 result\n" in told
    assert "CartPole-v1 draws 600 x 400 pixels" in told
    assert told.endswith("What is wrong: none\n")


def test_extras_that_are_not_installed_are_named_with_the_command_that_installs_them(monkeypatch):
    facts, _ = installation.packages()
    assert facts["extra classic"] == "installed"
    assert not any(name.endswith(" dev") for name in facts)
    real = metadata.requires

    def without(name):
        if name == "pygame-ce":
            raise metadata.PackageNotFoundError(name)
        return real(name)

    monkeypatch.setattr(metadata, "requires", without)
    facts, _ = installation.packages()
    assert facts["extra classic"] == 'not installed: pip install "inchworm[classic]"'
    assert facts["extra video"] == "installed"


def test_a_renderer_that_fails_is_found_with_what_it_said(monkeypatch):
    monkeypatch.setattr(installation, "PICTURE_OF", {"pygame": "NoSuchTask-v0", "no_such_package": "CartPole-v1"})
    facts, (finding,) = installation.drawing()
    assert facts == {"pygame": "draws nothing", "no_such_package": "not installed"}
    assert "NoSuchTask" in finding.problem


def test_a_renderer_that_hangs_is_found(monkeypatch):
    monkeypatch.setattr(installation, "PICTURE_OF", {"pygame": "CartPole-v1"})
    monkeypatch.setattr(installation, "RENDER_SECONDS", 0.01)
    _, (finding,) = installation.drawing()
    assert finding.problem == "CartPole-v1 cannot be drawn: no picture after 0.01 seconds"


def test_numbers_that_are_wrong_are_found(monkeypatch):
    runs = iter("ab")
    monkeypatch.setattr(
        installation, "train", lambda *_, **__: iw.Run(None, None, None, {"parameters_sha256": next(runs)})
    )
    real = jax.jit
    wrong = {jax.numpy.matmul: lambda a, b: a @ b * 1.001, jax.numpy.tanh: lambda x: x}
    monkeypatch.setattr(jax, "jit", lambda function: real(wrong.get(function, function)))
    facts, findings = installation.numbers()
    assert [finding.where for finding in findings] == ["matrix products", "tanh", "training"]
    assert facts["training"].endswith("2 result")


def test_what_is_broken_in_the_installation_ends_no_other_look_at_it(monkeypatch, capsys):
    def broken():
        raise RuntimeError("no such device")

    monkeypatch.setattr(installation, "devices", broken)
    monkeypatch.setattr(installation, "numbers", lambda: ({"matrix products": "right"}, []))
    monkeypatch.setattr(installation, "PICTURE_OF", {})
    assert main(["doctor"]) == 2
    told = " ".join(capsys.readouterr().out.split())
    assert "computes on cannot be told: RuntimeError: no such device" in told
    assert "matrix products right" in told


def test_64_bit_numbers_that_are_switched_on_are_found():
    code = "from inchworm.cli import installation; print(*installation.devices()[1])"
    environment = {"JAX_ENABLE_X64": "1", "PATH": "", "PYTHONPATH": ":".join(filter(None, sys.path))}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("JAX_ENABLE_X64: 64-bit numbers are switched on")


def test_the_package_that_draws_is_one_that_an_extra_installs():
    assert all(importlib.util.find_spec(name) for name in installation.PICTURE_OF)
