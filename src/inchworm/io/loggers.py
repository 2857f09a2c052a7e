"""Metrics on disk: one JSON line an iteration, and TensorBoard's files."""

import json
import math
import time
from collections import defaultdict
from pathlib import Path
from statistics import fmean
from typing import Any, TextIO

from inchworm.io.files import finite_or_null
from inchworm.warning import warn

TENSORBOARD_SECONDS = 0.5
"""TensorBoard gets a point at most this often, the mean since the last; the JSON lines have every iteration."""

COUNTER = "episode/count"
"""Of which the last is told and not a mean."""


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
        self._file.close()


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The rows of a metrics file; lines cut short by a crash are passed over."""
    rows = []
    if path.exists():
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                row = json.loads(line)
            except ValueError:
                continue
            if isinstance(row, dict) and isinstance(row.get("iteration"), int):
                rows.append(row)
    return rows


def keep_numbers(metrics: dict[str, Any]) -> None:
    """Makes floats of what a callback has added; what is no number, or has no name, is taken out and warned of."""
    for name, value in list(metrics.items()):
        if type(value) is float:
            continue
        try:
            if not isinstance(name, str):
                raise TypeError
            metrics[name] = float(value)
        except (TypeError, ValueError):
            del metrics[name]
            warn(f"The metric {name!r} is not logged, because it is no number: {value!r:.100}.")


class TensorBoard:
    """Scalars over environment steps, in TensorBoard's format; points lie apart, and each is the mean since the last.

    What is under `guard/` appears when there is something to tell.
    """

    def __init__(self, folder: Path, purge_step: int | None, settings: dict[str, Any]) -> None:
        """Begins a file in a folder, which TensorBoard names the run by; points from `purge_step` on are dropped."""
        from tensorboardX import SummaryWriter

        self._writer = SummaryWriter(str(folder), purge_step=purge_step, flush_secs=10)
        self._writer.add_text("settings", _as_table(settings), 0)
        self._last = -math.inf
        self._since: dict[str, list[float]] = defaultdict(list)
        self._told: set[str] = set()
        self._env_steps = 0

    def write(self, env_steps: int, metrics: dict[str, float]) -> None:
        """Takes in a row; numbers that are not finite have no place in a mean."""
        self._env_steps = env_steps
        for name, value in metrics.items():
            if math.isfinite(value):
                self._since[name].append(value)
        if time.monotonic() - self._last >= TENSORBOARD_SECONDS:
            self._add_point()

    def close(self) -> None:
        self._add_point()
        self._writer.close()

    def _add_point(self) -> None:
        self._last = time.monotonic()
        for name, values in self._since.items():
            mean = values[-1] if name == COUNTER else fmean(values)
            if mean or not name.startswith("guard/") or name in self._told:
                self._told.add(name)
                self._writer.add_scalar(name, mean, self._env_steps)
        self._since.clear()


def _as_table(settings: dict[str, Any]) -> str:
    """Names and values as a table in Markdown; names of inner settings after that of the outer."""
    rows = ["| setting | value |", "| --- | --- |"]
    for name, value in settings.items():
        inner = value if isinstance(value, dict) and value else {"": value}
        rows += [f"| {'.'.join(filter(None, (name, key)))} | {json.dumps(part)} |" for key, part in inner.items()]
    return "\n".join(rows)
