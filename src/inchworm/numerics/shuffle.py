"""Random orders."""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, UInt32

from inchworm.types import PRNGKey


def random_order(key: PRNGKey, length: int) -> UInt32[Array, " length"]:
    """The numbers 0, ..., length - 1 in random order, each exactly once.

    Sorts words whose high bits are random and whose low bits are places, several times over. Two numbers whose random
    bits agree stay as they stood; with so many rounds that a pair agrees in all of them with probability below
    length^-3, fewer than 1 / (2 length) pairs are expected to keep their first order for that reason.

    `jax.random.permutation` sorts keys and values apart, which on a CPU takes four to five times as long: at 2,048 rows
    as much as several gradient steps.
    """
    place_bits = (length - 1).bit_length()
    rounds = math.ceil(3 * place_bits / (32 - place_bits))
    places = jnp.arange(length, dtype=jnp.uint32)
    low = jnp.uint32(2**place_bits - 1)
    order = places
    for round_key in jax.random.split(key, rounds):
        words = jax.random.bits(round_key, (length,)) & ~low | places
        order = order[jnp.sort(words) & low]
    return order
