"""`inchworm plot RUN [RUN ...]`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from inchworm.cli.options import Argument, read_options
from inchworm.errors import ConfigError
from inchworm.io.curve import plot_curves
from inchworm.io.loggers import read_metrics
from inchworm.io.run_folder import open_run_folder, read_json


@dataclass(frozen=True, kw_only=True)
class Options:
    """Draws return over environment steps, of one run or of several side by side."""

    runs: Annotated[tuple[Path, ...], Argument("RUN")]
    """Run folders."""
    out: Path | None = None
    """The picture (.png, .svg, .pdf); by default curve.png in the run's folder, or in this one for several runs."""


def main(arguments: list[str]) -> int:
    options = read_options("plot", Options, arguments)
    if not options.runs:
        raise ConfigError("RUN", "", "is missing", "Name one run's folder or several.")
    folders = [open_run_folder(path) for path in options.runs]
    curves = [(folder.path.name, read_metrics(folder.metrics)) for folder in folders]
    names = sorted({str(read_json(folder.config).get("env")) for folder in folders})
    out = options.out or (folders[0].curve if len(folders) == 1 else Path("curve.png"))
    plot_curves(curves, out, ", ".join(names))
    print(f"  curve   {out}")
    return 0
