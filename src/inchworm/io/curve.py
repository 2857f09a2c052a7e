"""Learning curves as pictures.

Figures are made without pyplot: whoever trains from a notebook has backend, settings and open figures of their own.
"""

import io
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from inchworm.checks import check_output
from inchworm.io.files import replace_file

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Rows = Sequence[dict[str, Any]]
"""Of a run's metrics file."""

ENDINGS = (".png", ".svg", ".pdf")
RECENT = "recent episodes"
RECENT_IN_FULL = "recent episodes: the last 10, or those of 1 % of the budget if more"
LAST_100 = "the last 100 episodes"


def figure_of(
    curves: Sequence[tuple[str, Rows]], title: str, groups: Sequence[tuple[str, Sequence[Rows]]] = ()
) -> "Figure":
    """Return over environment steps, as a matplotlib figure.

    Args:
        curves: runs by their labels; the label of a run that is alone is not shown.
        title: taken letter by letter, without mathematics.
        groups: runs that differ by their seeds, by the label of all: each of them thin, their mean, their deviation.
    """
    figure = _import_figure()(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    alone = len(curves) == 1 and not groups
    everything = [rows for _, rows in curves] + [rows for _, runs in groups for rows in runs]
    is_recent = any(_points(rows, "episode/return_recent") for rows in everything)
    labels = {}
    for index, (label, rows) in enumerate(curves):
        ended, recent = _points(rows, "episode/return"), _recent(rows)
        if ended and alone:
            (line,) = axes.plot(*zip(*ended.items(), strict=True), color=f"C{index}", alpha=0.3, linewidth=0.8)
            labels[line] = "episodes of an iteration"
        if recent:
            (line,) = axes.plot(
                *zip(*recent.items(), strict=True), color=f"C{index}", linewidth=1.8, marker=_marker(recent)
            )
            labels[line] = label if not alone else RECENT_IN_FULL if is_recent else LAST_100
    for index, (label, runs) in enumerate(groups, len(curves)):
        line = _draw_group(axes, [_recent(rows) for rows in runs], f"C{index}")
        if line is not None:
            about = f"mean of {len(runs)} seeds ± deviation"
            labels[line] = f"{label}, {about}" if label else about
    axes.set_title(title, parse_math=False)
    averaged_over = RECENT if is_recent else LAST_100
    axes.set(xlabel="environment steps", ylabel="return" if alone else f"return, mean of {averaged_over}")
    axes.xaxis.set_major_formatter(_steps_formatter())
    axes.grid(alpha=0.3)
    if labels:
        for text in axes.legend(list(labels), list(labels.values()), frameon=False).get_texts():
            text.set_parse_math(False)
    return figure


def plot_curves(
    curves: Sequence[tuple[str, Rows]],
    path: Path,
    title: str,
    groups: Sequence[tuple[str, Sequence[Rows]]] = (),
) -> None:
    """Writes what `figure_of` draws as a picture, which is there whole or not at all.

    Raises:
        ConfigError: the path is no picture's, or its folder is not there.
    """
    check_output("out", path, ENDINGS)
    picture = io.BytesIO()
    figure_of(curves, title, groups).savefig(picture, format=path.suffix[1:].lower(), dpi=120)
    replace_file(path, picture.getvalue())


def plot_group(runs: Sequence[Rows], path: Path, title: str) -> None:
    """Draws runs that differ by their seeds.

    Raises:
        ConfigError: as `plot_curves`.
    """
    plot_curves([], path, title, [("", runs)])


def _draw_group(axes: "Axes", curves: list[dict[int, float]], color: str) -> Any:
    """Draws runs together; returns the line of their mean, None where they have no step in common."""
    for curve in curves:
        if curve:
            axes.plot(*zip(*curve.items(), strict=True), color=color, alpha=0.3, linewidth=0.8, marker=_marker(curve))
    steps = sorted(set.intersection(*(set(curve) for curve in curves)))
    if not steps:
        return None
    values = np.array([[curve[step] for step in steps] for curve in curves])
    mean, spread = values.mean(axis=0), values.std(axis=0)
    axes.fill_between(steps, mean - spread, mean + spread, color=color, alpha=0.15, linewidth=0)
    (line,) = axes.plot(steps, mean, color=color, linewidth=2.0)
    return line


def _marker(curve: dict[int, float]) -> str:
    """A point where a line would not be seen."""
    return "o" if len(curve) == 1 else ""


def _points(rows: Rows, metric: str) -> dict[int, float]:
    """A metric by environment steps, where it has a value."""
    return {row["env_steps"]: row[metric] for row in rows if row.get(metric) is not None}


def _recent(rows: Rows) -> dict[int, float]:
    """The return that a policy has now; in rows that were written before this was, of the last 100 episodes."""
    return _points(rows, "episode/return_100") | _points(rows, "episode/return_recent")


def _import_figure() -> "type[Figure]":
    # Imported here because it takes a second that training should not wait for.
    try:
        from matplotlib.figure import Figure
    except ValueError:
        # MPLBACKEND names a backend that is not installed here, such as that of a notebook which started this program.
        if (backend := os.environ.pop("MPLBACKEND", None)) is None:
            raise
        for name in [name for name in sys.modules if name.partition(".")[0] == "matplotlib"]:
            del sys.modules[name]  # half imported
        try:
            from matplotlib.figure import Figure
        finally:
            os.environ["MPLBACKEND"] = backend
    return Figure


def _steps_formatter() -> Any:
    from matplotlib.ticker import EngFormatter

    return EngFormatter(sep="")
