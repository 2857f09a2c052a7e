"""The loop: Algorithm 1 of arXiv:1707.06347, and what watches over it."""

import math
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from statistics import fmean
from typing import Any, NamedTuple

import jax
import numpy as np

from inchworm.algorithms.state import TrainState
from inchworm.collect.collector import Collector, Outcome
from inchworm.config import RunConfig
from inchworm.errors import EnvironmentContractError, InvariantError, NonFiniteError, TrainingError, WorkerError
from inchworm.signals import GivenUpError, leave
from inchworm.types import Episodes
from inchworm.warning import warn

MAX_SKIPPED_IN_ROW = 10
"""Updates that may be dropped one after the other before training stops."""
RETURNS = 100
"""How many of the last episodes make the score."""
RECENT_SHARE, RECENT_EPISODES = 0.01, 10
"""Episodes of the last hundredth of the budget tell how training goes now, or the last ten if that is more."""
CALL_SECONDS = 1.0
"""How long a call of several iterations should take, after which signals are heard and files are written."""


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
    """By their names in the glossary; a metric that has no value yet is absent. What a callback adds is logged too."""


Observer = Callable[[Iteration], Any]


class Ended(NamedTuple):
    """Episodes that ended in a thousandth of the budget."""

    env_steps: int
    """When the last of them had ended."""
    episodes: int
    total: float
    """The sum of their returns."""


@dataclass
class Progress:
    """What the loop remembers on the host; a checkpoint holds it too."""

    iteration: int = 0
    seconds: float = 0.0
    returns: deque[float] = field(default_factory=lambda: deque(maxlen=RETURNS))
    """Of the last episodes whose return is finite."""
    lengths: deque[float] = field(default_factory=lambda: deque(maxlen=RETURNS))
    episodes: int = 0
    recent: deque[Ended] = field(default_factory=deque)
    """Those of the last hundredth of the budget; a few entries, however many episodes and iterations that holds."""

    @property
    def mean_return(self) -> float | None:
        """Mean return of the last 100 episodes, None before the first has ended."""
        return fmean(self.returns) if self.returns else None

    @property
    def recent_return(self) -> float | None:
        """Mean return of the episodes of the last hundredth of the budget, or of the last ten if that is more."""
        count = sum(ended.episodes for ended in self.recent)
        if count >= RECENT_EPISODES:
            return sum(ended.total for ended in self.recent) / count
        return fmean(list(self.returns)[-RECENT_EPISODES:]) if self.returns else None

    def take(self, returns: Sequence[float], lengths: Sequence[float], env_steps: int, total_steps: int) -> None:
        """Takes in episodes that ended in an iteration, after so many steps of the budget."""
        self.returns.extend(returns)
        self.lengths.extend(lengths)
        ended, width = Ended(env_steps, len(returns), sum(returns)), max(RECENT_SHARE * total_steps / 10, 1.0)
        if self.recent and self.recent[-1].env_steps // width == env_steps // width:
            last = self.recent.pop()
            ended = Ended(env_steps, last.episodes + ended.episodes, last.total + ended.total)
        self.recent.append(ended)
        self.forget(env_steps, total_steps)

    def forget(self, env_steps: int, total_steps: int) -> None:
        """Drops what is no longer recent after so many steps of the budget."""
        while self.recent and self.recent[0].env_steps <= env_steps - RECENT_SHARE * total_steps:
            self.recent.popleft()


@dataclass
class LiveRun:
    """A run on its way through the loop."""

    config: RunConfig
    """Budget, limits and checkpoint interval."""
    progress: Progress
    """Is kept up to date."""
    observers: list[Observer]
    """Called after each iteration, in order."""
    save: Callable[[TrainState, Progress], None]
    """Writes a checkpoint."""
    reason: str | None = None
    """Why it stopped, None as long as it has not."""
    failure: TrainingError | None = None
    """The error to raise, where it stopped because it cannot go on."""
    interruption: BaseException | None = None
    """What an observer raised to end the program, as sys.exit() does; to be raised again when everything is saved."""
    told: set[tuple[int, type]] = field(default_factory=set)
    """Which observer has raised which kind of error."""
    saved: float = field(default_factory=time.monotonic)
    """When the last checkpoint was written."""

    def __post_init__(self) -> None:
        self.seconds_before = self.progress.seconds
        if self.steps_left <= 0:
            self.reason = "total_steps"

    @property
    def steps_left(self) -> int:
        """Environment steps until the budget is reached."""
        return self.config.total_steps - self.progress.iteration * self.config.algorithm.steps_per_iteration

    @property
    def iterations_left(self) -> int:
        """Iterations until the budget is reached, 0 for a run that has stopped."""
        return 0 if self.reason else -(-self.steps_left // self.config.algorithm.steps_per_iteration)

    def take(self, outcomes: Sequence[Outcome], seconds: float, moved: Callable[[], list[str]]) -> int:
        """Takes in iterations of so many seconds each.

        Returns:
            How many of them belong to the run: all, or those up to the one after which it stops.
        """
        for taken, (metrics, episodes) in enumerate(outcomes, start=1):
            self.failure = _broken_invariant(metrics, moved)
            if self.failure is not None:
                self.reason = "invariant"
            else:
                self._take(metrics, episodes, seconds)
            if self.reason is not None:
                return taken
        return len(outcomes)

    def _take(self, metrics: dict[str, float], episodes: Episodes, seconds: float) -> None:
        config, progress = self.config, self.progress
        progress.iteration += 1
        progress.seconds += seconds
        env_steps = progress.iteration * config.algorithm.steps_per_iteration
        metrics |= _episode_metrics(progress, episodes, env_steps, config.total_steps)
        metrics["time/steps_per_second"] = config.algorithm.steps_per_iteration / seconds
        skipped_in_row = metrics["guard/skipped_in_row"]
        report = Iteration(progress.iteration, env_steps, config.total_steps, progress.seconds, metrics)
        told_to_stop, self.interruption = _tell(self.observers, report, self.told)
        self.reason = "callback" if told_to_stop else _stop_reason(config, progress, self.seconds_before)
        if skipped_in_row >= MAX_SKIPPED_IN_ROW:
            self.reason = self.reason or "non_finite"
            self.failure = NonFiniteError(
                f"{MAX_SKIPPED_IN_ROW} updates in a row met NaN or infinity in rewards, observations, gradients or "
                "parameters; all were dropped and the parameters are those of the last good update. Check the "
                "environment's rewards and observations with `inchworm check`, or lower learning_rate."
            )


def train_loop(runs: Sequence[LiveRun], collector: Collector, interrupted: Callable[[], str | None]) -> None:
    """Collects and updates until there is a reason to stop each of the runs.

    Args:
        runs: from where they stand; each is told why it stopped, and its last state has been saved then.
        collector: takes all of them from one iteration to the next.
        interrupted: names the reason if someone asked for them to stop.

    Raises:
        EnvironmentContractError: an environment failed; what was learned until then has been saved.
        WorkerError: a process that steps environments died; likewise.
        KeyboardInterrupt, SystemExit: as asked for, where the first iteration does not end.
    """
    at_once, clock = 1, time.monotonic()
    float64 = jax.config.read("jax_enable_x64")
    while any(run.reason is None for run in runs):
        counts = [min(run.iterations_left, at_once) for run in runs]
        began = time.monotonic()
        try:
            outcomes = collector.advance(counts)
            check_precision(float64)
        except (EnvironmentContractError, WorkerError):
            for index, run in enumerate(runs):
                if counts[index] and run.progress.iteration:
                    run.save(collector.state(index), run.progress)
            raise
        except GivenUpError:
            if not all(run.progress.iteration for run in runs):
                leave(interrupted() or "SIGINT")
            for index, run in enumerate(runs):
                if counts[index]:
                    run.reason = interrupted()
                    run.save(collector.state(index), run.progress)
            return
        now = time.monotonic()
        # Wall-clock time, with what was logged and written since the last call.
        seconds, clock = max(now - clock, 1e-9) / max(counts), now
        taken = [
            run.take(rows, seconds, partial(collector.moved, index))
            for index, (run, rows) in enumerate(zip(runs, outcomes, strict=True))
        ]
        if taken != counts:
            collector.repeat(taken)
        fitting = int(CALL_SECONDS * max(counts) / max(now - began, 1e-9))
        at_once = max(1, min(fitting, collector.capacity, 8 * at_once))
        signal = interrupted()
        for index, run in enumerate(runs):
            if not counts[index]:
                continue
            run.reason = run.reason or signal
            due = run.reason is not None or time.monotonic() - run.saved >= run.config.checkpoint_seconds
            if due and not isinstance(run.failure, InvariantError):
                run.save(collector.state(index), run.progress)
                run.saved = time.monotonic()


def check_precision(before: bool) -> None:
    """Raises `EnvironmentContractError` if 64-bit numbers were switched on or off, which changes every result."""
    if (now := jax.config.read("jax_enable_x64")) != before:
        raise EnvironmentContractError(
            "jax_enable_x64",
            now,
            f"was {before} before, and has been changed by the environment or a callback, for all of the program",
            "Change it before training, or use `with jax.enable_x64(...)` around what needs it.",
        )


def _stop_reason(config: RunConfig, progress: Progress, seconds_before: float) -> str | None:
    if progress.iteration * config.algorithm.steps_per_iteration >= config.total_steps:
        return "total_steps"
    if config.max_seconds is not None and progress.seconds - seconds_before >= config.max_seconds:
        return "max_seconds"
    return "stop_return" if has_reached_return(config, progress.returns) else None


def has_reached_return(config: RunConfig, returns: Sequence[float]) -> bool:
    """Whether the last returns are such that the run is to stop; fewer than `RETURNS` are no score."""
    return config.stop_return is not None and len(returns) >= RETURNS and fmean(returns) >= config.stop_return


def _episode_metrics(progress: Progress, episodes: Episodes, env_steps: int, total_steps: int) -> dict[str, float]:
    """Takes in the episodes that ended; mean returns of these, of recent ones, and of the last 100, where finite."""
    # One reward that is NaN would make NaN of the means of the next hundred episodes.
    returns, lengths = episodes.episode_return[episodes.ended], episodes.episode_length[episodes.ended]
    progress.episodes += len(returns)
    told = [pair for pair in zip(returns.tolist(), lengths.tolist(), strict=True) if math.isfinite(pair[0])]
    metrics = {"episode/count": float(progress.episodes)}
    if told:
        finite_returns, finite_lengths = zip(*told, strict=True)
        progress.take(finite_returns, finite_lengths, env_steps, total_steps)
        metrics |= {"episode/return": fmean(finite_returns), "episode/length": fmean(finite_lengths)}
    progress.forget(env_steps, total_steps)
    for name, mean in {"return_recent": progress.recent_return, "return_100": progress.mean_return}.items():
        if mean is not None:
            metrics[f"episode/{name}"] = mean
    return metrics


def _tell(
    observers: Sequence[Observer], report: Iteration, told: set[tuple[int, type]]
) -> tuple[bool, BaseException | None]:
    """Calls the observers, all of them whatever one of them raises.

    Args:
        observers: in order.
        report: what they are told.
        told: which of them has raised which kind of error, which is added to: each is warned of once.

    Returns:
        Whether one returned True to stop, or raised what ends a program; and what it raised then. One that raises any
        other error is called again after the next iteration.
    """
    stop, interruption = False, None
    for index, observer in enumerate(observers):
        try:
            try:
                answer = observer(report)
                stop |= isinstance(answer, bool | np.bool_) and bool(answer)
            except Exception as error:
                if (index, type(error)) not in told:
                    told.add((index, type(error)))
                    name = getattr(observer, "__qualname__", type(observer).__qualname__)
                    warn(f"{name} raised {type(error).__name__}: {error}. Training goes on.")
        except BaseException as ending:  # a warning too, where these are errors
            stop, interruption = True, interruption or ending
    return stop, interruption


def _broken_invariant(metrics: dict[str, float], find_moved: Callable[[], list[str]]) -> InvariantError | None:
    """The ratio must be 1 before the first step, or the clip and the KL mean nothing."""
    if forbidden := metrics.get("policy/forbidden_actions"):
        return InvariantError(
            f"policy/forbidden_actions = {forbidden:.0f}: actions were stored that their mask forbids. Either a mask "
            "allows nothing, or masks, actions or log-probabilities of the rollout were changed between acting and "
            "updating."
        )
    drift, tolerance = metrics["policy/log_ratio_at_start"], metrics["policy/log_ratio_tolerance"]
    if metrics["guard/skipped"] or drift <= tolerance:
        return None
    moved = find_moved()
    cause = (
        f"Between acting and updating these moved: {', '.join(moved)}."
        if moved
        else "Parameters and statistics are the same, so the stored log-probabilities or actions were changed."
    )
    return InvariantError(
        f"policy/log_ratio_at_start = {drift:.3g}: the policy being updated gives the stored actions other "
        f"log-probabilities than the policy that acted (up to {tolerance:.1g} is rounding). {cause}"
    )
