"""Gymnasium's environments: which are refused and how, what a pool of them writes, and how it is brought back."""

import copy
import json
import sys

import gymnasium
import jax
import numpy as np
import pytest
from gymnasium import spaces as gym_spaces

from fixed_model import fixed_model
from inchworm import spaces
from inchworm.collect.host import HostRollouts
from inchworm.envs import episode_log
from inchworm.envs import gymnasium as adapter
from inchworm.envs.gymnasium import GymnasiumPool, from_gymnasium
from inchworm.envs.making import Factory
from inchworm.envs.pool import PoolSnapshot, StepBuffers, environment_seed
from inchworm.envs.source import env_source
from inchworm.errors import (
    CheckpointError,
    ConfigError,
    EnvironmentContractError,
    MissingDependencyError,
    UnsupportedSpaceError,
)
from inchworm.models import observations


class Toy(gymnasium.Env):
    """Walks at random; an episode has `length` steps."""

    length = 4

    def __init__(self):
        self.observation_space = gym_spaces.Box(-np.inf, np.inf, (2,))
        self.action_space = gym_spaces.Discrete(2)
        self.seeds = []

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.seeds.append(seed)
        self.count, self.place = 0, self.np_random.normal()
        return self.observation(), {}

    def step(self, action):
        self.count += 1
        self.place += action + self.np_random.normal()
        return self.observation(), float(self.place), self.count == self.length, False, {}

    def observation(self):
        return np.array([self.count, self.place], np.float32)


def buffers_of(pool, horizon):
    return StepBuffers.empty(pool.spec.observation_space, horizon, pool.num_envs)


def current(pool):
    """Empty leaves for the current observations."""
    return [leaf[0] for leaf in buffers_of(pool, 0).obs]


def actions_of(pool, steps, seed=0):
    """For each step the policy's own actions, as leaves (N, ...)."""
    rng = np.random.default_rng(seed)

    def draw(leaf):
        match leaf:
            case spaces.Discrete(n):
                return rng.integers(n, size=(steps, pool.num_envs)).astype(np.int32)
            case spaces.MultiDiscrete(nvec):
                return rng.integers(nvec, size=(steps, pool.num_envs, len(nvec))).astype(np.int32)
            case spaces.MultiBinary(size=size):
                return rng.integers(2, size=(steps, pool.num_envs, size)).astype(np.int32)
            case spaces.Box(size=size):
                return rng.normal(size=(steps, pool.num_envs, size)).astype(np.float32)

    return list(zip(*(draw(leaf) for leaf in spaces.leaves(pool.spec.action_space)), strict=True))


def play(pool, steps, seed=0, reset=True):
    """Steps a pool with random actions."""
    buffers = buffers_of(pool, steps)
    if reset:
        pool.reset([leaf[0] for leaf in buffers.obs])
    door = spaces.action_door(pool.spec.action_space, "clip")
    for t, own in enumerate(actions_of(pool, steps, seed)):
        pool.step(door(own), t, buffers)
    return buffers


def test_an_unknown_id_names_a_near_one():
    with pytest.raises(EnvironmentContractError, match=r"env = CartPolle-v1: .*did you mean CartPole-v1"):
        Factory("CartPolle-v1")()


@pytest.mark.parametrize("env", ["", "Nothing-Like-It-v0", "nothing/At-All-v0", "os:nothing", "Hopper-v3"])
def test_an_id_without_a_near_one_is_refused_with_what_gymnasium_says(env):
    with pytest.raises(EnvironmentContractError, match=f"env = {env}: "):
        Factory(env)()


def test_wrong_arguments_are_named():
    with pytest.raises(EnvironmentContractError, match=r"env_kwargs = \{'gravity': 9\}: .*unexpected keyword"):
        Factory("CartPole-v1", {"gravity": 9})()


def test_module_and_factory_make_an_environment_of_ones_own(tmp_path, monkeypatch):
    (tmp_path / "my_envs.py").write_text(
        "import gymnasium\n\n\ndef make(limit):\n    return gymnasium.make('CartPole-v1', max_episode_steps=limit)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    env = Factory("my_envs:make", {"limit": 3})()
    assert env.spec.max_episode_steps == 3


def test_module_and_id_import_the_module_that_registers_it(tmp_path, monkeypatch):
    (tmp_path / "my_registry.py").write_text(
        "import gymnasium\n\ngymnasium.register('MyOwn-v0', 'gymnasium.envs.classic_control:CartPoleEnv')\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(gymnasium.envs.registration, "registry", dict(gymnasium.registry))
    assert Factory("my_registry:MyOwn-v0")().spec.name == "MyOwn"


@pytest.mark.parametrize("module", ["my_envz", "my_package.my_envz", "no_package.my_envs"])
def test_a_module_of_one_s_own_that_is_not_where_python_looks_is_told_with_where_that_is(module, tmp_path, monkeypatch):
    (tmp_path / "my_package").mkdir()
    (tmp_path / "my_envs.py").write_text("")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(
        EnvironmentContractError, match=rf"^env = {module}:make: .*current folder, in PYTHONPATH"
    ) as error:
        Factory(f"{module}:make")()
    assert not isinstance(error.value, MissingDependencyError)
    assert ("did you mean my_envs?" in error.value.problem) == (module == "my_envz")


def test_a_package_that_a_module_of_one_s_own_imports_is_told_as_not_installed(tmp_path, monkeypatch):
    (tmp_path / "needy_envs.py").write_text("import no_such_package\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(MissingDependencyError, match=r"^env = needy_envs:make: .*No module named 'no_such_package'"):
        Factory("needy_envs:make")()


RENDERERS = {
    "osmesa": "names a renderer that is not installed here .*glGetError.*apt-get install libosmesa6.*MUJOCO_GL=disable",
    "nonsense": r"names no renderer .*glGetError.*\. Unset MUJOCO_GL",
}


@pytest.mark.parametrize("renderer", RENDERERS)
def test_a_renderer_that_mujoco_cannot_load_is_told_and_not_the_environment(renderer, tmp_path, monkeypatch):
    for module in [name for name in sys.modules if name.startswith(("gymnasium.envs.mujoco", "mujoco"))]:
        monkeypatch.delitem(sys.modules, module)
    (tmp_path / "mujoco").mkdir()
    (tmp_path / "mujoco" / "__init__.py").write_text("from mujoco.gl_context import *\n")
    (tmp_path / "mujoco" / "gl_context.py").write_text("None.glGetError\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("MUJOCO_GL", renderer)
    with pytest.raises(MissingDependencyError, match=f"^MUJOCO_GL = {renderer}: {RENDERERS[renderer]}"):
        Factory("InvertedPendulum-v5")()
    with pytest.raises(EnvironmentContractError, match="env = unlicensed"):
        Factory(unlicensed)()


@pytest.mark.parametrize(
    ("env", "package", "extra"), [("InvertedPendulum-v5", "mujoco", "mujoco"), ("LunarLander-v3", "Box2D", "box2d")]
)
def test_a_missing_package_names_the_command_that_installs_it(env, package, extra, monkeypatch):
    for module in [name for name in sys.modules if name.startswith(("gymnasium.envs.mujoco", "gymnasium.envs.box2d"))]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingDependencyError, match=rf'env = {env}: .*pip install "inchworm\[{extra}\]"'):
        Factory(env)()


@pytest.mark.fault("RB1")
def test_a_factory_that_returns_the_same_object_twice_is_refused():
    env = Toy()
    with pytest.raises(EnvironmentContractError, match="same object"):
        GymnasiumPool(lambda: env, 2, 0)
    with pytest.raises(EnvironmentContractError, match="same object"):
        GymnasiumPool(lambda: gymnasium.wrappers.TimeLimit(env, 5), 2, 0)


def unlicensed(size=1):
    raise RuntimeError("no licence\nand more")


def unregistered():
    return gymnasium.make("Nothing-Like-It-v0")


def without_a_package():
    raise gymnasium.error.DependencyNotInstalled("pygame is not installed")


@pytest.mark.fault("RB1")
@pytest.mark.parametrize(
    ("make", "kwargs", "error", "message"),
    [
        (unlicensed, {}, EnvironmentContractError, "^env = unlicensed: cannot be made: RuntimeError: no licence"),
        (unlicensed, {"sise": 1}, EnvironmentContractError, r"^env_kwargs = .*do not fit unlicensed: .*unexpected"),
        (unregistered, {}, EnvironmentContractError, "^env = unregistered: cannot be made: NameNotFound"),
        (without_a_package, {}, MissingDependencyError, r"^env = without_a_package: .*inchworm\[classic\]"),
    ],
    ids=["raises", "other arguments", "unknown id", "missing package"],
)
def test_what_keeps_a_function_or_class_from_making_an_environment_is_told_as_for_an_id(make, kwargs, error, message):
    with pytest.raises(error, match=message) as caught:
        env_source(make, kwargs)
    assert caught.value.__cause__ is not None


EMPTY = {
    "Box": (gym_spaces.Box(0.0, 1.0, (0,)), "action_space"),
    "Box with axes": (gym_spaces.Box(0, 255, (4, 0, 4), np.uint8), "action_space"),
    "MultiDiscrete": (gym_spaces.MultiDiscrete([]), "action_space"),
    "Dict": (gym_spaces.Dict(), "action_space"),
    "Tuple": (gym_spaces.Tuple([]), "action_space"),
    "Box in a Dict": (gym_spaces.Dict(a=gym_spaces.Discrete(2), b=gym_spaces.Box(0.0, 1.0, (0,))), "action_space['b']"),
}


@pytest.mark.fault("RB1")
@pytest.mark.parametrize(("space", "where"), EMPTY.values(), ids=EMPTY.keys())
def test_a_space_with_nothing_in_it_is_refused_where_it_is_read(space, where):
    class Empty(Toy):
        def __init__(self):
            super().__init__()
            self.action_space = space

    with pytest.raises(UnsupportedSpaceError, match="there is nothing in it") as error:
        env_source(Empty)
    assert error.value.field == where


def test_an_environment_that_cannot_be_closed_can_still_be_read():
    with pytest.warns(UserWarning, match="could not be closed: ZeroDivisionError"):
        assert env_source(type("Unclosable", (Toy,), {"close": fail})).spec.action_space == spaces.Discrete(2)


def test_environments_that_were_made_are_closed_where_one_more_cannot_be():
    made, closed = [], []

    class Exclusive(Toy):
        def __init__(self):
            super().__init__()
            if len(made) == 2:
                raise OSError("port in use")
            made.append(self)

        def close(self):
            closed.append(self)

    with pytest.raises(EnvironmentContractError, match=r"port in use.*environment 2 beside 2 others.*num_envs=2"):
        GymnasiumPool(Factory(Exclusive), 3, 0)
    assert closed == made
    assert len(made) == 2


@pytest.mark.fault("RB1")
@pytest.mark.parametrize("attribute", ["observation_space", "action_space"])
def test_environments_of_differing_spaces_are_refused(attribute):
    made = []

    def factory():
        env = Toy()
        made.append(env)
        if len(made) == 3:
            other = gym_spaces.Box(-1.0, np.inf, (2,)) if attribute == "observation_space" else gym_spaces.Discrete(3)
            setattr(env, attribute, other)
        return env

    with pytest.raises(EnvironmentContractError, match="environment 2 other spaces than environment 0"):
        GymnasiumPool(factory, 3, 0)


def nan_bounded():
    box = gym_spaces.Box(-1.0, 1.0, (2,))
    box.low[1] = np.nan
    return box


UNSUPPORTED = {
    "MultiDiscrete of nothing": gym_spaces.MultiDiscrete([]),
    "Sequence": gym_spaces.Sequence(gym_spaces.Discrete(2)),
    "Text": gym_spaces.Text(5),
    "Graph": gym_spaces.Graph(gym_spaces.Discrete(2), None),
    "OneOf": gym_spaces.OneOf([gym_spaces.Discrete(2)]),
    "empty Dict": gym_spaces.Dict({}),
    "Dict of numbers": gym_spaces.Dict({1: gym_spaces.Discrete(2), 2: gym_spaces.Discrete(2)}),
    "empty Tuple": gym_spaces.Tuple([]),
    "NaN-bounded Box": nan_bounded(),
}


@pytest.mark.fault("RB1")
@pytest.mark.parametrize("space", UNSUPPORTED.values(), ids=UNSUPPORTED.keys())
def test_an_unsupported_space_is_refused_by_name(space):
    for attribute in ("observation_space", "action_space"):
        env = Toy()
        setattr(env, attribute, space)
        with pytest.raises(UnsupportedSpaceError) as caught:
            GymnasiumPool(lambda env=env: env, 1, 0)
        assert caught.value.field == attribute
        assert caught.value.value == repr(space)
        assert caught.value.fix


def test_an_unsupported_space_inside_another_is_named_by_its_place():
    outer = gym_spaces.Dict({"a": gym_spaces.Tuple([gym_spaces.Discrete(2), gym_spaces.Text(5)])})
    with pytest.raises(UnsupportedSpaceError, match=r"^observation_space\['a'\]\[1\] = Text"):
        from_gymnasium(outer, "observation_space")


def test_a_space_that_is_none_is_refused():
    env = Toy()
    env.observation_space = None
    with pytest.raises(EnvironmentContractError, match=r"observation_space = None.*self\.observation_space"):
        GymnasiumPool(lambda: env, 1, 0)


def test_spaces_keep_shape_type_start_and_bounds():
    space = gym_spaces.Dict(
        {
            "z": gym_spaces.Discrete(3, start=-1),
            "a": gym_spaces.Tuple(
                [
                    gym_spaces.Box(np.array([-1.0, -np.inf]), np.array([2.0, 5.0]), dtype=np.float64),
                    gym_spaces.Box(0, 255, (2, 2), np.uint8),
                ]
            ),
        }
    )
    boxes = spaces.Tuple(
        (spaces.Box((2,), "float64", (-1.0, -np.inf), (2.0, 5.0)), spaces.Box((2, 2), "uint8", 0.0, 255.0))
    )
    assert from_gymnasium(space, "s") == spaces.Dict((("a", boxes), ("z", spaces.Discrete(3, -1, "int64"))))
    grid = gym_spaces.MultiDiscrete([[2, 3], [4, 5]], start=[[0, 1], [2, -3]], dtype=np.int32)
    assert from_gymnasium(grid, "s") == spaces.MultiDiscrete((2, 3, 4, 5), (2, 2), (0, 1, 2, -3), "int32")
    assert from_gymnasium(gym_spaces.MultiBinary(3), "s") == spaces.MultiBinary((3,), "int8")
    assert from_gymnasium(gym_spaces.MultiBinary([2, 3]), "s") == spaces.MultiBinary((2, 3), "int8")


def test_the_rows_are_those_of_a_plain_loop():
    pool = GymnasiumPool(Toy, 2, 7)
    buffers = play(pool, 11)
    actions = actions_of(pool, 11)
    for index in range(2):
        env = Toy()
        obs, _ = env.reset(seed=environment_seed(7, index, 0))
        first = True
        for t in range(11):
            np.testing.assert_array_equal(buffers.obs[0][t, index], obs)
            # The row before the first belongs to whoever made the buffers.
            assert t == 0 or buffers.first[t, index] == first
            obs, reward, terminated, _, _ = env.step(actions[t][0][index])
            np.testing.assert_array_equal(buffers.next_obs[0][t, index], obs)
            assert buffers.reward[t, index] == np.float32(reward)
            assert buffers.terminated[t, index] == terminated
            first = terminated
            if terminated:
                obs, _ = env.reset()
        np.testing.assert_array_equal(buffers.obs[0][11, index], obs)
    assert buffers.valid.all()
    assert not buffers.truncated.any()


def test_a_box_action_without_axes_arrives_as_an_array_and_a_discrete_one_as_a_number():
    class Recording(Toy):
        def __init__(self, space):
            super().__init__()
            self.action_space, self.sent = space, []

        def step(self, action):
            self.sent.append(action)
            return super().step(action)

    play(pool := GymnasiumPool(lambda: Recording(gym_spaces.Box(-1.0, 1.0, ())), 1, 0), 3)
    assert [(type(action), action.shape, action.dtype) for action in pool._envs[0].sent] == [(np.ndarray, (), "f4")] * 3
    play(pool := GymnasiumPool(lambda: Recording(gym_spaces.Discrete(2)), 1, 0), 3)
    assert [type(action) for action in pool._envs[0].sent] == [np.int64] * 3


@pytest.mark.fault("RL9", outcome="survived")
def test_an_episode_may_have_one_step():
    class Short(Toy):
        length = 1

    buffers = play(GymnasiumPool(Short, 2, 0), 5)
    assert buffers.terminated.all()
    assert buffers.first[1:].all()
    np.testing.assert_array_equal(buffers.next_obs[0][..., 0], 1.0)
    np.testing.assert_array_equal(buffers.obs[0][..., 0], 0.0)


@pytest.mark.fault("RB1", outcome="survived")
def test_an_observation_that_the_environment_goes_on_writing_into_does_not_change_earlier_rows():
    class Aliased(Toy):
        def observation(self):
            self.array = getattr(self, "array", np.zeros(2, np.float32))
            self.array[:] = super().observation()
            return self.array

    found, expected = play(GymnasiumPool(Aliased, 2, 0), 11), play(GymnasiumPool(Toy, 2, 0), 11)
    np.testing.assert_array_equal(found.obs[0], expected.obs[0])
    np.testing.assert_array_equal(found.next_obs[0], expected.next_obs[0])


@pytest.mark.fault("RB1", outcome="survived")
def test_both_flags_count_as_terminated():
    class Both(Toy):
        def step(self, action):
            obs, reward, ended, _, info = super().step(action)
            return obs, reward, ended, ended, info

    pool = GymnasiumPool(Both, 2, 0)
    stats = observations.empty_stats(pool.spec.observation_space, False)
    collector = HostRollouts(pool, 8, "clip")
    rollout, episodes = collector.collect(fixed_model(pool.spec, log_std=0.0), stats, jax.random.key(0))
    np.testing.assert_array_equal(np.argwhere(rollout.terminated[:, 0])[:, 0], [3, 7])
    assert not rollout.truncated.any()
    assert episodes.ended.sum() == 4


def test_no_two_environments_of_any_seeds_start_alike():
    seeds = [
        environment_seed(seed, index, restart) for seed in range(20) for index in range(20) for restart in range(5)
    ]
    assert len(set(seeds)) == len(seeds)
    for seed in seeds:
        assert type(seed) is int
        assert 0 <= seed < 2**32

    def first_observations(seed):
        obs = current(pool := GymnasiumPool(Toy, 5, seed))
        pool.reset(obs)
        return [row.tobytes() for row in obs[0]]

    # With seed + index, ten of these fifteen would be copies.
    assert len({row for seed in range(3) for row in first_observations(seed)}) == 15


def test_only_the_first_reset_is_seeded():
    pool = GymnasiumPool(Toy, 2, 3)
    buffers = play(pool, 12)
    for index, env in enumerate(pool._envs):
        assert env.seeds == [environment_seed(3, index, 0), None, None, None]
    starts = buffers.obs[0][buffers.first, 1]
    assert len(set(starts.tolist())) == len(starts) == 6


def stepping(change):
    """A Toy whose answer to its second step is changed by a function."""

    class Changed(Toy):
        def step(self, action):
            answer = super().step(action)
            return change(*answer) if self.count == 2 else answer

    return Changed


def resetting(change):
    class Changed(Toy):
        def reset(self, *, seed=None, options=None):
            return change(*super().reset(seed=seed))

    return Changed


def fail(*_):
    raise ZeroDivisionError("out of luck\nand more")


BROKEN = {
    "step raises": (stepping(fail), r"env\.step = ZeroDivisionError: out of luck: was raised by environment 0"),
    "reset raises": (resetting(fail), r"env\.reset = ZeroDivisionError: out of luck: was raised by environment 0"),
    "reset without info": (
        resetting(lambda obs, info: obs),
        r"env\.reset = one ndarray: .*environment 0.*\(observation, info\)",
    ),
    "step of four parts": (
        stepping(lambda obs, reward, terminated, truncated, info: (obs, reward, terminated, info)),
        r"env\.step = a tuple of 4: .*environment 0.*\(observation, reward, terminated, truncated, info\)",
    ),
    "step returns nothing": (stepping(lambda *answer: None), r"env\.step = one NoneType"),
    "no reward": (stepping(lambda o, r, d, c, i: (o, None, d, c, i)), "None, False, False.*reward"),
    "complex reward": (stepping(lambda o, r, d, c, i: (o, 1j, d, c, i)), "1j.*reward"),
    "reward in words": (stepping(lambda o, r, d, c, i: (o, "much", d, c, i)), "much.*reward"),
    "many rewards": (stepping(lambda o, r, d, c, i: (o, np.ones(2), d, c, i)), "reward"),
    "reward as text": (stepping(lambda o, r, d, c, i: (o, "3", d, c, i)), "'3'.*reward"),
    "flag in words": (stepping(lambda o, r, d, c, i: (o, r, "no", c, i)), "'no'.*terminated"),
    "no flag": (stepping(lambda o, r, d, c, i: (o, r, d, None, i)), "None.*truncated"),
    "many flags": (stepping(lambda o, r, d, c, i: (o, r, np.zeros(2, bool), c, i)), "terminated"),
    "long observation": (
        stepping(lambda o, *rest: (np.zeros(4, np.float32), *rest)),
        r"observation = float32\[4\].*environment 0.*shape \(2,\)",
    ),
    "scalar observation": (stepping(lambda o, *rest: (0.0, *rest)), r"observation = float64\[\].*shape \(2,\)"),
    "column observation": (stepping(lambda o, *rest: (o[:, None], *rest)), r"observation = float32\[2, 1\]"),
    "no observation": (stepping(lambda o, *rest: (None, *rest)), r"observation = object\[\]"),
    "ragged observation": (stepping(lambda o, *rest: ([[1.0], 2.0], *rest)), "observation = .*fit its space"),
    "complex observation": (stepping(lambda o, *rest: (o * 1j, *rest)), r"observation = complex64\[2\].*numbers"),
    "observation in words": (stepping(lambda o, *rest: (["a", "b"], *rest)), "observation = <U1"),
    "wrong first observation": (resetting(lambda obs, info: (obs[:1], info)), r"observation = float32\[1\]"),
}


@pytest.mark.fault("RB1")
@pytest.mark.parametrize(("factory", "message"), BROKEN.values(), ids=BROKEN.keys())
def test_a_broken_promise_is_told_with_what_was_returned(factory, message):
    with pytest.raises(EnvironmentContractError, match=message):
        play(GymnasiumPool(factory, 1, 0), 3)


@pytest.mark.fault("RB1")
@pytest.mark.parametrize(
    "observation",
    [{"a": 1}, {"a": 0.5, "b": [0.0]}, np.zeros(2), None],
    ids=["missing key", "fraction", "array", "None"],
)
def test_an_observation_that_does_not_fit_its_dict_is_refused(observation):
    class Parts(Toy):
        def __init__(self):
            super().__init__()
            self.observation_space = gym_spaces.Dict(a=gym_spaces.Discrete(3), b=gym_spaces.Box(0.0, 1.0, (1,)))

        def observation(self):
            return observation if self.count == 2 else {"a": self.count, "b": np.ones(1, np.float32)}

    with pytest.raises(EnvironmentContractError, match=r"^observation = .*environment 0"):
        play(GymnasiumPool(Parts, 1, 0), 3)


OUTSIDE = {
    "byte too large": (gym_spaces.Box(0, 255, (2,), np.uint8), [0, 300], r"300: .* number 1, .*\[0, 255\] of its Box"),
    "byte below zero": (gym_spaces.Box(0, 255, (2,), np.uint8), np.int8([-1, 0]), "-1: .* number 0"),
    "signed byte": (gym_spaces.Box(-9, 9, (2,), np.int8), np.uint8([0, 128]), r"128: .*\[-128, 127\]"),
    "truth": (gym_spaces.Box(0, 1, (2,), np.bool_), [0, 2], r"2: .*\[0, 1\]"),
    "choice": (gym_spaces.Discrete(3), 3, r"3: .*\[0, 2\] of its Discrete"),
    "choice below its start": (gym_spaces.Discrete(3, start=1), np.int64(0), r"0: .*\[1, 3\]"),
    "choices": (gym_spaces.MultiDiscrete([[2], [3]], start=[[0], [5]]), [[1], [8]], r"8: .* number 1, .*\[5, 7\]"),
    "bit": (gym_spaces.MultiBinary(2), np.int8([0, -1]), r"-1: .*\[0, 1\] of its MultiBinary"),
}


def showing(space, found):
    """A Toy of an observation space that always observes the same."""

    class Showing(Toy):
        def __init__(self):
            super().__init__()
            self.observation_space = space

        def observation(self):
            return found

    return Showing


@pytest.mark.fault("RB1")
@pytest.mark.parametrize(("space", "found", "message"), OUTSIDE.values(), ids=OUTSIDE.keys())
def test_what_would_be_kept_as_another_observation_is_refused(space, found, message):
    nested = gym_spaces.Dict(inner=space)
    for factory in (showing(space, np.asarray(found)), showing(nested, {"inner": found})):
        with pytest.raises(EnvironmentContractError, match=f"^observation = {message}") as error:
            play(GymnasiumPool(factory, 1, 0), 1)
        assert "environment 0" in error.value.problem


@pytest.mark.fault("RB1", outcome="survived")
@pytest.mark.parametrize(
    ("space", "found"),
    [
        (gym_spaces.Box(0, 255, (2,), np.uint8), np.array([0, 255])),
        (gym_spaces.Box(0, 1, (2,), np.uint8), np.array([True, False])),
        (gym_spaces.Box(0, 1, (2,), np.float32), np.array([-7, 2**40])),
        (gym_spaces.Discrete(3, start=-1), -1),
        (gym_spaces.MultiDiscrete([2, 3]), np.array([1, 2])),
        (gym_spaces.MultiBinary(2), np.array([False, True])),
    ],
    ids=str,
)
def test_what_can_be_kept_is_kept_in_whatever_dtype_it_comes(space, found):
    np.testing.assert_array_equal(play(GymnasiumPool(showing(space, found), 1, 0), 1).next_obs[0][0, 0], found)


def json_copy(snapshot):
    return PoolSnapshot(
        {name: array.copy() for name, array in snapshot.arrays.items()}, json.loads(json.dumps(snapshot.document))
    )


def restored(factory, num_envs, seed, snapshot):
    """A fresh pool brought to a snapshot, its observations, which environments started anew, and what it says."""
    pool = GymnasiumPool(factory, num_envs, seed)
    obs, started_anew = current(pool), np.zeros(num_envs, bool)
    problems = pool.restore(json_copy(snapshot), obs, started_anew)
    return pool, obs, started_anew, problems


def assert_same_future(pool, other, steps=40):
    found, expected = play(other, steps, seed=1, reset=False), play(pool, steps, seed=1, reset=False)
    for name in ("reward", "terminated", "truncated"):
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))
    for one, two in zip(found.obs + found.next_obs, expected.obs + expected.next_obs, strict=True):
        np.testing.assert_array_equal(one[1:], two[1:])


def play_to(pool, moment):
    """Steps a pool to some moment in the life of environment 0; its current observations."""
    if moment == "in the first episode":
        return [leaf[-1] for leaf in play(pool, 3).obs]
    play(pool, 50)
    for step in range(200):
        buffers = play(pool, 1, seed=step, reset=False)
        if buffers.first[1, 0]:
            break
    if moment == "in the middle of an episode":
        buffers = play(pool, 3, seed=9, reset=False)
        assert not buffers.first[:, 0].any()
    return [leaf[-1] for leaf in buffers.obs]


ENVS = {
    "CartPole-v1": {},
    "Pendulum-v1": {"max_episode_steps": 20},
    "InvertedPendulum-v5": {},
}
MOMENTS = ("in the middle of an episode", "right after a reset", "in the first episode")


@pytest.mark.parametrize("moment", MOMENTS)
@pytest.mark.parametrize("env", ENVS)
def test_a_restored_pool_goes_on_bit_for_bit(env, moment):
    factory = Factory(env, ENVS[env])
    pool = GymnasiumPool(factory, 2, 11)
    expected = play_to(pool, moment)
    # The seed is no part of a snapshot; only an environment that starts anew needs it.
    other, obs, started_anew, problems = restored(factory, 2, 11, pool.snapshot())
    assert problems == []
    assert not started_anew.any()
    np.testing.assert_array_equal(obs[0], expected[0])
    assert_same_future(pool, other)


def test_a_restored_pool_can_be_restored_again():
    pool = GymnasiumPool(Toy, 2, 0)
    play(pool, 10)
    once, *_ = restored(Toy, 2, 0, pool.snapshot())
    twice, _, _, problems = restored(Toy, 2, 0, once.snapshot())
    assert problems == []
    assert_same_future(pool, twice)


class Hidden(Toy):
    """Rewards grow over the environment's life, which no observation shows."""

    def __init__(self):
        super().__init__()
        self.age = 0

    def step(self, action):
        self.age += 1
        obs, _, terminated, truncated, info = super().step(action)
        return obs, float(self.age), terminated, truncated, info


@pytest.mark.fault("RB1")
@pytest.mark.parametrize("moment", MOMENTS[:2])
def test_hidden_state_that_only_rewards_show_is_told_and_starts_anew(moment):
    pool = GymnasiumPool(Hidden, 2, 0)
    play_to(pool, moment)
    _, obs, started_anew, problems = restored(Hidden, 2, 0, pool.snapshot())
    assert [problem.split(":")[0] for problem in problems] == ["environment 0", "environment 1"]
    assert all("hidden" in problem for problem in problems)
    assert started_anew.all()
    for index in range(2):
        expected, _ = Toy().reset(seed=environment_seed(0, index, 1))
        np.testing.assert_array_equal(obs[0][index], expected)


@pytest.mark.fault("RB1")
def test_hidden_state_that_only_observations_show_is_told():
    class Drifting(Toy):
        age = 0

        def step(self, action):
            self.age += 1
            obs, *rest = super().step(action)
            return obs + np.float32([0, self.age]), *rest

    pool = GymnasiumPool(Drifting, 1, 0)
    play(pool, 13)
    assert len(restored(Drifting, 1, 0, pool.snapshot())[3]) == 1


@pytest.mark.fault("RB1")
def test_hidden_state_that_only_flags_show_is_told():
    class LongLived(Toy):
        lives = 0

        def step(self, action):
            obs, reward, terminated, _, info = super().step(action)
            self.lives += terminated
            return obs, reward, terminated and self.lives != 3, terminated and self.lives == 3, info

    pool = GymnasiumPool(LongLived, 1, 0)
    play(pool, 13)
    assert len(restored(LongLived, 1, 0, pool.snapshot())[3]) == 1


def test_each_restart_that_was_not_exact_gets_a_seed_of_its_own():
    pool, snapshot, starts = GymnasiumPool(Hidden, 1, 0), None, []
    for _ in range(3):
        play(pool, 13, reset=snapshot is None)
        snapshot = pool.snapshot()
        pool, obs, _, problems = restored(Hidden, 1, 0, snapshot)
        assert len(problems) == 1
        starts.append(obs[0].tobytes())
    assert len(set(starts)) == 3


def test_only_what_cannot_be_brought_back_starts_anew():
    made = []

    def factory():
        made.append(Hidden() if len(made) % 2 else Toy())
        return made[-1]

    pool = GymnasiumPool(factory, 2, 0)
    expected = play(pool, 13).obs[0][-1, 0]
    _, obs, started_anew, problems = restored(factory, 2, 0, pool.snapshot())
    np.testing.assert_array_equal(started_anew, [False, True])
    np.testing.assert_array_equal(obs[0][0], expected)
    assert len(problems) == 1
    assert problems[0].startswith("environment 1:")


@pytest.mark.parametrize("env", ["CartPole-v1", "Pendulum-v1"])
def test_a_snapshot_does_not_depend_on_how_the_steps_before_it_were_cut_into_rollouts(env):
    def snapshot_after(parts, horizon=None):
        pool = GymnasiumPool(Factory(env), 3, 0)
        buffers, door = buffers_of(pool, horizon or max(parts)), spaces.action_door(pool.spec.action_space, "clip")
        pool.reset([leaf[0] for leaf in buffers.obs])
        actions = iter(actions_of(pool, sum(parts), 0))
        for part in parts:
            buffers = buffers_of(pool, horizon or part)
            for t in range(part):
                pool.step(door(next(actions)), t, buffers)
        return pool.snapshot()

    whole = snapshot_after([47])
    assert any(log["length"] for logs in whole.document["episodes"] for log in logs)
    for other in (snapshot_after([1] * 47), snapshot_after([20, 27]), snapshot_after([47], horizon=100)):
        assert other.document == whole.document
        assert other.arrays.keys() == whole.arrays.keys()
        for name, array in whole.arrays.items():
            np.testing.assert_array_equal(other.arrays[name], array)


def test_rows_that_are_filled_again_keep_no_flags_of_before():
    pool = GymnasiumPool(Toy, 2, 0)
    buffers, door = play(pool, Toy.length), spaces.action_door(pool.spec.action_space, "clip")
    assert buffers.terminated[-1].all()
    assert buffers.first[-1].all()
    pool.step(door(actions_of(pool, 1)[0]), Toy.length - 1, buffers)
    assert not buffers.terminated[-1].any()
    assert not buffers.first[-1].any()
    assert restored(Toy, 2, 0, pool.snapshot())[3] == []


def test_an_episode_that_is_too_long_to_replay_is_told(monkeypatch):
    class Endless(Toy):
        length = -1

    for module in (adapter, episode_log):
        monkeypatch.setattr(module, "MAX_REPLAY_STEPS", 10)
    pool = GymnasiumPool(Endless, 1, 0)
    play(pool, 10)
    assert restored(Endless, 1, 0, pool.snapshot())[3] == []
    play(pool, 1, reset=False)
    snapshot = pool.snapshot()
    assert sum(array.size for array in snapshot.arrays.values()) == 0
    _, _, started_anew, problems = restored(Endless, 1, 0, snapshot)
    assert problems == ["environment 0: its episode is longer than 10 steps and was not kept"]
    assert started_anew.all()


@pytest.mark.parametrize("bit_generator", [np.random.MT19937, np.random.Philox, np.random.SFC64])
@pytest.mark.parametrize("steps", [2, 8, 10])
def test_another_bit_generator_is_brought_back_too(bit_generator, steps):
    class Other(Toy):
        def reset(self, *, seed=None, options=None):
            if seed is not None:
                self.np_random = np.random.Generator(bit_generator(seed))
            return super().reset()

    pool = GymnasiumPool(Other, 2, 0)
    play(pool, steps)
    other, _, _, problems = restored(Other, 2, 0, pool.snapshot())
    assert problems == []
    assert_same_future(pool, other)


def test_an_old_random_generator_can_be_used_and_its_restart_is_told():
    class Old(Toy):
        def reset(self, *, seed=None, options=None):
            if seed is not None:
                self._np_random = np.random.RandomState(seed)
            return super().reset()

    pool = GymnasiumPool(Old, 1, 0)
    play(pool, 10)
    assert len(restored(Old, 1, 0, pool.snapshot())[3]) == 1


def test_what_an_environment_draws_once_at_its_seeded_reset_is_brought_back():
    class Level(Toy):
        def reset(self, *, seed=None, options=None):
            answer = super().reset(seed=seed)
            if seed is not None:
                self.level = self.np_random.normal()
            return answer

        def step(self, action):
            obs, reward, *rest = super().step(action)
            return obs, reward + self.level, *rest

    pool = GymnasiumPool(Level, 2, 0)
    play(pool, 10)
    other, _, _, problems = restored(Level, 2, 0, pool.snapshot())
    assert problems == []
    assert_same_future(pool, other)


@pytest.mark.fault("RB1", outcome="survived")
def test_an_environment_that_writes_into_its_action_is_brought_back():
    class Writer(Toy):
        def __init__(self):
            super().__init__()
            self.action_space = gym_spaces.Box(-np.inf, np.inf, (1,))

        def step(self, action):
            answer = super().step(action[0])
            action[:] = 99.0
            return answer

    pool = GymnasiumPool(Writer, 2, 0)
    play(pool, 10)
    other, _, _, problems = restored(Writer, 2, 0, pool.snapshot())
    assert problems == []
    assert_same_future(pool, other)


@pytest.mark.fault("RF1")
def test_a_replay_that_raises_is_told():
    class Moody(Toy):
        refuses = False

        def step(self, action):
            assert not self.refuses, "not today"
            return super().step(action)

    pool = GymnasiumPool(Moody, 1, 0)
    play(pool, 10)
    Moody.refuses = True
    _, _, started_anew, problems = restored(Moody, 1, 0, pool.snapshot())
    assert started_anew.all()
    assert len(problems) == 1
    assert "not today" in problems[0]


def test_a_pool_that_never_started_is_told():
    _, obs, started_anew, problems = restored(Toy, 2, 0, GymnasiumPool(Toy, 2, 0).snapshot())
    assert len(problems) == 2
    assert started_anew.all()
    assert np.isfinite(obs[0]).all()


def test_a_snapshot_does_not_change_while_the_pool_goes_on():
    pool = GymnasiumPool(Toy, 2, 0)
    play(pool, 10)
    snapshot = pool.snapshot()
    kept = copy.deepcopy(snapshot)
    play(pool, 10, reset=False)
    pool.restore(PoolSnapshot({}, kept.document | {"episodes": [[], []]}), current(pool), np.zeros(2, bool))
    assert snapshot.document == kept.document
    for name, array in kept.arrays.items():
        np.testing.assert_array_equal(snapshot.arrays[name], array)


def edited(path, value):
    """A change of one place of a snapshot's document; `...` takes it out."""

    def edit(snapshot):
        *way, last = path
        place = snapshot.document
        for key in way:
            place = place[key]
        if value is ...:
            del place[last]
        else:
            place[last] = value

    return edit


GARBLED = {
    "no restarts": edited(["restarts"], ...),
    "restarts of another number of environments": edited(["restarts"], [0]),
    "restarts in words": edited(["restarts", 0], "x"),
    "infinite restarts": edited(["restarts", 0], float("inf")),
    "no episodes": edited(["episodes"], None),
    "episodes of another number of environments": edited(["episodes"], []),
    "episode is a number": edited(["episodes", 0], [3]),
    "no length": edited(["episodes", 0, 0, "length"], ...),
    "another length": edited(["episodes", 0, 1, "length"], 1),
    "infinite length": edited(["episodes", 0, 0, "length"], float("inf")),
    "no checksum": edited(["episodes", 1, 1, "checksum"], ...),
    "no start": edited(["episodes", 0, 0, "start"], ...),
    "empty start": edited(["episodes", 0, 0, "start"], {}),
    "start in words": edited(["episodes", 0, 0, "start"], "seed"),
    "seed in words": edited(["episodes", 0, 0, "start"], {"seed": "many"}),
    "generator of nothing": edited(["episodes", 0, 0, "start", "generator"], {}),
    "generator in words": edited(["episodes", 0, 0, "start", "generator"], "PCG64"),
    "another generator": edited(["episodes", 0, 0, "start", "generator", "bit_generator"], "MT19937"),
    "generator without its state": edited(["episodes", 0, 0, "start", "generator", "state"], None),
    "too large a state": edited(["episodes", 0, 0, "start", "generator", "state", "state"], "9" * 99),
    "no actions": lambda snapshot: snapshot.arrays.pop("actions.0.1"),
    "cut actions": lambda snapshot: snapshot.arrays.update({"actions.0.0": snapshot.arrays["actions.0.0"][:-3]}),
    "actions of nothing": lambda snapshot: snapshot.arrays.update({"actions.0.0": None}),
    "empty": lambda snapshot: snapshot.document.clear(),
}


@pytest.mark.fault("RB3")
@pytest.mark.parametrize("garble", GARBLED.values(), ids=GARBLED.keys())
def test_a_garbled_snapshot_is_refused(garble):
    pool = GymnasiumPool(Toy, 2, 0)
    play(pool, 10)
    snapshot = json_copy(pool.snapshot())
    garble(snapshot)
    with pytest.raises(CheckpointError, match="does not describe these environments"):
        GymnasiumPool(Toy, 2, 0).restore(snapshot, current(pool), np.zeros(2, bool))


@pytest.mark.fault("RB3")
@pytest.mark.parametrize("document", [None, [], "x", {"kind": "vector", "restarts": 0}])
def test_a_document_of_something_else_is_refused(document):
    pool = GymnasiumPool(Toy, 2, 0)
    with pytest.raises(CheckpointError):
        pool.restore(PoolSnapshot({}, document), current(pool), np.zeros(2, bool))


def test_a_changed_checksum_is_told():
    pool = GymnasiumPool(Toy, 2, 0)
    play(pool, 10)
    snapshot = json_copy(pool.snapshot())
    snapshot.document["episodes"][1][0]["checksum"] ^= 1
    _, _, started_anew, problems = restored(Toy, 2, 0, snapshot)
    np.testing.assert_array_equal(started_anew, [False, True])
    assert len(problems) == 1


class Several:
    """As PettingZoo's environments are: of several agents, and none of Gymnasium's."""

    possible_agents = ("left", "right")


def several():
    return Several()


Derived = type("Derived", (type("AECEnv", (), {"__module__": "pettingzoo.utils.env"}),), {})
"""One that cannot say yet who its agents are."""


@pytest.mark.fault("RB1")
@pytest.mark.parametrize(
    "env",
    [several, Several, Several(), Derived, Derived(), lambda: Derived()],
    ids=["function", "class", "object", "PettingZoo's class", "PettingZoo's object", "function of PettingZoo's"],
)
def test_an_environment_of_several_agents_is_refused_as_such(env):
    with pytest.raises(ConfigError, match=r"^env = .*several agents.*one agent"):
        env_source(env)
