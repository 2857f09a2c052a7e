"""Several independent choices, each out of a number of its own."""

from dataclasses import field
from typing import Self

import numpy as np
from jaxtyping import Bool, Float, Int

from inchworm.numerics.tree import pytree
from inchworm.rl.distributions.categorical import MASKED_LOGIT, Categorical
from inchworm.rl.distributions.rounding import FLOAT32
from inchworm.types import AnyArray, PRNGKey


@pytree
class MultiCategorical:
    """p(a) = prod_k softmax(logits of choice k)_(a_k), where choice k is out of nvec_k.

    The logits of all choices lie side by side, sum_k nvec_k in all; an action is K integers counted from zero.
    """

    logits: Float[AnyArray, "*batch options"]
    nvec: tuple[int, ...] = field(metadata={"static": True})

    @classmethod
    def masked(
        cls, logits: Float[AnyArray, "*batch options"], mask: Bool[AnyArray, "*batch options"], nvec: tuple[int, ...]
    ) -> Self:
        """The distribution over the allowed options only, those whose mask is true."""
        return cls(logits.__array_namespace__().where(mask, logits, MASKED_LOGIT), nvec)

    @staticmethod
    def draw_noise(key: PRNGKey, shape: tuple[int, ...]) -> Float[AnyArray, "*batch options"]:
        """Standard Gumbel noise of shape (*batch, sum nvec)."""
        return Categorical.draw_noise(key, shape)

    def sample_from(self, noise: Float[AnyArray, "*batch options"]) -> Int[AnyArray, "*batch K"]:
        """The Gumbel-max trick for each choice."""
        return self._choices().sample_from(self._aligned(noise))

    def sample(self, key: PRNGKey) -> Int[AnyArray, "*batch K"]:
        """A sample for each distribution of the batch."""
        return self.sample_from(self.draw_noise(key, self.logits.shape))

    def log_prob(self, action: Int[AnyArray, "*batch K"]) -> Float[AnyArray, "*batch"]:
        """log p(action), summed over the choices."""
        return self._choices().log_prob(action).sum(axis=-1)

    def entropy(self) -> Float[AnyArray, "*batch"]:
        """H, summed over the choices, in nats."""
        return self._choices().entropy().sum(axis=-1)

    def mode(self) -> Int[AnyArray, "*batch K"]:
        """The most likely option of each choice."""
        return self._choices().mode()

    def kl(self, other: "MultiCategorical") -> Float[AnyArray, "*batch"]:
        """KL(self‖other), summed over the choices, in nats."""
        return self._choices().kl(other._choices()).sum(axis=-1)

    def log_prob_tolerance(self, rounding: float = FLOAT32) -> Float[AnyArray, ""]:
        """How far two evaluations of `log_prob` may lie apart through the rounding of a network alone.

        A single choice's tolerance, times their number.
        """
        return len(self.nvec) * Categorical(self.logits).log_prob_tolerance(rounding)

    def _choices(self) -> Categorical:
        """The choices as one batch (*batch, K) of choices out of the largest n."""
        return Categorical(self._aligned(self.logits))

    def _aligned(self, options: Float[AnyArray, "*batch options"]) -> Float[AnyArray, "*batch K largest"]:
        """The options with a row for each choice; shorter rows are filled up as if with forbidden ones."""
        largest = max(self.nvec)
        if min(self.nvec) == largest:
            return options.reshape((*options.shape[:-1], len(self.nvec), largest))
        xp = options.__array_namespace__()
        position, length = np.arange(largest), np.array(self.nvec)[:, None]
        start = np.cumsum(length, axis=0) - length
        column = np.where(position < length, start + position, 0)
        return xp.where(position < length, xp.take(options, column, axis=-1), MASKED_LOGIT)
