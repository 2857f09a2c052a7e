"""What is wrong with a run, in words: rules over its metrics, each with the one thing to try first.

A rule looks at the later half of a run, where not said otherwise, because the first updates of a good run look bad too.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from inchworm.algorithms.policy_gradient import A2C
from inchworm.algorithms.ppo import PPO
from inchworm.algorithms.settings import Settings
from inchworm.algorithms.trpo import TRPO
from inchworm.config import RunConfig
from inchworm.io.words import count, format_return
from inchworm.models.advice import Finding
from inchworm.models.heads import LOG_STD_RANGE
from inchworm.rl.schedules import Schedule

MIN_ITERATIONS = 10
"""Fewer say nothing."""
WINDOWS = 20
"""Into so many parts a run is cut to see how its returns went."""
HIGH_KL, MUCH_ABOVE = 0.1, 3.0
"""A KL(old‖new), in nats, that no update should have; and how far above its target is much."""
HIGH_CLIP_FRACTION = 0.4
LOW_EXPLAINED_VARIANCE = -0.05
"""Of returns that cannot be told beforehand a good value function explains nothing, and by chance a little less."""
COLLAPSED = 0.02
"""An entropy of choices, or a deviation of a Gaussian, that is no more than this of what it started with."""
MUCH_CLIPPED = 0.01
"""Share of normalised observations."""
MOSTLY_BEYOND = 0.8
"""Share of the numbers of actions."""
SLOW_SHARE = 0.8
"""Of the time, which one part takes."""


@dataclass(frozen=True)
class Watched:
    """What is known of a run."""

    config: RunConfig
    rows: Sequence[dict[str, Any]]
    """Of its metrics; a number that was not finite is None."""

    def all(self, name: str) -> np.ndarray:
        """A metric over the whole run, where it has a value."""
        return _values(self.rows, name)

    def late(self, name: str) -> np.ndarray:
        """A metric over the later half of the run."""
        return _values(self.rows[len(self.rows) // 2 :], name)

    @property
    def settings(self) -> Settings:
        return self.config.algorithm

    def windows(self) -> list[np.ndarray]:
        """The mean returns of iterations, in order, in `WINDOWS` parts of a run; without those where none ended."""
        parts = [self.rows[len(self.rows) * i // WINDOWS : len(self.rows) * (i + 1) // WINDOWS] for i in range(WINDOWS)]
        return [part for part in (_values(rows, "episode/return") for rows in parts) if len(part)]


def diagnose(config: RunConfig, rows: Sequence[dict[str, Any]]) -> list[Finding]:
    """What is wrong with a run, as far as its metrics tell; nothing of one that has hardly begun."""
    if len(rows) < MIN_ITERATIONS:
        return []
    run = Watched(config, rows)
    return [found for rule in RULES if (found := rule(run)) is not None]


def speed(rows: Sequence[dict[str, Any]]) -> dict[str, float] | None:
    """How the time of iterations was shared, of the later half; None where one compiled call does all."""
    later = rows[len(rows) // 2 :]
    steps = _values(later, "env_steps")
    rate, environment, policy = (
        _values(later, f"time/{name}") for name in ("steps_per_second", "environment", "policy")
    )
    if len(steps) < 2 or not len(environment) == len(policy) == len(rate) == len(steps):
        return None
    seconds = float(np.sum((steps[1] - steps[0]) / rate))
    shares = {"environment": float(environment.sum()) / seconds, "policy": float(policy.sum()) / seconds}
    return shares | {"update": max(0.0, 1.0 - sum(shares.values()))}


def _skipped(run: Watched) -> Finding | None:
    skipped = int(run.all("guard/skipped").sum())
    if not skipped:
        return None
    return Finding(
        "guard/skipped",
        f"{skipped} of {count(len(run.rows), 'update')} met NaN or infinity and were dropped",
        f"Look at rewards and observations with `inchworm check {run.config.env}`.",
    )


def _kl(run: Watched) -> Finding | None:
    if isinstance(run.settings, TRPO) and run.settings.line_search:
        return None  # its steps are held to it
    limit, word = HIGH_KL, f"{HIGH_KL}, which no update should reach,"
    target = getattr(run.settings, "target_kl", None) or getattr(run.settings, "max_kl", None)
    if isinstance(target, Schedule):
        limit, word = MUCH_ABOVE * target.start, f"{MUCH_ABOVE:g} times its target of {target.start:g}"
    kl = run.late("policy/kl")
    above = np.mean(kl > limit) if len(kl) else 0.0
    if above < 0.5:
        return None
    return Finding(
        "policy/kl",
        f"was above {word} in {above:.0%} of the later updates, {np.median(kl):.2g} in the middle",
        _smaller_steps(run.settings),
    )


def _clip_fraction(run: Watched) -> Finding | None:
    fraction = run.late("policy/clip_fraction")
    if not len(fraction) or np.median(fraction) <= HIGH_CLIP_FRACTION:
        return None
    return Finding(
        "policy/clip_fraction",
        f"was {np.median(fraction):.0%} in the middle of the later updates: most of a batch no longer moves the policy",
        _smaller_steps(run.settings),
    )


def _smaller_steps(settings: Settings) -> str:
    if isinstance(settings, PPO | A2C):
        return f"Lower learning_rate first, e.g. to a third of {_text(settings.learning_rate)}."
    return "Lower max_kl first, e.g. to a third."


def _explained_variance(run: Watched) -> Finding | None:
    """Where advantages are no smaller than they were: of returns that hardly vary any more nothing can be explained."""
    first = run.all("advantage/std")[:MIN_ITERATIONS]
    least = 0.25 * np.percentile(first, 25) if len(first) else 0.0
    lively = [row for row in run.rows[len(run.rows) // 2 :] if (row.get("advantage/std") or 0.0) > least]
    explained = _values(lively, "value/explained_variance")
    if len(explained) < MIN_ITERATIONS // 2 or np.median(explained) >= LOW_EXPLAINED_VARIANCE:
        return None
    fix = "Set normalize_return=True, so that it need not fit large numbers."
    if run.settings.normalize_return:
        fix = "Give the value function larger steps (value_learning_rate), or lower gae_lambda."
    return Finding(
        "value/explained_variance",
        f"was {np.median(explained):.2f} in the middle of the later updates: the value function predicts returns worse "
        "than their mean would",
        fix,
    )


def _advantages(run: Watched) -> Finding | None:
    """Of the whole run: one that has learned to earn the most at every step had others before."""
    spread, mean = run.all("reward/std"), run.all("reward/mean")
    fix = "See that the reward tells good actions from bad ones, or pay for steps on the way."
    if len(spread) and not spread.any() and (not mean.any() or not run.all("episode/terminations").any()):
        ended = ", and no episode ended by what the policy did" if mean.any() else ""
        text = f"every step of the run has paid {mean[0]:g}{ended}: all actions look alike"
        return Finding("advantage/std", text, fix)
    advantage = run.late("advantage/std")
    if len(advantage) and np.median(advantage) < 1e-5:
        text = f"was {np.median(advantage):.1g} in the middle of the later updates: all actions look alike"
        if not run.settings.normalize_return:
            fix = "Set normalize_return=True, if rewards are that small."
        return Finding("advantage/std", text, fix)
    return None


def _entropy(run: Watched) -> Finding | None:
    """Of choices; a policy that has become certain and earns more for it is well."""
    entropy = run.all("policy/entropy")
    if not len(entropy) or len(run.all("policy/std")):
        return None
    highest, later = entropy.max(), np.median(run.late("policy/entropy"))
    if later > COLLAPSED * highest or _has_improved(run):
        return None
    return Finding(
        "policy/entropy",
        f"has fallen from {highest:.2g} to {later:.1g} without a higher return: the policy takes the same actions "
        "whatever comes of them, and cannot learn of others",
        "Raise ent_coef, e.g. to 0.01, and lower learning_rate if that is not enough.",
    )


def _log_std(run: Watched) -> Finding | None:
    deviation, at_start = run.late("policy/std_min"), run.all("policy/std_min")
    if not len(deviation):
        return None
    floor, now = np.exp(LOG_STD_RANGE[0]), np.median(deviation)
    if run.settings.log_std == "state" and now <= 1.01 * floor:
        text = f"is at its floor of exp({LOG_STD_RANGE[0]:g})"
    elif not isinstance(run.settings.log_std, Schedule) and now < COLLAPSED * at_start[0]:
        text = f"has fallen from {at_start[0]:.2g} to {now:.1g}"
    else:
        return None
    return Finding(
        "policy/std_min",
        f"the smallest deviation of an action {text}: the policy no longer tries others",
        "Lower learning_rate first; if it falls again, raise ent_coef, e.g. to 0.001.",
    )


def _clipped_observations(run: Watched) -> Finding | None:
    clipped = run.late("observation/clipped")
    if not len(clipped) or np.median(clipped) <= MUCH_CLIPPED:
        return None
    return Finding(
        "observation/clipped",
        f"{np.median(clipped):.0%} of the observations' numbers lie more than five deviations from their mean and are "
        "clipped, so that the policy cannot tell them apart",
        "Scale them in the environment (a logarithm, if some are rare and huge), or set normalize_observation=False.",
    )


def _actions(run: Watched) -> Finding | None:
    beyond = run.late("action/out_of_bounds")
    if not len(beyond) or np.median(beyond) <= MOSTLY_BEYOND:
        return None
    return Finding(
        "action/out_of_bounds",
        f"{np.median(beyond):.0%} of the actions' numbers lie beyond their bounds and are clipped: most of what the "
        "policy tries is the same",
        'Set action_distribution to "beta" or "tanh_gaussian", or give the environment bounds of -1 and 1.',
    )


def _time_limit(run: Watched) -> Finding | None:
    """Where episodes come to end at the same, longest length, and always by termination."""
    lengths, longest = run.late("episode/length"), run.all("episode/length").max(initial=0.0)
    full = np.mean(lengths == longest) if len(lengths) else 0.0
    if longest < 10 or full < 0.9 or run.all("episode/truncations").any() or not run.all("episode/terminations").any():
        return None
    return Finding(
        "episode/terminations",
        f"in {full:.0%} of the later iterations every episode ended after exactly {longest:,.0f} steps, the most there "
        "are, and as a termination",
        "If that is a time limit, return it as truncated, so that values look past it.",
    )


def _fell(run: Watched) -> Finding | None:
    """Whether the returns of the last parts of a run lie far below its best one, beyond what chance does."""
    windows = run.windows()
    if len(windows) < WINDOWS // 2 or not run.all("episode/count").max(initial=0.0) >= 50:
        return None
    means = np.array([window.mean() for window in windows])
    best, last = int(np.argmax(means)), np.concatenate(windows[-2:])
    peak = windows[best]
    lost = peak.mean() - last.mean()
    noise = np.sqrt(peak.var() / len(peak) + last.var() / len(last))
    if best >= len(windows) - 3 or lost <= 0.5 * (peak.mean() - means.min()) or lost <= 4.0 * noise:
        return None
    when = (best + 0.5) / len(windows)
    return Finding(
        "episode/return",
        f"was {format_return(peak.mean())} when {when:.0%} of the run was done, and is "
        f"{format_return(last.mean())} at its end",
        "Lower learning_rate, or let it go to 0 (linear:A:0); the best policy is there: --which best.",
    )


RULES: tuple[Callable[[Watched], Finding | None], ...] = (
    *(_skipped, _advantages, _time_limit, _clipped_observations, _actions, _kl, _clip_fraction, _explained_variance),
    *(_entropy, _log_std, _fell),
)
"""In the order of what to look at first: what a policy is given to learn from, then how it learns."""


def _has_improved(run: Watched) -> bool:
    """Whether the later half earns more than the first tenth, beyond what chance does."""
    windows = run.windows()
    if len(windows) < 4:
        return False
    first, later = (np.concatenate(part) for part in (windows[:2], windows[len(windows) // 2 :]))
    return later.mean() - first.mean() > 3.0 * np.sqrt(first.var() / len(first) + later.var() / len(later))


def _values(rows: Sequence[dict[str, Any]], name: str) -> np.ndarray:
    return np.array([row[name] for row in rows if row.get(name) is not None], np.float64)


def _text(value: Any) -> str:
    return str(value) if isinstance(value, Schedule) else f"{value:g}"
