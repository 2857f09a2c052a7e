"""Metrics on disk: one JSON line an iteration, and TensorBoard's files."""

import contextlib
import json
import math
import os
import socket
import struct
import time
from collections import defaultdict
from collections.abc import Collection
from pathlib import Path
from statistics import fmean
from typing import Any

from inchworm.errors import CheckpointError
from inchworm.io.files import RecordFile, finite_or_null, open_own, replace_file
from inchworm.warning import warn

MAX_METRICS_BYTES, MAX_LINE = 4 << 30, 1 << 20
TENSORBOARD_SECONDS = 0.5
"""TensorBoard gets a point at most this often, the mean since the last; the JSON lines have every iteration."""
AS_IT_IS = ("episode/count", "episode/return_recent", "episode/return_100")
"""Metrics of which TensorBoard is told the last, as they are counts and means already."""


class JsonLines:
    """Appends a line of metrics for each iteration. What the disk did not take is written before the next line."""

    def __init__(self, path: Path, keep_through: int) -> None:
        """Opens the file; lines past iteration `keep_through`, later than the checkpoint resumed from, are dropped.

        Raises:
            CheckpointError: there is a file that cannot be read.
        """
        kept = [row for row in read_metrics(path) if row["iteration"] <= keep_through]
        if path.exists():
            replace_file(path, b"".join(map(_line, kept)))
        self._file = RecordFile(path)

    def write(self, row: dict[str, Any]) -> None:
        """Appends a row; a number that is not finite becomes null.

        Raises:
            OSError: the disk does not take it, yet.
        """
        self._file.append(_line(row))

    def close(self) -> None:
        self._file.close()


def _line(row: dict[str, Any]) -> bytes:
    try:
        text = json.dumps(row, allow_nan=False)
    except ValueError:
        text = json.dumps(finite_or_null(row), allow_nan=False)
    return f"{text}\n".encode()


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The rows of a metrics file; lines cut short by a crash are passed over, and what is no number in them.

    Raises:
        CheckpointError: it is no file, or larger than any run's.
    """
    rows = []
    try:
        with open(open_own(path), encoding="utf-8", errors="replace") as file:
            if (size := os.fstat(file.fileno()).st_size) > MAX_METRICS_BYTES:
                raise ValueError(f"it has {size:,} bytes, and at most {MAX_METRICS_BYTES:,} are read")
            while line := file.readline(MAX_LINE):
                if (row := _row(line)) is not None:
                    rows.append(row)
    except FileNotFoundError:
        return []
    except (OSError, ValueError) as error:
        raise CheckpointError(path.name, str(path), f"cannot be read: {error}", "Move it away.") from error
    return rows


def _row(line: str) -> dict[str, Any] | None:
    """The numbers of a row; None if it is none."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(row, dict) or not all(_is_count(row.get(name)) for name in ("iteration", "env_steps")):
        return None
    numbers = {name: value for name, value in row.items() if type(value) is float or value is None or _is_count(value)}
    return finite_or_null(numbers)


def _is_count(value: Any) -> bool:
    """Whether it is a whole number of a size that counts have."""
    return type(value) is int and abs(value) < 2**63


def numbers_of(metrics: dict[str, Any], taken: Collection[str], told: set[str]) -> dict[str, float]:
    """A row's metrics as floats, with what callbacks have added.

    Left out and warned of, once for each name, is what is no number, has no name, or has that of a column of ours.

    Args:
        metrics: by their names.
        taken: the names of the columns that a row begins with.
        told: the names that were warned of, which is added to.
    """
    numbers = {}
    for name, value in metrics.items():
        try:
            if not isinstance(name, str) or name in taken:
                raise ValueError
            numbers[name] = value if type(value) is float else float(value)
        except Exception:
            if str(name) not in told:
                told.add(str(name))
                problem = f"is no number: {value!r:.100}"
                if not isinstance(name, str) or name in taken:
                    problem = "has the name of another column" if name in taken else "has a name that is no text"
                warn(f"The metric {name!r} is not logged, because it {problem}.")
    return numbers


class TensorBoard:
    """Scalars over environment steps, in TensorBoard's format; points lie apart, and each is the mean since the last.

    What is a mean or a count already is told as it is, and what is under `guard/` when there is something to tell.
    tensorboardX describes the events. It does not write them: at a full disk its thread ends, and its queue then stops
    training for good; its file would keep half of a record, at which TensorBoard stops reading.
    """

    def __init__(self, folder: Path, purge_step: int, settings: dict[str, Any]) -> None:
        """Begins a file in a folder, which TensorBoard names the run by; points from `purge_step` on are dropped."""
        from tensorboardX.proto.event_pb2 import Event, SessionLog  # pyright: ignore[reportAttributeAccessIssue]
        from tensorboardX.proto.summary_pb2 import Summary  # pyright: ignore[reportAttributeAccessIssue]
        from tensorboardX.record_writer import masked_crc32c
        from tensorboardX.summary import text

        self._event, self._summary, self._crc = Event, Summary, masked_crc32c
        now = time.time()
        self._file = RecordFile(folder / f"events.out.tfevents.{int(now)}.{socket.gethostname()}")
        self._last = -math.inf
        self._since: dict[str, list[float]] = defaultdict(list)
        self._told: set[str] = set()
        self._env_steps = 0
        for event in (
            {"file_version": "brain.Event:2"},
            {"step": purge_step, "session_log": SessionLog(status=SessionLog.START)},
            {"summary": text("settings", _as_table(settings))},
        ):
            with contextlib.suppress(OSError):  # it waits, and `write` tells of it
                self._append(**event)

    def write(self, env_steps: int, metrics: dict[str, float]) -> None:
        """Takes in a row; numbers that are not finite have no place in a mean.

        Raises:
            OSError: the disk does not take it, yet.
        """
        self._env_steps = env_steps
        for name, value in metrics.items():
            if math.isfinite(value):
                self._since[name].append(value)
        if time.monotonic() - self._last >= TENSORBOARD_SECONDS:
            self._add_point()

    def close(self) -> None:
        with contextlib.suppress(OSError):  # which `write` has told of
            self._add_point()
        self._file.close()

    def _add_point(self) -> None:
        self._last = time.monotonic()
        since, self._since = self._since, defaultdict(list)
        point = {
            name: values[-1] if name in AS_IT_IS or name.startswith("schedule/") else fmean(values)
            for name, values in since.items()
        }
        point = {name: value for name, value in point.items() if value or name[:6] != "guard/" or name in self._told}
        self._told |= point.keys()
        values = [self._summary.Value(tag=name, simple_value=value) for name, value in point.items()]
        self._append(step=self._env_steps, summary=self._summary(value=values))

    def _append(self, **event: Any) -> None:
        """An event in TensorFlow's format of records: length and data, each with a checksum."""
        data = self._event(wall_time=time.time(), **event).SerializeToString()
        length = struct.pack("<Q", len(data))
        checksums = (struct.pack("<I", self._crc(part)) for part in (length, data))
        self._file.append(length + next(checksums) + data + next(checksums))


def _as_table(settings: dict[str, Any]) -> str:
    """Names and values as a table in Markdown; names of inner settings after that of the outer."""
    rows = ["| setting | value |", "| --- | --- |"]
    for name, value in settings.items():
        inner = value if isinstance(value, dict) and value else {"": value}
        rows += [f"| {'.'.join(filter(None, (name, key)))} | {json.dumps(part)} |" for key, part in inner.items()]
    return "\n".join(rows)
