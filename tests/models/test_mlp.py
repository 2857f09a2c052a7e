"""The network and its initialisation."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import oracles
from inchworm.models.mlp import MLP, orthogonal_mlp

rng = np.random.default_rng(0)
WEIGHTS = (np.float32(rng.normal(size=(3, 5))), np.float32(rng.normal(size=(5, 2))))
BIASES = (np.float32(rng.normal(size=5)), np.float32(rng.normal(size=2)))
X = np.float32(rng.normal(size=(4, 3)))

init = jax.jit(orthogonal_mlp, static_argnums=(1, 2, 3, 4, 5))


def test_a_tanh_network_is_the_oracle_s():
    np.testing.assert_allclose(MLP(WEIGHTS, BIASES, "tanh")(X), oracles.mlp(WEIGHTS, BIASES, X), rtol=1e-5, atol=1e-6)


def test_a_relu_network_by_hand():
    network = MLP((np.float32([[1, -1]]), np.float32([[2], [3]])), (np.float32([0, 1]), np.float32([0.5])), "relu")
    # relu(2), relu(-1) = 2, 0 and relu(-2), relu(3) = 0, 3; nothing after the last layer.
    np.testing.assert_array_equal(network(np.float32([[2], [-2]])), [[4.5], [9.5]])
    assert MLP((np.float32([[1]]),), (np.float32([0]),), "relu")(np.float32([[-3]])) == -3


@pytest.mark.parametrize("activation", ["tanh", "relu"])
def test_numpy_and_jax_give_the_same_numbers_in_single_precision(activation):
    network = MLP(WEIGHTS, BIASES, activation)
    on_numpy, on_jax = network(X), jax.jit(lambda n, x: n(x))(network, X)
    assert isinstance(on_numpy, np.ndarray)
    assert (on_numpy.dtype, on_jax.dtype) == (np.float32, jnp.float32)
    np.testing.assert_allclose(on_numpy, on_jax, rtol=1e-6, atol=1e-6)


def test_leading_axes_pass_through():
    network = MLP(WEIGHTS, BIASES, "tanh")
    np.testing.assert_allclose(network(X.reshape(2, 2, 3)).reshape(4, 2), network(X), rtol=1e-6)
    np.testing.assert_allclose(network(X[0]), network(X)[0], rtol=1e-6)


@pytest.fixture(scope="module")
def fresh():
    return init(jax.random.key(0), 4, (16, 8), 3, "tanh", 0.01)


def test_fresh_weights_are_orthogonal_with_the_gain_of_their_layer(fresh):
    assert [w.shape for w in fresh.weights] == [(4, 16), (16, 8), (8, 3)]
    for weight, gain in zip(fresh.weights, [math.sqrt(2), math.sqrt(2), 0.01], strict=True):
        wide = np.asarray(weight if weight.shape[0] <= weight.shape[1] else weight.T)
        np.testing.assert_allclose(wide @ wide.T, gain**2 * np.eye(len(wide)), atol=1e-5 * gain**2)


def test_fresh_biases_are_zero_and_everything_is_single_precision(fresh):
    assert [bias.shape for bias in fresh.biases] == [(16,), (8,), (3,)]
    assert all((np.asarray(bias) == 0).all() for bias in fresh.biases)
    assert {leaf.dtype for leaf in jax.tree.leaves(fresh)} == {jnp.dtype("float32")}


def test_another_key_gives_other_weights_in_every_layer(fresh):
    other = init(jax.random.key(1), 4, (16, 8), 3, "tanh", 0.01)
    assert all((np.asarray(a) != b).any() for a, b in zip(fresh.weights, other.weights, strict=True))


def test_without_hidden_layers_it_is_one_linear_map():
    shapes = jax.eval_shape(lambda key: orthogonal_mlp(key, 3, (), 2, "tanh", 1.0), jax.random.key(0))
    assert [w.shape for w in shapes.weights] == [(3, 2)]
    np.testing.assert_allclose(MLP((X[:3],), (X[3],), "tanh")(X), X @ X[:3] + X[3], rtol=1e-6)


def test_without_outputs_it_ends_in_its_last_hidden_layer_activated():
    shapes = jax.eval_shape(lambda key: orthogonal_mlp(key, 3, (5, 4), None, "tanh", 1.0), jax.random.key(0))
    assert ([w.shape for w in shapes.weights], shapes.activate_last) == ([(3, 5), (5, 4)], True)
    features = MLP(WEIGHTS, BIASES, "tanh", activate_last=True)(X)
    np.testing.assert_allclose(features, np.tanh(oracles.mlp(WEIGHTS, BIASES, X)), rtol=1e-5, atol=1e-6)


def test_no_layers_at_all_leave_the_input_as_it_is():
    nothing = orthogonal_mlp(jax.random.key(0), 3, (), None, "tanh", 1.0)
    assert jax.tree.leaves(nothing) == []
    np.testing.assert_array_equal(nothing(X), X)
