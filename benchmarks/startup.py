"""Measure how long a user waits: from `inchworm train ENV` to the end of the first iteration.

    python benchmarks/startup.py --rounds 7

Each round starts the command twice: cold, with an empty folder for compiled programs, and warm, with what the cold one
left there. The clock starts with the process and stops when the first line of metrics.jsonl is there; the run is then
stopped. Cold is the compiler's cache only: Python's own and the disk's are warm. The result is written to
benchmarks/results/startup.json.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import tyro

from measuring import RESULTS, commit, console, machine, verdict, write_result

LIMITS = {"cold": 14.0, "warm": 6.0}
"""Seconds that Inchworm promises."""


def first_iteration_seconds(env_id: str, folder: Path, cache: Path, name: str) -> float:
    """Seconds from starting the command to its first line of metrics."""
    command = [sys.executable, "-m", "inchworm", "train", env_id, "--out", str(folder), "--name", name, "--no-video"]
    environment = os.environ | {"XDG_CACHE_HOME": str(cache)}
    environment.pop("JAX_COMPILATION_CACHE_DIR", None)
    started = time.perf_counter()
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        while True:
            lines = [path.read_text() for path in folder.glob(f"*/*/{name}/metrics.jsonl")]
            if lines and lines[0].endswith("\n"):
                return time.perf_counter() - started
            if process.poll() is not None:
                raise RuntimeError(f"training ended with code {process.returncode} before its first iteration")
            time.sleep(0.01)
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait()


def main(env_id: str = "HalfCheetah-v5", rounds: int = 7) -> None:
    """Measures the time from starting a training to its first finished iteration.

    Args:
        env_id: what to train.
        rounds: cold and warm starts, in turn.
    """
    source = commit()
    seconds: dict[str, list[float]] = {"cold": [], "warm": []}
    with tempfile.TemporaryDirectory() as scratch:
        for index in range(rounds):
            cache = Path(scratch) / f"cache{index}"
            for kind, times in seconds.items():
                times.append(first_iteration_seconds(env_id, Path(scratch), cache, f"{kind}{index}"))
            console.print(
                f"round {index + 1}: " + ", ".join(f"{kind} {times[-1]:.1f} s" for kind, times in seconds.items())
            )
    result = {
        "command": f"python benchmarks/startup.py --env-id {env_id} --rounds {rounds}",
        **source,
        "machine": machine(),
        "env_id": env_id,
        "median_seconds": {kind: median(times) for kind, times in seconds.items()},
        "maximum_seconds": {kind: max(times) for kind, times in seconds.items()},
        "seconds": seconds,
    }
    write_result(RESULTS / "startup.json", result)
    for kind, times in seconds.items():
        met = verdict(median(times) <= LIMITS[kind])
        console.print(f"{kind}: median {median(times):.1f} s, slowest {max(times):.1f} s; {LIMITS[kind]:g} s are {met}")


if __name__ == "__main__":
    tyro.cli(main)
