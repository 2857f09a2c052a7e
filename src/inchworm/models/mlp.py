"""Feed-forward networks.

A network is a pytree of its arrays with a `__call__` written against the namespace of its input, so that the same
code runs on JAX arrays and on NumPy arrays.
"""

import itertools
import math
from dataclasses import field

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from inchworm.numerics.tree import pytree
from inchworm.types import AnyArray, PRNGKey

ACTIVATIONS = ("tanh", "relu")


@pytree
class MLP:
    """Linear layers with an activation between them; no layers at all leave the input as it is."""

    weights: tuple[AnyArray, ...]
    """One (inputs, outputs) matrix a layer."""
    biases: tuple[AnyArray, ...]
    activation: str = field(metadata={"static": True})
    """One of `ACTIVATIONS`."""
    activate_last: bool = field(default=False, metadata={"static": True})
    """True if the activation also follows the last layer: the outputs are then features for other layers."""

    def __call__(self, x: Float[AnyArray, "*batch inputs"]) -> Float[AnyArray, "*batch outputs"]:
        xp = x.__array_namespace__()
        # `dot` because between environment steps it costs NumPy half of what `@` does on a batch of one.
        last = len(self.weights) - (0 if self.activate_last else 1)
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
    outputs: int | None,
    activation: str,
    last_layer_scale: float,
) -> MLP:
    """An MLP with orthogonal weights and zero biases.

    Hidden layers have gain sqrt(2), the last `last_layer_scale`. Not in arXiv:1707.06347: openai/baselines ppo2.
    With `outputs` None there are hidden layers only, all followed by the activation.
    """
    sizes = (inputs, *hidden_sizes, *(() if outputs is None else (outputs,)))
    shapes = list(itertools.pairwise(sizes))
    if not shapes:
        return MLP((), (), activation, True)
    gains = [math.sqrt(2.0)] * len(hidden_sizes) + ([] if outputs is None else [last_layer_scale])
    # Drawn at once, because each draw of its own costs most of a second of compilation.
    normal = jax.random.normal(key, (sum(fan_in * fan_out for fan_in, fan_out in shapes),))
    parts = jnp.split(normal, np.cumsum([fan_in * fan_out for fan_in, fan_out in shapes])[:-1])
    weights = tuple(
        gain * orthogonal(part.reshape(shape)) for part, shape, gain in zip(parts, shapes, gains, strict=True)
    )
    return MLP(weights, tuple(jnp.zeros(size, jnp.float32) for size in sizes[1:]), activation, outputs is None)


def orthogonal(normal: Float[Array, "m n"]) -> Float[Array, "m n"]:
    """A uniformly distributed matrix of orthonormal columns, or rows if there are more columns than rows."""
    tall = normal if normal.shape[0] >= normal.shape[1] else normal.T
    q, r = jnp.linalg.qr(tall)
    # The signs make the distribution uniform (Mezzadri 2007, "How to generate random matrices").
    q = q * jnp.sign(jnp.diagonal(r))
    return q if tall is normal else q.T
