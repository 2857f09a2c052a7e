"""A pool around a user's own `gymnasium.vector.VectorEnv`, whichever way it starts ended episodes anew.

Gymnasium calls that way the autoreset mode (https://farama.org/Vector-Autoreset-Mode):

    NextStep    the step after an end ignores its action and returns the first observation: a row that is no transition
    SameStep    the step that ends an episode returns the next one's first observation, and the final one in `infos`
    Disabled    the pool resets what ended

The transitions are the same in all three, and the same as those of a list of such environments.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv

from inchworm import spaces
from inchworm.envs.gymnasium import RESET_PARTS, STEP_PARTS, spec_of
from inchworm.envs.pool import (
    ObservationReader,
    PoolSnapshot,
    StepBuffers,
    check_one_action,
    environment_seed,
    raised_error,
    unpack,
    write,
)
from inchworm.errors import CheckpointError, EnvironmentContractError
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
            UnsupportedSpaceError: one of its spaces has no counterpart, or actions have several parts.
        """
        self.spec = vector_spec_of(env)
        self.num_envs = env.num_envs
        self._env = env
        check_one_action(self.spec.action_space)
        self._door = spaces.action_door(self.spec.action_space)
        self._mode = _autoreset_mode(env)
        self._seed = seed
        self._restarts = 0
        self._read = ObservationReader(self.spec.observation_space, (self.num_envs,))
        self._read_one = ObservationReader(self.spec.observation_space)
        # Environments whose next step only resets them; stays empty in the other modes.
        self._resets_next = np.zeros(self.num_envs, bool)

    def reset(self, obs: list[np.ndarray]) -> None:
        seeds = [environment_seed(self._seed, index, self._restarts) for index in range(self.num_envs)]
        start: Callable[..., Any] = self._env.reset
        try:
            answer = start(seed=seeds)
        except Exception as error:
            try:
                # Environments that are stepped as one array have one generator, and take one seed.
                answer = start(seed=seeds[0])
            except Exception:
                raise raised_error("reset", error, SOURCE) from error
        raw_obs, _ = unpack("reset", answer, RESET_PARTS, SOURCE)
        write(obs, ..., self._read(raw_obs, SOURCE))
        self._resets_next[:] = False

    def step(self, actions: np.ndarray, t: int, buffers: StepBuffers) -> None:
        answer = self._call("step", self._door(actions))
        raw_obs, *results, infos = unpack("step", answer, STEP_PARTS, SOURCE)
        reward, terminated, truncated = self._read_results(results)
        done = terminated | truncated
        obs, next_obs = [leaf[t + 1] for leaf in buffers.obs], [leaf[t] for leaf in buffers.next_obs]
        leaves = self._read(raw_obs, SOURCE)
        # Copied at once, because the environment may use its arrays again.
        write(obs, ..., leaves)
        write(next_obs, ..., leaves)

        valid, first = ~self._resets_next, done
        match self._mode:
            case AutoresetMode.NEXT_STEP:
                first, self._resets_next = self._resets_next, done
            case AutoresetMode.SAME_STEP:
                for index in np.flatnonzero(done).tolist():
                    write(next_obs, index, self._final_observation(infos, index))
            case AutoresetMode.DISABLED if done.any():
                answer = self._call("reset", options={"reset_mask": done.copy()})
                raw_obs, _ = unpack("reset", answer, RESET_PARTS, SOURCE)
                write(obs, done, [leaf[done] for leaf in self._read(raw_obs, SOURCE)])

        buffers.valid[t], buffers.first[t + 1] = valid, first
        buffers.reward[t] = np.where(valid, reward, 0.0)
        buffers.terminated[t], buffers.truncated[t] = terminated & valid, truncated & valid

    def snapshot(self) -> PoolSnapshot:
        return PoolSnapshot({}, {"kind": "vector", "restarts": self._restarts})

    def restore(self, snapshot: PoolSnapshot, obs: list[np.ndarray], started_anew: np.ndarray) -> list[str]:
        try:
            kind, restarts = snapshot.document["kind"], int(snapshot.document["restarts"])
            if kind != "vector" or restarts < 0:
                raise ValueError(f"{kind} restarted {restarts} times")
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise CheckpointError(
                "collector.json", repr(error), "does not describe these environments", "Resume from another checkpoint."
            ) from error
        # Its environments are out of reach, so that their episodes cannot be replayed.
        self._restarts = restarts + 1
        self.reset(obs)
        started_anew[:] = True
        return ["a vector environment cannot be brought back: all its environments start new episodes"]

    def close(self) -> None:
        self._env.close()

    def _call(self, method: str, *args: Any, **kwargs: Any) -> Any:
        try:
            return getattr(self._env, method)(*args, **kwargs)
        except Exception as error:
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
