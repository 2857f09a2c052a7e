"""A pool around a user's own `gymnasium.vector.VectorEnv`, whichever way it starts ended episodes anew.

Gymnasium calls that way the autoreset mode (https://farama.org/Vector-Autoreset-Mode):

    NextStep    the step after an end ignores its action and returns the first observation: a row that is no transition
    SameStep    the step that ends an episode returns the next one's first observation, and the final one in `infos`
    Disabled    the pool resets what ended

The transitions are the same in all three, and the same as those of a list of such environments.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv, VectorEnv

from inchworm import spaces
from inchworm.envs.gymnasium import RESET_PARTS, STEP_PARTS, spec_of
from inchworm.envs.masks import INFO_KEY, METHOD, MaskRows
from inchworm.envs.pool import (
    ObservationReader,
    PoolSnapshot,
    StepBuffers,
    close_env,
    environment_seed,
    raised_error,
    read_restarts,
    unpack,
    write,
)
from inchworm.errors import EnvironmentContractError
from inchworm.spaces import EnvSpec

SOURCE = "the vector environment"


def vector_spec_of(env: VectorEnv) -> EnvSpec:
    """The specification of each of a vector environment's environments.

    Raises:
        EnvironmentContractError: it does not say.
        UnsupportedSpaceError: one of its spaces has no counterpart.
    """
    return spec_of(env, "single_")


class VectorPool:
    """The environments of one vector environment."""

    def __init__(self, env: VectorEnv, seed: int) -> None:
        """Takes over a vector environment.

        Raises:
            EnvironmentContractError: it does not say how it starts ended episodes anew.
            UnsupportedSpaceError: one of its spaces has no counterpart.
        """
        self.spec = vector_spec_of(env)
        self.num_envs = env.num_envs
        self._env = env
        self._masks = MaskRows(self.spec.action_space, self.num_envs)
        self._with_method = _with_mask_method(env)
        self._mode = _autoreset_mode(env)
        self._seed = seed
        self._restarts = 0
        self._read = ObservationReader(self.spec.observation_space, (self.num_envs,))
        self._read_one = ObservationReader(self.spec.observation_space)
        # Environments whose next step only resets them; stays empty in the other modes.
        self._resets_next = np.zeros(self.num_envs, bool)

    @property
    def mask(self) -> np.ndarray | None:
        return self._masks.rows

    def reset(self, obs: list[np.ndarray]) -> None:
        seeds = [environment_seed(self._seed, index, self._restarts) for index in range(self.num_envs)]
        start: Callable[..., Any] = self._env.reset
        try:
            answer = start(seed=seeds)
        except (Exception, SystemExit) as error:
            try:
                # Environments that are stepped as one array have one generator, and take one seed.
                answer = start(seed=seeds[0])
            except Exception:
                raise raised_error("reset", error, SOURCE) from error
        raw_obs, infos = unpack("reset", answer, RESET_PARTS, SOURCE)
        write(obs, ..., self._read(raw_obs, SOURCE))
        self._resets_next[:] = False
        self._read_masks(infos, np.ones(self.num_envs, bool))

    def step(self, actions: list[np.ndarray], t: int, buffers: StepBuffers) -> None:
        answer = self._call("step", spaces.unflatten(self.spec.action_space, actions))
        raw_obs, *results, infos = unpack("step", answer, STEP_PARTS, SOURCE)
        reward, terminated, truncated = self._read_results(results)
        done = terminated | truncated
        obs, next_obs = [leaf[t + 1] for leaf in buffers.obs], [leaf[t] for leaf in buffers.next_obs]
        leaves = self._read(raw_obs, SOURCE)
        # Copied at once, because the environment may use its arrays again.
        write(obs, ..., leaves)
        write(next_obs, ..., leaves)

        valid, first = ~self._resets_next, done
        # The infos of the observations that are acted on next, and whose they are.
        acted_on = [(infos, np.ones(self.num_envs, bool))]
        match self._mode:
            case AutoresetMode.NEXT_STEP:
                first, self._resets_next = self._resets_next, done
                acted_on = [(infos, ~done)]
                self._masks.allow_all(done)
            case AutoresetMode.SAME_STEP:
                for index in np.flatnonzero(done).tolist():
                    write(next_obs, index, self._final_observation(infos, index))
            case AutoresetMode.DISABLED if done.any():
                answer = self._call("reset", options={"reset_mask": done.copy()})
                raw_obs, reset_infos = unpack("reset", answer, RESET_PARTS, SOURCE)
                acted_on = [(infos, ~done), (reset_infos, done)]
                write(obs, done, [leaf[done] for leaf in self._read(raw_obs, SOURCE)])

        buffers.valid[t], buffers.first[t + 1] = valid, first
        buffers.reward[t] = np.where(valid, reward, 0.0)
        buffers.terminated[t], buffers.truncated[t] = terminated & valid, truncated & valid
        for found, whose in acted_on:
            self._read_masks(found, whose)

    def snapshot(self) -> PoolSnapshot:
        return PoolSnapshot({}, {"kind": "vector", "restarts": self._restarts})

    def restore(self, snapshot: PoolSnapshot, obs: list[np.ndarray], started_anew: np.ndarray) -> list[str]:
        # Its environments are out of reach, so that their episodes cannot be replayed.
        self._restarts = read_restarts(snapshot.document, "vector") + 1
        self.reset(obs)
        started_anew[:] = True
        return ["a vector environment cannot be brought back: all its environments start new episodes"]

    def close(self) -> None:
        close_env(SOURCE, self._env)

    def _call(self, method: str, *args: Any, **kwargs: Any) -> Any:
        try:
            return getattr(self._env, method)(*args, **kwargs)
        except (Exception, SystemExit) as error:
            raise raised_error(method, error, SOURCE) from error

    def _read_results(self, results: list[Any]) -> list[np.ndarray]:
        """Rewards and the two flags, each of shape (N,)."""
        arrays = []
        for name, dtype, value in zip(("reward", "terminated", "truncated"), ("f4", "?", "?"), results, strict=True):
            array = np.asarray(value)
            if array.shape != (self.num_envs,) or array.dtype.kind not in "biuf":
                raise EnvironmentContractError(
                    name,
                    f"{array.dtype}{list(array.shape)}",
                    f"is what {SOURCE} returned, not one number for each of its {self.num_envs} environments",
                    "Return arrays of shape (num_envs,).",
                )
            arrays.append(array.astype(dtype))
        return arrays

    def _read_masks(self, infos: Any, whose: np.ndarray) -> None:
        """Takes in the masks of some environments' next actions."""
        indices = np.flatnonzero(whose).tolist()
        given = isinstance(infos, Mapping) and infos.get(INFO_KEY) is not None
        if not given and self._with_method is not None and indices:
            try:
                infos, given = {INFO_KEY: self._with_method.call(METHOD)}, True
            except (Exception, SystemExit) as error:
                raise raised_error(METHOD, error, SOURCE) from error
        # Where there is nothing, it is so for all, and one stands for them.
        for index in indices if given else indices[:1]:
            found = _value_of(infos, INFO_KEY, index) if given else None
            self._masks.write(index, found, f"environment {index} of {SOURCE}")

    def _final_observation(self, infos: Any, index: int) -> list[np.ndarray]:
        """What the episode that ended just now in an environment ended with."""
        try:
            final_obs = infos["final_obs"][index]
        except (LookupError, TypeError):
            final_obs = None
        if final_obs is None:
            raise EnvironmentContractError(
                "infos",
                repr(infos),
                f'have no "final_obs" for environment {index}, whose episode ended',
                "A vector environment of autoreset mode SameStep must give it; take NextStep if it cannot.",
            )
        return self._read_one(final_obs, f"environment {index}, as final_obs,")


def _with_mask_method(env: VectorEnv) -> SyncVectorEnv | AsyncVectorEnv | None:
    """The vector environment whose environments have a method that gives masks; only gymnasium's own can be asked."""
    vector = env.unwrapped
    asked = isinstance(vector, SyncVectorEnv | AsyncVectorEnv)
    return vector if asked and all(vector.call("has_wrapper_attr", METHOD)) else None


def _value_of(infos: Mapping[str, Any], name: str, index: int) -> Any:
    """What one environment gave under a name, None if nothing.

    Gymnasium lays the values of all side by side, those of a dict name by name, and tells in `_name` who gave one.
    """
    values, givers = infos[name], infos.get(f"_{name}")
    try:
        if givers is not None and not givers[index]:
            return None
        if not isinstance(values, Mapping):
            return values[index]
    except (LookupError, TypeError) as error:
        raise EnvironmentContractError(
            f"infos[{name!r}]",
            repr(values),
            f"is what {SOURCE} gave, and has nothing for environment {index}",
            f"Give an array with a row for each environment, and where some have none flags in infos['_{name}'].",
        ) from error
    names = [key for key in values if not (key.startswith("_") and key[1:] in values)]
    return {key: _value_of(values, key, index) for key in names}


def _autoreset_mode(env: VectorEnv) -> AutoresetMode:
    found = (env.metadata or {}).get("autoreset_mode")
    try:
        return AutoresetMode(found)
    except ValueError:
        raise EnvironmentContractError(
            'env.metadata["autoreset_mode"]',
            repr(found),
            "does not say how the vector environment starts ended episodes anew",
            f"Set it to one of {', '.join(mode.value for mode in AutoresetMode)}.",
        ) from None
