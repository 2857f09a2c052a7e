"""Tests every mutant in a fork of one process that has imported and collected the tests: the quick way.

In the fork the code of the functions that differ is exchanged. So a mutant outside of functions, in what runs when its
module is imported, cannot be tested like this.
"""

import gc
import inspect
import os
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from types import CodeType, FunctionType
from typing import Any

import jax
import pytest
from jax._src import xla_bridge

Change = tuple[CodeType, CodeType]


def sort_by_duration(items: list[pytest.Item], durations: Path) -> None:
    """The quickest first: most mutants are killed by many tests."""
    rows = [line.split(" ", 1) for line in durations.read_text().splitlines()]
    seconds = {test: float(text) for text, test in rows}
    items.sort(key=lambda item: seconds.get(item.nodeid, 0.0))


def changes(before: CodeType, after: CodeType) -> list[Change] | None:
    """The functions, outermost ones, whose code differs; None if anything outside of functions does."""
    found: list[Change] = []
    first, second = _parts(before), _parts(after)
    if before.replace(co_consts=first[0]) != after.replace(co_consts=second[0]) or len(first[1]) != len(second[1]):
        return None
    for one, other in zip(first[1], second[1], strict=True):
        if one == other:
            continue
        if one.co_flags & inspect.CO_OPTIMIZED:
            found.append((one, other))
        elif (inner := changes(one, other)) is not None:  # a class
            found += inner
        else:
            return None
    return found


def _parts(code: CodeType) -> tuple[tuple[Any, ...], list[CodeType]]:
    """The constants of a code with its functions and classes left out, and these."""
    plain = tuple(None if isinstance(one, CodeType) else one for one in code.co_consts)
    return plain, [one for one in code.co_consts if isinstance(one, CodeType)]


class Forks:
    """Takes the place of pytest's loop over tests: a fork runs them for each mutant, the quickest first."""

    def __init__(
        self, path: Path, codes: Sequence[str], processes: int, durations: Path, tell: Callable[[int, str, float], None]
    ) -> None:
        """Is to test the texts of the module at `path`, as far as they can be tested like this.

        `tell` gets the index of each with "killed", "timeout" or "survived" and the seconds it took. What the tests
        take without any error is written to `durations`, a line for each: seconds and test.
        """
        self._path, self._codes, self._processes, self._tell = path, codes, processes, tell
        self._durations, self._seconds = durations, Counter[str]()
        self._devices = jax.devices

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self._seconds[report.nodeid] += report.duration
        if report.failed:
            print(f"{report.nodeid}\n{report.longreprtext}", flush=True)

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        jax.devices = self._devices
        if session.testsfailed:
            raise SystemExit("the tests cannot be collected")
        if xla_bridge._backends:
            raise SystemExit("a test file computes with JAX when it is imported, which cannot be forked then")
        alone = self._measure(session)
        # Programs of mutants are not worth keeping.
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 1e9)
        alive = [one for one in gc.get_objects() if isinstance(one, FunctionType)]
        alive = [one for one in alive if one.__code__.co_filename == str(self._path)]
        found = [(index, self._find(code, alive)) for index, code in enumerate(self._codes)]
        waiting = [(index, planted) for index, planted in reversed(found) if planted is not None]
        running: dict[int, tuple[int, float]] = {}
        while waiting or running:
            while waiting and len(running) < self._processes:
                index, planted = waiting.pop()
                running[self._fork(session, planted)] = index, time.monotonic()
            time.sleep(0.01)
            for child, (index, started) in list(running.items()):
                seconds = time.monotonic() - started
                if late := seconds > 20.0 + 4.0 * alone:
                    os.killpg(child, signal.SIGKILL)
                done, status = os.waitpid(child, 0 if late else os.WNOHANG)
                if done:
                    del running[child]
                    self._tell(index, "timeout" if late else "killed" if status else "survived", seconds)
        return True

    def _find(self, code: str, alive: list[FunctionType]) -> list[tuple[FunctionType, CodeType]] | None:
        """The functions that are alive and differ, with their other code; None if that is not all that differs."""
        loader: Any = next(
            module.__spec__.loader
            for module in list(sys.modules.values())
            if getattr(module, "__file__", None) == str(self._path)
        )
        texts = self._path.read_text(), code
        before, after = (loader.source_to_code(text.encode(), str(self._path)) for text in texts)
        differing = changes(before, after)
        if not differing:
            return None
        planted: list[tuple[FunctionType, CodeType]] = []
        for old, new in differing:
            those = [(one, new) for one in alive if one.__code__ == old]
            if not those or old.co_freevars != new.co_freevars:
                return None
            planted += those
        return planted

    def _measure(self, session: pytest.Session) -> float:
        """Sorts the tests by the time they take without any error, and returns all of it."""
        started = time.monotonic()
        child = os.fork()
        if not child:
            status = self._run(session)
            self._durations.write_text("".join(f"{seconds} {test}\n" for test, seconds in self._seconds.items()))
            os._exit(status)
        if os.waitpid(child, 0)[1]:
            raise SystemExit("the tests fail without any error")
        sort_by_duration(session.items, self._durations)
        return time.monotonic() - started

    def _fork(self, session: pytest.Session, planted: list[tuple[FunctionType, CodeType]]) -> int:
        child = os.fork()
        if not child:
            status = 3
            try:
                os.setsid()
                for function, code in planted:
                    function.__code__ = code
                status = self._run(session)
            finally:
                os._exit(status)
        return child

    def _run(self, session: pytest.Session) -> int:
        """Runs the tests until one fails."""
        from quick_compilation import cache_folder, known_flags  # of the tests

        os.environ["XLA_FLAGS"] = known_flags(cache_folder())
        jax.devices()
        del os.environ["XLA_FLAGS"]
        for item, following in zip(session.items, [*session.items[1:], None], strict=True):
            item.config.hook.pytest_runtest_protocol(item=item, nextitem=following)
            if session.testsfailed:
                return 1
        return 0
