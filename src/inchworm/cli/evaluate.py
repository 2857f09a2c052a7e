"""`inchworm evaluate RUN`."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from inchworm.api import load
from inchworm.cli.options import Argument, read_options
from inchworm.io.words import count, format_return, with_spread


@dataclass(frozen=True, kw_only=True)
class Options:
    """Runs whole episodes with a run's policy, acting by its modes and by its samples, in environments of their own."""

    run: Annotated[Path, Argument("RUN")]
    """The run's folder."""
    which: Literal["last", "best"] = "last"
    """Which of the run's policies: the one it ended with, or that of the checkpoint with the highest mean return."""
    episodes: int = 20
    """Episodes of each kind."""
    seed: int | None = None
    """Seed of the episodes; by default the run's."""
    env: str | None = None
    """module:factory, where the run was started with one; by default the run's own environment."""
    env_kwargs: dict[str, Any] | None = None
    """The environment's keyword arguments again, as a JSON object, where those of the run may name files."""
    json: bool = False
    """Print every return as JSON."""


def main(arguments: list[str]) -> int:
    options = read_options("evaluate", Options, arguments)
    run = load(options.run, which=options.which)
    results = {
        kind: run.evaluate(
            episodes=options.episodes,
            deterministic=kind == "deterministic",
            seed=options.seed,
            env=options.env,
            env_kwargs=options.env_kwargs,
        )
        for kind in ("deterministic", "stochastic")
    }
    if options.json:
        print(json.dumps({kind: result.summary() for kind, result in results.items()}))
        return 0
    for kind, result in results.items():
        cut = f", {result.unfinished} cut at its step limit" if result.unfinished else ""
        print(
            f"  {kind:<13}  return {with_spread(result.mean, result.std)}  (from "
            f"{format_return(min(result.returns))} to {format_return(max(result.returns))}, "
            f"{count(len(result.returns), 'episode')}{cut})"
        )
    return 0
