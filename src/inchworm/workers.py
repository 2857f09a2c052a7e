"""The same work many times, in processes of one core each."""

import multiprocessing
import os
import pickle
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, CancelledError, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import numpy as np

from inchworm.errors import ConfigError, WorkerError

POLL_SECONDS = 0.2

Report = Callable[[float, float], None]
"""Tells the parent how far a worker is: steps done, and a number that says how well."""

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@dataclass
class _Worker:
    """What a worker knows."""

    table: Any
    """The parent's, for what the calls report."""
    stop: Any
    """The parent's wish."""
    at_work: bool = False


_worker: _Worker
"""In a worker."""


def cores() -> list[int]:
    """The cores this process may use."""
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count() or 1))


def call_in_processes(
    task: Callable[..., Any], calls: Sequence[tuple[Any, ...]], watch: Callable[[np.ndarray], None]
) -> list[Any | BaseException]:
    """Calls `task(*call, report)` for each of the calls, as many at a time as there are cores.

    Ctrl-C and SIGTERM are passed on to the workers, which are waited for; calls not yet begun are left out.

    Args:
        task: a function at the top level of a module.
        calls: arguments that can be pickled.
        watch: told every now and then what each call has reported, (calls, 2); NaN where nothing.

    Returns:
        For each call what it returned or raised; `CancelledError` if it was left out.

    Raises:
        ConfigError: an argument cannot be sent to another process.
    """
    _check_sendable(calls)
    context = multiprocessing.get_context("spawn")  # a fork of a process that has used JAX may hang
    chosen = cores()[: len(calls)]
    table = context.Array("d", [np.nan] * (2 * len(calls)), lock=False)
    pids = context.Array("l", len(chosen), lock=False)
    stop, places = context.Event(), context.Queue()
    for place in enumerate(chosen):
        places.put(place)
    reported = np.frombuffer(table).reshape(-1, 2)
    with ProcessPoolExecutor(len(chosen), context, _begin, (table, stop, places, pids)) as pool:
        futures = [pool.submit(_call, task, index, call) for index, call in enumerate(calls)]
        with _passed_on(stop, pids):
            waiting: set[Future[Any]] = set(futures)
            while waiting:
                _, waiting = wait(waiting, POLL_SECONDS, FIRST_COMPLETED)
                if stop.is_set():
                    for future in waiting:
                        future.cancel()
                watch(reported.copy())
    return [_result(future) for future in futures]


def _check_sendable(calls: Sequence[tuple[Any, ...]]) -> None:
    for argument in (argument for call in calls for argument in call):
        try:
            pickle.dumps(argument)
        except Exception as error:
            raise ConfigError(
                "seeds",
                repr(argument),
                f"cannot be sent to the processes that train them ({type(error).__name__})",
                "Give an id, module:factory or a function at the top level of a module, or train seed by seed.",
            ) from error


def _begin(table: Any, stop: Any, places: Any, pids: Any) -> None:
    """A worker's start: one core of its own, and no signals but those that the parent passes on."""
    global _worker
    _worker = _Worker(table, stop)
    slot, core = places.get()
    pids[slot] = os.getpid()
    os.setpgrp()
    for number in SIGNALS:
        signal.signal(number, _interrupt)
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {core})


def _interrupt(number: int, frame: Any) -> None:
    # A worker that died while it waits for work would take the others' results along.
    if _worker.at_work:
        raise KeyboardInterrupt


def _call(task: Callable[..., Any], index: int, call: tuple[Any, ...]) -> Any:
    if _worker.stop.is_set():
        raise CancelledError

    def report(steps: float, score: float) -> None:
        _worker.table[2 * index], _worker.table[2 * index + 1] = steps, score

    _worker.at_work = True
    try:
        return task(*call, report)
    finally:
        _worker.at_work = False


def _result(future: Future[Any]) -> Any | BaseException:
    try:
        return future.result()
    except BrokenProcessPool as error:
        return WorkerError(f"A process died without a word ({error}); its run can be resumed from its checkpoints.")
    except BaseException as error:
        return error


@contextmanager
def _passed_on(stop: Any, pids: Any) -> Iterator[None]:
    """While it lasts, signals to stop go to the workers."""

    def pass_on(number: int, frame: Any) -> None:
        stop.set()
        for pid in pids:
            if pid:
                with suppress(ProcessLookupError):
                    os.kill(pid, number)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, pass_on) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
