"""What a run ran on: versions, machine, threads."""

import contextlib
import os
import platform
import subprocess
import sys
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import jax

SIMULATORS = ("mujoco", "mujoco-mjx", "envpool", "ale-py", "gymnax", "brax", "playground")
"""Packages that environments come from; no run needs all of them."""
PACKAGES = ("inchworm", "jax", "jaxlib", "numpy", "optax", "gymnasium", "safetensors", *SIMULATORS)


def versions() -> dict[str, str]:
    """Of what is installed of `PACKAGES`."""
    found = {}
    for package in PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[package] = metadata.version(package)
    return found


def provenance() -> dict[str, Any]:
    """Versions and machine, as JSON. What is listed under `numerics` must be equal for results to be bit-equal."""
    found = versions()
    device = jax.devices()[0]
    return {
        "versions": found,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cores": os.cpu_count(),
        "commit": _commit(),
        "command": sys.argv,
        "numerics": {
            "cpu": _cpu_model(),
            "device": device.device_kind,
            "jaxlib": found["jaxlib"],
            "numpy": found["numpy"],
            "gymnasium": found["gymnasium"],
            "threads": os.environ.get("NPROC"),
            "float64": bool(jax.config.read("jax_enable_x64")),
        }
        | {package: found[package] for package in SIMULATORS if package in found},
    }


def differing_numerics(then: Any, now: dict[str, Any]) -> list[str]:
    """What of the numerics has changed, a phrase each.

    A simulator counts only if it was installed then and is now: else the run was not, or cannot be, one of its.
    """
    found = then.get("numerics") if isinstance(then, dict) else None
    before = {"float64": False} | (found if isinstance(found, dict) else {})
    return [
        f"{name} was {before.get(name)!r} and is {value!r}"
        for name, value in now["numerics"].items()
        if before.get(name) != value and not (name in SIMULATORS and before.get(name) is None)
    ]


@cache
def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")


@cache
def _commit() -> str | None:
    """The commit of the checkout this package runs from; None for an installed one, or where git does not answer."""
    root = Path(__file__).resolve().parents[3]
    if not (root / ".git").exists():
        return None
    try:
        answer = subprocess.run(
            ["git", "-C", str(root), "rev-parse", "HEAD"], capture_output=True, text=True, check=False, timeout=10
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return answer.stdout.strip() or None
