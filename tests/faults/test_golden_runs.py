"""Runs that released versions have written are loaded to the same bits, and can go on."""

import importlib.util
import json
import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest

import inchworm as iw
from inchworm.errors import CheckpointError
from inchworm.io.checkpoint import list_checkpoints, load_checkpoint
from inchworm.io.files import sealed
from inchworm.io.run_folder import RunFolder
from inchworm.numerics.tree import fingerprint

GOLDEN = Path(__file__).parents[1] / "golden"
RUNS = sorted(path.parent for path in GOLDEN.glob("*/*/expected.json"))
specification = importlib.util.spec_from_file_location("golden_write", GOLDEN / "write.py")
golden = importlib.util.module_from_spec(specification)
specification.loader.exec_module(golden)


def name(path):
    return f"{path.parent.name} {path.name}"


def test_every_kind_of_run_is_there():
    assert {path.name for path in RUNS} == set(golden.RUNS)


@pytest.mark.fault("RF20", outcome="survived")
@pytest.mark.parametrize("path", RUNS, ids=name)
def test_a_policy_of_a_released_version_has_its_parameters_and_acts_as_it_did(path):
    expected = json.loads((path / "expected.json").read_text())
    run = iw.load(path)
    assert fingerprint(run.policy.model) == expected["parameters"] == run.summary["parameters_sha256"]
    assert np.allclose(golden.acts(run.policy), expected["actions"], rtol=1e-5, atol=1e-6)


@pytest.mark.fault("RF20", outcome="survived")
@pytest.mark.parametrize("path", RUNS, ids=name)
def test_a_run_of_a_released_version_goes_on(path, tmp_path):
    folder = shutil.copytree(path, tmp_path / "run")
    with warnings.catch_warnings(action="ignore"):  # where it was made is not known
        run = iw.resume(folder, evaluation_episodes=0, progress=False)
    assert run.summary["iterations"] == 10
    rows = run.metrics()
    assert [row["iteration"] for row in rows] == list(range(1, 11))
    assert [row["env_steps"] for row in rows[:6]] == [row["env_steps"] for row in iw.load(path).metrics()]


@pytest.mark.fault("RF20")
def test_a_checkpoint_of_a_later_version_is_refused_and_the_versions_are_named(tmp_path):
    folder = shutil.copytree(RUNS[0], tmp_path / "run")
    (checkpoint,) = list_checkpoints(RunFolder(folder).checkpoints)
    manifest = json.loads((checkpoint / "manifest.json").read_text())
    del manifest["sha256"]
    body = json.dumps(manifest | {"format": 2}).encode().removesuffix(b"}")
    (checkpoint / "manifest.json").write_bytes(sealed(body))
    with pytest.raises(CheckpointError, match="its format version is 2, this version of inchworm reads 1"):
        load_checkpoint(checkpoint)
