"""Episodes played apart from training: side by side or one by one, with the answers that training takes."""

import dataclasses
from functools import cache
from typing import ClassVar

import gymnasium
import jax
import numpy as np
import pytest

import inchworm as iw
from fixed_model import fixed_model
from inchworm import spaces
from inchworm.build import make_algorithm
from inchworm.collect.evaluate import Evaluation, evaluate, evaluate_at_once
from inchworm.collect.host import HostRollouts
from inchworm.collect.record import render_episode
from inchworm.envs.gymnasium import GymnasiumPool
from inchworm.envs.jax_control import CLASSIC_CONTROL
from inchworm.envs.jax_env import GymnasiumView
from inchworm.errors import EnvironmentContractError
from inchworm.models.policy import Policy
from inchworm.spaces import EnvSpec
from jax_probes import Cue, Recall
from probes import Probe

SMALL = {"num_envs": 2, "horizon": 8, "hidden_sizes": (8,), "recurrent_size": 8, "minibatch_size": 16}
CASES = {
    "cart-pole": (CLASSIC_CONTROL["CartPole-v1"], {}),
    "masked hybrid of dicts": (Cue("hybrid", masked=True, dict_obs=True), {}),
    "memory": (Recall(), {"recurrent": "gru"}),
}


def untrained(env, settings):
    config = iw.PPO(**SMALL | settings)
    state = make_algorithm(config, env.spec, 1000).init(jax.random.key(1))
    return Policy(state.model, state.obs_stats, config)


@pytest.mark.parametrize("case", CASES)
def test_returns_are_those_of_episodes_played_one_by_one(case):
    env, settings = CASES[case]
    policy = untrained(env, settings)
    at_once = evaluate_at_once(policy, env, episodes=5, seed=3)
    alone = one_by_one(policy, env, episodes=5, seed=3)
    assert at_once.lengths == alone.lengths
    np.testing.assert_allclose(at_once.returns, alone.returns, atol=1e-4)
    assert at_once.unfinished == 0


def one_by_one(policy, env, **options):
    return evaluate(policy, lambda: GymnasiumView(env), **options)


@pytest.mark.parametrize("play", [evaluate_at_once, one_by_one])
def test_sampled_actions_differ_from_modes_and_are_decided_by_the_seed(play):
    env, _ = CASES["cart-pole"]
    policy = untrained(env, {})
    sampled = play(policy, env, episodes=50, deterministic=False, seed=3)
    policy.act(np.zeros(4, np.float32))
    assert sampled == play(policy, env, episodes=50, deterministic=False, seed=3)
    assert sampled.returns != play(policy, env, episodes=50, deterministic=False, seed=4).returns
    assert sampled.returns != play(policy, env, episodes=50, seed=3).returns
    assert 15 < sampled.mean < 35, "random play comes to 22"


@pytest.mark.parametrize("play", [evaluate_at_once, one_by_one])
def test_who_may_end_an_evaluation_is_told_how_many_episodes_are_over(play):
    env, counts = CLASSIC_CONTROL["Pendulum-v1"], []  # whose episodes are longer than a compiled call
    play(untrained(env, {}), env, episodes=3, over=lambda count: counts.append(count))
    assert counts == sorted(counts)
    assert counts[0] == 0
    assert 0 < counts[-1] <= 3


class Unending(gymnasium.Env):
    """Gives a reward that is not finite."""

    observation_space, action_space = gymnasium.spaces.Box(-1, 1, (4,)), gymnasium.spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        return np.zeros(4, np.float32), {}

    def step(self, action):
        return np.zeros(4, np.float32), -np.inf, True, False, {}


class Divides:
    """CartPole in JAX whose rewards are not numbers."""

    def __init__(self):
        self._env = CLASSIC_CONTROL["CartPole-v1"]
        self.spec, self.reset = self._env.spec, self._env.reset

    def step(self, *arguments):
        transition = self._env.step(*arguments)
        return transition._replace(reward=transition.reward * np.nan)


def test_a_return_that_is_not_finite_is_an_error_of_the_environment():
    policy = untrained(CLASSIC_CONTROL["CartPole-v1"], {})
    for play in (lambda: evaluate(policy, Unending), lambda: evaluate_at_once(policy, Divides(), episodes=2)):
        with pytest.raises(EnvironmentContractError, match="not finite") as error:
            play()
        assert error.value.field == "reward"


def test_evaluations_and_videos_begin_where_no_training_environment_does():
    class Seeded(Probe):
        metadata: ClassVar = {"render_modes": ["rgb_array"]}
        render_mode = "rgb_array"

        def reset(self, *, seed=None, options=None):
            seeds.append(seed)
            return super().reset(seed=seed)

        def render(self):
            return np.zeros((4, 4, 3), np.uint8)

    seeds = []
    pool = GymnasiumPool(Seeded, 64, 3)
    model = fixed_model(pool.spec)
    HostRollouts(pool, 2, "clip").collect(model, (None,), jax.random.key(0))
    evaluate(Policy(model, (None,)), Seeded, episodes=20, seed=3)
    render_episode(Policy(model, (None,)), Seeded, seed=3)
    first = [seed for seed in seeds if seed is not None]
    assert len(set(first)) == len(first) == 64 + 20 + 1


def test_episodes_that_do_not_end_are_cut_and_counted():
    pendulum = CLASSIC_CONTROL["Pendulum-v1"]
    cut = evaluate_at_once(untrained(pendulum, {}), pendulum, episodes=3, max_episode_steps=125)
    assert (cut.unfinished, cut.lengths) == (3, [125] * 3)
    assert all(value < -10 for value in cut.returns)


class Short(gymnasium.Env):
    """Episodes of two steps, each of reward 1; a subclass shows a fault."""

    observation_space = gymnasium.spaces.Box(-1.0, 1.0, (2,), np.float32)
    action_space = gymnasium.spaces.Discrete(2)
    metadata = {"render_modes": ["rgb_array"]}  # noqa: RUF012
    render_mode = "rgb_array"
    closed = 0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.steps = 0
        return np.zeros(2, np.float32), {}

    def step(self, action):
        self.steps += 1
        return np.zeros(2, np.float32), 1.0, self.steps == 2, False, {}

    def render(self):
        return np.zeros((2, 2, 3), np.uint8)

    def close(self):
        type(self).closed += 1


def fail(*_):
    raise ZeroDivisionError("out of luck")


def stepping(change):
    """A Short whose second step answers with what a function makes of its answer."""

    class Changed(Short):
        def step(self, action):
            answer = super().step(action)
            return change(*answer) if self.steps == 2 else answer

    return Changed


def resetting(change):
    class Changed(Short):
        def reset(self, *, seed=None, options=None):
            return change(*super().reset(seed=seed))

    return Changed


def masking(*masks):
    """A Short that gives one mask after another."""

    class Masking(Short):
        def reset(self, *, seed=None, options=None):
            obs, _ = super().reset(seed=seed)
            return obs, masks[0]

        def step(self, action):
            *answer, _ = super().step(action)
            return *answer, masks[min(self.steps, len(masks) - 1)]

    return Masking


@cache
def fixed_policy():
    return Policy(fixed_model(EnvSpec(spaces.Box((2,), "float32", -1.0, 1.0), spaces.Discrete(2))), (None,))


def in_training(factory):
    pool = GymnasiumPool(factory, 1, 0)
    HostRollouts(pool, 3, "clip").collect(fixed_policy().model, (None,), jax.random.key(0))


def in_evaluation(factory):
    return evaluate(fixed_policy(), factory, episodes=1)


def in_a_recording(factory):
    return render_episode(fixed_policy(), factory)


FAULTS = {
    "step raises": stepping(fail),
    "reset raises": resetting(fail),
    "reset without info": resetting(lambda obs, info: obs),
    "step of four parts": stepping(lambda o, r, d, c, i: (o, r, d, i)),
    "no reward": stepping(lambda o, r, d, c, i: (o, None, d, c, i)),
    "two rewards": stepping(lambda o, r, d, c, i: (o, np.ones(2), d, c, i)),
    "reward as text": stepping(lambda o, r, d, c, i: (o, "3", d, c, i)),
    "flag in words": stepping(lambda o, r, d, c, i: (o, r, "no", c, i)),
    "long observation": stepping(lambda o, *rest: (np.zeros(4, np.float32), *rest)),
    "no observation": stepping(lambda o, *rest: (None, *rest)),
    "wrong first observation": resetting(lambda obs, info: (obs[:1], info)),
    "mask of another length": masking({"action_mask": np.ones(3, bool)}),
    "mask of nothing": masking({"action_mask": np.zeros(2, bool)}),
    "mask now and then": masking({"action_mask": np.ones(2, bool)}, {}),
}


@pytest.mark.fault("RB1")
@pytest.mark.parametrize("play", [in_evaluation, in_a_recording])
@pytest.mark.parametrize("factory", FAULTS.values(), ids=FAULTS.keys())
def test_what_training_refuses_is_refused_in_evaluation_and_recording_with_the_same_words(factory, play):
    with pytest.raises(EnvironmentContractError) as trained:
        in_training(factory)
    factory.closed = 0
    with pytest.raises(EnvironmentContractError) as found:
        play(factory)
    assert str(found.value) == str(trained.value).replace("environment 0", "the environment")
    assert factory.closed == 1


TAKEN = {
    "reward of shape (1,)": stepping(lambda o, r, d, c, i: (o, np.array([1.0]), d, c, i)),
    "reward and flags without axes": stepping(lambda o, r, d, c, i: (o, np.array(1), np.array(d), np.array(c), i)),
    "flag of shape (1,)": stepping(lambda o, r, d, c, i: (o, r, np.array([d]), c, i)),
    "observation as a list": stepping(lambda o, *rest: ([0.0, 0.0], *rest)),
    "no info": stepping(lambda o, r, d, c, i: (o, r, d, c, None)),
}


@pytest.mark.fault("RB1", outcome="survived")
@pytest.mark.parametrize("factory", TAKEN.values(), ids=TAKEN.keys())
def test_what_training_takes_is_taken_in_evaluation_and_recording_too(factory):
    in_training(factory)
    assert in_evaluation(factory).returns == [2.0]
    frames, total, _ = in_a_recording(factory)
    assert (len(frames), total) == (3, 2.0)


@pytest.mark.parametrize("play", [in_evaluation, in_a_recording])
def test_an_observation_that_is_not_finite_is_told_as_the_environment_s(play):
    factory = resetting(lambda obs, info: (obs * np.nan, info))
    with pytest.raises(EnvironmentContractError, match=r"^observation = .*nan.*the environment.*not finite"):
        play(factory)


@pytest.mark.fault("RB1", outcome="survived")
@pytest.mark.parametrize("play", [in_evaluation, in_a_recording])
def test_an_environment_that_cannot_be_closed_is_warned_of_and_hides_neither_result_nor_error(play):
    with pytest.warns(UserWarning, match="could not be closed: ZeroDivisionError"):
        play(type("Unclosable", (Short,), {"close": fail}))
    with (
        pytest.warns(UserWarning, match="could not be closed"),
        pytest.raises(EnvironmentContractError, match=r"^env\.step = ZeroDivisionError"),
    ):
        play(type("Unclosable", (stepping(fail),), {"close": fail}))


def evaluation(returns=(1.0, 3.0), deterministic=True, unfinished=0):
    return Evaluation(list(returns), [5] * len(returns), deterministic, unfinished)


def test_an_evaluation_shows_itself_in_a_line():
    assert repr(evaluation()) == "Evaluation(deterministic, return 2 ± 1 over 2 episodes)"
    assert repr(evaluation(deterministic=False)) == "Evaluation(stochastic, return 2 ± 1 over 2 episodes)"
    assert repr(evaluation(unfinished=1)).endswith("over 2 episodes, 1 cut at its step limit)")
    assert repr(evaluation([])) == "Evaluation(deterministic, return of no episode)"
    assert np.isnan(evaluation([]).mean)
    assert np.isnan(evaluation([]).std)
    with pytest.raises(dataclasses.FrozenInstanceError):
        evaluation().unfinished = 1


def test_an_evaluation_s_summary_has_returns_lengths_and_their_mean_and_deviation():
    assert evaluation().summary() == {
        "returns": [1.0, 3.0],
        "lengths": [5, 5],
        "deterministic": True,
        "unfinished": 0,
        "mean": 2.0,
        "std": 1.0,
    }


class Lasts(Short):
    """Episodes of five steps, or without an end."""

    def __init__(self, length=5):
        self.length = length

    def reset(self, *, seed=None, options=None):
        self.t = 0
        return np.zeros(2, np.float32), {}

    def step(self, action):
        self.t += 1
        return np.zeros(2, np.float32), 1.0, self.t == self.length, False, {}


def short_policy():
    spec = EnvSpec(spaces.Box((2,), "float32", -1.0, 1.0), spaces.Discrete(2))
    return Policy(fixed_model(spec), (None,), iw.PPO(**SMALL))


@pytest.mark.parametrize("limit", [5, 6])
def test_an_episode_that_ends_at_its_step_limit_is_none_that_was_cut(limit):
    found = evaluate(short_policy(), Lasts, episodes=3, max_episode_steps=limit)
    assert (found.returns, found.lengths, found.unfinished) == ([5.0] * 3, [5] * 3, 0)


def test_an_episode_without_an_end_is_cut_and_the_last():
    with pytest.warns(UserWarning, match="ends after 1 of 3 episodes: the last was cut at 4 steps"):
        found = evaluate(short_policy(), lambda: Lasts(10**9), episodes=3, max_episode_steps=4)
    assert (found.returns, found.lengths, found.unfinished) == ([4.0], [4], 1)


def test_episodes_side_by_side_tell_how_many_have_ended_and_leave_nothing_where_they_are_to_end():
    env = CLASSIC_CONTROL["CartPole-v1"]
    policy, told = untrained(env, {}), []
    found = evaluate_at_once(policy, env, episodes=5, over=lambda ended: told.append(ended))
    assert told[-1] == 5
    assert found.returns
    nothing = evaluate_at_once(policy, env, episodes=5, over=lambda ended: True)
    assert nothing == Evaluation([], [], True, 0)


def test_a_single_return_that_is_not_finite_is_an_error_too():
    with pytest.raises(EnvironmentContractError, match="not finite"):
        evaluate_at_once(untrained(CLASSIC_CONTROL["CartPole-v1"], {}), Divides(), episodes=1)
