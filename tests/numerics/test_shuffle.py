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


@pytest.mark.parametrize(("length", "rounds"), [(1, 0), (2, 1), (64, 1), (2048, 2), (2**13, 3), (2**17, 4)])
def test_an_order_is_sorted_by_all_random_bits_that_a_word_has_room_for_and_so_often_that_few_pairs_tie(
    length: int, rounds: int
) -> None:
    """2^-26 for 64 numbers, whose places take 6 of 32 bits, is below 64^-3 = 2^-18; of 2,048 two rounds of 21 bits are
    needed for 2^-33, of 2^13 three of 19 for 2^-39, and of 2^17 four of 15 for 2^-51."""
    place_bits = (length - 1).bit_length()
    order = np.arange(length)
    for key in jax.random.split(jax.random.key(5), rounds):
        random_bits = np.asarray(jax.random.bits(key, (length,))) >> place_bits
        order = order[np.argsort(random_bits, kind="stable")]
    np.testing.assert_array_equal(random_order(jax.random.key(5), length), order)


def test_another_key_gives_another_order() -> None:
    first, second = (np.asarray(random_order(jax.random.key(seed), 512)) for seed in (3, 4))
    assert not np.array_equal(first, second)
