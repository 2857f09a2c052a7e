"""A trial of an environment: a life of random actions in it, in which every answer is checked and remembered."""

import math
import textwrap
import time
from collections.abc import Callable
from numbers import Real
from typing import Any

import gymnasium
import numpy as np

from inchworm import spaces
from inchworm.envs.episode_log import checksum
from inchworm.envs.gymnasium import RESET_PARTS, STEP_PARTS, one_number
from inchworm.envs.masks import MaskRows, find_mask, gives_by_method
from inchworm.envs.pool import ObservationReader, first_line, mending, unpack
from inchworm.errors import EnvironmentContractError, InchwormError
from inchworm.models.advice import Finding
from inchworm.spaces import Box, Discrete, EnvSpec

MAX_DRAWN = 20_000_000
"""Numbers that random actions are made from, over all steps: huge spaces get fewer steps."""
MAX_FEATURES = 100_000
"""Statistics are kept of this many numbers of each part of an observation."""

Answer = tuple[int, str, str, bytes]
"""What a reset or step gave: the observation's checksum, the reward, the flags and the mask."""

FINITE_FIX = "Find the division, root or logarithm that it comes from: updates that meet it are dropped."


class Notes:
    """Facts, and findings: of each kind the first and how often it was met. A kind shares its subject and fix."""

    def __init__(self) -> None:
        self.facts: dict[str, str] = {}
        self._found: dict[tuple[bool, str, str], tuple[str, int]] = {}

    def problem(self, where: str, problem: str, fix: str) -> None:
        self._add((True, where, fix), problem)

    def warn(self, where: str, problem: str, fix: str) -> None:
        self._add((False, where, fix), problem)

    def contract(self, error: EnvironmentContractError, place: str = "") -> None:
        shown = textwrap.shorten(str(error.value), 100)
        self.problem(error.field, f"{shown} {error.problem}{place}", error.fix)

    def found(self, severe: bool) -> tuple[Finding, ...]:
        return tuple(
            Finding(where, problem + (f" ({count:,} times)" if count > 1 else ""), fix)
            for (kind, where, fix), (problem, count) in self._found.items()
            if kind == severe
        )

    def _add(self, kind: tuple[bool, str, str], problem: str) -> None:
        first, count = self._found.get(kind, (problem, 0))
        self._found[kind] = (first, count + 1)


class Trial:
    """One environment, every answer of which is checked and remembered."""

    def __init__(self, env: gymnasium.Env, spec: EnvSpec, notes: Notes) -> None:
        self._env, self._notes = env, notes
        self._action_space = spec.action_space
        self._door = spaces.action_door(spec.action_space, "clip")
        self._masks, self._masks_by_method = MaskRows(spec.action_space, 1), gives_by_method(env)
        self._read = ObservationReader(spec.observation_space)
        self._last: tuple[list[np.ndarray], int] = ([], 0)
        self._episode = self._length = 0
        self.during = ""
        self.leaves = spaces.leaves(spec.observation_space)
        sizes = [min(leaf.size, MAX_FEATURES) if isinstance(leaf, Box) else 0 for leaf in self.leaves]
        self.squares, self.smallest, self.largest = (
            [np.full(size, start) for size in sizes] for start in (0.0, np.inf, -np.inf)
        )
        self.answers: list[Answer] = []
        """Of each reset and step."""
        self.allowed: list[float] = []
        """The share of choices that each mask allows."""
        self.rewards: list[float] = []
        self.episodes: list[tuple[int, bool, bool]] = []
        """Length, terminated and truncated of each that ended."""
        self.step_seconds: list[float] = []
        self.reset_seconds: list[float] = []

    def live(self, draws: list[np.ndarray], reset: dict[str, Any], seconds: float) -> bool:
        """Resets, and sends the actions drawn while there is time; False if an answer kept it from going on."""
        deadline = math.inf
        try:
            self._reset(reset)
            for step in range(len(draws[0])):
                if self._step([draw[step : step + 1] for draw in draws]):
                    self._reset({})
                now = time.perf_counter()
                if step == 0:  # which may have compiled or loaded something
                    deadline = now + seconds
                if now > deadline:
                    break
        except EnvironmentContractError as error:
            self._notes.contract(error, self._place())
            return False
        return True

    def _reset(self, kwargs: dict[str, Any]) -> None:
        self._episode, self._length, start = self._episode + 1, 0, time.perf_counter()
        answer = guarded("reset", self._env.reset, **kwargs)
        self.reset_seconds.append(time.perf_counter() - start)
        obs, info = unpack("reset", answer, RESET_PARTS, "reset()")
        self._check_info(info)
        self.answers.append((self._observe(obs), "", "", self._read_mask(info)))

    def _step(self, draws: list[np.ndarray]) -> bool:
        sent = self._door(own_actions(self._action_space, draws, self._masks.rows))
        action = spaces.unflatten(self._action_space, [leaf[0] for leaf in sent])
        self._length, start = self._length + 1, time.perf_counter()
        answer = guarded("step", self._env.step, action)
        self.step_seconds.append(time.perf_counter() - start)
        obs, reward, terminated, truncated, info = unpack("step", answer, STEP_PARTS, "step()")
        self._check_info(info)
        self._check_reward(reward)
        ended = self._flag("terminated", terminated), self._flag("truncated", truncated)
        mask = b"" if any(ended) else self._read_mask(info)
        self.answers.append((self._observe(obs), repr(reward), repr(ended), mask))
        if any(ended):
            self.episodes.append((self._length, *ended))
        return any(ended)

    def _place(self) -> str:
        return f", at {f'step {self._length}' if self._length else 'the reset'} of episode {self._episode}{self.during}"

    def _check_info(self, info: Any) -> None:
        if not isinstance(info, dict):
            self._notes.warn("info", f"is {_shown(info)}, not a dict{self._place()}", "Return {} where it is empty.")

    def _read_mask(self, info: Any) -> bytes:
        """Takes in the mask of the next action."""
        self._masks.write(0, find_mask(self._env, info, self._masks_by_method, "the environment"), "the environment")
        if self._masks.rows is None:
            return b""
        self.allowed.append(float(self._masks.rows.mean()))
        return self._masks.rows.tobytes()

    def _check_reward(self, reward: Any) -> None:
        try:
            reward = one_number(reward)  # as training reads it
        except (TypeError, ValueError):
            self._notes.problem("reward", f"is {_shown(reward)}{self._place()}", "Return one number: float(reward).")
            return
        if not abs(float(reward)) <= float(np.finfo(np.float32).max):
            self._notes.problem("reward", f"is {float(reward):.3g}, not a finite float32{self._place()}", FINITE_FIX)
        else:
            self.rewards.append(float(reward))

    def _flag(self, name: str, flag: Any) -> bool:
        if not isinstance(flag, bool | np.bool_):
            note = self._notes.warn if _is_number(flag) else self._notes.problem
            note(name, f"is {_shown(flag)}, not a bool{self._place()}", f"Return bool({name}).")
        return bool(flag) if _is_number(flag) else False

    def _observe(self, obs: Any) -> int:
        """Checks an observation and returns its checksum."""
        if checksum(self._last[0]) != self._last[1]:
            text = f"was written into after it had been returned{self._place()}"
            fix = "Return a copy: Inchworm makes one at once, but wrappers and other libraries do not."
            self._notes.warn("observation", text, fix)
        try:
            values = self._read(obs, "the environment")
        except EnvironmentContractError as error:
            self._notes.contract(error, self._place())
            values = []
        for index, value in enumerate(values):
            leaf, flat = self.leaves[index], value.ravel()
            if isinstance(leaf, Box) and self._is_usable(leaf, flat):
                flat = flat[:MAX_FEATURES].astype(np.float64)
                self.squares[index] += flat**2
                self.smallest[index] = np.minimum(self.smallest[index], flat)
                self.largest[index] = np.maximum(self.largest[index], flat)
        self._last = values, checksum(values)
        return self._last[1]

    def _is_usable(self, leaf: Box, flat: np.ndarray) -> bool:
        """Whether training can use the numbers of a Box; also notes where they are not what its space says."""
        if flat.dtype != leaf.dtype:
            text = f"is {flat.dtype} where its space says {leaf.dtype}{self._place()}"
            self._notes.warn("observation", text, f"Return observation.astype({leaf.dtype!r}), or mend the space.")
        for index in np.flatnonzero(~(np.abs(flat) <= np.finfo(np.float32).max))[:1]:
            text = f"is {flat[index]:.6g} in number {index}, not a finite float32{self._place()}"
            self._notes.problem("observation", text, FINITE_FIX)
            return False
        for index in np.flatnonzero((flat < leaf.low) | (flat > leaf.high))[:1]:
            at_low, at_high = (np.broadcast_to(bound, flat.shape)[index] for bound in (leaf.low, leaf.high))
            text = f"is {flat[index]:.6g} in number {index}, outside [{at_low:g}, {at_high:g}]{self._place()}"
            self._notes.warn("observation", text, "Mend the numbers, or the bounds of observation_space.")
        return True


def random_draws(space: spaces.Space, steps: int, seed: int) -> list[np.ndarray]:
    """What actions are made from, for each leaf (steps, ...), spread over the space.

    That is a Box's numbers, standard normal where it has no bounds, and of other leaves a rank for each choice: the
    one of the highest rank is made among those that are allowed.
    """
    rng = np.random.default_rng(seed)
    draws = []
    leaves = spaces.leaves(space)
    numbers = sum(leaf.size if isinstance(leaf, Box) else spaces.num_mask_columns(leaf) for leaf in leaves)
    steps = max(1, min(steps, MAX_DRAWN // max(numbers, 1)))
    for leaf in leaves:
        if isinstance(leaf, Box):
            low, high = spaces.bounds(leaf)
            finite = np.isfinite(high - low)
            uniform = rng.uniform(np.where(finite, low, 0), np.where(finite, high, 0), (steps, leaf.size))
            draws.append(np.where(finite, uniform, rng.normal(size=(steps, leaf.size))))
        else:
            draws.append(rng.random((steps, spaces.num_mask_columns(leaf))))
    return draws


def extreme_draws(space: spaces.Space) -> list[np.ndarray]:
    """The draws of three actions: all lowest bounds or choices, all highest, and by turns."""
    draws = []
    for leaf in spaces.leaves(space):
        if isinstance(leaf, Box):
            # Five deviations are as far as the policy goes where nothing bounds it.
            low, high = (np.where(np.isfinite(bound), bound, 5 * np.sign(bound)) for bound in spaces.bounds(leaf))
            by_turns = np.where(np.arange(leaf.size) % 2, low, high)
        else:
            groups = spaces.mask_groups(leaf)
            high = np.concatenate([np.arange(size) for size in groups])
            low, by_turns = -high, high * np.repeat((-1) ** np.arange(len(groups)), groups)
        draws.append(np.stack([low, high, by_turns]))
    return draws


def own_actions(space: spaces.Space, draws: list[np.ndarray], mask: np.ndarray | None) -> list[np.ndarray]:
    """A policy's own actions (N, ...) for draws (N, ...), held to a mask (N, num_mask_columns)."""
    own, end = [], 0
    for leaf, draw in zip(spaces.leaves(space), draws, strict=True):
        if isinstance(leaf, Box):
            own.append(draw.astype(np.float32))
            continue
        groups, start = spaces.mask_groups(leaf), end
        end = start + sum(groups)
        ranks = draw if mask is None else np.where(mask[:, start:end], draw, -np.inf)
        chosen = [group.argmax(axis=1) for group in np.split(ranks, np.cumsum(groups)[:-1], axis=1)]
        own.append((chosen[0] if isinstance(leaf, Discrete) else np.stack(chosen, axis=1)).astype(np.int32))
    return own


def guarded(method: str, call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """What the user's code returns; an error of its own is told with the line it comes from."""
    try:
        return call(*args, **kwargs)
    except InchwormError:
        raise
    except (Exception, SystemExit) as error:
        what = f"{type(error).__name__}: {first_line(error)}"
        raise EnvironmentContractError(f"env.{method}", what, "was raised", mending(method, error)) from error


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) or (getattr(value, "shape", None) == () and np.asarray(value).dtype.kind in "biuf")


def _shown(value: Any) -> str:
    return textwrap.shorten(repr(value) if value is None else f"{type(value).__name__} {value!r}", 60)
