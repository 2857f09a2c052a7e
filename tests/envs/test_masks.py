"""Action masks are read from environments in every form, for the action that comes next, and bad ones are refused."""

import json
import warnings

import gymnasium
import jax
import numpy as np
import pytest
from gymnasium import spaces as gym_spaces
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv, VectorWrapper

from fixed_model import fixed_model
from inchworm import spaces
from inchworm.collect.host import HostRollouts
from inchworm.envs.gymnasium import GymnasiumPool, from_gymnasium
from inchworm.envs.masks import MaskReader, shows_mask
from inchworm.envs.pool import PoolSnapshot, StepBuffers
from inchworm.envs.vector import VectorPool
from inchworm.errors import EnvironmentContractError, UnsupportedSpaceError

NUM_ENVS = 3
STEPS = 60

DISCRETE = gym_spaces.Discrete(3, start=4)
MULTI = gym_spaces.MultiDiscrete([2, 3, 2])
BITS = gym_spaces.MultiBinary(2)
NESTED = gym_spaces.Dict(
    {
        "walk": gym_spaces.Box(-1, 1, (2,)),
        "pick": DISCRETE,
        "pair": gym_spaces.Tuple([gym_spaces.Box(-1, 1, (1,)), MULTI, BITS]),
    }
)
# The leaves' order is pair, pick, walk: 7 + 4 + 3 columns.
NESTED_ALL = [True] * 14


class Given(gymnasium.Env):
    """Gives one mask, always."""

    observation_space = gym_spaces.Box(-1, 1, (1,))

    def __init__(self, action_space, mask):
        self.action_space, self.mask = action_space, mask

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return np.zeros(1, np.float32), {"action_mask": self.mask}

    def step(self, action):
        return np.zeros(1, np.float32), 0.0, False, False, {"action_mask": self.mask}


FORMS = {
    "flags": (DISCRETE, np.array([True, False, True]), [1, 0, 1]),
    "numbers": (DISCRETE, np.array([0, 1, 0], np.int8), [0, 1, 0]),
    "list": (DISCRETE, [1, 0, 0], [1, 0, 0]),
    "flat for MultiDiscrete": (MULTI, np.array([1, 0, 0, 1, 1, 0, 1]), [1, 0, 0, 1, 1, 0, 1]),
    "array for each component": (MULTI, (np.array([1, 0]), [0, 1, 1], np.array([0, 1])), [1, 0, 0, 1, 1, 0, 1]),
    "rows for each component": (gym_spaces.MultiDiscrete([2, 2]), np.array([[1, 0], [1, 1]]), [1, 0, 1, 1]),
    "one component": (gym_spaces.MultiDiscrete([2]), [np.array([1, 0])], [1, 0]),
    "flat for MultiBinary": (BITS, np.array([1, 0, 1, 1]), [1, 0, 1, 1]),
    "pairs for MultiBinary": (BITS, np.array([[1, 0], [1, 1]]), [1, 0, 1, 1]),
    "pairs for MultiBinary with axes": (gym_spaces.MultiBinary([1, 2]), np.array([[1, 0], [1, 1]]), [1, 0, 1, 1]),
    "empty dict": (NESTED, {}, NESTED_ALL),
    "None in a dict": (NESTED, {"pick": None, "walk": None, "pair": None}, NESTED_ALL),
    "part of a dict": (NESTED, {"pick": np.array([0, 1, 0])}, [True] * 11 + [0, 1, 0]),
    "part of a tuple": (NESTED, {"pair": (None, None, [0, 1, 1, 1])}, [True] * 7 + [0, 1, 1, 1] + [True] * 3),
    "tree": (
        NESTED,
        {"pick": [0, 0, 1], "pair": [None, ([1, 0], [1, 0, 0], [1, 1]), [[0, 1], [1, 0]]], "walk": None},
        [1, 0, 1, 0, 0, 1, 1, 0, 1, 1, 0, 0, 0, 1],
    ),
}


@pytest.mark.parametrize(("space", "given", "expected"), FORMS.values(), ids=FORMS.keys())
def test_a_mask_is_read_in_each_of_its_forms(space, given, expected):
    found = MaskReader(from_gymnasium(space, "action_space"))(given, "the environment")
    assert found.dtype == bool
    np.testing.assert_array_equal(found, np.array(expected, bool))
    assert reset(GymnasiumPool(lambda: Given(space, given), 2, 0)).mask.tolist() == [found.tolist()] * 2


@pytest.mark.parametrize("mode", list(AutoresetMode))
@pytest.mark.parametrize(("space", "given", "expected"), FORMS.values(), ids=FORMS.keys())
def test_a_vector_environment_gives_a_mask_in_each_of_its_forms(space, given, expected, mode):
    pool = VectorPool(SyncVectorEnv([lambda: Given(space, given)] * 2, autoreset_mode=mode), 0)
    np.testing.assert_array_equal(reset(pool).mask, np.array([expected] * 2, bool))
    play(pool, 2)
    np.testing.assert_array_equal(pool.mask, np.array([expected] * 2, bool))


MISFITS = {
    "too short": (DISCRETE, [1, 0], r"\[1, 0\].*shape \(3,\)"),
    "too long": (DISCRETE, np.ones(4, bool), r"bool\[4\].*shape \(3,\)"),
    "of two axes": (DISCRETE, np.ones((1, 3), bool), r"bool\[1, 3\]"),
    "a number": (DISCRETE, 1, "= 1: "),
    "numbers beyond 1": (DISCRETE, [0, 1, 2], r"\[0, 1, 2\].*0s and 1s"),
    "negative numbers": (DISCRETE, [0, 1, -1], "0s and 1s"),
    "fractions": (DISCRETE, np.array([0.0, 1.0, 0.0]), r"float64\[3\].*0s and 1s"),
    "words": (DISCRETE, ["yes", "no", "no"], "yes"),
    "an array of words": (DISCRETE, np.array(["yes", "no", "no"]), "yes"),
    "an array of objects": (DISCRETE, np.array([None, 1, 0]), "None"),
    "a dict": (DISCRETE, {"pick": [1, 1, 1]}, "pick"),
    "ragged": (DISCRETE, [[1], [1, 1], [0]], "should be flags"),
    "of a component too few": (MULTI, ([1, 0], [1, 1, 1]), r"shape \(7,\), or a sequence of arrays of lengths 2, 3, 2"),
    "of components too short": (MULTI, ([1, 0], [1, 1], [1, 1]), "lengths 2, 3, 2"),
    "for bits as gymnasium samples them": (BITS, np.array([2, 1]), r"shape \(4,\) or \(2, 2\)"),
    "for another name": (NESTED, {"pikc": [1, 1, 1]}, r"a dict with names among \['pair', 'pick', 'walk'\]"),
    "an array for a dict": (NESTED, np.ones(14, bool), "a dict with names"),
    "for another number of parts": (NESTED, {"pair": (None, None)}, r"action_mask\['pair'\] = .*a tuple of 3"),
    "for a Box": (NESTED, {"walk": [1, 1]}, r"action_mask\['walk'\] = .*None, because a Box cannot be masked"),
    "for a Box in a tuple": (NESTED, {"pair": ([1], None, None)}, r"action_mask\['pair'\]\[0\]"),
    "misfitting deep inside": (NESTED, {"pair": (None, None, [1, 1])}, r"action_mask\['pair'\]\[2\] = \[1, 1\]"),
}


@pytest.mark.fault("RB1")
@pytest.mark.parametrize(("space", "given", "message"), MISFITS.values(), ids=MISFITS.keys())
def test_a_mask_that_does_not_fit_is_refused_with_what_was_found_and_wanted(space, given, message):
    with pytest.raises(EnvironmentContractError, match=message) as caught:
        reset(GymnasiumPool(lambda: Given(space, given), 1, 0))
    assert "environment 0" in str(caught.value)
    assert caught.value.field.startswith("action_mask")


@pytest.mark.fault("RB1")
@pytest.mark.parametrize(
    ("space", "given", "where"),
    [
        (DISCRETE, [0, 0, 0], "allows nothing"),
        (MULTI, [1, 0, 0, 0, 0, 1, 1], "allows nothing, for choice 1 of the 3"),
        (BITS, [1, 0, 0, 0], "allows nothing, for choice 1 of the 2"),
        (NESTED, {"pick": [0, 0, 0]}, "allows nothing, for choice 5 of the 6"),
    ],
)
def test_a_mask_that_allows_nothing_is_refused_with_a_fix(space, given, where):
    with pytest.raises(EnvironmentContractError, match=f"environment 0 gave, and {where}.*end the episode"):
        reset(GymnasiumPool(lambda: Given(space, given), 1, 0))


@pytest.mark.parametrize("space", [gym_spaces.Box(-1, 1, (2,)), gym_spaces.Tuple([gym_spaces.Box(-1, 1, (2,))])])
def test_a_mask_for_boxes_alone_is_refused(space):
    with pytest.raises(UnsupportedSpaceError, match=r"actions of a Box cannot be masked.*Remove action_mask"):
        reset(GymnasiumPool(lambda: Given(space, np.ones(2, bool)), 1, 0))


class Masked(gymnasium.Env):
    """Says in its observation which of four choices its mask allows; refuses others; ends without any.

    Ends after a random number of steps, by itself or by a limit.
    """

    observation_space = gym_spaces.Box(0, 1, (4,))
    action_space = gym_spaces.Discrete(4, start=2)
    reuses_its_mask = False
    gives = "info"

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.left = int(self.np_random.integers(1, 6))
        return self.answer()

    def step(self, action):
        assert self.flags[action - 2], f"{action} is not allowed by {self.flags}"
        self.left -= 1
        ended, cut = self.left == 0, self.left == 0 and bool(self.np_random.integers(2))
        obs, info = self.answer()
        return obs, float(self.np_random.normal()), ended and not cut, cut, info

    def answer(self):
        flags = self.np_random.random(4) < 0.5
        flags[self.np_random.integers(4)] = True
        # The end of a game allows nothing, which no one acts on.
        flags[:] &= self.left > 0
        if self.reuses_its_mask and hasattr(self, "flags"):
            self.flags[:] = flags
        else:
            self.flags = flags
        return flags.astype(np.float32), {"action_mask": self.flags} if self.gives == "info" else {}


class ByMethod(Masked):
    gives = "method"

    def action_masks(self):
        return self.flags


class Reused(Masked):
    reuses_its_mask = True


def wrapped():
    return gymnasium.wrappers.TimeLimit(ByMethod(), 1000)


def start(pool):
    return [leaf[0] for leaf in StepBuffers.empty(pool.spec.observation_space, 0, pool.num_envs).obs]


def reset(pool):
    pool.reset(start(pool))
    return pool


def play(pool, steps, seed=0, begin=False):
    """Steps a pool with allowed actions; the rows, and the masks from before the first step on."""
    buffers = StepBuffers.empty(pool.spec.observation_space, steps, pool.num_envs)
    if begin:
        pool.reset([leaf[0] for leaf in buffers.obs])
    rng, masks = np.random.default_rng(seed), [pool.mask.copy()]
    door = spaces.action_door(pool.spec.action_space, "clip")
    for t in range(steps):
        pool.step(door(allowed(pool, rng)), t, buffers)
        masks.append(pool.mask.copy())
    return buffers, np.stack(masks)


def allowed(pool, rng):
    """A policy's own random actions, within the mask."""
    own, end = [], 0
    for leaf in spaces.leaves(pool.spec.action_space):
        groups, columns = spaces.mask_groups(leaf), []
        for size in groups:
            mask = pool.mask[:, end : end + size]
            columns.append((rng.random(mask.shape) * mask).argmax(axis=1))
            end += size
        if isinstance(leaf, spaces.Box):
            own.append(rng.normal(size=(pool.num_envs, leaf.size)).astype(np.float32))
        else:
            own.append(columns[0] if isinstance(leaf, spaces.Discrete) else np.stack(columns, axis=1))
    return own


def vector(factory, mode):
    return VectorPool(SyncVectorEnv([factory] * NUM_ENVS, autoreset_mode=mode), 5)


POOLS = {
    "a list": lambda factory: GymnasiumPool(factory, NUM_ENVS, 5),
    **{mode.value: lambda factory, mode=mode: vector(factory, mode) for mode in AutoresetMode},
}


@pytest.mark.parametrize("factory", [Masked, Reused, ByMethod, wrapped])
@pytest.mark.parametrize("make", POOLS.values(), ids=POOLS.keys())
def test_the_mask_is_that_of_the_observation_that_is_acted_on(make, factory):
    buffers, masks = play(make(factory), STEPS, begin=True)
    ended = buffers.terminated | buffers.truncated
    assert ended.sum() > 10
    # In NextStep the action after an end is ignored, and may be any.
    ignored = np.concatenate([np.zeros((1, NUM_ENVS), bool), ~buffers.valid[1:], np.zeros((1, NUM_ENVS), bool)])
    ignored[-1] = ended[-1] & (masks[-1].all(axis=1))
    np.testing.assert_array_equal(masks[~ignored], buffers.obs[0][~ignored].astype(bool))
    assert masks[ignored].all()


def test_environments_in_other_processes_give_masks_too():
    for factory in (Masked, wrapped):
        env = AsyncVectorEnv([factory] * NUM_ENVS, context="forkserver", autoreset_mode="SameStep")
        pool = VectorPool(env, 5)
        try:
            buffers, masks = play(pool, 20, begin=True)
            assert buffers.first[1:].any()
            np.testing.assert_array_equal(masks, buffers.obs[0].astype(bool))
        finally:
            pool.close()


def test_environments_in_other_processes_may_have_no_masks():
    pool = VectorPool(AsyncVectorEnv([unmasked] * 2, context="forkserver"), 5)
    try:
        assert reset(pool).mask is None
    finally:
        pool.close()


def unmasked():
    return gymnasium.make("CartPole-v1")


@pytest.mark.parametrize("make", POOLS.values(), ids=POOLS.keys())
def test_environments_without_masks_have_none(make):
    pool = make(unmasked)
    assert reset(pool).mask is None
    buffers = StepBuffers.empty(pool.spec.observation_space, STEPS, NUM_ENVS)
    for t in range(STEPS):
        pool.step([np.ones(NUM_ENVS, np.int64)], t, buffers)
    assert (buffers.terminated | buffers.truncated).any()
    assert pool.mask is None


class Endless(Masked):
    """Has a mask in those infos whose number a function accepts."""

    given = staticmethod(lambda count: True)

    def answer(self):
        self.count = getattr(self, "count", -1) + 1
        self.left, self.flags = 10, np.ones(4, bool)
        return np.ones(4, np.float32), {"action_mask": self.flags} if self.given(self.count) else {}


def step_for_a_while(pool):
    buffers = StepBuffers.empty(pool.spec.observation_space, 4, pool.num_envs)
    for t in range(4):
        pool.step([np.full(pool.num_envs, 2)], t, buffers)


@pytest.mark.fault("RB1")
@pytest.mark.parametrize("make", POOLS.values(), ids=POOLS.keys())
@pytest.mark.parametrize(
    ("given", "message"),
    [(lambda count: count > 2, "where there was no mask before"), (lambda count: count < 2, "there was a mask before")],
)
def test_a_mask_that_comes_later_or_goes_missing_is_refused(given, message, make):
    pool = reset(make(type("Sometimes", (Endless,), {"given": staticmethod(given)})))
    with pytest.raises(EnvironmentContractError, match=rf"environment 0.*{message}.*every reset and step"):
        step_for_a_while(pool)


@pytest.mark.fault("RB1")
@pytest.mark.parametrize("make", POOLS.values(), ids=POOLS.keys())
def test_masks_of_some_environments_only_are_refused(make):
    made = []

    def factory():
        made.append(Masked())
        made[-1].gives = "info" if len(made) % NUM_ENVS == 1 else "nothing"
        return made[-1]

    with pytest.raises(EnvironmentContractError, match="environment 1"):
        reset(make(factory))


class NoneAfterReset(Masked):
    def reset(self, *, seed=None, options=None):
        obs, info = super().reset(seed=seed)
        return obs, {} if seed is None else info


@pytest.mark.fault("RB1")
@pytest.mark.parametrize("make", POOLS.values(), ids=POOLS.keys())
def test_a_reset_without_the_mask_that_other_answers_have_is_refused(make):
    with pytest.raises(EnvironmentContractError, match="there was a mask before"):
        play(make(NoneAfterReset), STEPS, begin=True)


@pytest.mark.fault("RF1")
@pytest.mark.parametrize("make", POOLS.values(), ids=POOLS.keys())
def test_an_error_of_the_method_is_named(make):
    class Failing(ByMethod):
        def action_masks(self):
            raise ZeroDivisionError("out of luck")

    with pytest.raises(EnvironmentContractError, match=r"env\.action_masks = ZeroDivisionError: out of luck"):
        reset(make(Failing))


class WholeArrays(VectorWrapper):
    """Gives the masks of all environments as one array, without gymnasium's flags of who gave one."""

    cut = None

    def reset(self, **kwargs):
        obs, infos = self.env.reset(**kwargs)
        return obs, {"action_mask": infos["action_mask"][: self.cut]}


def test_a_vector_environment_need_not_say_who_gave_a_mask():
    env = SyncVectorEnv([Masked] * NUM_ENVS)
    obs = start(pool := VectorPool(WholeArrays(env), 5))
    pool.reset(obs)
    np.testing.assert_array_equal(pool.mask, obs[0].astype(bool))


def test_masks_of_too_few_environments_are_refused():
    env = WholeArrays(SyncVectorEnv([Masked] * NUM_ENVS))
    env.cut = 2
    with pytest.raises(EnvironmentContractError, match=r"(?s)infos\['action_mask'\] = .*nothing for environment 2"):
        reset(VectorPool(env, 5))


class Everything(gymnasium.Env):
    """Actions of every kind, masked at random; what it is sent moves what it answers."""

    observation_space = gym_spaces.Box(-np.inf, np.inf, (2,))
    action_space = NESTED

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.left, self.memory = int(self.np_random.integers(3, 9)), 0.0
        return self.answer()

    def step(self, action):
        assert self.action_space.contains(action), action
        box, multi, bits = action["pair"]
        assert self.flags[action["pick"] - 4]
        self.memory += float(box @ [1] + multi @ [2, 3, 5] + bits @ [7, 11] + action["walk"] @ [13, 17])
        for part in (box, multi, bits, action["walk"]):
            part[...] = 0
        self.left -= 1
        obs, info = self.answer()
        return obs, self.memory, self.left == 0, False, info

    def answer(self):
        self.flags = np.arange(3) != self.np_random.integers(3)
        return np.array([self.memory, self.left], np.float32), {"action_mask": {"pick": self.flags}}


def restored(factory, snapshot, num_envs=2):
    pool = GymnasiumPool(factory, num_envs, 3)
    obs = start(pool)
    document = json.loads(json.dumps(snapshot.document))
    return pool, obs, pool.restore(PoolSnapshot(snapshot.arrays, document), obs, np.zeros(num_envs, bool))


@pytest.mark.parametrize("steps", [1, 7, 40])
def test_actions_of_every_kind_and_masks_are_brought_back_exactly(steps):
    pool = GymnasiumPool(Everything, 2, 3)
    buffers, masks = play(pool, steps, begin=True)
    other, obs, problems = restored(Everything, pool.snapshot())
    assert problems == []
    np.testing.assert_array_equal(obs[0], buffers.obs[0][-1])
    np.testing.assert_array_equal(other.mask, masks[-1])
    (expected, masks), (found, masks_found) = play(pool, 30, seed=1), play(other, 30, seed=1)
    np.testing.assert_array_equal(masks_found, masks)
    np.testing.assert_array_equal(found.reward, expected.reward)
    np.testing.assert_array_equal(found.next_obs[0], expected.next_obs[0])


@pytest.mark.parametrize("space", [gym_spaces.MultiDiscrete([[2, 3]]), gym_spaces.MultiBinary([2, 2]), DISCRETE])
def test_single_actions_of_every_kind_are_brought_back_exactly(space):
    class Summing(Masked):
        action_space = space

        def step(self, action):
            self.memory = getattr(self, "memory", 0.0) * (self.left > 0) + float(np.sum(action))
            return np.ones(4, np.float32), self.memory, False, False, {"action_mask": None}

        def reset(self, **kwargs):
            self.memory = 0.0
            return super().reset(**kwargs)[0], {}

    pool = reset(GymnasiumPool(Summing, 2, 3))
    door = spaces.action_door(pool.spec.action_space, "clip")
    rng = np.random.default_rng(0)
    buffers = StepBuffers.empty(pool.spec.observation_space, 20, 2)
    width = () if isinstance(space, gym_spaces.Discrete) else (int(np.prod(space.shape)),)
    for t in range(20):
        pool.step(door([rng.integers(2, size=(2, *width)).astype(np.int32)]), t, buffers)
    other, _, problems = restored(Summing, pool.snapshot())
    assert problems == []
    assert [env.memory for env in other._envs] == [env.memory for env in pool._envs]


def test_hidden_state_that_only_masks_show_is_told():
    class Hidden(Everything):
        """Its mask counts all steps of its life in binary."""

        action_space = gym_spaces.MultiBinary(9)
        age = 0

        def step(self, action):
            self.left -= 1
            return *self.answer()[:1], 0.0, self.left == 0, False, self.answer()[1]

        def answer(self):
            self.age += 1
            one = self.age >> np.arange(9) & 1
            info = {"action_mask": np.stack([np.ones(9, int), one], axis=1)}
            return np.zeros(2, np.float32), info

    pool = GymnasiumPool(Hidden, 2, 3)
    play(pool, 40, begin=True)
    _, _, problems = restored(Hidden, pool.snapshot())
    assert len(problems) == 2
    assert all("hidden" in problem for problem in problems)


@pytest.mark.parametrize("mode", list(AutoresetMode))
def test_a_restored_vector_environment_has_the_masks_of_its_new_episodes(mode):
    pool = vector(Masked, mode)
    play(pool, 20, begin=True)
    obs = start(pool)
    pool.restore(pool.snapshot(), obs, np.zeros(NUM_ENVS, bool))
    np.testing.assert_array_equal(pool.mask, obs[0].astype(bool))


MASKED_SPACE = gym_spaces.Dict(place=gym_spaces.Box(-1, 1, (1,)), action_mask=gym_spaces.Box(0, 1, (3,), np.int8))


class InObservation(gymnasium.Env):
    """Gives its mask as a part of the observation, and in `info` if so asked."""

    observation_space, action_space = MASKED_SPACE, DISCRETE

    def __init__(self, in_info):
        self.in_info = in_info

    def answer(self):
        mask = np.array([1, 0, 1], np.int8)
        return {"place": np.zeros(1, np.float32), "action_mask": mask}, {"action_mask": mask} if self.in_info else {}

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return self.answer()

    def step(self, action):
        obs, info = self.answer()
        return obs, 0.0, False, False, info


def collect(pool):
    model = fixed_model(pool.spec)
    return HostRollouts(pool, 2, "clip").collect(model, (None, None), jax.random.key(0))


@pytest.mark.parametrize(
    "make", [lambda env: GymnasiumPool(env, 1, 0), lambda env: VectorPool(SyncVectorEnv([env]), 0)]
)
def test_a_mask_among_the_observations_alone_is_told_to_forbid_nothing(make):
    with pytest.warns(UserWarning, match=r'^observation: its "action_mask" forbids nothing.*info\["action_mask"\]'):
        collect(make(lambda: InObservation(False)))
    with warnings.catch_warnings(action="error"):
        collect(make(lambda: InObservation(True)))


@pytest.mark.parametrize(
    ("observation", "action", "told"),
    [
        (spaces.Dict({"action_mask": spaces.Box((3,), "int8", 0, 1)}), spaces.Discrete(3), True),
        (spaces.Dict({"action_mask": spaces.MultiBinary((3,))}), spaces.Discrete(3), True),
        (spaces.Dict({"action_mask": spaces.MultiBinary((5,))}), spaces.MultiDiscrete((2, 3), (2,), (0, 0)), True),
        (spaces.Dict({"action_mask": spaces.MultiBinary((4,))}), spaces.Discrete(3), False),
        (spaces.Dict({"action_mask": spaces.MultiBinary((4,))}), spaces.Box((4,), "float32", -1, 1), False),
        (spaces.Dict({"seen": spaces.MultiBinary((3,))}), spaces.Discrete(3), False),
        (spaces.MultiBinary((3,)), spaces.Discrete(3), False),
    ],
)
def test_a_mask_among_the_observations_is_known_by_its_name_and_size(observation, action, told):
    assert shows_mask(spaces.EnvSpec(observation, action)) == told
