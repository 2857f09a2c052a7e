"""The table of loads, faults and bad inputs: what tests inject, and what came of it.

A test that injects one fault, or gives one bad input, is marked by the row that it belongs to:

    @pytest.mark.fault("RB2")                       what it gives is refused by an error that names it
    @pytest.mark.fault("RF17", outcome="survived")  what it does changes nothing of the result

and one that injects many counts them with the fixture `faults`. Where a test fails, its fault is silent: it was neither
survived nor told. The table is printed at the end, and written to build/faults.json.
"""

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest

ROWS = {
    "RL1": "a long compiled run: memory, descriptors and threads stay what they were",
    "RL2": "processes that step HalfCheetah for long",
    "RL3": "trainings one after the other in one process leave nothing behind",
    "RL4": "checkpoints by the hundred: few are kept, all of them verify",
    "RL5": "several seeds at once equal single runs, bit for bit",
    "RL6": "more processes than cores",
    "RL7": "trainings at once in one folder",
    "RL8": "actors of Ray",
    "RL9": "episodes of one step, and one that never ends",
    "RF1": "the environment raises in step, reset or close",
    "RF2": "a process of environments is killed",
    "RF3": "a process of environments crashes",
    "RF4": "an environment or its process hangs",
    "RF5": "one process is a hundred times slower",
    "RF6": "SIGTERM at a random instant",
    "RF7": "Ctrl-C, twice, SIGHUP",
    "RF8": "SIGKILL at a random instant, also while saving",
    "RF9": "a chain of kills and resumes",
    "RF10": "a power cut after any system call of a save",
    "RF11": "the disk is full, broken, read-only or forbidden at any call",
    "RF12": "a checkpoint is cut or bits in it are flipped",
    "RF13": "NaN, infinity and huge numbers in observations, rewards and actions",
    "RF14": "an actor, a node or the driver of Ray is lost",
    "RF16": "the clock jumps or stands still",
    "RF17": "a logger or a callback raises, the log's disk is full, the output is closed",
    "RF19": "resumed with another number of environments, devices or processes",
    "RF20": "runs that other versions have written",
    "RF21": "training under crashes learns as without",
    "RB1": "an environment breaks its contract",
    "RB2": "a setting is wrong",
    "RB3": "a file of a checkpoint is not what it should be",
    "RB4": "files are mutated at random",
    "RB5": "the library is misused",
}
NOT_BUILT = ("RL2", "RL6", "RL8", "RF2", "RF3", "RF5", "RF14")
"""Rows that need processes to be replaced, or Ray."""
OUTCOMES = ("survived", "detected", "silent")
KEY = "fault"


class Faults:
    """Counts what a test injects."""

    def __init__(self, item: Any) -> None:
        self._item = item
        item.fault_rows = set()

    def begin(self, row: str) -> None:
        """Faults of a row are about to be injected."""
        self._item.fault_rows.add(row)

    def count(self, row: str, *, survived: int = 0, detected: int = 0) -> None:
        """So many faults of a row were survived, or told by an error or a warning that names them."""
        self.begin(row)
        for outcome, number in (("survived", survived), ("detected", detected)):
            if number:
                _add(self._item, row, outcome, number)


@pytest.fixture
def faults(request: pytest.FixtureRequest) -> Faults:
    return Faults(request.node)


def _add(item: Any, row: str, outcome: str, number: int) -> None:
    assert row in ROWS, row
    item.user_properties.append((KEY, [row, outcome, number]))


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "fault(row, outcome): injects a fault of a row of the table in fault_table.py")


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo) -> Any:
    if call.when == "call":
        failed = call.excinfo is not None and not call.excinfo.errisinstance(pytest.skip.Exception)
        skipped = call.excinfo is not None and not failed
        for marker in item.iter_markers(KEY):
            if not skipped:
                outcome = marker.kwargs.get("outcome", "detected")
                _add(item, marker.args[0], "silent" if failed else outcome, 1)
        for row in getattr(item, "fault_rows", ()) if failed else ():
            _add(item, row, "silent", 1)
    yield


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.when == "call":
        for key, value in report.user_properties:
            if key == KEY:
                _COUNTS[value[0]][value[1]] += value[2]


_COUNTS: dict[str, dict[str, int]] = defaultdict(lambda: dict.fromkeys(OUTCOMES, 0))


def lines(counts: dict[str, dict[str, int]]) -> list[str]:
    """The table, a line a row."""
    written = [f"{'':6}{'injected':>9}{'survived':>9}{'detected':>9}{'silent':>7}  what is injected"]
    for row, about in ROWS.items():
        found = counts.get(row, dict.fromkeys(OUTCOMES, 0))
        numbers = f"{sum(found.values()):9,}{found['survived']:9,}{found['detected']:9,}{found['silent']:7,}"
        if not any(found.values()):
            numbers = f"{'not built yet' if row in NOT_BUILT else 'not run':>34}"
        written.append(f"{row:6}{numbers}  {about}")
    return written


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    if not _COUNTS:
        return
    terminalreporter.section("loads, faults and bad inputs")
    for line in lines(_COUNTS):
        terminalreporter.write_line(line)
    path = Path(config.rootpath) / "build" / "faults.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(_COUNTS, indent=2) + "\n")
