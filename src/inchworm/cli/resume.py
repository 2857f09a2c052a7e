"""`inchworm resume RUN`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from inchworm.api import resume
from inchworm.cli.options import Argument, read_options
from inchworm.cli.report import report


@dataclass(frozen=True, kw_only=True)
class Options:
    """Goes on with a stopped run from its newest good checkpoint.

    The result is bit for bit that of the run that was never stopped; where the environment does not allow that, a
    warning says so and provenance.json records it.
    """

    run: Annotated[Path, Argument("RUN")]
    """The run's folder."""
    which: Literal["last", "best"] = "last"
    """Where to go on from: the newest checkpoint, or the one with the highest mean return, which makes a new run."""
    env: str | None = None
    """module:factory, where the run was started with one; by default the run's own environment."""
    env_kwargs: dict[str, Any] | None = None
    """The environment's keyword arguments again, as a JSON object, where those of the run may name files."""
    total_steps: int | None = None
    """Another budget, which makes a new run that names this one as its parent; by default the run's."""
    evaluation_episodes: int = 20
    """Episodes of each of the two evaluations at the end; 0 for none."""
    video: bool = True
    """Record a video at the end, where the environment can be rendered."""
    progress: bool = True
    """Show a line that tells how training goes."""


def main(arguments: list[str]) -> int:
    options = read_options("resume", Options, arguments)
    run = resume(
        options.run,
        options.env,
        env_kwargs=options.env_kwargs,
        which=options.which,
        total_steps=options.total_steps,
        evaluation_episodes=options.evaluation_episodes,
        progress=options.progress,
    )
    report(run, options.video)
    return 0
