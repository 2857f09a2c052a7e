"""Feed-forward networks.

A network is a pytree of its arrays with a `__call__` written against the namespace of its input, so that the same
code runs on JAX arrays and on NumPy arrays.
"""

import math
from dataclasses import dataclass, field

import jax
from jaxtyping import Float

from inchworm.types import AnyArray, PRNGKey

ACTIVATIONS = ("tanh", "relu")


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class MLP:
    """Linear layers with an activation between them, none after the last."""

    weights: tuple[AnyArray, ...]
    """One (inputs, outputs) matrix a layer."""
    biases: tuple[AnyArray, ...]
    activation: str = field(metadata={"static": True})
    """One of `ACTIVATIONS`."""

    def __call__(self, x: Float[AnyArray, "*batch inputs"]) -> Float[AnyArray, "*batch outputs"]:
        xp = x.__array_namespace__()
        # `dot` because between environment steps it costs NumPy half of what `@` does on a batch of one.
        last = len(self.weights) - 1
        for index, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            x = xp.dot(x, weight)
            x += bias
            if index < last:
                x = xp.tanh(x) if self.activation == "tanh" else xp.maximum(x, 0.0)
        return x


def orthogonal_mlp(
    key: PRNGKey,
    inputs: int,
    hidden_sizes: tuple[int, ...],
    outputs: int,
    activation: str,
    last_layer_scale: float,
) -> MLP:
    """An MLP with orthogonal weights and zero biases.

    Hidden layers have gain sqrt(2), the last `last_layer_scale`. Not in arXiv:1707.06347: openai/baselines ppo2.
    """
    sizes = (inputs, *hidden_sizes, outputs)
    gains = (math.sqrt(2.0),) * len(hidden_sizes) + (last_layer_scale,)
    keys = jax.random.split(key, len(gains))
    weights = tuple(
        jax.nn.initializers.orthogonal(gain)(layer_key, (fan_in, fan_out), "float32")
        for layer_key, gain, fan_in, fan_out in zip(keys, gains, sizes[:-1], sizes[1:], strict=True)
    )
    return MLP(weights, tuple(jax.numpy.zeros(size, "float32") for size in sizes[1:]), activation)
