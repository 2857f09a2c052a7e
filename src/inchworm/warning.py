"""Warnings that point at the user's own line, and how programs of this library show them."""

import contextlib
import re
import shutil
import sys
import textwrap
import warnings
from typing import Any

_OURS = (__name__.partition(".")[0], "contextlib")
"""The library, and what calls from one part of it to another pass through."""
_ESCAPES = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)|.)?")


def warn(text: str) -> None:
    """Warns of something, as of the line outside this package that led to it."""
    frame, level = sys._getframe(1), 2
    while frame.f_back and str(frame.f_globals.get("__name__")).partition(".")[0] in _OURS:
        frame, level = frame.f_back, level + 1
    warnings.warn(text, UserWarning, stacklevel=level)


def show(message: Any, category: type, *_: Any, **__: Any) -> None:
    """Shows a warning in place of `warnings.showwarning`: what is meant for users, in one line, without its place."""
    if issubclass(category, UserWarning) and not issubclass(category, DeprecationWarning):
        complain(f"warning: {message}")


def complain(text: str) -> None:
    """Prints to standard error, on a terminal with its lines broken between words."""
    text = plain(text)
    if sys.stderr is not None and sys.stderr.isatty():
        width = shutil.get_terminal_size().columns
        lines = (
            textwrap.fill(line, width, break_long_words=False, break_on_hyphens=False) for line in text.split("\n")
        )
        text = "\n".join(lines)
    with contextlib.suppress(OSError, ValueError):  # a full disk, a pipe that nobody reads, a closed stream
        print(text, file=sys.stderr, flush=True)


def plain(text: str) -> str:
    """The text without the codes for colours and the like, which simulators put into their messages."""
    return _ESCAPES.sub("", text)
