"""Action distributions.

Each is a small pytree of parameters with `sample_from(noise)`, `sample(key)`, `log_prob(action)`, `entropy()`,
`mode()` and `kl(other)`, written against the namespace of its own arrays, so that one definition serves JAX
(updating, compiled acting) and NumPy (acting between the steps of a Python environment). Only `Beta` needs JAX.

Sampling is split in two: `draw_noise` takes a random key to a block of noise, `sample_from` takes noise to an
action. A rollout's noise is drawn at once, by the same call on every path.

    Categorical         one choice out of n
    MultiCategorical    K choices, each out of a number of its own
    Bernoulli           n bits
    DiagonalGaussian    a vector, each element normal
    TanhGaussian        a vector in (-1, 1), each element tanh of a normal one
    Beta                a vector in (0, 1), each element beta
    Product             one of these for each leaf of a Dict or Tuple space
"""

from typing import Any, Protocol, runtime_checkable

from jaxtyping import Float

from inchworm.rl.distributions.bernoulli import Bernoulli
from inchworm.rl.distributions.beta import Beta
from inchworm.rl.distributions.categorical import Categorical
from inchworm.rl.distributions.diagonal_gaussian import DiagonalGaussian
from inchworm.rl.distributions.multi_categorical import MultiCategorical
from inchworm.rl.distributions.product import Product
from inchworm.rl.distributions.rounding import BFLOAT16, FLOAT32
from inchworm.rl.distributions.tanh_gaussian import TanhGaussian
from inchworm.types import AnyArray, ArrayTree, PRNGKey


@runtime_checkable
class Distribution(Protocol):
    """What every distribution offers, for a batch of any leading axes."""

    def sample_from(self, noise: Any) -> ArrayTree:
        """A sample, from noise that `draw_noise` gave."""
        ...

    def sample(self, key: PRNGKey) -> ArrayTree:
        """A sample."""
        ...

    def log_prob(self, action: Any) -> Float[AnyArray, "*batch"]:
        """Log of the probability, or of the density, of an action."""
        ...

    def entropy(self) -> Float[AnyArray, "*batch"]:
        """In nats."""
        ...

    def mode(self) -> ArrayTree:
        """What a deterministic policy does."""
        ...

    def kl(self, other: Any) -> Float[AnyArray, "*batch"]:
        """KL(self‖other) in nats, with `other` of the same kind."""
        ...

    def log_prob_tolerance(self, rounding: float = FLOAT32) -> Any:
        """How far two evaluations of `log_prob` may lie apart through the rounding of a network alone."""
        ...


__all__ = [
    "BFLOAT16",
    "FLOAT32",
    "Bernoulli",
    "Beta",
    "Categorical",
    "DiagonalGaussian",
    "Distribution",
    "MultiCategorical",
    "Product",
    "TanhGaussian",
]
