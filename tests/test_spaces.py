"""Spaces are plain data: they survive JSON, come apart and together again, and take a policy's actions to theirs."""

import json
import math

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from inchworm import spaces
from inchworm.errors import CheckpointError, UnsupportedSpaceError
from inchworm.spaces import Box, Dict, Discrete, MultiBinary, MultiDiscrete, Tuple

GRID = MultiDiscrete((2, 3, 4, 2), (2, 2), (1, -1, 0, 5), "int32")
NESTED = Dict(
    (
        ("bits", MultiBinary((2, 2))),
        ("parts", Tuple((Discrete(3, -1), Dict((("grid", GRID), ("reach", Box((2,), "float64", -0.1, 0.3))))))),
    )
)
ALL = [Box((2, 3), "float32", -1.0, 1.0), Discrete(4, 2), GRID, MultiBinary((3,)), NESTED]


@pytest.mark.parametrize("space", [*ALL, Box((2,), "float32", (-math.inf, 0.0), (1.0, math.inf))])
def test_a_space_survives_json(space):
    assert spaces.from_json(json.loads(json.dumps(spaces.to_json(space)))) == space
    assert hash(spaces.from_json(spaces.to_json(space))) == hash(space)


@pytest.mark.parametrize(
    "data",
    [
        None,
        {},
        {"type": "Graph"},
        {"type": "MultiDiscrete", "nvec": [2], "shape": [1], "dtype": "int64"},
        {"type": "MultiDiscrete", "nvec": [2, 3], "shape": [1], "start": [0, 0], "dtype": "int64"},
        {"type": "MultiDiscrete", "nvec": [2, 3], "shape": [2], "start": [0], "dtype": "int64"},
        {"type": "MultiBinary", "shape": 3, "dtype": "int8"},
    ],
)
def test_what_is_no_description_of_a_space_is_refused(data):
    with pytest.raises(CheckpointError, match="no description of a space"):
        spaces.from_json(data)


@pytest.mark.parametrize(
    ("given", "plain"),
    [
        (Box([2], jnp.float32, np.zeros(2), [1, np.float32(2)]), Box((2,), "float32", (0.0, 0.0), (1.0, 2.0))),
        (Box((1,), np.dtype("float32"), np.float32(0), 1), Box((1,), "float32", 0.0, 1.0)),
        (Discrete(np.int64(2), jnp.int32(1)), Discrete(2, 1)),
        (MultiDiscrete(np.array([2, 3]), [2], [0, 0]), MultiDiscrete((2, 3), (2,), (0, 0))),
        (Dict({"b": Discrete(2), "a": Discrete(3)}), Dict((("a", Discrete(3)), ("b", Discrete(2))))),
        (Tuple([Discrete(2)]), Tuple((Discrete(2),))),
    ],
)
def test_arrays_lists_and_dtypes_become_the_plain_description(given, plain):
    assert given == plain
    assert hash(given) == hash(plain)
    assert json.dumps(spaces.to_json(given)) == json.dumps(spaces.to_json(plain))


@pytest.mark.parametrize(
    ("make", "problem"),
    [
        (lambda: Box((2,), "float32", (0.0,), 1.0), "1 bounds for 2 numbers"),
        (lambda: Box((2,), "float32", None, 1.0), "a bound is NaN|must be|float"),
        (lambda: Box((2,), "float32", math.nan, 1.0), "a bound is NaN"),
        (lambda: Box((2,), "float32", 1.0, 0.0), "low is not everywhere at most high"),
        (lambda: Box((2,), "flaot32", 0.0, 1.0), "flaot32"),
        (lambda: Discrete(0), "0 choices"),
        (lambda: Discrete(2.0), "float"),
        (lambda: Box((0,), "float32", 0.0, 1.0), "there is nothing in it"),
        (lambda: Box((3, 0), "float32", (), ()), "there is nothing in it"),
        (lambda: Box((-1,), "float32", 0.0, 1.0), "there is nothing in it"),
        (lambda: MultiDiscrete((), (0,), ()), "there is nothing in it"),
        (lambda: MultiBinary((0,)), "there is nothing in it"),
        (lambda: Dict({}), "there is nothing in it"),
        (lambda: Tuple(()), "there is nothing in it"),
        (lambda: MultiDiscrete((2, 3), (2,), (0,)), "2 numbers of choices and 1 starts"),
        (lambda: Dict({1: Discrete(2)}), "1 is no text"),
        (lambda: Tuple((gymnasium.spaces.Discrete(2),)), "is none of Box"),
        (lambda: spaces.EnvSpec(gymnasium.spaces.Discrete(2), Discrete(2)), "is none of Box"),
    ],
)
def test_a_description_that_cannot_be_is_refused_where_it_is_made(make, problem):
    with pytest.raises(UnsupportedSpaceError, match=problem):
        make()


def test_a_value_comes_apart_into_leaves_and_together_again():
    value = {"bits": "a", "parts": ("b", {"grid": "c", "reach": "d"})}
    assert spaces.flatten(NESTED, value) == ["a", "b", "c", "d"]
    assert spaces.unflatten(NESTED, ["a", "b", "c", "d"]) == value
    assert [spaces.leaf_shape(leaf) for leaf in spaces.leaves(NESTED)] == [(2, 2), (), (2, 2), (2,)]


def test_observations_are_kept_in_32_bits_and_bits_in_8():
    kept = [spaces.storage_dtype(leaf) for leaf in spaces.leaves(NESTED)]
    assert kept == [np.int8, np.int32, np.int32, np.float32]


def test_every_choice_has_its_mask_columns_and_a_box_has_none():
    assert [spaces.num_mask_columns(space) for space in ALL] == [0, 4, 11, 6, 8 + 3 + 11]
    assert spaces.mask_groups(NESTED) == [2, 2, 2, 2, 3, 2, 3, 4, 2]


OWN_AND_SENT = {
    "Discrete from 0": (Discrete(3), [0, 2], np.array([0, 2])),
    "Discrete from -1": (Discrete(3, -1), [0, 2], np.array([-1, 1])),
    "Discrete far away": (Discrete(3, 2**40), [0, 2], 2**40 + np.array([0, 2])),
    "Discrete of bytes": (Discrete(3, 250, "uint8"), [0, 2], np.array([250, 252], np.uint8)),
    "MultiDiscrete": (
        GRID,
        [[0, 0, 0, 0], [1, 2, 3, 1]],
        np.array([[[1, -1], [0, 5]], [[2, 1], [3, 6]]], np.int32),
    ),
    "MultiDiscrete without axes": (MultiDiscrete((4,), (), (2,)), [[0], [3]], np.array([2, 5])),
    "MultiBinary": (
        MultiBinary((2, 2)),
        [[0, 1, 1, 0], [1, 1, 0, 0]],
        np.array([[[0, 1], [1, 0]], [[1, 1], [0, 0]]], np.int8),
    ),
    "Box": (
        Box((2, 1), "float32", (-1.0, 0.0), (1.0, 0.5)),
        [[-3.0, 0.25], [0.5, 3.0]],
        np.array([[[-1.0], [0.25]], [[0.5], [0.5]]], np.float32),
    ),
    "Box without axes": (Box((), "float32", -1.0, 1.0), [[-3.0], [0.5]], np.array([-1.0, 0.5], np.float32)),
    "unbounded Box": (Box((1,), "float32", -math.inf, math.inf), [[-9.0], [0.5]], np.array([[-9.0], [0.5]], "f4")),
}


def own_array(space, values):
    return np.array(values, np.float32 if isinstance(space, Box) else np.int32)


@pytest.mark.parametrize(("space", "own", "sent"), OWN_AND_SENT.values(), ids=OWN_AND_SENT.keys())
def test_the_door_gives_actions_their_shape_dtype_start_and_bounds(space, own, sent):
    (found,) = spaces.action_door(space, "clip")([own_array(space, own)])
    np.testing.assert_array_equal(found, sent)
    assert found.dtype == sent.dtype
    assert found.shape == sent.shape


def test_the_door_of_a_nested_space_is_that_of_each_leaf():
    own = [np.ones((2, 4), np.int32), np.zeros(2, np.int32), np.ones((2, 4), np.int32), np.ones((2, 2), np.float32)]
    bits, choice, grid, reach = spaces.action_door(NESTED, "clip")(own)
    np.testing.assert_array_equal(bits, np.ones((2, 2, 2), np.int8))
    np.testing.assert_array_equal(choice, [-1, -1])
    np.testing.assert_array_equal(grid, [[[2, 0], [1, 6]]] * 2)
    np.testing.assert_array_equal(reach, np.full((2, 2), 0.3))
    assert [part.dtype for part in (bits, choice, grid, reach)] == [np.int8, np.int64, np.int32, np.float64]


@pytest.mark.parametrize("squash", ["clip", "tanh", "unit"])
@pytest.mark.parametrize(
    "space",
    [
        *ALL,
        Discrete(2),
        MultiDiscrete((2, 2), (2,), (0, 0), "int32"),
        Box((2,), "float32", -1.0, 1.0),
        Box((2,), "float64", -1.0, 1.0),
    ],
)
def test_what_is_sent_shares_no_memory_with_the_policys_own(space, squash):
    own = [own_array(leaf, np.zeros(own_shape(leaf))) for leaf in spaces.leaves(space)]
    for mine, sent in zip(own, spaces.action_door(space, squash)(own), strict=True):
        sent[...] = 1
        np.testing.assert_array_equal(mine, 0)


def own_shape(leaf):
    match leaf:
        case Discrete():
            return (2,)
        case MultiDiscrete(nvec):
            return (2, len(nvec))
        case _:
            return (2, leaf.size)


BOUNDED = Box((3,), "float32", (-1.0, 0.1, -5.0), (1.0, 0.3, 100.0))


def test_tanh_and_unit_spread_over_the_bounds():
    u = np.array([[-0.5, 0.0, 1.5]], np.float32)
    (found,) = spaces.action_door(BOUNDED, "tanh")([u])
    np.testing.assert_allclose(found, [[math.tanh(-0.5), 0.2, -5 + (math.tanh(1.5) + 1) / 2 * 105]], rtol=1e-6)
    (found,) = spaces.action_door(BOUNDED, "unit")([np.array([[0.25, 0.5, 0.75]], np.float32)])
    np.testing.assert_allclose(found, [[-0.5, 0.2, 73.75]], rtol=1e-6)
    assert found.dtype == np.float32


@pytest.mark.parametrize(
    ("squash", "lowest", "highest"), [("clip", -65000.0, 65000.0), ("tanh", -50.0, 50.0), ("unit", 0, 1)]
)
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_every_squash_reaches_the_bounds_and_never_leaves_them(squash, lowest, highest, dtype):
    box = Box((3,), dtype, (-1.0, 0.1, -60000.0), (1.0, 0.3, 60000.0))
    low, high = np.array(box.low, dtype), np.array(box.high, dtype)
    between = np.linspace(lowest, highest, 1001, dtype=np.float32)
    (found,) = spaces.action_door(box, squash)([np.repeat(between[:, None], 3, axis=1)])
    assert found.dtype == dtype
    assert (found >= low).all()
    assert (found <= high).all()
    np.testing.assert_allclose(found[0], low, rtol=1e-6)
    np.testing.assert_allclose(found[-1], high, rtol=1e-6)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("squash", ["clip", "tanh", "unit"])
@pytest.mark.parametrize("space", [*ALL, BOUNDED])
def test_numpy_and_compiled_jax_agree_in_32_bits(space, squash):
    rng = np.random.default_rng(0)
    own = []
    for leaf in spaces.leaves(space):
        drawn = rng.random(own_shape(leaf))
        own.append(own_array(leaf, drawn if isinstance(leaf, Box) else (drawn * 2).astype(int)))
    door = spaces.action_door(space, squash)
    compiled = jax.jit(door)([jnp.asarray(part) for part in own])
    for found, expected, leaf in zip(compiled, door(own), spaces.leaves(space), strict=True):
        assert found.shape == expected.shape == (2, *spaces.leaf_shape(leaf))
        assert found.dtype == {"int64": "int32", "float64": "float32"}.get(leaf.dtype, leaf.dtype)
        np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("squash", ["tanh", "unit"])
@pytest.mark.parametrize(
    "box",
    [
        Box((2,), "float32", -math.inf, math.inf),
        Box((2,), "float32", (0.0, 0.0), (1.0, math.inf)),
        Box((2,), "float32", float(np.finfo("f4").min), float(np.finfo("f4").max)),
    ],
)
def test_a_box_without_a_finite_range_is_refused_where_actions_are_spread_over_it(box, squash):
    for space in (box, Dict((("a", Discrete(2)), ("b", box)))):
        with pytest.raises(UnsupportedSpaceError, match=r"Box\(shape=\(2,\).*finite range.*Use the Gaussian"):
            spaces.check_squash(space, squash)
        with pytest.raises(UnsupportedSpaceError):
            spaces.action_door(space, squash)
        spaces.check_squash(space, "clip")


def test_spaces_of_choices_need_no_bounds():
    spaces.check_squash(Tuple((Discrete(2), GRID, MultiBinary((2,)))), "tanh")
