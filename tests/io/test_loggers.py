"""Metrics on disk."""

import math
import os
import struct
from unittest import mock

import numpy as np
import pytest
from tensorboardX.proto.event_pb2 import Event
from tensorboardX.record_writer import masked_crc32c

from inchworm.io import loggers
from inchworm.io.loggers import TensorBoard


def points(folder):
    """What TensorBoard finds in a folder: points by tag, and texts. It stops at the first record that is damaged."""
    given, texts = {}, {}
    (path,) = folder.glob("events.out.tfevents.*")
    rest = path.read_bytes()
    while rest:
        (length,) = struct.unpack("<Q", rest[:8])
        data = rest[12 : 12 + length]
        assert struct.unpack("<II", rest[8:12] + rest[12 + length : 16 + length]) == (
            masked_crc32c(rest[:8]),
            masked_crc32c(data),
        )
        rest = rest[16 + length :]
        event = Event.FromString(data)
        for value in event.summary.value:
            if value.metadata.plugin_data.plugin_name == "text":
                texts[value.tag.partition("/")[0]] = value.tensor.string_val[0].decode()
            else:
                given.setdefault(value.tag, []).append((event.step, value.simple_value))
    return given, texts


def test_tensorboard_is_told_of_every_row_as_part_of_a_mean_and_always_of_the_last(tmp_path, monkeypatch):
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
    given, _ = points(tmp_path)
    assert given["episode/return"] == [(10, 1.0), (60, np.mean([2, 3, 4, 5, 6])), (70, 7.0)]
    assert given["episode/count"] == [(10, 1), (60, 6), (70, 7)]
    assert given["episode/return_100"] == [(10, 2.0), (60, 12.0), (70, 14.0)]
    assert given["episode/length"] == [(10, 1.0), (60, 1.0), (70, 1.0)]


def test_tensorboard_shows_no_guard_as_long_as_there_is_nothing_to_tell(tmp_path, monkeypatch):
    monkeypatch.setattr(loggers, "TENSORBOARD_SECONDS", 0.0)
    board = TensorBoard(tmp_path, 0, {})
    for step, skipped in enumerate([0.0, 0.0, 1.0, 0.0]):
        board.write(step, {"guard/skipped": skipped})
    board.close()
    assert points(tmp_path)[0] == {"guard/skipped": [(2, 1.0), (3, 0.0)]}


def test_tensorboard_has_the_settings_as_a_table(tmp_path):
    TensorBoard(tmp_path, 0, {"env": "CartPole-v1", "settings": {"gamma": "0.99"}, "env_kwargs": {}}).close()
    rows = points(tmp_path)[1]["settings"].splitlines()
    assert rows[2:] == ['| env | "CartPole-v1" |', '| settings.gamma | "0.99" |', "| env_kwargs | {} |"]


def test_tensorboard_names_a_run_by_its_folder(tmp_path):
    (tmp_path / "run").mkdir()
    board = TensorBoard(tmp_path / "run", 0, {})
    board.write(1, {"episode/return": 1.0})
    board.close()
    assert [path.parent.name for path in tmp_path.rglob("events.out.tfevents.*")] == ["run"]


@pytest.mark.fault("RF17", outcome="survived")
def test_a_disk_that_is_full_for_a_while_is_told_and_costs_tensorboard_no_point(tmp_path, monkeypatch):
    real, free = os.write, [math.inf]

    def write(descriptor, data):
        if free[0] == 0:
            raise OSError(28, "No space left on device")
        taken = real(descriptor, data[: min(len(data), free[0])])
        free[0] -= taken
        return taken

    monkeypatch.setattr(os, "write", write)
    monkeypatch.setattr(loggers, "TENSORBOARD_SECONDS", 0.0)
    board = TensorBoard(tmp_path, 0, {})
    free[0] = 20
    for step in (1, 2):
        with pytest.raises(OSError, match="No space"):
            board.write(step, {"a": 1.0 * step})
    assert points(tmp_path)[0] == {}
    free[0] = math.inf
    board.write(3, {"a": 3.0})
    free[0] = 0
    board.close()
    assert points(tmp_path)[0] == {"a": [(1, 1.0), (2, 2.0), (3, 3.0)]}


def test_tensorboard_begins_on_a_disk_that_is_full(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", mock.Mock(side_effect=OSError(28, "No space left on device")))
        board = TensorBoard(tmp_path, 0, {"env": "CartPole-v1"})
    board.write(1, {"a": 1.0})
    board.close()
    assert points(tmp_path)[0] == {"a": [(1, 1.0)]}
    assert "CartPole-v1" in points(tmp_path)[1]["settings"]


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
