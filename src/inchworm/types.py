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
    mask: Bool[AnyArray, "T N M"] | None
    """Which choices were allowed, a column for each of the action space's logits, or None without masks."""
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
    tail: Float[AnyArray, " N"] | None = None
    """What the episode that the horizon cuts came to after it, discounted from there; None where V(next_obs) stands
    for that."""


class Episodes(NamedTuple):
    """Return and length of the episodes that ended in a rollout, where they ended."""

    ended: Bool[AnyArray, "T N"]
    episode_return: Float[AnyArray, "T N"]
    """Undiscounted sum of raw rewards; zero where no episode ended."""
    episode_length: Float[AnyArray, "T N"]


class Batch(NamedTuple):
    """What the losses need of a rollout, in rows that can be shuffled.

    A row is a transition where the policy has no memory, and then every leaf is (B, ...) with B = T N. Where it has,
    a row is an environment's whole trajectory, and leaves are (N, T, ...): what lies in the past of a step must stay
    in front of it.
    """

    obs: ArrayTree
    first: Bool[AnyArray, "*rows"]
    action: ArrayTree
    mask: Bool[AnyArray, "*rows M"] | None
    carry: ArrayTree | None
    """Recurrent state before the trajectory's first step, (N, ...); None without memory."""
    log_prob: Float[AnyArray, "*rows"]
    advantage: Float[AnyArray, "*rows"]
    value: Float[AnyArray, "*rows"]
    """V(obs) at theta_old."""
    returns: Float[AnyArray, "*rows"]
    """The value function's target."""
    weight: Float[AnyArray, "*rows"]
    """1 for transitions, 0 for rows that are none."""
    old: Any = None
    """pi_old(. | obs) where the loss reads it, as a tree of arrays (*rows, ...)."""


PRNGKey = jax.Array
