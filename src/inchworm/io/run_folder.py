"""The folder of one run: its name, its files, its lock.

runs/<env>/<algorithm>/<UTC stamp>-seed<k>/
  config.json  provenance.json  metrics.jsonl  summary.json  events.out.tfevents...  curve.png  video.mp4
  checkpoints/000244/  policy/
"""

import contextlib
import fcntl
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from inchworm.errors import CheckpointError, RunFolderError
from inchworm.io.files import finite_or_null, parse_object, replace_file

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

    @property
    def complete(self) -> bool:
        """Whether a finished run has left all it should; the curve comes last."""
        return self.policy.is_dir() and self.curve.exists()

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Holds the run while it trains.

        Raises:
            RunFolderError: another process trains in this folder.
        """
        with open(self.path / ".lock", "w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                raise RunFolderError(
                    "run", str(self.path), "is being trained by another process", "Wait for it, or stop it first."
                ) from error
            yield


def check_name(name: Any) -> None:
    """`RunFolderError` unless a run's folder can be called so; None leaves the name to the library."""
    if name is None:
        return
    if not isinstance(name, str) or name in ("", ".", "..") or Path(name).name != name:
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
    parent = out / _env_folder(env) / algorithm
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
    folder = RunFolder(path)
    if folder.config.is_file():
        return folder
    problem, fix = "is not a run's folder: it has no config.json", "Name a folder below runs/."
    with contextlib.suppress(CheckpointError):
        names = ", ".join(run.path.name for run in runs_of_group(path)[:5])
        problem, fix = "is that of several seeds together", f"Name one of its runs, beside it: {names}."
    raise RunFolderError("run", str(path), problem, fix)


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


def write_json(path: Path, document: Any) -> None:
    """Writes JSON so that the file is never half written; a number that is not finite becomes null."""
    replace_file(path, (json.dumps(finite_or_null(document), indent=2) + "\n").encode())


def read_json(path: Path) -> dict[str, Any]:
    """Reads a JSON object.

    Raises:
        CheckpointError: the file is missing or damaged.
    """
    try:
        return parse_object(path.name, path.read_bytes())
    except (OSError, ValueError) as error:
        raise CheckpointError(path.name, str(path), f"cannot be read: {error}", "Name another run's folder.") from error
