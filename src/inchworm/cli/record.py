"""`inchworm record RUN`."""

import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from inchworm.cli.options import Argument, read_options


@dataclass(frozen=True, kw_only=True)
class Options:
    """Records the first 300 frames of an episode as run/video.mp4."""

    run: Annotated[Path, Argument("RUN")]
    """The run's folder."""
    which: Literal["last", "best"] = "last"
    """Which of the run's policies: the one it ended with, or that of the checkpoint with the highest mean return."""
    out: Path | None = None
    """The video's file; by default video.mp4 in the run's folder."""
    seed: int = 0
    """Seed of the episode."""
    json: bool = False
    """Print as JSON where the video is, its frames and the return."""
    env: str | None = None
    """module:factory, where the run was started with one, which must take render_mode; by default the run's own
    environment."""
    env_kwargs: dict[str, Any] | None = None
    """The environment's keyword arguments again, as a JSON object, where those of the run may name files."""


def main(arguments: list[str]) -> int:
    options = read_options("record", Options, arguments)
    if not os.environ.get("DISPLAY") and sys.platform == "linux":
        # Without a display MuJoCo renders only through EGL, and reads this when it is imported.
        os.environ.setdefault("MUJOCO_GL", "egl")
        os.environ.setdefault("SDL_VIDEODRIVER", "dummy")
    from inchworm.api import load
    from inchworm.cli.report import columns, video_of

    path, frames, total = load(options.run, which=options.which).record(
        out=options.out, seed=options.seed, env=options.env, env_kwargs=options.env_kwargs
    )
    if options.json:
        print(json.dumps({"video": str(path), "frames": frames, "return": total}))
    else:
        print(columns(video_of(path, frames, total)))
    return 0
