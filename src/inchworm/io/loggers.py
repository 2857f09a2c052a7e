"""Metrics on disk: one JSON line an iteration, and TensorBoard's files."""

import contextlib
import json
import math
import time
from collections import defaultdict
from collections.abc import Collection
from pathlib import Path
from statistics import fmean
from types import NoneType
from typing import Any, TextIO

from inchworm.io.files import finite_or_null
from inchworm.warning import warn

TENSORBOARD_SECONDS = 0.5
"""TensorBoard gets a point at most this often, the mean since the last; the JSON lines have every iteration."""

FLUSH_SECONDS = 10.0
"""How often TensorBoard's file is written through to the disk."""
AS_IT_IS = ("episode/count", "episode/return_recent", "episode/return_100")
"""Metrics of which TensorBoard is told the last, as they are counts and means already."""


class JsonLines:
    """Appends a line of metrics for each iteration."""

    def __init__(self, path: Path, keep_through: int) -> None:
        """Opens the file; lines past iteration `keep_through`, later than the checkpoint resumed from, are dropped."""
        rows = [row for row in read_metrics(path) if row["iteration"] <= keep_through]
        self._file: TextIO = open(path, "w", encoding="utf-8")  # noqa: SIM115  (open as long as the run)
        for row in rows:
            self.write(row)

    def write(self, row: dict[str, Any]) -> None:
        """Appends a row; a number that is not finite becomes null."""
        try:
            self._write(row)
        except ValueError:
            self._write(finite_or_null(row))

    def _write(self, row: dict[str, Any]) -> None:
        """Raises `ValueError` for a number that JSON has no word for."""
        self._file.write(json.dumps(row, allow_nan=False) + "\n")
        self._file.flush()

    def close(self) -> None:
        with contextlib.suppress(OSError):  # which `write` has told of
            self._file.close()


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The rows of a metrics file; lines cut short by a crash are passed over, and what is no number in them."""
    rows = []
    if path.exists():
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                row = json.loads(line)
            except ValueError:
                continue
            if isinstance(row, dict) and {type(row.get(name)) for name in ("iteration", "env_steps")} == {int}:
                rows.append({name: value for name, value in row.items() if type(value) in (int, float, NoneType)})
    return rows


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
    Written in this thread: a writer's own, as tensorboardX has one, ends at a full disk, and its queue then stops
    training for good.
    """

    def __init__(self, folder: Path, purge_step: int, settings: dict[str, Any]) -> None:
        """Begins a file in a folder, which TensorBoard names the run by; points from `purge_step` on are dropped."""
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto.event_pb2 import Event, SessionLog  # pyright: ignore[reportAttributeAccessIssue]
        from tensorboardX.proto.summary_pb2 import Summary  # pyright: ignore[reportAttributeAccessIssue]
        from tensorboardX.summary import text

        self._event, self._summary = Event, Summary
        self._writer = EventsWriter(str(folder / "events"))
        self._flushed = self._last = -math.inf
        self._since: dict[str, list[float]] = defaultdict(list)
        self._told: set[str] = set()
        self._env_steps = 0
        now = time.time()
        self._writer.write_event(Event(wall_time=now, step=purge_step, session_log=SessionLog(status=SessionLog.START)))
        self._writer.write_event(Event(wall_time=now, summary=text("settings", _as_table(settings))))

    def write(self, env_steps: int, metrics: dict[str, float]) -> None:
        """Takes in a row; numbers that are not finite have no place in a mean.

        Raises:
            OSError: the disk does not take it.
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
            self._writer.close()

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
        event = self._event(wall_time=time.time(), step=self._env_steps, summary=self._summary(value=values))
        self._writer.write_event(event)
        if self._last - self._flushed >= FLUSH_SECONDS:
            self._flushed = self._last
            self._writer.flush()


def _as_table(settings: dict[str, Any]) -> str:
    """Names and values as a table in Markdown; names of inner settings after that of the outer."""
    rows = ["| setting | value |", "| --- | --- |"]
    for name, value in settings.items():
        inner = value if isinstance(value, dict) and value else {"": value}
        rows += [f"| {'.'.join(filter(None, (name, key)))} | {json.dumps(part)} |" for key, part in inner.items()]
    return "\n".join(rows)
