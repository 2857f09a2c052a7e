"""Measure where the time of a training goes, and how far it is from the least that it could take.

    python benchmarks/throughput.py --rounds 5

The training is halfcheetah-8 of peers/protocol.py, on EnvPool and on Gymnasium's environments. A round measures, each
in a fresh process and one after the other:

- each training, split: rollouts, updates, and the rest of the loop, metrics files included;
- its environments alone, stepped in the way of that training with actions drawn before. What a rollout takes beyond
  them is acting;
- the floor: EnvPool's environments alone on all cores, at their own pace and not in step, and a bare loop of 64 x 64
  matrix products with as many multiplications as PPO cannot do without: acting, a value of each state, and forward and
  backward passes of every epoch. Activations, losses, Adam, shuffling and statistics are not in it.

All are milliseconds an iteration, of 2,048 steps. The result is written to benchmarks/results/throughput.json.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from itertools import pairwise
from statistics import median
from typing import Any

import tyro
from rich.table import Table

from measuring import RESULTS, commit, console, in_fresh_process, machine, verdict, write_result
from peers.protocol import WARM_UP_ITERATIONS, WORKS, Clock, Work

WORK = WORKS["halfcheetah-8"]
BACKENDS = ("envpool", "gymnasium")
FLOOR_LIMIT = 2.0
"""Times the floor that a training on EnvPool may take."""
PRODUCT = 64
"""Rows and columns of the matrices in the bare loop."""


def main(rounds: int = 5) -> None:
    """Splits the time of a training and compares it with the least that it could take.

    Args:
        rounds: how often everything is measured. Round k has seed k.
    """
    source = commit()
    played: list[dict[str, dict[str, float]]] = []
    for seed in range(rounds):
        row: dict[str, dict[str, float]] = {"floor": in_fresh_process(floor, seed)}
        for backend in BACKENDS:
            split = in_fresh_process(split_training, backend, seed)
            environments = in_fresh_process(environments_in_step, backend, seed)
            row[backend] = parts(split, environments, row["floor"]["total"])
        played.append(row)
        console.print(f"round {seed + 1}: " + json.dumps(rounded(row)), highlight=False)

    medians = {
        side: {name: median(one[side][name] for one in played) for name in played[0][side]} for side in played[0]
    }
    result = {
        "title": f"{WORK.title}: milliseconds an iteration",
        "command": f"python benchmarks/throughput.py --rounds {rounds}",
        **source,
        "machine": machine(),
        "promised": {"envpool": {"times_the_floor": FLOOR_LIMIT}},
        "median": medians,
        "rounds": played,
    }
    write_result(RESULTS / "throughput.json", result)
    show(medians)
    reached = medians["envpool"]["times_the_floor"]
    console.print(f"EnvPool: {reached:.2f} times the floor; {FLOOR_LIMIT:g} is {verdict(reached <= FLOOR_LIMIT)}")


def parts(split: dict[str, float], environments: float, floor: float) -> dict[str, float]:
    """The four parts of an iteration, their sum, and how many times the floor that is."""
    return {
        "env": environments,
        "act": split["rollout"] - environments,
        "update": split["update"],
        "other": split["total"] - split["rollout"] - split["update"],
        "total": split["total"],
        "times_the_floor": split["total"] / floor,
    }


def split_training(backend: Any, seed: int) -> dict[str, float]:
    """Milliseconds of rollouts, updates and everything in an iteration of a training, the first one left out."""
    from inchworm.collect.host import HostRollouts
    from inchworm.collect.pool import PoolRollouts
    from peers import ours

    rollouts: list[float] = []

    def timed(collect: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            began = time.perf_counter()
            answer = ours.jax.block_until_ready(collect(*arguments))
            rollouts.append(time.perf_counter() - began)
            return answer

        return call

    for kind in (HostRollouts, PoolRollouts):
        kind.collect = timed(kind.collect)
    clock = Clock(WORK)
    ours.train(WORK, seed, clock, backend)
    clock.check_finished()
    seconds = {"rollout": sum(rollouts[WARM_UP_ITERATIONS:]), "update": clock.update_seconds, "total": clock.seconds}
    return {name: 1000 * total / WORK.timed_iterations for name, total in seconds.items()}


def environments_in_step(backend: str, seed: int) -> float:
    """Milliseconds an iteration of the environments alone, stepped as a rollout steps them."""
    import jax
    import numpy as np

    from inchworm.envs.pool import StepBuffers
    from inchworm.envs.source import env_source
    from inchworm.planning import configure_jax

    configure_jax()
    source = env_source(WORK.env_id, backend=backend)
    actions = random_actions(seed, WORK.horizon, WORK.num_envs)
    if source.traced is not None:
        envs = source.traced(WORK.num_envs, seed, 0)

        @jax.jit
        def rollout(state: Any) -> Any:
            return jax.lax.scan(lambda now, action: envs.step(now, action, None), state, actions)

        state = envs.start[0]

        def once() -> None:
            nonlocal state
            with envs.scope():
                state, rows = rollout(state)
                jax.block_until_ready((state, rows))
    else:
        pool = source.make_pool(WORK.num_envs, seed, WORK.horizon)
        start = StepBuffers.empty(source.spec.observation_space, 0, WORK.num_envs)
        pool.reset([leaf[0] for leaf in start.obs])

        def once() -> None:
            buffers = StepBuffers.empty(source.spec.observation_space, WORK.horizon, WORK.num_envs)
            for t, action in enumerate(actions):
                pool.step([np.array(action)], t, buffers)

    return milliseconds(once)


def floor(seed: int) -> dict[str, float]:
    """Milliseconds that the environments and the arithmetic of an iteration take at least."""
    environments = environments_at_full_speed(seed)
    arithmetic = bare_products(multiplications(WORK))
    return {"env": environments, "arithmetic": arithmetic, "total": environments + arithmetic}


def environments_at_full_speed(seed: int) -> float:
    """Of an iteration's steps, by EnvPool on all cores: whichever half of the environments is done first goes on."""
    import envpool

    cores = os.cpu_count() or 1
    num_envs, batch_size = 32 * cores, 16 * cores
    pool = envpool.make_gymnasium(WORK.env_id, num_envs=num_envs, batch_size=batch_size, num_threads=cores, seed=seed)
    calls = WORK.steps_per_iteration // batch_size
    actions = random_actions(seed, calls, batch_size).astype("float64")
    pool.async_reset()

    def once() -> None:
        for action in actions:
            *_, info = pool.recv()
            pool.send(action, info["env_id"])

    return milliseconds(once)


def multiplications(work: Work) -> int:
    """Multiplications of weights with activations or gradients that an iteration of PPO cannot do without.

    A layer's are rows x inputs x outputs forward; backward as many for the weights, and as many again for the inputs of
    every layer but the first.
    """
    inputs, actions = 17, 6  # of HalfCheetah-v5
    forward, backward = {}, {}
    for network, outputs in {"policy": actions, "value": 1}.items():
        sizes = (inputs, *work.hidden_sizes, outputs)
        layers = [before * after for before, after in pairwise(sizes)]
        forward[network], backward[network] = sum(layers), 2 * sum(layers) - layers[0]
    steps = work.steps_per_iteration
    learning = work.num_epochs * steps * sum((*forward.values(), *backward.values()))
    return forward["policy"] * steps + forward["value"] * (steps + work.num_envs) + learning


def bare_products(count: int) -> float:
    """Milliseconds of a compiled loop of matrix products with so many multiplications."""
    import jax
    import jax.numpy as jnp

    from inchworm.planning import configure_jax

    configure_jax()
    rotation = jnp.linalg.qr(jax.random.normal(jax.random.key(0), (PRODUCT, PRODUCT)))[0]  # nothing grows or vanishes

    @jax.jit
    def products(rows: Any) -> Any:
        return jax.lax.fori_loop(0, count // PRODUCT**3, lambda _, now: now @ rotation, rows)

    rows = jnp.ones((PRODUCT, PRODUCT))
    return milliseconds(lambda: jax.block_until_ready(products(rows)))


def random_actions(seed: int, steps: int, num_envs: int) -> Any:
    import numpy as np

    return np.random.default_rng(seed).uniform(-1.0, 1.0, (steps, num_envs, 6)).astype(np.float32)


def milliseconds(once: Callable[[], Any]) -> float:
    """Of one call, over as many as a training has iterations; the first is left out."""
    once()
    began = time.perf_counter()
    for _ in range(WORK.timed_iterations):
        once()
    return 1000 * (time.perf_counter() - began) / WORK.timed_iterations


def rounded(row: dict[str, dict[str, float]]) -> dict[str, dict[str, float]]:
    return {side: {name: round(value, 2) for name, value in values.items()} for side, values in row.items()}


def show(medians: dict[str, dict[str, float]]) -> None:
    """One column for each side."""
    table = Table(title=f"{WORK.title}: milliseconds an iteration, medians")
    for heading in ("", *medians):
        table.add_column(heading, justify="right" if heading else "left")
    names = dict.fromkeys(name for values in medians.values() for name in values)
    for name in names:
        table.add_row(name.replace("_", " "), *(f"{v[name]:.1f}" if name in v else "" for v in medians.values()))
    console.print(table)


if __name__ == "__main__":
    tyro.cli(main)
