"""Signals that ask a program to stop."""

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

TO_STOP = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)


@contextmanager
def told_to_stop(on_signal: Callable[[int], None] = lambda number: None) -> Iterator[Callable[[], str | None]]:
    """Turns SIGTERM, SIGHUP and Ctrl-C into a reason to stop, while it lasts and in the main thread.

    A second Ctrl-C interrupts at once.

    Args:
        on_signal: called with the number of each signal.

    Yields:
        A function that names the first signal that came, None before.
    """
    caught: list[str] = []

    def note(number: int, frame: object) -> None:
        if caught and number == signal.SIGINT:
            raise KeyboardInterrupt
        caught.append(signal.Signals(number).name)
        on_signal(number)

    if threading.current_thread() is not threading.main_thread():
        yield lambda: None
        return
    before = {number: signal.signal(number, note) for number in TO_STOP}
    try:
        yield lambda: caught[0] if caught else None
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


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
