"""Write the figures of benchmarks/results/ that README.md shows into it, between its two markers.

    python benchmarks/readme.py

Results of trials and of works for a GPU are left out, and works without a result.
"""

from __future__ import annotations

import json
import textwrap
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

from peers.protocol import WORKS

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results"
README = HERE.parent / "README.md"
BEGIN, END = "<!-- What follows is written by benchmarks/readme.py. -->", "<!-- Up to here. -->"

PEERS = {
    "sb3": ("SB3", "stable-baselines3"),
    "sb3_processes": ("SB3, environments in processes", "stable-baselines3"),
    "sb3_contrib": ("sb3-contrib", "sb3-contrib"),
    "sbx": ("SBX", "sbx-rl"),
    "sbx_processes": ("SBX, environments in processes", "sbx-rl"),
    "tianshou": ("Tianshou", "tianshou"),
    "tianshou_processes": ("Tianshou, environments in processes", "tianshou"),
    "tianshou_envpool": ("Tianshou on EnvPool", "tianshou"),
    "cleanrl": ("CleanRL's PPO, re-stated", "torch"),
    "rejax": ("Rejax", "rejax"),
    "purejaxrl": ("PureJaxRL's PPO, re-stated", "jax"),
    "brax": ("Brax", "brax"),
}
"""What the README calls a peer, and the package whose version it states."""
OURS = {
    "ours": "",
    "ours_processes": ", environments in processes",
    "ours_envpool": ", on EnvPool",
    "ours_jax": ", environment in JAX",
    "ours_brax": "",
}
"""What the README adds to a work, by the module that runs Inchworm."""

HEAD = """| work | peer | peer, median | Inchworm, median | ratio, median (minimum) |
| --- | --- | --: | --: | --: |"""


def figures(results: Path = RESULTS) -> str:
    """All that stands between the markers."""
    files = {name: results / f"{name}.json" for name, work in WORKS.items() if work.platform == "cpu"}
    measured = {name: json.loads(file.read_text()) for name, file in files.items() if file.exists()}
    rows = [row for name, result in measured.items() for row in rows_of(name, result)]
    table = "\n".join([HEAD, *(f"| {' | '.join(row)} |" for row in rows)])
    others = {name: json.loads(file.read_text()) for name in OTHERS if (file := results / f"{name}.json").exists()}
    return "\n\n".join([table, rounds_and_versions(measured), *(OTHERS[name](one) for name, one in others.items())])


def rows_of(name: str, result: dict[str, Any]) -> list[tuple[str, ...]]:
    """A row for each pair of a work, and one for its updates where something is promised of them."""
    rows = []
    for pair in result["pairs"]:
        played = [(one["measurements"][pair["peer"]], one["measurements"][pair["ours"]]) for one in result["rounds"]]
        work = "the same" if rows else f"[{result['title']}](benchmarks/results/{name}.json)"
        peer = PEERS[pair["peer"]][0]
        speeds = [f"{median(one[side]['steps_per_second'] for one in played):,.0f}" for side in (0, 1)]
        rows.append((work + OURS[pair["ours"]], peer, *speeds, ratio(pair, "ratio")))
        if pair["target_update_ratio"] is not None:
            per_update = 1000 / result["settings"]["timed_iterations"]
            times = [f"{per_update * median(one[side]['update_seconds'] for one in played):,.0f} ms" for side in (0, 1)]
            rows.append(("its updates alone", peer, *times, ratio(pair, "update_ratio")))
    return rows


def ratio(pair: dict[str, Any], name: str) -> str:
    """Median and minimum over the rounds, and the promise if the median misses it."""
    middle, least, promise = pair[f"median_{name}"], pair[f"minimum_{name}"], pair[f"target_{name}"]
    missed = "" if promise is None or middle >= promise else f", {promise:g} was promised"
    return f"**{_short(middle)}** ({_short(least)}){missed}"


def rounds_and_versions(measured: dict[str, dict[str, Any]]) -> str:
    """How often was measured, and what."""
    counts = {name: len(result["rounds"]) for name, result in measured.items()}
    ((usual, _),) = Counter(counts.values()).most_common(1)
    others = "".join(f", {count} of {name}" for name, count in counts.items() if count != usual)
    versions: dict[str, str] = {}
    for result in measured.values():
        for side, measurement in result["rounds"][0]["measurements"].items():
            for package in (PEERS[side][1], "torch") if side in PEERS else ("jax",):
                if package in measurement["versions"]:
                    versions[package] = measurement["versions"][package]
    stated = ", ".join(f"{package} {version}" for package, version in versions.items())
    return wrapped(f"{usual} rounds each{others}; the files have every round. With {stated}.")


def startup_line(startup: dict[str, Any]) -> str:
    """How long a user waits for the first iteration."""
    cold, warm = (startup["median_seconds"][kind] for kind in ("cold", "warm"))
    count = len(startup["seconds"]["cold"])
    return wrapped(
        f"From `inchworm train {startup['env_id']}` to the end of the first iteration: {cold:.1f} seconds the first "
        f"time, {warm:.1f} when JAX has compiled the same program before (medians of {count}, "
        "[each start](benchmarks/results/startup.json))."
    )


def throughput_lines(result: dict[str, Any]) -> str:
    """Where the time goes, as a table, and how far that is from the floor."""
    medians = result["median"]
    title = result["title"].partition(":")[0]
    rows = [
        f"| {name} | {side['env']:.0f} | {side['act']:.0f} | {side['update']:.0f} | {side['other']:.0f} | "
        f"{side['total']:.0f} | {side['times_the_floor']:.2f} |"
        for name, side in (("on EnvPool", medians["envpool"]), ("on Gymnasium", medians["gymnasium"]))
    ]
    least = medians["floor"]
    head = (
        f"Where the time of [{title}](benchmarks/results/throughput.json) goes, in milliseconds an iteration. The "
        f"floor is {least['total']:.0f} ms, measured in the same rounds: {least['env']:.0f} for EnvPool's environments "
        f"alone on all cores, {least['arithmetic']:.0f} for a bare loop of as many multiplications in one thread."
    )
    table = ["| | env | act | update | other | all | times the floor |", "| --- | --: | --: | --: | --: | --: | --: |"]
    return "\n\n".join([wrapped(head), "\n".join([*table, *rows])])


def seeds_line(result: dict[str, Any]) -> str:
    """How much faster several seeds are than one."""
    ratios = {name: work["median_ratio"] for name, work in result["works"].items()}
    return wrapped(
        f"{result['seeds']} seeds at once, all their steps per second beside those of one run: "
        f"{ratios['jax-cartpole']:.2f} times for CartPole in JAX, {ratios['halfcheetah-processes']:.2f} times for "
        f"HalfCheetah-v5 in processes beside one run on one core ([each round](benchmarks/results/seeds.json))."
    )


def growth_line(result: dict[str, Any]) -> str:
    """How cost grows."""
    sizes = [int(size) for size in result["updates"]]
    memory = result["bytes_for_each_further_step"]
    return wrapped(
        f"From {min(sizes):,} to {max(sizes):,} steps in a rollout the time of an update stays within "
        f"{result['farthest_from_linear']:.0%} of linear; memory grows by {min(memory) / 1000:.1f} to "
        f"{max(memory) / 1000:.1f} kB a step ([figures](benchmarks/results/growth.json))."
    )


def wrapped(text: str) -> str:
    """A paragraph in the lines of the README."""
    return textwrap.fill(text, width=120, break_long_words=False, break_on_hyphens=False)


OTHERS: dict[str, Callable[[dict[str, Any]], str]] = {
    "throughput": throughput_lines,
    "seeds": seeds_line,
    "growth": growth_line,
    "startup": startup_line,
}
"""By result, what the README says of it."""


def main() -> None:
    """Rewrite what is between the markers."""
    before, rest = README.read_text().split(BEGIN)
    after = rest.split(END)[1]
    README.write_text(f"{before}{BEGIN}\n\n{figures()}\n\n{END}{after}")


def _short(number: float) -> str:
    return f"{number:.1f}" if number >= 10 else f"{number:.2f}"


if __name__ == "__main__":
    main()
