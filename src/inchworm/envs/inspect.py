"""A look at an environment before training in it: what it is, and whether it keeps its interface's promises.

Environments are made and lived in under checks: with random actions, with actions at the bounds, again with the
same seed, and through a snapshot that is taken up in new ones, as a resume does it.
"""

import contextlib
import json
import math
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import gymnasium
import jax
import numpy as np

from inchworm import spaces
from inchworm.envs.episode_log import checksum
from inchworm.envs.gymnasium import GymnasiumPool
from inchworm.envs.making import EnvFactory
from inchworm.envs.masks import UNREAD_MASK, shows_mask
from inchworm.envs.pool import PoolSnapshot, StepBuffers
from inchworm.envs.source import EnvSource
from inchworm.envs.trial import (
    Answer,
    Notes,
    Trial,
    extreme_draws,
    guarded,
    own_actions,
    random_draws,
)
from inchworm.errors import ConfigError, EnvironmentContractError
from inchworm.models.actor_critic import make_model
from inchworm.models.advice import Finding, advise, clipped_at_first
from inchworm.models.observations import reaches_network_raw
from inchworm.models.settings import ModelSettings
from inchworm.spaces import Box, Discrete, EnvSpec, MultiBinary, MultiDiscrete


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
    spec, limit = source.spec, source.max_episode_steps
    notes = Notes()
    notes.facts["observation space"] = spaces.describe(spec.observation_space)
    notes.facts["action space"] = spaces.describe(spec.action_space)
    notes.facts["time limit"] = "none stated" if limit is None else f"{limit:,} steps"
    _check_policy(spec, notes)
    draws = random_draws(spec.action_space, steps, seed)
    with _opened(factory, notes) as env:
        global_state = _global_generators()
        main = Trial(env, spec, notes)
        if not main.live(draws, {"seed": seed}, seconds / 2):
            return Report(notes.facts, notes.found(severe=True), notes.found(severe=False))
        draws_globally = _global_generators() != global_state
        answers = main.answers.copy()
        _report_episodes(main, limit, notes)
        _report_masks(main, spec, notes)
        _report_rewards(main, normalize_return, notes)
        _report_observations(main, normalize_observation, notes)
        _try_bounds(main, spec.action_space, seconds / 6)
    try:
        with _opened(factory, notes) as env:
            again, other = (Trial(env, spec, Notes()) for _ in range(2))
            again.live(draws, {"seed": seed}, seconds / 6)
            other.live([draw[:500] for draw in draws], {"seed": seed + 1}, seconds / 12)
            num_envs = _try_another(factory, notes)
        _compare(answers, again.answers, other.answers, draws_globally, notes)
    except EnvironmentContractError as error:
        notes.contract(error, ", when made again after it was closed")
    else:
        if source.origin is not None and not notes.found(severe=True):
            _try_resume(factory, num_envs, spec, draws, seed, seconds / 6, notes)
    return Report(notes.facts, notes.found(severe=True), notes.found(severe=False))


@contextlib.contextmanager
def _opened(factory: EnvFactory, notes: Notes) -> Iterator[gymnasium.Env]:
    """An environment that is closed at the end, so that there is none beside it but where two are asked for."""
    env = guarded("__init__", factory)
    try:
        yield env
    finally:
        try:
            guarded("close", env.close)
        except EnvironmentContractError as error:
            notes.contract(error)


def _try_another(factory: EnvFactory, notes: Notes) -> int:
    """How many environments can be open at once, of two; one is."""
    try:
        with _opened(factory, notes):
            return 2
    except EnvironmentContractError as error:
        what = error.value if error.field == "env.__init__" else error.problem.removeprefix("cannot be made: ")
        notes.warn("num_envs", f"only one can be open at a time: {what}, at the second", "Train it with num_envs=1.")
        return 1


def _check_policy(spec: EnvSpec, notes: Notes) -> None:
    """Whether there is a policy for the spaces, and what may keep it from learning well."""
    try:
        jax.eval_shape(lambda key: make_model(key, spec, ModelSettings()), jax.random.key(0))
    except EnvironmentContractError as error:
        notes.contract(error)
        return
    for finding in advise(spec, ModelSettings()):
        notes.warn(finding.where, finding.problem, finding.fix)
    leaves = spaces.leaves(spec.action_space)
    notes.facts["policy"] = "; ".join(_policy_of(leaf) for leaf in leaves)
    if not any(isinstance(leaf, Box) for leaf in leaves) and set(spaces.mask_groups(spec.action_space)) == {1}:
        notes.warn("action", "there is only one to choose", "Offer a choice.")


def _policy_of(leaf: spaces.Leaf) -> str:
    """What chooses a leaf of actions."""
    match leaf:
        case Discrete(n):
            return f"a probability for each of {n} actions"
        case MultiDiscrete(nvec):
            return f"a probability for each choice of {len(nvec)} numbers"
        case MultiBinary():
            return f"a probability for each of {leaf.size} bits"
    clipped = _span(clipped_at_first(leaf, 1.0), ".0%")
    return f"Gaussian, at first of mean 0 and deviation 1, of which {clipped} is clipped at the bounds"


def _report_episodes(main: Trial, limit: int | None, notes: Notes) -> None:
    """Where episodes end, how, and how fast it all is."""
    steps, lengths = len(main.step_seconds), [length for length, _, _ in main.episodes]
    terminated = sum(flag for _, flag, _ in main.episodes)
    ends = "no episode ended"
    if lengths:
        ends = f"{len(lengths):,} episodes ended after {_span(lengths, ',')} steps, {terminated:,} of them terminated"
    notes.facts["tried"] = f"{steps:,} random steps; {ends}"
    # The first may compile or load something.
    step, reset = (float(np.mean(seconds[1:] or seconds)) for seconds in (main.step_seconds, main.reset_seconds))
    notes.facts["speed"] = (
        f"{1 / max(step, 1e-9):,.0f} steps/s of the environment alone ({1e6 * step:,.0f} us a step), "
        f"{1e3 * reset:.2g} ms a reset"
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


def _report_masks(main: Trial, spec: EnvSpec, notes: Notes) -> None:
    """Whether there are action masks, and how much they forbid."""
    notes.facts["action masks"] = "none"
    if main.allowed:
        notes.facts["action masks"] = f"given; they allow {_span(main.allowed, '.0%')} of the choices"
    elif shows_mask(spec):
        notes.warn(UNREAD_MASK.where, UNREAD_MASK.problem, UNREAD_MASK.fix)


def _report_rewards(main: Trial, normalized: bool, notes: Notes) -> None:
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


def _report_observations(main: Trial, normalized: bool, notes: Notes) -> None:
    """How large the numbers of observations are."""
    read = [index for index, largest in enumerate(main.largest) if np.isfinite(largest).any()]
    if read:
        smallest, largest = (np.concatenate([part[i] for i in read]) for part in (main.smallest, main.largest))
        still = np.count_nonzero(smallest == largest)
        notes.facts["observations"] = _span([smallest.min(), largest.max()], ".3g")
        notes.facts["observations"] += f", {still:,} of {len(smallest):,} numbers never change" if still else ""
    if len({answer[0] for answer in main.answers}) == 1:
        notes.warn("observation", "never changed", "See that step() computes it anew; else the policy sees nothing.")
    raw = [i for i in read if reaches_network_raw(main.leaves[i], normalized)]
    sizes = np.concatenate([np.sqrt(main.squares[i] / len(main.answers)) for i in raw] or [np.ones(1)])
    sizes = sizes[sizes > 0]
    if sizes.size and sizes.max() > 100 * min(1.0, sizes.min()):
        text = f"has numbers of size {_span(sizes, '.2g')} (root mean square), which reach the network unscaled"
        notes.warn("observation", text, "Set normalize_observation=True, which takes floats only, or scale them.")


def _try_bounds(main: Trial, space: spaces.Space, seconds: float) -> None:
    """Some actions at the bounds, each for a few steps after a reset in mid-episode."""
    main.during = ", under actions at the bounds"
    draws = extreme_draws(space)
    for index in range(3):
        if not main.live([np.repeat(draw[index : index + 1], 20, axis=0) for draw in draws], {}, seconds / 3):
            return


def _compare(main: list[Answer], again: list[Answer], other: list[Answer], draws_globally: bool, notes: Notes) -> None:
    """Whether the seed decides everything, and whether it decides anything."""
    for count, (first, second) in enumerate(zip(main, again, strict=False)):
        if first != second:
            parts = zip(("observation", "reward", "flag", "mask"), first, second, strict=True)
            part = next(name for name, one, another in parts if one != another)
            text = f"the same seed and actions gave another {part} at {f'answer {count}' if count else 'the reset'}"
            notes.facts["determinism"] = f"none: {text}"
            fix = "Draw from self.np_random only, after super().reset(seed=seed)"
            fix += "; NumPy's or Python's global generator was used." if draws_globally else "."
            notes.warn("determinism", f"{text}, so that no run can be repeated or resumed exactly", fix)
            return
    notes.facts["determinism"] = (
        f"the same seed and actions gave the same {min(len(main), len(again)):,} answers, bit for bit"
    )
    if all(first == second for first, second in zip(main, other, strict=False)):
        text = f"changes nothing: another one gave the same {min(len(main), len(other)):,} answers"
        notes.warn("seed", text, "If episodes should differ, draw from self.np_random after super().reset(seed=seed).")


def _try_resume(
    factory: EnvFactory, num_envs: int, spec: EnvSpec, draws: list[np.ndarray], seed: int, seconds: float, notes: Notes
) -> None:
    """Takes environments up in mid-episode from a snapshot, as a resume does, and steps on."""
    buffers = StepBuffers.empty(spec.observation_space, 1, num_envs)
    draws = [np.stack([draw, draw[::-1]][:num_envs], axis=1) for draw in draws]
    door = spaces.action_door(spec.action_space, "clip")

    def step(pool: GymnasiumPool, count: int) -> int:
        pool.step(door(own_actions(spec.action_space, [draw[count] for draw in draws], pool.mask)), 0, buffers)
        masks = [] if pool.mask is None else [pool.mask]
        return checksum([*buffers.next_obs, buffers.reward, *(leaf[1] for leaf in buffers.obs), *masks])

    current = [leaf[0] for leaf in buffers.obs]
    try:
        with contextlib.closing(GymnasiumPool(factory, num_envs, seed)) as pool:
            pool.reset(current)
            steps, deadline = 0, time.perf_counter() + seconds
            while steps < len(draws[0]) and time.perf_counter() < deadline:
                step(pool, steps)
                steps += 1
            snapshot = pool.snapshot()
            snapshot = PoolSnapshot(snapshot.arrays, json.loads(json.dumps(snapshot.document)))
            after = [step(pool, count) for count in range(min(20, steps))]
        with contextlib.closing(GymnasiumPool(factory, num_envs, seed)) as pool:
            found = pool.restore(snapshot, current, np.zeros(num_envs, bool))
            if not found and after != [step(pool, count) for count in range(len(after))]:
                found = ["the steps that follow are others (hidden randomness or state)"]
    except EnvironmentContractError as error:
        notes.contract(error, ", when made and stepped as training does")
        return
    notes.facts["resume"] = f"not exact: {found[0]}" if found else f"exact, tried after {steps:,} steps"
    if found and "none" not in notes.facts["determinism"]:
        fix = "Keep state in the instance only, set all of it in reset(), and draw from self.np_random only."
        notes.warn("resume", f"is not exact: {found[0]}", fix)


def _span(values: Any, form: str) -> str:
    """One value, or the smallest and the largest."""
    low, high = (format(bound, form) for bound in (np.min(values), np.max(values)))
    return low if low == high else f"{low} to {high}"


def _global_generators() -> Any:
    return random.getstate(), repr(np.random.get_state(legacy=False))
