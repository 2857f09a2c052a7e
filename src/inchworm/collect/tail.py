"""Past the horizon: episodes continued to their end, for returns that no value function completes."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from inchworm.types import AnyArray, Episodes, Rollout

MAX_TAIL_STEPS = 10_000
"""Steps after which an episode is given up, and what it would still pay counts as 0, as at a time limit."""


class Tail(NamedTuple):
    """The episodes that a horizon cut, as far as they have been continued."""

    total: Float[Array, " N"]
    """Discounted sum of the rewards after the horizon."""
    discount: Float[Array, " N"]
    """Of the next reward."""
    alive: Bool[Array, " N"]
    begun: Bool[Array, " N"]
    """In the batch; the others began past the horizon of an earlier one."""
    episodes: Episodes
    """One row (1, N): those that have ended."""


def start(rollout: Rollout) -> Tail:
    """Before the first step after the horizon: alive are the episodes that go on past it."""
    ended = rollout.terminated[-1] | rollout.truncated[-1]
    zeros = jnp.zeros(ended.shape)
    return Tail(
        zeros,
        jnp.ones_like(zeros),
        rollout.valid[-1] & ~ended,
        _begun(jnp, rollout)[-1],
        Episodes((ended & False)[None], zeros[None], zeros[None]),
    )


@jax.jit
def extend(tail: Tail, rollout: Rollout, episodes: Episodes, gamma: Float[Array, ""]) -> Tail:
    """The tail after another rollout that went on where the last one ended, under the same policy.

    Episodes that begin in it belong to no batch and are not counted, not even where they end in the next one: the
    longer an episode, the more often it would be one of them.
    """

    def step(tail: Tail, row: tuple[AnyArray, AnyArray, Episodes]) -> tuple[Tail, None]:
        reward, valid, ended = row
        counts = tail.alive & valid
        over = counts & ended.ended

        def note(before: AnyArray, now: AnyArray) -> AnyArray:
            return jnp.where(over & tail.begun, now, before[0])[None].astype(before.dtype)

        return Tail(
            tail.total + jnp.where(counts, tail.discount * reward, 0.0),
            jnp.where(counts, tail.discount * gamma, tail.discount),
            tail.alive & ~over,
            tail.begun,
            jax.tree.map(note, tail.episodes, ended),
        ), None

    return jax.lax.scan(step, tail, (rollout.reward, rollout.valid, episodes))[0]


def attach(rollout: Rollout, episodes: Episodes, tail: Tail) -> tuple[Rollout, Episodes]:
    """The rollout with its tail, and the episodes that began in it, those that ended in the tail as a last row."""
    xp = np if isinstance(episodes.ended, np.ndarray) else jnp
    counted = episodes._replace(ended=episodes.ended & _begun(xp, rollout))
    joined = jax.tree.map(lambda a, b: xp.concatenate([a, b]), counted, tail.episodes)
    return rollout._replace(tail=tail.total), joined


def _begun(xp: Any, rollout: Rollout) -> Bool[AnyArray, "T N"]:
    """Whether the episode of each row began in the batch."""
    return xp.cumsum(xp.asarray(rollout.first), axis=0) > 0
