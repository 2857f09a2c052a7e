"""Action distributions.

Each is a small pytree of parameters with `sample_from(noise)`, `sample(key)`, `log_prob(action)`, `entropy()`,
`mode()` and `kl(other)`, written against the namespace of its own arrays, so that one definition serves JAX
(updating, compiled acting) and NumPy (acting between the steps of a Python environment).

Sampling is split in two: `draw_noise` takes a random key to a block of noise, `sample_from` takes noise to an
action. A rollout's noise is drawn at once, by the same call on every path.
"""

from inchworm.rl.distributions.categorical import Categorical
from inchworm.rl.distributions.diagonal_gaussian import DiagonalGaussian

Distribution = Categorical | DiagonalGaussian
__all__ = ["Categorical", "DiagonalGaussian", "Distribution"]
