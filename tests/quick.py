"""Compilation for tests whose programs are larger than their work."""

from functools import partial

import jax

quick_jit = partial(
    jax.jit,
    compiler_options={
        "xla_backend_optimization_level": 0,
        "xla_llvm_disable_expensive_passes": True,
        "xla_cpu_use_fusion_emitters": False,
    },
)
"""`jax.jit` without the compiler's optimisations: a fifth of the compile time, which tiny networks never win back."""
