"""What every peer of the benchmark is given and has to answer.

A peer is one module of this folder with a function ``train(work, seed, clock) -> Training`` that calls
``clock.iteration_done()`` after every iteration and makes every update inside ``with clock.update():``, ending in

    if __name__ == "__main__":
        main("sb3", train, packages=("stable-baselines3", "torch"))

One process is one training. ``compare.py`` starts it as ``python -P -m peers.sb3 halfcheetah --seed 0`` with this
folder's parent on the path, so that a peer may have the name of the package it measures. The last line it prints is a
JSON object with the fields of `Measurement`.

The first iteration, with its compilation, is warm-up; the clock runs from its end to the end of the last iteration.
Only the standard library is imported here, because peers live in a virtual environment of their own.
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from math import prod

WARM_UP_ITERATIONS = 1
SHARED_PACKAGES = ("gymnasium", "mujoco", "numpy")
"""Packages both sides use: their versions have to be the same."""


@dataclass(frozen=True, kw_only=True)
class Work:
    """Settings that all peers train with, and what Inchworm promises for them.

    Policy and value are separate networks; nothing is normalised but the advantages.
    """

    name: str
    env_id: str
    peer: str
    """Module of this folder that the promise is about."""
    num_envs: int
    horizon: int
    minibatch_size: int
    num_epochs: int
    timed_iterations: int
    target_ratio: float
    """How many times the peer's steps per second Inchworm promises, as the median of the rounds."""
    target_update_ratio: float | None = None
    """How many times as fast as the peer's its update is to be, without collecting; None where nothing is promised."""

    gamma: float = 0.99
    gae_lambda: float = 0.95
    hidden_sizes: tuple[int, ...] = (64, 64)
    """Of tanh units, in the policy and again in the value network."""

    @property
    def title(self) -> str:
        raise NotImplementedError

    @property
    def steps_per_iteration(self) -> int:
        return self.num_envs * self.horizon

    @property
    def gradient_steps_per_iteration(self) -> int:
        return self.num_epochs * self.steps_per_iteration // self.minibatch_size

    @property
    def iterations(self) -> int:
        return WARM_UP_ITERATIONS + self.timed_iterations

    @property
    def total_steps(self) -> int:
        return self.iterations * self.steps_per_iteration

    @property
    def sizes(self) -> str:
        """In the paper's letters."""
        return f"N={self.num_envs} T={self.horizon} M={self.minibatch_size} K={self.num_epochs}"


@dataclass(frozen=True, kw_only=True)
class PPOWork(Work):
    """PPO; advantages are standardised in each minibatch."""

    learning_rate: float = 3e-4
    """Decays linearly to 0 over all steps."""
    clip_range: float = 0.2
    vf_coef: float = 0.5
    ent_coef: float = 0.0
    max_grad_norm: float = 0.5

    @property
    def title(self) -> str:
        return f"PPO {self.env_id}, {self.sizes}"


@dataclass(frozen=True, kw_only=True)
class RecurrentPPOWork(PPOWork):
    """PPO with an LSTM in the policy and another in the value network, between the observation and the tanh units.

    Inchworm's minibatches are whole environments; sb3-contrib's have as many transitions, but are consecutive ones
    from a random point on, cut at the ends of episodes and padded to the longest piece.
    """

    lstm_size: int

    @property
    def title(self) -> str:
        return f"PPO {self.env_id}, LSTM of {self.lstm_size}, {self.sizes}"


@dataclass(frozen=True, kw_only=True)
class TRPOWork(Work):
    """TRPO; advantages are standardised over the batch.

    Minibatches, epochs and gradient steps are the value function's; the policy takes one step an iteration.
    """

    max_kl: float = 0.01
    cg_iters: int = 15
    cg_damping: float = 0.1
    max_backtracks: int = 10
    shrink: float = 0.8
    value_learning_rate: float = 1e-3

    @property
    def title(self) -> str:
        return f"TRPO {self.env_id}, {self.sizes}, {self.cg_iters} CG iterations"


# The slower side takes 30 to 40 seconds for the timed part: shorter ones are noisy.
WORKS: dict[str, Work] = {
    work.name: work
    for work in (
        PPOWork(
            name="halfcheetah",
            env_id="HalfCheetah-v5",
            peer="sb3",
            num_envs=1,
            horizon=2048,
            minibatch_size=64,
            num_epochs=10,
            timed_iterations=25,
            target_ratio=6.0,
        ),
        PPOWork(
            name="cartpole",
            env_id="CartPole-v1",
            peer="sb3",
            num_envs=8,
            horizon=32,
            minibatch_size=256,
            num_epochs=10,
            timed_iterations=800,
            target_ratio=4.0,
        ),
        TRPOWork(
            name="halfcheetah-trpo",
            env_id="HalfCheetah-v5",
            peer="sb3_contrib",
            num_envs=1,
            horizon=2048,
            minibatch_size=128,
            num_epochs=10,
            timed_iterations=35,
            target_ratio=4.0,
            target_update_ratio=6.0,
        ),
        RecurrentPPOWork(
            name="cartpole-lstm64",
            env_id="CartPole-v1",
            peer="sb3_contrib",
            num_envs=8,
            horizon=128,
            minibatch_size=256,
            num_epochs=10,
            timed_iterations=30,
            target_ratio=6.0,
            lstm_size=64,
        ),
        RecurrentPPOWork(
            name="cartpole-lstm256",
            env_id="CartPole-v1",
            peer="sb3_contrib",
            num_envs=8,
            horizon=128,
            minibatch_size=256,
            num_epochs=10,
            timed_iterations=12,
            target_ratio=2.5,
            lstm_size=256,
        ),
    )
}


@dataclass(frozen=True, kw_only=True)
class Training:
    """What a peer says about the training it has done, warm-up included."""

    env_steps: int
    gradient_steps: int
    gradient_steps_source: str
    """How they were counted, in a few words."""
    parameter_shapes: list[list[int]]
    """Of every trained array of the policy and the value network.

    Where a library keeps two biases that only ever count by their sum, as PyTorch's LSTM does, one of them is left out.
    """


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """One timed training, as printed by its process."""

    peer: str
    work: str
    seed: int
    versions: dict[str, str]
    env_steps: int
    gradient_steps: int
    gradient_steps_source: str
    parameter_count: int
    parameter_shapes: str
    """As "6, 17x64, ...": each shape sorted and all of them too, for libraries order a weight's axes differently."""
    warm_up_seconds: float
    """From the end of the imports to the end of the first iteration, compilation included; not in ``seconds``."""
    timed_env_steps: int
    seconds: float
    update_seconds: float
    """Of ``seconds``, those in updates: from finished rollouts to finished parameters."""
    cpu_seconds: float
    """Of all threads in the timed part: more than ``seconds`` if it used several cores, less if it had to wait."""
    steps_per_second: float
    peak_memory_bytes: int
    """Largest resident size of the process until the end of the timed part."""


class Clock:
    """Times the iterations after the warm-up: reads the time at the end of the first one and of the last.

    Updates are timed apart: there is one in each iteration, inside ``with clock.update():``.
    """

    def __init__(self, work: Work) -> None:
        self._work = work
        self._iterations = 0
        self._updates = 0
        self._started = (time.perf_counter(), time.process_time())
        self.warm_up_seconds = 0.0
        self.seconds = 0.0
        self.update_seconds = 0.0
        self.cpu_seconds = 0.0
        self.peak_memory_bytes = 0

    @contextmanager
    def update(self) -> Iterator[None]:
        """Everything that turns one rollout into new parameters, finished when the block ends."""
        started = time.perf_counter()
        yield
        self._updates += 1
        if self._updates > WARM_UP_ITERATIONS:
            self.update_seconds += time.perf_counter() - started

    def iteration_done(self) -> None:
        self._iterations += 1
        now = (time.perf_counter(), time.process_time())
        if self._iterations == WARM_UP_ITERATIONS:
            self.warm_up_seconds = now[0] - self._started[0]
            self._started = now
        elif self._iterations == self._work.iterations:
            self.seconds, self.cpu_seconds = now[0] - self._started[0], now[1] - self._started[1]
            self.peak_memory_bytes = _peak_memory_bytes()

    def check_finished(self) -> None:
        """Raise if there were more or fewer iterations or updates than the work has."""
        for name, done in {"iterations": self._iterations, "updates": self._updates}.items():
            if done != self._work.iterations:
                raise RuntimeError(f"{done} {name} done, {self._work.iterations} wanted")


def main(peer: str, train: Callable[[Work, int, Clock], Training], packages: tuple[str, ...]) -> None:
    """Read work and seed from the command line, train, and print the `Measurement` as one line of JSON."""
    about = f"One timed training by {peer}, as one line of JSON."
    parser = argparse.ArgumentParser(prog=f"python -m peers.{peer}", description=about)
    parser.add_argument("work", choices=sorted(WORKS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--timed-iterations", type=int, help="instead of the work's own number, for a quick trial")
    arguments = parser.parse_args()
    work = WORKS[arguments.work]
    if arguments.timed_iterations is not None:
        work = replace(work, timed_iterations=arguments.timed_iterations)

    clock = Clock(work)
    training = train(work, arguments.seed, clock)
    clock.check_finished()

    timed_env_steps = work.timed_iterations * work.steps_per_iteration
    shapes = sorted(sorted(shape) for shape in training.parameter_shapes)
    measurement = Measurement(
        peer=peer,
        work=work.name,
        seed=arguments.seed,
        versions={"python": sys.version.split()[0]} | {name: version(name) for name in (*packages, *SHARED_PACKAGES)},
        env_steps=training.env_steps,
        gradient_steps=training.gradient_steps,
        gradient_steps_source=training.gradient_steps_source,
        parameter_count=sum(prod(shape) for shape in shapes),
        parameter_shapes=", ".join("x".join(map(str, shape)) for shape in shapes),
        warm_up_seconds=clock.warm_up_seconds,
        timed_env_steps=timed_env_steps,
        seconds=clock.seconds,
        update_seconds=clock.update_seconds,
        cpu_seconds=clock.cpu_seconds,
        steps_per_second=timed_env_steps / clock.seconds,
        peak_memory_bytes=clock.peak_memory_bytes,
    )
    print(json.dumps(asdict(measurement)), flush=True)


def _peak_memory_bytes() -> int:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # kilobytes on Linux
