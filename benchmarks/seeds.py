"""Measure how much several seeds at once train faster than one.

    python benchmarks/seeds.py --rounds 5

Eight seeds together, `iw.train_seeds`, beside one alone, `iw.train`: environment steps of all runs per second of the
whole call. With JAX CartPole the eight are divided between the cores of one process; with HalfCheetah-v5 each is a
process of its own, one for each core at a time, and the one alone is held on one core. The import of the package, on
both sides and in each process, starting, compiling and writing all files are in the time; programs were compiled before
and come from JAX's cache.
The result is written to benchmarks/results/seeds.json.
"""

from __future__ import annotations

import os
import tempfile
import time
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

import tyro

from measuring import RESULTS, commit, console, in_fresh_process, machine, verdict, write_result

SEEDS = 8


@dataclass(frozen=True, kw_only=True)
class Work:
    """What is trained, and what Inchworm promises for it on two cores."""

    env_id: str
    backend: str
    total_steps: int
    """Of each run."""
    one_core: bool
    """Whether the run alone is held on one core."""
    ratio: float
    settings: dict[str, Any]


WORKS = {
    "jax-cartpole": Work(
        env_id="CartPole-v1",
        backend="jax",
        total_steps=2_000_000,
        one_core=False,
        ratio=1.7,
        settings={"num_envs": 4, "horizon": 128, "minibatch_size": 128, "num_epochs": 4},
    ),
    "halfcheetah-processes": Work(
        env_id="HalfCheetah-v5",
        backend="gymnasium",
        total_steps=1_000_000,  # a usual length; starting and ending a process take 1.7 s whatever it is
        one_core=True,
        ratio=1.8,
        settings={"num_envs": 8, "horizon": 256, "minibatch_size": 64, "num_epochs": 10},
    ),
}


def main(rounds: int = 5) -> None:
    """Compares eight seeds at once with one.

    Args:
        rounds: trainings of one and of eight, in turn; who begins changes from round to round.
    """
    source = commit()
    works = {}
    for name, work in WORKS.items():
        in_fresh_process(steps_per_second, work, SEEDS, work.total_steps // 10)  # compiles
        in_fresh_process(steps_per_second, work, 1, work.total_steps // 10)
        rates: dict[str, list[float]] = {"one": [], "eight": []}
        for index in range(rounds):
            sides = [("one", 1), ("eight", SEEDS)]
            for side, count in sides[:: 1 if index % 2 == 0 else -1]:
                rates[side].append(in_fresh_process(steps_per_second, work, count, work.total_steps))
        ratios = [eight / one for one, eight in zip(rates["one"], rates["eight"], strict=True)]
        works[name] = {
            **asdict(work),
            "median_ratio": median(ratios),
            "ratios": ratios,
            "steps_per_second": rates,
        }
        console.print(
            f"{name}: {SEEDS} seeds at {median(ratios):.2f} times the rate of one ({min(ratios):.2f} to "
            f"{max(ratios):.2f}); {work.ratio:g} is {verdict(median(ratios) >= work.ratio)}",
            highlight=False,
        )
    result = {"command": f"python benchmarks/seeds.py --rounds {rounds}", **source, "machine": machine()}
    write_result(RESULTS / "seeds.json", result | {"seeds": SEEDS, "works": works})


def steps_per_second(work: Work, count: int, total_steps: int) -> float:
    """Of so many runs together."""
    if count == 1 and work.one_core:
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    began = time.perf_counter()
    import inchworm as iw

    with tempfile.TemporaryDirectory() as folder:
        common: dict[str, Any] = {
            "preset": "mujoco" if work.backend == "gymnasium" else "classic",
            "backend": work.backend,
            "total_steps": total_steps,
            "out": folder,
            "evaluation_episodes": 0,
            "progress": False,
            **work.settings,
        }
        if count == 1:
            iw.train(work.env_id, seed=0, **common)
        else:
            iw.train_seeds(work.env_id, seeds=range(count), **common)
        return count * total_steps / (time.perf_counter() - began)


if __name__ == "__main__":
    tyro.cli(main)
