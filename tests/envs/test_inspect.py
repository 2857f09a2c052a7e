"""Each fault of an environment is found and named; a healthy environment has none."""

import time

import gymnasium
import numpy as np
import pytest
from gymnasium.spaces import Box, Dict, Discrete, MultiBinary, MultiDiscrete, Text, Tuple
from gymnasium.vector import SyncVectorEnv

from inchworm.envs.gymnasium import spec_of
from inchworm.envs.inspect import Report, inspect_environment
from inchworm.envs.source import env_source
from inchworm.envs.trial import Finding, random_draws
from inchworm.errors import ConfigError, EnvironmentContractError


class Healthy(gymnasium.Env):
    """Walks at random; an episode ends by itself after 3 to 8 steps."""

    observation_space = Box(-5, 5, (2,), np.float32)
    action_space = Box(-1, 1, (2,), np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.left = int(self.np_random.integers(3, 9))
        return self.observe(), {}

    def step(self, action):
        self.left -= 1
        return self.observe(), float(action[0]), self.left == 0, False, {}

    def observe(self):
        return self.np_random.uniform(-1, 1, 2).astype(np.float32)


def inspect(env, **settings) -> Report:
    settings = {"steps": 30, "seconds": 1.0} | settings
    return inspect_environment(env_source(env), **settings)


def environment(**members):
    """A class that differs from the healthy one in some members."""
    return type("Faulty", (Healthy,), members)


def answering(index, value):
    """A class whose step returns something else at one place of its answer."""

    def step(self, action):
        answer = list(Healthy.step(self, action))
        answer[index] = value(answer[index]) if callable(value) else value
        return tuple(answer)

    return environment(step=step)


def observing(value):
    """A class that returns what a function makes of the healthy observation."""
    return environment(observe=lambda self: value(Healthy.observe(self)))


def find(findings: tuple[Finding, ...], where: str, text: str) -> Finding:
    """The finding about a subject whose problem has the text; fails, showing them all, if there is none."""
    for finding in findings:
        if finding.where == where and text in finding.problem:
            assert finding.fix.endswith(".")
            return finding
    raise AssertionError(f"no {where}: {text} among {findings}")


@pytest.mark.parametrize("env", ["CartPole-v1", "Pendulum-v1"])
def test_a_healthy_environment_has_no_problems_and_no_warnings(env):
    report = inspect(env, steps=300)
    assert report.problems == report.warnings == ()
    assert "bit for bit" in report.facts["determinism"]
    assert report.facts["resume"].startswith("exact")
    assert "steps/s" in report.facts["speed"]


def test_the_healthy_environment_of_these_tests_is_healthy():
    report = inspect(Healthy)
    assert report.problems == report.warnings == ()
    assert report.facts["action space"] == "Box (2,), float32, -1 to 1"
    assert "32% is clipped" in report.facts["policy"]


def test_an_environment_that_is_slow_at_first_is_deterministic_all_the_same():
    made = []

    class Slow(Healthy):
        def __init__(self):
            made.append(self)

        def step(self, action):
            time.sleep(0.02 if self is made[1] else 0)  # the first tells its spaces
            return super().step(action)

    report = inspect(Slow, steps=200, seconds=0.4)
    assert "bit for bit" in report.facts["determinism"]
    assert report.warnings == ()


def test_bytes_are_scaled_by_the_network_and_need_no_other_scale():
    seen = environment(
        observation_space=Box(0, 255, (24, 24), np.uint8),
        observe=lambda self: self.np_random.integers(0, 256, (24, 24)).astype(np.uint8),
    )
    assert inspect(seen).warnings == ()


@pytest.mark.fault("RB1")
@pytest.mark.parametrize("reward", [None, "1.0", 1j, np.ones(2), [1.0, 2.0]])
def test_a_reward_that_is_no_number_is_a_problem(reward):
    assert "float(reward)" in find(inspect(answering(1, reward)).problems, "reward", "at step 1 of episode 1").fix


@pytest.mark.fault("RB1")
@pytest.mark.parametrize("reward", [np.nan, np.inf, 1e39])
def test_a_reward_that_float32_cannot_hold_is_a_problem(reward):
    find(inspect(answering(1, reward)).problems, "reward", "not a finite float32")


@pytest.mark.fault("RB1", outcome="survived")
@pytest.mark.parametrize("reward", [1, np.float32(1), np.array(1.0), np.int64(1)])
def test_any_single_real_number_is_a_reward(reward):
    assert inspect(answering(1, reward)).problems == ()


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda obs: obs[:1], "float32[1]"),
        (lambda obs: obs[None], "float32[1, 2]"),
        (lambda obs: obs + 0j, "complex"),
        (lambda obs: None, "object"),
        (lambda obs: obs * np.float32(np.nan), "is nan in number 0"),
        (lambda obs: obs + np.array([0, np.inf], np.float32), "is inf in number 1"),
    ],
)
def test_an_observation_training_cannot_use_is_a_problem(change, text):
    find(inspect(observing(change)).problems, "observation", text)


def test_a_discrete_observation_outside_its_space_is_a_problem():
    faulty = environment(observation_space=Discrete(3), observe=lambda self: int(self.np_random.integers(5)))
    find(inspect(faulty).problems, "observation", "outside [0, 2]")


def test_an_observation_outside_its_bounds_is_a_warning_that_counts_them():
    report = inspect(observing(lambda obs: obs + np.array([0, 10], np.float32)))
    assert report.problems == ()
    assert "times)" in find(report.warnings, "observation", "in number 1, outside [-5, 5]").problem


def test_an_observation_of_another_dtype_is_a_warning():
    find(inspect(observing(lambda obs: obs.astype(np.float64))).warnings, "observation", "is float64 where")


def test_an_observation_written_into_after_it_was_returned_is_a_warning():
    class Aliased(Healthy):
        def observe(self):
            self.buffer = getattr(self, "buffer", np.zeros(2, np.float32))
            self.buffer[:] = super().observe()
            return self.buffer

    find(inspect(Aliased).warnings, "observation", "was written into")


def test_an_observation_that_never_changes_is_a_warning():
    report = inspect(observing(lambda obs: np.ones(2, np.float32)))
    find(report.warnings, "observation", "never changed")
    assert report.facts["observations"] == "1, 2 of 2 numbers never change"


@pytest.mark.fault("RB1")
@pytest.mark.parametrize("flag", ["no", None, np.zeros(1, bool)])
def test_a_flag_that_is_no_bool_is_a_problem(flag):
    find(inspect(answering(2, flag)).problems, "terminated", "not a bool")


def test_a_flag_that_is_a_whole_number_is_a_warning():
    report = inspect(answering(3, int))
    assert report.problems == ()
    find(report.warnings, "truncated", "is int 0, not a bool")


def test_both_flags_true_is_a_warning():
    def step(self, action):
        obs, reward, ended, _, info = Healthy.step(self, action)
        return obs, reward, ended, ended, info

    find(inspect(environment(step=step)).warnings, "terminated", "together with truncated")


def test_a_time_limit_returned_as_termination_is_a_warning():
    def reset(self, *, seed=None, options=None):
        answer = Healthy.reset(self, seed=seed)
        self.left = 7
        return answer

    find(inspect(environment(reset=reset)).warnings, "terminated", "exactly 7 steps in all")


def test_a_reset_that_leaves_the_counter_is_a_problem():
    def reset(self, *, seed=None, options=None):
        answer = Healthy.reset(self, seed=seed)
        self.left = 3 if seed is not None else 1
        return answer

    find(inspect(environment(reset=reset)).problems, "env.reset", "ended after one step")


def test_an_episode_without_end_or_limit_is_a_warning():
    find(inspect(answering(2, False)).warnings, "time limit", "no random episode ended")


@pytest.mark.fault("RB1")
@pytest.mark.parametrize(
    ("member", "where", "text"),
    [
        ({"step": lambda self, action: (self.observe(), 0.0, False, {})}, "env.step", "a tuple of 4"),
        ({"reset": lambda self, seed=None, options=None: np.zeros(2, np.float32)}, "env.reset", "one ndarray"),
        ({"reset": lambda self, options=None: None}, "env.reset", "TypeError"),
        ({"step": lambda self, action: 1 / 0}, "env.step", "ZeroDivisionError: division by zero was raised"),
        ({"close": lambda self: 1 / 0 if hasattr(self, "left") else None}, "env.close", "ZeroDivisionError"),
    ],
)
def test_an_answer_of_another_form_or_an_error_is_a_problem(member, where, text):
    find(inspect(environment(**member)).problems, where, text)


def test_an_error_is_told_with_the_line_it_comes_from():
    assert __file__ in find(inspect(environment(step=lambda self, action: 1 / 0)).problems, "env.step", "raised").fix


def test_an_error_at_the_bounds_only_is_a_problem_that_says_so():
    def step(self, action):
        assert np.abs(action).max() < 1
        return Healthy.step(self, action)

    find(inspect(environment(step=step)).problems, "env.step", "under actions at the bounds")


def test_an_info_that_is_no_dict_is_a_warning():
    find(inspect(answering(4, None)).warnings, "info", "is None, not a dict")


def test_a_second_instance_that_cannot_be_made_is_named():
    made = []

    def make():
        made.append(Healthy())
        if len(made) > 1:
            raise OSError("port in use")
        return made[0]

    with pytest.raises(EnvironmentContractError, match="port in use"):
        inspect(make)


class Exclusive(Healthy):
    """Binds something of which there is one, until it is closed."""

    most_open = 1
    num_open = 0

    def __init__(self):
        if self.num_open == self.most_open:
            raise OSError("port 5005 is in use")
        type(self).num_open += 1

    def close(self):
        type(self).num_open -= 1


def test_an_environment_of_which_one_can_be_open_at_a_time_is_tried_whole_and_told_as_such():
    alone = type("Alone", (Exclusive,), {})
    report = inspect(alone)
    assert report.problems == ()
    assert "num_envs=1" in find(report.warnings, "num_envs", "only one can be open at a time: OSError: port 5005").fix
    assert len(report.warnings) == 1
    assert "bit for bit" in report.facts["determinism"]
    assert report.facts["resume"].startswith("exact")
    assert alone.num_open == 0


def test_two_that_are_open_at_once_are_all_that_is_asked_for():
    pair = type("Pair", (Exclusive,), {"most_open": 2})
    assert inspect(pair).warnings == ()
    assert pair.num_open == 0


def test_an_environment_that_cannot_be_made_again_is_a_problem():
    class Once(Healthy):
        made = 0

        def __init__(self):
            type(self).made += 1
            if self.made > 2:  # the first tells its spaces
                raise OSError("port in use")

    find(inspect(Once).problems, "env", "cannot be made: OSError: port in use, when made again after it was closed")


def test_one_object_for_all_instances_is_a_problem():
    shared = Healthy()
    find(inspect(lambda: shared).problems, "env", "returned the same object")


def test_randomness_from_the_global_generator_is_a_warning_that_names_it():
    report = inspect(observing(lambda obs: np.random.uniform(-1, 1, 2).astype(np.float32)))
    assert "global generator was used" in find(report.warnings, "determinism", "at the reset").fix
    assert report.facts["resume"].startswith("not exact")


def test_randomness_of_the_reward_alone_is_told_as_such():
    find(inspect(answering(1, lambda reward: np.random.default_rng().normal())).warnings, "determinism", "reward at")


def test_a_seed_that_changes_nothing_is_a_warning():
    faulty = observing(lambda obs: np.zeros(2, np.float32))
    faulty.reset = lambda self, seed=None, options=None: Healthy.reset(self, seed=1 if seed is not None else None)
    find(inspect(faulty).warnings, "seed", "changes nothing")


def test_state_that_survives_resets_makes_a_resume_inexact():
    def reset(self, *, seed=None, options=None):
        self.age = getattr(self, "age", 0) + 1
        return Healthy.reset(self, seed=seed)

    faulty = environment(reset=reset, observe=lambda self: np.float32([self.age / 100, self.np_random.uniform()]))
    report = inspect(faulty)
    assert "bit for bit" in report.facts["determinism"]
    find(report.warnings, "resume", "not exact")


@pytest.mark.parametrize(
    ("low", "high", "text"),
    [
        (-np.inf, np.inf, "does not bound"),
        (1, 3, "leaves out 0"),
        (-0.1, 0.1, "so narrow"),
        (0, 100, "so wide"),
    ],
)
def test_bounds_that_do_not_suit_a_gaussian_of_deviation_one_are_a_warning(low, high, text):
    report = inspect(environment(action_space=Box(low, high, (2,), np.float32)), normalize_return=True)
    find(report.warnings, "action_space", f"[{low:g}, {high:g}], {'' if text.startswith('so') else 'which '}{text}")
    assert len(report.warnings) == 1


def test_a_single_action_is_a_warning():
    faulty = environment(action_space=Discrete(1), step=lambda self, action: Healthy.step(self, [1.0]))
    find(inspect(faulty).warnings, "action", "only one")


@pytest.mark.parametrize("scale", [1e-4, 1e3])
def test_rewards_far_from_one_are_a_warning_unless_they_are_normalised(scale):
    faulty = answering(1, lambda reward: scale * reward)
    assert "normalize_return" in find(inspect(faulty, normalize_return=False).warnings, "reward", "of size").fix
    assert inspect(faulty, normalize_return=True).warnings == ()


def test_rewards_that_are_all_zero_are_a_warning():
    find(inspect(answering(1, 0.0)).warnings, "reward", "was 0 at every random step")


def test_observations_of_very_different_size_are_a_warning_unless_they_are_normalised():
    faulty = observing(lambda obs: obs * np.array([1, 0.001], np.float32))
    report = inspect(faulty, normalize_observation=False)
    assert "normalize_observation" in find(report.warnings, "observation", "numbers of size").fix
    assert inspect(faulty).warnings == ()


def test_large_whole_numbers_are_a_warning_because_they_are_never_normalised():
    faulty = environment(
        observation_space=Box(0, 999, (2,), np.int64), observe=lambda self: self.np_random.integers(0, 1000, 2)
    )
    find(inspect(faulty, normalize_observation=True).warnings, "observation", "unscaled")


def test_actions_without_a_policy_are_a_problem():
    whole = environment(action_space=Box(0, 3, (2,), np.int64))
    find(inspect(whole).problems, "action_space", "has no policy")
    with pytest.raises(EnvironmentContractError, match="Text"):
        inspect(environment(action_space=Text(3)))


class Everything(Healthy):
    """Observes and takes spaces of every kind; its mask leaves two of three choices."""

    observation_space = Dict(
        walk=Healthy.observation_space, grid=MultiDiscrete([2, 3], start=[1, -1]), bits=MultiBinary(2)
    )
    action_space = Dict(
        pick=Discrete(3, start=1),
        pair=Tuple([Box(-1, 1, (2,), np.float32), MultiDiscrete([2, 3], start=[0, 5]), MultiBinary(2)]),
    )

    def reset(self, *, seed=None, options=None):
        obs, info = super().reset(seed=seed)
        return self.wrap(obs), info | {"action_mask": self.mask()}

    def step(self, action):
        assert self.action_space.contains(action)
        assert self.allowed[action["pick"] - 1]
        obs, *rest, info = super().step(action["pair"][0])
        return self.wrap(obs), *rest, info | {"action_mask": self.mask()}

    def wrap(self, obs):
        grid = np.array([self.np_random.integers(2) + 1, self.np_random.integers(3) - 1])
        return {"walk": obs, "grid": grid, "bits": self.np_random.integers(2, size=2, dtype=np.int8)}

    def mask(self):
        self.allowed = np.arange(3) != self.np_random.integers(3)
        return {"pick": self.allowed}


def test_spaces_of_every_kind_and_masks_are_tried_within_the_mask():
    report = inspect(Everything)
    assert report.problems == report.warnings == ()
    assert report.facts["action masks"] == "given; they allow 92% of the choices"
    assert report.facts["action space"] == (
        "Dict of pair: Tuple of Box (2,), float32, -1 to 1; MultiDiscrete (2,), 2, 3 choices from (0, 5); "
        "MultiBinary (2,); pick: Discrete, 3 choices from 1"
    )
    assert report.facts["resume"].startswith("exact")


def test_a_mask_among_the_observations_alone_is_a_warning():
    class Masked(Healthy):
        observation_space = Dict(place=Healthy.observation_space, action_mask=MultiBinary(3))
        action_space = Discrete(3)

        def step(self, action):
            return super().step([0.5])

        def observe(self):
            return {"place": super().observe(), "action_mask": np.array([1, 0, self.np_random.integers(2)], np.int8)}

    find(inspect(Masked).warnings, "observation", "forbids nothing")
    Masked.action_masks = lambda self: np.ones(3, bool)
    assert inspect(Masked).warnings == ()


def test_what_may_be_an_image_and_becomes_a_vector_is_a_warning():
    seen = environment(
        observation_space=Box(-1, 1, (24, 24, 3), np.float32),
        observe=lambda self: self.np_random.uniform(-1, 1, (24, 24, 3)).astype(np.float32),
    )
    assert "np.uint8" in find(inspect(seen).warnings, "observation_space", "becomes a vector of 1,728 numbers").fix


def test_an_environment_without_masks_is_told_as_such():
    assert inspect(Healthy).facts["action masks"] == "none"


@pytest.mark.parametrize(
    ("mask", "text"),
    [([1, 1], "should be flags"), ([0, 0, 0], "allows nothing")],
)
def test_a_mask_that_does_not_fit_is_a_problem(mask, text):
    class Wrong(Healthy):
        action_space = Discrete(3)

        def step(self, action):
            return *super().step([0.0])[:4], {"action_mask": mask}

        def reset(self, *, seed=None, options=None):
            return super().reset(seed=seed)[0], {"action_mask": [1, 1, 1]}

    find(inspect(Wrong).problems, "action_mask", text)


def test_a_mask_drawn_from_elsewhere_is_told_as_such():
    class Fickle(Healthy):
        action_space = Discrete(9)

        def step(self, action):
            return *super().step([0.5])[:4], {"action_mask": np.random.default_rng().random(9) < 0.9}

        def reset(self, *, seed=None, options=None):
            return super().reset(seed=seed)[0], {"action_mask": [1] * 9}

    find(inspect(Fickle).warnings, "determinism", "another mask")


@pytest.mark.fault("RB1")
@pytest.mark.parametrize(
    ("space", "value", "text"),
    [
        (MultiDiscrete([2, 3], start=[1, 0]), [0, 0], "0 is what the environment returned in number 0, outside [1, 2]"),
        (MultiDiscrete([2, 3]), [0, 3], "3 is what the environment returned in number 1, outside [0, 2]"),
        (MultiBinary(2), [0, 2], "2 is what the environment returned in number 1, outside [0, 1]"),
    ],
)
def test_a_choice_outside_its_space_is_a_problem(space, value, text):
    faulty = environment(observation_space=space, observe=lambda self: np.array(value, space.dtype))
    find(inspect(faulty).problems, "observation", text)


def test_a_number_that_its_byte_cannot_hold_is_a_problem():
    faulty = environment(observation_space=Box(0, 255, (2,), np.uint8), observe=lambda self: np.array([300, -1]))
    find(inspect(faulty).problems, "observation", "300 is what the environment returned in number 0, outside [0, 255]")


def test_a_vector_environment_is_refused():
    with pytest.raises(ConfigError, match="Check one of its environments"):
        inspect(SyncVectorEnv([Healthy, Healthy]))


def test_a_reward_in_an_array_of_one_number_is_taken_as_in_training():
    report = inspect(answering(1, lambda reward: np.array([reward])))
    assert not [one for one in report.problems if one.where == "reward"]


def test_a_reset_of_the_old_kind_is_told_what_to_take():
    report = inspect(environment(reset=lambda self: (np.zeros(2, np.float32), {})))
    (problem,) = report.problems
    assert problem.where == "env.reset"
    assert problem.fix.startswith("Write `def reset(self, *, seed=None, options=None)`")


def test_what_is_raised_where_training_is_tried_is_told_with_its_line_and_not_to_be_checked_once_more():
    calls = [0]

    def step(self, action):
        calls[0] += 1
        if calls[0] > 130:
            raise RuntimeError("boom")
        return Healthy.step(self, action)

    report = inspect(environment(step=step))
    (problem,) = report.problems
    assert "boom" in problem.problem
    assert f"It comes from {__file__}, line " in problem.fix


@pytest.mark.parametrize("space", [Discrete(5_000_000), MultiDiscrete([2_000_000] * 2), Box(-1, 1, (3_000_000,))])
def test_a_huge_space_of_actions_takes_no_more_memory_than_there_is(space):
    draws = random_draws(spec_of(environment(action_space=space)()).action_space, 2000, 0)
    assert sum(draw.nbytes for draw in draws) < 2**28
    assert all(len(draw) >= 1 for draw in draws)
