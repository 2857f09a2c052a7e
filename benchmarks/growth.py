"""Measure how the cost of an update grows with the rollout, and whether a training slows down with time.

    python benchmarks/growth.py --rounds 3

Update: PPO on rollouts of HalfCheetah-v5's shapes, of 2,048 to 131,072 steps of 8 environments, minibatches of 64, 10
epochs, each in a fresh process: the time of an update, and the peak memory of the process. What the arrays hold is
random, which does not matter for the cost. Both should be linear in the steps.

Slow-down: 500 iterations of CartPole-v1 by the host loop and in JAX: median time of the last 50 beside that of 50 after
the first 10, and how the resident memory grew meanwhile. The result is written to benchmarks/results/growth.json.
"""

from __future__ import annotations

import resource
import tempfile
import time
from itertools import pairwise
from statistics import median
from typing import Any

import tyro

from measuring import RESULTS, commit, console, in_fresh_process, machine, verdict, write_result

NUM_ENVS, MINIBATCH, EPOCHS = 8, 64, 10
STEPS = (2_048, 8_192, 32_768, 131_072)
TOLERANCE = 0.25
"""How far the cost of a step may lie from that in the smallest rollout, as a share of it."""
ITERATIONS, WINDOW, SETTLING = 500, 50, 10


def main(rounds: int = 3) -> None:
    """Measures the cost of growing rollouts and of long trainings.

    Args:
        rounds: how often each is measured.
    """
    source = commit()
    updates = {}
    for steps in STEPS:
        told = [in_fresh_process(update_cost, steps) for _ in range(rounds)]
        updates[steps] = {name: [one[name] for one in told] for name in told[0]}
    cost = {steps: median(one["seconds"]) / steps for steps, one in updates.items()}
    farthest = max(abs(each / cost[min(STEPS)] - 1) for each in cost.values())
    peaks = {steps: median(one["peak_bytes"]) for steps, one in updates.items()}
    memory = [(peaks[more] - peaks[less]) / (more - less) for less, more in pairwise(STEPS)]
    for steps in STEPS:
        console.print(f"{steps:>9,} steps: {1e6 * cost[steps]:.1f} us a step, {peaks[steps] / 1e6:,.0f} MB")
    console.print(f"time: at most {farthest:.0%} from linear; {TOLERANCE:.0%} is {verdict(farthest <= TOLERANCE)}")
    console.print(f"memory: {' '.join(f'{each:,.0f}' for each in memory)} bytes for each further step")

    trainings = {}
    for backend in ("gymnasium", "jax"):
        told = [in_fresh_process(long_training, backend, seed) for seed in range(rounds)]
        trainings[backend] = {name: [one[name] for one in told] for name in told[0]}
        one = trainings[backend]
        slow_down = median(end / start for start, end in zip(one["early_seconds"], one["late_seconds"], strict=True))
        growth = median(one["grown_bytes"]) / 1e6
        console.print(
            f"{backend}: the last {WINDOW} of {ITERATIONS} iterations take {slow_down:.2f} times the time of the "
            f"first; memory grew by {growth:.1f} MB",
            highlight=False,
        )
    document = {
        "command": f"python benchmarks/growth.py --rounds {rounds}",
        **source,
        "machine": machine(),
        "settings": {"num_envs": NUM_ENVS, "minibatch_size": MINIBATCH, "num_epochs": EPOCHS},
        "farthest_from_linear": farthest,
        "bytes_for_each_further_step": memory,
        "promised": TOLERANCE,
        "updates": updates,
        "trainings": trainings,
    }
    write_result(RESULTS / "growth.json", document)


def update_cost(steps: int) -> dict[str, float]:
    """Seconds of one update from a rollout of so many steps, and the peak memory of the process."""
    import jax
    import numpy as np

    import inchworm as iw
    from inchworm.algorithms.iteration import make_iteration
    from inchworm.build import make_algorithm
    from inchworm.envs.source import env_source
    from inchworm.models import observations
    from inchworm.planning import configure_jax
    from inchworm.types import Rollout

    configure_jax()
    spec = env_source("HalfCheetah-v5").spec
    settings = iw.PPO(
        num_envs=NUM_ENVS, horizon=steps // NUM_ENVS, minibatch_size=MINIBATCH, num_epochs=EPOCHS, normalize_return=True
    )
    algorithm = make_algorithm(settings, spec, 10 * steps)
    iterate = jax.jit(make_iteration(algorithm, spec, settings, 10 * steps))
    state = algorithm.init(jax.random.key(0))

    rng, shape = np.random.default_rng(0), (settings.horizon, NUM_ENVS)
    obs, next_obs, action = (rng.normal(size=(*shape, size)).astype(np.float32) for size in (17, 17, 6))
    none = np.zeros(shape, bool)
    distribution = state.model.unroll(observations.freeze(state.obs_stats), obs, none, None, None).distribution
    rollout = Rollout(
        obs=obs,
        first=none,
        action=action,
        mask=None,
        log_prob=np.asarray(distribution.log_prob(action)),
        reward=rng.normal(size=shape).astype(np.float32),
        terminated=none,
        truncated=none,
        next_obs=next_obs,
        carry=None,
        valid=~none,
    )
    jax.block_until_ready(iterate(state, rollout))  # compiles
    seconds = []
    for _ in range(max(3, 65_536 // steps)):
        began = time.perf_counter()
        jax.block_until_ready(iterate(state, rollout))
        seconds.append(time.perf_counter() - began)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {"seconds": median(seconds), "peak_bytes": peak}


def long_training(backend: Any, seed: int) -> dict[str, float]:
    """Seconds of an iteration early and late in a training, and by how much the memory grew in between."""
    import inchworm as iw

    settings = iw.PPO(num_envs=8, horizon=128, minibatch_size=256, num_epochs=4)
    seconds, memory = [], []

    def watch(iteration: iw.Iteration) -> None:
        seconds.append(iteration.seconds)
        memory.append(_resident_bytes())

    with tempfile.TemporaryDirectory() as folder:
        iw.train(
            "CartPole-v1",
            settings,
            backend=backend,
            seed=seed,
            total_steps=ITERATIONS * settings.steps_per_iteration,
            out=folder,
            on_iteration=watch,
            evaluation_episodes=0,
            progress=False,
        )
    each = [after - before for before, after in pairwise(seconds)]
    early = slice(SETTLING, SETTLING + WINDOW)
    return {
        "early_seconds": median(each[early]),
        "late_seconds": median(each[-WINDOW:]),
        "grown_bytes": memory[-1] - memory[SETTLING + WINDOW],
    }


def _resident_bytes() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize()


if __name__ == "__main__":
    tyro.cli(main)
