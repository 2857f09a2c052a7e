"""Processes that work for this one: what they are told, how they answer, and the same work several times at once.

A worker is a Python program that reads what it has to do from its standard input, and answers on its standard output.
Its input stays open as long as the parent lives, so that a worker whose parent was killed sees the end of it and stops.

One that does the same work as others (`run_workers`, `serve`) reads one line of JSON and answers in such lines: how far
it is, {"steps": ..., "score": ...} or {"note": ...}, and at last {"result": ...} or {"error": {"type": ...,
"arguments": [...]}}.
"""

import contextlib
import importlib
import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from threading import Thread
from typing import IO, Any

from inchworm import errors
from inchworm.errors import ConfigError, FieldError, InchwormError, WorkerError
from inchworm.signals import leave, told_to_stop
from inchworm.warning import show

POLL_SECONDS = 0.05
PATIENCE_SECONDS = 5.0
"""How long is waited for a process that is about to end."""
INSIDE = "INCHWORM_WORKER"
"""Set in the environment of workers."""
SCRIPT = "__inchworm_main__"
"""What a worker calls the script that its parent was started with."""


def cores() -> list[int]:
    """The cores this process may use."""
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count() or 1))


def check_outside(field: str) -> None:
    """Raises `ConfigError` in a worker, which must not start workers: it was only to find a function of a script."""
    if INSIDE in os.environ:
        raise ConfigError(
            field,
            sys.argv[0],
            "is a script that trains when it is imported, which the processes do that look for its functions",
            'Put what trains below `if __name__ == "__main__":`.',
        )


def reference(field: str, value: Any) -> Any:
    """Something a worker finds the value by: JSON for an id, a module and a name for a function or class.

    Raises:
        ConfigError: there is none.
    """
    if value is None or isinstance(value, str):
        return value
    module, name = getattr(value, "__module__", None), getattr(value, "__qualname__", "")
    where: dict[str, Any] = {"module": module, "name": name}
    if module == "__main__":
        main = sys.modules[module]
        if main.__spec__ is None:  # a script; else it is `python -m module`
            where = {"script": getattr(main, "__file__", None), "name": name}
        else:
            where["module"] = main.__spec__.name
    try:
        if _attribute(sys.modules[module or ""], name) is value and None not in where.values():
            return where
    except (KeyError, AttributeError):
        pass
    raise ConfigError(
        field,
        value,
        "cannot be found by other processes",
        "Give an id, module:factory, or a function or class at the top level of a module; or train in this process.",
    )


def referred(where: Any) -> Any:
    """What `reference` refers to."""
    if not isinstance(where, dict):
        return where
    if "module" in where:
        return _attribute(importlib.import_module(where["module"]), where["name"])
    if SCRIPT not in sys.modules:
        spec = importlib.util.spec_from_file_location(SCRIPT, where["script"])
        assert spec is not None
        assert spec.loader is not None
        sys.modules[SCRIPT] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[SCRIPT])
    return _attribute(sys.modules[SCRIPT], where["name"])


def _attribute(module: Any, name: str) -> Any:
    for part in name.split("."):
        module = getattr(module, part)
    return module


@dataclass
class _Worker:
    """A process and what it has said."""

    process: subprocess.Popen[str]
    core: int
    reader: Thread = field(init=False)
    answer: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.reader = Thread(target=self._read, daemon=True)
        self.reader.start()
        Thread(target=self._pass_on, daemon=True).start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.answer |= json.loads(line)

    def _pass_on(self) -> None:
        """What it prints goes where this process prints, which may show a line that has to make room."""
        assert self.process.stderr is not None
        for line in self.process.stderr:
            if sys.stderr is not None:
                with contextlib.suppress(OSError, ValueError):
                    sys.stderr.write(line)
                    sys.stderr.flush()


def run_workers(
    module: str,
    calls: Sequence[dict[str, Any]],
    watch: Callable[[int, float, float | None], None],
    note: Callable[[str], None] = lambda text: None,
) -> list[Any | InchwormError]:
    """Runs `python -m module` for each call, as many at a time as there are cores, each on one of its own.

    Ctrl-C and SIGTERM are passed on to the workers, which are waited for.

    Args:
        module: the worker's program.
        calls: what it is told, as JSON.
        watch: told every now and then how far a call is: its index, its steps and its score, None before there is one.
        note: told in words what one of them does instead.

    Returns:
        For each call its result, or the error that ended it.

    Raises:
        KeyboardInterrupt: Ctrl-C, after all have stopped.
        SystemExit: SIGTERM likewise.
    """
    free, waiting = cores(), list(range(len(calls)))
    running: dict[int, _Worker] = {}
    results: list[Any | InchwormError] = [None] * len(calls)

    def pass_on(number: int) -> None:
        for worker in list(running.values()):
            worker.process.send_signal(number)

    with told_to_stop(pass_on) as stopped:
        try:
            while running or (waiting and not stopped()):
                while waiting and free and not stopped():
                    index, core = waiting.pop(0), free.pop(0)
                    running[index] = _start(module, calls[index], core)
                    if reason := stopped():  # while it was started, so that it was not told
                        running[index].process.send_signal(signal.Signals[reason])
                time.sleep(POLL_SECONDS)
                for index, worker in list(running.items()):
                    over = worker.process.poll() is not None
                    if over:
                        worker.reader.join(PATIENCE_SECONDS)  # a process it has left behind may hold its output open
                    if (steps := worker.answer.pop("steps", None)) is not None:
                        watch(index, steps, worker.answer["score"])
                    if (text := worker.answer.pop("note", None)) is not None:
                        note(text)
                    if over:
                        results[index] = _result(running.pop(index))
                        free.append(worker.core)
        finally:
            for worker in running.values():
                worker.process.kill()
    if reason := stopped():
        leave(reason)
    return results


def serve(
    work: Callable[[dict[str, Any], Callable[[float, float | None], None], Callable[[str], None]], Any],
) -> int:
    """A worker's life: does what its parent asks for and answers.

    Args:
        work: from the call, and functions that report steps and score, and what it does in words, to the result as
            JSON.

    Returns:
        Exit status.
    """
    answers, calls = os.fdopen(own_stdout(), "w"), os.fdopen(own_stdin())
    call = json.loads(calls.readline())
    sys.argv = call["argv"]  # which a script may read when it is imported
    Thread(target=_stop_with_parent, args=[calls], daemon=True).start()
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {call["core"]})

    def say(**document: Any) -> None:
        print(json.dumps(document), file=answers, flush=True)

    try:
        say(result=work(call, lambda steps, score: say(steps=steps, score=score), lambda text: say(note=text)))
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    except Exception as error:
        say(error=error_to_json(error))
        return 1
    return 0


def _stop_with_parent(calls: IO[str]) -> None:
    calls.read()
    os.kill(os.getpid(), signal.SIGTERM)


def own_stdin() -> int:
    """A file descriptor of standard input for messages alone: what an environment reads there ends at once."""
    messages = os.dup(0)
    with open(os.devnull) as nothing:
        os.dup2(nothing.fileno(), 0)
    return messages


def own_stdout() -> int:
    """A file descriptor of standard output for answers alone: what anything else prints goes to standard error.

    Warnings go there as from the command line, because a worker's own lines mean nothing to the user.
    """
    warnings.showwarning = show
    answers = os.dup(1)
    os.dup2(2, 1)
    return answers


def error_to_json(error: Exception) -> dict[str, Any]:
    """An error that the parent can raise again; one that is not ours is shown here, where its traceback is."""
    if isinstance(error, FieldError):
        shown = error.value if isinstance(error.value, str) else repr(error.value)
        arguments = [error.field, shown, error.problem, error.fix]
    else:
        arguments = [str(error)]
    if isinstance(error, InchwormError):
        there = "".join(traceback.format_exception(error))
        return {"type": type(error).__name__, "arguments": arguments, "traceback": there}
    traceback.print_exc()
    what = f"A process ended with {type(error).__name__}: {error}".rstrip(".")
    return {"type": "WorkerError", "arguments": [f"{what}."], "traceback": ""}


def error_from_json(document: dict[str, Any]) -> InchwormError:
    """What `error_to_json` wrote; its traceback is shown below the one here."""
    error = getattr(errors, document["type"])(*document["arguments"])
    if document["traceback"]:
        error.add_note(f"In the other process:\n{document['traceback']}")
    return error


def start_program(module: str, **how: Any) -> subprocess.Popen[Any]:
    """Starts `python -m module` as a worker, which finds the modules that this process finds."""
    return subprocess.Popen(
        [sys.executable, "-P", "-m", module],  # -P: the current folder does not come before the parent's paths
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=os.environ | {INSIDE: "1", "PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path)},
        start_new_session=True,  # a terminal's Ctrl-C reaches it through the parent only
        **how,
    )


def how_it_ended(status: int) -> str:
    """The end of a sentence on a process that left no word."""
    return f"was killed by signal {-status}" if status < 0 else f"ended with status {status}"


def _start(module: str, call: dict[str, Any], core: int) -> _Worker:
    process = start_program(module, text=True, errors="replace", stderr=subprocess.PIPE)
    assert process.stdin is not None
    try:
        process.stdin.write(json.dumps(call | {"core": core, "argv": sys.argv}) + "\n")
        process.stdin.flush()
    except BrokenPipeError:  # it died at once, which its exit status tells
        pass
    return _Worker(process, core)


def _result(worker: _Worker) -> Any | InchwormError:
    status = worker.process.returncode
    assert worker.process.stdin is not None
    assert worker.process.stdout is not None
    worker.process.stdin.close()
    if not worker.reader.is_alive():
        worker.process.stdout.close()
    if error := worker.answer.get("error"):
        return error_from_json(error)
    if "result" in worker.answer:
        return worker.answer["result"]
    return WorkerError(f"A process that trained one of the seeds {how_it_ended(status)} and left no word.")
