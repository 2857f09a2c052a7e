"""Checkpoints on disk: written so that no crash costs the last good one, read without running anything.

    checkpoints/000244/                   one checkpoint, named after its iteration
      state.safetensors  collector.safetensors  collector.json
      manifest.json                       written last: hashes, sizes, tensors, meta and its own hash
    checkpoints/000244.replaced-1f0c.../  the older 000244 while a newer one takes its place
    checkpoints/.tmp-9ab4.../             being written or being deleted, never read

Linux and macOS. One process writes a folder; others may read it meanwhile.
"""

import hashlib
import json
import os
import re
import secrets
import shutil
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import safetensors
import safetensors.numpy

from inchworm.errors import CheckpointError
from inchworm.io.files import (
    FAILURES,
    MAX_JSON_BYTES,
    check_finite,
    describe_tensors,
    parse_object,
    parse_sealed,
    parse_tensors,
    plain_arrays,
    read_file,
    sealed,
    sync_folder,
    write_file,
)

FORMAT = 1  # later formats keep the manifest's seal, so that older versions can name them
MANIFEST = "manifest.json"
STATE, COLLECTOR_ARRAYS, COLLECTOR = "state.safetensors", "collector.safetensors", "collector.json"
MAX_TENSOR_BYTES = 4 << 30
FILES = {MANIFEST, STATE, COLLECTOR_ARRAYS, COLLECTOR}

_NAME = re.compile(r"(\d{6}|[1-9]\d{6,})(\.replaced-[0-9a-f]+)?", re.ASCII)


@dataclass(frozen=True)
class Checkpoint:
    """Everything a run needs to go on.

    Attributes:
        iteration: iterations done; names the folder.
        env_steps: environment steps done.
        state: leaves of the training state by dotted path; all finite.
        collector_arrays: the collector's arrays by name; may hold NaN.
        collector: the rest of the collector as JSON: keys are strings, tuples come back as lists.
        meta: JSON about the run (algorithm, environment, versions), kept in the manifest.
    """

    iteration: int
    env_steps: int
    state: dict[str, np.ndarray]
    collector_arrays: dict[str, np.ndarray]
    collector: dict[str, Any]
    meta: dict[str, Any]


class _Entry(NamedTuple):
    """A checkpoint's folder; entries sort by age."""

    iteration: int
    in_place: bool  # False: set aside by a replacement
    path: Path
    inode: int  # tells a folder from one that took its name

    @property
    def final_path(self) -> Path:
        return self.path.with_name(f"{self.iteration:06d}")


def save_checkpoint(folder: Path, checkpoint: Checkpoint) -> Path:
    """Writes `folder/<iteration>` durably and returns it; an older one of that iteration is replaced.

    The folder is made where it is missing, but not what it lies in, which may have been moved away.

    At every moment, power cuts included, `load_newest` finds the old checkpoint or the new one.

    Raises:
        CheckpointError: loading would refuse it (no JSON, NaN in the state, an unknown dtype, too
            large), or the disk failed; what was saved before still loads.
    """
    folder = Path(folder)
    temporary = _temporary_path(folder)
    try:
        files = _encode(checkpoint)
        _decode(lambda name, size: files[name])  # refuse now what loading would refuse later
        target = folder / f"{checkpoint.iteration:06d}"
        _check_no_link(folder)
        if not folder.is_dir():
            folder.mkdir(exist_ok=True)
            sync_folder(folder.parent)
        os.mkdir(temporary)
        for name, data in files.items():
            write_file(temporary / name, data)
        sync_folder(temporary)
        _put_in_place(temporary, target)
    except FAILURES as error:
        shutil.rmtree(temporary, ignore_errors=True)
        fix = "Free space or correct the value; earlier checkpoints still load."
        raise _failure(folder / str(checkpoint.iteration), "cannot be saved", error, fix) from error
    return target


def load_checkpoint(path: Path) -> Checkpoint:
    """The checkpoint in the folder `path`, every byte verified, nothing executed.

    Raises:
        CheckpointError: it is missing, damaged, foreign or of an unknown format version.
    """
    path = Path(path)
    try:
        # All files are opened through one descriptor: they belong together even if a writer renames the folder.
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        try:
            checkpoint = _decode(partial(read_file, descriptor))
        finally:
            os.close(descriptor)
        name = _NAME.fullmatch(path.name)
        if name and int(name[1]) != checkpoint.iteration:
            raise ValueError(f"the folder is renamed, it holds iteration {checkpoint.iteration}")
    except FAILURES as error:
        raise _failure(path, "cannot be loaded", error, "Use another checkpoint.") from error
    return checkpoint


def list_checkpoints(folder: Path) -> list[Path]:
    """Checkpoint folders, oldest first, not verified; none if `folder` is missing.

    Raises:
        CheckpointError: the folder cannot be read.
    """
    return [entry.path for entry in _list_entries(Path(folder)) if entry.in_place]


def load_newest(folder: Path, on_skip: Callable[[Path, CheckpointError], None]) -> tuple[Path, Checkpoint]:
    """The newest checkpoint that verifies and its path; `on_skip` gets each damaged one passed over.

    The path ends in `.replaced-...` where a crash cut a replacement short; `prune_checkpoints` gives
    such a checkpoint its name back.

    Raises:
        CheckpointError: there is none, or the folder cannot be read.
    """
    tried: set[_Entry] = set()
    # Listed anew after each failure: another process may have replaced what was listed.
    while untried := [entry for entry in _list_entries(Path(folder)) if entry not in tried]:
        newest = untried[-1]
        tried.add(newest)
        try:
            return newest.path, load_checkpoint(newest.path)
        except CheckpointError as error:
            on_skip(newest.path, error)
    problem = f"holds no checkpoint that verifies ({len(tried)} damaged)"
    raise CheckpointError("checkpoints", str(folder), problem, "Name another run's folder or start a new run.")


def prune_checkpoints(folder: Path, keep: int, best: Path | None) -> None:
    """Deletes all but the newest `keep`, the one written last and `best`; and what crashes left behind.

    The one written last is not the newest by number when a resume had to pass over damaged ones.

    Raises:
        CheckpointError: `keep` is below 1, or something cannot be deleted.
    """
    if keep < 1:
        raise CheckpointError("keep", keep, "would leave no checkpoint", "Keep at least 1.")
    folder = Path(folder)
    try:
        for entry in reversed(_list_entries(folder)):
            if not entry.in_place and not entry.final_path.exists():
                os.rename(entry.path, entry.final_path)
        entries = _list_entries(folder)
        in_place = [entry.path for entry in entries if entry.in_place]
        written_last = sorted(in_place, key=lambda path: path.stat().st_mtime_ns)[-1:]
        kept = {path.name for path in in_place[-keep:] + written_last}
        if best is not None:
            kept.add(Path(best).name.partition(".")[0])
        # Leftovers come last: one that cannot be deleted must not let checkpoints pile up.
        for path in [*(entry.path for entry in entries), *folder.glob(".tmp-*")]:
            if path.name not in kept and _is_own(path):
                _delete(path)
    except OSError as error:
        raise _failure(folder, "cannot be pruned", error, "Delete old checkpoints by hand.") from error


def _list_entries(folder: Path) -> list[_Entry]:
    """All checkpoint folders, oldest first, those that were set aside included."""
    entries = []
    try:
        _check_no_link(folder)
        with os.scandir(folder) as found:
            for item in found:
                name = _NAME.fullmatch(item.name)
                # No `stat`: what a writer renames meanwhile must not drop out of the list.
                if name and item.is_dir(follow_symlinks=False):
                    entries.append(_Entry(int(name[1]), name[2] is None, Path(item.path), item.inode()))
    except FileNotFoundError:
        return []
    except (OSError, ValueError) as error:
        raise _failure(folder, "cannot be listed", error, "Check the folder and its permissions.") from error
    return sorted(entries)


def _check_no_link(folder: Path) -> None:
    """Raises `ValueError` for a link, behind which folders of somebody else's would be deleted."""
    if folder.is_symlink():
        raise ValueError(f"{folder.name} is a link, and nothing of a run is opened through one")


def _is_own(folder: Path) -> bool:
    """Whether it is a folder with nothing but what a checkpoint has."""
    return not folder.is_symlink() and folder.is_dir() and {path.name for path in folder.iterdir()} <= FILES


def _temporary_path(folder: Path) -> Path:
    return folder / f".tmp-{secrets.token_hex(8)}"


def _put_in_place(temporary: Path, target: Path) -> None:
    """Renames `temporary` to `target`. No folder can be renamed over a full one, so that is set aside."""
    aside = target.with_name(f"{target.name}.replaced-{time.time_ns():016x}")  # these sort by age
    try:
        if target.is_dir() and not target.is_symlink():
            os.rename(target, aside)
            sync_folder(target.parent)  # or a power cut could keep the next rename and lose this one
        os.rename(temporary, target)
    except OSError:
        with suppress(OSError):
            os.rename(aside, target)
        raise
    sync_folder(target.parent)
    with suppress(OSError):  # the new one is safe; what stays behind goes with the next prune
        for replaced in target.parent.glob(f"{target.name}.replaced-*"):
            _delete(replaced)


def _delete(folder: Path) -> None:
    """Deletes a folder, renamed first, so that a half deleted one never looks like a checkpoint."""
    doomed = _temporary_path(folder.parent)
    os.rename(folder, doomed)
    shutil.rmtree(doomed)


def _encode(checkpoint: Checkpoint) -> dict[str, bytes]:
    """Each file's bytes, the manifest last."""
    state, arrays = plain_arrays(checkpoint.state), plain_arrays(checkpoint.collector_arrays)
    files = {
        STATE: safetensors.numpy.save(state),
        COLLECTOR_ARRAYS: safetensors.numpy.save(arrays),
        COLLECTOR: json.dumps(checkpoint.collector).encode(),
    }
    manifest = {
        "format": FORMAT,
        "iteration": checkpoint.iteration,
        "env_steps": checkpoint.env_steps,
        "files": {
            name: {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data)} for name, data in files.items()
        },
        "tensors": {STATE: describe_tensors(state), COLLECTOR_ARRAYS: describe_tensors(arrays)},
        "meta": checkpoint.meta,
    }
    return {**files, MANIFEST: sealed(json.dumps(manifest).encode().removesuffix(b"}"))}


def _decode(read: Callable[[str, int | None], bytes]) -> Checkpoint:
    """The checkpoint whose files `read(name, size)` returns; ValueError and others where one is wrong."""
    manifest = _parse_manifest(read(MANIFEST, None))
    data = {}
    for name, listed in manifest["files"].items():
        data[name] = read(name, listed["size"])
        if hashlib.sha256(data[name]).hexdigest() != listed["sha256"]:
            raise ValueError(f"{name} is damaged, its SHA-256 is not the one in the manifest")
    arrays = {name: parse_tensors(name, data[name], manifest["tensors"][name]) for name in (STATE, COLLECTOR_ARRAYS)}
    check_finite(STATE, arrays[STATE])
    return Checkpoint(
        iteration=manifest["iteration"],
        env_steps=manifest["env_steps"],
        state=arrays[STATE],
        collector_arrays=arrays[COLLECTOR_ARRAYS],
        collector=parse_object(COLLECTOR, data[COLLECTOR]),
        meta=manifest["meta"],
    )


def _parse_manifest(data: bytes) -> dict[str, Any]:
    manifest = parse_sealed(MANIFEST, data)
    version = manifest.get("format")
    if type(version) is not int or version != FORMAT:
        raise ValueError(f"its format version is {version!r}, this version of inchworm reads {FORMAT}")
    _check_keys("it", manifest, {"format", "iteration", "env_steps", "files", "tensors", "meta", "sha256"})
    _check_keys("files", manifest["files"], {STATE, COLLECTOR_ARRAYS, COLLECTOR})
    _check_keys("tensors", manifest["tensors"], {STATE, COLLECTOR_ARRAYS})
    _check_keys("meta", manifest["meta"], None)
    _check_count("iteration", manifest["iteration"], None)
    _check_count("env_steps", manifest["env_steps"], None)
    for name, listed in manifest["files"].items():
        _check_keys(name, listed, {"sha256", "size"})
        _check_count(f"{name}'s size", listed["size"], MAX_JSON_BYTES if name == COLLECTOR else MAX_TENSOR_BYTES)
    for name, tensors in manifest["tensors"].items():
        _check_keys(f"{name}'s tensors", tensors, None)
    return manifest


def _check_keys(what: str, value: Any, keys: set[str] | None) -> None:
    if type(value) is not dict or (keys is not None and set(value) != keys):
        raise ValueError(f"{MANIFEST}: {what} must be an object" + (f" of exactly {sorted(keys)}" if keys else ""))


def _check_count(what: str, value: Any, maximum: int | None) -> None:
    if type(value) is not int or value < 0 or (maximum is not None and value > maximum):
        limit = "" if maximum is None else f" of at most {maximum}"
        raise ValueError(f"{MANIFEST}: {what} is {value!r}, not a whole number{limit}")


def _failure(path: Path, what: str, error: BaseException, fix: str) -> CheckpointError:
    reason = str(error) or type(error).__name__
    return CheckpointError("checkpoint", str(path), f"{what}: {reason[:300]}", fix)
