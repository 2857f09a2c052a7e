"""Runs that are killed by SIGKILL again and again, and resumed: in the end bit for bit the run that was never killed.

    python tests/faults/kills.py KIND SEED KILLS FOLDER

A run writes a checkpoint after every iteration, so that many a kill falls into one. Where the next kill falls is drawn
from the seed: so many checkpoints later, and after a part of the time that one takes.
"""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil

import inchworm as iw
from inchworm.io.checkpoint import list_checkpoints
from inchworm.io.run_folder import RunFolder, read_json

SMALL: dict[str, Any] = {"num_envs": 2, "horizon": 32, "minibatch_size": 32, "num_epochs": 1, "hidden_sizes": (8,)}
QUIET: dict[str, Any] = {"evaluation_episodes": 0, "progress": False}
ITERATIONS = 200
KINDS: dict[str, tuple[str, Any, dict[str, Any]]] = {
    "CartPole": ("CartPole-v1", iw.PPO(**SMALL), {}),
    "HalfCheetah": ("HalfCheetah-v5", iw.PPO(**SMALL, normalize_return=True), {}),
    "processes": ("CartPole-v1", iw.PPO(**SMALL), {"env_processes": 2}),
    "seeds": ("CartPole-v1", iw.PPO(**SMALL), {"seeds": [0, 1]}),
    "JAX": ("CartPole-v1", iw.PPO(**SMALL), {"backend": "jax"}),
    "TRPO": (
        "CartPole-v1",
        iw.TRPO(num_envs=2, horizon=32, minibatch_size=32, num_value_epochs=1, hidden_sizes=(8,)),
        {},
    ),
    "GRU": ("CartPole-v1", iw.PPO(**SMALL, recurrent="gru", recurrent_size=8), {}),
}
WAIT_SECONDS = 180.0


def folders(out: Path) -> list[RunFolder]:
    """Of all runs, by their seeds; not that of the group."""
    return [RunFolder(path.parent) for path in sorted(out.glob("*/*/*/config.json"))]


def go_on(kind: str, out: Path) -> None:
    """Trains a run, or resumes all that are there and not complete."""
    env, algorithm, how = KINDS[kind]
    if found := folders(out):
        for folder in found:
            if not folder.is_complete(iterations(kind) * algorithm.steps_per_iteration):
                iw.resume(folder.path, **QUIET)
        return
    how = {"total_steps": iterations(kind) * algorithm.steps_per_iteration, "out": out, "checkpoint_seconds": 0.0} | how
    train = iw.train_seeds if "seeds" in how else iw.train
    train(env, algorithm, **how, **QUIET)


def iterations(kind: str) -> int:
    """Of a run; compiled calls take several of them at a time."""
    return 20_000 if kind == "JAX" else ITERATIONS


def start(kind: str, out: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-P", __file__, "--go-on", kind, str(out)]
    path = os.pathsep.join(filter(None, sys.path))
    with (out / "said.txt").open("ab") as said:
        return subprocess.Popen(command, env=os.environ | {"PYTHONPATH": path}, stdout=said, stderr=said)


def said(process: subprocess.Popen[bytes], out: Path) -> str:
    """How a process ended, None if it has not, and the end of what it said."""
    return f"{process.returncode}: {(out / 'said.txt').read_text()[-900:]}"


def newest(out: Path, runs: int) -> int:
    """The smallest number of a newest checkpoint over all runs; 0 until each has one."""
    saved = [list_checkpoints(folder.checkpoints) for folder in folders(out)]
    return min(int(paths[-1].name) for paths in saved) if len(saved) == runs and all(saved) else 0


def finished(kind: str, out: Path) -> list[str]:
    """Lets it go on to its end; the hashes of the parameters."""
    process = start(kind, out)
    assert process.wait() == 0, said(process, out)
    return [read_json(folder.summary)["parameters_sha256"] for folder in folders(out)]


def killed(kind: str, seed: int, kills: int, out: Path) -> int:
    """Kills a run so many times, or until it is over, and holds its end against that of one never killed.

    Returns:
        How many kills there were.
    """
    rng, runs = np.random.default_rng(seed), len(KINDS[kind][2].get("seeds", [0]))
    reference, chain = out / "reference", out / "chain"
    for folder in (reference, chain):
        folder.mkdir(parents=True)
    expected = finished(kind, reference)
    assert len(expected) == runs
    done, before = 0, 0
    for _ in range(kills):
        process = start(kind, chain)
        ahead, began = before + int(rng.integers(1, 4)), time.monotonic()
        while newest(chain, runs) < ahead and process.poll() is None:
            assert time.monotonic() - began < WAIT_SECONDS, said(process, chain)
            time.sleep(0.002)
        time.sleep(rng.uniform(0.0, 0.05))
        if process.poll() is not None:
            assert process.returncode == 0, said(process, chain)
            break
        children = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(signal.SIGKILL)
        process.wait()
        _, alive = psutil.wait_procs(children, timeout=60)
        assert not alive, "processes outlived their parent"
        done, before = done + 1, newest(chain, runs)
    assert finished(kind, chain) == expected, "the run that was killed came to other parameters"
    assert not list(chain.rglob(".tmp-*")), "something half written was left behind"
    return done


if __name__ == "__main__":
    if sys.argv[1] == "--go-on":
        go_on(sys.argv[2], Path(sys.argv[3]))
    else:
        name, seed, kills, folder = sys.argv[1:]
        print(json.dumps({"kills": killed(name, int(seed), int(kills), Path(folder))}))
