"""A line that tells how training goes: steps, rate, time left, return."""

import math
import sys
import time
from typing import Any, TextIO


class ProgressLine:
    """Rewrites one line on a terminal; elsewhere prints a line now and then."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream or sys.stderr
        self._live = self._stream.isatty()
        self._interval = 0.2 if self._live else 10.0
        self._last = time.monotonic() - self._interval
        self._width = 0

    def update(self, env_steps: int, total_steps: int, seconds: float, mean_return: float | None, final: bool) -> None:
        """Shows the state of training, unless the last update is too recent."""
        now = time.monotonic()
        if not final and now - self._last < self._interval:
            return
        self._last = now
        rate = env_steps / max(seconds, 1e-9)
        left = max(total_steps - env_steps, 0) / max(rate, 1e-9)
        shown_return = "return -" if mean_return is None else f"return {mean_return:,.1f}"
        text = (
            f"{env_steps:>9,} / {total_steps:,} steps  {100 * min(env_steps / total_steps, 1):3.0f} %  "
            f"{rate:,.0f} steps/s  {format_seconds(left)} left  {shown_return}"
        )
        if self._live:
            self._stream.write("\r" + text.ljust(self._width) + ("\n" if final else ""))
            self._width = len(text)
        else:
            self._stream.write(text + "\n")
        self._stream.flush()


class GroupProgress:
    """One line for several runs at once."""

    def __init__(self, runs: int, total_steps: int) -> None:
        self._line, self._total_steps, self._began = ProgressLine(), runs * total_steps, time.monotonic()
        self._over = False
        self._told = dict.fromkeys(range(runs), (0.0, math.nan))

    def tell(self, run: int, env_steps: float, mean_return: float) -> None:
        """Takes in how far a run is, and shows all of them together."""
        self._told[run] = env_steps, mean_return
        env_steps = int(sum(steps for steps, _ in self._told.values()))
        returns = [mean for _, mean in self._told.values() if math.isfinite(mean)]
        mean = sum(returns) / len(returns) if returns else None
        final, self._over = env_steps >= self._total_steps and not self._over, env_steps >= self._total_steps
        self._line.update(env_steps, self._total_steps, time.monotonic() - self._began, mean, final)


def format_seconds(seconds: float) -> str:
    """As 1:23:45 or 2:05."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def describe(document: dict[str, Any]) -> str:
    """Names and values as two aligned columns."""
    width = max(len(name) for name in document)
    return "\n".join(f"  {name:<{width}}  {value}" for name, value in document.items())
