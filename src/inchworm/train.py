"""The loop: Algorithm 1 of arXiv:1707.06347, and what watches over it."""

import time
import warnings
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import jax
import numpy as np

from inchworm.algorithms.state import TrainState
from inchworm.config import RunConfig
from inchworm.errors import InvariantError, NonFiniteError
from inchworm.numerics.tree import to_arrays
from inchworm.types import Episodes, Metrics

MAX_SKIPPED_IN_ROW = 10
"""Updates that may be dropped one after the other before training stops."""


class Collector(Protocol):
    """Where experience comes from, and what is learned from it."""

    acted_with: Any
    """The model and the statistics of the last rollout."""

    def advance(self, state: TrainState) -> tuple[TrainState, Metrics, Episodes]:
        """Collects T steps of N environments, going on where the last rollout ended, and updates from them."""
        ...


@dataclass(frozen=True)
class Iteration:
    """What observers of a run are told after each iteration."""

    iteration: int
    """Iterations done, 1 after the first."""
    env_steps: int
    """Environment steps done, over all environments."""
    total_steps: int
    seconds: float
    """Wall-clock time of training so far, resumed parts included."""
    metrics: dict[str, float]
    """By their names in the glossary; a metric that has no value yet is absent."""


Observer = Callable[[Iteration], Any]


@dataclass
class Progress:
    """What the loop remembers on the host; a checkpoint holds it too."""

    iteration: int = 0
    seconds: float = 0.0
    returns: deque[float] = field(default_factory=lambda: deque(maxlen=100))
    """Returns of the last 100 episodes."""
    lengths: deque[float] = field(default_factory=lambda: deque(maxlen=100))
    episodes: int = 0

    @property
    def mean_return(self) -> float | None:
        """Mean return of the last 100 episodes, None before the first has ended."""
        return float(np.mean(self.returns)) if self.returns else None


def train_loop(
    config: RunConfig,
    state: TrainState,
    collector: Collector,
    progress: Progress,
    observers: Sequence[Observer],
    save: Callable[[TrainState, Progress], None],
    interrupted: Callable[[], str | None],
) -> tuple[TrainState, str]:
    """Collects and updates until there is a reason to stop.

    Args:
        config: budget, limits and checkpoint interval.
        state: where to start.
        collector: takes the state from one iteration to the next.
        progress: is kept up to date in place.
        observers: called after each iteration, in order.
        save: writes a checkpoint.
        interrupted: names the reason if someone asked for the run to stop.

    Returns:
        The last state, which has been saved, and why the loop stopped.

    Raises:
        InvariantError: acting and updating disagree about the policy.
        NonFiniteError: too many updates in a row met NaN or infinity.
    """
    steps_per_iteration = config.algorithm.steps_per_iteration
    observers = list(observers)
    last_save = last_clock = time.monotonic()
    reason = None
    while reason is None:
        before = state
        state, raw_metrics, episodes = collector.advance(state)
        metrics = {name: float(value) for name, value in jax.device_get(raw_metrics).items()}
        _check_invariant(metrics, before, collector)

        now = time.monotonic()
        seconds, last_clock = max(now - last_clock, 1e-9), now
        progress.iteration += 1
        progress.seconds += seconds
        metrics |= _episode_metrics(progress, episodes)
        metrics["time/steps_per_second"] = steps_per_iteration / seconds
        env_steps = progress.iteration * steps_per_iteration
        report = Iteration(progress.iteration, env_steps, config.total_steps, progress.seconds, metrics)
        told_to_stop = _tell(observers, report)
        reason = "callback" if told_to_stop else _stop_reason(config, progress) or interrupted()
        stuck = metrics["guard/skipped"] and int(state.skipped_in_row) >= MAX_SKIPPED_IN_ROW
        if reason is not None or stuck or now - last_save >= config.checkpoint_seconds:
            save(state, progress)
            last_save = now
        if stuck:
            raise NonFiniteError(
                f"{MAX_SKIPPED_IN_ROW} updates in a row met NaN or infinity in rewards, observations, gradients or "
                "parameters; all were dropped and the parameters are those of the last good update. Check the "
                "environment's rewards and observations with `inchworm check`, or lower learning_rate."
            )
    return state, reason


def _stop_reason(config: RunConfig, progress: Progress) -> str | None:
    if progress.iteration * config.algorithm.steps_per_iteration >= config.total_steps:
        return "total_steps"
    if config.max_seconds is not None and progress.seconds >= config.max_seconds:
        return "max_seconds"
    full = len(progress.returns) == progress.returns.maxlen
    if config.stop_return is not None and full and np.mean(progress.returns) >= config.stop_return:
        return "stop_return"
    return None


def _episode_metrics(progress: Progress, episodes: Episodes) -> dict[str, float]:
    """Takes in the episodes that ended; their mean, and that of the last 100."""
    returns, lengths = episodes.episode_return[episodes.ended], episodes.episode_length[episodes.ended]
    progress.returns.extend(returns.tolist())
    progress.lengths.extend(lengths.tolist())
    progress.episodes += len(returns)
    metrics = {"episode/count": float(progress.episodes)}
    if len(returns):
        metrics |= {"episode/return": float(returns.mean()), "episode/length": float(lengths.mean())}
    if progress.mean_return is not None:
        metrics["episode/return_100"] = progress.mean_return
    return metrics


def _tell(observers: list[Observer], report: Iteration) -> bool:
    """Calls the observers; True if one returned True to stop. One that raises is dropped with a warning."""
    stop = False
    for observer in list(observers):
        try:
            answer = observer(report)
            stop |= isinstance(answer, bool | np.bool_) and bool(answer)
        except Exception as error:
            observers.remove(observer)
            name = getattr(observer, "__qualname__", type(observer).__qualname__)
            warnings.warn(f"{name} raised {type(error).__name__}: {error}. Training goes on without it.", stacklevel=2)
    return stop


def _check_invariant(metrics: dict[str, float], before: TrainState, collector: Collector) -> None:
    """The ratio must be 1 before the first step, or the clip and the KL mean nothing."""
    if forbidden := metrics.get("policy/forbidden_actions"):
        raise InvariantError(
            f"policy/forbidden_actions = {forbidden:.0f}: actions were stored that their mask forbids. Either a mask "
            "allows nothing, or masks, actions or log-probabilities of the rollout were changed between acting and "
            "updating."
        )
    drift, tolerance = metrics["policy/log_ratio_at_start"], metrics["policy/log_ratio_tolerance"]
    if metrics["guard/skipped"] or drift <= tolerance:
        return
    updated, acted = to_arrays((before.model, before.obs_stats)), to_arrays(collector.acted_with)
    moved = [name for name in updated if not np.array_equal(updated[name], acted[name])]
    cause = (
        f"Between acting and updating these moved: {', '.join(moved)}."
        if moved
        else "Parameters and statistics are the same, so the stored log-probabilities or actions were changed."
    )
    raise InvariantError(
        f"policy/log_ratio_at_start = {drift:.3g}: the policy being updated gives the stored actions other "
        f"log-probabilities than the policy that acted (up to {tolerance:.1g} is rounding). {cause}"
    )
