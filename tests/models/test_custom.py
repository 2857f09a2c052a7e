"""Networks of the user's own: what of them is trained, what stays as it is, and what is refused."""

import re
from dataclasses import dataclass, field, replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import inchworm as iw
from inchworm import spaces
from inchworm.errors import ConfigError
from inchworm.models.actor_critic import make_model
from inchworm.models.settings import ModelSettings
from inchworm.numerics.tree import to_arrays
from inchworm.spaces import EnvSpec

SPEC = EnvSpec(spaces.Box((3,), "float32", -1.0, 1.0), spaces.Discrete(2))
SMALL = ModelSettings(hidden_sizes=())
OBS = np.float32([[1, 2, 3], [4, 5, 6]])
POLICIES = Path(__file__).resolve().parents[2] / "docs" / "algorithms" / "policies.md"


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Layer:
    """A layer that holds its activation, a number and a flag as leaves beside its weight, as other libraries' do."""

    activation: object
    weight: object
    scale: object = 2.0
    bare: object = False
    label: str = field(default="layer", metadata={"static": True})

    def __call__(self, obs):
        return obs if self.bare else self.scale * self.activation(obs @ self.weight)


def layer(key, space):
    return Layer(jax.nn.relu, jax.random.normal(key, (3, 5)))


@pytest.fixture(scope="module")
def model():
    return jax.jit(lambda key: make_model(key, SPEC, SMALL, layer))(jax.random.key(0))


def test_arrays_are_parameters_and_functions_numbers_and_flags_stay_what_they_are(model):
    network = model.policy.network.encoder
    assert {name: array.shape for name, array in to_arrays(network).items()} == {"network.weight": (3, 5)}
    outputs = model.outputs((None,), OBS)
    layers, weight = model.policy.network.layers, np.asarray(network.network.weight)
    features = 2.0 * np.maximum(OBS @ weight, 0)
    np.testing.assert_allclose(outputs, features @ layers.weights[0] + layers.biases[0], rtol=1e-4, atol=1e-4)


def test_parameters_beside_a_function_have_gradients(model):
    gradient = jax.jit(jax.grad(lambda model: model.outputs((None,), OBS).sum()))(model)
    assert np.any(gradient.policy.network.encoder.network.weight)


def test_a_network_of_arrays_alone_keeps_its_structure():
    arrays = {"scale": jnp.ones(3)}

    @jax.tree_util.register_pytree_node_class
    class Plain(dict):
        def tree_flatten(self):
            return (self["scale"],), None

        @classmethod
        def tree_unflatten(cls, _, children):
            return cls(scale=children[0])

        def __call__(self, obs):
            return obs * self["scale"]

    encoder = make_model(jax.random.key(0), SPEC, SMALL, lambda key, space: Plain(arrays)).policy.network.encoder
    assert isinstance(encoder.network, Plain)
    assert list(to_arrays(encoder)) == ["network.0"]


def custom(leaf):
    return lambda key, space: replace(layer(key, space), scale=leaf())


REFUSED = {
    "whole numbers": (custom(lambda: jnp.arange(5)), r"^network = scale: .*array of int32", "static"),
    "flags": (custom(lambda: jnp.ones(5, bool)), r"^network = scale: .*array of bool", "static"),
    "random key": (lambda key, space: replace(layer(key, space), scale=key), r"^network = scale: .*key<fry>", "static"),
    "unhashable": (custom(lambda: {1, 2}), r"^network = scale: .*set.*cannot be hashed", "static"),
}


@pytest.mark.parametrize(("network", "problem", "fix"), REFUSED.values(), ids=REFUSED.keys())
def test_a_leaf_that_can_be_neither_trained_nor_kept_is_named(network, problem, fix):
    with pytest.raises(ConfigError, match=problem) as error:
        make_model(jax.random.key(0), SPEC, SMALL, network)
    assert fix in error.value.fix


def test_a_function_that_closes_over_its_parameters_is_told_that_they_would_not_be_trained():
    def closed(key, space):
        weight = jax.random.normal(key, (3, 5))
        return lambda obs: obs @ weight

    def closed_over_two(key, space):
        weight, bias = jax.random.normal(key, (3, 5)), jax.random.normal(key, (5,))
        return lambda obs: obs @ weight + bias

    for network, told in ((closed, "1 array"), (closed_over_two, "2 arrays")):
        with pytest.raises(ConfigError, match=rf"^network = .*{told} that it was.*not among its leaves.*Partial"):
            jax.jit(lambda key, network=network: make_model(key, SPEC, SMALL, network))(jax.random.key(0))


@pytest.mark.parametrize("answer", [lambda obs: obs[0], lambda obs: jnp.concatenate([obs, obs]), lambda obs: "left"])
def test_what_a_network_returns_has_a_row_for_each_observation(answer):
    with pytest.raises(ConfigError, match=r"^network = "):
        make_model(jax.random.key(0), SPEC, SMALL, lambda key, space: answer)


def test_a_plain_function_without_parameters_is_a_network():
    network = jax.jit(lambda key: make_model(key, SPEC, SMALL, lambda key, space: lambda obs: obs[:, :2]))
    assert network(jax.random.key(0)).policy.network.layers.weights[0].shape == (2, 2)


IMPORTS = {"equinox": "import equinox", "flax.linen": "import flax.linen", "flax.nnx": "from flax import nnx"}


@pytest.mark.parametrize("algorithm", ["ppo", "trpo"])
@pytest.mark.parametrize("package", IMPORTS)
def test_a_network_of_another_library_is_given_as_the_documentation_shows(package, algorithm, tmp_path):
    pytest.importorskip(package)
    blocks = re.findall(r"```python\n(.*?)```", POLICIES.read_text(encoding="utf-8"), flags=re.DOTALL)
    (example,) = [block for block in blocks if IMPORTS[package] in block]
    names: dict = {"__name__": "example"}
    exec(compile(example, "policies.md", "exec"), names)
    quiet = {"evaluation_episodes": 1, "progress": False, "network": names["make_network"]}

    def train(**more):
        settings = {"num_envs": 2, "horizon": 16, "minibatch_size": 32, "total_steps": 64}
        return iw.train("CartPole-v1", algorithm, out=tmp_path, **settings, **quiet, **more)

    half, whole = train(name="half", on_iteration=lambda report: True), train(name="whole")
    first, last = (to_arrays(run.policy.model.policy.network.encoder) for run in (half, whole))
    assert len(first) == 4
    assert all(np.any(first[name] != last[name]) for name in first), "two weights and two biases are trained"
    resumed = iw.resume(half.folder, **quiet)
    assert resumed.summary["parameters_sha256"] == whole.summary["parameters_sha256"]
    loaded, obs = iw.load(whole.folder, network=names["make_network"]), np.float32([[0.1, 0.2, -0.1, 0.0]])
    assert loaded.policy.act(obs, deterministic=True) == whole.policy.act(obs, deterministic=True)
