"""A few kills of a few kinds of runs; soak.py does the others, and more."""

import kills
import pytest


@pytest.mark.parametrize("kind", ["CartPole", pytest.param("JAX", marks=pytest.mark.slow)])
def test_a_run_that_is_killed_again_and_again_is_bit_for_bit_the_run_never_killed(kind, tmp_path, faults):
    faults.begin("RF8")
    done = kills.killed(kind, seed=0, kills=2, out=tmp_path)
    assert done == 2
    faults.count("RF8", survived=done)
    faults.count("RF9", survived=1)
