"""What must be set before JAX and the package are loaded, and the few fixtures that files share."""

import os

# XLA sizes its thread pool by NPROC, and results may depend on it.
os.environ["NPROC"] = "1"
os.environ.pop("JAX_COMPILATION_CACHE_DIR", None)

import jax
from hypothesis import settings
from jaxtyping import install_import_hook

jax.config.update("jax_cpu_enable_async_dispatch", False)
# What little is compiled here compiles about as fast as a cache on disk answers, and a cache between runs could hide
# a change.
jax.config.update("jax_enable_compilation_cache", False)
install_import_hook("inchworm", "shape_checks.check_shapes")

settings.register_profile("inchworm", deadline=None, derandomize=True, database=None)
settings.load_profile("inchworm")
