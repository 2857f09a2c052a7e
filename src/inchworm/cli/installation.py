"""What is installed, and whether it computes, draws and writes as it should."""

import importlib.util
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from inchworm.api import train
from inchworm.config import PPO
from inchworm.io.provenance import PACKAGES, versions
from inchworm.models.advice import Finding
from inchworm.workers import cores

RENDER_SECONDS = 60
"""After so long a renderer has failed."""
PICTURE_OF = {"mujoco": "HalfCheetah-v5", "pygame": "CartPole-v1"}
"""An environment that draws itself with a package."""
_DRAW = """
import sys, gymnasium
env = gymnasium.make(sys.argv[1], render_mode="rgb_array")
env.reset(seed=0)
print(*env.render().shape)
"""


def packages() -> tuple[dict[str, str], list[Finding]]:
    """What is installed of what Inchworm needs, and what of its extras, by name."""
    found = versions()
    facts = {"python": f"{platform.python_version()}, {platform.platform()}"}
    facts |= {name: found[name] for name in PACKAGES if name in found}
    for extra, needed in _extras().items():
        absent = [name for name in needed if not _is_installed(name)]
        facts[f"extra {extra}"] = "installed" if not absent else f'not installed: pip install "inchworm[{extra}]"'
    return facts, []


def devices() -> tuple[dict[str, str], list[Finding]]:
    """What JAX computes on."""
    found = jax.devices()
    named = [f"{device.platform}: {device.device_kind}" for device in found]
    facts = {"devices": ", ".join(f"{named.count(name)} x {name}" for name in dict.fromkeys(named))}
    facts["cores"] = f"{len(cores())} of {os.cpu_count()} may be used"
    findings = []
    if jax.config.read("jax_enable_x64"):
        text = "64-bit numbers are switched on, with which runs take longer and come to other results"
        findings.append(Finding("JAX_ENABLE_X64", text, "Unset it."))
    return facts, findings


def numbers() -> tuple[dict[str, str], list[Finding]]:
    """A canary: whether JAX computes what NumPy does, and the same twice."""
    findings = []
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 128, 128))
    error = float(np.abs(np.asarray(jax.jit(jnp.matmul)(np.float32(a), np.float32(b))) - a @ b).max())
    if not error < 1e-3:
        text = f"those of float32 numbers are off by {error:.2g}, more than their rounding"
        findings.append(Finding("matrix products", text, "Unset what lowers JAX's precision, as XLA_FLAGS may."))
    x = np.linspace(-10.0, 10.0, 1001)
    for name in ("exp", "tanh", "log1p"):
        at = x if name != "log1p" else np.abs(x)
        expected = getattr(np, name)(at)
        found = np.asarray(jax.jit(getattr(jnp, name))(np.float32(at)), np.float64)
        if not np.allclose(found, expected, rtol=1e-5, atol=1e-6):
            findings.append(Finding(name, "is not what NumPy computes", "Install JAX anew, and update the driver."))
    zero = np.zeros(1, np.float32)
    if not bool(jax.jit(lambda z: jnp.isnan(z / z) & jnp.isinf(1.0 / z))(zero)[0]):
        text = "0 / 0 and 1 / 0 are not seen as NaN and infinity, so that nothing notices them"
        findings.append(Finding("NaN", text, "Unset fast-math options in XLA_FLAGS."))
    settings = PPO(num_envs=4, horizon=32, minibatch_size=32, num_epochs=2, hidden_sizes=(8,))
    how: dict[str, Any] = {"backend": "jax", "evaluation_episodes": 0, "progress": False}
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        runs = [train("CartPole-v1", settings, total_steps=512, out=Path(folder), **how) for _ in range(2)]
    hashes = {run.summary["parameters_sha256"] for run in runs}
    facts = {
        "matrix products": f"off by {error:.2g} at most",
        "training": f"512 steps twice in {time.perf_counter() - began:.1f} s, {len(hashes)} result",
    }
    if len(hashes) > 1:
        text = "the same 512 steps came to other parameters the second time"
        findings.append(Finding("training", text, "Set XLA_FLAGS=--xla_gpu_deterministic_ops=true on a GPU."))
    return facts, findings


def drawing() -> tuple[dict[str, str], list[Finding]]:
    """Whether environments can draw themselves, each in a process of its own, which a renderer may end."""
    facts, findings = {}, []
    for package, env in PICTURE_OF.items():
        if importlib.util.find_spec(package) is None:
            facts[package] = "not installed"
            continue
        command = [sys.executable, "-P", "-c", _DRAW, env]
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, errors="replace", check=False, timeout=RENDER_SECONDS
            )
            told = (done.stderr.strip().splitlines() or [f"status {done.returncode}"])[-1]
            size = done.stdout.split() if done.returncode == 0 else []
        except subprocess.TimeoutExpired:
            size, told = [], f"no picture after {RENDER_SECONDS} seconds"
        renderer = os.environ.get("MUJOCO_GL") if package == "mujoco" else None
        with_gl = f" with MUJOCO_GL={renderer}" if renderer else ""
        facts[package] = f"{env} draws {size[1]} x {size[0]} pixels{with_gl}" if size else f"draws nothing{with_gl}"
        if not size:
            fix = "Set MUJOCO_GL=egl with a GPU, or MUJOCO_GL=osmesa with OSMesa." if package == "mujoco" else ""
            findings.append(Finding(package, f"{env} cannot be drawn: {told}", fix or "Install pygame anew."))
    return facts, findings


def _extras() -> dict[str, list[str]]:
    """The packages of each extra but `dev`, by its name."""
    extras: dict[str, list[str]] = {}
    for requirement in metadata.requires("inchworm") or []:
        _, _, marker = requirement.partition(";")
        extra = re.search(r"extra == ['\"]([\w-]+)", marker)
        if extra and extra[1] != "dev":
            extras.setdefault(extra[1], []).append(requirement)
    return extras


def _is_installed(requirement: str) -> bool:
    """Whether a package, with its own extras, is there; versions are pip's matter."""
    name = re.match(r"[\w.-]+", requirement)
    assert name is not None
    try:
        needs = metadata.requires(name[0]) or []
    except metadata.PackageNotFoundError:
        return False
    asked = re.search(r"\[([\w,-]+)\]", requirement)
    return not asked or all(
        _is_installed(need)
        for extra in asked[1].split(",")
        for need in needs
        if re.search(rf"extra == ['\"]{extra}['\"]", need)
    )
