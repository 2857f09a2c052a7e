"""Measure Inchworm's training speed beside its peers', on the same work and the same machine.

    python benchmarks/compare.py --work halfcheetah --rounds 7

Speed is environment steps per second of the whole training; the time of its updates alone is measured beside it. A
round trains once with each peer and once with Inchworm, every training in a fresh process and all with the round's
seed; only ratios within a round count, since absolute figures drift by machine and hour. Nothing is compared unless
both sides took the same environment steps and gradient steps with networks of the same shapes. The result is written
to benchmarks/results/<work>.json.

On first use the peers are installed into benchmarks/.venv from benchmarks/peers/requirements.txt (about 1 GB).
"""

from __future__ import annotations

import json
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median
from typing import Annotated, Any, Literal

import tyro
from rich.console import Console
from rich.table import Table

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

from peers.protocol import SHARED_PACKAGES, WORKS, Measurement, Work  # noqa: E402  (the path is set just above)

OURS = "ours"
EQUAL_FIELDS = ("env_steps", "timed_env_steps", "gradient_steps", "parameter_count", "parameter_shapes")
PROCESS_LIMIT_SECONDS = 1800

console = Console()


class UnequalWorkError(RuntimeError):
    """Two sides of a round did not do the same work, so that their speeds cannot be compared."""


class PeerError(RuntimeError):
    """A training process failed, or answered with something else than its measurement."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """Train Inchworm and its peers in turn with the same settings and compare their environment steps per second."""

    work: Literal["halfcheetah", "cartpole", "halfcheetah-trpo", "cartpole-lstm64", "cartpole-lstm256", "all"] = "all"
    """What to train: PPO on HalfCheetah-v5 with 1 environment or on CartPole-v1 with 8, TRPO on HalfCheetah-v5, PPO
    with an LSTM of 64 or 256 units on CartPole-v1, or all of it in turn."""

    rounds: int = 7
    """How many times each side trains. Round k has seed k."""

    peers: Annotated[tuple[str, ...], tyro.conf.arg(help_behavior_hint="(default: the one of the work's target)")] = ()
    """Modules of benchmarks/peers to compare with."""

    timed_iterations: int | None = None
    """Iterations in the timed part, instead of the work's own number. For a quick trial, whose result goes to
    <work>-trial.json: short runs are noisy."""

    results: Annotated[Path, tyro.conf.arg(help_behavior_hint="(default: benchmarks/results)")] = HERE / "results"
    """Folder of the JSON files."""

    python: Annotated[Path, tyro.conf.arg(help_behavior_hint="(default: this script's own)")] = Path(sys.executable)
    """Interpreter that has Inchworm."""

    def __post_init__(self) -> None:
        if self.rounds < 1:
            raise ValueError(f"rounds = {self.rounds}: take at least 1")

    @property
    def works(self) -> list[Work]:
        chosen = list(WORKS.values()) if self.work == "all" else [WORKS[self.work]]
        if self.timed_iterations is None:
            return chosen
        return [replace(work, timed_iterations=self.timed_iterations) for work in chosen]

    def peers_of(self, work: Work) -> tuple[str, ...]:
        return self.peers or (work.peer,)

    def command(self, work: Work) -> str:
        """The command that repeats this measurement, without the paths of this machine."""
        words = ["python", "benchmarks/compare.py", "--work", work.name, "--rounds", str(self.rounds)]
        if self.peers:
            words += ["--peers", *self.peers]
        if self.timed_iterations is not None:
            words += ["--timed-iterations", str(self.timed_iterations)]
        return shlex.join(words)


@dataclass(frozen=True, kw_only=True)
class Round:
    """One training of every side with the same seed."""

    seed: int
    load_average: tuple[float, float, float]
    """Over 1, 5 and 15 minutes, when the round began; the rounds before it count in it."""
    measurements: dict[str, Measurement]

    def ratio(self, peer: str) -> float:
        """Inchworm's steps per second over the peer's."""
        return self.measurements[OURS].steps_per_second / self.measurements[peer].steps_per_second

    def update_ratio(self, peer: str) -> float:
        """The peer's time in updates over Inchworm's, of the same number of updates."""
        return self.measurements[peer].update_seconds / self.measurements[OURS].update_seconds


def main(options: Options) -> None:
    peers_python = install_peers(options.python)
    source = commit()
    for work in options.works:
        rounds = []
        for played in play_rounds(work, options, peers_python):
            rounds.append(played)
            check_equal_work(work, played)
            console.print(describe(played, options.peers_of(work)))
        console.print(speed_table(work, options.peers_of(work), rounds))
        console.print(update_table(work, options.peers_of(work), rounds))
        write_result(work, options, rounds, source)


def install_peers(python: Path) -> Path:
    """Return the interpreter of the peers' virtual environment, made anew if their requirements have changed."""
    folder = HERE / ".venv"
    interpreter = folder / "bin" / "python"
    requirements = HERE / "peers" / "requirements.txt"
    installed = folder / "installed.txt"  # written last: an interrupted installation is repeated
    if installed.exists() and installed.read_text() == requirements.read_text():
        return interpreter

    console.print("Installing the peers into benchmarks/.venv; this takes a few minutes.")
    subprocess.run([python, "-m", "venv", "--clear", folder], check=True)
    pip = [interpreter, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    first = next(line for line in requirements.read_text().splitlines() if line and not line.startswith("#"))
    subprocess.run([*pip, first], check=True)
    subprocess.run([*pip, "-r", requirements], check=True)
    installed.write_text(requirements.read_text())
    return interpreter


def play_rounds(work: Work, options: Options, peers_python: Path) -> Iterator[Round]:
    """Train all sides in turn, round after round."""
    for seed in range(options.rounds):
        load_average = os.getloadavg()
        measurements = {}
        for peer in (*options.peers_of(work), OURS):
            with console.status(f"{work.env_id}, round {seed + 1} of {options.rounds}: {peer}"):
                measurements[peer] = measure(peer, work, seed, options.python if peer == OURS else peers_python)
        yield Round(seed=seed, load_average=load_average, measurements=measurements)


def measure(peer: str, work: Work, seed: int, python: Path) -> Measurement:
    """Run one training in a fresh process."""
    # -P keeps the script's folder off the path, so that peers/sbx.py does not hide the package sbx.
    command = [str(python), "-P", "-m", f"peers.{peer}", work.name, f"--seed={seed}"]
    command.append(f"--timed-iterations={work.timed_iterations}")
    path = [str(HERE)]
    if peer == OURS and "PYTHONPATH" in os.environ:
        path.append(os.environ["PYTHONPATH"])
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=PROCESS_LIMIT_SECONDS)
    if done.returncode != 0:
        raise PeerError(f"{peer} ended with exit code {done.returncode}:\n{done.stderr[-4000:]}")
    try:
        return Measurement(**json.loads(done.stdout.splitlines()[-1]))
    except (IndexError, ValueError, TypeError) as error:
        raise PeerError(f"{peer} did not end with a line of JSON but with:\n{done.stdout[-1000:]}") from error


def check_equal_work(work: Work, played: Round) -> None:
    """Raise `UnequalWorkError` unless all sides did the work asked for, with the same networks and simulator."""
    ours = played.measurements[OURS]
    wanted = {"env_steps": work.total_steps, "gradient_steps": work.iterations * work.gradient_steps_per_iteration}
    for name, number in wanted.items():
        if getattr(ours, name) != number:
            raise UnequalWorkError(f"{name}: {OURS} has {getattr(ours, name)}, {work.name} wants {number}")
    for peer, theirs in played.measurements.items():
        pairs = {name: (getattr(theirs, name), getattr(ours, name)) for name in EQUAL_FIELDS}
        pairs |= {name: (theirs.versions[name], ours.versions[name]) for name in SHARED_PACKAGES}
        for name, (their_value, our_value) in pairs.items():
            if their_value != our_value:
                raise UnequalWorkError(f"{name}: {peer} has {their_value}, {OURS} {our_value}")


def describe(played: Round, peers: tuple[str, ...]) -> str:
    """One line about a round, printed as soon as it is over."""
    speeds = ", ".join(f"{peer} {one.steps_per_second:,.0f} steps/s" for peer, one in played.measurements.items())
    ratios = ", ".join(
        f"{played.ratio(peer):.2f} x {peer} (update {played.update_ratio(peer):.2f} x)" for peer in peers
    )
    return f"round {played.seed + 1}: {speeds}; {ratios}"


Columns = dict[str, tuple[str, list[float]]]
"""By heading: how the figures are written, and one for each round."""


def speed_table(work: Work, peers: tuple[str, ...], rounds: list[Round]) -> Table:
    """Environment steps per second of all rounds, collecting and learning together."""
    first = rounds[0].measurements[OURS]
    caption = f"{first.timed_env_steps:,} timed steps a training, {first.parameter_count:,} parameters"
    columns: Columns = {}
    for side in (*peers, OURS):
        columns[f"{side}\nsteps/s"] = ",.0f", [played.measurements[side].steps_per_second for played in rounds]
    for peer in peers:
        columns[f"ratio to\n{peer}"] = ".2f", [played.ratio(peer) for played in rounds]
    columns["load"] = ".1f", [played.load_average[0] for played in rounds]
    return table(work.title, caption, columns)


def update_table(work: Work, peers: tuple[str, ...], rounds: list[Round]) -> Table:
    """The mean time of an update in all rounds, and the memory of the whole process."""
    columns: Columns = {}
    for side in (*peers, OURS):
        milliseconds = [1000 * one.measurements[side].update_seconds / work.timed_iterations for one in rounds]
        columns[f"{side}\nms/update"] = ",.1f", milliseconds
    for peer in peers:
        columns[f"ratio to\n{peer}"] = ".2f", [played.update_ratio(peer) for played in rounds]
    for side in (*peers, OURS):
        columns[f"{side}\npeak MB"] = ",.0f", [played.measurements[side].peak_memory_bytes / 1e6 for played in rounds]
    return table("Its updates, without collecting", "", columns)


def table(title: str, caption: str, columns: Columns) -> Table:
    """A row for each round, with median and minimum at the end."""
    result = Table(title=title, caption=caption, show_footer=True)
    result.add_column("round", "median\nminimum")
    for heading, (form, figures) in columns.items():
        result.add_column(heading, f"{median(figures):{form}}\n{min(figures):{form}}", justify="right")
    for number, row in enumerate(zip(*(figures for _, figures in columns.values()), strict=True), start=1):
        forms = (form for form, _ in columns.values())
        result.add_row(str(number), *(f"{figure:{form}}" for form, figure in zip(forms, row, strict=True)))
    return result


def write_result(work: Work, options: Options, rounds: list[Round], source: dict[str, Any]) -> None:
    """Write everything that was measured, and with what, to ``<results>/<work>.json``; a trial replaces no result."""
    peers = options.peers_of(work)
    ratios = {peer: [played.ratio(peer) for played in rounds] for peer in peers}
    update_ratios = {peer: [played.update_ratio(peer) for played in rounds] for peer in peers}
    result = {
        "command": options.command(work),
        **source,
        "machine": machine(),
        "settings": asdict(work),
        "median_ratio": {peer: median(values) for peer, values in ratios.items()},
        "minimum_ratio": {peer: min(values) for peer, values in ratios.items()},
        "ratios": ratios,
        "median_update_ratio": {peer: median(values) for peer, values in update_ratios.items()},
        "minimum_update_ratio": {peer: min(values) for peer, values in update_ratios.items()},
        "update_ratios": update_ratios,
        "rounds": [asdict(played) for played in rounds],
    }
    options.results.mkdir(parents=True, exist_ok=True)
    kind = "" if options.timed_iterations is None else "-trial"
    file = options.results / f"{work.name}{kind}.json"
    file.write_text(json.dumps(result, indent=2) + "\n")
    console.print(f"Written: {file}")
    report_target("ratio", work, work.target_ratio, ratios)
    report_target("ratio of updates", work, work.target_update_ratio, update_ratios)


def report_target(name: str, work: Work, target: float | None, ratios: dict[str, list[float]]) -> None:
    """Say whether the median over the rounds is what Inchworm promises, where the promised peer took part."""
    if target is not None and work.peer in ratios:
        met = "met" if median(ratios[work.peer]) >= target else "missed"
        console.print(f"Target for the median {name} to {work.peer}: {target:g}, {met}.")


def commit() -> dict[str, Any]:
    """Commit of the repository, and whether the measured sources differ from it."""

    def git(*words: str) -> str | None:
        done = subprocess.run(["git", "--no-optional-locks", *words], cwd=HERE, capture_output=True, text=True)
        return done.stdout.strip() if done.returncode == 0 else None

    changes = git("status", "--porcelain", "--", "../src", "compare.py", "peers")
    return {"commit": git("rev-parse", "HEAD"), "uncommitted_changes": changes != ""}


def machine() -> dict[str, Any]:
    """What the figures depend on; no names or paths."""
    cpu = platform.processor()
    information = Path("/proc/cpuinfo")  # Linux, where platform knows only the architecture
    if information.exists():
        lines = information.read_text().splitlines()
        cpu = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), cpu)
    return {"cpu": cpu, "cores": os.cpu_count(), "system": platform.system(), "architecture": platform.machine()}


if __name__ == "__main__":
    try:
        main(tyro.cli(Options, description=__doc__))
    except (UnequalWorkError, PeerError, ValueError) as error:
        console.print(f"[bold red]{type(error).__name__}[/]", end=": ")
        console.print(str(error), markup=False)
        sys.exit(1)
