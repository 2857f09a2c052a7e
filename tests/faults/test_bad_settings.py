"""Row RB2: a setting that is wrong is refused by an error that names it, its value and what to give, one by one."""

import re

import pytest

import inchworm as iw
from inchworm.algorithms.settings import minibatch_sizes
from inchworm.config import RunConfig
from inchworm.errors import InchwormError

NAN, INF = float("nan"), float("inf")
OF_PPO = {
    ("num_envs", 0): "num_envs = 0: is out of range. Give an integer of at least 1",
    ("num_envs", -8): "num_envs = -8: is out of range",
    ("num_envs", 2.5): "num_envs = 2.5: is not a whole number",
    ("num_envs", "many"): "num_envs = 'many': is not a whole number",
    ("num_envs", None): "num_envs = None: is not a whole number",
    ("num_envs", True): "num_envs = True: is not a whole number",
    ("horizon", 0): "horizon = 0: is out of range",
    ("horizon", NAN): "horizon = nan: is not a whole number",
    ("horizon", INF): "horizon = inf: is not a whole number",
    ("num_epochs", 0): "num_epochs = 0: is out of range",
    ("num_epochs", -1): "num_epochs = -1: is out of range",
    ("minibatch_size", 1): "minibatch_size = 1: is out of range. Give an integer of at least 2",
    ("minibatch_size", 100): "minibatch_size = 100: does not divide",
    ("minibatch_size", 4096): "minibatch_size = 4096: .*divide|larger",
    ("learning_rate", 0.0): "learning_rate = 0.0: is out of range",
    ("learning_rate", -1e-3): "learning_rate = -0.001: is out of range. Give more than 0",
    ("learning_rate", NAN): "learning_rate = nan: is not finite",
    ("learning_rate", INF): "learning_rate = inf: is not finite",
    ("learning_rate", "fast"): "learning_rate = fast: ",
    ("learning_rate", "linear:1e-3"): "learning_rate = linear:1e-3: ",
    ("learning_rate", "linear:1e-3:-1"): "learning_rate = .*: is out of range",
    ("learning_rate", (1e-3,)): r"learning_rate = \(0.001,\): ",
    ("value_learning_rate", 0.0): "value_learning_rate = 0.0: is out of range",
    ("adam_epsilon", 0.0): "adam_epsilon = 0.0: is out of range",
    ("surrogate", "clipped"): "surrogate = clipped: is .*clip",
    ("clip_range", 0.0): "clip_range = 0.0: is out of range",
    ("clip_range", -0.2): "clip_range = -0.2: is out of range",
    ("clip_range", NAN): "clip_range = nan: is not finite",
    ("clip_range_high", 0.0): "clip_range_high = 0.0: is out of range",
    ("kl_coef", -1.0): "kl_coef = -1.0: is out of range",
    ("target_kl", 0.0): "target_kl = 0.0: is out of range",
    ("target_kl", -0.01): "target_kl = -0.01: is out of range",
    ("kl_control", "stop"): "kl_control = stop: has nothing to aim for. Set target_kl too",
    ("kl_control", "never"): "kl_control = never: ",
    ("vf_coef", -1.0): "vf_coef = -1.0: is out of range",
    ("ent_coef", -1.0): "ent_coef = -1.0: is out of range. Give 0 or more",
    ("ent_coef", NAN): "ent_coef = nan: is not finite",
    ("max_grad_norm", 0.0): "max_grad_norm = 0.0: is out of range",
    ("clip_range_value", -1.0): "clip_range_value = -1.0: is out of range",
    ("recompute_advantages", 1): "recompute_advantages = 1: is neither true nor false",
    ("gamma", 1.5): "gamma = 1.5: is out of range",
    ("gamma", -0.1): "gamma = -0.1: is out of range",
    ("gamma", NAN): "gamma = nan: is not finite",
    ("gae_lambda", -0.1): "gae_lambda = -0.1: is out of range",
    ("gae_lambda", 1.1): "gae_lambda = 1.1: is out of range",
    ("value_target", "mc"): "value_target = mc: ",
    ("normalize_advantage", True): "normalize_advantage = True: ",
    ("normalize_observation", "yes"): "normalize_observation = 'yes': is neither true nor false",
    ("normalize_return", None): "normalize_return = None: is neither true nor false",
    ("clip_reward", 1.0): "clip_reward = 1.0: is neither true nor false",
    ("max_entropy_alpha", -1.0): "max_entropy_alpha = -1.0: is out of range",
    ("hidden_sizes", 64): "hidden_sizes = 64: is not a list of widths",
    ("hidden_sizes", (64, 0)): "hidden_sizes = 0: is out of range",
    ("hidden_sizes", (64, "64")): "hidden_sizes = '64': is not a whole number",
    ("hidden_sizes", (8,) * 100_000): "hidden_sizes = .*: has 100,000 layers, more than 64",
    ("hidden_sizes", (10**12,)): "hidden_sizes = 1000000000000: is out of range",
    ("activation", "gelu"): "activation = gelu: ",
    ("image_network", "resnet"): "image_network = resnet: ",
    ("recurrent", "rnn"): "recurrent = rnn: ",
    ("recurrent_size", 0): "recurrent_size = 0: is out of range",
    ("recurrent_size", 10**9): "recurrent_size = 1000000000: is out of range",
    ("shared_trunk", "no"): "shared_trunk = 'no': is neither true nor false",
    ("compute_dtype", "float64"): "compute_dtype = float64: ",
    ("action_distribution", "normal"): "action_distribution = normal: ",
    ("log_std", 30.0): "log_std = 30.0: is out of range",
    ("log_std", "fixed"): "log_std = fixed: ",
    ("lr", 1e-3): "lr = 0.001: is not a setting of PPO.*learning_rate",
    ("learning_rat", 1e-3): "learning_rat = 0.001: .*did you mean learning_rate",
    ("n_steps", 2048): "n_steps = 2048: is not a setting of PPO.*horizon",
}
OF_RUNS = {
    ("total_steps", 0): "total_steps = 0: is out of range",
    ("total_steps", -5): "total_steps = -5: is out of range",
    ("total_steps", 1.5): "total_steps = 1.5: is not a whole number",
    ("total_steps", NAN): "total_steps = nan: is not a whole number",
    ("total_steps", 100): "total_steps = 100: is less than one iteration of num_envs . horizon = 2048",
    ("seed", -1): "seed = -1: is out of range",
    ("seed", 2**64): f"seed = {2**64}: is out of range",
    ("seed", "zero"): "seed = 'zero': is not a whole number",
    ("stop_return", NAN): "stop_return = nan: is not finite",
    ("stop_return", "high"): "stop_return = 'high': is not a number",
    ("max_seconds", 0.0): "max_seconds = 0.0: is out of range",
    ("max_seconds", -1.0): "max_seconds = -1.0: is out of range",
    ("checkpoint_seconds", -1.0): "checkpoint_seconds = -1.0: is out of range",
    ("checkpoint_seconds", INF): "checkpoint_seconds = inf: is not finite",
    ("keep_checkpoints", 0): "keep_checkpoints = 0: is out of range",
    ("threads", 0): "threads = 0: is out of range",
    ("threads", 1_000_000): "threads = 1000000: is out of range",
    ("devices", 10**6): "devices = 1000000: is out of range",
    ("devices", 3): "devices = 3: cannot have equal shares of",
    ("env_processes", 0): "env_processes = 0: is out of range",
    ("env_processes", 9): "env_processes = 9: is more than there are environments",
}


def refusal(call, message):
    """Refused by an error of ours in one paragraph, which the message begins or is in."""
    with pytest.raises(InchwormError) as refused:
        call()
    told = str(refused.value)
    assert re.search(message, told), told
    assert "\n" not in told
    assert told.endswith(".")
    assert len(told) < 800


@pytest.mark.fault("RB2")
@pytest.mark.parametrize(("setting", "value"), OF_PPO, ids=lambda value: f"{value!r:.30}")
def test_a_wrong_setting_of_an_algorithm(setting, value):
    refusal(lambda: iw.PPO(**{setting: value}), "^" + OF_PPO[setting, value])


@pytest.mark.fault("RB2")
@pytest.mark.parametrize(("setting", "value"), OF_RUNS, ids=lambda value: f"{value!r:.30}")
def test_a_wrong_setting_of_a_run(setting, value):
    algorithm = iw.PPO(num_envs=8, horizon=256, minibatch_size=64)
    settings = {"env": "CartPole-v1", "algorithm": algorithm, "total_steps": 4096} | {setting: value}
    refusal(lambda: RunConfig(**settings), "^" + OF_RUNS[setting, value])


OF_CALLS = {
    "an algorithm that there is not": ({"algorithm": "sac"}, "algorithm = sac: "),
    "a preset that there is not": ({"preset": "best"}, "preset = best: "),
    "a preset beside settings given whole": ({"algorithm": iw.PPO(), "preset": "paper"}, "algorithm = "),
    "a setting beside settings given whole": ({"algorithm": iw.PPO(), "gamma": 0.9}, "algorithm = "),
    "a setting of another algorithm": ({"algorithm": "trpo", "clip_range": 0.1}, "clip_range = 0.1: "),
    "a backend that there is not": ({"backend": "unity"}, "backend = unity: "),
    "arguments that are no dict": ({"env_kwargs": [1]}, r"env_kwargs = \[1\]: "),
    "an argument that the environment does not have": ({"env_kwargs": {"wind": 1}}, "env_kwargs = .*wind"),
    "an argument that is not finite": ({"env_kwargs": {"sutton_barto_reward": NAN}}, "env_kwargs = "),
    "a way to draw that there is not": ({"env_kwargs": {"render_mode": "nope"}}, "render_mode = nope: is no mode of"),
    "a folder that is a number": ({"out": 5}, "out = 5: is no path"),
    "a name with a slash": ({"name": "a/b"}, "name = a/b: is not the name of one folder"),
    "a name of nothing but dots": ({"name": ".."}, r"name = \.\.: is not the name of one folder"),
    "a callback that cannot be called": ({"on_iteration": 5}, "on_iteration = 5: cannot be called"),
    "progress that is a text": ({"progress": "x"}, "progress = 'x': is neither true nor false"),
    "evaluation of fewer than no episodes": ({"evaluation_episodes": -1}, "evaluation_episodes = -1: is out of range"),
    "a network that cannot be called": ({"network": 5}, "network = 5: "),
    "an optimiser that is none": ({"optimizer": "adam"}, "optimizer = adam: is not an optax chain"),
    "an environment that there is not": ({"env": "CartPole-v9"}, "env = CartPole-v9: .*"),
    "an environment that is a number": ({"env": 5}, "env = 5: "),
    "a module that there is not": ({"env": "nowhere:make"}, "env = nowhere:make: is not there: no module nowhere"),
    "what cannot fit into memory": ({"horizon": 10**9, "minibatch_size": 10**9}, "horizon|num_envs|memory"),
}


@pytest.mark.fault("RB2")
@pytest.mark.parametrize("case", OF_CALLS)
def test_a_wrong_argument_of_a_call(case, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    arguments, message = OF_CALLS[case]
    given = {"env": "CartPole-v1", "total_steps": 4096, "out": tmp_path, "evaluation_episodes": 0, "progress": False}
    given |= arguments
    refusal(lambda: iw.train(given.pop("env"), **given), message)
    assert list(tmp_path.rglob("config.json")) == []


@pytest.mark.parametrize(
    ("batch_size", "row", "sizes"),
    [
        (12, 1, [2, 3, 4, 6, 12]),
        (16, 1, [2, 4, 8, 16]),
        (12, 4, [4, 12]),
        (36, 6, [6, 12, 18, 36]),
        (2, 1, [2]),
        (1, 1, []),
        (7, 7, [7]),
    ],
)
def test_minibatches_that_cover_a_batch_exactly_once(batch_size, row, sizes):
    assert minibatch_sizes(batch_size, row) == sizes


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_envs": 2, "horizon": 8, "minibatch_size": 7}, "does not divide .* = 16, .* Use 2 or 4 or 8"),
        ({"num_envs": 2, "horizon": 32, "minibatch_size": 33}, r"does not divide .* Use 8 or 16 or 32\.$"),
        ({"num_envs": 1, "horizon": 1, "minibatch_size": 2}, "does not divide .* Raise num_envs or horizon"),
        (
            {"num_envs": 4, "horizon": 8, "minibatch_size": 4, "recurrent": "gru"},
            "is no multiple of horizon = 8, .* Use 8 or 16 or 32",
        ),
    ],
)
def test_a_minibatch_that_does_not_fit_is_told_the_nearest_that_do(settings, message):
    refusal(lambda: iw.PPO(**{"normalize_advantage": "none"} | settings), message)


@pytest.mark.parametrize("settings", [{"surrogate": "kl", "kl_coef": 0.0}, {"surrogate": "kl", "kl_coef": 0.3}])
def test_settings_at_the_ends_of_their_ranges_are_taken(settings):
    assert iw.PPO(**settings, gamma=1.0, gae_lambda=0.0, horizon=64, minibatch_size=64)
    assert iw.PPO(**settings, gamma=0.0, gae_lambda=1.0, num_envs=64, horizon=1, minibatch_size=2)


def test_networks_at_the_ends_of_their_ranges_are_taken_and_beyond_refused():
    for settings in (
        {"hidden_sizes": (1,) * 64},
        {"hidden_sizes": (1 << 16,)},
        {"recurrent": "gru", "recurrent_size": 1},
    ):
        assert iw.PPO(**settings, num_envs=2, horizon=32)
    for log_std in (-20.0, 20.0):
        assert iw.PPO(log_std=log_std).log_std.start == log_std
    refusal(lambda: iw.PPO(hidden_sizes=((1 << 16) + 1,)), "^hidden_sizes = 65537: is out of range")
    refusal(lambda: iw.PPO(log_std=-20.5), "^log_std = -20.5: is out of range")
    refusal(lambda: iw.PPO(log_std=20.5), "^log_std = 20.5: is out of range")
    refusal(lambda: iw.PPO(7), "^PPO = 7: is given without the name of a setting")


def test_one_transition_cannot_be_standardised():
    single = {"num_envs": 1, "horizon": 1}
    refusal(lambda: iw.A2C(**single, normalize_advantage="batch"), "normalize_advantage = batch: ")
    assert iw.A2C(**single, normalize_advantage="none").steps_per_iteration == 1


def test_settings_that_move_are_known():
    assert iw.PPO(learning_rate="linear:1e-3:0", clip_range=0.1).moving == ["learning_rate"]
    assert iw.PPO(learning_rate=1e-3, clip_range=0.1).moving == []


def test_the_defaults_are_those_of_table_3_with_the_authors_code_details():
    defaults = iw.PPO()
    expected = {
        "num_envs": 1,
        "horizon": 2048,
        "num_epochs": 10,
        "minibatch_size": 64,
        "adam_epsilon": 1e-5,
        "clip_reward": False,
        "normalize_observation": True,
        "normalize_return": False,
        "normalize_advantage": "batch",
        "hidden_sizes": (64, 64),
        "activation": "tanh",
        "shared_trunk": False,
        "surrogate": "clip",
    }
    assert {name: getattr(defaults, name) for name in expected} == expected
    scalars = {
        "learning_rate": (3e-4, 0.0),
        "clip_range": (0.2, 0.2),
        "gamma": (0.99, 0.99),
        "gae_lambda": (0.95, 0.95),
    }
    scalars |= {"vf_coef": (1.0, 1.0), "ent_coef": (0.0, 0.0), "kl_coef": (1.0, 1.0)}
    assert {name: (getattr(defaults, name).start, getattr(defaults, name).end) for name in scalars} == scalars
    assert (defaults.steps_per_row, defaults.gradient_steps_per_iteration) == (1, 320)
    assert iw.PPO(recurrent="gru", num_envs=2, horizon=64).steps_per_row == 64


def test_the_defaults_of_policy_gradients_are_those_of_their_sources():
    a2c, reinforce = iw.A2C(), iw.REINFORCE()
    assert (a2c.num_envs, a2c.horizon, a2c.ent_coef.start, a2c.adam_epsilon) == (16, 5, 0.01, 1e-5)
    assert (reinforce.num_envs, reinforce.horizon, reinforce.ent_coef.start) == (8, 256, 0.0)
    assert (a2c.vf_coef.start, a2c.max_grad_norm, a2c.learning_rate.start) == (0.5, 0.5, 7e-4)
    assert iw.A2C(value_learning_rate=0.5, trust_region=0.5).value_learning_rate.start == 0.5
    assert iw.A2C(value_learning_rate="linear:0.5:0").value_learning_rate.end == 0.0


def test_what_is_not_read_is_known():
    assert "recompute_advantages" in iw.PPO(num_epochs=1).unread()
    assert "recompute_advantages" not in iw.PPO().unread()
    assert {"clip_range", "clip_range_high"} <= iw.PPO(surrogate="none").unread().keys()
    assert {"clip_range", "clip_range_high"} <= iw.PPO(surrogate="kl").unread().keys()
    assert not {"clip_range", "clip_range_high"} & iw.PPO(surrogate="log_clip").unread().keys()
    assert "kl_coef" in iw.PPO().unread()
    assert "kl_coef" not in iw.PPO(surrogate="kl").unread()


def test_there_are_as_many_as_the_row_asks_for():
    assert len(OF_PPO) + len(OF_RUNS) + len(OF_CALLS) >= 80
