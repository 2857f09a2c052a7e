"""Networks that compute in bfloat16 keep everything around them in float32."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import inchworm as iw
from inchworm.models.actor_critic import make_model
from inchworm.models.settings import ModelSettings
from inchworm.rl.distributions import BFLOAT16
from inchworm.spaces import Box, Discrete, EnvSpec, MultiBinary, MultiDiscrete

VECTOR = Box((3,), "float32", -1.0, 1.0)
IMAGE = Box((20, 20, 1), "uint8", 0.0, 255.0)
CASES = {
    "layers": (VECTOR, {}),
    "shared": (VECTOR, {"shared_trunk": True}),
    "GRU": (VECTOR, {"recurrent": "gru", "recurrent_size": 8}),
    "LSTM": (VECTOR, {"recurrent": "lstm", "recurrent_size": 8}),
    "image": (IMAGE, {"image_network": "small"}),
}


def made(spec, settings, dtype):
    settings = ModelSettings(hidden_sizes=(8,), compute_dtype=dtype, **settings)
    return jax.jit(lambda key: make_model(key, spec, settings))(jax.random.key(0))


@pytest.mark.parametrize("case", CASES)
def test_products_are_in_bfloat16_and_what_surrounds_them_in_float32(case):
    space, settings = CASES[case]
    spec = EnvSpec(space, Discrete(4))
    wide, narrow = (made(spec, settings, dtype) for dtype in ("float32", "bfloat16"))
    rng = np.random.default_rng(0)
    drawn = rng.uniform(0, 255, (5, 2, *space.shape)) if space is IMAGE else rng.normal(size=(5, 2, 3))
    obs = jnp.asarray(drawn, space.dtype)
    first, carry = np.zeros((5, 2), bool), narrow.initial_carry(2)

    def outputs(model, obs):
        distribution, value, carries = model.unroll((None,), obs, first, None, carry)
        return distribution.log_prob(jnp.zeros((5, 2), jnp.int32)), value, carries

    by_narrow, by_wide = (jax.jit(outputs)(model, obs) for model in (narrow, wide))
    for ours, theirs in zip(*map(jax.tree.leaves, (by_narrow, by_wide)), strict=True):
        assert ours.dtype == jnp.float32
        np.testing.assert_allclose(ours, theirs, atol=3e-2)
    assert any((ours != theirs).any() for ours, theirs in zip(*map(jax.tree.leaves, (by_narrow, by_wide)), strict=True))
    products = [line for line in str(jax.make_jaxpr(outputs)(narrow, obs)).splitlines() if "dot_general" in line]
    assert any(":bf16[" in line for line in products)
    gradient = jax.jit(jax.grad(lambda model: jnp.sum(outputs(model, obs)[1])))(narrow)
    assert {leaf.dtype for leaf in jax.tree.leaves(gradient)} == {jnp.dtype("float32")}


def test_a_policy_that_computes_in_bfloat16_trains(tmp_path):
    run = iw.train(
        "CartPole-v1",
        iw.PPO(num_envs=2, horizon=64, minibatch_size=32, num_epochs=2, hidden_sizes=(8,), compute_dtype="bfloat16"),
        total_steps=512,
        out=tmp_path,
        progress=False,
        evaluation_episodes=1,
    )
    rows = run.metrics()
    assert all(2e-4 < row["policy/log_ratio_tolerance"] < 2e-2 for row in rows)
    assert run.summary["skipped_updates"] == 0
    assert {leaf.dtype for leaf in jax.tree.leaves(run.policy.model)} == {jnp.dtype("float32")}


ACTIONS = Box((3,), "float32", -1.0, 1.0)
HEADS = {
    "gaussian": (ACTIONS, {"log_std": -2.5}),
    "gaussian of state": (ACTIONS, {"log_std": "state"}),
    "tanh-gaussian": (ACTIONS, {"action_distribution": "tanh_gaussian", "log_std": -1.0}),
    "beta": (ACTIONS, {"action_distribution": "beta"}),
    "choice": (Discrete(6), {}),
    "choices": (MultiDiscrete((2, 3), (2,), (0, 0), "int64"), {}),
    "bits": (MultiBinary((3,)), {}),
}


@pytest.mark.parametrize("width", [1.0, 10.0])
@pytest.mark.parametrize("kind", HEADS)
def test_the_tolerance_allows_wide_outputs_rounded_to_a_neighbour(kind, width):
    space, settings = HEADS[kind]
    model = made(EnvSpec(VECTOR, space), settings, "bfloat16")
    rng = np.random.default_rng(0)
    layers = model.policy.network.layers
    # Wide, where a fresh policy's are nearly zero.
    weights = tuple(np.float32(rng.normal(size=weight.shape)) for weight in layers.weights)
    layers = replace(layers, weights=(*weights[:-1], np.float32(width) * weights[-1]))
    model = replace(model, policy=replace(model.policy, network=replace(model.policy.network, layers=layers)))
    obs, rows = np.float32(rng.normal(size=(500, 3))), (500,)
    toward = np.where(rng.random((500, layers.weights[-1].shape[1])) < 0.5, -1.0, 1.0) * np.inf

    def drift(model, obs, toward):
        outputs = model.outputs((None,), obs)
        neighbour = jnp.nextafter(outputs.astype(jnp.bfloat16), toward.astype(jnp.bfloat16)).astype(jnp.float32)
        acted, updated = model.head(outputs, None), model.head(neighbour, None)
        action = acted.sample_from(model.head.draw_noise(jax.random.key(0), rows))
        apart = jnp.abs(updated.log_prob(action) - acted.log_prob(action))
        return jnp.max(apart), updated.log_prob_tolerance(BFLOAT16), updated.log_prob_tolerance()

    apart, tolerance, of_float32 = jax.jit(drift)(model, obs, toward)
    assert of_float32 < apart <= tolerance
    # Not so wide that it would allow anything.
    assert tolerance < 100 * apart
