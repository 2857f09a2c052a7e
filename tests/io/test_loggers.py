"""Metrics on disk."""

import numpy as np
import pytest

from inchworm.io import loggers
from inchworm.io.loggers import TensorBoard


@pytest.fixture
def points(monkeypatch):
    """What TensorBoard's file was given: points by tag, and texts."""
    given, texts = {}, {}

    class Writer:
        def __init__(self, prefix): ...

        def write_event(self, event):
            for value in event.summary.value:
                if value.metadata.plugin_data.plugin_name == "text":
                    texts[value.tag.partition("/")[0]] = value.tensor.string_val[0].decode()
                else:
                    given.setdefault(value.tag, []).append((event.step, value.simple_value))

        def flush(self): ...

        def close(self): ...

    monkeypatch.setattr("tensorboardX.event_file_writer.EventsWriter", Writer)
    return given, texts


def test_tensorboard_is_told_of_every_row_as_part_of_a_mean_and_always_of_the_last(points, tmp_path, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(loggers.time, "monotonic", lambda: now[0])
    board = TensorBoard(tmp_path, 0, {})
    for row in range(1, 8):
        now[0] = 0.1 * row
        board.write(
            10 * row,
            {
                "episode/count": row,
                "episode/return_100": 2.0 * row,
                "episode/return": float(row),
                "episode/length": np.nan if row == 3 else 1.0,
            },
        )
    board.close()
    assert points[0]["episode/return"] == [(10, 1.0), (60, np.mean([2, 3, 4, 5, 6])), (70, 7.0)]
    assert points[0]["episode/count"] == [(10, 1), (60, 6), (70, 7)]
    assert points[0]["episode/return_100"] == [(10, 2.0), (60, 12.0), (70, 14.0)]
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
    (tmp_path / "run").mkdir()
    board = TensorBoard(tmp_path / "run", 0, {})
    board.write(1, {"episode/return": 1.0})
    board.close()
    assert [path.parent.name for path in tmp_path.rglob("events.out.tfevents.*")] == ["run"]


@pytest.mark.fault("RF17", outcome="survived")
def test_a_disk_that_is_full_is_told_and_stops_nothing(tmp_path, monkeypatch):
    full = [True]

    class Writer:
        def __init__(self, prefix): ...

        def write_event(self, event):
            if full[0] and event.summary.value and event.summary.value[0].tag == "a":
                raise OSError(28, "No space left on device")

        def flush(self): ...

        def close(self):
            raise OSError(28, "No space left on device")

    monkeypatch.setattr("tensorboardX.event_file_writer.EventsWriter", Writer)
    monkeypatch.setattr(loggers, "TENSORBOARD_SECONDS", 0.0)
    board = TensorBoard(tmp_path, 0, {})
    with pytest.raises(OSError, match="No space"):
        board.write(1, {"a": 1.0})
    board.close()


def test_what_a_callback_adds_is_a_number_of_a_name_of_its_own_or_left_out_and_told_once():
    told = set()
    metrics = {"a": 1, "b": "cat", "iteration": 7.0, "c": 10**400, 3: 4.0, "d": np.float32(0.5)}
    with pytest.warns(UserWarning, match="The metric ") as warned:
        numbers = [loggers.numbers_of(metrics, ("iteration",), told) for _ in range(3)]
    assert numbers == [{"a": 1.0, "d": 0.5}] * 3
    assert len(warned) == 4
    assert "has a name that is no text" in str(warned[3].message)


def test_rows_that_are_none_and_fields_that_are_no_numbers_are_passed_over(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"iteration": 1}\n{"iteration": 2, "env_steps": 8, "episode/return": "high", "x": null}\n{"iter')
    assert loggers.read_metrics(path) == [{"iteration": 2, "env_steps": 8, "x": None}]
