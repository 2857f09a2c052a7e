"""`inchworm inspect` prints what is in files, all of it verified and none of it run."""

import json

import numpy as np
import pytest

import inchworm as iw
from inchworm.cli.main import main
from inchworm.io.checkpoint import list_checkpoints
from inchworm.io.run_folder import RunFolder


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    settings = iw.PPO(num_envs=2, horizon=16, minibatch_size=16, num_epochs=1, hidden_sizes=(8,))
    out = tmp_path_factory.mktemp("runs")
    return iw.train("CartPole-v1", settings, total_steps=320, out=out, evaluation_episodes=0, progress=False)


def shown(capsys, path):
    assert main(["inspect", str(path)]) == 0
    return [" ".join(row.split()) for row in capsys.readouterr().out.splitlines()]


def test_a_run_shows_its_checkpoints_and_its_policy(run, capsys):
    rows = shown(capsys, run.folder)
    assert rows[0] == "Checkpoints: 1"
    assert rows[1].startswith("000010 320 steps, ")
    assert any(row.startswith("Policy ") for row in rows)
    assert "of CartPole-v1, ppo, seed 0" in rows
    assert "observations Box (4,), float32, [-4.8, -inf, -0.419, -inf] to [4.8, inf, 0.419, inf]" in " ".join(rows)
    assert "actions Discrete, 2 choices" in rows
    assert "hidden_sizes [8]" in rows


def test_a_checkpoint_shows_every_tensor_of_the_training_state(run, capsys):
    rows = shown(capsys, run.folder / "checkpoints" / "000010")
    assert "after 10 iterations, 320 steps" in rows
    assert 'learning_rate "linear:0.0003:0.0"' in rows
    assert "iteration one number, int32, 10" in rows
    weights = np.asarray(run.policy.model.policy.network.layers.weights[0], np.float64)
    told = f"{weights.min():.3g} to {weights.max():.3g}, rms {np.sqrt(np.mean(weights**2)):.3g}"
    assert f"model.policy.network.layers.weights.0 4 x 8, float32, {told}" in rows


def test_a_policy_shows_its_tensors(run, capsys):
    rows = shown(capsys, run.folder / "policy")
    assert "after 320 steps" in rows
    (title,) = [row for row in rows if row.startswith("Parameters and statistics")]
    assert title == "Parameters and statistics: 11 tensors, 116 numbers"


def test_a_damaged_checkpoint_is_listed_as_such_and_not_shown(run, tmp_path, capsys):
    folder = RunFolder(tmp_path)
    folder.config.write_bytes((run.folder / "config.json").read_bytes())
    (source,) = list_checkpoints(RunFolder(run.folder).checkpoints)
    target = folder.checkpoints / source.name
    target.mkdir(parents=True)
    for file in source.iterdir():
        data = file.read_bytes()
        (target / file.name).write_bytes(data[:-1] if file.name == "state.safetensors" else data)
    assert shown(capsys, tmp_path)[1].startswith("000010 damaged: cannot be loaded: state.safetensors has ")
    assert main(["inspect", str(target)]) == 2
    assert "cannot be loaded" in capsys.readouterr().err


def test_a_policy_whose_json_was_changed_is_not_shown(run, tmp_path, capsys):
    for file in (run.folder / "policy").iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    document = (tmp_path / "policy.json").read_text()
    (tmp_path / "policy.json").write_text(document.replace('"seed": 0', '"seed": 1'))
    assert json.loads(document)["seed"] == 0
    assert main(["inspect", str(tmp_path)]) == 2
    assert "does not end in its own SHA-256" in capsys.readouterr().err


def test_a_run_without_anything_yet_and_a_folder_of_something_else(run, tmp_path, capsys):
    assert main(["inspect", str(tmp_path)]) == 2
    assert "is no folder of a checkpoint, a policy or a run" in capsys.readouterr().err
    (tmp_path / "config.json").write_bytes((run.folder / "config.json").read_bytes())
    assert shown(capsys, tmp_path) == ["Checkpoints: none"]
