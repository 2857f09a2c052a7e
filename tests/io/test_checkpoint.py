"""Checkpoints survive crashes, full disks and hostile files."""

import errno
import hashlib
import json
import os
import pickle
import re
import shutil
import signal
import stat
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

from fault_table import Faults
from inchworm.errors import CheckpointError
from inchworm.io import checkpoint as module
from inchworm.io.checkpoint import (
    Checkpoint,
    list_checkpoints,
    load_checkpoint,
    load_newest,
    prune_checkpoints,
    save_checkpoint,
)
from mutator import mutated, mutated_tensors, tensors

FILES = ["manifest.json", "state.safetensors", "collector.safetensors", "collector.json"]
DTYPES = [
    "bool",
    "uint8",
    "uint16",
    "uint32",
    "uint64",
    "int8",
    "int16",
    "int32",
    "int64",
    "float16",
    "float32",
    "float64",
]


@pytest.fixture(autouse=True)
def no_waiting_for_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda descriptor: os.fstat(descriptor) and None)


def make(iteration: int = 1, mark: float = 0.5) -> Checkpoint:
    return Checkpoint(
        iteration=iteration,
        env_steps=2048 * iteration,
        state={
            "policy.layers.0.weight": np.array([[mark, -0.0], [1e-42, 3.4e38]], np.float32),
            "key": np.array([2**32 - 1, 7], np.uint32),
            "count": np.array(12, np.int32),
        },
        collector_arrays={"obs": np.array([np.nan, np.inf]), "first": np.array([True, False])},
        collector={"generator": str(2**127), "actions": [[1, 2], []]},
        meta={"algorithm": "ppo", "environment": "CartPole-v1"},
    )


def content(checkpoint: Checkpoint) -> tuple:
    """Equal for checkpoints that are equal bit for bit, NaN included."""
    groups = (checkpoint.state, checkpoint.collector_arrays)
    arrays = [
        [(name, array.dtype.str, array.shape, array.tobytes()) for name, array in group.items()] for group in groups
    ]
    return checkpoint.iteration, checkpoint.env_steps, arrays, repr(checkpoint.collector), repr(checkpoint.meta)


def assert_same(a: Checkpoint, b: Checkpoint) -> None:
    assert content(a) == content(b)


def is_(a: Checkpoint, b: Checkpoint) -> bool:
    return content(a) == content(b)


def newest(folder: Path) -> Checkpoint:
    return load_newest(folder, lambda path, error: None)[1]


def no_skip(path: Path, error: CheckpointError) -> None:
    raise AssertionError(f"{path} was skipped: {error}")


SYSTEM_CALLS = ("open", "mkdir", "write", "fsync", "close", "rename", "unlink", "rmdir")


REAL_OPEN, REAL_CLOSE = os.open, os.close


class PowerCut(BaseException):
    """Nothing catches it, as nothing runs after a power cut."""


@contextmanager
def watched(
    before: Callable[..., None], after: Callable[..., None] = lambda *_: None, calls=SYSTEM_CALLS
) -> Iterator[None]:
    """Calls `before(name, arguments)` and `after(name, arguments, result)` around the operating system's functions."""

    def wrap(name: str) -> Callable:
        real = getattr(os, name)

        def call(*arguments, **keywords):
            try:
                before(name, arguments)
            except BaseException:
                if name == "close":  # or hundreds of simulated crashes use up this process's descriptors
                    real(*arguments)
                raise
            result = real(*arguments, **keywords)
            after(name, arguments, result)
            return result

        return call

    with pytest.MonkeyPatch.context() as patch:
        for name in calls:
            patch.setattr(os, name, wrap(name))
        yield


def stop_at(k: int) -> Callable[..., None]:
    calls = iter(range(10**9))

    def before(name: str, arguments: tuple) -> None:
        if next(calls) >= k:
            raise PowerCut

    return before


@pytest.mark.parametrize("shape", [(), (0,), (0, 3), (1,), (2, 3), (2, 1, 3)])
def test_every_dtype_comes_back_bit_for_bit(tmp_path: Path, shape: tuple[int, ...]) -> None:
    rng = np.random.default_rng(0)
    raw = {d: np.frombuffer(rng.bytes(8 * int(np.prod(shape)) or 8), np.uint8) for d in DTYPES}
    arrays = {}
    for dtype, bytes_ in raw.items():
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        data = bytes_[:size] & 1 if dtype == "bool" else bytes_[:size]
        arrays[dtype] = np.frombuffer(data.tobytes(), dtype).reshape(shape)
    state = {f"a.{d}": np.where(np.isfinite(v), v, -0.0).astype(d) if d[0] == "f" else v for d, v in arrays.items()}
    saved = replace(make(), state=state, collector_arrays=arrays)
    assert_same(saved, load_checkpoint(save_checkpoint(tmp_path, saved)))


def test_strided_transposed_and_big_endian_arrays_keep_their_values(tmp_path: Path) -> None:
    base = np.arange(24, dtype=np.float32).reshape(4, 6)
    state = {
        "t": base.T,
        "strided": base[::-2, ::3],
        "big": base.astype(">f4"),
        "broadcast": np.broadcast_to(base[0], (3, 6)),
    }
    loaded = load_checkpoint(save_checkpoint(tmp_path, replace(make(), state=state))).state
    for name, array in state.items():
        np.testing.assert_array_equal(loaded[name], array)
        assert loaded[name].dtype == np.float32


def test_loaded_arrays_can_be_written_to(tmp_path: Path) -> None:
    for array in load_checkpoint(save_checkpoint(tmp_path, make())).state.values():
        array[...] = 0


def test_plain_safetensors_reads_the_files(tmp_path: Path) -> None:
    path = save_checkpoint(tmp_path, make())
    state = safetensors.numpy.load_file(path / "state.safetensors")
    assert {name: array.tobytes() for name, array in state.items()} == {n: a.tobytes() for n, a in make().state.items()}
    assert set(safetensors.numpy.load_file(path / "collector.safetensors")) == {"obs", "first"}


def test_a_checkpoint_without_any_array_comes_back(tmp_path: Path) -> None:
    saved = Checkpoint(0, 0, {}, {}, {}, {})
    assert_same(saved, load_checkpoint(save_checkpoint(tmp_path, saved)))


def test_large_counts_give_longer_names_that_sort_by_number(tmp_path: Path) -> None:
    for iteration in (1_000_000, 999_999, 7):
        save_checkpoint(tmp_path, replace(make(iteration), env_steps=2**70))
    assert [path.name for path in list_checkpoints(tmp_path)] == ["000007", "999999", "1000000"]
    assert newest(tmp_path).env_steps == 2**70


def test_any_json_comes_back(tmp_path: Path) -> None:
    numbers = [0, -1, 2**127, -(2**300), 0.1, -0.0, 5e-324, 1.7976931348623157e308, float("inf"), float("-inf")]
    text = {"": "\0", "ü\u2028": "\U0001f40d\ud800", '"\\"[{': "]}" * 99, "\\": '\\\\"'}
    value: dict = {"numbers": numbers, "text": text, "flags": [None, True, False], "empty": [[], {}, [[]]]}
    for _ in range(28):
        value = {"inner": [value]} if len(str(value)) % 2 else {"inner": value}
    saved = replace(make(), collector=value, meta=text | {"numbers": numbers})
    assert_same(saved, load_checkpoint(save_checkpoint(tmp_path, saved)))


def test_the_manifest_describes_the_checkpoint(tmp_path: Path) -> None:
    path = save_checkpoint(tmp_path, make(3))
    manifest = json.loads((path / "manifest.json").read_text())
    assert (manifest["format"], manifest["iteration"], manifest["env_steps"]) == (1, 3, 6144)
    assert manifest["meta"] == make().meta
    assert manifest["tensors"]["state.safetensors"]["key"] == {"dtype": "uint32", "shape": [2]}
    for name, listed in manifest["files"].items():
        data = (path / name).read_bytes()
        assert listed == {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data)}


DEEP: dict = {}
for _ in range(70):
    DEEP = {"a": DEEP}
BOTTOMLESS: list = [DEEP]
for _ in range(100_000):
    BOTTOMLESS = [BOTTOMLESS]

UNSAVEABLE = {
    "NaN in the state": ({"state": {"w": np.array([1, np.nan], np.float32)}}, "'w' holds NaN"),
    "infinity in the state": ({"state": {"w": np.array(np.inf)}}, "'w' holds NaN or inf"),
    "object array": ({"state": {"w": np.array([print])}}, "dtype object"),
    "text array": ({"collector_arrays": {"w": np.array(["a"])}}, "dtype <U1"),
    "complex array": ({"collector_arrays": {"w": np.array([1j])}}, "dtype complex128"),
    "structured array": ({"state": {"w": np.zeros(1, "i4,f4")}}, "dtype [("),
    "reserved tensor name": ({"state": {"__metadata__": np.zeros(2)}}, "header"),
    "tensor name not text": ({"state": {1: np.zeros(2)}}, "int"),
    "half a surrogate as tensor name": ({"state": {"\ud800": np.zeros(2)}}, "surrogate"),
    "numpy scalar in JSON": ({"collector": {"a": np.float32(1)}}, "float32"),
    "function in JSON": ({"meta": {"a": print}}, "builtin"),
    "keys equal as text": ({"collector": {1: 1, "1": 2}}, "appears twice"),
    "deep JSON": ({"collector": DEEP}, "nested deeper"),
    "JSON deeper than Python's stack": ({"collector": {"a": BOTTOMLESS}}, "recursion"),
    "list in place of an object": ({"collector": [1]}, "list"),
    "large JSON": ({"collector": {"a": "x" * (17 << 20)}}, "16777216"),
    "large meta": ({"meta": {"a": "x" * (17 << 20)}}, "16777216"),
    "negative iteration": ({"iteration": -1}, "iteration is -1"),
    "fractional iteration": ({"iteration": 1.5}, "iteration is 1.5"),
    "true as env_steps": ({"env_steps": True}, "env_steps is True"),
}


@pytest.mark.parametrize("case", UNSAVEABLE.keys())
def test_what_could_not_be_loaded_is_refused_when_saved(tmp_path: Path, case: str) -> None:
    save_checkpoint(tmp_path, make(1))
    fields, words = UNSAVEABLE[case]
    with pytest.raises(CheckpointError, match=re.escape(words)):
        save_checkpoint(tmp_path, replace(make(2), **fields))
    assert_same(newest(tmp_path), make(1))
    assert os.listdir(tmp_path) == ["000001"]


def test_only_real_folders_with_numeric_names_are_listed(tmp_path: Path) -> None:
    for iteration in (12, 3):
        save_checkpoint(tmp_path, make(iteration))
    for name in (
        "000012.bak",
        "1",
        "0000012",
        "latest",
        ".tmp-00",
        "0000０7",
        "-00001",
        "000012.replaced-",
        "000012.replaced-xyz",
    ):
        (tmp_path / name).mkdir()
    (tmp_path / "000099").write_text("a file")
    (tmp_path / "000098").symlink_to(tmp_path / "000012")
    assert [path.name for path in list_checkpoints(tmp_path)] == ["000003", "000012"]
    assert load_newest(tmp_path, no_skip)[0] == tmp_path / "000012"


def test_a_missing_or_empty_folder_holds_no_checkpoint(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "missing"):
        assert list_checkpoints(folder) == []
        prune_checkpoints(folder, 1, None)
        with pytest.raises(CheckpointError, match="no checkpoint that verifies"):
            load_newest(folder, no_skip)


def test_a_folder_that_cannot_be_listed_is_a_typed_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="cannot be listed"):
        list_checkpoints(tmp_path / "file")


def test_saving_creates_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()  # syncs in earnest
    synced = []
    (tmp_path / "runs").mkdir()
    with watched(lambda name, arguments: synced.append(os.fstat(arguments[0]).st_ino), calls=("fsync",)):
        path = save_checkpoint(tmp_path / "runs" / "checkpoints", make(244))
    assert {folder.stat().st_ino for folder in (path, path.parent, path.parent.parent)} < set(synced)
    assert path == tmp_path / "runs" / "checkpoints" / "000244"
    assert sorted(os.listdir(path)) == sorted(FILES)


def test_a_run_s_folder_that_is_gone_is_not_made_anew(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="No such file"):
        save_checkpoint(tmp_path / "gone" / "checkpoints", make())
    assert not list(tmp_path.iterdir())


def test_files_have_the_permissions_that_the_umask_leaves(tmp_path: Path) -> None:
    old = os.umask(0o022)
    try:
        path = save_checkpoint(tmp_path, make())
    finally:
        os.umask(old)
    assert [stat.S_IMODE((path / name).stat().st_mode) for name in FILES] == [0o644] * 4
    assert stat.S_IMODE(path.stat().st_mode) == 0o755


def test_saving_the_same_iteration_again_replaces_it(tmp_path: Path) -> None:
    for mark in (1.0, 2.0, 3.0):
        save_checkpoint(tmp_path, make(5, mark))
        assert_same(newest(tmp_path), make(5, mark))
    assert os.listdir(tmp_path) == ["000005"]


@pytest.mark.parametrize("kind", ["file", "link"])
def test_something_foreign_under_the_checkpoints_name_is_left_alone(tmp_path: Path, kind: str) -> None:
    (tmp_path / "elsewhere").mkdir()
    target = tmp_path / "000001"
    target.symlink_to(tmp_path / "elsewhere") if kind == "link" else target.write_text("mine")
    with pytest.raises(CheckpointError, match="cannot be saved"):
        save_checkpoint(tmp_path, make(1))
    assert target.is_symlink() or target.read_text() == "mine"
    assert sorted(os.listdir(tmp_path)) == ["000001", "elsewhere"]


def test_pruning_keeps_the_newest_and_the_best(tmp_path: Path) -> None:
    for iteration in range(1, 9):
        save_checkpoint(tmp_path, make(iteration))
    prune_checkpoints(tmp_path, 3, tmp_path / "000002")
    assert sorted(os.listdir(tmp_path)) == ["000002", "000006", "000007", "000008"]
    prune_checkpoints(tmp_path, 100, None)
    assert len(os.listdir(tmp_path)) == 4
    prune_checkpoints(tmp_path, 1, None)
    assert os.listdir(tmp_path) == ["000008"]


@pytest.mark.parametrize("keep", [0, -1])
def test_keeping_none_is_refused(tmp_path: Path, keep: int) -> None:
    save_checkpoint(tmp_path, make())
    with pytest.raises(CheckpointError, match="keep"):
        prune_checkpoints(tmp_path, keep, None)
    assert_same(newest(tmp_path), make())


def test_pruning_removes_temporary_folders_and_leaves_other_files_alone(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, make())
    shutil.copytree(tmp_path / "000001", tmp_path / ".tmp-0123")
    (tmp_path / "notes.txt").write_text("mine")
    prune_checkpoints(tmp_path, 1, None)
    assert sorted(os.listdir(tmp_path)) == ["000001", "notes.txt"]


def test_pruning_never_deletes_what_was_written_last(tmp_path: Path) -> None:
    """A resume that passed over damaged newer checkpoints writes lower numbers than theirs."""
    for iteration in (1, 8, 9):
        save_checkpoint(tmp_path, make(iteration))
    for damaged in ("000008", "000009"):
        (tmp_path / damaged / "state.safetensors").write_bytes(b"")
    save_checkpoint(tmp_path, make(2))
    prune_checkpoints(tmp_path, 1, None)
    assert newest(tmp_path).iteration == 2


def test_pruning_gives_a_checkpoint_set_aside_its_name_back(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, make(4)).rename(tmp_path / "000004.replaced-0a")
    path, loaded = load_newest(tmp_path, no_skip)
    assert (path.name, loaded.iteration) == ("000004.replaced-0a", 4)
    save_checkpoint(tmp_path, make(5))
    prune_checkpoints(tmp_path, 1, path)
    assert sorted(os.listdir(tmp_path)) == ["000004", "000005"]


def test_of_several_set_aside_the_last_one_gets_the_name(tmp_path: Path) -> None:
    for mark in (3, 1, 2):
        path = save_checkpoint(tmp_path / str(mark), make(4, mark))
        path.rename(tmp_path / f"000004.replaced-{mark:016x}")
        path.parent.rmdir()
    assert_same(newest(tmp_path), make(4, 3))
    prune_checkpoints(tmp_path, 1, None)
    assert os.listdir(tmp_path) == ["000004"]
    assert_same(newest(tmp_path), make(4, 3))


def test_a_half_deleted_checkpoint_does_not_look_like_one(tmp_path: Path) -> None:
    for iteration in (1, 2):
        save_checkpoint(tmp_path, make(iteration))
    for k in range(12):
        with suppress(PowerCut), watched(stop_at(k)):
            prune_checkpoints(tmp_path, 1, None)
        assert load_newest(tmp_path, no_skip)[1].iteration == 2
    prune_checkpoints(tmp_path, 1, None)
    assert os.listdir(tmp_path) == ["000002"]


def fail_at(k: int, number: int, lasting: bool, log: list[str]) -> Callable[..., None]:
    def before(name: str, arguments: tuple) -> None:
        log.append(name)
        if len(log) - 1 == k or (lasting and len(log) - 1 > k):
            raise OSError(number, os.strerror(number))

    return before


def saves(tmp_path: Path, replacing: bool) -> Iterator[tuple[Path, Checkpoint, Checkpoint]]:
    """Endless fresh folders with an old checkpoint in, and a new one to save."""
    old, new = make(1, 1.0), make(1 if replacing else 2, 2.0)
    save_checkpoint(tmp_path / "old", old)
    for number in range(10**9):
        yield Path(shutil.copytree(tmp_path / "old", tmp_path / str(number))), old, new


def failure_of(act: Callable[[], object], before: Callable[..., None], calls: tuple) -> CheckpointError | None:
    try:
        with watched(before, calls=calls):
            act()
    except CheckpointError as error:
        return error
    return None


# `close` is left out: the descriptor of a failed close is closed all the same.
FAILING_CALLS = ("open", "mkdir", "write", "fsync", "rename")


@pytest.mark.parametrize("replacing", [False, True], ids=["next iteration", "same iteration"])
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO, errno.EROFS, errno.EACCES], ids=errno.errorcode.get)
def test_a_call_that_fails_once_costs_no_checkpoint(
    tmp_path: Path, number: int, replacing: bool, faults: Faults
) -> None:
    for k, (folder, old, new) in enumerate(saves(tmp_path, replacing)):
        log: list[str] = []
        error = failure_of(partial(save_checkpoint, folder, new), fail_at(k, number, False, log), FAILING_CALLS)
        if k >= len(log):
            break
        faults.count("RF11", detected=error is not None, survived=error is None)
        if error:
            assert os.strerror(number) in error.problem
            assert str(folder) in str(error)
            assert isinstance(error.__cause__, OSError)
            assert any(is_(load_checkpoint(entry.path), old) for entry in module._list_entries(folder))
            assert list_checkpoints(folder)
            assert not list(folder.glob(".tmp-*"))
        else:  # what fails after the new one is safe is no failure
            assert is_(newest(folder), new)
        if k % 4 == 0:
            save_checkpoint(folder, new)
            assert is_(newest(folder), new)
    assert error is None
    assert k > 10


@pytest.mark.parametrize("replacing", [False, True], ids=["next iteration", "same iteration"])
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS], ids=errno.errorcode.get)
def test_a_disk_that_fails_for_good_costs_no_checkpoint(
    tmp_path: Path, number: int, replacing: bool, faults: Faults
) -> None:
    calls = (*FAILING_CALLS, "unlink", "rmdir")
    for k, (folder, old, new) in enumerate(saves(tmp_path, replacing)):
        log: list[str] = []
        error = failure_of(partial(save_checkpoint, folder, new), fail_at(k, number, True, log), calls)
        if k >= len(log):
            break
        faults.count("RF11", detected=error is not None, survived=error is None)
        assert error is None or os.strerror(number) in error.problem
        found = newest(folder)
        assert is_(found, new) or (error and is_(found, old))
        prune_checkpoints(folder, 1, None)  # space has returned
        assert is_(newest(folder), found)
        assert os.listdir(folder) == [f"{found.iteration:06d}"]
    assert error is None
    assert k > 10


def test_the_first_checkpoint_of_a_run_can_be_retried_after_any_failure(tmp_path: Path) -> None:
    log: list[str] = []
    for k in range(100):
        log.clear()
        folder = tmp_path / str(k) / "checkpoints"
        folder.parent.mkdir()
        with watched(fail_at(k, errno.ENOSPC, False, log), calls=FAILING_CALLS), suppress(CheckpointError):
            save_checkpoint(folder, make())
        assert_same(load_checkpoint(save_checkpoint(folder, make())), make())
        if k >= len(log):
            break
    assert k > 10


def test_a_file_system_that_cannot_sync_folders_still_holds_checkpoints(tmp_path: Path) -> None:
    def before(name: str, arguments: tuple) -> None:
        if name == "fsync" and stat.S_ISDIR(os.fstat(arguments[0]).st_mode):
            raise OSError(errno.EINVAL, "Invalid argument")

    with watched(before):
        save_checkpoint(tmp_path, make())
    assert_same(newest(tmp_path), make())


def test_memory_that_runs_out_is_a_typed_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def run_out(*_: object) -> None:
        raise MemoryError

    path = save_checkpoint(tmp_path, make(1))
    monkeypatch.setattr(np, "frombuffer", run_out)
    with pytest.raises(CheckpointError, match="MemoryError"):
        load_checkpoint(path)
    with pytest.raises(CheckpointError, match="MemoryError"):
        save_checkpoint(tmp_path, make(2))


def test_short_writes_are_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = os.write
    monkeypatch.setattr(os, "write", lambda descriptor, data: write(descriptor, data[:7]))
    assert_same(load_checkpoint(save_checkpoint(tmp_path, make())), make())


class Volatile:
    """Loses at a power cut what POSIX allows to lose: data, new names and renames that were not synced."""

    def __init__(self, k: int) -> None:
        self.stop = stop_at(k)
        self.data: dict[int, int] = {}  # file's inode -> descriptor
        self.names: dict[int, list[tuple[int, str]]] = {}  # folder's inode -> its descriptor, name of a new file
        self.renames: dict[int, list[tuple[Path, Path]]] = {}  # folder's inode -> source, target
        self.descriptors: list[int] = []

    def before(self, name: str, arguments: tuple) -> None:
        self.stop(name, arguments)
        if name == "rename" and ".tmp-" not in str(arguments[1]):
            assert not self.renames.get(os.stat(arguments[0].parent).st_ino), (
                "the last rename may be lost after this one"
            )

    def after(self, name: str, arguments: tuple, result: int) -> None:
        if name == "open" and arguments[1] & os.O_CREAT:
            folder = REAL_OPEN(os.path.dirname(arguments[0]), os.O_RDONLY)
            self.descriptors += [folder, os.dup(result)]
            self.data[os.fstat(result).st_ino] = self.descriptors[-1]
            self.names.setdefault(os.fstat(folder).st_ino, []).append((folder, os.path.basename(arguments[0])))
        elif name == "fsync":
            for unsynced in (self.data, self.names, self.renames):
                unsynced.pop(os.fstat(arguments[0]).st_ino, None)
        elif name == "rename":
            self.renames.setdefault(os.stat(arguments[0].parent).st_ino, []).append(arguments)

    def lose_what_is_not_synced(self) -> None:
        for descriptor in self.data.values():
            os.ftruncate(descriptor, 0)
        for names in self.names.values():
            for folder, name in names:
                os.unlink(name, dir_fd=folder)
        for renames in self.renames.values():
            for source, target in reversed(renames):
                if target.exists():
                    os.rename(target, source)

    def close(self) -> None:
        for descriptor in self.descriptors:
            REAL_CLOSE(descriptor)


@pytest.mark.parametrize("replacing", [False, True], ids=["next iteration", "same iteration"])
@pytest.mark.parametrize("losing", [False, True], ids=["all kept", "unsynced lost"])
def test_a_power_cut_at_any_call_leaves_the_old_or_the_new(
    tmp_path: Path, losing: bool, replacing: bool, faults: Faults
) -> None:
    outcomes = []
    for k, (folder, old, new) in enumerate(saves(tmp_path, replacing)):
        disk = Volatile(k)
        finished = False
        try:
            with watched(disk.before, disk.after):
                save_checkpoint(folder, new)
                finished = True
        except PowerCut:
            pass
        if losing:
            disk.lose_what_is_not_synced()
        disk.close()
        path, found = load_newest(folder, no_skip)
        outcomes.append("new" if is_(found, new) else "old" if is_(found, old) else "neither")
        # The run goes on from there.
        prune_checkpoints(folder, 2, path)
        assert is_(load_newest(folder, no_skip)[1], found)
        save_checkpoint(folder, new)
        prune_checkpoints(folder, 1, None)
        assert os.listdir(folder) == [f"{new.iteration:06d}"]
        assert is_(newest(folder), new)
        if finished:
            break
    assert len(outcomes) > 20
    assert (outcomes[0], outcomes[-1]) == ("old", "new")
    assert outcomes == sorted(outcomes, reverse=True)  # once new, never old again
    faults.count("RF10", survived=len(outcomes))


def test_power_cuts_one_after_another_leave_a_checkpoint(tmp_path: Path) -> None:
    """No clean-up in between: each restart replaces the same iteration and is cut at another call."""
    rng = np.random.default_rng(0)
    save_checkpoint(tmp_path, make(1, 0))
    found = 0.0
    for number in range(1, 80):
        try:
            with watched(stop_at(rng.integers(60))):
                save_checkpoint(tmp_path, make(1, number))
        except PowerCut:
            pass
        marks = float(newest(tmp_path).state["policy.layers.0.weight"][0, 0])
        assert marks in (found, number)
        found = marks
        if rng.random() < 0.2:
            prune_checkpoints(tmp_path, 1, None)
            assert len(os.listdir(tmp_path)) == 1


def writing_at(reader_call: int, writer_call: int, folder: Path, new: Checkpoint) -> Callable[..., None]:
    """Before that call of a reader, a writer saves and prunes up to that call of its own, and pauses there."""
    calls = iter(range(10**9))

    def before(name: str, arguments: tuple) -> None:
        if next(calls) == reader_call:
            with suppress(PowerCut), watched(stop_at(writer_call)):
                save_checkpoint(folder, new)
                prune_checkpoints(folder, 1, None)

    return before


@pytest.mark.parametrize("replacing", [False, True], ids=["next iteration", "same iteration"])
def test_a_reader_finds_a_checkpoint_however_far_a_writer_gets_meanwhile(tmp_path: Path, replacing: bool) -> None:
    fresh = saves(tmp_path, replacing)
    for reader_call in range(6):
        for writer_call in [*range(0, 45, 4), 10**6]:
            folder, old, new = next(fresh)
            with watched(writing_at(reader_call, writer_call, folder, new), calls=("open",)):
                found = newest(folder)
            assert is_(found, old) or is_(found, new)


@pytest.fixture
def two(tmp_path: Path) -> Path:
    """A folder with iterations 1 and 2."""
    for iteration in (1, 2):
        save_checkpoint(tmp_path, make(iteration))
    return tmp_path


def assert_second_is_skipped(folder: Path) -> None:
    skipped: list[tuple[Path, CheckpointError]] = []
    path, found = load_newest(folder, lambda *skip: skipped.append(skip))
    assert path.name == "000001"
    assert_same(found, make(1))
    assert [path.name for path, _ in skipped] == ["000002"]
    assert isinstance(skipped[0][1], CheckpointError)


@pytest.mark.parametrize("name", FILES)
def test_a_file_cut_at_any_byte_is_found_and_the_older_one_used(two: Path, name: str, faults: Faults) -> None:
    file = two / "000002" / name
    whole = file.read_bytes()
    for length in reversed(range(len(whole))):
        os.truncate(file, length)
        with pytest.raises(CheckpointError):
            load_checkpoint(two / "000002")
        faults.count("RF12", detected=1)
    assert_second_is_skipped(two)
    file.unlink()
    assert_second_is_skipped(two)
    file.write_bytes(whole + b"\n")
    assert_second_is_skipped(two)
    file.write_bytes(whole)
    assert newest(two).iteration == 2


def test_flipped_bits_are_found_and_the_older_one_used(two: Path, faults: Faults) -> None:
    rng = np.random.default_rng(0)
    for number in range(200):
        file = two / "000002" / FILES[number % len(FILES)]
        whole = file.read_bytes()
        damaged = bytearray(whole)
        damaged[rng.integers(len(whole))] ^= 1 << int(rng.integers(8))
        put(file, damaged)
        assert_second_is_skipped(two)
        faults.count("RF12", detected=1)
        put(file, whole)
    assert newest(two).iteration == 2


def test_when_all_are_damaged_each_is_reported_and_an_error_raised(two: Path) -> None:
    for name in ("000001", "000002"):
        (two / name / "state.safetensors").unlink()
    skipped = []
    with pytest.raises(CheckpointError, match="2 damaged"):
        load_newest(two, lambda path, error: skipped.append(path.name))
    assert skipped == ["000002", "000001"]


def test_an_unreadable_file_is_a_typed_error(two: Path) -> None:
    for number in (errno.EACCES, errno.EIO, errno.EMFILE):
        for k in range(5):
            with watched(fail_at(k, number, False, [])), pytest.raises(CheckpointError, match=os.strerror(number)):
                load_checkpoint(two / "000002")


def seal(manifest: bytes) -> bytes:
    """An honest hash under a dishonest manifest; written anew here so that the module does not check itself."""
    assert manifest.endswith(b"}")
    return manifest[:-1] + b',"sha256":"' + hashlib.sha256(manifest[:-1]).hexdigest().encode() + b'"}'


def read_manifest(path: Path) -> dict:
    manifest = json.loads((path / "manifest.json").read_bytes())
    del manifest["sha256"]
    return manifest


def write_manifest(path: Path, manifest: object) -> None:
    put(path / "manifest.json", seal(json.dumps(manifest).encode()))


def put(file: Path, data: bytes) -> None:
    """A new file: ext4 waits for the disk where one is truncated and written again."""
    file.unlink(missing_ok=True)
    file.write_bytes(data)


def rewrite(path: Path, name: str, data: bytes) -> None:
    """Replaces a file and makes the manifest vouch for it."""
    put(path / name, data)
    manifest = read_manifest(path)
    manifest["files"][name] = {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data)}
    write_manifest(path, manifest)


def edited(edit: Callable[[dict], object]) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        manifest = read_manifest(path)
        edit(manifest)
        write_manifest(path, manifest)

    return damage


def rewritten(name: str, data: bytes) -> Callable[[Path], None]:
    return lambda path: rewrite(path, name, data)


def overwritten(name: str, data: bytes) -> Callable[[Path], object]:
    return lambda path: (path / name).write_bytes(data)


def state_saved_as(**changes: np.ndarray | None) -> Callable[[Path], None]:
    """Another state file, vouched for; the manifest's description of the tensors stays."""

    def damage(path: Path) -> None:
        state = {name: array for name, array in (make().state | changes).items() if array is not None}
        rewrite(path, "state.safetensors", safetensors.numpy.save(state))

    return damage


def replaced_by(name: str, create: Callable[[Path], object]) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        (path / name).rename(path.parent / "moved")
        create(path / name)

    return damage


def archive(path: Path) -> None:
    with zipfile.ZipFile(path / "zip", "w") as file:
        file.writestr("data.pkl", PICKLE)
    rewrite(path, "state.safetensors", (path / "zip").read_bytes())


def sparse(path: Path) -> None:
    os.truncate(path, 10 << 30)


def sparse_and_vouched_for(path: Path) -> None:
    os.truncate(path / "state.safetensors", 10 << 30)
    edited(lambda m: m["files"]["state.safetensors"].update(size=10 << 30))(path)


CANARY = Path(tempfile.gettempdir()) / f"inchworm-canary-{os.getpid()}"


class Canary:
    """Unpickling it creates a folder."""

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(CANARY),)


PICKLE = pickle.dumps(Canary(), protocol=0)
TAR = b"data.pkl".ljust(257, b"\0") + b"ustar\x0000" + PICKLE.ljust(512, b"\0")
ONE = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}
STATE, ARRAYS, JSON, MANIFEST = "state.safetensors", "collector.safetensors", "collector.json", "manifest.json"

# What is done to a good checkpoint -> words in the error, so that it is refused for the right reason.
BAD: dict[str, tuple[Callable[[Path], object], str]] = {
    **{f"pickle as {name}": (overwritten(name, PICKLE), "damaged|bytes") for name in FILES},
    "pickle as state, vouched for": (rewritten(STATE, PICKLE), "state.safetensors"),
    "pickle as collector arrays, vouched for": (rewritten(ARRAYS, PICKLE), "collector.safetensors"),
    "pickle as collector, vouched for": (rewritten(JSON, PICKLE), "not good JSON"),
    "pickle as sealed manifest": (overwritten(MANIFEST, seal(PICKLE + b"}")), "not good JSON"),
    "pickle as header of tensors": (rewritten(STATE, tensors(PICKLE)), "not good JSON"),
    **{
        f"pickle as {field}": (
            edited(lambda m, field=field: m.update({field: PICKLE.decode("latin-1")})),
            "version|must be|whole",
        )
        for field in ("format", "iteration", "env_steps", "files", "tensors", "meta")
    },
    "pickle as hash": (edited(lambda m: m["files"][STATE].update(sha256=PICKLE.decode("latin-1"))), "damaged"),
    "pickle as size": (edited(lambda m: m["files"][STATE].update(size=PICKLE.decode("latin-1"))), "whole number"),
    "pickle as dtype": (edited(lambda m: m["tensors"][STATE]["key"].update(dtype=PICKLE.decode("latin-1"))), "'key'"),
    "pickle as shape": (edited(lambda m: m["tensors"][STATE]["key"].update(shape=PICKLE.decode("latin-1"))), "'key'"),
    "zip as state": (archive, "state.safetensors"),
    "tar as state": (rewritten(STATE, TAR), "state.safetensors"),
    **{f"empty {name}": (overwritten(name, b""), "cut|bytes") for name in FILES},
    "empty state, vouched for": (rewritten(STATE, b""), "not good JSON"),
    "empty collector, vouched for": (rewritten(JSON, b""), "not good JSON"),
    **{f"missing {name}": (lambda path, name=name: (path / name).unlink(), "No such file") for name in FILES},
    **{
        f"link as {name}": (replaced_by(name, lambda p: p.symlink_to(p.parent.parent / "moved")), "is a link")
        for name in FILES
    },
    **{f"FIFO as {name}": (replaced_by(name, os.mkfifo), "not a regular file") for name in FILES},
    **{f"folder as {name}": (replaced_by(name, Path.mkdir), "is not a regular file") for name in FILES},
    "link to a device": (replaced_by(STATE, lambda p: p.symlink_to("/dev/zero")), "is a link"),
    **{f"sparse 10 GB {name}": (lambda path, name=name: sparse(path / name), "10737418240 bytes") for name in FILES},
    "sparse 10 GB state, vouched for": (sparse_and_vouched_for, "whole number of at most"),
    "file listed by absolute path": (
        edited(lambda m: m["files"].update({"/etc/passwd": m["files"].pop(STATE)})),
        "files must be",
    ),
    "file listed in the parent": (
        edited(lambda m: m["files"].update({"../000001/" + STATE: m["files"].pop(STATE)})),
        "files must be",
    ),
    "one more file listed": (edited(lambda m: m["files"].update(more=m["files"][STATE])), "files must be"),
    "one file not listed": (edited(lambda m: m["files"].pop(JSON)), "files must be"),
    "future version": (edited(lambda m: m.update(format=2)), "format version is 2"),
    "version zero": (edited(lambda m: m.update(format=0)), "format version is 0"),
    "version true": (edited(lambda m: m.update(format=True)), "format version is True"),
    "version 1.0": (edited(lambda m: m.update(format=1.0)), "format version is 1.0"),
    "no version": (edited(lambda m: m.pop("format")), "format version is None"),
    "field missing": (edited(lambda m: m.pop("meta")), "exactly"),
    "field too many": (edited(lambda m: m.update(loader="os.system")), "exactly"),
    "NaN iteration": (edited(lambda m: m.update(iteration=float("nan"))), "iteration is nan"),
    "infinite env_steps": (edited(lambda m: m.update(env_steps=float("inf"))), "env_steps is inf"),
    "negative env_steps": (edited(lambda m: m.update(env_steps=-1)), "env_steps is -1"),
    "iteration in quotes": (edited(lambda m: m.update(iteration="2")), "iteration is '2'"),
    "number of 5,000 digits": (overwritten(MANIFEST, seal(b'{"format": ' + b"9" * 5000 + b"}")), "not good JSON"),
    "another iteration's folder": (edited(lambda m: m.update(iteration=3)), "renamed"),
    "manifest is a list": (overwritten(MANIFEST, seal(b"[{}") + b"]"), "cut or damaged"),
    "manifest is null": (edited(lambda m: m.clear()), "damaged|not good JSON"),
    "manifest not sealed": (lambda p: (p / MANIFEST).write_text(json.dumps(read_manifest(p))), "cut or damaged"),
    "duplicate key in manifest": (overwritten(MANIFEST, seal(b'{"format": 1, "format": 1}')), "appears twice"),
    "duplicate key in collector": (rewritten(JSON, b'{"a": {"b": 1, "b": 2}}'), "appears twice"),
    "duplicate tensor": (
        rewritten(STATE, tensors(b'{"a": %b, "a": %b}' % ((json.dumps(ONE).encode(),) * 2), bytes(4))),
        "appears twice",
    ),
    "deep manifest": (overwritten(MANIFEST, seal(b'{"format": ' + b"[" * 100_000 + b"}")), "nested deeper"),
    "deep collector": (rewritten(JSON, b'{"a":' * 100_000 + b"1" + b"}" * 100_000), "nested deeper"),
    "deep header": (rewritten(STATE, tensors(b'{"a":' * 70 + b"1" + b"}" * 70)), "nested deeper"),
    "endless escapes": (rewritten(JSON, b'{"' + b'\\"' * 2_000_000), "not good JSON"),
    "manifest not UTF-8": (overwritten(MANIFEST, seal(b'{"format": "\xff"}')), "utf-8"),
    "collector not UTF-8": (rewritten(JSON, b'{"a": "\xc3"}'), "utf-8"),
    "collector with byte order mark": (rewritten(JSON, b"\xef\xbb\xbf{}"), "BOM"),
    "collector in UTF-16": (rewritten(JSON, '{"a": 1}'.encode("utf-16")), "utf-8"),
    "collector is a list": (rewritten(JSON, b"[1]"), "list instead of"),
    "two objects in collector": (rewritten(JSON, b"{}{}"), "Extra data"),
    "manifest of 17 MB": (overwritten(MANIFEST, seal(b"{" + b" " * (17 << 20) + b"}")), "bytes, not at most"),
    "NaN weight": (
        state_saved_as(**{"policy.layers.0.weight": np.full((2, 2), np.nan, np.float32)}),
        "'policy.layers.0.weight' holds NaN",
    ),
    "infinite weight": (
        state_saved_as(**{"policy.layers.0.weight": np.full((2, 2), -np.inf, np.float32)}),
        "holds NaN or infinity",
    ),
    "extra tensor": (state_saved_as(extra=np.zeros(1)), "'extra'.*manifest describes null"),
    "missing tensor": (state_saved_as(key=None), "'key' is null"),
    "tensor listed as null": (edited(lambda m: m["tensors"][STATE].update(more=None)), "'more' is null"),
    "wrong shape": (state_saved_as(key=np.zeros((2, 1), np.uint32)), r"'key'.*\[2, 1\]"),
    "wrong dtype": (state_saved_as(key=np.zeros(2, np.int32)), "'key'.*int32"),
    "shape of floats": (edited(lambda m: m["tensors"][STATE]["key"].update(shape=[2.0])), "'key'"),
    "shape of true": (edited(lambda m: m["tensors"][ARRAYS]["obs"].update(shape=[True])), "'obs'"),
    "tensors swapped between files": (edited(lambda m: m["tensors"].update({STATE: m["tensors"][ARRAYS]})), "tensor '"),
    "list of tensors": (edited(lambda m: m["tensors"].update({STATE: []})), "must be an object"),
    "hash of another file": (edited(lambda m: m["files"][STATE].update(sha256="0" * 64)), "damaged"),
    "hash is a list": (edited(lambda m: m["files"][STATE].update(sha256=[])), "damaged"),
    "header length 2^63": (rewritten(STATE, tensors({"a": ONE}, bytes(4), 2**63)), "state.safetensors|eader"),
    "header length 2^64 - 1": (rewritten(STATE, tensors({"a": ONE}, b"", 2**64 - 1)), "eader"),
    "header length zero": (rewritten(STATE, tensors(b"", bytes(4))), "not good JSON"),
    "offsets beyond the end": (rewritten(STATE, tensors({"a": ONE})), "Error"),
    "offsets overlap": (rewritten(STATE, tensors({"a": ONE, "b": ONE}, bytes(4))), "Error"),
    "hole in the data": (rewritten(STATE, tensors({"a": ONE}, bytes(8))), "Error"),
    "shape of 2^63 times zero": (
        rewritten(STATE, tensors({"a": {"dtype": "F32", "shape": [2**63, 0], "data_offsets": [0, 0]}})),
        "cannot be loaded",
    ),
    "shape of 2^62 squared": (
        rewritten(STATE, tensors({"a": {"dtype": "F32", "shape": [2**62, 2**62], "data_offsets": [0, 4]}}, bytes(4))),
        "Error",
    ),
    "100 dimensions": (rewritten(STATE, tensors({"a": ONE | {"shape": [1] * 100}}, bytes(4))), "dimension"),
    "negative shape": (rewritten(STATE, tensors({"a": ONE | {"shape": [-1]}}, bytes(4))), "Error"),
    "bfloat16": (
        rewritten(STATE, tensors({"a": {"dtype": "BF16", "shape": [2], "data_offsets": [0, 4]}}, bytes(4))),
        "BF16",
    ),
    "unknown dtype": (rewritten(STATE, tensors({"a": ONE | {"dtype": "OBJECT"}}, bytes(4))), "Error"),
    "folder of another file system object": (lambda p: (shutil.rmtree(p), p.write_text("")), "Not a directory"),
    "folder missing": (shutil.rmtree, "No such file"),
    "folder is a link": (lambda p: p.symlink_to(p.rename(p.parent / "moved")), "cannot be loaded"),
    "folder is a FIFO": (lambda p: (shutil.rmtree(p), os.mkfifo(p)), "Not a directory"),
}


class Hangs(BaseException):
    """Nothing takes it for a refusal."""


@contextmanager
def at_most_a_second() -> Iterator[None]:
    def too_late(*_: object) -> None:
        raise Hangs

    old = signal.signal(signal.SIGALRM, too_late)
    signal.setitimer(signal.ITIMER_REAL, 2)
    began = time.monotonic()
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, old)
    assert time.monotonic() - began < 1


@pytest.mark.fault("RB3")
@pytest.mark.parametrize("case", BAD)
def test_a_bad_file_is_refused_within_a_second(two: Path, case: str) -> None:
    damage, words = BAD[case]
    damage(two / "000002")
    with at_most_a_second(), pytest.raises(CheckpointError) as caught:
        load_checkpoint(two / "000002")
    assert re.search(words, caught.value.problem), caught.value.problem
    assert caught.value.value == str(two / "000002")
    assert len(str(caught.value)) < 700
    with at_most_a_second():
        assert newest(two).iteration == 1
    assert not CANARY.exists()


def test_a_pickle_where_data_belongs_stays_data(tmp_path: Path) -> None:
    state = {"bytes": np.frombuffer(PICKLE, np.uint8)}
    saved = replace(
        make(), state=state, collector={"text": PICKLE.decode("latin-1")}, meta={PICKLE.decode("latin-1"): 1}
    )
    assert_same(saved, load_checkpoint(save_checkpoint(tmp_path, saved)))
    assert not CANARY.exists()


def test_the_canary_would_sing() -> None:
    pickle.loads(PICKLE)
    assert CANARY.exists()
    CANARY.rmdir()


def test_2000_mutations_raise_nothing_but_checkpoint_errors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, faults: Faults
) -> None:
    rng = np.random.default_rng(0)
    path = save_checkpoint(tmp_path, make())
    good = {name: (path / name).read_bytes() for name in FILES}
    files: dict[str, bytes] = {}
    monkeypatch.setattr(module, "read_file", lambda folder, name, size: files[name])  # no disk, to be quick
    refused = 0
    for number in range(2000):
        files.update(good)
        manifest: object = read_manifest(path)
        if number % 3 == 0:
            for _ in range(rng.integers(1, 4)):
                manifest = mutated(manifest, rng)
        else:
            name = (STATE, ARRAYS)[number % 3 - 1]
            files[name] = mutated_tensors(good[name], rng)
            manifest["files"][name] = {"sha256": hashlib.sha256(files[name]).hexdigest(), "size": len(files[name])}
        files[MANIFEST] = seal(json.dumps(manifest if isinstance(manifest, dict) and manifest else {"": 0}).encode())
        try:
            loaded = load_checkpoint(path)
        except CheckpointError:
            refused += 1
        else:  # a harmless change, as one in meta or in a weight
            assert [array.dtype for array in loaded.state.values()] == [array.dtype for array in make().state.values()]
            assert type(loaded.iteration) is int
            assert type(loaded.meta) is dict
    assert 1200 < refused < 2000
    faults.count("RB4", detected=refused, survived=2000 - refused)


def test_the_module_names_nothing_that_runs_code_from_a_file() -> None:
    names = ("checkpoint.py", "files.py", "policy_file.py")
    source = "".join(Path(module.__file__).with_name(name).read_text() for name in names)
    forbidden = r"\b(pickle|dill|marshal|shelve|eval|exec|allow_pickle|importlib|runpy|__import__|np\.load|ctypes)\b"
    assert not re.findall(forbidden, source)
    assert re.findall(forbidden, "np.load(file, allow_pickle=True)")
