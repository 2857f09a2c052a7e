"""Metrics on disk."""

import numpy as np
import pytest

from inchworm.io import loggers
from inchworm.io.loggers import TensorBoard


@pytest.fixture
def points(monkeypatch):
    """What TensorBoard's writer was given, by tag."""
    given, texts = {}, {}

    class Writer:
        def __init__(self, *args, **kwargs): ...

        def add_scalar(self, name, value, step):
            given.setdefault(name, []).append((step, value))

        def add_text(self, name, text, step):
            texts[name] = text

        def close(self): ...

    monkeypatch.setattr("tensorboardX.SummaryWriter", Writer)
    return given, texts


def test_tensorboard_is_told_of_every_row_as_part_of_a_mean_and_always_of_the_last(points, tmp_path, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(loggers.time, "monotonic", lambda: now[0])
    board = TensorBoard(tmp_path, 0, {})
    for row in range(1, 8):
        now[0] = 0.1 * row
        board.write(
            10 * row,
            {"episode/count": row, "episode/return": float(row), "episode/length": np.nan if row == 3 else 1.0},
        )
    board.close()
    assert points[0]["episode/return"] == [(10, 1.0), (60, np.mean([2, 3, 4, 5, 6])), (70, 7.0)]
    assert points[0]["episode/count"] == [(10, 1), (60, 6), (70, 7)]
    assert points[0]["episode/length"] == [(10, 1.0), (60, 1.0), (70, 1.0)]


def test_tensorboard_shows_no_guard_as_long_as_there_is_nothing_to_tell(points, tmp_path, monkeypatch):
    monkeypatch.setattr(loggers, "TENSORBOARD_SECONDS", 0.0)
    board = TensorBoard(tmp_path, 0, {})
    for step, skipped in enumerate([0.0, 0.0, 1.0, 0.0]):
        board.write(step, {"guard/skipped": skipped})
    board.close()
    assert points[0] == {"guard/skipped": [(2, 1.0), (3, 0.0)]}


def test_tensorboard_has_the_settings_as_a_table(points, tmp_path):
    TensorBoard(tmp_path, 0, {"env": "CartPole-v1", "settings": {"gamma": "0.99"}, "env_kwargs": {}}).close()
    rows = points[1]["settings"].splitlines()
    assert rows[2:] == ['| env | "CartPole-v1" |', '| settings.gamma | "0.99" |', "| env_kwargs | {} |"]


def test_tensorboard_names_a_run_by_its_folder(tmp_path):
    board = TensorBoard(tmp_path / "run", 0, {})
    board.write(1, {"episode/return": 1.0})
    board.close()
    assert [path.parent.name for path in tmp_path.rglob("events.out.tfevents.*")] == ["run"]
