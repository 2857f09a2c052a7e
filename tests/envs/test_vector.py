"""A vector environment gives the transitions of a list of its environments, whichever way it resets them."""

import copy
import json
import zlib
from functools import partial

import gymnasium
import jax
import numpy as np
import pytest
from gymnasium import spaces as gym_spaces
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv, VectorWrapper

from fixed_model import fixed_model
from inchworm import spaces
from inchworm.collect.host import HostRollouts
from inchworm.envs.gymnasium import GymnasiumPool
from inchworm.envs.pool import PoolSnapshot, StepBuffers, environment_seed
from inchworm.envs.vector import VectorPool
from inchworm.errors import CheckpointError, EnvironmentContractError, UnsupportedSpaceError
from inchworm.models import observations
from inchworm.rl.returns import generalized_advantage

NUM_ENVS = 3
TRANSITIONS = 40
ROWS = 84
CHUNK = 7
"""Rows of one rollout: some reset rows fall on the first row of the next."""

MODES = list(AutoresetMode)


class Toy(gymnasium.Env):
    """Walks at random and ends after a random number of steps, by itself or by a limit; records what it is sent."""

    def __init__(self, observation_space, action_space):
        self.observation_space, self.action_space = observation_space, action_space
        self.sent = []

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.left, self.memory = int(self.np_random.integers(1, 6)), 0.0
        return self._observation(), {}

    def step(self, action):
        assert self.action_space.contains(action), f"{action!r} is not in {self.action_space}"
        self.sent.append(copy.deepcopy(action))
        self.left -= 1
        self.memory += float(sum(np.sum(leaf) for leaf in jax.tree.leaves(action)))
        ended, cut = self.left == 0, self.left == 0 and bool(self.np_random.integers(2))
        return self._observation(), float(self.np_random.normal()) + self.memory, ended and not cut, cut, {}

    def _observation(self):
        noise = self.np_random.normal(size=4).astype(np.float32)
        return self.pack(np.append(noise, np.float32(self.memory)))

    def pack(self, values):
        return values


class DictToy(Toy):
    def __init__(self):
        observation_space = gym_spaces.Dict(
            {
                "walk": gym_spaces.Box(-np.inf, np.inf, (2, 2)),
                "parts": gym_spaces.Tuple(
                    [gym_spaces.Box(-np.inf, np.inf, (1,)), gym_spaces.Box(0, 255, (3,), np.uint8)]
                ),
                "choice": gym_spaces.Discrete(4, start=2),
                "choices": gym_spaces.MultiDiscrete([[2, 3]], start=[[0, -1]]),
                "bits": gym_spaces.MultiBinary([2, 1]),
                "image": gym_spaces.Box(0, 255, (4, 4, 3), np.uint8),
            }
        )
        super().__init__(observation_space, gym_spaces.Discrete(2))

    def pack(self, values):
        whole = (np.abs(values) * 100).astype(np.uint8)
        return {
            "parts": (values[4:], whole[1:4]),
            "walk": values[:4].reshape(2, 2),
            "choice": 2 + int(whole[0]) % 4,
            "choices": np.array([[whole[1] % 2, int(whole[2]) % 3 - 1]]),
            "bits": (whole[2:4, None] % 2).astype(np.int8),
            "image": np.resize(whole, (4, 4, 3)),
        }


def discrete_toy():
    return Toy(gym_spaces.Box(-np.inf, np.inf, (5,)), gym_spaces.Discrete(3, start=3))


BOX = gym_spaces.Box(
    np.array([[-0.5, -1.0, 0.0], [-np.inf, -2.0, -0.1]], np.float32),
    np.array([[0.25, 3.0, 0.5], [0.0, np.inf, 0.1]], np.float32),
)


def box_toy():
    return Toy(gym_spaces.Box(-np.inf, np.inf, (5,)), BOX)


GRID = gym_spaces.MultiDiscrete([[2, 3], [4, 2]], start=[[1, -1], [0, 5]])
BITS = gym_spaces.MultiBinary([2, 2])
NESTED = gym_spaces.Dict(
    {
        "grid": GRID,
        "parts": gym_spaces.Tuple([gym_spaces.Discrete(3, start=-1), gym_spaces.Dict({"reach": BOX, "bits": BITS})]),
    }
)


def toy_of(action_space):
    """A toy with vectors to observe."""
    return partial(Toy, gym_spaces.Box(-np.inf, np.inf, (5,)), action_space)


short_cartpole = partial(gymnasium.make, "CartPole-v1", max_episode_steps=16)

FACTORIES = [short_cartpole, DictToy, discrete_toy, box_toy, toy_of(GRID), toy_of(BITS), toy_of(NESTED)]
NAMES = [
    "CartPole",
    "Dict observations",
    "Discrete actions from 3",
    "Box actions",
    "MultiDiscrete actions",
    "MultiBinary actions",
    "nested actions",
]


def act(spec, leaves):
    """The policy's own actions, leaf by leaf, as a function of each environment's observation.

    Not of how many steps there were, so that a reset row shifts nothing.
    """
    own = []
    for index in range(len(leaves[0])):
        noise = np.random.default_rng(zlib.crc32(b"".join(leaf[index].tobytes() for leaf in leaves)))
        own.append([act_leaf(leaf, noise) for leaf in spaces.leaves(spec.action_space)])
    return [np.stack(leaf) for leaf in zip(*own, strict=True)]


def act_leaf(leaf, noise):
    match leaf:
        case spaces.Discrete(n):
            # Mostly the last choice, so that CartPole also falls before its time limit.
            return np.int32(min(noise.geometric(0.25), n) - 1)
        case spaces.MultiDiscrete(nvec):
            return noise.integers(nvec).astype(np.int32)
        case spaces.MultiBinary(size=size):
            return noise.integers(2, size=size).astype(np.int32)
        case spaces.Box(size=size):
            return noise.normal(size=size).astype(np.float32)


def play(pool, rows=ROWS, chunk=CHUNK):
    """Steps a pool, rollout after rollout; everything there is in the rows, by name."""
    start = StepBuffers.empty(pool.spec.observation_space, 0, pool.num_envs)
    last = [leaf[0] for leaf in start.obs]
    pool.reset(last)
    first, parts = np.ones(pool.num_envs, bool), []
    door = spaces.action_door(pool.spec.action_space, "clip")
    for _ in range(rows // chunk):
        buffers = StepBuffers.empty(pool.spec.observation_space, chunk, pool.num_envs)
        buffers.first[0] = first
        actions = []
        for leaf, value in zip(buffers.obs, last, strict=True):
            leaf[0] = value
        for t in range(chunk):
            actions.append(act(pool.spec, [leaf[t] for leaf in buffers.obs]))
            pool.step(door(actions[-1]), t, buffers)
        last, first = [leaf[chunk].copy() for leaf in buffers.obs], buffers.first[chunk]
        part = {f"obs.{i}": leaf[:chunk] for i, leaf in enumerate(buffers.obs)}
        part |= {f"next_obs.{i}": leaf for i, leaf in enumerate(buffers.next_obs)}
        part |= {f"action.{i}": np.stack(leaf) for i, leaf in enumerate(zip(*actions, strict=True))}
        part |= {"first": buffers.first[:chunk]}
        part |= {name: getattr(buffers, name) for name in ("reward", "terminated", "truncated", "valid")}
        parts.append(part)
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def value(leaves):
    """Some function of observations (T, N, ...)."""
    features = np.concatenate([leaf.reshape((*leaf.shape[:2], -1)) for leaf in leaves], axis=-1).astype(np.float32)
    return np.tanh(features @ np.sin(np.arange(features.shape[-1], dtype=np.float32)))


def transitions(pool):
    """The first valid transitions of each environment of a pool, in order, with V(next_obs) and advantages."""
    rows = play(pool)
    # Every environment is cut after as many transitions, because the advantage looks ahead.
    valid = rows["valid"] & (np.cumsum(rows["valid"], axis=0) <= TRANSITIONS)
    values, rows["next_value"] = (
        value([leaf for name, leaf in rows.items() if name.split(".")[0] == kind]) for kind in ("obs", "next_obs")
    )
    ends = rows["terminated"], rows["truncated"] & ~rows["terminated"]
    estimate = jax.jit(generalized_advantage)
    rows["advantage"] = np.asarray(estimate(rows["reward"], values, rows["next_value"], *ends, valid, 0.99, 0.95))
    return [{name: part[valid[:, index], index] for name, part in rows.items()} for index in range(NUM_ENVS)]


def assert_same_transitions(found, expected):
    for one, other in zip(found, expected, strict=True):
        assert len(one["reward"]) == len(other["reward"]) == TRANSITIONS
        for name in other:
            if name in ("advantage", "next_value"):
                np.testing.assert_allclose(one[name], other[name], rtol=1e-6, atol=1e-6, err_msg=name)
            else:
                np.testing.assert_array_equal(one[name], other[name], err_msg=name)


@pytest.fixture(scope="module")
def listed():
    """Transitions through our own list of environments, by factory."""
    cache = {}

    def get(factory):
        if factory not in cache:
            cache[factory] = transitions(GymnasiumPool(factory, NUM_ENVS, 5))
        return cache[factory]

    return get


def vector_pool(factory, mode, **kwargs):
    return VectorPool(SyncVectorEnv([factory] * NUM_ENVS, autoreset_mode=mode, **kwargs), 5)


class Changed(VectorWrapper):
    """A vector environment whose answers to `step` are changed by a function."""

    def __init__(self, env, change):
        super().__init__(env)
        self.change = change

    def step(self, actions):
        return self.change(*self.env.step(actions))


@pytest.mark.fault("RB1", outcome="survived")
@pytest.mark.parametrize("mode", MODES, ids=lambda mode: mode.value)
@pytest.mark.parametrize("factory", FACTORIES, ids=NAMES)
def test_every_autoreset_mode_gives_the_transitions_values_and_advantages_of_a_list(factory, mode, listed):
    assert_same_transitions(transitions(vector_pool(factory, mode)), listed(factory))


@pytest.mark.parametrize("factory", FACTORIES, ids=NAMES)
def test_the_compared_transitions_end_both_ways(factory, listed):
    ends = [(one["terminated"].any(), one["truncated"].any()) for one in listed(factory)]
    assert np.any(ends, axis=0).all()


@pytest.mark.parametrize("mode", MODES, ids=lambda mode: mode.value)
def test_a_vector_environment_that_reuses_its_arrays_gives_the_same_transitions(mode, listed):
    pool = vector_pool(short_cartpole, mode, copy=False)
    assert_same_transitions(transitions(pool), listed(short_cartpole))


def test_environments_in_other_processes_give_the_same_transitions(listed):
    env = AsyncVectorEnv([short_cartpole] * NUM_ENVS, context="forkserver", autoreset_mode="SameStep")
    pool = VectorPool(env, 5)
    try:
        assert_same_transitions(transitions(pool), listed(short_cartpole))
    finally:
        pool.close()


def test_a_next_step_reset_row_is_marked_and_its_obs_is_the_final_observation():
    rows = play(vector_pool(short_cartpole, AutoresetMode.NEXT_STEP))
    done = rows["terminated"] | rows["truncated"]
    previous = np.concatenate([np.zeros((1, NUM_ENVS), bool), done[:-1]])
    np.testing.assert_array_equal(rows["valid"], ~previous)
    assert (~rows["valid"]).any(axis=0).all()
    assert (~rows["valid"])[::CHUNK].any(), "no reset row falls on the first row of a rollout"
    np.testing.assert_array_equal(rows["reward"][~rows["valid"]], 0.0)
    assert not done[~rows["valid"]].any()
    np.testing.assert_array_equal(rows["obs.0"][1:][~rows["valid"][1:]], rows["next_obs.0"][:-1][done[:-1]])
    after_reset_row = np.concatenate([np.ones((1, NUM_ENVS), bool), ~rows["valid"][:-1]])
    np.testing.assert_array_equal(rows["first"], after_reset_row)


def test_a_reward_of_a_reset_row_counts_for_nothing():
    def generous(obs, reward, terminated, truncated, infos):
        return obs, reward + 1.0, terminated, truncated, infos

    rows = play(VectorPool(Changed(SyncVectorEnv([short_cartpole] * NUM_ENVS), generous), 5))
    np.testing.assert_array_equal(rows["reward"], np.where(rows["valid"], 2.0, 0.0))


@pytest.mark.parametrize("mode", [AutoresetMode.SAME_STEP, AutoresetMode.DISABLED])
def test_other_modes_have_no_reset_rows_and_start_an_episode_in_the_row_after_an_end(mode):
    rows = play(vector_pool(short_cartpole, mode))
    assert rows["valid"].all()
    done = rows["terminated"] | rows["truncated"]
    np.testing.assert_array_equal(rows["first"][1:], done[:-1])
    within = ~done[:-1]
    np.testing.assert_array_equal(rows["obs.0"][1:][within], rows["next_obs.0"][:-1][within])
    assert (rows["obs.0"][1:][done[:-1]] != rows["next_obs.0"][:-1][done[:-1]]).all()


@pytest.mark.parametrize(
    "make", [lambda: GymnasiumPool(box_toy, NUM_ENVS, 5), lambda: vector_pool(box_toy, "SameStep")]
)
def test_box_actions_are_clipped_at_the_door_and_stay_unclipped_outside(make):
    pool = make()
    # `Toy.step` refuses what its space does not contain: wrong shapes, dtypes and values.
    rows = play(pool)
    envs = pool._envs if isinstance(pool, GymnasiumPool) else pool._env.envs
    for index, env in enumerate(envs):
        own = rows["action.0"][:, index].reshape(-1, 2, 3)
        sent = np.stack(env.sent)
        assert sent.dtype == np.float32
        np.testing.assert_array_equal(sent, np.minimum(np.maximum(own, BOX.low), BOX.high))
        assert (own != sent).any(axis=0)[[0, 0, 0, 1], [0, 1, 2, 0]].all()


@pytest.mark.fault("RB1", outcome="survived")
@pytest.mark.parametrize(
    "make", [lambda: GymnasiumPool(discrete_toy, 2, 5), lambda: vector_pool(discrete_toy, "Disabled")]
)
def test_discrete_actions_are_moved_to_their_start(make):
    pool = make()
    rows = play(pool)
    env = (pool._envs if isinstance(pool, GymnasiumPool) else pool._env.envs)[0]
    assert set(np.unique(rows["action.0"])) == {0, 1, 2}
    np.testing.assert_array_equal(env.sent, rows["action.0"][:, 0] + 3)


@pytest.mark.parametrize("make", ["a list", *MODES], ids=str)
@pytest.mark.parametrize("space", [GRID, BITS, NESTED], ids=["MultiDiscrete", "MultiBinary", "nested"])
def test_environments_are_sent_each_leaf_in_its_shape_dtype_and_start(space, make):
    factory = toy_of(space)
    pool = GymnasiumPool(factory, NUM_ENVS, 5) if make == "a list" else vector_pool(factory, make)
    rows = play(pool)
    leaves = spaces.leaves(pool.spec.action_space)
    for index, env in enumerate(pool._envs if make == "a list" else pool._env.envs):
        own = [rows[f"action.{i}"][:, index][rows["valid"][:, index]] for i in range(len(leaves))]
        assert len(env.sent) == len(own[0])
        for i, action in enumerate(env.sent):
            sent = spaces.flatten(pool.spec.action_space, action)
            for leaf, mine, found in zip(leaves, own, sent, strict=True):
                assert found.dtype == leaf.dtype
                assert found.shape == spaces.leaf_shape(leaf)
                np.testing.assert_array_equal(found, expected_action(leaf, mine[i]))


def expected_action(leaf, own):
    match leaf:
        case spaces.Discrete(start=start):
            return own + start
        case spaces.MultiDiscrete(shape=shape, start=start):
            return (own + np.array(start)).reshape(shape)
        case spaces.MultiBinary(shape=shape):
            return own.reshape(shape)
        case spaces.Box(shape=shape):
            return np.clip(own.reshape(shape), BOX.low, BOX.high)


@pytest.mark.parametrize("mode", [mode.value for mode in MODES])
def test_the_mode_may_be_given_as_its_string(mode):
    env = SyncVectorEnv([short_cartpole], autoreset_mode=mode)
    env.metadata["autoreset_mode"] = mode
    assert play(VectorPool(env, 0))["valid"].all() == (mode != "NextStep")


@pytest.mark.fault("RB1")
@pytest.mark.parametrize("mode", ["Sometimes", None, 3, ["NextStep"]])
def test_an_unknown_mode_is_refused_with_the_known_ones(mode):
    env = SyncVectorEnv([short_cartpole])
    env.metadata["autoreset_mode"] = mode
    with pytest.raises(EnvironmentContractError) as caught:
        VectorPool(env, 0)
    for word in (repr(mode), "NextStep", "SameStep", "Disabled"):
        assert word in str(caught.value)


def test_a_missing_mode_is_refused():
    env = SyncVectorEnv([short_cartpole])
    del env.metadata["autoreset_mode"]
    with pytest.raises(EnvironmentContractError, match=r"autoreset_mode.* = None.*NextStep, SameStep, Disabled"):
        VectorPool(env, 0)


def without_final(obs, reward, terminated, truncated, infos):
    return obs, reward, terminated, truncated, {key: infos[key] for key in infos if key != "final_obs"}


def without_one_final(obs, reward, terminated, truncated, infos):
    if "final_obs" in infos:
        infos["final_obs"][:] = None
    return obs, reward, terminated, truncated, infos


def with_short_final(obs, reward, terminated, truncated, infos):
    if "final_obs" in infos:
        ended = np.flatnonzero(terminated | truncated)[0]
        infos["final_obs"][ended] = infos["final_obs"][ended][:1]
    return obs, reward, terminated, truncated, infos


def with_infos_as_list(obs, reward, terminated, truncated, infos):
    return obs, reward, terminated, truncated, [{}] * NUM_ENVS


@pytest.mark.fault("RB1")
@pytest.mark.parametrize("change", [without_final, without_one_final, with_infos_as_list])
def test_a_missing_final_observation_is_refused(change):
    env = Changed(SyncVectorEnv([short_cartpole] * NUM_ENVS, autoreset_mode="SameStep"), change)
    with pytest.raises(EnvironmentContractError, match=r"final_obs.*environment \d"):
        play(VectorPool(env, 5))


def test_a_choice_outside_its_space_is_refused():
    env = Changed(SyncVectorEnv([lambda: gymnasium.make("FrozenLake-v1")] * NUM_ENVS), lambda o, *rest: (o + 16, *rest))
    with pytest.raises(EnvironmentContractError, match=r"^observation = \d+: .*vector environment.*outside \[0, 15\]"):
        play(VectorPool(env, 5))


WRONG = {
    "observation of another shape": (lambda o, r, d, c, i: (o[:, :1], r, d, c, i), r"float32\[3, 1\]"),
    "observation without the axis of environments": (lambda o, r, d, c, i: (o[0], r, d, c, i), r"float32\[4\]"),
    "complex observation": (lambda o, r, d, c, i: (o * 1j, r, d, c, i), "complex64"),
    "column of rewards": (lambda o, r, d, c, i: (o, r[:, None], d, c, i), "reward = "),
    "one reward for all": (lambda o, r, d, c, i: (o, 1.0, d, c, i), "reward = "),
    "rewards of nothing": (lambda o, r, d, c, i: (o, [None] * 3, d, c, i), "reward = object"),
    "one flag for all": (lambda o, r, d, c, i: (o, r, False, c, i), "terminated = "),
    "flags of another number": (lambda o, r, d, c, i: (o, r, d, c[:2], i), "truncated = "),
    "four parts": (lambda o, r, d, c, i: (o, r, d, i), "a tuple of 4.*terminated, truncated"),
    "final observation of another shape": (with_short_final, r"float32\[1\].*environment \d, as final_obs"),
}


@pytest.mark.parametrize(("change", "message"), WRONG.values(), ids=WRONG.keys())
def test_wrong_answers_are_refused_by_name(change, message):
    env = Changed(SyncVectorEnv([short_cartpole] * NUM_ENVS, autoreset_mode="SameStep"), change)
    with pytest.raises(EnvironmentContractError, match=message):
        play(VectorPool(env, 5))


def test_an_error_of_the_vector_environment_is_named():
    def fail(*answer):
        raise ZeroDivisionError("out of luck")

    env = Changed(SyncVectorEnv([short_cartpole] * NUM_ENVS), fail)
    with pytest.raises(
        EnvironmentContractError, match=r"env\.step = ZeroDivisionError: out of luck.*vector environment"
    ):
        play(VectorPool(env, 5))


def test_an_unsupported_space_is_refused_by_the_name_of_its_attribute():
    class Writer(Toy):
        def __init__(self):
            super().__init__(gym_spaces.Text(5), gym_spaces.Discrete(2))

    with pytest.raises(UnsupportedSpaceError, match=r"single_observation_space = Text\(1, 5.*wrapper"):
        VectorPool(SyncVectorEnv([Writer]), 0)


def test_every_environment_gets_its_own_hashed_seed():
    env = SyncVectorEnv([discrete_toy] * NUM_ENVS)
    pool = VectorPool(env, 5)
    pool.reset([np.empty((NUM_ENVS, 5), np.float32)])
    assert [one.np_random_seed for one in env.envs] == [environment_seed(5, index, 0) for index in range(NUM_ENVS)]


def test_an_environment_stepped_as_one_array_takes_one_seed():
    def first_rows(seed):
        env = gymnasium.make_vec("CartPole-v1", num_envs=NUM_ENVS, vectorization_mode="vector_entry_point")
        return play(VectorPool(env, seed), rows=CHUNK)["obs.0"]

    np.testing.assert_array_equal(first_rows(0), first_rows(0))
    assert (first_rows(0) != first_rows(1)).all(axis=-1).all()


def test_the_error_of_the_first_reset_is_the_one_reported():
    class NoReset(VectorWrapper):
        def reset(self, *, seed=None, options=None):
            raise RuntimeError("many seeds" if isinstance(seed, list) else "one seed")

    with pytest.raises(EnvironmentContractError, match=r"env\.reset = RuntimeError: many seeds"):
        play(VectorPool(NoReset(SyncVectorEnv([short_cartpole])), 5))


@pytest.mark.parametrize("mode", MODES, ids=lambda mode: mode.value)
def test_a_restored_vector_environment_starts_anew_and_says_so(mode):
    pool = vector_pool(short_cartpole, mode)
    before = play(pool)["obs.0"][0]
    snapshot = pool.snapshot()
    assert snapshot.document == {"kind": "vector", "restarts": 0}
    assert snapshot.arrays == {}
    # One row after an end, so that NextStep has a reset row due, which must be forgotten.
    buffers = StepBuffers.empty(pool.spec.observation_space, 40, NUM_ENVS)
    t = next(
        t for t in range(40) if pool.step([np.zeros(NUM_ENVS, np.int64)], t, buffers) or buffers.terminated[t].any()
    )

    obs, started_anew = [np.empty((NUM_ENVS, 4), np.float32)], np.zeros(NUM_ENVS, bool)
    document = json.loads(json.dumps(snapshot.document))
    problems = pool.restore(PoolSnapshot({}, document), obs, started_anew)
    assert len(problems) == 1
    assert "start new episodes" in problems[0]
    assert started_anew.all()
    assert (obs[0] != before).all()
    assert pool.snapshot().document["restarts"] == 1
    pool.step([np.zeros(NUM_ENVS, np.int64)], t, buffers)
    assert buffers.valid[t].all()

    other = vector_pool(short_cartpole, mode)
    again = [np.empty((NUM_ENVS, 4), np.float32)]
    other.restore(snapshot, again, np.zeros(NUM_ENVS, bool))
    np.testing.assert_array_equal(again[0], obs[0])


@pytest.mark.fault("RB3")
@pytest.mark.parametrize(
    "document",
    [
        {},
        None,
        [],
        {"kind": "vector"},
        {"kind": "vector", "restarts": "x"},
        {"kind": "vector", "restarts": -2},
        {"kind": "vector", "restarts": float("inf")},
        {"kind": "gymnasium", "restarts": 0},
    ],
)
def test_a_garbled_snapshot_is_refused(document):
    with pytest.raises(CheckpointError):
        vector_pool(short_cartpole, "NextStep").restore(
            PoolSnapshot({}, document), [np.empty((NUM_ENVS, 4), np.float32)], np.zeros(NUM_ENVS, bool)
        )


def test_collected_episodes_do_not_count_reset_rows():
    def ends(pool):
        collector = HostRollouts(pool, 60, "clip")
        model = fixed_model(pool.spec, log_std=0.0)
        stats = observations.empty_stats(pool.spec.observation_space, False)
        found = [[] for _ in range(NUM_ENVS)]
        for seed in range(2):
            rollout, episodes = collector.collect(model, stats, jax.random.key(seed))
            assert not (episodes.ended & ~np.asarray(rollout.valid)).any()
            for t, index in np.argwhere(episodes.ended):
                found[index].append((episodes.episode_return[t, index], episodes.episode_length[t, index]))
        return found

    # CartPole's return is its length; a counted reset row would make it less.
    for one in ends(vector_pool(short_cartpole, AutoresetMode.NEXT_STEP)):
        assert len(one) > 5
        assert all(episode_return == episode_length <= 16 for episode_return, episode_length in one)
        assert any(episode_length == 16 for _, episode_length in one)
