"""What a user should know of spaces before a policy is trained in them."""

import re

import numpy as np
import pytest

from inchworm.models.advice import advise, clipped_at_first
from inchworm.models.settings import ModelSettings
from inchworm.spaces import Box, Dict, Discrete, EnvSpec, Tuple

VECTOR, CHOICE = Box((3,), "float32", -1.0, 1.0), Discrete(4)
FEATURES = Box((64, 64, 3), "float32", -np.inf, np.inf)


def texts(observation=VECTOR, action=CHOICE, own_network=False, **settings):
    return [str(each) for each in advise(EnvSpec(observation, action), ModelSettings(**settings), own_network)]


BOUNDS = {
    "far": ((0.0, 1000.0), r"\[0, 1000\], so wide", True),
    "far to one side": ((-1.0, 6.0), r"\[-1, 6\], so wide", True),
    "narrow": ((-0.1, 0.1), "so narrow", True),
    "without 0": ((1.0, 3.0), "leaves out 0", True),
    "none": ((-np.inf, np.inf), "does not bound", False),
    "none above": ((0.0, np.inf), "does not bound", False),
    "one of two": (((-1.0, -1.0), (1.0, 1000.0)), r"number 1 has the range \[-1, 1000\]", True),
}


@pytest.mark.parametrize(("bounds", "problem", "finite"), BOUNDS.values(), ids=BOUNDS.keys())
def test_bounds_that_a_gaussian_does_not_suit_are_told_with_the_distributions_that_do(bounds, problem, finite):
    (text,) = texts(action=Dict({"push": Box((2,), "float32", *bounds), "pick": CHOICE}))
    assert re.search(f"^action_space: .*{problem}", text)
    assert ('"beta" or "tanh_gaussian"' in text) == finite
    if finite:
        assert not texts(action=Box((2,), "float32", *bounds), action_distribution="beta")
        assert not texts(action=Box((2,), "float32", *bounds), action_distribution="tanh_gaussian")


@pytest.mark.parametrize("bounds", [(-1, 1), (-0.4, 0.4), (-3, 3), (-5, 5), (0, 1), (-2, 2)], ids=str)
def test_bounds_of_usual_environments_are_passed_over(bounds):
    assert not texts(action=Box((2,), "float32", *bounds))


def test_the_deviation_that_is_set_decides_what_is_narrow_and_what_is_wide():
    assert not texts(action=Box((1,), "float32", -20, 20), log_std=2.0)
    assert "so narrow" in texts(action=Box((1,), "float32", -1, 1), log_std="linear:2.0:0.0")[0]
    assert "of deviation 7.39, tries little" in texts(action=Box((1,), "float32", -90, 90), log_std=2.0)[0]
    assert not texts(action=Box((1,), "float32", -0.1, 0.1), log_std=-3.0)


def test_what_may_be_an_image_and_becomes_a_vector_is_told_unless_a_network_of_one_s_own_reads_it():
    (text,) = texts(Tuple((VECTOR, FEATURES)))
    assert text.startswith("observation_space: a Box of shape (64, 64, 3), float32, becomes a vector of 12,288 numbers")
    assert "np.uint8" in text
    assert not texts(FEATURES, own_network=True)
    assert not texts(Box((64, 64, 3), "uint8", 0, 255))


@pytest.mark.parametrize(
    ("low", "high", "deviation", "share"), [(-1, 1, 1.0, 0.3173105), (-1, 1, 2.0, 0.6170751), (0, 9, 1.0, 0.5)]
)
def test_the_share_of_first_actions_that_are_clipped_is_the_normal_distribution_s_outside_of_the_bounds(
    low, high, deviation, share
):
    assert clipped_at_first(Box((1,), "float32", float(low), float(high)), deviation) == pytest.approx(share, abs=1e-6)


@pytest.mark.parametrize(
    ("low", "high", "dtype", "told"),
    [
        (-1.0, 0.0, "float32", None),
        (0.0, 1.0, "float32", None),
        (-1.0, -0.1, "float32", "leaves out 0"),
        (-1000.0, 1.0, "float32", "tries little of it"),
        (-5.0, 5.0, "float32", None),
        (-1000.0, 1.0, "int32", None),
    ],
)
def test_bounds_are_advised_on_by_where_the_gaussian_policy_starts(low, high, dtype, told):
    spec = EnvSpec(Box((2,), "float32", -1.0, 1.0), Box((1,), dtype, low, high))
    found = [str(finding) for finding in advise(spec, ModelSettings())]
    assert len(found) == (told is not None)
    assert all(told in text for text in found)
