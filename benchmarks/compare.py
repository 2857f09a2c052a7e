"""Measure Inchworm's training speed beside its peers', on the same work and the same machine.

    python benchmarks/compare.py --work halfcheetah --rounds 7

Speed is environment steps per second of the whole training; where updates are made apart from rollouts, their time
alone is measured beside it. A round trains once with each side that a work names, every training in a fresh process and
all with the round's seed; who begins moves on from round to round. Only ratios within a round count, since absolute
figures drift by machine and hour. Nothing is compared unless all sides took the same environment steps and gradient
steps with networks of the same shapes on the same kind of device, and have the same versions of the packages that more
than one of them uses. EnvPool steps the same tasks as Gymnasium, but with a build of MuJoCo of its own: the result says
whose environments each side stepped. It is written to benchmarks/results/<work>.json.

On first use the peers are installed into benchmarks/.venv, each group of them into a virtual environment of its own
(the one with PyTorch takes 3 GB). Works on EnvPool and on Brax need `inchworm[envpool]` and `inchworm[brax]`; those for
a GPU are left out of "all".
"""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import tyro
from rich.table import Table

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

from measuring import RESULTS, commit, console, machine, verdict, write_result  # noqa: E402  (the path is set just above)
from peers.protocol import WORKS, Measurement, Target, Work  # noqa: E402

GROUPS = {
    "sb3": "torch",
    "sb3_processes": "torch",
    "sb3_contrib": "torch",
    "sbx": "torch",
    "sbx_processes": "torch",
    "tianshou": "torch",
    "tianshou_processes": "torch",
    "tianshou_envpool": "torch",
    "cleanrl": "torch",
    "rejax": "rejax",
    "purejaxrl": "rejax",
    "brax": "brax",
}
"""By peer, the file of peers/requirements with what it needs. All other sides are Inchworm."""
EQUAL_FIELDS = ("env_steps", "gradient_steps", "parameter_count", "parameter_shapes", "device")
PROCESS_LIMIT_SECONDS = 1800


class UnequalWorkError(RuntimeError):
    """Two sides of a round did not do the same work, so that their speeds cannot be compared."""


class PeerError(RuntimeError):
    """A training process failed, or answered with something else than its measurement."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """Train Inchworm and its peers in turn with the same settings and compare their environment steps per second."""

    work: Annotated[str, tyro.conf.arg(metavar="{" + ",".join((*WORKS, "all")) + "}")] = "all"
    """What to train, as peers/protocol.py says it; "all" is every work for a CPU in turn."""

    rounds: int = 7
    """How many times each side trains. Round k has seed k."""

    sides: Annotated[tuple[str, ...], tyro.conf.arg(help_behavior_hint="(default: all that the work names)")] = ()
    """Modules of benchmarks/peers that are to play instead of the work's; each that runs Inchworm is compared with each
    peer. A trial."""

    timed_iterations: int | None = None
    """Iterations in the timed part, instead of the work's own number. A trial: short runs are noisy. The result of a
    trial goes to <work>-trial.json."""

    results: Annotated[Path, tyro.conf.arg(help_behavior_hint="(default: benchmarks/results)")] = RESULTS
    """Folder of the JSON files."""

    python: Annotated[Path, tyro.conf.arg(help_behavior_hint="(default: this script's own)")] = Path(sys.executable)
    """Interpreter that has Inchworm."""

    def __post_init__(self) -> None:
        if self.rounds < 1:
            raise ValueError(f"rounds = {self.rounds}: take at least 1")
        if self.work not in (*WORKS, "all"):
            raise ValueError(f"work = {self.work}: take one of {', '.join(WORKS)} or all")
        for side in self.sides:
            if not (HERE / "peers" / f"{side}.py").exists():
                raise ValueError(f"sides = {side}: benchmarks/peers has no such module")
        if self.sides and len({side in GROUPS for side in self.sides}) == 1:
            raise ValueError(f"sides = {' '.join(self.sides)}: take at least one that runs Inchworm and one peer")

    @property
    def works(self) -> list[Work]:
        """What to train, with the sides and iterations asked for."""
        chosen = [WORKS[self.work]] if self.work != "all" else [one for one in WORKS.values() if one.platform == "cpu"]
        if self.timed_iterations is not None:
            chosen = [replace(work, timed_iterations=self.timed_iterations) for work in chosen]
        return [replace(work, targets=self._targets(work)) for work in chosen] if self.sides else chosen

    @property
    def trial(self) -> bool:
        """Whether the result is none that counts."""
        return bool(self.sides) or self.timed_iterations is not None

    def file(self, work: Work) -> Path:
        """Where its result goes; that of a trial replaces none that counts."""
        return self.results / f"{work.name}{'-trial' if self.trial else ''}.json"

    def command(self, work: Work) -> str:
        """The command that repeats this measurement, without the paths of this machine."""
        words = ["python", "benchmarks/compare.py", "--work", work.name, "--rounds", str(self.rounds)]
        if self.sides:
            words += ["--sides", *self.sides]
        if self.timed_iterations is not None:
            words += ["--timed-iterations", str(self.timed_iterations)]
        return shlex.join(words)

    def _targets(self, work: Work) -> tuple[Target, ...]:
        promised = {(target.ours, target.peer): target for target in work.targets}
        pairs = [(ours, peer) for ours in self.sides if ours not in GROUPS for peer in self.sides if peer in GROUPS]
        return tuple(promised.get(pair, Target(*pair)) for pair in pairs)


@dataclass(frozen=True, kw_only=True)
class Round:
    """One training of every side with the same seed."""

    seed: int
    load_average: tuple[float, float, float]
    """Over 1, 5 and 15 minutes, when the round began; the rounds before it count in it."""
    measurements: dict[str, Measurement]
    """By side, in the order in which they played."""

    def ratio(self, pair: Target) -> float:
        """Inchworm's steps per second over the peer's."""
        return self.measurements[pair.ours].steps_per_second / self.measurements[pair.peer].steps_per_second

    def update_ratio(self, pair: Target) -> float | None:
        """The peer's time in updates over Inchworm's, of the same number of updates; None where they are not apart."""
        theirs, ours = (self.measurements[side].update_seconds for side in (pair.peer, pair.ours))
        return None if theirs is None or ours is None else theirs / ours


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """What the rounds of a pair came to."""

    pair: Target
    ratios: list[float]
    update_ratios: list[float]
    """Empty where updates are not apart."""

    @classmethod
    def over(cls, rounds: list[Round], pair: Target) -> Comparison:
        update_ratios = [ratio for played in rounds if (ratio := played.update_ratio(pair)) is not None]
        return cls(pair=pair, ratios=[played.ratio(pair) for played in rounds], update_ratios=update_ratios)

    @property
    def promises(self) -> dict[str, tuple[float, list[float]]]:
        """By its name, what is promised of the median and the figures for it."""
        both = {"speed": (self.pair.ratio, self.ratios), "updates": (self.pair.update_ratio, self.update_ratios)}
        return {name: (promise, ratios) for name, (promise, ratios) in both.items() if promise is not None and ratios}

    @property
    def keeps_promises(self) -> bool:
        return all(is_kept(*promised) for promised in self.promises.values())

    def to_json(self) -> dict[str, Any]:
        result = asdict(self.pair)
        for name, ratios in {"ratio": self.ratios, "update_ratio": self.update_ratios}.items():
            result[f"target_{name}"] = result.pop(name)
            result[f"median_{name}"] = median(ratios) if ratios else None
            result[f"minimum_{name}"] = min(ratios, default=None)
            result[f"{name}s"] = ratios
        return result


def main(options: Options) -> None:
    groups = {GROUPS[side] for work in options.works for side in work.sides if side in GROUPS}
    interpreters = {group: install_group(options.python, group) for group in sorted(groups)}
    source = commit()
    for work in options.works:
        rounds = []
        for played in play_rounds(work, options, interpreters):
            check_equal_work(work, played)
            rounds.append(played)
            console.print(describe(work, played), highlight=False)
        comparisons = [Comparison.over(rounds, pair) for pair in work.targets]
        console.print(side_table(work, rounds))
        console.print(pair_table(comparisons))
        write_result(options.file(work), document(work, options, rounds, comparisons, source))


def install_group(python: Path, group: str) -> Path:
    """Return the interpreter of a group's virtual environment, made anew if its requirements have changed."""
    folder = HERE / ".venv" / group
    interpreter = folder / "bin" / "python"
    requirements = HERE / "peers" / "requirements" / f"{group}.txt"
    installed = folder / "installed.txt"  # written last: an interrupted installation is repeated
    if installed.exists() and installed.read_text() == requirements.read_text():
        return interpreter

    console.print(f"Installing peers into benchmarks/.venv/{group}; this takes a few minutes.")
    subprocess.run([python, "-m", "venv", "--clear", folder], check=True)
    pip = [interpreter, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    first = next(line for line in requirements.read_text().splitlines() if line and not line.startswith("#"))
    subprocess.run([*pip, first], check=True)
    subprocess.run([*pip, "-r", requirements], check=True)
    installed.write_text(requirements.read_text())
    return interpreter


def play_rounds(work: Work, options: Options, interpreters: dict[str, Path]) -> Iterator[Round]:
    """Train all sides in turn, round after round; each round begins with another side."""
    for seed in range(options.rounds):
        first = seed % len(work.sides)
        load_average = os.getloadavg()
        measurements = {}
        for side in (*work.sides[first:], *work.sides[:first]):
            python = interpreters[GROUPS[side]] if side in GROUPS else options.python
            with console.status(f"{work.name}, round {seed + 1} of {options.rounds}: {side}"):
                measurements[side] = measure(side, work, seed, python)
        yield Round(seed=seed, load_average=load_average, measurements=measurements)


def measure(side: str, work: Work, seed: int, python: Path) -> Measurement:
    """Run one training in a fresh process."""
    # -P keeps the script's folder off the path, so that peers/sbx.py does not hide the package sbx.
    command = [str(python), "-P", "-m", f"peers.{side}", work.name, f"--seed={seed}"]
    command.append(f"--timed-iterations={work.timed_iterations}")
    path = [str(HERE)]
    if side not in GROUPS and "PYTHONPATH" in os.environ:
        path.append(os.environ["PYTHONPATH"])
    environment = {"JAX_PLATFORMS": work.platform} | os.environ | {"PYTHONPATH": os.pathsep.join(path)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=PROCESS_LIMIT_SECONDS)
    if done.returncode != 0:
        raise PeerError(f"{side} ended with exit code {done.returncode}:\n{done.stderr[-4000:]}")
    try:
        return Measurement(**json.loads(done.stdout.splitlines()[-1]))
    except (IndexError, ValueError, TypeError) as error:
        raise PeerError(f"{side} did not end with a line of JSON but with:\n{done.stdout[-1000:]}") from error


def check_equal_work(work: Work, played: Round) -> None:
    """Raise `UnequalWorkError` unless all sides did the work asked for, with the same networks and versions."""
    facts: dict[str, tuple[str, Any]] = {
        "env_steps": (work.name, work.total_steps),
        "gradient_steps": (work.name, work.iterations * work.gradient_steps_per_iteration),
    }
    for side, measurement in played.measurements.items():
        found = {name: getattr(measurement, name) for name in EQUAL_FIELDS} | measurement.versions
        for name, value in found.items():
            first, wanted = facts.setdefault(name, (side, value))
            if value != wanted:
                raise UnequalWorkError(f"{name}: {side} has {value}, {first} {wanted}")


def describe(work: Work, played: Round) -> str:
    """What a round came to, printed as soon as it is over."""
    speeds = ", ".join(f"{side} {one.steps_per_second:,.0f} steps/s" for side, one in played.measurements.items())
    ratios = ", ".join(f"{pair.ours} {played.ratio(pair):.2f} x {pair.peer}" for pair in work.targets)
    return f"{work.name}, round {played.seed + 1}, load {played.load_average[0]:.1f}: {speeds}; {ratios}"


def side_table(work: Work, rounds: list[Round]) -> Table:
    """How each side did over the rounds."""
    one = rounds[0].measurements[work.sides[0]]
    caption = f"{one.timed_env_steps:,} timed steps a training, {one.parameter_count:,} parameters, on {one.device}"
    columns = ("", "steps/s\nmedian", "\nslowest", "\nfastest", "ms/update\nmedian", "CPU time of\ntime", "peak\nMB")
    result = Table(title=work.title, caption=caption)
    for number, heading in enumerate((*columns, "environments")):
        result.add_column(heading, justify="left" if number in (0, len(columns)) else "right")
    for side in work.sides:
        played = [one.measurements[side] for one in rounds]
        speeds = [one.steps_per_second for one in played]
        updates = [one.update_seconds for one in played if one.update_seconds is not None]
        result.add_row(
            side,
            *(f"{statistic(speeds):,.0f}" for statistic in (median, min, max)),
            f"{1000 * median(updates) / work.timed_iterations:,.1f}" if updates else "",
            f"{median(one.cpu_seconds / one.seconds for one in played):.0%}",
            f"{max(one.peak_memory_bytes for one in played) / 1e6:,.0f}",
            played[0].simulator,
        )
    return result


def pair_table(comparisons: list[Comparison]) -> Table:
    """How many times as fast Inchworm is, beside what it promises for the median."""
    result = Table()
    for number, heading in enumerate(("", "", "median", "minimum", "each round", "promised")):
        result.add_column(heading, justify="right" if number in (2, 3) else "left")
    for comparison in comparisons:
        for name, ratios in {"speed": comparison.ratios, "updates": comparison.update_ratios}.items():
            if ratios:
                result.add_row(
                    f"{comparison.pair.ours} x {comparison.pair.peer}",
                    name,
                    f"{median(ratios):.2f}",
                    f"{min(ratios):.2f}",
                    " ".join(f"{ratio:.2f}" for ratio in ratios),
                    held_against(*comparison.promises[name]) if name in comparison.promises else "",
                )
    return result


def is_kept(promise: float, ratios: list[float]) -> bool:
    """Whether the median over the rounds is what Inchworm promises."""
    return median(ratios) >= promise


def held_against(promise: float, ratios: list[float]) -> str:
    """What Inchworm promises, and whether it keeps it."""
    return f"{promise:g}, {verdict(is_kept(promise, ratios))}"


def document(
    work: Work, options: Options, rounds: list[Round], comparisons: list[Comparison], source: dict[str, Any]
) -> dict[str, Any]:
    """Everything that was measured, and with what."""
    return {
        "title": work.title,
        "command": options.command(work),
        **source,
        "machine": machine(),
        "settings": {name: value for name, value in asdict(work).items() if name not in ("targets", "bound")},
        "bound": None if all(comparison.keeps_promises for comparison in comparisons) else work.bound,
        "simulators": {side: rounds[0].measurements[side].simulator for side in work.sides},
        "pairs": [comparison.to_json() for comparison in comparisons],
        "rounds": [asdict(played) for played in rounds],
    }


if __name__ == "__main__":
    try:
        main(tyro.cli(Options, description=__doc__))
    except (UnequalWorkError, PeerError, ValueError) as error:
        console.print(f"[bold red]{type(error).__name__}[/]", end=": ")
        console.print(str(error), markup=False)
        sys.exit(1)
