"""Inchworm through its public API with Gymnasium's environments, on a CPU with its own default of one thread.

Its metrics files are written during the timed part, for they cannot be turned off; the peers log nothing.
An update here is more than one there: values and advantages are computed in it, which the peers have done when a
rollout is finished.
"""

from __future__ import annotations

import os
import tempfile
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

os.environ.setdefault("JAX_PLATFORMS", "cpu")  # read when JAX is imported

import jax
import safetensors.numpy

import inchworm as iw
import inchworm.build
from inchworm.algorithms.iteration import Iterate
from inchworm.collect.collector import TurnCollector
from peers.protocol import (
    Clock,
    PPOWork,
    RecurrentPPOWork,
    Training,
    TRPOWork,
    Work,
    gymnasium_simulator,
    main,
)

PACKAGES = ("inchworm", "jax", "jaxlib", "optax", "numpy")
Backend = Literal["gymnasium", "envpool", "jax", "brax"]


def time_updates(clock: Clock) -> None:
    """Let trainings from now on tell the clock of their updates, where these are calls of their own."""

    class TimedCollector(TurnCollector):
        def __init__(self, rollouts: Any, state: Any, iterate: Iterate, *more: Any) -> None:
            def timed_iterate(state: Any, rollout: Any) -> Any:
                with clock.update():
                    return jax.block_until_ready(iterate(state, rollout))

            super().__init__(rollouts, state, timed_iterate, *more)

    inchworm.build.TurnCollector = TimedCollector  # type: ignore[misc]


def algorithm_of(work: Work) -> iw.PPO | iw.TRPO:
    """The settings of a work as Inchworm names them."""
    common: dict[str, Any] = {
        "num_envs": work.num_envs,
        "horizon": work.horizon,
        "minibatch_size": work.minibatch_size,
        "gamma": work.gamma,
        "gae_lambda": work.gae_lambda,
        "normalize_observation": work.normalize,
        "normalize_return": work.normalize,
        "hidden_sizes": work.hidden_sizes,
        "activation": "tanh",
    }
    match work:
        case TRPOWork():
            return iw.TRPO(
                **common,
                normalize_advantage="batch",
                max_kl=work.max_kl,
                cg_iters=work.cg_iters,
                cg_damping=work.cg_damping,
                fisher_fraction=1.0,
                max_backtracks=work.max_backtracks,
                shrink=work.shrink,
                value_learning_rate=work.value_learning_rate,
                num_value_epochs=work.num_epochs,
            )
        case PPOWork():
            if isinstance(work, RecurrentPPOWork):
                common |= {"recurrent": "lstm", "recurrent_size": work.lstm_size}
            return iw.PPO(
                **common,
                normalize_advantage="minibatch",
                num_epochs=work.num_epochs,
                learning_rate=f"linear:{work.learning_rate}:0",
                clip_range=work.clip_range,
                ent_coef=work.ent_coef,
                vf_coef=work.vf_coef,
                max_grad_norm=work.max_grad_norm,
            )
    raise ValueError(f"{work.name} is no work for Inchworm")


def train(work: Work, seed: int, clock: Clock, backend: Backend = "gymnasium", env_processes: int = 1) -> Training:
    """Train with `iw.train`; gradient steps are those that Adam has counted in the last checkpoint."""
    time_updates(clock)
    env_steps = 0

    def on_iteration(iteration: iw.Iteration) -> None:
        nonlocal env_steps
        clock.iteration_done()
        env_steps = iteration.env_steps

    with tempfile.TemporaryDirectory() as folder:
        run = iw.train(
            work.env_id,
            algorithm_of(work),
            total_steps=work.total_steps,
            seed=seed,
            backend=backend,
            env_processes=env_processes,
            out=folder,
            on_iteration=on_iteration,
            checkpoint_seconds=1e9,  # only the one at the end, after the clock has stopped
            evaluation_episodes=0,
            progress=False,
        )
        gradient_steps = _adam_count(run.folder / "checkpoints")
    return Training(
        env_steps=env_steps,
        gradient_steps=gradient_steps,
        gradient_steps_source="Adam's count in the last checkpoint",
        parameter_shapes=[list(leaf.shape) for leaf in jax.tree.leaves(run.policy.model)],
        simulator=_simulator(work, backend),
        device=jax.devices()[0].device_kind,
    )


def run_with(side: str, backend: Backend, packages: tuple[str, ...]) -> None:
    """What a module of this folder does that runs Inchworm with other environments than Gymnasium's."""
    main(side, partial(train, backend=backend), (*PACKAGES, *packages))


def _simulator(work: Work, backend: Backend) -> str:
    match backend:
        case "gymnasium":
            return gymnasium_simulator(work.env_id)
        case "envpool":
            return f"EnvPool {version('envpool')}, with its own build of the simulator"
        case "jax":
            return "Inchworm's own in JAX"
        case "brax":
            return f"Brax {version('brax')}"


def _adam_count(checkpoints: Path) -> int:
    """How many gradients the optimiser of the newest checkpoint has taken in."""
    state = safetensors.numpy.load_file(max(checkpoints.iterdir()) / "state.safetensors")
    (count,) = (state[name] for name in state if name.startswith("opt_state.") and name.endswith(".count"))
    return int(count)


if __name__ == "__main__":
    main("ours", train, packages=(*PACKAGES, "gymnasium", "mujoco"))
