"""Rollouts as rows that can be shuffled into minibatches.

A row is a transition where the policy has no memory, an environment's whole trajectory where it has.
"""

from typing import Any

import jax
import jax.numpy as jnp

from inchworm.models.actor_critic import Model, Unrolled
from inchworm.models.observations import Normalizers
from inchworm.numerics.devices import split
from inchworm.numerics.shuffle import random_order
from inchworm.numerics.tree import flatten_time
from inchworm.types import Batch, PRNGKey, Rollout


def to_rows(batch: Batch, recurrent: bool) -> Batch:
    """A batch of leaves (T, N, ...), carry (N, ...), as rows: (T N, ...), or (N, T, ...) with memory."""
    return split(_swap_time(batch) if recurrent else flatten_time(batch), 0)


def from_rows(rows: Batch, recurrent: bool) -> Batch:
    """Rows in the layout that models unroll over: as they are, or back to (T, N, ...) with memory."""
    return _swap_time(rows) if recurrent else rows


def minibatches(rows: Any, key: PRNGKey, num_minibatches: int) -> Any:
    """The rows in random order, each exactly once, cut into minibatches (num_minibatches, M, ...).

    A single minibatch is the batch as it is: nothing that is learned from it depends on the order.
    """
    if num_minibatches == 1:
        return split(jax.tree.map(lambda leaf: leaf[None], rows), 1)
    order = random_order(key, jax.tree.leaves(rows)[0].shape[0])
    return split(jax.tree.map(lambda leaf: leaf[order].reshape(num_minibatches, -1, *leaf.shape[1:]), rows), 1)


def unroll(model: Model, normalizers: Normalizers, rows: Rollout | Batch) -> Unrolled:
    """What the model says about a rollout, or a minibatch in the layout of `from_rows`."""
    return model.unroll(normalizers, rows.obs, rows.first, rows.mask, rows.carry)


def _swap_time(batch: Batch) -> Batch:
    swapped = jax.tree.map(lambda leaf: jnp.swapaxes(leaf, 0, 1), batch._replace(carry=None))
    return swapped._replace(carry=batch.carry)
