"""What runs came to, in words."""

import base64
import html
import os
from pathlib import Path
from typing import Any


def format_return(value: float) -> str:
    """With a decimal, or with three digits where a decimal would hide them, as in tasks that pay between 0 and 1."""
    return f"{value:,.1f}" if abs(value) >= 10 else f"{value:.3g}"


def with_spread(mean: float, deviation: float) -> str:
    """A mean and the deviation around it, with as many decimals."""
    large = max(abs(mean), deviation) >= 10
    return " ± ".join(f"{value:,.1f}" if large else f"{value:.3g}" for value in (mean, deviation))


def count(number: int, noun: str) -> str:
    """As `1 episode` or `20 episodes`."""
    return f"{number:,} {noun}" + "s" * (number != 1)


def short(path: Path) -> str:
    """A path from the current folder, where that is shorter."""
    return min(os.path.relpath(path), str(path), key=len)


def format_seconds(seconds: float) -> str:
    """As 1:23:45 or 2:05."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def scores(summary: dict[str, Any]) -> dict[str, str]:
    """What a run's summary says of its length and its returns."""
    told = {}
    if "env_steps" in summary:
        told["steps"] = f"{summary['env_steps']:,}"
    if "seconds" in summary:
        rate = summary["env_steps"] / max(summary["seconds"], 1e-9)
        told["steps"] += f" in {format_seconds(summary['seconds'])}, {rate:,.0f} steps/s"
    if "return_100" in summary:
        told["return"] = final_return(summary)
    if summary.get("skipped_updates"):
        told["skipped"] = f"{summary['skipped_updates']} updates met NaN or infinity and were dropped"
    for kind in ("deterministic", "stochastic"):
        if evaluation := summary.get(f"evaluation_{kind}"):
            played, cut = len(evaluation["returns"]), evaluation["unfinished"]
            asked = evaluation.get("asked", played)
            told[kind] = (
                f"{with_spread(evaluation['mean'], evaluation['std'])} over "
                + ("" if played == asked else f"{played} of ")
                + count(asked, "episode")
                + (f", {cut} cut at its step limit" if cut else "")
            )
    return told


def final_return(summary: dict[str, Any]) -> str:
    """The final score: the mean return of the last 100 episodes, or of as many as there were."""
    if summary["return_100"] is None:
        ended = count(summary["episodes"], "episode")
        return f"{ended} ended, none with a finite return" if summary["episodes"] else "no episode has ended"
    over = summary.get("return_over", min(summary["episodes"], 100))  # which older summaries do not have
    return f"{format_return(summary['return_100'])} over the last {over} of {count(summary['episodes'], 'episode')}"


def group_scores(summary: dict[str, Any]) -> dict[str, str]:
    """What the summary of several seeds says of their returns."""
    told = {}
    for kind in ("return_100", "evaluation_deterministic", "evaluation_stochastic"):
        if score := summary.get(kind):
            spread = score["std_over_seeds"]
            name = kind.removeprefix("evaluation_").replace("_100", "")
            mean = score["mean"]
            told[name] = format_return(mean) if spread is None else f"{with_spread(mean, spread)} over seeds"
    return told


def as_html(title: str, rows: dict[str, str], picture: Path) -> str:
    """What a notebook shows of a run: its scores and its curve."""
    cells = "".join(
        f"<tr><td>{html.escape(name)}</td><td style='text-align: left'>{html.escape(text)}</td></tr>"
        for name, text in rows.items()
    )
    curve = ""
    if picture.is_file():
        data = base64.b64encode(picture.read_bytes()).decode()
        curve = f"<img src='data:image/png;base64,{data}' style='max-width: 640px' alt='return over steps'>"
    return f"<div><b>{html.escape(title)}</b><table>{cells}</table>{curve}</div>"
