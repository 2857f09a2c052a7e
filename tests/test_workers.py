"""Processes that work side by side: what becomes of one does not touch the others, and none outlives its parent."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from inchworm.errors import CheckpointError, NonFiniteError, WorkerError
from inchworm.workers import run_workers

WORKER = "sample_worker"
PARENT = """
import sys
from inchworm.workers import run_workers
run_workers("sample_worker", [{"do": "wait", "note": sys.argv[1]}, {"do": "wait", "note": sys.argv[2]}], print)
"""


@pytest.fixture(autouse=True)
def _found(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parent))


def gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return Path(f"/proc/{pid}/stat").read_text().split()[2] == "Z"


def wait_for(condition, seconds: float = 120.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_results_come_in_the_order_of_the_calls_and_reports_while_they_work():
    told = []
    results = run_workers(
        WORKER, [{"do": "return", "value": value} for value in range(5)], lambda *report: told.append(report)
    )
    assert results == [0, 1, 4, 9, 16]
    assert sorted(told) == [(index, 10.0 * index, None) for index in range(5)]


def test_a_worker_that_dies_or_fails_leaves_the_others_alone():
    calls = [{"do": what, "value": 3} for what in ("die", "return", "fail", "refuse", "break")]
    died, fine, failed, refused, broke = run_workers(WORKER, calls, lambda *report: None)
    assert fine == 9
    assert type(died) is WorkerError
    assert "killed by signal 9" in str(died)
    assert type(failed) is NonFiniteError
    assert str(failed) == "nothing is finite"
    assert type(refused) is CheckpointError
    assert (refused.field, refused.fix) == ("tensor", "Take another.")
    assert type(broke) is WorkerError
    assert "ZeroDivisionError" in str(broke)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_no_worker_outlives_its_parent(tmp_path, number):
    notes = [tmp_path / "first", tmp_path / "second"]
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, *notes], env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    )
    try:
        wait_for(lambda: all(note.exists() and note.read_text() for note in notes))
        pids = [int(note.read_text()) for note in notes]
        parent.send_signal(number)
        wait_for(lambda: all(gone(pid) for pid in pids))
        assert parent.wait(timeout=30) == (-signal.SIGKILL if number == signal.SIGKILL else 128 + signal.SIGTERM)
    finally:
        with contextlib.suppress(ProcessLookupError):
            parent.kill()
