"""The shapes everything hangs on.

Time-major everywhere: T steps (`horizon`) of N environments (`num_envs`). Observations, actions, masks
and recurrent carries are pytrees; where a signature says `PyTree`, every leaf has the leading axes named.
"""

from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Bool, Float

AnyArray = jax.Array | np.ndarray
"""Functions that serve JAX and NumPy alike take either."""

ArrayTree = Any
"""A pytree of arrays: a single array, or dicts and tuples of them."""

Metrics = dict[str, Float[Array, ""]]
"""Scalars of one iteration, by their name in the glossary."""


class Rollout(NamedTuple):
    """The (T, N) block of experience that one iteration collects and updates from.

    Arrays come from JAX or NumPy alike. An environment at step t saw `obs[t]`, took `action[t]` and came to
    `next_obs[t]`, which at an episode's end is the true final observation, never that of the reset.
    """

    obs: ArrayTree
    """Observations, raw (not normalised). (T, N, ...)"""
    first: Bool[AnyArray, "T N"]
    """True where an episode starts."""
    action: ArrayTree
    """The policy's own action, before any clipping at the environment's door. (T, N, ...)"""
    mask: ArrayTree | None
    """Which discrete actions were allowed, or None for environments without masks. (T, N, ...)"""
    log_prob: Float[AnyArray, "T N"]
    """log pi(action | obs) under the acting policy; never recomputed."""
    reward: Float[AnyArray, "T N"]
    """Rewards, raw (not scaled)."""
    terminated: Bool[AnyArray, "T N"]
    """The task ended here; the successor has value zero. Wins where both flags are true."""
    truncated: Bool[AnyArray, "T N"]
    """A time limit or a lost worker cut the episode here; the successor keeps its value."""
    next_obs: ArrayTree
    """The true successor of `obs`, raw. (T, N, ...)"""
    carry: ArrayTree | None
    """Recurrent state before step 0, or None. (N, ...)"""
    valid: Bool[AnyArray, "T N"]
    """False for rows that are no transition (a vector environment's reset rows)."""


class Episodes(NamedTuple):
    """Return and length of the episodes that ended in a rollout, where they ended."""

    ended: Bool[AnyArray, "T N"]
    episode_return: Float[np.ndarray, "T N"]
    """Undiscounted sum of raw rewards; zero where no episode ended."""
    episode_length: Float[np.ndarray, "T N"]


class Batch(NamedTuple):
    """The T*N transitions of a rollout with what the losses need, flattened to one leading axis B."""

    obs: ArrayTree
    action: ArrayTree
    mask: ArrayTree | None
    log_prob: Float[AnyArray, " B"]
    advantage: Float[AnyArray, " B"]
    value: Float[AnyArray, " B"]
    """V(obs) at theta_old."""
    returns: Float[AnyArray, " B"]
    """The value function's target: advantage + value."""
    weight: Float[AnyArray, " B"]
    """1 for transitions, 0 for invalid rows."""


PRNGKey = jax.Array
