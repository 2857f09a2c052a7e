"""Each rule of `inchworm doctor` on rows of metrics made for it, on both sides of where it speaks."""

import dataclasses

import pytest

import inchworm as iw
from inchworm.config import RunConfig
from inchworm.diagnosis import MIN_ITERATIONS, diagnose, speed

CONFIG = RunConfig(env="Task", algorithm=iw.PPO(num_envs=8, horizon=16, minibatch_size=32), total_steps=12_800)
WELL = {
    "policy/kl": 0.01,
    "policy/clip_fraction": 0.1,
    "policy/entropy": 0.6,
    "value/explained_variance": 0.7,
    "advantage/std": 0.5,
    "reward/mean": 1.0,
    "reward/std": 0.2,
    "episode/terminations": 1.0,
    "episode/truncations": 1.0,
    "episode/length": 20.0,
    "guard/skipped": 0.0,
    "time/steps_per_second": 1000.0,
    "time/environment": 0.064,
    "time/policy": 0.032,
}
GAUSSIAN = WELL | {"policy/std": 0.9, "policy/std_min": 0.8, "action/out_of_bounds": 0.3, "observation/clipped": 0.0}


def rows(count=100, first=WELL, **changed):
    """Rows whose later two thirds differ; returns go up."""
    made = []
    for i in range(count):
        row = {"iteration": i + 1, "env_steps": 128 * (i + 1), "episode/count": 2.0 * i, "episode/return": float(i)}
        late = {} if i < count // 3 else {name.replace("__", "/"): value for name, value in changed.items()}
        made.append(first | row | late)
    return made


def found(rows, config=CONFIG):
    return [finding.where for finding in diagnose(config, rows)]


def with_settings(**settings):
    return dataclasses.replace(CONFIG, algorithm=dataclasses.replace(CONFIG.algorithm, **settings))


@pytest.mark.parametrize("first", [WELL, GAUSSIAN], ids=["choices", "numbers"])
def test_nothing_is_found_where_nothing_is_wrong(first):
    assert found(rows(first=first)) == []


def test_nothing_is_found_in_a_run_that_has_hardly_begun():
    sick = rows(policy__kl=1.0)
    assert found(sick[-MIN_ITERATIONS:]) == ["policy/kl"]
    assert found(sick[-MIN_ITERATIONS + 1 :]) == []
    assert diagnose(CONFIG, []) == []


@pytest.mark.parametrize(
    ("first", "metric", "good", "bad"),
    [
        (WELL, "policy/kl", 0.09, 0.11),
        (WELL, "policy/clip_fraction", 0.4, 0.41),
        (WELL, "value/explained_variance", -0.05, -0.06),
        (WELL, "advantage/std", 1e-4, 1e-6),
        (GAUSSIAN, "policy/std_min", 0.017, 0.015),
        (GAUSSIAN, "observation/clipped", 0.01, 0.011),
        (GAUSSIAN, "action/out_of_bounds", 0.8, 0.81),
    ],
)
def test_a_metric_is_told_of_beyond_its_threshold(first, metric, good, bad):
    assert found(rows(first=first, **{metric: good})) == []
    assert found(rows(first=first, **{metric: bad})) == [metric]


def test_one_bad_update_in_three_is_none():
    some = rows()
    for row in some[::3]:
        row |= {"policy/kl": 1.0, "policy/clip_fraction": 1.0, "value/explained_variance": -1.0}
    assert found(some) == []


def test_numbers_that_were_not_finite_are_passed_over():
    some = rows()
    for row in some[::3]:
        row |= dict.fromkeys(WELL)
    assert found(some) == []


def test_the_kl_is_held_against_three_times_its_target_where_there_is_one():
    config = with_settings(target_kl=0.01)
    assert found(rows(policy__kl=0.029), config) == []
    (finding,) = diagnose(config, rows(policy__kl=0.031))
    assert "3 times its target of 0.01 in 100% of the later updates" in finding.problem
    assert "a third of linear:0.0003:0.0" in finding.fix


def test_trpo_whose_steps_are_held_to_the_kl_is_not_told_of_it():
    trpo = dataclasses.replace(CONFIG, algorithm=iw.TRPO(num_envs=8, horizon=16, minibatch_size=32))
    npg = dataclasses.replace(CONFIG, algorithm=iw.NPG(num_envs=8, horizon=16, minibatch_size=32))
    assert found(rows(policy__kl=1.0), trpo) == []
    (finding,) = diagnose(npg, rows(policy__kl=1.0))
    assert finding.fix == "Lower max_kl first, e.g. to a third."


def test_explained_variance_means_nothing_once_returns_hardly_vary():
    assert found(rows(value__explained_variance=-3.0, advantage__std=0.1)) == []
    assert found(rows(value__explained_variance=-3.0, advantage__std=0.2)) == ["value/explained_variance"]


@pytest.mark.parametrize(
    ("mean", "terminations", "sick"), [(0.0, 1.0, True), (0.0, 0.0, True), (-1.0, 0.0, True), (-1.0, 1.0, False)]
)
def test_rewards_that_are_all_alike_teach_nothing_unless_the_policy_can_end_an_episode(mean, terminations, sick):
    dull = WELL | {"reward/mean": mean, "reward/std": 0.0, "episode/terminations": terminations}
    assert found(rows(first=dull)) == (["advantage/std"] if sick else [])


def test_a_policy_that_became_certain_is_sick_only_if_it_earns_no_more_for_it():
    certain = rows(policy__entropy=0.01)
    assert found(certain) == []
    for row in certain:
        row["episode/return"] = 5.0
    assert found(certain) == ["policy/entropy"]
    assert found(rows(first=GAUSSIAN, policy__entropy=-3.0)) == []


def test_a_deviation_that_follows_a_schedule_is_meant():
    assert found(rows(first=GAUSSIAN, policy__std_min=1e-3)) == ["policy/std_min"]
    assert found(rows(first=GAUSSIAN, policy__std_min=1e-3), with_settings(log_std="linear:0:-7")) == []


def test_a_deviation_at_the_floor_of_a_log_std_that_depends_on_the_state_is_told_as_such():
    at_floor = GAUSSIAN | {"policy/std_min": 2.0612e-9}
    (finding,) = diagnose(with_settings(log_std="state"), rows(first=at_floor))
    assert "is at its floor of exp(-20)" in finding.problem


@pytest.mark.parametrize(
    ("changed", "sick"),
    [
        ({}, True),
        ({"episode/truncations": 1.0}, False),
        ({"episode/terminations": 0.0}, False),
        ({"episode/length": 9.0}, False),
    ],
)
def test_episodes_that_all_terminate_after_the_same_longest_time_look_like_a_time_limit(changed, sick):
    ends = WELL | {"episode/truncations": 0.0, "episode/length": 50.0} | changed
    assert found(rows(first=ends)) == (["episode/terminations"] if sick else [])


def test_episodes_that_were_longer_before_have_no_time_limit():
    ends = WELL | {"episode/truncations": 0.0, "episode/length": 51.0}
    assert found(rows(first=ends, episode__length=50.0)) == []


def test_dropped_updates_are_counted():
    some = rows()
    some[3]["guard/skipped"] = 1.0
    (finding,) = diagnose(CONFIG, some)
    assert finding.problem.startswith("1 of 100 updates met NaN")


def returning(curve):
    some = rows()
    for i, row in enumerate(some):
        row["episode/return"] = curve(i) + (i % 2)
    return found(some)


def test_returns_that_fell_and_stayed_down_are_told_of():
    assert returning(lambda i: 100.0 if 30 <= i < 60 else 10.0) == ["episode/return"]
    assert returning(lambda i: 100.0 if 30 <= i < 60 or i > 80 else 10.0) == []  # it came back
    assert returning(lambda i: 100.0 if 30 <= i < 60 else 60.0 if i > 60 else 10.0) == []  # half of it is left
    assert returning(lambda i: 100.0 - i) == ["episode/return"]
    assert returning(lambda i: 10.0) == []


def test_a_fall_within_the_noise_or_of_few_episodes_is_none():
    some = rows()
    for i, row in enumerate(some):
        row["episode/return"] = (37 * i % 100) - (0.02 * i)
    assert found(some) == []
    some = rows()
    for i, row in enumerate(some):
        row |= {"episode/return": -float(i), "episode/count": i / 3}
    assert found(some) == []


def test_time_is_shared_between_environment_policy_and_the_rest():
    assert speed(rows()) == pytest.approx({"environment": 0.5, "policy": 0.25, "update": 0.25})
    compiled = [{name: value for name, value in row.items() if name != "time/policy"} for row in rows()]
    assert speed(compiled) is None
    assert speed([]) is None
