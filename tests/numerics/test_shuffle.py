"""Random orders hold every number once and favour none."""

import itertools

import jax
import numpy as np
import pytest
from scipy.stats import chisquare

from inchworm.numerics.shuffle import random_order


@pytest.mark.parametrize("length", [1, 2, 3, 64, 65, 2048, 5000])
def test_every_number_is_there_exactly_once(length: int) -> None:
    order = np.asarray(random_order(jax.random.key(0), length))
    assert order.dtype == np.uint32
    assert sorted(order.tolist()) == list(range(length))


def test_all_orders_of_four_numbers_are_equally_likely() -> None:
    draws = np.asarray(jax.vmap(lambda key: random_order(key, 4))(jax.random.split(jax.random.key(1), 24_000)))
    counts = [np.sum(np.all(draws == order, axis=1)) for order in itertools.permutations(range(4))]
    assert sum(counts) == 24_000
    assert chisquare(counts).pvalue > 1e-4


def test_neighbours_change_places_half_of_the_time_though_many_random_words_agree_in_one_round() -> None:
    """Of 2^17 numbers each word has 15 random bits: some 65,000 neighbouring pairs of a round are ties."""
    order = np.asarray(random_order(jax.random.key(2), 2**17))
    place = np.empty_like(order)
    place[order] = np.arange(order.size, dtype=order.dtype)
    swapped = np.mean(place[:-1] > place[1:])
    assert abs(swapped - 0.5) < 5 * 0.5 / np.sqrt(order.size)  # the swaps of neighbours hang together negatively
    assert abs(np.corrcoef(order, np.arange(order.size))[0, 1]) < 5 / np.sqrt(order.size)


def test_another_key_gives_another_order() -> None:
    first, second = (np.asarray(random_order(jax.random.key(seed), 512)) for seed in (3, 4))
    assert not np.array_equal(first, second)
