"""Learning curves as pictures."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from inchworm.checks import check_output


def plot_curves(curves: Sequence[tuple[str, Sequence[dict[str, Any]]]], path: Path, title: str) -> None:
    """Draws return over environment steps.

    Args:
        curves: a label and the rows of the metrics file for each run.
        path: of the picture; its ending decides the format.
        title: over the picture.

    Raises:
        ConfigError: the path is no picture's, or its folder is not there.
    """
    check_output("out", path, (".png", ".svg", ".pdf"))
    # Imported here because it takes a second that training should not wait for.
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot
    from matplotlib.ticker import EngFormatter

    figure, axes = pyplot.subplots(figsize=(8, 4.5), layout="constrained")
    for index, (label, rows) in enumerate(curves):
        color = f"C{index}"
        ended = [(row["env_steps"], row["episode/return"]) for row in rows if row.get("episode/return") is not None]
        smooth = [
            (row["env_steps"], row["episode/return_100"]) for row in rows if row.get("episode/return_100") is not None
        ]
        if ended and len(curves) == 1:
            axes.plot(
                *zip(*ended, strict=True), color=color, alpha=0.3, linewidth=0.8, label="episodes of an iteration"
            )
        if smooth:
            axes.plot(
                *zip(*smooth, strict=True),
                color=color,
                linewidth=1.8,
                label="mean of the last 100 episodes" if len(curves) == 1 else label,
            )
    axes.set(title=title, xlabel="environment steps", ylabel="return")
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.grid(alpha=0.3)
    if axes.has_data():
        axes.legend(frameon=False)
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
