"""The program of a process that trains one of several seeds."""

import signal

if __name__ == "__main__":
    # Before what takes long to import: until training hears it, Ctrl-C ends this process without a word.
    signal.signal(signal.SIGINT, signal.SIG_DFL)

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from inchworm.build import OwnParts
from inchworm.config import RunConfig
from inchworm.envs.source import env_referred, env_source
from inchworm.loop import Iteration
from inchworm.planning import configure_jax
from inchworm.runner import train_alone
from inchworm.workers import referred, serve

REPORT_SECONDS = 0.2


def train(call: dict[str, Any], report: Callable[[float, float | None], None], note: Callable[[str], None]) -> str:
    """One run as `inchworm.seeds` asks for it; returns its folder."""
    reported = 0.0

    def tell(iteration: Iteration) -> None:
        nonlocal reported
        if time.monotonic() - reported >= REPORT_SECONDS or iteration.env_steps >= iteration.total_steps:
            reported = time.monotonic()
            report(iteration.env_steps, iteration.metrics.get("episode/return_recent"))

    def noted(text: str) -> None:
        nonlocal reported
        if time.monotonic() - reported >= REPORT_SECONDS:
            reported = time.monotonic()
            note(f"seed {config.seed}, {text}")

    config = RunConfig.from_json(call["config"])
    configure_jax(config.threads)
    run = train_alone(
        config,
        env_source(env_referred(call["env"]), config.env_kwargs, call["backend"]),
        OwnParts(network=referred(call["network"])),
        out=Path(call["out"]),
        name=call["name"],
        evaluation_episodes=call["evaluation_episodes"],
        callbacks=[tell],
        progress=False,
        note=noted,
    )
    return str(run.folder)


if __name__ == "__main__":
    sys.exit(serve(train))
