"""What lies in a run's folder may be cut short, damaged, or made by somebody else: nothing outside is touched."""

import errno
import itertools
import json
import os
import shutil
import warnings

import numpy as np
import pytest
from injections import Disk

import inchworm as iw
from inchworm.cli.main import main
from inchworm.errors import CheckpointError, ConfigError, RunFolderError
from inchworm.io import policy_file
from inchworm.io.checkpoint import list_checkpoints, prune_checkpoints
from inchworm.io.loggers import JsonLines, read_metrics
from inchworm.io.run_folder import RunFolder, read_json
from inchworm.numerics.tree import fingerprint

SMALL = iw.PPO(num_envs=2, horizon=16, minibatch_size=16, num_epochs=1, hidden_sizes=(8,))
QUIET = {"evaluation_episodes": 0, "progress": False}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    out = tmp_path_factory.mktemp("trained")
    return iw.train("CartPole-v1", SMALL, total_steps=320, out=out, on_iteration=lambda r: r.iteration == 3, **QUIET)


@pytest.fixture
def folder(trained, tmp_path):
    """A copy of a run that was stopped in the middle."""
    return shutil.copytree(trained.folder, tmp_path / "run")


def everything_in(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


FILES = ["config.json", "provenance.json", "metrics.jsonl", "summary.json", "curve.png", ".lock", "video.mp4"]


@pytest.mark.fault("RB3")
@pytest.mark.parametrize("name", [*FILES, "checkpoints", "policy"])
def test_nothing_is_read_written_emptied_or_deleted_through_a_link(folder, tmp_path, name):
    outside = tmp_path / "outside"
    outside.mkdir()
    target = outside / name
    if (folder / name).exists():
        shutil.move(folder / name, target)
    else:
        target.write_text("mine")
    (folder / name).symlink_to(target)
    before = everything_in(outside)
    for words in (["resume", folder], ["evaluate", folder], ["record", folder], ["plot", folder]):
        assert main([*map(str, words)]) == 2
    with pytest.raises(RunFolderError, match=rf"has a {name} that is a link"):
        iw.resume(folder, **QUIET)
    assert everything_in(outside) == before


@pytest.mark.fault("RB3")
@pytest.mark.parametrize("name", FILES)
def test_a_pipe_in_place_of_a_file_hangs_nothing(folder, name):
    (folder / name).unlink(missing_ok=True)
    os.mkfifo(folder / name)
    with pytest.raises(RunFolderError, match=rf"{name} that is no regular file|no config\.json"):
        iw.load(folder)


def test_a_folder_that_holds_more_than_a_checkpoint_is_never_deleted(folder):
    checkpoints = RunFolder(folder).checkpoints
    for name in ("000001", ".tmp-0123456789abcdef", "000002.replaced-0123"):
        (checkpoints / name).mkdir()
        (checkpoints / name / "thesis.tex").write_text("mine")
    (checkpoints / "000000").mkdir()
    os.utime(checkpoints / "000000", (0, 0))  # what was written last is kept
    prune_checkpoints(checkpoints, 1, None)
    kept = {path.parent.name for path in checkpoints.rglob("thesis.tex")}
    assert kept == {"000001", ".tmp-0123456789abcdef", "000002"}, "one set aside gets its name back"
    assert not (checkpoints / "000000").exists()


@pytest.mark.fault("RB3")
@pytest.mark.parametrize("size", [17 << 20, 60 << 30])
def test_a_huge_file_is_refused_without_reading_it(folder, size):
    for name in ("config.json", "summary.json"):
        os.truncate(folder / name, size)
        with pytest.raises(CheckpointError, match="bytes, not at most"):
            read_json(folder / name)
    os.truncate(folder / "metrics.jsonl", 60 << 30)
    with pytest.raises(CheckpointError, match="at most"):
        read_metrics(folder / "metrics.jsonl")


def test_rows_of_metrics_that_no_run_writes_are_passed_over(folder):
    good = json.dumps({"iteration": 4, "env_steps": 128, "episode/return_100": 5.0})
    bad = [
        "[" * 100_000,
        '{"iteration": 5, "env_steps": ' + "1" * 400 + "}",
        '{"iteration": 1e3, "env_steps": 2}',
        "\0",
    ]
    odd = '{"iteration": 6, "env_steps": 192, "episode/return_100": NaN, "x": [1], "y": 1' + "0" * 400 + "}"
    with (folder / "metrics.jsonl").open("a") as file:
        file.write("\n".join([good, *bad, odd, good[:20]]))
    rows = read_metrics(folder / "metrics.jsonl")
    assert [row["iteration"] for row in rows] == [1, 2, 3, 4, 6]
    assert rows[-1] == {"iteration": 6, "env_steps": 192, "episode/return_100": None}
    assert main(["plot", str(folder)]) == 0


@pytest.mark.fault("RF17", outcome="survived")
def test_a_row_that_a_full_disk_did_not_take_is_written_before_the_next(tmp_path, monkeypatch):
    path = tmp_path / "metrics.jsonl"
    lines = JsonLines(path, 0)
    rows = [{"iteration": k, "env_steps": k} for k in range(1, 6)]
    real, room = os.write, [10**6]

    def write(descriptor, data):
        if not room[0]:
            raise OSError(errno.ENOSPC, "No space left on device")
        count = real(descriptor, bytes(data)[: room[0]])
        room[0] -= count
        return count

    lines.write(rows[0])
    monkeypatch.setattr(os, "write", write)
    room[0] = 9  # a part of the second
    for row in rows[1:3]:
        with pytest.raises(OSError, match="No space"):
            lines.write(row)
    assert read_metrics(path) == rows[:1]
    assert path.read_bytes().endswith(b"\n"), "no half of a row"
    room[0] = 10**6
    lines.write(rows[3])
    lines.close()
    assert read_metrics(path) == rows[:4]


def test_metrics_are_cut_back_at_a_resume_by_one_rename(folder, monkeypatch):
    path, before = folder / "metrics.jsonl", read_metrics(folder / "metrics.jsonl")

    def killed(*names):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        JsonLines(path, 2)
    assert read_metrics(path) == before
    monkeypatch.undo()
    JsonLines(path, 2).close()
    assert read_metrics(path) == before[:2]


def test_a_policy_that_takes_the_place_of_another_is_one_of_the_two_at_every_instant(trained, tmp_path, monkeypatch):
    first = trained.policy
    second = iw.train("CartPole-v1", SMALL, total_steps=64, seed=1, out=tmp_path / "second", **QUIET).policy
    values = {fingerprint(policy.model) for policy in (first, second)}
    assert len(values) == 2
    calls, real = 0, {name: getattr(os, name) for name in ("replace", "fsync", "write")}
    seen = set()
    for stop in range(100):
        iw.save_policy(tmp_path / "policy", first)
        count = 0

        def counted(name, stop=stop):
            def call(*arguments):
                nonlocal count
                if count == stop:
                    raise KeyboardInterrupt
                count += 1
                return real[name](*arguments)

            return call

        with monkeypatch.context() as patch:
            for name in real:
                patch.setattr(os, name, counted(name))
            try:
                iw.save_policy(tmp_path / "policy", second)
            except KeyboardInterrupt:
                calls += 1
        seen.add(fingerprint(iw.load_policy(tmp_path / "policy").model))
        if count < stop:
            break
    assert calls >= 5
    assert seen == values


@pytest.mark.fault("RB3")
@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda text: text.replace('"seed": 0', '"seed": 1'), "cut or damaged"),
        (lambda text: text.replace('"tanh"', '"relu"'), "cut or damaged"),
        (lambda text: text[:-1], "good JSON"),
        (lambda text: text.replace('"format": 2', '"format": 1'), "format version is 1"),
        (lambda text: text.replace('"format": 2', '"format": 3'), "format version is 3"),
    ],
)
def test_a_policy_s_json_is_sealed(trained, tmp_path, change, words):
    policy = shutil.copytree(trained.folder / "policy", tmp_path / "policy")
    text = (policy / "policy.json").read_text()
    assert change(text) != text
    (policy / "policy.json").write_text(change(text))
    with pytest.raises(CheckpointError, match=words):
        iw.load_policy(policy)


def forged(policy, tmp_path, **changes):
    """A policy whose tensors are others, its JSON sealed anew."""
    folder = tmp_path / "policy"
    iw.save_policy(folder, policy)
    with pytest.MonkeyPatch.context() as patch:
        real = policy_file.to_arrays
        patch.setattr(policy_file, "to_arrays", lambda tree: real(tree) | changes)
        iw.save_policy(folder, policy)
    return folder


@pytest.mark.fault("RB3")
@pytest.mark.parametrize(
    ("array", "words"),
    [
        (np.full((8, 2), np.nan, np.float32), "NaN or infinity"),
        (np.full((8, 2), np.inf, np.float32), "NaN or infinity"),
        (np.zeros((8, 2), np.float64), "float64"),
        (np.zeros((8, 3), np.float32), r"\(8, 3\)"),
    ],
)
def test_tensors_that_are_no_policy_s_are_refused(trained, tmp_path, array, words):
    name = "model.policy.network.layers.weights.1"
    with pytest.raises(CheckpointError, match=words):
        iw.load_policy(forged(trained.policy, tmp_path, **{name: array}))


@pytest.mark.parametrize("every", [5, pytest.param(1, marks=pytest.mark.slow)])
def test_a_run_killed_at_its_very_end_is_finished_by_a_resume(every, folder, faults):
    """At every call of the file system after the last checkpoint, with what an earlier stop has left behind."""
    how = QUIET | {"evaluation_episodes": 1}
    whole = iw.resume(shutil.copytree(folder, folder.with_name("whole")), **how)
    crashed = 0
    for stop in range(0, 1000, every):
        again = shutil.copytree(folder, folder.with_name(f"again-{stop}"))
        last, ending = again / "checkpoints" / "000010", itertools.count()

        def fails(_, last=last, ending=ending, stop=stop):
            return Killed() if last.is_dir() and next(ending) >= stop else 0

        with Disk(again, fails):
            try:
                iw.resume(again, **how)
                break
            except Killed:
                crashed += 1
        with warnings.catch_warnings(action="ignore"):
            if RunFolder(again).is_complete(320):
                with pytest.raises(ConfigError, match="has finished"):
                    iw.resume(again, **QUIET)
                run = iw.load(again)
            else:
                run = iw.resume(again, **how)
        for key in ("parameters_sha256", "evaluation_deterministic", "env_steps", "complete"):
            assert run.summary[key] == whole.summary[key], (stop, key)
        assert iw.load(again).policy.info["env_steps"] == 320
        faults.count("RF8", survived=1)
    assert crashed >= 5
    assert list_checkpoints(RunFolder(folder).checkpoints)


class Killed(BaseException):
    """Nothing catches it, as nothing runs after a kill."""
