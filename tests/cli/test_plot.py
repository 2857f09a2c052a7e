"""What of the folders that are named is drawn, and how."""

import json

import pytest

from inchworm.cli import plot
from inchworm.cli.main import main
from inchworm.errors import RunFolderError
from inchworm.io.run_folder import RunFolder, open_run_folder, write_json


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Three runs, the group of two of them, and a folder that is neither."""
    for index, name in enumerate(("a-seed0", "a-seed1", "b")):
        run = tmp_path / name
        run.mkdir()
        (run / "config.json").write_text('{"env": "CartPole-v1"}')
        row = {"iteration": 1, "env_steps": 100, "episode/return": 1.0, "episode/return_100": float(index)}
        (run / "metrics.jsonl").write_text(json.dumps(row))
    (tmp_path / "a-seeds").mkdir()
    summary = {"env": "CartPole-v1", "runs": ["a-seed0", "a-seed1"]}
    (tmp_path / "a-seeds" / "summary.json").write_text(json.dumps(summary))
    (tmp_path / "notes").mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def drawn(monkeypatch):
    """What was drawn: the labels of single runs and of groups with the number of theirs, and where."""
    found = []

    def plot_curves(curves, path, title, groups=()):
        found.append(([label for label, _ in curves], {label: len(runs) for label, runs in groups}, str(path), title))

    monkeypatch.setattr(plot, "plot_curves", plot_curves)
    return found


def test_a_folder_of_several_seeds_is_no_run_and_names_those_beside_it(tmp_path):
    group = tmp_path / "a-seeds"
    group.mkdir()
    write_json(RunFolder(group).summary, {"runs": ["a-seed0", "a-seed1"]})
    with pytest.raises(RunFolderError, match=r"is that of several seeds together\. .*: a-seed0, a-seed1\."):
        open_run_folder(group)
    write_json(RunFolder(group).summary, {"runs": ["..", "a-seed1"]})
    with pytest.raises(RunFolderError, match="is not a run's folder"):
        open_run_folder(group)


def test_of_all_folders_runs_and_groups_are_drawn_and_the_others_warned_of(folder, drawn, capsys):
    assert main(["plot", *sorted(path.name for path in folder.iterdir())]) == 0
    assert drawn == [(["b"], {"a-seeds": 2}, "curve.png", "CartPole-v1")]
    captured = capsys.readouterr()
    assert captured.out == "  curve  curve.png\n"
    assert captured.err.startswith("warning: A folder is passed over: run = notes: is not a run's folder")
    assert captured.err.count("\n") == 1


def test_a_group_that_is_alone_is_drawn_into_its_own_folder(folder, drawn):
    assert main(["plot", "a-seeds"]) == 0
    assert drawn == [([], {"a-seeds": 2}, "a-seeds/curve.png", "CartPole-v1")]


def test_where_nothing_is_left_that_is_an_error(folder, drawn, capsys):
    assert main(["plot", "notes", "nowhere"]) == 2
    assert capsys.readouterr().err.startswith("error: run = notes: is not a run's folder")
    assert not drawn


@pytest.mark.parametrize(
    "summary", ['{"runs": ["../b"]}', '{"runs": 3}', '{"runs": []}', "{}", "{", '{"runs": ["gone"]}']
)
def test_a_group_that_names_no_runs_is_passed_over(folder, drawn, capsys, summary):
    (folder / "a-seeds" / "summary.json").write_text(summary)
    assert main(["plot", "a-seeds", "b"]) == 0
    assert drawn == [(["b"], {}, "b/curve.png", "CartPole-v1")]
    assert "warning: A folder is passed over" in capsys.readouterr().err


def test_the_picture_is_there(folder):
    assert main(["plot", "a-seeds", "b", "--out", "both.svg"]) == 0
    assert (folder / "both.svg").read_text().startswith("<?xml")
