"""What makes XLA compile the tests' small programs faster: flags, and a folder where compiled programs are kept.

XLA ends the process, with a word that pytest captures, when it meets a flag that it does not know; and flags come and
go with its versions. So each is tried in a process of its own, once for each version.
"""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path

import jaxlib

FLAGS = (
    "--xla_backend_optimization_level=0",
    "--xla_llvm_disable_expensive_passes=true",
    # JAX 0.12 no longer has it, and nothing in its place: there a program takes twice as long to compile.
    "--xla_cpu_use_fusion_emitters=false",
)


def cache_folder() -> Path | None:
    """The folder that this machine's test processes share and the next run finds; None if it belongs to another."""
    folder = Path(tempfile.gettempdir()) / f"inchworm-tests-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    return folder if folder.stat().st_uid == os.getuid() else None


def starts_with(flags: str) -> bool:
    """Whether XLA starts with these flags."""
    environment = os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-c", "import jax; jax.devices()"]
    return subprocess.run(command, env=environment, capture_output=True).returncode == 0


def known_flags(memory: Path | None, flags: Iterable[str] = FLAGS) -> str:
    """Those of the flags that XLA knows.

    Args:
        memory: folder where what was found is kept; None to try each flag again.
        flags: what to try.
    """
    file = memory and memory / f"xla-flags-{jaxlib.__version__}.json"
    known: dict[str, bool] = json.loads(file.read_text()) if file and file.exists() else {}
    if untried := [flag for flag in flags if flag not in known]:
        known |= {flag: starts_with(flag) for flag in untried}
        if file:
            written = file.with_suffix(f".{os.getpid()}")
            written.write_text(json.dumps(known))
            written.replace(file)
    return " ".join(flag for flag in flags if known[flag])
