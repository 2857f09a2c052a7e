"""Warnings that point at the user's own line."""

import contextlib
import sys
import warnings
from pathlib import Path

_PACKAGE = f"{Path(__file__).parent}/"
_BETWEEN = (contextlib.__file__, "<string>")
"""Where calls from one part of the library to another pass through: exit stacks, and dataclasses' own methods."""


def warn(text: str) -> None:
    """Warns of something, as of the line outside this package that led to it."""
    frame, level = sys._getframe(1), 2
    while frame.f_back and (frame.f_code.co_filename.startswith(_PACKAGE) or frame.f_code.co_filename in _BETWEEN):
        frame, level = frame.f_back, level + 1
    warnings.warn(text, UserWarning, stacklevel=level)
