"""What must be set before JAX and the package are loaded, and the few fixtures that files share."""

import os
import tempfile
from importlib.util import find_spec
from pathlib import Path

# XLA sizes its thread pool by NPROC, and results may depend on it.
os.environ["NPROC"] = "1"

import jax
from hypothesis import settings
from jaxtyping import install_import_hook

jax.config.update("jax_cpu_enable_async_dispatch", False)

# Most of a test run is XLA compiling small programs. They are kept, by the hash of what was compiled, where this
# machine's test processes share them and the next run finds them.
CACHE = Path(tempfile.gettempdir()) / f"inchworm-tests-{os.getuid()}"
CACHE.mkdir(mode=0o700, exist_ok=True)
if CACHE.stat().st_uid == os.getuid():
    jax.config.update("jax_compilation_cache_dir", str(CACHE))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)

# The modules that name shapes; instrumenting the others would only slow their loops down.
PACKAGE = Path(find_spec("inchworm").origin).parent
SHAPED = [path.relative_to(PACKAGE.parent) for path in PACKAGE.rglob("*.py") if "jaxtyping" in path.read_text()]
install_import_hook([".".join(path.with_suffix("").parts) for path in SHAPED], "shape_checks.check_shapes")

settings.register_profile("inchworm", deadline=None, derandomize=True, database=None)
settings.load_profile("inchworm")
