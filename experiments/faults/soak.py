"""Injects faults for a long time, and writes the table of what came of them.

    python experiments/faults/soak.py               until all of tier N is done: hours
    python experiments/faults/soak.py --minutes 60
    python experiments/faults/soak.py --show        injects nothing, writes results.json and the page's table

It can be stopped at any time: each outcome is kept in outcomes.jsonl as soon as it is there, and the next call goes on
after it. The injections are those of tests/faults/injections.py and kills.py, each with a seed of its own.
"""

import argparse
import datetime
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import NamedTuple

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
TESTS = ROOT / "tests"
OUTCOMES, RESULTS, PAGE = HERE / "outcomes.jsonl", HERE / "results.json", ROOT / "docs" / "reliability.md"
sys.path[:0] = [str(TESTS), str(TESTS / "faults")]

from injections import inject_alone  # noqa: E402
from kills import KINDS, killed  # noqa: E402

import fault_table  # noqa: E402
from inchworm.io.provenance import provenance  # noqa: E402


class Work(NamedTuple):
    """What is injected with one seed."""

    row: str
    kind: str
    """Of run that is killed; empty for other rows."""
    seed: int

    @property
    def name(self) -> str:
        return f"{self.row} {self.kind} {self.seed}".replace("  ", " ")


SEEDS = {
    "RL1": (3, 1), "RL3": (25, 1), "RL4": (100, 10), "RL7": (20, 5), "RL9": (20, 1), "RF1": (1000, 50),
    "RF11": (1000, 50), "RF12": (500, 50), "RF13": (200, 20), "RF16": (100, 20), "RF17": (100, 10),
    "RF19": (20, 2), "RF21": (10, 1),
}  # fmt: skip
"""How many seeds of each row tier N has, and how many of them in one process.

One of RL3 is 20 trainings, of RL4 100 checkpoints, of RF12 20 damages, of RF13 five numbers."""
KILLS, CHAINS = 20, 7
"""How often a run is killed in a chain, and how many chains each kind of run has."""


def plan() -> list[Work]:
    """All of tier N: the first seed of everything, then the second, ..."""
    works = [Work("RF8", kind, seed) for kind in KINDS for seed in range(CHAINS)]
    works += [Work(row, "", seed) for row, (seeds, at_once) in SEEDS.items() for seed in range(0, seeds, at_once)]
    # Rows of few seeds are spread over those of many.
    share = {row: 1.0 / seeds for row, (seeds, _) in SEEDS.items()} | {"RF8": 1.0 / CHAINS}
    return sorted(works, key=lambda work: (work.seed * share[work.row], work.row))


def done() -> dict[str, dict[str, object]]:
    """What came of each work so far."""
    lines = OUTCOMES.read_text().splitlines() if OUTCOMES.exists() else []
    return {row["work"]: row for row in map(json.loads, lines)}


def inject(work: Work, out: Path) -> dict[str, object]:
    began = time.monotonic()
    found: dict[str, object] = {"work": work.name, "row": work.row}
    try:
        if work.row == "RF8":
            survived, detected = killed(work.kind, work.seed, KILLS, out), 0
        else:
            survived, detected = inject_alone(work.row, work.seed, out, SEEDS[work.row][1], more=True)
        found |= {"survived": survived, "detected": detected, "silent": 0}
    except Exception as error:
        found |= {"survived": 0, "detected": 0, "silent": 1, "because": str(error)[-1000:]}
    return found | {"seconds": round(time.monotonic() - began, 1)}


def write() -> None:
    """results.json, and the table in the documentation."""
    rows: dict[str, dict[str, int]] = defaultdict(lambda: dict.fromkeys(fault_table.OUTCOMES, 0))
    seconds, chains = 0.0, 0
    for outcome in done().values():
        seconds += float(outcome["seconds"])  # type: ignore[arg-type]
        for kind in fault_table.OUTCOMES:
            rows[str(outcome["row"])][kind] += int(outcome[kind])  # type: ignore[call-overload]
        if outcome["row"] == "RF8" and not outcome["silent"]:
            chains += 1
            rows["RF9"]["survived"] += 1
    commit = subprocess.run(["git", "-C", str(ROOT), "rev-parse", "HEAD"], capture_output=True, text=True, check=True)
    ran_on = provenance()
    about = {
        "commit": commit.stdout.strip(),
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "python": platform.python_version(),
        "cpu": ran_on["numerics"]["cpu"],
        "cores": os.cpu_count(),
        "versions": {name: ran_on["versions"][name] for name in ("jax", "numpy", "gymnasium", "mujoco")},
        "hours": round(seconds / 3600, 2),
        "seeds": "0, 1, 2, ... of each row",
    }
    RESULTS.write_text(json.dumps(about | {"rows": rows}, indent=2) + "\n")
    text = PAGE.read_text()
    start, end = "<!-- soak -->\n", "<!-- /soak -->"
    before, after = text[: text.index(start) + len(start)], text[text.index(end) :]
    PAGE.write_text(before + table(about, rows) + after)


def table(about: dict, rows: dict[str, dict[str, int]]) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in about["versions"].items())
    head = (
        f"{about['hours']:.1f} hours on {about['cores']} cores ({about['cpu']}), Python {about['python']}, {versions}, "
        f"commit {about['commit'][:7]}, {about['date']}.\n\n"
        "| | injected | survived | detected | silent | |\n| --- | ---: | ---: | ---: | ---: | --- |\n"
    )
    lines = []
    for row, what in fault_table.ROWS.items():
        if row in rows:
            numbers = [sum(rows[row].values()), *(rows[row][kind] for kind in fault_table.OUTCOMES)]
            lines.append(f"| {row} | {' | '.join(f'{number:,}' for number in numbers)} | {what} |\n")
        elif row in fault_table.NOT_BUILT:
            lines.append(f"| {row} | not built yet | | | | {what} |\n")
    return head + "".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=1e9)
    parser.add_argument("--rows", nargs="*", help="of these rows only")
    parser.add_argument("--show", action="store_true")
    options = parser.parse_args()
    began, known = time.monotonic(), done()
    for work in [] if options.show else plan():
        if work.name in known or (options.rows and work.row not in options.rows):
            continue
        if time.monotonic() - began > 60 * options.minutes:
            break
        out = Path(tempfile.mkdtemp(prefix="inchworm-soak-"))
        outcome = inject(work, out)
        shutil.rmtree(out, ignore_errors=True)
        with OUTCOMES.open("a") as file:
            file.write(json.dumps(outcome) + "\n")
        print(f"{work.name:20} {json.dumps(outcome)}", flush=True)
    write()


if __name__ == "__main__":
    main()
