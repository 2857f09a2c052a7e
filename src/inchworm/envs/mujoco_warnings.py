"""MuJoCo's warnings as Python's: by itself it prints each time and writes MUJOCO_LOG.TXT into the current folder."""

import contextlib
import importlib.util
import os
import re
import sys
from collections.abc import Iterator
from importlib.abc import Loader, MetaPathFinder
from typing import Any

from inchworm.warning import warn
from inchworm.workers import INSIDE

_told: set[str] = set()
"""Messages that were told, without their numbers: a time differs whenever a simulation goes astray."""
_making = 0
"""How many environments are being made, one within another."""
_untold: list[str] = []
"""What came up while they were made, to be told after: an error that a warning becomes must not be raised into MuJoCo's
own code, which would end the process."""


@contextlib.contextmanager
def mujoco_warns() -> Iterator[None]:
    """Inside it environments are made; from there on MuJoCo's messages are warnings, each given once.

    MuJoCo is not imported for that: where something else imports it, its messages are taken over right after. A handler
    of the user's own stays.
    """
    global _making
    finder = _Finder()
    if "mujoco" in sys.modules:
        _take_over(sys.modules["mujoco"])
    else:
        sys.meta_path.insert(0, finder)
    _making += 1
    try:
        yield
    finally:
        _making -= 1
        if finder in sys.meta_path:
            sys.meta_path.remove(finder)
        while _untold and not _making:
            warn(_untold.pop(0))


def _take_over(mujoco: Any) -> None:
    if getattr(mujoco, "get_mju_user_warning", lambda: True)() is None:
        mujoco.set_mju_user_warning(_tell)


def _tell(message: str) -> None:
    kind = re.sub(r"[-+]?\d+(\.\d+)?(e[-+]?\d+)?", "", message)
    # What comes up while environments are made, the process that started this one was told by its own.
    if kind in _told or (_making and INSIDE in os.environ):
        return
    _told.add(kind)
    if _making:
        _untold.append(f"MuJoCo: {message}")
        return
    try:
        warn(f"MuJoCo: {message}")
    except UserWarning as error:
        print(error, file=sys.stderr)


class _Finder(MetaPathFinder):
    """Finds MuJoCo where others find it, and takes its messages over once it is imported."""

    _asks = False

    def find_spec(self, fullname: str, path: Any, target: Any = None) -> Any:
        if fullname != "mujoco" or self._asks:
            return None
        self._asks = True
        try:
            found = importlib.util.find_spec(fullname)
        finally:
            self._asks = False
        if found is not None and found.loader is not None:
            found.loader = _Loader(found.loader)
        return found


class _Loader(Loader):
    """Stands in for MuJoCo's loader until it is loaded."""

    def __init__(self, loader: Any) -> None:
        self._loader = loader

    def create_module(self, spec: Any) -> Any:
        return self._loader.create_module(spec)

    def exec_module(self, module: Any) -> None:
        module.__loader__ = module.__spec__.loader = self._loader
        self._loader.exec_module(module)
        _take_over(module)
