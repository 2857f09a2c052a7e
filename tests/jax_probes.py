"""JAX environments with known answers. `GymnasiumView` shows them to the host loop."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from inchworm import spaces
from inchworm.envs.jax_env import Step
from inchworm.spaces import Box, Dict, Discrete, EnvSpec, MultiBinary, MultiDiscrete

UNIT_BOX = Box((1,), "float32", -1.0, 1.0)
ACTION_SPACES = {
    "discrete": Discrete(3, start=5),
    "multi_discrete": MultiDiscrete((2, 3), (2,), (0, 1), "int64"),
    "multi_binary": MultiBinary((3,)),
    "box": Box((2,), "float32", -1.0, 1.0),
    "wide_box": Box((2,), "float32", -2.0, 2.0),
    "hybrid": Dict((("choice", Discrete(3)), ("push", UNIT_BOX))),
}


@dataclass(frozen=True)
class Cue:
    """Each step shows one of two cues, and pays 1 for the best action to it, less for others. Optimum: 1 a step.

    Episodes last `length` steps. The best choice is 1 or the last one, bits are all on or all off, and a Box's best
    element is 0.5 or -0.5 and pays 1 minus the squared distance; actions of several parts pay the mean over the parts.
    With masks, the best choice and some others by chance are allowed; a forbidden one pays -100.
    """

    action: str
    masked: bool = False
    dict_obs: bool = False
    length: int = 4

    @property
    def spec(self) -> EnvSpec:
        obs = Box((2,), "float32", -10.0, 10.0)
        if self.dict_obs:
            obs = Dict((("cue", Discrete(2)), ("noise", UNIT_BOX)))
        return EnvSpec(obs, ACTION_SPACES[self.action])

    def reset(self, key):
        return self._draw(key, jnp.int32(0))

    def step(self, state, action, key):
        reward = self._quality(state, action)
        after, obs = self._draw(key, state["t"] + 1)
        done = after["t"] == self.length
        return Step(after, obs, reward, done, jnp.array(False))

    def _draw(self, key, t):
        cue_key, noise_key, mask_key = jax.random.split(key, 3)
        cue = jax.random.randint(cue_key, (), 0, 2)
        noise = jax.random.uniform(noise_key, (1,), minval=-1.0, maxval=1.0)
        state = {"t": t, "cue": cue}
        if self.masked:
            space = self.spec.action_space
            chance = jax.random.bernoulli(mask_key, 0.5, (spaces.num_mask_columns(space),))
            state["mask"] = chance | self._best_columns(cue)
        obs = {"cue": cue, "noise": noise} if self.dict_obs else jnp.stack([2.0 * cue - 1.0, noise[0]])
        return state, obs

    def __getattr__(self, name):
        # Only an environment with masks has this method.
        if name == "action_mask" and self.masked:
            return lambda state: state["mask"]
        raise AttributeError(name)

    def _best_columns(self, cue):
        parts = []
        for leaf in spaces.leaves(self.spec.action_space):
            match leaf:
                case Discrete(n):
                    parts.append(jnp.arange(n) == best_choice(n, cue))
                case MultiDiscrete(nvec):
                    parts.extend(jnp.arange(n) == best_choice(n, cue) for n in nvec)
                case MultiBinary():
                    parts.append(jnp.tile(jnp.stack([cue == 0, cue == 1]), leaf.size))
        return jnp.concatenate(parts)

    def _quality(self, state, action):
        cue, qualities, column = state["cue"], [], 0
        for leaf, value in zip(
            spaces.leaves(self.spec.action_space), spaces.flatten(self.spec.action_space, action), strict=True
        ):
            match leaf:
                case Discrete(n, start):
                    choices, sizes = jnp.reshape(value - start, (1,)), [n]
                case MultiDiscrete(nvec, start=start):
                    choices, sizes = value - jnp.array(start), list(nvec)
                case MultiBinary():
                    choices, sizes = value, [2] * leaf.size
                case Box():
                    qualities.append(jnp.mean(1.0 - (value - (cue - 0.5)) ** 2))
                    continue
            rights = []
            for choice, size in zip(choices, sizes, strict=True):
                right = (choice == (cue if isinstance(leaf, MultiBinary) else best_choice(size, cue))).astype(float)
                if self.masked:
                    right = jnp.where(state["mask"][column + choice], right, -100.0)
                column += size
                rights.append(right)
            qualities.append(jnp.mean(jnp.stack(rights)))
        return jnp.mean(jnp.stack(qualities))


def best_choice(n, cue):
    """Of n choices the second, or the last for the other cue; of two the cue itself."""
    return jnp.where(cue == 0, 0 if n == 2 else 1, n - 1)


@dataclass(frozen=True)
class Recall:
    """A cue is shown at the first step and asked for `delay` steps later; only that last action pays, 1 if it is right.

    Without memory the best mean return is 1/2.
    """

    delay: int = 8
    spec = EnvSpec(Box((2,), "float32", -1.0, 1.0), Discrete(2))

    def reset(self, key):
        cue = jax.random.randint(key, (), 0, 2)
        return {"t": jnp.int32(0), "cue": cue}, jnp.stack([2.0 * cue - 1.0, 0.0])

    def step(self, state, action, key):
        t = state["t"] + 1
        done = t == self.delay + 1
        reward = jnp.where(done & (action == state["cue"]), 1.0, 0.0)
        obs = jnp.stack([0.0, jnp.where(t == self.delay, 1.0, 0.0)])
        return Step({"t": t, "cue": state["cue"]}, obs, reward, done, jnp.array(False))
