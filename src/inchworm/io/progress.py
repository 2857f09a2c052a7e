"""A line that tells how training goes: return, time left, rate, steps."""

import contextlib
import math
import os
import shutil
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any, Protocol, TextIO

from inchworm.io.words import format_return, format_seconds

LIVE_SECONDS = 0.2
"""A line that is rewritten changes at most this often,"""
PRINTED_SECONDS = 10.0
"""and where lines stay, one is printed at most this often."""
RATE_SECONDS = 15.0
"""The rate is that of about the last so many seconds: the first call compiles, which says nothing about the rest."""
WIPE = "\r\x1b[2K"
"""Goes to the start of a terminal's line and wipes it."""


class Display(Protocol):
    """Where a line is shown that changes."""

    interval: float
    """Seconds from one change to the next."""

    def show(self, text: str) -> None: ...

    def close(self, text: str) -> None:
        """Ends the line, whose last text this was, so that what is printed next stands on a line of its own."""
        ...


class Terminal:
    """One line of a terminal: cut to its width, below all that is printed meanwhile, and gone at the end."""

    interval = LIVE_SECONDS

    def __init__(self, stream: TextIO) -> None:
        self._stream, self._drawn, self.open_line = innermost(stream), False, False
        # Threads would put the streams of others back.
        if threading.current_thread() is threading.main_thread():
            for name in ("stdout", "stderr"):
                if is_terminal(inner := getattr(sys, name)):
                    setattr(sys, name, AboveTheLine(inner, self))

    def show(self, text: str) -> None:
        if not self.open_line:
            width = shutil.get_terminal_size().columns
            self._stream.write(WIPE + (text if len(text) < width else f"{text[: width - 2]}…"))
            self._stream.flush()
            self._drawn = True

    def wipe(self) -> None:
        """Makes room where the line stands; it is drawn again with the next change."""
        if self._drawn:
            self._drawn = False
            with contextlib.suppress(OSError, ValueError):  # it may be gone, and who prints elsewhere must not care
                self._stream.write(WIPE)
                self._stream.flush()

    def close(self, text: str) -> None:
        for name in ("stdout", "stderr"):
            found = getattr(sys, name)
            if isinstance(found, AboveTheLine) and found.line is self:
                setattr(sys, name, found.inner)
        self.wipe()


class AboveTheLine:
    """Stands in for `sys.stdout` or `sys.stderr`: moves the line out of the way of what is written to them.

    As long as a line of the user's own has not ended, ours is not drawn.
    """

    def __init__(self, inner: TextIO, line: Terminal) -> None:
        self.inner, self.line = inner, line

    def write(self, text: str) -> int:
        self.line.wipe()
        if text:
            self.line.open_line = not text.endswith("\n")
        return self.inner.write(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)


def innermost(stream: Any) -> TextIO:
    """The stream itself, where a training within another has been given the other's."""
    while isinstance(stream, AboveTheLine):
        stream = stream.inner
    return stream


def is_terminal(stream: Any) -> bool:
    """Whether a stream is a terminal whose lines can be rewritten; what a user has put in place of one may not say."""
    return bool(getattr(stream, "isatty", bool)()) and os.environ.get("TERM") != "dumb"


class Notebook:
    """One output of a notebook's cell, which is rewritten."""

    interval = LIVE_SECONDS

    def __init__(self, display: Callable[..., Any]) -> None:
        self._display, self._handle = display, None

    def show(self, text: str) -> None:
        data = {"text/plain": text}
        if self._handle is None:
            self._handle = self._display(data, raw=True, display_id=True)
        else:
            self._handle.update(data, raw=True)

    def close(self, text: str) -> None:
        self.show(text)


class Lines:
    """Lines one after the other, in a file or a pipe."""

    interval = PRINTED_SECONDS

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._shown: deque[str] = deque(maxlen=100)

    def show(self, text: str) -> None:
        self._shown.append(text)
        print(text, file=self._stream, flush=True)

    def close(self, text: str) -> None:
        if text not in self._shown:
            self.show(text)


def display_of(stream: TextIO | None) -> Display | None:
    """What suits the place that this program's messages go to; None where there is no such place."""
    if (display := _notebook_display()) is not None:
        return Notebook(display)
    if stream is None:
        return None
    return Terminal(stream) if is_terminal(stream) else Lines(stream)


def _notebook_display() -> Callable[..., Any] | None:
    """What shows things below a notebook's cell; None outside of notebooks."""
    if (ipython := sys.modules.get("IPython")) is None or getattr(ipython.get_ipython(), "kernel", None) is None:
        return None
    from IPython.display import display  # pyright: ignore[reportMissingImports]

    return display


def say(text: str) -> None:
    """Prints a message that is no result: to standard error, but in a notebook, which shows that in red."""
    stream = sys.stderr if _notebook_display() is None else sys.stdout
    if stream is not None:
        with contextlib.suppress(OSError, ValueError):
            print(text, file=stream, flush=True)


class ProgressLine:
    """One line that tells how training goes; one that cannot be written is given up."""

    def __init__(
        self,
        total_steps: int,
        max_seconds: float | None = None,
        seconds: float = 0.0,
        stream: TextIO | None = None,
    ) -> None:
        """Begins to show a run of a budget, and perhaps a limit in time, that has been trained for so many seconds."""
        self._total_steps = total_steps
        self._end = math.inf if max_seconds is None else seconds + max_seconds
        self._recent: deque[tuple[float, int]] = deque()
        self._latest: tuple[int, float, float | None] | None = None
        self._text, self._last, self._noting = "", -math.inf, False
        self._display: Display | None = None
        with contextlib.suppress(OSError, ValueError):
            self._display = display_of(stream or sys.stderr)

    def note(self, text: str) -> None:
        """Shows what goes on instead of training: the first text at once, later ones no more often than updates."""
        if not self._noting and self._latest is not None:
            self._show_state()  # how far training has come, where lines stay
        if not self._noting or self._is_due():
            self._show(text)
        self._noting = True

    def update(self, env_steps: int, seconds: float, mean_return: float | None) -> None:
        """Shows the state of training, unless the last change is too recent.

        Args:
            env_steps: done so far.
            seconds: of training so far.
            mean_return: of the last episodes; None before the first has ended.
        """
        recent = self._recent
        recent.append((seconds, env_steps))
        while len(recent) > 2 and recent[1][0] <= seconds - RATE_SECONDS:
            recent.popleft()
        self._noting, self._latest = False, (env_steps, seconds, mean_return)
        if env_steps >= self._total_steps or self._is_due():
            self._show_state()

    def close(self) -> None:
        """Ends the line, which tells of the last update before."""
        self._give_up(self._text if self._latest is None else self._describe(*self._latest))

    def _give_up(self, text: str) -> None:
        display, self._display = self._display, None
        with contextlib.suppress(OSError, ValueError):
            if display is not None:
                display.close(text)

    def _show_state(self) -> None:
        if self._latest is not None and (text := self._describe(*self._latest)) != self._text:
            self._show(text)

    def _is_due(self) -> bool:
        return self._display is not None and time.monotonic() - self._last >= self._display.interval

    def _show(self, text: str) -> None:
        self._text, self._last = text, time.monotonic()
        try:
            if self._display is not None:
                self._display.show(text)
        except (OSError, ValueError):  # a full disk, a closed pipe, a closed file
            self._give_up(text)

    def _describe(self, env_steps: int, seconds: float, mean_return: float | None) -> str:
        total = self._total_steps
        (first_seconds, first_steps), (last_seconds, last_steps) = self._recent[0], self._recent[-1]
        parts = [
            f"{100 * min(env_steps / total, 1):3.0f} %",
            f"return {'-' if mean_return is None else format_return(mean_return)}",
        ]
        if last_seconds > first_seconds:
            rate = (last_steps - first_steps) / (last_seconds - first_seconds)
            left = min(max(total - env_steps, 0) / max(rate, 1e-9), max(self._end - seconds, 0.0))
            parts += [f"{format_seconds(left)} left", f"{rate:,.0f} steps/s"]
        return "  ".join([*parts, f"{env_steps:,} / {total:,} steps"])


class GroupProgress:
    """One line for several runs at once, if it is to be shown."""

    def __init__(self, runs: int, total_steps: int, max_seconds: float | None, shown: bool) -> None:
        self._line, self._began = ProgressLine(runs * total_steps, max_seconds) if shown else None, time.monotonic()
        self._told = dict.fromkeys(range(runs), (0.0, math.nan))

    def tell(self, run: int, env_steps: float, mean_return: float | None) -> None:
        """Takes in how far a run is, and shows all of them together."""
        self._told[run] = env_steps, math.nan if mean_return is None else mean_return
        env_steps = int(sum(steps for steps, _ in self._told.values()))
        returns = [mean for _, mean in self._told.values() if math.isfinite(mean)]
        mean = sum(returns) / len(returns) if returns else None
        if self._line is not None:
            self._line.update(env_steps, time.monotonic() - self._began, mean)

    def note(self, text: str) -> None:
        """Shows what goes on instead of training."""
        if self._line is not None:
            self._line.note(text)

    def close(self) -> None:
        """Ends the line."""
        if self._line is not None:
            self._line.close()
