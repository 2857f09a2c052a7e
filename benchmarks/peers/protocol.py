"""What every side of the benchmark is given and has to answer.

A side is one module of this folder: a peer, or one way of running Inchworm. It has a function
``train(work, seed, clock) -> Training`` and ends in

    if __name__ == "__main__":
        main("sb3", train, packages=("stable-baselines3", "torch", "gymnasium", "numpy"))

One process is one training. ``compare.py`` starts it as ``python -P -m peers.sb3 halfcheetah --seed 0`` with this
folder's parent on the path, so that a peer may have the name of the package it measures. The last line it prints is a
JSON object with the fields of `Measurement`.

How time is taken
-----------------
Compilation is in nobody's time. There are two ways to leave it out, and every side trains ``work.iterations``
iterations in both:

- A side that returns to Python after each iteration calls ``clock.iteration_done()`` there. The first iteration, with
  its compilation, is warm-up: the clock runs from its end to the end of the last iteration. A side that makes its
  updates apart from its rollouts makes each of them inside ``with clock.update():``.
- A side whose whole training is one compiled call has no iterations to tell of. It compiles the call and makes it once
  as warm-up, then makes the very same call a second time inside ``with clock.whole_training():``, waiting in the block
  until the results are there (``jax.block_until_ready``). In its time are all iterations and what little the call does
  before them, as drawing parameters and starting the environments; compilation, building the program and looking at
  the results are not. There is no time of updates alone.

Speed is environment steps over seconds, with the steps of the timed part. Inchworm is always timed in the first way,
and what it does on the host between compiled calls, its metrics files included, is in its time. With a JAX environment
its program is compiled in its first call, which is one iteration, and serves for all later calls.

Only the standard library is imported here, because peers live in virtual environments of their own.
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
from typing import Literal

WARM_UP_ITERATIONS = 1


@dataclass(frozen=True)
class Target:
    """A pair of sides whose speeds are compared, and what Inchworm promises of it."""

    ours: str
    """Module of this folder that runs Inchworm."""
    peer: str
    """Module of this folder that runs the peer."""
    ratio: float | None = None
    """How many times the peer's steps per second, as the median of the rounds; None for a peer that is only shown."""
    update_ratio: float | None = None
    """How many times as fast as the peer's an update is to be, without collecting; None where nothing is promised."""


@dataclass(frozen=True, kw_only=True)
class Work:
    """Settings that all sides train with, and what Inchworm promises for them.

    Policy and value are separate networks; advantages are standardised.
    """

    name: str
    env_id: str
    targets: tuple[Target, ...]
    """The pairs that are compared; their sides are those that play."""
    num_envs: int
    horizon: int
    minibatch_size: int
    num_epochs: int
    timed_iterations: int
    platform: Literal["cpu", "cuda"] = "cpu"
    """Where JAX computes, unless the environment's JAX_PLATFORMS says otherwise."""
    normalize: bool = False
    """Observations and rewards are scaled by running statistics: every side in its library's own way."""
    bound: str | None = None
    """What keeps Inchworm from more, where a promise is missed."""

    gamma: float = 0.99
    gae_lambda: float = 0.95
    hidden_sizes: tuple[int, ...] = (64, 64)
    """Of tanh units, in the policy and again in the value network."""

    @property
    def title(self) -> str:
        raise NotImplementedError

    @property
    def sides(self) -> tuple[str, ...]:
        """All sides of the targets: peers first, each once."""
        sides = [target.peer for target in self.targets] + [target.ours for target in self.targets]
        return tuple(dict.fromkeys(sides))

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
        normalized = ", normalised" if self.normalize else ""
        return f"N={self.num_envs} T={self.horizon} M={self.minibatch_size} K={self.num_epochs}{normalized}"


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


# On two cores the fastest side takes several seconds for the timed part: shorter ones are noisy.
WORKS: dict[str, Work] = {
    work.name: work
    for work in (
        PPOWork(
            name="halfcheetah",
            env_id="HalfCheetah-v5",
            targets=(Target("ours", "sb3", 6.0),),
            num_envs=1,
            horizon=2048,
            minibatch_size=64,
            num_epochs=10,
            timed_iterations=25,
        ),
        PPOWork(
            name="halfcheetah-8",
            env_id="HalfCheetah-v5",
            targets=(
                Target("ours_envpool", "sb3", 7.0),
                Target("ours_envpool", "sbx", 4.5),
                Target("ours_envpool", "tianshou", 5.0),
                Target("ours_envpool", "cleanrl", 5.0),
                Target("ours_processes", "sb3", 4.0),
                Target("ours_processes", "sbx", 2.5),
                Target("ours", "sb3"),
                Target("ours", "sbx"),
            ),
            num_envs=8,
            horizon=256,
            minibatch_size=64,
            num_epochs=10,
            timed_iterations=25,
            normalize=True,
        ),
        PPOWork(
            name="cartpole",
            env_id="CartPole-v1",
            targets=(
                Target("ours_processes", "sb3", 5.0),
                Target("ours_processes", "sbx", 4.0),
                Target("ours", "sb3"),
                Target("ours", "sbx"),
                Target("ours_envpool", "sb3", 8.0),
            ),
            num_envs=8,
            horizon=32,
            minibatch_size=256,
            num_epochs=10,
            timed_iterations=800,
            bound=(
                "On EnvPool an iteration of 256 steps took 4.1 ms where 8 times SB3's speed asked for 3.2. EnvPool's "
                "own part was 1.4 ms: to hand a step of eight environments to its threads and back takes 44 us, 32 "
                "times. Ten gradient steps took 1.7 ms, 0.9 of them matrix products at 200 GFLOP/s. Tried: one thread"
                " (70 us a step), two held on a core each (44; kept), thread and caller on one core (28, but "
                "environments that take long to step would have one core only), rollouts compiled ahead of time, with"
                " no Python between (41 to 44)."
            ),
        ),
        TRPOWork(
            name="halfcheetah-trpo",
            env_id="HalfCheetah-v5",
            targets=(Target("ours", "sb3_contrib", 4.0, update_ratio=6.0),),
            num_envs=1,
            horizon=2048,
            minibatch_size=128,
            num_epochs=10,
            timed_iterations=35,
        ),
        RecurrentPPOWork(
            name="cartpole-lstm64",
            env_id="CartPole-v1",
            targets=(Target("ours", "sb3_contrib", 6.0),),
            num_envs=8,
            horizon=128,
            minibatch_size=256,
            num_epochs=10,
            timed_iterations=30,
            lstm_size=64,
        ),
        RecurrentPPOWork(
            name="cartpole-lstm256",
            env_id="CartPole-v1",
            targets=(Target("ours", "sb3_contrib", 2.5),),
            num_envs=8,
            horizon=128,
            minibatch_size=256,
            num_epochs=10,
            timed_iterations=12,
            lstm_size=256,
        ),
        PPOWork(
            name="jax-cartpole",
            env_id="CartPole-v1",
            targets=(Target("ours_jax", "rejax", 1.1), Target("ours_jax", "purejaxrl", 1.1)),
            num_envs=4,
            horizon=128,
            minibatch_size=128,
            num_epochs=4,
            timed_iterations=6000,
            bound=(
                "All sides make the same matrix products through XLA: 110 of the 170 us of a gradient step. "
                "Rollouts are 0.55 of 3.75 ms an iteration, the opening pass and "
                "the KL over the batch 0.25. Rounds differ by a tenth from process to process. Tried without gain: "
                "Adam on one flat vector, log-probabilities after the rollout's scan instead of in it, "
                "XLA's flags for vector width, scheduling, XNNPACK and fusion."
            ),
        ),
        PPOWork(
            name="jax-cartpole-2048",
            env_id="CartPole-v1",
            targets=(Target("ours_jax", "rejax"), Target("ours_jax", "purejaxrl")),
            num_envs=2048,
            horizon=128,
            minibatch_size=65_536,
            num_epochs=4,
            timed_iterations=200,
            platform="cuda",
        ),
        PPOWork(
            name="brax-humanoid",
            env_id="humanoid",
            targets=(Target("ours_brax", "brax"),),
            num_envs=2048,
            horizon=160,
            minibatch_size=10_240,
            num_epochs=8,
            timed_iterations=50,
            platform="cuda",
            gamma=0.97,
            ent_coef=1e-3,
        ),
    )
}


@dataclass(frozen=True, kw_only=True)
class Training:
    """What a side says about the training it has done: all iterations of one training, warm-up included."""

    env_steps: int
    gradient_steps: int
    gradient_steps_source: str
    """How they were counted, in a few words."""
    parameter_shapes: list[list[int]]
    """Of every trained array of the policy and the value network.

    Where a library keeps two biases that only ever count by their sum, as PyTorch's LSTM does, one of them is left out.
    """
    simulator: str
    """Whose environments were stepped, with versions, in a few words."""
    device: str = "cpu"
    """Where networks are trained, as JAX's ``device_kind`` says it."""


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """One timed training, as printed by its process."""

    side: str
    work: str
    seed: int
    versions: dict[str, str]
    simulator: str
    device: str
    env_steps: int
    gradient_steps: int
    gradient_steps_source: str
    parameter_count: int
    parameter_shapes: str
    """As "6, 17x64, ...": each shape sorted and all of them too, for libraries order a weight's axes differently."""
    warm_up_seconds: float
    """From the end of the imports to the start of the clock, compilation included; not in ``seconds``."""
    timed_env_steps: int
    seconds: float
    update_seconds: float | None
    """Of ``seconds``, those from finished rollouts to finished parameters; None where updates are not made apart."""
    cpu_seconds: float
    """Of all threads in the timed part: more than ``seconds`` if it used several cores, less if it had to wait.

    Environments in processes of their own are not counted, neither here nor in the memory.
    """
    steps_per_second: float
    peak_memory_bytes: int
    """Largest resident size of the process until the end of the timed part."""


class Clock:
    """Times a training, without its warm-up, in one of the two ways of this module's docstring."""

    def __init__(self, work: Work) -> None:
        self._work = work
        self._iterations = 0
        self._updates = 0
        self._whole_trainings = 0
        self._started = (time.perf_counter(), time.process_time())
        self._update_seconds = 0.0
        self.warm_up_seconds = 0.0
        self.timed_env_steps = 0
        self.seconds = 0.0
        self.cpu_seconds = 0.0
        self.peak_memory_bytes = 0

    @property
    def update_seconds(self) -> float | None:
        """Time in updates, without the one of the warm-up; None where there was none to be told."""
        return self._update_seconds if self._updates else None

    @contextmanager
    def update(self) -> Iterator[None]:
        """Everything that turns one rollout into new parameters, finished when the block ends."""
        started = time.perf_counter()
        yield
        self._updates += 1
        if self._updates > WARM_UP_ITERATIONS:
            self._update_seconds += time.perf_counter() - started

    def iteration_done(self) -> None:
        """Is called at the end of every iteration."""
        self._iterations += 1
        if self._iterations == WARM_UP_ITERATIONS:
            self._start()
        elif self._iterations == self._work.iterations:
            self._stop(self._work.timed_iterations)

    @contextmanager
    def whole_training(self) -> Iterator[None]:
        """All iterations of a training in one compiled call, finished when the block ends; the warm-up lies before."""
        self._start()
        yield
        self._whole_trainings += 1
        self._stop(self._work.iterations)

    def check_finished(self) -> None:
        """Raise unless the whole work was timed in one way, with an update for each iteration or none timed."""
        told = (self._iterations, self._updates, self._whole_trainings)
        all_of_them = self._work.iterations
        if told not in {(all_of_them, all_of_them, 0), (all_of_them, 0, 0), (0, 0, 1)}:
            raise RuntimeError(
                f"The clock was told of {told[0]} iterations, {told[1]} updates and {told[2]} whole trainings; "
                f"{self._work.name} has {all_of_them} iterations in one training."
            )

    def _start(self) -> None:
        now = (time.perf_counter(), time.process_time())
        self.warm_up_seconds = now[0] - self._started[0]
        self._started = now

    def _stop(self, iterations: int) -> None:
        self.seconds = time.perf_counter() - self._started[0]
        self.cpu_seconds = time.process_time() - self._started[1]
        self.timed_env_steps = iterations * self._work.steps_per_iteration
        self.peak_memory_bytes = _peak_memory_bytes()


def main(side: str, train: Callable[[Work, int, Clock], Training], packages: tuple[str, ...]) -> None:
    """Read work and seed from the command line, train, and print the `Measurement` as one line of JSON.

    Of the packages the versions are told; where two sides name the same package, its versions have to be the same.
    """
    about = f"One timed training by {side}, as one line of JSON."
    parser = argparse.ArgumentParser(prog=f"python -m peers.{side}", description=about)
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

    shapes = sorted(sorted(shape) for shape in training.parameter_shapes)
    measurement = Measurement(
        side=side,
        work=work.name,
        seed=arguments.seed,
        versions={"python": sys.version.split()[0]} | {name: version(name) for name in packages},
        simulator=training.simulator,
        device=training.device,
        env_steps=training.env_steps,
        gradient_steps=training.gradient_steps,
        gradient_steps_source=training.gradient_steps_source,
        parameter_count=sum(prod(shape) for shape in shapes),
        parameter_shapes=", ".join("x".join(map(str, shape)) for shape in shapes),
        warm_up_seconds=clock.warm_up_seconds,
        timed_env_steps=clock.timed_env_steps,
        seconds=clock.seconds,
        update_seconds=clock.update_seconds,
        cpu_seconds=clock.cpu_seconds,
        steps_per_second=clock.timed_env_steps / clock.seconds,
        peak_memory_bytes=clock.peak_memory_bytes,
    )
    print(json.dumps(asdict(measurement)), flush=True)


def gymnasium_simulator(env_id: str) -> str:
    """Answer `Training.simulator` for a side that steps Gymnasium's environments."""
    import gymnasium  # not every side has it

    uses_mujoco = "mujoco" in str(gymnasium.spec(env_id).entry_point)
    return f"Gymnasium {version('gymnasium')}" + (f", MuJoCo {version('mujoco')}" if uses_mujoco else "")


def _peak_memory_bytes() -> int:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # kilobytes on Linux
