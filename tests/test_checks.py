"""Checks of settings: what a wrong value is shown as, and what is asked for instead."""

import dataclasses
import inspect

import pytest

import inchworm as iw
from inchworm.algorithms.ppo import PPO
from inchworm.checks import (
    check_choice,
    check_flag,
    check_integer,
    check_number,
    read_integer,
)
from inchworm.config import ALGORITHMS
from inchworm.errors import ConfigError, RunFolderError
from inchworm.io.run_folder import check_name
from inchworm.suggestions import OURS, did_you_mean


@pytest.mark.parametrize(
    ("check", "message"),
    [
        (lambda: check_number("x", "5", above=0.0), "x = '5': is not a number. Give a finite number above 0."),
        (lambda: check_integer("x", "5", 1), "x = '5': is not a whole number. Give an integer of at least 1."),
        (lambda: check_integer("x", 6, 1, 5), "x = 6: is out of range. Give an integer between 1 and 5."),
        (lambda: check_flag("x", "True"), "x = 'True': is neither true nor false. Give True or False."),
    ],
)
def test_a_text_in_a_number_s_place_is_shown_in_quotes(check, message):
    with pytest.raises(ConfigError) as error:
        check()
    assert str(error.value) == message


@pytest.mark.parametrize(("text", "number"), [("2048", 2048), ("-3", -3), ("1e6", 1_000_000), ("2.5E+4", 25_000)])
def test_a_whole_number_may_have_an_exponent(text, number):
    assert read_integer(text) == number


@pytest.mark.parametrize("text", ["", "2.5", "2.5e0", "1e-3", "1e1000000000", "many"])
def test_what_is_no_whole_number_is_refused(text):
    with pytest.raises(ValueError, match="no whole number"):
        read_integer(text)


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ("lr", "learning_rate"),
        ("n_envs", "num_envs"),
        ("n_steps", "horizon"),
        ("batch_size", "minibatch_size"),
        ("n_epochs", "num_epochs"),
        ("clip_coef", "clip_range"),
        ("clip_range_vf", "clip_range_value"),
        ("entropy_coef", "ent_coef"),
        ("value_coef", "vf_coef"),
        ("net_arch", "hidden_sizes or activation"),
        ("policy_kwargs", "hidden_sizes or activation"),
        ("desired_kl", "target_kl"),
        ("norm_adv", "normalize_advantage"),
        ("total_timesteps", "total_steps"),
        ("Learning-Rate", "learning_rate"),
    ],
)
def test_what_other_libraries_call_a_setting_leads_to_its_name_here(theirs, ours):
    with pytest.raises(ConfigError, match=rf"is not a setting of PPO \(did you mean {ours}\?\)"):
        PPO(**{theirs: 1})


@pytest.mark.parametrize("name", ["learning_starts", "buffer_size", "tau"])
def test_a_setting_that_has_no_like_here_leads_nowhere(name):
    with pytest.raises(ConfigError) as error:
        PPO(**{name: 1})
    assert "did you mean" not in str(error.value)


@pytest.mark.parametrize("name", ["sac", "td3", "DDPG", "dqn"])
def test_an_off_policy_algorithm_is_told_to_be_one(name):
    with pytest.raises(ConfigError, match=r"off-policy.*Choose one of ppo, trpo, npg, a2c, reinforce") as error:
        check_choice("algorithm", name, ALGORITHMS)
    assert "did you mean" not in str(error.value)


def test_a_name_in_other_letters_is_found():
    assert did_you_mean("PPO", ALGORITHMS) == " (did you mean ppo?)"
    assert did_you_mean("cartpole-v1", ["CartPole-v1"]) == " (did you mean CartPole-v1?)"


def test_every_name_that_other_names_lead_to_is_one_of_the_library_s():
    names = {field.name for kind in ALGORITHMS.values() for field in dataclasses.fields(kind)}
    names |= {name for call in (iw.train, iw.Run.evaluate) for name in inspect.signature(call).parameters}
    assert {ours for found in OURS.values() for ours in found} <= names | {*ALGORITHMS, "video"}


@pytest.mark.parametrize(
    ("word", "known"),
    [("Foo-v1", ["Acrobot-v1", "CartPole-v1"]), ("Nope-v0", ["Hopper-v5"]), ("nothing", ["WNOHANG", "getpid"])],
)
def test_what_shares_no_more_than_a_version_is_not_suggested(word, known):
    assert did_you_mean(word, known) == ""


@pytest.mark.parametrize("name", ["", " ", "..", ". ."])
def test_a_run_is_called_by_a_name_that_can_be_seen(name):
    with pytest.raises(RunFolderError, match="is not the name of one folder"):
        check_name(name)


@pytest.mark.parametrize("value", [-1, 0, "linear:0:0"])
def test_a_step_size_that_is_out_of_range_is_told_a_range_that_leaves_it_out(value):
    with pytest.raises(ConfigError, match=r"Give more than 0; a schedule may start or end there\."):
        PPO(learning_rate=value)
