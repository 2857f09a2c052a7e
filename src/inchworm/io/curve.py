"""Learning curves as pictures."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from inchworm.checks import check_output

Rows = Sequence[dict[str, Any]]
"""Of a run's metrics file."""


def plot_curves(curves: Sequence[tuple[str, Rows]], path: Path, title: str) -> None:
    """Draws return over environment steps, of one run or of several by their labels.

    Raises:
        ConfigError: the path is no picture's, or its folder is not there.
    """
    with _axes(path, title) as axes:
        for index, (label, rows) in enumerate(curves):
            ended, smooth = _points(rows, "episode/return"), _points(rows, "episode/return_100")
            alone = len(curves) == 1
            if ended and alone:
                axes.plot(*zip(*ended.items(), strict=True), alpha=0.3, linewidth=0.8, label="episodes of an iteration")
            if smooth:
                label = "mean of the last 100 episodes" if alone else label
                axes.plot(*zip(*smooth.items(), strict=True), color=f"C{index}", linewidth=1.8, label=label)


def plot_group(runs: Sequence[Rows], path: Path, title: str) -> None:
    """Draws the return of runs that differ by their seeds: each of them thin, their mean, and their deviation.

    Raises:
        ConfigError: the path is no picture's, or its folder is not there.
    """
    curves = [_points(rows, "episode/return_100") for rows in runs]
    with _axes(path, title) as axes:
        for curve in curves:
            if curve:
                axes.plot(*zip(*curve.items(), strict=True), color="C0", alpha=0.3, linewidth=0.8)
        steps = sorted(set.intersection(*(set(curve) for curve in curves)))
        if steps:
            values = np.array([[curve[step] for step in steps] for curve in curves])
            mean, spread = values.mean(axis=0), values.std(axis=0)
            axes.fill_between(steps, mean - spread, mean + spread, color="C0", alpha=0.15, linewidth=0)
            label = f"mean of {len(curves)} seeds ± deviation, over the last 100 episodes"
            axes.plot(steps, mean, color="C0", linewidth=2.0, label=label)


def _points(rows: Rows, metric: str) -> dict[int, float]:
    """A metric by environment steps, where it has a value."""
    return {row["env_steps"]: row[metric] for row in rows if row.get(metric) is not None}


@contextmanager
def _axes(path: Path, title: str) -> Iterator[Any]:
    """Axes to draw on, saved as a picture at the end."""
    check_output("out", path, (".png", ".svg", ".pdf"))
    # Imported here because it takes a second that training should not wait for.
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot
    from matplotlib.ticker import EngFormatter

    figure, axes = pyplot.subplots(figsize=(8, 4.5), layout="constrained")
    yield axes
    axes.set(title=title, xlabel="environment steps", ylabel="return")
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.grid(alpha=0.3)
    if axes.has_data():
        axes.legend(frameon=False)
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
