"""What a run is to be: settings that would do nothing, presets and threads are told before it starts."""

import dataclasses
import warnings

import gymnasium
import numpy as np
import optax
import pytest
from gymnasium.spaces import Box, Discrete

import inchworm as iw
from inchworm.algorithms.settings import Settings
from inchworm.build import OwnParts
from inchworm.config import ALGORITHMS, PRESETS
from inchworm.errors import ConfigError
from inchworm.planning import plan


class Look(gymnasium.Env):
    """An environment of given spaces, which is never stepped."""

    def __init__(self, observation_space, action_space):
        self.observation_space, self.action_space = observation_space, action_space


VECTOR, IMAGE = Box(-1.0, 1.0, (3,), np.float32), Box(0, 255, (36, 36, 3), np.uint8)
FORCE, BUTTON = Box(-1.0, 1.0, (2,), np.float32), Discrete(2)
NOTHING_OWN = OwnParts()
OWN_NETWORK, OWN_OPTIMIZER = OwnParts(network=lambda key, space: None), OwnParts(optimizer=optax.scale_by_rms())


def planned(algorithm=None, spaces=(VECTOR, FORCE), own=NOTHING_OWN, preset=None, threads=1, **settings):
    """The settings of a run."""
    config, _ = plan(
        lambda: Look(*spaces),
        algorithm,
        own,
        preset=preset,
        env_kwargs=None,
        backend=None,
        settings=settings,
        threads=threads,
        total_steps=100_000,
    )
    return config.algorithm


@pytest.fixture(autouse=True)
def one_thread(monkeypatch):
    """What a plan sets in the environment is taken back, and a warning that no test expects is an error."""
    monkeypatch.setenv("NPROC", "1")
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        yield


UNREAD = {
    "clip of a penalty": ("ppo", {"clip_range": 0.1, "surrogate": "kl"}, "surrogate = clip or log_clip"),
    "upper end of a penalty": ("ppo", {"clip_range_high": 0.3, "surrogate": "kl"}, "surrogate = clip or log_clip"),
    "clip of the ratio alone": ("ppo", {"clip_range": 0.1, "surrogate": "none"}, "surrogate = clip or log_clip"),
    "upper end of the ratio": ("ppo", {"clip_range_high": 0.3, "surrogate": "none"}, "surrogate = clip or log_clip"),
    "penalty of a clip": ("ppo", {"kl_coef": 2.0}, "surrogate = kl"),
    "penalty of a log clip": ("ppo", {"kl_coef": 2.0, "surrogate": "log_clip"}, "surrogate = kl"),
    "penalty of the ratio alone": ("ppo", {"kl_coef": 2.0, "surrogate": "none"}, "surrogate = kl"),
    "one epoch": ("ppo", {"recompute_advantages": True, "num_epochs": 1}, "num_epochs above 1"),
    "tries without a search": ("trpo", {"max_backtracks": 5, "line_search": False}, "the line search of TRPO"),
    "shrinking without a search": ("trpo", {"shrink": 0.5, "line_search": False}, "the line search of TRPO"),
    "tries of the natural gradient": ("npg", {"max_backtracks": 5}, "the line search of TRPO"),
    "shrinking of the natural gradient": ("npg", {"shrink": 0.5}, "the line search of TRPO"),
    "size of no memory": ("a2c", {"recurrent_size": 32}, "recurrent = gru or lstm"),
    "activation of no layer": ("reinforce", {"activation": "relu", "hidden_sizes": ()}, "a hidden layer"),
    "target without a value": ("reinforce", {"value_target": "td", "baseline": False}, "baseline = True"),
    "weight without a value": ("reinforce", {"vf_coef": 1.0, "baseline": False}, "baseline = True"),
    "step without a value": ("reinforce", {"value_learning_rate": 1e-3, "baseline": False}, "baseline = True"),
}


@pytest.mark.parametrize(("algorithm", "settings", "needs"), UNREAD.values(), ids=UNREAD.keys())
def test_a_setting_that_the_others_leave_unread_is_refused_by_name_and_warned_of_in_a_whole(algorithm, settings, needs):
    field = next(iter(settings))
    with pytest.raises(ConfigError, match=rf"^{field} = .*has no effect without .*{needs}.*Leave it out") as error:
        planned(algorithm, **settings)
    assert error.value.field == field
    whole = ALGORITHMS[algorithm](**settings)
    with pytest.warns(UserWarning, match=rf"^{field} = .*has no effect without .*{needs}\.$"):
        assert planned(whole) == whole


def test_a_setting_that_is_read_is_taken():
    planned(
        kl_coef=2.0, surrogate="kl", recurrent="gru", recurrent_size=32, minibatch_size=2048, recompute_advantages=True
    )
    planned("trpo", shrink=0.5, max_backtracks=5)
    planned("a2c", value_target="td", vf_coef=1.0, value_learning_rate=1e-3, activation="relu")
    planned(clip_range=0.1, clip_range_high=0.3, surrogate="log_clip")


def test_a_value_that_is_the_default_asks_for_nothing():
    planned(surrogate="kl", clip_range=0.2, recurrent_size=64)
    planned(iw.PPO(surrogate="none", clip_range=0.2, kl_coef=1.0))


@pytest.mark.parametrize("surrogate", ["clip", "log_clip", "none", "kl"])
@pytest.mark.parametrize("preset", PRESETS)
def test_what_a_preset_brings_along_unread_is_passed_over(preset, surrogate):
    for name in PRESETS[preset].algorithms:
        planned(name, (VECTOR, BUTTON), preset=preset)
    found = planned("ppo", (VECTOR, BUTTON), preset=preset, surrogate=surrogate)
    assert found == dataclasses.replace(PRESETS[preset].settings("ppo"), surrogate=surrogate)


def test_the_natural_policy_gradient_with_a_line_search_is_refused_as_another_name_of_trpo():
    with pytest.raises(ConfigError, match=r"^line_search = True: .*take TRPO"):
        iw.NPG(line_search=True)


@pytest.mark.parametrize(
    ("spaces", "own", "settings", "needs"),
    [
        ((VECTOR, FORCE), NOTHING_OWN, {"image_network": "small"}, "an image in the observation"),
        ((IMAGE, FORCE), OWN_NETWORK, {"image_network": "small"}, "which network replaces"),
        ((VECTOR, BUTTON), NOTHING_OWN, {"log_std": -0.5}, "a Box among the actions"),
        ((VECTOR, BUTTON), NOTHING_OWN, {"action_distribution": "beta"}, "a Box among the actions"),
        ((VECTOR, FORCE), OWN_OPTIMIZER, {"adam_epsilon": 1e-8}, "which optimizer replaces"),
        ((VECTOR, FORCE), OWN_OPTIMIZER, {"max_grad_norm": 0.1}, "which optimizer replaces"),
    ],
    ids=lambda each: next(iter(each)) if isinstance(each, dict) else "",
)
def test_a_setting_that_the_spaces_or_code_of_one_s_own_leave_unread_is_warned_of(spaces, own, settings, needs):
    (field,) = settings
    for given in ({"algorithm": iw.PPO(**settings)}, settings):
        with pytest.warns(UserWarning, match=f"^{field} = .* has no effect without .*{needs}") as warned:
            planned(spaces=spaces, own=own, **given)
        assert len(warned) == 1
        assert warned[0].filename == __file__


def test_what_is_against_the_spaces_is_warned_of_and_what_suits_them_is_not():
    spaces = (VECTOR, Box(0.0, 1000.0, (2,), np.float32))
    with pytest.warns(UserWarning, match='^action_space: .*so wide.*"beta" or "tanh_gaussian"') as warned:
        planned(spaces=spaces)
    assert len(warned) == 1
    assert warned[0].filename == __file__
    planned(spaces=spaces, action_distribution="beta")
    floats = Box(-1.0, 1.0, (64, 64, 3), np.float32)
    with pytest.warns(UserWarning, match="^observation_space: .*becomes a vector of 12,288 numbers"):
        planned(spaces=(floats, BUTTON))
    planned(spaces=(floats, BUTTON), own=OWN_NETWORK)


def test_a_setting_that_the_spaces_read_is_taken():
    nested = gymnasium.spaces.Dict(camera=IMAGE, speed=VECTOR), gymnasium.spaces.Tuple([FORCE, BUTTON])
    planned(spaces=nested, image_network="small", log_std="state", action_distribution="tanh_gaussian")


def test_a_preset_without_settings_for_the_algorithm_is_told_where_it_was_named():
    with pytest.warns(UserWarning, match=r"^The preset atari has no settings for trpo"):
        assert planned("trpo", preset="atari") == iw.TRPO()
    assert planned("trpo", preset="paper") == iw.TRPO()


@pytest.mark.parametrize("field", ["preset", "algorithm"])
def test_an_empty_name_is_no_choice(field):
    with pytest.raises(ConfigError, match=f"^{field} = : is not one of the choices"):
        planned(**{field: ""})


def test_threads_that_the_environment_sets_otherwise_are_warned_of(monkeypatch):
    with pytest.warns(UserWarning, match="threads = 3 has no effect: NPROC = 1 is in the environment"):
        planned(threads=3)
    monkeypatch.setenv("NPROC", "4")
    planned(threads=4)
    planned()


@pytest.mark.parametrize("kind", ALGORITHMS.values())
def test_what_may_be_unread_is_among_the_settings(kind: type[Settings]):
    assert kind().unread().keys() <= {field.name for field in dataclasses.fields(kind)}
