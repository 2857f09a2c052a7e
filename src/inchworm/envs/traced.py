"""What compiled rollouts need of environments: N of them, stepped side by side inside the compiled code."""

from contextlib import AbstractContextManager
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from inchworm import spaces
from inchworm.envs.jax_env import JaxEnv, masks_of
from inchworm.spaces import EnvSpec
from inchworm.types import ArrayTree, PRNGKey


class Transition(NamedTuple):
    """What one step of N environments came to."""

    next_obs: ArrayTree
    """The true successors (N, ...), at an episode's end too."""
    reward: Float[Array, " N"]
    terminated: Bool[Array, " N"]
    truncated: Bool[Array, " N"]
    """Never where `terminated` is true."""
    valid: Bool[Array, " N"]
    """False where the step was none, but only started an episode anew; the fields above then mean nothing."""
    obs: ArrayTree
    """What the policy sees next (N, ...): after an end the first observation of the next episode."""
    first: Bool[Array, " N"]
    """True where that starts an episode."""
    over: Bool[Array, " N"]
    """True where an episode ended whose return counts. A lost life may end one for the returns, but not for this."""


class TracedEnvs(Protocol):
    """N environments of one specification as pure functions of their state."""

    spec: EnvSpec

    def step(self, state: ArrayTree, action: ArrayTree) -> tuple[ArrayTree, Transition]:
        """One step with actions (N, ...) of the action space."""
        ...

    def mask(self, state: ArrayTree) -> Bool[Array, "N M"] | None:
        """The choices allowed next, None without masks."""
        ...


class StartedEnvs(TracedEnvs, Protocol):
    """Environments outside JAX that compiled code steps."""

    start: tuple[ArrayTree, ArrayTree]
    """Their state and first observations."""

    def scope(self) -> AbstractContextManager[Any]:
        """In which they are traced, and what was compiled of them is called."""
        ...

    def close(self) -> None:
        """Closes the environments."""
        ...


class Copies:
    """N copies of a JAX environment, each started anew in the step that ends its episode."""

    def __init__(self, env: JaxEnv) -> None:
        self.spec = env.spec
        self._env = env

    def start(self, keys: PRNGKey) -> tuple[ArrayTree, ArrayTree]:
        """State and first observations of as many environments as there are keys."""
        return self._reset(keys)

    def step(self, state: ArrayTree, action: ArrayTree) -> tuple[ArrayTree, Transition]:
        now, keys = state
        keys = jax.vmap(jax.random.split)(keys)
        step = jax.vmap(self._env.step)(now, action, keys[:, 1])
        next_obs = self._stored(step.obs)
        terminated = step.terminated.astype(bool)
        done = terminated | step.truncated.astype(bool)
        (fresh, fresh_keys), fresh_obs = self._reset(keys[:, 0])
        after = _where(done, fresh, step.state), jnp.where(done, fresh_keys, keys[:, 0])
        return after, Transition(
            next_obs=next_obs,
            reward=step.reward.astype(jnp.float32),
            terminated=terminated,
            truncated=done & ~terminated,
            valid=jnp.ones_like(done),
            obs=_where(done, fresh_obs, next_obs),
            first=done,
            over=done,
        )

    def mask(self, state: ArrayTree) -> Bool[Array, "N M"] | None:
        return jax.vmap(lambda now: masks_of(self._env, now))(state[0])

    def _reset(self, keys: PRNGKey) -> tuple[ArrayTree, ArrayTree]:
        keys = jax.vmap(jax.random.split)(keys)
        state, obs = jax.vmap(self._env.reset)(keys[:, 1])
        return (state, keys[:, 0]), self._stored(obs)

    def _stored(self, obs: ArrayTree) -> ArrayTree:
        return stored(self.spec.observation_space, obs)


def stored(space: spaces.Space, obs: ArrayTree) -> ArrayTree:
    """Observations in the dtypes in which rollouts keep them."""
    leaves = zip(spaces.leaves(space), spaces.flatten(space, obs), strict=True)
    return spaces.unflatten(space, [leaf.astype(spaces.storage_dtype(kind)) for kind, leaf in leaves])


def _where(condition: Bool[Array, " N"], if_true: ArrayTree, if_false: ArrayTree) -> ArrayTree:
    def choose(a: Array, b: Array) -> Array:
        return jnp.where(condition.reshape(condition.shape + (1,) * (a.ndim - 1)), a, b)

    return jax.tree.map(choose, if_true, if_false)
