"""What the measurements of this folder share: processes of their own, and what a result says of source and machine."""

from __future__ import annotations

import json
import multiprocessing
import os
import platform
import subprocess
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

from rich.console import Console

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results"

console = Console()


def in_fresh_process(function: Callable[..., Any], *arguments: Any) -> Any:
    """What a function of a module answers in a new process, which ends with it."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def verdict(met: bool) -> str:
    """Of a promise."""
    return "met" if met else "missed"


def write_result(file: Path, document: dict[str, Any]) -> None:
    """Writes a result and says where."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    console.print(f"Written: {file}")


def commit() -> dict[str, Any]:
    """Commit of the repository, and whether the measured sources differ from it."""

    def git(*words: str) -> str | None:
        done = subprocess.run(["git", "--no-optional-locks", *words], cwd=HERE, capture_output=True, text=True)
        return done.stdout.strip() if done.returncode == 0 else None

    changes = git("status", "--porcelain", "--", "../src", "*.py", "peers")
    return {"commit": git("rev-parse", "HEAD"), "uncommitted_changes": changes != ""}


def machine() -> dict[str, Any]:
    """What the figures depend on; no names or paths."""
    cpu = platform.processor()
    information = Path("/proc/cpuinfo")  # Linux, where platform knows only the architecture
    if information.exists():
        lines = information.read_text().splitlines()
        cpu = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), cpu)
    return {"cpu": cpu, "cores": os.cpu_count(), "system": platform.system(), "architecture": platform.machine()}
