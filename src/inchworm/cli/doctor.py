"""`inchworm doctor [RUN]`."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

from inchworm.cli.options import Argument, read_options
from inchworm.cli.report import Section, found_section, page
from inchworm.config import RunConfig
from inchworm.diagnosis import MIN_ITERATIONS, SLOW_SHARE, diagnose, speed
from inchworm.io.loggers import read_metrics
from inchworm.io.run_folder import open_run_folder, read_json, read_summary
from inchworm.io.words import count, final_return, format_return
from inchworm.models.advice import Finding
from inchworm.planning import configure_jax
from inchworm.warning import plain


@dataclass(frozen=True, kw_only=True)
class Options:
    """Says what is wrong with a run, finished or still going on, and the one thing to try first.

    Without a run it looks at the installation: versions, devices, what is computed, what draws, and what is not
    installed. Exit status 2 if something is wrong.
    """

    run: Annotated[Path | None, Argument("RUN")] = None
    """The run's folder."""
    json: bool = False
    """Print what is found as JSON."""


def main(arguments: list[str]) -> int:
    options = read_options("doctor", Options, arguments)
    facts, findings = _of_installation() if options.run is None else _of_run(options.run)
    if options.json:
        document = {title: dict(rows) for title, rows in facts}
        print(json.dumps(document | {"findings": [asdict(finding) for finding in findings]}))
    else:
        print(plain(page([*facts, found_section("What is wrong", findings)])))
    return 2 if findings else 0


def _of_run(path: Path) -> tuple[list[Section], list[Finding]]:
    folder = open_run_folder(path)
    config = RunConfig.from_json(read_json(folder.config))
    rows = read_metrics(folder.metrics)
    settings = config.algorithm
    facts = {"algorithm": f"{config.algorithm_name}, {count(settings.num_envs, 'environment')}, seed {config.seed}"}
    steps = rows[-1]["env_steps"] if rows else 0
    facts["done"] = f"{steps:,} of {config.total_steps:,} steps, {count(len(rows), 'iteration')}"
    if len(rows) < MIN_ITERATIONS:
        facts["done"] += f"; fewer than {MIN_ITERATIONS} say nothing"
    if folder.is_held():
        facts["state"] = "is being trained"
    elif folder.summary.exists():
        summary = read_summary(folder.summary)
        facts |= {"state": f"stopped by {summary['stopped_by']}", "return": final_return(summary)}
    else:
        facts["state"] = "was broken off; `inchworm resume` goes on with it"
    if "return" not in facts and rows and rows[-1].get("episode/return_recent") is not None:
        facts["return"] = f"{format_return(rows[-1]['episode/return_recent'])} now"
    findings = diagnose(config, rows)
    shares = speed(rows)
    if shares is not None:
        parts = ", ".join(f"{share:.0%} {what}" for what, share in shares.items())
        facts["time"] = f"{parts}{_advice(config, shares)}"
    return [(f"{config.env}", facts.items())], findings


def _advice(config: RunConfig, shares: dict[str, float]) -> str:
    """What would make a run faster, where one part takes nearly all of its time."""
    slowest = max(shares, key=lambda what: shares[what])
    if shares[slowest] < SLOW_SHARE:
        return ""
    if slowest == "environment":
        more = config.env_processes == 1 and config.algorithm.num_envs > 1 and config.backend == "gymnasium"
        return ". --env-processes steps environments on several cores" if more else ""
    if slowest == "policy":
        return ". A larger num_envs lets the policy act in more environments at once"
    return ". A larger minibatch_size, or fewer num_epochs, makes updates shorter"


def _of_installation() -> tuple[list[Section], list[Finding]]:
    configure_jax()
    from inchworm.cli import installation

    looks: Sequence[tuple[str, Any]] = (
        ("Installed", installation.packages),
        ("Computes on", installation.devices),
        ("Computes", installation.numbers),
        ("Draws", installation.drawing),
    )
    facts: list[Section] = []
    findings: list[Finding] = []
    for title, look in looks:
        try:
            found, wrong = look()
        except Exception as error:  # whatever is broken in what was installed
            found, wrong = {}, [Finding(title.lower(), f"cannot be told: {type(error).__name__}: {error}", "")]
        facts.append((title, found.items()))
        findings += wrong
    return facts, findings
