"""Names of leaves and back, finiteness, selection."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from inchworm.errors import CheckpointError
from inchworm.numerics.tree import (
    all_finite,
    along_rows,
    broadcast_rows,
    fingerprint,
    flatten_time,
    from_arrays,
    select,
    to_arrays,
    where_rows,
)
from inchworm.rl.distributions import Beta, DiagonalGaussian, TanhGaussian


def tree(mark: float = 0.5) -> dict:
    return {
        "policy": (jnp.array([mark, -0.0]), {"log_std": jnp.array(1.0)}),
        "count": jnp.array(3, jnp.int32),
        "key": jax.random.key(5),
        "nothing": None,
    }


def test_leaves_are_named_by_their_path_and_keys_by_their_data():
    arrays = to_arrays(tree())
    assert list(arrays) == ["count", "key", "policy.0", "policy.1.log_std"]
    assert all(isinstance(array, np.ndarray) for array in arrays.values())
    np.testing.assert_array_equal(arrays["key"], jax.random.key_data(jax.random.key(5)))


def test_named_arrays_and_a_shape_only_template_give_the_tree_back_bit_for_bit():
    original = tree()
    back = from_arrays(jax.eval_shape(tree), to_arrays(original))
    assert jax.tree.structure(back) == jax.tree.structure(original)
    assert fingerprint(back) == fingerprint(original)
    assert jax.random.bits(back["key"]) == jax.random.bits(original["key"])
    assert np.signbit(back["policy"][0][1])


@pytest.mark.parametrize(
    ("change", "name"),
    [
        (lambda arrays: arrays.pop("count"), "count"),
        (lambda arrays: arrays.update(stranger=np.zeros(2)), "stranger"),
        (lambda arrays: arrays.update(count=np.zeros(1, np.int32)), "count"),
        (lambda arrays: arrays.update(count=np.array(3.0, np.float32)), "count"),
        (lambda arrays: arrays.update(key=np.zeros(3, np.uint32)), "key"),
    ],
    ids=["missing", "too many", "other shape", "other dtype", "other key"],
)
def test_arrays_that_do_not_fit_are_refused_by_name(change, name):
    arrays = to_arrays(tree())
    change(arrays)
    with pytest.raises(CheckpointError) as error:
        from_arrays(tree(), arrays)
    assert error.value.value == name


def test_a_fingerprint_tells_values_names_and_types_apart():
    same = {"a": jnp.array([1.0, 2.0])}
    assert fingerprint(same) == fingerprint({"a": np.array([1, 2], np.float32)})
    others = [
        {"a": jnp.array([1.0, jnp.nextafter(2.0, 3.0)])},
        {"b": jnp.array([1.0, 2.0])},
        {"a": jnp.array([[1.0, 2.0]])},
        {"a": np.array([1.0, 2.0])},
    ]
    assert len({fingerprint(each) for each in [same, *others]}) == 5


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_one_bad_number_anywhere_is_not_finite(bad):
    assert not all_finite(tree(bad) | {"key": jnp.zeros(2)})


def test_whole_numbers_flags_and_nothing_are_finite():
    assert all_finite({"a": jnp.array([1.0]), "b": jnp.array([2**30]), "c": jnp.array([True]), "d": None})
    assert all_finite({})
    assert all_finite({"b": jnp.array([1])})


def test_select_takes_one_tree_whole():
    yes, no = {"a": jnp.ones(2), "b": jnp.array(1)}, {"a": jnp.full(2, jnp.nan), "b": jnp.array(2)}
    assert fingerprint(select(jnp.array(True), yes, no)) == fingerprint(yes)
    assert fingerprint(select(jnp.array(False), yes, no)) == fingerprint(no)


def test_flatten_time_lays_environments_side_by_side_within_a_step():
    block = {"x": jnp.arange(24.0).reshape(2, 3, 4), "flag": jnp.zeros((2, 3), bool)}
    flat = flatten_time(block)
    assert (flat["x"].shape, flat["flag"].shape) == ((6, 4), (6,))
    np.testing.assert_array_equal(flat["x"][4], block["x"][1, 1])


def test_what_all_rows_share_gets_axes_of_its_own():
    tree = {"mean": jnp.zeros((2, 3, 4)), "log_std": jnp.arange(4.0)}
    rows = broadcast_rows(tree, (2, 3))
    assert {name: leaf.shape for name, leaf in rows.items()} == {"mean": (2, 3, 4), "log_std": (2, 3, 4)}
    np.testing.assert_array_equal(rows["log_std"][1, 2], [0, 1, 2, 3])


def test_one_number_a_row_is_laid_along_rows_of_any_shape():
    values, block = jnp.arange(6).reshape(2, 3), jnp.ones((2, 3, 4, 5))
    assert along_rows(values, block).shape == (2, 3, 1, 1)
    np.testing.assert_array_equal((along_rows(values, block) * block)[1, 0], np.full((4, 5), 3.0))
    np.testing.assert_array_equal(along_rows(values, values), values)


def test_rows_are_chosen_one_by_one_or_replaced_by_the_same_one():
    condition, ones = jnp.array([True, False]), jnp.ones((2, 3))
    np.testing.assert_array_equal(where_rows(condition, ones, 2 * ones), [[1, 1, 1], [2, 2, 2]])
    np.testing.assert_array_equal(where_rows(condition, ones, jnp.array([7.0, 8.0, 9.0])), [[1, 1, 1], [7, 8, 9]])


def test_a_class_s_name_is_no_field_that_is_shown_or_given_by_place_and_none_can_be_set():
    gaussian = DiagonalGaussian(jnp.zeros(1), jnp.ones(1))
    assert repr(gaussian) == f"DiagonalGaussian(mean={jnp.zeros(1)!r}, log_std={jnp.ones(1)!r})"
    with pytest.raises(TypeError):
        DiagonalGaussian(jnp.zeros(1), jnp.ones(1), "Other")  # type: ignore[misc]
    with pytest.raises(dataclasses.FrozenInstanceError):
        gaussian.mean = jnp.ones(1)  # type: ignore[misc]


def test_two_classes_with_the_same_fields_are_two_structures():
    """Else one would now and then run the program compiled for the other."""
    leaves = jnp.zeros(3), jnp.zeros(3)
    structures = [jax.tree.structure(kind(*leaves)) for kind in (DiagonalGaussian, TanhGaussian, Beta)]
    for one, other in itertools.combinations(structures, 2):
        assert one != other
    assert jax.tree.structure(DiagonalGaussian(*leaves)) == structures[0]
