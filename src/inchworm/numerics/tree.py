"""Pytrees of arrays: names of leaves, selection, finiteness."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool


def named_leaves(tree: Any) -> dict[str, Any]:
    """Leaves by their path, written with dots: `params.policy.network.weights.0`."""
    paths_and_leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in paths_and_leaves}


def all_finite(tree: Any) -> Bool[Array, ""]:
    """True if no floating-point leaf holds NaN or infinity."""
    floats = [leaf for leaf in jax.tree.leaves(tree) if jnp.issubdtype(jnp.result_type(leaf), jnp.floating)]
    return jnp.all(jnp.stack([jnp.all(jnp.isfinite(leaf)) for leaf in floats])) if floats else jnp.array(True)


def select(condition: Bool[Array, ""], if_true: Any, if_false: Any) -> Any:
    """One of two trees of the same structure, whole."""
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), if_true, if_false)


def flatten_time(tree: Any) -> Any:
    """Leaves (T, N, ...) to (T*N, ...)."""
    return jax.tree.map(lambda leaf: leaf.reshape((leaf.shape[0] * leaf.shape[1], *leaf.shape[2:])), tree)
