"""Trains on one device and on eight, and prints as JSON what test_devices.py looks at.

JAX simulates eight devices on a CPU if it is told so before it starts: hence a process of its own.

    python eight_devices.py FOLDER
"""

import json
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np

import inchworm as iw
from inchworm.algorithms.iteration import make_iteration
from inchworm.build import make_algorithm
from inchworm.collect import graph
from inchworm.collect.rollout import make_rollout
from inchworm.envs.jax_env import first_key
from inchworm.envs.source import env_source
from inchworm.envs.traced import Copies
from inchworm.planning import configure_jax

SIZE: dict[str, Any] = {"num_envs": 8, "horizon": 16, "hidden_sizes": (8,)}
PPO = iw.PPO(**SIZE, minibatch_size=32, num_epochs=2, learning_rate=1e-2, normalize_return=True)
ALGORITHMS = {
    "ppo": PPO,
    "ppo-lstm": iw.PPO(**SIZE, minibatch_size=128, num_epochs=2, learning_rate=1e-2, recurrent="lstm"),
    "trpo": iw.TRPO(**SIZE, minibatch_size=32, num_value_epochs=2, cg_iters=5),
}
NUM_STEPS = 3 * 128
QUIET: dict[str, Any] = {"evaluation_episodes": 0, "progress": False}


def trained(folder: Path, algorithm: str, backend: str, devices: int) -> dict[str, Any]:
    """What a short run came to."""
    options: dict[str, Any] = {"backend": backend, "devices": devices, "total_steps": NUM_STEPS, "out": folder}
    run = iw.train("CartPole-v1", ALGORITHMS[algorithm], **options, **QUIET)
    return {
        "parameters": np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(run.policy.model)]).tolist(),
        "metrics": [
            {name: row[name] for name in row if not name.startswith(("seconds", "time/"))} for row in run.metrics()
        ],
        "hash": run.summary["parameters_sha256"],
    }


def resumed(folder: Path, algorithm: str, backend: str) -> str:
    """The hash that a run on eight devices ends with if it is stopped after its first iteration and goes on."""
    options: dict[str, Any] = {"backend": backend, "devices": 8, "total_steps": NUM_STEPS, "out": folder}
    run = iw.train("CartPole-v1", ALGORITHMS[algorithm], **options, **QUIET, on_iteration=lambda report: True)
    return iw.resume(run.folder, **QUIET).summary["parameters_sha256"]


def rows_on_each_device() -> dict[str, list[int]]:
    """After an iteration on eight devices: rows of observations, and of the policy's first weights."""
    spec = (source := env_source("CartPole-v1", None, "jax")).spec
    assert source.jax_env is not None
    algorithm, envs = make_algorithm(PPO, spec, NUM_STEPS), Copies(source.jax_env)
    iterate = make_iteration(algorithm, spec, PPO, NUM_STEPS)
    advance = graph.make_advance(make_rollout(envs, "clip"), iterate, (PPO.horizon, PPO.num_envs), None)
    programs = graph.on_devices(graph.make_programs(algorithm.init, envs, advance, 1), jax.devices(), PPO.num_envs)
    keys = jax.random.split(first_key(0), PPO.num_envs)
    learner, _ = programs.advance(programs.begin(jax.random.key(0), keys), np.int32(1))
    leaves = {"observations": learner.standing.obs, "weights": jax.tree.leaves(learner.state.model)[0]}
    return {name: [shard.data.shape[0] for shard in leaf.addressable_shards] for name, leaf in leaves.items()}


if __name__ == "__main__":
    configure_jax(devices=8)
    folder = Path(sys.argv[1])
    cases = [("ppo", "jax"), ("ppo-lstm", "jax"), ("trpo", "jax"), ("ppo", "gymnasium")]
    runs = {
        f"{name} {backend}": [trained(folder, name, backend, devices) for devices in (1, 8)] for name, backend in cases
    }
    hashes = {f"ppo {backend}": resumed(folder, "ppo", backend) for backend in ("jax", "gymnasium")}
    print(json.dumps({"runs": runs, "resumed": hashes, "rows": rows_on_each_device()}))
