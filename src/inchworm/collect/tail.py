"""Past the horizon: episodes continued to their end, for returns that no value function completes."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from inchworm.algorithms.settings import Continuation
from inchworm.types import AnyArray, Episodes, Rollout

MAX_TAIL_STEPS = 10_000
"""Steps after which an episode is given up, and what it would still pay counts as 0, as at a time limit."""


class Tail(NamedTuple):
    """The returns that a horizon cut, as far as they have been continued."""

    total: Float[Array, " N"]
    """Discounted sum of the rewards after the horizon."""
    discount: Float[Array, " N"]
    """Of the next reward."""
    alive: Bool[Array, " N"]
    """Where that reward still belongs to it: a return ends wherever one within a batch does, at a lost life too."""
    episodes: Episodes
    """One row (1, N): those that began in a batch and have ended after its horizon."""


def start(rollout: Rollout) -> Tail:
    """Before the first step after the horizon: alive are the returns that go on past it."""
    alive = rollout.valid[-1] & ~(rollout.terminated[-1] | rollout.truncated[-1])
    zeros = jnp.zeros(alive.shape)
    return Tail(zeros, jnp.ones_like(zeros), alive, Episodes((alive & False)[None], zeros[None], zeros[None]))


@partial(jax.jit, static_argnums=3)
def extend(tail: Tail, rollout: Rollout, episodes: Episodes, continuation: Continuation) -> Tail:
    """The tail after another rollout that went on where the last one ended, under the same policy.

    Of each environment one of the episodes counts at most, because what begins past the horizon does not.
    """
    reward = jnp.sign(rollout.reward) if continuation.clip_reward else rollout.reward

    def step(tail: Tail, row: tuple[AnyArray, AnyArray, AnyArray, Episodes]) -> tuple[Tail, None]:
        reward, valid, done, ended = row
        counts = tail.alive & valid

        def note(before: AnyArray, now: AnyArray) -> AnyArray:
            return jnp.where(ended.ended, now, before[0])[None].astype(before.dtype)

        return Tail(
            tail.total + jnp.where(counts, tail.discount * reward, 0.0),
            jnp.where(counts, tail.discount * continuation.gamma, tail.discount),
            counts & ~done,
            jax.tree.map(note, tail.episodes, ended),
        ), None

    rows = (reward, rollout.valid, rollout.terminated | rollout.truncated, episodes)
    return jax.lax.scan(step, tail, jax.tree.map(jnp.asarray, rows))[0]


def attach(rollout: Rollout, episodes: Episodes, tail: Tail) -> tuple[Rollout, Episodes]:
    """The rollout with its tail, and its episodes with those that ended in the tail as a last row."""
    xp = np if isinstance(episodes.ended, np.ndarray) else jnp
    joined = jax.tree.map(lambda a, b: xp.concatenate([a, b]), episodes, tail.episodes)
    return rollout._replace(tail=tail.total), joined
