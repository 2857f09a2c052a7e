"""Pytrees of arrays: named leaves and back, selection, finiteness."""

import hashlib
import inspect
from dataclasses import dataclass, field
from typing import Any, TypeVar, dataclass_transform

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool

from inchworm.errors import CheckpointError
from inchworm.types import AnyArray

T = TypeVar("T")


@dataclass_transform(frozen_default=True, field_specifiers=(field,))
def pytree(cls: type[T]) -> type[T]:
    """Makes a class a frozen dataclass and a pytree; fields marked `metadata={"static": True}` are its structure.

    Its name is part of the structure too. JAX takes the structures of two dataclasses for equal if their static fields
    are, whatever their types, and only their hashes differ: without the name, one call in a hundred or so of a compiled
    function would run the program of another class with leaves of the same shapes (JAX 0.10.2).
    """
    cls.__annotations__ = {**inspect.get_annotations(cls), "tree_type": str}
    name = field(default=cls.__qualname__, metadata={"static": True}, repr=False, kw_only=True)
    setattr(cls, "tree_type", name)  # noqa: B010  (a class of any type has no such attribute yet)
    return jax.tree_util.register_dataclass(dataclass(frozen=True)(cls))


def to_arrays(tree: Any) -> dict[str, np.ndarray]:
    """Leaves as NumPy arrays by their path, written with dots: `model.policy.network.weights.0`.

    Random keys become their key data.
    """
    arrays = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            leaf = jax.random.key_data(leaf)
        arrays[jax.tree_util.keystr(path, simple=True, separator=".")] = np.array(leaf)
    return arrays


def from_arrays(template: Any, arrays: dict[str, np.ndarray]) -> Any:
    """The tree of the template's structure with the named arrays as leaves: the inverse of `to_arrays`.

    Args:
        template: a tree of arrays or of their shapes, as `jax.eval_shape` gives.
        arrays: exactly the template's leaves, of the same shapes and dtypes.

    Raises:
        CheckpointError: a leaf is missing, too many, or of another shape or dtype.
    """
    rest = dict(arrays)

    def fill(path: Any, leaf: Any) -> Array:
        name = jax.tree_util.keystr(path, simple=True, separator=".")
        is_key = jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        wanted = jax.eval_shape(jax.random.key_data, leaf) if is_key else leaf
        if name not in rest:
            raise CheckpointError("tensor", name, "is missing", "The file belongs to another model or version.")
        found = rest.pop(name)
        if found.shape != wanted.shape or found.dtype != wanted.dtype:
            raise CheckpointError(
                "tensor",
                name,
                f"is {found.dtype}{found.shape} where {wanted.dtype}{wanted.shape} is expected",
                "The file belongs to another model or version.",
            )
        return jax.random.wrap_key_data(jnp.asarray(found)) if is_key else jnp.asarray(found)

    tree = jax.tree_util.tree_map_with_path(fill, template)
    if rest:
        raise CheckpointError(
            "tensor",
            ", ".join(sorted(rest)),
            "is not part of this model",
            "The file belongs to another model or version.",
        )
    return tree


def fingerprint(tree: Any) -> str:
    """SHA-256 over names, dtypes, shapes and bytes of all leaves: equal for trees equal bit by bit."""
    digest = hashlib.sha256()
    for name, array in sorted(to_arrays(tree).items()):
        digest.update(f"{name} {array.dtype} {array.shape}\n".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


def all_finite(tree: Any) -> Bool[Array, ""]:
    """True if no floating-point leaf holds NaN or infinity."""
    leaves = [jnp.ravel(leaf) for leaf in jax.tree.leaves(tree)]
    floats = [leaf for leaf in leaves if jnp.issubdtype(leaf.dtype, jnp.floating)]
    # One long vector, because a kernel for each leaf is what compiling takes its time for.
    return jnp.all(jnp.isfinite(jnp.concatenate(floats))) if floats else jnp.array(True)


def select(condition: Bool[Array, ""], if_true: Any, if_false: Any) -> Any:
    """One of two trees of the same structure, whole."""
    return jax.lax.cond(condition, lambda: if_true, lambda: if_false)


def flatten_time(tree: Any) -> Any:
    """Leaves (T, N, ...) to (T*N, ...)."""
    return jax.tree.map(lambda leaf: leaf.reshape((leaf.shape[0] * leaf.shape[1], *leaf.shape[2:])), tree)


def along_rows(values: AnyArray, leaf: AnyArray) -> AnyArray:
    """Values (*rows) with as many axes as a leaf (*rows, ...), to be broadcast over the others."""
    return values.reshape(values.shape + (1,) * (leaf.ndim - values.ndim))


def where_rows(condition: Bool[AnyArray, "*rows"], if_true: AnyArray, if_false: AnyArray) -> Array:
    """Row by row one of two arrays (*rows, ...), or of the first and one that is the same for all rows."""
    return jnp.where(along_rows(condition, if_true), if_true, if_false)


def broadcast_rows(tree: Any, shape: tuple[int, ...]) -> Any:
    """Leaves (..., K) to (*shape, K): those that all rows share get axes of their own."""
    return jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (*shape, leaf.shape[-1])), tree)
