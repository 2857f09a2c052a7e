"""The metrics that `inchworm doctor` reads, by hand."""

import numpy as np
import pytest

from fixed_model import fixed_model
from inchworm import spaces
from inchworm.algorithms import health
from inchworm.models.observations import Normalizer
from inchworm.rl.diagnostics import spread
from inchworm.rl.distributions import Beta, Categorical, DiagonalGaussian, Product, TanhGaussian
from inchworm.types import Rollout

VALID = np.array([[True, True], [True, False]])
BOX = spaces.Box((2,), "float32", -1.0, (1.0, np.inf))


def rollout_of(obs=None, action=None, reward=None, terminated=None, truncated=None, valid=VALID):
    flags = {"terminated": terminated, "truncated": truncated, "valid": valid, "first": None}
    return Rollout(obs=obs, action=action, mask=None, log_prob=None, reward=reward, next_obs=None, carry=None, **flags)


def of_policy(observation_space, action_space, normalizers, obs, action, old):
    model = fixed_model(spaces.EnvSpec(observation_space, action_space))
    metrics = health.of_policy(model, normalizers, rollout_of(obs, action), old)
    return {name: float(value) for name, value in metrics.items()}


def gaussian(*log_std):
    return DiagonalGaussian(np.zeros((2, 2, len(log_std)), np.float32), np.float32(log_std))


ACTION = np.float32([[[0.0, 9.0], [-1.5, 0.0]], [[1.5, -1.0], [9.0, -9.0]]])


def test_a_gaussian_tells_of_its_deviations_and_of_what_is_beyond_the_bounds_in_valid_rows():
    metrics = of_policy(BOX, BOX, (None,), ACTION, ACTION, gaussian(0.0, np.log(0.5)))
    # Of six numbers in valid rows -1.5 and 1.5 are beyond [-1, 1]; nothing is beyond infinity, and -1 is no less.
    assert metrics == pytest.approx({"policy/std": 0.75, "policy/std_min": 0.5, "action/out_of_bounds": 2 / 6})


def test_a_bounded_distribution_sends_nothing_that_is_clipped():
    tanh = TanhGaussian(np.zeros((2, 2, 2), np.float32), np.float32([[[0.0, 0.0]] * 2, [[0.0, -1.0]] * 2]))
    assert of_policy(BOX, BOX, (None,), ACTION, ACTION, tanh) == pytest.approx(
        {"policy/std": (3 + np.exp(-1)) / 4, "policy/std_min": np.exp(-1)}
    )
    assert of_policy(BOX, BOX, (None,), ACTION, ACTION, Beta(np.ones((2, 2, 2)), np.ones((2, 2, 2)))) == {}


def test_of_several_parts_of_an_action_only_the_gaussians_are_looked_at():
    space = spaces.Dict((("a", spaces.Discrete(3)), ("b", BOX)))
    action = {"a": np.zeros((2, 2), np.int32), "b": ACTION}
    old = Product((Categorical(np.zeros((2, 2, 3), np.float32)), gaussian(0.0, 0.0)), space)
    metrics = of_policy(BOX, space, (None,), ACTION, action, old)
    assert metrics == pytest.approx({"policy/std": 1.0, "policy/std_min": 1.0, "action/out_of_bounds": 2 / 6})


def test_observations_beyond_five_deviations_are_counted_by_their_numbers_in_valid_rows():
    space = spaces.Dict((("a", spaces.Box((1,), "float32", -9.0, 9.0)), ("b", BOX), ("c", spaces.Discrete(4))))
    obs = {
        "a": np.float32([[[0.0], [11.0]], [[-9.0], [99.0]]]),
        "b": np.float32([[[0.0, 5.0], [0.0, 6.0]], [[-7.0, 0.0], [99.0, 99.0]]]),
        "c": np.zeros((2, 2), np.int32),
    }
    normalizers = (
        Normalizer(np.float32([1.0]), np.float32([0.5])),
        Normalizer(np.zeros(2, np.float32), np.ones(2, np.float32)),
        None,
    )
    metrics = of_policy(
        space,
        spaces.Discrete(3),
        normalizers,
        obs,
        np.zeros((2, 2), np.int32),
        Categorical(np.zeros((2, 2, 3), np.float32)),
    )
    # (11 - 1) / 2 is five, which is not beyond; of b's six numbers 6 and -7 are.
    assert metrics == pytest.approx({"observation/clipped": 2 / 9})


def test_rewards_and_ends_of_valid_rows_are_told():
    metrics = health.of_rewards(
        rollout_of(
            reward=np.float32([[1.0, 3.0], [2.0, 99.0]]),
            terminated=np.array([[True, False], [False, True]]),
            truncated=np.array([[False, True], [True, True]]),
        )
    )
    assert {name: float(value) for name, value in metrics.items()} == pytest.approx(
        {
            "reward/mean": 2.0,
            "reward/std": np.sqrt(2 / 3),
            "episode/terminations": 1.0,
            "episode/truncations": 2.0,
        }
    )


@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
def test_the_spread_of_numbers_is_finite_where_their_squares_are_not(scale):
    x, weight = np.float32(scale) * np.float32([1.0, 3.0, 7.0]), np.float32([1.0, 1.0, 0.0])
    assert float(spread(x, weight)) == pytest.approx(scale)
    assert float(spread(np.zeros(3, np.float32), weight)) == 0.0
