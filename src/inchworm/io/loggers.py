"""Metrics on disk: one JSON line an iteration, and TensorBoard's files."""

import json
import math
import time
from pathlib import Path
from typing import Any, TextIO

from inchworm.io.files import finite_or_null

TENSORBOARD_SECONDS = 0.5
"""TensorBoard gets a point at most this often; the JSON lines have every iteration."""


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


class TensorBoard:
    """Scalars over environment steps, in TensorBoard's format."""

    def __init__(self, folder: Path, purge_step: int | None) -> None:
        from tensorboardX import SummaryWriter

        self._writer = SummaryWriter(str(folder), purge_step=purge_step, flush_secs=10)
        self._last = -math.inf

    def write(self, env_steps: int, metrics: dict[str, float]) -> None:
        """Adds a point for each finite metric, unless the last one is too recent."""
        if time.monotonic() - self._last < TENSORBOARD_SECONDS:
            return
        self._last = time.monotonic()
        for name, value in metrics.items():
            if math.isfinite(value):
                self._writer.add_scalar(name, value, env_steps)

    def close(self) -> None:
        self._writer.close()
