"""`inchworm plot RUN [RUN ...]`."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from inchworm.cli.options import Argument, read_options
from inchworm.cli.report import columns
from inchworm.errors import CheckpointError, RunFolderError
from inchworm.io.curve import plot_curves
from inchworm.io.loggers import read_metrics
from inchworm.io.run_folder import RunFolder, open_run_folder, read_json, runs_of_group
from inchworm.warning import warn


@dataclass(frozen=True, kw_only=True)
class Options:
    """Draws return over environment steps, of one run or of several side by side.

    Runs of several seeds are drawn together, with their mean and deviation, where the folder of the group is named.
    """

    runs: Annotated[tuple[Path, ...], Argument("RUN")]
    """Folders of runs, or of groups of runs that differ by their seeds (...-seeds)."""
    out: Path | None = None
    """The picture (.png, .svg, .pdf); by default curve.png in the folder that is named, or in this one if several
    are."""


@dataclass(frozen=True)
class _Drawn:
    """What one folder gives to draw."""

    folder: Path
    runs: list[RunFolder]
    env: str
    is_group: bool


def main(arguments: list[str]) -> int:
    options = read_options("plot", Options, arguments)
    drawn = _without_repeats(_found(options.runs))
    alone = drawn[0].folder if len(drawn) == 1 else None
    out = options.out or (Path("curve.png") if alone is None else RunFolder(alone).curve)
    plot_curves(
        [(one.folder.name, read_metrics(one.runs[0].metrics)) for one in drawn if not one.is_group],
        out,
        ", ".join(sorted({one.env for one in drawn})),
        [(one.folder.name, [read_metrics(run.metrics) for run in one.runs]) for one in drawn if one.is_group],
    )
    print(columns({"curve": out}))
    return 0


def _found(paths: Sequence[Path]) -> list[_Drawn]:
    """What can be drawn of the folders; the others are warned of, if anything is left.

    Raises:
        RunFolderError, CheckpointError: nothing is, and why not the first of them.
    """
    found, errors = [], []
    for path in paths:
        try:
            found.append(_read(path))
        except (RunFolderError, CheckpointError) as error:
            errors.append(error)
    if not found:
        raise errors[0]
    for error in errors:
        warn(f"A folder is passed over: {error}")
    return found


def _read(path: Path) -> _Drawn:
    folder = RunFolder(path)
    if folder.config.exists() or not folder.summary.exists():
        return _Drawn(path, [open_run_folder(path)], str(read_json(folder.config).get("env")), False)
    named = runs_of_group(path)
    # Of seeds that are trained one after the other, or were stopped, some may have no folder.
    runs = [open_run_folder(run.path) for run in named if run.path.exists()] or [open_run_folder(named[0].path)]
    return _Drawn(path, runs, str(read_json(folder.summary).get("env")), True)


def _without_repeats(drawn: Sequence[_Drawn]) -> list[_Drawn]:
    """Without what is named twice, and runs that are drawn in their group."""
    once = list({one.folder.resolve(): one for one in drawn}.values())
    grouped = {run.path.resolve() for one in once if one.is_group for run in one.runs}
    return [one for one in once if one.is_group or one.folder.resolve() not in grouped]
