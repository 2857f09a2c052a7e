"""Gymnasium environments: their spaces, and a pool that steps a plain list of them.

The pool resets in the same step, so that it has no reset rows, and remembers for each environment how to replay
the episode so far, see `episode_log`.
"""

from typing import Any

import gymnasium
import numpy as np

from inchworm import spaces
from inchworm.envs.episode_log import MAX_REPLAY_STEPS, EpisodeLog, OpenRows, checksum
from inchworm.envs.making import EnvFactory
from inchworm.envs.masks import MaskRows, find_mask, gives_by_method
from inchworm.envs.pool import (
    ObservationReader,
    PoolSnapshot,
    StepBuffers,
    close_env,
    environment_seed,
    foreign_snapshot,
    raised_error,
    unpack,
    write,
)
from inchworm.errors import EnvironmentContractError, UnsupportedSpaceError
from inchworm.spaces import EnvSpec

REPLAY_ROWS = 256
"""Steps of an episode that are lived again before they are held against its log."""

RESET_PARTS = ("observation", "info")
STEP_PARTS = ("observation", "reward", "terminated", "truncated", "info")


def from_gymnasium(space: gymnasium.Space, name: str) -> spaces.Space:
    """The library's own description of a gymnasium space.

    Raises:
        UnsupportedSpaceError: the space, named in the message, has no counterpart.
    """
    match space:
        case (
            gymnasium.spaces.Box(shape=shape)
            | gymnasium.spaces.MultiDiscrete(shape=shape)
            | gymnasium.spaces.MultiBinary(shape=shape)
        ) if 0 in shape:
            raise _nothing_in(space, name)
        case gymnasium.spaces.Dict(spaces=parts) | gymnasium.spaces.Tuple(spaces=parts) if not parts:
            raise _nothing_in(space, name)
        case gymnasium.spaces.Box():
            if np.isnan(space.low).any() or np.isnan(space.high).any():
                raise UnsupportedSpaceError(name, repr(space), "has NaN bounds", "Use -inf and inf for no bound.")
            return spaces.Box(space.shape, str(space.dtype), _bound(space.low), _bound(space.high))
        case gymnasium.spaces.Discrete():
            return spaces.Discrete(int(space.n), int(space.start), str(space.dtype))
        case gymnasium.spaces.MultiDiscrete():
            nvec, start = (tuple(int(value) for value in np.ravel(part)) for part in (space.nvec, space.start))
            return spaces.MultiDiscrete(nvec, tuple(space.shape), start, str(space.dtype))
        case gymnasium.spaces.MultiBinary():
            return spaces.MultiBinary(tuple(space.shape), str(space.dtype))
        case gymnasium.spaces.Dict():
            for key in space.spaces:
                if not isinstance(key, str):
                    raise UnsupportedSpaceError(
                        name, repr(space), f"has a part named {key!r}, which is no text", "Name parts with strings."
                    )
            inner = {key: from_gymnasium(part, f"{name}[{key!r}]") for key, part in space.spaces.items()}
            return spaces.Dict(tuple(inner.items()))
        case gymnasium.spaces.Tuple():
            return spaces.Tuple(tuple(from_gymnasium(part, f"{name}[{i}]") for i, part in enumerate(space.spaces)))
        case _:
            raise UnsupportedSpaceError(
                name,
                repr(space),
                "is not a space that policies read or write",
                "Turn it into Box, Discrete, MultiDiscrete, MultiBinary, or a Dict or Tuple of them, with a gymnasium "
                "wrapper.",
            )


def _nothing_in(space: gymnasium.Space, name: str) -> UnsupportedSpaceError:
    return UnsupportedSpaceError(
        name, repr(space), "cannot be read: there is nothing in it", "Leave it out, or give it at least one number."
    )


def _bound(bound: np.ndarray) -> float | tuple[float, ...]:
    values = [float(value) for value in np.asarray(bound).ravel()]
    return values[0] if all(value == values[0] for value in values) else tuple(values)


def spec_of(env: Any, prefix: str = "") -> EnvSpec:
    """The specification of an environment, from its attributes of a prefix and `observation_space`, `action_space`.

    Raises:
        EnvironmentContractError: it has no such attribute.
        UnsupportedSpaceError: one of its spaces has no counterpart.
    """
    found = []
    for name in (f"{prefix}observation_space", f"{prefix}action_space"):
        space = getattr(env, name, None)
        if not isinstance(space, gymnasium.Space):
            raise EnvironmentContractError(
                name, repr(space), "is not a gymnasium space", f"Set self.{name} in __init__."
            )
        found.append(from_gymnasium(space, name))
    return EnvSpec(*found)


class GymnasiumPool:
    """A list of Gymnasium environments, stepped one after the other in this process."""

    def __init__(self, factory: EnvFactory, num_envs: int, seed: int, first_index: int = 0) -> None:
        """Makes the environments; those of a run that are stepped elsewhere may come before `first_index`.

        Raises:
            EnvironmentContractError: they are not separate objects of one specification.
            UnsupportedSpaceError: one of their spaces has no counterpart.
        """
        self.num_envs = num_envs
        self._seed = seed
        self._first_index = first_index
        self._names = [f"environment {first_index + index}" for index in range(num_envs)]
        self._envs: list[gymnasium.Env] = []
        try:
            self.spec = self._make(factory)
        except BaseException:
            self.close()  # or a port or a file that they hold is lost to the next attempt
            raise
        self._read = ObservationReader(self.spec.observation_space)
        space = self.spec.action_space
        leaves = spaces.leaves(space)
        self._is_number = [isinstance(leaf, spaces.Discrete) for leaf in leaves]
        self._composite = isinstance(space, spaces.Dict | spaces.Tuple)
        # A step's action in the log of its episode: its leaves, one after the other.
        self._record = np.dtype([(f"{i}", leaf.dtype, spaces.leaf_shape(leaf)) for i, leaf in enumerate(leaves)])
        self._masks = MaskRows(space, num_envs)
        self._by_method = [gives_by_method(env) for env in self._envs]
        self._steps = [env.step for env in self._envs]
        self._restarts = [0] * num_envs
        # For each environment the episode before the running one, and the running one. The earlier one is there
        # so that a resume right after a reset has something to compare.
        self._logs: list[list[EpisodeLog]] = [[] for _ in range(num_envs)]
        self._open: OpenRows | None = None
        self._whole = True
        """False in the middle of a step, and for good where one has failed: from there no episode can go on."""

    def _make(self, factory: EnvFactory) -> EnvSpec:
        """Makes the environments; returns the specification of them all."""
        for others, name in enumerate(self._names, self._first_index):
            try:
                self._envs.append(factory())
            except EnvironmentContractError as error:
                if others == 0:
                    raise
                place = f"It was {name} beside {others} other{'s' if others > 1 else ''}"
                raise error.with_fix(
                    f"{error.fix} {place}; if no more can be open at a time, set num_envs={others}."
                ) from error
        if len({id(env.unwrapped) for env in self._envs}) < self.num_envs:
            raise EnvironmentContractError(
                "env", repr(factory), "returned the same object for two environments", "Make a new one at each call."
            )
        spec = spec_of(self._envs[0])
        for index, env in enumerate(self._envs):
            if spec_of(env) != spec:
                raise EnvironmentContractError(
                    "env",
                    repr(factory),
                    f"gave {self._names[index]} other spaces than {self._names[0]}",
                    "Make them alike.",
                )
        return spec

    @property
    def mask(self) -> np.ndarray | None:
        return self._masks.rows

    def reset(self, obs: list[np.ndarray]) -> None:
        self._open = None
        for index in range(self.num_envs):
            write(obs, index, self._seeded_reset(index))

    def step(self, actions: list[np.ndarray], t: int, buffers: StepBuffers) -> None:
        self._whole = False
        if self._open is None or not self._open.goes_on(buffers, t):
            self._write_logs()
            self._open = OpenRows(buffers, t)
        self._open.add_actions(actions)
        buffers.terminated[t] = buffers.truncated[t] = buffers.first[t + 1] = False
        ended = [i for i, action in enumerate(self._rows(actions)) if self._step_env(i, action, buffers, t, i)]
        self._open.add_masks(self._masks.rows)
        for leaf, successor in zip(buffers.obs, buffers.next_obs, strict=True):
            leaf[t + 1] = successor[t]
        for index in ended:
            self._open.end(index, self._logs[index][-1])
            write([leaf[t + 1] for leaf in buffers.obs], index, self._reset(index))
            buffers.first[t + 1, index] = True
        if t + 1 == len(buffers.reward):
            self._write_logs()
        self._whole = True

    def _write_logs(self) -> None:
        if self._open is not None:
            self._open.write([logs[-1] for logs in self._logs])
            self._open = None

    def snapshot(self) -> PoolSnapshot:
        if self._whole:
            self._write_logs()
        arrays: dict[str, np.ndarray] = {}
        document: dict[str, Any] = {"kind": "gymnasium", "restarts": list(self._restarts), "episodes": []}
        for index, logs in enumerate(self._logs if self._whole else [[] for _ in self._logs]):
            document["episodes"].append(
                [
                    {
                        "start": log.start,
                        "length": log.length,
                        "checksum": log.checksum,
                        "complete": log.complete,
                    }
                    for log in logs
                ]
            )
            for age, log in enumerate(logs):
                arrays[f"actions.{index}.{age}"] = np.frombuffer(bytes(log.actions), np.uint8)
        return PoolSnapshot(arrays, document)

    def restore(self, snapshot: PoolSnapshot, obs: list[np.ndarray], started_anew: np.ndarray) -> list[str]:
        problems, self._open = [], None
        try:
            restarts, episodes = snapshot.document["restarts"], snapshot.document["episodes"]
            if len(restarts) != self.num_envs or len(episodes) != self.num_envs:
                raise ValueError("other number of environments")
            for index in range(self.num_envs):
                self._restarts[index] = int(restarts[index])
                logs = [
                    EpisodeLog(
                        log["start"],
                        bytearray(snapshot.arrays[f"actions.{index}.{age}"].tobytes()),
                        int(log["length"]),
                        int(log["checksum"]),
                        bool(log["complete"]),
                    )
                    for age, log in enumerate(episodes[index])
                ]
                problem = self._replay(index, logs, obs)
                if problem is not None:
                    problems.append(f"{self._names[index]}: {problem}")
                    started_anew[index] = True
                    self._restarts[index] += 1
                    write(obs, index, self._seeded_reset(index))
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
            raise foreign_snapshot(error) from error
        return problems

    def close(self) -> None:
        for name, env in zip(self._names, self._envs, strict=False):
            close_env(name, env)

    def _replay(self, index: int, logs: list[EpisodeLog], obs: list[np.ndarray]) -> str | None:
        """Lives the logged episodes again; returns what kept it from being exact, or None."""
        if not logs:
            return "its episode was not kept"
        if not all(log.complete for log in logs):
            return f"its episode is longer than {MAX_REPLAY_STEPS} steps and was not kept"
        leaves: list[np.ndarray] = []
        try:
            for log in logs:
                leaves = self._replay_start(index, log.start, log is logs[0])
                lived = self._logs[index][-1]
                if lived.start != log.start:
                    return "its random generator came out differently"
                records = np.frombuffer(bytes(log.actions), self._record)
                if len(records) != log.length:
                    raise ValueError(f"{len(records)} actions of {log.length}")
                for first in range(0, log.length, REPLAY_ROWS):
                    part = records[first : first + REPLAY_ROWS]
                    leaves = self._live(index, [part[name].copy() for name in self._record.names or ()])
                if lived.checksum != log.checksum:
                    return "replaying its actions gave other observations or rewards (hidden randomness or state)"
        except EnvironmentContractError as error:
            return f"replaying its actions failed ({error})"
        write(obs, index, leaves)
        return None

    def _live(self, index: int, actions: list[np.ndarray]) -> list[np.ndarray]:
        """Steps one environment with actions (steps, ...); returns the last observation's leaves."""
        rows = self._rows(actions)
        buffers = StepBuffers.empty(self.spec.observation_space, len(rows), 1)
        taken = OpenRows(buffers, 0)
        for t, action in enumerate(rows):
            taken.add_actions([leaf[t] for leaf in actions])
            self._step_env(index, action, buffers, t, 0)
            taken.add_masks(None if self._masks.rows is None else self._masks.rows[index : index + 1])
        taken.write([self._logs[index][-1]])
        return [leaf[-1, 0] for leaf in buffers.next_obs]

    def _replay_start(self, index: int, start: dict[str, Any], earliest: bool) -> list[np.ndarray]:
        """Starts a logged episode again."""
        if "seed" in start:
            self._logs[index] = []
            return self._first_reset(index, int(start["seed"]))
        if earliest:
            # Seeded as in the first episode, for what an environment draws only once.
            self._seeded_reset(index)
            self._logs[index] = []
            _set_generator(self._envs[index], start["generator"])
        return self._reset(index)

    def _rows(self, actions: list[np.ndarray]) -> list[Any]:
        """Of leaves (rows, ...) the action in each row: numbers for Discrete and arrays else."""
        rows = range(len(actions[0]))
        columns = [
            list(leaf) if is_number else [leaf[row, ...] for row in rows]
            for is_number, leaf in zip(self._is_number, actions, strict=True)
        ]
        if not self._composite:
            return columns[0]
        return [spaces.unflatten(self.spec.action_space, list(parts)) for parts in zip(*columns, strict=True)]

    def _step_env(self, index: int, action: Any, buffers: StepBuffers, t: int, column: int) -> bool:
        """One checked step into a row and column of the buffers; returns whether the episode has ended."""
        source = self._names[index]
        try:
            answer = self._steps[index](action)
        except (Exception, SystemExit) as error:
            raise raised_error("step", error, source) from error
        raw_obs, reward, terminated, truncated, info = read_step(answer, source)
        for rows, leaf in zip(buffers.next_obs, self._read(raw_obs, source), strict=True):
            rows[t, column] = leaf
        buffers.reward[t, column] = reward
        if terminated or truncated:
            buffers.terminated[t, column] = terminated
            buffers.truncated[t, column] = truncated
            return True
        self._read_mask(index, info)
        return False

    def _reset(self, index: int) -> list[np.ndarray]:
        return self._start_episode(index, {"generator": _get_generator(self._envs[index])}, {})

    def _seeded_reset(self, index: int) -> list[np.ndarray]:
        seed = environment_seed(self._seed, self._first_index + index, self._restarts[index])
        self._logs[index] = []
        return self._first_reset(index, seed)

    def _first_reset(self, index: int, seed: int) -> list[np.ndarray]:
        return self._start_episode(index, {"seed": seed}, {"seed": seed})

    def _start_episode(self, index: int, start: dict[str, Any], kwargs: dict[str, Any]) -> list[np.ndarray]:
        source = self._names[index]
        try:
            answer = self._envs[index].reset(**kwargs)
        except (Exception, SystemExit) as error:
            raise raised_error("reset", error, source) from error
        raw_obs, info = unpack("reset", answer, RESET_PARTS, source)
        leaves = self._read(raw_obs, source)
        self._read_mask(index, info)
        answered = leaves if self._masks.rows is None else [*leaves, self._masks.rows[index]]
        log = EpisodeLog(start, checksum=checksum(answered))
        self._logs[index] = [*self._logs[index][-1:], log]
        return leaves

    def _read_mask(self, index: int, info: Any) -> None:
        """Takes in the mask of an environment's next action."""
        source = self._names[index]
        self._masks.write(index, find_mask(self._envs[index], info, self._by_method[index], source), source)


_PLAIN = frozenset({bool, float, int, np.bool_, np.float64, np.float32})


def read_step(answer: Any, source: str) -> tuple[Any, ...]:
    """The parts of what `step` returned, reward and flags as one number each.

    Raises:
        EnvironmentContractError: they are not there; the message names `source`, which returned it.
    """
    raw_obs, reward, terminated, truncated, info = unpack("step", answer, STEP_PARTS, source)
    if type(reward) in _PLAIN and type(terminated) in _PLAIN and type(truncated) in _PLAIN:
        return answer
    try:
        return raw_obs, one_number(reward), one_number(terminated), one_number(truncated), info
    except (TypeError, ValueError) as error:
        raise EnvironmentContractError(
            "env.step",
            repr(answer[1:4]),
            f"is what {source} returned as reward, terminated, truncated",
            "Return one number and two flags.",
        ) from error


def one_number(value: Any) -> Any:
    """A single number or flag; TypeError for all else, because bool("no") is true and float("3") is 3."""
    if type(value) in _PLAIN:
        return value
    array = np.asarray(value)
    if array.size != 1 or array.dtype.kind not in "biuf":
        raise TypeError(f"{value!r} is no number")
    return array.item()


def _get_generator(env: gymnasium.Env) -> Any:
    """The state of an environment's random generator, None if it has one that cannot be read."""
    bit_generator = getattr(env.unwrapped.np_random, "bit_generator", None)
    return None if bit_generator is None else _to_json(bit_generator.state)


def _set_generator(env: gymnasium.Env, state: Any) -> None:
    if state is not None:
        env.unwrapped.np_random.bit_generator.state = _from_json(state)


def _to_json(state: Any) -> Any:
    """A bit generator's state as JSON: whole numbers as text, because they have up to 128 bits."""
    if isinstance(state, dict):
        return {key: _to_json(value) for key, value in state.items()}
    if isinstance(state, np.ndarray):
        return [str(int(value)) for value in state]
    return str(int(state)) if isinstance(state, int | np.integer) else state


def _from_json(state: Any) -> Any:
    if isinstance(state, dict):
        return {key: _from_json(value) for key, value in state.items()}
    if isinstance(state, list):
        return np.array([int(value) for value in state], np.uint64)
    return int(state) if isinstance(state, str) and state.isdecimal() else state
