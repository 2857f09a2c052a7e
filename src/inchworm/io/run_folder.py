"""The folder of one run: its name, its files, its lock.

runs/<env>/<algorithm>/<UTC stamp>-seed<k>/
  config.json  provenance.json  metrics.jsonl  summary.json  events.out.tfevents...  curve.png  video.mp4
  checkpoints/000244/  policy/
"""

import contextlib
import fcntl
import json
import math
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import NoneType
from typing import Any

from inchworm.errors import CheckpointError, RunFolderError
from inchworm.io.files import finite_or_null, open_own, parse_object, read_file, replace_file

MAX_NAME = 100
"""Letters of a folder that is named after an environment."""


@dataclass(frozen=True)
class RunFolder:
    """Paths inside a run's folder."""

    path: Path

    @property
    def config(self) -> Path:
        return self.path / "config.json"

    @property
    def provenance(self) -> Path:
        return self.path / "provenance.json"

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def summary(self) -> Path:
        return self.path / "summary.json"

    @property
    def curve(self) -> Path:
        return self.path / "curve.png"

    @property
    def video(self) -> Path:
        return self.path / "video.mp4"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def policy(self) -> Path:
        return self.path / "policy"

    def is_complete(self, env_steps: int) -> bool:
        """Whether all is there that the run leaves after so many steps. Its summary says so, which is written last."""
        try:
            summary = read_json(self.summary)
        except CheckpointError:
            return False
        return self.policy.is_dir() and summary.get("complete") is True and summary.get("env_steps") == env_steps

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Holds the run while it trains.

        Raises:
            RunFolderError: another process trains in this folder.
        """
        try:
            descriptor = open_own(self.path / ".lock", os.O_RDWR | os.O_CREAT)
        except (OSError, ValueError) as error:
            raise RunFolderError("run", str(self.path), f"cannot be locked: {error}", "Look at its .lock.") from error
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                raise RunFolderError(
                    "run", str(self.path), "is being trained by another process", "Wait for it, or stop it first."
                ) from error
            yield
        finally:
            os.close(descriptor)

    def is_held(self) -> bool:
        """Whether a process trains in it now."""
        try:
            descriptor = open_own(self.path / ".lock")
        except (OSError, ValueError):
            return False
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError:
            return True
        finally:
            os.close(descriptor)
        return False


@contextlib.contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Inside it what a disk does not take is a `RunFolderError` that names the run's folder."""
    try:
        yield
    except OSError as error:
        raise RunFolderError(
            "run",
            str(folder),
            f"cannot be written: {error.strerror or error}",
            "Free space, or choose another folder; a run goes on from its last checkpoint with `inchworm resume`.",
        ) from error


def check_name(name: Any) -> None:
    """`RunFolderError` unless a run's folder can be called so; None leaves the name to the library."""
    if name is None:
        return
    if not isinstance(name, str) or not name.strip(". ") or Path(name).name != name:
        raise RunFolderError("name", name, "is not the name of one folder", "Give a text without slashes.")


def create_run_folder(out: Path, env: str, algorithm: str, ending: str, name: str | None) -> RunFolder:
    """Makes the folder of a new run.

    Args:
        out: where runs are kept.
        env: environment id, or another name of what was given; without what a shell or a disk would trip over.
        algorithm: its name.
        ending: of the folder's name after a time stamp, as "seed0".
        name: the folder's own name in place of that, or None.

    Raises:
        RunFolderError: it cannot be written, or a run of that name exists, or the name is no folder's.
    """
    check_name(name)
    parent = out.absolute() / _env_folder(env) / algorithm  # an environment may change the current folder
    candidates = [name] if name is not None else [f"{stamp}-{ending}" for stamp in _stamps()]
    try:
        parent.mkdir(parents=True, exist_ok=True)
        for candidate in candidates:
            with contextlib.suppress(FileExistsError):
                (parent / candidate).mkdir()
                return RunFolder(parent / candidate)
    except OSError as error:
        raise RunFolderError(
            "out", str(out), f"cannot be written: {error.strerror}", "Choose another folder with --out."
        ) from error
    raise _taken(parent / candidates[0])


def free_stamp(out: Path, env: str, algorithm: str, endings: Sequence[str]) -> str:
    """A time stamp with which no folder of these endings is there yet."""
    parent = out / _env_folder(env) / algorithm
    stamps = _stamps()
    free = (stamp for stamp in stamps if not any((parent / f"{stamp}-{ending}").exists() for ending in endings))
    return next(free, stamps[0])


def _stamps() -> list[str]:
    """Now, and numbered forms of it."""
    stamp = datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
    return [stamp, *(f"{stamp}-{number}" for number in range(2, 100))]


def check_new(out: Path, env: str, algorithm: str, names: Iterable[str]) -> None:
    """Raises `RunFolderError` if there is a run of one of these names."""
    for name in names:
        if (folder := out / _env_folder(env) / algorithm / name).exists():
            raise _taken(folder)


def _taken(folder: Path) -> RunFolderError:
    return RunFolderError(
        "name",
        folder.name,
        f"exists already in {folder.parent}",
        "Choose another --name, or continue it with `inchworm resume`.",
    )


def out_of(run: Path, env: str, algorithm: str) -> Path:
    """Where a run is kept: what it was made in, or, if its folder was moved elsewhere, the folder that it lies in."""
    run = run.resolve()
    return run.parents[2] if run.parts[-3:-1] == (_env_folder(env), algorithm) else run.parent


def _env_folder(env: str) -> str:
    """The name of an environment as a folder's: ALE-Pong-v5, my_envs-make."""
    return re.sub(r"[^\w.+=@-]+", "-", env).strip("-.")[:MAX_NAME] or "env"


def open_run_folder(path: Path) -> RunFolder:
    """The folder of an existing run.

    Raises:
        RunFolderError: there is no run.
    """
    folder = RunFolder(path.absolute())
    if folder.config.is_file():
        _check_own(folder)
        return folder
    problem, fix = "is not a run's folder: it has no config.json", "Name a folder below runs/."
    with contextlib.suppress(CheckpointError):
        names = ", ".join(run.path.name for run in runs_of_group(path)[:5])
        problem, fix = "is that of several seeds together", f"Name one of its runs, beside it: {names}."
    raise RunFolderError("run", str(path), problem, fix)


def _check_own(folder: RunFolder) -> None:
    """`RunFolderError` where a link, or what is neither file nor folder, stands in place of something of a run's.

    Through a link in a folder that somebody else made, files of one's own would be read, written and deleted.
    """
    files = {folder.config, folder.provenance, folder.metrics, folder.summary, folder.curve, folder.video}
    folders = {folder.checkpoints, folder.policy}
    with os.scandir(folder.path) as entries:
        for entry in entries:
            path = folder.path / entry.name
            is_file = path in files or entry.name == ".lock" or entry.name.startswith("events.out.tfevents")
            problem = "is a link"
            if not entry.is_symlink():
                problem = "is no regular file" if is_file else "is no folder"
            good = entry.is_file(follow_symlinks=False) if is_file else entry.is_dir(follow_symlinks=False)
            if (is_file or path in folders) and not good:
                raise RunFolderError(
                    "run", str(folder.path), f"has a {entry.name} that {problem}", "Put there what a run leaves."
                )


def runs_of_group(path: Path) -> list[RunFolder]:
    """The folders of runs that differ by their seeds, which lie beside that of all of them.

    Raises:
        CheckpointError: it names none.
    """
    names = read_json(RunFolder(path).summary).get("runs")
    names = names if isinstance(names, list) else []
    if not names or not all(isinstance(name, str) and re.fullmatch(r"[^./\0][^/\0]*", name) for name in names):
        raise CheckpointError("summary.json", str(path), "names no runs of a group", "Name the runs' folders.")
    return [RunFolder(path.parent / name) for name in names]


_WHOLE, _NUMBER, _TEXT = (int,), (int, float), (str,)
_SUMMARY: dict[str, tuple[type, ...]] = {
    "env": _TEXT,
    "algorithm": _TEXT,
    "seed": _WHOLE,
    "stopped_by": _TEXT,
    "iterations": _WHOLE,
    "env_steps": _WHOLE,
    "gradient_steps": _WHOLE,
    "skipped_updates": _WHOLE,
    "episodes": _WHOLE,
    "return_100": (*_NUMBER, NoneType),
    "seconds": _NUMBER,
    "parameters_sha256": _TEXT,
}
"""What a run's summary tells, and what kind each is."""
_EVALUATION: dict[str, tuple[type, ...]] = {
    "returns": (list,),
    "lengths": (list,),
    "mean": _NUMBER,
    "std": _NUMBER,
    "unfinished": _WHOLE,
}


def read_summary(path: Path) -> dict[str, Any]:
    """A run's summary.

    Raises:
        CheckpointError: the file is missing or damaged, or tells other things than a summary does.
    """
    summary = read_json(path)
    parts = {"": (summary, _SUMMARY)} | {
        kind: (summary[kind], _EVALUATION)
        for kind in ("evaluation_deterministic", "evaluation_stochastic")
        if kind in summary
    }
    for part, (document, kinds) in parts.items():
        for name, kind in kinds.items():
            value = document.get(name, ...) if isinstance(document, dict) else ...
            if type(value) not in kind or (type(value) is float and not math.isfinite(value)):
                where = f"{part}.{name}".removeprefix(".")
                raise CheckpointError("summary.json", where, "is not what a run writes", "The file is damaged.")
    for kind in ("return_over", "asked"):
        values = [document[kind] for document, _ in parts.values() if kind in document]
        if any(type(value) is not int for value in values):
            raise CheckpointError("summary.json", kind, "is not what a run writes", "The file is damaged.")
    return summary


def write_json(path: Path, document: Any) -> None:
    """Writes JSON so that the file is never half written; a number that is not finite becomes null."""
    replace_file(path, (json.dumps(finite_or_null(document), indent=2) + "\n").encode())


def read_json(path: Path) -> dict[str, Any]:
    """Reads a JSON object.

    Raises:
        CheckpointError: the file is missing or damaged.
    """
    try:
        return parse_object(path.name, read_file(None, path, None))
    except (OSError, ValueError) as error:
        raise CheckpointError(path.name, str(path), f"cannot be read: {error}", "Name another run's folder.") from error
