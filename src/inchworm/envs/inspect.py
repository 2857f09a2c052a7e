"""A look at an environment before training in it: what it is, and whether it keeps its interface's promises.

Environments are made and lived in under checks: with random actions, with actions at the bounds, again with the
same seed, and through a snapshot that is taken up in new ones, as a resume does it.
"""

import contextlib
import json
import math
import random
import textwrap
import time
import traceback
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from numbers import Real
from typing import Any

import gymnasium
import jax
import numpy as np

from inchworm import spaces
from inchworm.envs.gymnasium import RESET_PARTS, STEP_PARTS, GymnasiumPool
from inchworm.envs.pool import ObservationReader, PoolSnapshot, StepBuffers, first_line, unpack
from inchworm.envs.source import EnvSource
from inchworm.errors import ConfigError, EnvironmentContractError, InchwormError
from inchworm.models.actor_critic import ActorCritic
from inchworm.models.observations import has_scale
from inchworm.spaces import Box, Discrete, EnvSpec

MAX_FEATURES = 100_000
"""Statistics are kept of this many numbers of each part of an observation."""

FINITE_FIX = "Find the division, root or logarithm that it comes from: updates that meet it are dropped."


@dataclass(frozen=True)
class Finding:
    """Something wrong or suspicious."""

    where: str
    """What it is about: reward, observation, env.reset, ..."""
    problem: str
    fix: str
    """What to do about it, a sentence of its own."""


@dataclass(frozen=True)
class Report:
    """What an inspection came to."""

    facts: dict[str, str]
    problems: tuple[Finding, ...]
    """What will break or spoil training."""
    warnings: tuple[Finding, ...]
    """What is suspicious, or may slow learning down."""


def inspect_environment(
    source: EnvSource,
    *,
    steps: int = 2000,
    seed: int = 0,
    seconds: float = 3.0,
    normalize_observation: bool = True,
    normalize_return: bool = True,
) -> Report:
    """Tries an environment out.

    Args:
        source: makes it.
        steps: random steps of the longest trial.
        seed: of the environments and of the actions.
        seconds: about how long all trials may take together, beside making the environments.
        normalize_observation: training will do so; then the scale of float observations does not matter.
        normalize_return: training will do so; then the scale of rewards does not matter.

    Raises:
        ConfigError: it is a vector environment.
        EnvironmentContractError: it cannot be made.
    """
    factory = source.factory
    if factory is None:
        raise ConfigError(
            "env",
            source.name,
            "is a vector environment, whose parts are out of reach",
            "Check one of its environments.",
        )
    notes, spec, limit = _Notes(), source.spec, source.max_episode_steps
    notes.facts["observation space"] = _describe(spec.observation_space)
    notes.facts["action space"] = _describe(spec.action_space)
    notes.facts["time limit"] = "none stated" if limit is None else f"{limit:,} steps"
    _check_policy(spec, notes)
    if isinstance(spec.action_space, Box | Discrete):
        own_actions = _random_actions(spec.action_space, steps, seed)
        actions = spaces.action_door(spec.action_space)(own_actions)
        with contextlib.ExitStack() as stack:

            def make() -> gymnasium.Env:
                env = _guarded("__init__", factory)
                stack.callback(_close, env, notes)
                return env

            global_state = _global_generators()
            main = _Trial(make(), spec.observation_space, notes)
            if main.live(actions, {"seed": seed}, seconds / 2):
                draws_globally = _global_generators() != global_state
                _report_episodes(main, limit, notes)
                _report_rewards(main, normalize_return, notes)
                _report_observations(main, normalize_observation, notes)
                _try_bounds(main, spec.action_space, seconds / 6)
                env = make()
                again, other = (_Trial(env, spec.observation_space, _Notes()) for _ in range(2))
                again.live(actions, {"seed": seed}, seconds / 6)
                other.live(actions[:500], {"seed": seed + 1}, seconds / 12)
                _compare(main, again, other, draws_globally, notes)
                if not notes.found(severe=True):
                    _try_resume(factory, spec, own_actions, seed, seconds / 6, notes)
    return Report(notes.facts, notes.found(severe=True), notes.found(severe=False))


class _Notes:
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


class _Trial:
    """One environment, every answer of which is checked and remembered."""

    def __init__(self, env: gymnasium.Env, space: spaces.Space, notes: _Notes) -> None:
        self._env, self._notes = env, notes
        self._read = ObservationReader(space)
        self._last: tuple[list[np.ndarray], int] = ([], 0)
        self._episode = self._length = 0
        self.during = ""
        self.leaves = spaces.leaves(space)
        sizes = [min(getattr(leaf, "size", 0), MAX_FEATURES) for leaf in self.leaves]
        self.squares, self.smallest, self.largest = (
            [np.full(size, start) for size in sizes] for start in (0.0, np.inf, -np.inf)
        )
        self.answers: list[tuple[int, str, str]] = []
        """The observation's checksum, the reward and the flags of each reset and step."""
        self.rewards: list[float] = []
        self.episodes: list[tuple[int, bool, bool]] = []
        """Length, terminated and truncated of each that ended."""
        self.step_seconds: list[float] = []
        self.reset_seconds: list[float] = []

    def live(self, actions: np.ndarray, reset: dict[str, Any], seconds: float) -> bool:
        """Resets, and sends the actions while there is time; False if an answer kept it from going on."""
        deadline = time.perf_counter() + seconds
        try:
            self._reset(reset)
            for action in actions.copy():
                if self._step(action):
                    self._reset({})
                if time.perf_counter() > deadline:
                    break
        except EnvironmentContractError as error:
            self._notes.contract(error, self._place())
            return False
        return True

    def _reset(self, kwargs: dict[str, Any]) -> None:
        self._episode, self._length, start = self._episode + 1, 0, time.perf_counter()
        answer = _guarded("reset", self._env.reset, **kwargs)
        self.reset_seconds.append(time.perf_counter() - start)
        obs, info = unpack("reset", answer, RESET_PARTS, "reset()")
        self._check_info(info)
        self.answers.append((self._observe(obs), "", ""))

    def _step(self, action: Any) -> bool:
        self._length, start = self._length + 1, time.perf_counter()
        answer = _guarded("step", self._env.step, action)
        self.step_seconds.append(time.perf_counter() - start)
        obs, reward, terminated, truncated, info = unpack("step", answer, STEP_PARTS, "step()")
        self._check_info(info)
        self._check_reward(reward)
        ended = self._flag("terminated", terminated), self._flag("truncated", truncated)
        self.answers.append((self._observe(obs), repr(reward), repr(ended)))
        if any(ended):
            self.episodes.append((self._length, *ended))
        return any(ended)

    def _place(self) -> str:
        return f", at {f'step {self._length}' if self._length else 'the reset'} of episode {self._episode}{self.during}"

    def _check_info(self, info: Any) -> None:
        if not isinstance(info, dict):
            self._notes.warn("info", f"is {_shown(info)}, not a dict{self._place()}", "Return {} where it is empty.")

    def _check_reward(self, reward: Any) -> None:
        if not _is_number(reward):
            self._notes.problem("reward", f"is {_shown(reward)}{self._place()}", "Return one number: float(reward).")
        elif not abs(float(reward)) <= float(np.finfo(np.float32).max):
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
        if _checksum(self._last[0]) != self._last[1]:
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
            if self._is_usable(leaf, flat) and isinstance(leaf, Box):
                flat = flat[:MAX_FEATURES].astype(np.float64)
                self.squares[index] += flat**2
                self.smallest[index] = np.minimum(self.smallest[index], flat)
                self.largest[index] = np.maximum(self.largest[index], flat)
        self._last = values, _checksum(values)
        return self._last[1]

    def _is_usable(self, leaf: Box | Discrete, flat: np.ndarray) -> bool:
        """Whether training can use the numbers of a leaf; also notes where they are not what its space says."""
        if isinstance(leaf, Discrete):
            # Nothing stands for a choice outside: the network would see zeros.
            low, high, note = leaf.start, leaf.start + leaf.n - 1, self._notes.problem
        else:
            low, high, note = leaf.low, leaf.high, self._notes.warn
            if flat.dtype != leaf.dtype:
                text = f"is {flat.dtype} where its space says {leaf.dtype}{self._place()}"
                self._notes.warn("observation", text, f"Return observation.astype({leaf.dtype!r}), or mend the space.")
        stored = spaces.storage_dtype(leaf)
        limit = np.finfo(stored).max if stored.kind == "f" else 1 if stored.kind == "b" else np.iinfo(stored).max
        for index in np.flatnonzero(~(np.abs(flat) <= limit))[:1]:
            text = f"is {flat[index]:.6g} in number {index}, not a finite {stored}{self._place()}"
            self._notes.problem("observation", text, FINITE_FIX)
            return False
        for index in np.flatnonzero((flat < low) | (flat > high))[:1]:
            at_low, at_high = (np.broadcast_to(bound, flat.shape)[index] for bound in (low, high))
            text = f"is {flat[index]:.6g} in number {index}, outside [{at_low:g}, {at_high:g}]{self._place()}"
            note("observation", text, "Mend the numbers, or the bounds of observation_space.")
        return True


def _check_policy(spec: EnvSpec, notes: _Notes) -> None:
    """Whether there is a policy for the spaces, and what it does about the bounds of its actions."""
    try:
        jax.eval_shape(lambda key: ActorCritic.init(key, spec, ()), jax.random.key(0))
    except EnvironmentContractError as error:
        notes.contract(error)
        return
    space = spec.action_space
    if isinstance(space, Discrete):
        notes.facts["policy"] = f"a probability for each of {space.n} actions"
        if space.n == 1:
            notes.warn("action", "there is only one to choose", "Offer a choice.")
    elif isinstance(space, Box):
        low, high = _bounds(space)
        normal_cdf = np.vectorize(lambda x: (1 + math.erf(x / math.sqrt(2))) / 2)
        clipped = 1 - (normal_cdf(high) - normal_cdf(low))
        notes.facts["policy"] = (
            f"Gaussian, at first of mean 0 and deviation 1, of which {_span(clipped, '.0%')} is clipped at the bounds"
        )
        infinite = np.isinf(high - low)
        for faulty, text in (
            (infinite, "which does not bound the Gaussian policy: whatever it draws is sent"),
            ((low > 0) | (high < 0), "which leaves out 0, around which the Gaussian policy starts"),
            (clipped > 0.75, "so narrow that nearly all first actions of the Gaussian policy are a bound itself"),
            (~infinite & (high - low > 10), "so wide that the Gaussian policy, of deviation 1, tries little of it"),
        ):
            for index in np.flatnonzero(faulty)[:1]:
                fix = "wrap it in gymnasium.wrappers.RescaleAction(env, -1, 1)."
                fix = "Give bounds of -1 and 1 and scale inside" + ("." if infinite.any() else f", or {fix}")
                notes.warn("action", f"number {index} has the range [{low[index]:g}, {high[index]:g}], {text}", fix)


def _report_episodes(main: _Trial, limit: int | None, notes: _Notes) -> None:
    """Where episodes end, how, and how fast it all is."""
    steps, lengths = len(main.step_seconds), [length for length, _, _ in main.episodes]
    terminated = sum(flag for _, flag, _ in main.episodes)
    ends = "no episode ended"
    if lengths:
        ends = f"{len(lengths):,} episodes ended after {_span(lengths, ',')} steps, {terminated:,} of them terminated"
    notes.facts["tried"] = f"{steps:,} random steps; {ends}"
    rate, reset = steps / max(sum(main.step_seconds), 1e-9), 1e3 * float(np.mean(main.reset_seconds))
    notes.facts["speed"] = (
        f"{rate:,.0f} steps/s of the environment alone ({1e6 / rate:,.0f} us a step), {reset:.2g} ms a reset"
    )
    if not lengths and limit is None:
        text = f"there is none, and no random episode ended in {steps:,} steps; returns are told of ended episodes only"
        fix = "If they should end: max_episode_steps at registration, or gymnasium.wrappers.TimeLimit."
        notes.warn("time limit", text, fix)
    both = sum(terminated and truncated and length != limit for length, terminated, truncated in main.episodes)
    if both:
        text = f"was true together with truncated at {both:,} of {len(lengths):,} ends, which counts as terminated"
        notes.warn("terminated", text, "Set it at an end of the task only, and truncated at a time limit only.")
    if len(lengths) >= 3 and max(lengths[1:]) == 1 < lengths[0]:
        fix = "See that reset() sets every counter and flag back."
        notes.problem("env.reset", "every episode but the first ended after one step", fix)
    elif len(lengths) >= 3 and len(set(lengths)) == 1 < lengths[0] and terminated == len(lengths):
        text = f"was true after exactly {lengths[0]:,} steps in all {len(lengths):,} episodes"
        notes.warn("terminated", text, "If that is a time limit, return it as truncated, so that values look past it.")


def _report_rewards(main: _Trial, normalized: bool, notes: _Notes) -> None:
    """How large rewards are."""
    if not main.rewards:
        return
    rewards = np.array(main.rewards)
    size = math.sqrt(np.mean(rewards**2))
    notes.facts["rewards"] = f"{_span(rewards, '.3g')} a step, mean {rewards.mean():.3g}, deviation {rewards.std():.3g}"
    if size == 0:
        text = "was 0 at every random step; there is nothing to learn from before some action earns one"
        notes.warn("reward", text, "Reward steps on the way, start nearer to the goal, or raise ent_coef.")
    elif rewards.min() == rewards.max() and not any(terminated for _, terminated, _ in main.episodes):
        text = f"was {rewards[0]:.3g} at every random step, and no episode terminated; all actions look alike"
        notes.warn("reward", text, "See that the reward tells good actions from bad ones.")
    elif not 0.01 <= size <= 10 and not normalized:
        text = f"is of size {size:.2g} (root mean square), far from the 1 that the value function learns best"
        notes.warn("reward", text, "Set normalize_return=True, or scale it.")


def _report_observations(main: _Trial, normalized: bool, notes: _Notes) -> None:
    """How large the numbers of observations are."""
    read = [index for index, largest in enumerate(main.largest) if np.isfinite(largest).any()]
    if read:
        smallest, largest = (np.concatenate([part[i] for i in read]) for part in (main.smallest, main.largest))
        still = np.count_nonzero(smallest == largest)
        notes.facts["observations"] = _span([smallest.min(), largest.max()], ".3g")
        notes.facts["observations"] += f", {still:,} of {len(smallest):,} numbers never change" if still else ""
    if len({checksum for checksum, _, _ in main.answers}) == 1:
        notes.warn("observation", "never changed", "See that step() computes it anew; else the policy sees nothing.")
    raw = [i for i in read if not (normalized and has_scale(main.leaves[i]))]
    sizes = np.concatenate([np.sqrt(main.squares[i] / len(main.answers)) for i in raw] or [np.ones(1)])
    sizes = sizes[sizes > 0]
    if sizes.size and sizes.max() > 100 * min(1.0, sizes.min()):
        text = f"has numbers of size {_span(sizes, '.2g')} (root mean square), which reach the network unscaled"
        notes.warn("observation", text, "Set normalize_observation=True, which takes floats only, or scale them.")


def _try_bounds(main: _Trial, space: Box | Discrete, seconds: float) -> None:
    """Some actions at the bounds, each for a few steps after a reset in mid-episode."""
    main.during = ", under actions at the bounds"
    if isinstance(space, Discrete):
        extremes = np.array([0, space.n - 1])
    else:
        # Five deviations are as far as the policy goes where nothing bounds it.
        low, high = (np.where(np.isfinite(bound), bound, 5 * np.sign(bound)) for bound in _bounds(space))
        extremes = np.stack([low, high, np.where(np.arange(space.size) % 2, low, high)])
    for action in spaces.action_door(space)(extremes):
        if not main.live(np.repeat(action[None], 20, axis=0), {}, seconds / len(extremes)):
            return


def _compare(main: _Trial, again: _Trial, other: _Trial, draws_globally: bool, notes: _Notes) -> None:
    """Whether the seed decides everything, and whether it decides anything."""
    for count, (first, second) in enumerate(zip(main.answers, again.answers, strict=False)):
        if first != second:
            parts = zip(("observation", "reward", "flag"), first, second, strict=True)
            part = next(name for name, one, another in parts if one != another)
            text = f"the same seed and actions gave another {part} at {f'answer {count}' if count else 'the reset'}"
            notes.facts["determinism"] = f"none: {text}"
            fix = "Draw from self.np_random only, after super().reset(seed=seed)"
            fix += "; NumPy's or Python's global generator was used." if draws_globally else "."
            notes.warn("determinism", f"{text}, so that no run can be repeated or resumed exactly", fix)
            return
    notes.facts["determinism"] = f"the same seed and actions gave the same {len(again.answers):,} answers, bit for bit"
    if all(first == second for first, second in zip(main.answers, other.answers, strict=False)):
        text = f"changes nothing: another one gave the same {len(other.answers):,} answers"
        notes.warn("seed", text, "If episodes should differ, draw from self.np_random after super().reset(seed=seed).")


def _try_resume(
    factory: Callable[[], Any], spec: EnvSpec, actions: np.ndarray, seed: int, seconds: float, notes: _Notes
) -> None:
    """Takes two environments up in mid-episode from a snapshot, as a resume does, and steps on."""
    lived, resumed = (StepBuffers.empty(spec.observation_space, 1, 2) for _ in range(2))
    actions = np.stack([actions, actions[::-1]], axis=1)
    with contextlib.ExitStack() as stack:
        try:
            old, new = (GymnasiumPool(factory, 2, seed) for _ in range(2))
            for pool in (old, new):
                stack.callback(_close, pool, notes)
            old.reset([leaf[0] for leaf in lived.obs])
            steps, deadline = 0, time.perf_counter() + seconds
            while steps < len(actions) and time.perf_counter() < deadline:
                old.step(actions[steps], 0, lived)
                steps += 1
            snapshot = old.snapshot()
            snapshot = PoolSnapshot(snapshot.arrays, json.loads(json.dumps(snapshot.document)))
            found = new.restore(snapshot, [leaf[0] for leaf in resumed.obs], np.zeros(2, bool))
            for action in [] if found else actions[: min(20, steps)]:
                rows = []
                for pool, buffers in ((old, lived), (new, resumed)):
                    pool.step(action, 0, buffers)
                    rows.append(_checksum([*buffers.next_obs, buffers.reward, *(leaf[1] for leaf in buffers.obs)]))
                if rows[0] != rows[1]:
                    found = ["the steps that follow are others (hidden randomness or state)"]
        except EnvironmentContractError as error:
            notes.contract(error, ", when made and stepped as training does")
            return
    notes.facts["resume"] = f"not exact: {found[0]}" if found else f"exact, tried after {steps:,} steps"
    if found and "none" not in notes.facts["determinism"]:
        fix = "Keep state in the instance only, set all of it in reset(), and draw from self.np_random only."
        notes.warn("resume", f"is not exact: {found[0]}", fix)


def _guarded(method: str, call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """What the user's code returns; an error of its own is told with the line it comes from."""
    try:
        return call(*args, **kwargs)
    except InchwormError:
        raise
    except Exception as error:
        frame = traceback.extract_tb(error.__traceback__)[-1]
        raise EnvironmentContractError(
            f"env.{method}",
            f"{type(error).__name__}: {first_line(error)}",
            "was raised",
            f"It comes from {frame.filename}, line {frame.lineno}.",
        ) from error


def _close(env: Any, notes: _Notes) -> None:
    try:
        _guarded("close", env.close)
    except EnvironmentContractError as error:
        notes.contract(error)


def _random_actions(space: Box | Discrete, steps: int, seed: int) -> np.ndarray:
    """A policy's own actions, spread over the space; standard normal where it has no bounds."""
    rng = np.random.default_rng(seed)
    if isinstance(space, Discrete):
        return rng.integers(space.n, size=steps)
    low, high = _bounds(space)
    finite = np.isfinite(high - low)
    uniform = rng.uniform(np.where(finite, low, 0), np.where(finite, high, 0), (steps, space.size))
    return np.where(finite, uniform, rng.normal(size=(steps, space.size)))


def _bounds(space: Box) -> tuple[np.ndarray, np.ndarray]:
    low, high = (np.broadcast_to(np.asarray(bound, np.float64), space.size) for bound in (space.low, space.high))
    return low, high


def _describe(space: spaces.Space) -> str:
    match space:
        case Box(shape, dtype):
            return f"Box {shape}, {dtype}" + (f", {_spread(space.low)} to {_spread(space.high)}" if space.size else "")
        case Discrete(n, start):
            return f"Discrete, {n} choices" + (f" from {start}" if start else "")
        case spaces.Dict(parts):
            return "Dict of " + "; ".join(f"{name}: {_describe(part)}" for name, part in parts)
        case spaces.Tuple(parts):
            return "Tuple of " + "; ".join(_describe(part) for part in parts)


def _spread(bound: float | tuple[float, ...]) -> str:
    """A bound: one number, a few, or between which they are."""
    if isinstance(bound, tuple) and len(bound) <= 6:
        return "[" + ", ".join(f"{value:.3g}" for value in bound) + "]"
    return f"{bound:.3g}" if not isinstance(bound, tuple) else f"[{min(bound):.3g} ... {max(bound):.3g}]"


def _span(values: Any, form: str) -> str:
    """One value, or the smallest and the largest."""
    low, high = (format(bound, form) for bound in (np.min(values), np.max(values)))
    return low if low == high else f"{low} to {high}"


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) or (getattr(value, "shape", None) == () and np.asarray(value).dtype.kind in "biuf")


def _shown(value: Any) -> str:
    return textwrap.shorten(repr(value) if value is None else f"{type(value).__name__} {value!r}", 60)


def _checksum(leaves: list[np.ndarray]) -> int:
    checksum = 0
    for leaf in leaves:
        checksum = zlib.crc32(np.ascontiguousarray(leaf).data, checksum)
    return checksum


def _global_generators() -> Any:
    return random.getstate(), repr(np.random.get_state(legacy=False))
