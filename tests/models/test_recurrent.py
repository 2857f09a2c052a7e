"""GRU and LSTM: their equations, where they forget, and their derivatives."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import oracles
from inchworm.models.recurrent import GRU, LSTM, orthogonal_gru, orthogonal_lstm

CORES = {"gru": orthogonal_gru, "lstm": orthogonal_lstm}
T, N, F, H = 5, 3, 2, 4
rng = np.random.default_rng(0)
X = np.float32(rng.normal(size=(T, N, F)))
FIRST = np.zeros((T, N), bool)
FIRST[0, 2] = FIRST[2, 0] = FIRST[3, 0] = FIRST[4, 1] = True

step = jax.jit(lambda core, carry, x, first: core.step(carry, x, first))
unroll = jax.jit(lambda core, carry, x, first: core.unroll(carry, x, first))


def sigmoid(x):
    return 1.0 / (1.0 + np.exp(-x))


def oracle_step(core, carry, x, first):
    """The equations for one environment at a time, each gate with its own matrices."""
    gates = 3 if isinstance(core, GRU) else 4
    w, u = np.split(core.input_weight, gates, axis=1), np.split(core.recurrent_weight, gates, axis=1)
    h, c = (carry, carry) if isinstance(core, GRU) else carry
    h_after, c_after = np.zeros(h.shape), np.zeros(h.shape)
    for n in range(len(x)):
        h_n, c_n = (np.zeros(h.shape[1]),) * 2 if first[n] else (h[n], c[n])
        if isinstance(core, GRU):
            b = np.split(core.input_bias, gates)
            r = sigmoid(x[n] @ w[0] + h_n @ u[0] + b[0])
            z = sigmoid(x[n] @ w[1] + h_n @ u[1] + b[1])
            new = np.tanh(x[n] @ w[2] + b[2] + r * (h_n @ u[2] + core.recurrent_bias))
            h_after[n] = (1 - z) * new + z * h_n
        else:
            b = np.split(core.bias, gates)
            i, f, g, o = (x[n] @ w[k] + h_n @ u[k] + b[k] for k in range(4))
            c_after[n] = sigmoid(f) * c_n + sigmoid(i) * np.tanh(g)
            h_after[n] = sigmoid(o) * np.tanh(c_after[n])
    return h_after, h_after if isinstance(core, GRU) else (h_after, c_after)


def oracle_outputs(core, carry, x, first):
    outputs = []
    for t in range(len(x)):
        output, carry = oracle_step(core, carry, x[t], first[t])
        outputs.append(output)
    return np.stack(outputs)


def double(tree):
    return jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), tree)


def assert_trees_close(actual, expected, **tolerance):
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, **tolerance)


@pytest.fixture(scope="module", params=list(CORES))
def core(request, made_up):
    return made_up(lambda key: CORES[request.param](key, F, H), 1)


@pytest.fixture(scope="module")
def carry(core):
    """A memory that is not zero."""
    generator = np.random.default_rng(2)
    return jax.tree.map(lambda leaf: np.float32(generator.normal(size=leaf.shape)), core.initial_carry(N))


def test_a_step_is_the_equations(core, carry):
    actual = step(core, carry, X[0], FIRST[0])
    assert_trees_close(actual, oracle_step(double(core), double(carry), X[0], FIRST[0]), rtol=1e-5, atol=1e-6)


def test_unrolling_is_stepping(core, carry):
    outputs, carries = unroll(core, carry, X, FIRST)
    for t in range(T):
        output, carry = step(core, carry, X[t], FIRST[t])
        np.testing.assert_allclose(outputs[t], output, rtol=1e-5, atol=1e-6)
        assert_trees_close(jax.tree.map(lambda leaf, t=t: leaf[t], carries), carry, rtol=1e-5, atol=1e-6)


def test_carries_are_those_after_the_steps_and_not_cleared(core, carry):
    outputs, carries = unroll(core, carry, X, FIRST)
    assert jax.tree.map(jnp.shape, carries) == jax.tree.map(lambda leaf: (T, *leaf.shape), carry)
    # Environment 0 starts an episode at steps 2 and 3, so its memory after step 1 and 2 is that of the episode's end.
    assert all((np.asarray(leaf)[1:3, 0] != 0).all() for leaf in jax.tree.leaves(carries))
    np.testing.assert_array_equal(outputs, carries[0] if isinstance(core, LSTM) else carries)


def test_an_episode_s_start_hides_what_came_before(core, carry):
    x, other = X.copy(), jax.tree.map(lambda leaf: leaf + 1, carry)
    x[:3, 0] += 1
    one, another = unroll(core, carry, X, FIRST)[0], unroll(core, other, x, FIRST)[0]
    np.testing.assert_array_equal(one[3:, 0], another[3:, 0])
    assert (np.abs(one[:3, 0] - another[:3, 0]) > 1e-3).any(axis=-1).all()
    # Without a start the other memory still shows, in every step.
    assert (np.abs(one[:4, 1] - another[:4, 1]) > 1e-6).any(axis=-1).all()
    np.testing.assert_array_equal(one[:, 2], another[:, 2])


def test_an_episode_starts_from_the_initial_carry(core, carry):
    everywhere = np.ones(N, bool)
    cleared = step(core, carry, X[0], everywhere)
    assert_trees_close(cleared, step(core, core.initial_carry(N), X[0], ~everywhere), rtol=0)
    assert all((np.asarray(leaf) == 0).all() for leaf in jax.tree.leaves(core.initial_carry(N)))


U = np.float32(rng.normal(size=(T, N, H)))


@pytest.fixture(scope="module")
def derivatives(core, carry):
    """J v and J' u of the outputs by core, carry and inputs, as TRPO's Fisher products take them, and v."""
    inputs = (core, carry, X)
    v = jax.tree.map(lambda leaf: np.float32(rng.normal(size=leaf.shape)), inputs)

    @jax.jit
    def both(*inputs):
        _, backward = jax.vjp(lambda core, carry, x: core.unroll(carry, x, FIRST)[0], *inputs)
        return jax.linear_transpose(backward, U)(v)[0], backward(U)

    return *both(*inputs), v


def test_the_pulled_back_gradient_is_finite_differences_of_the_equations(core, carry, derivatives):
    leaves, structure = jax.tree.flatten(double((core, carry, X)))
    sizes = np.cumsum([leaf.size for leaf in leaves])[:-1]

    def oracle_loss(flat):
        parts = [part.reshape(leaf.shape) for part, leaf in zip(np.split(flat, sizes), leaves, strict=True)]
        return float((U * oracle_outputs(*jax.tree.unflatten(structure, parts), FIRST)).sum())

    expected = oracles.finite_difference_gradient(oracle_loss, np.concatenate([leaf.ravel() for leaf in leaves]))
    pulled = np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(derivatives[1])])
    np.testing.assert_allclose(pulled, expected, rtol=1e-4, atol=2e-5)


def test_the_pushed_forward_tangent_is_a_finite_difference_of_the_equations(core, carry, derivatives):
    pushed, _, v = derivatives
    inputs, step = double((core, carry, X)), 1e-5
    ahead, behind = (
        oracle_outputs(*jax.tree.map(lambda leaf, d, sign=sign: leaf + sign * step * d, inputs, v), FIRST)
        for sign in (1, -1)
    )
    np.testing.assert_allclose(pushed, (ahead - behind) / (2 * step), rtol=1e-4, atol=1e-5)


def test_sizes_by_hand():
    gru, lstm = (jax.eval_shape(lambda key, make=make: make(key, 5, 7), jax.random.key(0)) for make in CORES.values())
    # GRU: 3 gates of 5 * 7 + 7 * 7 weights and 7 biases, and one more bias. LSTM: 4 gates.
    assert sum(leaf.size for leaf in jax.tree.leaves(gru)) == 3 * (35 + 49 + 7) + 7 == 280
    assert sum(leaf.size for leaf in jax.tree.leaves(lstm)) == 4 * (35 + 49 + 7) == 364
    assert gru.hidden_size == lstm.hidden_size == 7


def test_fresh_weights_are_orthogonal_gate_by_gate():
    fresh = jax.jit(orthogonal_gru, static_argnums=(1, 2))(jax.random.key(0), F, H)
    recurrent = np.split(fresh.recurrent_weight, 3, axis=1)
    for block in recurrent:
        np.testing.assert_allclose(block @ block.T, np.eye(H), atol=1e-5)
    for block in np.split(fresh.input_weight, 3, axis=1):
        np.testing.assert_allclose(block @ block.T, np.eye(F), atol=1e-5)
    assert (np.abs(recurrent[0] - recurrent[1]) > 1e-3).any()
    assert not np.any(fresh.input_bias)
    assert not np.any(fresh.recurrent_bias)
    assert {leaf.dtype for leaf in jax.tree.leaves(fresh)} == {jnp.dtype("float32")}


def test_only_the_forget_gate_starts_with_a_bias():
    bias = jax.jit(lambda key: orthogonal_lstm(key, F, H).bias)(jax.random.key(0))
    np.testing.assert_array_equal(bias, [0.0] * H + [1.0] * H + [0.0] * 2 * H)
