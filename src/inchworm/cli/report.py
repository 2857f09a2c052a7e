"""What a run came to and where everything is, as a command prints it at its end."""

import json
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from inchworm.io.run_folder import RunFolder
from inchworm.io.words import final_return, format_return, group_scores, scores, short
from inchworm.warning import plain

if TYPE_CHECKING:  # plots do without JAX, which these would import
    from inchworm.envs.source import EnvSource
    from inchworm.models.advice import Finding
    from inchworm.run import Run
    from inchworm.seeds import RunGroup


def report(run: "Run", video: bool) -> None:
    """Prints what a run came to, and records a video if one is wanted and can be."""
    shown: dict[str, Any] = {"stopped by": run.summary["stopped_by"]} | scores(run.summary)
    print(columns(shown | {"run": run.folder, "curve": RunFolder(run.folder).curve}), flush=True)
    if video and run.source is not None and run.source.draws:
        print(_video(run, run.source, max(map(len, shown))))


def report_group(group: "RunGroup") -> None:
    """Prints what several seeds came to."""
    shown: dict[str, Any] = {f"seed {run.config.seed}": final_return(run.summary) for run in group}
    shown |= group_scores(group.summary)
    print(
        columns(shown | {f"run {run.config.seed}": run.folder for run in group} | {"curve": group.folder / "curve.png"})
    )


def columns(shown: Mapping[str, Any], width: int = 0) -> str:
    """Names and values as two aligned columns, the first at least so wide.

    A path is as short as it can be, and on a line of its own where it would be folded, so that it can be copied.
    """
    width = max(width, *map(len, shown))
    room = shutil.get_terminal_size().columns - width - 4
    rows = {}
    for name, value in shown.items():
        if isinstance(value, Path):
            value = short(value)
            value = f"\n    {value}" if len(value) > room else value
        rows[name.ljust(width)] = value
    lines = "\n".join(f"  {name}  {value}" for name, value in rows.items()).split("\n")
    return "\n".join(line.rstrip() for line in lines)


Section = tuple[str, Iterable[tuple[str, str]]]
"""A title, and names with what is told of them."""


def page(sections: Sequence[Section]) -> str:
    """Sections in one pair of columns, folded to the terminal."""
    parts = [(title, list(rows)) for title, rows in sections]
    indent = 4 + max((len(key) for _, rows in parts for key, _ in rows), default=0)
    width = max(indent + 40, min(shutil.get_terminal_size((110, 24)).columns, 110))
    return "\n\n".join("\n".join([title, *(_row(*row, indent, width) for row in rows)]) for title, rows in parts)


def found_section(title: str, found: "Sequence[Finding]") -> Section:
    """What was found, counted in the title."""
    return f"{title}: {len(found) or 'none'}", [(one.where, f"{one.problem}. {one.fix}") for one in found]


def _row(key: str, text: str, indent: int, width: int) -> str:
    return textwrap.fill(
        text,
        width,
        initial_indent=f"  {key:<{indent - 4}}  ",
        subsequent_indent=" " * indent,
        break_on_hyphens=False,
        break_long_words=False,
    )


def video_of(path: Path, frames: int, total: float) -> dict[str, Any]:
    """How a video is shown in columns."""
    return {"video": path, "": f"{frames} frames, return {format_return(total)} up to the last"}


def _video(run: "Run", source: "EnvSource", width: int) -> str:
    """Records a video and tells where it is, or why there is none, which is no error of the training."""
    from inchworm.run import given_again

    # A renderer can take the whole process down; by now everything else is on disk. -P as in `start_program`.
    again = given_again(source.name, source.kwargs)
    command = [sys.executable, "-P", "-m", "inchworm", "record", str(run.folder), "--json", *again]
    done = subprocess.run(command, check=False, capture_output=True, text=True, errors="replace")
    try:
        found = json.loads(done.stdout.splitlines()[-1])
        return columns(video_of(Path(found["video"]), found["frames"], found["return"]), width)
    except (IndexError, KeyError, TypeError, ValueError):
        told = [line.removeprefix("error: ") for line in done.stderr.splitlines() if line.startswith("error: ")]
        reason = plain(told[-1]) if told else f"the process that records it ended with status {done.returncode}"
        return f"  no video: {reason}"
