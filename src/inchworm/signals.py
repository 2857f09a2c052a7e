"""Signals that ask a program to stop, and what is done where an environment does not let it.

A signal is heard between iterations, so that everything can be saved. An environment that does not return keeps an
iteration from ending for ever; a thread watches for that. It tells of it, and where a signal has come and nothing has
moved for `PATIENCE_SECONDS`, the call of the environment is given up; code outside Python cannot be, and then the
program ends.
"""

import contextlib
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from inchworm.warning import warn

TO_STOP = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)
PATIENCE_SECONDS = 5.0
"""How long an environment may take to return, once the program was told to stop."""
SILENCE_SECONDS = 60.0
"""After so long an environment that does not return is told of."""
LOOK_SECONDS = 0.5
"""How often is looked whether an environment has returned."""
LAST_WORDS = b"\nAn environment does not return, not even to be interrupted. `inchworm resume` goes on from the last \
checkpoint.\n"
ENVIRONMENTS = "inchworm.envs"
"""The modules that call environments."""


class GivenUpError(KeyboardInterrupt):
    """The program was told to stop, and an environment did not return."""


@contextmanager
def told_to_stop(on_signal: Callable[[int], None] = lambda number: None) -> Iterator[Callable[[], str | None]]:
    """Turns SIGTERM, SIGHUP and Ctrl-C into a reason to stop, while it lasts and in the main thread.

    A second Ctrl-C interrupts at once. An environment that does not return is interrupted by `GivenUpError`.

    Args:
        on_signal: called with the number of each signal.

    Yields:
        A function that names the first signal that came, None before.
    """
    caught: list[str] = []

    if threading.current_thread() is not threading.main_thread():
        yield lambda: None
        return
    watch = _Watch(threading.get_ident())

    def note(number: int, frame: FrameType | None) -> None:
        asked, again = watch.asks(), bool(caught)
        if again and not asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        if not (again and asked):
            caught.append(signal.Signals(number).name)
            on_signal(number)
        # The call may have returned meanwhile.
        if asked and _call_of_environments(frame) is not None:
            raise GivenUpError

    with watch:
        before = {number: signal.signal(number, note) for number in TO_STOP}
        try:
            yield lambda: caught[0] if caught else None
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


class _Watch:
    """A thread that looks for how long the main thread has been in one and the same call of the environments.

    It hears of signals by a pipe, because their handlers wait for code outside Python to return.
    """

    def __init__(self, main: int) -> None:
        self._main = main
        self._over = threading.Event()
        self._giving_up = False
        self._told = False

    def __enter__(self) -> None:
        self._incoming, self._outgoing = os.pipe()
        for descriptor in (self._incoming, self._outgoing):
            os.set_blocking(descriptor, False)
        self._before = signal.set_wakeup_fd(self._outgoing, warn_on_full_buffer=False)
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._over.set()
        signal.set_wakeup_fd(self._before)
        with contextlib.suppress(BlockingIOError):
            os.write(self._outgoing, b"\0")  # which wakes the thread
        self._thread.join()
        for descriptor in (self._incoming, self._outgoing):
            os.close(descriptor)

    def asks(self) -> bool:
        """Whether a signal is the one by which the thread has the call of an environment given up."""
        asked, self._giving_up = self._giving_up, False
        return asked

    def _look(self) -> None:
        number, signalled, call, since, asked = 0, 0.0, None, time.monotonic(), 0.0
        while True:
            select.select([self._incoming], [], [], LOOK_SECONDS)
            if self._over.is_set():
                return
            now = time.monotonic()
            with contextlib.suppress(BlockingIOError):
                for byte in os.read(self._incoming, 64):
                    if byte in TO_STOP and not number:
                        number, signalled = byte, now
            found = _call_of_environments(sys._current_frames().get(self._main))
            if found is not call:
                call, since, asked = found, now, 0.0
            if call is None:
                continue
            if now - since >= SILENCE_SECONDS and not self._told:
                self._told = True
                with contextlib.suppress(UserWarning):  # where warnings are errors
                    warn(
                        f"An environment has not returned for {now - since:.0f} seconds. Ctrl-C, or SIGTERM, stops the "
                        "run and saves what it has learned."
                    )
            if not number or now - max(since, signalled) < PATIENCE_SECONDS:
                continue
            if not asked:
                asked, self._giving_up = now, True
                os.kill(os.getpid(), number)
            elif now - asked >= PATIENCE_SECONDS:
                with contextlib.suppress(OSError):
                    os.write(2, LAST_WORDS)
                os._exit(128 + number)


def _call_of_environments(frame: FrameType | None) -> FrameType | None:
    """The outermost frame that calls environments; the same object as long as that call has not returned."""
    found = None
    while frame is not None:
        if frame.f_globals.get("__name__", "").startswith(ENVIRONMENTS):
            found = frame
        frame = frame.f_back
    return found


def acknowledge(number: int) -> None:
    """Tells who has typed Ctrl-C what comes of it, by the descriptor, because a signal may come while Python prints."""
    if number == signal.SIGINT and os.isatty(2):
        with contextlib.suppress(OSError):
            os.write(2, b"\r\x1b[2KStopping, when what runs is saved; Ctrl-C once more ends at once.\n")


def leave(name: str) -> None:
    """Ends the program as a signal asked.

    Raises:
        KeyboardInterrupt: Ctrl-C.
        SystemExit: another, with the status that shells expect.
    """
    if name == "SIGINT":
        raise KeyboardInterrupt
    raise SystemExit(128 + signal.Signals[name])
