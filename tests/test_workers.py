"""Processes that work side by side: what becomes of one does not touch the others, and none outlives its parent."""

import contextlib
import os
import signal
import subprocess
import sys
import time
import types
from importlib.machinery import ModuleSpec
from pathlib import Path

import pytest

from inchworm import workers
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


def test_an_error_brings_its_traceback_along():
    (failed,) = run_workers(WORKER, [{"do": "fail"}], lambda *report: None)
    assert 'raise NonFiniteError("nothing is finite")' in "".join(failed.__notes__)


def test_what_the_current_folder_holds_does_not_hide_the_parent_s_modules(tmp_path, monkeypatch):
    (tmp_path / f"{WORKER}.py").write_text("raise SystemExit(3)")
    monkeypatch.chdir(tmp_path)
    assert run_workers(WORKER, [{"do": "return", "value": 3}], lambda *report: None) == [9]


def test_a_signal_that_comes_while_a_worker_is_started_stops_it_too(tmp_path, monkeypatch):
    start, begun = workers._start, []

    def start_and_be_told(*arguments):
        begun.append(start(*arguments))
        os.kill(os.getpid(), signal.SIGTERM)
        return begun[-1]

    monkeypatch.setattr(workers, "_start", start_and_be_told)
    calls = [{"do": "wait", "note": str(tmp_path / "note")}] * 3
    with pytest.raises(SystemExit):
        run_workers(WORKER, calls, lambda *report: None)
    assert len(begun) == 1
    assert begun[0].process.poll() is not None


def test_the_functions_of_a_module_that_is_run_are_found_by_its_name(monkeypatch):
    main = types.ModuleType("__main__")
    main.__spec__ = ModuleSpec("package.train", None)
    main.make = types.FunctionType(test_no_worker_outlives_its_parent.__code__, {}, "make")
    main.make.__module__, main.make.__qualname__ = "__main__", "make"
    monkeypatch.setitem(sys.modules, "__main__", main)
    assert workers.reference("env", main.make) == {"module": "package.train", "name": "make"}
    main.__spec__, main.__file__ = None, "train.py"
    assert workers.reference("env", main.make) == {"script": "train.py", "name": "make"}


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
