"""Environments written in JAX, and such an environment seen through Gymnasium's interface.

A JAX environment is a hashable object with two pure functions of one environment; many are made of it by `jax.vmap`.
It does not reset itself: whoever steps it does, where an episode ends.
"""

from functools import lru_cache
from typing import Any, ClassVar, NamedTuple, Protocol, runtime_checkable

import gymnasium
import jax
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from inchworm import spaces
from inchworm.spaces import EnvSpec
from inchworm.types import ArrayTree, PRNGKey


class Step(NamedTuple):
    """What one step of one environment came to."""

    state: ArrayTree
    obs: ArrayTree
    """The true successor, at an episode's end too."""
    reward: Float[Array, ""]
    terminated: Bool[Array, ""]
    truncated: Bool[Array, ""]
    """A time limit is the environment's own business, and its clock part of its state."""


class Clocked(NamedTuple):
    """A state of physics and the steps since the episode's start, for environments whose time limit needs a clock."""

    physics: Any
    steps: Int[Array, ""]


@runtime_checkable
class JaxEnv(Protocol):
    """The interface of JAX environments.

    One that masks actions also has `action_mask(state) -> flags (num_mask_columns,)`, the choices allowed next.
    """

    @property
    def spec(self) -> EnvSpec: ...

    def reset(self, key: PRNGKey) -> tuple[ArrayTree, ArrayTree]:
        """State and observation at an episode's start."""
        ...

    def step(self, state: ArrayTree, action: ArrayTree, key: PRNGKey) -> Step:
        """One step with an action of the action space; the key is for what happens by chance."""
        ...


def masks_of(env: JaxEnv, state: ArrayTree) -> Bool[Array, " M"] | None:
    """The mask of an environment's next action, None if it has none."""
    action_mask = getattr(env, "action_mask", None)
    return None if action_mask is None else action_mask(state)


def first_key(env_seed: int) -> PRNGKey:
    """The random key of an environment, from its seed."""
    return jax.random.key(env_seed)


def reset_key(key: PRNGKey) -> PRNGKey:
    """The key of an environment's first reset."""
    return jax.random.fold_in(key, 2**32 - 1)


def step_keys(key: PRNGKey, steps: Int[Array, ""]) -> PRNGKey:
    """The keys (2,) of the step after so many, and of the reset after that, should it end the episode."""
    return jax.random.split(jax.random.fold_in(key, steps))


class GymnasiumView(gymnasium.Env):
    """A JAX environment as a Gymnasium one, step by step the same as in a compiled rollout of the same seed."""

    metadata: ClassVar[dict[str, Any]] = {"render_modes": []}  # pyright: ignore[reportIncompatibleVariableOverride]

    def __init__(self, env: JaxEnv) -> None:
        self._jax_env = env
        self.observation_space = to_gymnasium(env.spec.observation_space)
        self.action_space = to_gymnasium(env.spec.action_space)
        self._reset, self._step = _compiled(env)
        self._key: PRNGKey | None = None

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        if seed is not None or self._key is None:
            self._key = first_key(seed if seed is not None else int(self.np_random.integers(2**32)))
            self._steps, self._next_reset = 0, reset_key(self._key)
        self._state, obs, mask = self._reset(self._next_reset)
        return jax.tree.map(np.array, obs), self._info(mask)

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        step, mask, self._next_reset = self._step(self._key, np.int32(self._steps), self._state, action)
        self._steps, self._state = self._steps + 1, step.state
        obs = jax.tree.map(np.array, step.obs)
        return obs, float(step.reward), bool(step.terminated), bool(step.truncated), self._info(mask)

    def _info(self, mask: Any) -> dict[str, Any]:
        if mask is None:
            return {}
        flags, space = np.array(mask), self._jax_env.spec.action_space
        widths = [spaces.num_mask_columns(leaf) for leaf in spaces.leaves(space)]
        parts = np.split(flags, np.cumsum(widths)[:-1])
        return {"action_mask": spaces.unflatten(space, [part if len(part) else None for part in parts])}


@lru_cache(maxsize=16)
def _compiled(env: JaxEnv) -> tuple[Any, Any]:
    @jax.jit
    def reset(key: PRNGKey) -> Any:
        state, obs = env.reset(key)
        return state, obs, masks_of(env, state)

    @jax.jit
    def step(key: PRNGKey, steps: Any, state: ArrayTree, action: ArrayTree) -> Any:
        now, next_reset = step_keys(key, steps)
        after = env.step(state, action, now)
        return after, masks_of(env, after.state), next_reset

    return reset, step


def to_gymnasium(space: spaces.Space) -> gymnasium.Space:
    """Gymnasium's description of a space."""
    match space:
        case spaces.Box(shape, dtype, low, high):
            low, high = (np.broadcast_to(np.reshape(b, shape if np.ndim(b) else ()), shape) for b in (low, high))
            kind: Any = np.dtype(dtype).type
            return gymnasium.spaces.Box(low.astype(dtype), high.astype(dtype), shape, kind)
        case spaces.Discrete(n, start):
            return gymnasium.spaces.Discrete(n, start=start)
        case spaces.MultiDiscrete(nvec, shape, start):
            return gymnasium.spaces.MultiDiscrete(np.reshape(nvec, shape), start=np.reshape(start, shape))
        case spaces.MultiBinary(shape):
            return gymnasium.spaces.MultiBinary(shape)
        case spaces.Dict(parts):
            return gymnasium.spaces.Dict({name: to_gymnasium(part) for name, part in parts})
        case spaces.Tuple(parts):
            return gymnasium.spaces.Tuple([to_gymnasium(part) for part in parts])
