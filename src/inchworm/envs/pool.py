"""What the host collector needs of environments: N of them, stepped side by side into preallocated rows."""

import traceback
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np

from inchworm import spaces
from inchworm.errors import CheckpointError, EnvironmentContractError
from inchworm.spaces import EnvSpec
from inchworm.warning import warn


class StepBuffers(NamedTuple):
    """The rows that `Pool.step` fills; observation buffers are lists of leaves.

    `obs` and `first` have one row more than there are steps: row t + 1 is what the policy sees after step t.
    """

    obs: list[np.ndarray]
    """(T + 1, N, ...)"""
    first: np.ndarray
    """(T + 1, N)"""
    next_obs: list[np.ndarray]
    """(T, N, ...)"""
    reward: np.ndarray
    terminated: np.ndarray
    truncated: np.ndarray
    valid: np.ndarray

    @classmethod
    def empty(cls, space: spaces.Space, horizon: int, num_envs: int) -> "StepBuffers":
        leaves = spaces.leaves(space)

        def observations(rows: int) -> list[np.ndarray]:
            return [np.empty((rows, num_envs, *spaces.leaf_shape(leaf)), spaces.storage_dtype(leaf)) for leaf in leaves]

        return cls(
            observations(horizon + 1),
            np.zeros((horizon + 1, num_envs), bool),
            observations(horizon),
            np.zeros((horizon, num_envs), np.float32),
            np.zeros((horizon, num_envs), bool),
            np.zeros((horizon, num_envs), bool),
            np.ones((horizon, num_envs), bool),
        )


@dataclass(frozen=True)
class PoolSnapshot:
    """What brings a pool back to where it was: arrays by name, and a JSON document."""

    arrays: dict[str, np.ndarray]
    document: dict[str, Any]


class Pool(Protocol):
    """N environments of one specification."""

    spec: EnvSpec
    num_envs: int

    @property
    def mask(self) -> np.ndarray | None:
        """The choices each environment allows for its next action, bool (N, num_mask_columns); None without masks.

        Set by `reset`, `step` and `restore`, which write into the same array each time.
        """
        ...

    def reset(self, obs: list[np.ndarray]) -> None:
        """Starts every environment anew and writes the first observations into (N, ...) leaves."""
        ...

    def step(self, actions: list[np.ndarray], t: int, buffers: StepBuffers) -> None:
        """Sends the environments their actions and fills row t of the buffers, and row t + 1 of obs and first.

        Only obs and first need be there at once, all else by the last row: the policy looks at nothing more meanwhile.
        Actions are leaves (N, ...) that have been through `spaces.action_door`; environments may write into them.
        Episodes that end are started anew before the next call. A row that is no transition is marked in `valid`.
        """
        ...

    def snapshot(self) -> PoolSnapshot:
        """Where every environment stands, as far as that can be told."""
        ...

    def restore(self, snapshot: PoolSnapshot, obs: list[np.ndarray], started_anew: np.ndarray) -> list[str]:
        """Brings the environments back and writes their current observations into (N, ...) leaves.

        An environment that cannot be brought back is started anew, and `started_anew` (N,) is set for it.

        Returns:
            Nothing if every environment stands exactly where it stood, else what could not be restored.

        Raises:
            CheckpointError: the snapshot is not one of such a pool.
        """
        ...

    def close(self) -> None:
        """Closes the environments."""
        ...


def environment_seed(seed: int, env_index: int, restart: int) -> int:
    """The seed of an environment's first reset.

    Hashed, because with seed + env_index environment 1 of seed 0 would be environment 0 of seed 1.
    """
    return int(np.random.SeedSequence([seed, env_index, restart]).generate_state(1)[0])


def read_restarts(document: Any, kind: str) -> int:
    """How often environments had been started anew, by the document of a pool that keeps no more of them.

    Raises:
        CheckpointError: it is not one of this kind.
    """
    try:
        found, restarts = document["kind"], int(document["restarts"])
        if found != kind or restarts < 0:
            raise ValueError(f"{found} restarted {restarts} times")
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise foreign_snapshot(error) from error
    return restarts


def foreign_snapshot(error: Exception) -> CheckpointError:
    """What is raised where a snapshot turns out to be none of the environments that are to be brought back by it."""
    return CheckpointError(
        "collector.json", repr(error), "does not describe these environments", "Resume from another checkpoint."
    )


class ObservationReader:
    """Takes observations apart into leaves and holds each to its space, because assignment would not.

    A wrong shape would be broadcast, a fraction cut off, an imaginary part dropped, 300 kept as the byte 44 without a
    word, and a choice outside its space become zeros. Numbers of a Box need not be within its bounds, only be kept.
    """

    def __init__(self, space: spaces.Space, batch: tuple[int, ...] = ()) -> None:
        """Reads observations of a space, with `batch` as their leading axes."""
        self._space = space
        self._single = not isinstance(space, spaces.Dict | spaces.Tuple)
        self._leaves = spaces.leaves(space)
        self._shapes = [(*batch, *spaces.leaf_shape(leaf)) for leaf in self._leaves]
        self._kinds = ["biuf" if spaces.storage_dtype(leaf).kind == "f" else "biu" for leaf in self._leaves]
        self._safe = [_safe_dtypes(leaf) for leaf in self._leaves]
        self._limits = [spaces.limits(leaf) for leaf in self._leaves]

    def __call__(self, observation: Any, source: str) -> list[np.ndarray]:
        """The leaves of an observation.

        Raises:
            EnvironmentContractError: it does not fit the space; the message names `source`, which returned it.
        """
        # The common case first: this runs at every environment step.
        if (
            self._single
            and type(observation) is np.ndarray
            and observation.shape == self._shapes[0]
            and observation.dtype.char in self._safe[0]
        ):
            return [observation]
        try:
            leaves = [np.asarray(leaf) for leaf in spaces.flatten(self._space, observation)]
        except (LookupError, TypeError, ValueError) as error:
            raise EnvironmentContractError(
                "observation",
                repr(observation),
                f"is what {source} returned, and does not fit its space ({type(error).__name__}: {error})",
                "Make the observation fit observation_space.",
            ) from error
        for index, (leaf, shape, kinds) in enumerate(zip(leaves, self._shapes, self._kinds, strict=True)):
            if leaf.shape != shape or leaf.dtype.kind not in kinds:
                raise EnvironmentContractError(
                    "observation",
                    f"{leaf.dtype}{list(leaf.shape)}",
                    f"is what {source} returned, but its space says "
                    f"{'numbers' if 'f' in kinds else 'whole numbers'} of shape {shape}",
                    "Make the observation fit observation_space.",
                )
            if leaf.dtype.char not in self._safe[index]:
                self._check_range(index, leaf, source)
        return leaves

    def _check_range(self, index: int, values: np.ndarray, source: str) -> None:
        low, high = self._limits[index]
        outside = (values < low) | (values > high)
        if np.count_nonzero(outside):
            number = int(outside.argmax())
            at_low, at_high = (np.broadcast_to(bound, values.shape).flat[number] for bound in (low, high))
            leaf = self._leaves[index]
            what = f"Box of {leaf.dtype}" if isinstance(leaf, spaces.Box) else type(leaf).__name__
            raise EnvironmentContractError(
                "observation",
                str(values.flat[number]),
                f"is what {source} returned in number {number}, outside [{at_low}, {at_high}] of its {what}",
                "Mend the numbers, or observation_space.",
            )


def _safe_dtypes(leaf: spaces.Leaf) -> str:
    """The character codes of those dtypes no number of which is lost or outside: none has to be looked at."""
    match leaf:
        case spaces.Box():
            stored = spaces.storage_dtype(leaf)
            codes = "?" + np.typecodes["AllInteger"] + np.typecodes["Float"]
            return "".join(code for code in codes if stored.kind == "f" or np.can_cast(code, stored))
        case spaces.MultiBinary():
            return "?"
        case _:
            return ""


def write(row: list[np.ndarray], index: Any, leaves: list[np.ndarray]) -> None:
    """Copies leaves into a row of observation buffers, at the environments of an index."""
    for target, leaf in zip(row, leaves, strict=True):
        target[index] = leaf


def unpack(method: str, answer: Any, parts: tuple[str, ...], source: str) -> tuple[Any, ...]:
    """The parts of what `reset` or `step` returned.

    Raises:
        EnvironmentContractError: it is no tuple of as many; the message names `source`, which returned it.
    """
    if isinstance(answer, tuple) and len(answer) == len(parts):
        return answer
    shown = f"a tuple of {len(answer)}" if isinstance(answer, tuple) else f"one {type(answer).__name__}"
    raise EnvironmentContractError(
        f"env.{method}",
        shown,
        f"is what {source} returned instead of ({', '.join(parts)})",
        "Return what gymnasium 1 asks for.",
    )


def raised_error(method: str, error: BaseException, source: str) -> EnvironmentContractError:
    """What is raised when `source` raised an error of its own, or would end the program: a run ends with all saved."""
    return EnvironmentContractError(
        f"env.{method}",
        f"{type(error).__name__}: {first_line(error)}",
        f"was raised by {source}",
        mending(method, error),
    )


def mending(method: str, error: BaseException) -> str:
    """What to do about an error that a method of the user's environment raised."""
    if method == "reset" and isinstance(error, TypeError) and "unexpected keyword argument" in str(error):
        return "Write `def reset(self, *, seed=None, options=None)`, and return (observation, info)."
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return f"It comes from {frame.filename}, line {frame.lineno}."


def close_env(name: str, env: Any) -> None:
    """Closes an environment; an error is warned of, because it spoils nothing that was learned."""
    try:
        env.close()
    except Exception as error:
        warn(f"{name} could not be closed: {type(error).__name__}: {first_line(error)}")


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or its type if it has none."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
