"""From a network's outputs to a distribution of actions: one head for each kind of action space."""

from dataclasses import field, replace

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float

from inchworm import spaces
from inchworm.errors import UnsupportedSpaceError
from inchworm.models.settings import ModelSettings
from inchworm.numerics.tree import pytree
from inchworm.rl.distributions import (
    Bernoulli,
    Beta,
    Categorical,
    DiagonalGaussian,
    MultiCategorical,
    Product,
    TanhGaussian,
)
from inchworm.rl.schedules import Schedule
from inchworm.types import AnyArray, ArrayTree, PRNGKey

LOG_STD_RANGE = (-20.0, 2.0)
"""A log-std that is a network's output is clipped to this, as in soft actor-critic (arXiv:1812.05905)."""

Mask = Bool[AnyArray, "*batch M"] | None


@pytree
class CategoricalHead:
    """Outputs are the logits of one choice out of n."""

    n: int = field(metadata={"static": True})

    @property
    def num_outputs(self) -> int:
        return self.n

    def __call__(self, outputs: Float[AnyArray, "*batch n"], mask: Mask) -> Categorical:
        return Categorical(outputs) if mask is None else Categorical.masked(outputs, mask)

    def draw_noise(self, key: PRNGKey, shape: tuple[int, ...]) -> ArrayTree:
        """Noise for a block of actions of the given leading shape."""
        return Categorical.draw_noise(key, (*shape, self.n))


@pytree
class MultiCategoricalHead:
    """Outputs are the logits of several choices, side by side."""

    nvec: tuple[int, ...] = field(metadata={"static": True})

    @property
    def num_outputs(self) -> int:
        return sum(self.nvec)

    def __call__(self, outputs: Float[AnyArray, "*batch n"], mask: Mask) -> MultiCategorical:
        if mask is None:
            return MultiCategorical(outputs, self.nvec)
        return MultiCategorical.masked(outputs, mask, self.nvec)

    def draw_noise(self, key: PRNGKey, shape: tuple[int, ...]) -> ArrayTree:
        """Noise for a block of actions of the given leading shape."""
        return MultiCategorical.draw_noise(key, (*shape, self.num_outputs))


@pytree
class BernoulliHead:
    """Outputs are the logits of n bits."""

    n: int = field(metadata={"static": True})

    @property
    def num_outputs(self) -> int:
        return self.n

    def __call__(self, outputs: Float[AnyArray, "*batch n"], mask: Mask) -> Bernoulli:
        return Bernoulli(outputs) if mask is None else Bernoulli.masked(outputs, mask)

    def draw_noise(self, key: PRNGKey, shape: tuple[int, ...]) -> ArrayTree:
        """Noise for a block of actions of the given leading shape."""
        return Bernoulli.draw_noise(key, (*shape, self.n))


@pytree
class GaussianHead:
    """Outputs are the means, and the logarithms of the standard deviations if these depend on the state."""

    size: int = field(metadata={"static": True})
    log_std: Float[AnyArray, " A"] | None
    """One vector for all states, or None if it is among the outputs."""
    learned: bool = field(metadata={"static": True})
    """False if `log_std` follows a schedule, which then moves it between iterations."""
    squashed: bool = field(metadata={"static": True})
    """True for a Gaussian seen through tanh."""

    @property
    def num_outputs(self) -> int:
        return self.size if self.log_std is not None else 2 * self.size

    def __call__(self, outputs: Float[AnyArray, "*batch n"], mask: Mask) -> DiagonalGaussian | TanhGaussian:
        kind = TanhGaussian if self.squashed else DiagonalGaussian
        if self.log_std is not None:
            frozen = not self.learned and isinstance(self.log_std, jax.Array)
            return kind(outputs, jax.lax.stop_gradient(self.log_std) if frozen else self.log_std)
        xp = outputs.__array_namespace__()
        return kind(outputs[..., : self.size], xp.clip(outputs[..., self.size :], *LOG_STD_RANGE))

    def draw_noise(self, key: PRNGKey, shape: tuple[int, ...]) -> ArrayTree:
        """Noise for a block of actions of the given leading shape."""
        return DiagonalGaussian.draw_noise(key, (*shape, self.size))


@pytree
class BetaHead:
    """Outputs x, y give alpha = 1 + softplus(x) and beta = 1 + softplus(y): densities with one hump."""

    size: int = field(metadata={"static": True})

    @property
    def num_outputs(self) -> int:
        return 2 * self.size

    def __call__(self, outputs: Float[AnyArray, "*batch n"], mask: Mask) -> Beta:
        above_one = 1.0 + jax.nn.softplus(outputs)
        return Beta(above_one[..., : self.size], above_one[..., self.size :])

    def draw_noise(self, key: PRNGKey, shape: tuple[int, ...]) -> ArrayTree:
        """Noise for a block of actions of the given leading shape."""
        return Beta.draw_noise(key, (*shape, self.size))


@pytree
class ProductHead:
    """Outputs lie side by side, one stretch for each leaf of a Dict or Tuple space."""

    parts: tuple["LeafHead", ...]
    space: spaces.Dict | spaces.Tuple = field(metadata={"static": True})

    @property
    def num_outputs(self) -> int:
        return sum(part.num_outputs for part in self.parts)

    def __call__(self, outputs: Float[AnyArray, "*batch n"], mask: Mask) -> Product:
        columns = [spaces.num_mask_columns(leaf) for leaf in spaces.leaves(self.space)]
        stretches = _split(outputs, [part.num_outputs for part in self.parts])
        masks = [None] * len(self.parts) if mask is None else _split(mask, columns)
        return Product(
            tuple(part(stretch, m) for part, stretch, m in zip(self.parts, stretches, masks, strict=True)), self.space
        )

    def draw_noise(self, key: PRNGKey, shape: tuple[int, ...]) -> ArrayTree:
        """Noise for a block of actions of the given leading shape."""
        keys = jax.random.split(key, len(self.parts))
        return tuple(part.draw_noise(k, shape) for part, k in zip(self.parts, keys, strict=True))


LeafHead = CategoricalHead | MultiCategoricalHead | BernoulliHead | GaussianHead | BetaHead
Head = LeafHead | ProductHead


def _split(array: AnyArray, widths: list[int]) -> list[AnyArray]:
    ends = np.cumsum(widths).tolist()
    return [array[..., end - width : end] for end, width in zip(ends, widths, strict=True)]


def make_head(space: spaces.Space, settings: ModelSettings) -> Head:
    """The head for an action space.

    Raises:
        UnsupportedSpaceError: there is none.
    """
    log_std = settings.log_std

    def of_leaf(leaf: spaces.Leaf) -> LeafHead:
        match leaf:
            case spaces.Discrete(n):
                return CategoricalHead(n)
            case spaces.MultiDiscrete(nvec):
                return MultiCategoricalHead(nvec)
            case spaces.MultiBinary():
                return BernoulliHead(leaf.size)
            case spaces.Box(dtype=dtype, size=size) if np.issubdtype(np.dtype(dtype), np.floating):
                spaces.check_squash(leaf, settings.squash)
                if settings.action_distribution == "beta":
                    return BetaHead(size)
                squashed = settings.action_distribution == "tanh_gaussian"
                if log_std == "state":
                    return GaussianHead(size, None, True, squashed)
                start = log_std.start if isinstance(log_std, Schedule) else 0.0
                array = jnp.full(size, start, jnp.float32)
                return GaussianHead(size, array, not isinstance(log_std, Schedule), squashed)
            case _:
                raise UnsupportedSpaceError(
                    "action_space",
                    repr(leaf),
                    "has no policy",
                    "Actions may be Discrete, MultiDiscrete, MultiBinary, a Box of floats, or a Dict or Tuple of "
                    "these; turn others into these with a gymnasium.ActionWrapper.",
                )

    if isinstance(space, spaces.Dict | spaces.Tuple):
        return ProductHead(tuple(of_leaf(leaf) for leaf in spaces.leaves(space)), space)
    return of_leaf(space)


def follow_schedule(head: Head, log_std: Float[AnyArray, ""]) -> Head:
    """The head with every log-std that follows a schedule set to this."""

    def follow(part: LeafHead) -> LeafHead:
        if isinstance(part, GaussianHead) and not part.learned:
            return replace(part, log_std=jnp.full(part.size, log_std, jnp.float32))
        return part

    if isinstance(head, ProductHead):
        return replace(head, parts=tuple(map(follow, head.parts)))
    return follow(head)
