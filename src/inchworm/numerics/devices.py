"""One program on several devices: each has its share of the environments and of every minibatch, and all parameters.

The program stays the one for a single device. Arrays are placed before it is called, `split` says within it along which
axis rows are divided, and XLA adds what devices have to tell each other: rows that a minibatch draws from all of them,
and the sums of gradients and statistics. Only the order in which sums are added depends on the number of devices.
"""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

T = TypeVar("T")
AXIS = "rows"


def mesh_of(devices: Sequence[Any]) -> Mesh:
    """The devices in a line."""
    return jax.make_mesh((len(devices),), (AXIS,), axis_types=(AxisType.Auto,), devices=devices)


def split(tree: T, axis: int) -> T:
    """Within a compiled function: the tree with the axis of every leaf divided between the devices, if there are
    several."""
    if jax.sharding.get_abstract_mesh().empty:
        return tree
    return jax.lax.with_sharding_constraint(tree, _along(axis))


def place(mesh: Mesh, tree: T, axis: int | None = None, length: int = 0) -> T:
    """The tree on all devices: every leaf whole, or divided along an axis where it has this length."""

    def sharding(leaf: Any) -> NamedSharding:
        divided = axis is not None and leaf.ndim > axis and leaf.shape[axis] == length
        return NamedSharding(mesh, _along(axis) if divided else PartitionSpec())

    return jax.device_put(tree, jax.tree.map(sharding, tree))


def on(mesh: Mesh, function: Callable[..., T]) -> Callable[..., T]:
    """The function, called with the mesh in place."""

    def call(*arguments: Any) -> T:
        with jax.set_mesh(mesh):
            return function(*arguments)

    return call


def _along(axis: int | None) -> PartitionSpec:
    return PartitionSpec(*[None] * (axis or 0), AXIS)
